"""Draws one view of a breast as a mammogram: tissue, lesions, exposure, noise and the burnt-in marker.

Until the last step makes 12-bit integers of them, values are display values: air is 0 and tissue bright. Everything is
drawn as a left breast and mirrored for a right one. Images are (rows, columns). Lengths without a unit are fractions
of the image's rows.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_nb.synthetic.anatomy import Breast, Lesion, Outline
from rsna_nb.synthetic.lesions import LESION_KINDS, FloatImage

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # x_min, y_min, x_max, y_max in pixels; x_max and y_max are exclusive

MAX_VALUE = 4095
DRAWN_ROWS = 640  # taller images are drawn at this height and enlarged, which saves time; noise is drawn afterwards
SHARED = 0.92, 0.6  # correlation of the coarse and of the fine structures of a woman's two breasts in the same view
GLAND_THRESHOLD = {"A": 1.9, "B": 1.2, "C": 0.5, "D": -0.3}  # by density; glandular tissue lies above it


@dataclass(frozen=True)
class Look:
    """How a machine and the exposure of one woman render a breast."""

    gain: float = 1.0  # brightness
    gamma: float = 1.0  # contrast
    noise: float = 0.008  # standard deviation at mid-grey, relative to the display range
    air: int = 0  # stored value outside the breast


def draw_mammogram(
    breast: Breast, view: str, size: tuple[int, int], rng: np.random.Generator, look: Look
) -> tuple[NDArray[np.uint16], Mask]:
    """Draw one view of a breast.

    Parameters
    ----------
    breast
        From `make_woman`.
    view
        "CC" or "MLO".
    size
        Rows and columns of the image.
    rng
        Source of the tissue's texture and of the noise.
    look
        Brightness, contrast, noise and air of the machine.

    Returns
    -------
    12-bit pixels (rows, columns) with bright tissue, and the breast's mask of the same shape. The name of the side and
    the view is burnt into the air at the upper corner away from the chest wall.
    """
    rows, columns = size
    drawn = min(rows, DRAWN_ROWS)
    outline = breast.outlines[view]
    width = min(round(columns * drawn / rows), int(np.ceil(outline.depth * 1.1 * drawn)))
    tissue = _draw_tissue(outline, breast, view, (drawn, width), rng)
    for lesion in breast.lesions:
        if view in lesion.offset:
            _add_lesion(tissue, lesion, lesion.centre(outline, view))
    mask = _mask_of(outline, size)
    display = np.zeros(size, np.float32)
    scale = rows / drawn
    part = cv2.resize(tissue, (min(columns, round(width * scale)), rows), interpolation=cv2.INTER_CUBIC)
    display[:, : part.shape[1]] = part
    display *= mask
    pixels = _expose(display, mask, look, rng)
    if breast.laterality == "R":
        pixels, mask = np.ascontiguousarray(pixels[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    _burn_marker(pixels, f"{breast.laterality}{view}", left=breast.laterality == "R")
    return pixels, mask


def lesion_boxes(breast: Breast, view: str, size: tuple[int, int]) -> tuple[tuple[Lesion, Box], ...]:
    """Return each lesion that a view shows with its box, for an image of `size` (rows, columns)."""
    outline, columns = breast.outlines[view], size[1]
    lesions = [lesion for lesion in breast.lesions if view in lesion.offset]
    boxes = [_lesion_box(lesion, lesion.centre(outline, view), size) for lesion in lesions]
    if breast.laterality == "R":
        boxes = [(columns - x_max, y_min, columns - x_min, y_max) for x_min, y_min, x_max, y_max in boxes]
    return tuple(zip(lesions, boxes, strict=True))


def _lesion_box(lesion: Lesion, centre: tuple[float, float], size: tuple[int, int]) -> Box:
    """Return the box of a lesion with its centre (x, y) in pixels of the image before mirroring."""
    (x, y), radius, rows = centre, lesion.radius, size[0]
    low = (max(0, int((x - radius) * rows)), max(0, int((y - radius) * rows)))
    high = (int(np.ceil((x + radius) * rows)), int(np.ceil((y + radius) * rows)))
    return low[0], low[1], min(high[0], size[1]), min(high[1], rows)


def _mask_of(outline: Outline, size: tuple[int, int]) -> Mask:
    """Return True inside the breast, nipple included, in an image of `size` (rows, columns)."""
    rows, columns = size
    reach = outline.reach((np.arange(rows) + 0.5) / rows)
    nipple = 0.012 * np.exp(-(((np.arange(rows) + 0.5) / rows - outline.nipple_row) ** 2) / (2 * 0.012**2))
    return ((np.arange(columns) + 0.5) / rows)[None, :] < (reach + nipple * (reach > 0))[:, None]


@lru_cache(maxsize=16)  # raising the frequencies to a power takes as long as the rest of a field
def _amplitude_of(rows: int, beta: float, low_cut: float, stretch: float) -> FloatImage:
    """Return the amplitude of each frequency of a field with variance 1, on a canvas a little larger than a breast."""
    height, width = cv2.getOptimalDFTSize(rows + rows // 16), cv2.getOptimalDFTSize(round(0.6 * rows))
    fy, fx = np.fft.fftfreq(height, 1 / rows)[:, None], np.fft.fftfreq(width, 1 / rows)[None, :]
    frequency = np.hypot(fy, fx * stretch)  # in waves per image height
    frequency[0, 0] = np.inf
    amplitude = np.where(frequency < low_cut, 0, frequency ** (-beta / 2))
    return (amplitude / np.sqrt((amplitude**2).sum())).astype(np.float32)


def _power_law(
    rng: np.random.Generator, shape: tuple[int, int], beta: float, low_cut: float = 1.0, stretch: float = 1.0
) -> tuple[FloatImage, FloatImage]:
    """Sample two independent fields of `shape` with mean 0 and variance 1 whose power falls as 1/f^beta.

    Parameters
    ----------
    rng
        Source of both fields.
    shape
        (rows, columns).
    beta
        About 3 for mammograms (Burgess, Jacobson, Judy, Med. Phys. 28, 2001).
    low_cut
        Waves longer than 1 / low_cut of the image's height are removed.
    stretch
        Above 1 the texture is stretched along x, towards the nipple, like ducts.
    """
    fields = _canvas(rng, shape[0], beta, low_cut, stretch)[: shape[0], : shape[1]]
    return np.ascontiguousarray(fields[..., 0]), np.ascontiguousarray(fields[..., 1])


def _canvas(rng: np.random.Generator, rows: int, beta: float, low_cut: float, stretch: float) -> FloatImage:
    """Sample the two fields of `_power_law` on a canvas a little larger than a breast, (rows, columns, 2)."""
    amplitude = _amplitude_of(rows, beta, low_cut, stretch)
    spectrum = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32) * amplitude[..., None]
    return cv2.idft(spectrum).astype(np.float32, copy=False)


@lru_cache(maxsize=4)  # both breasts of a woman, and all images of a view, are drawn one after another
def _shared_canvas(seed: int, view: str, rows: int) -> FloatImage:
    """Return the structures of the tissue that both breasts of a woman have in the same view."""
    return _canvas(np.random.default_rng([seed, len(view)]), rows, 3.0, 1.0, 1.4)


def _smooth_step(values: FloatImage, low: float, high: float) -> FloatImage:
    """Return 0 below `low`, 1 above `high`, and a smooth transition between them."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _draw_tissue(
    outline: Outline, breast: Breast, view: str, shape: tuple[int, int], rng: np.random.Generator
) -> FloatImage:
    """Draw the display values of a breast without lesions, (rows, columns) at drawing size."""
    rows, columns = shape
    y = ((np.arange(rows, dtype=np.float32) + 0.5) / rows)[:, None]
    x = ((np.arange(columns, dtype=np.float32) + 0.5) / rows)[None, :]
    depth = _skin_distance(outline, shape)
    shared = _shared_canvas(breast.tissue_seed, view, rows)[:rows, :columns]
    coarse, fine = (
        share * shared[..., number] + np.sqrt(1 - share**2) * own
        for number, (share, own) in enumerate(zip(SHARED, _power_law(rng, shape, 3.0, stretch=1.4), strict=True))
    )
    strands, threads = _power_law(rng, shape, 5.0, low_cut=12.0, stretch=1.7)
    # Glandular tissue is densest behind the nipple and absent just below the skin.
    level = (y - outline.nipple_row) / (0.42 * outline.height)
    central = 1 - ((x - 0.55 * outline.depth) / (0.5 * outline.depth)) ** 2 - level**2
    inner = _smooth_step(depth, 0.012, 0.075)
    gland = 1 / (1 + np.exp(-2.8 * (0.9 * coarse + 1.3 * central - GLAND_THRESHOLD[breast.density])))
    gland = (gland * inner).astype(np.float32)
    # Thin bright strands of connective tissue follow the zeros of two fields.
    web = np.exp(-((strands / 0.16) ** 2)) + 0.7 * np.exp(-((threads / 0.12) ** 2))
    web *= 0.35 + 0.65 * _smooth_step(fine, -0.8, 1.0)
    value: FloatImage = 0.15 + 0.03 * fine + gland * (0.24 + 0.09 * fine + 0.05 * coarse)
    value += web * (0.35 + 0.65 * inner) * (0.07 + 0.09 * gland)
    value += 0.12 * _vessels(rng, outline, shape) * inner
    value = _add_muscle(value, outline, x, y, 0.6 * fine + 0.9 * web)
    value = _add_implant(value, outline, x, y)
    value += 0.34 * np.exp(-(((depth - 0.0035) / 0.004) ** 2))  # skin line
    corners = np.minimum(np.hypot(x, y - outline.top), np.hypot(x, y - outline.top - outline.height))
    value += 0.7 * np.exp(-corners / 0.03)  # folds where the skin meets the chest wall
    return (np.maximum(value, 0.05) * _smooth_step(depth, -0.001, 0.0035)).astype(np.float32)


