"""Stored values -> brightness: modality LUT, VOI LUT or window, photometric interpretation, padding.

VOI is DICOM's "value of interest" transformation: it selects the range of values that is displayed. The order of the
steps is DICOM's (PS3.3 C.11 and PS3.4 N.2). All arrays are (rows, columns), at any level of a pyramid: stored values
are halved first and windowed afterwards. On real mammograms that were halved twice, the result differs from windowing
first by 0.2 % of the range on average over the breast and by 1.2 % at the 99th percentile. With a window of a third of
the stored range, which cuts off much of the tissue, it differs by 1 % and 7 %.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from rsna_nb.dicom.dataset import first_number
from rsna_nb.dicom.errors import UnreadableError

PADDING_MARGIN = 2  # pixels around the padding whose values halving has mixed with it
DARK = 0.02  # padding up to this brightness counts as air

Values = np.ndarray  # float32 output of the modality LUT


@dataclass(frozen=True)
class Voi:
    """A VOI transformation.

    Attributes
    ----------
    name
        Its name in the ledger, such as "LINEAR 2048 4096".
    apply
        Maps the output of the modality LUT to a new float32 array in 0-1. None if the transformation cannot be used.
    """

    name: str
    apply: Callable[[Values], np.ndarray] | None = None

    def shows(self, values: Values) -> bool:
        """Return whether the transformation leaves any difference between these values."""
        bright = self.apply(values) if self.apply else values[:0]
        return bright.size > 0 and bool(bright.min() < bright.max())


def to_brightness(values: Values, inverted: bool, voi: Voi, padding: np.ndarray | None) -> np.ndarray:
    """Map the output of the modality LUT to float32 brightness in 0-1, padding 0. `inverted`: large values are dark."""
    assert voi.apply is not None
    bright = voi.apply(values)
    if inverted:
        np.subtract(1, bright, out=bright)
    if padding is not None and padding.any():
        # Halving mixes bright padding into the pixels next to it. Dark padding looks like air, so it needs no margin.
        is_bright = bright[padding].max() > DARK
        bright[_with_margin(padding) if is_bright else padding] = 0
    return bright


def padding_mask(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Return True where a pixel is padding (PS3.3 C.7.5.1.1.2), or None if the file declares no padding.

    A strip of padding that is only a few pixels wide in a halved image is not recognised.
    """
    value, limit = first_number(dataset, "PixelPaddingValue"), first_number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return None
    limit = value if limit is None else limit
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _with_margin(padding: np.ndarray) -> np.ndarray:
    """Return the padding mask, extended by the pixels that halving may have mixed with padding."""
    return cv2.dilate(padding.view(np.uint8), np.ones((2 * PADDING_MARGIN + 1,) * 2, np.uint8)).view(bool)


def modality_values(stored: np.ndarray, dataset: pydicom.Dataset) -> Values:
    """Apply the modality LUT (PS3.3 C.11.1), a table or slope and intercept. Returns float32."""
    if _has_table(dataset, "ModalityLUTSequence"):
        try:
            return apply_modality_lut(stored, dataset).astype(np.float32)
        except Exception as error:  # pydicom raises nearly any built-in exception for a damaged table
            raise UnreadableError(f"defective ModalityLUTSequence (0028,3000): {error}") from error
    values = stored.astype(np.float32)
    slope, intercept = first_number(dataset, "RescaleSlope"), first_number(dataset, "RescaleIntercept")
    if slope not in (None, 0, 1):  # a slope of 0 would erase the image
        values *= np.float32(slope)
    if intercept:
        values += np.float32(intercept)
    return values


def declared_voi(dataset: pydicom.Dataset, ends: np.ndarray) -> Voi:
    """Return the file's first VOI LUT, else its first window.

    Parameters
    ----------
    dataset
        A data set from `read_dataset`.
    ends
        Smallest and largest value of the stored range, integers (2,).

    Returns
    -------
    The transformation, without `apply` if the file declares none or an invalid one.
    """
    if _has_table(dataset, "VOILUTSequence"):
        try:
            table = _voi_table(dataset)
            low, high = table.min(), table.max()
        except Exception:  # a damaged table: the ledger says "LUT cannot be used"
            return Voi("LUT")
        return Voi("LUT", lambda values: _rescale(_apply_table(values, dataset), low, high))
    center, width = first_number(dataset, "WindowCenter"), first_number(dataset, "WindowWidth")
    if center is None or width is None:
        return Voi("none")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    known = function if function in WINDOWS else "unknown function"  # other text from the file may name a person
    name = f"{known} {center:g} {width:g}"
    if function not in WINDOWS or width < (1 if function == "LINEAR" else 1e-6):
        return Voi(name)
    window = WINDOWS[function]
    floor, ceiling = window(np.sort(modality_values(ends, dataset)), center, width)
    if floor >= ceiling:
        return Voi(name)
    return Voi(name, lambda values: _rescale(window(values, center, width), floor, ceiling))


