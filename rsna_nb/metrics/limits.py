"""An interval, and how its limits follow from the bootstrap draws of a metric."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

NO_LIMITS = (float("nan"), float("nan"))
NEAR_ONE, LARGEST_SIZE = 0.9, 10  # above 0.9, the effective sample size is at most 10 m for m women


@dataclass(frozen=True, eq=False)
class Interval:
    """A metric and its 95 % confidence interval over women; `low` and `high` are NaN if there is none."""

    estimate: float
    low: float
    high: float
    draws: np.ndarray  # the metric of each draw (n,), NaN where a draw leaves it undefined
    positives: int  # women with cancer

    def __str__(self) -> str:
        if np.isnan(self.estimate):
            return "not defined"
        limits = "no interval" if np.isnan(self.low) else f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.estimate:.3f} ({limits})"


UNDEFINED = Interval(float("nan"), *NO_LIMITS, np.array([]), 0)


def draws_interval(
    estimate: float, draws: np.ndarray, positives: int, groups: int, is_share: bool = True, widen: float = 1.0
) -> Interval:
    """The 95 % interval of a metric, from the standard deviation of its bootstrap draws.

    **A share**, whose estimate and draws all lie in 0-1, gets Wilson's score interval with an effective sample size:
    the number of independent women, p (1 - p) / sd^2, that would give a proportion p this standard deviation (Wilson
    1927, J. Am. Stat. Assoc. 22:209; Korn & Graubard 1998, Surv. Methodol. 24:193). It never leaves 0-1. Above 0.9
    this size is at most 10 x `groups`: draws of few women repeat the same high scores and vary too little.

    **Anything else** gets estimate +- quantile x sd, a difference within -1 to 1. In both cases the quantile is that of
    Student's t with `groups` - 1 degrees of freedom, times sqrt(groups / (groups - 1)), which corrects for draws
    spreading less than samples do (Hesterberg 2015, Am. Stat. 69:371).

    **A share of exactly 0 or 1** has draws without spread. It gets the exact limits of `groups` women
    (`exact_limits`), because a bootstrap interval would have no width.

    **Measured** by tests/bench/bench_intervals.py on 5 to 50 women with cancer, AUCs of 0.7, 0.85 and 0.95 and 600 data
    sets each: this rule covers the truth in 92.7 to 100 % of the sets (96.5 % on average; mean width 0.27), percentiles
    in 72.5 to 95.5 % (0.21), BCa in 77.7 to 96.5 % (0.23), and a normal interval on the logit scale in 93.7 to 100 %
    (0.35, and none in up to 22 % of the sets).

    Parameters
    ----------
    estimate, draws
        The metric of all rows, and of each draw (n,). Undefined draws (NaN) are dropped.
    positives, groups
        The number of women with cancer, and how many women limit the metric: for AUC the rarer of both kinds.
    is_share
        False for a difference of two shares, even if all draws happen to lie in 0-1.
    widen
        Factor of the standard deviation, above 1 for what draws of women do not vary.

    Returns
    -------
    An `Interval` without limits if the estimate is undefined, if all draws are the same although the estimate is
    neither 0 nor 1, or if `positives` or `groups` is below 2 (a share of 0 or 1 needs 1 in `groups`).
    """
    known = draws[~np.isnan(draws)]
    within = is_share and 0 <= estimate <= 1 and bool((known >= 0).all() and (known <= 1).all())
    if within and estimate in (0, 1):
        low, high = exact_limits(estimate, groups)
    elif min(positives, groups) < 2 or len(known) < 2 or np.ptp(known) < 1e-12 or np.isnan(estimate):
        low, high = NO_LIMITS
    else:
        quantile, spread = student.ppf(0.975, groups - 1) * np.sqrt(groups / (groups - 1)), widen * known.std(ddof=1)
        reach = quantile * spread
        size = estimate * (1 - estimate) / spread**2
        if estimate > NEAR_ONE:
            size = min(size, LARGEST_SIZE * groups)
        low, high = _score_limits(estimate, quantile**2 / size) if within else (estimate - reach, estimate + reach)
        if not is_share:
            low, high = max(low, -1.0), min(high, 1.0)
    return Interval(estimate, float(low), float(high), draws, positives)


def _score_limits(share: float, ratio: float) -> tuple[float, float]:
    """Wilson's limits, where `ratio` is quantile**2 / sample size."""
    middle = (share + ratio / 2) / (1 + ratio)
    half = np.sqrt(ratio * (share * (1 - share) + ratio / 4)) / (1 + ratio)
    return middle - half, middle + half


def exact_limits(share: float, women: int) -> tuple[float, float]:
    """Exact (Clopper-Pearson) 95 % limits of a share of 0 or 1 among `women`; NaN for none.

    Examples
    --------
    >>> [round(limit, 3) for limit in exact_limits(1.0, 20)]  # all of 20 women: 0.025 ** (1 / 20) at least
    [0.832, 1.0]
    """
    if women < 1:
        return NO_LIMITS
    limits = binomtest(round(share * women), women).proportion_ci(method="exact")
    return float(limits.low), float(limits.high)
