"""Settings -> a finished run folder."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import pandas as pd
import tensorflow as tf

from rsna_nb import metrics, runs
from rsna_nb.config import RunConfig
from rsna_nb.model import build_model, layers_from
from rsna_nb.runs import Run
from rsna_nb.system import locked, remove_parts, write_whole
from rsna_nb.training import checkpoints, features, phases
from rsna_nb.training.callbacks import EpochCallback, TrainingError
from rsna_nb.training.checkpoints import BestCheckpoint
from rsna_nb.training.data import prepare, split_table
from rsna_nb.training.distribution import Devices, explained_loss, find_devices
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.session import TrainingSession
from rsna_nb.training.training_model import ForwardPath

__all__ = ["TrainingError", "train"]
log = logging.getLogger(__name__)
drawn: dict[str, Any] = {}  # the graph of the last model, by its summary


def train(config: RunConfig, on_epoch: EpochCallback | None = None) -> Run:
    """Train as the settings say and return the run, its folder complete.

    Demo data and the store are made where they are missing. All GPUs are used together, with TF_CONFIG those of
    several machines, whose first one writes the folder. With `resume` a stopped run goes on from its last epoch.

    `on_epoch(epoch, logs)` is called at the end of each epoch, on each machine; an exception that it raises ends the
    run there, without predictions.csv and metrics.json.

    Raises
    ------
    TrainingError
        Where training ends early: no GPU memory for one image, a loss that is not a number, SIGTERM.
    RunError
        Where a run to be resumed is not there, or its settings, table or pictures are others now.
    DistributionError
        Where another machine was lost.
    MetadataError, SplitError, PrepareError, WeightsError
        Where the data or the weights are wrong. logs/train.log of the run folder ends with the reason.
    """
    runs.log_to_console()
    devices = find_devices()
    with explained_loss(devices):
        run = begin(config, devices)
    with alone_in(run) if devices.chief else nullcontext(), explained_loss(devices):
        log.info("run %s%s", run.path, " goes on" if config.resume else "")
        if run.is_finished:
            log.info("it is finished: nothing is left to do")
        else:
            train_in(run, dataclasses.replace(config, resume=""), devices, on_epoch)
        devices.wait()
    return run


@contextmanager
def alone_in(run: Run) -> Iterator[None]:
    """Log into the run's folder, and keep other processes from going on with the same run."""
    with runs.logged(run), locked(run.path / "checkpoints"):
        remove_parts(run.path)
        yield


def begin(config: RunConfig, devices: Devices) -> Run:
    """The run folder: a new one, made by the first machine, or that of the run to be resumed."""
    if config.resume:
        run = runs.load_run(config.resume, config.runs_dir)
    else:
        run = Run(Path(devices.broadcast(str(runs.new_run(config).path) if devices.chief else "")))
    checkpoints.check_settings(run, config)
    return run


def train_in(run: Run, config: RunConfig, devices: Devices, on_epoch: EpochCallback | None) -> None:
    keras.utils.set_random_seed(config.seed)
    before = run.path / "config" / "environment.json"
    precision = json.loads(before.read_text())["precision"] if before.is_file() else choose_precision(config)
    precision = devices.broadcast(precision)
    log.info("precision: %s", precision)
    with devices.scope():  # first: weights that cannot be had cost no waiting
        model = build_model(config, precision, synchronized=devices.replicas > 1)
    if config.fine_tune_epochs:
        layers_from(model, config.fine_tune_from)  # a misspelt name is an error now, not after the head
    table, data_dir = split_table(config)
    data = prepare(config, table, data_dir)
    environment = runs.environment(list(devices.names), table, data.ledger)
    environment |= {"precision": precision, "generated": (data_dir / "generated.json").is_file()}
    if devices.chief and not before.is_file():
        run.write_json("config/environment.json", environment)
    devices.wait()
    checkpoints.check_data(run, environment)
    if devices.chief:
        draw_graph(model, run.path / "tensorboard" / "train")
    fitting = TrainingSession(config, run, devices, model, data, on_epoch)
    best = phases.fit(fitting)
    devices.wait()  # for best.keras to be there
    predictions = predict(fitting, best)
    if devices.chief:
        write_metrics(fitting, predictions, best.epoch)
        log.info("finished: %s", run.path)


def choose_precision(config: RunConfig) -> str:
    """ "auto" is bfloat16 where every GPU of this machine computes in it (Ampere and later), else float32."""
    if config.mixed_precision != "auto":
        return config.mixed_precision
    gpus = tf.config.list_physical_devices("GPU")
    capable = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0,))[0] >= 8 for gpu in gpus]
    return "bfloat16" if gpus and all(capable) else "float32"


def draw_graph(model: keras.Model, folder: Path) -> None:
    """The model's graph and its layers as a table, for TensorBoard's tabs Graphs and Text."""
    lines: list[str] = []
    model.summary(print_fn=lambda line, **_: lines.append(line), expand_nested=False)
    text = "\n".join(lines)
    if text not in drawn:  # tracing is a fifth of a fold's time when the bank is there, and the folds' graphs are alike
        drawn.clear()
        traced = tf.function(lambda images: model(images, training=False))
        graph = traced.get_concrete_function(tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)).graph
        drawn[text] = graph.as_graph_def()
    with tf.summary.create_file_writer(str(folder)).as_default(step=0):
        tf.summary.graph(drawn[text])
        tf.summary.text("model", f"```\n{text}\n```")


def predict(fitting: TrainingSession, best: BestCheckpoint) -> pd.DataFrame:
    """predictions.csv: the validation scores of the best epoch, and the test women's by its checkpoint."""
    run, data, devices = fitting.run, fitting.data, fitting.devices
    parts = [fitting.validation.assign(score=best.scores)]
    test = data.rows("test")
    if len(test):
        fitting.model.load_weights(run.checkpoint)
        route = ForwardPath(Pictures(fitting.config.image_shape), fitting.model)
        score = route.scorer(test, min(fitting.progress.microbatch_size, features.BATCH), devices)
        parts.append(test.assign(score=score()))
    predictions = pd.concat(parts, ignore_index=True).drop(columns=["path", "file"])
    if devices.chief:
        write_whole(run.path / "predictions.csv", predictions.to_csv(index=False).encode())
    return predictions


def write_metrics(fitting: TrainingSession, predictions: pd.DataFrame, best_epoch: int) -> None:
    """metrics.json: the figures of each split, and what they were made from."""
    run, data, sampling = fitting.run, fitting.data, fitting.sampling
    counts = data.table.groupby("split")["cancer"].agg(images="size", positives="sum")
    breasts = data.table.groupby(["patient_id", "laterality"])["cancer"].max()
    content: dict[str, Any] = {
        "best_epoch": best_epoch,
        "epochs": len(run.history),
        "training_seconds": fitting.seconds(),
        "unreadable": int((data.ledger["status"] != "ok").sum()),
        "images": counts["images"].to_dict(),
        "positives": counts["positives"].to_dict(),
        "breasts": len(breasts),
        "positive_breasts": int(breasts.sum()),
    }
    if sampling.positives:
        content["sampled_share"] = sampling.positives / sampling.batch
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
