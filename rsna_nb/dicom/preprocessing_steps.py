"""The way from a file to a picture, step by step, to look at. dicom.py does the same without stopping."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pydicom

from rsna_nb.dicom import reader as dicom
from rsna_nb.dicom.decode import open_pyramid
from rsna_nb.dicom.voi import modality_values, padding_mask, range_voi, to_brightness
from rsna_nb.system import workers

BRIGHTNESS = "brightness, 0-1"


@dataclass(frozen=True)
class Step:
    """A picture (rows, columns) on the way: `name` says what was done last, `unit` what its values are."""

    name: str
    picture: np.ndarray
    unit: str = BRIGHTNESS


def reading_steps(path: str, img_size: int | list[int]) -> list[Step]:
    """Stored values, windowed, upright in brightness, cropped to the breast, sized.

    The first three are the whole picture, at the resolution that is read for `img_size`. The last is what
    `dicom.read_mammogram` returns, which raises `DicomError` for a file that is not a readable mammogram.
    """
    try:
        reading = dicom.read(path, img_size)  # finds whatever is wrong with the file
    except dicom.DicomError as error:
        raise dicom.DicomError(path, without_text(error.reason)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote what they warn of
        return steps_of(dicom.read_dataset(path), reading)


def steps_of(dataset: pydicom.Dataset, reading: dicom.Reading) -> list[Step]:
    """The steps that led to `reading`."""
    pyramid = open_pyramid(dataset)
    search_level = dicom.search_level_of(pyramid.shape)
    breast, declared, rough = dicom.search(pyramid, search_level, dataset)
    stored = pyramid.level(reading.level)
    padding = padding_mask(stored, dataset)
    values = modality_values(stored, dataset)
    finer = search_level - reading.level
    box, mask = dicom.cut_out(values, breast, finer)
    hidden = None if padding is None else dicom.cut_out(padding, breast, finer)[0]
    voi = declared if declared.apply else range_voi(box, mask, hidden, declared) or rough
    assert voi.apply is not None
    upright = to_brightness(values, dataset, voi, padding)
    cropped = dicom.cut_out(upright, breast, finer)[0] * mask
    window = voi.name.split(" (")[0]  # in brackets may stand text from the header
    size = f"1/{2**reading.level} of its size" if reading.level else "its full size"
    return [
        Step(f"stored: {reading.bits} bits, {size}", stored, "stored value"),
        Step(f"windowed: {window}", voi.apply(values)),
        Step(f"upright: {reading.photometric}", upright),
        Step("cropped and masked", cropped),
        Step("sized: {} x {}".format(*reading.picture.shape), reading.picture),
    ]


def pictures(paths: Sequence[str], img_size: int) -> dict[str, np.ndarray | str]:
    """Each file's picture, read in parallel, or in words why it has none."""
    outcomes = dict(workers.run(partial(picture, img_size=img_size), list(paths)))
    return {
        path: outcome.reason if isinstance(outcome, workers.Death) else outcome for path, outcome in outcomes.items()
    }


def picture(path: str, img_size: int) -> np.ndarray | str:
    try:
        return dicom.read_mammogram(path, img_size)
    except dicom.DicomError as error:
        return without_text(error.reason)


def without_text(reason: str) -> str:
    """A reason up to its colon, behind which text from the header may be quoted."""
    return reason.split(":")[0]
