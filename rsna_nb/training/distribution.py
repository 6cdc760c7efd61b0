"""The devices that train: one, all GPUs of a machine, or those of several machines that TF_CONFIG names.

Several machines and keras#20585: in Keras 3.15 `fit` under MultiWorkerMirroredStrategy fails in two places, the
symbolic build, which reduces the first batch over the machines, and the step's metrics, which are reduced along an
axis that scalars do not have. `DistributedModel` goes round both; tests/test_distribution.py fails when it need not.
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
from tensorflow.python.eager import context  # TensorFlow 2.21 has no public name for telling other machines of an error

from rsna_nb.training.sampling import Share

log = logging.getLogger(__name__)

LONGEST_TEXT = 4096  # bytes
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.CancelledError)


class DistributionError(RuntimeError):
    """The machines cannot work together, or one of them was lost; the message says what to do."""


@dataclass(frozen=True)
class Devices:
    """The devices of this machine by name, the strategy where there are more than one, and the machine's number."""

    names: tuple[str, ...]
    strategy: tf.distribute.Strategy | None = None
    worker: int = 0
    workers: int = 1

    @property
    def replicas(self) -> int:
        """Devices of all machines."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def chief(self) -> bool:
        """Whether this is the one machine that writes the run folder."""
        return self.worker == 0

    @property
    def share(self) -> Share:
        return Share(self.worker, self.workers, self.replicas)

    @property
    def compiles(self) -> bool:
        """Whether XLA is used: on a single GPU. On a CPU it slows training down by a fifth; strategies cannot."""
        return self.strategy is None and "GPU" in self.names[0]

    def scope(self) -> AbstractContextManager:
        return self.strategy.scope() if self.strategy else nullcontext()

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """Endless batches for one device -> what each step gives to this machine's devices together."""
        if not self.strategy:
            return dataset
        # Else the machines would ask each other before every step whether there is one, and its shape were unknown.
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return self.strategy.distribute_datasets_from_function(lambda context: dataset)

    def results(self, function: Callable[..., tf.Tensor], *batch: tf.Tensor) -> np.ndarray:
        """What a compiled function makes of a batch, (images, ...), dealt to this machine's devices in equal parts."""
        if not self.strategy:
            return function(*batch).numpy()
        local = self.replicas // self.workers
        parts = list(zip(*(tf.split(tensor, local) for tensor in batch), strict=True))
        dealt = self.strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % local]
        )
        results = self.strategy.experimental_local_results(self.strategy.run(function, args=dealt))
        return np.concatenate([result.numpy() for result in results])

    def compiled(self, function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        return tf.function(function, jit_compile=self.compiles, reduce_retracing=True)

    def all_gather(self, mine: np.ndarray) -> np.ndarray:
        """Every machine's rows, the first machine's first; all have as many."""
        if self.workers == 1:
            return mine
        rows = np.zeros((self.workers, *mine.shape), mine.dtype)
        rows[self.worker] = mine
        return self.all_reduce_sum(rows).reshape(-1, *mine.shape[1:])

    def all_reduce_sum(self, mine: np.ndarray) -> np.ndarray:
        """The sum over the machines; each waits here for all others."""
        if self.workers == 1:
            return mine
        assert self.strategy is not None
        local = self.replicas // self.workers
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(mine if context.replica_id_in_sync_group % local == 0 else np.zeros_like(mine))
        )
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy()

    def check_same(self, what: str, *numbers: int) -> None:
        """`DistributionError` where the machines have other numbers: all have to see the same files."""
        if (self.all_reduce_sum(np.array(numbers)) != self.workers * np.array(numbers)).any():
            raise DistributionError(f"the {what} is not the same on all machines: they have to share runs_dir")

    def wait(self) -> None:
        """Until every machine is here."""
        self.all_reduce_sum(np.zeros(1, np.int32))

    def broadcast(self, text: str) -> str:
        """The chief's text, on every machine."""
        told = np.zeros(LONGEST_TEXT, np.int32)
        if self.chief:
            letters = np.frombuffer(text.encode(), np.uint8)
            told[: len(letters)] = letters
        return bytes(self.all_reduce_sum(told).astype(np.uint8)).rstrip(b"\0").decode()


