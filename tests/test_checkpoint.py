"""Reading PyTorch checkpoints without PyTorch: right values, nothing but tensors, no code from the file."""

import argparse
import builtins
import copyreg
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from rsna_nb.backbones.checkpoint import LEGACY_MAGIC, read_tensors
from rsna_nb.backbones.weights import WeightsError

CODES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "uint16": "BFloat16Storage"}


class Name:
    """Pickles as a name of a module, without the module."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Pickler(pickle._Pickler):
    """Writes what torch.save writes: names of torch's functions, and storages by their keys."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[str, np.ndarray] = {}

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, np.ndarray):
            self.save_tensor(value)
        else:
            super().save(value, save_persistent_id)

    def save_tensor(self, array: np.ndarray) -> None:
        key = str(len(self.storages))
        base = array if array.base is None else array.base
        self.storages[key] = base
        strides = tuple(step // array.itemsize for step in array.strides)
        offset = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // array.itemsize
        self.save(Name("torch._utils", "_rebuild_tensor_v2"))
        self.write(pickle.MARK)
        self.save(("storage", Name("torch", CODES[array.dtype.name]), key, "cpu", base.size))
        self.write(pickle.BINPERSID)
        for part in (offset, array.shape, strides, False, OrderedDict()):
            self.save(part)
        self.write(pickle.TUPLE + pickle.REDUCE)


def pickled(content) -> tuple[bytes, dict[str, np.ndarray]]:
    file = io.BytesIO()
    pickler = Pickler(file)
    pickler.dump(content)
    return file.getvalue(), pickler.storages


def write_zip(path: Path, content) -> Path:
    described, storages = pickled(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", described)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path: Path, content) -> Path:
    described, storages = pickled(content)
    head = [pickle.dumps(each, 2) for each in (LEGACY_MAGIC, 1001, {"little_endian": True})]
    body = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join([*head, described, pickle.dumps(list(storages), 2), *body]))
    return path


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_tensors_come_back_as_they_were_saved(tmp_path, write):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    saved = {"a.weight": array, "a.part": array[1:, :, 2:].transpose(0, 2, 1), "count": np.array(7, np.int64)}
    saved["half"] = np.array([0.5, -2], np.float16)
    found = read_tensors(write(tmp_path / "file.pth", OrderedDict(saved)))
    assert list(found) == list(saved)
    for name, expected in saved.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_bfloat16_becomes_float32(tmp_path):
    (found,) = read_tensors(write_zip(tmp_path / "x.pth", {"a": np.array([0x3F80, 0xC000], np.uint16)})).values()
    np.testing.assert_array_equal(found, np.array([1, -2], np.float32))


def test_the_averaged_weights_of_a_training_checkpoint_are_taken_without_module(tmp_path):
    one, two = np.ones(2, np.float32), np.full(2, 2, np.float32)
    content = {"epoch": 3, "state_dict": {"module.a": one}, "state_dict_ema": {"module.a": two}}
    np.testing.assert_array_equal(read_tensors(write_zip(tmp_path / "x.pth.tar", content))["a"], two)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_options_and_metrics_beside_the_weights_are_passed_over(tmp_path, write):
    options = argparse.Namespace(lr=1e-4, device="cuda", exp_kwargs={"fold_idx": 0}, kinds={"a"})
    content = {
        "args": options,
        "metric": np.float64(0.5),
        "optimizer": {"state": {0: {"step": np.ones(1, np.float32)}}},
    }
    content = {"state_dict": {"a": np.ones(2, np.float32)}} | content
    assert list(read_tensors(write(tmp_path / "x.pth.tar", content))) == ["a"]


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("name", [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "array")])
def test_a_file_that_names_a_function_is_refused_and_nothing_is_called(tmp_path, write, name, monkeypatch):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("code of the file ran"))

    class Attack:
        def __reduce__(self):
            return os.getcwd, ()

    class AttackPickler(Pickler):
        def save_global(self, value, name_=None):
            self.save(Name(*name))

    file = io.BytesIO()
    AttackPickler(file).dump({"a": Attack()})
    monkeypatch.setitem(globals(), "pickled", lambda content: (file.getvalue(), {}))
    with pytest.raises(WeightsError, match=rf"it names {name[0]}\.{name[1]}, which is not a tensor"):
        read_tensors(write(tmp_path / "x.pth", None))


GLOBAL = b"cos\nsystem\n"  # the opcode that names a function
COMMAND = b"(X\x04\x00\x00\x00exit"  # a mark and the text "exit"
ATTACKS = {
    "GLOBAL and REDUCE": GLOBAL + COMMAND + b"tR.",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93" + COMMAND + b"tR.",
    "INST": COMMAND + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nX\x04\x00\x00\x00exito.",
    "NEWOBJ": GLOBAL + COMMAND + b"t\x81.",
    "NEWOBJ_EX": GLOBAL + COMMAND + b"t}\x92.",
    "BUILD": GLOBAL + b"}b.",
    "eval": b"cbuiltins\neval\n" + COMMAND + b"tR.",
    "getattr": b"cbuiltins\ngetattr\n" + COMMAND + b"tR.",
    "a function of torch": b"ctorch\nload\n" + COMMAND + b"tR.",
    "a function of torch._utils": b"ctorch._utils\n_import_dotted_name\n" + COMMAND + b"tR.",
    "an attribute of an allowed class": b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93" + COMMAND + b"tR.",
    "our own module": b"crsna_nb.backbones.checkpoint\npickle.loads\n" + COMMAND + b"tR.",
    "inside a state dict": b"}X\x01\x00\x00\x00a" + GLOBAL + COMMAND + b"tRs.",
    "as the key of a storage": b"(X\x07\x00\x00\x00storage"
    + GLOBAL
    + COMMAND
    + b"tRX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
}


