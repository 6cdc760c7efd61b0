import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from rsna_nb.config import RunConfig
from rsna_nb.metadata import MetadataError, load_metadata
from rsna_nb.prepare import ledger as ledgers
from rsna_nb.prepare import prepare_images, store_path
from rsna_nb.prepare.archive import Archive, main, prepare_archive
from rsna_nb.prepare.remote import ArchiveError, RemoteFile
from rsna_nb.system import workers
from tests.web import serve


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    """Starting one process for each core takes longer than preparing these small images."""
    monkeypatch.setattr(workers, "processors", lambda: 1)


@pytest.fixture(scope="module")
def site_folder(generated, tmp_path_factory) -> Path:
    """A folder with archive.zip, the generated set as an archive of the competition's shape."""
    folder = tmp_path_factory.mktemp("site")
    files = sorted(path for path in generated.rglob("*") if path.is_file() and not path.name.startswith("."))
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(generated))
    return folder


@pytest.fixture
def archive(site_folder) -> Path:
    return site_folder / "archive.zip"


@pytest.fixture
def site(site_folder):
    with serve(site_folder) as site:
        yield site


@pytest.fixture(scope="module")
def unpacked(generated, stores) -> pd.DataFrame:
    """The ledger of the same images, prepared from the folder."""
    return prepare_images(load_metadata(generated), generated, stores, 64)


def pictures(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.rglob("*.png")}


def prepare(location: object, folder: Path) -> tuple[pd.DataFrame, dict[str, bytes]]:
    """The ledger and the prepared images."""
    ledger = prepare_archive(str(location), folder / "data", 64, folder / "stores")
    return ledger, pictures(store_path(folder / "stores", folder / "data", 64))


def same_as(unpacked: pd.DataFrame, ledger: pd.DataFrame) -> None:
    columns = [*unpacked.columns.drop(["source_mtime", "milliseconds"])]
    found, expected = (df.sort_values("image_id")[columns].reset_index(drop=True) for df in (ledger, unpacked))
    pd.testing.assert_frame_equal(found, expected)


def test_an_archive_gives_the_images_of_its_unpacked_files(archive, unpacked, generated, stores, tmp_path):
    ledger, images = prepare(archive, tmp_path)
    same_as(unpacked, ledger)
    assert images == pictures(store_path(stores, generated, 64))
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert {"train.csv", "test.csv", "archive.json", "test_images"} <= names
    assert "train_images" not in names
    assert len(load_metadata(tmp_path / "data", "test")) == len(list((tmp_path / "data").rglob("*.dcm")))


def test_training_reads_the_store_of_an_archive_and_no_file(archive, tmp_path, caplog):
    from rsna_nb.training import data  # here: it imports TensorFlow

    ledger, _ = prepare(archive, tmp_path)
    config = RunConfig(data_dir=str(tmp_path / "data"), store_dir=str(tmp_path / "stores"), img_size=64)
    with caplog.at_level("INFO"):
        prepared = data.prepare(config, *data.split_table(config))
    assert len(prepared.table) == len(ledger)
    assert caplog.text.count(f"files that are gone, whose prepared images are kept: {len(ledger)}") == 1
    assert Path(prepared.table["file"][0]).is_file()
    (tmp_path / "data" / "archive.json").unlink()
    with pytest.raises(MetadataError, match="none of its"):
        data.split_table(config)


@pytest.mark.slow
def test_over_http_each_byte_is_sent_about_once(site, archive, unpacked, tmp_path):
    ledger, _ = prepare(f"{site.url}/archive.zip?signature=secret", tmp_path)
    same_as(unpacked, ledger)
    assert site.sent < 1.3 * archive.stat().st_size
    assert site.requests["/archive.zip?signature=secret"] < len(ledger) + 40
    assert json.loads((tmp_path / "data" / "archive.json").read_text()) == {"archive": f"{site.url}/archive.zip"}


@pytest.mark.slow
def test_connections_that_break_and_busy_servers_change_nothing(site, unpacked, tmp_path):
    site.broken, site.intact = Counter({"cut": 2, 503: 1}), 50
    ledger, _ = prepare(f"{site.url}/archive.zip", tmp_path)
    same_as(unpacked, ledger)
    assert not +site.broken


