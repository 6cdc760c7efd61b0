"""Finds the breast as the winner of the RSNA challenge does: by a detector, else by Otsu's threshold.

If neither finds it, the whole frame is kept.

All boxes are (x_min, y_min, x_max, y_max) in pixels, x_max and y_max exclusive.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from rsna_nb.dicom.errors import DetectorError
from rsna_nb.dicom.fitting import placement
from rsna_nb.dicom.reading import Box
from rsna_nb.dicom.yolox import SIDE, Yolox
from rsna_nb.system import DamagedFileError, read_arrays

CONFIDENCE = 0.5  # of the detector's box, at least
SMALLEST_SHARE = 0.04  # of the frame that a box covers, at least
GREY = 114  # beside the frame in the detector's picture
BRIGHTEST = 95  # percentile above which pixels are dropped before the threshold: implants and white lines


@dataclass(frozen=True)
class Region:
    """The box of the breast in the frame, and how it was found: "YOLOX", "Otsu" or "whole frame"."""

    box: Box
    found_by: str


def load_detector(path: Path) -> Yolox:
    """Load a detector from an .npz file of its tensors. Each process reads a file only once.

    Raises
    ------
    DetectorError
        If the file is missing or damaged, or its tensors are not those of the network.
    """
    try:
        status = path.stat()
        return _loaded(path, status.st_size, status.st_mtime_ns)
    except (OSError, DamagedFileError) as error:
        reason = "the file is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise DetectorError(f"the breast detector {path} cannot be read: {reason}") from error
    except DetectorError as error:
        raise DetectorError(f"{path}: {error}") from None


@lru_cache(maxsize=4)
def _loaded(path: Path, size: int, changed: int) -> Yolox:
    """Load a file; its size and modification time are arguments so that a changed file is loaded again."""
    return Yolox(read_arrays(path))


def find_region(bright: np.ndarray, detector: Yolox | None, aspect: float = 1.0) -> Region:
    """Find the breast in a frame.

    Parameters
    ----------
    bright
        float32 (rows, columns), 0 to 255, tissue bright.
    detector
        The breast detector; with None, Otsu's threshold finds the breast.
    aspect
        Height of a pixel divided by its width.
    """
    rows, columns = bright.shape
    at = placement((rows, columns), (SIDE, SIDE), aspect, rounded=False)
    small = cv2.resize(bright, (at.width, at.height), interpolation=cv2.INTER_LINEAR)
    scale = at.scale * np.array([1, aspect, 1, aspect])  # pixels of the small picture for each of the frame
    if detector:
        picture = np.full((SIDE, SIDE), GREY, np.float32)
        picture[: at.height, : at.width] = small  # not centred
        found, confidence = detector.best_box(picture)
        box = _in_frame(found / scale, (rows, columns))
        if confidence >= CONFIDENCE and _area(box) / (rows * columns) >= SMALLEST_SHARE:
            return Region(box, "YOLOX")
    outline, share = otsu_box(small.astype(np.uint8))
    if share >= SMALLEST_SHARE:
        return Region(_in_frame(np.array(outline) / scale, (rows, columns)), "Otsu")
    return Region((0, 0, columns, rows), "whole frame")


def otsu_box(grey: np.ndarray) -> tuple[Box, float]:
    """Return the box of the largest region above Otsu's threshold, and the share of the picture inside its outline.

    `grey` is uint8 (rows, columns). If there is no region, the box is empty and the share 0.
    """
    upper = np.percentile(grey, BRIGHTEST)
    smooth = cv2.GaussianBlur(np.where(grey > upper, grey.min(), grey), (5, 5), 0)
    _, mask = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3)))
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return (0, 0, 0, 0), 0.0
    largest = max(outlines, key=cv2.contourArea)
    x, y, width, height = cv2.boundingRect(largest)
    return (x, y, x + width, y + height), cv2.contourArea(largest) / grey.size


def _in_frame(box: np.ndarray, shape: tuple[int, int]) -> Box:
    """Return a box in whole pixels, rounded towards 0, within a frame of `shape`."""
    x_min, y_min, x_max, y_max = (int(side) for side in np.clip(box, 0, [*shape[::-1], *shape[::-1]]))
    return x_min, y_min, x_max, y_max


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
