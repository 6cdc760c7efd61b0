"""A worker process from the inside: it reads tasks from its standard input and writes answers to its standard output.

A message is its length in 8 bytes and a pickle. The streams are raw on both sides: a buffered one has a lock, and the
interpreter cannot end while a thread that waits for a message holds that lock.
"""

import contextlib
import ctypes
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

# Started with `python -c`, a worker never sees the script, notebook or standard input that the caller runs from.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, and the parent ends this process
sys.path[:] = {path}
from rsna_nb.system.worker_process import serve
serve()
"""
MEMORY = 1_500_000_000  # bytes that a process may allocate after its start
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
CHUNK = 2**16  # bytes that a pipe holds


class WorkerError(RuntimeError):
    """No worker process can do the work: none starts, or none can import the function."""


def command() -> list[str]:
    """Return the command that starts a worker process; it imports from where this process does."""
    path = [entry for entry in sys.path if isinstance(entry, str)]  # Python ignores entries of other types
    return [sys.executable, "-c", PROGRAM.format(path=path)]


def send(channel: IO[bytes], content: bytes) -> None:
    """Write one message; `OSError` if the other process has ended."""
    rest = memoryview(len(content).to_bytes(8, "big") + content)
    while rest:
        rest = rest[channel.write(rest) :]


def receive(channel: IO[bytes]) -> bytes:
    """Wait for one message; `EOFError` if the other process has ended."""
    return _read(channel, int.from_bytes(_read(channel, 8), "big"))


def _read(channel: IO[bytes], size: int) -> bytes:
    """Read exactly `size` bytes: a pipe returns what it has, which can be less."""
    content = bytearray()
    while len(content) < size:
        part = channel.read(min(size - len(content), CHUNK))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def serve() -> None:
    """Run tasks one after another, within the limits, until the parent ends. The first message says how."""
    requests, answers = _take_streams()
    waiting: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    try:
        function, cpu_seconds = pickle.loads(waiting.get())
    except Exception as error:
        send(answers, pickle.dumps(("raised", WorkerError(f"no worker process could start: {error!r}"))))
        return
    _limit_memory()
    keep_freed_memory()
    send(answers, pickle.dumps(("ready", None)))
    while True:
        task = waiting.get()
        _limit_work(cpu_seconds)
        send(answers, _answer(function, task))


def _take_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep standard input and output for messages. What libraries print goes to standard error from now on."""
    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _listen(requests: IO[bytes], waiting: SimpleQueue[bytes]) -> None:
    """Queue what the parent sends. Its end, also by SIGKILL, closes the stream and ends this process within a task."""
    while True:
        try:
            waiting.put(receive(requests))
        except (EOFError, OSError):
            os._exit(1)


def _answer(function: Callable[[Any], Any], task: bytes) -> bytes:
    """Return the message with the result of a task, or with what it raised."""
    try:
        return pickle.dumps(("done", function(pickle.loads(task))))
    except Exception as error:
        return pickle.dumps(("raised", error))


def _limit_memory() -> None:
    pages = Path("/proc/self/statm")
    if resource is None:
        return
    _limit(resource.RLIMIT_CORE, 0)  # no core dumps
    if pages.exists():
        _limit(resource.RLIMIT_DATA, int(pages.read_text().split()[5]) * resource.getpagesize() + MEMORY)


def _limit_work(cpu_seconds: int) -> None:
    """Have the kernel end the process with SIGXCPU after this much more CPU time."""
    if resource is not None:
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + cpu_seconds)


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
