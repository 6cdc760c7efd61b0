"""Every network of the registry: built, trained for a step on two logical devices, saved, loaded, asked again.

    python tests/bench/bench_backbones.py                               every name at two sizes
    python tests/bench/bench_backbones.py yolo11n small --sizes 256 512

Each name and size is a process of its own, with the package's own training step on the CPU and random weights. A
network that refuses a size as too small gets the next one that it takes, and the table says so. Memory is the process's
peak (VmHWM), TensorFlow itself in it, so Linux is needed; both devices keep weights and Adam's moments of their own.
Where a network fails the table has its error, and the exit status is 1.
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
from typing import Any

from bench_memory import MIB, resident

DEVICES = 2
ALONE = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
SAME = 1e-6  # of scores in 0-1


def measure(name: str, size: int, steps: int, batch: int) -> dict[str, str]:
    """A row of the table; AssertionError where a step changes nothing or the saved network says something else."""
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
        learner = TrainingModel(ForwardPath(Pictures(config.image_shape), model))
    compile_model(learner, config, config.learning_rate, one.element_spec, devices)
    before = [weight.numpy() for weight in model.trainable_weights]
    batches = devices.distribute(one.repeat())
    learner.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
    changed = learnt(model, before)
    started = time.perf_counter()
    loss = learner.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0).history["loss"][-1]
    seconds = (time.perf_counter() - started) / steps
    assert np.isfinite(loss)
    check_saved(model, np.float32(pictures) / 255)
    side = config.image_shape[0]
    return {
        "image": f"{side}" if side == size else f"{side} ({size} is too small)",
        "parameters": f"{model.count_params():,}",
        "arrays that learn": changed,
        "seconds a step": f"{seconds:.2f}",
        "peak MiB": f"{resident('VmHWM') / MIB:.0f}",
    }


def accepted(name: str, size: int, devices: Any) -> tuple[Any, Any]:
    """Settings and model at `size`, or at the next size that the network says it takes."""
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


def learnt(model: Any, before: list[Any]) -> str:
    """How many trainable arrays a step has changed; a few networks have some that nothing depends on."""
    changed = sum((weight.numpy() != old).any() for weight, old in zip(model.trainable_weights, before, strict=True))
    assert changed, "a training step has changed nothing"
    return f"{changed} of {len(before)}"


def check_saved(model: Any, grey: Any) -> None:
    import keras

    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras", compile=False)
    difference = float(abs(model(grey, training=False) - loaded(grey, training=False)).numpy().max())
    assert difference <= SAME, f"the loaded network's scores differ by {difference}"


def row(name: str, size: int, arguments: argparse.Namespace) -> tuple[str, bool]:
    """A line of the table, and whether all went well."""
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
    parser.add_argument("names", nargs="*", help="of the registry; all where none is given")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--steps", type=int, default=2, help="that are timed, after one that is not")
    parser.add_argument("--batch", type=int, default=2, help="pictures on each device")
    parser.add_argument("--task", help="for the script itself")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(*json.loads(arguments.task))))
        return
    names = arguments.names
    if not names:
        from rsna_nb.backbones import BACKBONES

        names = list(BACKBONES)
    print(f"Batches of {arguments.batch} on each of {DEVICES} devices of one CPU, {os.cpu_count()} cores.\n")
    print("| network | image | parameters | arrays that learn | seconds a step | peak MiB |\n|---|---|---|---|---|---|")
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
