"""Lookup tables of a header (PS3.3 C.11.1.1.1 and C.11.2.1.1), read and indexed by our own code.

pydicom keeps the index in the type of the outputs, so that it wraps at 256 or 65536. It also decides by
PixelRepresentation whether the first input is signed, although the inputs of a VOI LUT are values after rescaling.
"""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset

WORD = 65536  # values of 16 bits; as a number of entries it is written as 0


@dataclass(frozen=True)
class Table:
    """A lookup table.

    Attributes
    ----------
    first
        The input that the first output belongs to.
    outputs
        float32 (entries,), whole numbers.
    """

    first: int
    outputs: np.ndarray

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Return float32 outputs of the values' shape. Values outside the table get its first or last output."""
        last = self.first + len(self.outputs) - 1
        # Clipped before the conversion, which wraps, and by fmin and fmax, which also replace NaN.
        index = np.fmin(np.fmax(np.rint(values), self.first), last).astype(np.int64)
        return self.outputs[index - self.first]


def read_table(item: Dataset, domain: np.ndarray, is_little_endian: bool) -> Table:
    """Read the table in an item of a LUT sequence.

    Parameters
    ----------
    item
        Has LUTDescriptor and LUTData, of any value representation.
    domain
        Smallest and largest input (2,) of the image. It decides whether the first input is signed.
    is_little_endian
        The byte order of the file.

    Raises
    ------
    ValueError
        If the table is empty, cut off, or contradicts its descriptor or the image. A damaged element can make pydicom
        raise other exceptions.
    """
    entries, first, bits = (int(value) for value in _whole_numbers(item.LUTDescriptor, is_little_endian))
    entries = entries % WORD or WORD
    if not 8 <= bits <= 16:
        raise ValueError("its entries must have 8 to 16 bits")
    outputs = _outputs(_whole_numbers(item.LUTData, is_little_endian), entries, bits)
    return Table(_first_input(first, entries, domain), outputs.astype(np.float32))


def _whole_numbers(value: Any, is_little_endian: bool) -> np.ndarray:
    """Return the 16-bit words of an element as int64, unsigned unless its representation is signed (SS)."""
    if isinstance(value, bytes):  # OW, or UN
        return np.frombuffer(value + b"\0" * (len(value) % 2), "<u2" if is_little_endian else ">u2").astype(np.int64)
    values = [value] if isinstance(value, int) else value or []
    return np.array([operator.index(one) for one in values], np.int64)


def _outputs(words: np.ndarray, entries: int, bits: int) -> np.ndarray:
    """Return the outputs from the words of LUTData, each of which holds one entry, or two of 8 bits."""
    words = words % WORD
    if bits == 8 and len(words) == (entries + 1) // 2 < entries:
        return words.astype("<u2").view(np.uint8)[:entries]  # the first entry is in the low byte
    if len(words) not in (entries, entries + 1):  # the last one may be padding
        raise ValueError(f"it has {len(words)} words for {entries} entries")
    if (words[:entries] >= 2**bits).any():
        raise ValueError(f"its entries exceed the {bits} bits of its descriptor")
    return words[:entries]


def _first_input(first: int, entries: int, domain: np.ndarray) -> int:
    """Return the first input, read as signed or unsigned, whichever lets the table map more of the domain.

    If both map the same, the value representation decides.
    """
    low, high = domain

    def shared(start: int) -> float:
        return min(start + entries - 1, high) - max(start, low)

    other = first - WORD if first >= WORD // 2 else first % WORD
    best = max((first, other), key=shared)
    if not shared(best) >= 0:  # "not >=": the domain is NaN after a broken rescale slope
        raise ValueError("it maps none of the image's values")
    return best
