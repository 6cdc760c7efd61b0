"""The store and its ledger, also after a kill, with a full disk and with unreadable files."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from rsna_nb.dicom import read_mammogram
from rsna_nb.metadata import load_metadata
from rsna_nb.prepare import PrepareError, image_file, ledger, prepare_images, store_path, tasks, to_8_bits
from rsna_nb.prepare.tasks import Task, prepare_one
from rsna_nb.system import write_whole
from tests.conftest import write_dicom


@pytest.fixture
def few(tmp_path, breast) -> pd.DataFrame:
    """Six files in tmp_path/data, named 0 to 5."""
    paths = [write_dicom(tmp_path / "data" / f"{i}.dcm", np.maximum(breast, i).astype(np.uint16)) for i in range(6)]
    return pd.DataFrame({"patient_id": "1", "image_id": [path.stem for path in paths], "path": map(str, paths)})


def prepared(tmp_path: Path, df: pd.DataFrame, size: int = 64) -> pd.DataFrame:
    with ThreadPoolExecutor(1) as executor:
        return prepare_images(df, tmp_path / "data", tmp_path / "stores", size, executor)


def store_of(tmp_path: Path, size: int = 64) -> Path:
    return store_path(tmp_path / "stores", tmp_path / "data", size)


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.p*") if path.is_file()}


def without_timings(store: Path) -> list[dict]:
    return [{**vars(row), "milliseconds": 0} for row in ledger.read(store).values()]


def test_every_image_becomes_an_8_bit_png_and_a_ledger_row(generated, tmp_path):
    df = load_metadata(generated)
    rows = prepare_images(df, generated, tmp_path, [96, 64])
    assert rows["image_id"].tolist() == df["image_id"].tolist()
    assert (rows["status"] == "ok").all()
    assert rows["transfer_syntax"].nunique() > 1
    store = store_path(tmp_path, generated, [96, 64])
    for row, path in zip(rows.itertuples(), df["path"], strict=True):
        picture = cv2.imread(str(image_file(store, row.patient_id, row.image_id)), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(picture, to_8_bits(read_mammogram(path, [96, 64])))


def test_a_second_call_reads_nothing_again(few, tmp_path):
    prepared(tmp_path, few)
    before = {path: path.stat().st_mtime_ns for path in store_of(tmp_path).rglob("*.png")}
    rows = prepared(tmp_path, few)
    assert {path: path.stat().st_mtime_ns for path in store_of(tmp_path).rglob("*.png")} == before
    assert len(rows) == 6


def test_another_size_is_another_store(few, tmp_path):
    prepared(tmp_path, few, 64)
    prepared(tmp_path, few, 96)
    assert store_of(tmp_path, 64) != store_of(tmp_path, 96)
    assert len(list((tmp_path / "stores").rglob("*.png"))) == 12


def test_two_data_folders_of_one_name_have_two_stores(tmp_path):
    first, other = (store_path(tmp_path, tmp_path / place / "data", 64) for place in "ab")
    assert first != other


def test_a_changed_file_and_a_damaged_picture_are_read_again(few, tmp_path, breast, caplog):
    prepared(tmp_path, few)
    assert "files changed" not in caplog.text
    store = store_of(tmp_path)
    whole = contents(store)
    changed = image_file(store, "1", "0")
    write_dicom(tmp_path / "data" / "0.dcm", np.where(breast > 1000, 3000 + breast // 8, breast).astype(np.uint16))
    image_file(store, "1", "1").write_bytes(b"half a pict")
    image_file(store, "1", "2").unlink()
    prepared(tmp_path, few)
    assert "files changed since they were prepared: 1" in caplog.text
    assert few["path"][0] in caplog.text
    after = contents(store)
    name = str(changed.relative_to(store))
    assert after.pop(name) != whole.pop(name)
    assert after == whole


def test_the_image_of_a_file_that_is_gone_is_kept(few, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before, whole = prepared(tmp_path, few), contents(store_of(tmp_path))
    for path in few["path"][:2]:
        Path(path).unlink()
    pd.testing.assert_frame_equal(prepared(tmp_path, few), before)
    assert "files that are gone, whose prepared images are kept: 2" in caplog.messages
    assert contents(store_of(tmp_path)) == whole
    image_file(store_of(tmp_path), "1", "0").unlink()
    assert prepared(tmp_path, few)["error"].tolist()[:2] == ["the file is missing", ""]


def test_an_image_that_stands_in_the_table_twice_is_refused(few, tmp_path):
    """Both files would write the same image, and the last one to finish would win."""
    for twice in (["0", "0"], ["a", "A"]):  # on Windows and macOS a.png and A.png are one file
        few.loc[:1, "image_id"] = twice
        with pytest.raises(PrepareError, match=f"first 1/{twice[1]}, or .*: keep one row"):
            prepared(tmp_path, few)
    assert not list(tmp_path.rglob("*.png"))


def test_unreadable_files_are_rows_with_their_reason_and_the_others_are_prepared(few, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    Path(few["path"][1]).write_text("no DICOM")
    Path(few["path"][2]).unlink()
    rows = prepared(tmp_path, few)
    assert rows["error"].tolist() == ["", "not a DICOM, PNG, JPEG, TIFF or PGM file", "the file is missing", "", "", ""]
    assert sorted(path.stem for path in store_of(tmp_path).rglob("*.png")) == ["0", "3", "4", "5"]
    assert "2 files unreadable" in caplog.text
    assert "unreadable: 1 x not a DICOM, PNG, JPEG, TIFF or PGM file" in caplog.text


def test_an_unreadable_file_that_was_repaired_is_read_at_the_next_call(few, tmp_path, breast):
    Path(few["path"][1]).write_text("no DICOM")
    prepared(tmp_path, few)
    write_dicom(Path(few["path"][1]), breast)
    assert (prepared(tmp_path, few)["status"] == "ok").all()


@pytest.mark.parametrize("damage", ["1,9,o", "1,9,ok,,,\n", "\0\0\0\0\n", "\n\n", '1,9,error,"TypeError: a, b\n'])
def test_a_damaged_ledger_loses_only_the_damaged_rows_and_says_so(few, tmp_path, damage, caplog):
    prepared(tmp_path, few)
    assert "damaged rows" not in caplog.text
    path = store_of(tmp_path) / "ledger.csv"
    whole = path.read_text()
    header, rows = whole.split("\n", 1)
    path.write_text(f"{header}\n{damage}\n{rows}{damage}")
    assert len(ledger.read(store_of(tmp_path))) == 6
    assert ("damaged rows dropped: 2" in caplog.text) == bool(damage.strip())
    prepared(tmp_path, few)
    assert path.read_text() == whole


def test_the_ledger_of_a_killed_run_is_a_table_that_pandas_reads(tmp_path):
    for image in "23":
        ledger.append(tmp_path, ledger.Record("1", image))
    assert pd.read_csv(tmp_path / "ledger.csv")["image_id"].tolist() == [2, 3]


def test_a_row_after_a_cut_off_one_is_kept(tmp_path):
    ledger.append(tmp_path, ledger.Record("1", "2"))
    with (tmp_path / "ledger.csv").open("a") as file:
        file.write("\n1,3,o")
    ledger.append(tmp_path, ledger.Record("1", "4", error='a "reason", with a comma'))
    assert ledger.read(tmp_path) == {
        ("1", "2"): ledger.Record("1", "2"),
        ("1", "4"): ledger.Record("1", "4", error='a "reason", with a comma'),
    }


@pytest.mark.filterwarnings("ignore:Failed to encode value:UserWarning")  # the line separator, which is meant
def test_text_from_a_file_breaks_no_row_of_the_ledger(few, tmp_path):
    dataset = pydicom.dcmread(few["path"][0])
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.add(pydicom.DataElement("VOILUTFunction", "LO", "A\nB\u2028C", validation_mode=pydicom.config.IGNORE))
    dataset.save_as(few["path"][0])
    assert len(prepared(tmp_path, few)) == 6
    assert len(ledger.read(store_of(tmp_path))) == 6


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "x.png"
    write_whole(target, b"old")

    def power_cut(part: Path, path: Path) -> None:
        assert Path(part).read_bytes() == b"new"
        raise KeyboardInterrupt

    monkeypatch.setattr("rsna_nb.system.files.os.replace", power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"


def test_the_space_needed_is_checked_first(few, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("rsna_nb.prepare.store.shutil.disk_usage", lambda path: usage)
    with pytest.raises(PrepareError, match="set store_dir to another disk"):
        prepared(tmp_path, few)
    assert not list(store_of(tmp_path).rglob("*.png"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_full_disk_is_an_error_that_says_how_to_continue(few, tmp_path, monkeypatch, elsewhere):
    def no_space(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tasks, "write_whole", no_space)
    monkeypatch.setattr(tasks.workers, "run", lambda work, tasks: ((task, work(task)) for task in tasks))
    executor = ThreadPoolExecutor(1) if elsewhere else None
    with pytest.raises(PrepareError, match=f"{store_of(tmp_path)}: .*No space left.*rerun to continue"):
        prepare_images(few, tmp_path / "data", tmp_path / "stores", 64, executor)


KILLED = """
import sys
from pathlib import Path
from rsna_nb.metadata import load_metadata
from rsna_nb.prepare import prepare_images

