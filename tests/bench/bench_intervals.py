"""How often 95 % intervals cover the truth, how wide they are, and what 2,000 samples of the RSNA data set cost.

    OPENBLAS_NUM_THREADS=1 python tests/bench/bench_intervals.py [data sets, 1000] [bootstrap samples, 400]

Coverage: simulated women with two breasts, one of them with cancer if the woman has it. A breast's score is
woman + breast, each with half of the variance, plus a shift if it has cancer; the AUC of breast against breast is then
Phi(shift / sqrt(2)). Four 95 % intervals from the same bootstrap samples: percentile, BCa (bias-corrected and
accelerated: Efron 1987, J. Am. Stat. Assoc. 82:171), normal on the logit scale with Student's t and the
larger of two deviations (this project's earlier rule), and `metrics.draws_interval`. The target is a coverage of 92 to
99 % at the smallest width; the standard error of a coverage of 95 % is 0.7 % with 1,000 data sets.

Cost: `resampled_intervals` with auc, average_precision and pf1, 2,000 samples of 11,913 women with 54,706 images: the
target is below 10 s on one core and below 2 GB.
"""

import resource
import sys
import time

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from rsna_nb import metrics

AUCS = (0.7, 0.85, 0.95)
POSITIVES = (5, 8, 10, 20, 50)  # women with cancer
SHARES = (0.4, 0.1)  # of women with cancer: as in the generated set, and nearer to screening
Limits = tuple[float, float]


def simulated(rng: np.random.Generator, auc: float, positives: int, women: int) -> pd.DataFrame:
    """A row per breast; `score` in 0-1, a rising function of the binormal one."""
    woman = np.repeat(np.arange(women), 2)
    cancer = ((woman < positives) & (np.arange(2 * women) % 2 == 0)).astype(int)
    score = np.sqrt(0.5) * (rng.normal(size=women)[woman] + rng.normal(size=2 * women))
    return pd.DataFrame(
        {"patient_id": woman, "cancer": cancer, "score": expit(score + np.sqrt(2) * norm.ppf(auc) * cancer)}
    )


def bca(df: pd.DataFrame, estimate: float, draws: np.ndarray) -> Limits:
    """Bias from the draws below the estimate, acceleration from the estimates without each woman."""
    women = df["patient_id"].nunique()
    without = metrics.auc(df["cancer"], df["score"], (1 - np.eye(women))[:, df["patient_id"]])
    skew = np.nanmean(without) - without
    acceleration = np.nansum(skew**3) / (6 * np.nansum(skew**2) ** 1.5) if np.nansum(skew**2) > 0 else 0
    below = np.mean(draws < estimate) + np.mean(draws == estimate) / 2
    bias = norm.ppf(np.clip(below, 0.001, 0.999))
    ends = [bias + (bias + z) / (1 - acceleration * (bias + z)) for z in norm.ppf([0.025, 0.975])]
    low, high = np.quantile(draws, norm.cdf(ends))
    return low, high


def on_logits(estimate: float, draws: np.ndarray, women: int) -> Limits:
    """The earlier rule: the larger of the draws' deviation on the logit scale and by the delta method."""
    inside = draws[(draws > 0) & (draws < 1)]
    if not 0 < estimate < 1 or not len(inside):
        return float("nan"), float("nan")
    delta = draws.std(ddof=1) / (estimate * (1 - estimate))
    deviation = max(delta, logit(np.clip(draws, inside.min(), inside.max())).std(ddof=1))
    reach = student.ppf(0.975, women - 1) * np.sqrt(women / (women - 1)) * deviation
    return float(expit(logit(estimate) - reach)), float(expit(logit(estimate) + reach))


def limits(df: pd.DataFrame, n: int, seed: int) -> dict[str, Limits]:
    found = metrics.bootstrap(df, "auc", n=n, seed=seed)
    draws = found.draws[~np.isnan(found.draws)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "percentile": (low, high),
        "BCa": bca(df, found.estimate, draws),
        "logit, t, larger": on_logits(found.estimate, draws, found.positives),
        "draws_interval": (found.low, found.high),
    }


def coverage(auc: float, positives: int, women: int, sets: int, n: int) -> None:
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(sets):
        df = simulated(np.random.default_rng([seed, positives, women]), auc, positives, women)
        for name, (low, high) in limits(df, n, seed).items():
            if not np.isnan(low):
                found.setdefault(name, []).append((auc < low, auc > high, high - low))
    for name, rows in found.items():
        above, below, width = np.mean(rows, axis=0)
        print(
            f"{auc:.2f} {positives:>8} {women:>6}  {name:<16} {1 - above - below:8.1%} {above:8.1%} {below:8.1%} "
            f"{width:8.3f} {1 - len(rows) / sets:8.1%}",
            flush=True,
        )


def cost(women: int = 11913, rows: int = 54706, positives: int = 486) -> None:
    rng = np.random.default_rng(0)
    woman = np.sort(np.concatenate([np.arange(women), rng.integers(women, size=rows - women)]))
    cancer = (woman < positives) & (rng.random(rows) < 0.53)  # one breast of two, 1,158 images in RSNA
    score = expit(rng.normal(size=rows) + 1.5 * cancer - 4)
    df = pd.DataFrame({"patient_id": woman.astype(str), "cancer": cancer.astype(int), "score": score})
    wall, processor = time.perf_counter(), time.process_time()
    evaluates = {name: prepare(cancer, score) for name, prepare in metrics.PREPARE.items()}
    found = metrics.resampled_intervals(metrics.Women.of(df, "patient_id"), evaluates, 2000, 0)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows} rows, {df['cancer'].sum()} positive: {', '.join(f'{name} {i}' for name, i in found.items())}")
    print(f"2,000 samples, three metrics: {wall:.2f} s, {processor:.2f} s of CPU time; peak memory {memory:.2f} GiB")


if __name__ == "__main__":
    sets, n = [int(value) for value in sys.argv[1:]] + [1000, 400][len(sys.argv) - 1 :]
    cost()
    print(f"\n{sets} data sets, {n} samples: share of intervals that cover the true AUC, lie above or below it, width")
    print(f"{'AUC':<4} {'positive':>8} {'women':>6}  {'interval':<16} {'covers':>8} {'above':>8} {'below':>8}", end=" ")
    print(f"{'width':>8} {'none':>8}")
    for share in SHARES:
        for positives in POSITIVES:
            for auc in AUCS:
                coverage(auc, positives, round(positives / share), sets, n)
