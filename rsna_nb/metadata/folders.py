"""Which data folder a setting means, and where tables about it are written."""

import hashlib
import logging
from pathlib import Path

from rsna_nb import synthetic
from rsna_nb.config import resolve
from rsna_nb.metadata import kaggle

log = logging.getLogger(__name__)

DEMO_DIR = "data/demo"


def find_data(data_dir: str | Path) -> Path:
    """The data folder that the setting `data_dir` means; the log says which it is.

    Parameters
    ----------
    data_dir
        A folder, relative to the project's root. "" means the competition's mounted folder on Kaggle, and elsewhere
        the demo set, which is generated if it is missing.
    """
    if data_dir != "":
        return resolve(data_dir)
    if mounted := kaggle.mounted():
        log.info("data: the competition's folder mounted at %s", mounted)
        return mounted
    if kaggle.INPUT.is_dir():
        log.warning("data: the competition's data are not attached to this Kaggle notebook")
    log.info("data: the generated demo set in %s", DEMO_DIR)
    return synthetic.generate(resolve(DEMO_DIR))


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
