"""Several models beside each other, and the scores of a submission beside those that are known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from rsna_nb.calibration import logit
from rsna_nb.plots.style import BLUE, GREY, ORANGE, with_alt, without_box

PLACES = np.array([0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])


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
        "submitted": (submitted, GREY, True),
    }
    everything = logit(np.concatenate([scores for scores, _, _ in kinds.values()]), 1e-4)
    edges = [float(edge) for edge in np.linspace(everything.min() - 0.1, everything.max() + 0.1, 31)]
    figure, axis = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    for name, (scores, colour, filled) in kinds.items():
        weights = np.full(len(scores), 100 / len(scores))
        _, _, drawn = axis.hist(
            logit(scores, 1e-4), edges, weights=weights, histtype="stepfilled", label=f"{name} ({len(scores):,})"
        )
        plt.setp(drawn, facecolor=to_rgba(colour, 0.35 if filled else 0), edgecolor=colour, linewidth=1.5)
    if threshold is not None:
        axis.axvline(float(logit(threshold, 1e-4)), color=GREY, linestyle="--", label=f"threshold {threshold:.3g}")
    places = PLACES[(logit(PLACES) >= edges[0]) & (logit(PLACES) <= edges[-1])]
    axis.set_xticks(logit(places), [f"{place:g}" for place in places])
    axis.set(xlabel="score (0-1, on a logit scale)", ylabel="breasts of each kind (%)")
    without_box(axis)
    axis.legend(frameon=False, fontsize=9)
    medians = ", ".join(f"{name} {scores.median():.3f}" for name, (scores, _, _) in kinds.items())
    return with_alt(figure, f"Three histograms of the scores, by breast: the medians are {medians}.")