if __name__ == "__main__":
    prepare_images(load_metadata(Path(sys.argv[1])), sys.argv[1], sys.argv[2], 64)
"""


@pytest.mark.slow
def test_a_store_whose_preparing_was_killed_twice_equals_one_never_interrupted(generated, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    prepare_images(load_metadata(generated), generated, tmp_path / "whole", 64)
    whole = store_path(tmp_path / "whole", generated, 64)
    killed = store_path(tmp_path / "killed", generated, 64)
    for rows in (10, 40):
        child = subprocess.Popen([sys.executable, script, generated, tmp_path / "killed"], stderr=subprocess.DEVNULL)
        while len(ledger.read(killed)) < rows and child.poll() is None:
            time.sleep(0.005)
        child.kill()
        child.wait()
    assert 0 < len(ledger.read(killed)) < len(ledger.read(whole))
    rows = prepare_images(load_metadata(generated), generated, tmp_path / "killed", 64)
    assert contents(killed) == contents(whole)
    assert without_timings(killed) == without_timings(whole)
    assert len(rows) == len(load_metadata(generated))


@pytest.mark.slow
def test_two_processes_on_one_store_share_the_work(generated, tmp_path):
    script = tmp_path / "both.py"
    script.write_text(KILLED)
    command = [sys.executable, script, generated, tmp_path / "stores"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    bars = [child.communicate()[1] for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert sum("preparing" in bar for bar in bars) == 1  # the other waited and found nothing to do
    text = (store_path(tmp_path / "stores", generated, 64) / "ledger.csv").read_text()
    assert len(text.splitlines()) == 1 + len(load_metadata(generated))


@pytest.mark.slow
def test_a_broken_executor_stops_preparing_and_the_next_call_continues(generated, tmp_path, monkeypatch):
    df, append = load_metadata(generated), ledger.append

    def append_and_kill(store: Path, record: ledger.Record) -> None:
        append(store, record)
        os.kill(next(iter(executor._processes)), signal.SIGKILL)

    with monkeypatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn")) as executor:
        patch.setattr(ledger, "append", append_and_kill)
        with pytest.raises(PrepareError, match="rerun to continue"):
            prepare_images(df, generated, tmp_path, 64, executor)
    assert (prepare_images(df, generated, tmp_path, 64)["status"] == "ok").all()


@pytest.mark.slow
def test_a_worker_that_dies_is_a_row_and_the_other_files_are_prepared(few, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "prepare_one", die_or_prepare)
    rows = prepare_images(few, tmp_path / "data", tmp_path / "stores", 64)
    assert rows["error"].str.contains("Segmentation fault").tolist() == [False, False, True, False, False, False]
    assert (rows["error"] == "").sum() == 5


def die_or_prepare(task: Task) -> ledger.Record:
    if task.image_id == "2":
        os.kill(os.getpid(), signal.SIGSEGV)
    return prepare_one(task)


MEASURED = """
import re, sys
from rsna_nb.prepare.tasks import Task, prepare_one
from pathlib import Path

