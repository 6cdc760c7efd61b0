"""A picture at 1/2, 1/4, 1/8 of its size: the low band of the reversible 5/3 wavelet (ITU-T T.800, Annex F).

A JPEG 2000 codestream holds these pictures and reads them at a fraction of the cost. Pictures of the other
codecs are halved by the same integer arithmetic, to the same bit, so that a codec cannot be told by its pictures.
"""

from typing import Protocol

import cv2
import numpy as np

BLOCK = 48  # rows of a halved picture: what one step works on stays in a core's second-level cache
MARGIN = 4  # columns of air that are lifted with the breast: what they mirror at their edge is air too
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
            self.levels.append(halve(self.as_signed(self.levels[-1])))
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


def halve(values: np.ndarray) -> np.ndarray:
    """The low band of signed integers (rows, columns): each side half as long, rounded up, and not clipped.

    Rows are lifted first, then columns, as T.800's forward transform does; the edges are mirrored. It is done
    block by block in memory that is allocated once, and air of one value beside the breast is not lifted at all.
    """
    height, width = values.shape
    rows, columns = -(-height // 2), -(-width // 2)
    low = np.empty((rows, columns), values.dtype)
    scratch = np.empty((5, (BLOCK + 1) * (width + 5)), values.dtype)
    row_at = mirrored(height)
    air = values[0, -1] if values[0, -1] == values[-1, -1] else values[0, 0]
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        inside = start > 0 and 2 * stop < height
        block = values[2 * start - 2 : 2 * stop + 1] if inside else values[row_at[2 * start : 2 * stop + 3]]
        left, right = lifted_columns(block, air)
        low[start:stop, : left // 2], low[start:stop, -(-right // 2) :] = air, air
        if left < right:
            halve_block(block[:, left:right], scratch, low[start:stop, left // 2 : -(-right // 2)])
    return low


def lifted_columns(block: np.ndarray, air: int) -> tuple[int, int]:
    """The first column, an even one, and the one after the last that are not air alone, with a margin of air.

    A few rows say where the air may begin; then all of it is looked at.
    """
    width = block.shape[1]
    few = (block[:: len(block) // 2] == air).all(axis=0)
    left, right = (width, 0) if few.all() else (int(np.argmin(few)), width - int(np.argmin(few[::-1])))
    left = max(0, left - MARGIN) // 2 * 2 if (block[:, :left] == air).all() else 0
    right = min(width, (right + MARGIN + 1) // 2 * 2) if (block[:, right:] == air).all() else width
    return left, right


def halve_block(block: np.ndarray, scratch: np.ndarray, low: np.ndarray) -> None:
    """From 2n + 3 rows to the n `low` ones of which they are the surroundings."""
    rows, columns, width = *low.shape, block.shape[1]
    column_at = mirrored(width)
    shapes = (rows + 1, width), (rows, len(column_at)), (rows, columns + 2), (rows, columns + 2), (rows, columns + 1)
    high_rows, lifted, even, odd, high_columns = (
        memory[: shape[0] * shape[1]].reshape(shape) for memory, shape in zip(scratch, shapes, strict=True)
    )
    lift(block[::2], block[1::2], high_rows, lifted[:, 2 : width + 2])
    outside = [0, 1, *range(width + 2, len(column_at))]
    lifted[:, outside] = lifted[:, column_at[outside] + 2]
    cv2.split(lifted.reshape(rows, -1, 2), [even, odd])
    lift(even.T, odd[:, :-1].T, high_columns.T, low.T)


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
