"""One file -> one image: decoded, windowed, air dark, cropped to the breast and resized.

Only the pixels that are needed are decoded. The breast is located in a reduced image whose longer side has 200 to 399
pixels. Then its bounding box is decoded at the coarsest resolution that still fills the requested size.

source.py opens the file: dataset.py reads the header of a DICOM file and decode.py its pixels; raster.py reads the
other formats. pyramid.py halves the pixels, voi.py converts them to brightness and crop.py finds the breast. All arrays
are (rows, columns).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pydicom
from pydicom.errors import BytesLengthException

from rsna_nb.dicom import first_place
from rsna_nb.dicom.crop import Breast, find_breast
from rsna_nb.dicom.errors import DicomError, UnreadableError
from rsna_nb.dicom.fitting import fit, placement, shape_of
from rsna_nb.dicom.polarity import Air, declares_inverted, find_air
from rsna_nb.dicom.purpose import purpose_of
from rsna_nb.dicom.pyramid import Pyramid, level_for, stored_range
from rsna_nb.dicom.reading import Box, Reading
from rsna_nb.dicom.ready import is_ready
from rsna_nb.dicom.source import Frame, open_frame
from rsna_nb.dicom.voi import Voi, declared_voi, modality_values, padding_mask, percentile_voi, range_voi, to_brightness

if TYPE_CHECKING:
    from rsna_nb.config import ImageRecipe  # worker processes do not need it, and its import takes half a second

SEARCH_SIDE = 200  # the longer side of the image that is searched for the breast has 200 to 399 pixels
SMALLEST_SIDE = 24  # pixels of the file
SMALLEST_SHARE = 0.005  # of the frame: half of that of the smallest breast in the tests


def read_mammogram(path: str | Path, img_size: int | Sequence[int], recipe: "ImageRecipe | None" = None) -> np.ndarray:
    """Read the mammogram in a file, cropped to the breast and fitted into `img_size`.

    Parameters
    ----------
    path
        A file with one greyscale picture, of a format that its first bytes tell: DICOM (uncompressed, RLE, JPEG, JPEG
        lossless, JPEG-LS or JPEG 2000), PNG, JPEG, TIFF or PGM.
    img_size
        Side of a square, or (height, width), in pixels.
    recipe
        The preprocessing; None is "breast", the default, which this docstring describes. For "rsna-first-place" see
        first_place.py.

    Returns
    -------
    float32 (height, width) in 0-1. Air is 0 and dense tissue bright. The aspect ratio is kept, and zeros fill the rest
    on both sides.

    Raises
    ------
    DicomError
        If the file is not a readable mammogram. It has the file's `path` and the `reason`.
    ValueError
        If `img_size` is not one or two positive whole numbers, or if the recipe is not known.
    DetectorError
        If the recipe names a breast detector that cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> from rsna_nb import synthetic
    >>> folder = synthetic.generate(tempfile.mkdtemp(), patients=2, prevalence=0.5, scale=0.05, workers=1)
    >>> path = sorted(folder.glob("train_images/*/*.dcm"))[0]
    >>> picture = read_mammogram(path, (128, 64))
    >>> picture.shape, picture.dtype.name, float(picture.min())
    ((128, 64), 'float32', 0.0)
    >>> read_mammogram("nowhere.dcm", 64)
    Traceback (most recent call last):
    rsna_nb.dicom.errors.DicomError: nowhere.dcm: the file is missing
    """
    return read(path, img_size, recipe).picture


def read(path: str | Path, img_size: int | Sequence[int], recipe: "ImageRecipe | None" = None) -> Reading:
    """Read a mammogram as `read_mammogram` does; return the image and how it was made."""
    shape, read_open = shape_of(img_size), reader_of(recipe)
    with errors_of(path):
        return read_open(open_frame(path), shape)


@contextmanager
def errors_of(path: str | Path) -> Iterator[None]:
    """Raise whatever goes wrong while a file is read as a `DicomError` with its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of unusual values, which the readers check themselves
        try:
            yield
        except UnreadableError as error:
            raise DicomError(path, str(error)) from error
        except MemoryError as error:  # a damaged length can ask for 4 GiB
            raise DicomError(path, "reading it needs more memory than there is") from error
        except (OSError, NotImplementedError, BytesLengthException) as error:  # an element that cannot be converted
            raise DicomError(path, f"cannot be read: {error}") from error
        except Exception as error:
            raise DicomError(path, f"unexpected error: {type(error).__name__}: {error}") from error


