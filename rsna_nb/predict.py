"""A run or an ensemble and image files -> tables of scores: of the images, and of the breasts and women they show.

    python -m rsna_nb.predict <run or ensemble> <files or folders> [--out scores.csv] [--maps <folder>]
                              [--dicom <folder>] [--flips]

scores.csv          a row for each file: path, patient_id, laterality, view, score, probability, error, notes
scores-breasts.csv  a row for each breast: patient_id, laterality, images, unreadable, score, probability
scores-women.csv    a row for each woman, likewise

`score` is the raw score in 0-1. `probability` is the score corrected for class weights, or empty if the run's scores
cannot be corrected; it holds where cancer is as frequent as in the training data, which the log gives. A breast's score
is the mean of its images' scores, and a woman's the higher of her breasts'. A run whose unit is "breast" or "woman"
scores breasts by all their images, and each image has the score of its breast. A map of `--maps` shows each image as if
it were the only one of its breast.
`error` says why a file cannot be read, `notes` what is odd about one that can (`dicom.NOTES`). Patient id, side and
view are those of the file's name, else of its header. Where neither has a patient id, a folder whose name is a number,
as in RSNA's data, is the patient id. `--dicom` writes scores and maps as DICOM objects (docs/dicom_out.md);
`notes` says why a file has none. For research only, not for clinical use.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import keras
import numpy as np
import pandas as pd

from rsna_nb import dicom, inference
from rsna_nb.config import ConfigError
from rsna_nb.dicom_out import DicomOutError, DicomResults
from rsna_nb.ensemble import Ensemble, load, submission
from rsna_nb.explain import heat_maps
from rsna_nb.metrics import MetricsError
from rsna_nb.notebook import Unavailable, attempt
from rsna_nb.runs import RunError, log_to_console
from rsna_nb.system import make_folder, write_whole

log = logging.getLogger("rsna_nb.predict")  # not __name__, which is "__main__" when this is run as a command

DOCUMENTS = frozenset(".csv .tsv .json .xlsx .xls .md .rst .html .pdf .xml .py .ipynb .sh .zip".split())
OF_SYSTEMS = {"Thumbs.db", "desktop.ini"}  # files that Windows adds to folders
ORANGE = (0.0, 90.0, 255.0)  # blue, green, red, as cv2 writes them
DENSEST = 0.75  # share of orange where a map is highest


class Scores(NamedTuple):
    """The three tables of scores, as the module describes them."""

    images: pd.DataFrame
    breasts: pd.DataFrame
    women: pd.DataFrame


def score_files(
    model: Ensemble,
    files: Sequence[str],
    flips: bool = False,
    maps: str | Path | None = None,
    dicom_folder: str | Path | None = None,
) -> Scores:
    """Score files, and the breasts and women that they show.

    Parameters
    ----------
    model
        A run or an ensemble, from `ensemble.load`.
    files
        Image files, such as `image_files` finds.
    flips
        Whether a score is the mean over the image and its three mirror images.
    maps
        Folder for a heat map over each image, a PNG; None for none.
    dicom_folder
        Folder for the DICOM objects of `dicom_out`; None for none.

    Returns
    -------
    The images in the order of `files`, and the breasts and women sorted by id.

    Raises
    ------
    RunError
        If a run has no model.
    DicomOutError
        If `dicom_folder` is given and highdicom is missing.
    """
    runs = model.pool.runs
    names = dicom.image_names(files)
    results = _dicom_results(model, Path(dicom_folder), names.assign(path=files), flips) if dicom_folder else None
    watch = _map_writer(files, Path(maps) if maps else None, results) if maps or results else None
    scores = inference.predict_by_runs(runs, files, flips=flips, watch=watch, images=names)
    images = scores[["path"]].join(names).assign(score=model.scores(scores), probability=_probabilities(model, scores))
    images[["error", "notes"]] = scores[["error", "notes"]]
    if results:
        more = results.write_reports(images)
        images["notes"] = ["; ".join(filter(None, both)) for both in zip(images["notes"], more, strict=True)]
    breasts = _breasts_of(images)
    return Scores(images, breasts, _women_of(breasts))


def _probabilities(model: Ensemble, scores: pd.DataFrame) -> np.ndarray | float:
    """Return the scores corrected for class weights, (images,), or NaN if they cannot be corrected."""
    try:
        probabilities = model.prior_corrected().scores(scores)
    except (MetricsError, RunError) as error:
        log.info("no probabilities: %s", error)
        return np.nan
    share = attempt(submission.prevalence, model)
    if not isinstance(share, Unavailable):
        log.info("probabilities hold where %.1f %% of the breasts have cancer, as in the training data", 100 * share)
    return probabilities


def _breasts_of(images: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each breast whose woman and side are known; its score is the mean of its readable images'."""
    known = images[(images["patient_id"] != "") & (images["laterality"] != "")]
    if unknown := len(images) - len(known):
        log.info(
            "%d of %d files: neither name nor header tells the woman and the side, so no breast", unknown, len(images)
        )
    known = known.assign(unreadable=known["error"] != "")
    return known.groupby(["patient_id", "laterality"], as_index=False).agg(
        images=("path", "size"),
        unreadable=("unreadable", "sum"),
        score=("score", "mean"),
        probability=("probability", "mean"),
    )


