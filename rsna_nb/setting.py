"""What a setting is: a default, a help text, a type and a rule, said once."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

INFINITY = float("inf")


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names it."""


def setting(
    default: Any,
    help: str,
    rule: str = "",
    check: Callable[[Any], bool] = lambda value: True,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that carries its help text, its rule, in words and as a function, and what may be chosen."""
    return field(default=default, metadata={"help": help, "rule": rule, "check": check, "choices": choices})


def one_of(default: str, choices: tuple[str, ...], help: str) -> Any:
    return setting(default, help, f"one of {', '.join(choices)}", lambda value: value in choices, choices)


def number(default: float, low: float, high: float, help: str) -> Any:
    """A number in [low, high); `high` may be infinite."""
    rule = f"at least {low:g}" + (f" and below {high:g}" if high < INFINITY else "")
    return setting(default, help, rule, lambda value: low <= value < high)


def is_image_size(size: int | list[int]) -> bool:
    sides = size if isinstance(size, list) else [size, size]
    return len(sides) == 2 and all(type(side) is int and side >= 32 and side % 32 == 0 for side in sides)


def is_group(text: str) -> bool:
    column, equals, value = text.partition("=")
    return not text or bool(column and equals and value)


def is_folder_name(name: str) -> bool:
    return all(character.isalnum() or character in "-_." for character in name) and not name.startswith(".")


def coerce(name: str, value: Any, kind: type) -> Any:
    """`value` as `kind`, where nothing is lost by it; `ConfigError` otherwise."""
    if name == "img_size" and isinstance(value, str | list | tuple):
        return parse_sides(value)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and isinstance(value, str):  # YAML, and so papermill's -f, takes 1e-3 for text
        with contextlib.suppress(ValueError):
            return float(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if type(value) is not kind:
        hint = f"; papermill keeps text as it is with -r {name} <text>" if kind is str else ""
        raise ConfigError(f"{name} must be of type {kind.__name__}, not {type(value).__name__} {value!r}{hint}")
    return value


def parse_sides(value: str | list | tuple) -> Any:
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ConfigError(f"img_size must be a number or [height, width], not {value!r}") from error
    return list(parsed) if isinstance(parsed, list | tuple) else parsed
