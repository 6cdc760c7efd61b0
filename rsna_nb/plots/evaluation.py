"""How good a run is, for whom, and how sure that is. Each figure is narrow enough for a telephone and has alt text.

`breasts` are tables with a row a breast, cancer (0 or 1) and score (0-1).
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from rsna_nb.evaluation import Calibration
from rsna_nb.metrics import CrossFit, Interval, logit, operating, reliability
from rsna_nb.notebook import UnavailableError
from rsna_nb.plots.style import BLUE, GREEN, GREY, ORANGE, with_alt, without_box

SQUARE = (5.2, 5.0)  # inches
FAINT = "#BBBBBB"
CLOSEST = 1e-4  # to 0 and 1 that a score is drawn


def roc_curve(breasts: pd.DataFrame, bands: pd.DataFrame, auc: Interval) -> Figure:
    """Sensitivity by the share of healthy breasts recalled, with the band of each place (`evaluation.bands`)."""
    curve, band = operating.curve(breasts["cancer"], breasts["score"]), bands[bands["curve"] == "roc"]
    figure, axis = plt.subplots(figsize=SQUARE, layout="constrained")
    draw_band(axis, band)
    axis.plot(1 - curve["specificity"], curve["sensitivity"], color=BLUE, label=f"AUC {auc}")
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="guessing")
    in_percent(axis, "recalled of breasts without cancer (1 - specificity, %)", "found of breasts with cancer (%)")
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    found = value_at(band, 0.1)
    return with_alt(
        figure, f"ROC curve by breast, AUC {auc}. Recalling 10 % of the breasts without cancer finds {found}."
    )


def precision_recall_curve(breasts: pd.DataFrame, bands: pd.DataFrame, average_precision: Interval) -> Figure:
    """Share of recalled breasts that have cancer by the share of cancers found, with the band of each place."""
    curve, band = operating.curve(breasts["cancer"], breasts["score"]), bands[bands["curve"] == "pr"]
    band = band[band["x"] * breasts["cancer"].sum() >= 1]  # left of it there is no cancer to count
    figure, axis = plt.subplots(figsize=SQUARE, layout="constrained")
    draw_band(axis, band)
    label = f"average precision {average_precision}"
    axis.step(curve["sensitivity"], curve["ppv"], color=BLUE, where="post", label=label)
    share = breasts["cancer"].mean()
    axis.axhline(share, color=GREY, linestyle=":", label=f"guessing: {share:.1%} have cancer")
    in_percent(axis, "found of breasts with cancer (sensitivity, %)", "with cancer, of recalled breasts (PPV, %)")
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    found = value_at(band, 0.5)
    return with_alt(
        figure,
        f"Precision-recall curve by breast, average precision {average_precision}, where guessing gives {share:.3f}. "
        f"Of the breasts recalled to find half of the cancers {found} have cancer.",
    )


def draw_band(axis: Axes, band: pd.DataFrame) -> None:
    axis.fill_between(
        band["x"], band["low"], band["high"], color=BLUE, alpha=0.2, linewidth=0, label="middle 95 % of draws"
    )


def value_at(band: pd.DataFrame, x: float) -> str:
    row = band.iloc[(band["x"] - x).abs().argmin()]
    return f"{row['estimate']:.0%} ({row['low']:.0%} to {row['high']:.0%})"


def in_percent(axis: Axes, x: str, y: str) -> None:
    """Shares 0-1 on both axes, written as percent."""
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=x, ylabel=y)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PercentFormatter(1, symbol=""))
    without_box(axis)


def score_distributions(breasts: pd.DataFrame, fit: CrossFit) -> Figure:
    """The scores of breasts with and without cancer, each as shares of its own kind, and the threshold."""
    edges = logit_bins(breasts["score"])
    figure, axis = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    counts = {}
    for value, colour, name in ((0, BLUE, "without cancer"), (1, ORANGE, "with cancer")):
        scores = breasts.loc[breasts["cancer"] == value, "score"]
        rows, weights = logit(scores, CLOSEST), np.full(len(scores), 1 / len(scores))
        axis.hist(rows, edges, weights=weights, color=colour, alpha=0.25)
        axis.hist(rows, edges, weights=weights, color=colour, histtype="step", label=f"{name} ({len(rows):,})")
        counts[name] = scores.median()
    finish_scores(axis, edges, fit.point.threshold, "threshold")
    medians = ", ".join(f"{median:.3f} {name}" for name, median in counts.items())
    return with_alt(figure, f"Two histograms of the scores, by breast: the medians are {medians}.")


def logit_bins(scores: ArrayLike) -> list[float]:
    """Edges of 30 bins of scores, on the logit scale."""
    logits = logit(scores, CLOSEST)
    return [float(edge) for edge in np.linspace(logits.min() - 0.1, logits.max() + 0.1, 31)]


def finish_scores(axis: Axes, edges: list[float], threshold: float | None, label: str) -> None:
    """The axes of a histogram of logits in shares: scores below, percent at the left; and the threshold, if any."""
    if threshold is not None:
        axis.axvline(float(logit(threshold, CLOSEST)), color=GREY, linestyle="--", label=label)
    places = np.array([0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
    places = places[(logit(places) >= edges[0]) & (logit(places) <= edges[-1])]
    axis.set_xticks(logit(places), [f"{place:g}" for place in places])
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol="", decimals=0))
    axis.set(xlabel="score (0-1, on a logit scale)", ylabel="breasts of each kind (%)")
    without_box(axis)
    axis.legend(frameon=False, fontsize=9)


def operating_points(breasts: pd.DataFrame, table: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Cancers found by breasts recalled: the run's curve, its points (`operating.operating_table`), published ones."""
    curve = operating.curve(breasts["cancer"], breasts["score"])
    figure, axis = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
    axis.plot(curve["recall_rate"], curve["sensitivity"], color=BLUE, alpha=0.5, label="this run, every threshold")
    axis.errorbar(
        table["recall_rate"],
        table["sensitivity"],
        xerr=reach(table, "recall_rate"),
        yerr=reach(table, "sensitivity"),
        fmt="o",
        color=BLUE,
        markersize=4,
        linewidth=1,
        label="thresholds chosen on other women",
    )
    places = published["recall_rate"], published["sensitivity"]
    axis.scatter(*places, marker="D", color=ORANGE, label="published, other women")
    for letter, x, y in zip(published["letter"], *places, strict=True):
        axis.annotate(letter, (x, y), (-9, 4), textcoords="offset points", color=ORANGE)
    rates = np.geomspace(0.005, 1, 100)
    axis.plot(rates, rates, color=GREY, linestyle=":", label="guessing")
    in_percent(axis, "breasts recalled (%, logarithmic)", "found of breasts with cancer (%)")
    axis.set(xscale="log", xlim=(0.005, 1.05))
    axis.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], ["1", "2", "5", "10", "20", "50", "100"])
    axis.minorticks_off()
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    points = "; ".join(f"{row.recall_rate:.1%} recalled: {row.sensitivity:.0%} found" for row in table.itertuples())
    return with_alt(
        figure, f"Cancers found by share of breasts recalled, beside published systems. This run: {points}."
    )


