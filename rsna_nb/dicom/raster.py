"""A PNG, JPEG, TIFF or PGM file -> its grey values as a `Pyramid`, and a data set that states what they mean.

Such a file has no window. A picture of 8 bits is taken as windowed already: its levels are divided by 2^b - 1 for the
fewest bits b that hold its brightest level, so an ordinary one by 255. A picture of more bits is treated as a DICOM
file without a window: the range of the breast is taken.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from pydicom import Dataset

from rsna_nb.dicom.containers import Layout, jpeg_layout, pgm_pixels, png_layout, tiff_layout
from rsna_nb.dicom.decode import MAX_PIXELS
from rsna_nb.dicom.errors import UnreadableError
from rsna_nb.dicom.pyramid import Pyramid, in_range
from rsna_nb.dicom.voi import hot_pixels

STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    **dict.fromkeys((b"P5", b"P2"), "PGM"),
}
"""First bytes of a file -> its format."""

MAX_BYTES = 10 * MAX_PIXELS  # of a file: four channels of 16 bits, or five digits and spaces for each pixel
TINT = 3  # levels by which the channels of a grey picture differ at most after lossy compression
FEW = 50  # pixels of the brightest half of the levels, up to which they may be defects (`hot_pixels`)
FRACTION = 4  # bits that are added to 8 before halving
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}
"""EXIF orientation -> what makes the picture upright."""


def format_of(path: str | Path) -> str:
    """Return the format of a file by its first bytes: "DICOM", "PNG", "JPEG", "TIFF", "PGM", or "" for another.

    A file that is DICOM as well as TIFF, by a TIFF header in its preamble (PS3.10, 7.1), is DICOM.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")  # reading a pipe would wait for ever
    with Path(path).open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return "DICOM"
    return next((name for first, name in STARTS.items() if start.startswith(first)), "")


def open_raster(path: str | Path, name: str) -> tuple[Pyramid, Dataset, str, tuple[str, ...]]:
    """Decode a file.

    Parameters
    ----------
    path
        The file.
    name
        Its format, one of the values of `STARTS`.

    Returns
    -------
    The grey values, a data set with their PhotometricInterpretation and window, a description such as "PNG, 16 bits",
    and what is odd about the values, in the words of `NOTES`.

    Raises
    ------
    UnreadableError
        If the file is damaged or cut off, or holds colours, several pictures or too many pixels.
    """
    if Path(path).stat().st_size > MAX_BYTES:
        raise UnreadableError("the file is too large for a mammogram")
    content = Path(path).read_bytes()
    try:
        pixels, layout = DECODERS[name](content)
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the decoders raise nearly any built-in exception
        raise UnreadableError(f"cut off, or a defective {name} file: {error}") from error
    if layout.shape != pixels.shape[:2]:
        raise UnreadableError(f"the picture has {pixels.shape[:2]} pixels, the file's header says {layout.shape}")
    stored = np.ascontiguousarray(TURNS.get(layout.orientation, TURNS[1])(_grey(pixels, TINT * (name == "JPEG"))))
    bits = _bits_of(stored)
    pyramid = (BytePyramid if stored.itemsize == 1 else Pyramid)(stored, max(1, bits))
    notes = ("hot pixels",) * (int(stored.max()).bit_length() > bits)
    return pyramid, _meaning(layout, bits), f"{name}, {8 * pixels.itemsize} bits", notes


class BytePyramid(Pyramid):
    """A picture of 8 bits, which is halved with `FRACTION` bits more.

    Each halving rounds to whole numbers, which brightens tissue by up to half of one. With 12 bits that is invisible;
    with 8 it is half a grey level, and the same mammogram would be brighter as PNG than as DICOM.
    """

    def __init__(self, stored: np.ndarray, bits: int) -> None:
        super().__init__(stored, bits)
        self.fine: Pyramid | None = None

    def level(self, n: int) -> np.ndarray:
        """Return uint8 (rows, columns) at 1/2^n of the size, as `Pyramid.level` does."""
        if n == 0:
            return super().level(0)
        if self.fine is None:
            self.fine = Pyramid(super().level(0).astype(np.uint16) << FRACTION, 8 + FRACTION)
        rounded = (self.fine.level(n) + (1 << FRACTION >> 1)) >> FRACTION
        return in_range(rounded, self.bits, signed=False).astype(np.uint8)


def _bits_of(stored: np.ndarray) -> int:
    """Return the fewest bits that hold the brightest level; of a picture of 8 bits, without a few hot pixels."""
    bits = int(stored.max()).bit_length()
    if stored.itemsize == 1 and bits and np.count_nonzero(stored >> (bits - 1)) <= FEW:
        hot = hot_pixels(stored, np.ones_like(stored, bool))
        bits = int(stored[~hot].max()).bit_length()
    return bits


def _meaning(layout: Layout, bits: int) -> Dataset:
    """Return the data set of a picture. Its window leaves the levels of a picture of 8 bits as they are."""
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME1" if layout.is_inverted else "MONOCHROME2"
    if layout.bits <= 8 and bits:
        dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
    return dataset


def _decoded_png(content: bytes) -> tuple[np.ndarray, Layout]:
    layout = _of_plausible_size(png_layout(content))
    return imagecodecs.png_decode(content), layout  # libpng: an error if image data are missing


def _decoded_jpeg(content: bytes) -> tuple[np.ndarray, Layout]:
    layout, filled = jpeg_layout(content)
    _of_plausible_size(layout)
    pixels = imagecodecs.jpeg8_decode(content)
    # libjpeg fills what is missing with grey and only warns, and no library here passes its warnings on.
    if not np.array_equal(pixels, imagecodecs.jpeg8_decode(filled)):
        raise ValueError("its data end before the picture does")
    return pixels, layout


def _decoded_tiff(content: bytes) -> tuple[np.ndarray, Layout]:
    layout = _of_plausible_size(tiff_layout(content))
    return imagecodecs.tiff_decode(content), layout


def _decoded_pgm(content: bytes) -> tuple[np.ndarray, Layout]:
    pixels = pgm_pixels(content, MAX_PIXELS)
    return pixels, Layout((pixels.shape[0], pixels.shape[1]), 8 * pixels.itemsize)


DECODERS = {"PNG": _decoded_png, "JPEG": _decoded_jpeg, "TIFF": _decoded_tiff, "PGM": _decoded_pgm}


def _of_plausible_size(layout: Layout) -> Layout:
    """Return the layout; `UnreadableError` if a picture of its size would fill the memory."""
    rows, columns = layout.shape
    if not 0 < rows * columns <= MAX_PIXELS:
        raise UnreadableError(f"{rows} x {columns} pixels: not of a mammogram's size")
    return layout


def _grey(pixels: np.ndarray, tint: int) -> np.ndarray:
    """Return one channel of (rows, columns[, channels]) whose colour channels differ by at most `tint` levels."""
    if pixels.ndim == 2:
        return pixels
    *colours, last = cv2.split(pixels)
    colours, alpha = (colours, last) if len(colours) in (1, 3) else ([*colours, last], None)
    difference = max(int(cv2.absdiff(one, colours[0]).max()) for one in colours)
    if difference > tint:
        raise UnreadableError(
            f"a colour picture: its channels differ by up to {difference} levels; save it in greyscale"
        )
    grey = colours[len(colours) // 2]
    if alpha is not None and grey[alpha < 256**alpha.itemsize - 1].any():
        raise UnreadableError("a picture with transparent parts: save it without transparency")
    return grey
