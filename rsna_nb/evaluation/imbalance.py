"""How rare cancer is, in which groups, and what that does to metrics, to the loss and to batches.

`table` is as `metadata.load_metadata` returns it, one row per image. Shares with cancer are counted by breast unless a
function says otherwise. All images of a breast share its label, so that an interval over images would be too narrow.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import hypergeom, norm
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from rsna_nb import metrics, splits
from rsna_nb.metadata import BREAST, INPUTS

NOT_GIVEN = "not given"
AGES = {"under 40": 0, "40 to 49": 40, "50 to 59": 50, "60 to 69": 60, "70 and over": 70}  # each band's first year
UNITS = {"images": ["image_id"], "breasts": BREAST, "women": ["patient_id"]}
GROUPS = ["site_id", "machine_id", "view", "age", "density", "implant"]
TRAIN_ONLY = ["density", "biopsy", "BIRADS", "invasive", "difficult_negative_case"]
TOGETHER = {"before": "all known before the diagnosis", "train.csv": "all columns only in train.csv"}
FOLDS, FEWEST_WOMEN = 5, 10  # women with cancer: two per fold


def with_shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Add the share of positives and its 95 % Wilson interval to counts.

    Parameters
    ----------
    counts
        Columns `total` and `positives`.

    Returns
    -------
    `counts` with `share`, `low` and `high`, all 0-1.
    """
    low, high = metrics.wilson(counts["positives"].to_numpy(), counts["total"].to_numpy())
    return counts.assign(share=counts["positives"] / counts["total"], low=low, high=high)


def prevalence(table: pd.DataFrame) -> pd.DataFrame:
    """How many images, breasts and women there are, and how many of them with cancer.

    A woman or a breast has cancer if one of her or its images has.

    Returns
    -------
    A row for each unit ("images", "breasts", "women"): `total`, `positives`, and the columns of `with_shares`.

    Examples
    --------
    >>> table = pd.DataFrame({"patient_id": ["1", "1", "2"], "laterality": list("LRL"), "image_id": list("abc")})
    >>> prevalence(table.assign(cancer=[1, 0, 0]))[["total", "positives"]].T
               images  breasts  women
    total           3        3      2
    positives       1        1      1
    """
    units = {unit: table.groupby(columns)["cancer"].max() for unit, columns in UNITS.items()}
    counts = {unit: {"total": len(cancer), "positives": int(cancer.sum())} for unit, cancer in units.items()}
    return with_shares(pd.DataFrame(counts).T)


def prevalence_by(table: pd.DataFrame) -> pd.DataFrame:
    """`prevalence` of the breasts that have an image in each group of each column of `GROUPS`.

    Returns
    -------
    The columns of `with_shares`, with the index (column, group). A column that the table lacks, or that is empty, has
    no rows.
    """
    counts = {}
    for column in GROUPS:
        if column not in table or table[column].isna().all():
            continue
        names = group_names(table[column])
        # A breast counts once in each group that it has an image of: once for CC and once for MLO.
        breasts = table.assign(group=names).groupby([*BREAST, "group"], as_index=False)["cancer"].max()
        by_group = breasts.groupby("group")["cancer"].agg(total="size", positives="sum")
        counts[column] = by_group.loc[in_order(names)]
    return with_shares(pd.concat(counts, names=["column"]))


def group_names(values: pd.Series) -> pd.Series:
    """The name of each row's group: a decade of age where the column is "age", else the value as text.

    Empty fields are in the group "not given".
    """
    if values.name == "age":
        years = values.astype(float)
        names = pd.cut(years, [*AGES.values(), np.inf], right=False, labels=list(AGES)).astype(object)
    else:
        names = splits.as_text(values).astype(object)
    return names.where(values.notna(), NOT_GIVEN)


def in_order(names: pd.Series) -> list[str]:
    """The distinct groups: numbers and ages by size, then words alphabetically, and "not given" last."""

    def key(name: str) -> tuple[bool, float, str]:
        return name == NOT_GIVEN, AGES.get(name, float(name) if name.isdigit() else np.inf), name

    return sorted(names.unique(), key=key)


