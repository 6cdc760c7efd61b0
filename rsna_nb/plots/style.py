"""What all figures share: one palette, and how a figure is finished."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def without_box(*axes: Axes) -> None:
    """Remove the lines above and beside what is drawn."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)


def finished(figure: Figure) -> Figure:
    """Closed for pyplot, so that a notebook shows it once, where it is returned."""
    plt.close(figure)
    return figure
