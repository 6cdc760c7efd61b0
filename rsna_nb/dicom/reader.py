"""One DICOM file -> one picture: decoded, windowed, upright in brightness, cropped to the breast, sized.

Only the pixels that are needed are read: the breast is looked for in a picture of about 1/16 of the file's size,
and then decoded at the coarsest level that fills the size asked for. decode.py decodes, pyramid.py halves,
brightness.py windows, crop.py finds the breast. All arrays are (rows, columns).
"""

import warnings
from dataclasses import dataclass
from math import log2
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.tag import Tag

from rsna_nb.dicom.crop import Breast, find_breast, fit
from rsna_nb.dicom.decode import MAX_PIXELS, TRANSFER_SYNTAXES, open_pyramid
from rsna_nb.dicom.pyramid import Pyramid, stored_range
from rsna_nb.dicom.voi import (
    UnreadableError,
    Voi,
    declared_voi,
    first_number,
    modality_values,
    padding_mask,
    percentile_voi,
    range_voi,
    to_brightness,
)

SEARCH_SIDE = 200  # pixels that the longer side has at least in the picture in which the breast is looked for
DEFERRED = 1_000_000  # bytes: larger elements stay on the disk until they are asked for
ALLOWED = {
    "Rows": range(1, 65536),
    "Columns": range(1, 65536),
    "BitsAllocated": (8, 16),
    "BitsStored": range(1, 17),
    "HighBit": range(16),
    "PixelRepresentation": (0, 1),
}

Box = tuple[int, int, int, int]  # x_min, y_min, x_max, y_max, half open


class DicomError(ValueError):
    """A file that is not a readable mammogram: `path`, and the `reason` in words."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Reading:
    """A picture (float32, (height, width), 0-1) and what was found and decided on the way to it.

    `window` says which VOI transformation was applied; `bits` is the number of bits of the stored range; the
    picture was made from the file's at 1/2^`level`; `crop` is (x_min, y_min, x_max, y_max) in stored pixels, half open.
    """

    picture: np.ndarray
    transfer_syntax: str
    photometric: str
    window: str
    bits: int
    rows: int
    columns: int
    level: int
    crop: Box


def read_mammogram(path: str | Path, img_size: int | tuple[int, int] | list[int]) -> np.ndarray:
    """The mammogram in a DICOM file, cropped to the breast and fitted into `img_size`.

    Parameters
    ----------
    path
        A single-frame greyscale DICOM file: uncompressed, RLE, JPEG, JPEG lossless, JPEG-LS or JPEG 2000.
    img_size
        Side of a square, or (height, width), in pixels.

    Returns
    -------
    float32 (height, width) in 0-1: air 0, tissue bright, aspect kept, centred, zero padded.

    Raises
    ------
    DicomError
        For anything that is not a readable mammogram, with the reason. What it quotes of the file, which may name a
        person, stands behind the reason's first colon.
    """
    return read(path, img_size).picture


def read(path: str | Path, img_size: int | tuple[int, int] | list[int]) -> Reading:
    """As `read_mammogram`, with what was found on the way."""
    shape = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that the code below judges itself
        try:
            return read_frame(read_dataset(path), shape)
        except UnreadableError as error:
            raise DicomError(path, str(error)) from error
        except MemoryError as error:
            raise DicomError(path, "it asks for more memory than there is") from error
        except (OSError, NotImplementedError, BytesLengthException) as error:  # an element that cannot be converted
            raise DicomError(path, f"cannot be read: {error}") from error
        except Exception as error:
            raise DicomError(path, f"defective, in a way not foreseen: {type(error).__name__}: {error}") from error


def read_dataset(path: str | Path) -> pydicom.Dataset:
    """The file's data set, checked for being one grey frame; its pixels stay on the disk until they are asked for."""
    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID", "")
        if not isinstance(syntax, pydicom.uid.UID) or syntax not in TRANSFER_SYNTAXES:
            raise UnreadableError(f"unsupported transfer syntax: {getattr(syntax, 'name', syntax) or 'absent'}")
        dataset = pydicom.dcmread(path, defer_size=DEFERRED)
        check_frame(dataset)
    except (UnreadableError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UnreadableError("the file is missing") from error
    except InvalidDicomError as error:
        empty = Path(path).stat().st_size == 0
        raise UnreadableError("the file is empty" if empty else "not a DICOM file") from error
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error}") from error
    except Exception as error:  # pydicom's are of many kinds
        raise UnreadableError(f"defective header: {error}") from error
    return dataset


