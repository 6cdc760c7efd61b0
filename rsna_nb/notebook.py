"""What a notebook shows in the place of a figure that cannot be made, and its sentences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class UnavailableError(Exception):
    """Something that cannot be shown, or not rightly; the message says why, and what to do."""


@dataclass(frozen=True)
class Markdown:
    """Markdown that a notebook shows as such."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class Unavailable:
    """What stands in the place of a figure that cannot be made."""

    reason: str

    def __str__(self) -> str:
        return f"left out: {self.reason}"

    def _repr_markdown_(self) -> str:
        return f"*Left out: {self.reason}.*"


def attempt(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What `make` returns, or `Unavailable` with the reason why not; what another left out is passed on."""
    for argument in arguments:
        if isinstance(argument, Unavailable):
            return argument
    try:
        return make(*arguments, **options)
    except UnavailableError as error:
        return Unavailable(str(error).rstrip("."))
