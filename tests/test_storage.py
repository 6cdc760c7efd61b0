import numpy as np
import pytest

from rsna_nb.system.files import DamagedFileError, read_arrays, write_arrays


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
