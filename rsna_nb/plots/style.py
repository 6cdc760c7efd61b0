"""What all figures share: the palette, how a figure is finished, and its alt text."""

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
"""Column of the table -> its name in figures, if that is another one."""


def without_box(*axes: Axes) -> None:
    """Remove the lines above and to the right of a plot."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)


def with_alt(figure: Figure, text: str) -> Figure:
    """Finish a figure: give it an alt text for people who cannot see it, and show it at twice the pixels.

    The text is the figure's label. In a notebook it is also its text/plain and `alt` in its PNG's metadata, where
    nbconvert and the report look for it.
    """

    def bundle(**_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        from IPython.core.pylabtools import retina_figure  # here: no plain script needs IPython

        png, size = retina_figure(figure, base64=True)
        return {"image/png": png, "text/plain": text}, {"image/png": size | {"alt": text}}

    figure.set_label(text)
    vars(figure)["_repr_mimebundle_"] = bundle
    plt.close(figure)  # else a notebook shows it twice: by pyplot, and as the value of the cell
    return figure


def unavailable(reason: str) -> Figure:
    """A figure that gives the reason why another one is not available."""
    figure, axis = plt.subplots(figsize=(8, 0.6), layout="constrained")
    axis.axis("off")
    axis.text(0, 0.5, f"not available: {reason}", color=ORANGE, va="center")
    return with_alt(figure, f"No figure: {reason}.")
