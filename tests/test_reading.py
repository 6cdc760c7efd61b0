"""Reading many files side by side, in processes that start without TensorFlow."""

import os
import signal

import numpy as np

from rsna_nb.prepare import reading


def test_a_file_that_ends_its_process_costs_itself_alone(monkeypatch):
    monkeypatch.setattr(reading, "read_in_worker", read_or_die)
    found = dict(reading.read_pictures(["die" if i == 3 else "live" for i in range(reading.FEW + 1)], (2, 2)))
    assert "ended the process" in found.pop(3)
    assert all(np.array_equal(picture, np.ones((2, 2))) for picture in found.values())
    assert len(found) == reading.FEW


def read_or_die(task: reading.Task) -> np.ndarray:
    if task.path == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    return np.ones(task.shape)
