"""The results of 08_explain for a run, without the plots: heat maps, and the tests of these maps."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from rsna_nb import dicom, inference, metrics
from rsna_nb.evaluation import Evaluation, data_folder, plain
from rsna_nb.explain import deletion, pointing
from rsna_nb.explain.breasts import ExplainedBreast, boxes_of, breasts_of, maps_in_breasts
from rsna_nb.explain.geometry import Geometry
from rsna_nb.explain.maps import check_method, heat_maps
from rsna_nb.inference import read_images
from rsna_nb.metadata import MetadataError, load_metadata
from rsna_nb.notebook import Markdown, Unavailable, UnavailableError
from rsna_nb.runs import Run
from rsna_nb.system import write_arrays


def describe(evaluation: Evaluation, method: str, flips: bool) -> Markdown:
    """A sentence that names the run, the women it is evaluated on, its AUC and the kind of its maps.

    Raises `ValueError` if the method is not known.
    """
    check_method(method)
    unit = "breast" if metrics.scores_breasts(evaluation.predictions) else "image"
    scored = evaluation.breasts if unit == "breast" else evaluation.predictions
    auc = metrics.auc(scored["cancer"], scored["score"])
    over = "mean over four flips" if flips else "of the image as it is"
    return Markdown(
        f"Run **{evaluation.run.id}**, {len(evaluation.predictions):,} images of its {evaluation.split} women, "
        f"AUC by {unit} {auc:.3f}. Maps: {method}, {over}."
    )


@dataclass(frozen=True, eq=False)
class ExplainedImages:
    """Images with their heat maps.

    Parameters
    ----------
    rows
        A row for each image, with patient_id and image_id.
    images, maps
        (n, height, width, 1) and (n, height, width), both in 0-1.
    boxes
        For each image the boxes of its known lesions, (k, 4) in its pixels.
    breasts
        For each image all images of its breast, if the run scored breasts; else empty.
    """

    rows: pd.DataFrame
    images: np.ndarray
    maps: np.ndarray
    boxes: list[np.ndarray]
    breasts: list[ExplainedBreast] = field(default_factory=list)


def explain_images(model: keras.Model, run: Run, rows: pd.DataFrame, method: str, flips: bool) -> ExplainedImages:
    """Compute the maps of the prepared images whose paths are in the column `file` of `rows`.

    If the run scored breasts, a map is what the image added to the score of its breast. Images without known lesions
    get no boxes.
    """
    images = read_images(rows["file"])
    boxes = boxes_of(run, rows)
    if run.config.unit == "image":
        return ExplainedImages(rows, images, heat_maps(model, images, method, flips), boxes)
    maps, breasts = breasts_of(model, run, rows, method, flips)
    return ExplainedImages(rows, images, maps, boxes, breasts)


def explain_examples(
    model: keras.Model, run: Run, examples: Mapping[str, pd.DataFrame], method: str, flips: bool
) -> dict[str, ExplainedImages]:
    """Apply `explain_images` to each kind of example ("hits", "misses", "false alarms") that has images."""
    return {kind: explain_images(model, run, rows, method, flips) for kind, rows in examples.items() if len(rows)}


def perturbation_curves(model: keras.Model, shown: Mapping[str, ExplainedImages], kind: str) -> deletion.Curves:
    """The deletion and insertion curves of the images of a kind; `UnavailableError` if there are none.

    If the run scored breasts, the curves are of the breast's score: one image is changed, the others stay.
    """
    if kind not in shown:
        raise UnavailableError(f"there are no {kind}")
    one = shown[kind]
    scores: list[deletion.Score] = [partial(inference.score, model)] * len(one.images)
    if one.breasts:
        rows = (row for _, row in one.rows.iterrows())
        scores = [breast.scorer(model, breast.place(row)) for breast, row in zip(one.breasts, rows, strict=True)]
    return deletion.perturb(scores, one.images, one.maps)


def pointing_game(model: keras.Model, run: Run, targets: pd.DataFrame, method: str, flips: bool) -> pd.DataFrame:
    """Compute the maps of `pointing.targets` of the run and count their hits (`pointing.count_hits`)."""
    images = read_images(targets["file"])
    if run.config.unit == "image":
        return pointing.count_hits(targets, images, heat_maps(model, images, method, flips))
    return pointing.count_hits(targets, images, maps_in_breasts(model, run, targets, method, flips))


def first_breast(shown: Mapping[str, ExplainedImages]) -> ExplainedBreast:
    """All images of the first example's breast; `UnavailableError` without one, or if the run scored images."""
    breasts = [breast for one in shown.values() for breast in one.breasts]
    if not breasts:
        raise UnavailableError("the run scored single images" if shown else "there are no images")
    return breasts[0]


