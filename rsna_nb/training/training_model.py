"""The forward path from store to score, the training step in microbatches, the loss and the optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.model import body_of, head_of
from rsna_nb.training.distribution import Devices, DistributedModel
from rsna_nb.training.features import Features
from rsna_nb.training.inputs import Pictures

# Evenly spaced in the logit: Keras's evenly spaced probabilities give 0.711 for a true AUC of 0.870 if scores are
# close to 0, as they are at 2 % prevalence.
AUC_THRESHOLDS = [1 / (1 + np.exp(-logit)) for logit in np.linspace(-16, 16, 400)]


@dataclass(frozen=True)
class ForwardPath:
    """From the store to a score: `source` makes batches, `body` turns them into features, `head` into scores.

    The body, a frozen or fine-tuned backbone, always runs in inference mode: its batch normalisation keeps its
    statistics. It is a separate model because a functional model passes training=True to everything in it.
    The body is None if the source gives features, or if the head is the whole network.

    With `by_breast` a batch has view codes before the images, and a score is that of a breast.
    """

    source: Pictures | Features
    head: keras.Model
    body: keras.Model | None = None
    by_breast: bool = False

    def scores(self, inputs: tuple, training: bool) -> tf.Tensor:
        """The probabilities (batch, 1) of a batch that `source` made."""
        views, images = (inputs[:1], inputs[1:]) if self.by_breast else ((), inputs)
        values = self.source.to_network(*images)
        if self.body is not None:
            features = self.body(tf.reshape(values, (-1, *values.shape[-3:])), training=False)
            values = tf.reshape(features, (*values.shape[:-3], features.shape[-1]))
        return self.head([values, *views] if views else values, training=training)

    def scorer(self, rows: pd.DataFrame, batch: int, devices: Devices) -> Callable[[], np.ndarray]:
        """A function that scores the rows' images by the current network, float64 (len(rows),).

        `batch` is the largest number of images on a device at a time.
        """
        results = self._results(rows, batch, devices, lambda *inputs: self.scores(inputs, training=False))
        return lambda: results()[:, 0].astype(np.float64)

    def features(
        self, rows: pd.DataFrame, batch: int, devices: Devices
    ) -> tuple[keras.Model, Callable[[], np.ndarray]]:
        """The head, and a function that computes the features of the rows' images, float32 (len(rows), channels).

        For networks that score breasts: each image passes through the backbone once, and the head takes all images of a
        breast (`model.score_breasts`). Parameters are those of `scorer`.
        """
        if isinstance(self.source, Features):
            known = self.source.unflipped(rows)
            return self.head, lambda: known
        head, body = (self.head, self.body) if self.body is not None else (head_of(self.head), body_of(self.head))

        def forward(*images: tf.Tensor) -> tf.Tensor:
            return tf.cast(body(self.source.to_network(*images), training=False), tf.float32)

        return head, self._results(rows, batch, devices, forward)

    def _results(
        self, rows: pd.DataFrame, batch: int, devices: Devices, function: Callable[..., tf.Tensor]
    ) -> Callable[[], np.ndarray]:
        """A function that applies another one to the images of the rows: (len(rows), ...)."""
        dataset = self.source.evaluation(rows, min(batch, -(-len(rows) // devices.replicas)), devices.share)
        forward = devices.compiled(function)

        def results() -> np.ndarray:
            mine = np.concatenate([devices.results(forward, *inputs) for inputs in dataset])
            return devices.all_gather(mine)[: len(rows)]

        return results


class TrainingModel(DistributedModel):
    """Trains the network of a forward path on batches ((inputs...), labels, weights).

    A device's batch is divided into `microbatches`, whose gradients are added up before the optimizer's one step: it
    needs the memory of a microbatch and makes the step of the whole batch. Batch normalisation in training mode
    computes its statistics over a microbatch. Keras's own gradient_accumulation_steps count every microbatch as a
    step, which changes the averaged weights and the learning rate's schedule.
    """

    def __init__(self, forward_path: ForwardPath, microbatches: int = 1, clip_norm: float = 0.0) -> None:
        """`clip_norm` is the largest global norm of a step's gradients; 0 disables clipping."""
        # compile decides by the head's policy whether to scale the loss (float16). Inputs stay as they are: the layers
        # cast what they take, and augmentation computes in float32.
        super().__init__(name="training_model", dtype=forward_path.head.dtype_policy, autocast=False)
        self.head, self.body = forward_path.head, forward_path.body  # Keras finds the variables of attributes
        self.forward_path, self.microbatches, self.clip_norm = forward_path, microbatches, clip_norm

    def call(self, inputs: tuple, training: bool = False) -> tf.Tensor:
        """The probabilities (batch, 1) of a batch of inputs."""
        return self.forward_path.scores(inputs, training)

    @property
    def state(self) -> list[keras.Variable]:
        """All variables that training changes, random states included; a frozen body has none."""
        body = self.body.variables if self.body is not None and self.body.trainable_variables else []
        return [*body, *self.head.variables, *self.optimizer.variables]

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """One optimizer step on a device's batch; returns the metrics."""
        inputs, labels, weights = data
        variables = self.trainable_variables
        total: list[tf.Tensor] = []
        loss, scores = 0.0, []
        for part in _split(data, self.microbatches):
            # Without an order, microbatches would run at the same time and need the memory of the whole batch.
            with tf.control_dependencies(total):
                part = tf.nest.map_structure(tf.identity, part)
            with tf.GradientTape() as tape:
                scores.append(self(part[0], training=True))
                share = part[1].shape[0] / labels.shape[0]
                part_loss = share * self.compute_loss(part[0], part[1], scores[-1], part[2])
                scaled = self.optimizer.scale_loss(part_loss)
            gradients = tape.gradient(scaled, variables)
            total = [sum(pair) for pair in zip(total, gradients, strict=True)] if total else gradients
            loss += part_loss
        replicas = self.distribute_strategy.num_replicas_in_sync  # compute_loss has divided by it
        # Keras's own train_step updates this tracker, which has no public name.
        self._loss_tracker.update_state(loss * replicas, sample_weight=labels.shape[0])
        self.optimizer.apply_gradients(zip(self._clipped(total), variables, strict=True))
        return self.of_step(self.compute_metrics(inputs, labels, tf.concat(scores, 0), weights))

    def _clipped(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """The gradients, clipped so that the global norm of their sum over all devices is at most `clip_norm`.

        Keras's global_clipnorm clips each device's gradients before the sum, so its limit changes with their number.
        """
        if not self.clip_norm:
            return gradients
        replica = tf.distribute.get_replica_context()
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        # In float16 the gradients are scaled, and so must be the limit.
        total, _ = tf.clip_by_global_norm(total, self.optimizer.scale_loss(tf.constant(self.clip_norm)))
        return [gradient / replica.num_replicas_in_sync for gradient in total]  # apply_gradients sums them again


def _split(data: Any, count: int) -> list[Any]:
    """`data`, a structure of tensors (batch, ...), in `count` microbatches of about the same size."""
    flat = tf.nest.flatten(data)
    sizes = [len(part) for part in np.array_split(np.arange(flat[0].shape[0]), count)]
    pieces = zip(*(tf.split(tensor, sizes) for tensor in flat), strict=True)
    return [tf.nest.pack_sequence_as(data, piece) for piece in pieces]


def loss_of(config: RunConfig) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The loss of labels and scores, both (batch, 1): (batch,), without weights.

    It is the cross-entropy, or with imbalance "focal" the focal loss (Lin et al. 2017, arXiv:1708.02002, without its
    alpha). Labels are 0 and 1; the target of positives is `positive_label` (one-sided label smoothing).
    `metrics.by_image` computes the same in NumPy.
    """

    def loss(labels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        targets = labels * config.positive_label
        if config.imbalance == "focal":
            return keras.losses.binary_focal_crossentropy(targets, scores, gamma=config.focal_gamma)
        return keras.losses.binary_crossentropy(targets, scores)

    return loss


def averages_of(model: keras.Model) -> list[keras.Variable]:
    """The moving averages of a compiled model's trainable variables, in their order."""
    # In float16 a LossScaleOptimizer wraps the optimizer and has no averages of its own.
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)._model_variables_moving_average