def constant_guesses(labels: ArrayLike, guesses: Mapping[str, float]) -> pd.DataFrame:
    """Compute each metric for constant scores, the same for every breast.

    Parameters
    ----------
    labels
        (n,), 0 or 1.
    guesses
        A name for each score, 0-1. A score of at least 0.5 recalls everybody.

    Returns
    -------
    A row for each guess, a column for each metric. The PPV is NaN if nobody is recalled.
    """
    positive = np.asarray(labels) == 1
    rows = {}
    for name, guess in guesses.items():
        scores = np.full(len(positive), guess)
        called = scores >= 0.5
        rows[name] = {
            "accuracy": (called == positive).mean(),
            "sensitivity": called[positive].mean(),
            "specificity": (~called[~positive]).mean(),
            "PPV": sklearn_metrics.precision_score(positive, called, zero_division=np.nan),
            "F1": sklearn_metrics.f1_score(positive, called, zero_division=0),
            "pF1": metrics.pf1(positive, scores),
            "AUC": sklearn_metrics.roc_auc_score(positive, scores),
            "average precision": sklearn_metrics.average_precision_score(positive, scores),
            "cross-entropy": metrics.cross_entropy(positive, scores).mean(),
            "Brier": sklearn_metrics.brier_score_loss(positive, scores),
        }
    return pd.DataFrame(rows).T


def constant_loss(guess: ArrayLike, share: float, weights: Mapping[int, float]) -> np.ndarray:
    """The mean weighted cross-entropy, in nats, of the same score for everybody.

    Parameters
    ----------
    guess
        Scores strictly between 0 and 1, of any shape.
    share
        The share of positives, 0-1.
    weights
        The weight of class 0 and of class 1 in the loss.
    """
    guess = np.asarray(guess, float)
    return -(share * weights[1] * np.log(guess) + (1 - share) * weights[0] * np.log1p(-guess))


