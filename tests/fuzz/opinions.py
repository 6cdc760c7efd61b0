"""What a second decoder says of a damaged file. It shares no decoder and no arithmetic with rsna_nb, and says nothing
where the second decoder refuses the bytes.
"""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.pixels import pixel_array

from rsna_nb import dicom
from rsna_nb.dicom.decode import Jpeg2000Pyramid
from rsna_nb.dicom.pyramid import Pyramid
from rsna_nb.dicom.reader import SEARCH_SIDE
from tests.fuzz.files import fragments


@dataclass(frozen=True)
class Opinion:
    """One decoder's samples as unsigned words, before the data set's bits and sign are looked at.

    It may be wrong by `tolerance`. It `binds` where decoders must agree on damaged data too. The Huffman codes of
    JPEG fall out of step after a defect, and T.81 leaves it to a decoder what it then shows.
    """

    decoder: str
    samples: np.ndarray
    tolerance: int = 0
    binds: bool = True


def opinions(dataset: pydicom.Dataset) -> Iterator[Opinion]:
    """What the other decoders read; nothing where they refuse the bytes or are not installed."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == uid.RLELossless:
        decoders: list[Decoder] = [("pydicom", lambda: pydicom_samples(dataset), {})]
    else:
        try:
            decoders = codestream_decoders(b"".join(fragments(dataset.PixelData)))
        except (ValueError, struct.error):  # items that only pydicom follows
            return
    for name, decode, bounds in decoders:
        try:
            samples = decode()
        except Exception:
            continue
        yield Opinion(name, samples, **bounds)


Decoder = tuple[str, Callable[[], np.ndarray], dict]


def codestream_decoders(codestream: bytes) -> list[Decoder]:
    """By the codestream's own markers, not by the transfer syntax."""
    head = codestream[:1000]
    libjpeg = ("libjpeg", lambda: libjpeg_samples(codestream))
    if b"\xff\x4f\xff\x51" in head:
        is_signed = codestream[codestream.index(b"\xff\x4f\xff\x51") + 42] >> 7
        return [
            ("imagecodecs' OpenJPEG", lambda: unsigned(imagecodecs.jpeg2k_decode(codestream)), {}),
            # a signed tile that is missing is its lowest value for Pillow and 0 for others
            ("Pillow's OpenJPEG", lambda: pillow_samples(codestream), {"binds": not is_signed}),
        ]
    if b"\xff\xf7" in head:
        return [(*libjpeg, {})]
    if b"\xff\xc3" in head:
        jpegsof3 = ("jpegsof3", lambda: unsigned(imagecodecs.jpegsof3_decode(codestream)))
        return [(*jpegsof3, {"binds": False}), (*libjpeg, {"binds": False})]
    return [(*libjpeg, {"binds": False, "tolerance": 3})]  # the inverse DCTs round in their own ways


def unsigned(samples: np.ndarray) -> np.ndarray:
    return samples.astype(samples.dtype.newbyteorder("=")).view(f"u{samples.itemsize}").astype(np.int64)


def pydicom_samples(dataset: pydicom.Dataset) -> np.ndarray:
    """With the bits above BitsStored, which pydicom would mask and rsna_nb takes for bright pixels; the first frame."""
    return unsigned(pixel_array(dataset, raw=True, correct_unused_bits=False, index=0))


def pillow_samples(codestream: bytes) -> np.ndarray:
    """Pillow adds half of the range to signed samples, and moves all to the high end of their 8 or 16 bits."""
    image = Image.open(io.BytesIO(codestream), formats=["JPEG2000"])
    depth = codestream[codestream.index(b"\xff\x4f\xff\x51") + 42]
    bits, is_signed = (depth & 0x7F) + 1, depth >> 7
    if image.mode != ("L" if bits <= 8 else "I;16"):
        raise ValueError("Pillow would convert the samples")
    word = 8 if bits <= 8 else 16
    samples = np.asarray(image).astype(np.int64) >> (word - bits)
    return (samples - 2 ** (bits - 1)) % 2**word if is_signed else samples


def libjpeg_samples(codestream: bytes) -> np.ndarray:
    from libjpeg import decode

    return unsigned(decode(codestream))


def stored_by(opinion: Opinion, dataset: pydicom.Dataset) -> tuple[np.ndarray, int, int]:
    """The stored values and the ends of their range, from HighBit, BitsStored and PixelRepresentation."""
    bits, samples = dataset.BitsStored, opinion.samples
    if dataset.PixelRepresentation == 1:
        if bits <= dataset.HighBit + 1 <= dataset.BitsAllocated:
            samples = samples >> (dataset.HighBit + 1 - bits)
        negative = (samples >> (bits - 1)) & 1
        return samples % 2**bits - negative * 2**bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    unused = dataset.HighBit + 1 - bits
    if 0 < unused < dataset.BitsAllocated and not (samples % 2**unused).any():
        samples = samples // 2**unused
    return samples, 0, max(2**bits, 2 ** int(samples.max()).bit_length()) - 1


def low_band(values: np.ndarray) -> np.ndarray:
    """The reversible 5/3 low band along the first axis by T.800's formulas (F-9, F-10), the ends mirrored."""
    period = max(1, 2 * (len(values) - 1))

    def at(positions: np.ndarray) -> np.ndarray:
        positions = positions % period
        return values[np.minimum(positions, period - positions)]

    n = 2 * np.arange(-1, (len(values) + 1) // 2)
    high = at(n + 1) - (at(n) + at(n + 2)) // 2
    return values[::2] + (high[:-1] + high[1:] + 2) // 4


def level(values: np.ndarray, n: int) -> np.ndarray:
    for _ in range(n):
        values = low_band(low_band(values).T).T
    return values


@dataclass(frozen=True)
class Level:
    """Our stored values at 1/2^n; `is_reduced` where they come from a reduced decode, not from halving a full one."""

    n: int
    values: np.ndarray
    is_reduced: bool


def levels_of(pyramid: Pyramid, reading: dicom.Reading) -> list[Level]:
    """What the picture was made from, in the order in which it was asked for."""
    search = max(0, int(np.log2(max(pyramid.shape) / SEARCH_SIDE)))
    levels = []
    for n in dict.fromkeys((search, reading.level)):
        values = pyramid.level(n)
        is_reduced = isinstance(pyramid, Jpeg2000Pyramid) and pyramid.decoded is None
        levels.append(Level(n, values, is_reduced))
    return levels


def contradiction(ours: Level, opinion: Opinion, dataset: pydicom.Dataset, is_intact: bool) -> str:
    """How our stored values differ from the second decoder's, empty where they do not: they must be equal.

    One thing a reduced decode cannot know, and the pixels that it reaches are left out: a damaged codestream can
    hold values out of the range of its samples, which a full decode clips before it is halved and a reduced one after.
    """
    n = ours.n
    stored, low, high = stored_by(opinion, dataset)
    other = np.clip(level(stored, n), low, high) if n else stored
    if ours.values.shape != other.shape:
        return f"level {n}: shape {ours.values.shape}, {opinion.decoder} {other.shape}"
    difference = np.abs(ours.values.astype(np.int64) - other)
    differs = np.minimum(difference, high + 1 - low - difference) > opinion.tolerance  # one more can change the sign
    if ours.is_reduced and not is_intact:
        clipped = (stored == low) | (stored == high)
        reach = 2 * (2**n - 1)  # of n low bands of five samples
        differs &= cv2.dilate(clipped.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))[:: 2**n, :: 2**n] == 0
    if not differs.any():
        return ""
    return f"level {n}: {differs.mean():.2%} of the pixels differ from {opinion.decoder}'s, by up to {difference.max()}"
