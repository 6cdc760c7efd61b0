"""The files of a published detector -> run folders, and an ensemble of them."""

import importlib.metadata
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import keras

from rsna_nb import dicom, ensemble, runs
from rsna_nb.backbones import WeightsError, read_tensors
from rsna_nb.config import ConfigError, RunConfig, is_folder_name, resolve
from rsna_nb.import_run.recipes import RECIPES, Recipe
from rsna_nb.model import build_model
from rsna_nb.runs import Run, RunError
from rsna_nb.system import digest, write_arrays

log = logging.getLogger(__name__)


def import_detector(
    files: Sequence[str | Path],
    recipe: str,
    reading: str = "",
    roi: str | Path = "",
    name: str = "",
    runs_dir: str | Path = "runs",
) -> list[Run]:
    """Make a run of each file of a published detector, and an ensemble of them if there are several.

    Nothing is written unless all files fit.

    Parameters
    ----------
    files
        The folds' files in their order, in a format that the setting `weights` takes, each with the head's tensors.
    recipe
        A key of `RECIPES`.
    reading
        The preprocessing, a value of the setting `reading`; "" is the published one.
    roi
        The file of the breast detector; "" for none.
    name
        Name of the ensemble, and part of the runs' ids; "" is the recipe, followed by `reading` if it differs.
    runs_dir
        Folder that contains the run folders.

    Returns
    -------
    The runs, one for each file.

    Raises
    ------
    ConfigError
        For an unknown recipe, a name that is taken or cannot be a folder's, or a `roi` that would not be used.
    DetectorError
        If `roi` holds another network than the breast detector.
    WeightsError
        If a file cannot be read or is not such a detector; the message names the file.
    RunError
        If these files were imported before.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}, not {recipe!r}")
    own = RECIPES[recipe]
    reading = reading or own.settings["reading"]
    if roi and reading == "breast":
        raise ConfigError('roi has no effect with reading "breast", which finds the breast without a detector')
    name = name or (recipe if reading == own.settings["reading"] else f"{recipe}-{reading}")
    folder = resolve(runs_dir)
    note = _note(recipe, [Path(file) for file in files], reading, Path(roi) if roi else None)
    _check_names(folder, name, note, len(files) > 1)
    configs = _configs(own, reading, name, len(files), str(runs_dir))
    detector = _tensors(Path(roi)) if roi else {}
    if reading != "breast" and not roi:
        log.warning("without --roi, Otsu's threshold crops images; published figures are with the breast detector")
    begun = datetime.now().strftime("%Y%m%d-%H%M%S")
    part = folder / f".import-{uuid.uuid4().hex[:8]}"  # `list_runs` does not look so deep
    try:
        for config, file in zip(configs, files, strict=True):
            _write_run(part / f"{begun}-{config.run_name}", config, Path(file), note, detector, own.head)
        made = [Run(folder / f"{begun}-{config.run_name}") for config in configs]
        for run in made:
            os.rename(part / run.id, run.path)  # fails if a run of this second has the name
            log.info("imported: %s", run.path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if len(made) > 1:
        pool = ensemble.gather(made)
        written = ensemble.write(ensemble.Ensemble.fit(pool, "mean", name), folder, {})
        log.info("the mean of the %d folds: %s; 09_submit and rsna_nb.predict take it by its name", len(made), written)
    return made


def _note(recipe: str, files: Sequence[Path], reading: str, roi: Path | None) -> dict[str, Any]:
    """Return the content of config/imported.json."""
    own = asdict(RECIPES[recipe])
    is_as_published = reading == own["settings"]["reading"]
    digests = [{"name": file.name, "sha256": _sha256(file)} for file in files]
    if len({each["sha256"] for each in digests}) < len(files):
        raise WeightsError(f"two of the files are the same: {', '.join(map(str, files))}")
    return {
        "recipe": recipe,
        **{name: own[name] for name in ("origin", "authors", "licence", "address", "published", "prevalence")},
        "threshold": own["threshold"] if is_as_published else None,
        "measured_here": "nothing: the published figures were not measured with this package",
        "unknown": "settings of the training that do not exist here or were not published have their defaults",
        "trained_on": own["trained_on"],
        "files": digests,
        "roi": {"name": roi.name, "sha256": _sha256(roi)} if roi else {},
        "reading": reading,
        "images": _images(is_as_published, roi),
        "rsna_nb": importlib.metadata.version("rsna_nb"),
    }


def _images(is_as_published: bool, roi: Path | None) -> str:
    """Say how the runs' images are made, compared with the published ones."""
    if not is_as_published:
        return "preprocessed by this project and not as published"
    return "made as published" if roi else "cropped by Otsu's threshold and not by the published breast detector"