@pytest.mark.slow
def test_an_archive_in_a_folder_of_its_own_is_read_too(generated, tmp_path):
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        for path in (path for path in generated.rglob("*") if path.is_file() and not path.name.startswith(".")):
            archive.write(path, Path("rsna", path.relative_to(generated)))
    without_dates = bytearray((tmp_path / "zipped.zip").read_bytes())
    for start, place in ((b"PK\3\4", 10), (b"PK\1\2", 12)):  # of each member, and of its entry in the list of contents
        for found in re.finditer(start, bytes(without_dates)):
            without_dates[found.start() + place : found.start() + place + 4] = bytes(4)
    (tmp_path / "zipped.zip").write_bytes(without_dates)
    ledger, _ = prepare(tmp_path / "zipped.zip", tmp_path)
    assert ledger["status"].eq("ok").all()


def test_members_that_leave_the_folder_or_that_macos_adds_are_left_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        elsewhere = "", "../a.csv", "/b.csv", "set/../../c.csv", "__MACOSX/set/._train.csv", "D:e.csv"
        for name in (*elsewhere, "./set/train.csv"):
            archive.writestr(zipfile.ZipInfo(name), name)
    odd = Archive(str(tmp_path / "odd.zip"), tmp_path / "data")
    assert [*odd.members()] == ["train.csv"]
    odd.members()["train.csv"].file_size = 2 * 10**9  # as of zeros, which compress to a thousandth
    with pytest.raises(ArchiveError, match=r"train\.csv is damaged \(2\.0 GB unpacked, too large"):
        odd.unpack(["train.csv"])


@pytest.mark.slow
def test_a_table_that_was_cut_down_is_kept_and_only_its_images_are_prepared(site, generated, tmp_path):
    (tmp_path / "data").mkdir()
    lines = (generated / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "data" / "train.csv").write_text("".join(lines[:4]))
    ledger, images = prepare(f"{site.url}/archive.zip?part", tmp_path)
    assert len(ledger) == len(images) == 3
    assert site.requests["/archive.zip?part"] < 40


@pytest.mark.slow
def test_a_killed_run_continues_where_it_stopped(site, unpacked, tmp_path):
    command = [sys.executable, "-m", "rsna_nb.prepare.archive", f"{site.url}/archive.zip", str(tmp_path / "data")]
    command += ["--img-size", "64", "--store-dir", str(tmp_path / "stores")]
    store = store_path(tmp_path / "stores", tmp_path / "data", 64)
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
    while len(ledgers.read(store)) < 10:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    prepared = len(ledgers.read(store))
    assert prepared < len(unpacked)
    site.requests.clear()
    ledger, _ = prepare(f"{site.url}/archive.zip", tmp_path)
    same_as(unpacked, ledger)
    assert site.requests["/archive.zip"] < len(unpacked) - prepared + 40


@pytest.mark.slow
def test_a_link_that_expires_stops_the_run_and_a_new_one_continues(site, unpacked, tmp_path):
    site.expires_after = 60
    with pytest.raises(ArchiveError, match="refuses with status 403: rerun with a new link"):
        prepare(f"{site.url}/archive.zip?old", tmp_path)
    assert len(ledgers.read(store_path(tmp_path / "stores", tmp_path / "data", 64))) > 5
    site.expires_after = 10**6
    ledger, _ = prepare(f"{site.url}/archive.zip?new", tmp_path)
    same_as(unpacked, ledger)