records = [prepare_one(Task(Path(sys.argv[1]), (1024, 1024), "1", Path(path).stem, path)) for path in sys.argv[2:]]
assert all(record.status == "ok" for record in records), records
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
def test_a_worker_stays_under_600_mb_on_the_largest_files(tmp_path, breast):
    large = cv2.resize(breast, (3328, 4096), interpolation=cv2.INTER_LINEAR)
    large += np.random.default_rng(0).integers(0, 16, large.shape, dtype=np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 3000, "VOILUTFunction": "SIGMOID", "RescaleIntercept": 0}
    window |= {"RescaleSlope": 1, "PixelPaddingValue": 0}
    syntaxes = [ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless]
    paths = [write_dicom(tmp_path / f"{i}.dcm", large, syntax, **window) for i, syntax in enumerate(syntaxes)]
    answer = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "store", *paths], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) < 600


def test_a_split_that_loses_all_its_cancers_to_unreadable_files_says_so(generated, tmp_path):
    from rsna_nb.config import RunConfig
    from rsna_nb.splits import SplitError
    from rsna_nb.training import data  # here: it loads TensorFlow, and the workers of other tests import this module

    shutil.copytree(generated, tmp_path / "data")
    folders = {"data_dir": str(tmp_path / "data"), "store_dir": str(tmp_path / "stores")}
    config = RunConfig(**folders, img_size=64, val_fraction=0.05)
    table, data_dir = data.split_table(config)
    lost = table[(table["split"] == "validation") & (table["cancer"] == 1)]
    for path in lost["path"]:
        Path(path).write_text("no DICOM")
    with pytest.raises(SplitError, match=rf"without the {len(lost)} images that cannot be read \(see .*ledger\.csv\)"):
        data.prepare(config, table, data_dir)


def test_files_with_a_note_are_left_out_where_the_setting_names_it(generated, stores, monkeypatch, caplog):
    from rsna_nb.config import ConfigError, RunConfig
    from rsna_nb.training import data

    config = RunConfig(data_dir=str(generated), store_dir=stores, img_size=64)
    table, folder = data.split_table(config)
    first = table["image_id"].iloc[0]
    prepared = data.prepare_images

    def noted(*arguments, **options):
        ledger = prepared(*arguments, **options)
        return ledger.assign(notes=ledger["image_id"].map(lambda image: "side; turned" if image == first else ""))

    monkeypatch.setattr(data, "prepare_images", noted)
    assert first in set(data.prepare(config, table, folder).table["image_id"])
    assert first in set(data.prepare(config.replace(leave_out_notes="view"), table, folder).table["image_id"])
    without = data.prepare(config.replace(leave_out_notes="view, turned"), table, folder)
    assert len(without.table) == len(table) - 1 == len(without.digests())
    assert first not in set(without.table["image_id"])
    assert "leaves out 1 of" in caplog.text
    with pytest.raises(ConfigError, match="there is no note 'turnd'; the notes are turned, "):
        data.split_table(config.replace(leave_out_notes="turnd"))