def reader_of(recipe: "ImageRecipe | None") -> Callable[[Frame, tuple[int, int]], Reading]:
    """Return the function that turns an open file into an image of (height, width) by a recipe.

    Raises
    ------
    DetectorError
        If the recipe's breast detector cannot be used.
    ValueError
        If there is no such recipe.
    """
    if recipe is None or recipe.name == "breast":
        return _read_breast
    if recipe.name == first_place.NAME:
        return partial(first_place.read_frame, detector=first_place.detector_of(recipe))
    raise ValueError(f"the image recipe must be breast or {first_place.NAME}, not {recipe.name!r}")


def _read_breast(frame: Frame, shape: tuple[int, int]) -> Reading:
    """Read an open file by the recipe "breast"."""
    if is_ready(frame, shape):
        return _decoded(frame)
    reading = read_frame(frame.pyramid, frame.dataset, frame.syntax, shape)
    window, notes = frame.window or reading.window, (*reading.notes, *frame.notes)
    return replace(reading, format=frame.format, window=window, notes=notes)


def _decoded(frame: Frame) -> Reading:
    """Return the reading of a picture that is cropped, masked and sized already (`is_ready`): its levels, in 0-1."""
    bits, (rows, columns) = frame.pyramid.bits, frame.pyramid.shape
    picture = cv2.LUT(frame.pyramid.level(0), np.minimum(np.arange(256, dtype=np.float32) / (2**bits - 1), 1))
    return Reading(
        picture, frame.syntax, "MONOCHROME2", frame.window, bits, rows, columns, 0, (0, 0, columns, rows),
        frame.format, notes=frame.notes,
    )  # fmt: skip


