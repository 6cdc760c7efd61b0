"""How rare cancer is, by which groups, and what that does: to metrics, to the loss, to batches, to shortcuts.

A table is one as `metadata.load_metadata` returns it, one row an image. Shares are counted by breast where not said
otherwise: all images of a breast have one label, so that an interval over images would be too narrow.
"""

from collections.abc import Iterable, Mapping
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import hypergeom
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from rsna_nb import metrics, splits
from rsna_nb.metadata import INPUTS
from rsna_nb.metrics import wilson

Z = NormalDist().inv_cdf(0.975)  # of 95 % intervals
NOT_GIVEN = "not given"
AGES = {"under 40": 0, "40 to 49": 40, "50 to 59": 50, "60 to 69": 60, "70 and over": 70}
BREAST = ["patient_id", "laterality"]
UNITS = {"images": ["image_id"], "breasts": BREAST, "women": ["patient_id"]}
GROUPS = ["site_id", "machine_id", "view", "age", "density", "implant"]
TRAIN_ONLY = ["density", "biopsy", "BIRADS", "invasive", "difficult_negative_case"]
TOGETHER = {"before": "all known before", "train.csv": "all in train.csv only"}
FOLDS, FEWEST_WOMEN = 5, 10  # women with cancer: two a fold


def with_shares(counts: pd.DataFrame) -> pd.DataFrame:
    """`counts` (columns total, positives) with their share and its interval: share, low, high."""
    low, high = wilson(counts["positives"].to_numpy(), counts["total"].to_numpy())
    return counts.assign(share=counts["positives"] / counts["total"], low=low, high=high)


def prevalence(table: pd.DataFrame) -> pd.DataFrame:
    """Images, breasts and women, a row each: how many, how many of them positive, share and interval."""
    counts = {}
    for unit, columns in UNITS.items():
        cancer = table.groupby(columns)["cancer"].max()
        counts[unit] = {"total": len(cancer), "positives": int(cancer.sum())}
    return with_shares(pd.DataFrame(counts).T)


def prevalence_by(table: pd.DataFrame, columns: Iterable[str] = GROUPS) -> pd.DataFrame:
    """As `prevalence`, of the breasts that have an image in each group of each column: index (column, group).

    A column that the table lacks, or that is empty, is left out.
    """
    counts = {}
    for column in columns:
        if column not in table or table[column].isna().all():
            continue
        names = group_names(table[column])
        breasts = table.assign(group=names).groupby([*BREAST, "group"], as_index=False)["cancer"].max()
        by_group = breasts.groupby("group")["cancer"].agg(["size", "sum"])
        counts[column] = by_group.set_axis(["total", "positives"], axis=1).loc[in_order(names)]
    return with_shares(pd.concat(counts, names=["column"]))


