"""Where the breast is in a mammogram, and how it is fitted into a size.

Pictures are float32 (height, width) in 0-1, air dark and tissue bright.
"""

from dataclasses import dataclass

import cv2
import numpy as np

AIR_LIMIT = 0.25  # air is darker than this: the windowed background of a mammogram is close to 0


@dataclass(frozen=True)
class Breast:
    """Where the breast is in a picture: `box` is (x_min, y_min, x_max, y_max), half open; `mask`, of the picture's
    shape, is uint8 of 0 and 1: the breast with a margin."""

    box: tuple[int, int, int, int]
    mask: np.ndarray


def find_breast(picture: np.ndarray) -> Breast | None:
    """The largest piece of tissue, leaving aside markers, frames and bright borders; None where all is air.

    The picture is a small one, of 200 to 400 pixels along its longer side: a frame, a letter, a skin fold have
    about the same width in all of them. The steps: threshold above the air, cut bright uniform edges off, open
    (which removes text and thin lines, also where they touch the breast), take the largest component, and give
    it back what the opening took from its rim.
    """
    tissue = (picture > air_threshold(picture)).astype(np.uint8)
    erase_bright_edges(picture, tissue)
    radius = max(1, round(0.008 * max(picture.shape)))
    body = largest_component(cv2.morphologyEx(tissue, cv2.MORPH_OPEN, disc(radius)))
    if body is None:
        return None
    body = cv2.min(cv2.dilate(body, disc(radius + 1)), tissue)
    whole = cv2.dilate(body, np.ones((3, 3), np.uint8))  # a pixel that tissue fills by less than half is below the air
    return Breast(bounding_box(whole), cv2.dilate(body, disc(2 * radius)))


def air_threshold(picture: np.ndarray) -> float:
    """The brightness above which a pixel is tissue: the air's most frequent value and three times its spread."""
    dark = picture[picture < AIR_LIMIT]
    if dark.size == 0:
        return 0.0
    counts, edges = np.histogram(dark, bins=100, range=(0.0, AIR_LIMIT))
    air = float(edges[np.argmax(counts)])
    near = dark[np.abs(dark - air) < 0.05]
    return air + 0.02 + 3 * float(np.median(np.abs(near - np.median(near))))


def erase_bright_edges(picture: np.ndarray, tissue: np.ndarray) -> None:
    """Set to 0, in place, the rows and columns from each edge inwards that are a frame's or a border's.

    A frame may stand a little way in.
    """
    for view, mask in (
        (picture, tissue),
        (picture[::-1], tissue[::-1]),
        (picture.T, tissue.T),
        (picture.T[::-1], tissue.T[::-1]),
    ):
        outer = range(len(view) // 20 + 1)
        end = start = next((line for line in outer if is_border_line(view[line])), 0)
        while end < len(view) // 4 and is_border_line(view[end]):
            end += 1
        if end > start:
            mask[: end + 1] = 0  # the line after it is half border


def is_border_line(line: np.ndarray) -> bool:
    """Nearly all of it is bright, and either white or of one value; tissue varies along a line."""
    low, middle, high = np.percentile(line, (10, 50, 90))
    return bool(low > 0.9 or (middle > 0.4 and high - low < 0.02))


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


def fit(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The picture resized into `shape` (height, width), its aspect kept, centred on zeros.

    Reducing averages areas; enlarging interpolates linearly.
    """
    scale = min(shape[0] / picture.shape[0], shape[1] / picture.shape[1])
    height = min(shape[0], max(1, round(picture.shape[0] * scale)))
    width = min(shape[1], max(1, round(picture.shape[1] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    fitted = np.zeros(shape, np.float32)
    fitted[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=method)
    return np.clip(fitted, 0, 1, out=fitted)  # rounding can pass 1
