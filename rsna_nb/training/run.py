"""Settings -> a finished run folder."""

import gc
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import pandas as pd
import tensorflow as tf
from IPython.utils.capture import capture_output

from rsna_nb import metadata, metrics, runs
from rsna_nb.config import RunConfig
from rsna_nb.metadata import announce
from rsna_nb.model import attention_of, build_model, layers_from, score_breasts, weights_file
from rsna_nb.runs import Run, RunError
from rsna_nb.system import digest, locked, mlflow_run, remove_parts, write_whole
from rsna_nb.training import checkpoints, features, phases
from rsna_nb.training.callbacks import EpochCallback
from rsna_nb.training.data import prepare, split_table
from rsna_nb.training.distribution import Devices, explained_loss, find_devices
from rsna_nb.training.inputs import Pictures
from rsna_nb.training.session import TrainingSession
from rsna_nb.training.training_model import ForwardPath

log = logging.getLogger(__name__)
# The graph of the last network, by its summary; a protocol buffer does not keep the network in memory.
_graphs: dict[str, Any] = {}


def train(config: RunConfig, on_epoch: EpochCallback | None = None) -> Run:
    """Train with these settings and return the finished run.

    Demo data and the store are made if they are missing. All GPUs of the computer are used together; with TF_CONFIG
    those of several computers, the first of which writes the folder. With `resume` a stopped run continues after its
    last finished epoch; a finished run is returned unchanged. With MLFLOW_TRACKING_URI the MLflow server of that
    address is told of settings, epochs and metrics.json (docs/mlflow.md).

    Parameters
    ----------
    config
        Every setting. Validation metrics are computed from all validation images. pF1 is computed from scores corrected
        for the class weights of training, if these are known (`metrics.training_class_weights`).
    on_epoch
        Called as `on_epoch(epoch, logs)` at the end of each epoch, counted from 1, on each computer. If it raises an
        exception, training ends: the epoch is saved, predictions.csv and metrics.json are not written.

    Returns
    -------
    Run
        Its folder has best.keras, history.csv, predictions.csv (with uncorrected scores) and metrics.json.

    Examples
    --------
    Train the demo, which takes minutes, and look at its metrics::

        run = train(RunConfig.from_json("notebooks/params/demo.json"))
        run.history["val_auc"].max(), run.metrics["validation"]["breast"]["auc"]

    Raises
    ------
    TrainingError
        If training ends early: no GPU memory for one image, a loss that is not a number, SIGTERM.
    RunError
        If the run to be resumed does not exist, or its settings, table, images or initial weights have changed.
    DistributionError
        If another computer was lost.
    MetadataError, SplitError, PrepareError, WeightsError
        If the data or the weights are wrong. logs/train.log in the run folder ends with the reason.
    """
    runs.log_to_console()
    devices = find_devices()
    with explained_loss(devices):
        run = _open_run(config, devices)
    with _working_in(run) if devices.chief else nullcontext(), explained_loss(devices):
        announce(config.data_dir)  # the first line of the log: a model of generated data must not be taken for more
        log.info("run %s%s", run.path, " is resumed" if config.resume else "")
        log.info("devices: %s", ", ".join(devices.names))
        if run.is_finished:
            log.info("the run is finished: there is nothing to do")
        else:
            _train_in(run, config, devices, on_epoch)
            # Networks are part of reference cycles: without this, the networks of earlier runs stay in memory.
            gc.collect()
        devices.wait()
    return run


def _open_run(config: RunConfig, devices: Devices) -> Run:
    """The folder of the run to be resumed, or a new one, made by the chief."""
    if config.resume:
        run = runs.load_run(config.resume, config.runs_dir)
        if run.imported:
            raise RunError(f"run {run.id} was imported and cannot be resumed: to train it, set weights to {run.id}")
    else:
        run = Run(Path(devices.broadcast(str(runs.new_run(config).path) if devices.chief else "")))
    checkpoints.check_settings(run, config)
    return run


@contextmanager
def _working_in(run: Run) -> Iterator[None]:
    """Log into the run folder, and lock it so that no other process resumes the same run."""
    with runs.logged(run), locked(run.path / "checkpoints"):
        remove_parts(run.path)
        yield


