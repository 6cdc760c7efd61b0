"""PixelData -> stored values, at the resolution needed.

What the codestream's own header says is compared with the data set's before anything is decoded, so that a lie
in either costs no memory. All arrays are (rows, columns).
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import imagecodecs
import numpy as np
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from pydicom import Dataset, uid
from pydicom.encaps import generate_fragments, parse_basic_offsets

from rsna_nb.brightness import UnreadableError
from rsna_nb.pyramid import HalvedPyramid, Pyramid, in_range

MAX_PIXELS = 2**26  # of a frame: three times the largest mammograms, and half a GB to decode
MAX_TILES = 1024  # of a JPEG 2000 codestream: a decoder takes some KiB for each

JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    **dict.fromkeys(JPEG_2000, imagecodecs.jpeg2k_decode),
    **dict.fromkeys(JPEG, imagecodecs.jpeg8_decode),
    **dict.fromkeys(JPEG_LS, imagecodecs.jpegls_decode),
}
TRANSFER_SYNTAXES = (  # not the deflated one, whose files can be as large in memory as they like
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless),
    *DECODERS,
)
END_OF_CODESTREAM = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
NO_FRAME_HEADER = (0xC4, 0xC8, 0xCC)  # markers among JPEG's SOF0 to SOF15 that are none


@dataclass(frozen=True)
class FrameHeader:
    """What a codestream says of itself. `levels` is how often a JPEG 2000 codestream can be halved exactly as
    pyramid.py does it: 0 for other codecs, other wavelets, several tiles and whatever else is unusual."""

    shape: tuple[int, int]
    components: int
    bits: int
    levels: int = 0
    is_lossless_jpeg: bool = False


def open_pyramid(dataset: Dataset) -> Pyramid:
    """The frame of a checked data set; raises `UnreadableError` with what is wrong."""
    if dataset.file_meta.TransferSyntaxUID in JPEG_2000:
        codestream = joined_fragments(dataset)
        header = checked_header(codestream, dataset)
        if is_reducible(header, dataset):
            return Jpeg2000Pyramid(codestream, header, dataset)
    return HalvedPyramid(*stored_values(dataset))


class Jpeg2000Pyramid:
    """The levels of a JPEG 2000 codestream, each decoded by itself; what cannot be is decoded in full and halved."""

    def __init__(self, codestream: bytes, header: FrameHeader, dataset: Dataset) -> None:
        self.shape, self.bits, self.signed = header.shape, dataset.BitsStored, False
        self.codestream, self.header, self.dataset = codestream, header, dataset
        self.decoded: Pyramid | None = None

    def level(self, n: int) -> np.ndarray:
        if self.decoded is None and 0 < n <= self.header.levels:
            values = decode_reduced(self.codestream, self.header, n)
            if values is not None:
                return in_range(values, self.bits, self.signed)
        if self.decoded is None:
            self.decoded = HalvedPyramid(*stored_values(self.dataset))
        return self.decoded.level(n)


def decode_reduced(codestream: bytes, header: FrameHeader, n: int) -> np.ndarray | None:
    """The picture at 1/2^n as Pillow decodes it, None where it cannot."""
    image = Jpeg2KImageFile(io.BytesIO(codestream))
    image.reduce = n
    # Pillow rounds a reduced side where the standard takes the ceiling, and then finds the data broken
    image._size = tuple(-(-side // 2**n) * 2**n for side in header.shape[::-1])
    try:
        image.load()
    except OSError:
        return None
    # Pillow moves samples to the high end of their 8 or 16 bits
    return np.asarray(image) >> ((8 if header.bits <= 8 else 16) - header.bits)


def is_reducible(header: FrameHeader, dataset: Dataset) -> bool:
    """Whether the levels in the codestream are those of the stored values, which no pixel above BitsStored widens."""
    plain = dataset.PixelRepresentation == 0 and dataset.HighBit + 1 == dataset.BitsStored
    return plain and header.levels > 0 and header.bits <= dataset.BitsStored


def stored_values(dataset: Dataset) -> tuple[np.ndarray, int]:
    """The stored pixels, (rows, columns) of integers, and the bits of their range.

    The range is BitsStored's unless a pixel lies above it (one RSNA patient has such pixels): then it is
    as many bits as hold the largest.
    """
    shape = (dataset.Rows, dataset.Columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    stored = decode_frame(dataset, syntax) if syntax.is_compressed else native_frame(dataset, syntax)
    if stored.shape != shape or stored.itemsize > 2:
        raise UnreadableError(f"the codestream holds {stored.dtype} {stored.shape}, the header says {shape}")
    bits = dataset.BitsStored
    if dataset.PixelRepresentation == 1:
        return sign_extended(stored, bits), bits
    stored = right_aligned(stored.view(np.dtype(f"u{stored.itemsize}")), dataset.HighBit + 1 - bits)
    return stored, max(bits, int(stored.max()).bit_length())


def native_frame(dataset: Dataset, syntax: uid.UID) -> np.ndarray:
    dtype = np.dtype(f"{'<' if syntax.is_little_endian else '>'}u{dataset.BitsAllocated // 8}")
    content, count = pixel_data(dataset), dataset.Rows * dataset.Columns
    if len(content) < count * dtype.itemsize:
        raise UnreadableError(f"PixelData is cut off: {len(content)} of {count * dtype.itemsize} bytes")
    if len(content) >= 2 * count * dtype.itemsize:
        raise UnreadableError(f"PixelData has {len(content)} bytes, more than one frame of {count * dtype.itemsize}")
    stored = np.frombuffer(content, dtype, count).reshape(dataset.Rows, dataset.Columns)
    return stored.astype(dtype.newbyteorder("="), copy=False)


def decode_frame(dataset: Dataset, syntax: uid.UID) -> np.ndarray:
    codestream = joined_fragments(dataset)
    if syntax == uid.RLELossless:
        return rle_frame(codestream, dataset)
    header = checked_header(codestream, dataset)
    try:
        stored = DECODERS[syntax](codestream)
    except (RuntimeError, ValueError) as error:  # imagecodecs' own errors are RuntimeErrors
        raise UnreadableError(f"defective {syntax.name} codestream: {error}") from error
    if header.is_lossless_jpeg:
        check_lossless_jpeg(stored, header.bits)
    return stored


def check_lossless_jpeg(stored: np.ndarray, bits: int) -> None:
    """The decoder only warns, where nobody hears it: damage leaves samples out of range, or grey where data ended."""
    if stored.max() >= 2**bits or (stored[-1] == 2 ** (bits - 1)).all():
        raise UnreadableError("defective JPEG Lossless codestream: its samples are out of range, or it ends too soon")


def joined_fragments(dataset: Dataset) -> bytes:
    """The one frame of an encapsulated data set, whatever its offset table says of where frames begin."""
    buffer = io.BytesIO(pixel_data(dataset))
    try:
        parse_basic_offsets(buffer)
        fragments = list(generate_fragments(buffer))
    except (ValueError, struct.error) as error:
        name = dataset.file_meta.TransferSyntaxUID.name
        raise UnreadableError(f"PixelData is not encapsulated as {name} has to be: {error}") from error
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)


def pixel_data(dataset: Dataset) -> bytes:
    try:
        content = dataset.PixelData
    except NotImplementedError as error:
        raise UnreadableError(f"defective header: {error}") from error
    if not isinstance(content, bytes):
        raise UnreadableError("PixelData (7FE0,0010) has the value representation of something else")
    return content


def rle_frame(codestream: bytes, dataset: Dataset) -> np.ndarray:
    """PS3.5 Annex G: one PackBits segment a byte of the sample, the most significant first.

    The decoder follows the segments' offsets wherever they point, so they are checked before.
    """
    dtype = np.dtype(f"u{dataset.BitsAllocated // 8}")
    try:
        count, *offsets = struct.unpack_from("<16I", codestream)
        ends = [*offsets[:count], len(codestream)]
        if count != dtype.itemsize or ends[0] != 64 or any(start >= end for start, end in pairwise(ends)):
            raise ValueError(f"{count} segments at {offsets[:count]}")
        values = np.frombuffer(imagecodecs.dicomrle_decode(codestream, dtype), dtype)
        return values.reshape(dataset.Rows, dataset.Columns)
    except (RuntimeError, ValueError, struct.error) as error:
        raise UnreadableError(f"defective RLE Lossless codestream: {error}") from error


def checked_header(codestream: bytes, dataset: Dataset) -> FrameHeader:
    """The codestream's header, where it is whole and says what the data set says."""
    if END_OF_CODESTREAM not in codestream[-64:]:  # decoders return what they have got; trailing padding is legal
        raise UnreadableError("PixelData is cut off: the codestream has no end marker")
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        header = jpeg_2000_header(codestream) if syntax in JPEG_2000 else jpeg_header(codestream)
    except (IndexError, struct.error, ValueError, ZeroDivisionError) as error:
        raise UnreadableError(f"PixelData holds no {syntax.name} codestream: {error}") from error
    shape = (dataset.Rows, dataset.Columns)
    if header.shape != shape:
        raise UnreadableError(f"the codestream holds {header.shape} pixels, the header says {shape}")
    if header.components != 1 or header.bits > 16:
        raise UnreadableError(
            f"the codestream holds {header.components} components of {header.bits} bits, not one of 16"
        )
    return header


