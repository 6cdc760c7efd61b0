"""How rare cancer is, in which groups, and what that does to metrics, weights and batches."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsna_nb.evaluation import constant_loss
from rsna_nb.metrics import PUBLISHED, prior_correction
from rsna_nb.plots.style import BLUE, GREEN, GREY, ORANGE, TITLES, unavailable, with_alt, without_box

SMALL, TINY = 100, 20  # breasts: a smaller group has a hollow dot; a tiny one may lie beyond the axis


def prevalence_forest(shares: pd.DataFrame, overall: float | None = None) -> Figure:
    """Draw shares with cancer and their 95 % intervals, one per row.

    Parameters
    ----------
    shares
        The table of `imbalance.prevalence` or `imbalance.prevalence_by`. A group of fewer than `SMALL` has a hollow
        dot. An interval that extends beyond the axis ends in an arrow.
    overall
        A share, 0-1, at which a dotted line is drawn.
    """
    # The axis reaches as far as the groups that say something: small ones would stretch it and flatten the others.
    large = shares["total"] >= SMALL
    seen = shares["high"].where(large, shares["share"].where(shares["total"] >= TINY))
    limit = min(1.0, 1.15 * (seen.max() if large.any() and seen.max() > 0 else shares["high"].max()))
    index = shares.index if shares.index.nlevels == 2 else pd.MultiIndex.from_product([[""], shares.index])
    columns = index.get_level_values(0)
    places = np.arange(len(shares)) + 0.6 * pd.factorize(columns)[0]  # a gap between the columns
    names = [f"{TITLES.get(column, column)} {name}".strip() for column, name in index]
    hollow, share = shares["total"] < SMALL, shares["share"].where(shares["share"] <= limit)
    beyond = places[shares["high"] > limit]

    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.24 * len(shares)), layout="constrained")
    axis.hlines(places, shares["low"].clip(upper=limit), shares["high"].clip(upper=limit), color=BLUE, linewidth=1.5)
    axis.plot(np.full(len(beyond), limit), beyond, ">", color=BLUE, markersize=4, clip_on=False)
    for rows, fill in ((~hollow, BLUE), (hollow, "white")):
        axis.plot(share[rows], places[rows], "o", color=BLUE, markerfacecolor=fill, markersize=5, clip_on=False)
    beside: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 8, "color": GREY}
    for place, positives, total in zip(places, shares["positives"], shares["total"], strict=True):
        axis.text(1.02, place, f"{positives:,.0f} of {total:,.0f}", **beside)
    if overall is not None:
        axis.axvline(overall, color=ORANGE, linestyle=":", linewidth=1.5)
    axis.set(xlim=(0, limit), ylim=(places[-1] + 0.7, -0.7))
    axis.set_yticks(places, names, fontsize=9)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=1, symbol=None))
    axis.set_xlabel("With cancer (%), 95 % interval" + (" (dotted: all)" if overall is not None else ""))
    without_box(axis)
    counts = zip(names, shares["share"], shares["total"], strict=True)
    words = "; ".join(f"{name} {part:.1%} of {total:,.0f}" for name, part, total in counts)
    return with_alt(figure, f"Shares with cancer: {words}.")


def accuracy_trap(share: float) -> Figure:
    """Draw accuracy by specificity at three sensitivities, where `share` (0-1) of the breasts have cancer.

    A dotted line is the accuracy of recalling nobody. Marks are published operating points.
    """
    # A line crosses the dotted one where its false-positive rate is below the share; the axis shows three times that.
    lowest = max(0.0, 1 - max(0.15, 3 * share))
    specificity = np.array([lowest, 1.0])
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for sensitivity, opacity in ((0.25, 0.3), (0.5, 0.6), (1.0, 1.0)):
        accuracy = share * sensitivity + (1 - share) * specificity
        axis.plot(100 * specificity, 100 * accuracy, color=BLUE, alpha=opacity, label=f"sensitivity {sensitivity:.0%}")
    axis.axhline(100 * (1 - share), color=ORANGE, linestyle=":", label="recalls nobody: sensitivity 0%")
    points = PUBLISHED.iloc[:2].set_index("system")
    reached = share * points["sensitivity"] + (1 - share) * points["specificity"]
    for system, marker in zip(points.index, "so", strict=True):
        place = 100 * points["specificity"][system], 100 * reached[system]
        axis.plot(*place, marker, color=GREEN, linestyle="", label=str(system))
    axis.set(xlabel="Specificity (%)", ylabel="Accuracy by breast (%)", xlim=(100 * lowest, 100.2))
    axis.legend(frameon=False, fontsize=9)
    without_box(axis)
    words = f"Accuracy by specificity where {share:.1%} have cancer; recalling nobody has {1 - share:.1%}."
    return with_alt(figure, words)


def constant_losses(share: float, weights: Mapping[int, float]) -> Figure:
    """Draw the cross-entropy of one score for all images, by that score, with and without class weights.

    Parameters
    ----------
    share
        The share of images with cancer, 0-1.
    weights
        The class weights, {0: weight, 1: weight}.
    """
    guesses = np.linspace(0.002, 0.98, 2000)
    figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
    for name, each, colour in (("without weights", {0: 1.0, 1: 1.0}, GREY), ("with class weights", weights, BLUE)):
        losses = constant_loss(guesses, share, each)
        least = guesses[np.argmin(losses)]
        axis.plot(guesses, losses, color=colour, label=f"{name}: lowest at {least:.3f}")
        axis.plot(least, losses.min(), "o", color=colour)
    axis.set(xlabel="Score given to every image", ylabel="Mean cross-entropy (nats)", xlim=(0, 1), ylim=(0, 2.5))
    axis.legend(frameon=False, loc="upper center")
    without_box(axis)
    words = "; ".join(axis.get_legend_handles_labels()[1])
    return with_alt(figure, f"Cross-entropy by the score given to every image, {words}.")


def prior_correction_curve(weights: Mapping[int, float]) -> Figure:
    """Draw the probability of cancer by the score of a model trained with class weights, on two scales.

    `weights` are {0: weight, 1: weight}.
    """
    scores = np.linspace(0.001, 0.999, 999)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, scale, marked in zip(axes, ("linear", "log"), ((0.5, 0.9, 0.98), (0.02, 0.1, 0.3)), strict=True):
        axis.plot(scores, 100 * prior_correction(scores, weights), color=BLUE, label="corrected score")
        axis.plot(scores, 100 * scores, color=GREY, linestyle=":", label="score itself")
        axis.set(xlabel="Score of the model", ylabel=f"Probability of cancer (%), {scale} scale", yscale=scale)
        axis.yaxis.set_major_formatter("{x:g}")
        values = 100 * prior_correction(np.array(marked), weights)
        axis.plot(marked, values, "o", color=ORANGE)
        # To the left above the convex curve, and to the right below it on the logarithmic scale.
        offset, side = ((-8, 4), "right") if scale == "linear" else ((8, -11), "left")
        for score, value in zip(marked, values, strict=True):
            text = f"{score:g} → {value:.2g} %"
            axis.annotate(text, (score, value), offset, textcoords="offset points", ha=side, fontsize=9)
    axes[0].legend(frameon=False)
    without_box(*axes)
    means = ", ".join(
        f"{score:g} means {100 * prior_correction(np.array(score), weights):.2g} %" for score in (0.5, 0.9)
    )
    return with_alt(figure, f"Probability of cancer by the score of a model trained with class weights: {means}.")


def batch_positives(batches: pd.DataFrame) -> Figure:
    """Draw the number of positive images in a batch, and how many batches have none, by batch size.

    `batches` is the table of `imbalance.batches`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    sizes, names = batches.index, [str(size) for size in batches.index]
    axes[0].vlines(sizes, batches["low"], batches["high"], color=BLUE, linewidth=1.5)
    axes[0].plot(sizes, batches["expected"], "o", color=BLUE)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(sizes, names)
    axes[0].set(ylabel="Positive images in a batch", ylim=0, xlabel="Batch size (images; line: 90 % of the batches)")
    drawn = axes[1].bar(names, 100 * batches["none"], color=ORANGE)
    axes[1].bar_label(drawn, [f"{none:.1%}" if none >= 0.001 else "<0.1%" for none in batches["none"]], fontsize=9)
    axes[1].set(ylabel="Batches without a positive image (%)", ylim=(0, 100), xlabel="Batch size (images)")
    without_box(*axes)
    rows = zip(names, batches["expected"], batches["none"], strict=True)
    words = "; ".join(f"{size} images {expected:.1f}, none in {none:.1%}" for size, expected, none in rows)
    return with_alt(figure, f"Positive images expected in a batch: {words} of the batches.")


