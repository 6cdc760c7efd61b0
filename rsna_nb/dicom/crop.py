"""Where the breast is in a mammogram, and how it is fitted into a size.

Pictures are float32 (height, width) in 0-1, air dark and tissue bright.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# Of the grey levels, 0 to 255, in which the breast is looked for:
AIR_LIMIT = 64  # air is darker: the windowed background of a mammogram is close to 0
TISSUE_STEP = 5  # tissue is brighter than air by more than this
NARROW, WIDE = 3, 16  # of the levels within WIDE of air's most frequent one, half are within NARROW of it
WHITE, UNIFORM = 230, 5  # a border's line is brighter than WHITE, or its levels lie within UNIFORM


@dataclass(frozen=True)
class Breast:
    """Where the breast is in a picture: `box` is (x_min, y_min, x_max, y_max), half open; `mask`, of the picture's
    shape, is uint8 of 0 and 1: the breast with a margin."""

    box: tuple[int, int, int, int]
    mask: np.ndarray


def find_breast(picture: np.ndarray) -> Breast | None:
    """The largest piece of tissue, leaving aside markers, frames and borders; None where all is air.

    The picture is a small one, of 200 to 400 pixels along its longer side: a frame, a letter, a skin fold have
    about the same width in all of them. The steps: threshold above the air, cut uniform edges off, open (which
    removes text and thin lines, also where they touch the breast), take the largest component, and give it back
    what the opening took from its rim.
    """
    grey = cv2.convertScaleAbs(picture, alpha=255)
    threshold = air_threshold(grey)
    tissue = (cv2.medianBlur(grey, 3) > threshold).astype(np.uint8)
    erase_borders(grey, tissue, threshold)
    radius = max(1, round(0.008 * max(picture.shape)))
    body = largest_component(opened(tissue, radius))
    if body is None:
        return None
    for _ in range(2):
        body = cv2.min(cv2.dilate(body, disc(radius + 1)), tissue)
    whole = cv2.dilate(body, np.ones((3, 3), np.uint8))  # a pixel that tissue fills by less than half may be missing
    return Breast(bounding_box(whole), cv2.dilate(body, disc(2 * radius)))


def air_threshold(grey: np.ndarray) -> int:
    """The level above which a pixel is tissue: the air's most frequent one, a step, and three times its spread.

    Smoothed, air has nearly one level, however noisy it is. Where no dark level stands out, all is tissue and air 0.
    """
    counts = np.bincount(cv2.medianBlur(grey, 5).ravel(), minlength=256)
    air = int(np.argmax(counts[:AIR_LIMIT]))
    near = [counts[max(0, air - reach) : air + reach + 1].sum() for reach in range(WIDE + 1)]
    spread = int(np.searchsorted(near, near[-1] / 2))
    return air + TISSUE_STEP + 3 * spread if spread <= NARROW else TISSUE_STEP


def erase_borders(grey: np.ndarray, tissue: np.ndarray, threshold: int) -> None:
    """Set to 0, in place, the rows and columns from each edge inwards that are a frame's or a border's.

    Nearly all of such a line is white, or of one level above the air's; tissue varies along a line. A frame may
    stand a little way in. The first edge is looked at once more, free of the borders that cross it.
    """
    for _ in range(5):
        lines, length = grey.shape
        ordered = np.sort(grey[: lines // 4 + 1], axis=1)
        low, middle, high = ordered[:, length // 10], ordered[:, length // 2], ordered[:, length - 1 - length // 10]
        border = (low > WHITE) | ((middle > threshold) & (high - low <= UNIFORM))
        border[-1] = False  # not more than a quarter
        start = int(np.argmax(border[: lines // 20 + 1]))
        end = start + int(np.argmin(border[start:]))
        tissue[:end] = 0
        if low[end] > threshold:  # partly border, or breast as the line after the next
            inner = min(end + 2, lines - 1)
            tissue[end:inner] &= tissue[inner]
        grey, tissue = np.rot90(grey[end:]), np.rot90(tissue[end:])


def opened(mask: np.ndarray, radius: int) -> np.ndarray:
    """Without what a disc does not fit into. A breast goes on beyond the picture's edge: a sliver there is kept."""
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    return cv2.morphologyEx(padded, cv2.MORPH_OPEN, disc(radius))[radius:-radius, radius:-radius]


def largest_component(mask: np.ndarray) -> np.ndarray | None:
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return None
    return (labels == 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])).astype(np.uint8)


def disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    x_min, y_min, width, height = cv2.boundingRect(mask)
    return x_min, y_min, x_min + width, y_min + height


@dataclass(frozen=True)
class Placement:
    """The rectangle of a picture, in its pixels, that `fit` fills, and how much it enlarges; around it is 0."""

    top: int
    left: int
    height: int
    width: int
    scale: float


def placement(box: tuple[int, int], shape: tuple[int, int]) -> Placement:
    """Where `fit` puts a picture of `box` (height, width) in one of `shape`."""
    scale = min(shape[0] / box[0], shape[1] / box[1])
    height, width = (min(side, max(1, round(own * scale))) for own, side in zip(box, shape, strict=True))
    return Placement((shape[0] - height) // 2, (shape[1] - width) // 2, height, width, scale)


def fit(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The picture resized into `shape` (height, width), its aspect kept, centred on zeros.

    Reducing averages areas; enlarging interpolates linearly.
    """
    at = placement((picture.shape[0], picture.shape[1]), shape)
    fitted = np.zeros(shape, np.float32)
    inner = fitted[at.top : at.top + at.height, at.left : at.left + at.width]
    method = cv2.INTER_AREA if at.scale < 1 else cv2.INTER_LINEAR
    cv2.resize(picture, (at.width, at.height), dst=inner, interpolation=method)
    np.clip(inner, 0, 1, out=inner)  # rounding can pass 1
    return fitted
