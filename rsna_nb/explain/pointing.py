"""The pointing game: does the maximum of a heat map lie in a lesion? It needs known lesions, as in the generated set.

Zhang et al. 2016 (ECCV, Excitation Backprop) count a hit where a map's maximum lies in the box of an object, and allow
a tolerance of 15 pixels in photographs of about 500 pixels, to be fair to coarse maps. Here the default tolerance is 0:
the rule is stricter, and the same for the baselines. Two baselines need no network: a random point of the breast, whose
chance of a hit is the share of the breast that boxes cover, and the brightest point.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.evaluation import Evaluation, data_folder, store_of
from rsna_nb.explain.geometry import geometries_of
from rsna_nb.metadata import lesion_boxes
from rsna_nb.metrics import Interval, Women
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import image_file
from rsna_nb.runs import Run

KEY = ["patient_id", "image_id"]
NONE = np.empty((0, 4))
BASELINES = ("random", "brightest")
# Standard deviation of the smoothing before the brightest point is found, as a share of the longer side. Of 0.5 to 12
# pixels in images of 256 pixels, this hits most often on the demo set, which makes the baseline as strong as it can be.
SMOOTHING = 1 / 256


def known_boxes(run: Run, ids: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """The boxes of the cancers in each image, (lesions, 4) in pixels of the prepared image; (0, 4) where none is known.

    `ids` are pairs of patient_id and image_id. Raises `UnavailableError` if the data have no lesions.csv, or the
    store's ledger does not say where an image lies in its file.
    """
    boxes = lesion_boxes(data_folder(run))
    return [one.to_image(boxes.get(key, NONE)) for key, one in zip(ids, geometries_of(run, ids), strict=True)]


def targets(evaluation: Evaluation) -> pd.DataFrame:
    """The evaluated images with cancer whose lesions are known.

    Returns
    -------
    pandas.DataFrame
        The columns of the evaluation's predictions, `file` (the prepared image) and `boxes` (as `known_boxes`).

    Raises
    ------
    UnavailableError
        If no image with cancer has a known lesion, or if `known_boxes` raises it.
    """
    run = evaluation.run
    df = evaluation.predictions[evaluation.predictions["cancer"] == 1]
    ids = list(zip(df["patient_id"], df["image_id"], strict=True))
    store = store_of(run)
    boxes = pd.Series(known_boxes(run, ids), index=df.index, dtype=object)
    df = df.assign(boxes=boxes, file=[str(image_file(store, *key)) for key in ids])
    df = df[df["boxes"].map(len) > 0].reset_index(drop=True)
    if df.empty:
        raise UnavailableError(f"lesions.csv has no lesion in any of the {len(ids)} images with cancer")
    return df


def count_hits(targets: pd.DataFrame, images: np.ndarray, maps: np.ndarray, tolerance: float = 0) -> pd.DataFrame:
    """Count the hits of the pointing game.

    Parameters
    ----------
    targets
        As `targets` returns them.
    images, maps
        Their images (n, height, width, 1) and heat maps (n, height, width).
    tolerance
        Distance from a box in pixels of the image that still counts as a hit.

    Returns
    -------
    pandas.DataFrame
        A row for each target: patient_id, image_id, cancer; hits, 0 or 1, of `map` and `brightest`; and `random`, the
        chance that a random point of the breast hits.
    """
    rows = []
    for boxes, image, heat_map in zip(targets["boxes"], images[..., 0], maps, strict=True):
        covered, breast = _covered(boxes, image.shape, tolerance), image > 0
        smoothed = np.where(breast, cv2.GaussianBlur(image, (0, 0), SMOOTHING * max(image.shape)), -1)
        on_map = covered[highest(heat_map)] and heat_map.max() > 0  # an empty map points nowhere
        rows.append({"map": on_map, "random": covered[breast].mean(), "brightest": covered[highest(smoothed)]})
    return targets[[*KEY, "cancer"]].join(pd.DataFrame(rows, index=targets.index).astype(float))


def highest(values: np.ndarray) -> tuple[int, int]:
    """The row and column of the maximum."""
    row, column = np.unravel_index(np.argmax(values), values.shape)
    return int(row), int(column)


def hit_rates(hits: pd.DataFrame, n: int = 2000) -> dict[str, Interval]:
    """Shares of hits of `map`, `random` and `brightest`, and the differences between the map and each baseline.

    Intervals are over the women with cancer, exact where all or none hit (`metrics.exact_limits`). A difference is
    computed on the same bootstrap samples of women, so it is paired.

    Parameters
    ----------
    hits
        As `count_hits` returns them.
    n
        Number of bootstrap samples of women.

    Returns
    -------
    dict
        An interval for each of "map", "random", "brightest", "map - random" and "map - brightest".
    """
    women = Women.of(hits, "patient_id")  # images of one woman are not independent
    weights = women.drawn(n, seed=0)[:, women.codes].astype(float)

    def interval(values: pd.Series, is_share: bool) -> Interval:
        # Divided after the sum: with weights that sum to 1, rounding would make a share of 1 a little less.
        draws = weights @ values.to_numpy() / weights.sum(axis=1)
        count, share = women.positives, float(values.mean())
        found = metrics.draws_interval(share, draws, count, count, is_share=is_share)
        if not is_share or share not in (0, 1):
            return found
        low, high = metrics.exact_limits(share, count)
        return replace(found, low=low, high=high)

    shares = {name: interval(hits[name], True) for name in ("map", *BASELINES)}
    return shares | {f"map - {name}": interval(hits["map"] - hits[name], False) for name in BASELINES}


def _covered(boxes: np.ndarray, shape: tuple[int, int], tolerance: float = 0) -> np.ndarray:
    """True for the pixels of an image of `shape` whose centres lie in one of the boxes (n, 4), or that close to one."""
    y, x = np.arange(shape[0])[:, np.newaxis] + 0.5, np.arange(shape[1]) + 0.5
    covered = np.zeros(shape, bool)
    for x_min, y_min, x_max, y_max in boxes:
        distance = np.maximum(0, np.maximum(x_min - x, x - x_max)), np.maximum(0, np.maximum(y_min - y, y - y_max))
        covered |= np.hypot(*distance) <= tolerance
    return covered
