"""Finds the breast in a mammogram.

Images are float32 (height, width) in 0-1, air dark and tissue bright.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# Grey levels, 0 to 255, of the image that is searched for the breast:
AIR_LIMIT = 64  # air is darker than this: the windowed background of a mammogram is close to 0
TISSUE_STEP = 5  # tissue is brighter than air by more than this
NARROW, WIDE = 3, 16  # air: half of the pixels within WIDE of its level lie within NARROW of it
LOW_CONTRAST = 25  # nine tenths of a breast's pixels span more levels than these
# A breast fills more of its convex hull than CONVEX: 0.95 and more on 8 real mammograms, 0.97 and more on drawn films.
# Where the whole breast was found, a smaller share of the tissue than LEFT_OUT is outside: labels, at most 0.21 on
# drawn mammograms. Where half of it was found, more than 0.3 was outside.
CONVEX, LEFT_OUT = 0.9, 0.25
# A breast whose fat is black grows when skin and fat are added, and is larger than anything else; the letters of a text
# grow to words, of which others are as large. Darkened real breasts grew less than 3.4 times.
MOST_GROWTH, LARGEST_OTHER = 4, 0.5
LABEL, LABEL_SHARE = 225, 0.0015  # a label is brighter than this, and its edge covers this share of the image
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
    notes
        What is odd about it, in the words of `NOTES`.
    """

    box: tuple[int, int, int, int]
    mask: np.ndarray
    notes: tuple[str, ...] = ()


def find_breast(picture: np.ndarray) -> Breast | None:
    """Find the largest region of tissue that is not a marker, a frame or a border; return None if all is air.

    The steps are: threshold above the air; erase uniform lines at the edges; open morphologically, which removes text
    and thin lines even where they touch the breast; keep the largest component; grow it back to the edge that opening
    removed. On a scanned film the component is taken above the film's fog, so that fog does not join a label to it.
    Where a window makes fat as dark as air, opening also removes the skin. What is left is not convex, as a breast is,
    or much tissue is outside. Then it is noted, and all that is connected with it is kept, with its gaps, if that is
    convex and more than twice as large as anything else.

    The image must be small, 200 to 399 pixels along its longer side, so that a frame, a letter or a fold of skin has
    about the same width in pixels whatever the file's size.
    """
    grey = cv2.convertScaleAbs(picture, alpha=255)
    smooth, clean = cv2.medianBlur(grey, 5), cv2.medianBlur(grey, 3)
    inside = _without_bands(smooth)
    threshold, tissue = _air_threshold(smooth[inside]), np.zeros_like(grey)
    tissue[inside] = clean[inside] > threshold
    left, top, width, height = cv2.boundingRect(tissue)
    film = np.s_[top : top + height, left : left + width]  # without the black that pads a film
    fog = _air_threshold(smooth[film]) if tissue.any() else threshold
    _erase_borders(grey, tissue, threshold)
    radius = max(1, round(0.008 * max(picture.shape)))
    body = _breast_above(fog, grey, clean, tissue, film, radius) if fog > threshold else None
    on_film = body is not None
    if body is None:
        body = _breast_of(tissue, radius)
    if body is None:
        return None
    outside = cv2.countNonZero(cv2.subtract(tissue, cv2.dilate(body, _disc(2 * radius)))) / cv2.countNonZero(tissue)
    is_odd = _convexity(body) <= CONVEX or (outside > LEFT_OUT and not on_film)  # fog is outside of the breast
    if is_odd and not on_film:
        body = _with_its_fat(body, tissue, radius)
    whole = cv2.dilate(body, np.ones((3, 3), np.uint8))  # includes pixels that tissue fills by less than half
    x_min, y_min, width, height = cv2.boundingRect(whole)
    notes = []
    if _keeps_label(grey[film], whole[film], max(threshold, fog)):
        notes.append("label")
    if _span(grey, body) < LOW_CONTRAST:
        notes.append("low contrast")
    if is_odd:
        notes.append("outline")
    return Breast((x_min, y_min, x_min + width, y_min + height), cv2.dilate(body, _disc(2 * radius)), tuple(notes))


