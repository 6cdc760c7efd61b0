"""Mammograms, as a network and as people see them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rsna_nb.plots.style import GREY, ORANGE, with_alt

COLUMNS = 8
VIEWS = ("CC", "MLO", "other view")
# By view code (`model.Breasts`, which imports TensorFlow); 4 to 6 are images of the woman's other breast.
OTHER_BREAST = "other breast · "
VIEW_NAMES = ("", *VIEWS, *(OTHER_BREAST + view for view in VIEWS))


def sample_batch(images: np.ndarray, labels: np.ndarray, views: np.ndarray | None = None) -> Figure:
    """Draw up to 16 images of a training batch as the network gets them, those with cancer first.

    The images of a breast stand side by side, CC, MLO, others, and then those of the other breast.

    Parameters
    ----------
    images
        (n, height, width, 1) in 0-1; of breasts (n, places, height, width, 1).
    labels
        n of them, in any shape: 1 with cancer, 0 without.
    views
        Of breasts: view codes (n, places), as `training.sample_batch` returns them; a place with 0 is not drawn.
    """
    order = np.argsort(-labels.ravel(), kind="stable")[: 2 * COLUMNS]
    positive = labels.ravel()[order] == 1
    if views is not None:
        return _hung(images[order], positive, views[order])
    captions = ["cancer" if each else "no cancer" for each in positive]
    return _side_by_side(images[order, ..., 0], captions, [ORANGE if each else GREY for each in positive])


def _hung(images: np.ndarray, positive: np.ndarray, views: np.ndarray) -> Figure:
    """Breasts (n, places, height, width, 1) under their label, side by side while a row has room for all images."""
    most = int((views > 0).sum(axis=1).max())
    beside = max(1, COLUMNS // most)  # breasts in a row, each with an empty column after it
    shown = min(len(images), 2 * beside)
    rows, columns = -(-shown // beside), beside * (most + 1) - 1
    widths = ([1.0] * most + [0.25]) * beside
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 * sum(widths[:-1]), 1.95 * rows), width_ratios=widths[:-1],
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    described = []
    for number in range(shown):
        label = "cancer" if positive[number] else "no cancer"
        places = np.argsort(views[number], kind="stable")[(views[number] == 0).sum() :]
        names = [VIEW_NAMES[views[number, place]] for place in places]
        described.append(f"{label} ({', '.join(names)})")
        first = (number % beside) * (most + 1)
        for axis, place, name in zip(axes[number // beside, first:], places, names, strict=False):
            axis.imshow(images[number, place, ..., 0], cmap="gray", vmin=0, vmax=1)
            # The label is the breast's; the other breast has one of its own.
            own = not name.startswith(OTHER_BREAST)
            colour = ORANGE if own and positive[number] else GREY
            axis.set_title(f"{label} · {name}" if own else name, fontsize=8, color=colour)
    return with_alt(figure, f"Mammograms by breast: {'; '.join(described)}.")


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
