"""The estimate of rsna_nb.memory against what a training step takes, of random weights on this machine.

    python tests/bench/bench_memory.py                  every case, in twenty minutes
    python tests/bench/bench_memory.py xla              compiled by XLA, as a single GPU's step is
    python tests/bench/bench_memory.py xla bfloat16     in mixed precision too

Each case is a process of its own. What stands before a step (weights, moments, batch) is counted, and the second
step's rise above it is measured: by TensorFlow on a GPU, as resident memory on a CPU, in Linux alone. There malloc is
told to give freed memory back at once, without which a step reuses what the one before has left.
"""

import ctypes
import gc
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # bytes; see mallopt(3)
NETWORKS = ("resnet50v2", "mobilenet", "efficientnetv2b0", "vit_tiny", "small")
MIB = 2**20


def resident(field: str) -> int:
    """VmRSS or VmHWM, its peak, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(network: str, backbone: str, img_size: int, batch: int, options: list[str]) -> tuple[int, int]:
    """Bytes of a training step as measured and as estimated."""
    import keras
    import tensorflow as tf

    from rsna_nb.config import RunConfig
    from rsna_nb.model import build_model
    from rsna_nb.training.memory import estimate

    config = RunConfig(backbone=network, weights="none", freeze_backbone=False, img_size=img_size)
    model = build_model(config, next((option for option in options if option != "xla"), "float32"))
    model.get_layer("backbone").trainable = backbone == "trained"
    model.compile(keras.optimizers.Adam(), "binary_crossentropy", jit_compile="xla" in options)
    keras.utils.set_random_seed(0)
    batches = tf.random.uniform((batch, *config.image_shape, 1)), tf.ones((batch, 1))
    model.train_on_batch(*batches)
    if tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
        model.train_on_batch(*batches)
        return tf.config.experimental.get_memory_info("GPU:0")["peak"], estimate(model, batch)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; see proc_pid_clear_refs(5)
    before = resident("VmRSS")
    model.train_on_batch(*batches)
    standing = [*model.weights, *model.optimizer.variables, *batches]
    counted = sum(tensor.numpy().nbytes for tensor in map(tf.convert_to_tensor, standing))
    return counted + resident("VmHWM") - before, estimate(model, batch)


def main(options: list[str]) -> None:
    print(f"{'network':18}{'backbone':10}{'image':>6}{'batch':>6}{'measured MiB':>14}{'estimated MiB':>15}{'ratio':>7}")
    for case in itertools.product(NETWORKS, ("frozen", "trained"), (224, 256), (8, 32)):
        command = [sys.executable, __file__, "case", json.dumps([*case, options])]
        printed = subprocess.run(command, check=True, env=os.environ | MALLOC, stdout=subprocess.PIPE).stdout
        measured, estimated = json.loads(printed.splitlines()[-1])
        network, backbone, img_size, batch = case
        print(
            f"{network:18}{backbone:10}{img_size:6}{batch:6}{measured / MIB:14.0f}{estimated / MIB:15.0f}"
            f"{estimated / measured:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main(sys.argv[1:])
