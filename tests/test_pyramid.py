"""The same low band for every codec, to the bit, and everything unusual decoded in full."""

import struct

import cv2
import imagecodecs
import numpy as np
import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from rsna_nb.decode import Jpeg2000Pyramid, jpeg_2000_header, open_pyramid, stored_values
from rsna_nb.dicom import read, read_dataset
from rsna_nb.pyramid import HalvedPyramid, halve
from tests.conftest import REAL_DIR, needs_real_files, write_dicom

OTHER_SYNTAXES = [ExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless, RLELossless]
REAL_FILES = sorted(REAL_DIR.glob("train_images/*/*.dcm"))


def textured(shape: tuple[int, int], bits: int = 12, seed: int = 0) -> np.ndarray:
    """Noise with edges and saturated pixels, so that its low band leaves the stored range."""
    noise = np.random.default_rng(seed).normal(0.5, 0.4, shape)
    return (np.clip(cv2.GaussianBlur(noise, (0, 0), 0.7), 0, 1) * (2**bits - 1)).astype(np.uint16)


def with_codestream(path, pixels: np.ndarray, **options: object):
    """A JPEG 2000 file whose codestream is encoded with these options."""
    options = {"codecformat": "j2k", "reversible": True, "level": 0, "bitspersample": 12, "resolutions": 6} | options
    return write_dicom(path, pixels, JPEG2000Lossless, codestream=bytes(imagecodecs.jpeg2k_encode(pixels, **options)))


def halved_in_plain_python(values: list[int]) -> list[int]:
    """T.800 F.4.8.1 by the letter, one row."""
    count = len(values)

    def sample(i: int) -> int:
        period = max(1, 2 * (count - 1))
        i %= period
        return values[min(i, period - i)]

    def high(n: int) -> int:
        return sample(2 * n + 1) - (sample(2 * n) + sample(2 * n + 2)) // 2

    return [sample(2 * n) + (high(n - 1) + high(n) + 2) // 4 for n in range(-(-count // 2))]


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 3), (5, 4), (33, 64), (65, 31), (130, 67)])
def test_halving_is_the_standards_low_band(shape):
    values = textured(shape).astype(np.int16)
    columns = np.array([halved_in_plain_python(column) for column in values.T.tolist()]).T
    expected = np.array([halved_in_plain_python(row) for row in columns.tolist()])
    np.testing.assert_array_equal(halve(values), expected)


@pytest.mark.parametrize("bits", [8, 10, 12, 13, 14, 16])
def test_no_halving_overflows(bits):
    extremes = (np.random.default_rng(bits).integers(0, 2, (301, 420)) * (2**bits - 1)).astype(np.uint16)
    checkers = np.indices((256, 256)).sum(0) % 2 * (2**bits - 1)
    for picture in (extremes, checkers.astype(np.uint16)):
        pyramid, wide = HalvedPyramid(picture, bits), picture.astype(np.int64).astype(np.int32)
        for level in range(1, 7):
            wide = halve(wide)
            np.testing.assert_array_equal(pyramid.level(level), np.clip(wide, 0, 2**bits - 1))


@pytest.mark.parametrize("shape", [(640, 480), (641, 479), (1023, 977), (402, 301)])
@pytest.mark.parametrize(("bits", "levels"), [(12, 6), (12, 3), (12, 1), (16, 6), (8, 6)])
def test_a_jpeg_2000_codestream_holds_the_same_levels(tmp_path, shape, bits, levels):
    pixels = textured(shape, bits)
    pixels = pixels.astype(np.uint8) if bits == 8 else pixels
    path = with_codestream(tmp_path / "x.dcm", pixels, bitspersample=bits, resolutions=levels)
    path = edited(path, BitsStored=bits, HighBit=bits - 1)
    pyramid, expected = open_pyramid(read_dataset(path)), HalvedPyramid(pixels, bits)
    assert isinstance(pyramid, Jpeg2000Pyramid) == (levels > 1)
    for level in range(6):
        np.testing.assert_array_equal(pyramid.level(level), expected.level(level))
        if 0 < level < levels:
            assert pyramid.decoded is None or level == 0
            pyramid.decoded = None  # so that the next level is read from the codestream again
