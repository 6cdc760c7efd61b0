"""Calibration: whether one in ten breasts with a score of 0.1 has cancer, and methods that make it so.

`labels` are 0 or 1 and `scores` probabilities, both of shape (n,). At 2 % prevalence almost all scores are near 0, so
each bin holds the same number of rows, and not the same range of scores.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from rsna_nb.metrics.operating import assign_folds
from rsna_nb.metrics.predictions import check_predictions
from rsna_nb.metrics.weighted import MetricsError, checked

Method = Literal["platt", "isotonic", "temperature"]
Calibrator = Callable[[np.ndarray], np.ndarray]  # scores -> scores
BINS = 10


def logit(scores: ArrayLike, epsilon: float = 1e-7) -> np.ndarray:
    """log(p / (1 - p)) of the scores, kept `epsilon` away from 0 and 1 so that it stays finite."""
    return special.logit(np.clip(np.asarray(scores, dtype=float), epsilon, 1 - epsilon))


def prior_correction(scores: ArrayLike, class_weights: Mapping[int, float]) -> np.ndarray:
    """The probabilities that training without class weights would have given.

    Class weights w0 and w1 multiply the odds that minimise the cross-entropy by w1 / w0, as another prevalence would.
    p' = p w0 / (p w0 + (1 - p) w1) reverses this and keeps the order of the scores (Elkan 2001, The foundations of
    cost-sensitive learning, theorem 2; King & Zeng 2001, Polit. Anal. 9:137). Temperature scaling cannot replace it:
    it moves scores away from 0.5 or towards it, and never shifts them.

    Parameters
    ----------
    scores
        Probabilities of images (n,). Correct images first and take the mean over the breast afterwards.
    class_weights
        {0: w0, 1: w1}, as `class_weights` returns them.

    Raises
    ------
    MetricsError
        For weights that are not above 0, and for scores outside 0-1.

    Examples
    --------
    >>> prior_correction([0.5, 0.9], {0: 0.5, 1: 4.5}).round(2).tolist()  # the odds divided by 9
    [0.1, 0.5]
    """
    negative, positive = class_weights[0], class_weights[1]
    if min(negative, positive) <= 0:
        raise MetricsError(f"class weights must be above 0, not {dict(class_weights)}: give those used in training")
    values = np.asarray(scores, dtype=float)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise MetricsError(
            f"prior correction needs probabilities from 0 to 1: {wrong.sum()} of {wrong.size} scores are not, the "
            f"first is {values[wrong][0]}, in row {np.flatnonzero(wrong)[0]}"
        )
    return values * negative / (values * negative + (1 - values) * positive)


def reliability(labels: ArrayLike, scores: ArrayLike) -> pd.DataFrame:
    """The mean score and the share with cancer in up to `BINS` bins of ascending scores, a row for each bin.

    scikit-learn's `calibration_curve` gives neither counts nor intervals, and cuts through equal scores. Here equal
    scores stay together, so there can be fewer bins.

    Returns
    -------
    The columns mean_score, observed (share with cancer), low and high (`wilson`), count and positives.
    """
    positive, values = checked(labels, scores)
    df = pd.DataFrame({"score": values, "label": positive.astype(int)})
    # the mean rank is the same for equal scores, which keeps them in one bin
    place = np.floor((df["score"].rank(method="average") - 0.5) * BINS / len(df))
    table = df.groupby(place).agg(
        mean_score=("score", "mean"), observed=("label", "mean"), count=("label", "size"), positives=("label", "sum")
    )
    low, high = wilson(table["positives"].to_numpy(), table["count"].to_numpy())
    table.insert(2, "low", low)
    table.insert(3, "high", high)
    return table.reset_index(drop=True)


def wilson(positives: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % score intervals (low, high) of shares positives / count (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    Rows are taken as independent: the interval is too narrow for images, and nearly right for breasts.
    """
    limits = [binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in zip(positives, count, strict=True)]
    low, high = np.array(limits).reshape(-1, 2).T
    return low, high


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the mean over rows of the distance between mean score and share with cancer of their bin, 0-1.

    This is the ECE of Naeini et al. 2015, AAAI 29:2901. Each bin holds the same number of rows
    (`reliability`). By chance even perfect scores have an ECE above 0.
    """
    table = reliability(labels, scores)
    return float(np.average((table["mean_score"] - table["observed"]).abs(), weights=table["count"]))


def calibration_slope(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Calibration slope and calibration-in-the-large (Cox 1958, Biometrika 45:562; Van Calster 2019, BMC Med. 17:230).

    Returns
    -------
    The slope of a logistic regression of the labels on the logit, below 1 where scores are too extreme; and the
    intercept of one whose slope is fixed at 1, below 0 where scores are too high. Calibrated scores have (1, 0).
    Both are NaN for a single class, the slope for equal scores.
    """
    positive, logits = np.asarray(labels) == 1, logit(scores)
    if positive.all() or not positive.any():
        return float("nan"), float("nan")
    # With a fixed slope the likelihood is largest where the scores sum to the number of positives.
    intercept = brentq(lambda shift: expit(logits + shift).sum() - positive.sum(), -50, 50)
    slope = _logistic(positive, logits)[0] if np.ptp(logits) > 0 else float("nan")
    return slope, float(intercept)


