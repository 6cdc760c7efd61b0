"""PixelData -> stored values, at the resolution needed.

All arrays are (rows, columns).
"""

import io
import struct
from collections.abc import Callable
from itertools import pairwise

import imagecodecs
import numpy as np
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from pydicom import Dataset, uid
from pydicom.encaps import generate_fragments, parse_basic_offsets

from rsna_nb.dicom.codestream import JPEG_2000, LOSSLESS_JPEG_2000, FrameHeader, checked_header
from rsna_nb.dicom.pyramid import HalvedPyramid, Pyramid, in_range
from rsna_nb.dicom.voi import UnreadableError

MAX_PIXELS = 40_000_000  # of a frame: the largest mammograms have 26 million, and these decode within 5 s

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


def open_pyramid(dataset: Dataset) -> Pyramid:
    """The frame of a checked data set; raises `UnreadableError` with what is wrong."""
    if dataset.file_meta.TransferSyntaxUID in LOSSLESS_JPEG_2000:  # a lossy one is clipped too late
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
        return sign_extended(stored, bits, dataset.HighBit), bits
    stored = stored.view(np.dtype(f"u{stored.itemsize}"))
    if has_embedded_overlay(dataset):
        stored = stored & (2 ** (dataset.HighBit + 1) - 1)
    stored = right_aligned(stored, dataset.HighBit + 1 - bits)
    return stored, max(bits, int(stored.max()).bit_length())


def native_frame(dataset: Dataset, syntax: uid.UID) -> np.ndarray:
    dtype = np.dtype(f"{'<' if syntax.is_little_endian else '>'}u{dataset.BitsAllocated // 8}")
    content, count = pixel_data(dataset), dataset.Rows * dataset.Columns
    if len(content) < count * dtype.itemsize:
        raise UnreadableError(f"PixelData is cut off: {len(content)} of {count * dtype.itemsize} bytes")
    if len(content) > max(2 * count * dtype.itemsize - 1, count + 1):
        raise UnreadableError(f"PixelData has {len(content)} bytes, more than one frame of {count * dtype.itemsize}")
    if dtype.itemsize == 1 and not syntax.is_little_endian and dataset["PixelData"].VR == "OW":
        content = np.frombuffer(content[: len(content) // 2 * 2], np.uint16).byteswap().tobytes()  # PS3.5 8.1.1
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
    if header.is_lossless_jpeg and is_damaged(stored, header.bits, codestream):
        raise UnreadableError("defective JPEG Lossless codestream: its samples are out of range, or it ends too soon")
    return stored


def is_damaged(stored: np.ndarray, bits: int, codestream: bytes) -> bool:
    """libjpeg only warns, where nobody hears it: damage leaves samples out of range, or grey rows where data ended."""
    if stored.max() >= 2**bits:
        return True
    return bool((stored[-1] == 2 ** (bits - 1)).all()) and not is_confirmed(stored, codestream)


def is_confirmed(stored: np.ndarray, codestream: bytes) -> bool:
    """Whether a second, slower decoder of JPEG lossless reads the same."""
    try:
        return np.array_equal(stored, imagecodecs.jpegsof3_decode(codestream))
    except (RuntimeError, ValueError):
        return False


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
        return values[: dataset.Rows * dataset.Columns].reshape(dataset.Rows, dataset.Columns)
    except (RuntimeError, ValueError, struct.error) as error:
        raise UnreadableError(f"defective RLE Lossless codestream: {error}") from error


def has_embedded_overlay(dataset: Dataset) -> bool:
    """Whether bits above the samples hold an overlay, as was usual before 2004 (OverlayBitPosition, 60xx,0102)."""
    return any(dataset.get((group, 0x0102)) and dataset[group, 0x0102].value for group in range(0x6000, 0x601F, 2))


def right_aligned(stored: np.ndarray, unused: int) -> np.ndarray:
    """The values without the `unused` low bits that HighBit (0028,0102) says are empty, where they are."""
    empty = 0 < unused < 8 * stored.itemsize and not (stored & (2**unused - 1)).any()
    return stored >> unused if empty else stored


def sign_extended(stored: np.ndarray, bits: int, high_bit: int) -> np.ndarray:
    """Two's complement of the `bits` bits up to `high_bit` as a signed integer; wider where the array is too narrow."""
    if bits > 8 * stored.itemsize:  # a codestream of 8 bits for 12
        return stored.astype(np.int16)
    width = 8 * stored.itemsize
    high_bit = high_bit if bits <= high_bit + 1 <= width else bits - 1
    shifted = np.left_shift(stored.view(np.dtype(f"i{stored.itemsize}")), width - 1 - high_bit)
    return np.right_shift(shifted, width - bits)
