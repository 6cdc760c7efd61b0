"""The detector: backbone, pooling and a sigmoid unit, from a greyscale image (height, width, 1) in 0-1 to one score.

Backbones of some families have a layer normalisation of the pooled features (`backbones.Parts`), the layer "norm". It
belongs to the backbone: it is frozen and fine-tuned with it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import keras
from keras import layers

from rsna_nb.backbones import Parts, WeightsError, build_parts, copy_weights
from rsna_nb.config import ConfigError, RunConfig, resolve
from rsna_nb.runs import Run, RunError, differences, load_run

log = logging.getLogger(__name__)

POOLING = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def build_model(config: RunConfig, precision: str = "float32", synchronized: bool = False) -> keras.Model:
    """Build the detector that the settings describe, not compiled.

    Its layers "backbone", "pooled", "norm" (if it has one), "dropout" and "cancer" are found by these names elsewhere.

    Parameters
    ----------
    config
        The settings; backbone, weights, img_size, pooling, dropout, freeze_backbone, seed and runs_dir are used. With
        `weights` the id or the folder of a run, the model starts from that run's best network.
    precision
        "float32", "bfloat16" or "float16": the compute type of all layers but the last, which is float32.
    synchronized
        Whether batch normalisation pools its statistics over all replicas, if the backbone has this option.

    Returns
    -------
    keras.Model
        (batch, height, width, 1) in 0-1 -> (batch, 1), the score for cancer in 0-1.

    Raises
    ------
    ValueError, WeightsError
        If the backbone is not known or its weights cannot be loaded (`backbones.build_backbone`), or the run has
        another backbone or no best network.

    Examples
    --------
    >>> from rsna_nb.config import RunConfig
    >>> config = RunConfig(backbone="small", weights="none", freeze_backbone=False, img_size=[96, 64])
    >>> model = build_model(config)
    >>> model.input_shape, model.output_shape
    ((None, 96, 64, 1), (None, 1))
    """
    with dtype_policy(POLICIES[precision]):
        parts = _initial_parts(config, synchronized)
        image = keras.Input((*config.image_shape, 1), name="mammogram")
        features = POOLING[config.pooling](name="pooled")(parts.backbone(image))
        if parts.norm:
            features = parts.norm(features)
        for part in filter(None, (parts.backbone, parts.norm)):
            part.trainable = not config.freeze_backbone
        # Dropout stays in the graph at rate 0 too: its name is looked up when the head is trained alone.
        kept = layers.Dropout(config.dropout, seed=config.seed, name="dropout")(features)
        last = layers.Dense(1, activation="sigmoid", dtype="float32", name="cancer")
        # The model is made within the policy too: `compile` scales the loss of float16 only if the model has it.
        model = keras.Model(image, last(kept), name="detector")
    if parts.head:
        last.set_weights([parts.head["kernel"], parts.head["bias"]])
    return model


def _initial_parts(config: RunConfig, synchronized: bool) -> Parts:
    """Build the parts that the settings name, with their initial weights."""
    run = _run_named(config)
    if run is None:
        weights = config.weights if config.weights in ("imagenet", "none") else str(resolve(config.weights))
        parts = build_parts(config.backbone, config.image_shape, weights, synchronized)
        if parts.head:
            log.warning(
                "%s includes a trained last layer, so the model starts as a complete detector; this is valid only if "
                "it was trained with the pooling %s",
                *(config.weights, config.pooling),
            )
        return parts
    try:
        if run.config.backbone != config.backbone:
            raise WeightsError(f"the run's backbone is {run.config.backbone}")
        source = parts_of(keras.models.load_model(run.checkpoint, compile=False))
        parts = build_parts(config.backbone, config.image_shape, "none", synchronized, source.backbone)
        copy_weights(source, parts)
    except (WeightsError, RunError) as error:
        raise WeightsError(
            f"weights {config.weights} cannot be loaded into backbone {config.backbone}: {error}"
        ) from error
    log.info("the backbone starts from the best network of the run %s", run.path)
    if not (run.is_finished or run.imported):
        log.warning("run %s is not finished: its best network may still change", run.id)
    _warn_of_other_split(run, config)
    # A head is valid only after the same pooling; runs of earlier versions may have no norm after it.
    if run.config.pooling == config.pooling and bool(source.norm) == bool(parts.norm):
        log.info("the head starts from that run too")
        return replace(parts, head=source.head)
    log.info("the head starts with random weights: the run's features are pooled or normalised differently")
    return parts


def _run_named(config: RunConfig) -> Run | None:
    """Return the run that `weights` names by its folder or its id, or None; a file wins over a run."""
    path = resolve(config.weights)
    if config.weights in ("imagenet", "none") or path.is_file():
        return None
    for name in (path, config.weights):
        with suppress(RunError):
            return load_run(name, config.runs_dir)
    return None


def weights_file(config: RunConfig) -> Path | None:
    """Return the file that the initial weights are read from, or None if `weights` names no file and no run."""
    run = _run_named(config)
    path = run.checkpoint if run else resolve(config.weights)
    return path if path.is_file() else None


def _warn_of_other_split(run: Run, config: RunConfig) -> None:
    """Log a warning if the run may have been trained on validation or test women of the new one.

    The run may itself have started from a run, and so on: all of these count.
    """
    names = ("data_dir", "table", "limit_patients", "val_fraction", "test_fraction", "fold", "n_folds", "leave_out")
    before, now = ({name: getattr(each, name) for name in (*names, "split_seed")} for each in (run.config, config))
    if changed := differences(before, now) or ("an imported one" if run.imported else ""):
        log.warning(
            "run %s had other data or another split (%s): if it was trained on validation or test women of the new "
            "run, the new run's metrics will be too optimistic",
            run.id,
            changed,
        )
    if source := _run_named(run.config.replace(runs_dir=config.runs_dir)):
        _warn_of_other_split(source, config)


def parts_of(model: keras.Model) -> Parts:
    """Return the parts of a detector, the head included."""
    kernel, bias = model.get_layer("cancer").get_weights()
    return Parts(model.get_layer("backbone"), norm_of(model), {"kernel": kernel, "bias": bias})


def norm_of(model: keras.Model) -> layers.LayerNormalization | None:
    """Return the layer that normalises a detector's pooled features, or None."""
    return next((layer for layer in model.layers if layer.name == "norm"), None)


