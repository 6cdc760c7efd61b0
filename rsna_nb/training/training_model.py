"""What a network learns by: the loss, the optimizer, and the step that fits into the memory there is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.training.distribution import Devices, DistributedModel
from rsna_nb.training.features import Features
from rsna_nb.training.inputs import Pictures

# Evenly spaced in the logit: on confident scores Keras's evenly spaced probabilities are far off.
AUC_THRESHOLDS = [1 / (1 + np.exp(-logit)) for logit in np.linspace(-16, 16, 400)]


@dataclass(frozen=True)
class ForwardPath:
    """From the store to a score: `source` makes batches, `head` takes what `body` makes of them.

    The body, a frozen backbone or one that is fine-tuned, is always in inference mode: its batch normalisation keeps
    its statistics. (A functional model passes training=True on to all within it, whatever it was built with.) It is
    None where the source gives features, or where the whole network learns.
    """

    source: Pictures | Features
    head: keras.Model
    body: keras.Model | None = None

    def scores(self, inputs: tuple, training: bool) -> tf.Tensor:
        values = self.source.to_network(*inputs)
        return self.head(values if self.body is None else self.body(values, training=False), training=training)

    def scorer(self, rows: pd.DataFrame, batch: int, devices: Devices) -> Callable[[], np.ndarray]:
        """A function that scores the rows' images by the network as it then is, float64 (len(rows),)."""
        dataset = self.source.evaluation(rows, min(batch, -(-len(rows) // devices.replicas)), devices.share)
        forward = devices.compiled(lambda *inputs: self.scores(inputs, training=False))

        def score() -> np.ndarray:
            mine = np.concatenate([devices.results(forward, *inputs) for inputs in dataset])
            return devices.all_gather(mine)[: len(rows), 0].astype(np.float64)

        return score


Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class TrainingModel(DistributedModel):
    """Trains a route's network on ((inputs...), labels, weights).

    The batch of a device goes through in `parts`, one after another, whose gradients are added up before the
    optimizer's one step: the memory is that of a part, the step that of the whole batch. (Keras's own
    gradient_accumulation_steps count every part as a step, for averaged weights and for the learning rate too.)
    Batch normalisation in training takes its statistics over a part.
    """

    def __init__(self, route: ForwardPath, parts: int = 1, clip_norm: float = 0.0) -> None:
        super().__init__(name="learner", dtype=route.head.dtype_policy)  # by which compile scales the loss of float16
        self.head, self.body = route.head, route.body  # for Keras to find their variables
        self.route, self.parts, self.clip_norm = route, parts, clip_norm

    def call(self, inputs: tuple, training: bool = False) -> tf.Tensor:
        return self.route.scores(inputs, training)

    @property
    def state(self) -> list[keras.Variable]:
        """All that training changes or draws random numbers from: nothing of a body that is frozen."""
        body = self.body.variables if self.body is not None and self.body.trainable_variables else []
        return [*body, *self.head.variables, *self.optimizer.variables]

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        inputs, labels, weights = data
        variables = self.trainable_variables
        total: list[tf.Tensor] = []
        loss, scores = 0.0, []
        for part in split(data, self.parts):
            # Without an order, parts would be worked on side by side and take as much memory as the whole.
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
        replicas = self.distribute_strategy.num_replicas_in_sync  # compute_loss divides by their number
        self._loss_tracker.update_state(loss * replicas, sample_weight=labels.shape[0])
        self.optimizer.apply_gradients(zip(self.clipped(total), variables, strict=True))
        return self.of_step(self.compute_metrics(inputs, labels, tf.concat(scores, 0), weights))

    def clipped(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """The gradients such that their sum over all devices is no longer than `clip_norm`.

        (Keras clips each device's own before the sum, so that its limit depends on their number.)
        """
        if not self.clip_norm:
            return gradients
        replica = tf.distribute.get_replica_context()
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        total, _ = tf.clip_by_global_norm(total, self.optimizer.scale_loss(tf.constant(self.clip_norm)))
        return [gradient / replica.num_replicas_in_sync for gradient in total]


def split(data: Any, parts: int) -> list[Any]:
    """`data`, a structure of tensors (batch, ...), in parts of about the same size."""
    flat = tf.nest.flatten(data)
    sizes = [len(part) for part in np.array_split(np.arange(flat[0].shape[0]), parts)]
    pieces = zip(*(tf.split(tensor, sizes) for tensor in flat), strict=True)
    return [tf.nest.pack_sequence_as(data, piece) for piece in pieces]


def loss_of(config: RunConfig) -> Loss:
    """Cross-entropy, or with imbalance "focal" that of Lin et al. 2017 (arXiv:1708.02002), without its alpha.

    Labels are 0 and 1; a positive's target is `positive_label`. `metrics.by_image` computes the same in NumPy.
    """

    def loss(labels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        targets = labels * config.positive_label
        if config.imbalance == "focal":
            return keras.losses.binary_focal_crossentropy(targets, scores, gamma=config.focal_gamma)
        return keras.losses.binary_crossentropy(targets, scores)

    return loss


def compile_model(
    learner: TrainingModel, config: RunConfig, learning_rate: float, example: Any, devices: Devices
) -> None:
    """Give the learner its optimizer, loss and metrics, and make their variables; `example` is a batch's spec."""
    with devices.scope():
        learner.compile(
            optimizer=keras.optimizers.Adam(
                learning_rate,
                use_ema=config.ema > 0,
                ema_momentum=config.ema or 0.99,
            ),
            loss=loss_of(config),
            metrics=[
                keras.metrics.AUC(thresholds=AUC_THRESHOLDS, name="auc"),
                keras.metrics.BinaryAccuracy(name="accuracy"),
                keras.metrics.BinaryCrossentropy(name="bce"),
                keras.metrics.Precision(name="precision"),
                keras.metrics.Recall(name="recall"),
                keras.metrics.F1Score(average="micro", threshold=0.5, name="f1"),
            ],
            jit_compile=devices.compiles,
        )
        learner.build_on(example)
        learner.optimizer.build(learner.trainable_variables)
