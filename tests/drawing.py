"""Draws trials of studies whose objective costs nothing, as one process of two, and prints them as JSON.

python -m tests.drawing <trials> <storage, or "-" for SQLite> <folder> [<storage> <folder> ...]

After its first trial of a study it waits until the other process has had one too, so that both have trials however
busy the machine is.
"""

import json
import sys
import time
from pathlib import Path

from rsna_nb.experiments.study import StudySpec, at_work, next_trial, open_study

WAIT = 120  # seconds, for the other process to come


def draw_all(folder: Path, storage: str, trials: int) -> dict[int, float]:
    """The value that each trial of this process drew, by the trial's number."""
    study = open_study(folder, storage, StudySpec(facts={}, first={"x": 0.5}, maximize=True, unpruned=0))
    drawn: dict[int, float] = {}
    with at_work(folder) as worker:
        while (trial := next_trial(study, folder, worker, trials, seed=0)) is not None:
            drawn[trial.number] = trial.suggest_float("x", 0, 1)
            study.tell(trial, drawn[trial.number])
            (folder / f"began-{worker}").touch()
            deadline = time.monotonic() + WAIT
            while len(list(folder.glob("began-*"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
    return drawn


def main(trials: str, *studies: str) -> None:
    pairs = zip(studies[::2], studies[1::2], strict=True)
    drawn = [draw_all(Path(folder), storage.strip("-"), int(trials)) for storage, folder in pairs]
    print(json.dumps(drawn))


if __name__ == "__main__":
    main(*sys.argv[1:])
