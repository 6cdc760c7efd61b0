"""Stored values -> brightness: modality LUT, VOI LUT or window, photometric interpretation, padding.

The order is DICOM's (PS3.3 C.11 and PS3.4 N.2). All arrays are (rows, columns).
"""

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from rsna_nb.crop import find_breast


class UnreadableError(ValueError):
    """What is wrong with a file's content, in words that go into the ledger."""


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
        raise UnreadableError("all pixels but the padding have the same value")
    low, high = np.percentile(pixels, (0.5, 99.5))
    if low == high:
        low, high = pixels.min(), pixels.max()
    rough = upright(np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1), dataset, padding)
    breast = find_breast(rough)
    if breast is not None:
        inside = breast.full_mask(values.shape) == 1
        tissue = values[inside if padding is None else inside & ~padding]
        if tissue.size and tissue.min() < tissue.max():
            pixels = tissue
    return float(pixels.min()), float(pixels.max())


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
