"""PixelData -> stored values at the resolution that is needed.

All arrays are (rows, columns) of integers. Every function raises `UnreadableError` if the pixel data are defective. It
does not catch the NotImplementedError that pydicom raises for an unknown value representation.
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
from rsna_nb.dicom.containers import jpeg_layout
from rsna_nb.dicom.errors import UnreadableError
from rsna_nb.dicom.pyramid import Pyramid, in_range

MAX_PIXELS = 40_000_000  # per frame; the largest mammograms have 26 million, and decoding them takes up to 5 s

JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    **dict.fromkeys(JPEG_2000, imagecodecs.jpeg2k_decode),
    **dict.fromkeys(JPEG, imagecodecs.jpeg8_decode),
    **dict.fromkeys(JPEG_LS, imagecodecs.jpegls_decode),
}
# Deflated Explicit VR is not among them: a small file of it can inflate to any size in memory.
UNCOMPRESSED = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
TRANSFER_SYNTAXES = (*UNCOMPRESSED, uid.RLELossless, *DECODERS)


def open_pyramid(dataset: Dataset) -> Pyramid:
    """Return the frame of a checked data set (`read_dataset`) at all its resolutions."""
    # Lossy JPEG 2000 is decoded in full: it is clipped after full reconstruction, so its reduced levels differ.
    if dataset.file_meta.TransferSyntaxUID in LOSSLESS_JPEG_2000:
        codestream = joined_fragments(dataset)
        header = checked_header(codestream, dataset)
        if _is_reducible(header, dataset):
            return Jpeg2000Pyramid(codestream, header, dataset)
    return Pyramid(*stored_values(dataset))


class Jpeg2000Pyramid(Pyramid):
    """The levels of a JPEG 2000 codestream. Each is decoded separately; if that fails, the full image is halved."""

    def __init__(self, codestream: bytes, header: FrameHeader, dataset: Dataset) -> None:
        self.shape, self.bits, self.signed = header.shape, dataset.BitsStored, False
        self.codestream, self.header, self.dataset = codestream, header, dataset
        self.is_decoded = False  # in full

    def level(self, n: int) -> np.ndarray:
        """Return the stored values at 1/2^n of the size, as `Pyramid.level` does."""
        if not self.is_decoded and 0 < n <= self.header.levels:
            values = decode_reduced(self.codestream, self.header, n)
            if values is not None:
                return in_range(values, self.bits, self.signed)
        if not self.is_decoded:
            super().__init__(*stored_values(self.dataset))
            self.is_decoded = True
        return super().level(n)


def decode_reduced(codestream: bytes, header: FrameHeader, n: int) -> np.ndarray | None:
    """Decode a JPEG 2000 codestream with Pillow at 1/2^n of its size. Return None if Pillow cannot decode it."""
    image = Jpeg2KImageFile(io.BytesIO(codestream))
    image.reduce = n
    # Pillow 12 rounds a reduced side where the standard takes the ceiling, and then reports "broken data stream".
    # A size that divides by 2^n avoids it; this was tried at every size and level that the tests cover.
    image._size = tuple(-(-side // 2**n) * 2**n for side in header.shape[::-1])
    try:
        image.load()
    except OSError:
        return None
    # Pillow shifts samples to the high end of their 8 or 16 bits: a 12-bit 3999 comes as 63984.
    return np.asarray(image) >> ((8 if header.bits <= 8 else 16) - header.bits)


def _is_reducible(header: FrameHeader, dataset: Dataset) -> bool:
    """Return whether the codestream's reduced levels equal the halved stored values.

    They do not if the values need a shift or a sign, or if pixels may exceed BitsStored and so widen the range.
    """
    plain = dataset.PixelRepresentation == 0 and dataset.HighBit + 1 == dataset.BitsStored
    return plain and header.levels > 0 and header.bits <= dataset.BitsStored


def stored_values(dataset: Dataset) -> tuple[np.ndarray, int]:
    """Decode the full frame.

    Returns
    -------
    The stored values, integers (rows, columns), and the number of bits of their range. That is BitsStored, unless a
    pixel exceeds it (one RSNA patient has such pixels). Then it is as many bits as the largest value needs.
    """
    shape = (dataset.Rows, dataset.Columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    stored = _decode_frame(dataset, syntax) if syntax.is_compressed else _native_frame(dataset, syntax)
    if stored.shape != shape or stored.itemsize > 2:
        raise UnreadableError(f"the codestream holds {stored.dtype} {stored.shape}, the header says {shape}")
    bits = dataset.BitsStored
    if dataset.PixelRepresentation == 1:
        return _sign_extended(stored, bits, dataset.HighBit), bits
    stored = stored.view(np.dtype(f"u{stored.itemsize}"))
    if _has_embedded_overlay(dataset):
        stored = stored & (2 ** (dataset.HighBit + 1) - 1)
    stored = _right_aligned(stored, dataset.HighBit + 1 - bits)
    return stored, max(bits, int(stored.max()).bit_length())


def _native_frame(dataset: Dataset, syntax: uid.UID) -> np.ndarray:
    """Return the frame of uncompressed pixel data, of which a few bytes more than the frame are tolerated."""
    dtype = np.dtype(f"{'<' if syntax.is_little_endian else '>'}u{dataset.BitsAllocated // 8}")
    content, count = _pixel_data(dataset), dataset.Rows * dataset.Columns
    size = count * dtype.itemsize
    if len(content) < size:
        raise UnreadableError(f"PixelData is cut off: {len(content)} of {size} bytes")
    if len(content) > max(2 * size - 1, count + 1):
        raise UnreadableError(f"PixelData has {len(content)} bytes, more than one frame of {size}")
    if dtype.itemsize == 1 and not syntax.is_little_endian and dataset["PixelData"].VR == "OW":
        content = np.frombuffer(content[: len(content) // 2 * 2], np.uint16).byteswap().tobytes()  # PS3.5 8.1.1
    stored = np.frombuffer(content, dtype, count).reshape(dataset.Rows, dataset.Columns)
    return stored.astype(dtype.newbyteorder("="), copy=False)


def _decode_frame(dataset: Dataset, syntax: uid.UID) -> np.ndarray:
    """Decode the frame of compressed pixel data."""
    codestream = joined_fragments(dataset)
    if syntax == uid.RLELossless:
        return rle_frame(codestream, dataset)
    header = checked_header(codestream, dataset)
    try:
        stored = DECODERS[syntax](codestream)
    except (RuntimeError, ValueError) as error:  # imagecodecs derives its errors from RuntimeError
        raise UnreadableError(f"defective {syntax.name} codestream: {error}") from error
    if syntax in JPEG and _is_damaged(stored, header, codestream):
        raise UnreadableError(f"defective {syntax.name} codestream: its samples are out of range, or it ends too soon")
    return stored


def _is_damaged(stored: np.ndarray, header: FrameHeader, codestream: bytes) -> bool:
    """Return whether a JPEG frame is damaged: libjpeg only warns of it, and imagecodecs does not report its warnings.

    A lossy frame is decoded again with filler where data are missing (`jpeg_layout`). In a lossless one, damage leaves
    samples out of range, or fills the missing rows with mid-grey. Mid-grey rows can be real, so a second, slower
    decoder has to confirm them.
    """
    highest, is_cut = 2**header.bits - 1, (stored[-1] == 2 ** (header.bits - 1)).all()
    if header.is_lossless_jpeg and (stored.max() > highest or not is_cut):
        return bool(stored.max() > highest)
    try:
        if header.is_lossless_jpeg:
            again = imagecodecs.jpegsof3_decode(codestream)
        else:
            again = imagecodecs.jpeg8_decode(jpeg_layout(codestream[codestream.index(b"\xff\xd8") :])[1])
    except (RuntimeError, ValueError, IndexError, struct.error):
        return True
    return not np.array_equal(stored, again)


def joined_fragments(dataset: Dataset) -> bytes:
    """Return the codestream of the one frame of an encapsulated data set.

    Its offset table is ignored: pydicom's get_frame follows it, and a damaged one would cut the frame.
    """
    buffer = io.BytesIO(_pixel_data(dataset))
    try:
        parse_basic_offsets(buffer)
        fragments = list(generate_fragments(buffer))
    except (ValueError, struct.error) as error:
        name = dataset.file_meta.TransferSyntaxUID.name
        raise UnreadableError(f"PixelData is not encapsulated, as {name} requires: {error}") from error
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)


def _pixel_data(dataset: Dataset) -> bytes:
    """Read the value of PixelData, which `read_dataset` has left on the disk."""
    if not isinstance(dataset.PixelData, bytes):
        raise UnreadableError("PixelData (7FE0,0010) has a value representation that is not for pixels")
    return dataset.PixelData


def rle_frame(codestream: bytes, dataset: Dataset) -> np.ndarray:
    """Decode RLE (PS3.5 Annex G): one PackBits segment for each byte of a sample, the most significant first."""
    dtype = np.dtype(f"u{dataset.BitsAllocated // 8}")
    try:
        # The decoder follows the offsets of the segments wherever they point, past the end too: check them first.
        count, *offsets = struct.unpack_from("<16I", codestream)
        ends = [*offsets[:count], len(codestream)]
        if count != dtype.itemsize or ends[0] != 64 or any(start >= end for start, end in pairwise(ends)):
            raise ValueError(f"{count} segments at {offsets[:count]}")
        values = np.frombuffer(imagecodecs.dicomrle_decode(codestream, dtype), dtype)
        return values[: dataset.Rows * dataset.Columns].reshape(dataset.Rows, dataset.Columns)
    except (RuntimeError, ValueError, struct.error) as error:
        raise UnreadableError(f"defective RLE Lossless codestream: {error}") from error


def _has_embedded_overlay(dataset: Dataset) -> bool:
    """Return whether the bits above the samples hold an overlay (OverlayBitPosition, 60xx,0102), usual before 2004."""
    return any(dataset.get((group, 0x0102)) and dataset[group, 0x0102].value for group in range(0x6000, 0x601F, 2))


def _right_aligned(stored: np.ndarray, unused: int) -> np.ndarray:
    """Shift out the low bits that are unused according to HighBit (0028,0102), unless they hold values after all."""
    empty = 0 < unused < 8 * stored.itemsize and not (stored & (2**unused - 1)).any()
    return stored >> unused if empty else stored


def _sign_extended(stored: np.ndarray, bits: int, high_bit: int) -> np.ndarray:
    """Return the two's complement of the `bits` bits up to `high_bit` as signed integers."""
    if bits > 8 * stored.itemsize:  # a codestream of 8 bits where the header says 12
        return stored.astype(np.int16)
    width = 8 * stored.itemsize
    high_bit = high_bit if bits <= high_bit + 1 <= width else bits - 1
    shifted = np.left_shift(stored.view(np.dtype(f"i{stored.itemsize}")), width - 1 - high_bit)
    return np.right_shift(shifted, width - bits)
