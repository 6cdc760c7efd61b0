"""What a study found: how good its trials are, which settings matter, and which values of them are good."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rsna_nb.notebook import UnavailableError
from rsna_nb.plots.style import BLUE, GREEN, GREY, ORANGE, with_alt, without_box

MARKS = {"finished": ("o", BLUE), "pruned": ("x", GREY)}
COLUMNS = 3  # of slices


def trial_history(trials: pd.DataFrame, objective: str, maximize: bool) -> Figure:
    """The objective of each trial (`study.table`), the best so far, and where trials failed.

    `UnavailableError` where no trial has finished.
    """
    finished = finished_of(trials)
    best = finished["value"].cummax() if maximize else finished["value"].cummin()
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    last = trials["trial"].max()
    steps = [*finished["trial"], last], [*best, best.iloc[-1]]
    axis.step(*steps, where="post", color=BLUE, linewidth=1, label="best so far")
    draw_marks(axis, trials, "trial")
    first = finished[finished["default"]]
    axis.plot(first["trial"], first["value"], "D", color=ORANGE, markersize=7, label="settings it began with")
    lost = trials[trials["state"].isin(["failed", "killed"])]
    for trial in lost["trial"]:
        axis.axvline(trial, color=ORANGE, linestyle=":", linewidth=1, label="failed or killed")
    axis.set(xlabel="trial", ylabel=objective)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    without_box(axis)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), frameon=False, bbox_to_anchor=(1, 0.5), loc="center left")
    counts = trials["state"].value_counts()
    words = ", ".join(f"{count} {state}" for state, count in counts.items())
    return with_alt(figure, f"{objective} of {len(trials)} trials ({words}); the best is {best.iloc[-1]:.3f}.")


def finished_of(trials: pd.DataFrame) -> pd.DataFrame:
    finished = trials[trials["state"] == "finished"]
    if finished.empty:
        raise UnavailableError("no trial has finished")
    return finished


def draw_marks(axis: Axes, trials: pd.DataFrame, x: str) -> None:
    """A mark for each trial that has a value of the objective, and of `x`."""
    for state, (marker, colour) in MARKS.items():
        rows = trials[(trials["state"] == state) & trials["value"].notna() & trials[x].notna()]
        axis.plot(rows[x], rows["value"], marker, color=colour, markersize=5, label=state)


def setting_importances(importances: pd.Series) -> Figure:
    """The share of each setting, 0-1 (`study.importances`), the largest at the top."""
    shares = importances.sort_values()
    figure, axis = plt.subplots(figsize=(6, 0.8 + 0.35 * len(shares)), layout="constrained")
    bars = axis.barh(shares.index, shares, color=BLUE, height=0.6)
    axis.bar_label(bars, fmt=" {:.2f}")
    axis.set(xlabel="importance (all together 1)", xlim=(0, max(shares.max(), 0.1) * 1.12))
    without_box(axis)
    words = ", ".join(f"{name} {share:.2f}" for name, share in shares[::-1].items())
    return with_alt(figure, f"Importance of the settings: {words}.")


def setting_slices(trials: pd.DataFrame, settings: dict[str, bool], objective: str) -> Figure:
    """Each searched setting of each trial against the objective; the best trial in green, pruned ones as crosses.

    `settings` are names, and whether a setting is drawn by its logarithm.
    `UnavailableError` where no trial has finished.
    """
    finished_of(trials)
    rows = -(-len(settings) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(10, 2.9 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, logarithm) in zip(axes.flat, settings.items(), strict=False):
        draw_slice(axis, trials, name, logarithm)
    for axis in axes.flat[len(settings) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel(objective)
    axes[0, 0].legend(frameon=False, fontsize=9)
    return with_alt(figure, f"{objective} of each trial by {', '.join(settings)}.")


def draw_slice(axis: Axes, trials: pd.DataFrame, name: str, logarithm: bool) -> None:
    """Numbers along the axis; words side by side, spread so that none hides another."""
    values = trials[name] if name in trials else pd.Series(np.nan, index=trials.index)
    if pd.api.types.is_numeric_dtype(values):
        places = values.astype(float)
        axis.set_xscale("log" if logarithm else "linear")
    else:
        words = sorted(values.dropna().unique())
        spread = 0.25 * np.sin(2.4 * trials["trial"])  # not by chance: the figure is the same each time
        places = values.map({word: place for place, word in enumerate(words)}).astype(float) + spread
        axis.set_xticks(range(len(words)), words, rotation=20 if len(words) > 2 else 0)
        axis.set_xlim(-0.5, len(words) - 0.5)
    placed = trials.assign(place=places)
    draw_marks(axis, placed, "place")
    best = placed[placed["best"]]
    axis.plot(best["place"], best["value"], "o", color=GREEN, markersize=8, label="the best")
    axis.set_xlabel(name)
    without_box(axis)
