"""Who and what is in the data, which kinds of files there are, and how long reading them took."""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rsna_nb.dicom import Step
from rsna_nb.evaluation import group_names, in_order
from rsna_nb.plots.style import BLUE, GREY, ORANGE, TITLES, unavailable, with_alt, without_box

MOST_DOTS = 2000  # per transfer syntax; more of them slow down the browser and show nothing new


def table_overview(table: pd.DataFrame) -> Figure:
    """Draw how many women, breasts and images there are by age, machine, view, density and implant.

    `table` is as `metadata.load_metadata` returns it; `density` may be missing.
    """
    ages = table.groupby("patient_id")["age"].mean().dropna()
    sites = group_names(table["site_id"])
    # Listed site by site; a stable sort keeps the machines of a site in the table's order.
    machines = (group_names(table["machine_id"]) + " (site " + sites + ")").iloc[np.argsort(sites, kind="stable")]
    density = group_names(table["density"] if "density" in table else pd.Series(np.nan, table.index))
    images = table.groupby(["patient_id", "laterality"]).size().rename("images")
    counted = {
        "Images by machine": machines.value_counts(sort=False),
        "Images by view": group_names(table["view"]).value_counts(),
        "Women by density (BI-RADS)": density.groupby(table["patient_id"]).first().value_counts().sort_index(),
        "Breasts by number of images": images.value_counts().sort_index(),
        "Images by implant (1: has one)": group_names(table["implant"]).value_counts().sort_index(),
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    axes[0, 0].hist(ages, bins=np.arange(20, 100, 5), color=BLUE, edgecolor="white")
    axes[0, 0].set_title("Women by age", loc="left", fontsize=10)
    axes[0, 0].set(xlabel="Age (years)", ylabel="Women")
    # With few women, there would be ticks at half a woman.
    axes[0, 0].yaxis.get_major_locator().set_params(integer=True)
    without_box(axes[0, 0])
    for axis, (title, counts) in zip(axes.flat[1:], counted.items(), strict=True):
        _bars(axis, counts, title)
    years = f" of {ages.min():.0f} to {ages.max():.0f} years" if len(ages) else " of unknown age"
    women = f"{table['patient_id'].nunique():,} women{years}"
    words = f"{women}, {len(table):,} images: by machine, view, density, number of images of a breast and implant"
    return with_alt(figure, f"Bars of {words}.")


def file_kinds(headers: pd.DataFrame) -> Figure:
    """Draw transfer syntax, photometric interpretation, windows, bits, image and file sizes.

    `headers` is the table of `dicom.headers.scan`; files with an error are omitted.
    """
    df = headers[headers["error"] == ""]
    if df.empty:
        return unavailable(f"none of {len(headers)} headers can be read")
    windows = df["VOILUTFunction"] + ", " + df["windows"].map("{:.0f} windows".format).replace("1 windows", "1 window")
    bits = df["BitsStored"].map("{:.0f}".format) + " of " + df["BitsAllocated"].map("{:.0f}".format)
    syntaxes = df["transfer_syntax"].value_counts()
    counted = {
        "Files by transfer syntax": syntaxes,
        "Files by photometric interpretation": df["PhotometricInterpretation"].value_counts(),
        "Files by VOI LUT function, windows": windows.value_counts()[:8],
        "Files by bits stored of allocated": bits.value_counts(),
    }
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained")
    for axis, (title, counts) in zip(axes.flat, counted.items(), strict=False):
        _bars(axis, counts, title)
    sizes = df.groupby(["Columns", "Rows"]).size().reset_index(name="files")
    # Areas, and not radii, in proportion to the files; 30 keeps a single file visible.
    area = 30 + 400 * sizes["files"] / sizes["files"].max()
    axes[1, 1].scatter(sizes["Columns"], sizes["Rows"], s=area, color=BLUE, alpha=0.6, linewidths=0)
    limits = {"xlim": (0, 1.2 * sizes["Columns"].max()), "ylim": (0, 1.2 * sizes["Rows"].max())}
    axes[1, 1].set(xlabel="Columns (pixels)", ylabel="Rows (pixels)", **limits)
    axes[1, 1].set_title("Image size (area: files)", loc="left", fontsize=10)
    names, megabytes = zip(*(df["file_bytes"] / 1e6).groupby(df["transfer_syntax"]), strict=True)
    orange = {"color": ORANGE}
    axes[1, 2].boxplot(megabytes, orientation="horizontal", tick_labels=names, medianprops=orange, widths=0.5)
    axes[1, 2].set(xlabel="File size (MB; line: median)", xlim=0)
    without_box(*axes[1, 1:])
    words = ", ".join(f"{count} {name}" for name, count in syntaxes.items())
    return with_alt(figure, f"Kinds of {len(df)} files, by transfer syntax: {words}.")


def reading_times(ledger: pd.DataFrame) -> Figure:
    """Draw the time that each file took, by transfer syntax: a dot for each file, a line at the median.

    `ledger` is that of `prepare.prepare_images`; files that failed are omitted.
    """
    groups = list(ledger[ledger["status"] == "ok"].groupby("transfer_syntax")["milliseconds"])
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.55 * len(groups)), layout="constrained")
    # Dots of one transfer syntax are spread over its row at random, else they would hide each other.
    jitter = np.random.default_rng(0)
    for height, (_, times) in enumerate(groups):
        shown = times.sample(min(len(times), MOST_DOTS), random_state=0)
        size = 4 if len(shown) > 100 else 16
        axis.scatter(
            shown, height + jitter.uniform(-0.25, 0.25, len(shown)), s=size, color=BLUE, alpha=0.4, linewidths=0
        )
        axis.vlines(times.median(), height - 0.35, height + 0.35, color=ORANGE, linewidth=2)
    axis.set(xlim=0, xlabel="Time per file (ms; line: median)")
    # DICOM's names are long: "JPEG 2000 Image Compression (Lossless Only)".
    axis.set_yticks(range(len(groups)), [re.split(r"[,(]", str(name))[0] for name, _ in groups])
    without_box(axis)
    words = ", ".join(f"{name} {times.median():.0f}" for name, times in groups)
    return with_alt(figure, f"Median time per file in milliseconds, by transfer syntax: {words}.")


