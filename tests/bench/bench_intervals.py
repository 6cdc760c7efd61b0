"""How often an interval covers the truth, and what 2,000 draws of the RSNA data set cost.

    OPENBLAS_NUM_THREADS=1 python tests/bench/bench_intervals.py [data sets, 2000] [draws, 500]

Coverage: simulated data sets of 400 women with four images each, score = woman + image + shift where she has cancer,
half of the variance the woman's; the AUC of image against image is then Phi(shift / sqrt(2)), here 0.85 (and 0.95).
Three 95 % intervals: `metrics.bootstrap`'s, the percentiles of its own draws, and the percentiles of draws of images.
The target is 93-97 % with 100 women with cancer and at least 92 % with 20 (standard error 0.5 % of 2,000 data sets).

Cost: `bootstrap_many` with auc, average_precision and pf1, 2,000 draws of 11,913 women with 54,706 images: the
target is below 10 s on one core and below 2 GB.
"""

import resource
import sys
import time

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm

from rsna_nb import metrics

WOMEN, IMAGES = 400, 4
CASES = [(0.85, 100), (0.85, 20), (0.95, 100), (0.95, 20)]  # AUC, women with cancer


def simulated(rng: np.random.Generator, auc: float, positives: int) -> pd.DataFrame:
    """A row an image; `score` in 0-1, a rising function of the binormal one."""
    woman = np.repeat(np.arange(WOMEN), IMAGES)
    cancer = (woman < positives).astype(int)
    score = np.sqrt(0.5) * (rng.normal(size=WOMEN)[woman] + rng.normal(size=len(woman)))
    score += np.sqrt(2) * norm.ppf(auc) * cancer
    return pd.DataFrame({"patient_id": woman, "cancer": cancer, "score": expit(score)})


def image_draws(df: pd.DataFrame, n: int, seed: int) -> np.ndarray:
    """The AUC of draws of images, as if each were independent: (n,)."""
    images = df.assign(image=np.arange(len(df)))
    return metrics.bootstrap(images, "auc", groups="image", n=n, seed=seed).draws


def limits(df: pd.DataFrame, n: int, seed: int) -> dict[str, tuple[float, float]]:
    women = metrics.bootstrap(df, "auc", n=n, seed=seed)
    draws = {"percentile, women": women.draws, "percentile, images": image_draws(df, n, seed)}
    percentiles = {name: tuple(np.nanpercentile(values, [2.5, 97.5])) for name, values in draws.items()}
    return {"metrics.bootstrap": (women.low, women.high), **percentiles}


def coverage(auc: float, positives: int, sets: int, n: int) -> None:
    found: dict[str, list[tuple[bool, bool, float]]] = {}
    for seed in range(sets):
        df = simulated(np.random.default_rng([seed, positives]), auc, positives)
        for name, (low, high) in limits(df, n, seed).items():
            found.setdefault(name, []).append((auc < low, auc > high, high - low))
    for name, rows in found.items():
        above, below, width = np.mean(rows, axis=0)
        print(f"{auc:.2f} {positives:>8}  {name:<20} {1 - above - below:8.1%} {above:8.1%} {below:8.1%} {width:8.3f}")


def cost(women: int = 11913, rows: int = 54706, positives: int = 486) -> None:
    rng = np.random.default_rng(0)
    woman = np.sort(np.concatenate([np.arange(women), rng.integers(women, size=rows - women)]))
    cancer = (woman < positives) & (rng.random(rows) < 0.53)  # one breast of two, 1,158 images in RSNA
    score = expit(rng.normal(size=rows) + 1.5 * cancer - 4)
    df = pd.DataFrame({"patient_id": woman.astype(str), "cancer": cancer.astype(int), "score": score})
    wall, processor = time.perf_counter(), time.process_time()
    figures = metrics.bootstrap_many(df, {name: name for name in metrics.PREPARE})
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows} rows, {df['cancer'].sum()} positive: {', '.join(f'{name} {i}' for name, i in figures.items())}")
    print(f"2,000 draws, three figures: {wall:.2f} s, {processor:.2f} s of processor; process at most {memory:.2f} GiB")


if __name__ == "__main__":
    sets, n = [int(value) for value in sys.argv[1:]] + [2000, 500][len(sys.argv) - 1 :]
    cost()
    print(f"\n{sets} data sets, {n} draws: share of intervals that cover the true AUC, lie above it, lie below it")
    print(f"{'AUC':<4} {'positive':>8}  {'interval':<20} {'covers':>8} {'above':>8} {'below':>8} {'width':>8}")
    for auc, positives in CASES:
        coverage(auc, positives, sets, n)
