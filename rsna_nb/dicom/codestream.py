"""The frame header of a JPEG, JPEG-LS or JPEG 2000 codestream, read before anything is decoded.

A damaged size in the codestream or in the data set is found before any memory is allocated for it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from pydicom import Dataset, uid

from rsna_nb.dicom.errors import UnreadableError

MAX_TILES = 1024  # in a JPEG 2000 codestream; a decoder allocates some KiB for each
LOSSLESS_JPEG_2000 = (uid.JPEG2000Lossless, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
JPEG_2000 = (*LOSSLESS_JPEG_2000, uid.JPEG2000, uid.HTJ2K)
END_OF_CODESTREAM = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
NO_FRAME_HEADER = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC lie among the markers SOF0 to SOF15


@dataclass(frozen=True)
class FrameHeader:
    """What the header of a codestream states.

    Attributes
    ----------
    shape
        (rows, columns).
    components, bits, is_signed
        Samples per pixel, bits per sample, and whether samples are signed.
    levels
        How many times a JPEG 2000 codestream can be halved exactly as pyramid.py does it. 0 for other codecs, other
        wavelets, several tiles and other unusual codestreams.
    is_lossless_jpeg
        Whether it is JPEG Lossless (T.81, process 14).
    """

    shape: tuple[int, int]
    components: int
    bits: int
    levels: int = 0
    is_signed: bool = False
    is_lossless_jpeg: bool = False


def checked_header(codestream: bytes, dataset: Dataset) -> FrameHeader:
    """Return the codestream's header; `UnreadableError` if it is cut off or contradicts the data set."""
    if (
        END_OF_CODESTREAM not in codestream.rstrip(b"\0")[-64:]
    ):  # decoders return the part that exists, without an error
        raise UnreadableError("PixelData is cut off: the codestream has no end marker")
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        header = _jpeg_2000_header(codestream) if syntax in JPEG_2000 else _jpeg_header(codestream)
    except (IndexError, struct.error, ValueError, ZeroDivisionError) as error:
        raise UnreadableError(f"PixelData holds no {syntax.name} codestream: {error}") from error
    shape = (dataset.Rows, dataset.Columns)
    if header.shape != shape:
        raise UnreadableError(f"the codestream holds {header.shape} pixels, the header says {shape}")
    if header.is_signed and dataset.PixelRepresentation == 0:
        raise UnreadableError("the codestream holds signed samples, PixelRepresentation (0028,0103) says unsigned")
    if header.components != 1 or header.bits > 16:
        found = f"{header.components} components of {header.bits} bits"
        raise UnreadableError(f"the codestream holds {found}, not one component of at most 16 bits")
    return header


def _jpeg_header(codestream: bytes) -> FrameHeader:
    """Read the frame header of a JPEG (T.81, B.2.2) or JPEG-LS (T.87) codestream."""
    for marker, position in _segments(codestream, codestream.index(b"\xff\xd8") + 2):
        if (0xC0 <= marker <= 0xCF and marker not in NO_FRAME_HEADER) or marker == 0xF7:
            bits, rows, columns, components = struct.unpack_from(">BHHB", codestream, position + 4)
            return FrameHeader((rows, columns), components, bits, is_lossless_jpeg=marker == 0xC3)
    raise ValueError("no frame header")


def _segments(codestream: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yield each marker from `position` on, and its position; `ValueError` at bytes that are not a marker."""
    while codestream[position] == 0xFF:
        marker = codestream[position + 1]
        if marker == 0xFF:  # a fill byte (T.81, B.1.1.2)
            position += 1
            continue
        yield marker, position
        position += 2 + struct.unpack_from(">H", codestream, position + 2)[0]
    raise ValueError("a marker is expected")


def _jpeg_2000_header(codestream: bytes) -> FrameHeader:
    """Read the main header of a JPEG 2000 codestream (T.800, Annex A), also of one wrapped in a JP2 file."""
    start = codestream.index(b"\xff\x4f\xff\x51")  # SOC and SIZ
    x_end, y_end, x_start, y_start, tile_width, tile_height, tile_x, tile_y, components, depth, dx, dy = (
        struct.unpack_from(">8IHBBB", codestream, start + 8)
    )
    shape = (ceil(y_end / dy) - ceil(y_start / dy), ceil(x_end / dx) - ceil(x_start / dx))
    tiles = ceil((x_end - tile_x) / tile_width) * ceil((y_end - tile_y) / tile_height)
    levels, first_tile_part = _reversible_levels(codestream, start + 2)
    if tiles > MAX_TILES or not _all_tiles_have_data(codestream, first_tile_part, tiles):
        raise ValueError(f"{tiles} tiles: too many, or some are missing")
    bits, signed = (depth & 0x7F) + 1, bool(depth >> 7)
    usual = not (signed or x_start or y_start or start) and tiles == dx == dy == components == 1
    return FrameHeader(shape, components, bits, levels if usual else 0, signed)


def _reversible_levels(codestream: bytes, position: int) -> tuple[int, int]:
    """Return the decomposition levels of the reversible 5/3 wavelet, and the position of the first tile-part.

    The levels are 0 for other wavelets, and if a component has a coding style of its own (COC).
    """
    levels, has_own_style = 0, False
    for marker, place in _segments(codestream, position):
        if marker == 0x90:  # SOT
            return 0 if has_own_style else levels, place
        if marker == 0x52:  # COD
            levels = codestream[place + 9] if codestream[place + 13] == 1 else 0
        has_own_style |= marker == 0x53
    raise ValueError("no tile-part")


def _all_tiles_have_data(codestream: bytes, position: int, tiles: int) -> bool:
    """Return whether each tile has a tile-part (T.800, A.4.2). Decoders fill a tile that has none with a constant."""
    found = set()
    while codestream[position : position + 2] == b"\xff\x90":
        tile, length = struct.unpack_from(">HI", codestream, position + 4)
        found.add(tile)
        if length == 0:  # this tile-part reaches to the end of the codestream
            break
        position += length
    return found >= set(range(tiles))
