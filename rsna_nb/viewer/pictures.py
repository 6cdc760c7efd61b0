"""One file -> the picture that is embedded in the page: stored values, how to show them, and what the header says.

Values are uint16 (rows, columns), the stored ones less the smallest of the stored range. They are packed without loss:
differences to the left neighbour, their sign in the lowest bit; all high bytes, then all low bytes; zlib; base64. A
mammogram then takes 0.3 to 0.45 bytes a pixel before base64, and as PNG a quarter more. Browsers inflate zlib
themselves, and no canvas is read, which some browsers answer with noise to hinder fingerprinting.
"""

import base64
import zlib
from dataclasses import dataclass
from math import sqrt
from typing import Any

import cv2
import numpy as np

from rsna_nb import dicom
from rsna_nb.dicom import headers

FEWEST_BYTES = 0.25  # packed bytes of a pixel, of the files that pack best
SMALLEST = 128  # pixels of a picture, however small its share of the page
HEADER = [*headers.NUMBERS, *headers.CODES, *headers.COUNTS.values()]
INNER_SIDE = {"R": "right", "L": "left"}  # where the chest wall is when the breasts are hung back to back


@dataclass(frozen=True)
class Task:
    """A file to embed. `laterality` is "R" or "L"; `size` is the most bytes of the picture in the page."""

    path: str
    laterality: str
    size: float


def embedded(task: Task) -> dict[str, Any]:
    """Read a file for the page.

    Returns
    -------
    What viewer.js reads of a picture. `pixels` are the packed values, not longer than the task's size, for which the
    picture is reduced if need be. A file that cannot be read has its `error` instead.
    """
    facts = _facts(task.path)
    try:
        whole, values = _fitting(task)
    except dicom.DicomError as error:
        return {"error": dicom.without_text(error.reason), "facts": facts}
    mirrored = bool(whole.chest_wall) and whole.chest_wall != INNER_SIDE[task.laterality]
    display = whole.display
    return {
        "pixels": packed(values[:, ::-1] if mirrored else values),
        "rows": values.shape[0], "columns": values.shape[1],
        "fileRows": whole.rows, "fileColumns": whole.columns, "aspect": whole.aspect,
        "bits": whole.bits, "smallest": whole.smallest, "mirrored": mirrored,
        "low": display.low - whole.smallest, "high": display.high - whole.smallest, "falling": display.falling,
        "curve": None if display.curve is None else np.round(display.curve, 4).tolist(),
        "padding": display.padding and [value - whole.smallest for value in display.padding],
        "window": display.name.split(" (")[0],  # the brackets may hold text from the header
        "notes": [f"{note}: {dicom.NOTES[note]}" if note in dicom.NOTES else note for note in whole.notes],
        "facts": facts,
    }  # fmt: skip


def packed(values: np.ndarray) -> str:
    """Pack uint16 values (rows, columns) without loss, as the module's docstring says."""
    left = np.diff(values.astype(np.uint16), axis=1, prepend=np.uint16(0)).view(np.int16)
    folded = ((left << 1) ^ (left >> 15)).view(np.uint16)
    planes = (folded >> 8).astype(np.uint8).tobytes() + folded.astype(np.uint8).tobytes()
    # Noise has no repeated strings: looking for runs alone takes a third of the time and packs better.
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    return base64.b64encode(packer.compress(planes) + packer.flush()).decode()


def _fitting(task: Task) -> tuple[dicom.WholePicture, np.ndarray]:
    """Read the largest picture that packs into the task's size."""
    pixels = max(SMALLEST, task.size * 3 / 4 / FEWEST_BYTES)
    whole = dicom.read_whole(task.path, pixels)
    values = (whole.stored - whole.smallest).astype(np.uint16)
    while True:
        reduced = _reduced(values, pixels)
        size = len(packed(reduced))
        if size <= task.size or reduced.size <= SMALLEST:
            return whole, reduced
        pixels = min(pixels, reduced.size) * min(0.95, task.size / size)


def _reduced(values: np.ndarray, pixels: float) -> np.ndarray:
    """Reduce an image to so many pixels by averaging; return it unchanged if it has no more."""
    scale = sqrt(pixels / values.size)
    if scale >= 1:
        return values
    height, width = (max(1, int(side * scale)) for side in values.shape)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)


def _facts(path: str) -> dict[str, str]:
    """Return what the header says, by attribute: the words and numbers that `headers` allows, and no other text."""
    row = headers.header(path)
    found = {name: row.get(name, "absent") for name in ("transfer_syntax", *HEADER)}
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in found.items()
            if value not in ("absent", "") and value == value}  # fmt: skip
