"""Where the breast is in a mammogram, and how it is fitted into a size.

Pictures are float32 (height, width) in 0-1, air dark and tissue bright.
"""

from dataclasses import dataclass

import cv2
import numpy as np

SEARCH_SIDE = 416  # longest side, in pixels, of the reduced picture in which the breast is looked for
AIR_LIMIT = 0.25  # air is darker than this: the windowed background of a mammogram is close to 0


@dataclass(frozen=True)
class Breast:
    """`box` is (x_min, y_min, x_max, y_max) in pixels of the picture, half open; `mask` is uint8 of 0 and 1
    over the reduced picture: the breast with a margin."""

    box: tuple[int, int, int, int]
    mask: np.ndarray

    def full_mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """The mask at the size (height, width) of the picture."""
        return cv2.resize(self.mask, shape[::-1], interpolation=cv2.INTER_NEAREST)


def find_breast(picture: np.ndarray) -> Breast | None:
    """The largest piece of tissue, leaving aside markers, frames and bright borders; None where all is air.

    The steps, on a reduced picture: cut bright uniform edges off, threshold above the air, open (which
    removes text and thin lines, also where they touch the breast), take the largest component, and give
    it back what the opening took from its rim.
    """
    factor = max(1.0, max(picture.shape) / SEARCH_SIDE)
    small_size = (max(1, round(picture.shape[1] / factor)), max(1, round(picture.shape[0] / factor)))
    small = cv2.resize(picture, small_size, interpolation=cv2.INTER_AREA)
    tissue = (small > air_threshold(small)).astype(np.uint8)
    erase_bright_edges(small, tissue)
    radius = max(1, round(0.008 * max(small.shape)))
    body = largest_component(cv2.morphologyEx(tissue, cv2.MORPH_OPEN, disc(radius)))
    if body is None:
        return None
    body = cv2.min(cv2.dilate(body, disc(radius + 1)), tissue)
    margin = cv2.dilate(body, disc(2 * radius))
    return Breast(enlarge(bounding_box(body), small, picture), margin)


def air_threshold(small: np.ndarray) -> float:
    """The brightness above which a pixel is tissue: the air's most frequent value and three times its spread."""
    dark = small[small < AIR_LIMIT]
    if dark.size == 0:
        return 0.0
    counts, edges = np.histogram(dark, bins=100, range=(0.0, AIR_LIMIT))
    air = float(edges[np.argmax(counts)])
    near = dark[np.abs(dark - air) < 0.05]
    return air + 0.02 + 3 * float(np.median(np.abs(near - np.median(near))))


def erase_bright_edges(small: np.ndarray, tissue: np.ndarray) -> None:
    """Set to 0, in place, the rows and columns from each edge inwards that are a frame's or a border's.

    A frame may stand a little way in.
    """
    for view, mask in (
        (small, tissue),
        (small[::-1], tissue[::-1]),
        (small.T, tissue.T),
        (small.T[::-1], tissue.T[::-1]),
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


def enlarge(box: tuple[int, int, int, int], small: np.ndarray, picture: np.ndarray) -> tuple[int, int, int, int]:
    """`box` of the reduced picture in pixels of the whole one, rounded outwards."""
    scale_y, scale_x = picture.shape[0] / small.shape[0], picture.shape[1] / small.shape[1]
    return (
        int(box[0] * scale_x),
        int(box[1] * scale_y),
        min(picture.shape[1], int(np.ceil(box[2] * scale_x))),
        min(picture.shape[0], int(np.ceil(box[3] * scale_y))),
    )


def keep_breast(picture: np.ndarray, breast: Breast) -> np.ndarray:
    """The picture inside the breast's box, 0 outside of the breast's mask: air, markers and frames are gone."""
    x_min, y_min, x_max, y_max = breast.box
    return picture[y_min:y_max, x_min:x_max] * breast.full_mask(picture.shape)[y_min:y_max, x_min:x_max]


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
    return fitted
