"""What a study may search: the values of each setting, from which Optuna proposes those of a trial."""

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from rsna_nb.backbones import BACKBONES
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.experiments.study import CategoricalDistribution, FloatDistribution, Trial

log = logging.getLogger(__name__)

Values = FloatDistribution | CategoricalDistribution
Space = Mapping[str, Values]  # setting -> the values that a trial may have


def _choices(name: str) -> CategoricalDistribution:
    """All values that the setting allows."""
    return CategoricalDistribution(get_args(RunConfig.model_fields[name].annotation))


# Optuna proposes settings in this order. `space_of` adds the values that the study starts with.
SPACE: Space = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.7),
    "pooling": _choices("pooling"),
    "unit": _choices("unit"),
    "combine": _choices("combine"),
    "imbalance": _choices("imbalance"),
    "augmentation": _choices("augmentation"),
    "batch_size_per_gpu": CategoricalDistribution((16, 32, 64, 128, 256)),
    "fine_tune_epochs": CategoricalDistribution((0, 5)),
    "fine_tune_learning_rate": FloatDistribution(1e-6, 1e-4, log=True),
}
# A setting that would have no effect is not proposed: its value would only mislead the sampler.
DRAWN_WHEN: Mapping[str, Callable[[RunConfig], bool]] = {
    "fine_tune_learning_rate": lambda config: config.fine_tune_epochs > 0,
    "combine": lambda config: config.unit != "image",
}


def space_of(config: RunConfig, search: str | Sequence[str], backbones: str | Sequence[str] = ()) -> Space:
    """The values that trials may have for each setting in `search`.

    The value of `config` is always among them. Choices that the other settings of `config` exclude are logged and
    not searched.

    Parameters
    ----------
    config
        The settings that the study starts with.
    search
        Names of settings, of those in `SPACE` or "backbone": a sequence, or one string with commas or spaces between.
    backbones
        Names of backbones to choose from; needed if `search` has "backbone".

    Raises
    ------
    ConfigError
        For a name that cannot be searched, an unknown backbone, or a setting that would have no effect.

    Examples
    --------
    >>> space = space_of(RunConfig(learning_rate=0.02), "learning_rate pooling")
    >>> {name: in_words(values) for name, values in space.items()}
    {'learning_rate': '0.0001 to 0.02, on a logarithmic scale', 'pooling': 'avg, max'}
    """
    search, backbones = _names(search), _names(backbones)
    # CategoricalDistribution must not be empty, so it holds the backbone of `config` if none are searched.
    known = {**SPACE, "backbone": CategoricalDistribution(backbones or (config.backbone,))}
    if not search:
        raise ConfigError(f"search names no setting; these can be searched: {', '.join(known)}")
    _refuse_unknown("search", search, known)
    _refuse_unknown("backbones", backbones, BACKBONES)
    if ("backbone" in search) != bool(backbones):
        raise ConfigError('"backbone" in search and names in backbones go together: give both or neither')
    fine_tuning = [name for name in search if name.startswith("fine_tune")]
    if fine_tuning and not config.freeze_backbone:
        raise ConfigError(f"search: {fine_tuning[0]} has no effect unless freeze_backbone is true")
    if fine_tuning == ["fine_tune_learning_rate"] and not config.fine_tune_epochs:
        raise ConfigError("search: fine_tune_learning_rate has no effect with fine_tune_epochs 0: search both")
    if "combine" in search and "unit" not in search and config.unit == "image":
        raise ConfigError('search: combine has no effect with unit "image": search both, or set unit')
    # In the order of SPACE: a setting must be proposed before those that depend on it.
    return {name: _including_own(config, name, values) for name, values in known.items() if name in search}


def _names(names: str | Sequence[str]) -> list[str]:
    return names.replace(",", " ").split() if isinstance(names, str) else list(names)


def _refuse_unknown(parameter: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3) or list(known)
            raise ConfigError(f"{parameter}: {name} is not known; the nearest are {', '.join(close)}")


def _including_own(config: RunConfig, name: str, values: Values) -> Values:
    """The values with that of `config`, without the choices that its other settings exclude."""
    own = getattr(config, name)
    if isinstance(values, FloatDistribution):
        return FloatDistribution(min(values.low, own), max(values.high, own), log=values.log)
    kept = []
    for value in dict.fromkeys([*values.choices, own]):  # a set would lose the order
        try:
            config.replace(**{name: value})  # RunConfig checks the settings together
            kept.append(value)
        except ConfigError as error:
            log.warning("%s %s is not searched: %s", name, value, error)
    return CategoricalDistribution(kept)


def in_words(values: Values) -> str:
    """The values as a table shows them: "0.0001 to 0.01, on a logarithmic scale" or "avg, max"."""
    if isinstance(values, FloatDistribution):
        return f"{values.low:g} to {values.high:g}{', on a logarithmic scale' if values.log else ''}"
    return ", ".join(map(str, values.choices))


def _is_drawn(name: str, config: RunConfig) -> bool:
    return name not in DRAWN_WHEN or DRAWN_WHEN[name](config)


def draw(trial: Trial, space: Space, config: RunConfig) -> RunConfig:
    """`config` with the values that Optuna proposes for the trial; `ConfigError` if they contradict each other."""
    for name, values in space.items():
        if not _is_drawn(name, config):
            continue
        if isinstance(values, FloatDistribution):
            drawn: Any = trial.suggest_float(name, values.low, values.high, log=values.log)
        else:
            drawn = trial.suggest_categorical(name, values.choices)
        config = config.replace(**{name: drawn})
    return config


def own_values(space: Space, config: RunConfig) -> dict[str, Any]:
    """The searched values of a trial with exactly the settings of `config`, by name."""
    return {name: getattr(config, name) for name in space if _is_drawn(name, config)}
