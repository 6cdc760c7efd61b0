"""What all figures share: one palette, how a figure is finished, and the words that stand for it."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"

TITLES = {
    "site_id": "site",
    "machine_id": "machine",
    "counted": "counted by",
    "difficult_negative_case": "difficult negative",
}


def without_box(*axes: Axes) -> None:
    """Remove the lines above and beside what is drawn."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)


def finished(figure: Figure) -> Figure:
    """Closed for pyplot, so that a notebook shows it once, where it is returned."""
    plt.close(figure)
    return figure


def with_alt(figure: Figure, text: str) -> Figure:
    """The finished figure with `text` for people who cannot see it, shown at twice the pixels.

    The words are the figure's label, and in a notebook its text/plain and `alt` in its PNG's metadata, where
    nbconvert and `report` look for them.
    """

    def bundle(**_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        from IPython.core.pylabtools import retina_figure

        png, size = retina_figure(figure, base64=True)
        return {"image/png": png, "text/plain": text}, {"image/png": size | {"alt": text}}

    figure.set_label(text)
    vars(figure)["_repr_mimebundle_"] = bundle
    return finished(figure)


def left_out(reason: str) -> Figure:
    """In the place of a figure that cannot be drawn."""
    figure, axis = plt.subplots(figsize=(8, 0.6), layout="constrained")
    axis.axis("off")
    axis.text(0, 0.5, f"left out: {reason}", color=ORANGE, va="center")
    return finished(figure)
