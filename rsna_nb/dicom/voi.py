"""Stored values -> brightness: modality LUT, VOI LUT or window, photometric interpretation, padding.

VOI is DICOM's "value of interest" transformation: it selects the range of values that is displayed. The order of the
steps is DICOM's (PS3.3 C.11 and PS3.4 N.2). All arrays are (rows, columns), at any level of a pyramid: stored values
are halved first and windowed afterwards. On real mammograms that were halved twice, the result differs from windowing
first by 0.2 % of the range on average over the breast and by 1.2 % at the 99th percentile. With a window of a third of
the stored range, which cuts off much of the tissue, it differs by 1 % and 7 %.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pydicom

from rsna_nb.dicom.elements import first_number, is_stated
from rsna_nb.dicom.errors import UnreadableError
from rsna_nb.dicom.lut import Table, read_table
from rsna_nb.dicom.pyramid import stored_range

MARGIN = 2  # pixels around padding and hot pixels whose values halving has mixed with theirs
MEDIAN = 5  # side in pixels of the median filter, which removes what covers less than half of its square
# A hot pixel is outside of the filtered range by this share of it, and by this multiple of what the filter removes from
# 99 % of the pixels. Without one, 8 real and 60 generated mammograms stay within 0.77 of that at all levels.
HOT_SHARE, HOT_DETAIL = 0.2, 2
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
    notes
        What is odd about it, in the words of `NOTES`.
    """

    name: str
    apply: Callable[[Values], np.ndarray] | None = None
    notes: tuple[str, ...] = ()

    def shows(self, values: Values) -> bool:
        """Return whether the transformation leaves any difference between these values."""
        bright = self.apply(values) if self.apply else values[:0]
        return bright.size > 0 and bool(bright.min() < bright.max())

    def instead_of(self, unusable: str) -> "Voi":
        """Return the same transformation, with a name and a note that say which declared ones it replaces, if any."""
        if unusable in ("", "none"):
            return self
        return replace(self, name=f"{self.name} ({unusable} cannot be used)", notes=("window", *self.notes))


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


def _with_margin(pixels: np.ndarray) -> np.ndarray:
    """Return a mask of padding or hot pixels, extended by the pixels that halving may have mixed with them."""
    return cv2.dilate(pixels.view(np.uint8), np.ones((2 * MARGIN + 1,) * 2, np.uint8)).view(bool)


def modality_values(stored: np.ndarray, dataset: pydicom.Dataset) -> Values:
    """Apply the modality LUT (PS3.3 C.11.1), a table or slope and intercept. Returns float32."""
    try:
        table = _table(dataset, "ModalityLUTSequence", np.array(_declared_range(dataset)))
    except Exception as error:  # a damaged table makes pydicom raise nearly any built-in exception
        raise UnreadableError(f"defective ModalityLUTSequence (0028,3000): {error}") from error
    if table:
        return table.look_up(stored)
    values = stored.astype(np.float32)
    slope, intercept = first_number(dataset, "RescaleSlope"), first_number(dataset, "RescaleIntercept")
    if slope not in (None, 0, 1):  # a slope of 0 would erase the image
        values *= np.float32(slope)
    if intercept:
        values += np.float32(intercept)
    return values


