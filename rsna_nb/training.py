"""Settings -> a finished run folder."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb import callbacks, inputs, metrics, runs
from rsna_nb.callbacks import TrainingError
from rsna_nb.config import RunConfig
from rsna_nb.data import Data, class_weights, prepare, split_table
from rsna_nb.model import build_model
from rsna_nb.runs import Run

log = logging.getLogger(__name__)

FEW_STEPS = 10
# Evenly spaced in the logit: on confident scores Keras's evenly spaced probabilities are far off.
AUC_THRESHOLDS = [1 / (1 + np.exp(-logit)) for logit in np.linspace(-16, 16, 400)]


def train(config: RunConfig) -> Run:
    """Train as the settings say and return the run, its folder complete.

    Demo data and the store are made where they are missing; several GPUs are used together.

    Raises
    ------
    TrainingError
        Where training ends early: no GPU memory, a loss that is not a number, SIGTERM.
    MetadataError, SplitError, PrepareError, WeightsError
        Where the data or the weights are wrong. logs/train.log of the run folder ends with the reason.
    """
    runs.log_to_console()
    run = runs.new_run(config)
    with runs.logged(run):
        log.info("run %s", run.path)
        keras.utils.set_random_seed(config.seed)
        strategy, replicas = choose_strategy()
        with strategy.scope() if strategy else nullcontext():  # first: weights that cannot be had cost no waiting
            model = build_model(config, choose_precision(config.mixed_precision), synchronized=replicas > 1)
        table, data_dir = split_table(config)
        data = prepare(config, table, data_dir)
        run.write_json("config/environment.json", runs.environment(device_names(), table, data.ledger))
        with strategy.scope() if strategy else nullcontext():
            compile_model(model, config)
        started = time.perf_counter()
        with explained_memory(config):
            best = fit(model, config, data, run, replicas)
            predictions = write_predictions(run, data, config, best.scores)
        write_metrics(run, data, predictions, best.epoch, time.perf_counter() - started)
        log.info("finished: %s", run.path)
    return run


def device_names() -> list[str]:
    """Logical devices that train: all GPUs, or the CPU where there is none."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in devices]


def choose_strategy() -> tuple[tf.distribute.Strategy | None, int]:
    """MirroredStrategy over several devices, None for one (XLA is then used); and the number of replicas."""
    devices = device_names()
    log.info("devices: %s", ", ".join(devices))
    if len(devices) == 1:
        return None, 1
    return tf.distribute.MirroredStrategy(devices), len(devices)


def choose_precision(setting: str) -> str:
    """ "auto" is bfloat16 where every GPU computes in it (Ampere and later), else float32."""
    if setting != "auto":
        return setting
    gpus = tf.config.list_physical_devices("GPU")
    capable = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0,))[0] >= 8 for gpu in gpus]
    precision = "bfloat16" if gpus and all(capable) else "float32"
    log.info("precision: %s", precision)
    return precision


def compile_model(model: keras.Model, config: RunConfig) -> None:
    model.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate),
        loss=keras.losses.BinaryCrossentropy(),
        metrics=[
            keras.metrics.AUC(thresholds=AUC_THRESHOLDS, name="auc"),
            keras.metrics.BinaryAccuracy(name="accuracy"),
            keras.metrics.BinaryCrossentropy(name="bce"),
            keras.metrics.Precision(name="precision"),
            keras.metrics.Recall(name="recall"),
            keras.metrics.F1Score(average="micro", threshold=0.5, name="f1"),
        ],
    )