def batches(images: int, positives: int, sizes: Iterable[int]) -> pd.DataFrame:
    """How many positive images a batch has if it is sampled without replacement: a hypergeometric number.

    Returns
    -------
    A row for each of `sizes`: `expected` is the mean number of positives; 90 % of the batches have `low` to `high`;
    `none` is the probability of a batch without any, C(images - positives, size) / C(images, size), and
    `none_an_epoch` the mean number of such batches in an epoch.

    Examples
    --------
    >>> batches(54_706, 1_158, [32, 256])["none"].round(3).tolist()
    [0.504, 0.004]
    """
    sizes = pd.Index(list(sizes), name="batch_size")
    # For all sizes at once: a frozen distribution takes arrays.
    number = hypergeom(images, positives, sizes.to_numpy())
    low, high = number.ppf([[0.05], [0.95]])
    none = number.pmf(0)
    # Not number.mean(): SciPy computes the kurtosis with it, which divides by zero for fewer than four images.
    columns = {"expected": sizes * positives / images, "low": low, "high": high, "none": none}
    return pd.DataFrame(columns | {"none_an_epoch": none * (images // sizes)}, index=sizes)


def by_breast(table: pd.DataFrame) -> pd.DataFrame:
    """One row per breast: whether it has cancer, and what the table says about it.

    `age` is the mean of its images, `view` the list of its views as in "CC+MLO", and every other column the value of
    its first image that has one.
    """
    columns = [name for name in dict.fromkeys([*INPUTS, *TRAIN_ONLY]) if name in table and name not in BREAST]
    views = table.assign(view=group_names(table["view"])).sort_values("view").groupby(BREAST)["view"].agg("+".join)
    breasts = table.groupby(BREAST)
    # groupby's first() skips empty fields: an age given in one of four rows is used.
    df = breasts[columns].first().assign(cancer=breasts["cancer"].max(), age=breasts["age"].mean(), view=views)
    return df.reset_index()


def shortcuts(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How well the table's columns alone, without an image, tell which breasts have cancer.

    Each column, and all columns of a kind together, are the inputs of a logistic regression. It is evaluated out of
    fold, on women whom it was not trained on; `seed` decides who is in which fold.

    Returns
    -------
    A row for each column and for each kind. `kind` is "before" for what is known before the diagnosis, and "train.csv"
    for what the test set lacks. `auc` is the mean of the folds' AUCs by breast, `low` and `high` are the ends of its
    95 % interval. All three are NaN where `unavailable` gives a reason; elsewhere that is "".
    """
    breasts = by_breast(table)
    folds = splits.k_folds(breasts, FOLDS, seed)
    kinds = {"before": [name for name in INPUTS if name != "laterality"], "train.csv": TRAIN_ONLY}
    rows = []
    for kind, names in kinds.items():
        reasons = {name: _why_unavailable(breasts, name) for name in names}
        usable = [name for name in names if not reasons[name]]
        together = (TOGETHER[kind], "" if usable else reasons[names[0]], usable)
        for column, reason, inputs in [*((name, reasons[name], [name]) for name in names), together]:
            auc, low, high = (np.nan,) * 3 if reason else _out_of_fold_auc(breasts, inputs, folds)
            rows.append((kind, column, reason, auc, low, high))
    return pd.DataFrame(rows, columns=["kind", "column", "unavailable", "auc", "low", "high"])


def one_hot(columns: pd.DataFrame) -> np.ndarray:
    """Columns of a table as the inputs of a regression.

    Returns
    -------
    float32 (rows, inputs): 0 or 1 for each value of a column. `age` is one input of mean 0 and variance 1, and another
    that is 1 where it is not given.
    """
    inputs = [pd.get_dummies(group_names(columns[name])) for name in columns if name != "age"]
    if "age" in columns:
        age = (columns["age"] - columns["age"].mean()) / columns["age"].std()
        inputs.append(pd.DataFrame({"age": age.fillna(0), "age not given": age.isna()}))
    return np.hstack([each.to_numpy(np.float32) for each in inputs])


def _why_unavailable(breasts: pd.DataFrame, name: str) -> str:
    """Why nothing can be learned from a column; "" if something can."""
    women = breasts.loc[breasts["cancer"] == 1, "patient_id"].nunique()
    if women < FEWEST_WOMEN:
        return f"too few women with cancer ({women}, of {FEWEST_WOMEN} needed)"
    if name not in breasts:
        return "not in this table"
    if breasts[name].isna().all():
        return "empty in this table"
    return "the same for every breast" if breasts[name].nunique(dropna=False) == 1 else ""


def _out_of_fold_auc(breasts: pd.DataFrame, names: list[str], folds: list) -> tuple[float, float, float]:
    """The mean of the folds' AUCs and the ends of its 95 % interval, of a logistic regression on these columns."""
    inputs, labels = one_hot(breasts[names]).astype(float), breasts["cancer"].to_numpy()
    women = breasts["patient_id"].to_numpy()
    aucs, variances = [], []
    for training, validation in folds:
        model = LogisticRegression(solver="newton-cholesky").fit(inputs[training], labels[training])
        # Breasts with the same inputs have to tie, but the last bits depend on a row's place in the matrix product.
        scores = model.decision_function(inputs[validation]).round(9)
        auc, variance = metrics.clustered_auc(labels[validation], scores, women[validation])
        aucs.append(auc)
        variances.append(variance)
    auc, error = float(np.mean(aucs)), float(np.sqrt(np.sum(variances)) / len(folds))
    if not 0 < auc < 1:  # its logit is infinite
        return auc, auc, auc
    # The interval is symmetric on the logit scale, so that it stays within 0 and 1.
    half = norm.ppf(0.975) * error / (auc * (1 - auc))
    low, high = expit(logit(auc) + np.array([-half, half]))
    return auc, float(low), float(high)
