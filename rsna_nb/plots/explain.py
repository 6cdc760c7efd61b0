"""Where a model looked: heat maps over images and files, and tests of these maps.

A map is drawn in one hue, denser where it is higher, so that the tissue stays visible.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from rsna_nb.metrics import Interval
from rsna_nb.notebook import UnavailableError
from rsna_nb.plots.comparison import draw_intervals
from rsna_nb.plots.evaluation import caption, side_and_view
from rsna_nb.plots.style import BLUE, GREY, ORANGE, with_alt, without_box

if TYPE_CHECKING:  # importing it imports TensorFlow
    from rsna_nb.explain import Curves, ExplainedBreast, ExplainedImages, FileMap

OVERLAY = LinearSegmentedColormap.from_list("overlay", [(1.0, 0.35, 0.0, 0.0), (1.0, 0.35, 0.0, 0.75)])
OUTLINE = "#56B4E9"  # of known lesions
COLUMNS = 3  # pairs of images in a row


def overlays(shown: Mapping[str, "ExplainedImages"], kind: str) -> Figure:
    """Draw each image of a kind without and with its map, and outline known lesions.

    Raises `UnavailableError` if there are no images of this kind.
    """
    if kind not in shown:
        raise UnavailableError(f"there are no {kind}")
    one = shown[kind]
    captions = [caption(row) for _, row in one.rows.iterrows()]
    lines = -(-len(captions) // COLUMNS)
    figure, axes = plt.subplots(
        lines, 2 * COLUMNS, figsize=(3.2 * COLUMNS, 1.9 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for number, text in enumerate(captions):
        plain, marked = axes.flat[2 * number : 2 * number + 2]
        for axis in (plain, marked):
            axis.imshow(one.images[number, ..., 0], cmap="gray", vmin=0, vmax=1)
        marked.imshow(one.maps[number], cmap=OVERLAY, vmin=0, vmax=1)
        _outline(marked, one.boxes[number])
        plain.set_title(text, fontsize=9, loc="left")
    return with_alt(figure, f"Mammograms, {kind}, each without and with its heat map: {'; '.join(captions)}.")


def breast_overlay(shown: "ExplainedBreast") -> Figure:
    """Draw all images of a breast side by side, and below with their maps, then those of the woman's other breast.

    Known lesions are outlined. The maps have one scale: an image that added more to the score is more orange. The
    attention of an image is its weight in its own breast.
    """
    captions = [
        f"{'other breast: ' * bool(other)}{side_and_view(row)}"
        for other, (_, row) in zip(shown.opposite, shown.rows.iterrows(), strict=True)
    ]
    figure, axes = plt.subplots(
        2, len(captions), figsize=(max(2.4 * len(captions), 4), 5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for number, text in enumerate(captions):
        for axis in axes[:, number]:
            axis.imshow(shown.images[number, ..., 0], cmap="gray", vmin=0, vmax=1)
        axes[1, number].imshow(shown.maps[number], cmap=OVERLAY, vmin=0, vmax=1)
        _outline(axes[1, number], shown.boxes[number])
        axes[0, number].set_title(text, fontsize=8, loc="left")
    score = shown.rows["score"].iloc[0]
    highest = [f"{text}, highest value {one.max():.2f}" for text, one in zip(captions, shown.maps, strict=True)]
    figure.suptitle(f"Score of the breast: {score:.3f}", fontsize=10)
    return with_alt(figure, f"The images of a breast with score {score:.3f} and their maps: {'; '.join(highest)}.")


def file_overlay(shown: "FileMap") -> Figure:
    """Draw a whole file without and with its map, in the file's own pixels."""
    rows, columns = shown.heat_map.shape
    # The image may be of a reduced level; the extent stretches it to the file's own pixels.
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    figure, axes = plt.subplots(1, 2, figsize=(7, 4.4), sharey=True, layout="constrained")
    for axis in axes:
        axis.imshow(shown.image, extent=extent, cmap="gray", vmin=0, vmax=1)
        axis.set_xlabel("Column of the file (pixels)")
    axes[0].set_ylabel("Row of the file (pixels)")
    axes[1].imshow(shown.heat_map, extent=extent, cmap=OVERLAY, vmin=0, vmax=1)
    _outline(axes[1], shown.boxes)
    row, column = np.unravel_index(np.argmax(shown.heat_map), shown.heat_map.shape)
    place = f"the map is highest at row {row}, column {column} of {rows} rows and {columns} columns"
    return with_alt(figure, f"The file of image {shown.name}, and its heat map in the file's pixels: {place}.")


def perturbation_curves(curves: "Curves") -> Figure:
    """Draw the score by the share of the breast's patches removed or restored: thick lines are means over images."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True, layout="constrained")
    areas, described = curves.areas.mean(), []
    for axis, name, verb in zip(axes, ("deletion", "insertion"), ("removed", "restored"), strict=True):
        by_map, at_random = getattr(curves, name), getattr(curves, f"random_{name}")
        axis.plot(100 * curves.shares, by_map.T, color=ORANGE, linewidth=0.5, alpha=0.35)
        for values, colour, order in ((by_map, ORANGE, "in the map’s order"), (at_random, GREY, "in random order")):
            label = f"{order}, area {areas[name if colour == ORANGE else f'random_{name}']:.2f}"
            axis.plot(100 * curves.shares, values.mean(axis=0), color=colour, linewidth=2, label=label)
            described.append(f"{name} {label}")
        # The axis goes beyond 1 to leave room for the legend.
        axis.set(title=name.title(), xlabel=f"Patches of the breast {verb} (%)", ylim=(-0.02, 1.3))
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.legend(frameon=False, loc="upper right", fontsize=9)
        without_box(axis)
    axes[0].set_ylabel("Score (0-1)")
    return with_alt(figure, f"The score as patches are removed or restored: {'; '.join(described)}.")


def pointing_scores(scores: Mapping[str, Interval]) -> Figure:
    """Draw the hit rates of the map and the baselines, and the paired differences (`explain.hit_rates`)."""
    table = pd.Series(dict(scores), dtype=object)
    is_difference = table.index.str.contains(" - ", regex=False)
    panels = ((table[~is_difference], "Hit rate (0-1)"), (table[is_difference], "Difference in hit rate, paired"))
    figure, axes = plt.subplots(2, 1, figsize=(5.4, 2.9), height_ratios=(3, 2), layout="constrained")
    for axis, (part, label) in zip(axes, panels, strict=True):
        draw_intervals(axis, part, np.arange(len(part)), BLUE, "")
        axis.set_yticks(range(len(part)), part.index)
        axis.set_ylim(len(part) - 0.5, -0.5)
        axis.set_xlabel(label)
        without_box(axis)
    axes[0].set_xlim(0, 1)
    axes[1].axvline(0, color=GREY, linestyle=":")
    return with_alt(figure, f"The pointing game: {'; '.join(f'{name} {value}' for name, value in scores.items())}.")


def _outline(axis: Axes, boxes: np.ndarray) -> None:
    for x_min, y_min, x_max, y_max in boxes - 0.5:  # imshow puts a pixel's centre at its index
        axis.add_patch(plt.Rectangle((x_min, y_min), x_max - x_min, y_max - y_min, fill=False, edgecolor=OUTLINE))