def _train_in(run: Run, config: RunConfig, devices: Devices, on_epoch: EpochCallback | None) -> None:
    session = _start(run, config, devices, on_epoch)
    with session.mlflow or nullcontext():
        phases.fit(session)
        devices.wait()  # until the chief has written best.keras
        _write_results(session)
        if session.mlflow:
            session.mlflow.log_results(session.progress.history, [run.path / "metrics.json"])


def _start(run: Run, config: RunConfig, devices: Devices, on_epoch: EpochCallback | None) -> TrainingSession:
    """Build the network and prepare the data; write environment.json, or compare with it if the run is resumed."""
    keras.utils.set_random_seed(config.seed)
    before = run.path / "config" / "environment.json"
    precision = json.loads(before.read_text())["precision"] if before.is_file() else choose_precision(config)
    precision = devices.broadcast(precision)  # a resumed run keeps its precision on any GPU
    log.info("precision: %s", precision)
    with devices.scope():  # the network first: missing weights are an error before any image is prepared
        model = build_model(config, precision, synchronized=devices.replicas > 1)
    if config.fine_tune_epochs:
        layers_from(model, config.fine_tune_from)  # a misspelt layer is an error now, not after the head's epochs
    table, data_dir = split_table(config)
    layout = metadata.describe(data_dir)
    log.info("layout of the data: %s", ". ".join(filter(None, layout)))
    data = prepare(config, table, data_dir)
    environment = runs.environment(list(devices.names)) | runs.fingerprints(table, data.ledger)
    # The report must say that a run was trained on generated mammograms, and what "cancer" means in its data.
    environment |= {"precision": precision, "generated": (data_dir / "generated.json").is_file()}
    environment |= {"layout": layout.name, "label": layout.label, "layers": [layer.name for layer in model.layers]}
    weights = weights_file(config)
    environment |= {"weights_fingerprint": digest(weights) if weights else ""}
    if devices.chief and not before.is_file():
        run.write_json("config/environment.json", environment)
    devices.wait()
    checkpoints.check_data(run, environment)
    if devices.chief:
        _draw_graph(model, run.path / "tensorboard" / "train")
    tracked = mlflow_run(run.path, config.model_dump(mode="json", exclude={"resume"})) if devices.chief else None
    return TrainingSession(config, run, devices, model, data, on_epoch, tracked)


def choose_precision(config: RunConfig) -> str:
    """The precision of the layers: "float32", "bfloat16" or "float16".

    For "auto" it is bfloat16 if every GPU of this computer has compute capability 8 (Ampere) or later, float16 if each
    has 7 or later (such as V100 and T4, whose tensor cores know no bfloat16), else float32. In float16 the loss is
    scaled, so that small gradients do not become 0.
    """
    if config.mixed_precision != "auto":
        return config.mixed_precision
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    least = min((each.get("compute_capability", (0,))[0] for each in details), default=0)
    return "bfloat16" if least >= 8 else "float16" if least == 7 else "float32"


