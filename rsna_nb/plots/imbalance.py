"""How rare cancer is, where, and what that does to metrics, weights and batches."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rsna_nb.evaluation import constant_loss
from rsna_nb.metrics import PUBLISHED, prior_correction
from rsna_nb.plots.style import BLUE, GREEN, GREY, ORANGE, TITLES, left_out, with_alt, without_box

SMALL, TINY = 100, 20  # breasts: a smaller group is drawn hollow, and a tiny one may lie beyond the axis


def prevalence_forest(shares: pd.DataFrame, overall: float | None = None) -> Figure:
    """Shares with cancer and their 95 % intervals, from `imbalance.prevalence` or `prevalence_by`.

    Groups of fewer than `SMALL` are hollow; intervals that go on beyond the axis end in an arrow.
    """
    seen = shares["high"].where(shares["total"] >= SMALL, shares["share"].where(shares["total"] >= TINY))
    limit = min(1.0, 1.15 * (seen.max() if seen.max() > 0 else shares["high"].max()))
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.24 * len(shares)), layout="constrained")
    places, names, place, last = [], [], 0.0, None
    for index, row in shares.iterrows():
        column, name = index if isinstance(index, tuple) else ("", index)
        place += 1.6 if last is not None and column != last else 1
        last = column
        axis.hlines(place, *np.minimum(row[["low", "high"]], limit), color=BLUE, linewidth=1.5)
        if row["high"] > limit:
            axis.plot(limit, place, ">", color=BLUE, markersize=4, clip_on=False)
        fill = BLUE if row["total"] >= SMALL else "white"
        if row["share"] <= limit:
            axis.plot(row["share"], place, "o", color=BLUE, markerfacecolor=fill, markersize=5, clip_on=False)
        axis.text(
            1.02,
            place,
            f"{row['positives']:,.0f} of {row['total']:,.0f}",
            transform=axis.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=GREY,
        )
        places.append(place)
        names.append(f"{TITLES.get(column, column)} {name}".strip())
    if overall is not None:
        axis.axvline(overall, color=ORANGE, linestyle=":", linewidth=1.5)
    axis.set(xlim=(0, limit), ylim=(place + 0.7, 0.3))
    axis.set_yticks(places, names, fontsize=9)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axis.set_xlabel("with cancer, 95 % interval" + (" (dotted: all)" if overall is not None else ""))
    without_box(axis)
    words = [
        f"{name} {row['share']:.1%} of {row['total']:,.0f}"
        for name, (_, row) in zip(names, shares.iterrows(), strict=True)
    ]
    return with_alt(figure, f"Shares with cancer: {'; '.join(words)}.")


def accuracy_trap(share: float) -> Figure:
    """Accuracy by specificity at some sensitivities, beside that of calling everybody healthy."""
    lowest = max(0.0, 1 - max(0.15, 3 * share))
    specificity = np.array([lowest, 1.0])
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for sensitivity, shade in ((0.25, 0.3), (0.5, 0.6), (1.0, 1.0)):
        accuracy = share * sensitivity + (1 - share) * specificity
        axis.plot(specificity, accuracy, color=BLUE, alpha=shade, label=f"finds {sensitivity:.0%} of the cancers")
    axis.axhline(1 - share, color=ORANGE, linestyle=":", label='says "no cancer" to all: finds none')
    published = PUBLISHED.iloc[:2]
    reached = share * published["sensitivity"] + (1 - share) * published["specificity"]
    points = zip(published["specificity"], reached, published["system"], "so", strict=True)
    for spared, accurate, name, marker in points:
        axis.plot(spared, accurate, marker, color=GREEN, linestyle="", label=str(name))
    for vertical in (axis.xaxis, axis.yaxis):
        vertical.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set(xlabel="specificity: healthy breasts called healthy", ylabel="accuracy, by breast", xlim=(lowest, 1.002))
    axis.legend(frameon=False, fontsize=9)
    without_box(axis)
    return with_alt(
        figure, f"Accuracy by specificity where {share:.1%} have cancer; finding no cancer at all has {1 - share:.1%}."
    )


def constant_losses(share: float, weights: Mapping[int, float]) -> Figure:
    """Cross-entropy of one guess for all images by the guess, with and without class weights, and where it is least."""
    guesses = np.linspace(0.002, 0.98, 2000)
    figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
    for name, each, colour in (("without weights", {0: 1.0, 1: 1.0}, GREY), ("with class weights", weights, BLUE)):
        losses = constant_loss(guesses, share, each)
        least = guesses[np.argmin(losses)]
        axis.plot(guesses, losses, color=colour, label=f"{name}: least at {least:.3f}")
        axis.plot(least, losses.min(), "o", color=colour)
    axis.set(xlabel="the guess: probability of cancer for every image", ylabel="mean cross-entropy, nats", xlim=(0, 1))
    axis.set_ylim(0, 2.5)
    axis.legend(frameon=False, loc="upper center")
    without_box(axis)
    words = "; ".join(axis.get_legend_handles_labels()[1])
    return with_alt(figure, f"Cross-entropy by the one guess for all, {words}.")


def prior_correction_curve(weights: Mapping[int, float]) -> Figure:
    """What a score of a model trained with class weights means as a probability, on two scales."""
    scores = np.linspace(0.001, 0.999, 999)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, scale, marked in zip(axes, ("linear", "log"), ((0.5, 0.9, 0.98), (0.02, 0.1, 0.3)), strict=True):
        axis.plot(scores, prior_correction(scores, weights), color=BLUE, label="corrected")
        axis.plot(scores, scores, color=GREY, linestyle=":", label="taken at its word")
        axis.set(xlabel="score of the model trained with weights", ylabel=f"probability of cancer, {scale} scale")
        axis.set_yscale(scale)
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        values = prior_correction(np.array(marked), weights)
        axis.plot(marked, values, "o", color=ORANGE)
        offset, side = ((-8, 4), "right") if scale == "linear" else ((8, -11), "left")
        for place in zip(marked, values, strict=True):
            words = f"{place[0]:g} → {100 * place[1]:.2g} %"
            axis.annotate(words, place, offset, textcoords="offset points", ha=side, fontsize=9)
    axes[0].legend(frameon=False)
    without_box(*axes)
    words = ", ".join(
        f"{score:g} means {100 * prior_correction(np.array(score), weights):.2g} %" for score in (0.5, 0.9)
    )
    return with_alt(figure, f"What a score of a model trained with class weights means as a probability: {words}.")


def batch_positives(batches: pd.DataFrame) -> Figure:
    """Positives in a batch, with the range of 90 % of the batches, and the chance of none, by batch size."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    sizes, expected = batches.index, batches["expected"]
    axes[0].vlines(sizes, batches["low"], batches["high"], color=BLUE, linewidth=1.5)
    axes[0].plot(sizes, expected, "o", color=BLUE)
    axes[0].set(ylabel="positive images in a batch", ylim=0)
    drawn = axes[1].bar([str(size) for size in sizes], batches["none"], color=ORANGE)
    axes[1].bar_label(drawn, [f"{none:.1%}" if none >= 0.001 else "<0.1%" for none in batches["none"]], fontsize=9)
    axes[1].set(ylabel="batches without a positive image", ylim=(0, 1), xlabel="batch size, images")
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(sizes, [str(size) for size in sizes])
    axes[0].set_xlabel("batch size, images (line: 90 % of the batches)")
    without_box(*axes)
    words = "; ".join(
        f"{size} images {row['expected']:.1f}, none in {row['none']:.1%}" for size, row in batches.iterrows()
    )
    return with_alt(figure, f"Positive images in a batch, expected: {words} of the batches.")


