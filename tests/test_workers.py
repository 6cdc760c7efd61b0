"""A task that crashes or blocks its process loses only its own result."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsna_nb.system import workers
from rsna_nb.system.workers import Death, WorkerError
from tests.tasks import Unpicklable, same, square_or_refuse, square_or_worse


def test_every_task_is_answered_once():
    answers = list(workers.run(square_or_worse, range(200), processes=3))
    assert sorted(answers) == [(n, n**2) for n in range(200)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("crash", "the process crashed while reading it: Segmentation fault"),
        ("exit", "the process crashed while reading it: exit code 3"),
        ("sleep", "given up: no answer within 2 s"),
    ],
)
def test_a_task_that_ends_its_process_costs_that_task(bad, reason):
    tasks = [0, 1, bad, 2, bad, 3]
    answers = list(workers.run(square_or_worse, tasks, processes=2, seconds=2))
    assert [answer for answer in answers if isinstance(answer[1], Death)] == [(bad, Death(reason))] * 2
    assert sorted(answer for answer in answers if answer[0] != bad) == [(0, 0), (1, 1), (2, 4), (3, 9)]


@pytest.mark.slow
def test_a_task_that_works_too_long_is_ended_by_the_kernel():
    answers = dict(workers.run(square_or_worse, ["spin", 3], processes=2))
    assert answers == {"spin": Death("given up: took more than 10 s of CPU time"), 3: 9}


def test_a_lower_limit_of_the_system_is_kept():
    code = "from rsna_nb.system import workers; workers._limit_work(); print(workers.resource.getrlimit(0))"
    answer = subprocess.run(
        ["bash", "-c", f'ulimit -t 5; "$0" -c "{code}"', sys.executable], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "(5, 5)\n"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux")
def test_memory_is_refused_to_a_task_that_takes_too_much():
    assert dict(workers.run(square_or_refuse, ["grow", 3], processes=1)) == {"grow": "refused", 3: 9}


def test_what_a_task_raises_is_raised_here():
    with pytest.raises(OSError, match="No space left"):
        list(workers.run(square_or_worse, [1, "raise", 2], processes=1))


def test_when_nobody_listens_any_more_the_processes_end():
    answers = workers.run(square_or_worse, [1, "sleep", "sleep"], processes=2)
    next(answers)
    assert multiprocessing.active_children()
    started = time.monotonic()
    answers.close()
    assert not multiprocessing.active_children()
    assert time.monotonic() - started < 10  # killed, and not waited for


ORPHANS = """
import sys
from rsna_nb.system import workers
from tests.tasks import square_or_worse

if __name__ == "__main__":
    list(workers.run(square_or_worse, ["sleep", "parent"], processes=2))
"""


def test_processes_end_with_their_parent(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    marker = f"RSNA_NB_TEST={os.getpid()}"
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]), RSNA_NB_TEST=str(os.getpid()))
    parent = subprocess.run([sys.executable, script], env=environment, check=False)
    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while (alive := processes_with(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def processes_with(variable: str) -> list[str]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


UNGUARDED = """
from rsna_nb.system import workers
from tests.tasks import square_or_worse

list(workers.run(square_or_worse, [1, 2], processes=2))
"""


def test_an_error_names_the_guard_that_a_script_lacks(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    answer = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "if __name__ ==" in answer.stderr.splitlines()[-1]


def test_without_the_module_resource_there_are_no_limits_and_that_is_logged_once():
    """Windows has neither `resource` nor `fcntl`: settings can still be read and files prepared."""
    code = """if __name__ == '__main__':
        import logging, sys
        sys.modules['resource'] = None
        import rsna_nb.config
        from rsna_nb.system import workers
        logging.basicConfig()
        print([*workers.run(abs, [-2], processes=1)], [*workers.run(abs, [-3], processes=1)])
        workers._limit_memory()
        workers._limit_work()
    """
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[(-2, 2)] [(-3, 3)]\n"
    assert answer.stderr.count("without limits") == 1


def test_no_tasks_need_no_process():
    assert list(workers.run(square_or_worse, [])) == []


@pytest.mark.parametrize("answer", ["ready", OSError("a value")])
def test_any_value_can_be_an_answer(answer):
    ((_, found),) = workers.run(same, [answer])
    assert repr(found) == repr(answer)


def test_an_error_before_the_start_is_not_a_tasks():
    with pytest.raises(WorkerError, match="could start"):
        list(workers.run(Unpicklable(), [1]))
