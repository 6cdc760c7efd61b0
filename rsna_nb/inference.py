"""A run and DICOM files -> scores."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from rsna_nb.backbones import load_model
from rsna_nb.dicom import DicomError, read_mammogram
from rsna_nb.prepare import to_8_bits
from rsna_nb.runs import Run


def predict(run: Run, paths: Sequence[str | Path], batch_size: int = 16) -> pd.DataFrame:
    """Score DICOM files with a run's best model.

    Parameters
    ----------
    run
        A finished run; its img_size is used.
    paths
        DICOM files.
    batch_size
        Pictures that are read and scored together.

    Returns
    -------
    One row a file, in their order: path, score (probability of cancer, NaN where the file cannot be read)
    and error (the reason, else "").
    """
    model = load_model(run.checkpoint)
    parts = [
        predict_batch(model, run, [str(path) for path in paths[start : start + batch_size]])
        for start in range(0, len(paths), batch_size)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["path", "score", "error"])


def predict_batch(model: keras.Model, run: Run, paths: list[str]) -> pd.DataFrame:
    df = pd.DataFrame({"path": paths, "score": np.nan, "error": ""})
    pictures = []
    for row, path in enumerate(paths):
        try:
            pictures.append(read_mammogram(path, run.config.image_shape))
        except DicomError as error:
            df.loc[row, "error"] = error.reason
    if pictures:
        # 8 bits, as the model was trained from the store
        images = to_8_bits(np.stack(pictures))[..., np.newaxis].astype(np.float32) / 255
        df.loc[df["error"] == "", "score"] = model.predict(images, verbose=0)[:, 0].astype(np.float64)
    return df
