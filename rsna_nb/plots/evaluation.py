"""How good a run is, for whom, and with what uncertainty. Each figure is narrow enough for a phone and has alt text.

`breasts` are tables with a row for each breast, cancer (0 or 1) and score (0-1).
"""

from collections.abc import Mapping
from typing import Any

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
COLUMNS = 3  # of example_breasts
FAINT = "#BBBBBB"
CLOSEST = 1e-4  # scores are plotted at least this far from 0 and 1, whose logits are infinite
SPECIFICITY, SENSITIVITY = "1 - specificity (%)", "Sensitivity (%)"


def roc_curve(breasts: pd.DataFrame, bands: pd.DataFrame, auc: Interval) -> Figure:
    """ROC curve by breast, with a band of the bootstrap samples at each point (`evaluation.bands`)."""
    curve, band = operating.curve(breasts["cancer"], breasts["score"]), bands[bands["curve"] == "roc"]
    figure, axis = plt.subplots(figsize=SQUARE, layout="constrained")
    _draw_band(axis, band)
    axis.plot(1 - curve["specificity"], curve["sensitivity"], color=BLUE, label=f"AUC {auc}")
    finish_roc(figure, axis)
    found = _value_at(band, 0.1)
    return with_alt(
        figure, f"ROC curve by breast, AUC {auc}. Recalling 10 % of the breasts without cancer finds {found}."
    )


def finish_roc(figure: Figure, axis: Axes) -> None:
    """The diagonal, the labels and the legend of a ROC curve."""
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="guessing")
    in_percent(axis, SPECIFICITY, SENSITIVITY)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)


def precision_recall_curve(breasts: pd.DataFrame, bands: pd.DataFrame, average_precision: Interval) -> Figure:
    """PPV by sensitivity, by breast, with a band of the bootstrap samples at each point (`evaluation.bands`)."""
    curve, band = operating.curve(breasts["cancer"], breasts["score"]), bands[bands["curve"] == "pr"]
    band = band[band["x"] * breasts["cancer"].sum() >= 1]  # left of it not even one cancer is found
    figure, axis = plt.subplots(figsize=SQUARE, layout="constrained")
    _draw_band(axis, band)
    label = f"average precision {average_precision}"
    axis.step(curve["sensitivity"], curve["ppv"], color=BLUE, where="post", label=label)
    share = breasts["cancer"].mean()
    axis.axhline(share, color=GREY, linestyle=":", label=f"guessing: {share:.1%} have cancer")
    in_percent(axis, SENSITIVITY, "PPV (%)")
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    found = _value_at(band, 0.5)
    return with_alt(
        figure,
        f"Precision-recall curve by breast, average precision {average_precision}, where guessing gives {share:.3f}. "
        f"Of the breasts recalled to find half of the cancers {found} have cancer.",
    )


def _draw_band(axis: Axes, band: pd.DataFrame) -> None:
    label = "middle 95 % of bootstrap samples"
    axis.fill_between(band["x"], band["low"], band["high"], color=BLUE, alpha=0.2, linewidth=0, label=label)


def _value_at(band: pd.DataFrame, x: float) -> str:
    row = band.iloc[(band["x"] - x).abs().argmin()]
    return f"{row['estimate']:.0%} ({row['low']:.0%} to {row['high']:.0%})"


def in_percent(axis: Axes, x: str, y: str) -> None:
    """Label both axes, and write their shares of 0-1 as percent."""
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=x, ylabel=y)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PercentFormatter(1, symbol=""))
    without_box(axis)


def score_distributions(breasts: pd.DataFrame, fit: CrossFit) -> Figure:
    """Histograms of the scores with and without cancer, each summing to 100 %, and the median threshold."""
    edges = logit_bins(breasts["score"])
    figure, axis = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    medians = []
    for value, colour, name in ((0, BLUE, "without cancer"), (1, ORANGE, "with cancer")):
        scores = breasts.loc[breasts["cancer"] == value, "score"]
        rows, weights = logit(scores, CLOSEST), np.full(len(scores), 1 / len(scores))
        axis.hist(rows, edges, weights=weights, color=colour, alpha=0.25)
        axis.hist(rows, edges, weights=weights, color=colour, histtype="step", label=f"{name} ({len(rows):,})")
        medians.append(f"{scores.median():.3f} {name}")
    finish_scores(axis, edges, fit.point.threshold, "threshold")
    return with_alt(figure, f"Two histograms of the scores, by breast: the medians are {', '.join(medians)}.")


def logit_bins(scores: ArrayLike) -> list[float]:
    """The edges of 30 bins of the scores' logits."""
    logits = logit(scores, CLOSEST)
    return [float(edge) for edge in np.linspace(logits.min() - 0.1, logits.max() + 0.1, 31)]


def finish_scores(axis: Axes, edges: list[float], threshold: float | None, label: str) -> None:
    """Label a histogram of logits with the corresponding scores, and draw the threshold, if any."""
    if threshold is not None:
        axis.axvline(float(logit(threshold, CLOSEST)), color=GREY, linestyle="--", label=label)
    places = np.array([0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
    places = places[(logit(places) >= edges[0]) & (logit(places) <= edges[-1])]
    axis.set_xticks(logit(places), [f"{place:g}" for place in places])
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol="", decimals=0))
    axis.set(xlabel="Score (0-1, logit scale)", ylabel="Breasts of each kind (%)")
    without_box(axis)
    axis.legend(frameon=False, fontsize=9)