def _without_bands(smooth: np.ndarray) -> tuple[slice, slice]:
    """Return the part of an image without the grey lines at its edges that have one level throughout."""
    edges = (smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1])
    if not any(TISSUE_STEP < edge[0] == edge.min() == edge.max() for edge in edges):  # the usual case, which saves time
        return np.s_[:, :]
    rows, columns = (np.flatnonzero(smooth.min(axis) < smooth.max(axis)) for axis in (1, 0))
    if 4 * rows.size * columns.size < smooth.size:  # bands leave more than that of an image
        return np.s_[:, :]
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _air_threshold(smooth: np.ndarray) -> int:
    """Return the grey level above which a pixel is tissue.

    It lies above the most frequent level of air by `TISSUE_STEP` and three times the spread of air. In an image after
    a median filter air has nearly one level, however noisy it is. If no dark level is far more frequent than its
    neighbours, the image has no air, and the level of air is set to 0.
    """
    counts = cv2.calcHist([smooth], [0], None, [256], [0, 256]).ravel()
    air = int(np.argmax(counts[:AIR_LIMIT]))
    near = [counts[max(0, air - reach) : air + reach + 1].sum() for reach in range(WIDE + 1)]
    spread = int(np.searchsorted(near, near[-1] / 2))
    return air + TISSUE_STEP + 3 * spread if spread <= NARROW else TISSUE_STEP


def _breast_of(tissue: np.ndarray, radius: int) -> np.ndarray | None:
    """Return the breast in a mask of tissue, or None if the mask holds nothing that is wider than a line."""
    body = _largest_component(_opened(tissue, radius), radius)
    return None if body is None else _grown(body, tissue, radius + 1, 2)


def _with_its_fat(body: np.ndarray, tissue: np.ndarray, radius: int) -> np.ndarray:
    """Return all tissue that is connected with the body, with its gaps filled.

    Gaps are as dark as air and lie within tissue, or between tissue and the chest wall, beyond which the breast
    continues. If the result is not convex, something else is connected. If something apart from it is half as large, or
    if it is many times larger than the body, it is a word or a block of text. Then the body is returned as it is.
    """
    joined = cv2.morphologyEx(cv2.max(body, tissue), cv2.MORPH_CLOSE, _disc(radius))
    _, labels = cv2.connectedComponents(joined)
    own = np.bincount(labels[body > 0]).argmax()
    whole = (labels == own).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(whole)
    for edge in (whole[top], whole[top + height - 1], whole[:, left], whole[:, left + width - 1]):
        touched = np.flatnonzero(edge)
        edge[touched[0] : touched[-1]] = 1  # writes to `whole`
    whole = _filled(whole)
    size, others = cv2.countNonZero(whole), np.bincount(labels.ravel())
    others[0] = others[own] = 0
    is_text = others.max() >= LARGEST_OTHER * size or size >= MOST_GROWTH * cv2.countNonZero(body)
    return body if is_text or _convexity(whole) <= CONVEX else whole


def _filled(mask: np.ndarray) -> np.ndarray:
    """Return the mask without holes."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)


def _convexity(body: np.ndarray) -> float:
    """Return the share of the body's convex hull that the body fills, its holes included."""
    filled = _filled(body)
    hull = cv2.fillConvexPoly(np.zeros_like(body), cv2.convexHull(cv2.findNonZero(filled)), 1)
    return cv2.countNonZero(filled) / cv2.countNonZero(hull)


def _breast_above(
    fog: int, grey: np.ndarray, clean: np.ndarray, tissue: np.ndarray, film: tuple[slice, slice], radius: int
) -> np.ndarray | None:
    """Return the breast on a scanned film, or None if nothing but fog is found.

    Fog is brighter than the black around the film and joins labels and the film's edges to the breast. The breast is
    therefore found above the fog. Its skin fades into the fog, so it grows back by more than opening removed, but not
    into what else is above the fog.
    """
    dense = tissue & (clean > fog)
    _erase_borders(grey[film], dense[film], fog)
    opened = _opened(dense, radius)
    body = _largest_component(opened, radius)
    if body is None:
        return None
    labels = opened & (1 - cv2.dilate(body, _disc(radius + 1)))
    free = tissue & (1 - cv2.dilate(labels, _disc(radius + 1)))
    return _grown(body, free, radius + 1, 3)


