"""The detector: backbone, pooling and a sigmoid unit, from greyscale images (height, width, 1) in 0-1 to a score.

With `unit` "image" it takes one image. With "breast" and "woman" it takes all images of a breast and their views
(`breasts`): the layer "combination" makes one vector of their features.

Backbones of some families have a layer normalisation of the pooled features (`backbones.Parts`), the layer "norm". It
belongs to the backbone: it is frozen and fine-tuned with it.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from rsna_nb.backbones import Parts, WeightsError, build_parts, copy_weights
from rsna_nb.config import ConfigError, RunConfig, resolve
from rsna_nb.model.combination import ByBreast, Combination, EachImage
from rsna_nb.runs import Run, RunError, differences, load_run

log = logging.getLogger(__name__)

POOLING = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def build_model(config: RunConfig, precision: str = "float32", synchronized: bool = False) -> keras.Model:
    """Build the detector that the settings describe, not compiled.

    Its layers "backbone", "pooled", "norm" (if it has one), "combination" (unless `unit` is "image"), "dropout" and
    "cancer" are found by these names elsewhere.

    Parameters
    ----------
    config
        The settings; backbone, weights, img_size, pooling, dropout, unit, combine, freeze_backbone, seed and runs_dir
        are used. With `weights` the id or the folder of a run, the model starts from that run's best network.
    precision
        "float32", "bfloat16" or "float16": the compute type of all layers but the last, which is float32.
    synchronized
        Whether batch normalisation pools its statistics over all replicas, if the backbone has this option.

    Returns
    -------
    keras.Model
        (batch, height, width, 1) in 0-1 -> (batch, 1), the score for cancer in 0-1. With `unit` "breast" or "woman":
        [(batch, places, height, width, 1) in 0-1, view codes int32 (batch, places)] -> (batch, 1).

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
    >>> build_model(config.replace(unit="breast")).input_shape
    [(None, None, 96, 64, 1), (None, None)]
    """
    with dtype_policy(POLICIES[precision]):
        parts = _initial_parts(config, synchronized)
        pool = POOLING[config.pooling](name="pooled")
        for part in filter(None, (parts.backbone, parts.norm)):
            part.trainable = not config.freeze_backbone
        if config.unit == "image":
            inputs = keras.Input((*config.image_shape, 1), name="mammogram")
            features = _features(parts, pool, inputs)
        else:
            views = keras.Input((None,), dtype="int32", name="views")
            inputs = [keras.Input((None, *config.image_shape, 1), name="mammograms"), views]
            by_image = _features(parts, pool, EachImage(name="each_image")(inputs[0]))
            combination = Combination(config.combine, config.unit == "woman", dtype="float32", name="combination")
            features = combination(ByBreast(name="by_breast")(by_image, views), views)
        # Dropout stays in the graph at rate 0 too: its name is looked up when the head is trained alone.
        kept = layers.Dropout(config.dropout, seed=config.seed, name="dropout")(features)
        last = layers.Dense(1, activation="sigmoid", dtype="float32", name="cancer")
        # The model is made within the policy too: `compile` scales the loss of float16 only if the model has it.
        model = keras.Model(inputs, last(kept), name="detector")
    if parts.head:
        _start_head(model, parts.head)
    return model


def _features(parts: Parts, pool: layers.Layer, images: Any) -> Any:
    """The pooled features of images, normalised if the parts have a norm."""
    pooled = pool(parts.backbone(images))
    return parts.norm(pooled) if parts.norm else pooled


def _start_head(model: keras.Model, head: Mapping[str, np.ndarray]) -> None:
    """Set the last layer, and those weights of the combination that `head` has too.

    The head of a network for single images starts one for breasts: its kernel is that of the breast's own features,
    and the difference to the other breast begins without effect.
    """
    kernel = np.zeros(model.get_layer("cancer").kernel.shape, np.float32)
    kernel[: len(head["kernel"])] = head["kernel"]
    model.get_layer("cancer").set_weights([kernel, head["bias"]])
    combination = combination_of(model)
    mine = {weight.name: weight for weight in combination.weights} if combination else {}
    fits = {name for name, weight in mine.items() if name in head and head[name].shape == weight.shape}
    for name in fits:
        mine[name].assign(head[name])
    theirs = set(head) - {"kernel", "bias"}
    if theirs | set(mine) != fits:
        log.info(
            "the layer that combines the images of a breast: from there %s; untrained %s; left out %s",
            *(_listed(names) for names in (fits, set(mine) - fits, theirs - fits)),
        )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


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
    # A head is valid only after the same pooling; runs of earlier versions may have no norm after it. That of a network
    # for women also weighs the difference of the breasts, and would be cut off.
    fits = run.config.unit != "woman" or config.unit == "woman"
    if run.config.pooling == config.pooling and bool(source.norm) == bool(parts.norm) and fits:
        log.info("the head starts from that run too")
        return replace(parts, head=source.head)
    log.info("the head starts with random weights: the run's features are pooled, normalised or combined differently")
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
    combination = combination_of(model)
    own = {weight.name: weight.numpy() for weight in combination.weights} if combination else {}
    return Parts(model.get_layer("backbone"), norm_of(model), {"kernel": kernel, "bias": bias, **own})


def norm_of(model: keras.Model) -> layers.LayerNormalization | None:
    """Return the layer that normalises a detector's pooled features, or None."""
    return next((layer for layer in model.layers if layer.name == "norm"), None)


def combination_of(model: keras.Model) -> Combination | None:
    """Return the layer that combines the images of a breast, or None if the detector takes single images."""
    return next((layer for layer in model.layers if layer.name == "combination"), None)


def body_of(model: keras.Model) -> keras.Model:
    """The detector's own layers from an image (batch, height, width, 1) to its features (batch, channels).

    The features are pooled, and normalised if the detector has a norm.
    """
    backbone = model.get_layer("backbone")
    image = keras.Input(backbone.input_shape[1:], name="mammogram")
    features = _features(Parts(backbone, norm_of(model)), model.get_layer("pooled"), image)
    return keras.Model(image, features, name="body")


def head_of(model: keras.Model) -> keras.Model:
    """The detector's own layers from the features to the score; training the head trains the detector.

    It takes the features of an image (batch, channels), or those of a breast (batch, places, channels) and its view
    codes (batch, places).
    """
    channels, combination = model.get_layer("backbone").output_shape[-1], combination_of(model)
    with dtype_policy(model.dtype_policy.name):  # in float16 `compile` scales the loss by this policy
        if combination is None:
            inputs = features = keras.Input((channels,), name="features")
        else:
            inputs = [keras.Input((None, channels), name="features"), keras.Input((None,), dtype="int32", name="views")]
            features = combination(*inputs)
        kept = model.get_layer("dropout")(features)
        return keras.Model(inputs, model.get_layer("cancer")(kept), name="head")


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
