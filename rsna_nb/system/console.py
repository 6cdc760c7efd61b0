"""The package's log on the console of a script, a terminal or a notebook."""

import logging
import sys

from rsna_nb.system.bars import is_watched

SAME = {"is_same": True}
"""`extra` of a line of the log that each run and each cell repeats: the console shows it the first time."""
IN_BAR = {"is_in_bar": True}
"""`extra` of a line of the log that a watched notebook has in a bar."""


class Console(logging.StreamHandler):
    """Writes to standard output, unless a handler of the root logger shows the line on the console anyway."""

    # Turning propagation off would also end the doubled lines, but a root logger's file or caplog would then miss them.
    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        self.once: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; one that the console has already is left out."""
        self.stream = sys.stdout  # a kernel and pytest replace it
        consoles = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        shown = any(
            record.levelno >= handler.level
            and (getattr(handler, "stream", None) in consoles or hasattr(handler, "console"))  # `console`: rich's
            for handler in logging.getLogger().handlers
        )
        if shown or (getattr(record, "is_in_bar", False) and is_watched()):
            return
        if getattr(record, "is_same", False):
            if record.getMessage() in self.once:
                return
            self.once.add(record.getMessage())
        super().emit(record)
