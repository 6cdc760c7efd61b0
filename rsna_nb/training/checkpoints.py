"""What a run saves while it trains: the best network in best.keras, and state.npz, from which it can be resumed.

The state is written atomically after every epoch, and a run resumed from it continues as if it had not been stopped. It
holds every variable that training changes (including the learning rate, the averaged weights and the random state of
the dropout layers), the counters of Keras's callbacks, the history and the best epoch. Keras's BackupAndRestore saves
neither these counters nor the random state.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from rsna_nb.config import FOLDERS, RunConfig
from rsna_nb.runs import Run, RunError, differences
from rsna_nb.system import DamagedFileError, put, read_arrays, write_arrays
from rsna_nb.training.callbacks import MODES, Logs, Validate
from rsna_nb.training.training_model import TrainingModel

log = logging.getLogger(__name__)

STATE_FILE = "checkpoints/state.npz"
SCORES = "validation scores"  # in the state: float32 (epochs, validation examples)
# Attributes that Keras's callbacks reset in on_train_begin.
_MEMORY = {
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch", "best_epoch"),
}
Arrays = dict[str, np.ndarray]


@dataclass
class Progress:
    """How far a run is, and how its batches are divided."""

    batch: int  # examples (images or breasts) in one optimizer step, on all devices together
    microbatch_size: int  # examples that pass through one device at a time
    phase: int = 0  # position in `phases.phases_of`
    first: int = 0  # epochs finished when the phase began
    epoch: int = 0  # epochs finished now
    finished: bool = False  # whether the phase is
    best_epoch: int = 0
    best: float = 0.0  # the monitored metric of that epoch, negated if lower is better
    seconds: float = 0.0  # training time so far
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of history.csv
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)  # of Keras's callbacks, by class name


def save(run: Run, progress: Progress, model: TrainingModel, best: Arrays, scores: Sequence[np.ndarray]) -> None:
    """Write state.npz; `model` is compiled, `best` holds the arrays of the best epoch, `scores` those of every one."""
    facts = {"progress": asdict(progress), "settings": json.loads(run.file("config/config.json").read_text())}
    arrays = {f"variable {number}": variable.numpy() for number, variable in enumerate(model.state)}
    arrays |= {f"best {name}": value for name, value in best.items()}
    if scores:
        arrays[SCORES] = np.stack(scores)
    # The facts as an array of text: in the same file, they always belong to the same epoch as the variables.
    write_arrays(run.path / STATE_FILE, arrays | {"facts": np.array(json.dumps(facts))})


def load(run: Run) -> tuple[Progress, Arrays] | None:
    """The saved progress and arrays, or None before the first save.

    Raises
    ------
    RunError
        If the state is damaged, or config.json has changed since it was saved.
    """
    if not (run.path / STATE_FILE).is_file():
        return None
    try:
        arrays = read_arrays(run.path / STATE_FILE)
    except DamagedFileError as error:
        raise RunError(f"{error}; remove it to train the run from its beginning") from error
    facts = json.loads(str(arrays.pop("facts")))
    _refuse_differences(run, "config.json", facts["settings"], json.loads(run.file("config/config.json").read_text()))
    return Progress(**facts["progress"]), arrays


def restore(model: TrainingModel, arrays: Arrays) -> None:
    """Set every variable of a compiled model; raises `RunError` if the arrays belong to another network."""
    count = sum(name.startswith("variable ") for name in arrays)
    values = [arrays[f"variable {number}"] for number in range(count)]
    if [value.shape for value in values] != [tuple(variable.shape) for variable in model.state]:
        raise RunError(f"{STATE_FILE} belongs to another network: was rsna_nb or Keras changed since the run began?")
    for variable, value in zip(model.state, values, strict=True):
        variable.assign(value)


def memory_of(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, dict[str, Any]]:
    """The counters of Keras's plateau and early stopping after an epoch, by class name."""
    return {
        type(callback).__name__: {name: getattr(callback, name) for name in _MEMORY[type(callback)]}
        for callback in callbacks
        if type(callback) in _MEMORY
    }


def remember(callbacks: Sequence[keras.callbacks.Callback], memory: dict[str, dict[str, Any]]) -> None:
    """Restore what `memory_of` returned; call it after the callbacks' on_train_begin, which resets them."""
    for callback in callbacks:
        for name, value in memory.get(type(callback).__name__, {}).items():
            setattr(callback, name, value)


def check_settings(run: Run, config: RunConfig) -> None:
    """Raise `RunError` if the settings, apart from folders, differ from those that the run began with."""
    own = run.config.model_dump()
    _refuse_differences(run, "the settings given", own, config.model_dump() | {name: own[name] for name in FOLDERS})


