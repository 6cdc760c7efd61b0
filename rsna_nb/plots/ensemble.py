"""Several models beside each other, and the scores of a submission beside those that are known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from rsna_nb.metrics import logit
from rsna_nb.plots.evaluation import CLOSEST, finish_scores, logit_bins
from rsna_nb.plots.style import BLUE, GREY, ORANGE, with_alt


def score_correlations(table: pd.DataFrame) -> Figure:
    """A square of numbers (`gain.correlations`): above the diagonal breasts with cancer, below it those without."""
    count = len(table)
    values = table.to_numpy().copy()
    np.fill_diagonal(values, np.nan)
    figure, axis = plt.subplots(figsize=(3.2 + 0.6 * count, 1.2 + 0.5 * count), layout="constrained")
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        axis.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=9)
    axis.set_xticks(range(count), [str(number) for number in range(1, count + 1)])
    axis.set_yticks(range(count), [f"{name}  {number}" for number, name in enumerate(table.index, 1)])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    above, below = values[np.triu_indices(count, 1)], values[np.tril_indices(count, -1)]
    words = [f"{kind} {part.min():.2f} to {part.max():.2f}" for kind, part in (("with", above), ("without", below))]
    return with_alt(figure, f"Rank correlations of {count} models' scores: of breasts {', '.join(words)} cancer.")


def submitted_scores(known: pd.DataFrame, submitted: pd.Series, threshold: float | None = None) -> Figure:
    """The scores of new breasts beside those of validation breasts (cancer, score), each as shares of its own.

    The threshold is drawn where there is one.
    """
    kinds = {
        "validation, without cancer": (known.loc[known["cancer"] == 0, "score"], BLUE, False),
        "validation, with cancer": (known.loc[known["cancer"] == 1, "score"], ORANGE, False),
        "these breasts": (submitted, GREY, True),
    }
    edges = logit_bins(np.concatenate([scores for scores, _, _ in kinds.values()]))
    figure, axis = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    for name, (scores, colour, filled) in kinds.items():
        rows, weights = logit(scores, CLOSEST), np.full(len(scores), 1 / len(scores))
        label = f"{name} ({len(scores):,})"
        _, _, drawn = axis.hist(rows, edges, weights=weights, histtype="stepfilled", label=label)
        plt.setp(drawn, facecolor=to_rgba(colour, 0.35 if filled else 0), edgecolor=colour, linewidth=1.5)
    finish_scores(axis, edges, threshold, "threshold" if threshold is None else f"threshold {threshold:.3g}")
    medians = ", ".join(f"{name} {scores.median():.3f}" for name, (scores, _, _) in kinds.items())
    return with_alt(figure, f"Three histograms of the scores, by breast: the medians are {medians}.")
