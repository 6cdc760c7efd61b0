"""The devices that train: one, all GPUs of a computer, or those of several computers that TF_CONFIG names.

`fit` of Keras 3.15 fails under MultiWorkerMirroredStrategy in two places (keras#20585): the symbolic build reduces the
first batch over the computers, and the metrics of a step are reduced along an axis that scalars do not have.
`DistributedModel` works around both; a test in tests/test_machines.py fails once it is no longer needed.
"""

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context  # no public name in TensorFlow 2.21 for reporting an error to others

from rsna_nb.training.sampling import Share

log = logging.getLogger(__name__)

LONGEST_TEXT = 4096  # bytes that `Devices.broadcast` can send
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.CancelledError)


class DistributionError(RuntimeError):
    """The computers cannot work together, or one of them was lost; the message says what to do."""


@dataclass(frozen=True)
class Devices:
    """The devices that train together."""

    names: tuple[str, ...]  # devices of this computer
    strategy: tf.distribute.Strategy | None = None  # None for a single device, because XLA cannot be used with one
    worker: int = 0  # number of this computer
    workers: int = 1  # number of computers

    @property
    def replicas(self) -> int:
        """Total number of devices on all computers."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def chief(self) -> bool:
        """Whether this is the computer that writes the run folder."""
        return self.worker == 0

    @property
    def share(self) -> Share:
        """This computer's part of the batches."""
        return Share(self.worker, self.workers, self.replicas)

    @property
    def compiles(self) -> bool:
        """Whether XLA is used: on a single GPU. On a CPU it makes training a fifth slower."""
        return self.strategy is None and "GPU" in self.names[0]

    def scope(self) -> AbstractContextManager:
        """A context in which variables are created for all devices."""
        return self.strategy.scope() if self.strategy else nullcontext()

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """Turn endless batches for one device into steps for all devices of this computer."""
        if not self.strategy:
            return dataset
        # Otherwise the computers synchronise before every step on whether there is a batch, and its shape is lost.
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return self.strategy.distribute_datasets_from_function(lambda context: dataset)

    def results(self, function: Callable[..., tf.Tensor], *batch: tf.Tensor) -> np.ndarray:
        """Apply a function of `compiled` to tensors (images, ...), divided equally among this computer's devices."""
        if not self.strategy:
            return function(*batch).numpy()
        local = self.share.local
        parts = list(zip(*(tf.split(tensor, local) for tensor in batch), strict=True))
        dealt = self.strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % local]
        )
        results = self.strategy.experimental_local_results(self.strategy.run(function, args=dealt))
        return np.concatenate([result.numpy() for result in results])

    def compiled(self, function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        """The function as a graph, compiled by XLA if `compiles` is true."""
        return tf.function(function, jit_compile=self.compiles, reduce_retracing=True)

    def all_gather(self, mine: np.ndarray) -> np.ndarray:
        """The rows of all computers in their order; each has the same number of rows."""
        if self.workers == 1:
            return mine
        rows = np.zeros((self.workers, *mine.shape), mine.dtype)
        rows[self.worker] = mine
        return self.all_reduce_sum(rows).reshape(-1, *mine.shape[1:])

    def all_reduce_sum(self, mine: np.ndarray) -> np.ndarray:
        """The sum over all computers; each waits here for the others."""
        if self.workers == 1:
            return mine
        assert self.strategy is not None
        local = self.share.local
        values = self.strategy.experimental_distribute_values_from_function(
            # The strategy sums over devices: one device of each computer gives the value, the others zeros.
            lambda context: tf.constant(mine if context.replica_id_in_sync_group % local == 0 else np.zeros_like(mine))
        )
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy()

    def check_same(self, what: str, *numbers: int) -> None:
        """Raise `DistributionError` if computers have different `numbers`, because they do not see the same files."""
        if (self.all_reduce_sum(np.array(numbers)) != self.workers * np.array(numbers)).any():
            raise DistributionError(f"the {what} is not the same on all computers: they must share runs_dir")

    def wait(self) -> None:
        """Wait until every computer has called this."""
        self.all_reduce_sum(np.zeros(1, np.int32))

    def broadcast(self, text: str) -> str:
        """Return the chief's text on every computer."""
        sent = np.zeros(LONGEST_TEXT, np.int32)
        if self.chief:
            encoded = np.frombuffer(text.encode(), np.uint8)
            sent[: len(encoded)] = encoded
        return bytes(self.all_reduce_sum(sent).astype(np.uint8)).rstrip(b"\0").decode()


@functools.cache
def find_devices() -> Devices:
    """All GPUs of the computer, or its CPU if it has none; with TF_CONFIG the devices of the computers that it names.

    GPU memory is allocated as it is needed. Call this before anything else that uses TensorFlow: several computers must
    connect to each other first.

    Raises
    ------
    DistributionError
        If TF_CONFIG is faulty, or the computers have different numbers of devices.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    machines, task = _read_tf_config()
    if sum(map(len, machines.values())) > 1:
        return _of_machines(machines, task)
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = tuple(device.name for device in found)
    return Devices(names, tf.distribute.MirroredStrategy(names) if len(names) > 1 else None)


def _read_tf_config() -> tuple[dict[str, list[str]], tuple[str, int]]:
    """The computers of TF_CONFIG by kind, and which of them this is: (kind, number)."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        content = json.loads(text)
        machines = {str(kind): list(addresses) for kind, addresses in content.get("cluster", {}).items()}
        task = (content["task"]["type"], int(content["task"]["index"])) if machines else ("worker", 0)
        if machines and (not 0 <= task[1] < len(machines[task[0]]) or len(machines.get("chief", [])) > 1):
            raise ValueError("no computer of that kind has this index, or there are two chiefs")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DistributionError(
            'TF_CONFIG must be {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, '
            f"with this computer's index, from 0, and at most one chief, not {text} ({error})"
        ) from error
    if set(machines) - {"chief", "worker"}:
        raise DistributionError(f'TF_CONFIG has {", ".join(machines)}: only "worker" (and one "chief") can be used')
    return machines, task


def _of_machines(machines: dict[str, list[str]], task: tuple[str, int]) -> Devices:
    """Connect to the other computers."""
    kind, index = task
    number = index + (len(machines.get("chief", [])) if kind == "worker" else 0)
    workers = sum(map(len, machines.values()))
    log.info("computer %d of %d, waiting for the others: %s", number + 1, workers, machines)
    tf.get_logger().setLevel("WARNING")  # otherwise a line for every collective that is traced
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    devices = Devices(tuple(strategy.extended.worker_devices), strategy, number, workers)
    try:
        devices.wait()
    except tf.errors.InternalError as error:
        raise DistributionError(
            f"the computers of TF_CONFIG need the same number of devices; this one has {len(devices.names)} "
            f"({_cause(error)})"
        ) from error
    return devices


def _cause(error: tf.errors.OpError) -> str:
    """One line of TensorFlow's message."""
    found = re.search(r"aborted by: (.*)", error.message)
    return found[1] if found else error.message.splitlines()[0]


@contextmanager
def explained_loss(devices: Devices) -> Iterator[None]:
    """If a computer is lost, raise a `DistributionError` that says what to do, instead of TensorFlow's error.

    This computer's own errors are reported to the others, which would otherwise wait for it: in JupyterLab the process
    does not end with an error.
    """
    try:
        yield
    except LOST as error:
        if devices.workers == 1:
            raise
        raise DistributionError(
            f"another computer of TF_CONFIG was lost or stopped ({_cause(error)}). "
            "See its log, and start all computers again, with resume set to the run's id"
        ) from error
    except BaseException as error:
        if devices.workers > 1:
            context.context().report_error_to_cluster(tf.errors.ABORTED, f"{type(error).__name__}: {error}")
        raise


class DistributedModel(keras.Model):
    """A model whose `fit` works on one device, on several devices and on several computers (keras#20585)."""

    def build_on(self, batch: Any) -> None:
        """Create all variables, including those of the metrics, for a batch of tensors or of tensor specs."""
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=batch)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Do nothing, as `build_on` was called: Keras would consume the first batch, and reduce it over computers."""

    def of_step(self, logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """A step's metrics in the shape in which Keras reduces them: (1,) with several computers, else scalars."""
        strategy = self.distribute_strategy
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()} if several else logs
