"""Mammograms, as the network and as people see them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rsna_nb.plots.style import GREY, ORANGE, finished


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
