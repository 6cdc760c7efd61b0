"""A run and image files -> scores. Submissions, ensembles and explanations all score files through this module."""

import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd

from rsna_nb import backbones  # noqa: F401  Keras must know the layers of our backbones before it loads a model
from rsna_nb.dicom import image_names
from rsna_nb.model import OTHER_VIEW, Breasts, body_of, head_of, score_breasts
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import Picture, read_pictures
from rsna_nb.runs import Run, RunError
from rsna_nb.system import digest, progress

log = logging.getLogger(__name__)

Paths = str | Path | Iterable[str | Path]
Watch = Callable[[Sequence[int], np.ndarray, Sequence[keras.Model]], None]
BATCH_PIXELS = 16 * 512 * 512  # of the images scored together: ConvNeXt-small needs about 1 GB for them
ALONE = "woman or side unknown: scored as the only image of its breast"  # in the column notes
FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))  # axes of (n, height, width)


def load_model(run: Run) -> keras.Model:
    """Load the run's best model, not compiled; `model.build_model` describes its inputs and its output.

    Raises `RunError` if the run has none, or its file is damaged.
    """
    try:
        return keras.models.load_model(run.checkpoint, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            f"the model {run.checkpoint} cannot be loaded, restore the file or train again: {error}"
        ) from error


