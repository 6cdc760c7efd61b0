"""The input pipeline alone: images per second and core from a store of PNG files, compared with decoding alone.

Each row of the table is a process that is confined to a number of cores and decodes on as many threads. Values are
medians of rounds in which both take turns. The images are real mammograms if RSNA_NB_SAMPLES (or ../shared) has them,
else generated ones.

Then it times strong augmentation, Keras's random layers that do the same one after another, and a training step of
ResNet50V2.

    python tests/bench/bench_inputs.py [--rounds 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

SAMPLES = Path(os.environ.get("RSNA_NB_SAMPLES", Path(__file__).parents[3] / "shared"))
IMAGES, BATCH, EPOCHS = 256, 32, 3


def fill(folder: Path, size: int) -> None:
    """A store of `IMAGES` images."""
    import cv2

    from rsna_nb import synthetic
    from rsna_nb.dicom import read_mammogram
    from rsna_nb.prepare import to_8_bits

    files = sorted(SAMPLES.glob("real_mammograms/**/*.dcm"))
    if not files:
        data = synthetic.generate(folder / "data", 4, 0.5, seed=0, scale=0.5, workers=1)
        files = sorted(data.rglob("*.dcm"))
    pictures = [to_8_bits(read_mammogram(file, size)) for file in files]
    for number, picture in enumerate(islice(cycle(pictures), IMAGES)):
        cv2.imwrite(str(folder / f"{number}.png"), picture)


def seconds_of(rounds: int, folder: Path, size: int, cores: int) -> Iterator[tuple[float, float, float]]:
    """Yield the times of decoding alone, the pipeline, and the pipeline with flips and scaling, for a few epochs."""
    import numpy as np
    import pandas as pd
    import tensorflow as tf

    from rsna_nb.config import RunConfig
    from rsna_nb.training.inputs import Examples, Pictures
    from rsna_nb.training.sampling import Sampling, Share

    tf.config.threading.set_inter_op_parallelism_threads(cores)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    files = sorted(map(str, folder.glob("*.png")))
    contents = [Path(file).read_bytes() for file in files]
    source, column = Pictures((size, size)), np.ones((len(files), 1), np.float32)
    sampling = Sampling.of(RunConfig(), column[:, 0], BATCH)
    dataset = source.training(pd.DataFrame({"file": files}), Examples(column, column, sampling), 0, Share())
    flipped = dataset.map(lambda inputs, labels, weights: (source.to_network(*inputs), labels, weights))
    with ThreadPoolExecutor(cores) as pool:

        def bare() -> None:
            for _ in range(EPOCHS):
                list(pool.map(lambda content: tf.io.decode_png(content, channels=1), contents))

        def drained(batches: tf.data.Dataset) -> None:
            """From a cold start: what is read ahead at the end counts against the pipeline."""
            for _ in batches.take(EPOCHS * sampling.steps):
                pass

        for _ in range(rounds):
            times = []
            for function in (bare, lambda: drained(dataset), lambda: drained(flipped)):
                started = time.perf_counter()
                function()
                times.append(time.perf_counter() - started)
            yield times[0], times[1], times[2]


def measure(rounds: int, folder: Path, size: int, cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    times = zip(*seconds_of(rounds, folder, size, cores), strict=True)
    bare, plain, flipped = (EPOCHS * IMAGES / statistics.median(each) / cores for each in times)
    print(
        f"| {size} | {cores} | {bare:.0f} | {plain:.0f} | {plain / bare:.2f} | {flipped:.0f} | {flipped / bare:.2f} |"
    )


def milliseconds_of_changes(size: int, rounds: int, batch: int = 8) -> dict[str, float]:
    """Times per image: strong augmentation, the same compiled by XLA, Keras's layers, and a training step."""
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    from rsna_nb.config import RunConfig
    from rsna_nb.model import build_model
    from rsna_nb.training.augmentation import augment
    from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS

    pictures = tf.random.uniform((batch, size, size, 1))
    draws, scale = tf.random.uniform((batch, AUGMENTATION_PARAMETERS)), {"value_range": (0, 1)}
    changes = [layers.RandomRotation(0.06), layers.RandomZoom(0.15), layers.RandomTranslation(0.08, 0.08)]
    changes += [layers.RandomContrast(0.25, **scale), layers.RandomBrightness(0.1, **scale)]
    in_turn = keras.Sequential([*changes, layers.RandomErasing(scale=(0.01, 0.12), **scale)])
    model = build_model(RunConfig(img_size=size, weights="none", freeze_backbone=False))
    model.compile("adam", "binary_crossentropy")
    plain, compiled, keras_layers = tf.function(augment), tf.function(augment, jit_compile=True), tf.function(in_turn)
    recipes = {
        "augment": lambda: plain(pictures, draws),
        "augment, XLA": lambda: compiled(pictures, draws),
        "Keras's layers": lambda: keras_layers(pictures, training=True),
        "a step of ResNet50V2": lambda: model.train_on_batch(pictures, np.ones((batch, 1))),
    }
    times: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(rounds + 1):
        for name, recipe in recipes.items():
            started = time.perf_counter()
            recipe()
            times[name].append(1000 * (time.perf_counter() - started) / batch)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder, size, cores = arguments.one
        measure(arguments.rounds, Path(folder), int(size), int(cores))
        return
    print("images per second and core\n")
    print("| size | cores | bare decode_png | pipeline | share | with flips and scaling in tf.data | share |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for size in (512, 1024):
        with tempfile.TemporaryDirectory() as name:
            fill(Path(name), size)
            for cores in sorted({1, len(os.sched_getaffinity(0))}):
                command = [sys.executable, __file__, "--rounds", str(arguments.rounds)]
                command += ["--one", name, str(size), str(cores)]
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    print("\nmilliseconds per image, on all cores\n")
    for size in (256, 512):
        for name, value in milliseconds_of_changes(size, arguments.rounds).items():
            print(f"{size} {name:22} {value:6.1f}", flush=True)


if __name__ == "__main__":
    main()
