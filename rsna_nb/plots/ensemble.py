"""How alike the scores of several models are, and the scores of a submission with those of validation breasts."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from rsna_nb.metrics import logit, threshold_text
from rsna_nb.plots.evaluation import CLOSEST, finish_scores, logit_bins
from rsna_nb.plots.style import BLUE, GREY, ORANGE, with_alt


def score_correlations(table: pd.DataFrame) -> Figure:
    """The rank correlations of models' scores (`ensemble_gain.correlations`) as a square of numbers.

    Breasts with cancer are above the diagonal, those without below it. A model that gives all of them one score has no
    correlation; its cell is empty.
    """
    count = len(table)
    values = table.to_numpy().copy()
    np.fill_diagonal(values, np.nan)
    figure, axis = plt.subplots(figsize=(3.2 + 0.6 * count, 1.2 + 0.5 * count), layout="constrained")
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")  # 1.3: dark cells would hide their numbers
    for row, column in np.argwhere(~np.isnan(values)):
        axis.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=9)
    axis.set_xticks(range(count), [str(number) for number in range(1, count + 1)])
    axis.set_yticks(range(count), [f"{name}  {number}" for number, name in enumerate(table.index, 1)])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    halves = values[np.triu_indices(count, 1)], values[np.tril_indices(count, -1)]
    words = [f"{_span(half)} {kind} cancer" for half, kind in zip(halves, ("with", "without"), strict=True)]
    return with_alt(figure, f"Rank correlations of {count} models' scores by breast: {', '.join(words)}.")


def _span(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{known.min():.2f} to {known.max():.2f}" if len(known) else "undefined"


def submitted_scores(known: pd.DataFrame, submitted: pd.Series, threshold: float | None = None) -> Figure:
    """Histograms of new breasts' scores and of those of validation breasts, each adding up to 1.

    Parameters
    ----------
    known
        The validation breasts, with cancer and score.
    submitted
        The scores of the new breasts, in 0-1.
    threshold
        The place of a dashed line; None for no line.
    """
    kinds = {
        "validation, without cancer": (known.loc[known["cancer"] == 0, "score"], BLUE, 0.0),
        "validation, with cancer": (known.loc[known["cancer"] == 1, "score"], ORANGE, 0.0),
        "these breasts": (submitted, GREY, 0.35),
    }
    edges = logit_bins(np.concatenate([scores for scores, _, _ in kinds.values()]))
    figure, axis = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    for name, (scores, colour, filling) in kinds.items():
        weights = np.full(len(scores), 1 / len(scores))
        label = f"{name} ({len(scores):,})"
        _, _, drawn = axis.hist(logit(scores, CLOSEST), edges, weights=weights, histtype="stepfilled", label=label)
        plt.setp(drawn, facecolor=to_rgba(colour, filling), edgecolor=colour, linewidth=1.5)
    words = "" if threshold is None else f"threshold {threshold_text(threshold)}"
    finish_scores(axis, edges, threshold, words)
    medians = ", ".join(f"{name} {scores.median():.3f}" for name, (scores, _, _) in kinds.items())
    return with_alt(figure, f"Histograms of the scores by breast, with the medians {medians}.")
