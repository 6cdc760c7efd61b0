"""A picture at 1/2, 1/4, 1/8 of its size: the low band of the reversible 5/3 wavelet (ITU-T T.800, Annex F).

A JPEG 2000 codestream holds these pictures and reads them at a fraction of the cost. Pictures of the other
codecs are halved by the same integer arithmetic, to the same bit, so that a codec cannot be told by its pictures.
"""

from typing import Protocol

import cv2
import numpy as np

BLOCK = 48  # rows of a halved picture: what one step works on stays in a core's second-level cache
MARGIN_KEPT = 4  # columns of a margin that are halved with the others, of which they mirror the edge
SHORT_BITS = 14  # values of b bits can be halved SHORT_BITS - b times in 16 bits: each halving doubles their range


class Pyramid(Protocol):
    """One frame's stored values at 1/2^n of its (rows, columns) `shape`, each side rounded up.

    `bits` is the number of bits of the stored range, two's complement where `signed`.
    """

    shape: tuple[int, int]
    bits: int
    signed: bool

    def level(self, n: int) -> np.ndarray:
        """Integers (rows, columns), clipped once to the stored range; level 0 is the picture itself."""
        ...


class HalvedPyramid:
    """The levels of a picture that was decoded in full."""

    def __init__(self, stored: np.ndarray, bits: int) -> None:
        self.shape, self.bits, self.signed = stored.shape, bits, stored.dtype.kind == "i"
        self.levels = [stored]

    def level(self, n: int) -> np.ndarray:
        while len(self.levels) <= n:
            self.levels.append(halve_between_margins(self.as_signed(self.levels[-1])))
        return self.levels[0] if n == 0 else in_range(self.levels[n], self.bits, self.signed)

    def as_signed(self, values: np.ndarray) -> np.ndarray:
        """The values in an integer type that one more halving cannot overflow."""
        if self.bits + len(self.levels) > SHORT_BITS:
            return values.astype(np.int32)
        return values.view(np.int16) if values.itemsize == 2 else values.astype(np.int16)


def in_range(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    low, high = stored_range(bits, signed)
    return np.clip(values, low, high)


def stored_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest value of so many bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def halve_between_margins(values: np.ndarray) -> np.ndarray:
    """As `halve`, in half of the time where air is of one value and fills half of the columns."""
    left, right = (max(0, margin - MARGIN_KEPT) // 2 * 2 for margin in (margin_of(values[:, ::-1]), margin_of(values)))
    if left + right < values.shape[1] // 8:
        return halve(values)
    inner = halve(values[:, left : values.shape[1] - right])
    low = np.empty([-(-side // 2) for side in values.shape], values.dtype)
    low[:, : left // 2], low[:, left // 2 + inner.shape[1] :] = values[0, 0], values[0, -1]
    low[:, left // 2 : left // 2 + inner.shape[1]] = inner
    return low


def margin_of(values: np.ndarray) -> int:
    """Columns at the right edge whose pixels all have one value, found by a few rows and then looked at in full."""
    few = (values[:: len(values) // 16 + 1] == values[0, -1]).all(axis=0)
    margin = len(few) if few.all() else int(np.argmin(few[::-1]))
    return margin if (values[:, len(few) - margin :] == values[0, -1]).all() else 0


def halve(values: np.ndarray) -> np.ndarray:
    """The low band of signed integers (rows, columns): each side half as long, rounded up, and not clipped.

    Rows are lifted first, then columns, as T.800's forward transform does; the edges are mirrored. All is done
    block by block in memory that is allocated once.
    """
    height, width = values.shape
    rows, columns = -(-height // 2), -(-width // 2)
    row_at, column_at = mirrored(height), mirrored(width)
    outside = [0, 1, *range(width + 2, len(column_at))]
    low = np.empty((rows, columns), values.dtype)
    lifted = np.empty((BLOCK, len(column_at)), values.dtype)
    even, odd = np.empty((2, BLOCK, columns + 2), values.dtype)
    high_rows = np.empty((BLOCK + 1, width), values.dtype)
    high_columns = np.empty((BLOCK, columns + 1), values.dtype)
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        first, last = 2 * start - 2, 2 * (start + n) + 1
        inside = first >= 0 and last <= height
        block = values[first:last] if inside else values[row_at[first + 2 : last + 2]]
        lift(block[::2], block[1::2], high_rows[: n + 1], lifted[:n, 2 : width + 2])
        lifted[:n, outside] = lifted[:n, column_at[outside] + 2]
        cv2.split(lifted[:n].reshape(n, -1, 2), [even[:n], odd[:n]])
        lift(even[:n].T, odd[:n, :-1].T, high_columns[:n].T, low[start : start + n].T)
    return low


def mirrored(length: int) -> np.ndarray:
    """Positions of the samples from two before the first to two behind the last pair, mirrored at both ends."""
    period = max(1, 2 * (length - 1))
    positions = np.arange(-2, length + length % 2 + 2) % period
    return np.minimum(positions, period - positions)


def lift(even: np.ndarray, odd: np.ndarray, high: np.ndarray, low: np.ndarray) -> None:
    """T.800 (F-9, F-10) along the first axis: n + 2 even and n + 1 odd samples to n + 1 `high` and n `low` ones."""
    np.add(even[:-1], even[1:], out=high)
    np.right_shift(high, 1, out=high)
    np.subtract(odd, high, out=high)
    np.add(high[:-1], high[1:], out=low)
    np.add(low, 2, out=low)
    np.right_shift(low, 2, out=low)
    np.add(low, even[1:-1], out=low)
