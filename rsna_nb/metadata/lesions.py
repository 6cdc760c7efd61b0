"""The known lesions of a data set: lesions.csv, which generated data have."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb.notebook import UnavailableError

KEY = ["patient_id", "image_id"]
BOX = ["x_min", "y_min", "x_max", "y_max"]


def lesion_boxes(data_dir: str | Path) -> dict[Any, np.ndarray]:
    """Read the boxes of the cancers in lesions.csv by patient_id and image_id: (k, 4) in pixels of the file, half open.

    Raises `UnavailableError` if there is no such table, or it lacks a column or a number.
    """
    path = Path(data_dir) / "lesions.csv"
    if not path.is_file():
        raise UnavailableError(f"the data have no table of lesions, {path}")
    df = pd.read_csv(path, dtype=dict.fromkeys(KEY, str))  # ids are text everywhere, so that 010006 keeps its 0
    if missing := sorted({*KEY, *BOX, "cancer"} - set(df)):
        raise UnavailableError(f"{path} lacks the columns {', '.join(missing)}")
    df = df[df["cancer"] == 1].copy()  # the index goes on counting the rows of the file
    df[BOX] = df[BOX].apply(pd.to_numeric, errors="coerce")
    if (odd := df[BOX].isna().any(axis=1)).any():
        raise UnavailableError(f"{path}: the box in row {df.index[int(odd.argmax())] + 2} is not four numbers")
    return {key: own[BOX].to_numpy(float) for key, own in df.groupby(KEY)}
