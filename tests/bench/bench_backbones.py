"""Every network of the registry is built, trained for a step on two logical devices, saved, loaded and compared.

    python tests/bench/bench_backbones.py                               every name at two sizes
    python tests/bench/bench_backbones.py yolo11n small --sizes 256 512

Each name and size runs in a process of its own, with the package's training step on the CPU and random weights. If a
network refuses a size as too small, the next accepted size is used, and the table says so. Memory is the peak of the
process (VmHWM, so Linux is needed), including TensorFlow itself; each of the two devices has its own weights and Adam
moments. If a network fails, the table shows the error, and the exit status is 1.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEVICES = 2
ALONE = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
SAME = 1e-6  # largest difference of scores that counts as equal


def measure(name: str, size: int, steps: int, batch: int) -> dict[str, str]:
    """A row of the table; AssertionError if a step changes nothing or the saved network gives other scores."""
    import keras
    import numpy as np
    import tensorflow as tf

    from rsna_nb.training.distribution import find_devices
    from rsna_nb.training.inputs import Pictures
    from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    keras.utils.set_random_seed(0)
    devices = find_devices()
    assert devices.replicas == DEVICES
    config, model = accepted(name, size, devices)
    pictures = np.random.default_rng(0).integers(0, 256, (batch, *config.image_shape, 1), np.uint8)
    labels = np.float32(np.arange(batch) % 2)[:, np.newaxis]
    one = tf.data.Dataset.from_tensors(((pictures, np.zeros(batch, np.int64)), labels, np.ones_like(labels)))
    with devices.scope():
        training_model = TrainingModel(ForwardPath(Pictures(config.image_shape), model))
    compile_model(training_model, config, config.learning_rate, one.element_spec, devices)
    before = [weight.numpy() for weight in model.trainable_weights]
    batches = devices.distribute(one.repeat())
    training_model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
    changed = changed_arrays(model, before)
    started = time.perf_counter()
    loss = training_model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0).history["loss"][-1]
    seconds = (time.perf_counter() - started) / steps
    assert np.isfinite(loss)
    check_saved(model, np.float32(pictures) / 255)
    side = config.image_shape[0]
    return {
        "image": f"{side}" if side == size else f"{side} ({size} is too small)",
        "parameters": f"{model.count_params():,}",
        "arrays trained": changed,
        "seconds per step": f"{seconds:.2f}",
        "peak MiB": f"{peak_memory() / 2**20:.0f}",
    }


def accepted(name: str, size: int, devices: Any) -> tuple[Any, Any]:
    """Settings and model at `size`, or at the smallest larger size that the network accepts."""
    from rsna_nb.config import RunConfig
    from rsna_nb.model import build_model

    config = RunConfig(backbone=name, weights="none", freeze_backbone=False, img_size=size)
    try:
        with devices.scope():
            return config, build_model(config, synchronized=True)
    except ValueError as error:
        least = re.search(r"must be at least (\d+)x", str(error))
        if not least or int(least[1]) <= size:
            raise
    return accepted(name, 32 * math.ceil(int(least[1]) / 32), devices)


def changed_arrays(model: Any, before: list[Any]) -> str:
    """How many trainable arrays a step has changed; in a few networks nothing depends on some of them."""
    changed = sum((weight.numpy() != old).any() for weight, old in zip(model.trainable_weights, before, strict=True))
    assert changed, "a training step has changed nothing"
    return f"{changed} of {len(before)}"


def peak_memory() -> int:
    """The largest amount of memory that this process has used, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def check_saved(model: Any, grey: Any) -> None:
    """AssertionError if the model gives other scores after saving and loading."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras", compile=False)
    difference = float(abs(model(grey, training=False) - loaded(grey, training=False)).numpy().max())
    assert difference <= SAME, f"the loaded network's scores differ by {difference}"


def row(name: str, size: int, arguments: argparse.Namespace) -> tuple[str, bool]:
    """A line of the table, and whether the network passed."""
    task = json.dumps([name, size, arguments.steps, arguments.batch])
    answer = subprocess.run(
        [sys.executable, __file__, "--task", task], capture_output=True, text=True, env=ALONE, check=False
    )
    if answer.returncode == 0:
        return f"| {name} | " + " | ".join(json.loads(answer.stdout.splitlines()[-1]).values()) + " |", True
    reason = (answer.stderr.strip().splitlines() or ["no message"])[-1]
    return f"| {name} | {size} | failed with status {answer.returncode}: {reason} | | | |", False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="names in the registry; default: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed, after a warm-up step")
    parser.add_argument("--batch", type=int, default=2, help="images on each device")
    parser.add_argument("--task", help="used by the script itself")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(*json.loads(arguments.task))))
        return
    names = arguments.names
    if not names:
        from rsna_nb.backbones import BACKBONES

        names = list(BACKBONES)
    print(f"Batches of {arguments.batch} on each of {DEVICES} devices of one CPU, {os.cpu_count()} cores.\n")
    print("| network | image | parameters | arrays trained | seconds per step | peak MiB |\n|---|---|---|---|---|---|")
    failed = 0
    for name in names:
        for size in arguments.sizes:
            line, fine = row(name, size, arguments)
            failed += not fine
            print(line, flush=True)
    if failed:
        sys.exit(f"{failed} of {len(names) * len(arguments.sizes)} failed")


if __name__ == "__main__":
    main()
