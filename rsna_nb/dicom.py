"""One DICOM file -> one picture: decoded, windowed, upright in brightness, cropped to the breast, sized.

The order of operations is DICOM's (PS3.3 C.11 and PS3.4 N.2): stored values, modality LUT, VOI LUT or
window, then the photometric interpretation. All arrays are (rows, columns).
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
from pydicom.pixels.processing import apply_modality_lut, apply_voi

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
                raise DicomError(path, "no tissue found: the whole image is as dark as air")
            picture = fit(keep_breast(bright, breast), (height, width))
        except DicomError:
            raise
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
    """The file's data set, checked for being one greyscale frame with pixels."""
    try:
        dataset = pydicom.dcmread(path)
    except FileNotFoundError as error:
        raise DicomError(path, "the file is missing") from error
    except InvalidDicomError as error:
        empty = Path(path).stat().st_size == 0
        raise DicomError(path, "the file is empty" if empty else "not a DICOM file") from error
    if "PixelData" not in dataset:
        raise DicomError(path, "no PixelData (7FE0,0010): cut off, or not an image")
    if "TransferSyntaxUID" not in dataset.file_meta:
        raise DicomError(path, "no TransferSyntaxUID (0002,0010)")
    photometric = dataset.get("PhotometricInterpretation", "absent")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or dataset.get("SamplesPerPixel", 1) != 1:
        raise DicomError(path, f"not a greyscale image: PhotometricInterpretation (0028,0004) is {photometric}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DicomError(path, f"{frames} frames: NumberOfFrames (0028,0008) must be 1")
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
        raise DicomError(dataset.filename, f"the codestream holds {stored.shape} pixels, the header says {shape}")
    bits = dataset.BitsStored
    if dataset.PixelRepresentation == 1:
        stored = sign_extended(stored, bits)
    else:
        stored = right_aligned(stored.view(np.dtype(f"u{stored.itemsize}")), dataset.HighBit + 1 - bits)
        bits = max(bits, int(stored.max()).bit_length())
    if stored.min() == stored.max():
        raise DicomError(dataset.filename, f"every pixel has the same value, {stored.min()}")
    return stored, bits


def native_frame(dataset: pydicom.Dataset, syntax: uid.UID) -> np.ndarray:
    if dataset.BitsAllocated not in (8, 16):
        raise DicomError(dataset.filename, f"BitsAllocated (0028,0100) is {dataset.BitsAllocated}, not 8 or 16")
    dtype = np.dtype(f"{'<' if syntax.is_little_endian else '>'}u{dataset.BitsAllocated // 8}")
    count = dataset.Rows * dataset.Columns
    found = len(dataset.PixelData)
    if found < count * dtype.itemsize:
        raise DicomError(dataset.filename, f"PixelData is cut off: {found} of {count * dtype.itemsize} bytes")
    stored = np.frombuffer(dataset.PixelData, dtype, count).reshape(dataset.Rows, dataset.Columns)
    return stored.astype(dtype.newbyteorder("="))


def decode_frame(dataset: pydicom.Dataset, syntax: uid.UID) -> np.ndarray:
    if syntax not in DECODERS and syntax != uid.RLELossless:
        raise DicomError(dataset.filename, f"transfer syntax {syntax.name} is not supported")
    codestream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == uid.RLELossless:
        return rle_frame(codestream, dataset)
    if END_OF_CODESTREAM not in codestream[-64:]:  # decoders return what they have got; trailing padding is legal
        raise DicomError(dataset.filename, "PixelData is cut off: the codestream has no end marker")
    try:
        return DECODERS[syntax](codestream)
    except RuntimeError as error:  # the base class of imagecodecs' own errors
        raise DicomError(dataset.filename, f"defective {syntax.name} codestream: {error}") from error


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


def to_brightness(stored: np.ndarray, dataset: pydicom.Dataset, bits: int) -> tuple[np.ndarray, str]:
    """float32 in 0-1, bright where the tissue is dense, and the name of the VOI transformation applied."""
    padding = padding_mask(stored, dataset)
    signed = stored.dtype.kind == "i"
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    values = modality_values(stored, dataset)
    low, high = np.sort(modality_values(ends.astype(np.int64), dataset))
    bright, window = apply_voi_transformation(values, dataset, float(low), float(high), padding)
    return upright(bright, dataset, padding), window


def upright(bright: np.ndarray, dataset: pydicom.Dataset, padding: np.ndarray | None) -> np.ndarray:
    """The picture, changed in place, with tissue bright and padding 0."""
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        np.subtract(1, bright, out=bright)
    if padding is not None:
        bright[padding] = 0
    return bright


def padding_mask(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """True where a pixel is padding (PS3.3 C.7.5.1.1.2), None where the file declares none."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    value = int(dataset.PixelPaddingValue)
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = value if limit is None else int(limit)
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def modality_values(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Output of the modality LUT as float32 (PS3.3 C.11.1): a table, or slope and intercept."""
    if has_table(dataset, "ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset).astype(np.float32)
    values = stored.astype(np.float32)
    slope, intercept = first_number(dataset, "RescaleSlope"), first_number(dataset, "RescaleIntercept")
    if slope not in (None, 0, 1):
        values *= np.float32(slope)
    if intercept:
        values += np.float32(intercept)
    return values


def apply_voi_transformation(
    values: np.ndarray, dataset: pydicom.Dataset, low: float, high: float, padding: np.ndarray | None
) -> tuple[np.ndarray, str]:
    """0-1 by the first VOI LUT, else by the first window, else by the range of the pixels; and which it was.

    `low` and `high` are the ends of the stored range after the modality LUT. A transformation that leaves
    all pixels at one value is set aside, and the name says so.
    """
    name, bright = "none", None
    if has_table(dataset, "VOILUTSequence"):
        name, bright = "LUT", voi_lut_values(values, dataset)
    else:
        center, width = first_number(dataset, "WindowCenter"), first_number(dataset, "WindowWidth")
        if center is not None and width is not None:
            function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
            name = f"{function} {center:g} {width:g}"
            bright = windowed_values(values, low, high, function, center, width)
    if bright is not None and bright.min() < bright.max():
        return bright, name
    floor, ceiling = tissue_range(values, dataset, padding)
    note = "" if name == "none" else f" ({name} cannot be used)"
    return np.clip((values - floor) / (ceiling - floor), 0, 1), f"min-max {floor:g} {ceiling:g}{note}"


def tissue_range(values: np.ndarray, dataset: pydicom.Dataset, padding: np.ndarray | None) -> tuple[float, float]:
    """Smallest and largest value in the breast and the air next to it: markers and frames take no part.

    The breast is looked for in a picture by percentiles, which is good enough for that.
    """
    pixels = values if padding is None else values[~padding]
    if pixels.size == 0 or pixels.min() == pixels.max():
        raise DicomError(dataset.filename, "all pixels but the padding have the same value")
    low, high = np.percentile(pixels, (0.5, 99.5))
    if low == high:
        low, high = pixels.min(), pixels.max()
    rough = upright(np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1), dataset, padding)
    breast = find_breast(rough)
    if breast is None:
        return float(pixels.min()), float(pixels.max())
    inside = breast.full_mask(values.shape) == 1
    if padding is not None:
        inside &= ~padding
    return float(values[inside].min()), float(values[inside].max())


def windowed_values(
    values: np.ndarray, low: float, high: float, function: str, center: float, width: float
) -> np.ndarray | None:
    """The windowed values, rescaled so that `low` becomes 0 and `high` 1; None where the window is not legal.

    Without the rescaling a SIGMOID window leaves the background grey.
    """
    if function not in WINDOWS or width < (1 if function == "LINEAR" else 1e-6):
        return None
    floor, ceiling = WINDOWS[function](np.array([low, high], np.float32), center, width)
    if ceiling <= floor:
        return None
    bright = (WINDOWS[function](values, center, width) - floor) / (ceiling - floor)
    return np.clip(bright, 0, 1, out=bright)


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, for an output of 0-1; a width of 1 is a threshold."""
    return np.clip((values - np.float32(center - 0.5)) / np.float32(max(width - 1, 1e-6)) + np.float32(0.5), 0, 1)


def linear_exact(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.2."""
    return np.clip((values - np.float32(center)) / np.float32(width) + np.float32(0.5), 0, 1)


def sigmoid(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(np.float32(-4 / width) * (values - np.float32(center))))


WINDOWS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


def has_table(dataset: pydicom.Dataset, keyword: str) -> bool:
    """Whether the LUT sequence `keyword` holds a table: some files carry the sequence with empty elements."""
    sequence = dataset.get(keyword)
    return bool(sequence) and bool(sequence[0].get("LUTDescriptor")) and bool(sequence[0].get("LUTData"))


def voi_lut_values(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """The first VOI LUT (PS3.3 C.11.2.1.1), which is indexed by integers; its own ends become 0 and 1."""
    entries, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
    table = apply_voi(np.arange(first, first + (entries or 65536)), dataset, index=0)
    looked_up = apply_voi(np.rint(values).astype(np.int64), dataset, index=0).astype(np.float32)
    return (looked_up - table.min()) / np.float32(table.max() - table.min())


def first_number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """The element's first value, None where it is absent, empty or not a finite number."""
    try:
        value = dataset.get(keyword)
        number = float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None
