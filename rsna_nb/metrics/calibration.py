"""Whether a score of 0.1 means cancer in one of ten, and how to make it so.

`labels` are 0 or 1 and `scores` probabilities, both of shape (n,). At 2 % prevalence almost all scores are near 0:
bins hold equally many rows, not equally wide ranges.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit
from sklearn.isotonic import IsotonicRegression

from rsna_nb.metrics.figures import MetricsError, checked
from rsna_nb.metrics.operating import assign_folds
from rsna_nb.metrics.predictions import check_predictions

Method = Literal["platt", "isotonic", "temperature"]
Calibrator = Callable[[np.ndarray], np.ndarray]  # scores -> scores


def logit(scores: ArrayLike, epsilon: float = 1e-7) -> np.ndarray:
    """log(p / (1 - p)), the scores kept `epsilon` away from 0 and 1."""
    return special.logit(np.clip(np.asarray(scores, dtype=float), epsilon, 1 - epsilon))


def prior_correction(scores: ArrayLike, class_weights: Mapping[int, float]) -> np.ndarray:
    """The probabilities that training without class weights would have given: their odds times w0 / w1.

    Weighting positives by w1 and negatives by w0 multiplies the odds that minimise the cross-entropy by w1 / w0, as
    changing the prevalence would; p' = p w0 / (p w0 + (1 - p) w1) undoes it and keeps the order of scores (Elkan
    2001, The foundations of cost-sensitive learning, theorem 2; King & Zeng 2001, Polit. Anal. 9:137, prior
    correction). Do this before `by_breast(how="noisy_or")`; a temperature cannot take its place, as it moves scores
    about 0.5 and never shifts them.
    """
    negative, positive = class_weights[0], class_weights[1]
    if min(negative, positive) <= 0:
        raise MetricsError(f"class weights are above 0, not {dict(class_weights)}: give those that training used")
    values = np.asarray(scores, dtype=float)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise MetricsError(
            f"scores must be probabilities from 0 to 1 to be corrected: {wrong.sum()} of {wrong.size} are not, the "
            f"first is {values[wrong][0]}, in row {np.flatnonzero(wrong)[0]}"
        )
    return values * negative / (values * negative + (1 - values) * positive)


def brier(labels: ArrayLike, scores: ArrayLike) -> float:
    """The mean of (score - label) squared, 0 at best (Brier 1950, Mon. Weather Rev. 78:1)."""
    positive, values = checked(labels, scores)
    return float(np.mean((values - positive) ** 2))


def reliability(labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """What share of each bin has cancer, beside the mean of its scores; a row a bin, ascending.

    Bins hold equally many rows; equal scores stay together, so there can be fewer of them. The columns are
    mean_score, observed, low, high (`wilson`), count and positives.
    """
    positive, values = checked(labels, scores)
    df = pd.DataFrame({"score": values, "label": positive.astype(int)})
    place = np.floor((df["score"].rank(method="average") - 0.5) * bins / len(df))
    table = df.groupby(place).agg(
        mean_score=("score", "mean"), observed=("label", "mean"), count=("label", "size"), positives=("label", "sum")
    )
    low, high = wilson(table["positives"].to_numpy(), table["count"].to_numpy())
    table.insert(2, "low", low)
    table.insert(3, "high", high)
    return table.reset_index(drop=True)


def wilson(positives: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    It takes rows for independent: too narrow for images, nearly right for breasts.
    """
    share = positives / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return np.maximum(middle - reach, 0), np.minimum(middle + reach, 1)