def jpeg_header(codestream: bytes) -> FrameHeader:
    """The frame header of a JPEG (T.81, B.2.2) or JPEG-LS (T.87) codestream."""
    position = codestream.index(b"\xff\xd8") + 2
    while True:
        marker, length = codestream[position + 1], struct.unpack_from(">H", codestream, position + 2)[0]
        if codestream[position] != 0xFF:
            raise ValueError("a marker is expected")
        if (0xC0 <= marker <= 0xCF and marker not in NO_FRAME_HEADER) or marker == 0xF7:
            bits, rows, columns, components = struct.unpack_from(">BHHB", codestream, position + 4)
            return FrameHeader((rows, columns), components, bits, is_lossless_jpeg=marker == 0xC3)
        position += 2 + length


def jpeg_2000_header(codestream: bytes) -> FrameHeader:
    """The main header of a JPEG 2000 codestream (T.800, Annex A), also of one wrapped in a JP2 file."""
    position = codestream.index(b"\xff\x4f\xff\x51") + 4
    fields = struct.unpack_from(">HH8IHBBB", codestream, position)
    length, _, x_end, y_end, x_start, y_start, tile_width, tile_height, tile_x, tile_y, components, depth, dx, dy = (
        fields
    )
    shape = (ceil(y_end / dy) - ceil(y_start / dy), ceil(x_end / dx) - ceil(x_start / dx))
    tiles = ceil((x_end - tile_x) / tile_width) * ceil((y_end - tile_y) / tile_height)
    if tiles > MAX_TILES or not all_tiles_have_data(codestream, tiles):
        raise ValueError(f"{tiles} tiles, too many or not all there")
    bits, signed = (depth & 0x7F) + 1, depth >> 7
    usual = not (signed or x_start or y_start or position != 4) and tiles == dx == dy == components == 1
    return FrameHeader(shape, components, bits, reversible_levels(codestream, position + length) if usual else 0)