def group_names(values: pd.Series) -> pd.Series:
    """Each row's group in words: ages by decade, whole numbers without ".0", "not given" where it is empty."""
    if values.name == "age":
        bands = pd.cut(values.astype(float), [*AGES.values(), np.inf], right=False, labels=list(AGES))
        return bands.astype(object).where(values.notna(), NOT_GIVEN)
    words = values.map(lambda value: str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
    return words.astype(object).where(values.notna(), NOT_GIVEN)


def in_order(names: pd.Series) -> list[str]:
    """The groups in the order of their numbers or ages, or of the alphabet; "not given" last."""

    def key(name: str) -> tuple[bool, float, str]:
        return name == NOT_GIVEN, AGES.get(name, float(name) if name.isdigit() else np.inf), name

    return sorted(names.unique(), key=key)


def constant_guesses(labels: ArrayLike, guesses: Mapping[str, float]) -> pd.DataFrame:
    """What one and the same score for everybody gets on each metric: a row a guess; called positive from 0.5 on."""
    positive = np.asarray(labels) == 1
    rows = {}
    for name, guess in guesses.items():
        scores = np.full(len(positive), guess)
        called = scores >= 0.5
        rows[name] = {
            "accuracy": (called == positive).mean(),
            "sensitivity": called[positive].mean(),
            "specificity": (~called[~positive]).mean(),
            "PPV": positive[called].mean() if called.any() else np.nan,
            "F1": sklearn_metrics.f1_score(positive, called, zero_division=0),
            "pF1": metrics.pf1(positive, scores),
            "AUC": sklearn_metrics.roc_auc_score(positive, scores),
            "average precision": sklearn_metrics.average_precision_score(positive, scores),
            "cross-entropy": metrics.cross_entropy(positive, scores).mean(),
            "Brier": ((scores - positive) ** 2).mean(),
        }
    return pd.DataFrame(rows).T


def constant_loss(guess: ArrayLike, share: float, weights: Mapping[int, float]) -> np.ndarray:
    """Mean weighted cross-entropy of one guess for all, where this share of them is positive."""
    guess = np.asarray(guess, float)
    return -(share * weights[1] * np.log(guess) + (1 - share) * weights[0] * np.log1p(-guess))


def batches(images: int, positives: int, sizes: Iterable[int]) -> pd.DataFrame:
    """Positives in a batch drawn without replacement, a row a size: a hypergeometric number.

    `expected`, `low` and `high` (between which 90 % of the batches lie) are images, `none` is the chance of a batch
    without any, C(images - positives, size) / C(images, size), and `none_an_epoch` how many such an epoch has.
    """
    rows = {}
    for size in sizes:
        number = hypergeom(images, positives, size)
        low, high = number.ppf([0.05, 0.95])
        none = number.pmf(0)
        rows[size] = [size * positives / images, low, high, none, none * (images // size)]
    columns = ["expected", "low", "high", "none", "none_an_epoch"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("batch_size")


def by_breast(table: pd.DataFrame) -> pd.DataFrame:
    """A row a breast: `cancer`, `site_id`, its mean age, all its views in one word, else each column's first value."""
    columns = [name for name in dict.fromkeys([*INPUTS, *TRAIN_ONLY]) if name in table and name not in BREAST]
    breasts = table.groupby(BREAST)
    df = breasts[columns].first().assign(cancer=breasts["cancer"].max(), age=breasts["age"].mean())
    views = table.assign(view=group_names(table["view"])).sort_values("view")
    df["view"] = views.groupby(BREAST)["view"].agg("+".join)
    return df.reset_index()


def shortcuts(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How well the table's columns alone, without a picture, tell the breasts with cancer: AUC out of fold, by women.

    A row a column, and one for all of a kind together: `kind` is "before" for what is known before the diagnosis and
    "train.csv" for what the test set lacks; `auc`, `low`, `high` are NaN where `left_out` says why.
    """
    breasts = by_breast(table)
    folds = splits.k_folds(breasts, FOLDS, seed)
    kinds = {"before": [name for name in INPUTS if name != "laterality"], "train.csv": TRAIN_ONLY}
    rows = []
    for kind, names in kinds.items():
        reasons = {name: why_left_out(breasts, name) for name in names}
        usable = [name for name in names if not reasons[name]]
        rows += [(kind, name, reasons[name], [name]) for name in names]
        rows.append((kind, TOGETHER[kind], reasons[names[0]] if not usable else "", usable))
    df = pd.DataFrame([(kind, name, reason) for kind, name, reason, _ in rows], columns=["kind", "column", "left_out"])
    aucs = [(np.nan,) * 3 if row[2] else out_of_fold_auc(breasts, row[3], folds) for row in rows]
    return df.assign(**pd.DataFrame(aucs, columns=["auc", "low", "high"]))


def why_left_out(breasts: pd.DataFrame, name: str) -> str:
    women = breasts.loc[breasts["cancer"] == 1, "patient_id"].nunique()
    if women < FEWEST_WOMEN:
        return f"too few women with cancer ({women}, of {FEWEST_WOMEN} needed)"
    if name not in breasts:
        return "not in this table"
    if breasts[name].isna().all():
        return "empty in this table"
    return "the same for every breast" if breasts[name].nunique(dropna=False) == 1 else ""


def out_of_fold_auc(breasts: pd.DataFrame, names: list[str], folds: list) -> tuple[float, float, float]:
    """AUC, the folds' mean, and the ends of its 95 % interval, of a logistic regression on these columns."""
    inputs, labels = one_hot(breasts[names]), breasts["cancer"].to_numpy()
    rows, kinds = np.unique(inputs, axis=0, return_inverse=True)  # few: most breasts have others' values
    women = breasts["patient_id"].to_numpy()
    aucs, variances = [], []
    for training, validation in folds:
        counts = [np.bincount(kinds[training], labels[training] == label, len(rows)) for label in (0, 1)]
        model = LogisticRegression(solver="newton-cholesky")
        model.fit(np.tile(rows, (2, 1)), np.repeat([0, 1], len(rows)), sample_weight=np.concatenate(counts))
        scores = model.decision_function(rows)[kinds]  # so that breasts with the same values are tied
        auc, variance = metrics.clustered_auc(labels[validation], scores[validation], women[validation])
        aucs.append(auc)
        variances.append(variance)
    auc, error = float(np.mean(aucs)), float(np.sqrt(np.sum(variances)) / len(folds))
    if not 0 < auc < 1:
        return auc, auc, auc
    middle, half = np.log(auc / (1 - auc)), Z * error / (auc * (1 - auc))
    return auc, float(1 / (1 + np.exp(half - middle))), float(1 / (1 + np.exp(-half - middle)))


def one_hot(columns: pd.DataFrame) -> np.ndarray:
    """float32 (breasts, inputs): a column for each value, and age as one of unit variance."""
    parts = [pd.get_dummies(group_names(columns[name])) for name in columns if name != "age"]
    if "age" in columns:
        age = (columns["age"] - columns["age"].mean()) / columns["age"].std()
        parts.append(pd.DataFrame({"age": age.fillna(0), "age not given": age.isna()}))
    return np.hstack([part.to_numpy(np.float32) for part in parts])
