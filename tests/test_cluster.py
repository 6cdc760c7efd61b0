"""Preparing by a Dask cluster, with a real scheduler and real workers in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsna_nb.metadata import load_metadata
from rsna_nb.prepare import PrepareError, cluster, ledger, prepare_images, store_path
from tests.test_prepare import contents, without_timings

pytest.importorskip("distributed")


WORKER_OPTIONS = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]


class Dask:
    """A scheduler and two workers that can be killed.

    The scheduler gives a task up once more than `allowed_failures` workers have died with it.
    """

    def __init__(self, folder: Path, allowed_failures: int) -> None:
        self.folder, self.processes = folder, []
        self.environment = dict(os.environ, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=str(allowed_failures))
        file = folder / "scheduler.json"
        self.start("dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        while not file.exists():
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]
        self.workers = [self.start("dask_worker", self.address, *WORKER_OPTIONS) for _ in range(2)]

    def start(self, module: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", *arguments]
        quiet = subprocess.DEVNULL
        self.processes.append(
            subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=quiet, stderr=quiet)
        )
        return self.processes[-1]


@pytest.fixture
def dask(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dask]:
    started = Dask(tmp_path, request.param)
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("dask", [3, 0], indirect=True, ids=["done by another", "given up"])
def test_a_worker_that_dies_costs_at_most_the_files_it_had(generated, tmp_path, dask, monkeypatch):
    """The other worker prepares them. If the cluster gives them up, the ledger has their error until the next call."""
    df = load_metadata(generated)
    prepare_images(df, generated, tmp_path / "here", 64)
    appended, append = [], ledger.append

    def append_and_kill(store: Path, record: ledger.Record) -> None:
        append(store, record)
        appended.append((record.patient_id, record.image_id))
        if len(appended) == 20:
            dask.workers[0].send_signal(signal.SIGKILL)

    monkeypatch.setattr(ledger, "append", append_and_kill)
    with cluster(dask.address) as executor:
        rows = prepare_images(df, generated, tmp_path / "there", 64, executor)
        assert dask.workers[0].wait(10) == -signal.SIGKILL
        assert sorted(appended) == sorted(zip(df["patient_id"], df["image_id"], strict=True))
        given_up = rows["status"] == "error"
        assert given_up.any() == (dask.environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] == "0")
        assert rows["error"][given_up].str.startswith("KilledWorker").all()
        prepare_images(df, generated, tmp_path / "there", 64, executor)
    stores = [store_path(tmp_path / place, generated, 64) for place in ("here", "there")]
    assert contents(stores[0]) == contents(stores[1])
    assert without_timings(stores[0]) == without_timings(stores[1])


def test_a_scheduler_that_does_not_answer_is_an_error_with_its_address(monkeypatch):
    monkeypatch.setattr("rsna_nb.prepare.tasks.CONNECT_SECONDS", 1)
    with pytest.raises(PrepareError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"):
        cluster("tcp://127.0.0.1:9").__enter__()