def body_of(model: keras.Model) -> keras.Model:
    """The detector's own layers from the image (batch, height, width, 1) to the features (batch, channels).

    The features are pooled, and normalised if the detector has a norm.
    """
    return keras.Model(model.input, model.get_layer("dropout").input, name="body")


def head_of(model: keras.Model) -> keras.Model:
    """The detector's own layers from the features to the score; training the head trains the detector."""
    features = keras.Input(model.get_layer("dropout").input.shape[1:], name="features")
    kept = model.get_layer("dropout")(features)
    with dtype_policy(model.dtype_policy.name):  # in float16 `compile` scales the loss by this policy
        return keras.Model(features, model.get_layer("cancer")(kept), name="head")


def open_backbone(model: keras.Model, first: str = "") -> int:
    """Unfreeze the backbone from the first layer whose name contains `first` on; return the number of layers.

    Scale and offset of batch normalisation are trained; `training.TrainingModel` keeps its statistics as they are.
    Raises `ConfigError` if no layer has such a name.
    """
    opened = layers_from(model, first)
    # Sets every layer, so the layers before `first` are frozen again below.
    model.get_layer("backbone").trainable = True
    for layer in _layers_of_backbone(model):
        layer.trainable = layer in opened
    return len(opened)


def layers_from(model: keras.Model, first: str) -> list[layers.Layer]:
    """The backbone's layers from the first whose name contains `first` on; `ConfigError` if there is none.

    The norm is the last of them.
    """
    known = _layers_of_backbone(model)
    start = next((number for number, layer in enumerate(known) if first in layer.name), None)
    if start is None:
        names = [layer.name for layer in known if layer.weights]
        raise ConfigError(f"fine_tune_from {first} is in no layer's name; the layers are {', '.join(names)}")
    return known[start:]


def layers_in(network: keras.Model) -> Iterator[layers.Layer]:
    """Yield the layers of a network in the order of its graph; those of an inner network take its place."""
    for layer in network.layers:
        yield from layers_in(layer) if isinstance(layer, keras.Model) else [layer]


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers under a Keras dtype policy, such as "mixed_bfloat16", and restore the former policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _layers_of_backbone(model: keras.Model) -> list[layers.Layer]:
    """The backbone's layers in the order of its graph, and the norm."""
    return [*layers_in(model.get_layer("backbone")), *filter(None, [norm_of(model)])]