def compile_model(
    model: TrainingModel, config: RunConfig, learning_rate: float, batch_spec: Any, devices: Devices
) -> None:
    """Give the model its optimizer, loss and metrics, and create their variables.

    `batch_spec` is the element_spec of the training dataset.
    """
    with devices.scope():
        model.compile(
            optimizer=keras.optimizers.Adam(learning_rate, use_ema=config.ema > 0, ema_momentum=config.ema),
            loss=loss_of(config),
            # As `metrics` and not `weighted_metrics`: class weights would change their meaning.
            metrics=[
                keras.metrics.AUC(thresholds=AUC_THRESHOLDS, name="auc"),
                keras.metrics.BinaryAccuracy(name="accuracy"),
                keras.metrics.BinaryCrossentropy(name="bce"),
                keras.metrics.Precision(name="precision"),
                keras.metrics.Recall(name="recall"),
                # The defaults of F1Score call every image positive and return one value per label.
                keras.metrics.F1Score(average="micro", threshold=0.5, name="f1"),
            ],
            jit_compile=devices.compiles,
        )
        model.build_on(batch_spec)
        model.optimizer.build(model.trainable_variables)
        if config.ema:
            for average, variable in zip(averages_of(model), model.trainable_variables, strict=True):
                average.assign(variable)  # Keras begins with zeros, which an epoch without a finite step would keep
