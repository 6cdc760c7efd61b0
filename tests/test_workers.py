"""A task that crashes or blocks its process loses only its own result."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
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
        ("crash", "the process crashed: Segmentation fault"),
        ("exit", "the process crashed: exit code 3"),
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
    answers = dict(workers.run(square_or_worse, ["spin", 3], processes=2, cpu_seconds=2))
    assert answers == {"spin": Death("given up: took more than 2 s of CPU time"), 3: 9}


def test_a_lower_limit_of_the_system_is_kept():
    code = "from rsna_nb.system import worker_process as own; own._limit_work(10); print(own.resource.getrlimit(0))"
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


def test_when_nobody_listens_any_more_the_processes_end(monkeypatch):
    monkeypatch.setenv("RSNA_NB_TEST", "nobody listens")
    answers = workers.run(square_or_worse, [1, "sleep", "sleep"], processes=2)
    next(answers)
    assert len(processes_with("RSNA_NB_TEST=nobody listens")) == 2
    started = time.monotonic()
    answers.close()
    assert not processes_with("RSNA_NB_TEST=nobody listens")
    assert time.monotonic() - started < 10  # killed, and not waited for


ORPHANS = """
import sys
from rsna_nb.system import workers
from tests.tasks import square_or_worse

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


def test_without_the_module_resource_there_are_no_limits_and_that_is_logged_once():
    """Windows has neither `resource` nor `fcntl`: settings can still be read and files prepared."""
    code = """if True:
        import logging, sys
        sys.modules['resource'] = None
        import rsna_nb.config
        from rsna_nb.system import worker_process, workers
        logging.basicConfig()
        print([*workers.run(abs, [-2], processes=1)], [*workers.run(abs, [-3], processes=1)])
        worker_process._limit_memory()
        worker_process._limit_work(10)
    """
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[(-2, 2)] [(-3, 3)]\n"
    assert answer.stderr.count("without limits") == 1


def test_no_tasks_need_no_process():
    assert list(workers.run(square_or_worse, [])) == []


@pytest.mark.parametrize("answer", ["ready", OSError("a value"), None])
def test_any_value_can_be_an_answer(answer):
    ((_, found),) = workers.run(same, [answer])
    assert repr(found) == repr(answer)


def test_an_error_before_the_start_is_not_a_tasks():
    with pytest.raises(WorkerError, match="could start"):
        list(workers.run(Unpicklable(), [1]))


def test_large_tasks_and_results_do_not_block():
    tasks = [bytes([n]) * 5_000_000 for n in range(8)]  # a pipe holds 64 KB
    answers = list(workers.run(same, tasks, processes=2))
    assert sorted(answers) == [(task, task) for task in tasks]


@pytest.mark.slow
def test_an_answer_that_waits_for_a_busy_caller_is_not_late():
    answers = workers.run(same, [1, 2, 3], processes=2, seconds=2)
    found = [next(answers)]
    time.sleep(2.5)
    assert sorted([*found, *answers]) == [(1, 1), (2, 2), (3, 3)]


def test_what_a_task_prints_is_no_answer(capfd):
    assert list(workers.run(square_or_worse, ["print", 3], processes=1)) == [("print", 0), (3, 9)]
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "printed by Python\nwritten by Cprinted by a program\n"


@pytest.mark.parametrize("wrong", [lambda task: task, partial(same, task=lambda: 0)])
def test_a_function_without_a_module_is_refused_at_once(wrong: Callable):
    with pytest.raises(WorkerError, match="define it at the top level of a module"):
        next(workers.run(wrong, [1]))


def test_a_value_that_cannot_be_pickled_is_an_error():
    with pytest.raises(TypeError, match="cannot pickle"):
        list(workers.run(same, [threading.Lock()], processes=1))
    with pytest.raises(TypeError, match="cannot pickle"):
        list(workers.run(open, [os.devnull], processes=1))


ABANDONED = """
from rsna_nb.system import workers
from tests.tasks import square_or_worse

answers = workers.run(square_or_worse, [1, "sleep", "sleep"], processes=2)
print(next(answers))
"""


def test_a_program_can_end_while_its_workers_are_busy():
    command = [sys.executable, "-X", "dev", "-c", ABANDONED]
    started = time.monotonic()
    answer = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("(1, 1)\n", "")
    assert time.monotonic() - started < 30  # "sleep" takes 60 s