def check_data(run: Run, environment: dict[str, Any]) -> None:
    """Raise `RunError` if table, images or initial weights differ from those at the run's beginning.

    Other package versions are logged.
    """
    before = json.loads(run.file("config/environment.json").read_text())
    # The state holds no weights that are frozen: they are read again.
    parts = {"table": "table", "store": "store of prepared images", "weights": "file or run that weights names"}
    for name, what in ((f"{part}_fingerprint", what) for part, what in parts.items()):
        if name in before and before[name] != environment[name]:  # earlier versions wrote none of the weights
            raise RunError(
                f"run {run.id} cannot be resumed: the {what} has changed since it began "
                f"({name} was {before[name][:8]} and is {environment[name][:8]})"
            )
    # A run that earlier versions began has no list, and none of them had a norm after the pooling.
    layers = before.get("layers", [name for name in environment["layers"] if name != "norm"])
    if layers != environment["layers"]:
        raise RunError(
            f"run {run.id} cannot be resumed: its network was {' -> '.join(layers)}, and this version builds "
            f"{' -> '.join(environment['layers'])}; begin a new run, with weights set to {run.id} to start from it"
        )
    for package, version in environment["packages"].items():
        if (was := before["packages"].get(package)) != version:
            log.warning("%s is version %s now and was %s when the run began", package, version, was)


def _refuse_differences(run: Run, where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    if changed := differences(before, now):
        raise RunError(f"run {run.id} cannot be resumed: {where} differ from those that it began with: {changed}")


class BestCheckpoint(keras.callbacks.Callback):
    """Keeps the network of the epoch with the best monitored metric, and its validation scores.

    If the whole network trains, it is saved under a temporary name and becomes best.keras (`settle`) once the state
    that names its epoch is written, so that the two agree in a killed run too. If only the head trains, an epoch takes
    less time than writing the network would: the head's weights are kept in `arrays`, and `write` makes best.keras
    when training ends.
    """

    def __init__(self, path: Path, monitor: str, network: keras.Model, writes: bool) -> None:
        """Set up for all phases of a run.

        Parameters
        ----------
        path
            Path of best.keras.
        monitor
            Name of a metric in the epoch's logs, a key of `MODES`.
        network
            The whole network, from image to score.
        writes
            Whether this computer writes files.
        """
        super().__init__()
        self.path, self.monitor, self.network, self.writes = path, monitor, network, writes
        self.sign = 1 if MODES[monitor] == "max" else -1
        self.epoch, self.best = 0, -math.inf
        self.arrays: Arrays = {}
        self.head: keras.Model | None = None
        self.validate: Validate | None = None

    @property
    def scores(self) -> np.ndarray:
        """A score for each validation example at the best epoch, float64 (n,)."""
        return self.arrays["scores"]

    def watch(self, validate: Validate, head: keras.Model | None) -> None:
        """Use the scores of `validate`; `head` is given in a phase that trains only the head."""
        self.validate, self.head = validate, head

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        assert self.validate is not None
        if self.sign * logs[self.monitor] > self.best:
            self.epoch, self.best = epoch + 1, self.sign * logs[self.monitor]
            self.arrays = {"scores": self.validate.scores}
            # Copies in memory: the next epoch changes the head's weights.
            if self.head is not None:
                self.arrays |= {f"weights {number}": value for number, value in enumerate(self.head.get_weights())}
            elif self.writes:
                self.network.save(self._candidate)

    @property
    def _candidate(self) -> Path:
        return self.path.with_name(f"best-{self.epoch}.keras")

    def settle(self) -> None:
        """Rename the best network to best.keras; call it after the state is saved."""
        if self.writes and self._candidate.is_file():
            put(self._candidate, self.path)

    def recall(self, progress: Progress, arrays: Arrays) -> None:
        """Continue from a saved state."""
        if progress.best_epoch:
            self.epoch, self.best = progress.best_epoch, progress.best
            prefix = "best "
            self.arrays = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
            self.settle()
        if self.writes:  # networks of epochs whose state was not saved
            for other in self.path.parent.glob("best-*.keras"):
                other.unlink()

    def write(self, head: keras.Model) -> None:
        """After training `head` alone: write best.keras with its best weights. The head keeps its last ones."""
        if self.epoch and self.writes:
            last = head.get_weights()
            head.set_weights([self.arrays[f"weights {number}"] for number in range(len(head.weights))])
            part = self.path.with_name(f".{self.path.stem}.part.keras")  # Keras requires this ending
            self.network.save(part)
            put(part, self.path)
            head.set_weights(last)