def fit(model: keras.Model, config: RunConfig, data: Data, run: Run, replicas: int) -> callbacks.BestCheckpoint:
    """Train, leaving the checkpoint, the history and TensorBoard's files in the run; returns what is best."""
    training, validation = data.rows("train"), data.rows("validation")
    batch = inputs.global_batch(config, replicas, len(training))
    steps = len(training) // batch
    weights = class_weights(config, training)
    log.info("images: %d for training, %d for validation", len(training), len(validation))
    log.info("global batch %d: %d steps an epoch", batch, steps)
    if batch < config.batch_size_per_gpu * replicas:
        log.warning("the global batch is cut to the training images there are")
    log.info("class weights: %.3f without cancer, %.3f with", weights[0], weights[1])
    if steps < FEW_STEPS:
        log.warning("only %d steps an epoch: a smaller batch_size_per_gpu would learn more from each", steps)
    dataset = inputs.training_batches(config, training, weights, replicas)
    validate = callbacks.Validate(inputs.evaluation_batches(config, validation, replicas), validation, weights)
    best = callbacks.BestCheckpoint(run.path / "checkpoints" / "best.keras", config.monitor, validate)
    on_signal = callbacks.StopOnSignal(run.path / "checkpoints" / "last.keras")
    watchers = [
        callbacks.StopAtNaN(),
        on_signal,
        validate,
        callbacks.MetricsLogger(run.path / "logs" / "history.csv", steps * batch),
        best,
        *keras_callbacks(config, run),
    ]
    draw_graph(model, run.path / "tensorboard" / "train")
    try:
        model.fit(dataset, epochs=config.epochs, steps_per_epoch=steps, callbacks=watchers, shuffle=False, verbose=0)
    finally:
        on_signal.restore()
    if len(model.history.epoch) < config.epochs:
        log.info("stopped early: no better %s for %d epochs", config.monitor, config.early_stopping_patience)
    if best.epoch == 0:
        raise TrainingError(f"no epoch had a {config.monitor} that is a number: see logs/history.csv")
    return best


@contextmanager
def explained_memory(config: RunConfig) -> Iterator[None]:
    """Turn TensorFlow's out-of-memory error into one that names the settings to change."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise TrainingError(
            f"out of memory with batch_size_per_gpu {config.batch_size_per_gpu} at img_size {config.img_size}: halve "
            "batch_size_per_gpu, lower img_size, or set mixed_precision to bfloat16"
        ) from error


def keras_callbacks(config: RunConfig, run: Run) -> list[keras.callbacks.Callback]:
    watched: dict[str, Any] = {"monitor": config.monitor, "mode": callbacks.MODES[config.monitor], "verbose": 0}
    chosen: list[keras.callbacks.Callback] = []
    if config.reduce_lr_patience:
        chosen.append(
            keras.callbacks.ReduceLROnPlateau(
                factor=config.reduce_lr_factor, patience=config.reduce_lr_patience, min_delta=0.0, **watched
            )
        )
    if config.early_stopping_patience:
        chosen.append(keras.callbacks.EarlyStopping(patience=config.early_stopping_patience, **watched))
    chosen.append(keras.callbacks.TensorBoard(run.path / "tensorboard", write_graph=False))
    return chosen


def draw_graph(model: keras.Model, folder: Path) -> None:
    """The model's graph and its layers as a table, for TensorBoard's tabs Graphs and Text."""
    traced = tf.function(lambda images: model(images, training=False))
    graph = traced.get_concrete_function(tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)).graph
    lines: list[str] = []
    model.summary(print_fn=lambda line, **_: lines.append(line), expand_nested=False)
    with tf.summary.create_file_writer(str(folder)).as_default(step=0):
        tf.summary.graph(graph)
        tf.summary.text("model", "```\n" + "\n".join(lines) + "\n```")


def write_predictions(run: Run, data: Data, config: RunConfig, validation_scores: np.ndarray) -> pd.DataFrame:
    """predictions.csv: the validation scores of the best epoch, and the test women's by its checkpoint."""
    parts = [data.rows("validation").assign(score=validation_scores)]
    test = data.rows("test")
    if len(test):
        model = keras.models.load_model(run.checkpoint, compile=False)
        parts.append(
            test.assign(score=callbacks.predict_scores(model, inputs.evaluation_batches(config, test), len(test)))
        )
    predictions = pd.concat(parts, ignore_index=True).drop(columns=["path", "file"])
    predictions.to_csv(run.path / "predictions.csv", index=False)
    return predictions


def write_metrics(run: Run, data: Data, predictions: pd.DataFrame, best_epoch: int, seconds: float) -> None:
    """metrics.json: the figures of each split, and what they were made from."""
    counts = data.table.groupby("split")["cancer"].agg(images="size", positives="sum")
    content: dict[str, Any] = {
        "best_epoch": best_epoch,
        "epochs": len(run.history),
        "training_seconds": round(seconds, 1),
        "left_out": int((data.ledger["status"] != "ok").sum()),
        "images": counts["images"].to_dict(),
        "positives": counts["positives"].to_dict(),
    }
    for split, rows in predictions.groupby("split"):
        content[str(split)] = metrics.summary(rows)
    run.write_json("metrics.json", content)
    for split in content.keys() & {"validation", "test"}:
        log.info(
            "%s: AUC by image %.3f, by breast %.3f",
            split,
            content[split]["image"]["auc"],
            content[split]["breast"]["auc"],
        )