def as_zip(path: Path, described: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + described)
        archive.writestr("archive/data/0", bytes(4))
    return path


def as_legacy(path: Path, described: bytes) -> Path:
    head = [pickle.dumps(each, 2) for each in (LEGACY_MAGIC, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + b"\x80\x04" + described)
    return path


@pytest.mark.parametrize("write", [as_zip, as_legacy])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_opcode_reaches_a_function(tmp_path, monkeypatch, write, attack):
    for module, name in ((os, "system"), (builtins, "eval")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("code of the file ran"))
    with pytest.raises(WeightsError, match=r"it names .*, which is not a tensor"):
        read_tensors(write(tmp_path / "x.pth", ATTACKS[attack]))


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_extension_codes_are_refused_even_if_the_process_knows_them(tmp_path, monkeypatch, write):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("code of the file ran"))
    monkeypatch.setitem(copyreg._inverted_registry, 7, ("os", "system"))
    monkeypatch.setitem(copyreg._extension_cache, 7, os.system)  # then `find_class` is not asked
    with pytest.raises(WeightsError, match="extension codes"):
        read_tensors(write(tmp_path / "x.pth", b"\x82\x07" + COMMAND + b"tR."))


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
HARMLESS = {
    "a state of an allowed function": b"ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "an odd tag": b"(X\x05\x00\x00\x00otherctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ.",
    "a text as tag": b"Pstorage\n.",
    "a list as key": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n]X\x03\x00\x00\x00cpuK\x01tQ.",
    "a number as name": b"}K\x01ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x01\x85K\x01\x85tRs.",
    "no tensors": b"}X\x01\x00\x00\x00aK\x01s.",
    "an unknown opcode": b"\xff.",
}


@pytest.mark.parametrize("odd", HARMLESS)
def test_odd_content_is_refused(tmp_path, odd):
    with pytest.raises(WeightsError):
        read_tensors(as_zip(tmp_path / "x.pth", HARMLESS[odd]))


def described_tensor(shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A state dict with one tensor of these sides, in a storage of one value."""
    sides, steps = (pickle.dumps(each, 2)[2:-1] for each in (shape, strides))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00" + sides + steps + b"\x89}tR"
    return b"}X\x01\x00\x00\x00a" + tensor + b"s."


@pytest.mark.parametrize(
    ("shape", "strides"), [((2**40,), (0,)), ((2**33, 2**33), (0, 0)), ((2**40, -1), (0, 0)), ((2**62,), (1,))]
)
def test_sizes_that_a_file_only_claims_are_refused(tmp_path, shape, strides):
    np.testing.assert_array_equal(read_tensors(as_zip(tmp_path / "1.pth", described_tensor((1,), (1,))))["a"], [0])
    with pytest.raises(WeightsError, match=r"its tensors claim \d+ bytes"):
        read_tensors(as_zip(tmp_path / "x.pth", described_tensor(shape, strides)))


@pytest.mark.parametrize("write", [as_zip, as_legacy])
@pytest.mark.parametrize("described", [b"]r\xff\xff\xff\x00.", b"]p16777215\n.", b"\x8e" + b"\xff" * 7 + b"\x7f."])
def test_no_memory_is_taken_for_numbers_and_lengths_that_a_file_only_claims(tmp_path, write, described):
    tracemalloc.start()
    with pytest.raises(WeightsError):
        read_tensors(write(tmp_path / "x.pth", described))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_an_archive_with_compressed_or_repeated_members_is_refused(tmp_path):
    described = described_tensor((1,), (1,))
    with pytest.raises(WeightsError, match="compressed or repeated"):
        read_tensors(as_zip(tmp_path / "x.pth", described, zipfile.ZIP_DEFLATED))
    path = as_zip(tmp_path / "y.pth", described)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", bytes(4))
    with pytest.raises(WeightsError, match="compressed or repeated"):
        read_tensors(path)


def test_a_cut_off_file_is_refused_at_every_length(tmp_path):
    content = write_legacy(tmp_path / "x.pth", {"a": np.arange(6, dtype=np.float32)}).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(WeightsError):
            read_tensors(tmp_path / "cut.pth")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.pth", {"a": np.arange(6, dtype=np.float32)})
    with zipfile.ZipFile(path) as archive:
        described = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", described)
        archive.writestr("archive/data/0", b"1234")
    with pytest.raises(WeightsError, match="cut off"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02]."])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / "x.pth")
