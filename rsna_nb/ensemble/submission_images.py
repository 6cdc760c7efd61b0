"""A model -> the images that it will score, and whether they are of the kind that it was trained on."""

import json
import logging
from pathlib import Path
from typing import Literal

import pandas as pd

from rsna_nb.ensemble.combine import Ensemble
from rsna_nb.ensemble.model_pool import KEY
from rsna_nb.ensemble.submission_file import SubmissionError, named, shown
from rsna_nb.evaluation import data_folder
from rsna_nb.metadata import find_data, kaggle, load_metadata
from rsna_nb.notebook import Markdown, UnavailableError
from rsna_nb.runs import Run

log = logging.getLogger(__name__)


def choose_data(ensemble: Ensemble, data_dir: str | Path = "") -> Path:
    """The folder whose images are scored.

    Parameters
    ----------
    ensemble
        The model.
    data_dir
        As for `metadata.find_data`, but "" is the mounted competition on Kaggle, and elsewhere the folder that the
        model's runs were trained on.

    Raises
    ------
    SubmissionError
        If the runs were trained on several folders, or theirs is not on this computer.
    """
    if data_dir:
        return find_data(data_dir)
    # On Kaggle the folder of training is never there, but the competition is mounted.
    try:
        folders = sorted({kaggle.mounted() or data_folder(run) for run in ensemble.pool.runs})
    except UnavailableError as error:
        raise SubmissionError(f"data_dir is empty, and the training data are not available: {error}") from error
    if len(folders) > 1:
        raise SubmissionError(f"data_dir is empty, and the runs were trained on several folders: {shown(folders)}")
    if not folders[0].is_dir():
        raise SubmissionError(f"data_dir is empty, and {folders[0]}, which the model was trained on, is not here")
    return folders[0]


def describe_data(ensemble: Ensemble, folder: Path) -> Markdown:
    """A sentence on which images are scored, with a warning if generated and real mammograms are mixed."""
    scored = (folder / "generated.json").is_file()  # synthetic.generate writes it
    trained = {run.id: trained_on_generated(run) for run in ensemble.pool.runs}
    kinds = {True: "generated mammograms", False: "real mammograms", None: "unknown images"}
    text = f"The images scored are the {kinds[scored]} in `{folder}`."
    if sources := sorted(
        {f"`{run.config.data_dir!r}`" for run in ensemble.pool.runs if run.config.data_dir and not run.imported}
    ):
        text += f" In training, `data_dir` was {', '.join(sources)}."
    if others := [name for name, generated in trained.items() if generated not in (scored, None)]:
        names = f"{', '.join(others)} {'was' if len(others) == 1 else 'were'}"
        warning = f"{names} trained on {kinds[not scored]}: these scores are not meaningful"
        log.warning(warning)  # for papermill, whose log is read and not its notebook
        return Markdown(f"{text} **{warning}.**")
    return Markdown(text)


def trained_on_generated(run: Run) -> bool | None:
    """Whether the run was trained on generated mammograms; None if unknown."""
    if run.imported:  # its environment.json describes the images that it scored; it was trained on real ones
        return False
    path = run.path / "config" / "environment.json"
    return json.loads(path.read_text()).get("generated") if path.is_file() else None


def images_of(
    ensemble: Ensemble, folder: Path, split: Literal["test", "validation"] = "test", table: str | Path = ""
) -> pd.DataFrame:
    """The images to score: a row for each with prediction_id and path.

    Parameters
    ----------
    ensemble
        The model.
    folder
        A data folder (`choose_data`).
    split
        "test" is test.csv. "validation" is the validation images of the model, from train.csv.
    table
        The table, or a folder that contains it, if it is not in the data folder (`metadata.load_metadata`). "" is where
        the model's own table was, if it was trained on the same folder.

    Raises
    ------
    MetadataError
        If the table has faults.
    SubmissionError
        For another split; if the validation images are not in the table; or if they belong to several folds, so that
        all but one of the fold models were trained on each.
    """
    if split not in ("test", "validation"):
        raise SubmissionError(f'split must be "test" or "validation", not {split!r}')
    table = table or _table_of_training(ensemble, folder)
    if split == "test":
        images = load_metadata(folder, "test", table=table)
    elif any(len(runs) > 1 for runs in ensemble.pool.members.values()):
        raise SubmissionError(f"{ensemble.name} has fold runs: all but one of them were trained on a validation image")
    else:
        images = validation_images(ensemble, folder, table)
    if "prediction_id" not in images:  # only RSNA's test.csv has it
        images["prediction_id"] = images["patient_id"] + "_" + images["laterality"]
    return images


def _table_of_training(ensemble: Ensemble, folder: Path) -> str:
    """The setting `table` of the model's runs, if it is one and they were trained on this folder; else ""."""
    tables = {run.config.table for run in ensemble.pool.runs if run.config.table and _is_trained_on(run, folder)}
    return tables.pop() if len(tables) == 1 else ""


def _is_trained_on(run: Run, folder: Path) -> bool:
    try:
        return data_folder(run) == folder
    except UnavailableError:
        return False


def validation_images(ensemble: Ensemble, folder: Path, table: str | Path = "") -> pd.DataFrame:
    """The rows of the ensemble's validation images with their files, `path`."""
    rows = ensemble.pool.rows[ensemble.pool.of("validation")].reset_index(drop=True)
    if rows.empty:
        raise SubmissionError(f"{ensemble.name} was imported and has no validation images")
    # A left join keeps the order of the rows, which the scores of the pool are in.
    found = rows.merge(load_metadata(folder, mixed_breasts="keep", table=table)[[*KEY, "path"]], on=KEY, how="left")
    missing = found.loc[found["path"].isna(), "image_id"]
    if len(missing):
        raise SubmissionError(
            f"{named(missing)} of the validation images are not in the table of {folder}: the model was trained on "
            "another table"
        )
    return found
