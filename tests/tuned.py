"""Works on a study as one process, which may kill itself: nothing is tidied up then. For tests of several processes.

python -m tests.tuned <JSON of settings> <study> <search> <trials> <step at which it is killed; 0 for never>
"""

import json
import sys

from rsna_nb.config import RunConfig
from rsna_nb.experiments import tuning
from tests.killed import kill_at


def main(settings: str, name: str, search: str, trials: str, step: str) -> None:
    kill_at("step", int(step), "before")
    plan = tuning.plan(RunConfig(**json.loads(settings)), name, "val_auc", search.split())
    tuning.tune(plan, int(trials))


if __name__ == "__main__":
    main(*sys.argv[1:])
