"""How far long work is, in a terminal, in a notebook that somebody watches, and in one that runs by itself.

A terminal has tqdm's bar. JupyterLab and other editors have one line that is updated in place. A notebook that
papermill runs, and a program without a terminal, have a new line from time to time: a log cannot be updated.
"""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LINE = (
    "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {elapsed} so far, {remaining} left{postfix}"
)
SECONDS = 60  # between two lines of a log at most; long work has one a minute,
SHARE, LEAST_SECONDS = 0.25, 5  # and short work one for each quarter, but none within five seconds of the last


def is_watched() -> bool:
    """Whether this process is the kernel of a notebook that is open in an editor, where output can be updated in place.

    It is none if nbclient started it, which papermill and nbconvert use: it gives its kernels a history in memory. The
    environment would not tell, for papermill called from a cell of an open notebook inherits that of the editor.
    """
    return _is_kernel() and not any(argument.startswith("--HistoryManager.hist_file") for argument in sys.argv)


def _is_kernel() -> bool:
    return hasattr(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "kernel")


def progress(steps: Iterable[Any] | None, what: str, total: int, unit: str) -> tqdm:
    """Count steps as they are taken, and show how far they are, their rate and the time left.

    Parameters
    ----------
    steps
        What is iterated over, or None if `update` is called on the result, which is a context manager then.
    what
        What is done, such as "preparing".
    total
        The number of steps.
    unit
        What a step is, in the plural.

    Examples
    --------
    >>> list(progress([3, 4], "adding", 2, "numbers"))
    [3, 4]
    """
    if is_watched():
        return _InPlace(steps, what, total, unit=f" {unit}", mininterval=0.5, bar_format=LINE, gui=True)
    if sys.stderr.isatty():
        return _Bar(steps, what, total, unit=f" {unit}", mininterval=1)
    return _Lines(steps, what, total, unit=f" {unit}", mininterval=1, bar_format=LINE, gui=True)


class _Bar(tqdm):
    """A bar whose slow rate is "5.94 s/epochs", where tqdm writes "5.94s/ epochs"."""

    @staticmethod
    def format_meter(*values: Any, **named: Any) -> str:
        return tqdm.format_meter(*values, **named).replace("s/ ", " s/").replace(",  ", ", ")


class _InPlace(_Bar):
    """A line of a notebook's output that is updated; tqdm's own needs ipywidgets, which are blank in saved pages."""

    shown: Any = None

    def display(self, *_: Any, **__: Any) -> None:
        from IPython.display import DisplayHandle, Pretty

        text = Pretty(str(self))
        if self.shown is None:
            self.shown = DisplayHandle()
            self.shown.display(text)
        else:
            self.shown.update(text)

    def close(self) -> None:
        if not self.disable:
            super().close()
            self.display()


class _Lines(_Bar):
    """Lines of a log, at growing distances."""

    printed: float | None = None  # when, and at which share of the steps
    share = -1.0

    def display(self, *_: Any, **__: Any) -> None:
        now, share = time.monotonic(), self.n / (self.total or 1)
        if self.printed is None:  # the work has only begun
            self.printed = now
        since = now - self.printed
        if since > SECONDS or (share - self.share >= SHARE and since > LEAST_SECONDS):
            self._print(now, share)

    def _print(self, now: float, share: float) -> None:
        self.printed, self.share = now, share
        # A kernel's log is on standard output; elsewhere that belongs to the result of a command.
        print(self, file=sys.stdout if _is_kernel() else sys.stderr, flush=True)

    def close(self) -> None:
        if not self.disable:
            super().close()
            if self.share < 1:
                self._print(time.monotonic(), 1.0)
