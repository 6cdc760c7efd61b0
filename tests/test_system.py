import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from rsna_nb.system import DamagedFileError, is_held, locked, read_arrays, write_arrays


def test_no_flipped_bit_of_a_file_of_arrays_goes_unnoticed(tmp_path):
    path = tmp_path / "arrays.npz"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_arrays(path, arrays)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                found = read_arrays(path)
            except DamagedFileError:
                continue
            if "a" in found:  # the flip is in a date or an attribute that nobody reads
                np.testing.assert_array_equal(found["a"], arrays["a"])


def test_a_file_that_is_not_there_is_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "nothing.npz")


HOLDER = """
import sys, time
from pathlib import Path
from rsna_nb.system import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path, caplog):
    folder = tmp_path / "work"
    assert not is_held(folder)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert is_held(folder)
    killer = threading.Timer(0.5, holder.send_signal, [signal.SIGKILL])
    killer.start()
    with caplog.at_level("INFO"), locked(folder):
        assert is_held(folder)
    assert "another process is working" in caplog.text
    assert str(folder) in caplog.text
    assert not is_held(folder)
    holder.communicate()
    killer.join()


def test_settings_can_be_read_where_there_is_no_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; from rsna_nb.config import RunConfig; print(RunConfig().epochs)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "35\n"
