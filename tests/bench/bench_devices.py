"""Compares a run on one device with a run on two logical ones: same data, seed and global batch, no dropout.

Prints the largest difference of each metric in two epochs, for three recipes: a frozen backbone; synchronised batch
normalisation with a small learning rate; and the demo's, whose large first steps from random weights magnify
rounding errors.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from rsna_nb import runs
from rsna_nb.config import RunConfig
from rsna_nb.metadata import find_data
from rsna_nb.training import run as training

ROOT = Path(__file__).parents[2]
METRICS = ["loss", "auc", "val_loss", "val_auc", "val_pf1"]


def train_on(devices: int, path: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    training.train(RunConfig.from_json(path))


def compare(name: str, folder: str, changes: dict[str, Any]) -> None:
    demo = RunConfig.from_json(ROOT / "notebooks" / "params" / "demo.json")
    same = {"data_dir": str(find_data("")), "store_dir": f"{folder}/store", "dropout": 0.0, "epochs": 2}
    histories = []
    for devices in (1, 2):
        runs_dir = f"{folder}/{name}/{devices}"
        batch = demo.batch_size_per_gpu // devices
        config = demo.replace(**same | changes, runs_dir=runs_dir, batch_size_per_gpu=batch)
        config.to_json(f"{folder}/config.json")
        command = [sys.executable, __file__, str(devices), f"{folder}/config.json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        histories.append(runs.list_runs(runs_dir)[0].history)
    one, two = histories
    print(name, {metric: f"{(one[metric] - two[metric]).abs().max():.1e}" for metric in METRICS}, flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        keras.utils.set_random_seed(0)
        network = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(256, 256, 3))
        network.save_weights(f"{folder}/mobilenet.weights.h5")
        frozen = {"backbone": "mobilenet", "weights": f"{folder}/mobilenet.weights.h5", "freeze_backbone": True}
        compare("frozen backbone", folder, frozen | {"learning_rate": 1e-3})
        compare("synchronised batch normalisation, learning rate 1e-5", folder, {"learning_rate": 1e-5})
        compare("the demo's own recipe", folder, {})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_on(int(sys.argv[1]), sys.argv[2])
    else:
        main()
