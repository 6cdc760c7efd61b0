"""Times training from the feature bank by unit: images, breasts and breasts beside the other one.

The table has the shape of RSNA's: 54,706 images of 23,826 breasts of 11,913 women, 2 to 8 images a breast. Features are
drawn at random, 2,048 channels in four variants (1.8 GB), so the scores mean nothing. An epoch is that of the package:
training steps at its batch size, then the validation scores of a fifth of the women. All units run in one process, one
epoch of each in turn, so that other work on the computer slows all of them; the median is multiplied by the epochs.

    python tests/bench/bench_units.py [--epochs 35] [--channels 2048]
"""

import argparse
import statistics
import time

import keras
import numpy as np
import pandas as pd

from rsna_nb.config import RunConfig
from rsna_nb.model import Breasts, build_model, head_of, score_breasts
from rsna_nb.training.distribution import find_devices
from rsna_nb.training.features import Features
from rsna_nb.training.inputs import Examples
from rsna_nb.training.sampling import VARIANTS, Sampling, global_batch
from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model

WOMEN, IMAGES, WITH_CANCER = 11_913, 54_706, 0.0206
KINDS = [("image", "mean"), ("breast", "mean"), ("breast", "max"), ("breast", "attention"), ("woman", "attention")]


def table_like_rsna(seed: int = 0) -> pd.DataFrame:
    """Return a row for each image, with a CC and an MLO view of each breast and the further images spread at random."""
    random = np.random.default_rng(seed)
    count = np.full(2 * WOMEN, 2)
    while count.sum() < IMAGES:
        chosen = random.choice(np.flatnonzero(count < 8), min(IMAGES - count.sum(), WOMEN // 4), replace=False)
        count[chosen] += 1
    breast = np.repeat(np.arange(2 * WOMEN), count)
    place = np.arange(IMAGES) - np.repeat(np.cumsum(count) - count, count)
    cancer = random.random(2 * WOMEN) < WITH_CANCER
    return pd.DataFrame(
        {
            "patient_id": (breast // 2).astype(str),
            "laterality": np.where(breast % 2, "R", "L"),
            "view": np.where(place % 2, "MLO", "CC"),
            "cancer": cancer[breast].astype(int),
            "file": [f"{number}.png" for number in range(IMAGES)],
            "validation": breast // 2 % 5 == 0,
        }
    )


class Trial:
    """Training with one unit, an epoch at a time."""

    def __init__(self, unit: str, combine: str, table: pd.DataFrame, bank: Features, backbone: str) -> None:
        self.name, self.devices = unit if unit == "image" else f"{unit}, {combine}", find_devices()
        config = RunConfig(
            unit=unit, combine=combine, backbone=backbone, weights="none", freeze_backbone=False, img_size=32
        )
        rows, others = (table[table["validation"] == value].reset_index(drop=True) for value in (False, True))
        breasts = None if unit == "image" else Breasts.of(rows, unit)
        cancer = rows["cancer"] if breasts is None else breasts.table["cancer"]
        sampling = Sampling.of(config, cancer.to_numpy(), global_batch(config, 1, len(cancer)))
        path = ForwardPath(bank, head_of(build_model(config)), by_breast=breasts is not None)
        examples = Examples.of(cancer, {0: 1.0, 1: 1.0}, sampling, breasts)
        dataset = bank.training(rows, examples, 0, self.devices.share)
        self.model, self.steps = TrainingModel(path), sampling.steps
        compile_model(self.model, config, 1e-3, dataset.element_spec, self.devices)
        self.dataset, self.score = dataset, self._scorer(path, others, unit)

    def _scorer(self, path: ForwardPath, rows: pd.DataFrame, unit: str):
        if unit == "image":
            return path.scorer(rows, 256, self.devices)
        (head, features), breasts = path.features(rows, 256, self.devices), Breasts.of(rows, unit)
        return lambda: score_breasts(head, features(), breasts)

    def seconds(self) -> float:
        """Run the next epoch and return its time."""
        started = time.perf_counter()
        self.model.fit(self.dataset, steps_per_epoch=self.steps, epochs=1, shuffle=False, verbose=0)
        self.score()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--backbone", default="resnet50v2", help="gives the number of channels")
    given = parser.parse_args()
    table = table_like_rsna()
    channels = build_model(RunConfig(backbone=given.backbone, weights="none", freeze_backbone=False, img_size=32))
    channels = channels.get_layer("backbone").output_shape[-1]
    values = np.random.default_rng(1).random((IMAGES, VARIANTS, channels), np.float32)
    bank = Features(values, pd.Series(np.arange(IMAGES), index=table["file"]))
    trials = [Trial(*kind, table, bank, given.backbone) for kind in KINDS]
    keras.utils.set_random_seed(0)
    times: dict[str, list[float]] = {trial.name: [] for trial in trials}
    for epoch in range(given.epochs + 1):  # the first compiles and is not counted
        for trial in trials:
            seconds = trial.seconds()
            if epoch:
                times[trial.name].append(seconds)
    print(f"{IMAGES} images, {channels} channels, {given.epochs} epochs; seconds in all, by the median epoch")
    base = statistics.median(times[trials[0].name])
    for trial in trials:
        median = statistics.median(times[trial.name])
        print(f"{trial.name:18} {given.epochs * median:7.1f} s  {median / base:5.2f} x image  ({trial.steps} steps)")


if __name__ == "__main__":
    main()