def shortcut_aucs(shortcuts: pd.DataFrame) -> Figure:
    """Draw the AUCs of the table's columns with their 95 % intervals.

    `shortcuts` is the table of `imbalance.shortcuts`; columns that are not available are omitted.
    """
    if shortcuts["auc"].isna().all():
        return unavailable(shortcuts["unavailable"].iloc[0])
    # Sorted by kind first, so that the two colours do not alternate.
    df = shortcuts.dropna(subset="auc").sort_values(["kind", "auc"]).reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(8, 1 + 0.3 * len(df)), layout="constrained")
    kinds = {"before": (BLUE, "known before the diagnosis"), "train.csv": (ORANGE, "in train.csv only")}
    for kind, (colour, label) in kinds.items():
        rows = df[df["kind"] == kind]
        axis.hlines(rows.index, rows["low"], rows["high"], color=colour, linewidth=1.5)
        axis.plot(rows["auc"], rows.index, "o", color=colour, label=label, clip_on=False)
    for place, auc in enumerate(df["auc"]):
        axis.text(1.02, place, f"{auc:.3f}", va="center", fontsize=8, color=GREY)
    axis.axvline(0.5, color=GREY, linestyle=":", linewidth=1.5)
    axis.set_yticks(df.index, [TITLES.get(name, name) for name in df["column"]])
    # A column may do worse than chance, but hardly by much: the axis ends at 0.4 unless an interval extends beyond.
    axis.set(xlim=(min(0.4, df["low"].min()), 1), xlabel="AUC by breast, out of fold, 95 % interval (dotted: chance)")
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    without_box(axis)
    words = "; ".join(f"{row.column} {row.auc:.3f}" for row in df.itertuples())
    return with_alt(figure, f"AUC by breast of the table's columns, without an image: {words}.")
