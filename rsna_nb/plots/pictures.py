"""Mammograms, as a network and as people see them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rsna_nb.plots.style import GREY, ORANGE, with_alt

COLUMNS = 8


def sample_batch(images: np.ndarray, labels: np.ndarray, views: np.ndarray | None = None) -> Figure:
    """Draw up to 16 images of a training batch as the network gets them, those with cancer first.

    Parameters
    ----------
    images
        (n, height, width, 1) in 0-1.
    labels
        n of them, in any shape: 1 with cancer, 0 without.
    """
    order = np.argsort(-labels.ravel(), kind="stable")[: 2 * COLUMNS]
    positive = labels.ravel()[order] == 1
    captions = ["cancer" if each else "no cancer" for each in positive]
    return _side_by_side(images[order, ..., 0], captions, [ORANGE if each else GREY for each in positive])


def augmented(images: np.ndarray) -> Figure:
    """Draw one image, (n, height, width, 1) in 0-1: unchanged first, then as n - 1 epochs of training see it."""
    captions = ["unchanged"] + [f"epoch {epoch}" for epoch in range(1, len(images))]
    return _side_by_side(images[..., 0], captions, [GREY] * len(images))


def contact_sheet(files: Sequence[str | Path], captions: Sequence[str]) -> Figure:
    """Draw the images in these PNG files, each under its caption."""
    return _side_by_side(map(plt.imread, files), captions, [GREY] * len(files))


def _side_by_side(images: Iterable[np.ndarray], captions: Sequence[str], colours: Sequence[str]) -> Figure:
    """Images (height, width) in 0-1, `COLUMNS` in a row, each under its caption in its colour."""
    rows = -(-len(captions) // COLUMNS)
    size = (1.6 * COLUMNS, 1.85 * rows)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    # Not strict: the last row of axes may have no image, and stays empty.
    for axis, image, caption, colour in zip(axes.flat, images, captions, colours, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(caption, fontsize=8, color=colour)
    return with_alt(figure, f"Mammograms: {'; '.join(captions)}.")