def _declared_range(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Return the stored range that the header declares. Pixels may exceed it; then the `Pyramid` has more bits."""
    return stored_range(dataset.get("BitsStored", 16), dataset.get("PixelRepresentation", 0) == 1)


def _table(dataset: pydicom.Dataset, keyword: str, domain: np.ndarray) -> Table | None:
    """Return the first table of a LUT sequence, or None if there is none. A damaged one raises nearly any exception.

    Some files carry the sequence with empty elements: that is no table.
    """
    sequence = dataset.get(keyword)
    if not isinstance(sequence, pydicom.Sequence) or not sequence:
        return None
    item = sequence[0]
    if not (item.get("LUTDescriptor") or item.get("LUTData")):
        return None
    return read_table(item, domain, dataset.file_meta.TransferSyntaxUID.is_little_endian)


def declared_voi(dataset: pydicom.Dataset, ends: np.ndarray, values: Values | None = None) -> Voi:
    """Return the file's first VOI LUT, else its first window.

    Parameters
    ----------
    dataset
        A data set from `read_dataset`.
    ends
        Smallest and largest value of the stored range, integers (2,).
    values
        Output of the modality LUT. The transformation must leave a difference between them, and their range decides
        whether the first input of a LUT is signed; without them, the ends do.

    Returns
    -------
    The first transformation that can be used. Without `apply`, its name lists those that cannot: "none" if the file
    declares none.
    """
    domain = np.sort(modality_values(ends, dataset))
    inputs = domain if values is None else np.array([values.min(), values.max()])
    unusable: list[str] = []
    for voi in (_lut_voi(dataset, inputs), _window_voi(dataset, domain)):
        if voi and voi.apply and (values is None or voi.shows(values)):
            return voi.instead_of(", ".join(unusable))
        unusable += [voi.name] if voi else []
    return Voi(", ".join(unusable) or "none")


def _lut_voi(dataset: pydicom.Dataset, domain: np.ndarray) -> Voi | None:
    """Return the first VOI LUT (PS3.3 C.11.2.1.1), without `apply` if it is damaged; None if the file has none."""
    try:
        table = _table(dataset, "VOILUTSequence", domain)
    except Exception:  # a damaged table makes pydicom raise nearly any built-in exception
        return Voi("LUT")
    if table is None:
        return None
    low, high = table.outputs.min(), table.outputs.max()
    if low >= high:
        return Voi("LUT")
    return Voi("LUT", lambda values: _rescale(table.look_up(values), low, high))


def _window_voi(dataset: pydicom.Dataset, domain: np.ndarray) -> Voi | None:
    """Return the first window (PS3.3 C.11.2.1.2), without `apply` if it is invalid; None if the file has none."""
    center, width = first_number(dataset, "WindowCenter"), first_number(dataset, "WindowWidth")
    if center is None or width is None:
        return Voi("window") if is_stated(dataset, "WindowCenter", "WindowWidth") else None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    known = function if function in WINDOWS else "unknown function"  # other text from the file may name a person
    name = f"{known} {center:g} {width:g}"
    if function not in WINDOWS or width < (1 if function == "LINEAR" else 1e-6):
        return Voi(name)
    window = WINDOWS[function]
    floor, ceiling = window(domain, center, width)
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
    """Return a window over the values in the mask that are not padding or hot; None if they do not differ."""
    inside = mask > 0 if padding is None else (mask > 0) & ~_with_margin(padding)
    hot = hot_pixels(values, inside)
    if hot.any():
        inside &= ~_with_margin(hot)
    tissue = values[inside]
    low, high = (tissue.min(), tissue.max()) if tissue.size else (np.float32(0), np.float32(0))
    if low >= high:
        return None
    voi = _min_max(low, high, declared)
    return replace(voi, notes=(*voi.notes, "hot pixels")) if hot.any() else voi


def hot_pixels(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return a mask of the few pixels that are far brighter or darker than all larger details.

    A defective detector element, or a bright pixel that was written into the image, would set the scale of a window
    over the range. Larger details stay in it whatever their value. So do small ones, such as microcalcifications,
    unless they are far outside of the range of the large ones.

    Parameters
    ----------
    values
        (rows, columns) of 8 or 16 bits or float32.
    inside
        Bool, of the same shape: the pixels to examine.
    """
    if not inside.any():
        return inside
    filtered = cv2.medianBlur(np.ascontiguousarray(values), MEDIAN)[inside].astype(np.float32)
    low, high = filtered.min(), filtered.max()
    if low == high:  # nothing but small details
        return np.zeros_like(inside)
    detail = np.percentile(np.abs(values[inside] - filtered), 99)
    reach = max(HOT_SHARE * (high - low), HOT_DETAIL * detail)
    return ((values < low - reach) | (values > high + reach)) & inside


def _min_max(low: np.floating, high: np.floating, declared: Voi) -> Voi:
    """Return the window from `low` to `high` in place of the declared transformations."""
    return Voi(f"min-max {low:g} {high:g}", lambda values: _rescale(values, low, high)).instead_of(declared.name)


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
