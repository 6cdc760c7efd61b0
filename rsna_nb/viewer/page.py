"""A table of images -> a page of HTML and JavaScript that shows them, with all that it needs inside.

It is written by hand because the libraries that show medical images in notebooks need a kernel or a network: their
widgets are blank in a page that nbconvert exports. The page's content security policy forbids every request.
"""

import html
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
import pandas as pd

from rsna_nb.notebook import UnavailableError
from rsna_nb.system import workers, write_whole
from rsna_nb.viewer.pictures import Task, embedded, packed
from rsna_nb.viewer.women import OF_AN_IMAGE, check_table, exam_column, facts_of, women_of

log = logging.getLogger(__name__)

PAGE = files("rsna_nb.viewer") / "page"
MAP_SIDE = 256  # pixels of an overlay's longer side; the feature maps of networks have fewer
OVERHEAD = 4000  # bytes of a picture in the page that are not its pixels
CPU_SECONDS = 120  # for a file; one of 40 million pixels takes 15 s


@dataclass(frozen=True, eq=False)
class Viewer:
    """A page that shows women's images. A notebook displays it in a frame.

    Attributes
    ----------
    page
        The page, HTML. It contains the images of patients, even if the notebook's text names none.
    women, pictures
        How many it shows.
    """

    page: str
    women: int
    pictures: int

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, which any browser opens without a network."""
        write_whole(Path(path), self.page.encode())
        return Path(path)

    def __repr__(self) -> str:
        return f"Viewer of {self.women} women, {self.pictures} images, {len(self.page) / 1e6:.1f} MB"

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that neither it nor the notebook's page can change the other.

        Jupyter removes the frame of a notebook that it does not trust, and leaves the text in it.
        """
        return (
            f'<iframe title="{html.escape(repr(self))}" sandbox="allow-scripts" '
            'style="width: 100%; height: 760px; border: 0" '
            f'srcdoc="{html.escape(self.page)}">{self!r}: trust this notebook to see it (in JupyterLab: press '
            "Ctrl-Shift-C and choose Trust Notebook).</iframe>"
        )


def show(
    images: pd.DataFrame,
    lists: Mapping[str, Iterable[str]] | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
    megabytes: float = 25,
) -> Viewer:
    """Show all images of women as radiologists hang them, with their window, zoom, lesions and maps.

    Parameters
    ----------
    images
        A row for each image, with path, patient_id, laterality and view. Columns such as score, cancer, age and
        machine_id are shown beside it; `boxes` holds lesions, (k, 4) in pixels of the file (`with_lesions`). A column
        of `women.EXAMS`, such as exam_year, tells earlier examinations from later ones.
    lists
        Names of lists, each with the patient_ids to go through, such as those of the misses. All women if None.
    maps
        By path, a heat map (height, width) in 0-1 that covers the whole file.
    megabytes
        The most that all pixels take in the page. Images are reduced to fit; infinity keeps every file's full size.

    Returns
    -------
    A notebook shows it when a cell ends with it; `save` writes a page of its own.

    Raises
    ------
    UnavailableError
        If the table has no images, or the page is to have no bytes.
    ValueError
        If the table lacks a column, or women or files that `lists` or `maps` name.
    """
    if not megabytes > 0:
        raise UnavailableError(f"the viewer is to have {megabytes} megabytes")
    lists = {name: list(dict.fromkeys(women)) for name, women in (lists or {}).items()}
    maps = {str(path): heat_map for path, heat_map in (maps or {}).items()}
    check_table(images, lists, maps)
    pictures = _pictures(images, megabytes, maps)
    women = women_of(images)
    data = {"women": women, "lists": {"all women": [woman["id"] for woman in women], **lists}}
    blocks = {f"{kind}-{number}": picture.pop(kind) for number, picture in enumerate(pictures)
              for kind in ("pixels", "map") if kind in picture}  # fmt: skip
    template, style, script = ((PAGE / f"viewer.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    text = Template(template).substitute(
        style=style,
        script=script,
        data=_json(data | {"pictures": pictures}),
        blocks="\n".join(f'<script type="text/plain" id="{name}">{block}</script>' for name, block in blocks.items()),
    )
    return Viewer(text, len(women), len(images))


def show_examples(
    images: pd.DataFrame,
    cases: Mapping[str, pd.DataFrame],
    maps: Mapping[str, np.ndarray] | None = None,
    megabytes: float = 25,
) -> Viewer:
    """Show the women of each kind of example as a list: `images` are those that `images_of` returns of the `cases`."""
    return show(images, {kind: rows["patient_id"] for kind, rows in cases.items()}, maps, megabytes)


def _pictures(images: pd.DataFrame, megabytes: float, maps: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Read every file and return what viewer.js knows of each image, in the order of the table."""
    size = max(0.0, megabytes * 1e6 / len(images) - OVERHEAD)
    tasks = [Task(str(path), side, size) for path, side in zip(images["path"], images["laterality"], strict=True)]
    found = dict(workers.run(embedded, list(dict.fromkeys(tasks)), cpu_seconds=CPU_SECONDS))
    pictures = [_picture(row, found[task], maps) for (_, row), task in zip(images.iterrows(), tasks, strict=True)]
    _log(pictures, exam_column(images))
    return pictures


def _picture(row: pd.Series, found: dict[str, Any] | workers.Death, maps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Add what the table says of an image to what its file says."""
    picture = {"error": found.reason, "facts": {}} if isinstance(found, workers.Death) else dict(found)
    picture |= {"laterality": row["laterality"], "view": str(row["view"]), "table": facts_of(row, OF_AN_IMAGE)}
    if "error" in picture:
        return picture
    boxes = np.asarray(row.get("boxes", []), float).reshape(-1, 4) / np.tile(
        [picture["fileColumns"], picture["fileRows"]], 2
    )
    picture["boxes"] = np.round(boxes if not picture["mirrored"] else _mirrored(boxes), 5).tolist()
    if str(row["path"]) in maps:
        heat_map = _map(maps[str(row["path"])])
        picture["map"] = packed(heat_map[:, ::-1] if picture["mirrored"] else heat_map)
        picture["mapShape"] = heat_map.shape
    return picture


def _mirrored(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 4) in shares of the file's sides as they lie in the mirrored image."""
    return np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)


def _map(heat_map: np.ndarray) -> np.ndarray:
    """Return a map in 0-1 as levels of 0 to 255, its longer side at most `MAP_SIDE`."""
    levels = np.round(255 * np.clip(np.nan_to_num(heat_map), 0, 1)).astype(np.uint16)
    scale = MAP_SIDE / max(levels.shape)
    if scale >= 1:
        return levels
    height, width = (max(1, round(side * scale)) for side in levels.shape)
    return cv2.resize(levels, (width, height), interpolation=cv2.INTER_AREA)


def _log(pictures: list[dict[str, Any]], exam: str) -> None:
    """Log what was guessed or is missing."""
    mirrored = sum(picture.get("mirrored", False) for picture in pictures)
    unreadable = sum("error" in picture for picture in pictures)
    reduced = sum("error" not in picture and picture["rows"] < picture["fileRows"] for picture in pictures)
    log.info(
        "viewer: of %d images %d are reduced to fit, %d mirrored to hang the breasts back to back, "
        "%d cannot be read%s",
        len(pictures), reduced, mirrored, unreadable, f"; examinations by column {exam}" if exam else "",
    )  # fmt: skip


def _json(data: Any) -> str:
    """Return JSON that cannot end the script that contains it, whatever texts it holds."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
