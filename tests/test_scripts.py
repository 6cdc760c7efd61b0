"""Plain scripts without `if __name__ == "__main__":`, from a file and from standard input, on two worker processes."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rsna_nb import synthetic
from rsna_nb.synthetic import dataset
from rsna_nb.system.workers import WorkerError

SCRIPT = """
from rsna_nb import metadata, prepare, synthetic
synthetic.generate("data", 4, 0.5, scale=0.05, test_patients=0, workers=2)
ledger = prepare.prepare_images(metadata.load_metadata("data"), "data", "stores", 64)
ledger.to_csv("ledger.csv", index=False)
print("prepared", len(ledger))
"""
OWN_FUNCTION = """
from rsna_nb.system import workers

def double(number):
    return 2 * number

list(workers.run(double, [1, 2]))
"""


def run_script(text: str, folder: Path, by: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, "script.py" if by == "file" else "-"],
        input="" if by == "file" else text,
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1])),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("by", ["file", "standard input"])
@pytest.mark.slow
def test_a_script_without_a_main_guard_generates_and_prepares(tmp_path, by):
    answer = run_script(SCRIPT, tmp_path, by)
    assert answer.returncode == 0, answer.stderr
    ledger = pd.read_csv(tmp_path / "ledger.csv")
    assert answer.stdout == f"prepared {len(ledger)}\n"  # once: the workers have not run the script again
    assert len(ledger) >= 16
    assert (ledger["status"] == "ok").all()
    assert len(list((tmp_path / "stores").rglob("*.png"))) == len(ledger)


@pytest.mark.parametrize("by", ["file", "standard input"])
def test_a_function_of_the_script_itself_is_refused_with_one_sentence(tmp_path, by):
    answer = run_script(OWN_FUNCTION, tmp_path, by)
    assert answer.returncode == 1
    assert "WorkerError: worker processes cannot import <function double" in answer.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_process_that_dies_while_it_draws_ends_generating_and_the_next_call_continues(tmp_path, monkeypatch):
    arguments = {"patients": 2, "prevalence": 0.5, "scale": 0.05, "test_patients": 0, "workers": 2}
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_draw_in_worker", die)
        with pytest.raises(WorkerError, match=r"woman \d+ was not drawn: the process crashed: exit code 3. Call again"):
            synthetic.generate(tmp_path, **arguments)
    synthetic.generate(tmp_path, **arguments)
    assert (tmp_path / "generated.json").exists()


def die(task: object) -> None:
    os._exit(3)