def operating_points(breasts: pd.DataFrame, table: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Sensitivity by recall rate: every threshold, the points of `operating.operating_table`, published systems."""
    curve = operating.curve(breasts["cancer"], breasts["score"])
    figure, axis = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
    axis.plot(curve["recall_rate"], curve["sensitivity"], color=BLUE, alpha=0.5, label="this run, every threshold")
    style: dict[str, Any] = {"fmt": "o", "color": BLUE, "markersize": 4, "linewidth": 1}
    ends = _reach(table, "sensitivity"), _reach(table, "recall_rate")
    label = "thresholds chosen on other women"
    # errorbar takes the y errors first
    axis.errorbar(table["recall_rate"], table["sensitivity"], *ends, label=label, **style)
    places = published["recall_rate"], published["sensitivity"]
    axis.scatter(*places, marker="D", color=ORANGE, label="published, other women")
    for letter, x, y in zip(published["letter"], *places, strict=True):
        axis.annotate(letter, (x, y), (-9, 4), textcoords="offset points", color=ORANGE)
    rates = np.geomspace(0.005, 1, 100)  # a straight line of guessing is a curve on a logarithmic axis
    axis.plot(rates, rates, color=GREY, linestyle=":", label="guessing")
    in_percent(axis, "Recall rate (%, logarithmic)", SENSITIVITY)
    axis.set(xscale="log", xlim=(0.005, 1.05))
    axis.set_xticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], ["1", "2", "5", "10", "20", "50", "100"])
    axis.minorticks_off()
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=9)
    points = "; ".join(f"{row.recall_rate:.1%} recalled: {row.sensitivity:.0%} found" for row in table.itertuples())
    return with_alt(
        figure, f"Cancers found by share of breasts recalled, next to published systems. This run: {points}."
    )


def _reach(table: pd.DataFrame, name: str) -> np.ndarray:
    """How far the interval reaches below and above, (2, rows); 0 without an interval."""
    return np.nan_to_num(np.stack([table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]).clip(0))


def confusion_matrix(fit: CrossFit) -> Figure:
    """Breasts by cancer and call, with thresholds chosen on other women; shades are shares of each row."""
    point = fit.point
    counts = np.array([[point.tp, point.fn], [point.fp, point.tn]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")  # 1.4: black text stays readable on all cells
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


def reliability_curves(calibrated: Calibration) -> Figure:
    """Share with cancer by mean score in each bin, for the versions in `calibrated.scores`.

    Both axes have a square-root scale, because most scores are near 0.
    """
    labels = calibrated.labels
    figure, axis = plt.subplots(figsize=SQUARE, layout="constrained")
    axis.plot([0, 1], [0, 1], color=FAINT, label="calibrated")
    words = []
    for (name, values), colour, marker in zip(calibrated.scores.items(), (GREY, BLUE, GREEN), "osD", strict=False):
        table = reliability(labels, values)
        ends = np.stack([table["observed"] - table["low"], table["high"] - table["observed"]]).clip(0)
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "elinewidth": 0.8, "label": name}
        axis.errorbar(table["mean_score"], table["observed"], ends, **style)
        words.append(f"{name}, mean score {np.mean(values):.3f}")
    in_percent(axis, "Mean score of the bin (%, square-root scale)", "Observed share with cancer (%)")
    for scaled in (axis.set_xscale, axis.set_yscale):
        scaled("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
    axis.set(xlim=(0, 1.01), ylim=(0, 1.02))
    for side in (axis.xaxis, axis.yaxis):
        side.set_ticks(ticks, [f"{100 * tick:g}" for tick in ticks])
    axis.legend(frameon=False, loc="upper left")
    return with_alt(figure, f"Reliability curves; {labels.mean():.3f} of the breasts have cancer: {'; '.join(words)}.")


def example_breasts(examples: Mapping[str, pd.DataFrame], kind: str) -> Figure:
    """The images of one kind of `evaluation.examples`, each under its breast's score, side and view.

    `UnavailableError` if there are none.
    """
    rows = examples[kind]
    if rows.empty:
        raise UnavailableError(f"there are no {kind}")
    lines = -(-len(rows) // COLUMNS)
    figure, axes = plt.subplots(
        lines, COLUMNS, figsize=(1.8 * COLUMNS, 2.15 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    captions = [caption(row) for _, row in rows.iterrows()]
    for axis, file, text in zip(axes.flat, rows["file"], captions, strict=False):
        axis.imshow(plt.imread(file), cmap="gray", vmin=0, vmax=1)
        axis.set_title(text, fontsize=9)
    return with_alt(
        figure, f"Mammograms, {kind}: {'; '.join(captions)} (score, side, view, and attention in its breast if given)."
    )


def caption(row: pd.Series) -> str:
    """Score, side and view of a row of `evaluation.examples`, and its attention if the run scored breasts."""
    return f"{row['score']:.3f} · {side_and_view(row)}"


def side_and_view(row: pd.Series) -> str:
    """Side and view of an image, and its attention if the run scored breasts."""
    view, attention = row.get("view"), row.get("attention")
    words = str(row["laterality"]) + (f" {view}" if isinstance(view, str) else "")
    return words if attention is None or pd.isna(attention) else f"{words} · att. {attention:.2f}"
