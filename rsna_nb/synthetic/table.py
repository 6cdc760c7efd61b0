"""The women of a generated data set: ages, machines and cancers, in the columns of the RSNA table."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

from rsna_nb.synthetic.drawing import Look

VERSION = 2  # raise it whenever the same arguments give other bytes

# fmt: off
TRAIN_COLUMNS = [
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS",
    "implant", "density", "machine_id", "difficult_negative_case",
]
TEST_COLUMNS = [
    "site_id", "patient_id", "image_id", "laterality", "view", "age", "implant", "machine_id", "prediction_id",
]
# fmt: on
DENSITIES = {"A": 0.11, "B": 0.43, "C": 0.4, "D": 0.06}  # BI-RADS category -> share of women


@dataclass(frozen=True)
class Machine:
    """A mammography unit with the peculiarities that its files have in the real data."""

    machine_id: int
    site_id: int
    images: int  # in the real data; generated women use the machines in these proportions
    cancer_ratio: float  # women with cancer per woman without, relative to the average machine
    rows: int
    columns: int
    spacing: float  # of pixels in mm
    syntax: UID
    look: Look
    photometric: str = "MONOCHROME2"
    voi: str | None = "LINEAR"  # VOILUTFunction; None if the attribute is absent
    windows: tuple[tuple[float, float], ...] = ((2048, 4096),)  # (center, width); empty if there is no window at all


# Frequencies, photometric interpretation and VOI function are those of the real table (SIGMOID: 22 % of the files).
J2K, SV1, RAW = JPEG2000Lossless, JPEGLosslessSV1, ExplicitVRLittleEndian
DARK_ON_WHITE = ((2048.0, 3000.0), (2250.0, 2600.0), (1800.0, 2600.0))  # windows of a MONOCHROME1 machine
SIGMOID = ((1900.0, 3200.0), (1700.0, 2800.0), (2200.0, 2800.0))
# fmt: off
MACHINES = (
    Machine(49, 1, 23529, 1.10, 3328, 2560, 0.07, J2K, Look(1.0, 1.0, 0.010)),
    Machine(170, 1, 923, 1.00, 4096, 3328, 0.07, J2K, Look(0.95, 1.1, 0.008)),
    Machine(190, 1, 145, 1.10, 4096, 3328, 0.07, RAW, Look(), voi=None, windows=()),
    Machine(197, 1, 29, 0.60, 3328, 2560, 0.07, RAW, Look(), voi=None, windows=()),
    Machine(210, 1, 1070, 0.50, 4740, 3540, 0.05, SV1, Look(0.9, 0.9, 0.014), "MONOCHROME1"),
    Machine(216, 1, 1908, 0.60, 4096, 3328, 0.07, SV1, Look(1.0, 1.15, 0.007, 24), voi="SIGMOID", windows=SIGMOID),
    Machine(93, 1, 1915, 0.65, 2776, 2082, 0.085, J2K, Look(0.9, 0.85, 0.012, 40), voi="SIGMOID", windows=SIGMOID),
    Machine(21, 2, 8221, 0.95, 2776, 2082, 0.085, SV1, Look(0.92, 0.95, 0.012), windows=((1950, 3800),)),
    Machine(
        29, 2, 8267, 1.0, 2776, 2082, 0.085, SV1, Look(0.97, 1.05, 0.011, 12), "MONOCHROME1", "SIGMOID", DARK_ON_WHITE
    ),
    Machine(
        48, 2, 8699, 1.05, 3328, 2560, 0.07, J2K, Look(1.03, 1.1, 0.009), voi=None, windows=((2048, 4096), (1700, 3400))
    ),
)
# fmt: on


def make_table(patients: int, prevalence: float, seed: int) -> pd.DataFrame:
    """Sample women and their images: the table train.csv, without any pixels.

    Parameters
    ----------
    patients
        Number of women. Each has CC and MLO of both breasts. In one breast of twenty, one view was taken twice.
    prevalence
        Share of women with cancer, 0 to 1. Each of them has it in one breast.
    seed
        The same seed gives the same table.

    Returns
    -------
    A table with the columns of the real train.csv in their order, a row for each image, ordered by patient.

    Raises
    ------
    ValueError
        If no woman or every woman would have cancer.

    Examples
    --------
    >>> table = make_table(patients=100, prevalence=0.1, seed=0)
    >>> int(table.groupby("patient_id")["cancer"].max().sum())
    10
    """
    positives = round(patients * prevalence)
    if not 0 < positives < patients:
        raise ValueError(
            f"patients={patients} and prevalence={prevalence} make {positives} women with cancer: "
            "at least one woman with and one without is needed."
        )
    rng = np.random.default_rng([seed, VERSION])
    cancer = rng.permutation(np.arange(patients) < positives)
    breasts = _draw_breasts(rng, _draw_women(rng, cancer))
    table = _draw_images(rng, breasts)
    return table[TRAIN_COLUMNS]


def _draw_women(rng: np.random.Generator, cancer: NDArray[np.bool_]) -> pd.DataFrame:
    """Sample a row for each woman; `cancer` says who has it.

    Only age and machine are related to cancer. Together they reach an AUC of 0.60-0.62 by image (real data: 0.66).
    """
    n = cancer.size
    frequency = np.array([machine.images for machine in MACHINES], dtype=float)
    ratio = np.array([machine.cancer_ratio for machine in MACHINES])
    chances = [np.cumsum(weight / weight.sum()) for weight in (frequency, frequency * ratio)]
    draw = rng.random(n)
    index = np.where(cancer, np.searchsorted(chances[1], draw), np.searchsorted(chances[0], draw))
    women = pd.DataFrame({"patient_id": np.sort(rng.choice(np.arange(5, 65_536 + 4 * n), n, replace=False))})
    women["site_id"] = np.array([machine.site_id for machine in MACHINES])[index]
    women["machine_id"] = np.array([machine.machine_id for machine in MACHINES])[index]
    women["cancer_side"] = np.where(cancer, rng.choice(["L", "R"], n), "")
    age = np.clip(np.rint(rng.normal(np.where(cancer, 62.5, 57.5), 10.0)), 26, 89)
    women["age"] = np.where(rng.random(n) < 0.004, np.nan, age)
    # Site 1 alone records implants and density.
    women["implant"] = ((women["site_id"] == 1) & (rng.random(n) < 0.05)).astype(int)
    density = rng.choice(list(DENSITIES), n, p=list(DENSITIES.values()))
    women["density"] = pd.Series(density, dtype=object).where(women["site_id"] == 1)
    return women


def _draw_breasts(rng: np.random.Generator, women: pd.DataFrame) -> pd.DataFrame:
    """Sample two rows for each woman, one per breast.

    Biopsy, BI-RADS and the other findings of the radiologists leak the diagnosis, as they do in the real data.
    """
    breasts = women.loc[women.index.repeat(2)].reset_index(drop=True)
    n = len(breasts)
    breasts["laterality"] = np.tile(["L", "R"], n // 2)
    cancer = (breasts["cancer_side"] == breasts["laterality"]).to_numpy()
    breasts["cancer"] = cancer.astype(int)
    breasts["biopsy"] = np.where(cancer, 1, rng.random(n) < 0.033).astype(int)
    breasts["invasive"] = (cancer & (rng.random(n) < 0.7)).astype(int)
    healthy_birads = rng.choice([0.0, 1.0, 2.0, np.nan], n, p=[0.13, 0.28, 0.06, 0.53])
    cancer_birads = rng.choice([0.0, np.nan], n, p=[0.75, 0.25])
    breasts["BIRADS"] = np.where(cancer, cancer_birads, healthy_birads)
    recalled = (breasts["BIRADS"] == 0) | (breasts["biopsy"] == 1)
    breasts["difficult_negative_case"] = recalled & ~cancer
    return breasts


def _draw_images(rng: np.random.Generator, breasts: pd.DataFrame) -> pd.DataFrame:
    """Sample a row for each image: CC and MLO of every breast, and in 5 % of breasts one of them a second time."""
    pictures = np.full(len(breasts), 2) + (rng.random(len(breasts)) < 0.05)
    images = breasts.loc[breasts.index.repeat(pictures)].reset_index(drop=True)
    number = images.groupby(["patient_id", "laterality"]).cumcount()
    images["view"] = np.where(number == 0, "CC", np.where(number == 1, "MLO", rng.choice(["CC", "MLO"], len(images))))
    # Twice as many ids as needed are sampled, so that enough remain without repetition, and in random order.
    ids = rng.permutation(np.unique(rng.integers(10**6, 2**31, 2 * len(images))))
    images["image_id"] = ids[: len(images)]
    return images