def _logistic(positive: np.ndarray, logits: np.ndarray, has_intercept: bool = True) -> tuple[float, float]:
    """(slope, intercept) of a logistic regression on the logits, without penalty.

    Classes that a threshold separates have no finite answer; the solver stops where the loss is flat.
    """
    model = LogisticRegression(C=np.inf, fit_intercept=has_intercept, tol=1e-9, max_iter=1000)
    model.fit(logits[:, np.newaxis], positive)
    return float(model.coef_[0, 0]), float(model.intercept_[0]) if has_intercept else 0.0


def _fit_platt(positive: np.ndarray, scores: np.ndarray) -> Calibrator:
    """expit(slope x logit + intercept) (Platt 1999), with the labels as targets.

    scikit-learn's "sigmoid" replaces the labels by Platt's smoothed targets, which move the prevalence.
    """
    slope, intercept = _logistic(positive, logit(scores))
    return lambda others: expit(slope * logit(others) + intercept)


def _fit_temperature(positive: np.ndarray, scores: np.ndarray) -> Calibrator:
    """expit(logit / T), with T from 0.01 to 100 (Guo et al. 2017, ICML 70:1321).

    1 / T is the slope of a logistic regression without intercept. `CalibratedClassifierCV` has the same fit only from
    scikit-learn 1.8 on, and around a classifier.
    """
    slope, _ = _logistic(positive, logit(scores), has_intercept=False)
    slope = np.clip(slope, 0.01, 100)  # a slope below 0 would reverse the order of the scores
    return lambda others: expit(slope * logit(others))


def _fit_isotonic(positive: np.ndarray, scores: np.ndarray) -> Calibrator:
    """The best rising step function (Zadrozny & Elkan 2002), from 1 / (n + 2) to 1 - 1 / (n + 2).

    It never reaches 0 or 1, because no cancer among n breasts does not prove a risk of 0.
    """
    margin = 1 / (len(scores) + 2)
    model = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip").fit(scores, positive)
    return lambda others: model.predict(others)


FIT: dict[Method, Callable[[np.ndarray, np.ndarray], Calibrator]] = {
    "platt": _fit_platt,
    "isotonic": _fit_isotonic,
    "temperature": _fit_temperature,
}


def recalibrated(predictions: pd.DataFrame, method: Method = "platt") -> np.ndarray:
    """Calibrated scores (rows,) in 0-1: each woman's by a calibrator fitted on the women of the other folds.

    The folds are those of `assign_folds`.

    Parameters
    ----------
    predictions
        A row for each image or breast, with patient_id, cancer and score.
    method
        "platt", "isotonic" or "temperature".

    Raises
    ------
    MetricsError
        For an unknown method, a fault of the table, or folds whose complement has a single class.
    """
    if method not in FIT:
        raise MetricsError(f"there is no calibration method {method}: give one of {', '.join(FIT)}")
    predictions = check_predictions(predictions, ["patient_id", "cancer", "score"])
    positive, scores = predictions["cancer"].to_numpy() == 1, predictions["score"].to_numpy()
    fold = assign_folds(predictions)
    calibrated = np.empty(len(scores))
    for value in np.unique(fold):
        own = fold == value
        if positive[~own].all() or not positive[~own].any():
            raise MetricsError(f"the women outside fold {value} are of one class: nothing to calibrate on")
        calibrated[own] = FIT[method](positive[~own], scores[~own])(scores[own])
    return calibrated


def calibration_table(labels: ArrayLike, ways: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Measures of calibration of several versions of the scores, a row for each.

    Parameters
    ----------
    labels, ways
        0 or 1 (n,), and scores (n,) by the name of their version.

    Returns
    -------
    The columns brier (mean squared error of the scores), ece (`expected_calibration_error`), mean_score, observed
    (share with cancer), slope and intercept (`calibration_slope`), indexed by `scores`, the version's name.
    """
    rows = {}
    for way, scores in ways.items():
        slope, intercept = calibration_slope(labels, scores)
        rows[way] = {
            "brier": float(brier_score_loss(labels, scores)),
            "ece": expected_calibration_error(labels, scores),
            "mean_score": float(scores.mean()),
            "observed": float(np.asarray(labels).mean()),
            "slope": slope,
            "intercept": intercept,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("scores")
