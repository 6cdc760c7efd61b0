"""A run and DICOM files -> scores: the one way in which submissions, ensembles and explanations score files."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from rsna_nb import backbones  # noqa: F401  Keras must know the layers of our backbones to load them
from rsna_nb.prepare import read_pictures
from rsna_nb.runs import Run, RunError

FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))  # axes of (n, height, width)


def load_model(run: Run) -> keras.Model:
    """The run's best model, (batch, height, width, 1) in 0-1 -> (batch, 1); not compiled."""
    return keras.models.load_model(run.checkpoint, compile=False)


def predict(run: Run, paths: Sequence[str | Path], batch_size: int = 16, flips: bool = False) -> pd.DataFrame:
    """Score DICOM files with a run's best model.

    Parameters
    ----------
    run
        A finished run; its img_size is used.
    paths
        DICOM files.
    batch_size
        Pictures that are scored together.
    flips
        Whether a score is the mean over the picture and its three mirror images, at four times the work.

    Returns
    -------
    One row a file, in their order: path, score (probability of cancer, NaN where the file cannot be read)
    and error (the reason, else "").

    Raises
    ------
    RunError
        Where the run has no model.
    ValueError
        Where batch_size is below 1.
    """
    return predict_by_runs([run], paths, batch_size, flips).rename(columns={run.id: "score"})


def predict_by_runs(
    runs: Sequence[Run], paths: Sequence[str | Path], batch_size: int = 16, flips: bool = False
) -> pd.DataFrame:
    """As `predict`, by several runs, a column of scores for each by its id; a file is read once for each img_size.

    `RunError` where two of the runs have the same id.
    """
    ids = [run.id for run in runs]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise RunError(f"a run is named twice: {', '.join(twice)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    df = pd.DataFrame({"path": [str(path) for path in paths]}).assign(**dict.fromkeys(ids, np.nan), error="")
    for shape in dict.fromkeys(run.config.image_shape for run in runs):
        models = {run.id: load_model(run) for run in runs if run.config.image_shape == shape}
        readings = tqdm(read_pictures(list(df["path"]), shape), "scoring", len(df), unit=" files", mininterval=1)
        pictures = readable(readings, df)
        while batch := list(islice(pictures, batch_size)):
            rows, grey = zip(*batch, strict=True)
            filled = [*grey, *grey[:1] * (min(batch_size, len(df)) - len(grey))]  # one size: a model is traced once
            images = np.stack(filled)[..., np.newaxis].astype(np.float32) / 255  # as in training, from the store
            for name, model in models.items():
                df.loc[list(rows), name] = score(model, images, flips)[: len(rows)]
    return df


def readable(readings: Iterable[tuple[int, np.ndarray | str]], df: pd.DataFrame) -> Iterator[tuple[int, np.ndarray]]:
    """The files that have a picture; why the others have none goes into their rows of `df`."""
    for row, picture in readings:
        if isinstance(picture, str):
            df.loc[row, "error"] = picture
        else:
            yield row, picture


def score(model: keras.Model, images: np.ndarray, flips: bool = False) -> np.ndarray:
    """Probabilities, float64 (n,), of float32 images (n, height, width, 1) in 0-1."""
    variants = [np.flip(images, axes) for axes in (FLIPS if flips else FLIPS[:1])]
    scores = [model.predict_on_batch(np.ascontiguousarray(variant))[:, 0].astype(np.float64) for variant in variants]
    return np.mean(scores, axis=0)
