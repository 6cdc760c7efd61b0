"""The appearance of each kind of lesion and benign look-alike.

The shape functions return brightness in 0-1, float (rows, columns), at places (x, y) relative to the lesion's centre.
Lengths are in units of the lesion's radius; `pixel` is the side of a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.floating[Any]]  # (rows, columns)


def _smooth_mass(rng: np.random.Generator, x: FloatImage, y: FloatImage, pixel: float) -> FloatImage:
    """Draw an ellipse with a soft, smooth edge."""
    angle, ratio = rng.uniform(0, np.pi), rng.uniform(0.7, 1.0)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return 1 / (1 + np.exp(14 * (np.hypot(u, v / ratio) - 0.82)))


def _spiculated_mass(rng: np.random.Generator, x: FloatImage, y: FloatImage, pixel: float) -> FloatImage:
    """Draw a lobed core with 11 to 18 thin rays that fade outwards."""
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    lobes = sum(rng.normal(0, 0.08) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    shape = 1 / (1 + np.exp(9 * (distance / (0.45 * (1 + lobes)) - 1)))
    for direction in rng.uniform(0, 2 * np.pi, rng.integers(11, 19)):
        along = x * np.cos(direction) + y * np.sin(direction)
        across = (y * np.cos(direction) - x * np.sin(direction)) / max(0.05, 0.6 * pixel)
        fade = np.clip((rng.uniform(0.75, 1.0) - along) / 0.6, 0, 1) * (along > 0)
        shape = np.maximum(shape, 0.8 * fade * np.exp(-(across**2) / 2))
    return shape


def _density(rng: np.random.Generator, x: FloatImage, y: FloatImage, pixel: float) -> FloatImage:
    """Draw a soft, uneven area like glandular tissue, without an edge and without rays."""
    angle, ratio = rng.uniform(0, np.pi), rng.uniform(0.6, 0.95)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    uneven = sum(np.cos(rng.normal(0, 5) * x + rng.normal(0, 5) * y + rng.uniform(0, 2 * np.pi)) for _ in range(6))
    return np.exp(-2.5 * (u**2 + (v / ratio) ** 2)) * np.clip(0.8 + 0.14 * uneven, 0, 1)


def _microcalcification_cluster(rng: np.random.Generator, x: FloatImage, y: FloatImage, pixel: float) -> FloatImage:
    """Draw 10 to 20 bright dots close together."""
    shape = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for _ in range(rng.integers(10, 21)):
        distance, angle = 0.88 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        dot = np.hypot(x - distance * np.cos(angle), y - distance * np.sin(angle))
        shape = np.maximum(shape, rng.uniform(0.7, 1) * _disc(dot, rng.uniform(0.08, 0.115), pixel))
    return shape


def _single_calcification(rng: np.random.Generator, x: FloatImage, y: FloatImage, pixel: float) -> FloatImage:
    """Draw one bright dot."""
    return _disc(np.hypot(x, y), 0.8, pixel)


def _disc(distance: NDArray, radius: float, pixel: float) -> FloatImage:
    """Return an evenly bright disc; `distance` is that of each pixel from its centre. The edge is one pixel wide."""
    return np.clip((radius - distance) / pixel + 0.5, 0, 1)


@dataclass(frozen=True)
class LesionKind:
    """What all lesions of a kind have in common."""

    cancer: int  # 1 or 0
    radius: tuple[float, float]  # smallest and largest, as a share of the breast's height
    contrast: tuple[float, float]  # barely visible to clear; the same for a cancer and its look-alike
    shape: Callable[[np.random.Generator, FloatImage, FloatImage, float], FloatImage]


LESION_KINDS = {
    "spiculated_mass": LesionKind(1, (0.085, 0.13), (0.3, 0.95), _spiculated_mass),
    "smooth_mass": LesionKind(0, (0.038, 0.065), (0.3, 0.95), _smooth_mass),
    "microcalcification_cluster": LesionKind(1, (0.045, 0.065), (0.6, 1.5), _microcalcification_cluster),
    "single_calcification": LesionKind(0, (0.005, 0.009), (0.6, 1.5), _single_calcification),
    # In one breast alone it is a cancer, in both it is benign: only the other breast tells.
    "asymmetric_density": LesionKind(1, (0.08, 0.12), (0.3, 0.6), _density),
    "symmetric_density": LesionKind(0, (0.08, 0.12), (0.3, 0.6), _density),
    # Tissue that is projected onto other tissue looks like a malignant mass, but in one view alone.
    "overlap": LesionKind(0, (0.085, 0.13), (0.3, 0.95), _spiculated_mass),
}
