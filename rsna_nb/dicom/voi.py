"""Stored values -> brightness: modality LUT, VOI LUT or window, photometric interpretation, padding.

The order is DICOM's (PS3.3 C.11 and PS3.4 N.2). All arrays are (rows, columns), at any level of a pyramid: stored
values are halved first and windowed then. On real mammograms, halved twice, that differs from the other order by
0.2 % of the range on average over the breast and by 1.2 % at the 99th percentile; with a window of a third of the
stored range, outside of which much of the tissue lies, by 1 % and 7 %.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut, apply_voi

MIXED = 2  # pixels of a halved picture that padding reaches beyond its own
DARK = 0.02  # brightness up to which padding is taken for air


class UnreadableError(ValueError):
    """What is wrong with a file's content, in words that go into the ledger."""


@dataclass(frozen=True)
class Voi:
    """A VOI transformation: its `name`, and what takes output of the modality LUT to new float32 in 0-1, if it can."""

    name: str
    apply: Callable[[np.ndarray], np.ndarray] | None = None

    def shows(self, values: np.ndarray) -> bool:
        """Whether these values differ after it."""
        bright = self.apply(values) if self.apply else values[:0]
        return bright.size > 0 and bool(bright.min() < bright.max())


def to_brightness(values: np.ndarray, dataset: pydicom.Dataset, voi: Voi, padding: np.ndarray | None) -> np.ndarray:
    """Output of the modality LUT -> float32 in 0-1, bright where the tissue is dense, 0 in the padding.

    Halving has mixed bright padding into its neighbours, so a margin of them is 0 too. Dark padding leaves no trace.
    """
    assert voi.apply is not None
    bright = voi.apply(values)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        np.subtract(1, bright, out=bright)
    if padding is not None and padding.any():
        is_bright = bright[padding].max() > DARK
        bright[with_margin(padding) if is_bright else padding] = 0
    return bright


