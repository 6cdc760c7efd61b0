"""Times the 35-epoch recipe (frozen ResNet50V2, flips) with the feature bank, without it, and its lower limit.

Without the bank it is Keras's own fit on the frozen model with random flips in tf.data, as Keras's transfer-learning
guide does it, on the same PNG files. The lower limit is forward passes alone, on images in memory: as many as the
bank needs (four for each training image, one for each validation image), and four for every image. The weights are
random: the times are those of trained weights, the metrics mean nothing.

Then it compares the losses of every epoch, without dropout and early stopping, with those of training without a bank,
for features kept in float32 and in float16.

With a GPU, or with --sizes, it also prints images per second of training ResNet50V2 from the store, and of the same
training step on a batch in memory.

    python tests/bench/bench_train.py [--women 64] [--size 224] [--epochs 35] [--only time] [--sizes 512 1024]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from random_resnet import settings_in

from rsna_nb import metrics, runs
from rsna_nb.config import RunConfig
from rsna_nb.model import body_of, build_model
from rsna_nb.training import data, features
from rsna_nb.training import run as training
from rsna_nb.training.distribution import find_devices
from rsna_nb.training.inputs import Examples, Pictures
from rsna_nb.training.sampling import Sampling, Share
from rsna_nb.training.training_model import ForwardPath, TrainingModel, compile_model


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def plainly(config: RunConfig, prepared: data.Data) -> list[float]:
    """Train as Keras's guide does, but on our images; returns the loss of each epoch."""
    flip = keras.layers.RandomFlip("horizontal_and_vertical")

    def dataset(split: str) -> tf.data.Dataset:
        rows = prepared.rows(split)
        files = tf.data.Dataset.from_tensor_slices(
            (rows["file"].tolist(), rows["cancer"].to_numpy(np.float32)[:, None])
        )
        files = files.shuffle(len(rows), seed=0) if split == "train" else files
        images = files.map(lambda file, label: (read(file), label), tf.data.AUTOTUNE).batch(config.batch_size_per_gpu)
        if split == "train":
            images = images.map(lambda image, label: (flip(image, training=True), label), tf.data.AUTOTUNE)
        return images.prefetch(tf.data.AUTOTUNE)

    def read(file: tf.Tensor) -> tf.Tensor:
        picture = tf.io.decode_png(tf.io.read_file(file), channels=1)
        return tf.ensure_shape(tf.cast(picture, tf.float32) / 255, (*config.image_shape, 1))

    model = build_model(config)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc")])
    weights = metrics.class_weights(prepared.rows("train")["cancer"])
    history = model.fit(
        dataset("train"), validation_data=dataset("validation"), epochs=config.epochs, class_weight=weights, verbose=0
    )
    return history.history["loss"]


def bare_passes(config: RunConfig, prepared: data.Data) -> float:
    """Seconds per image of a forward pass on a batch in memory; the median of ten."""
    devices, body = find_devices(), body_of(build_model(config))
    source = Pictures(config.image_shape)
    (batch,) = next(iter(source.evaluation(prepared.rows("train"), features.BATCH, Share())))
    images = source.to_network(batch)
    forward = devices.compiled(lambda pictures: body(pictures, training=False))
    forward(images)
    return statistics.median(timed(lambda: forward(images).numpy())[0] for _ in range(10)) / len(batch)


def compare(config: RunConfig) -> None:
    table, data_dir = data.split_table(config)
    prepared = data.prepare(config, table, data_dir)
    count, validation = len(table), len(prepared.rows("validation"))
    print(f"\n{count} images, {validation} of them for validation, {config.epochs} epochs, {config.image_shape}\n")
    before = bare_passes(config, prepared)
    through_bank, run = timed(lambda: training.train(config))
    again, _ = timed(lambda: training.train(config))
    plain, _ = timed(lambda: plainly(config, prepared))
    bare = statistics.mean([before, bare_passes(config, prepared)])
    passes = 4 * (count - validation) + validation
    head = run.history["seconds"].sum()
    print("| what | seconds |")
    print("|---|---|")
    print(f"| the recipe through the bank, everything | {through_bank:.1f} |")
    print(f"| of which the head's epochs | {head:.1f} |")
    print(f"| the same once more, from the existing bank | {again:.1f} |")
    print(f"| the recipe plainly, by Keras's fit | {plain:.1f} |")
    print(f"| bare forward passes, as many as the bank makes ({passes}) | {bare * passes:.1f} |")
    print(f"| four bare forward passes of every image ({4 * count}) | {bare * 4 * count:.1f} |")
    print(f"\nplainly / through the bank: {plain / through_bank:.1f}")
    print(f"(through the bank - the head's epochs) / its bare passes: {(through_bank - head) / (bare * passes):.2f}")
    print(f"(through the bank - the head's epochs) / four of all: {(through_bank - head) / (bare * 4 * count):.2f}\n")


