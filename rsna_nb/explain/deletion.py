"""Deletion and insertion curves: does what a map marks decide the score?

Petsiuk et al. 2018 (BMVC, RISE): take the places of a picture away in the order of the map, the highest first, and
watch the score fall (deletion); or give them back to a picture without any (insertion). A place is a patch of the
breast, and what stands for it is the blurred picture, in both: a black hole has edges, which a network may take for
a finding, and no mammogram has it. A map that marks what decides has a small area under the first curve and a large
one under the second; a random order of the same patches is the baseline.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

Score = Callable[[np.ndarray], np.ndarray]  # pictures (n, height, width, 1) in 0-1 -> scores (n,)
PATCHES = 16  # along a picture's longer side
STEPS = 20


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores (pictures, STEPS + 1) by the share of the breast's patches taken away, or given back, (STEPS + 1,).

    The random curves are means over several random orders.
    """

    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    @property
    def areas(self) -> pd.DataFrame:
        """Area under each curve, 0-1: a row a picture."""
        names = ("deletion", "random_deletion", "insertion", "random_insertion")
        return pd.DataFrame({name: np.trapezoid(getattr(self, name), self.shares, axis=1) for name in names})


def curves(score: Score, images: np.ndarray, heats: np.ndarray, draws: int = 4, seed: int = 0) -> Curves:
    """The curves of pictures (n, height, width, 1) by their maps (n, height, width).

    `draws` random orders a picture; it takes 42 scores a picture and order.
    """
    rng = np.random.default_rng(seed)
    found = np.stack([of_picture(score, *pair, draws, rng) for pair in zip(images[..., 0], heats, strict=True)])
    by_map, at_random = found[:, :, 0], found[:, :, 1:].mean(axis=2)  # (n, deletion or insertion, STEPS + 1)
    shares = np.linspace(0, 1, STEPS + 1)
    return Curves(shares, by_map[:, 0], by_map[:, 1], at_random[:, 0], at_random[:, 1])


def of_picture(score: Score, image: np.ndarray, heat: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Scores (deletion and insertion, order, STEPS + 1) of one picture; the first order is the map's."""
    side = -(-max(image.shape) // PATCHES)
    in_breast = np.flatnonzero(patch_means(image > 0, side) > 0)
    values = patch_means(heat, side).ravel()[in_breast]
    blurred = np.where(image > 0, cv2.GaussianBlur(image, (0, 0), side), image)
    both_ways = ((image, blurred), (blurred, image))
    orders = [rng.permutation(len(in_breast)) for _ in range(draws + 1)]
    orders[0] = np.lexsort((orders[0], -values))  # equal patches in a random order
    found = []
    for order in orders:
        ranks = np.full(patch_means(image, side).size, len(in_breast))
        ranks[in_breast[order]] = np.arange(len(in_breast))
        found.append([score(mixed(ranks, side, len(in_breast), *pair)) for pair in both_ways])
    return np.moveaxis(np.array(found), 0, 1)


def mixed(ranks: np.ndarray, side: int, patches: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(STEPS + 1, height, width, 1): from `before` to `after`, patch by patch, the lowest ranks first."""
    height, width = before.shape
    grid = ranks.reshape(-(-height // side), -(-width // side))
    pixels = grid.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    counts = np.rint(np.linspace(0, 1, STEPS + 1) * patches)[:, np.newaxis, np.newaxis]
    return np.where(pixels < counts, after, before)[..., np.newaxis].astype(np.float32)


def patch_means(values: np.ndarray, side: int) -> np.ndarray:
    """The mean of each patch of `side` pixels; those at the far edges, where it does not divide, are smaller."""
    height, width = values.shape
    padded = np.full((-(-height // side) * side, -(-width // side) * side), np.nan)
    padded[:height, :width] = values
    return np.nanmean(padded.reshape(padded.shape[0] // side, side, -1, side), axis=(1, 3))
