"""Every figure that a notebook shows: each function takes data and returns a matplotlib Figure."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
CURVES = {
    "loss": "weighted cross-entropy",
    "auc": "AUC",
    "precision": "precision at 0.5",
    "recall": "recall at 0.5",
    "f1": "F1 at 0.5",
}


def sample_batch(images: np.ndarray, labels: np.ndarray, columns: int = 8) -> Figure:
    """Pictures (n, height, width, 1) in 0-1 as the network gets them, those with cancer first and named."""
    order = np.argsort(-labels.ravel(), kind="stable")[: 2 * columns]
    rows = -(-len(order) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.8 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, order, strict=False):
        positive = labels.ravel()[index] == 1
        axis.imshow(images[index, ..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title("cancer" if positive else "no cancer", fontsize=9, color=ORANGE if positive else GREY)
    return finished(figure)


def contact_sheet(files: Sequence[str | Path], captions: Sequence[str], columns: int = 8) -> Figure:
    """The pictures in these files, each over its caption."""
    rows = -(-len(files) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 * columns, 1.85 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, file, caption in zip(axes.flat, files, captions, strict=False):
        axis.imshow(plt.imread(file), cmap="gray", vmin=0, vmax=1)
        axis.set_title(caption, fontsize=8, color=GREY)
    return finished(figure)


def reading_times(ledger: pd.DataFrame) -> Figure:
    """Milliseconds a file by transfer syntax: each file a dot, their median a line."""
    groups = list(ledger[ledger["status"] == "ok"].groupby("transfer_syntax")["milliseconds"])
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.55 * len(groups)), layout="constrained")
    jitter = np.random.default_rng(0)
    for height, (_, times) in enumerate(groups):
        shown = times.sample(min(len(times), 2000), random_state=0)
        axis.scatter(shown, height + jitter.uniform(-0.25, 0.25, len(shown)), s=4, color=BLUE, alpha=0.4, linewidths=0)
        axis.vlines(times.median(), height - 0.35, height + 0.35, color=ORANGE, linewidth=2)
    axis.set_xlim(0)
    axis.set_yticks(range(len(groups)), [re.split(r"[,(]", str(name))[0] for name, _ in groups])
    axis.set_xlabel("milliseconds a file (line: median)")
    axis.spines[["top", "right"]].set_visible(False)
    return finished(figure)


def class_counts(table: pd.DataFrame) -> Figure:
    """Images with and without cancer in each split, from the columns `split` and `cancer`."""
    counts = table.pivot_table(index="split", columns="cancer", values="image_id", aggfunc="count", fill_value=0)
    counts = counts.reindex([split for split in ("test", "validation", "train") if split in counts.index])
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.5 * len(counts)), layout="constrained")
    left = np.zeros(len(counts))
    for value, colour, name in ((1, ORANGE, "cancer"), (0, BLUE, "no cancer")):
        bars = axis.barh(counts.index, counts[value], left=left, color=colour, label=name)
        axis.bar_label(bars, label_type="center", color="white", fmt="{:,.0f}")
        left += counts[value].to_numpy()
    axis.set_xlabel("images")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, bbox_to_anchor=(1, 0.5), loc="center left")
    return finished(figure)


def training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Training and validation metrics by epoch, the learning rate, and the epoch whose model is kept."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=False):
        axis.plot(history["epoch"], history[name], color=GREY, label="training")
        axis.plot(history["epoch"], history[f"val_{name}"], color=BLUE, label="validation")
        axis.set_title(title, loc="left", fontsize=10)
    axes[0, 0].legend(frameon=False)
    axes[1, 2].step(history["epoch"], history["learning_rate"], where="mid", color=GREEN)
    axes[1, 2].set_yscale("log")
    axes[1, 2].set_title("learning rate", loc="left", fontsize=10)
    for axis in axes.flat:
        axis.axvline(best_epoch, color=ORANGE, linestyle=":", linewidth=1.5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch (dotted: the one kept)")
    return finished(figure)


def finished(figure: Figure) -> Figure:
    """Closed for pyplot, so that a notebook shows it once, where it is returned."""
    plt.close(figure)
    return figure
