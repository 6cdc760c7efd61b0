"""The structure of PNG, JPEG, TIFF and PGM files, read and checked before any pixel is decoded.

The usual decoders fill up a file that is cut off with grey, black or zeros and report no error. This module checks what
the formats offer against that: checksums and the end of a PNG file, the markers and the data of every JPEG scan, the
places of all strips of a TIFF file, the number of samples of a PGM file. JPEG, TIFF and PGM have no checksum: damage
inside their data that leaves the structure whole shows as wrong pixels in every program.

Every function raises ValueError, IndexError or struct.error if the structure is damaged.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from rsna_nb.dicom.errors import UnreadableError

ORIENTATION = 0x0112  # the tag of EXIF and of TIFF
JPEG_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}  # the rest is lossless, arithmetic or staged
NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC lie among the markers SOF0 to SOF15
START_OF_SCAN, END_OF_IMAGE, APP1, RESTARTS = 0xDA, 0xD9, 0xE1, range(0xD0, 0xD8)
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff]")
FILLER = bytes(np.random.default_rng(0).integers(0, 255, 64, np.uint8))  # 64 bytes other than 0xFF
TIFF_COMPRESSIONS = (1, 5, 32773, 8, 32946)  # none, LZW, PackBits, Deflate and the older code of Deflate
DEFLATE, PIECE = TIFF_COMPRESSIONS[-2:], 2**20  # bytes that are inflated at a time
PGM_HEADER = re.compile(rb"P([25])" + 3 * rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})" + rb"(?:#[^\n\r]*[\n\r])?\s")


@dataclass(frozen=True)
class Layout:
    """What the structure of a file states.

    Attributes
    ----------
    shape
        (rows, columns) before `orientation` is applied.
    bits
        Bits of a sample in the decoded picture.
    orientation
        How to turn the picture, 1 to 8 as EXIF numbers it; 1 is upright.
    is_inverted
        Whether a stored 0 is white.
    """

    shape: tuple[int, int]
    bits: int
    orientation: int = 1
    is_inverted: bool = False


def png_layout(content: bytes) -> Layout:
    """Walk through the chunks of a PNG file and compare their checksums (PNG, sections 5.3 and 11.2)."""
    view, position, exif = memoryview(content), 8, b""
    kinds: list[bytes] = []
    while not kinds or kinds[-1] != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, position)
        (checksum,) = struct.unpack_from(">I", content, position + 8 + length)
        if zlib.crc32(view[position + 4 : position + 8 + length]) != checksum:
            raise ValueError(f"the checksum of chunk {len(kinds) + 1} is wrong")
        exif = content[position + 8 : position + 8 + length] if kind == b"eXIf" else exif
        kinds.append(kind)
        position += 12 + length
    if kinds[0] != b"IHDR":
        raise ValueError("the first chunk is not the header")
    if b"acTL" in kinds:
        raise UnreadableError("an animation: it must hold one picture")
    columns, rows, bits = struct.unpack_from(">IIB", content, 16)
    if bits not in (8, 16):
        raise UnreadableError(f"samples of {bits} bits: they must have 8 or 16")
    return Layout((rows, columns), bits, _exif_orientation(exif))


def jpeg_layout(content: bytes) -> tuple[Layout, bytes]:
    """Walk through the segments of a JPEG file up to its end marker (T.81, Annex B).

    Returns
    -------
    The layout, and the file with `FILLER` after the data of each scan and restart interval. A decoder stops before the
    filler if the data are complete. If some are missing, it reads the filler instead, and the picture is another one.
    """
    frames, exif, parts, start, position = [], b"", [], 0, 2
    while True:
        marker, place = content[position + 1], position
        if content[position] != 0xFF:
            raise ValueError(f"a marker is expected at byte {position}")
        if marker == END_OF_IMAGE:
            break
        if marker == 0xFF:  # a fill byte (T.81, B.1.1.2)
            position += 1
            continue
        position += 2 if marker in RESTARTS else 2 + struct.unpack_from(">H", content, place + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in NOT_FRAMES:
            frames.append((marker, *struct.unpack_from(">BHHB", content, place + 4)))
        if marker == APP1 and content[place + 4 : place + 10] == b"Exif\0\0":
            exif = content[place + 10 : position]
        if marker == START_OF_SCAN or marker in RESTARTS:
            if not (end := NEXT_MARKER.search(content, position)):
                raise IndexError("no end marker")
            parts += [content[start : end.start()], FILLER]
            start = position = end.start()
    if len(frames) != 1 or not parts:
        raise ValueError(f"{len(frames)} frames and {len(parts) // 2} scans")
    marker, bits, rows, columns, components = frames[0]
    if marker not in JPEG_FRAMES:
        raise UnreadableError(
            f"unsupported JPEG process (SOF{marker - 0xC0}): only {', '.join(JPEG_FRAMES.values())} are read"
        )
    if components not in (1, 3):
        raise UnreadableError(f"a colour picture: it has {components} components; save it in greyscale")
    filled = b"".join([*parts, content[start : position + 2]])
    return Layout((rows, columns), 8 if bits <= 8 else 16, _exif_orientation(exif)), filled


def tiff_layout(content: bytes) -> Layout:
    """Read the tags of a TIFF file and check that all of its strips or tiles lie in the file (TIFF 6.0, section 8)."""
    image = TiffImageFile(io.BytesIO(content))
    if image.n_frames != 1:
        raise UnreadableError(f"{image.n_frames} pages: it must hold one picture")
    tags = image.tag_v2
    bits = set(tags.get(258, (1,)))
    compression, photometric, sample_formats = tags.get(259, 1), tags.get(262), set(tags.get(339, (1,)))
    if bits not in ({8}, {16}) or sample_formats != {1}:
        raise UnreadableError("samples must be unsigned integers of 8 or 16 bits")
    if compression not in TIFF_COMPRESSIONS:
        raise UnreadableError(f"TIFF of compression {compression}: save it with LZW, Deflate, PackBits or none")
    if photometric not in (0, 1, 2):
        raise UnreadableError(f"not a greyscale image: PhotometricInterpretation (tag 262) is {photometric}")
    offsets, lengths = (tags.get(strips, tags.get(tiles, ())) for strips, tiles in ((273, 324), (279, 325)))
    ends = [offset + length for offset, length in zip(offsets, lengths, strict=True)]
    if not ends or min(lengths) < 1 or max(ends) > len(content):
        raise IndexError("a strip lies beyond the end of the file")
    if compression in DEFLATE:
        for offset, length in zip(offsets, lengths, strict=True):
            _check_deflated(content[offset : offset + length])
    return Layout((tags[257], tags[256]), bits.pop(), tags.get(ORIENTATION, 1), photometric == 0)


def _check_deflated(strip: bytes) -> None:
    """Compare the checksum of a strip, which libtiff does not: it returns what it has read up to the damage."""
    inflating, rest = zlib.decompressobj(), strip
    while rest and not inflating.eof:
        inflating.decompress(rest, PIECE)
        rest = inflating.unconsumed_tail
    if not inflating.eof:
        raise IndexError("the data of a strip are cut off")


def pgm_pixels(content: bytes, max_pixels: int) -> np.ndarray:
    """Decode a PGM file (Netpbm, P5 and P2) of up to `max_pixels`: uint8 or uint16 (rows, columns)."""
    header = PGM_HEADER.match(content)
    if not header:
        raise ValueError("its header does not state columns, rows and the largest value")
    columns, rows, largest = (int(number) for number in header.groups()[1:])
    count = rows * columns
    if not 0 < largest < 65536 or not 0 < count <= max_pixels:
        raise UnreadableError(f"{rows} x {columns} pixels of up to {largest}: not of a mammogram's size")
    dtype = np.dtype(">u2" if largest > 255 else "u1")
    body = content[header.end() :] if header[1] == b"5" else _plain_samples(content[header.end() :], count, dtype)
    if len(body) < count * dtype.itemsize:
        raise IndexError("samples are missing")
    if body[count * dtype.itemsize :].strip(b"\0 \t\r\n"):
        raise ValueError("it goes on after its last pixel")
    pixels = np.frombuffer(body, dtype, count).reshape(rows, columns).astype(dtype.newbyteorder("="))
    if pixels.max() > largest:
        raise ValueError(f"a sample is {pixels.max()}, more than the largest value, {largest}")
    return pixels


def _plain_samples(text: bytes, count: int, dtype: np.dtype) -> bytes:
    """Return the samples of a P2 file, written in digits, as the bytes that a P5 file would have."""
    text = re.sub(rb"#[^\n\r]*", b"", text)
    if re.search(rb"[^\s\d]|\d{6}", text):
        raise ValueError("something other than numbers of up to five digits stands among its samples")
    values = np.fromstring(text, np.int32, sep=" ") if text.strip() else np.empty(0, np.int32)
    if values.size != count or values.max() >= 256**dtype.itemsize:
        raise ValueError(f"it has {values.size} samples, not {count}, or one that is too large")
    return values.astype(dtype).tobytes()


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation that EXIF data state, 1 if there are none or if they cannot be read."""
    if not exif:
        return 1
    found = Image.Exif()
    try:
        found.load(exif)
        return int(found.get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds for damaged EXIF data, which say nothing else that matters here
        return 1
