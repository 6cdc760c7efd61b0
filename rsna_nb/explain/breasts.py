"""The maps of all images of a breast, for runs whose network scores breasts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.evaluation import store_of
from rsna_nb.explain.maps import heat_maps
from rsna_nb.explain.pointing import known_boxes
from rsna_nb.inference import read_images
from rsna_nb.model import OPPOSITE, Breasts, body_of, head_of
from rsna_nb.notebook import Unavailable, attempt
from rsna_nb.prepare import image_file
from rsna_nb.runs import Run

BREAST = ["patient_id", "laterality"]
IDS = ["patient_id", "image_id"]


@dataclass(frozen=True, eq=False)
class ExplainedBreast:
    """All images that a network saw of a breast, as a person hangs them: CC, MLO, others, then the other breast's.

    Parameters
    ----------
    rows
        A row for each image, with the columns of predictions.csv.
    views
        int32 (n,), view codes (`model.Breasts`).
    images, maps
        (n, height, width, 1) and (n, height, width), both in 0-1; the maps have one scale.
    boxes
        For each image the boxes of its known lesions, (k, 4) in its pixels.
    """

    rows: pd.DataFrame
    views: np.ndarray
    images: np.ndarray
    maps: np.ndarray
    boxes: list[np.ndarray]

    @property
    def opposite(self) -> np.ndarray:
        """Whether an image is of the woman's other breast, bool (n,)."""
        return self.views > OPPOSITE

    def place(self, image: pd.Series) -> int:
        """The place of an image, which is named by its patient_id and image_id."""
        return int(np.flatnonzero((self.rows[IDS] == image[IDS]).all(axis=1))[0])

    def map_of(self, image: pd.Series) -> np.ndarray:
        """The map (height, width) of an image, which is named as for `place`."""
        return self.maps[self.place(image)]

    def scorer(self, model: keras.Model, place: int) -> Callable[[np.ndarray], np.ndarray]:
        """A function that scores the breast with other images (n, height, width, 1) in a place: float64 (n,)."""
        body, head = body_of(model), head_of(model)
        features = body.predict_on_batch(self.images)

        def score(images: np.ndarray) -> np.ndarray:
            breasts = np.repeat(features[np.newaxis], len(images), axis=0)
            breasts[:, place] = body.predict_on_batch(images)
            views = np.repeat(self.views[np.newaxis], len(images), axis=0)
            scores = head([tf.constant(breasts), tf.constant(views)], training=False)
            return scores.numpy()[:, 0].astype(np.float64)

        return score


def boxes_of(run: Run, rows: pd.DataFrame) -> list[np.ndarray]:
    """The boxes of the known lesions of each row's image, (k, 4) in its pixels; (0, 4) where none is known."""
    found = attempt(known_boxes, run, list(rows[IDS].itertuples(index=False, name=None)))
    # Lesions are known for generated data only; without them the maps are still worth showing.
    return [np.empty((0, 4))] * len(rows) if isinstance(found, Unavailable) else found


def explain_breasts(
    model: keras.Model, run: Run, rows: pd.DataFrame, method: str, flips: bool
) -> Iterator[tuple[tuple[str, str], ExplainedBreast]]:
    """Compute the maps of all images of the breasts that `rows` name: (patient_id, laterality) and the breast of each.

    The images are those of predictions.csv, from the store. A breast that `rows` name twice is yielded once.
    """
    store, predictions = store_of(run), run.predictions
    table = predictions[predictions["patient_id"].isin(rows["patient_id"])].reset_index(drop=True)
    breasts, boxes = Breasts.of(table, run.config.unit), boxes_of(run, table)
    wanted = set(_keys(rows))
    for key, images, views in zip(_keys(breasts.table), *breasts.all(), strict=True):
        if key not in wanted:
            continue
        order = np.argsort(views, kind="stable")[(views == 0).sum() :]  # the codes are in the order of hanging
        shown = table.iloc[images[order]].reset_index(drop=True)
        pictures = read_images(image_file(store, *ids) for ids in shown[IDS].itertuples(index=False, name=None))
        maps = heat_maps(model, pictures, method, flips, views[np.newaxis, order])
        yield key, ExplainedBreast(shown, views[order], pictures, maps, [boxes[row] for row in images[order]])


def breasts_of(
    model: keras.Model, run: Run, rows: pd.DataFrame, method: str, flips: bool
) -> tuple[np.ndarray, list[ExplainedBreast]]:
    """The map of each row's image within its breast, (n, height, width), and the breast of each row."""
    found = dict(explain_breasts(model, run, rows, method, flips))
    breasts = [found[key] for key in _keys(rows)]
    return np.stack([one.map_of(row) for one, (_, row) in zip(breasts, rows.iterrows(), strict=True)]), breasts


def maps_in_breasts(model: keras.Model, run: Run, rows: pd.DataFrame, method: str, flips: bool) -> np.ndarray:
    """The map of each row's image within its breast, (n, height, width); the breasts are those of predictions.csv.

    The images and feature maps of one breast are held in memory at a time.
    """
    # NaN, so that a row whose breast is missing would be no map that counts.
    maps, keys = np.full((len(rows), *run.config.image_shape), np.nan, np.float32), _keys(rows)
    for key, breast in explain_breasts(model, run, rows, method, flips):
        for number in (row for row, one in enumerate(keys) if one == key):
            maps[number] = breast.map_of(rows.iloc[number])
    return maps


def _keys(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(rows[BREAST].itertuples(index=False, name=None))
