"""Who and what is in the data, and which files there are."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rsna_nb.dicom import Step
from rsna_nb.evaluation import group_names, in_order
from rsna_nb.plots.style import BLUE, GREY, ORANGE, TITLES, left_out, with_alt, without_box


def table_overview(table: pd.DataFrame) -> Figure:
    """Women by age and density, images by machine, view and implant, breasts by their number of images."""
    women = table.groupby("patient_id")
    images_a_breast = table.groupby(["patient_id", "laterality"]).size().rename("images_a_breast")
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    axes[0, 0].hist(women["age"].mean().dropna(), bins=np.arange(20, 100, 5), color=BLUE, edgecolor="white")
    axes[0, 0].set_title("women by age", loc="left", fontsize=10)
    axes[0, 0].set(xlabel="years", ylabel="women")
    axes[0, 0].yaxis.get_major_locator().set_params(integer=True)
    sites = group_names(table["site_id"])
    machines = (group_names(table["machine_id"]) + " (site " + sites + ")").iloc[np.argsort(sites, kind="stable")]
    bars(axes[0, 1], machines.value_counts(sort=False), "images by machine")
    bars(axes[0, 2], group_names(table["view"]).value_counts(), "images by view")
    density = group_names(table["density"] if "density" in table else table["age"].mul(np.nan).rename("density"))
    bars(
        axes[1, 0],
        density.groupby(table["patient_id"]).first().value_counts().sort_index(),
        "women by density (BI-RADS)",
    )
    bars(axes[1, 1], images_a_breast.value_counts().sort_index(), "breasts by number of images")
    bars(axes[1, 2], group_names(table["implant"]).value_counts().sort_index(), "images by implant (1: has one)")
    without_box(*axes.flat)
    ages = women["age"].mean()
    words = f"{len(women)} women of {ages.min():.0f} to {ages.max():.0f} years, {len(table)} images"
    return with_alt(figure, f"Bars of {words}: by machine, view, density, images of a breast and implant.")


def bars(axis: Axes, counts: pd.Series, title: str) -> None:
    """A horizontal bar for each count, the first at the top, the number behind it."""
    drawn = axis.barh([str(name) for name in counts.index], counts, color=BLUE, height=0.7)
    axis.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8, color=GREY)
    axis.set_ylim(max(len(counts), 4) - 0.5, -0.5)
    axis.margins(x=0.2)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10)
    without_box(axis)


def missing_values(table: pd.DataFrame) -> Figure:
    """Share of empty fields, in percent, of each column and machine."""
    columns = [name for name in table if name not in ("path", "patient_id", "image_id", "site_id", "machine_id")]
    machines = group_names(table["machine_id"])
    share = 100 * table[columns].isna().groupby(machines).mean().loc[in_order(machines)].T
    figure, axis = plt.subplots(figsize=(3 + 0.6 * share.shape[1], 1 + 0.28 * len(share)), layout="constrained")
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), percent in np.ndenumerate(share.to_numpy()):
        words = "" if percent == 0 else "<1" if percent < 1 else f"{percent:.0f}"
        axis.text(column, row, words, ha="center", va="center", fontsize=8, color="white" if percent > 60 else "black")
    axis.set_xticks(range(share.shape[1]), share.columns)
    axis.set_yticks(range(len(share)), share.index)
    axis.set_xlabel("machine (figures: % of its images without a value)")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    words = "; ".join(f"{name} {percent.max():.0f} %" for name, percent in share.iterrows() if percent.max() > 0)
    return with_alt(figure, f"Empty fields by column, on the machine with the most: {words or 'none'}.")


def file_kinds(headers: pd.DataFrame) -> Figure:
    """Syntax, photometric interpretation, windows, bits, picture and file sizes, from `headers.scan`."""
    df = headers[headers["error"] == ""]
    if df.empty:
        return left_out(f"none of {len(headers)} headers can be read")
    windows = df["VOILUTFunction"] + ", " + df["windows"].map("{:.0f} windows".format).replace("1 windows", "1 window")
    bits = df["BitsStored"].map("{:.0f}".format) + " of " + df["BitsAllocated"].map("{:.0f}".format)
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained")
    bars(axes[0, 0], df["transfer_syntax"].value_counts(), "transfer syntax (files)")
    bars(axes[0, 1], df["PhotometricInterpretation"].value_counts(), "photometric interpretation (files)")
    bars(axes[0, 2], windows.value_counts()[:8], "VOI LUT function, windows (files)")
    bars(axes[1, 0], bits.value_counts(), "bits stored of allocated (files)")
    sizes = df.groupby(["Columns", "Rows"]).size().reset_index(name="files")
    area = 30 + 400 * sizes["files"] / sizes["files"].max()
    axes[1, 1].scatter(sizes["Columns"], sizes["Rows"], s=area, color=BLUE, alpha=0.6, linewidths=0)
    limits = {"xlim": (0, 1.2 * sizes["Columns"].max()), "ylim": (0, 1.2 * sizes["Rows"].max())}
    axes[1, 1].set(xlabel="columns, pixels", ylabel="rows, pixels", **limits)
    axes[1, 1].set_title("picture size (area: files)", loc="left", fontsize=10)
    megabytes = [group / 1e6 for _, group in df.groupby("transfer_syntax")["file_bytes"]]
    names = sorted(df["transfer_syntax"].unique())
    axes[1, 2].boxplot(
        megabytes, orientation="horizontal", tick_labels=names, medianprops={"color": ORANGE}, widths=0.5
    )
    axes[1, 2].set(xlabel="MB a file (line: median)", xlim=0)
    without_box(*axes.flat)
    words = ", ".join(f"{count} {name}" for name, count in df["transfer_syntax"].value_counts().items())
    return with_alt(figure, f"Kinds of {len(df)} files, by transfer syntax: {words}.")


def picture_grid(pictures: pd.DataFrame, row: str, column: str) -> Figure:
    """`picture` of the table's rows, arrays in 0-1 or words in their place, by the values of two of its columns."""
    rows, columns = (in_order(pictures[name]) for name in (row, column))
    size = (0.5 + 1.35 * len(columns), 0.4 + 1.45 * len(rows))
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for name, axis in zip(columns, axes[0], strict=True):
        axis.set_title(f"{TITLES.get(column, column)} {name}", fontsize=8, color=GREY)
    for name, axis in zip(rows, axes[:, 0], strict=True):
        axis.set_ylabel(f"{TITLES.get(row, row)} {name}", fontsize=8, color=GREY)
    for _, entry in pictures.iterrows():
        axis = axes[rows.index(entry[row]), columns.index(entry[column])]
        if isinstance(entry["picture"], str):
            axis.text(0.5, 0.5, entry["picture"], fontsize=7, color=ORANGE, ha="center", va="center", wrap=True)
        else:
            axis.imshow(entry["picture"], cmap="gray", vmin=0, vmax=1)
    words = f"each {TITLES.get(row, row)} ({', '.join(rows)}) and {TITLES.get(column, column)} ({', '.join(columns)})"
    return with_alt(figure, f"A mammogram of {words}.")


def steps_with_histograms(steps: Sequence[Step]) -> Figure:
    """Each step's picture, on a scale of its own unit, above the number of pixels at each value."""
    figure, axes = plt.subplots(
        2, len(steps), figsize=(2.5 * len(steps), 5), height_ratios=(2.2, 1), layout="constrained"
    )
    for (above, below), step in zip(axes.T, steps, strict=True):
        lowest, highest = (step.picture.min(), step.picture.max()) if step.unit == "stored value" else (0, 1)
        above.imshow(step.picture, cmap="gray", vmin=lowest, vmax=highest)
        above.set_title(step.name, fontsize=9)
        above.set(xticks=[], yticks=[])
        above.spines[:].set_color(GREY)
        below.hist(step.picture.ravel(), bins=np.linspace(lowest, highest, 65), color=BLUE, log=True)
        below.set_xlabel(step.unit)
    axes[1, 0].set_ylabel("pixels")
    without_box(*axes[1])
    return with_alt(figure, f"A mammogram and its histogram, step by step: {', '.join(step.name for step in steps)}.")
