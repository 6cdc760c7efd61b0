"""Two devices of one computer give the same run as one device."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rsna_nb import runs
from rsna_nb.config import RunConfig
from rsna_nb.training import train

DEVICES = """
import sys, tensorflow as tf
from rsna_nb import training
from rsna_nb.config import RunConfig

if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
    for path in sys.argv[2:]:
        print("run", training.train(RunConfig.from_json(path)).path)
"""
SAME = {"dropout": 0.0, "epochs": 2}
RECIPES = {
    "feature bank": {},
    "frozen backbone, focal loss": {"feature_bank": False, "imbalance": "focal", "positive_label": 0.9},
    "fine-tuning, balanced batches": {"epochs": 1, "fine_tune_epochs": 1, "imbalance": "balanced_batches"},
    "averaged weights, clipped gradients, two microbatches": {
        "feature_bank": False, "ema": 0.9, "clip_norm": 0.01, "gradient_accumulation": 2,
    },
    "synchronised batch normalisation": {"freeze_backbone": False, "weights": "none", "learning_rate": 1e-4},
    "breasts from the bank": {"unit": "breast", "combine": "attention"},
    "breasts beside the other one, two microbatches": {
        "unit": "woman", "feature_bank": False, "gradient_accumulation": 2, "imbalance": "balanced_batches",
    },
}  # fmt: skip


def train_on(devices: int, configs: list[RunConfig], folder: Path) -> list[runs.Run]:
    """Runs of a process with so many devices."""
    (folder / "devices.py").write_text(DEVICES)
    paths = [folder / f"{number}.json" for number in range(len(configs))]
    for config, path in zip(configs, paths, strict=True):
        config.to_json(path)
    command = [sys.executable, folder / "devices.py", str(devices), *paths]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return [runs.load_run(line[4:]) for line in answer.stdout.splitlines() if line.startswith("run ")]


@pytest.fixture(scope="module")
def on_two_devices(frozen_settings, tmp_path_factory) -> dict[str, runs.Run]:
    folder = tmp_path_factory.mktemp("devices")
    configs = [RunConfig(**frozen_settings | SAME | recipe | {"batch_size_per_gpu": 4}) for recipe in RECIPES.values()]
    return dict(zip(RECIPES, train_on(2, configs, folder), strict=True))


@pytest.mark.slow  # the fast tests compare a single step: test_two_devices_make_the_step_of_one in test_training_model
@pytest.mark.parametrize("name", RECIPES)
def test_two_devices_give_the_metrics_of_one(frozen_settings, on_two_devices, name):
    recipe, two = RECIPES[name], on_two_devices[name]
    one = train(RunConfig(**frozen_settings | SAME | recipe))
    assert len(json.loads(two.file("config/environment.json").read_text())["devices"]) == 2
    columns = ["loss", "val_loss"]
    if recipe.get("freeze_backbone", True):  # else scores that are nearly equal swap: one pair moves val_auc by 0.006
        columns += ["auc", "val_auc"]
    for column in columns:
        np.testing.assert_allclose(two.history[column], one.history[column], atol=1e-3, err_msg=column)
    np.testing.assert_allclose(two.predictions["score"], one.predictions["score"], atol=1e-3)
