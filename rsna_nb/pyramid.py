"""A picture at 1/2, 1/4, 1/8 of its size: the low band of the reversible 5/3 wavelet (ITU-T T.800, Annex F).

A JPEG 2000 codestream holds these pictures and reads them at a fraction of the cost. Pictures of the other
codecs are halved by the same integer arithmetic, to the same bit, so that a codec cannot be told by its pictures.
"""

from typing import Protocol

import cv2
import numpy as np

ROWS_A_BLOCK = 32  # of a halved picture: what one step works on stays in a core's second-level cache
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

    Rows are lifted first, then columns, as T.800's forward transform does; the edges are mirrored.
    """
    rows, columns = (-(-side // 2) for side in values.shape)
    below, right = 2 * rows + 1 - values.shape[0], 2 * columns + 2 - values.shape[1]
    mirrored = cv2.copyMakeBorder(values, 2, below, 2, right, cv2.BORDER_REFLECT_101)
    low = np.empty((rows, columns), values.dtype)
    for start in range(0, rows, ROWS_A_BLOCK):
        block = mirrored[2 * start : 2 * min(start + ROWS_A_BLOCK, rows) + 3]
        lifted = low_band(block[::2], block[1::2])
        even, odd = cv2.split(lifted.reshape(len(lifted), -1, 2))
        low[start : start + len(lifted)] = low_band(even.T, odd.T[:-1]).T
    return low


def low_band(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """T.800 (F-9, F-10) along the first axis: from n + 1 even and n odd samples, the n - 1 inner low ones."""
    high = odd - ((even[:-1] + even[1:]) >> 1)
    return even[1:-1] + ((high[:-1] + high[1:] + 2) >> 2)