def picture_grid(pictures: pd.DataFrame, row: str, column: str) -> Figure:
    """Draw images in a grid by the values of two columns.

    Parameters
    ----------
    pictures
        A table with the two columns as text, and `picture`: an array (height, width) in 0-1, or the reason why it
        cannot be read. Each pair of values occurs at most once.
    row, column
        The columns whose values are the rows and the columns of the grid.
    """
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
    """Draw the image after each step of reading a file, and below it how many pixels have which value.

    `steps` are those of `dicom.reading_steps`. Each image is shown on the scale of its own unit: stored values from
    the lowest to the highest, everything else from 0 to 1.
    """
    size = (2.5 * len(steps), 5)
    figure, axes = plt.subplots(2, len(steps), figsize=size, height_ratios=(2.2, 1), layout="constrained")
    for (above, below), step in zip(axes.T, steps, strict=True):
        # Stored values lie anywhere within 8 to 16 bits; on one scale from 0 to 65535 most images would be black.
        lowest, highest = (step.picture.min(), step.picture.max()) if step.unit == "stored value" else (0, 1)
        above.imshow(step.picture, cmap="gray", vmin=lowest, vmax=highest)
        above.set_title(step.name, fontsize=9)
        above.set(xticks=[], yticks=[])
        above.spines[:].set_color(GREY)
        below.hist(step.picture.ravel(), bins=np.linspace(lowest, highest, 65), color=BLUE, log=True)
        below.set_xlabel(step.unit)
    axes[1, 0].set_ylabel("Pixels")
    without_box(*axes[1])
    return with_alt(figure, f"A mammogram and its histogram, step by step: {', '.join(step.name for step in steps)}.")


def _bars(axis: Axes, counts: pd.Series, title: str) -> None:
    """A horizontal bar for each count, the first at the top, with its number next to it."""
    drawn = axis.barh([str(name) for name in counts.index], counts, color=BLUE, height=0.7)
    axis.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8, color=GREY)
    axis.set_ylim(max(len(counts), 4) - 0.5, -0.5)  # few bars are not stretched over the whole height
    axis.margins(x=0.2)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set_title(title, loc="left", fontsize=10)
    without_box(axis)
