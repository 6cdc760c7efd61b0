"""The folder that keeps an ensemble, runs_dir/ensembles/<name>: its members and weights, and its scores."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsna_nb.config import ConfigError, resolve
from rsna_nb.ensemble.combine import WAYS, Ensemble
from rsna_nb.ensemble.model_pool import gather
from rsna_nb.evaluation import find_run, plain
from rsna_nb.runs import Run, RunError, load_run
from rsna_nb.system import write_whole

FOLDER = "ensembles"  # in runs_dir


def write(ensemble: Ensemble, runs_dir: str | Path, found: Mapping[str, Any]) -> Path:
    """Write an ensemble to the folder runs_dir/ensembles/<name>, and return that folder.

    ensemble.json has the members, their weights and the results in `found`; predictions.csv has its scores. Runs in
    `runs_dir` are named by their ids, others by their paths.

    Raises
    ------
    ConfigError
        If another ensemble has the name: it is not overwritten.
    """
    runs_dir = resolve(runs_dir).resolve()
    content = {
        "name": ensemble.name,
        "way": ensemble.way,
        "members": [
            {"name": name, "weight": weight, "runs": [_reference(run, runs_dir) for run in runs]}
            for (name, runs), weight in zip(ensemble.pool.members.items(), ensemble.weights.tolist(), strict=True)
        ],
    }
    folder = runs_dir / FOLDER / ensemble.name
    predictions = ensemble.predictions.to_csv(index=False).encode()
    content |= plain(found)
    if _is_other(folder, content, predictions):
        raise ConfigError(
            f"name: {folder} holds another ensemble of that name, with other runs, weights, scores or results. Give "
            "another name, or remove the folder"
        )
    # ensemble.json comes last: if it exists, the ensemble is complete.
    if len(ensemble.pool.rows):  # an imported detector may not have scored labelled images yet
        write_whole(folder / "predictions.csv", predictions)
    write_whole(folder / "ensemble.json", (json.dumps(content, indent=2) + "\n").encode())
    return folder


def _is_other(folder: Path, content: dict[str, Any], predictions: bytes) -> bool:
    """Whether a folder holds another ensemble, or other results of the same one."""
    try:
        before = json.loads((folder / "ensemble.json").read_text())
        now = json.loads(json.dumps(content))
        same = all(before[name] == value for name, value in now.items() if name in before)  # more may be added
        return not same or (folder / "predictions.csv").read_bytes() != predictions
    except FileNotFoundError:  # nothing yet, or a write that was cut off
        return False
    except ValueError:  # damaged, and perhaps worth repairing
        return True


def _reference(run: Run, runs_dir: Path) -> str:
    # An id, if it suffices, stays right when the whole folder is moved to another computer.
    return run.id if run.path.resolve().parent == runs_dir else str(run.path.resolve())


def load(name: str, runs_dir: str | Path = "runs") -> Ensemble:
    """An ensemble by its name, its folder or its ensemble.json, or a run as an ensemble of itself.

    "" is the newest run.

    Raises
    ------
    RunError
        If there is no such ensemble or run, one of its runs is missing, or ensemble.json is damaged.
    """
    for folder in (Path(name), resolve(runs_dir) / FOLDER / name) if name else ():
        path = folder if folder.name == "ensemble.json" else folder / "ensemble.json"
        if path.is_file():
            return _read(path)
    run = find_run(name, runs_dir)
    return Ensemble(run.id, "mean", gather([run]), np.ones(1))


def _read(path: Path) -> Ensemble:
    """The ensemble of a file that `write` wrote; its runs are searched in the same runs_dir."""
    try:
        content = json.loads(path.read_text())
        runs_dir = path.resolve().parents[2]
        runs = [load_run(run, runs_dir) for member in content["members"] for run in member["runs"]]
        weights = np.array([member["weight"] for member in content["members"]], dtype=float)
        name, way = str(content["name"]), str(content["way"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not an ensemble: {error!r}") from error
    ensemble = Ensemble(name, way, gather(runs), weights)
    if way not in WAYS or len(weights) != len(ensemble.pool.members):
        raise RunError(
            f"{path} is not an ensemble: {len(weights)} weights, the way {way}, members {ensemble.pool.names}"
        )
    return ensemble
