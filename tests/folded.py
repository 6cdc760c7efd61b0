"""Cross-validates as one process, which may kill itself: nothing is tidied up then. For tests of going on.

python -m tests.folded <JSON of settings> <step at which it is killed; 0 for never>
"""

import json
import sys

from rsna_nb.config import RunConfig
from rsna_nb.experiments import cross_validation
from tests.killed import kill_at


def main(settings: str, step: str) -> None:
    kill_at("step", int(step), "before")
    cross_validation.cross_validate(RunConfig(**json.loads(settings)))


if __name__ == "__main__":
    main(*sys.argv[1:])
