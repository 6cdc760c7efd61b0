"""Prepare a data set from its zip archive, without unpacking it.

    python -m rsna_nb.prepare.archive <archive> <data_dir> [--img-size 512] [--store-dir data/prepared]

<archive> is a file, an address (http or https) or kaggle:competition. Its tables are unpacked into <data_dir>. Each
image is read, prepared and dropped, so the disk holds the prepared images and no others. Then <data_dir> is the
`data_dir` to train with. Rerun a killed command to continue where it stopped.
"""

import argparse
import functools
import importlib
import json
import logging
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd

from rsna_nb.config import ConfigError, ImageRecipe, RunConfig, resolve
from rsna_nb.dicom import DetectorError
from rsna_nb.metadata import ARCHIVED, KaggleError, MetadataError, kaggle, load_metadata
from rsna_nb.prepare.ledger import Record
from rsna_nb.prepare.remote import ArchiveError, RemoteFile
from rsna_nb.prepare.store import prepare_images
from rsna_nb.prepare.tasks import PrepareError, Task, failed, prepare_one
from rsna_nb.runs import log_to_console
from rsna_nb.system import write_whole

log = logging.getLogger("rsna_nb.prepare.archive")  # not __name__, which is "__main__" when this is run as a command

TABLES = {".csv", ".tsv", ".txt", ".json", ".xlsx"}
MOST_BYTES = 10**9  # of one file, and of all test images: the competition has four, others can have thousands
LOCAL_HEADER = 2**10  # bytes in front of a member; a longer one costs a second request
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Archive:
    """A zip archive and the folder that stands for it. Worker processes receive it and open it themselves.

    Attributes
    ----------
    location
        A path, or an address that begins with http.
    data_dir
        The data folder: the archive's members are read as if they were in it.
    """

    location: str
    data_dir: Path

    @property
    def name(self) -> str:
        """The location without an address's query, which may contain credentials."""
        return self.location.partition("?")[0] if _is_remote(self.location) else self.location

    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The files in the archive, by their paths in the data folder.

        Raises
        ------
        ArchiveError
            If there is no complete zip archive, or if a server fails.
        """
        return _members(self.location)

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """Read a member and compare its checksum. From a server, this takes one request."""
        if member.file_size > MOST_BYTES:  # a small archive can hold zeros without end
            raise zipfile.BadZipFile(f"{member.file_size / 1e9:.1f} GB unpacked, too large for a table or an image")
        archive = _opened(self.location)
        if isinstance(archive.fp, RemoteFile):
            start = member.header_offset
            archive.fp.fetch(start, start + LOCAL_HEADER + member.compress_size)
        return archive.read(member)

    def unpack(self, paths: Iterable[str]) -> None:
        """Write members into the data folder. Files that are there are kept: a table may have been cut down."""
        for path in paths:
            if not (self.data_dir / path).exists():
                try:
                    write_whole(self.data_dir / path, self.read(self.members()[path]))
                except DAMAGED as error:
                    raise ArchiveError(f"{self.name}: {path} is damaged ({error}): download it again") from error

    def paths_of(self, table: pd.DataFrame) -> pd.Series:
        """The images of a table as paths in the data folder."""
        return table["path"].map(lambda path: Path(path).relative_to(self.data_dir).as_posix())


def _is_remote(location: str) -> bool:
    return location.startswith(("http://", "https://"))


@functools.cache  # once in a process: the list of contents of the competition's archive has 6 MB
def _opened(location: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(RemoteFile(location) if _is_remote(location) else location)
    except FileNotFoundError as error:
        raise ArchiveError(f"there is no archive {location}") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise ArchiveError(
            f"{location.partition('?')[0]} is not a complete zip archive ({error}): download it again"
        ) from error


@functools.cache
def _members(location: str) -> dict[str, zipfile.ZipInfo]:
    # A path outside of the data folder is not unpacked; macOS adds __MACOSX/._name for each file.
    files = {
        path: member
        for member in _opened(location).infolist()
        if (path := PurePosixPath(member.filename)).parts
        and not (member.filename.endswith("/") or {"..", "__MACOSX"} & {*path.parts})
        and not (path.is_absolute() or PureWindowsPath(member.filename).drive)
    }
    # Somebody who zips a data folder puts its name in front of everything.
    top = len({path.parts[0] for path in files}) == 1 and all(len(path.parts) > 1 for path in files)
    return {PurePosixPath(*path.parts[top:]).as_posix(): member for path, member in files.items()}


def prepare_member(task: Task, archive: Archive) -> Record:
    """Prepare one image of an archive, by way of a temporary file.

    Raises
    ------
    ArchiveError
        If a server fails: preparing stops, and a rerun continues.
    """
    member = archive.members().get(Path(task.path).relative_to(archive.data_dir).as_posix())
    if member is None:
        return failed(task, "the archive does not contain the file")
    try:
        content = archive.read(member)
    except DAMAGED as error:
        return failed(task, f"damaged in the archive: {error}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(task.path).name
        path.write_bytes(content)
        changed = member.CRC >> 1  # the same whenever and wherever it is prepared; archives can have no dates
        os.utime(path, (changed, changed))
        return prepare_one(replace(task, path=str(path)))


def prepare_archive(
    location: str | Path,
    data_dir: str | Path,
    img_size: int | Sequence[int],
    store_dir: str | Path,
    recipe: ImageRecipe | None = None,
) -> pd.DataFrame:
    """Prepare all training images of a data set from its archive.

    Parameters
    ----------
    location
        A zip archive: a path, an address (http or https), or "kaggle:competition".
    data_dir
        The folder into which the tables, and up to 1 GB of test images, are unpacked: the `data_dir` to train with.
    img_size
        Side of a square, or (height, width), in pixels.
    store_dir
        The folder of all stores, as for `prepare_images`.
    recipe
        The preprocessing, as for `prepare_images`.

    Returns
    -------
    The ledger, as `prepare_images` returns it.

    Raises
    ------
    ArchiveError
        If the archive cannot be read or lacks all images of its table.
    DetectorError, KaggleError, MetadataError, PrepareError
        If the breast detector cannot be used, Kaggle refuses, the table has faults, or the store cannot be made.
    """
    is_of_kaggle = str(location) == f"{kaggle.PREFIX}competition"
    archive = Archive(kaggle.archive_url() if is_of_kaggle else str(location), resolve(data_dir))
    members = archive.members()
    tables = [path for path in members if PurePosixPath(path).suffix.lower() in TABLES]
    if large := [path for path in tables if members[path].file_size > MOST_BYTES]:
        log.warning("too large for a table, so left in %s: %s", archive.name, ", ".join(large))
    archive.unpack(path for path in tables if path not in large)
    table = load_metadata(archive.data_dir, check_files=False, mixed_breasts="keep")
    paths = archive.paths_of(table)
    missing = paths[~paths.isin(members.keys())]
    if len(missing) == len(table):
        raise ArchiveError(f"{archive.name} has none of the {len(table)} images of its table; the first is {paths[0]}")
    if len(missing):
        log.warning("%s lacks %d of %d images, first %s", archive.name, len(missing), len(table), missing.iloc[0])
    # `load_metadata` looks for this file, because it would miss the images.
    write_whole(archive.data_dir / ARCHIVED, json.dumps({"archive": archive.name}).encode())
    _unpack_test_images(archive)
    order = paths.map({path: member.header_offset for path, member in members.items()}).argsort()  # as a disk has them
    work = functools.partial(prepare_member, archive=archive)
    return prepare_images(table.iloc[order], archive.data_dir, resolve(store_dir), img_size, work=work, recipe=recipe)


def _unpack_test_images(archive: Archive) -> None:
    """Unpack the images of test.csv if they are few; otherwise log that they stay in the archive."""
    members = archive.members()
    try:
        table = load_metadata(archive.data_dir, "test", check_files=False)
    except MetadataError:  # there is no test.csv
        return
    paths = [path for path in archive.paths_of(table) if path in members]
    size = sum(members[path].file_size for path in paths)
    if size > MOST_BYTES:
        log.warning(
            "the %d test images (%.1f GB) stay in the archive: unpack them to score them", len(paths), size / 1e9
        )
    else:
        archive.unpack(paths)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rsna_nb.prepare.archive", description=__doc__.partition("\n")[0])
    parser.add_argument("archive", help="a zip archive: a path, an address (http or https), or kaggle:competition")
    parser.add_argument("data_dir", help="folder for the tables: the data_dir to train with")
    parser.add_argument("--img-size", type=int, nargs="+", default=[512], help="side, or height and width, in pixels")
    parser.add_argument("--store-dir", default=RunConfig().store_dir, help="folder of the prepared images")
    parser.add_argument("--reading", default=RunConfig().reading, help="preprocessing, as the setting of that name")
    parser.add_argument("--roi-detector", default="", help="breast detector (roi.npz) of rsna-first-place")
    given = parser.parse_args(arguments)
    log_to_console()
    img_size = given.img_size if len(given.img_size) > 1 else given.img_size[0]
    try:
        config = RunConfig(
            data_dir=given.data_dir,
            store_dir=given.store_dir,
            img_size=img_size,
            reading=given.reading,
            roi_detector=given.roi_detector,
        )
        prepare_archive(given.archive, config.data_dir, config.img_size, config.store_dir, config.image_recipe)
    except (ArchiveError, ConfigError, DetectorError, KaggleError, MetadataError, PrepareError) as error:
        sys.exit(f"error: {error}")
    log.info("train with data_dir = %s and store_dir = %s", config.data_dir, config.store_dir)


if __name__ == "__main__":
    # Imported by its name, because worker processes cannot import functions of __main__.
    importlib.import_module("rsna_nb.prepare.archive").main()