@functools.cache
def find_devices() -> Devices:
    """All GPUs of the machine, or its CPU where it has none; with TF_CONFIG those of the machines that it names.

    GPU memory is taken as it is needed. Several machines have to find each other before TensorFlow is used for
    anything else, so call this first.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    machines, task = read_tf_config()
    if sum(map(len, machines.values())) > 1:
        devices = of_machines(machines, task)
    else:
        names = tuple(
            device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        )
        devices = Devices(names, tf.distribute.MirroredStrategy(names) if len(names) > 1 else None)
    log.info("devices: %s", ", ".join(devices.names))
    return devices


def read_tf_config() -> tuple[dict[str, list[str]], tuple[str, int]]:
    """The machines of TF_CONFIG by kind, and which of them this one is: (kind, number)."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        content = json.loads(text)
        machines = {str(kind): list(addresses) for kind, addresses in content.get("cluster", {}).items()}
        task = (content["task"]["type"], int(content["task"]["index"])) if machines else ("worker", 0)
        if machines and (not 0 <= task[1] < len(machines[task[0]]) or len(machines.get("chief", [])) > 1):
            raise ValueError("the index is none of its kind, or there are two chiefs")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DistributionError(
            'TF_CONFIG must be {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, '
            f"the index that of this machine, from 0 on, with one chief at most, not {text}"
        ) from error
    if set(machines) - {"chief", "worker"}:
        raise DistributionError(f'TF_CONFIG has {", ".join(machines)}: only "worker" (and one "chief") can be used')
    return machines, task


def of_machines(machines: dict[str, list[str]], task: tuple[str, int]) -> Devices:
    kind, index = task
    number = index + (len(machines.get("chief", [])) if kind == "worker" else 0)
    workers = sum(map(len, machines.values()))
    log.info("machine %d of %d, waiting for the others: %s", number + 1, workers, machines)
    tf.get_logger().setLevel("WARNING")  # else a line for every collective that is traced
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    devices = Devices(tuple(strategy.extended.worker_devices), strategy, number, workers)
    try:
        devices.wait()
    except tf.errors.InternalError as error:
        raise DistributionError(
            f"the machines of TF_CONFIG need as many devices each; this one has {len(devices.names)} ({cause(error)})"
        ) from error
    return devices


def cause(error: tf.errors.OpError) -> str:
    """One line of what TensorFlow says."""
    found = re.search(r"aborted by: (.*)", error.message)
    return found[1] if found else error.message.splitlines()[0]


@contextmanager
def explained_loss(devices: Devices) -> Iterator[None]:
    """Turn what TensorFlow says where another machine is gone into an error that says so.

    An error of this machine's own is passed on to the others, which would wait for it otherwise: in JupyterLab its
    process lives on.
    """
    try:
        yield
    except LOST as error:
        if devices.workers == 1:
            raise
        raise DistributionError(
            f"another machine of TF_CONFIG was lost or stopped ({cause(error)}). "
            "See its log, and start all machines again, with resume set to the run's id"
        ) from error
    except BaseException as error:
        if devices.workers > 1:
            context.context().report_error_to_cluster(tf.errors.ABORTED, f"{type(error).__name__}: {error}")
        raise


class DistributedModel(keras.Model):
    """A model whose `fit` works on one device, on several, and on several machines."""

    def build_on(self, batch: Any) -> None:
        """Make all state, metrics' too, for a batch that is given as tensors or as their shapes and types."""
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=batch)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing: `build_on` was called. Keras would use up the first batch here, and reduce it over machines."""

    def of_step(self, logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """A step's metrics in the shape that Keras reduces over machines: (1,), where they are scalars elsewhere."""
        strategy = self.distribute_strategy
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()} if several else logs