def check_frame(dataset: pydicom.Dataset) -> None:
    """Raise `UnreadableError` unless the data set holds one grey frame of 8 or 16 bits and a sane size."""
    if "PixelData" not in dataset:
        raise UnreadableError("no PixelData (7FE0,0010): cut off, or not an image")
    photometric = dataset.get("PhotometricInterpretation", "absent")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableError(f"not a greyscale image: PhotometricInterpretation (0028,0004) is {photometric}")
    for keyword in ("SamplesPerPixel", "NumberOfFrames"):
        if first_number(dataset, keyword) not in (None, 1):
            raise UnreadableError(f"{keyword} {Tag(keyword)} must be 1: it is {dataset[keyword].value}")
    for keyword, allowed in ALLOWED.items():
        value = dataset.get(keyword)
        if not isinstance(value, int) or value not in allowed:
            words = " or ".join(map(str, allowed)) if len(allowed) == 2 else f"{allowed[0]} to {allowed[-1]}"
            raise UnreadableError(f"{keyword} {Tag(keyword)} must be {words}: it is {value}")
    if dataset.BitsStored > dataset.BitsAllocated:
        raise UnreadableError(f"BitsStored is {dataset.BitsStored}, more than BitsAllocated, {dataset.BitsAllocated}")
    if dataset.Rows * dataset.Columns > MAX_PIXELS:
        raise UnreadableError(f"{dataset.Rows} Rows of {dataset.Columns} Columns: no mammogram is so large")


def read_frame(dataset: pydicom.Dataset, shape: tuple[int, int]) -> Reading:
    """The frame of a checked data set."""
    pyramid = open_pyramid(dataset)
    search_level = search_level_of(pyramid.shape)
    breast, declared, rough = search(pyramid, search_level, dataset)
    crop = stored_box(breast, search_level, pyramid.shape)
    level = min(search_level, level_for(crop, shape))
    box, mask = cut_out(pyramid.level(level), breast, search_level - level)

    values, padding = modality_values(box, dataset), padding_mask(box, dataset)
    voi = declared if declared.apply else range_voi(values, mask, padding, declared) or rough
    bright = to_brightness(values, dataset, voi, padding)
    picture = fit(np.multiply(bright, mask, out=bright), shape)
    if not picture.max() > 0:  # so written, NaN does not pass
        raise UnreadableError(f"nothing is left to see: the header's rescaling or window ({voi.name}) is at fault")
    rows, columns = pyramid.shape
    return Reading(
        picture=picture,
        transfer_syntax=dataset.file_meta.TransferSyntaxUID.name,
        photometric=dataset.PhotometricInterpretation,
        window=voi.name,
        bits=pyramid.bits,
        rows=rows,
        columns=columns,
        level=level,
        crop=crop,
    )


def search_level_of(shape: tuple[int, int]) -> int:
    """The coarsest level at which the longer side of a picture of `shape` has `SEARCH_SIDE` pixels, or 0."""
    return max(0, int(log2(max(shape) / SEARCH_SIDE)))


def search(pyramid: Pyramid, level: int, dataset: pydicom.Dataset) -> tuple[Breast, Voi, Voi]:
    """The breast in the picture at `level`, the file's VOI transformation and the one that the breast was found with.

    The first has no `apply` where the file has none or where it shows nothing.
    """
    stored = pyramid.level(level)
    if stored.min() == stored.max():
        raise UnreadableError(f"every pixel has the same value, {stored.min()}")
    values, padding = modality_values(stored, dataset), padding_mask(stored, dataset)
    declared = declared_voi(dataset, np.array(stored_range(pyramid.bits, pyramid.signed)))
    if not declared.shows(values):
        declared = Voi(declared.name)
    rough = declared if declared.apply else percentile_voi(values, padding, declared)
    breast = find_breast(to_brightness(values, dataset, rough, padding))
    if breast is None:
        raise UnreadableError("no tissue found: the whole image is as dark as air")
    return breast, declared, rough


def stored_box(breast: Breast, level: int, shape: tuple[int, int]) -> Box:
    """The breast's box in pixels of the whole picture of `shape`, from that at `level`."""
    x_min, y_min, x_max, y_max = (side << level for side in breast.box)
    return x_min, y_min, min(x_max, shape[1]), min(y_max, shape[0])


def level_for(crop: Box, shape: tuple[int, int]) -> int:
    """The coarsest level at which the crop has at least the pixels that it will have in a picture of `shape`."""
    x_min, y_min, x_max, y_max = crop
    reduction = max((y_max - y_min) / shape[0], (x_max - x_min) / shape[1])
    return max(0, int(log2(reduction)))


def cut_out(picture: np.ndarray, breast: Breast, finer: int) -> tuple[np.ndarray, np.ndarray]:
    """The breast's box, and its mask of 0 and 1, in a picture `finer` levels below the one it was found in."""
    x_min, y_min, x_max, y_max = breast.box
    box = picture[y_min << finer : y_max << finer, x_min << finer : x_max << finer]
    mask = cv2.resize(breast.mask[y_min:y_max, x_min:x_max], box.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return box, mask
