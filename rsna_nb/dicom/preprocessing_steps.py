"""The steps from a file to an image, with the image after each. reader.py takes the same steps and keeps the last."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rsna_nb.dicom import first_place
from rsna_nb.dicom.errors import DicomError, without_text
from rsna_nb.dicom.reader import read, read_mammogram, search, unless_cropped
from rsna_nb.dicom.reading import Reading
from rsna_nb.dicom.source import open_frame
from rsna_nb.dicom.voi import modality_values, padding_mask, to_brightness
from rsna_nb.system import workers

if TYPE_CHECKING:
    from rsna_nb.config import ImageRecipe

BRIGHTNESS = "brightness, 0-1"


@dataclass(frozen=True)
class Step:
    """The image (rows, columns) after a step: `name` describes the step, `unit` is the unit of the values."""

    name: str
    picture: np.ndarray
    unit: str = BRIGHTNESS


def reading_steps(path: str, img_size: int | Sequence[int], recipe: "ImageRecipe | None" = None) -> list[Step]:
    """Read a file and keep five images: stored values, windowed, air dark, cropped and masked, resized.

    The first three show the whole frame at the resolution that is read for `img_size`. The last one is what
    `read_mammogram` returns. With the recipe "rsna-first-place", the fourth image is cropped but not masked.

    Raises
    ------
    DicomError
        If the file is not a readable mammogram. The reason quotes no text from the file.
    """
    try:
        reading = read(path, img_size, recipe)  # checks the file, so that what follows need not
    except DicomError as error:
        raise DicomError(path, without_text(error.reason)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values of the header
        if recipe is None or recipe.name == "breast":
            return _steps_of(path, reading)
        return _first_place_steps(path, reading, recipe)


def _steps_of(path: str, reading: Reading) -> list[Step]:
    """Repeat the steps that led to `reading`, on the whole frame."""
    frame = open_frame(path)
    pyramid, dataset, level = frame.pyramid, frame.dataset, reading.level
    stored = pyramid.level(level)
    found = unless_cropped(search(pyramid, dataset), pyramid.shape, reading.picture.shape)
    values, padding = modality_values(stored, dataset), padding_mask(stored, dataset)
    box, mask = found.cut_out(values, level)
    voi = found.voi(box, mask, None if padding is None else found.cut_out(padding, level)[0])
    assert voi.apply is not None
    upright = to_brightness(values, found.inverted, voi, padding)
    window = reading.window.split(" (")[0]  # the brackets may hold text from the header
    size = f"1/{2**level} of its size" if level else "its full size"
    return [
        Step(f"stored: {reading.bits} bits, {size}", stored, "stored value"),
        Step(f"windowed: {window}", voi.apply(values)),
        Step(f"polarity: {reading.photometric}{', turned' if 'turned' in found.notes else ''}", upright),
        Step("cropped and masked", found.cut_out(upright, level)[0] * mask),
        Step("resized: {} x {}".format(*reading.picture.shape), reading.picture),
    ]


def _first_place_steps(path: str, reading: Reading, recipe: "ImageRecipe") -> list[Step]:
    """Repeat the steps of the recipe "rsna-first-place" that led to `reading`, on the whole frame."""
    found = first_place.examine(open_frame(path), first_place.detector_of(recipe))
    upright = np.clip(found.levels(found.stored) / 255, 0, 1)
    x_min, y_min, x_max, y_max = reading.crop
    return [
        Step(f"stored: {reading.bits} bits, its full size", found.stored, "stored value"),
        Step(f"windowed: {reading.window.split(' (')[0]}", 1 - upright if found.inverted else upright),
        Step(f"polarity: {reading.photometric}", upright),
        Step(f"cropped: {found.region.found_by}", upright[y_min:y_max, x_min:x_max]),
        Step("resized: {} x {}".format(*reading.picture.shape), reading.picture),
    ]


def pictures(paths: Sequence[str], img_size: int, recipe: "ImageRecipe | None" = None) -> dict[str, np.ndarray | str]:
    """Read files in parallel. Map each path to its image, or to the reason why the file cannot be read."""
    outcomes = workers.run(partial(picture, img_size=img_size, recipe=recipe), list(paths))
    return {path: outcome.reason if isinstance(outcome, workers.Death) else outcome for path, outcome in outcomes}


def picture(path: str, img_size: int, recipe: "ImageRecipe | None" = None) -> np.ndarray | str:
    """Read one file. Return its image, or the reason why it cannot be read, without text from the file."""
    try:
        return read_mammogram(path, img_size, recipe)
    except DicomError as error:
        return without_text(error.reason)
