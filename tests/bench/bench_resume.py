"""Kills training with SIGKILL at random moments (in a step, in a save, while the bank is computed) and resumes it.

Prints, for one device and for two logical ones, the largest differences between the resumed runs and one that was not
interrupted: of the history (without timings), the weights and the scores. It fails above 0 on one device, or above 1e-5
on two.

    python tests/bench/bench_resume.py [--kills 20] [--seed 0] [--devices 1 2] [--unit image]
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package of the tests

import keras
import numpy as np

from rsna_nb import runs, synthetic
from rsna_nb.backbones.registry import build_backbone
from tests.small import ALL_KINDS_OF_STATE, TIMINGS

KILLED = Path(__file__).parents[1] / "killed.py"
TOLERANCE = {1: 0.0, 2: 1e-5}
NOT_COMPARED = [*TIMINGS, "phase"]


def train(devices: int, settings: dict[str, Any], *kill: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(KILLED), str(devices), json.dumps(settings), *map(str, kill)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def succeeded(answer: subprocess.CompletedProcess) -> dict[str, int]:
    """How often the process passed each place; exits if it failed."""
    if answer.returncode:
        raise SystemExit(answer.stderr[-3000:])
    return json.loads(answer.stdout.splitlines()[-1])


def weights(run: runs.Run) -> np.ndarray:
    model = keras.models.load_model(run.checkpoint, compile=False)
    return np.concatenate([array.ravel() for array in model.get_weights()])


def difference(run: runs.Run, whole: runs.Run) -> dict[str, float]:
    ours, theirs = (one.history.drop(columns=NOT_COMPARED) for one in (run, whole))
    found = {
        "history": float(np.abs(ours.to_numpy() - theirs.to_numpy()).max()) if ours.shape == theirs.shape else np.inf,
        "weights": float(np.abs(weights(run) - weights(whole)).max()),
        "scores": float(np.abs(run.predictions["score"].to_numpy() - whole.predictions["score"].to_numpy()).max()),
    }
    return {name: np.inf if np.isnan(value) else value for name, value in found.items()}


def measure(devices: int, settings: dict[str, Any], kills: int, moments: random.Random) -> None:
    folder = Path(settings["store_dir"]).parent
    totals = succeeded(train(devices, settings | {"runs_dir": str(folder / f"whole-{devices}")}))
    (whole,) = runs.list_runs(folder / f"whole-{devices}")
    worst: dict[str, float] = {}
    done = 0
    while done < kills:
        for bank in Path(settings["store_dir"]).glob("*.features"):
            shutil.rmtree(bank)
        place = moments.choice(sorted(totals))
        count, when = moments.randint(1, totals[place]), moments.choice(["before", "after"])
        own = settings | {"runs_dir": tempfile.mkdtemp(dir=folder)}
        answer = train(devices, own, place, count, when)
        if answer.returncode != -signal.SIGKILL:
            raise SystemExit(f"not killed at {place} {count} {when}: {answer.stderr[-3000:]}")
        stopped = runs.list_runs(own["runs_dir"])
        if not stopped:  # killed before there was a run
            continue
        succeeded(train(devices, {"resume": stopped[0].id, "runs_dir": own["runs_dir"]}))
        found = difference(stopped[0], whole)
        worst = {name: max(value, worst.get(name, 0.0)) for name, value in found.items()}
        print(f"  killed {when} {place} {count} of {totals[place]}: {found}", flush=True)
        done += 1
    print(f"{devices} device(s), {kills} kills, largest differences: {worst}", flush=True)
    if max(worst.values()) > TOLERANCE[devices]:
        raise SystemExit("a resumed run is not the uninterrupted one")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--unit", choices=["image", "breast", "woman"], default="image")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synthetic.generate(folder / "data", 24, 0.5, seed=1, scale=0.06, workers=1)
        keras.utils.set_random_seed(0)
        build_backbone("small", 64, "none").save_weights(folder / "small.weights.h5")
        settings = ALL_KINDS_OF_STATE | {"data_dir": str(data), "store_dir": str(folder / "stores")}
        settings |= {"unit": arguments.unit}
        settings["weights"] = str(folder / "small.weights.h5")
        for devices in arguments.devices:
            measure(devices, settings, arguments.kills, random.Random(arguments.seed))


if __name__ == "__main__":
    main()
