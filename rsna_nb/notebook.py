"""What the notebooks share: Markdown output, the reason why a figure is not available, and parameters.

    python -m rsna_nb.notebook [folder]

copies the notebooks and their recipes to notebooks/ in a folder, by default the working folder.
"""

import argparse
import sys
from collections.abc import Callable, Container, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PACKAGE = Path(__file__).parent
# An installed package contains the notebooks; in a checkout they are next to it.
NOTEBOOKS = PACKAGE / "notebooks" if (PACKAGE / "notebooks").is_dir() else PACKAGE.parent / "notebooks"
_KEY = "_rsna_nb_parameters"  # of the object `Parameters` in the notebook's globals


class UnavailableError(Exception):
    """Something cannot be shown, or would mislead; the message says why, and what to do."""


@dataclass(frozen=True)
class Markdown:
    """Text that a notebook renders as Markdown."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class Unavailable:
    """Returned instead of a figure or table that cannot be made; it gives the reason."""

    reason: str

    def __str__(self) -> str:
        return f"not available: {self.reason}"

    def _repr_markdown_(self) -> str:
        return f"*Not available: {self.reason}.*"


def attempt(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call `make`; if it raises `UnavailableError`, return `Unavailable` with the reason.

    If an argument is itself `Unavailable`, that is returned and `make` is not called.

    >>> def figure(rows):
    ...     raise UnavailableError("there are no rows")
    >>> print(attempt(figure, []))
    not available: there are no rows
    """
    for argument in arguments:
        if isinstance(argument, Unavailable):
            return argument
    try:
        return make(*arguments, **options)
    except UnavailableError as error:
        return Unavailable(str(error).rstrip("."))


def copy_notebooks(folder: str | Path = ".") -> list[str]:
    """Copy the notebooks and their recipes to notebooks/ in `folder`; a file that differs is kept.

    Returns
    -------
    One line for each file that differs, and one that counts the copied files.
    """
    lines, copied, goal = [], 0, Path(folder) / "notebooks"
    for source in sorted([*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("params/*.json")]):
        path = goal / source.relative_to(NOTEBOOKS)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
            copied += 1
        elif path.read_bytes() != source.read_bytes():
            lines.append(f"{path} is kept, because it differs; for the package's own, move it away and run this again")
    return [*lines, f"files copied to {goal}: {copied}"]


class Parameters:
    """Which variables a notebook's parameters cell set, which its file of settings set, and which were set later.

    The object is kept in the notebook's globals. Only plain values count (numbers, text, lists, dictionaries and
    None), and no name that begins with an underscore. The cell's source is never parsed: two snapshots, before and
    after the cell, tell what it set.
    """

    def __init__(self, others: Iterable[str] = ()) -> None:
        """`others` are the names of plain variables that the notebook had before its parameters cell."""
        self.others = set(others)
        self.names: set[str] = set()
        self.settings: set[str] = set()
        self.cell: dict[str, Any] = {}
        self.file_values: dict[str, Any] = {}
        self.file: str | Path = ""
        self.after_cell: dict[str, Any] = {}
        self.now: dict[str, Any] = {}
        self.faults: Sequence[str] = ()
        self.is_begun = self.is_ended = self.is_read = False

    @classmethod
    def of(cls, namespace: MutableMapping[str, Any]) -> "Parameters":
        """The object in a notebook's globals; it is made if the notebook has not called `begin`."""
        return namespace.setdefault(_KEY, cls())

    @classmethod
    def begin(cls, namespace: MutableMapping[str, Any], settings: Iterable[str]) -> None:
        """Before the cell: delete the variables that its last run set, and note the others."""
        # Without this a line that was deleted from the cell would still count when the cell is run again. `cell` is
        # forgotten too: the cell may have run twice before anything read it.
        known = cls.of(namespace)
        stale = {*settings, *known.names, *known.cell}
        for name in stale & _plain(namespace, stale).keys():
            del namespace[name]
        namespace[_KEY] = begun = cls(_plain(namespace))
        begun.is_begun, begun.settings = True, set(settings)

    def end(
        self,
        namespace: MutableMapping[str, Any],
        values: Mapping[str, Any],
        file: str | Path,
        faults: Sequence[str] = (),
    ) -> None:
        """After the cell: note what it set, then set the `values` of `file`; `faults` say why it cannot be read."""
        self.cell = self._new(namespace)
        namespace.update(values)
        self.file_values, self.file, self.faults = dict(values), file, faults
        self.after_cell, self.is_ended = self._new(namespace), True

    def read(self, namespace: MutableMapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The variables since `begin`, by name; if it was not called, only those that are settings.

        Once they have been read without a fault, further names count only if they are settings: later cells define
        variables of their own, and the cell that reads may be run again.
        """
        # A new name is a misspelt one only until the settings have been read: after that it can come from any cell.
        is_strict = self.is_begun and self.is_ended and not self.is_read
        self.now = {
            name: value
            for name, value in self._new(namespace).items()
            if is_strict or name in settings or name in self.names
        }
        self.names |= self.now.keys()
        return self.now

    def kind(self, name: str) -> type | None:
        """The type that a variable has in the cell; None if the cell does not set it."""
        return type(self.cell[name]) if name in self.cell else None

    def origin(self, name: str) -> str:
        """Where the value that was read last came from, in words; "" if the notebook has no such variable."""
        if name not in self.now:
            return ""
        if not self.is_ended:
            return "the notebook"
        if self._is_later(name):  # papermill's cell and a person's line look alike from here
            return "-f, -p or a line below the parameters cell"
        return str(self.file) if name in self.file_values else "the parameters cell"

    def is_given(self, name: str, default: Any) -> bool:
        """Whether somebody chose the value, even if it equals the default; a cell has a line for each setting."""
        return not _same(self.now[name], default) or (
            self.is_ended and (name in self.file_values or self._is_later(name))
        )

    def with_file(self, fault: str) -> str:
        """A fault, whose first word is a variable's name, with the file that set the variable in front."""
        # Every fault begins with the name, as ConfigError's lines do.
        name = fault.split()[0]
        return f"{self.file}: {fault}" if self.file and self.origin(name) == str(self.file) else fault

    def _is_later(self, name: str) -> bool:
        return name not in self.after_cell or not _same(self.now[name], self.after_cell[name])

    def _new(self, namespace: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in _plain(namespace, self.names | self.settings).items()
            if name not in self.others
        }


def _plain(namespace: Mapping[str, Any], names: Container[str] = ()) -> dict[str, Any]:
    """The variables that may be parameters by their names and types, and those in `names` whatever they are now."""
    # Modules, functions, tables and figures do not count: a notebook has many. Paths and NumPy numbers do, because
    # people give them to settings.
    kinds = bool | int | float | str | list | tuple | dict | Path | np.generic | None
    return {
        name: value
        for name, value in namespace.items()
        # A notebook may import a module that has a setting's name, such as `imbalance`.
        if (name in names and not isinstance(value, ModuleType))
        or (not name.startswith("_") and isinstance(value, kinds))
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one type: True is not 1."""
    return type(one) is type(other) and bool(np.all(one == other))


def main(arguments: list[str] | None = None) -> None:
    """The command line: copy the notebooks and print what was copied, or exit with the reason why they cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m rsna_nb.notebook", description="Copy the notebooks and their recipes to notebooks/ in a folder."
    )
    parser.add_argument("folder", nargs="?", default=".", help="by default the working folder")
    try:
        print(*copy_notebooks(parser.parse_args(arguments).folder), sep="\n")
    except OSError as error:
        sys.exit(f"the notebooks cannot be copied: {error}")


if __name__ == "__main__":
    main()
