"""Resizes an image to a given shape.

Images are float32 (height, width) in 0-1.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import cv2
import numpy as np


def shape_of(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of the setting `img_size`, which is a side or both; `ValueError` if it is neither.

    >>> shape_of(512), shape_of([1024, 512])
    ((512, 512), (1024, 512))
    """
    try:
        sides = [operator.index(side) for side in (img_size if isinstance(img_size, Sequence) else (img_size,))]
    except TypeError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"img_size must be a side or (height, width) in whole pixels, 1 or more: it is {img_size!r}")
    return sides[0], sides[-1]


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


def placement(box: tuple[int, int], shape: tuple[int, int], aspect: float = 1.0, rounded: bool = True) -> Placement:
    """Return where `fit` puts an image of size `box` (height, width) in one of `shape`.

    `aspect` is the height of a pixel of the box divided by its width. Sides are rounded to the nearest pixel,
    or down if `rounded` is False.

    >>> placement((200, 100), (64, 64))
    Placement(top=0, left=16, height=64, width=32, scale=0.32)
    """
    sides = aspect * box[0], box[1]
    scale = min(shape[0] / sides[0], shape[1] / sides[1])
    whole = round if rounded else floor
    height, width = (min(side, max(1, whole(own * scale))) for own, side in zip(sides, shape, strict=True))
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