def padding_mask(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """True where a pixel is padding (PS3.3 C.7.5.1.1.2), None where the file declares none.

    In a halved picture, a strip of padding that is narrower than a few of its pixels is not found.
    """
    value, limit = first_number(dataset, "PixelPaddingValue"), first_number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return None
    limit = value if limit is None else limit
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def with_margin(padding: np.ndarray) -> np.ndarray:
    """The padding and the pixels that halving may have mixed with it."""
    return cv2.dilate(padding.view(np.uint8), np.ones((2 * MIXED + 1,) * 2, np.uint8)).view(bool)


def modality_values(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Output of the modality LUT as float32 (PS3.3 C.11.1): a table, or slope and intercept."""
    if has_table(dataset, "ModalityLUTSequence"):
        try:
            return apply_modality_lut(stored, dataset).astype(np.float32)
        except Exception as error:  # pydicom's are of many kinds
            raise UnreadableError(f"defective ModalityLUTSequence (0028,3000): {error}") from error
    values = stored.astype(np.float32)
    slope, intercept = first_number(dataset, "RescaleSlope"), first_number(dataset, "RescaleIntercept")
    if slope not in (None, 0, 1):
        values *= np.float32(slope)
    if intercept:
        values += np.float32(intercept)
    return values


def declared_voi(dataset: pydicom.Dataset, ends: np.ndarray) -> Voi:
    """The first VOI LUT, else the first window; without `apply` where there is none or it is not legal.

    `ends` are the smallest and largest value of the stored range.
    """
    if has_table(dataset, "VOILUTSequence"):
        try:
            low, high = voi_table_ends(dataset)
        except Exception:  # pydicom's are of many kinds
            return Voi("LUT")
        return Voi("LUT", lambda values: between(voi_lut(values, dataset), low, high))
    center, width = first_number(dataset, "WindowCenter"), first_number(dataset, "WindowWidth")
    if center is None or width is None:
        return Voi("none")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    name = (
        f"{function if function in WINDOWS else 'unknown function'} {center:g} {width:g}"  # no text of the file's own
    )
    if function not in WINDOWS or width < (1 if function == "LINEAR" else 1e-6):
        return Voi(name)
    window = WINDOWS[function]
    floor, ceiling = window(np.sort(modality_values(ends, dataset)), center, width)
    if floor >= ceiling:
        return Voi(name)
    return Voi(name, lambda values: between(window(values, center, width), floor, ceiling))


def percentile_voi(values: np.ndarray, padding: np.ndarray | None, declared: Voi) -> Voi:
    """Most of the range of the pixels that are not padding: a marker's few leave the breast bright."""
    pixels = values if padding is None else values[~with_margin(padding)]
    if pixels.size == 0 or pixels.min() == pixels.max():
        raise UnreadableError("all pixels but the padding have the same value")
    low, high = np.percentile(pixels, (1, 98)).astype(np.float32)
    return stretch(low, high, declared) if low < high else stretch(pixels.min(), pixels.max(), declared)


def range_voi(values: np.ndarray, mask: np.ndarray, padding: np.ndarray | None, declared: Voi) -> Voi | None:
    """The whole range of the pixels in the mask that are not padding, None where it is empty."""
    tissue = values[mask > 0] if padding is None else values[(mask > 0) & ~with_margin(padding)]
    low, high = (tissue.min(), tissue.max()) if tissue.size else (np.float32(0), np.float32(0))
    return stretch(low, high, declared) if low < high else None


def stretch(low: np.floating, high: np.floating, declared: Voi) -> Voi:
    """From `low` to `high`; the name says which declared transformation could not be used."""
    note = "" if declared.name == "none" else f" ({declared.name} cannot be used)"
    return Voi(f"min-max {low:g} {high:g}{note}", lambda values: between(values, low, high))


def between(values: np.ndarray, low: np.floating, high: np.floating) -> np.ndarray:
    """The values with `low` as 0 and `high` as 1. Without that a SIGMOID window leaves the background grey."""
    if (low, high) == (0, 1):
        return np.clip(values, 0, 1)
    bright = np.subtract(values, low, dtype=np.float32)
    bright /= np.float32(high - low)
    return np.clip(bright, 0, 1, out=bright)


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, for an output of 0-1; a width of 1 is a threshold."""
    return linear_exact(values, center - 0.5, max(width - 1, 1e-6))


def linear_exact(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.2."""
    bright = np.subtract(values, center, dtype=np.float32)
    bright /= np.float32(width)
    bright += np.float32(0.5)
    return np.clip(bright, 0, 1, out=bright)


def sigmoid(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.1."""
    bright = np.subtract(values, center, dtype=np.float32)
    bright *= np.float32(-4 / width)
    np.exp(bright, out=bright)
    bright += 1
    return np.divide(1, bright, out=bright)


WINDOWS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


def has_table(dataset: pydicom.Dataset, keyword: str) -> bool:
    """Whether the LUT sequence `keyword` holds a table: some files carry the sequence with empty elements."""
    sequence = dataset.get(keyword)
    if not isinstance(sequence, pydicom.Sequence):
        return False
    return bool(sequence) and bool(sequence[0].get("LUTDescriptor")) and bool(sequence[0].get("LUTData"))


def voi_table_ends(dataset: pydicom.Dataset) -> tuple[np.floating, np.floating]:
    """Smallest and largest output of the first VOI LUT."""
    entries, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
    table = voi_lut(np.arange(first, first + (entries or 65536)), dataset)
    return table.min(), table.max()


def voi_lut(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Output of the first VOI LUT (PS3.3 C.11.2.1.1), which is indexed by integers, as float32."""
    return apply_voi(np.rint(values).astype(np.int64), dataset, index=0).astype(np.float32)


def first_number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """The element's first value, None where it is absent, empty or not a finite number."""
    try:
        value = dataset.get(keyword)
        number = float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None
