"""The pointing game: does the highest place of a map lie in a lesion? Where lesions are known, as in the generated set.

Zhang et al. 2016 (ECCV, Excitation Backprop) count a hit where a map's maximum lies in a box of what was to be found,
and allow 15 pixels beside it, in photographs of about 500, to be fair to coarse maps. Here nothing is allowed: it is
the harder rule, and the same for the baselines. Two baselines need no network: a random point of the
breast, whose chance of a hit is the share of the breast that boxes cover, and the brightest point.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.config import resolve
from rsna_nb.evaluation import PREPARE_FIRST, Evaluation, data_folder
from rsna_nb.explain.geometry import Geometry
from rsna_nb.metrics import Interval, Women
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import image_file, store_path
from rsna_nb.prepare import ledger as ledgers
from rsna_nb.runs import Run

KEY = ["patient_id", "image_id"]
BOX = ["x_min", "y_min", "x_max", "y_max"]
BASELINES = ("random", "brightest")
# The standard deviation that noise is smoothed by for the brightest point, of the longer side: of 0.5 to 12 pixels of
# 256 the one that hits most often on the demo set's validation women, so that the baseline is as strong as it can be.
SMOOTHING = 1 / 256


def read_lesions(data_dir: str | Path) -> pd.DataFrame:
    """The lesions of lesions.csv that are cancer: patient_id, image_id, and the box in pixels of the file, half open.

    `UnavailableError` where there is no such table, or it lacks a column.
    """
    path = Path(data_dir) / "lesions.csv"
    if not path.is_file():
        raise UnavailableError(f"the data have no table of lesions, {path}")
    df = pd.read_csv(path, dtype=dict.fromkeys(KEY, str))
    missing = sorted({*KEY, *BOX, "cancer"} - set(df))
    if missing:
        raise UnavailableError(f"{path} lacks the columns {', '.join(missing)}")
    return df.loc[df["cancer"] == 1, KEY + BOX].reset_index(drop=True)


def known_boxes(run: Run, ids: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """The boxes of the cancers in each image (patient_id, image_id), (lesions, 4) in pixels of its prepared picture.

    An image without a known lesion has (0, 4). `UnavailableError` where the data have no lesions.csv, or the store's
    ledger does not say where a picture lies in its file.
    """
    config, folder = run.config, data_folder(run)
    boxes = {key: df[BOX].to_numpy(float) for key, df in read_lesions(folder).groupby(KEY)}
    store = store_path(resolve(config.store_dir), folder, config.img_size)
    ledger = ledgers.read(store)
    gone = [key for key in ids if key not in ledger or ledger[key].status != "ok"]
    if gone:
        first = "/".join(gone[0])
        raise UnavailableError(
            f"{store / 'ledger.csv'} does not say where {len(gone)} pictures lie, first {first}: {PREPARE_FIRST}"
        )
    return [Geometry.of(ledger[key], config.image_shape).to_picture(boxes.get(key, np.empty((0, 4)))) for key in ids]


def targets(evaluation: Evaluation) -> pd.DataFrame:
    """The evaluation's images with cancer whose lesions are known: its columns, `file`, and `boxes` (`known_boxes`).

    `UnavailableError` where there are none, or `known_boxes` or the store lacks something.
    """
    run = evaluation.run
    df = evaluation.predictions[evaluation.predictions["cancer"] == 1]
    ids = list(zip(df["patient_id"], df["image_id"], strict=True))
    df = df.assign(boxes=pd.Series(known_boxes(run, ids), index=df.index, dtype=object))
    df = df[df["boxes"].map(len) > 0].reset_index(drop=True)
    if df.empty:
        raise UnavailableError(f"lesions.csv has no lesion in any of the {len(ids)} images with cancer")
    store = store_path(resolve(run.config.store_dir), data_folder(run), run.config.img_size)
    return df.assign(file=[str(image_file(store, *key)) for key in zip(df["patient_id"], df["image_id"], strict=True)])


def play(targets: pd.DataFrame, images: np.ndarray, heats: np.ndarray, tolerance: float = 0) -> pd.DataFrame:
    """A row a target: patient_id, image_id, cancer, and the hits 0 or 1 of `map` and `brightest`, the chance `random`.

    Parameters
    ----------
    targets
        As `targets` returns them, pictures (n, height, width, 1) and maps (n, height, width) in their order.
    tolerance
        Pixels of the picture that a point may lie beside a box.
    """
    rows = []
    for boxes, image, heat in zip(targets["boxes"], images[..., 0], heats, strict=True):
        covered, breast = cover(boxes, image.shape, tolerance), image > 0
        found = {"map": covered[highest(heat)] and heat.max() > 0, "random": covered[breast].mean()}
        rows.append(found | {"brightest": covered[brightest(image)]})
    return targets[[*KEY, "cancer"]].join(pd.DataFrame(rows, index=targets.index).astype(float))


def cover(boxes: np.ndarray, shape: tuple[int, int], tolerance: float = 0) -> np.ndarray:
    """True for the pixels of a picture of `shape` whose centres lie in one of the boxes (n, 4), or so close to one."""
    y, x = np.arange(shape[0])[:, np.newaxis] + 0.5, np.arange(shape[1]) + 0.5
    covered = np.zeros(shape, bool)
    for x_min, y_min, x_max, y_max in boxes:
        beside = np.maximum(0, np.maximum(x_min - x, x - x_max)), np.maximum(0, np.maximum(y_min - y, y - y_max))
        covered |= np.hypot(*beside) <= tolerance
    return covered


def highest(values: np.ndarray) -> tuple[int, int]:
    """(row, column) of the maximum."""
    row, column = np.unravel_index(np.argmax(values), values.shape)
    return int(row), int(column)


def brightest(image: np.ndarray) -> tuple[int, int]:
    """The brightest point of the slightly smoothed breast, (row, column)."""
    return highest(np.where(image > 0, cv2.GaussianBlur(image, (0, 0), SMOOTHING * max(image.shape)), -1))


def hit_rates(hits: pd.DataFrame, n: int = 2000, seed: int = 0) -> dict[str, Interval]:
    """Shares of hits of `map`, `random` and `brightest` (`play`), and by how much the map's is above each baseline's.

    Intervals are over the women with cancer, exact where all or none hit (`metrics.exact_limits`); a difference is of
    the same draws of women, and so paired.
    """
    women = Women.of(hits, "patient_id")
    weights = women.drawn(n, seed)[:, women.codes].astype(float)

    def interval(values: pd.Series, is_share: bool) -> Interval:
        draws = weights @ values.to_numpy() / weights.sum(axis=1)  # so divided, all hits are 1 and not a little less
        count, share = women.positives, float(values.mean())
        found = metrics.draws_interval(share, draws, count, count, is_share=is_share)
        if not is_share or share not in (0, 1):
            return found
        low, high = metrics.exact_limits(share, count)
        return replace(found, low=low, high=high)

    shares = {name: interval(hits[name], True) for name in ("map", *BASELINES)}
    return shares | {f"map less {name}": interval(hits["map"] - hits[name], False) for name in BASELINES}