def shortcut_aucs(shortcuts: pd.DataFrame) -> Figure:
    """AUC of the table's columns with their 95 % intervals, from `imbalance.shortcuts`, but for what was left out."""
    if shortcuts["auc"].isna().all():
        return left_out(shortcuts["left_out"].iloc[0])
    df = shortcuts.dropna(subset="auc").sort_values(["kind", "auc"]).reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(8, 1 + 0.3 * len(df)), layout="constrained")
    for kind, colour, words in (
        ("before", BLUE, "known before the diagnosis"),
        ("train.csv", ORANGE, "in train.csv only"),
    ):
        rows = df[df["kind"] == kind]
        axis.hlines(rows.index, rows["low"], rows["high"], color=colour, linewidth=1.5)
        axis.plot(rows["auc"], rows.index, "o", color=colour, label=words, clip_on=False)
    for place, auc in enumerate(df["auc"]):
        axis.text(1.02, place, f"{auc:.3f}", va="center", fontsize=8, color=GREY)
    axis.axvline(0.5, color=GREY, linestyle=":", linewidth=1.5)
    axis.set_yticks(df.index, [TITLES.get(name, name) for name in df["column"]])
    axis.set(xlim=(min(0.4, df["low"].min()), 1), xlabel="AUC by breast, out of fold, 95 % interval (dotted: chance)")
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    without_box(axis)
    words = "; ".join(f"{row.column} {row.auc:.3f}" for row in df.itertuples())
    return with_alt(figure, f"AUC by breast of the table's columns, without a picture: {words}.")
