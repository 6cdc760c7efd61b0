"""A cross-validation: the AUC of each fold and of all, and that of each site or machine when training excluded it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsna_nb.metrics import operating
from rsna_nb.plots.comparison import draw_intervals
from rsna_nb.plots.evaluation import SQUARE, finish_roc
from rsna_nb.plots.style import BLUE, GREY, ORANGE, TITLES, with_alt, without_box


def fold_forest(folds: pd.DataFrame, overall: pd.Series) -> Figure:
    """The AUC of each fold (`out_of_fold.fold_table`), and below it that of all folds, combined in three ways.

    `overall` holds Intervals by name, as `metrics.fold_metrics` returns them.
    """
    places = np.arange(len(folds)), len(folds) + 0.6 + np.arange(len(overall))
    names = [f"fold {fold}" for fold in folds.index]
    figure, axis = plt.subplots(figsize=(5.4, 0.9 + 0.3 * (places[1][-1] + 1)), layout="constrained")
    within = overall.iloc[0]
    axis.axvspan(within.low, within.high, color=BLUE, alpha=0.12, linewidth=0)
    axis.axvline(within.estimate, color=BLUE, linestyle="--", linewidth=1)
    draw_intervals(axis, folds["AUC"], places[0], GREY, "")
    draw_intervals(axis, overall, places[1], BLUE, "")
    axis.set_yticks(np.concatenate(places), [*names, *overall.index])
    axis.tick_params(axis="y", length=0)
    axis.set(xlabel=f"AUC by breast (dashed: {overall.index[0]})", ylim=(places[1][-1] + 0.6, -0.6))
    axis.set_xlim(right=1.005)
    counts = [f"{women:,} ({cancer:,})" for women, cancer in zip(folds["women"], folds["with cancer"], strict=True)]
    for place, text in zip([-0.95, *range(len(folds))], ["Women (cancer)", *counts], strict=True):
        axis.text(1.02, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color=GREY)
    without_box(axis)
    own = "; ".join(f"{name} {auc}" for name, auc in zip(names, folds["AUC"], strict=True))
    together = "; ".join(f"{name} {auc}" for name, auc in overall.items())
    return with_alt(figure, f"AUC by breast of each fold: {own}. Of all: {together}.")


def fold_roc(breasts: pd.DataFrame, overall: pd.Series) -> Figure:
    """The ROC curve of each fold, thin, and of all scores pooled as if one model had given them.

    `breasts` have cancer, score and fold; `overall` is that of `fold_forest`.
    """
    figure, axis = plt.subplots(figsize=SQUARE, layout="constrained")
    folds = [_roc_points(own) for _, own in breasts.groupby("fold")]
    for number, points in enumerate(folds):
        axis.plot(*points, color=GREY, linewidth=0.8, label="" if number else f"each of {len(folds)} folds")
    pooled = overall["pooled"]
    axis.plot(*_roc_points(breasts), color=BLUE, linewidth=2, label=f"pooled: AUC {pooled}")
    finish_roc(figure, axis)
    found = [float(np.interp(0.1, *points)) for points in folds]
    return with_alt(
        figure,
        f"ROC curves by breast of {len(folds)} folds and pooled, pooled AUC {pooled}. Recalling 10 % of the breasts "
        f"without cancer finds {min(found):.0%} to {max(found):.0%} of the cancers, by fold.",
    )


def _roc_points(breasts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(1 - specificity, sensitivity), both ascending."""
    curve = operating.curve(breasts["cancer"], breasts["score"])[::-1]
    return 1 - curve["specificity"].to_numpy(), curve["sensitivity"].to_numpy()


def leave_one_group_out_forest(table: pd.DataFrame, column: str) -> Figure:
    """The AUC of each group by a model that never saw it, and by models that did.

    `table` is that of `out_of_fold.leave_one_group_out_table`, and `column` the one that the groups are values of.
    """
    places, known = np.arange(len(table)), table["reason"].to_numpy() == ""
    group = TITLES.get(column, column)
    figure, axis = plt.subplots(figsize=(5.4, 1.2 + 0.45 * len(table)), layout="constrained")
    pairs = (
        ("out of fold", GREY, -0.15, "others of the group in training"),
        ("never seen", BLUE, 0.15, "group never seen in training"),
    )
    for name, colour, shift, label in pairs:
        draw_intervals(axis, table.loc[known, name], places[known] + shift, colour, label)
    left = axis.get_xlim()[0] if known.any() else 0.4
    for place, reason in zip(places[~known], table.loc[~known, "reason"], strict=True):
        axis.text(left, place, f" {reason}", va="center", fontsize=8, color=ORANGE)
    axis.set_yticks(places, [f"{group} {value}" for value in table["value"]])
    axis.set(xlabel="AUC by breast", ylim=(len(table) - 0.5, -0.5), xlim=(left, 1.005))
    without_box(axis)
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=9)
    words = [
        f"{row['value']}: {row['never seen']} never seen, {row['out of fold']} out of fold"
        if not row["reason"]
        else f"{row['value']}: {row['reason']}"
        for row in table.to_dict("records")
    ]
    return with_alt(figure, f"AUC by breast of each {group}, never seen in training and seen: {'; '.join(words)}.")