def _sha256(file: Path) -> str:
    try:
        return digest(file)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}") from error


def _check_names(folder: Path, name: str, note: Mapping[str, Any], is_ensemble: bool) -> None:
    """Raise an error if the name is taken or not allowed, or the files were imported before."""
    if not name or not is_folder_name(name):
        raise ConfigError(f"name must consist of letters, digits, - _ . and not begin with a dot: {name!r}")
    known = [run for run in runs.readable_runs(folder) if run.imported]
    if same := [run.id for run in known if _contents(run.imported) == _contents(note)]:
        raise RunError(
            f"these files were imported before, as {', '.join(same)}: remove these folders of {folder} to repeat it"
        )
    if is_ensemble and (folder / "ensembles" / name).exists():
        raise ConfigError(f"the ensemble {folder / 'ensembles' / name} exists already: give another --name")


def _contents(note: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies an import: the digests of its files, and the reading."""
    return [file["sha256"] for file in note["files"]], note["roi"].get("sha256"), note["reading"]


def _configs(recipe: Recipe, reading: str, name: str, count: int, runs_dir: str) -> list[RunConfig]:
    """Return the settings of each run; a single file belongs to no fold."""
    common = dict(recipe.settings) | {"reading": reading, "runs_dir": runs_dir}
    if count == 1:
        return [RunConfig(**common, run_name=name)]
    return [RunConfig(**common, fold=fold, n_folds=count, run_name=f"{name}-fold{fold}") for fold in range(count)]


def _tensors(file: Path) -> dict[str, Any]:
    try:
        return read_tensors(file)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error


def _write_run(
    folder: Path, config: RunConfig, file: Path, note: Mapping[str, Any], detector: Mapping[str, Any], head: str
) -> None:
    """Write one run; `WeightsError` if the file does not fit, or its last layer does not have one output."""
    log.info("%s: %s", config.run_name, file)
    shape = next((each.shape for name, each in _tensors(file).items() if name.endswith(head)), None)
    if shape is None or shape[0] != 1:
        found = "is missing" if shape is None else f"has the shape {shape}"
        raise WeightsError(f"{file} is not a detector with one score: its last layer, {head}, {found}")
    model = build_model(config.replace(weights=str(file.resolve())))
    (folder / "checkpoints").mkdir(parents=True)
    model.save(folder / "checkpoints" / "best.keras")
    keras.backend.clear_session()  # else memory grows by a network with each fold
    config.to_json(folder / "config" / "config.json")
    if detector:
        write_arrays(folder / "checkpoints" / "roi.npz", detector)
        _check_detector(Run(folder), note["roi"]["name"])
    Run(folder).write_json("config/imported.json", {**note, "file": file.name})


def _check_detector(run: Run, file: str) -> None:
    """Raise `dicom.DetectorError`, which names the user's file, if it holds another network than the detector."""
    recipe = run.image_recipe
    try:
        dicom.reader_of(recipe)
    except dicom.DetectorError as error:
        raise dicom.DetectorError(str(error).replace(str(recipe.detector), file)) from error
