"""What reading the files cost."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rsna_nb.plots.style import BLUE, ORANGE, with_alt, without_box


def reading_times(ledger: pd.DataFrame) -> Figure:
    """Milliseconds a file by transfer syntax: each file a dot, their median a line."""
    groups = list(ledger[ledger["status"] == "ok"].groupby("transfer_syntax")["milliseconds"])
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.55 * len(groups)), layout="constrained")
    jitter = np.random.default_rng(0)
    for height, (_, times) in enumerate(groups):
        shown = times.sample(min(len(times), 2000), random_state=0)
        axis.scatter(shown, height + jitter.uniform(-0.25, 0.25, len(shown)), s=4, color=BLUE, alpha=0.4, linewidths=0)
        axis.vlines(times.median(), height - 0.35, height + 0.35, color=ORANGE, linewidth=2)
    axis.set_xlim(0)
    axis.set_yticks(range(len(groups)), [re.split(r"[,(]", str(name))[0] for name, _ in groups])
    axis.set_xlabel("milliseconds a file (line: median)")
    without_box(axis)
    words = ", ".join(f"{name} {times.median():.0f}" for name, times in groups)
    return with_alt(figure, f"Milliseconds a file, the median by transfer syntax: {words}.")
