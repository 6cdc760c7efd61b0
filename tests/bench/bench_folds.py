"""What five folds through the feature bank cost beside one: ResNet50V2 with random weights, the 35-epoch recipe.

    python tests/bench/bench_folds.py [--women 64] [--size 224] [--epochs 35] [--folds 5] [--rounds 2]

Each begins without a bank, from a store that is there. Rounds alternate which of the two comes first.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import keras

from rsna_nb import cross_validation, data, runs, synthetic
from rsna_nb.config import RunConfig


def seconds_of(config: RunConfig, folds: list[int], folder: Path) -> list[float]:
    """Of each fold, from the first, which finds no bank, on."""
    for bank in folder.glob("store/*.features"):
        shutil.rmtree(bank)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    found = []
    for fold in folds:
        started = time.perf_counter()
        cross_validation.cross_validate(config, [fold])
        found.append(time.perf_counter() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"women": 64, "size": 224, "epochs": 35, "folds": 5, "rounds": 2, "batch": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    runs.log_to_console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generated = synthetic.generate(folder / "data", arguments.women, 0.4, seed=1, scale=0.1)
        keras.utils.set_random_seed(0)
        network = keras.applications.ResNet50V2(include_top=False, weights=None, input_shape=(224, 224, 3))
        network.save_weights(folder / "resnet50v2.weights.h5")
        config = RunConfig(
            data_dir=str(generated),
            store_dir=f"{folder}/store",
            runs_dir=f"{folder}/runs",
            weights=f"{folder}/resnet50v2.weights.h5",
            batch_size_per_gpu=arguments.batch,
            img_size=arguments.size,
            epochs=arguments.epochs,
            n_folds=arguments.folds,
            early_stopping_patience=0,
        )
        table, data_dir = data.split_table(config)
        images = len(data.prepare(config, table, data_dir).table)
        ways = {"one fold": [0], "all folds": list(range(arguments.folds))}
        times: dict[str, list[list[float]]] = {way: [] for way in ways}
        for turn in range(arguments.rounds):
            for way in list(ways)[:: -1 if turn % 2 else 1]:
                times[way].append(seconds_of(config, ways[way], folder))
    print(f"\n{images} images, {arguments.epochs} epochs, seconds of each fold\n")
    print("| round | one fold | all folds | ratio | fold by fold |")
    print("|---|---|---|---|---|")
    for turn, (one, all_folds) in enumerate(zip(*times.values(), strict=True)):
        own = ", ".join(f"{seconds:.1f}" for seconds in all_folds)
        print(f"| {turn + 1} | {sum(one):.1f} | {sum(all_folds):.1f} | {sum(all_folds) / sum(one):.2f} | {own} |")
    one, all_folds = (statistics.median(map(sum, found)) for found in times.values())
    print(f"\n{arguments.folds} folds take {all_folds / one:.2f} times what one takes (medians)\n")


if __name__ == "__main__":
    main()
