"""Reading many files in worker processes, which start without TensorFlow."""

import os
import signal

import numpy as np

from rsna_nb.prepare import reading


def test_a_file_that_crashes_its_process_costs_no_other_file(monkeypatch):
    monkeypatch.setattr(reading, "_read_in_worker", read_or_die)
    found = dict(reading.read_pictures(["die" if i == 3 else "live" for i in range(reading.MAX_HERE + 1)], (2, 2)))
    assert "Segmentation fault" in found.pop(3)
    assert all(np.array_equal(picture.image, np.ones((2, 2))) for picture in found.values())
    assert len(found) == reading.MAX_HERE


def read_or_die(file: tuple[int, str], shape: tuple[int, int], recipe: None) -> reading.Picture:
    if file[1] == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    return reading.Picture(np.ones(shape))
