import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsna_nb import runs
from rsna_nb.config import RunConfig

SCRIPT = """
import logging, sys
{before}
from rsna_nb import runs

runs.log_to_console()
runs.log_to_console()
{after}
logging.getLogger("rsna_nb.training").info("one line")
"""
BASIC = "logging.basicConfig(level=logging.INFO, stream={stream})"
CONSOLES = {
    "plain script": ("", ""),
    "root handler before": (BASIC.format(stream="sys.stderr"), ""),
    "root handler after": ("", BASIC.format(stream="sys.stdout")),
    "root file": ("logging.basicConfig(level=logging.INFO, filename='all.log')", ""),
    "root handler that shows warnings alone": (
        "logging.basicConfig(stream=sys.stderr); logging.root.handlers[0].setLevel(logging.WARNING)",
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), CONSOLES.values(), ids=CONSOLES)
def test_a_line_of_the_log_is_shown_once(tmp_path, before, after):
    script = SCRIPT.format(before=before, after=after)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert (answer.stdout + answer.stderr).count("one line") == 1
    if (tmp_path / "all.log").exists():
        assert (tmp_path / "all.log").read_text().count("one line") == 1


def test_a_line_of_the_log_is_shown_and_caught(caplog, capsys):
    runs.log_to_console()
    logging.getLogger("rsna_nb.training").info("one line")
    assert caplog.messages == ["one line"]
    assert capsys.readouterr().out.count("one line") == 1


def test_a_level_that_somebody_chose_stays(monkeypatch):
    monkeypatch.setattr(logging.getLogger("rsna_nb"), "level", logging.DEBUG)
    runs.log_to_console()
    assert logging.getLogger("rsna_nb").level == logging.DEBUG


def test_two_runs_of_one_second_have_folders_of_their_own(tmp_path):
    config = RunConfig(runs_dir=str(tmp_path), run_name="twin")
    made = [runs.new_run(config) for _ in range(2)]
    assert runs.list_runs(tmp_path) == made
    assert made[0].path != made[1].path


def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path):
    run = runs.new_run(RunConfig(runs_dir=str(tmp_path)))
    with pytest.raises(runs.RunError, match=rf"nothing.*{run.id}"):
        runs.load_run("nothing", tmp_path)
    with pytest.raises(runs.RunError, match=rf"metrics\.json.*{run.id}"):
        run.metrics  # noqa: B018
