"""The published detectors that can be imported. To add one, add an entry to `RECIPES`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A published detector.

    Attributes
    ----------
    settings
        The settings of its network and images, and those of its training that are known and exist here.
    head
        The tensor of its last layer, which must have one output.
    threshold
        The published threshold on scores, for images prepared as `settings` say.
    prevalence
        The share of breasts with cancer in the data that it was trained on.
    trained_on
        The layouts (`metadata.describe`) of data sets that it was trained on, each with a clause for the error message.
    """

    origin: str
    authors: str
    licence: str
    address: str
    published: str
    settings: Mapping[str, Any]
    head: str
    threshold: float
    prevalence: float
    trained_on: Mapping[str, str] = field(default_factory=dict)


RECIPES = {
    "rsna-first-place": Recipe(
        origin="first place of the RSNA Screening Mammography Breast Cancer Detection challenge (2023)",
        authors="Nguyen Hong Dang (dangnh0611)",
        licence="MIT for the code; the licence of the data set that holds the weights was not seen",
        address="https://github.com/dangnh0611/kaggle_rsna_breast_cancer; weights: "
        "https://www.kaggle.com/datasets/dangnh0611/rsna-breast-cancer-detection-best-ckpts",
        published="pF1 of calls at 0.31: 0.518 out of fold, 0.61 on the public and 0.55 on the private test set",
        settings={
            "backbone": "convnextsmall", "freeze_backbone": False, "pooling": "max", "dropout": 0.0,
            "img_size": [2048, 1024], "reading": "rsna-first-place",
            "imbalance": "balanced_batches", "positive_label": 0.9, "ema": 0.9998,
        },
        head="head.fc.weight",
        threshold=0.31,
        prevalence=492 / 23826,  # of RSNA's train.csv
        trained_on={
            **dict.fromkeys(
                ("RSNA", "RSNA as PNG", "RSNA as PNG, one folder", "RSNA as PNG of Mammo-CLIP"),
                "three of its four folds were trained on each woman of train.csv",
            ),
            **dict.fromkeys(("VinDr-Mammo", "CMMD", "CDD-CESM"), "its folds were trained on it"),
            **dict.fromkeys(("CBIS-DDSM", "CBIS-DDSM as JPEG"), "its folds were trained on these films (MiniDDSM)"),
        },
    ),
}  # fmt: skip
