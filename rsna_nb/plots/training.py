"""What a run is trained on, and how training went."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsna_nb.plots.style import BLUE, GREEN, GREY, ORANGE, with_alt, without_box

CURVES = {
    "loss": "Loss",
    "auc": "AUC",
    "precision": "PPV (precision) at 0.5",
    "recall": "Sensitivity (recall) at 0.5",
    "f1": "F1 at 0.5",
}


def class_counts(table: pd.DataFrame) -> Figure:
    """Images with and without cancer in each split, from the columns split, cancer and image_id."""
    counts = table.pivot_table(index="split", columns="cancer", values="image_id", aggfunc="count", fill_value=0)
    counts = counts.reindex([split for split in ("unused", "test", "validation", "train") if split in counts.index])
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.5 * len(counts)), layout="constrained")
    left = np.zeros(len(counts))
    for value, colour, name in ((1, ORANGE, "cancer"), (0, BLUE, "no cancer")):
        bars = axis.barh(counts.index, counts[value], left=left, color=colour, label=name)
        axis.bar_label(bars, label_type="center", color="white", fmt="{:,.0f}")
        left += counts[value].to_numpy()
    axis.set_xlabel("Images")
    without_box(axis)
    axis.legend(frameon=False, bbox_to_anchor=(1, 0.5), loc="center left")
    words = [
        f"{split} {row.sum():,} images, {row.get(1, 0):,} with cancer" for split, row in counts.iloc[::-1].iterrows()
    ]
    return with_alt(figure, f"Images of each split: {'; '.join(words)}.")


def training_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Training and validation metrics by epoch, the learning rate, and the epoch whose model is kept.

    Parameters
    ----------
    history
        history.csv of a run: a row for each epoch, with epoch, learning_rate, and each metric with and without `val_`.
    best_epoch
        The epoch of the checkpoint.
    """
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=False):
        axis.plot(history["epoch"], history[name], color=GREY, label="training")
        axis.plot(history["epoch"], history[f"val_{name}"], color=BLUE, label="validation")
        axis.set_title(title, loc="left", fontsize=10)
    axes[0, 0].legend(frameon=False)
    axes[1, 2].step(history["epoch"], history["learning_rate"], where="mid", color=GREEN)
    axes[1, 2].set_yscale("log")
    axes[1, 2].set_title("Learning rate", loc="left", fontsize=10)
    for axis in axes.flat:
        axis.axvline(best_epoch, color=ORANGE, linestyle=":", linewidth=1.5)
        without_box(axis)
    for axis in axes[1]:
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("Epoch (dotted: the one kept)")
    kept = history.set_index("epoch").loc[best_epoch]
    words = ", ".join(f"{title} {kept[f'val_{name}']:.3f}" for name, title in CURVES.items())
    return with_alt(
        figure, f"Training curves of {len(history)} epochs; at epoch {best_epoch}, kept, validation: {words}."
    )
