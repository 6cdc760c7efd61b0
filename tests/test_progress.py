"""What a person sees of long work: in a terminal, in a notebook's editor, and in a log."""

import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

from rsna_nb import _without_start_lines, runs
from rsna_nb.evaluation import in_lines
from rsna_nb.system import IN_BAR, SAME, is_watched, progress

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    """A clock of the bars that a test sets, in seconds."""
    now = [0.0]
    monkeypatch.setattr("rsna_nb.system.bars.time.monotonic", lambda: now[0])
    return now


def lines(total: int, seconds: float, clock: list[float], capsys) -> list[str]:
    """The lines of work with `total` steps of so many seconds each."""
    with progress(None, "drawing", total, "women") as bar:
        bar._time = lambda: clock[0]
        bar.start_t = bar.last_print_t = clock[0]
        for _ in range(total):
            clock[0] += seconds
            bar.update()
    return capsys.readouterr().err.splitlines()


def test_short_work_has_one_line_at_its_end(clock, capsys):
    (line,) = lines(10, 0.1, clock, capsys)
    assert line.startswith("drawing: 100 %, 10 of 10 women, ")
    assert "women/s" in line
    assert "left" in line


def test_slow_work_has_the_seconds_of_a_step(clock, capsys):
    assert ", 20.00 s/women, " in lines(4, 20.0, clock, capsys)[-1]


def test_an_hour_has_about_a_line_a_minute(clock, capsys):
    assert 55 <= len(lines(3600, 1.0, clock, capsys)) <= 65


def test_a_minute_has_a_line_for_each_quarter(clock, capsys):
    found = lines(60, 1.0, clock, capsys)
    shares = [int(line.split()[1]) for line in found]
    assert len(shares) == 5
    assert shares[-1] == 100
    assert all(after - before >= 25 for before, after in itertools.pairwise(shares[:-1]))


def test_slow_steps_have_a_rate_too_and_the_end_has_one_line(clock, capsys):
    found = lines(4, 8.0, clock, capsys)
    assert ", 8.00 s/women, " in found[-1]
    assert [line.split()[1] for line in found].count("100") == 1


def test_work_that_fails_says_how_far_it_came(capsys):
    def broken():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), progress(broken(), "drawing", 4, "women") as bar:
        list(bar)
    assert "1 of 4 women" in capsys.readouterr().err


@pytest.fixture
def kernel(monkeypatch):
    """Let this process look like a notebook's kernel; returns the patch."""
    shell = InteractiveShell.instance()
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    yield monkeypatch
    InteractiveShell.clear_instance()


def test_papermill_has_lines_even_if_a_cell_of_an_open_notebook_calls_it(monkeypatch):
    """Its kernel inherits the editor's environment."""
    monkeypatch.setenv("JPY_SESSION_NAME", "open.ipynb")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = "from rsna_nb.system import progress\nfor _ in progress(range(4), 'drawing', 4, 'women'): pass"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output.name == "stdout"
    assert output.text.startswith("drawing: 100 %, 4 of 4 women")


def test_a_watched_notebook_has_one_line_that_is_updated(kernel, capsys):
    assert is_watched()
    shown, updated = [], []
    kernel.setattr("IPython.display.DisplayHandle.display", lambda self, text: shown.append(text.data))
    kernel.setattr("IPython.display.DisplayHandle.update", lambda self, text: updated.append(text.data))
    assert list(progress(range(3), "drawing", 3, "women")) == [0, 1, 2]
    assert len(shown) == 1
    assert "3 of 3 women" in [*shown, *updated][-1]
    assert capsys.readouterr() == ("", "")


def test_a_watched_notebook_has_no_lines_of_what_its_bar_shows(kernel, capsys):
    runs.log_to_console()
    log = logging.getLogger("rsna_nb.training")
    log.info("epoch 1", extra=IN_BAR)
    kernel.setattr(sys, "argv", [*sys.argv, "--HistoryManager.hist_file=:memory:"])  # as nbclient starts a kernel
    log.info("epoch 2", extra=IN_BAR)
    shown = capsys.readouterr().out
    assert "epoch 1" not in shown
    assert "epoch 2" in shown


def test_what_each_run_finds_anew_is_shown_once(capsys):
    runs.log_to_console()
    for _ in range(2):
        logging.getLogger("rsna_nb.prepare").info("prepared: 3 images", extra=SAME)
        logging.getLogger("rsna_nb.training").info("finished")
    shown = capsys.readouterr().out
    assert shown.count("prepared: 3 images") == 1
    assert shown.count("finished") == 2


@pytest.mark.slow
def test_tensorflow_starts_without_lines_of_its_own():
    script = "import rsna_nb, os, tensorflow; os.write(2, b'kept')"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert answer.stderr == "kept"


def test_other_lines_stay_when_tensorflow_is_imported(capfd):
    with _without_start_lines():
        os.write(
            2, b"WARNING: All log messages before absl::InitializeLog()\nE0000 00:00:17 no memory\nI0000 00 oneDNN\n"
        )
    assert capfd.readouterr().err == "E0000 00:00:17 no memory\n"


def test_a_run_ends_with_its_auc_and_the_next_commands(small_run):
    text = in_lines(small_run, 200)
    assert f"run {small_run.path}\n" in text
    breast = small_run.metrics["test"]["breast"]["auc"]
    assert f"AUC by breast   {breast:.3f} (" in text
    assert " test women, " in text
    assert "which chose the epoch" not in text
    for command in ("rsna_nb.evaluation.report", "jupyter lab", f"rsna_nb.predict {small_run.path}"):
        assert command in text
