"""Measures how much of the label the generated data give away outside the tissue: an AUC by image without the lesion.

    python tests/bench/bench_synthetic_honesty.py [generated data folder]

A logistic regression is cross-validated by patient on the columns that test.csv has (limit 0.68 over 4,000 women). It
is repeated with the mean brightness of the prepared image and the size of the file (limit 0.70 on the demo set).
Without a folder, the demo set is generated into a temporary one.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from rsna_nb import synthetic
from rsna_nb.dicom import read_mammogram

CATEGORIES = ["site_id", "laterality", "view", "implant", "machine_id"]
FOLDS = 5


def leak_auc(table: pd.DataFrame, pixels: pd.DataFrame | None = None) -> float:
    """Return the AUC by image of a logistic regression.

    Parameters
    ----------
    table
        A table from `synthetic.make_table`. The columns that test.csv has are used.
    pixels
        Further columns to use, a row for each image.
    """
    age = table["age"].fillna(table["age"].mean())
    numbers = pd.DataFrame({"age": age, "age_squared": age**2, "age_missing": table["age"].isna().astype(float)})
    if pixels is not None:
        numbers = numbers.join(pixels)
    columns = numbers.join(table[CATEGORIES])
    model = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), CATEGORIES), (StandardScaler(), list(numbers.columns))
        ),
        LogisticRegression(max_iter=2000),
    )
    folds = GroupKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(
        model, columns, table["cancer"], groups=table["patient_id"], cv=folds, method="predict_proba"
    )
    return float(roc_auc_score(table["cancer"], scores[:, 1]))


def measure_pixels(table: pd.DataFrame, data_dir: Path, img_size: int = 256) -> pd.DataFrame:
    """Return each prepared image's mean brightness and its square, the file's size, and the size by machine."""
    paths = [
        data_dir / "train_images" / str(patient_id) / f"{image_id}.dcm"
        for patient_id, image_id in zip(table["patient_id"], table["image_id"], strict=True)
    ]
    pixels = pd.DataFrame({"brightness": [float(read_mammogram(path, img_size).mean()) for path in paths]})
    pixels["file_size"] = [path.stat().st_size for path in paths]
    relative = pixels["file_size"] / pixels["file_size"].groupby(table["machine_id"]).transform("mean")
    return pixels.assign(brightness_squared=pixels["brightness"] ** 2, relative_file_size=relative)


def main(data_dir: Path) -> None:
    """Print the AUCs."""
    for prevalence in (0.04, 0.4):
        leaks = [leak_auc(synthetic.make_table(4000, prevalence, seed)) for seed in range(10)]
        print(
            f"columns of test.csv, 4,000 women, {prevalence:.0%} with cancer, 10 seeds: "
            f"mean {np.mean(leaks):.3f}, highest {np.max(leaks):.3f} (limit 0.68)"
        )
    synthetic.generate(data_dir)
    table = pd.read_csv(data_dir / "train.csv")
    pixels = measure_pixels(table, data_dir)
    print(f"columns of test.csv, demo set: {leak_auc(table):.3f}")
    print(f"with brightness and file size, demo set: {leak_auc(table, pixels):.3f} (limit 0.70)")
    for name in pixels:
        print(f"{name} alone, demo set: {roc_auc_score(table['cancer'], pixels[name]):.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "generated")
