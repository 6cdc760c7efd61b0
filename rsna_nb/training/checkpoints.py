"""What a run keeps while it trains: best.keras, and state.npz, from which it goes on as if it had not been stopped.

The state is written whole after every epoch. It holds every variable that training changes (the learning rate, the
averaged weights and the state of the dropout layers' random numbers among them), what the callbacks remember, and the
best epoch.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from rsna_nb.config import RunConfig
from rsna_nb.runs import FOLDERS, Run, RunError, differences
from rsna_nb.system import DamagedFileError, put, read_arrays, write_arrays
from rsna_nb.training.callbacks import MODES, Logs, Validate
from rsna_nb.training.training_model import TrainingModel

log = logging.getLogger(__name__)

STATE_FILE = "checkpoints/state.npz"
# What Keras's callbacks know after an epoch and forget when training begins.
REMEMBERED = {
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.EarlyStopping: ("best", "wait", "stopped_epoch", "best_epoch"),
}


@dataclass
class Progress:
    """Where a run stands: finished epochs, and how a batch goes through the devices."""

    phase: int = 0  # of phases.phases
    first: int = 0  # epochs that were finished when the phase began
    epoch: int = 0  # that are finished now
    finished: bool = False  # the phase
    batch: int = 0  # images of a step of the optimizer
    microbatch_size: int = 0  # images that a device takes at once
    best_epoch: int = 0
    best: float = 0.0  # its monitored figure, negative where less is better
    seconds: float = 0.0  # of training so far
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)  # of callbacks, by class


def save(run: Run, progress: Progress, learner: TrainingModel, best: dict[str, np.ndarray]) -> None:
    """`learner` is compiled; `best` are arrays of the best epoch."""
    facts = {"progress": asdict(progress), "settings": json.loads(run.file("config/config.json").read_text())}
    arrays = {f"variable {number}": variable.numpy() for number, variable in enumerate(learner.state)}
    arrays |= {f"best {name}": value for name, value in best.items()}
    write_arrays(run.path / STATE_FILE, arrays | {"facts": np.array(json.dumps(facts))})


def load(run: Run) -> tuple[Progress, dict[str, np.ndarray]] | None:
    """Where the run stands and its arrays, None before its first state.

    `RunError` where config.json was changed, or the state is damaged.
    """
    if not (run.path / STATE_FILE).is_file():
        return None
    try:
        arrays = read_arrays(run.path / STATE_FILE)
    except DamagedFileError as error:
        raise RunError(f"{error}; remove it to begin the run anew") from error
    facts = json.loads(str(arrays.pop("facts")))
    refuse_differences(run, "config.json", facts["settings"], json.loads(run.file("config/config.json").read_text()))
    return Progress(**facts["progress"]), arrays


def restore(learner: TrainingModel, arrays: dict[str, np.ndarray]) -> None:
    """Set every variable of a compiled learner; `RunError` where they are those of another network."""
    values = [arrays[name] for name in (f"variable {number}" for number in range(len(arrays))) if name in arrays]
    if [value.shape for value in values] != [tuple(variable.shape) for variable in learner.state]:
        raise RunError(f"{STATE_FILE} is of another network: has rsna_nb or Keras changed since the run was begun?")
    for variable, value in zip(learner.state, values, strict=True):
        variable.assign(value)


def remember(callbacks: list[keras.callbacks.Callback], memory: dict[str, dict[str, Any]]) -> None:
    """Give Keras's callbacks back what `memory_of` them was; after their on_train_begin."""
    for callback in callbacks:
        for name, value in memory.get(type(callback).__name__, {}).items():
            setattr(callback, name, value)


def memory_of(callbacks: list[keras.callbacks.Callback]) -> dict[str, dict[str, Any]]:
    return {
        type(callback).__name__: {name: getattr(callback, name) for name in REMEMBERED[type(callback)]}
        for callback in callbacks
        if type(callback) in REMEMBERED
    }


def check_settings(run: Run, config: RunConfig) -> None:
    """`RunError` where the settings, but for folders, are not those that the run was begun with."""
    own = run.config.model_dump()
    refuse_differences(run, "the settings now", own, config.model_dump() | {name: own[name] for name in FOLDERS})