def percentile_voi(values: Values, padding: np.ndarray | None, declared: Voi) -> Voi:
    """Return a window from the 1st to the 98th percentile of the pixels that are not padding.

    The few pixels of a bright marker then do not darken the breast.
    """
    pixels = values if padding is None else values[~_with_margin(padding)]
    if pixels.size == 0 or pixels.min() == pixels.max():
        raise UnreadableError("all pixels but the padding have the same value")
    low, high = np.percentile(pixels, (1, 98)).astype(np.float32)
    return _min_max(low, high, declared) if low < high else _min_max(pixels.min(), pixels.max(), declared)


def range_voi(values: Values, mask: np.ndarray, padding: np.ndarray | None, declared: Voi) -> Voi | None:
    """Return a window over all values in the mask that are not padding, or None if they do not differ."""
    tissue = values[mask > 0] if padding is None else values[(mask > 0) & ~_with_margin(padding)]
    low, high = (tissue.min(), tissue.max()) if tissue.size else (np.float32(0), np.float32(0))
    return _min_max(low, high, declared) if low < high else None


def _min_max(low: np.floating, high: np.floating, declared: Voi) -> Voi:
    """Return the window from `low` to `high`. Its name says which declared transformation it replaces."""
    note = "" if declared.name == "none" else f" ({declared.name} cannot be used)"
    return Voi(f"min-max {low:g} {high:g}{note}", lambda values: _rescale(values, low, high))


def _rescale(values: np.ndarray, low: np.floating, high: np.floating) -> np.ndarray:
    """Map `low` to 0 and `high` to 1, and clip.

    A SIGMOID window needs it: its output never reaches 0 or 1, so the background would stay grey.
    """
    if (low, high) == (0, 1):
        return np.clip(values, 0, 1)
    bright = np.subtract(values, low, dtype=np.float32)
    bright /= np.float32(high - low)
    return np.clip(bright, 0, 1, out=bright)


def _linear(values: Values, center: float, width: float) -> np.ndarray:
    """LINEAR (PS3.3 C.11.2.1.2.1) for an output of 0-1. A width of 1 is a threshold."""
    return _linear_exact(values, center - 0.5, max(width - 1, 1e-6))


def _linear_exact(values: Values, center: float, width: float) -> np.ndarray:
    """LINEAR_EXACT (PS3.3 C.11.2.1.3.2) for an output of 0-1."""
    bright = np.subtract(values, center, dtype=np.float32)
    bright /= np.float32(width)
    bright += np.float32(0.5)
    return np.clip(bright, 0, 1, out=bright)


def _sigmoid(values: Values, center: float, width: float) -> np.ndarray:
    """SIGMOID (PS3.3 C.11.2.1.3.1) for an output of 0-1."""
    # In place: pydicom's apply_voi_lut makes float64 temporaries of eight times the file's size.
    bright = np.subtract(values, center, dtype=np.float32)
    bright *= np.float32(-4 / width)
    np.exp(bright, out=bright)
    bright += 1
    return np.divide(1, bright, out=bright)


WINDOWS = {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}


def _has_table(dataset: pydicom.Dataset, keyword: str) -> bool:
    """Return whether the LUT sequence `keyword` holds a table. Some files carry the sequence with empty elements."""
    sequence = dataset.get(keyword)
    item = sequence[0] if isinstance(sequence, pydicom.Sequence) and sequence else pydicom.Dataset()
    return bool(item.get("LUTDescriptor")) and bool(item.get("LUTData"))


def _voi_table(dataset: pydicom.Dataset) -> np.ndarray:
    """Return all outputs of the first VOI LUT."""
    entries, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
    return _apply_table(np.arange(first, first + (entries or 65536)), dataset)  # 0 entries means 2^16


def _apply_table(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Apply the first VOI LUT (PS3.3 C.11.2.1.1), which is indexed by integers. Returns float32."""
    return apply_voi(np.rint(values).astype(np.int64), dataset, index=0).astype(np.float32)