def _draw_graph(model: keras.Model, folder: Path) -> None:
    """Write the network's graph and a table of its layers for TensorBoard's tabs Graphs and Text."""
    lines: list[str] = []
    with capture_output():  # in a notebook it would show an empty line
        model.summary(print_fn=lambda line, **_: lines.append(line), expand_nested=False)
    text = "\n".join(lines)
    # Tracing takes a fifth of a fold's time if the feature bank is complete, and all folds have the same graph.
    if text not in _graphs:
        _graphs.clear()
        traced = tf.function(lambda *inputs: model(inputs if len(inputs) > 1 else inputs[0], training=False))
        specs = [tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
        graph = traced.get_concrete_function(*specs).graph
        _graphs[text] = graph.as_graph_def()
    with tf.summary.create_file_writer(str(folder)).as_default(step=0):
        tf.summary.graph(_graphs[text])
        tf.summary.text("model", f"```\n{text}\n```")


def _write_results(session: TrainingSession) -> None:
    """Write the predictions of images and breasts, and metrics.json.

    They are of the validation images at the best epoch, and of the test images.
    """
    tables = [_scored(session, split) for split in ("validation", "test") if len(session.data.rows(split))]
    predictions = pd.concat(tables, ignore_index=True).drop(columns=["path", "file"])
    if session.devices.chief:
        _write_epoch_scores(session)
        write_whole(session.run.path / "predictions.csv", predictions.to_csv(index=False).encode())
        breasts = metrics.split_breasts(predictions)
        write_whole(session.run.path / "predictions-breasts.csv", breasts.to_csv(index=False).encode())
        session.run.write_json("metrics.json", _main_metrics(session, predictions))
        log.info("finished: %s", session.run.path)


def _scored(session: TrainingSession, split: str) -> pd.DataFrame:
    """The images of a split with `score` and, unless `unit` is "image", the weight of each in its breast, `attention`.

    If `unit` is not "image", the score is that of the image's breast. Validation scores are those of the best epoch.
    """
    # A column of the table with this name would say that the network scored breasts.
    rows = session.data.rows(split).drop(columns="attention", errors="ignore")
    breasts = session.breasts.get(split)
    if split == "validation" and breasts is None:
        return rows.assign(score=session.best.scores)
    session.model.load_weights(session.run.checkpoint)
    path = ForwardPath(Pictures(session.config.image_shape), session.model, by_breast=breasts is not None)
    batch = min(session.progress.microbatch_size, features.BATCH)
    if breasts is None:
        return rows.assign(score=path.scorer(rows, batch, session.devices)())
    head, compute = path.features(rows, batch, session.devices)
    values = compute()
    scores = session.best.scores if split == "validation" else score_breasts(head, values, breasts)
    return rows.assign(score=scores[breasts.of_image], attention=attention_of(head, values, breasts))


def _write_epoch_scores(session: TrainingSession) -> None:
    """Write validation_scores.csv: a row for each validation example, a column of scores for each epoch."""
    scores, epochs = session.epoch_scores, session.progress.epoch
    if len(scores) < epochs:  # the run was begun by an earlier version, which kept none
        log.warning("validation_scores.csv is not written: the scores of %d epochs were not kept", epochs - len(scores))
        return
    keys = session.examples_of("validation").filter(items=["patient_id", "laterality", "image_id"])
    keys = keys.reset_index(drop=True)
    by_epoch = pd.DataFrame({f"epoch_{number}": values for number, values in enumerate(scores, 1)})
    content = pd.concat([keys, by_epoch], axis=1).to_csv(index=False)
    write_whole(session.run.path / "validation_scores.csv", content.encode())


def _main_metrics(session: TrainingSession, predictions: pd.DataFrame) -> dict[str, Any]:
    """The content of metrics.json: the metrics of each split, and the data and epochs behind them."""
    table, ledger = session.data.table, session.data.ledger
    counts = table.groupby("split")["cancer"].agg(images="size", positives="sum")
    breasts = table.groupby(["patient_id", "laterality"])["cancer"].max()
    content: dict[str, Any] = {
        "best_epoch": session.best.epoch,
        "epochs": session.progress.epoch,
        "training_seconds": session.seconds,
        "unreadable": int((ledger["status"] != "ok").sum()),
        "images": counts["images"].to_dict(),
        "positives": counts["positives"].to_dict(),
        # What class weights were computed from: the breasts if `unit` is not "image".
        "examples": len(session.sampling.cancer),
        "positive_examples": int(session.sampling.cancer.sum()),
        "breasts": len(breasts),
        "positive_breasts": int(breasts.sum()),
        "pf1_prior_corrected": session.prior_weights is not None,
    }
    if session.sampled_share:
        content["sampled_share"] = session.sampled_share
    for split, rows in predictions.groupby("split"):
        content[str(split)] = values = _metrics(rows, session.prior_weights)
        log.info("%s: AUC %s", split, ", ".join(f"by {unit} {own['auc']:.3f}" for unit, own in values.items()))
    return content


def _metrics(rows: pd.DataFrame, prior_weights: dict[int, float] | None) -> dict[str, dict[str, float]]:
    """`metrics.summary`, but pF1 is computed from the corrected scores, as in history.csv."""
    values = metrics.summary(rows)
    if prior_weights:
        corrected = metrics.summary(rows.assign(score=metrics.prior_correction(rows["score"], prior_weights)))
        for unit in values:
            values[unit]["pf1"] = corrected[unit]["pf1"]
    return values
