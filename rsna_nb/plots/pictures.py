"""Mammograms, as the network and as people see them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rsna_nb.plots.style import GREY, ORANGE, with_alt

COLUMNS = 8


def sample_batch(images: np.ndarray, labels: np.ndarray) -> Figure:
    """Pictures (n, height, width, 1) in 0-1 as the network gets them, those with cancer first and named."""
    order = np.argsort(-labels.ravel(), kind="stable")[: 2 * COLUMNS]
    positive = labels.ravel()[order] == 1
    captions = ["cancer" if one else "no cancer" for one in positive]
    return side_by_side(images[order, ..., 0], captions, [ORANGE if one else GREY for one in positive])


def augmented(images: np.ndarray) -> Figure:
    """One picture (n, height, width, 1) in 0-1: first as it is, then as training may see it."""
    captions = ["as it is"] + [f"epoch {epoch}" for epoch in range(1, len(images))]
    return side_by_side(images[..., 0], captions, [GREY] * len(images))


def contact_sheet(files: Sequence[str | Path], captions: Sequence[str]) -> Figure:
    """The pictures in these files, each under its caption."""
    return side_by_side(map(plt.imread, files), captions, [GREY] * len(files))


def side_by_side(pictures: Iterable[np.ndarray], captions: Sequence[str], colours: Sequence[str]) -> Figure:
    """Pictures (height, width) in 0-1, `COLUMNS` in a row, each under its caption."""
    rows = -(-len(captions) // COLUMNS)
    size = (1.6 * COLUMNS, 1.85 * rows)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption, colour in zip(axes.flat, pictures, captions, colours, strict=False):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(caption, fontsize=8, color=colour)
    return with_alt(figure, f"Mammograms: {'; '.join(captions)}.")
