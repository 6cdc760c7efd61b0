"""The preprocessing of the RSNA challenge's winner, for detectors that were trained on such images.

The order of the steps, each as in the winner's published code (github.com/dangnh0611/kaggle_rsna_breast_cancer):

1. The whole frame is decoded at full size. Stored values are used as they are, without modality LUT or padding mask.
2. To find the breast, the range of the frame is scaled to 0-255 (MONOCHROME1 inverted) and fitted into 416 x 416
   (roi.py).
3. The stored values are cropped to the breast's box. There is no mask: labels beside the breast remain.
4. The first window of the header, LINEAR, LINEAR_EXACT or SIGMOID, maps them to 0-255; without a window, their range is
   scaled to 0-255. MONOCHROME1 is inverted.
5. The crop is resized by bilinear interpolation without antialiasing and centred; zeros fill the rest. Grey levels are
   rounded down.

The winner decodes JPEG 2000 and JPEG Lossless files on a GPU, with a library that takes center and width as 16-bit
floating-point numbers: 2049 becomes 2048 and 4095 becomes 4096. This is repeated here. As in the winner's code,
PresentationLUTShape is not read, and bright air is not recognised. These details differ:

- The detector computes in 32 bits, not 16.
- Stored values above 32767, which become negative in the winner's 16-bit integers, are kept.
- A frame or a crop of a single value is refused, where the winner scores a black image or stops.
- A window that cannot be used is replaced by the range, where the winner's program stops.
- Pixels that are not square are resampled to square ones.

A file that is not DICOM has no window.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pydicom import Dataset, uid

from rsna_nb.dicom.elements import first_number, is_stated
from rsna_nb.dicom.errors import UnreadableError
from rsna_nb.dicom.fitting import placement
from rsna_nb.dicom.purpose import purpose_of
from rsna_nb.dicom.reading import Reading
from rsna_nb.dicom.roi import Region, find_region, load_detector
from rsna_nb.dicom.source import Frame
from rsna_nb.dicom.voi import Voi
from rsna_nb.dicom.yolox import Yolox

if TYPE_CHECKING:
    from rsna_nb.config import ImageRecipe

NAME = "rsna-first-place"
HALF_PRECISION = (uid.JPEG2000Lossless, uid.JPEGLosslessSV1)  # transfer syntaxes whose windows are rounded to 16 bits


def detector_of(recipe: "ImageRecipe") -> Yolox | None:
    """Load the recipe's breast detector, None if it names none; `DetectorError` if it cannot be used."""
    return load_detector(recipe.detector) if recipe.detector else None


@dataclass(frozen=True)
class Findings:
    """What the preprocessing needs to know of a frame.

    Attributes
    ----------
    stored
        The stored values, integers (rows, columns), at full size.
    inverted
        Whether large values are dark (MONOCHROME1).
    region
        The breast's box, and how it was found.
    voi
        The VOI transformation of stored values, here to 0-255.
    aspect
        Height of a pixel divided by its width.
    """

    stored: np.ndarray
    inverted: bool
    region: Region
    voi: Voi
    aspect: float

    @property
    def crop(self) -> np.ndarray:
        """The stored values in the breast's box."""
        x_min, y_min, x_max, y_max = self.region.box
        return self.stored[y_min:y_max, x_min:x_max]

    def levels(self, stored: np.ndarray) -> np.ndarray:
        """Map stored values to float32 grey levels in 0-255, tissue bright."""
        return _bright(stored, self.voi, self.inverted)


def examine(frame: Frame, detector: Yolox | None) -> Findings:
    """Find the breast in an open file, and the VOI transformation of its stored values.

    Raises
    ------
    UnreadableError
        If all pixels of the frame or of the crop have the same value.
    """
    stored = frame.pyramid.level(0)
    inverted = frame.dataset.PhotometricInterpretation == "MONOCHROME1"
    aspect = purpose_of(frame.dataset).aspect
    region = find_region(_bright(stored, _range(stored), inverted), detector, aspect)
    x_min, y_min, x_max, y_max = region.box
    declared = window_of(frame.dataset) if frame.format == "DICOM" else Voi("none")
    voi = declared if declared.apply else _range(stored[y_min:y_max, x_min:x_max]).instead_of(declared.name)
    return Findings(stored, inverted, region, voi, aspect)