@dataclass(frozen=True, eq=False)
class FileMap:
    """A heat map in the pixels of a file.

    Parameters
    ----------
    name
        patient_id/image_id.
    image
        The whole file's image in 0-1, perhaps reduced.
    heat_map
        (rows, columns) of the file.
    boxes
        Known lesions, (k, 4) in pixels of the file.
    """

    name: str
    image: np.ndarray
    heat_map: np.ndarray
    boxes: np.ndarray


def map_in_file(run: Run, shown: Mapping[str, ExplainedImages]) -> FileMap:
    """Convert the first image's map to the pixels of the file that the image was made from.

    Raises `UnavailableError` if the table lacks the image, or its file is missing or cannot be read.
    """
    if not shown:
        raise UnavailableError("there are no images")
    first = next(iter(shown.values()))
    patient_id, image_id = first.rows[["patient_id", "image_id"]].iloc[0]
    try:
        config = run.config
        table = load_metadata(data_folder(run), "train", False, config.mixed_breasts, config.table)
        path = table.set_index(["patient_id", "image_id"])["path"].get((patient_id, image_id))
        if path is None:
            raise UnavailableError(f"{data_folder(run)} has no image {patient_id}/{image_id}")
        shape, recipe = run.config.image_shape, run.image_recipe
        geometry = Geometry.of(dicom.read(path, shape, recipe), shape, recipe)
        # The third step is the whole file, windowed and with bright tissue, before it is cropped.
        whole = dicom.reading_steps(path, shape, recipe)[2].picture
    except (MetadataError, dicom.DicomError) as error:
        raise UnavailableError(str(error)) from error
    boxes = geometry.to_file(first.boxes[0])
    return FileMap(f"{patient_id}/{image_id}", whole, geometry.map_to_file(first.maps[0]), boxes)


def write_results(
    evaluation: Evaluation,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    shown: Mapping[str, ExplainedImages] | Unavailable,
) -> list[Path]:
    """Write explanation.json and maps.npz into a folder for this method below `explain` in the run's folder.

    Other results are never overwritten: if the folder holds some, a number is added to its name. The same results
    get the same folder.

    Parameters
    ----------
    evaluation
        The run and its evaluated images.
    settings
        method and flips, which name the folder, and everything else that the results depend on.
    results
        What else is written; `Unavailable` is written with its reason.
    shown
        The explained images of each kind. maps.npz has their kind, patient_id and image_id, and the maps in float16. It
        is not written if there are none.

    Returns
    -------
    list of Path
        The files written.
    """
    kinds = {} if isinstance(shown, Unavailable) else shown
    ids = {kind: one.rows["image_id"].tolist() for kind, one in kinds.items()}
    content = plain({"run": evaluation.run.id, "split": evaluation.split, **settings, "images": ids, **results})
    name = f"{settings['method']}{'-flips' if settings['flips'] else ''}"
    for number in itertools.count(1):  # the first folder that is free, or that has the same results
        folder = evaluation.run.path / "explain" / (name if number == 1 else f"{name}-{number}")
        path = folder / "explanation.json"
        if not path.is_file() or path.read_text().strip() == json.dumps(content, indent=2):
            break
    evaluation.run.write_json(str(path.relative_to(evaluation.run.path)), content)
    if not kinds:
        return [path]
    rows = pd.concat([one.rows.assign(kind=kind) for kind, one in kinds.items()])
    arrays = {column: rows[column].to_numpy(str) for column in ("kind", "patient_id", "image_id")}
    # float16 halves the file, and its error of 0.0005 is below what the eye sees.
    maps = np.concatenate([one.maps for one in kinds.values()]).astype(np.float16)
    write_arrays(folder / "maps.npz", arrays | {"maps": maps})
    return [path, folder / "maps.npz"]
