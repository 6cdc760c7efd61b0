"""The table of images that the viewer shows, from a run or with the known lesions of a data set."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rsna_nb.metadata import MetadataError, lesion_boxes, load_metadata
from rsna_nb.notebook import Unavailable, UnavailableError, attempt

if TYPE_CHECKING:
    from rsna_nb.evaluation import Evaluation

log = logging.getLogger(__name__)

KEY = ["patient_id", "image_id"]


def with_lesions(images: pd.DataFrame, data_dir: str | Path) -> pd.DataFrame:
    """Add the column `boxes`: known cancers, (k, 4) in pixels of the file, (0, 4) where none is known.

    They come from lesions.csv of the data folder (`metadata.lesion_boxes`). Without it no lesion is known.
    """
    lesions = attempt(lesion_boxes, data_dir)
    if isinstance(lesions, Unavailable) and (Path(data_dir) / "lesions.csv").is_file():
        log.warning("no lesions are shown: %s", lesions.reason)
    known = {} if isinstance(lesions, Unavailable) else lesions
    boxes = [known.get(key, np.empty((0, 4))) for key in images[KEY].itertuples(index=False, name=None)]
    return images.assign(boxes=pd.Series(boxes, index=images.index, dtype=object))


def images_of(evaluation: "Evaluation", cases: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all images of the women of some examples, in their order, with the original files and the known lesions.

    Parameters
    ----------
    evaluation
        The run and its evaluated images.
    cases
        As `evaluation.examples` returns them.

    Raises
    ------
    UnavailableError
        If there are no women, or the data folder or its table are missing or lack an image.
    """
    from rsna_nb.evaluation import data_folder  # here: worker processes do not need it, and its import takes a second

    run, women = evaluation.run, list(dict.fromkeys(id for rows in cases.values() for id in rows["patient_id"]))
    rows = evaluation.predictions[evaluation.predictions["patient_id"].isin(women)]
    if rows.empty:
        raise UnavailableError("there are no women to show")
    folder = data_folder(run)
    try:
        table = load_metadata(folder, "train", False, run.config.mixed_breasts, run.config.table)
    except MetadataError as error:
        raise UnavailableError(str(error)) from error
    paths = table.set_index(KEY)["path"].to_dict()
    keys = list(rows[KEY].itertuples(index=False, name=None))
    if missing := ["/".join(key) for key in keys if key not in paths]:
        raise UnavailableError(f"{folder} lacks {len(missing)} images of the run, first {missing[0]}")
    rows = rows.assign(path=[paths[key] for key in keys])
    return with_lesions(rows.sort_values("patient_id", key=lambda ids: ids.map(women.index), kind="stable"), folder)