def _skin_distance(outline: Outline, shape: tuple[int, int]) -> FloatImage:
    """Return the distance of each pixel from the skin; 0 outside the breast. The chest wall is not skin."""
    mask = _mask_of(outline, shape).astype(np.uint8)
    padded = cv2.copyMakeBorder(mask, 8, 8, 8, 8, cv2.BORDER_REPLICATE)
    padded[:, -8:] = 0  # on the other three sides the breast continues beyond the image
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[8:-8, 8:-8]
    return cv2.GaussianBlur(distance, (0, 0), 1.0) / np.float32(shape[0])


def _add_muscle(value: FloatImage, outline: Outline, x: FloatImage, y: FloatImage, texture: FloatImage) -> FloatImage:
    """Return the display values with the pectoral muscle, if the view shows it."""
    if outline.muscle[1] == 0:
        return value
    inside = _smooth_step((outline.muscle_edge(y) - x).astype(np.float32), -0.006, 0.012)
    return value * (1 - 0.8 * inside) + inside * (0.36 + 0.05 * texture)


def _add_implant(value: FloatImage, outline: Outline, x: FloatImage, y: FloatImage) -> FloatImage:
    """Return the display values with the implant, if there is one."""
    if outline.implant[0] == 0:
        return value
    a, b = outline.implant
    within = (1 - (x / a) ** 2 - ((y - outline.nipple_row) / b) ** 2).astype(np.float32)
    inside = _smooth_step(within, -0.01, 0.08)
    return value * (1 - 0.7 * inside) + inside * (0.6 + 0.2 * np.clip(within, 0, 1))


