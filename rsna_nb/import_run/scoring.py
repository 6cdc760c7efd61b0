"""An imported run and labelled images -> predictions.csv and metrics.json, which its evaluation needs."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_nb import ensemble, inference, metrics, runs
from rsna_nb.config import resolve
from rsna_nb.metadata import describe, find_data, load_metadata
from rsna_nb.prepare import image_file, prepare_images, store_path
from rsna_nb.runs import Run, RunError
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)


def score_labelled(
    name: str | Path,
    data_dir: str | Path,
    table: str | Path = "",
    runs_dir: str | Path = "runs",
    store_dir: str | Path = "",
    other_women: bool = False,
) -> list[Run]:
    """Score all labelled images of a data set with an imported run or ensemble; its women become the test women.

    Images are prepared as for training. predictions.csv, metrics.json and environment.json are written into each run,
    and data_dir, table and store_dir into its config.json.

    Parameters
    ----------
    name
        An imported run or an ensemble of such runs: name, id or path.
    data_dir, table, runs_dir, store_dir
        As the settings of these names; `store_dir` "" is the run's own setting.
    other_women
        The caller's statement that the detector was not trained on these women, although the data set looks like one
        that it was trained on. It is recorded, and 04 shows it.

    Returns
    -------
    The runs that scored the images.

    Raises
    ------
    RunError
        If a run was not imported, has scores already, or was trained on this data set, the runs take different images,
        or no image can be read.
    ConfigError, KaggleError, MetadataError, PrepareError
        If the settings or the data are wrong.
    """
    model = ensemble.load(str(name), runs_dir)
    scored = model.pool.runs
    for run in scored:
        if not run.imported:
            raise RunError(f"run {run.id} was trained here and has scored its validation and test women already")
        if (run.path / "predictions.csv").is_file():
            raise RunError(
                f"run {run.id} has scored {run.config.data_dir} already: to score other images, remove "
                f"{run.path / 'predictions.csv'} first"
            )
    if len(inference.by_images(scored)) > 1:
        raise RunError(f"the runs of {name} take images of several sizes or readings: score each run by its own id")
    folder = find_data(data_dir)
    about = _about(scored[0], folder, other_women)
    given = {"data_dir": str(data_dir), "table": str(table)} | ({"store_dir": str(store_dir)} if store_dir else {})
    configs = {run.id: run.config.replace(**given) for run in scored}
    config, recipe = configs[scored[0].id], scored[0].image_recipe
    df = load_metadata(folder, "train", table=table)
    store_root = resolve(config.store_dir)
    ledger = prepare_images(df, folder, store_root, config.img_size, recipe=recipe)
    rows = df[(ledger["status"] == "ok").to_numpy()].assign(split="test").reset_index(drop=True)
    if rows.empty:
        raise RunError(f"none of the {len(df)} images in {folder} can be read, first: {ledger['error'].iloc[0]}")
    store = store_path(store_root, folder, config.img_size, recipe)
    files = [str(image_file(store, *ids)) for ids in zip(rows["patient_id"], rows["image_id"], strict=True)]
    scores = inference.score_prepared(scored, files)
    about |= runs.environment([]) | runs.fingerprints(rows, ledger)
    for run in scored:
        configs[run.id].to_json(run.path / "config" / "config.json")
        run.write_json("config/environment.json", about)
        _write_scores(run, rows.assign(score=scores[run.id]), len(df) - len(rows))
    if len(scored) > 1:
        ensemble.write(ensemble.load(str(name), runs_dir), runs_dir, {})
    return [Run(run.path) for run in scored]


def _about(run: Run, folder: Path, other_women: bool) -> dict[str, Any]:
    """Return what environment.json says of the data; `RunError` if the detector was trained on such data."""
    layout, generated = describe(folder), (folder / "generated.json").is_file()
    reason = "" if generated else run.imported["trained_on"].get(layout.name, "")
    if reason and not other_women:
        raise RunError(
            f"{folder} looks like {layout.name}, on which this detector cannot be evaluated, because {reason}. If it "
            "has other women, add --other-women; 04 will show this statement"
        )
    stated = f"The data look like {layout.name}; the user stated that these are other women" if reason else ""
    return {"generated": generated, "layout": layout.name, "label": layout.label, "other_women": stated}


def _write_scores(run: Run, predictions: pd.DataFrame, unreadable: int) -> None:
    """Write predictions.csv and metrics.json of the run."""
    write_whole(run.path / "predictions.csv", predictions.drop(columns="path").to_csv(index=False).encode())
    positives = int(predictions["cancer"].sum())
    counts = {"unreadable": unreadable, "images": {"test": len(predictions)}, "positives": {"test": positives}}
    run.write_json("metrics.json", counts | {"pf1_prior_corrected": False, "test": metrics.summary(predictions)})
    log.info("scored: %s", run.path / "predictions.csv")
