"""Results of a study: how good its trials are, which settings matter, and which of their values are good.

Optuna's own figures show only finished trials; these also show pruned and failed ones.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rsna_nb.notebook import UnavailableError
from rsna_nb.plots.style import BLUE, GREEN, GREY, ORANGE, with_alt, without_box

COLUMNS = 3  # of setting_slices


def trial_history(trials: pd.DataFrame, objective: str, maximize: bool) -> Figure:
    """The objective of each trial (`study.table`), the best so far, and where trials failed or were killed.

    `UnavailableError` if no trial has finished.
    """
    finished = _finished(trials)
    best = finished["value"].cummax() if maximize else finished["value"].cummin()
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    numbers, heights = [*finished["trial"], trials["trial"].max()], [*best, best.iloc[-1]]
    axis.step(numbers, heights, where="post", color=BLUE, linewidth=1, label="best so far")
    _draw_marks(axis, trials, trials["trial"])
    first = finished[finished["default"]]
    axis.plot(first["trial"], first["value"], "D", color=ORANGE, markersize=7, label="settings it started with")
    for trial in trials.loc[trials["state"].isin(["failed", "killed"]), "trial"]:
        axis.axvline(trial, color=ORANGE, linestyle=":", linewidth=1, label="failed or killed")
    axis.set(xlabel="Trial", ylabel=objective)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    without_box(axis)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), frameon=False, bbox_to_anchor=(1, 0.5), loc="center left")
    states = ", ".join(f"{count} {state}" for state, count in trials["state"].value_counts().items())
    return with_alt(figure, f"{objective} of {len(trials)} trials ({states}); the best is {best.iloc[-1]:.3f}.")


def _finished(trials: pd.DataFrame) -> pd.DataFrame:
    finished = trials[trials["state"] == "finished"]
    if finished.empty:
        raise UnavailableError("no trial has finished")
    return finished


def _draw_marks(axis: Axes, trials: pd.DataFrame, x: pd.Series) -> None:
    """A mark for each trial that has a value of the objective and of `x`."""
    for state, marker, colour in (("finished", "o", BLUE), ("pruned", "x", GREY)):
        rows = (trials["state"] == state) & trials["value"].notna() & x.notna()
        axis.plot(x[rows], trials.loc[rows, "value"], marker, color=colour, markersize=5, label=state)


def setting_importances(importances: pd.Series) -> Figure:
    """The importance of each setting (`study.importances`, 0-1), the largest at the top."""
    shares = importances.sort_values()
    figure, axis = plt.subplots(figsize=(6, 0.8 + 0.35 * len(shares)), layout="constrained")
    axis.bar_label(axis.barh(shares.index, shares, color=BLUE, height=0.6), fmt=" {:.2f}")
    axis.set(xlabel="Importance (the sum is 1)", xlim=(0, max(shares.max(), 0.1) * 1.12))
    without_box(axis)
    words = ", ".join(f"{name} {share:.2f}" for name, share in shares[::-1].items())
    return with_alt(figure, f"Importance of the settings: {words}.")


def setting_slices(trials: pd.DataFrame, space: Mapping[str, Any], objective: str) -> Figure:
    """The objective of each trial by each searched setting; the best trial in green, pruned ones as crosses.

    `space` has the values of each setting (`search_space.Space`); those with a logarithmic scale are shown on one.
    `UnavailableError` if no trial has finished.
    """
    _finished(trials)
    rows = -(-len(space) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(10, 2.9 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, values) in zip(axes.flat, space.items(), strict=False):
        _draw_slice(axis, trials, name, getattr(values, "log", False))
    for axis in axes.flat[len(space) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel(objective)
    axes[0, 0].legend(frameon=False, fontsize=9)
    return with_alt(figure, f"{objective} of each trial by {', '.join(space)}.")


def _draw_slice(axis: Axes, trials: pd.DataFrame, name: str, logarithmic: bool) -> None:
    """Numbers along the axis; words side by side, spread so that no trial hides another."""
    values = trials.get(name, pd.Series(np.nan, index=trials.index))  # perhaps no trial has it
    if pd.api.types.is_numeric_dtype(values):
        places = values.astype(float)
        axis.set_xscale("log" if logarithmic else "linear")
    else:
        words = sorted(values.dropna().unique())
        spread = 0.25 * np.sin(2.4 * trials["trial"])  # not random: the figure is the same each time
        places = values.map({word: place for place, word in enumerate(words)}).astype(float) + spread
        axis.set_xticks(range(len(words)), words, rotation=20 if len(words) > 2 else 0)
        axis.set_xlim(-0.5, len(words) - 0.5)
    if places.isna().all():
        axis.text(0.5, 0.5, "not used in any trial", transform=axis.transAxes, ha="center", color=GREY)
    _draw_marks(axis, trials, places)
    best = trials["best"]
    axis.plot(places[best], trials.loc[best, "value"], "o", color=GREEN, markersize=8, label="best trial")
    axis.set_xlabel(name)
    without_box(axis)
