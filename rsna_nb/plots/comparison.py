"""The AUC of a run by group of women, and its metrics compared with another way of scoring the same breasts."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rsna_nb.metrics import Interval
from rsna_nb.plots.style import BLUE, GREY, with_alt, without_box


def subgroup_forest(subgroups: pd.DataFrame, overall: Interval) -> Figure:
    """AUC with interval of each group (`comparison.subgroups`), and a line at the AUC of all breasts.

    Small groups have hollow marks; without an AUC, the reason is shown instead.
    """
    first = ~subgroups["group"].duplicated()
    places = np.arange(len(subgroups)) + 1.1 * first.cumsum().to_numpy()
    # the axis ends at the lowest interval that is not rough; a rough one that leaves it ends in an arrow
    safe = subgroups.loc[~subgroups["small"].astype(bool), "low"].min()
    left = np.floor(10 * np.nanmin([safe, overall.low, 0.5])) / 10
    figure, axis = plt.subplots(figsize=(5.2, 0.6 + 0.21 * (places[-1] + 1)), layout="constrained")
    axis.axvline(overall.estimate, color=GREY, linestyle="--", linewidth=1)
    for place, row in zip(places, subgroups.itertuples(), strict=True):
        _draw_group(axis, place, row, left)
    for place, group in zip(places[first], subgroups.loc[first, "group"], strict=True):
        axis.text(-0.02, place - 1, group, transform=axis.get_yaxis_transform(), ha="right", va="center", weight="bold")
    axis.set_yticks(places, subgroups["value"])
    axis.tick_params(axis="y", length=0)
    axis.set(xlim=(left, 1.005), ylim=(places[-1] + 0.8, -0.8), xlabel="AUC by breast (dashed: all; hollow: few women)")
    axis.text(1.02, -0.2, "Women\n(cancer)", transform=axis.get_yaxis_transform(), va="center", fontsize=9, color=GREY)
    without_box(axis)
    known = subgroups[subgroups["estimate"].notna()]
    words = [
        f"{row['group']} {row['value']} {Interval(row['estimate'], row['low'], row['high'], np.array([]), 0)}"
        for row in known.to_dict("records")
    ]
    return with_alt(figure, f"AUC by breast in groups of women, {overall} in all: {'; '.join(words)}.")


def _draw_group(axis: Axes, place: float, row: Any, left: float) -> None:
    if row.reason:
        axis.text(left, place, f" {row.reason}", va="center", fontsize=9, color=GREY)
    else:
        colour = GREY if row.small else BLUE
        face = "white" if row.small else colour
        axis.hlines(place, max(row.low, left), row.high, color=colour, linewidth=1.5)
        axis.plot(row.estimate, place, "o", color=colour, markerfacecolor=face, markersize=5)
        if row.low < left:
            axis.plot(left, place, "<", color=colour, markersize=4, clip_on=False)
    if row.value:
        count = f"{row.women:,.0f} ({row.positive_women:,.0f})"
        axis.text(1.02, place, count, transform=axis.get_yaxis_transform(), va="center", fontsize=9, color=GREY)


def paired_differences(table: pd.DataFrame) -> Figure:
    """Each metric of two runs, and their difference below, with intervals (`comparison.differences`)."""
    first, second, _ = table.columns
    figure, axes = plt.subplots(2, 1, figsize=(5.4, 2.2 + 0.8 * len(table)), layout="constrained")
    places = np.arange(len(table))
    for name, colour, shift in ((first, GREY, -0.15), (second, BLUE, 0.15)):
        draw_intervals(axes[0], table[name], places + shift, colour, name)
    draw_intervals(axes[1], table["difference"], places, BLUE, "")
    axes[1].axvline(0, color=GREY, linestyle=":")
    axes[0].set_xlabel("Metric by breast (0-1)")
    axes[1].set_xlabel(f"Difference: {second} minus {first}")
    for axis in axes:
        axis.set_yticks(places, table.index)
        axis.set_ylim(len(table) - 0.5, -0.5)
        without_box(axis)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    words = [
        f"{name}: {row[first]} and {row[second]}, difference {row['difference']}" for name, row in table.iterrows()
    ]
    return with_alt(figure, f"{first} and {second}. {'; '.join(words)}.")


def draw_intervals(axis: Axes, intervals: pd.Series, places: np.ndarray, colour: str, label: str) -> None:
    """Draw Intervals as points with error bars at `places` on the y axis; no bars without an interval."""
    middles = np.array([interval.estimate for interval in intervals])
    ends = np.array([[interval.estimate - interval.low, interval.high - interval.estimate] for interval in intervals])
    axis.errorbar(middles, places, xerr=np.nan_to_num(ends.T), fmt="o", color=colour, markersize=5, label=label)
