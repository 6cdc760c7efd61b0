"""Processes that work through tasks, where a task can cost its process and nothing else.

The standard library's pool is broken for good by one process that dies, and limits no task. Here each process
has a pipe of its own, has one task at a time, and is replaced when it dies.
"""

import contextlib
import ctypes
import os
import resource
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

Task = TypeVar("Task")
Result = TypeVar("Result")

SPAWN = get_context("spawn")  # a fork would inherit TensorFlow and its locks
WORK_SECONDS = 10  # of a processor, for a task: a slow disk takes none
WAIT_SECONDS = 120.0  # by the clock, for a task
MEMORY = 1_500_000_000  # bytes that a process may have above what it starts with
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
NO_START = (
    "no process could begin: a script that prepares images needs 'if __name__ == \"__main__\":' around what it does "
    "and a file of its own, not standard input; what else went wrong is in the messages above"
)


class WorkerError(RuntimeError):
    """The processes cannot work at all."""


@dataclass(frozen=True)
class Death:
    """What ended the process that had a task, in words."""

    reason: str


def run(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    processes: int | None = None,
    seconds: float = WAIT_SECONDS,
) -> Iterator[tuple[Task, Result | Death]]:
    """Each task and its result, as they finish, or what killed the process that had it.

    Parameters
    ----------
    function
        Given each task, in another process, which imports its module; returns something. What it raises is raised
        here.
    tasks
        Whatever can be pickled.
    processes
        One for each core by default.
    seconds
        After so long a task's process is killed; it is killed too after `WORK_SECONDS` of work, and refused
        memory above `MEMORY` (the last on Linux).

    Raises
    ------
    WorkerError
        Where a process dies before it could begin.
    """
    waiting, workers = deque(tasks), []
    any_began = False
    try:
        for _ in range(min(processes or processors(), len(tasks))):
            workers.append(Worker(function, waiting.popleft()))
        while workers:
            connection.wait([worker.pipe for worker in workers], timeout=1)
            for worker in list(workers):
                task, outcome = worker.task, worker.outcome(seconds)
                any_began |= worker.is_ready
                if outcome is None:
                    continue
                if not any_began:
                    raise WorkerError(f"{NO_START} ({outcome.reason})")
                if not waiting or isinstance(outcome, Death):
                    worker.kill()
                    workers.remove(worker)
                    workers += [Worker(function, waiting.popleft())] if waiting else []
                else:
                    worker.give(waiting.popleft())
                yield task, outcome
    finally:
        for worker in workers:
            worker.kill()


class Worker:
    """A process with a task, seen from its parent."""

    def __init__(self, function: Callable[[Any], Any], task: Any) -> None:
        self.pipe, others_end = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(function, others_end), daemon=True)
        self.process.start()
        others_end.close()  # or the pipe would not end with the process
        self.is_ready = False
        self.give(task)

    def give(self, task: Any) -> None:
        self.task, self.started = task, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it is dead, which `outcome` will find
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
        if code == -signal.SIGXCPU:
            return Death(f"given up: took more than {WORK_SECONDS} s of work")
        cause = signal.strsignal(-code) if code and code < 0 else f"exit code {code}"
        return Death(f"{'reading it ended the process' if self.is_ready else 'its process did not begin'}: {cause}")

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.pipe.close()


def serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """What a process does: a task after the other, within the limits, until its parent ends."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too, which ends this process
    limit_memory()
    keep_freed_memory()
    pipe.send(("ready", None))
    while True:
        task = pipe.recv()
        limit_work()
        try:
            answer = "done", function(task)
        except Exception as error:
            answer = "raised", error
        pipe.send(answer)


def end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def limit_memory() -> None:
    pages = Path("/proc/self/statm")
    limit(resource.RLIMIT_CORE, 0)
    if pages.exists():
        limit(resource.RLIMIT_DATA, int(pages.read_text().split()[5]) * resource.getpagesize() + MEMORY)


def limit_work() -> None:
    """The kernel ends the process with SIGXCPU after so many more seconds of processor time."""
    limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + WORK_SECONDS)


def limit(what: int, value: int) -> None:
    """Set the limit, or leave the machine's own where that is lower."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next file: giving it back costs 6 ms of page faults a picture."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 256 * 2**20)
        mallopt(M_MMAP_THRESHOLD, 128 * 2**20)