@dataclass(frozen=True)
class Search:
    """What the search for the breast found in the image at `level`.

    Attributes
    ----------
    breast
        The breast's box and mask in that image.
    declared
        The VOI transformation that the file declares. It has no `apply` if the file declares none, or if the image
        would have one grey level.
    rough
        The transformation with which the breast was found: the declared one, else percentiles of the small image.
    inverted
        Large values are dark: as the header declares it, unless the image clearly shows that it is wrong.
    notes
        What is odd about the image, in the words of `NOTES`.
    """

    level: int
    breast: Breast
    declared: Voi
    rough: Voi
    inverted: bool
    notes: tuple[str, ...]

    def stored_box(self, shape: tuple[int, int]) -> Box:
        """Return the breast's box in pixels of the full frame of `shape`."""
        x_min, y_min, x_max, y_max = (side << self.level for side in self.breast.box)
        return x_min, y_min, min(x_max, shape[1]), min(y_max, shape[0])

    def cut_out(self, picture: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of an image at `level` in the breast's box, and the breast's mask of 0 and 1 in it."""
        x_min, y_min, x_max, y_max = self.breast.box
        finer = self.level - level
        box = picture[y_min << finer : y_max << finer, x_min << finer : x_max << finer]
        mask = cv2.resize(self.breast.mask[y_min:y_max, x_min:x_max], box.shape[::-1], interpolation=cv2.INTER_NEAREST)
        return box, mask

    def voi(self, values: np.ndarray, mask: np.ndarray, padding: np.ndarray | None) -> Voi:
        """Return the transformation of the image: the declared one, else the range of the values in the mask."""
        return self.declared if self.declared.apply else range_voi(values, mask, padding, self.declared) or self.rough


def search(pyramid: Pyramid, dataset: pydicom.Dataset) -> Search:
    """Find the breast in a small image of the frame; `UnreadableError` if the frame shows none."""
    level = max(0, int(log2(max(pyramid.shape) / SEARCH_SIDE)))
    stored = pyramid.level(level)
    if stored.min() == stored.max():
        raise UnreadableError(f"every pixel has the same value, {stored.min()}")
    values, padding = modality_values(stored, dataset), padding_mask(stored, dataset)
    declared = declared_voi(dataset, np.array(stored_range(pyramid.bits, pyramid.signed)), values)
    rough = declared if declared.apply else percentile_voi(values, padding, declared)
    inverted = declares_inverted(dataset)
    bright = to_brightness(values, inverted, rough, padding)
    air = find_air(bright)
    if air is Air.BRIGHT:
        inverted = not inverted
        bright = to_brightness(values, inverted, rough, padding)
    breast = find_breast(bright)
    if breast is None:
        raise UnreadableError("no tissue found: the whole image is as dark as air")
    _check_size(breast, pyramid.shape, level)
    turned = air is Air.BRIGHT or inverted != (dataset.PhotometricInterpretation == "MONOCHROME1")
    notes = ("turned",) * turned + ("no air",) * (air is Air.UNSEEN) + breast.notes
    return Search(level, breast, declared, rough, inverted, notes)


def _check_size(breast: Breast, shape: tuple[int, int], level: int) -> None:
    """Raise `UnreadableError` if the region that was found is too small for a breast."""
    x_min, y_min, x_max, y_max = breast.box
    height, width = (
        min(side << level, whole) for side, whole in zip((y_max - y_min, x_max - x_min), shape, strict=True)
    )
    if min(height, width) < SMALLEST_SIDE or height * width < SMALLEST_SHARE * shape[0] * shape[1]:
        raise UnreadableError(f"no breast found: the largest region brighter than air is {width} x {height} pixels")


def read_frame(pyramid: Pyramid, dataset: pydicom.Dataset, syntax: str, shape: tuple[int, int]) -> Reading:
    """Make an image of a frame. A reader of another format can call this.

    Parameters
    ----------
    pyramid
        The stored values.
    dataset
        States what the values mean. PhotometricInterpretation is enough.
    syntax
        Name of the file's format, for the reading's `transfer_syntax`.
    shape
        (height, width) of the image.

    Raises
    ------
    UnreadableError
        If the frame shows no breast.
    """
    found = unless_cropped(search(pyramid, dataset), pyramid.shape, shape)
    crop = found.stored_box(pyramid.shape)
    purpose = purpose_of(dataset)
    level = min(found.level, level_for(crop, shape, purpose.aspect))
    stored, mask = found.cut_out(pyramid.level(level), level)
    bright, voi = _brightness(stored, mask, dataset, found)
    np.multiply(bright, mask, out=bright)
    picture = bright if (bright.shape, purpose.aspect) == (shape, 1) else fit(bright, shape, purpose.aspect)
    if not picture.max() > 0:  # "not >" rather than "<=": a NaN, as a broken rescale slope makes it, fails too
        raise UnreadableError(f"the image is black: check the header's rescaling or window ({voi.name})")
    photometric = dataset.PhotometricInterpretation
    return Reading(
        picture, syntax, photometric, voi.name, pyramid.bits, *pyramid.shape, level, crop,
        aspect=purpose.aspect, laterality=purpose.laterality, view=purpose.view,
        notes=(*purpose.notes, *found.notes, *voi.notes),
    )  # fmt: skip


def _brightness(
    stored: np.ndarray, mask: np.ndarray, dataset: pydicom.Dataset, found: Search
) -> tuple[np.ndarray, Voi]:
    """Return stored values as brightness, float32 in 0-1, and the transformation: the declared one or the range."""
    padding = padding_mask(stored, dataset)
    if stored.dtype == np.uint8 and padding is None and found.declared.apply:
        levels = np.arange(256, dtype=np.uint8)[np.newaxis]  # a table of them takes half the time of windowing pixels
        table = to_brightness(modality_values(levels, dataset), found.inverted, found.declared, None)
        return cv2.LUT(stored, table.ravel()), found.declared
    values = modality_values(stored, dataset)
    voi = found.voi(values, mask, padding)
    return to_brightness(values, found.inverted, voi, padding), voi


def unless_cropped(found: Search, frame: tuple[int, int], shape: tuple[int, int]) -> Search:
    """Return the search, with the whole frame as the breast's box if the frame is already cropped and sized.

    It is if it fits `shape` (height, width) unscaled, and the breast with its margin spans the side that decides the
    scale. Such an image would be enlarged by a percent or two otherwise, and blurred for nothing.
    """
    mask = found.breast.mask
    *_, width, height = cv2.boundingRect(mask)
    sides = zip(frame, shape, (height, width), mask.shape, strict=True)
    if placement(frame, shape).scale != 1 or not any(own == side and a == b for own, side, a, b in sides):
        return found
    return replace(found, breast=replace(found.breast, box=(0, 0, mask.shape[1], mask.shape[0])))
