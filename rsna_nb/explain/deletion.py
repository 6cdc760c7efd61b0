"""Deletion and insertion curves: do the places that a heat map marks decide the score?

After Petsiuk et al. 2018 (BMVC, RISE). Patches of the breast are removed from the image in the order of the map, the
highest first, while the score is recorded (deletion), or are restored to an image without any of them (insertion). A
removed patch shows the blurred image instead: a black hole has edges that a network may mistake for a finding, and
that no mammogram has. A map that marks what decides the score has a small area under the deletion curve and a large one
under the insertion curve. The baseline is a random order of the same patches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

Score = Callable[[np.ndarray], np.ndarray]  # images (n, height, width, 1) in 0-1 -> scores (n,)
PATCHES = 16  # along an image's longer side
STEPS = 20
ORDERS = 4  # random orders for each image


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores of images as patches are removed or restored.

    Parameters
    ----------
    shares
        Share of the breast's patches removed or restored, (STEPS + 1,) from 0 to 1.
    deletion, insertion
        Scores in the order of the map, (images, STEPS + 1).
    random_deletion, random_insertion
        Mean scores over several random orders, (images, STEPS + 1).
    """

    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray

    @property
    def areas(self) -> pd.DataFrame:
        """Area under each curve, 0-1: a row for each image, a column for each curve."""
        names = ("deletion", "random_deletion", "insertion", "random_insertion")
        return pd.DataFrame({name: np.trapezoid(getattr(self, name), self.shares, axis=1) for name in names})


def perturb(scores: Sequence[Score], images: np.ndarray, maps: np.ndarray) -> Curves:
    """Compute the deletion and insertion curves of images.

    Parameters
    ----------
    scores
        For each image the function that scores changed versions of it. It is called with STEPS + 1 of them, twice for
        each order.
    images, maps
        (n, height, width, 1) and (n, height, width), both in 0-1.
    """
    rng = np.random.default_rng(0)
    found = np.stack([_of_image(*each, rng) for each in zip(scores, images[..., 0], maps, strict=True)])
    by_map, at_random = found[:, :, 0], found[:, :, 1:].mean(axis=2)  # (n, deletion or insertion, STEPS + 1)
    shares = np.linspace(0, 1, STEPS + 1)
    return Curves(shares, by_map[:, 0], by_map[:, 1], at_random[:, 0], at_random[:, 1])


def _of_image(score: Score, image: np.ndarray, heat_map: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores (deletion and insertion, order, STEPS + 1) of one image; the first order is the map's."""
    side = -(-max(image.shape) // PATCHES)
    # Patches of background are never removed: they carry no tissue, and would only flatten the curves.
    in_breast = np.flatnonzero(_patch_means(image > 0, side) > 0)
    values = _patch_means(heat_map, side).ravel()[in_breast]
    # A blur as wide as a patch removes what is smaller; the breast's outline stays, as the background is kept.
    blurred = np.where(image > 0, cv2.GaussianBlur(image, (0, 0), side), image)
    permutations = [rng.permutation(len(in_breast)) for _ in range(ORDERS + 1)]
    permutations[0] = np.lexsort((permutations[0], -values))  # patches of equal value are in random order
    scores = []
    for permutation in permutations:
        # Patches outside the breast get the last rank, which no step reaches.
        ranks = np.full(_patch_means(image, side).size, len(in_breast))
        ranks[in_breast[permutation]] = np.arange(len(in_breast))
        both = ((image, blurred), (blurred, image))
        scores.append([score(_mixed(ranks, side, len(in_breast), before, after)) for before, after in both])
    return np.moveaxis(np.array(scores), 0, 1)


def _mixed(ranks: np.ndarray, side: int, patches: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The steps from one image to another, patch by patch, the lowest ranks first: (STEPS + 1, height, width, 1)."""
    height, width = before.shape
    grid = ranks.reshape(-(-height // side), -(-width // side))
    pixels = grid.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    counts = np.rint(np.linspace(0, 1, STEPS + 1) * patches)[:, np.newaxis, np.newaxis]
    return np.where(pixels < counts, after, before)[..., np.newaxis].astype(np.float32)


def _patch_means(values: np.ndarray, side: int) -> np.ndarray:
    """The mean of each patch of `side` pixels; where these do not divide the image, the last ones are smaller."""
    height, width = values.shape
    padded = np.full((-(-height // side) * side, -(-width // side) * side), np.nan)
    padded[:height, :width] = values
    return np.nanmean(padded.reshape(padded.shape[0] // side, side, -1, side), axis=(1, 3))
