"""How much longer five folds take than one, when all of them use the same feature bank.

    python tests/bench/bench_folds.py [--women 64] [--size 224] [--epochs 35] [--folds 5] [--rounds 2]

The network is ResNet50V2 with random weights, with the recipe of 35 epochs. The images are prepared before; the
feature bank is recomputed each time. Rounds alternate which of the two comes first. The seconds are wall-clock time and
CPU time of this process, which depends less on what else the computer does.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from random_resnet import settings_in

from rsna_nb import runs
from rsna_nb.config import RunConfig
from rsna_nb.experiments import cross_validation
from rsna_nb.training import data
from rsna_nb.training import run as training


def seconds_of(config: RunConfig, folds: list[int], folder: Path) -> np.ndarray:
    """Seconds of each fold in wall-clock and CPU time, (folds, 2); the first fold makes the bank."""
    for bank in folder.glob("store/*.features"):
        shutil.rmtree(bank)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    training._graphs.clear()
    times = [now()]
    for fold in folds:
        cross_validation.cross_validate(config, [fold])
        times.append(now())
        print(f"fold {fold} of {folds}: {times[-1] - times[-2]} s", flush=True)
    return np.diff(times, axis=0)


def now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"women": 64, "size": 224, "epochs": 35, "folds": 5, "rounds": 2, "batch": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    runs.log_to_console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = RunConfig(
            **settings_in(folder, arguments.women),
            batch_size_per_gpu=arguments.batch,
            img_size=arguments.size,
            epochs=arguments.epochs,
            n_folds=arguments.folds,
            early_stopping_patience=0,
        )
        table, data_dir = data.split_table(config)
        images = len(data.prepare(config, table, data_dir).table)
        ways = {"one fold": [0], "all folds": list(range(arguments.folds))}
        times: dict[str, list[np.ndarray]] = {way: [] for way in ways}
        for turn in range(arguments.rounds):
            for way in list(ways)[:: -1 if turn % 2 else 1]:
                times[way].append(seconds_of(config, ways[way], folder))
    print(f"\n{images} images, {arguments.epochs} epochs, seconds\n")
    print("| round | measured by | one fold | all folds | ratio | fold by fold |")
    print("|---|---|---|---|---|---|")
    for turn, (alone, each) in enumerate(zip(*times.values(), strict=True)):
        for column, kind in enumerate(("clock", "CPU")):
            one, together = alone[:, column].sum(), each[:, column].sum()
            own = ", ".join(f"{seconds:.1f}" for seconds in each[:, column])
            print(f"| {turn + 1} | {kind} | {one:.1f} | {together:.1f} | {together / one:.2f} | {own} |")


if __name__ == "__main__":
    main()
