"""Which data folder a setting means, and where tables about it are written."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from rsna_nb import synthetic
from rsna_nb.config import resolve
from rsna_nb.metadata import kaggle
from rsna_nb.metadata.checks import MetadataError
from rsna_nb.metadata.kaggle import KaggleError
from rsna_nb.metadata.layout import Layout
from rsna_nb.notebook import Markdown
from rsna_nb.system import SAME

log = logging.getLogger(__name__)

DEMO_DIR = "data/demo"
GENERATED = "GENERATED data, not real mammograms"
MOUNT_DEPTH = 2  # folders of a mount that are searched for data sets: <data set>/<folder>/<folder>
MOST_FOLDERS = 100  # a folder with more has one for each woman, and no data set in them
ATTACH = (
    "no mammograms are attached to this Kaggle notebook: choose Add Input and attach the competition "
    f'"{kaggle.COMPETITION}", or set data_dir; data_dir = "demo" asks for generated data'
)


def find_data(data_dir: str | Path, fetch: bool = True) -> Path:
    """Return the data folder that the setting `data_dir` means; the log says which it is.

    Parameters
    ----------
    data_dir
        A folder, relative to the project's root; "kaggle:competition" or "kaggle:<owner>/<data set>[/<folder>]"
        (see `kaggle.find`); or "demo", the generated set. "" means what is mounted on Kaggle: the competition, else the
        one known data set. Elsewhere it means the generated set.
    fetch
        False only names the folder: nothing is generated, downloaded or logged.

    Raises
    ------
    KaggleError
        If nothing known is mounted on Kaggle, or several data sets are, or the data cannot be fetched.
    """
    setting = str(data_dir)
    if setting.startswith(kaggle.PREFIX):
        folder = kaggle.find(setting, fetch)
    elif _is_demo(setting):
        folder = resolve(DEMO_DIR)
    else:
        folder = resolve(setting) if setting else _mounted()
    if fetch:
        _log_origin(setting, folder)
        if _is_demo(setting):
            synthetic.generate(folder)
    return folder


def announce(data_dir: str | Path) -> Markdown:
    """Say which data a setting means before anything is fetched or generated, in the log and for the notebook.

    Raises
    ------
    KaggleError
        As `find_data`.
    """
    setting = str(data_dir)
    if setting.startswith(kaggle.PREFIX):
        log.info("data: %s", setting)
        return Markdown(f"Data: `{setting}`.")
    folder = find_data(data_dir, fetch=False)
    _log_origin(setting, folder)
    return Markdown(f"**{GENERATED}**: `{folder}`." if _is_generated(setting, folder) else f"Data: `{folder}`.")


def _is_demo(setting: str) -> bool:
    return setting == "demo" or (setting == "" and not kaggle.is_here())


def _is_generated(setting: str, folder: Path) -> bool:
    return _is_demo(setting) or (folder / "generated.json").is_file()


def _log_origin(setting: str, folder: Path) -> None:
    if _is_generated(setting, folder):
        log.warning("%s: %s", GENERATED, folder, extra=SAME)
    else:
        log.info("data: %s", folder, extra=SAME)


def _mounted() -> Path:
    """The competition's folder, or else the only known data set that is mounted on Kaggle."""
    if competition := kaggle.mounted():
        return competition
    found = [folder for mount in kaggle.mounts() for folder in _data_sets(mount, MOUNT_DEPTH)]
    if not found:
        raise KaggleError(ATTACH)
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise KaggleError(f"several data sets are attached to this Kaggle notebook; set data_dir to one of {names}")
    return found[0]


def _data_sets(folder: Path, depth: int) -> Iterator[Path]:
    """The known data sets in a folder, which may be one itself, at most `depth` folders down."""
    if _is_data_set(folder):
        yield folder
    elif depth:
        inner = sorted(path for path in folder.iterdir() if path.is_dir())
        for path in inner if len(inner) <= MOST_FOLDERS else []:
            yield from _data_sets(path, depth - 1)


def _is_data_set(folder: Path) -> bool:
    try:
        return (folder / "columns.json").is_file() or Layout.recognised(folder) is not None
    except MetadataError:  # it looks like several, which reading it will say
        return True


def results_folder(out_dir: str | Path, data_dir: str | Path) -> Path:
    """The folder, made if missing, for tables about one data folder.

    Its name ends with a key of the data folder's path, so that two data folders of the same name do not overwrite
    each other's tables.

    Parameters
    ----------
    out_dir
        The folder of all such tables.
    data_dir
        The data folder.
    """
    data_dir = Path(data_dir).resolve()
    folder = Path(out_dir) / f"{data_dir.name}-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
