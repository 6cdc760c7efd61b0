"""A run's maps and what tests them -> everything that 08_explain shows, but for the figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from rsna_nb import dicom, metrics
from rsna_nb.evaluation import Evaluation, data_folder
from rsna_nb.explain import deletion, pointing
from rsna_nb.explain.geometry import Geometry
from rsna_nb.explain.maps import check_method, maps, read_pictures, scorer
from rsna_nb.metadata import MetadataError, load_metadata
from rsna_nb.notebook import Markdown, Unavailable, UnavailableError, attempt
from rsna_nb.runs import Run
from rsna_nb.system import write_arrays


def described(evaluation: Evaluation, method: str, flips: bool) -> Markdown:
    """Which run, judged on whom, how well it ranks their images, and how its maps are made."""
    check_method(method)
    auc = metrics.auc(evaluation.predictions["cancer"], evaluation.predictions["score"])
    over = "over four flips" if flips else "of the picture as it is"
    return Markdown(
        f"Run **{evaluation.run.id}**, {len(evaluation.predictions):,} images of its {evaluation.split} women, "
        f"AUC by image {auc:.3f}. Maps: {method}, {over}."
    )


@dataclass(frozen=True, eq=False)
class Explained:
    """Pictures (n, height, width, 1), their maps (n, height, width), and the known lesions' boxes (k, 4) in each.

    `rows` has a row a picture, with patient_id and image_id.
    """

    rows: pd.DataFrame
    images: np.ndarray
    heats: np.ndarray
    boxes: list[np.ndarray]


def explained(model: keras.Model, run: Run, rows: pd.DataFrame, method: str, flips: bool) -> Explained:
    """The maps of pictures of the store, of which `rows` has the column file; without boxes where none are known."""
    images = read_pictures(rows["file"])
    boxes = attempt(pointing.known_boxes, run, list(zip(rows["patient_id"], rows["image_id"], strict=True)))
    boxes = [np.empty((0, 4))] * len(rows) if isinstance(boxes, Unavailable) else boxes
    return Explained(rows, images, maps(model, images, method, flips), boxes)


def explained_kinds(
    model: keras.Model, run: Run, examples: Mapping[str, pd.DataFrame], method: str, flips: bool
) -> dict[str, Explained]:
    """`explained` of each kind of `evaluation.examples` that has pictures."""
    kinds = {kind: rows for kind, rows in examples.items() if len(rows)}
    return {kind: explained(model, run, rows, method, flips) for kind, rows in kinds.items()}


def curves(model: keras.Model, shown: Mapping[str, Explained], kind: str) -> deletion.Curves:
    """`deletion.curves` of the pictures of a kind; `UnavailableError` where there are none."""
    if kind not in shown:
        raise UnavailableError(f"there are no {kind}")
    return deletion.curves(scorer(model), shown[kind].images, shown[kind].heats)


def play(model: keras.Model, targets: pd.DataFrame, method: str, flips: bool) -> pd.DataFrame:
    """`pointing.play` of the store's pictures of `pointing.targets`."""
    images = read_pictures(targets["file"])
    return pointing.play(targets, images, maps(model, images, method, flips))


@dataclass(frozen=True, eq=False)
class InFile:
    """A file's whole picture in 0-1, perhaps reduced, a map (rows, columns) of its pixels, and boxes (k, 4) in them."""

    name: str
    picture: np.ndarray
    heat: np.ndarray
    boxes: np.ndarray


def in_file(run: Run, shown: Mapping[str, Explained]) -> InFile:
    """The first picture's map in the pixels of the DICOM file that it was made from.

    `UnavailableError` where the data's table lacks the image, or its file is gone or cannot be read.
    """
    if not shown:
        raise UnavailableError("there are no pictures")
    first = next(iter(shown.values()))
    patient_id, image_id = first.rows[["patient_id", "image_id"]].iloc[0]
    try:
        table = load_metadata(data_folder(run), check_files=False, mixed_breasts=run.config.mixed_breasts)
        path = table.set_index(["patient_id", "image_id"])["path"].get((patient_id, image_id))
        if path is None:
            raise UnavailableError(f"{data_folder(run)} has no image {patient_id}/{image_id}")
        reading = dicom.read(path, run.config.image_shape)
        whole = dicom.reading_steps(path, list(run.config.image_shape))[2].picture
    except (MetadataError, dicom.DicomError) as error:
        raise UnavailableError(str(error)) from error
    geometry = Geometry.of(reading, run.config.image_shape)
    boxes = geometry.to_file(first.boxes[0])
    return InFile(f"{patient_id}/{image_id}", whole, geometry.map_to_file(first.heats[0]), boxes)


def write_maps(run: Run, shown: Mapping[str, Explained]) -> Path:
    """explain/maps.npz in the run's folder: kind, patient_id, image_id and the map, float16, of each picture.

    `UnavailableError` where there are none.
    """
    if not shown:
        raise UnavailableError("there are no pictures")
    rows = pd.concat([one.rows.assign(kind=kind) for kind, one in shown.items()])
    arrays = {name: rows[name].to_numpy(str) for name in ("kind", "patient_id", "image_id")}
    path = run.path / "explain" / "maps.npz"
    write_arrays(path, arrays | {"maps": np.concatenate([one.heats for one in shown.values()]).astype(np.float16)})
    return path