def _bright(stored: np.ndarray, voi: Voi, inverted: bool) -> np.ndarray:
    """Map stored values to float32 grey levels in 0-255; `inverted`: large values are dark."""
    assert voi.apply is not None
    levels = voi.apply(stored.astype(np.float32))
    return np.subtract(255, levels, out=levels) if inverted else levels


def read_frame(frame: Frame, shape: tuple[int, int], detector: Yolox | None) -> Reading:
    """Make an image of (height, width) from an open file.

    Returns
    -------
    The reading. Its picture is in 0-1 in steps of 1/255. Its level is 0, because the frame is read at full size.

    Raises
    ------
    UnreadableError
        If all pixels have the same value, or the window makes the image black.
    """
    found, purpose = examine(frame, detector), purpose_of(frame.dataset)
    picture = fitted(found.levels(found.crop), shape, found.aspect)
    if not picture.max() > 0:
        raise UnreadableError(f"the image is black: check the header's window ({found.voi.name})")
    how = {"Otsu": ("otsu",) if detector else (), "whole frame": ("whole frame",)}.get(found.region.found_by, ())
    notes = (*purpose.notes, *how, *found.voi.notes, *frame.notes)
    return Reading(
        picture, frame.syntax, frame.dataset.PhotometricInterpretation, found.voi.name, frame.pyramid.bits,
        *frame.pyramid.shape, 0, found.region.box, frame.format, found.aspect, purpose.laterality, purpose.view, notes,
    )  # fmt: skip


def fitted(levels: np.ndarray, shape: tuple[int, int], aspect: float = 1.0) -> np.ndarray:
    """Resize grey levels in 0-255 to `shape`, round them down, and return them in 0-1, float32.

    `aspect` is the height of a pixel divided by its width.
    """
    at = placement((levels.shape[0], levels.shape[1]), shape, aspect, rounded=False)
    inner = cv2.resize(levels, (at.width, at.height), interpolation=cv2.INTER_LINEAR)
    picture = np.zeros(shape, np.float32)
    picture[at.top : at.top + at.height, at.left : at.left + at.width] = np.floor(np.clip(inner, 0, 255))
    return np.divide(picture, 255, out=picture)


def window_of(dataset: Dataset) -> Voi:
    """Return the header's first window. If it cannot be used, it has a name but no `apply`; "none" if there is none."""
    center, width = first_number(dataset, "WindowCenter"), first_number(dataset, "WindowWidth")
    if center is None or width is None:
        return Voi("window" if is_stated(dataset, "WindowCenter", "WindowWidth") else "none")
    if dataset.file_meta.TransferSyntaxUID in HALF_PRECISION and max(abs(center), width) <= np.finfo(np.float16).max:
        center, width = float(np.float16(center)), float(np.float16(width))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    known = function if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else "unknown function"
    name = f"{known} {center:g} {width:g}"
    if known != function or width <= (1 if function == "LINEAR" else 0):
        return Voi(name)
    if function == "SIGMOID":
        return Voi(name, lambda values: _sigmoid(values, center, width))
    shift = (0.5, 1) if function == "LINEAR" else (0, 0)
    return Voi(name, lambda values: _linear(values, center - shift[0], width - shift[1]))


def _range(stored: np.ndarray) -> Voi:
    """Return the window from the smallest to the largest value."""
    low, high = int(stored.min()), int(stored.max())
    if low == high:
        raise UnreadableError(f"every pixel has the same value, {low}")
    return Voi(f"min-max {low} {high}", lambda values: _min_max(values, low, high))


# As in the winner's code, constants are computed in 64 bits and pixels in 32: levels are rounded down later, so that a
# rounding error could change one. The arrays are large, hence the operations in place.
def _min_max(values: np.ndarray, low: int, high: int) -> np.ndarray:
    levels = values - np.float32(low)
    levels /= np.float32(high - low)
    return np.multiply(levels, 255, out=levels)


def _linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    levels = values * np.float32(255 / width)
    levels += np.float32((0.5 - center / width) * 255)
    return np.clip(levels, 0, 255, out=levels)


def _sigmoid(values: np.ndarray, center: float, width: float) -> np.ndarray:
    levels = values - np.float32(center)
    levels *= np.float32(-4 / width)
    with np.errstate(over="ignore"):  # far below the center the exponential is infinite, and the level 0
        np.exp(levels, out=levels)
    levels += 1
    return np.divide(255, levels, out=levels)
