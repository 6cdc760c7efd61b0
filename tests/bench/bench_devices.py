"""The demo's recipe on one device and on two logical ones: same data, seed and global batch, dropout 0.

Prints the largest difference of each metric over two epochs, for a network with synchronised batch normalisation.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorflow as tf

from rsna_nb import runs, training
from rsna_nb.config import RunConfig
from rsna_nb.metadata import find_data

ROOT = Path(__file__).parents[2]


def train_on(devices: int, path: str) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    training.train(RunConfig.from_json(path))


def main() -> None:
    demo = RunConfig.from_json(ROOT / "notebooks" / "params" / "demo.json")
    histories = []
    with tempfile.TemporaryDirectory() as folder:
        for devices in (1, 2):
            config = dataclasses.replace(
                demo,
                data_dir=str(find_data("")),
                store_dir=f"{folder}/store",
                runs_dir=f"{folder}/runs{devices}",
                dropout=0.0,
                epochs=2,
                batch_size_per_gpu=demo.batch_size_per_gpu // devices,
            )
            config.to_json(f"{folder}/{devices}.json")
            subprocess.run([sys.executable, __file__, str(devices), f"{folder}/{devices}.json"], check=True)
            (run,) = runs.list_runs(config.runs_dir)
            histories.append(run.history)
    one, two = histories
    names = ["loss", "auc", "val_loss", "val_auc", "val_pf1"]
    print(json.dumps({name: float((one[name] - two[name]).abs().max()) for name in names}, indent=2))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_on(int(sys.argv[1]), sys.argv[2])
    else:
        main()
