"""Finds the breast in a mammogram, and resizes an image to a given shape.

Images are float32 (height, width) in 0-1, air dark and tissue bright.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# Grey levels, 0 to 255, of the image that is searched for the breast:
AIR_LIMIT = 64  # air is darker than this: the windowed background of a mammogram is close to 0
TISSUE_STEP = 5  # tissue is brighter than air by more than this
NARROW, WIDE = 3, 16  # air: half of the pixels within WIDE of its level lie within NARROW of it
WHITE, UNIFORM = 230, 5  # a line of a border is brighter than WHITE, or its levels differ by at most UNIFORM


@dataclass(frozen=True)
class Breast:
    """Where the breast is in an image.

    Attributes
    ----------
    box
        (x_min, y_min, x_max, y_max) in pixels; x_max and y_max are exclusive.
    mask
        uint8 of the image's shape: 1 in the breast and a margin around it, else 0.
    """

    box: tuple[int, int, int, int]
    mask: np.ndarray


def find_breast(picture: np.ndarray) -> Breast | None:
    """Find the largest region of tissue that is not a marker, a frame or a border; return None if all is air.

    The steps are: threshold above the air; erase uniform lines at the edges; open morphologically, which removes text
    and thin lines even where they touch the breast; keep the largest component; grow it back to the edge that opening
    removed.

    The image must be small, 200 to 399 pixels along its longer side, so that a frame, a letter or a fold of skin has
    about the same width in pixels whatever the file's size.
    """
    grey = cv2.convertScaleAbs(picture, alpha=255)
    threshold = _air_threshold(grey)
    tissue = (cv2.medianBlur(grey, 3) > threshold).astype(np.uint8)
    _erase_borders(grey, tissue, threshold)
    radius = max(1, round(0.008 * max(picture.shape)))
    body = _largest_component(_opened(tissue, radius))
    if body is None:
        return None
    for _ in range(2):
        body = cv2.min(cv2.dilate(body, _disc(radius + 1)), tissue)
    whole = cv2.dilate(body, np.ones((3, 3), np.uint8))  # includes pixels that tissue fills by less than half
    x_min, y_min, width, height = cv2.boundingRect(whole)
    return Breast((x_min, y_min, x_min + width, y_min + height), cv2.dilate(body, _disc(2 * radius)))


def _air_threshold(grey: np.ndarray) -> int:
    """Return the grey level above which a pixel is tissue.

    It lies above the most frequent level of air by `TISSUE_STEP` and three times the spread of air. Smoothed air has
    nearly one level, however noisy it is. If no dark level is far more frequent than its
    neighbours, the image has no air, and the level of air is set to 0.
    """
    counts = np.bincount(cv2.medianBlur(grey, 5).ravel(), minlength=256)
    air = int(np.argmax(counts[:AIR_LIMIT]))
    near = [counts[max(0, air - reach) : air + reach + 1].sum() for reach in range(WIDE + 1)]
    spread = int(np.searchsorted(near, near[-1] / 2))
    return air + TISSUE_STEP + 3 * spread if spread <= NARROW else TISSUE_STEP


def _erase_borders(grey: np.ndarray, tissue: np.ndarray, threshold: int) -> None:
    """Set to 0 in `tissue`, in place, the rows and columns at the edges that belong to a frame or a border.

    Nearly all pixels of such a line are white or share one level above the air's, whereas tissue varies along a line.
    A frame may begin up to a twentieth inside the image, and a border takes up to a quarter of it.
    """
    for _ in range(5):  # each edge, and the first one again after the borders that cross it are cut off
        lines, length = grey.shape
        ordered = np.sort(grey[: lines // 4 + 1], axis=1)
        low, middle, high = ordered[:, length // 10], ordered[:, length // 2], ordered[:, length - 1 - length // 10]
        border = (low > WHITE) | ((middle > threshold) & (high - low <= UNIFORM))
        border[-1] = False  # limits the border to a quarter of the image
        start = int(np.argmax(border[: lines // 20 + 1]))
        end = start + int(np.argmin(border[start:]))
        tissue[:end] = 0
        if low[end] > threshold:  # the next line is partly border: it is tissue only where a line further in is, too
            inner = min(end + 2, lines - 1)
            tissue[end:inner] &= tissue[inner]
        grey, tissue = np.rot90(grey[end:]), np.rot90(tissue[end:])  # views: `tissue` still writes to the caller's


def _opened(mask: np.ndarray, radius: int) -> np.ndarray:
    """Remove what a disc does not fit into. The mask is continued beyond its edges, as the breast is in reality."""
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    return cv2.morphologyEx(padded, cv2.MORPH_OPEN, _disc(radius))[radius:-radius, radius:-radius]


def _largest_component(mask: np.ndarray) -> np.ndarray | None:
    """Return the largest connected region of the mask as uint8 of 0 and 1, or None if the mask is empty."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:  # the background is a component too
        return None
    return (labels == 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])).astype(np.uint8)


def _disc(radius: int) -> np.ndarray:
    """Return a disc as a structuring element, uint8 (2 * radius + 1, 2 * radius + 1)."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


@dataclass(frozen=True)
class Placement:
    """The rectangle of a fitted image that holds the content, in pixels; everything around it is 0.

    `scale` is the enlargement: pixels of the fitted image for each pixel of the content, across.
    """

    top: int
    left: int
    height: int
    width: int
    scale: float


def placement(box: tuple[int, int], shape: tuple[int, int], aspect: float = 1.0) -> Placement:
    """Return where `fit` puts an image of size `box` (height, width) in one of `shape`.

    `aspect` is the height of a pixel of the box divided by its width.

    >>> placement((200, 100), (64, 64))
    Placement(top=0, left=16, height=64, width=32, scale=0.32)
    """
    sides = aspect * box[0], box[1]
    scale = min(shape[0] / sides[0], shape[1] / sides[1])
    height, width = (min(side, max(1, round(own * scale))) for own, side in zip(sides, shape, strict=True))
    return Placement((shape[0] - height) // 2, (shape[1] - width) // 2, height, width, scale)


def fit(picture: np.ndarray, shape: tuple[int, int], aspect: float = 1.0) -> np.ndarray:
    """Resize an image to `shape` (height, width). What it shows keeps its proportions; zeros fill the rest.

    `aspect` is the height of a pixel divided by its width: the pixels of the result are square.
    """
    at = placement((picture.shape[0], picture.shape[1]), shape, aspect)
    fitted = np.zeros(shape, np.float32)
    inner = fitted[at.top : at.top + at.height, at.left : at.left + at.width]
    down, across = at.scale * aspect, at.scale
    if min(down, across) < 1 <= max(down, across):  # INTER_AREA averages only where it reduces both sides
        size = (picture.shape[1], at.height) if down < 1 else (at.width, picture.shape[0])
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    method = cv2.INTER_AREA if max(down, across) < 1 else cv2.INTER_LINEAR  # averages areas, or interpolates
    cv2.resize(picture, (at.width, at.height), dst=inner, interpolation=method)
    np.clip(inner, 0, 1, out=inner)  # rounding in resize can exceed 1
    return fitted