def test_a_damaged_member_is_unreadable_and_the_others_are_prepared(archive, unpacked, tmp_path):
    with zipfile.ZipFile(archive) as file:
        member = next(each for each in file.infolist() if each.filename.startswith("train_images"))
    content = bytearray(archive.read_bytes())
    middle = member.header_offset + member.compress_size // 2
    content[middle : middle + 8] = bytes(8)
    (tmp_path / "damaged.zip").write_bytes(content)
    ledger, _ = prepare(tmp_path / "damaged.zip", tmp_path)
    errors = ledger[ledger["status"] == "error"]
    assert errors["error"].str.startswith("damaged in the archive: ").tolist() == [True]
    assert errors["image_id"].item() == Path(member.filename).stem
    ledger, _ = prepare(archive, tmp_path)
    same_as(unpacked, ledger)


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_an_archive_that_is_cut_off_is_an_error_of_one_sentence(archive, share, tmp_path):
    content = archive.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArchiveError, match=r"cut\.zip is not a complete zip archive .*: download it again"):
        prepare(tmp_path / "cut.zip", tmp_path)
    with serve(tmp_path) as site, pytest.raises(ArchiveError, match=r"cut\.zip(: | is not a complete zip archive)"):
        prepare(f"{site.url}/cut.zip", tmp_path)
    assert not (tmp_path / "data").exists()


def test_errors_name_the_archive_and_say_what_to_do(site, generated, tmp_path):
    with pytest.raises(ArchiveError, match="there is no archive"):
        prepare(tmp_path / "gone.zip", tmp_path)
    with pytest.raises(ArchiveError, match="status 404"):
        prepare(f"{site.url}/gone.zip", tmp_path)
    site.ranges = False
    with pytest.raises(ArchiveError, match=r"no Range requests\): download the archive and give its path"):
        prepare(f"{site.url}/archive.zip?whole", tmp_path)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.write(generated / "train.csv", "train.csv")
    with pytest.raises(
        ArchiveError, match=f"has none of the {len(pd.read_csv(generated / 'train.csv'))} images of its table"
    ):
        prepare(tmp_path / "pictures.zip", tmp_path)


def test_the_command_line_checks_its_settings_and_ends_with_one_sentence(archive, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*img_size"):
        main([str(archive), str(tmp_path / "data"), "--img-size", "17"])
    with pytest.raises(SystemExit, match=r"^error: there is no archive"):
        main([str(tmp_path / "gone.zip"), str(tmp_path / "data")])
    detector = ["--reading", "rsna-first-place", "--roi-detector", str(tmp_path / "gone.npz")]
    with pytest.raises(SystemExit, match=r"^error: the breast detector .*gone\.npz cannot be read: the file"):
        main([str(archive), str(tmp_path / "data"), "--img-size", "64", *detector])


@pytest.mark.slow
def test_the_competition_is_read_from_the_address_that_kaggle_gives(site, unpacked, tmp_path, monkeypatch):
    pytest.importorskip("kagglehub")
    from kagglesdk import kaggle_env

    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "token")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, site.url)
    ledger, _ = prepare("kaggle:competition", tmp_path)
    same_as(unpacked, ledger)
    assert site.requests["DownloadDataFiles"] == 1


def test_a_remote_file_is_read_like_a_local_one(tmp_path):
    content = random.Random(0).randbytes(300_000)
    (tmp_path / "file").write_bytes(content)
    with serve(tmp_path) as site:
        remote, local = RemoteFile(f"{site.url}/file"), io.BytesIO(content)
        draw = random.Random(1)
        for _ in range(60):
            offset, whence = draw.choice([(draw.randrange(300_000), 0), (-draw.randrange(1, 300_000), 2)])
            assert remote.seek(offset, whence) == local.seek(offset, whence) == remote.tell()
            size = draw.choice([0, 1, 30, 5000, 200_000, -1])
            assert remote.read(size) == local.read(size)
        (tmp_path / "file").write_bytes(content[:-1])
        with pytest.raises(ArchiveError, match="has changed"):
            remote.fetch(0, 300_000)


def test_a_server_that_stays_away_is_an_error_after_the_last_try(tmp_path, monkeypatch):
    monkeypatch.setattr("rsna_nb.prepare.remote.PATIENCE", 0.5)
    (tmp_path / "file").write_bytes(b"content")
    with serve(tmp_path) as site:
        remote = RemoteFile(f"{site.url}/file")
        site.broken = Counter({"cut": 99})
        with pytest.raises(ArchiveError, match=r"does not answer: .*; rerun to continue"):
            remote.fetch(0, 7)
    with pytest.raises(ArchiveError, match=r"does not answer: .*refused"):
        RemoteFile(f"{site.url}/file")
