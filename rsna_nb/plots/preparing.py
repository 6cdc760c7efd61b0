"""How long reading the files took."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsna_nb.plots.style import BLUE, ORANGE, with_alt, without_box

MOST_DOTS = 2000  # a transfer syntax; more of them slow down the browser and show nothing new


def reading_times(ledger: pd.DataFrame) -> Figure:
    """Draw the time that each file took, by transfer syntax: a dot for each file, a line at the median.

    `ledger` is that of `prepare.prepare_images`; files that failed are not drawn.
    """
    groups = list(ledger[ledger["status"] == "ok"].groupby("transfer_syntax")["milliseconds"])
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.55 * len(groups)), layout="constrained")
    # Dots of one transfer syntax are spread over its row at random, else they would hide each other.
    jitter = np.random.default_rng(0)
    for height, (_, times) in enumerate(groups):
        shown = times.sample(min(len(times), MOST_DOTS), random_state=0)
        axis.scatter(shown, height + jitter.uniform(-0.25, 0.25, len(shown)), s=4, color=BLUE, alpha=0.4, linewidths=0)
        axis.vlines(times.median(), height - 0.35, height + 0.35, color=ORANGE, linewidth=2)
    axis.set(xlim=0, xlabel="Time per file (ms; line: median)")
    # DICOM's names go on for long: "JPEG 2000 Image Compression (Lossless Only)".
    axis.set_yticks(range(len(groups)), [re.split(r"[,(]", str(name))[0] for name, _ in groups])
    without_box(axis)
    words = ", ".join(f"{name} {times.median():.0f}" for name, times in groups)
    return with_alt(figure, f"Median time per file in milliseconds, by transfer syntax: {words}.")
