"""The pictures that an export is checked on, and the run's own scores of them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import cv2
import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb import evaluation, inference
from rsna_nb.config import resolve
from rsna_nb.dicom import DetectorError
from rsna_nb.export.formats import Scorer
from rsna_nb.model import Breasts, body_of, combination_of, head_of, score_breasts
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import image_file, store_path
from rsna_nb.runs import Run

log = logging.getLogger("rsna_nb.export")

PICTURES = 32
TOLERANCE = 1e-4  # largest difference of a score


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of a check.

    Attributes
    ----------
    images
        uint8 (pictures, height, width, 1), as the store has them.
    rows
        A row for each picture, with patient_id, laterality and view.
    origin
        What the pictures are, for the log and the model card.
    """

    images: np.ndarray
    rows: pd.DataFrame
    origin: str


@dataclass(frozen=True)
class Agreement:
    """How well an export agrees with its run.

    Attributes
    ----------
    difference
        The largest difference of a score from that of the run's model in float32.
    rounding
        The largest difference between that and the run's model in its own precision; 0 if that is float32.
    scores, lowest, highest
        The number and the range of the scores.
    origin
        What was scored.
    """

    difference: float
    rounding: float
    scores: int
    lowest: float
    highest: float
    origin: str

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} in {self.scores} scores from {self.lowest:.4f} to "
            f"{self.highest:.4f}, of {self.origin}"
        )


def pictures_of(run: Run) -> Pictures:
    """Return `PICTURES` of the run's own validation images from its store, or drawn ones if it has none."""
    try:
        return _validation_pictures(run)
    except (DetectorError, UnavailableError, OSError) as error:
        log.warning("the export is checked on drawn pictures, because validation images are not available: %s", error)
        return _drawn_pictures(run.config.image_shape)


def _validation_pictures(run: Run) -> Pictures:
    config, predictions = run.config, run.predictions
    store = store_path(resolve(config.store_dir), evaluation.data_folder(run), config.img_size, run.image_recipe)
    split = "validation" if (predictions["split"] == "validation").any() else "test"  # imported runs have no validation
    known = predictions[predictions["split"] == split]
    # All pictures of each woman, so that breasts are whole; in an order that does not depend on their scores.
    women = pd.Series(known["patient_id"].unique()).sample(frac=1, random_state=0)
    rows = known.set_index("patient_id", drop=False).loc[women].head(PICTURES).reset_index(drop=True)
    files = [str(image_file(store, *ids)) for ids in zip(rows["patient_id"], rows["image_id"], strict=True)]
    images = np.rint(255 * inference.read_images(files)).astype(np.uint8)
    return Pictures(images, rows, f"{len(images)} {split} images of the run")


def _drawn_pictures(shape: tuple[int, int]) -> Pictures:
    """Noise of several grain sizes; women have three pictures of one breast and two of the other, views vary."""
    random = np.random.default_rng(0)
    images = [
        cv2.resize(random.integers(0, 256, (side, side), np.uint8), shape[::-1], interpolation=cv2.INTER_CUBIC)
        for side in random.choice([2, 4, 8, 16, 32], PICTURES)
    ]
    number = np.arange(PICTURES)
    rows = pd.DataFrame(
        {
            "patient_id": [f"drawn {woman}" for woman in number // 5],
            "laterality": np.where(number % 5 < 3, "L", "R"),
            "view": np.array(["CC", "MLO", ""])[number % 3],
        }
    )
    return Pictures(np.array(images)[..., np.newaxis], rows, f"{PICTURES} drawn pictures")


def compare(score: Scorer, own: keras.Model, model: keras.Model, pictures: Pictures) -> Agreement:
    """Score the pictures by the export and by the run's model.

    The first is scored alone, the others in batches. Breasts have as many places as the longest of them needs.

    Parameters
    ----------
    score
        The export, as its own runtime reads it.
    own, model
        The run's model, and the same in float32, with which the export is compared.
    pictures
        What all of them score.
    """
    with _full_precision():
        expected, inputs = _scores(model, pictures), _inputs(model, pictures)
        rounding = 0.0 if own is model else float(np.abs(_scores(own, pictures) - expected).max())
        size = max(2, _batch_size(inputs[model.inputs[0].name]))
        ends = [0, *range(1, len(expected), size), len(expected)]
        parts = [score({name: values[a:b] for name, values in inputs.items()}) for a, b in pairwise(ends)]
    difference = float(np.abs(np.concatenate(parts)[:, 0] - expected).max())  # NaN if a score is not a number
    return Agreement(difference, rounding, len(expected), float(expected.min()), float(expected.max()), pictures.origin)


def _inputs(model: keras.Model, pictures: Pictures) -> dict[str, np.ndarray]:
    """The pictures as the export takes them."""
    names = [each.name for each in model.inputs]
    if len(names) == 1:
        return {names[0]: pictures.images}
    images, views = _breasts(model, pictures).all()
    return {names[0]: pictures.images[images], names[1]: views}


def _scores(model: keras.Model, pictures: Pictures) -> np.ndarray:
    """The scores of the pictures, or of their breasts, as `inference` computes them: float64 (n,)."""
    if len(model.inputs) == 1:
        return np.concatenate([inference.score(model, batch) for batch in _batches(pictures.images)])
    body = body_of(model)
    features = np.concatenate([body.predict_on_batch(batch) for batch in _batches(pictures.images)])
    return score_breasts(head_of(model), features.astype(np.float32), _breasts(model, pictures))


def _breasts(model: keras.Model, pictures: Pictures) -> Breasts:
    combination = combination_of(model)
    return Breasts.of(pictures.rows, "woman" if combination and combination.opposite else "breast")


def _batch_size(images: np.ndarray) -> int:
    return max(1, inference.BATCH_PIXELS // images[0].size)


def _batches(grey: np.ndarray) -> Iterator[np.ndarray]:
    """Yield 8-bit images in batches as the run takes them: float32 in 0-1."""
    size = _batch_size(grey)
    for start in range(0, len(grey), size):
        yield grey[start : start + size].astype(np.float32) / 255


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 as such: GPUs otherwise round the factors of a convolution to 10 bits, beyond `TOLERANCE`."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