def _women_of(breasts: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each woman with a breast; her score is the higher of her breasts'."""
    return breasts.groupby("patient_id", as_index=False).agg(
        images=("images", "sum"),
        unreadable=("unreadable", "sum"),
        score=("score", "max"),
        probability=("probability", "max"),
    )


def image_files(paths: Sequence[str | Path]) -> list[str]:
    """List files, and all files in folders, each once.

    Hidden files, and folders that hold only tables and documents, are left out; the latter are logged. Other files that
    are not images stay in the list: the table of scores gives the reason.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        found += _files_in(path) if path.is_dir() else [path]
    return list({os.path.abspath(path): str(path) for path in found}.values())


def _files_in(folder: Path) -> Iterator[Path]:
    left_out: list[str] = []
    seen: set[str] = set()  # links can lead back
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_log_unlisted):
        is_new = (real := os.path.realpath(place)) not in seen
        seen.add(real)
        folders[:] = sorted(name for name in folders if is_new and not name.startswith("."))
        if not is_new:
            continue
        names = sorted(name for name in names if not name.startswith(".") and name not in OF_SYSTEMS)
        if all(Path(name).suffix.lower() in DOCUMENTS for name in names):
            left_out += names
        else:
            yield from (Path(place) / name for name in names)
    if left_out:
        log.info("left out: %d tables and documents, such as %s", len(left_out), left_out[0])


def _log_unlisted(error: OSError) -> None:
    log.warning("a folder is left out, because it cannot be listed: %s", error)


def _dicom_results(model: Ensemble, folder: Path, images: pd.DataFrame, flips: bool) -> DicomResults:
    parameters = [f"run {run.id}" for run in model.pool.runs]
    parameters += ["mean over four mirror images"] if flips else []
    if any(run.config.unit != "image" for run in model.pool.runs):
        parameters.append("scored by all images of a breast: an image has the score of its breast")
    return DicomResults(folder, images, model.name, parameters)


def _map_writer(files: Sequence[str], folder: Path | None, results: DicomResults | None) -> inference.Watch:
    """Return a function that writes the maps of a batch: the mean over the models that take these images."""
    names, done = _map_names(files), set[int]()

    def write(rows: Sequence[int], images: np.ndarray, models: Sequence[keras.Model]) -> None:
        for row, image in zip(rows, images, strict=True):
            if row not in done:  # models of another image size come later
                done.add(row)
                found = np.mean([heat_maps(model, image[np.newaxis], flips=False)[0] for model in models], axis=0)
                picture = _overlay(image[..., 0], found / max(float(found.max()), 1e-9))
                if folder:
                    write_whole(folder / names[row], cv2.imencode(".png", picture)[1].tobytes())
                if results:
                    results.write_capture(row, np.ascontiguousarray(picture[..., ::-1]))

    return write


def _map_names(files: Sequence[str]) -> list[str]:
    """Return a path for each file's map: the file's own below the folder that all share."""
    paths = [os.path.abspath(file) for file in files]
    top = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [f"{os.path.relpath(path, top)}.png" for path in paths]


def _overlay(image: np.ndarray, heat_map: np.ndarray) -> np.ndarray:
    """Return an image in 0-1 with its map in orange, both (height, width), as uint8 in blue, green and red."""
    share = DENSEST * heat_map[..., np.newaxis]
    colour = 255 * image[..., np.newaxis] * (1 - share) + share * np.array(ORANGE)
    return np.rint(colour).astype(np.uint8)


def _warn_of_generated(model: Ensemble, files: Sequence[str]) -> None:
    """Warn of files that are not of a generated data set, if the model was trained on one."""
    places = [set(Path(file).resolve().parents) for file in files]
    generated = {folder for folder in set().union(*places) if (folder / "generated.json").is_file()}
    if any(generated.isdisjoint(each) for each in places):
        for run in model.pool.runs:
            if submission.trained_on_generated(run):
                log.warning("%s was trained on generated mammograms: its scores of others are meaningless", run.id)


def _write(scores: Scores, out: Path) -> None:
    """Write the tables; existing files with other content are kept under other names."""
    for table, ending in zip(scores, ("", "-breasts", "-women"), strict=True):
        path = out.with_name(f"{out.stem}{ending}{out.suffix}")
        content = table.to_csv(index=False).encode(errors="backslashreplace")  # a file's name may not be valid text
        if path.is_file() and path.read_bytes() != content:
            submission.set_aside(path)
        write_whole(path, content)
        log.info("written: %s, rows: %d", path, len(table))


def _shown(table: pd.DataFrame) -> str:
    """Return a table as text of at most 30 rows, without empty columns."""
    short = table.assign(path=table["path"].map(lambda path: Path(path).name)) if "path" in table else table
    useful = [name for name in short if (short[name].notna() & short[name].ne("")).any()]
    text, encoding = short[useful].to_string(index=False, max_rows=30, na_rep=""), sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. It exits with 1 if nothing could be scored, and with 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m rsna_nb.predict", description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run or an ensemble: name, id or path")
    parser.add_argument("paths", nargs="+", help="image files (DICOM, PNG, JPEG, TIFF, PGM), or folders of them")
    parser.add_argument(
        "--out", default="scores.csv", help="path of the table of images; the others are written beside it"
    )
    parser.add_argument("--maps", default="", help="folder for the images with their heat maps")
    parser.add_argument("--dicom", default="", help="folder for maps and scores as DICOM objects: needs highdicom")
    parser.add_argument("--flips", action="store_true", help="average over mirror images: four times the work")
    parser.add_argument("--runs-dir", default="runs", help="folder that contains the run folders and the ensembles")
    given = parser.parse_args(arguments)
    log_to_console()
    out = Path(given.out)
    if out.is_dir():
        parser.error(f"--out {out} is a folder: name a file")
    try:
        files = image_files(given.paths)
        model = load(given.run, given.runs_dir)
        for folder in filter(None, (str(out.parent), given.maps, given.dicom)):
            make_folder(Path(folder))  # now, because scoring takes long
        _warn_of_generated(model, files)
        earlier = set(Path(given.dicom).rglob("*.dcm")) if given.dicom else set()
        scores = score_files(model, files, given.flips, given.maps, given.dicom)
    except (ConfigError, dicom.DetectorError, DicomOutError, MetricsError, OSError, RunError) as error:
        parser.error(str(error))
    _write(scores, out)
    for table in scores:
        if len(table):
            print(_shown(table), end="\n\n")
    if given.maps:
        log.info("heat maps: %s", given.maps)
    if given.dicom:
        log.info("DICOM objects: %d in %s", len({*Path(given.dicom).rglob("*.dcm")} - earlier), given.dicom)
    readable = int(scores.images["error"].eq("").sum())
    log.info("scored: %d of %d files by %s, models: %d", readable, len(files), model.name, len(model.pool.runs))
    if not readable:
        sys.exit("error: no file could be scored")


if __name__ == "__main__":
    main()