def expected_calibration_error(labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> float:
    """The mean over rows of |mean score - observed share| of their bin (`reliability`), 0-1.

    Naeini et al. 2015, AAAI 29:2901, here with bins of equal mass. Above 0 even for perfect scores, by chance.
    """
    table = reliability(labels, scores, bins)
    return float(np.average((table["mean_score"] - table["observed"]).abs(), weights=table["count"]))


def calibration_slope(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """(slope, intercept), (1, 0) for calibrated scores; NaN for one class alone, the slope for equal scores.

    The slope is that of a logistic regression on the logit: below 1, scores are too extreme. The intercept is of one
    whose slope is fixed at 1, calibration in the large: below 0, scores are too high (Cox 1958, Biometrika 45:562;
    Van Calster et al. 2019, BMC Med. 17:230).
    """
    positive, logits = np.asarray(labels) == 1, logit(scores)
    if positive.all() or not positive.any():
        return float("nan"), float("nan")
    _, intercept = fitted_line(positive, logits, slope=False)
    slope = fitted_line(positive, logits)[0] if np.ptp(logits) > 0 else float("nan")
    return slope, intercept


def fitted_line(positive: np.ndarray, logits: np.ndarray, slope: bool = True) -> tuple[float, float]:
    """(slope, intercept) of a logistic regression without penalty, the slope fixed at 1 without `slope`.

    Classes that a threshold separates have no finite answer: the search stops where the loss is flat.
    """
    columns = np.stack([logits, np.ones_like(logits)])[0 if slope else 1 :]
    offset = 0 if slope else logits

    def loss_and_slope(line: np.ndarray) -> tuple[float, np.ndarray]:
        fitted = line @ columns + offset
        loss = -np.where(positive, log_expit(fitted), log_expit(-fitted)).mean()
        return loss, columns @ (expit(fitted) - positive) / len(positive)

    line = minimize(loss_and_slope, [1.0, 0.0][0 if slope else 1 :], jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return float(line[0]) if slope else 1.0, float(line[-1])


def fit_platt(positive: np.ndarray, scores: np.ndarray) -> Calibrator:
    """expit(slope logit + intercept) (Platt 1999, with the network's logit for the margin, and labels as they are)."""
    slope, intercept = fitted_line(positive, logit(scores))
    return lambda others: expit(slope * logit(others) + intercept)


def fit_temperature(positive: np.ndarray, scores: np.ndarray) -> Calibrator:
    """expit(logit / T), T in 0.01-100 of the least cross-entropy (Guo et al. 2017, ICML 70:1321)."""
    signed = np.where(positive, 1, -1) * logit(scores)

    def loss(log_temperature: float) -> float:
        return -log_expit(signed / np.exp(log_temperature)).mean()

    best = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-8})
    temperature = float(np.exp(best.x))
    return lambda others: expit(logit(others) / temperature)


def fit_isotonic(positive: np.ndarray, scores: np.ndarray) -> Calibrator:
    """The best rising step function (Zadrozny & Elkan 2002), of shares from 1 / (n + 2) to 1 - 1 / (n + 2).

    Kept away from 0 and 1, since 0 of n cancers does not prove the risk is 0.
    """
    margin = 1 / (len(scores) + 2)
    model = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip").fit(scores, positive)
    return lambda others: model.predict(others)


FIT: dict[Method, Callable[[np.ndarray, np.ndarray], Calibrator]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
    "temperature": fit_temperature,
}


def recalibrated(predictions: pd.DataFrame, method: Method = "platt", folds: int = 5, seed: int = 0) -> np.ndarray:
    """Scores (rows,) in 0-1, each woman's by a calibrator fitted on the women of the other folds.

    Parameters
    ----------
    predictions
        A row an image or a breast with patient_id, cancer and score; folds as `operating.assign_folds` makes them, two
        women with cancer at least.
    """
    if method not in FIT:
        raise MetricsError(f"there is no method {method}; there are {', '.join(FIT)}")
    predictions = check_predictions(predictions, ["patient_id", "cancer", "score"])
    positive, scores = predictions["cancer"].to_numpy() == 1, predictions["score"].to_numpy()
    fold = assign_folds(predictions, folds, seed)
    fixed = np.empty(len(scores))
    for value in np.unique(fold):
        own = fold == value
        if positive[~own].all() or not positive[~own].any():
            raise MetricsError(f"the women outside fold {value} are of one class: nothing to calibrate on")
        fixed[own] = FIT[method](positive[~own], scores[~own])(scores[own])
    return fixed


def calibration_table(labels: ArrayLike, ways: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What the scores of several ways, (n,) by their names, are worth: a row a way, indexed by `scores`.

    The columns are brier, ece, mean_score, observed, slope and intercept.
    """
    rows = {way: calibration_figures(labels, scores) for way, scores in ways.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("scores")


def calibration_figures(labels: ArrayLike, scores: np.ndarray) -> dict[str, float]:
    slope, intercept = calibration_slope(labels, scores)
    return {
        "brier": brier(labels, scores),
        "ece": expected_calibration_error(labels, scores),
        "mean_score": float(scores.mean()),
        "observed": float(np.asarray(labels).mean()),
        "slope": slope,
        "intercept": intercept,
    }