def _keeps_label(grey: np.ndarray, mask: np.ndarray, threshold: int) -> bool:
    """Return whether the mask holds something white and wide that ends sharply at air: a label or the edge of a film.

    Tissue darkens gradually towards the air. Skin is a thin line, or it has air at one side only. The image must
    end where the film ends: the black that pads it is not air.
    """
    white = cv2.morphologyEx((grey > LABEL).view(np.uint8), cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
    air = (grey < threshold + 2 * WIDE).view(np.uint8)
    if cv2.countNonZero(white & mask & cv2.dilate(air, np.ones((9, 9), np.uint8))) < LABEL_SHARE * grey.size:
        return False
    count, labels = cv2.connectedComponents(white & mask)
    for label in range(1, count):
        region = (labels == label).astype(np.uint8)
        around = cv2.subtract(cv2.dilate(region, _disc(5)), cv2.dilate(region, _disc(3)))
        if cv2.countNonZero(cv2.min(air, around)) > 0.6 * max(1, cv2.countNonZero(around)):
            return True
    return False


def _span(grey: np.ndarray, mask: np.ndarray) -> int:
    """Return how many grey levels nine tenths of the pixels in the mask span."""
    counts = np.cumsum(cv2.calcHist([grey], [0], mask, [256], [0, 256]).ravel())
    low, high = np.searchsorted(counts, (0.05 * counts[-1], 0.95 * counts[-1]))
    return int(high - low)


def _grown(body: np.ndarray, tissue: np.ndarray, radius: int, times: int) -> np.ndarray:
    """Return the body grown `times` times by a disc, each time within the tissue."""
    for _ in range(times):
        body = cv2.min(cv2.dilate(body, _disc(radius)), tissue)
    return body


def _erase_borders(grey: np.ndarray, tissue: np.ndarray, threshold: int) -> None:
    """Set to 0 in `tissue`, in place, the rows and columns at the edges that belong to a frame or a border.

    Nearly all pixels of such a line are white or share one level above the air's, whereas tissue varies along a line.
    A frame may begin up to a twentieth inside the image, and a border takes up to a quarter of it.
    """
    for _ in range(5):  # each edge, and the first one again after the borders that cross it are cut off
        first = grey.shape[0] // 20 + 1
        low, border = _border_lines(grey[:first], threshold)
        end = int(np.argmax(border))
        if border[end]:
            low, border = _border_lines(grey[: grey.shape[0] // 4 + 1], threshold)
            border[-1] = False  # limits the border to a quarter of the image
            end += int(np.argmin(border[end:]))
        tissue[:end] = 0
        if low[end] > threshold:  # the next line is partly border: it is tissue only where a line further in is, too
            inner = min(end + 2, grey.shape[0] - 1)
            tissue[end:inner] &= tissue[inner]
        grey, tissue = np.rot90(grey[end:]), np.rot90(tissue[end:])  # views: `tissue` still writes to the caller's


def _border_lines(grey: np.ndarray, threshold: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a low level of each line, which a tenth of its pixels do not exceed, and whether the line is a border."""
    length = grey.shape[1]
    ranks = [length // 10, length // 2, length - 1 - length // 10]
    low, middle, high = np.partition(grey, ranks, axis=1)[:, ranks].T
    return low, (low > WHITE) | ((middle > threshold) & (high - low <= UNIFORM))


def _opened(mask: np.ndarray, radius: int) -> np.ndarray:
    """Remove what a disc does not fit into. The mask is continued beyond its edges, as the breast is in reality."""
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    return cv2.morphologyEx(padded, cv2.MORPH_OPEN, _disc(radius))[radius:-radius, radius:-radius]


def _largest_component(mask: np.ndarray, margin: int) -> np.ndarray | None:
    """Return the largest connected region of the mask as uint8 of 0 and 1, or None if the mask is empty.

    The outermost lines, `margin` wide, do not connect: a bright line along a film's edge joins all that touches it.
    """
    inner = np.zeros_like(mask)
    inside = np.s_[margin:-margin, margin:-margin]
    inner[inside] = mask[inside]
    inner = inner if inner.any() else mask  # there is nothing further in
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(inner, connectivity=4)
    if count < 2:  # the background is a component too
        return None
    return (labels == 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])).astype(np.uint8)


def _disc(radius: int) -> np.ndarray:
    """Return a disc as a structuring element, uint8 (2 * radius + 1, 2 * radius + 1)."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