def predict(
    run: Run, paths: Paths, batch_size: int | None = None, flips: bool = False, images: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Score files with a run's best model.

    If the run's unit is "breast" or "woman", the files are grouped by breast, and each gets the score of its breast.

    Parameters
    ----------
    run
        A run that has a model; images are read at its img_size, with its preprocessing (`Run.image_recipe`).
    paths
        One file or several: DICOM, PNG, JPEG, TIFF or PGM. A file named twice gets two rows.
    batch_size
        Number of images scored together; None chooses as many as make `BATCH_PIXELS`, at least one.
    flips
        Whether a score is the mean over the image and its three mirror images, at four times the work.
    images
        For a run of unit "breast" or "woman": a row for each path, with patient_id, laterality and view. None finds
        them in the files' names and headers (`dicom.image_names`).

    Returns
    -------
    pandas.DataFrame
        A row for each file, in the order given: path, score (in 0-1; NaN if the file cannot be read), error (the
        reason, else "") and notes (what is odd about a readable file, in the words of `dicom.NOTES`, or `ALONE`; else
        "").

    Raises
    ------
    RunError
        If the run has no model.
    ValueError
        If batch_size is below 1, or a path is a folder.
    """
    return predict_by_runs([run], paths, batch_size, flips, images=images).rename(columns={run.id: "score"})


def predict_by_runs(
    runs: Sequence[Run],
    paths: Paths,
    batch_size: int | None = None,
    flips: bool = False,
    watch: Watch | None = None,
    images: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Score files with several runs, as `predict` does with one.

    The result has a column of scores for each run, named by its id. A file is read once for each img_size and
    preprocessing. `watch` is called after each batch with its rows in the result, its images and the models.
    Raises `RunError` if two of the runs have the same id, or a run's breast detector is missing.
    """
    ids = [run.id for run in runs]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise RunError(f"a run is named twice: {', '.join(twice)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    files = [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if folder := next((file for file in files if Path(file).is_dir()), None):
        raise ValueError(f'{folder} is a folder: name the files in it, as sorted(Path(folder).rglob("*.dcm")) does')
    df = pd.DataFrame({"path": files}, dtype=object).assign(**dict.fromkeys(ids, np.nan), error="", notes="")
    grouped = any(run.config.unit != "image" for run in runs)
    names, alone = df, pd.Series(False, index=df.index)
    if grouped:
        names, alone = _by_breast(image_names(files) if images is None else images, files)
    for alike in by_images(runs):
        # All models of the same images are loaded together, so that each file is decoded once: that takes most time.
        models, shape = {run.id: load_model(run) for run in alike}, alike[0].config.image_shape
        by_breast = {
            run.id: _BreastScorer(models[run.id], len(df), flips) for run in alike if run.config.unit != "image"
        }
        size = min(batch_size or max(1, BATCH_PIXELS // (shape[0] * shape[1])), max(len(df), 1))
        pictures = read_pictures(files, shape, alike[0].image_recipe)
        readings = _readable(progress(pictures, "scoring", len(df), "files"), df)
        while batch := list(islice(readings, size)):
            rows, grey = zip(*batch, strict=True)
            # The last batch is filled up to the size of the others: TensorFlow traces a model again for each size.
            filled = [*grey, *grey[:1] * (size - len(grey))]
            pixels = np.stack(filled)[..., np.newaxis].astype(np.float32) / 255  # 8 bits, as in training
            for name, model in models.items():
                if name in by_breast:
                    by_breast[name].add(rows, pixels)
                else:
                    df.loc[list(rows), name] = score(model, pixels, flips)[: len(rows)]
            if watch:
                watch(rows, pixels[: len(rows)], list(models.values()))
        for run in alike:
            if run.id in by_breast:
                df[run.id] = by_breast[run.id].scores(names, df, run.config.unit)
    noted = alone & (df["error"] == "")
    df.loc[noted, "notes"] = [f"{notes}; {ALONE}" if notes else ALONE for notes in df.loc[noted, "notes"]]
    return df


def _by_breast(images: pd.DataFrame, files: Sequence[str]) -> tuple[pd.DataFrame, pd.Series]:
    """The woman, side and view of each file, and whether its breast is unknown, so that it is one of its own."""
    names = images[["patient_id", "laterality", "view"]].reset_index(drop=True)
    if len(names) != len(files):
        raise ValueError(f"images has {len(names)} rows and must have one for each of the {len(files)} paths")
    alone = names["patient_id"].isin(["", None, np.nan]) | ~names["laterality"].isin(["L", "R"])
    if alone.any():
        log.warning("%d of %d files, first %s: %s", alone.sum(), len(files), files[int(alone.argmax())], ALONE)
    own = pd.Series([(row,) for row in names.index], dtype=object)  # a tuple is equal to no id
    women, sides = names["patient_id"].where(~alone, own), names["laterality"].where(~alone, "")
    return names.assign(patient_id=women, laterality=sides), alone


class _BreastScorer:
    """Collects the features of images in any order, and scores their breasts at the end."""

    def __init__(self, model: keras.Model, count: int, flips: bool) -> None:
        """`count` is the number of files: RSNA's 54,706 take 0.4 GB of 2,048 channels a run, and with flips 1.8 GB."""
        self.body, self.head = body_of(model), head_of(model)
        self.variants = FLIPS if flips else FLIPS[:1]
        self.features = np.zeros((len(self.variants), count, self.body.output_shape[-1]), np.float32)

    def add(self, rows: Sequence[int], images: np.ndarray) -> None:
        """Compute the features of images (n, height, width, 1); the first len(rows) of them are those of the rows."""
        for values, axes in zip(self.features, self.variants, strict=True):
            flipped = np.ascontiguousarray(np.flip(images, axes))
            values[list(rows)] = self.body.predict_on_batch(flipped)[: len(rows)]

    def scores(self, names: pd.DataFrame, df: pd.DataFrame, unit: str) -> np.ndarray:
        """The score of each file's breast, NaN if the file cannot be read. All images of a breast are flipped alike."""
        # A file that is named twice counts once in its breast.
        first = np.flatnonzero(~df["path"].duplicated())[pd.factorize(df["path"])[0]]
        used = np.flatnonzero((df["error"] == "").to_numpy() & (first == df.index))
        scores = np.full(len(df), np.nan)
        if len(used):
            breasts = Breasts.of(names.iloc[used], unit)
            each = [score_breasts(self.head, values[used], breasts) for values in self.features]
            scores[used] = np.mean(each, axis=0)[breasts.of_image]
        return scores[first]


def by_images(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that take the same images: of the same size and preprocessing."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        recipe = run.image_recipe
        try:  # each imported fold carries its own copy of one breast detector
            detector = digest(recipe.detector) if recipe.detector else ""
        except OSError as error:
            raise RunError(f"the breast detector of run {run.id} cannot be read: {error}") from error
        groups.setdefault((run.config.image_shape, recipe.name, detector), []).append(run)
    return list(groups.values())


def read_images(files: Iterable[str | Path]) -> np.ndarray:
    """Read images of the store: float32 (n, height, width, 1) in 0-1.

    Raises `UnavailableError` if a file is missing or is not an image.
    """
    images = []
    for file in files:
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise UnavailableError(f"the image {file} is missing or damaged: notebooks/00_prepare.ipynb makes it")
        images.append(image)
    return np.stack(images)[..., np.newaxis].astype(np.float32) / 255


def score_prepared(runs: Sequence[Run], files: Sequence[str]) -> pd.DataFrame:
    """Score images of a store with several runs of that img_size and preprocessing; a column for each run's id."""
    models = {run.id: load_model(run) for run in runs}
    height, width = runs[0].config.image_shape
    size = max(1, BATCH_PIXELS // (height * width))
    scores, starts = [], range(0, len(files), size)
    for start in progress(starts, "scoring", len(starts), "batches"):
        images = read_images(files[start : start + size])
        scores.append(np.stack([score(model, images) for model in models.values()], axis=1))
    return pd.DataFrame(np.concatenate(scores), columns=list(models))


def score(model: keras.Model, images: np.ndarray, flips: bool = False) -> np.ndarray:
    """Score prepared images; a model of breasts scores each as the only image of its breast, of an unknown view.

    Parameters
    ----------
    model
        As `load_model` or `model.build_model` return it.
    images
        float32 (n, height, width, 1) in 0-1.
    flips
        Whether a score is the mean over the image and its three mirror images.

    Returns
    -------
    numpy.ndarray
        float64 (n,), scores in 0-1.

    Examples
    --------
    >>> from rsna_nb.config import RunConfig
    >>> from rsna_nb.model import build_model
    >>> model = build_model(RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=64))
    >>> score(model, np.zeros((3, 64, 64, 1), np.float32), flips=True).shape
    (3,)
    """
    variants = [np.flip(images, axes) for axes in (FLIPS if flips else FLIPS[:1])]
    scores = []
    for variant in map(np.ascontiguousarray, variants):
        inputs = [variant[:, np.newaxis], np.full((len(variant), 1), OTHER_VIEW)] if len(model.inputs) > 1 else variant
        scores.append(model.predict_on_batch(inputs)[:, 0].astype(np.float64))
    return np.mean(scores, axis=0)


def _readable(readings: Iterable[tuple[int, Picture | str]], df: pd.DataFrame) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the files that could be read, and write their notes into `df`, or the reason why one cannot be read."""
    for row, outcome in readings:
        if isinstance(outcome, str):
            df.loc[row, "error"] = outcome
        else:
            df.loc[row, "notes"] = "; ".join(outcome.notes)
            yield row, outcome.image