def all_tiles_have_data(codestream: bytes, tiles: int) -> bool:
    """Whether each tile has a tile-part (T.800, A.4.2); the decoder leaves a tile without any at one value."""
    found, position = set(), codestream.index(b"\xff\x90")
    while codestream[position : position + 2] == b"\xff\x90":
        tile, length = struct.unpack_from(">HI", codestream, position + 4)
        found.add(tile)
        if length == 0:  # to the end
            break
        position += length
    return found >= set(range(tiles))


def reversible_levels(codestream: bytes, position: int) -> int:
    """Decomposition levels of the reversible 5/3 wavelet; 0 where the wavelet is another, or one for itself."""
    levels = 0
    while codestream[position] == 0xFF and codestream[position + 1] != 0x90:  # until the first tile-part
        marker, length = codestream[position + 1], struct.unpack_from(">H", codestream, position + 2)[0]
        if marker == 0x53:  # COC: this component has a style of its own
            return 0
        if marker == 0x52:  # COD
            levels = codestream[position + 9] if codestream[position + 13] == 1 else 0
        position += 2 + length
    return levels


def right_aligned(stored: np.ndarray, unused: int) -> np.ndarray:
    """The values without the `unused` low bits that HighBit (0028,0102) says are empty, where they are."""
    empty = 0 < unused < 8 * stored.itemsize and not (stored & (2**unused - 1)).any()
    return stored >> unused if empty else stored


def sign_extended(stored: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement of `bits` bits as a signed integer of the array's own width."""
    unused = 8 * stored.itemsize - bits
    shifted = np.left_shift(stored.view(np.dtype(f"i{stored.itemsize}")), unused)
    return np.right_shift(shifted, unused)
