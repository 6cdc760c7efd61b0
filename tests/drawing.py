"""One of several processes that work on a study whose trials take no time. Prints its trials as JSON.

python -m tests.drawing <folder> <storage> <trials>

It waits until the folder has a file "go", so that all processes begin together.
"""

import json
import sys
import time
from pathlib import Path

from rsna_nb.experiments.study import StudySpec, at_work, next_trial, open_study


def main(folder: str, storage: str, trials: str) -> None:
    path = Path(folder)
    (path / f"ready-{time.time_ns()}").touch()
    while not (path / "go").exists():
        time.sleep(0.01)
    study = open_study(path, storage, StudySpec(facts={}, first={"x": 0.5}, maximize=True, unpruned=0))
    drawn = {}
    with at_work(path) as worker:
        while (trial := next_trial(study, path, worker, int(trials), seed=0)) is not None:
            drawn[trial.number] = trial.suggest_float("x", 0, 1)
            study.tell(trial, drawn[trial.number])
    print(json.dumps(drawn))


if __name__ == "__main__":
    main(*sys.argv[1:])
