"""Tells whether air is dark or bright in an image.

DICOM headers declare it, but some are wrong, and most other formats declare nothing. Air is recognised by three things:
it has nearly one level, it lies at the edge of the image, and the breast bulges into it. If it is not recognised, the
header decides.
"""

from enum import Enum

import cv2
import numpy as np
import pydicom

FEW = 0.05  # air covers at least this share of an image
FLAT = 3  # grey levels of 255 by which neighbouring pixels of air differ at most
SMOOTH = 0.75  # share of air whose neighbours have nearly one level
SURE = 1.42  # sum of that share and the share of air with nearly one level throughout, above which an image is turned
SPAN = 8  # grey levels of 255 within which air lies
DARK = 64  # air is darker than this level of 255, or brighter than 255 less it where it is inverted
CLEARLY = 4  # times as much air of one level as of the other


class Air(Enum):
    """Which level air has in an image."""

    DARK = "dark"
    BRIGHT = "bright"
    UNSEEN = "unseen"


def declares_inverted(dataset: pydicom.Dataset) -> bool:
    """Return whether the header says that large values are dark: MONOCHROME1, or a PresentationLUTShape of INVERSE."""
    return dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"


def find_air(picture: np.ndarray) -> Air:
    """Tell which level air has, from an image of 200 to 399 pixels along its longer side, float32 in 0-1.

    Uniform lines at the edges are cut off first, whatever their level: they may be a border or the black around a film.
    If few pixels share a bright level, none of them is air, and dark air is looked for in the levels alone. Else air
    touches an edge and is less convex than the rest: the breast bulges into it, while implants, muscles and labels
    bulge themselves.
    """
    grey = cv2.convertScaleAbs(picture, alpha=255)
    smooth = _without_borders(cv2.medianBlur(grey, 5))
    if smooth.size < FEW * grey.size:
        return Air.UNSEEN
    if _near_the_peak(255 - grey) < FEW:
        return Air.DARK if _near_the_peak(smooth) >= FEW else Air.UNSEEN
    dark, bright = _air_share(smooth, SMOOTH), _air_share(255 - smooth, SURE)
    if max(dark, bright) < FEW or max(dark, bright) < CLEARLY * min(dark, bright):
        return Air.UNSEEN
    return Air.DARK if dark > bright else Air.BRIGHT


def _near_the_peak(grey: np.ndarray) -> float:
    """Return the share of pixels that have nearly the most frequent level below `DARK`."""
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    level = int(np.argmax(counts[:DARK]))
    return float(counts[max(0, level - SPAN) : level + SPAN + 1].sum()) / grey.size


def _without_borders(smooth: np.ndarray) -> np.ndarray:
    """Cut off the lines at an image's edges that have nearly one level; a border that crosses another one as well."""
    for _ in range(3):
        before = smooth.shape
        for _ in ("rows", "columns"):
            ends = smooth.shape[1] // 32  # not compared: a line next to a border holds pixels of it at its ends
            inner = smooth[:, ends : smooth.shape[1] - ends]
            varied = np.flatnonzero(inner.max(axis=1) - inner.min(axis=1) > SPAN)  # tenfold faster than cv2.reduce
            smooth = smooth[varied[0] : varied[-1] + 1].T if varied.size else smooth.T
        if smooth.shape == before:
            break
    return np.ascontiguousarray(smooth)


def _air_share(smooth: np.ndarray, least: float) -> float:
    """Return the share of an image that is air if air is dark; 0 if what is dark cannot be air.

    Air touches an edge, is flat and bulges less than the rest. `least` is the smallest sum of its flatness among
    neighbours and throughout the image, each 0 to 1.
    """
    counts = cv2.calcHist([smooth], [0], None, [256], [0, 256]).ravel()
    level = int(np.argmax(counts[:DARK]))
    near, around = (counts[max(0, level - reach) : level + reach + 1].sum() for reach in (FLAT, 2 * SPAN))
    dark = (smooth <= level + SPAN).astype(np.uint8)
    air = _touching_the_edge(cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    share = float(air.mean())
    if not FEW <= share <= 1 - FEW or (flat := _flatness(smooth, air)) < SMOOTH or flat + near / max(1, around) < least:
        return 0.0
    return share if _solidity(air) < _solidity(1 - air) else 0.0


def _flatness(smooth: np.ndarray, air: np.ndarray) -> float:
    """Return the share of a region, without its rim, whose neighbourhood has nearly one level."""
    square = np.ones((5, 5), np.uint8)
    inner = cv2.erode(air, np.ones((7, 7), np.uint8)).view(bool)
    flat = cv2.subtract(cv2.dilate(smooth, square), cv2.erode(smooth, square)) <= FLAT
    return float(flat[inner].mean()) if inner.any() else 0.0


def _touching_the_edge(mask: np.ndarray) -> np.ndarray:
    """Return the connected regions of a mask that touch the image's edge."""
    count, labels = cv2.connectedComponents(mask, connectivity=4)
    touching = np.zeros(count, np.uint8)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[edge] = 1
    touching[0] = 0  # what is not in the mask
    return touching[labels]


def _solidity(mask: np.ndarray) -> float:
    """Return the share of its convex hull that the largest region of a mask fills; 0 for an empty mask."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return 0.0
    hull = cv2.convexHull(max(outlines, key=cv2.contourArea))
    filled = cv2.fillConvexPoly(np.zeros_like(mask), hull, 1)
    return cv2.countNonZero(mask & filled) / cv2.countNonZero(filled)
