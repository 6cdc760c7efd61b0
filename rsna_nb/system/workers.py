"""Worker processes: if a task crashes its process, only the result of that task is lost.

Written by hand because one dead process breaks ProcessPoolExecutor permanently, and neither it nor joblib limits the
time or the memory of a task. Here each process has its own pipe and one task at a time, and is replaced when it dies.
"""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from rsna_nb.system.files import processors

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

SPAWN = get_context("spawn")  # a forked process would inherit TensorFlow's threads and locks, and can hang
WORK_SECONDS = 10  # CPU time for a task; waiting for a slow disk does not count
WAIT_SECONDS = 120.0  # wall-clock time for a task
MEMORY = 1_500_000_000  # bytes that a process may allocate after its start
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
NO_START = (
    "no worker process could start: a script that prepares images needs 'if __name__ == \"__main__\":' around its "
    "calls, and must be a file, not standard input; any other cause is in the messages above"
)


class WorkerError(RuntimeError):
    """No worker process could start at all."""


@dataclass(frozen=True)
class Death:
    """The reason why a process ended before it returned the result of its task."""

    reason: str


def run(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    processes: int | None = None,
    seconds: float = WAIT_SECONDS,
) -> Iterator[tuple[Task, Result | Death]]:
    """Give each task to `function` in another process; yield the task and its result as they finish.

    Parameters
    ----------
    function
        Takes a task and returns a result. Its module is imported in each process. An exception that it raises is
        raised here.
    tasks
        Anything that can be pickled.
    processes
        Number of processes; one for each core by default.
    seconds
        Wall-clock time after which a task's process is killed. It is also killed after `WORK_SECONDS` of CPU time
        (Unix), and it cannot allocate more memory than `MEMORY` (Linux).

    Yields
    ------
    tuple
        A task, and its result or the `Death` of the process that had it.

    Raises
    ------
    WorkerError
        If the first processes die before they can take a task.
    """
    _log_missing_limits()
    waiting, workers = deque(tasks), []
    any_started = False
    try:
        for _ in range(min(processes or processors(), len(tasks))):
            workers.append(_Worker(function, waiting.popleft()))
        while workers:
            connection.wait([worker.pipe for worker in workers], timeout=1)
            for worker in list(workers):
                task, outcome = worker.task, worker.outcome(seconds)
                any_started |= worker.is_ready
                if outcome is None:
                    continue
                if not any_started:
                    raise WorkerError(f"{NO_START} ({outcome.reason})")
                if not waiting or isinstance(outcome, Death):
                    worker.kill()
                    workers.remove(worker)
                    workers += [_Worker(function, waiting.popleft())] if waiting else []
                else:
                    worker.give(waiting.popleft())
                yield task, outcome
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """A process and its task, as the parent sees them."""

    def __init__(self, function: Callable[[Any], Any], task: Any) -> None:
        self.pipe, others_end = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(function, others_end), daemon=True)
        self.process.start()
        others_end.close()  # while the parent has it open too, the death of the process would not close the pipe
        self.is_ready = False
        self.give(task)

    def give(self, task: Any) -> None:
        self.task, self.started = task, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # the process is dead, which `outcome` will find
            self.pipe.send(task)

    def outcome(self, seconds: float) -> Any:
        """The task's result or its `Death`; None while it works. Raises what the task raised."""
        try:
            kind, content = self.pipe.recv() if self.pipe.poll() else (None, None)
        except (EOFError, ConnectionResetError):
            return self.death()
        if isinstance(content, Exception) and kind == "raised":
            raise content
        if kind == "ready":
            self.is_ready, self.started = True, time.monotonic()
        elif kind is None and time.monotonic() - self.started > seconds:
            return Death(f"given up: no answer within {seconds:g} s")
        return content

    def death(self) -> Death:
        self.process.join(10)
        code = self.process.exitcode
        if resource and code == -signal.SIGXCPU:
            return Death(f"given up: took more than {WORK_SECONDS} s of CPU time")
        cause = signal.strsignal(-code) if code and code < 0 else f"exit code {code}"
        event = "the process crashed while reading it" if self.is_ready else "the process did not start"
        return Death(f"{event}: {cause}")

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.pipe.close()


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """Run tasks one after another, within the limits, until the parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, and the parent ends this process
    _limit_memory()
    keep_freed_memory()
    pipe.send(("ready", None))
    while True:
        task = pipe.recv()
        _limit_work()
        try:
            answer = "done", function(task)
        except Exception as error:
            answer = "raised", error
        pipe.send(answer)


def _end_with_parent() -> None:
    # A daemon process outlives a parent that is killed by SIGKILL: Python's clean-up does not run then.
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@functools.cache  # once in a process
def _log_missing_limits() -> None:
    if resource is None:
        log.warning("this system has no module resource: worker processes run without limits of CPU time and memory")


def _limit_memory() -> None:
    pages = Path("/proc/self/statm")
    if resource is None:
        return
    _limit(resource.RLIMIT_CORE, 0)  # no core dumps
    if pages.exists():
        _limit(resource.RLIMIT_DATA, int(pages.read_text().split()[5]) * resource.getpagesize() + MEMORY)


def _limit_work() -> None:
    """Have the kernel end the process with SIGXCPU after another `WORK_SECONDS` of CPU time."""
    if resource is not None:
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + WORK_SECONDS)


def _limit(what: int, value: int) -> None:
    """Set a limit of this process, or keep the system's own limit if that is lower."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next file: returning it costs 6 ms of page faults per image."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 256 * 2**20)
        mallopt(M_MMAP_THRESHOLD, 128 * 2**20)
