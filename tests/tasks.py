"""What the worker processes of test_workers do. Each of them imports this module, so it imports little itself."""

import os
import signal
import subprocess
import sys
import time


def square_or_worse(task: int | str) -> int:
    match task:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "sleep":
            time.sleep(60)
        case "spin":
            while True:
                pass
        case "grow":
            import numpy as np

            return int(np.ones(4_000_000_000, np.uint8)[-1])
        case "raise":
            raise OSError("No space left on device")
        case "parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case "print":
            print("printed by Python", flush=True)
            os.write(1, b"written by C")
            subprocess.run(["sh", "-c", "echo printed by a program; cat"], check=True)
            return len(sys.stdin.read())
    assert isinstance(task, int)
    return task**2


def square_or_refuse(task: int | str) -> int | str:
    try:
        return square_or_worse(task)
    except MemoryError:
        return "refused"


def same(task: object) -> object:
    return task


class Unpicklable:
    """Cannot be made again in another process."""

    def __reduce__(self) -> tuple:
        return missing, ()

    def __call__(self, task: int) -> int:
        return task


def missing() -> None:
    raise RuntimeError("this function cannot be loaded here")