def _vessels(rng: np.random.Generator, outline: Outline, shape: tuple[int, int]) -> FloatImage:
    """Draw one to four winding vessels from the chest wall forwards, brightness 0-1."""
    canvas = np.zeros(shape, np.uint8)
    for _ in range(rng.integers(1, 5)):
        steps = np.linspace(0, 1, 24)
        x = steps * outline.depth * rng.uniform(0.5, 0.9)
        drift = np.cumsum(np.cumsum(rng.normal(0, 0.0016, steps.size)))
        drift += rng.uniform(-0.3, 0.3) * outline.height * (1 - 0.6 * steps)
        points = (
            np.stack([x, outline.nipple_row + drift], 1) * shape[0] * 16
        )  # 4 binary places, which polylines shifts out
        thickness = max(1, round(shape[0] * rng.uniform(0.0015, 0.004)))
        cv2.polylines(canvas, [points.astype(np.int32)], False, 255, thickness, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), max(0.5, shape[0] * 0.001)).astype(np.float32) / 255


def _add_lesion(tissue: FloatImage, lesion: Lesion, centre: tuple[float, float]) -> None:
    """Add a lesion to the drawn tissue, in place."""
    rows, columns = tissue.shape
    x_min, y_min, x_max, y_max = _lesion_box(lesion, centre, (rows, columns))
    x = ((np.arange(x_min, x_max, dtype=np.float32) + 0.5) / rows - centre[0])[None, :] / lesion.radius
    y = ((np.arange(y_min, y_max, dtype=np.float32) + 0.5) / rows - centre[1])[:, None] / lesion.radius
    pixel = 1 / (rows * lesion.radius)  # in units of the radius, as x and y are
    shape = LESION_KINDS[lesion.kind].shape(np.random.default_rng(lesion.seed), x, y, pixel)
    tissue[y_min:y_max, x_min:x_max] += np.float32(lesion.contrast) * shape.astype(np.float32)


def _expose(display: FloatImage, mask: Mask, look: Look, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Map display values to 12-bit stored values.

    The steps are: compress bright values (tanh), contrast, brightness, quantum noise, and the value of air.
    """
    signal = look.gain * np.tanh(1.35 * np.clip(display, 0, None)) ** np.float32(look.gamma)
    noise = rng.standard_normal(display.shape, dtype=np.float32) * np.float32(look.noise)
    signal += noise * np.sqrt(signal + np.float32(0.05)) * mask
    stored = look.air + signal * np.float32(MAX_VALUE - look.air)
    return np.clip(np.rint(stored), 0, MAX_VALUE).astype(np.uint16)


def _burn_marker(pixels: NDArray[np.uint16], text: str, left: bool) -> None:
    """Write a text into the air at the upper left or right corner, in place."""
    rows, columns = pixels.shape
    font_scale, thickness = rows / 1000, max(1, round(rows / 500))
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_scale, thickness)
    x = round(0.05 * columns) if left else columns - width - round(0.05 * columns)
    y = round(0.09 * rows) + height
    canvas = np.zeros(pixels.shape, np.uint8)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, font_scale, 255, thickness, cv2.LINE_AA)
    np.maximum(pixels, canvas.astype(np.uint16) * np.uint16(MAX_VALUE // 255), out=pixels)