def agree(config: RunConfig) -> None:
    """Print the largest difference of an epoch's losses with and without the bank, for a few women."""
    changes = {"dropout": 0.0, "limit_patients": 16}
    settings = {name: getattr(config, name) for name in RunConfig.model_fields} | changes
    plain = training.train(RunConfig(**settings | {"feature_bank": False})).history
    look_up = features.Bank.look_up
    for dtype in (np.float32, np.float16):
        features.Bank.look_up = lambda *arguments, dtype=dtype: halved(look_up(*arguments), dtype)
        bank = training.train(RunConfig(**settings)).history
        losses = {name: f"{(bank[name] - plain[name]).abs().max():.1e}" for name in ("loss", "val_loss")}
        print(
            f"{len(bank)} epochs, features in {np.dtype(dtype)}: largest differences from images {losses}", flush=True
        )
    features.Bank.look_up = look_up


def halved(found: tuple[np.ndarray, np.ndarray], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    return found[0].astype(dtype).astype(np.float32), found[1]


def speed(config: RunConfig, prepared: data.Data, steps: int) -> None:
    """Print images per second of training the whole network, on one batch in memory and from the store."""
    devices, rows = find_devices(), prepared.rows("train")
    rows = pd.concat([rows] * (-(-steps * config.batch_size_per_gpu // len(rows))), ignore_index=True)
    cancer = rows["cancer"].to_numpy(np.float32)[:, np.newaxis]
    source, batch = Pictures(config.image_shape), config.batch_size_per_gpu
    examples = Examples(cancer, np.ones_like(cancer), Sampling.of(config, cancer[:, 0], batch))
    dataset = source.training(rows, examples, 0, Share())
    model = build_model(config, training.choose_precision(config))
    training_model = TrainingModel(ForwardPath(source, model))
    compile_model(training_model, config, 1e-4, dataset.element_spec, devices)
    training_model.make_train_function()
    batches = iter(dataset)
    held = next(batches)
    memory = iter(tf.data.Dataset.from_tensors(held).repeat().prefetch(2))
    for iterator in (memory, batches):
        training_model.train_function(iterator)
    rates: dict[str, list[float]] = {"memory": [], "store": []}
    for _ in range(3):
        for name, iterator in (("memory", memory), ("store", batches)):
            seconds, _ = timed(
                lambda it=iterator: [training_model.train_function(it) for _ in range(steps)][-1]["loss"].numpy()
            )
            rates[name].append(steps * batch / seconds)
    bare, store = (statistics.median(each) for each in rates.values())
    print(f"| {config.image_shape} | {batch} | {bare:.1f} | {store:.1f} | {store / bare:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--women", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--sizes", type=int, nargs="*")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=["time", "agreement"])
    arguments = parser.parse_args()
    runs.log_to_console()
    with tempfile.TemporaryDirectory() as name:
        settings = settings_in(Path(name), arguments.women) | {"batch_size_per_gpu": arguments.batch}
        config = RunConfig(**settings, img_size=arguments.size, epochs=arguments.epochs, early_stopping_patience=0)
        if arguments.only != "agreement":
            compare(config)
        if arguments.only != "time":
            agree(config)
        sizes = arguments.sizes or ([512, 1024] if tf.config.list_physical_devices("GPU") else [])
        if sizes:
            print("\n| size | batch | bare step, images/s | from the store, images/s | share |\n|---|---|---|---|---|")
        for size in sizes:
            unfrozen = RunConfig(**settings | {"weights": "none", "freeze_backbone": False, "img_size": size})
            prepared = data.prepare(unfrozen, *data.split_table(unfrozen))
            speed(unfrozen, prepared, arguments.steps)


if __name__ == "__main__":
    main()
