"""Worker processes: if a task crashes its process, only the result of that task is lost.

Written by hand because one dead process breaks ProcessPoolExecutor permanently, neither it nor joblib limits the time
or the memory of a task, and multiprocessing runs the caller's script again in every process, which hangs unless the
script guards its calls. Here each process is a program of its own (worker_process.py) with one task at a time. It is
replaced when it dies.
"""

import functools
import logging
import math
import pickle
import pickletools
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from rsna_nb.system.files import processors
from rsna_nb.system.worker_process import WorkerError, command, receive, resource, send

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

CPU_SECONDS = 10  # CPU time for a task; waiting for a slow disk does not count
WAIT_SECONDS = 120.0  # wall-clock time for a task, and for the start of a process
END_SECONDS = 10  # to wait for a process that has closed its output or was killed
Answers = SimpleQueue[tuple["_Worker", bytes | None]]  # None: the worker's process has ended


@dataclass(frozen=True)
class Death:
    """The reason why a process ended before it returned the result of its task."""

    reason: str


def run(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    processes: int | None = None,
    seconds: float = WAIT_SECONDS,
    cpu_seconds: int = CPU_SECONDS,
) -> Iterator[tuple[Task, Result | Death]]:
    """Give each task to `function` in another process; yield the task and its result as they finish.

    Parameters
    ----------
    function
        Takes a task and returns a result. Each process imports its module, so it cannot be one of the script or the
        notebook that runs. An exception that it raises is raised here. What it prints goes to standard error.
    tasks
        Anything that can be pickled.
    processes
        Number of processes; one for each core by default.
    seconds
        Wall-clock time after which a task's process is killed.
    cpu_seconds
        CPU time after which it is killed too (Unix). It cannot allocate more than `worker_process.MEMORY` (Linux).

    Yields
    ------
    tuple
        A task, and its result or the `Death` of the process that had it.

    Raises
    ------
    WorkerError
        If the processes cannot import the function, or if the first ones die before they can take a task.
    """
    _log_missing_limits()
    setup, waiting, any_started = _setup(function, cpu_seconds), deque(tasks), False
    workers: list[_Worker] = []
    answers: Answers = SimpleQueue()
    try:
        for _ in range(min(processes or processors(), len(tasks))):
            workers.append(_Worker(setup, waiting.popleft(), answers))
        while workers:
            worker, kind, content = _next_event(answers, workers, seconds, cpu_seconds)
            task = worker.task
            if kind == "raised":
                raise content
            if kind == "ready":
                any_started = worker.is_ready = True
                worker.give(task)
                continue
            if not any_started:
                raise WorkerError(f"no worker process could start, see the messages above ({content.reason})")
            if kind == "done" and waiting:
                worker.give(waiting.popleft())
            else:
                worker.kill()
                workers.remove(worker)
                workers += [_Worker(setup, waiting.popleft(), answers)] if waiting else []
            yield task, content
    finally:
        for worker in workers:
            worker.kill()


def _setup(function: Callable[[Any], Any], cpu_seconds: int) -> bytes:
    """Pickle what a process needs to start; `WorkerError` if it could not import the function there."""
    try:
        setup = pickle.dumps((function, cpu_seconds))
        is_importable = all(argument != "__main__" for _, argument, _ in pickletools.genops(setup))
    except (pickle.PicklingError, AttributeError, TypeError):
        is_importable = False
    if not is_importable:
        raise WorkerError(
            f"worker processes cannot import {function!r}: define it at the top level of a module, not in the script "
            "or notebook that runs"
        )
    return setup


def _next_event(
    answers: Answers, workers: "list[_Worker]", seconds: float, cpu_seconds: int
) -> tuple["_Worker", str, Any]:
    """Wait for an answer or the end of a process.

    Returns
    -------
    The worker and ("ready", None), ("done", the task's result), ("raised", an exception) or ("died", its `Death`).
    """
    while True:
        for worker in workers:
            limit = seconds if worker.is_ready else WAIT_SECONDS
            if time.monotonic() - worker.started > limit:
                return worker, "died", Death(f"given up: no answer within {limit:g} s")
        with suppress(queue.Empty):
            worker, answer = answers.get(timeout=1)
            if worker in workers:  # not one that was given up
                return worker, *(("died", worker.death(cpu_seconds)) if answer is None else pickle.loads(answer))


@functools.cache  # once in a process
def _log_missing_limits() -> None:
    if resource is None:
        log.warning("this system has no module resource: worker processes run without limits of CPU time and memory")


class _Worker:
    """A process and its task, as the parent sees them. The task is given when the process is ready."""

    def __init__(self, setup: bytes, task: Any, answers: Answers) -> None:
        self.process = subprocess.Popen(command(), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.task, self.started, self.is_ready = task, time.monotonic(), False
        self.requests: SimpleQueue[bytes | None] = SimpleQueue()
        self.requests.put(setup)
        threading.Thread(target=self._converse, args=(answers,), daemon=True).start()

    def _converse(self, answers: Answers) -> None:
        # In a thread, because Windows cannot wait for several pipes, and so a process that does not read blocks nobody.
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(EOFError, OSError), stdin, stdout:
            for request in iter(self.requests.get, None):
                send(stdin, request)
                self._report(answers, receive(stdout))
        self._report(answers, None)

    def _report(self, answers: Answers, answer: bytes | None) -> None:
        self.started = math.inf  # the clock stands still while the caller is busy with other results
        answers.put((self, answer))

    def give(self, task: Any) -> None:
        self.task, self.started = task, time.monotonic()
        self.requests.put(pickle.dumps(task))

    def death(self, cpu_seconds: int) -> Death:
        code = self._exit_code()
        if resource and code == -signal.SIGXCPU:
            return Death(f"given up: took more than {cpu_seconds} s of CPU time")
        cause = signal.strsignal(-code) if code and code < 0 else f"exit code {code}"
        event = "the process crashed" if self.is_ready else "the process did not start"
        return Death(f"{event}: {cause}")

    def kill(self) -> None:
        self.process.kill()
        self._exit_code()
        self.requests.put(None)

    def _exit_code(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        return self.process.returncode
