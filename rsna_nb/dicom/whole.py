"""One file -> its whole frame for people to look at: stored values, and how the reader would show them at first.

Nothing is windowed, cropped or masked here, so whoever shows the picture can change the window. All arrays are
(rows, columns).
"""

from dataclasses import dataclass
from math import log2, sqrt
from pathlib import Path

import numpy as np
import pydicom

from rsna_nb.dicom.elements import first_number
from rsna_nb.dicom.errors import UnreadableError
from rsna_nb.dicom.polarity import declares_inverted
from rsna_nb.dicom.purpose import purpose_of
from rsna_nb.dicom.pyramid import stored_range
from rsna_nb.dicom.reader import SEARCH_SIDE, Search, errors_of, search
from rsna_nb.dicom.source import Frame, open_frame
from rsna_nb.dicom.voi import Voi, declared_voi, modality_values, padding_mask, percentile_voi, to_brightness

SAMPLES = 256  # of a curve: the screen shows no more grey levels
LINEAR = 1 / 512  # of the brightness: half a grey level of the screen


@dataclass(frozen=True, eq=False)
class Display:
    """How stored values become brightness.

    Attributes
    ----------
    low, high
        Stored values between which the brightness changes.
    falling
        Large values are dark, so `low` is white.
    curve
        float32 (256,) in 0-1, the brightness from `low` to `high` before it is inverted; None for a straight line.
    padding
        Smallest and largest stored value of padding, which is black; None if the file declares none.
    name
        The name of the VOI transformation, such as "LINEAR 2048 4096".
    """

    low: float
    high: float
    falling: bool
    curve: np.ndarray | None
    padding: tuple[int, int] | None
    name: str


@dataclass(frozen=True, eq=False)
class WholePicture:
    """The whole frame of a file.

    Attributes
    ----------
    stored
        Stored values at 1/2^`level` of the frame's size.
    smallest, largest
        The stored range.
    display
        How the reader would show them.
    chest_wall
        The side of the frame that the breast touches, "left" or "right"; "" if no breast was found.
    level, rows, columns, aspect, format, bits
        As those of a `Reading`.
    notes
        What is odd about the file, in the words of `NOTES`, and the reason if no breast was found.
    """

    stored: np.ndarray
    smallest: int
    largest: int
    display: Display
    chest_wall: str
    level: int
    rows: int
    columns: int
    aspect: float
    format: str
    bits: int
    notes: tuple[str, ...]


def read_whole(path: str | Path, pixels: float = float("inf")) -> WholePicture:
    """Read a file's whole frame at the coarsest of its resolutions that has at least so many pixels.

    Parameters
    ----------
    path
        The file, as for `read_mammogram`. It need not show a breast.
    pixels
        The number of pixels that are wanted. A frame with fewer is read at its full size.

    Raises
    ------
    DicomError
        If the file does not hold one greyscale picture.
    """
    with errors_of(path):
        frame = open_frame(path)
        rows, columns = frame.pyramid.shape
        level = max(0, int(log2(max(1, sqrt(rows * columns / pixels)))))
        stored = frame.pyramid.level(level)
        display, chest_wall, notes = _looked_at(frame)
        purpose = purpose_of(frame.dataset)
        smallest, largest = stored_range(frame.pyramid.bits, frame.pyramid.signed)
        return WholePicture(
            stored, smallest, largest, display, chest_wall, level, rows, columns, purpose.aspect, frame.format,
            frame.pyramid.bits, (*purpose.notes, *notes, *frame.notes),
        )  # fmt: skip


def _looked_at(frame: Frame) -> tuple[Display, str, tuple[str, ...]]:
    """Return how to show a frame, its chest wall, and notes; the breast decides them if there is one."""
    try:
        found = search(frame.pyramid, frame.dataset)
    except UnreadableError as error:  # people want to see such a picture too
        return _display(frame, _any_voi(frame), declares_inverted(frame.dataset)), "", (str(error),)
    small = frame.pyramid.level(found.level)
    values, padding = modality_values(small, frame.dataset), padding_mask(small, frame.dataset)
    box, mask = found.cut_out(values, found.level)
    voi = found.voi(box, mask, None if padding is None else found.cut_out(padding, found.level)[0])
    return _display(frame, voi, found.inverted), _chest_wall(found), (*found.notes, *voi.notes)


def _any_voi(frame: Frame) -> Voi:
    """Return the declared transformation of a frame without a breast, else percentiles, else the stored range."""
    pyramid, dataset = frame.pyramid, frame.dataset
    small = pyramid.level(max(0, int(log2(max(pyramid.shape) / SEARCH_SIDE))))
    values, ends = modality_values(small, dataset), np.array(stored_range(pyramid.bits, pyramid.signed))
    declared = declared_voi(dataset, ends, values)
    if declared.apply:
        return declared
    try:
        return percentile_voi(values, padding_mask(small, dataset), declared)
    except UnreadableError:  # one grey level
        low, high = np.sort(modality_values(ends, dataset))
        return Voi("stored range", lambda these: np.clip((these - low) / (high - low), 0, 1))


def _chest_wall(found: Search) -> str:
    """Return the side with most of the breast, which is cut off at the chest wall and tapers to the nipple."""
    columns = (found.breast.mask > 0).sum(axis=0)
    left, right = np.array_split(columns, 2)
    return "left" if left.sum() > right.sum() else "right"


def _display(frame: Frame, voi: Voi, inverted: bool) -> Display:
    """Return what a transformation does to every value of the stored range, as a line or a curve between two values."""
    first, last = stored_range(frame.pyramid.bits, frame.pyramid.signed)
    levels = np.arange(first, last + 1, dtype=np.int32)[np.newaxis]
    bright = to_brightness(modality_values(levels, frame.dataset), inverted, voi, None)[0]
    falling = bool(bright[0] > bright[-1])
    rising = 1 - bright if falling else bright
    low, high, curve = _line_or_curve(rising)
    return Display(first + low, first + high, falling, curve, _padding(frame.dataset), voi.name)


def _padding(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    """Return the smallest and the largest value of padding, as `padding_mask` takes them."""
    value, limit = first_number(dataset, "PixelPaddingValue"), first_number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return None
    limit = value if limit is None else limit
    return int(min(value, limit)), int(max(value, limit))


def _line_or_curve(rising: np.ndarray) -> tuple[float, float, np.ndarray | None]:
    """Return the positions between which a brightness (n,) rises from 0 to 1, and its curve unless that is a line.

    >>> _line_or_curve(np.clip((np.arange(100) - 20.5) / 50, 0, 1))
    (20.5, 70.5, None)
    """
    changing = np.flatnonzero((rising > 0) & (rising < 1))
    if changing.size < 2:  # a threshold
        above = int(np.argmax(rising >= rising.max()))
        return float(max(0, above - 1)), float(max(1, above)), None
    first, last = changing[0], changing[-1]
    slope = (rising[last] - rising[first]) / (last - first)
    if slope > 0:
        low = float(first - rising[first] / slope)
        high = low + float(1 / slope)
        line = np.clip((np.arange(len(rising)) - low) / (high - low), 0, 1)
        if np.abs(line - rising).max() < LINEAR:
            return round(low, 3), round(high, 3), None
    low, high = float(max(0, first - 1)), float(min(len(rising) - 1, last + 1))
    at = np.linspace(low, high, SAMPLES)
    return low, high, np.interp(at, np.arange(len(rising)), rising).astype(np.float32)
