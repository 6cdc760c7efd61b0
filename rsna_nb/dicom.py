"""One DICOM file -> one picture: decoded, windowed, upright in brightness, cropped to the breast, sized.

This module reads the file and decodes its pixels; brightness.py windows them and crop.py finds the breast.
All arrays are (rows, columns).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError

from rsna_nb.brightness import UnreadableError, to_brightness
from rsna_nb.crop import find_breast, fit, keep_breast

Decoder = Callable[[bytes], np.ndarray]
DECODERS: dict[str, Decoder] = {
    uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    uid.JPEG2000: imagecodecs.jpeg2k_decode,
    uid.JPEGLossless: imagecodecs.jpeg8_decode,
    uid.JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    uid.JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    uid.JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
}
END_OF_CODESTREAM = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000


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

    `window` says which VOI transformation was applied; `bits` is the number of bits of the stored range;
    `crop` is (x_min, y_min, x_max, y_max) in stored pixels, half open.
    """

    picture: np.ndarray
    transfer_syntax: str
    photometric: str
    window: str
    bits: int
    rows: int
    columns: int
    crop: tuple[int, int, int, int]


def read_mammogram(path: str | Path, img_size: int | tuple[int, int] | list[int]) -> np.ndarray:
    """The mammogram in a DICOM file, cropped to the breast and fitted into `img_size`.

    Parameters
    ----------
    path
        A single-frame greyscale DICOM file: uncompressed, RLE, JPEG lossless, JPEG-LS or JPEG 2000.
    img_size
        Side of a square, or (height, width), in pixels.

    Returns
    -------
    float32 (height, width) in 0-1: air 0, tissue bright, aspect kept, centred, zero padded.

    Raises
    ------
    DicomError
        For anything that is not a readable mammogram, with the reason.
    """
    return read(path, img_size).picture


def read(path: str | Path, img_size: int | tuple[int, int] | list[int]) -> Reading:
    """As `read_mammogram`, with what was found on the way."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that the code below judges itself
        try:
            dataset = read_dataset(path)
            stored, bits = stored_values(dataset)
            bright, window = to_brightness(stored, dataset, bits)
            breast = find_breast(bright)
            if breast is None:
                raise UnreadableError("no tissue found: the whole image is as dark as air")
            picture = fit(keep_breast(bright, breast), (height, width))
        except UnreadableError as error:
            raise DicomError(path, str(error)) from error
        except Exception as error:
            raise DicomError(path, f"{type(error).__name__}: {error}") from error
    return Reading(
        picture=picture,
        transfer_syntax=dataset.file_meta.TransferSyntaxUID.name,
        photometric=dataset.PhotometricInterpretation,
        window=window,
        bits=bits,
        rows=stored.shape[0],
        columns=stored.shape[1],
        crop=breast.box,
    )


def read_dataset(path: str | Path) -> pydicom.Dataset:
    """The file's data set, checked for being one greyscale frame with pixels; `UnreadableError` otherwise."""
    try:
        dataset = pydicom.dcmread(path)
    except FileNotFoundError as error:
        raise UnreadableError("the file is missing") from error
    except InvalidDicomError as error:
        empty = Path(path).stat().st_size == 0
        raise UnreadableError("the file is empty" if empty else "not a DICOM file") from error
    if "PixelData" not in dataset:
        raise UnreadableError("no PixelData (7FE0,0010): cut off, or not an image")
    if "TransferSyntaxUID" not in dataset.file_meta:
        raise UnreadableError("no TransferSyntaxUID (0002,0010)")
    photometric = dataset.get("PhotometricInterpretation", "absent")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or dataset.get("SamplesPerPixel", 1) != 1:
        raise UnreadableError(f"not a greyscale image: PhotometricInterpretation (0028,0004) is {photometric}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableError(f"{frames} frames: NumberOfFrames (0028,0008) must be 1")
    return dataset


def stored_values(dataset: pydicom.Dataset) -> tuple[np.ndarray, int]:
    """The stored pixels, (rows, columns) of integers, and the bits of their range.

    The range is BitsStored's unless a pixel lies above it (one RSNA patient has such pixels): then it is
    as many bits as hold the largest.
    """
    shape = (dataset.Rows, dataset.Columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    stored = decode_frame(dataset, syntax) if syntax.is_compressed else native_frame(dataset, syntax)
    if stored.shape != shape:
        raise UnreadableError(f"the codestream holds {stored.shape} pixels, the header says {shape}")
    bits = dataset.BitsStored
    if dataset.PixelRepresentation == 1:
        stored = sign_extended(stored, bits)
    else:
        stored = right_aligned(stored.view(np.dtype(f"u{stored.itemsize}")), dataset.HighBit + 1 - bits)
        bits = max(bits, int(stored.max()).bit_length())
    if stored.min() == stored.max():
        raise UnreadableError(f"every pixel has the same value, {stored.min()}")
    return stored, bits


def native_frame(dataset: pydicom.Dataset, syntax: uid.UID) -> np.ndarray:
    if dataset.BitsAllocated not in (8, 16):
        raise UnreadableError(f"BitsAllocated (0028,0100) is {dataset.BitsAllocated}, not 8 or 16")
    dtype = np.dtype(f"{'<' if syntax.is_little_endian else '>'}u{dataset.BitsAllocated // 8}")
    count = dataset.Rows * dataset.Columns
    found = len(dataset.PixelData)
    if found < count * dtype.itemsize:
        raise UnreadableError(f"PixelData is cut off: {found} of {count * dtype.itemsize} bytes")
    stored = np.frombuffer(dataset.PixelData, dtype, count).reshape(dataset.Rows, dataset.Columns)
    return stored.astype(dtype.newbyteorder("="))


def decode_frame(dataset: pydicom.Dataset, syntax: uid.UID) -> np.ndarray:
    if syntax not in DECODERS and syntax != uid.RLELossless:
        raise UnreadableError(f"transfer syntax {syntax.name} is not supported")
    codestream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == uid.RLELossless:
        return rle_frame(codestream, dataset)
    if END_OF_CODESTREAM not in codestream[-64:]:  # decoders return what they have got; trailing padding is legal
        raise UnreadableError("PixelData is cut off: the codestream has no end marker")
    try:
        return DECODERS[syntax](codestream)
    except RuntimeError as error:  # the base class of imagecodecs' own errors
        raise UnreadableError(f"defective {syntax.name} codestream: {error}") from error


def rle_frame(codestream: bytes, dataset: pydicom.Dataset) -> np.ndarray:
    """PS3.5 Annex G: one PackBits segment a byte of the sample, the most significant first."""
    dtype = np.dtype(f"u{dataset.BitsAllocated // 8}")
    return np.frombuffer(imagecodecs.dicomrle_decode(codestream, dtype), dtype).reshape(dataset.Rows, dataset.Columns)


def right_aligned(stored: np.ndarray, unused: int) -> np.ndarray:
    """The values without the `unused` low bits that HighBit (0028,0102) says are empty, where they are."""
    empty = 0 < unused < 8 * stored.itemsize and not (stored & (2**unused - 1)).any()
    return stored >> unused if empty else stored


def sign_extended(stored: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement of `bits` bits as a signed integer of the array's own width."""
    unused = 8 * stored.itemsize - bits
    shifted = np.left_shift(stored.view(np.dtype(f"i{stored.itemsize}")), unused)
    return np.right_shift(shifted, unused)