def check_data(run: Run, environment: dict[str, Any]) -> None:
    """`RunError` where table or pictures are not those that the run was begun with; other versions are logged."""
    before = json.loads(run.file("config/environment.json").read_text())
    for name, what in (("table_fingerprint", "table"), ("store_fingerprint", "store of pictures")):
        if before[name] != environment[name]:
            raise RunError(
                f"run {run.id} cannot go on: the {what} is not the one it was begun with "
                f"({name} {before[name][:8]}, now {environment[name][:8]})"
            )
    for package, version in environment["packages"].items():
        if before["packages"].get(package) != version:
            log.warning("%s is %s now, and was %s", package, version, before["packages"].get(package))


def refuse_differences(run: Run, where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    if changed := differences(before, now):
        raise RunError(f"run {run.id} cannot go on: {where} differ from those it was begun with: {changed}")


class BestCheckpoint(keras.callbacks.Callback):
    """Keeps the network of the epoch with the best `monitor`, and its validation scores.

    `model` is the whole network. Where more than a head is trained, it is written at once, and gets its name when the
    state is saved. Of a `head` the weights are kept, and `write` puts best.keras together when training ends.
    """

    def __init__(self, path: Path, monitor: str, model: keras.Model, writes: bool) -> None:
        """`writes` says whether this machine writes files."""
        super().__init__()
        self.path, self.monitor, self.whole, self.writes = path, monitor, model, writes
        self.sign = 1 if MODES[monitor] == "max" else -1
        self.epoch, self.best = 0, -math.inf
        self.arrays: dict[str, np.ndarray] = {}
        self.head: keras.Model | None = None
        self.validate: Validate | None = None

    @property
    def scores(self) -> np.ndarray:
        """float64, a score for each validation image."""
        return self.arrays["scores"]

    def recall(self, progress: Progress, arrays: dict[str, np.ndarray]) -> None:
        """What was best when a state was saved, if one was."""
        if progress.best_epoch:
            self.epoch, self.best = progress.best_epoch, progress.best
            self.arrays = {name[5:]: value for name, value in arrays.items() if name.startswith("best ")}
            self.settle()
        if self.writes:
            for other in self.path.parent.glob("best-*.keras"):
                other.unlink()

    def candidate(self) -> Path:
        """Where the best network is until the state says that it is the best."""
        return self.path.with_name(f"best-{self.epoch}.keras")

    def settle(self) -> None:
        """Name it best.keras, once the state is saved."""
        if self.writes and self.candidate().is_file():
            put(self.candidate(), self.path)

    def watch(self, validate: Validate, head: keras.Model | None) -> None:
        """What gives the scores, and the head where it alone is trained."""
        self.validate, self.head = validate, head

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        assert self.validate is not None
        if self.sign * logs[self.monitor] > self.best:
            self.epoch, self.best = epoch + 1, self.sign * logs[self.monitor]
            self.arrays = {"scores": self.validate.scores}
            if self.head is not None:
                self.arrays |= {f"weights {number}": value for number, value in enumerate(self.head.get_weights())}
            elif self.writes:
                self.whole.save(self.candidate())

    def write(self, head: keras.Model | None) -> None:
        """Give the head its best weights, and write the whole network."""
        if head is not None and self.epoch:
            head.set_weights([self.arrays[f"weights {number}"] for number in range(len(head.weights))])
            if self.writes:
                save_whole(self.whole, self.path)


def save_whole(model: keras.Model, path: Path) -> None:
    part = path.with_name(f".{path.stem}.part.keras")
    model.save(part)
    put(part, path)


class SaveState(keras.callbacks.Callback):
    """Calls `save(epochs finished, whether it was the last)` after all other callbacks: stand it at their end.

    Before the first epoch it gives Keras's callbacks back what they remembered.
    """

    def __init__(self, save: Callable[[int, bool], None], remember: Callable[[], None]) -> None:
        super().__init__()
        self.save, self.remember = save, remember

    def on_train_begin(self, logs: Any = None) -> None:
        self.remember()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.save(epoch + 1, self.model.stop_training or epoch + 1 == self.params["epochs"])
