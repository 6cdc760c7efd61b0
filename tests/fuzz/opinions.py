"""What other decoders read in a damaged file.

Nothing here shares a decoder or arithmetic with rsna_nb. A decoder that refuses the bytes has no opinion.
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
    """The samples of one decoder as unsigned words, before BitsStored, HighBit and the sign are applied.

    They may differ by `tolerance`. `binds` says whether decoders must agree on damaged data too. They need not for
    JPEG: its Huffman codes lose synchronisation after a defect, and T.81 leaves open what a decoder shows then.
    """

    decoder: str
    samples: np.ndarray
    tolerance: int = 0
    binds: bool = True


def opinions(dataset: pydicom.Dataset) -> Iterator[Opinion]:
    """Yield what the other decoders read. Those that refuse the bytes or are not installed are skipped."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == uid.RLELossless:
        decoders: list[Decoder] = [("pydicom", lambda: pydicom_samples(dataset), {})]
    else:
        try:
            decoders = codestream_decoders(b"".join(fragments(dataset.PixelData)))
        except (ValueError, struct.error):  # only pydicom reads such items
            return
    for name, decode, bounds in decoders:
        try:
            samples = decode()
        except Exception:
            continue
        yield Opinion(name, samples, **bounds)


Decoder = tuple[str, Callable[[], np.ndarray], dict]


def codestream_decoders(codestream: bytes) -> list[Decoder]:
    """Return the decoders for a codestream, chosen by its own markers rather than by the transfer syntax."""
    head = codestream[:1000]
    libjpeg = ("libjpeg", lambda: libjpeg_samples(codestream))
    if b"\xff\x4f\xff\x51" in head:
        is_signed = codestream[codestream.index(b"\xff\x4f\xff\x51") + 42] >> 7
        return [
            ("imagecodecs' OpenJPEG", lambda: unsigned(imagecodecs.jpeg2k_decode(codestream)), {}),
            # Pillow fills a missing signed tile with the lowest value, others with 0
            ("Pillow's OpenJPEG", lambda: pillow_samples(codestream), {"binds": not is_signed}),
        ]
    if b"\xff\xf7" in head:
        return [(*libjpeg, {})]
    if b"\xff\xc3" in head:
        jpegsof3 = ("jpegsof3", lambda: unsigned(imagecodecs.jpegsof3_decode(codestream)))
        return [(*jpegsof3, {"binds": False}), (*libjpeg, {"binds": False})]
    return [(*libjpeg, {"binds": False, "tolerance": 3})]  # implementations of the inverse DCT round differently


def unsigned(samples: np.ndarray) -> np.ndarray:
    """View samples as unsigned words, then widen them."""
    return samples.astype(samples.dtype.newbyteorder("=")).view(f"u{samples.itemsize}").astype(np.int64)


def pydicom_samples(dataset: pydicom.Dataset) -> np.ndarray:
    """Decode the first frame. The bits above BitsStored are kept, as rsna_nb keeps them; pydicom would mask them."""
    return unsigned(pixel_array(dataset, raw=True, correct_unused_bits=False, index=0))


def pillow_samples(codestream: bytes) -> np.ndarray:
    """Decode by Pillow, which adds half the range to signed samples and shifts all to the high end of 8 or 16 bits."""
    image = Image.open(io.BytesIO(codestream), formats=["JPEG2000"])
    depth = codestream[codestream.index(b"\xff\x4f\xff\x51") + 42]
    bits, is_signed = (depth & 0x7F) + 1, depth >> 7
    if image.mode != ("L" if bits <= 8 else "I;16"):
        raise ValueError("Pillow would convert the samples")
    word = 8 if bits <= 8 else 16
    samples = np.asarray(image).astype(np.int64) >> (word - bits)
    return (samples - 2 ** (bits - 1)) % 2**word if is_signed else samples


def libjpeg_samples(codestream: bytes) -> np.ndarray:
    """Decode by libjpeg (pylibjpeg), if it is installed."""
    from libjpeg import decode

    return unsigned(decode(codestream))


def stored_by(opinion: Opinion, dataset: pydicom.Dataset) -> tuple[np.ndarray, int, int]:
    """Return the stored values and the ends of their range, by HighBit, BitsStored and PixelRepresentation."""
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
    """Return the reversible 5/3 low band along the first axis (T.800, F-9 and F-10), with mirrored ends."""
    period = max(1, 2 * (len(values) - 1))

    def at(positions: np.ndarray) -> np.ndarray:
        positions = positions % period
        return values[np.minimum(positions, period - positions)]

    n = 2 * np.arange(-1, (len(values) + 1) // 2)
    high = at(n + 1) - (at(n) + at(n + 2)) // 2
    return values[::2] + (high[:-1] + high[1:] + 2) // 4


def level(values: np.ndarray, n: int) -> np.ndarray:
    """Halve values n times along both axes."""
    for _ in range(n):
        values = low_band(low_band(values).T).T
    return values


@dataclass(frozen=True)
class Level:
    """Our stored values at 1/2^n of the size. `is_reduced` says that they were decoded reduced rather than halved."""

    n: int
    values: np.ndarray
    is_reduced: bool


def levels_of(pyramid: Pyramid, reading: dicom.Reading) -> list[Level]:
    """Return the levels that the picture was made from, in the order in which they were decoded."""
    search = max(0, int(np.log2(max(pyramid.shape) / SEARCH_SIDE)))
    levels = []
    for n in dict.fromkeys((search, reading.level)):
        values = pyramid.level(n)
        is_reduced = isinstance(pyramid, Jpeg2000Pyramid) and not pyramid.is_decoded
        levels.append(Level(n, values, is_reduced))
    return levels


def contradiction(ours: Level, opinion: Opinion, dataset: pydicom.Dataset, is_intact: bool) -> str:
    """Say how our stored values differ from those of another decoder. "" means that they are equal, as they must be.

    One difference is allowed. A damaged codestream can hold values outside the range of its samples. A full decode
    clips them before halving, a reduced decode afterwards. So the pixels that such values reach are not compared.
    """
    n = ours.n
    stored, low, high = stored_by(opinion, dataset)
    other = np.clip(level(stored, n), low, high) if n else stored
    if ours.values.shape != other.shape:
        return f"level {n}: shape {ours.values.shape}, {opinion.decoder} {other.shape}"
    difference = np.abs(ours.values.astype(np.int64) - other)
    differs = (
        np.minimum(difference, high + 1 - low - difference) > opinion.tolerance
    )  # modulo the range: a difference of 1 can change the sign
    if ours.is_reduced and not is_intact:
        clipped = (stored == low) | (stored == high)
        reach = 2 * (2**n - 1)  # of n filters of five samples
        differs &= cv2.dilate(clipped.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))[:: 2**n, :: 2**n] == 0
    if not differs.any():
        return ""
    return f"level {n}: {differs.mean():.2%} of the pixels differ from {opinion.decoder}'s, by up to {difference.max()}"