def reach(table: pd.DataFrame, name: str) -> np.ndarray:
    """(2, rows): how far the interval goes below and above, 0 where there is none."""
    return np.nan_to_num(np.stack([table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]).clip(0))


def confusion_matrix(fit: CrossFit) -> Figure:
    """Breasts by truth and call, thresholds chosen on other women; shades are shares of each row."""
    point = fit.point
    counts = np.array([[point.tp, point.fn], [point.fp, point.tn]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        share = f"{shares[row, column]:.1%} of the row"
        axis.text(column, row - 0.08, f"{count:,}", ha="center", va="center", fontsize=17)
        axis.text(column, row + 0.22, share, ha="center", va="center", fontsize=9)
    axis.set_xticks([0, 1], ["recalled", "not recalled"])
    axis.set_yticks([0, 1], ["cancer", "no cancer"])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    words = f"{point.tp} found, {point.fn} missed; of those without, {point.fp} recalled, {point.tn} not"
    return with_alt(figure, f"Confusion matrix by breast. Of the breasts with cancer {words}.")


def reliability_curves(calibrated: Calibration, bins: int = 10) -> Figure:
    """Share with cancer by mean score of bins of equal mass, with Wilson's intervals; square-root axes."""
    labels = calibrated.labels
    figure, axis = plt.subplots(figsize=SQUARE, layout="constrained")
    axis.plot([0, 1], [0, 1], color=FAINT, label="calibrated")
    words = []
    for (name, values), colour, marker in zip(calibrated.scores.items(), (GREY, BLUE, GREEN), "osD", strict=False):
        table = reliability(labels, values, bins)
        ends = np.stack([table["observed"] - table["low"], table["high"] - table["observed"]]).clip(0)
        axis.errorbar(
            table["mean_score"],
            table["observed"],
            ends,
            color=colour,
            marker=marker,
            markersize=4,
            elinewidth=0.8,
            label=name,
        )
        words.append(f"{name}, mean score {np.mean(values):.3f}")
    in_percent(axis, "mean score of the bin (%, square-root scale)", "with cancer (%, square-root scale)")
    for scaled in (axis.set_xscale, axis.set_yscale):
        scaled("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
    axis.set(xlim=(0, 1.01), ylim=(0, 1.02))
    for side in (axis.xaxis, axis.yaxis):
        side.set_ticks(ticks, [f"{100 * tick:g}" for tick in ticks])
    axis.legend(frameon=False, loc="upper left")
    return with_alt(figure, f"Reliability curves; {labels.mean():.3f} of the breasts have cancer: {'; '.join(words)}.")


def example_breasts(examples: Mapping[str, pd.DataFrame], kind: str, columns: int = 3) -> Figure:
    """The pictures of one kind of `evaluation.examples`, each under its breast's score, its side and its view.

    `UnavailableError` where there are none.
    """
    rows = examples[kind]
    if rows.empty:
        raise UnavailableError(f"there are no {kind}")
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.8 * columns, 2.15 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    captions = [caption(row) for _, row in rows.iterrows()]
    for axis, file, text in zip(axes.flat, rows["file"], captions, strict=False):
        axis.imshow(plt.imread(file), cmap="gray", vmin=0, vmax=1)
        axis.set_title(text, fontsize=9)
    return with_alt(figure, f"Mammograms, {kind}: {'; '.join(captions)} (score, side and view of each).")


def caption(row: pd.Series) -> str:
    """Score, side and view of a row of `evaluation.examples`."""
    view = row.get("view")
    return f"{row['score']:.3f} · {row['laterality']}" + (f" {view}" if isinstance(view, str) else "")
