"""What a study may search: the values of each setting, and how a trial draws its settings from them."""

import dataclasses
import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from rsna_nb.backbones import BACKBONES
from rsna_nb.config import ConfigError, RunConfig

log = logging.getLogger(__name__)


class Draws(Protocol):
    """What a value is drawn from: an optuna.Trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, evenly or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', by its logarithm' if self.log else ''}"

    def draw(self, trial: Draws, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def including(self, value: float) -> "Range":
        return dataclasses.replace(self, low=min(self.low, value), high=max(self.high, value))


@dataclass(frozen=True)
class Choice:
    """One of `values`."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))

    def draw(self, trial: Draws, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def including(self, value: Any) -> "Choice":
        return self if value in self.values else Choice((*self.values, value))


def choices(name: str) -> Choice:
    """All that the setting allows."""
    return Choice(get_args(RunConfig.model_fields[name].annotation))


Space = Mapping[str, Range | Choice]
# In the order in which they are drawn. A study adds what the settings that it begins with have.
SPACE: Space = {
    "learning_rate": Range(1e-4, 1e-2, log=True),
    "dropout": Range(0.0, 0.7),
    "pooling": choices("pooling"),
    "imbalance": choices("imbalance"),
    "augmentation": choices("augmentation"),
    "batch_size_per_gpu": Choice((16, 32, 64, 128, 256)),
    "fine_tune_epochs": Choice((0, 5)),
    "fine_tune_learning_rate": Range(1e-6, 1e-4, log=True),
}
DRAWN_WHEN: dict[str, Callable[[RunConfig], bool]] = {
    "fine_tune_learning_rate": lambda config: config.fine_tune_epochs > 0
}


def space_of(config: RunConfig, search: Sequence[str], backbones: Sequence[str] = ()) -> Space:
    """The values of each setting that `search` names, those of `config` among them; `backbones` are for "backbone".

    Choices that the other settings rule out are left out, and logged.

    Raises
    ------
    ConfigError
        For a name that cannot be searched, a backbone that is not known, or a setting that would have no effect.
    """
    space = dict(SPACE) | {"backbone": Choice(tuple(dict.fromkeys(backbones)))}
    check_names("search", search, space)
    check_names("backbones", backbones, BACKBONES)
    if ("backbone" in search) != bool(backbones):
        raise ConfigError('"backbone" in search and names in backbones go together: give both or neither')
    tuned = [name for name in search if name.startswith("fine_tune")]
    if tuned and not config.freeze_backbone:
        raise ConfigError(f"search: {tuned[0]} has no effect where the whole network learns: set freeze_backbone")
    if tuned == ["fine_tune_learning_rate"] and not config.fine_tune_epochs:
        raise ConfigError("search: fine_tune_learning_rate has no effect with fine_tune_epochs 0: search both")
    wide = {name: space[name].including(getattr(config, name)) for name in space if name in search}
    return {name: possible(config, name, values) for name, values in wide.items()}


def check_names(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    if not names and what == "search":
        raise ConfigError(f"search names no setting; these can be searched: {', '.join(known)}")
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3) or list(known)
            raise ConfigError(f"{what}: {name} is not known; the nearest are {', '.join(close)}")


def possible(config: RunConfig, name: str, values: Range | Choice) -> Range | Choice:
    if isinstance(values, Range):
        return values
    kept = []
    for value in values.values:
        try:
            config.replace(**{name: value})
            kept.append(value)
        except ConfigError as error:
            log.warning("%s %s is not searched: %s", name, value, error)
    return Choice(tuple(kept))


def is_drawn(name: str, config: RunConfig) -> bool:
    """Whether a setting has an effect beside the others of `config`."""
    return name not in DRAWN_WHEN or DRAWN_WHEN[name](config)


def draw(trial: Draws, space: Space, config: RunConfig) -> RunConfig:
    """`config` with a trial's values; `ConfigError` where they do not go together."""
    for name, values in space.items():
        if is_drawn(name, config):
            drawn: dict[str, Any] = {name: values.draw(trial, name)}
            config = config.replace(**drawn)
    return config


def own_values(space: Space, config: RunConfig) -> dict[str, Any]:
    """What a trial with the settings of `config` would have drawn."""
    return {name: getattr(config, name) for name in space if is_drawn(name, config)}
