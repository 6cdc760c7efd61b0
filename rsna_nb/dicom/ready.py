"""Recognises an image that needs no more than decoding: cropped, masked and sized by an earlier preparation.

Such a set is read at about the rate of its decoder. Everything that is not certain takes the usual way.
"""

import cv2
import numpy as np

from rsna_nb.dicom.polarity import Air, find_air
from rsna_nb.dicom.source import Frame

SAMPLE_SIDE = 256  # pixels along the longer side of the sample that is examined
BLACK = 0.05  # at least this share of the image is exactly black
MARGIN = 0.02  # of a side; the breast may end so far from the image's edges
RADIUS = 2  # pixels of the sample; letters and lines are thinner than this disc
SPECK = 5  # pixels of the sample; what is at most this long and this high is neither a letter nor a line


def is_ready(frame: Frame, shape: tuple[int, int]) -> bool:
    """Return whether a picture of 8 bits that is no DICOM is as `fit` would return it for `shape` (height, width).

    It has that shape, air that is exactly black, and one region that spans its height or its width and has no thin
    parts: a letter or a line beside the breast, or one that touches it, is for `find_breast`.
    """
    is_upright = frame.format != "DICOM" and frame.dataset.PhotometricInterpretation == "MONOCHROME2"
    if not is_upright or not frame.window or frame.pyramid.shape != shape:
        return False
    stored = frame.pyramid.level(0)
    step = max(1, max(shape) // SAMPLE_SIDE)
    sample = np.ascontiguousarray(stored[::step, ::step])
    tissue = (sample > 0).astype(np.uint8)
    height, width = tissue.shape
    *_, box_width, box_height = cv2.boundingRect(tissue)
    spans = box_height >= (1 - MARGIN) * height or box_width >= (1 - MARGIN) * width
    if not spans or cv2.countNonZero(tissue) > (1 - BLACK) * tissue.size:
        return False
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RADIUS + 1, 2 * RADIUS + 1))
    thick = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, disc)
    if _regions(thick) != 1 or _regions(tissue - thick):
        return False
    return find_air(sample.astype(np.float32) / 255) is Air.DARK


def _regions(mask: np.ndarray) -> int:
    """Return how many connected regions of a mask are larger than a speck."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return sum(max(cv2.boundingRect(outline)[2:]) > SPECK for outline in outlines)
