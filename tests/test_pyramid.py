"""Reduced images are identical for every codec, and unusual codestreams are decoded in full."""

import io
import struct
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from rsna_nb.dicom import read
from rsna_nb.dicom.dataset import read_dataset
from rsna_nb.dicom.decode import Jpeg2000Pyramid, open_pyramid, stored_values
from rsna_nb.dicom.pyramid import Pyramid, halve, stored_range
from rsna_nb.dicom.voi import declared_voi, modality_values, to_brightness
from tests.conftest import ENCODERS, REAL_FILES, needs_real_files, write_dicom

SYNTAXES = [JPEG2000Lossless, HTJ2KLossless, ExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless, RLELossless]
SOME_REAL_FILES = [  # encoding one in six syntaxes takes 3 s
    pytest.param(*file.values, id=file.id, marks=[] if i == 7 else [pytest.mark.slow])
    for i, file in enumerate(REAL_FILES)
]


def textured(shape: tuple[int, int], bits: int = 12) -> np.ndarray:
    """Draw noise with edges and saturated pixels, so that its low band exceeds the stored range."""
    noise = np.random.default_rng(0).normal(0.5, 0.4, shape)
    values = np.clip(cv2.GaussianBlur(noise, (0, 0), 0.7), 0, 1) * (2**bits - 1)
    return values.astype(np.uint8 if bits <= 8 else np.uint16)


def rewritten(source: Path, target: Path, pixels: np.ndarray, syntax: str, **options: object) -> Path:
    """Write a copy of a file with these pixels in another transfer syntax; `options` go to the JPEG 2000 encoder."""
    dataset = pydicom.dcmread(source)
    if syntax == JPEG2000Lossless:
        options = {
            "codecformat": "j2k",
            "reversible": True,
            "level": 0,
            "bitspersample": 12,
            "resolutions": 6,
        } | options
        content = bytes(imagecodecs.jpeg2k_encode(pixels, **options))
    else:
        content = ENCODERS[syntax](pixels) if syntax in ENCODERS else pixels.tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([content]) if syntax != ExplicitVRLittleEndian else content
    dataset["PixelData"].VR = "OW" if syntax == ExplicitVRLittleEndian else "OB"
    dataset["PixelData"].is_undefined_length = syntax != ExplicitVRLittleEndian
    dataset.save_as(target)
    return target


def jpeg_2000_file(folder: Path, pixels: np.ndarray, bits: int = 12, **options: object) -> Path:
    plain = write_dicom(folder / "plain.dcm", pixels, BitsStored=bits, HighBit=bits - 1)
    return rewritten(plain, folder / "jpeg2000.dcm", pixels, JPEG2000Lossless, bitspersample=bits, **options)


def halved_by_the_standard(values: list[int]) -> list[int]:
    """Halve one row sample by sample as ITU-T T.800, F.4.8.1, writes it."""
    last = len(values) - 1

    def sample(i: int) -> int:
        i %= max(1, 2 * last)
        return values[min(i, 2 * last - i)] if last else values[0]

    def high(n: int) -> int:
        return sample(2 * n + 1) - (sample(2 * n) + sample(2 * n + 2)) // 2

    return [sample(2 * n) + (high(n - 1) + high(n) + 2) // 4 for n in range(last // 2 + 1)]


def low_band_of(values: np.ndarray) -> np.ndarray:
    """Halve along the first axis of many columns at once, without blocks and scratch memory."""
    period = max(1, 2 * (len(values) - 1))

    def sample(i: np.ndarray) -> np.ndarray:
        return values[np.minimum(i % period, -i % period)].astype(np.int64)

    n = 2 * np.arange(-1, (len(values) + 1) // 2)
    high = sample(n + 1) - (sample(n) + sample(n + 2)) // 2
    return sample(n[1:]) + (high[:-1] + high[1:] + 2) // 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 3), (5, 4), (33, 64), (65, 31), (130, 67), (200, 43)])
def test_halving_gives_the_standards_low_band(shape):
    values = textured(shape).astype(np.int16)
    columns = np.array([halved_by_the_standard(column) for column in values.T.tolist()]).T
    expected = np.array([halved_by_the_standard(row) for row in columns.tolist()])
    np.testing.assert_array_equal(halve(values), expected)


@pytest.mark.parametrize("columns", [(0, 0), (60, 0), (0, 61), (57, 40), (99, 100), (200, 0)])
@pytest.mark.parametrize("rows", [(0, 0), (31, 0), (0, 4), (140, 110), (9, 40)])
@pytest.mark.parametrize("shape", [(250, 200), (251, 201)])
def test_copied_air_equals_filtered_air(shape, rows, columns):
    values = np.full(shape, 7, np.int16)
    inside = np.s_[rows[0] : shape[0] - rows[1], columns[0] : shape[1] - columns[1]]
    values[inside] = textured(shape).astype(np.int16)[inside]
    for corner in (7, 4000):
        values[0, 0] = values[-1, 1] = corner
        expected = low_band_of(low_band_of(values).T).T
        np.testing.assert_array_equal(halve(values), expected)


@pytest.mark.parametrize("bits", [8, 10, 12, 13, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_no_halving_overflows(bits, signed):
    noise = np.random.default_rng(0).integers(0, 2, (301, 420))
    checkers, stripes = np.indices((256, 256)).sum(0) % 2, np.indices((256, 256))[0] // 2 % 2
    for picture in (noise, checkers, stripes, 1 - stripes):
        values = picture * (2**bits - 1) - signed * 2 ** (bits - 1)
        stored = values.astype(np.int16 if signed else np.uint16)
        pyramid, wide = Pyramid(stored, bits), stored.astype(np.int32)
        for level in range(1, 7):
            wide = halve(wide)
            np.testing.assert_array_equal(pyramid.level(level), np.clip(wide, values.min(), values.max()))


@pytest.mark.parametrize("shape", [(640, 480), (641, 479), (511, 325), (402, 301)])
@pytest.mark.parametrize(("bits", "resolutions"), [(12, 6), (12, 3), (12, 1), (16, 6), (8, 6)])
def test_a_jpeg_2000_codestream_holds_the_same_levels(tmp_path, shape, bits, resolutions):
    pixels = textured(shape, bits)
    path, expected = jpeg_2000_file(tmp_path, pixels, bits, resolutions=resolutions), Pyramid(pixels, bits)
    for level in range(6):
        pyramid = open_pyramid(read_dataset(path))
        np.testing.assert_array_equal(pyramid.level(level), expected.level(level))
        reduced = isinstance(pyramid, Jpeg2000Pyramid) and not pyramid.is_decoded
        assert reduced == (0 < level < resolutions)


def test_a_component_with_its_own_coding_style_is_decoded_in_full(tmp_path):
    """A COC segment can give the component other levels or another wavelet than COD does."""
    path = jpeg_2000_file(tmp_path, textured((640, 480)))
    dataset = pydicom.dcmread(path)
    codestream = open_pyramid(read_dataset(path)).codestream
    cod = codestream.index(b"\xff\x52")
    length = struct.unpack_from(">H", codestream, cod + 2)[0]
    style = codestream[cod + 9 : cod + 2 + length]
    component = b"\xff\x53" + struct.pack(">HBB", 4 + len(style), 0, 0) + style
    end = cod + 2 + length
    dataset.PixelData = encapsulate([codestream[:end] + component + codestream[end:]])
    dataset.save_as(path)
    pyramid = open_pyramid(read_dataset(path))
    assert not isinstance(pyramid, Jpeg2000Pyramid)
    np.testing.assert_array_equal(pyramid.level(0), textured((640, 480)))


UNUSUAL = {
    "wrapped as JP2": {"codecformat": "jp2"},
    "one level": {"resolutions": 1},
}


@pytest.mark.parametrize("options", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_codestream_is_decoded_in_full(tmp_path, options):
    pixels = textured((641, 479))
    pyramid = open_pyramid(read_dataset(jpeg_2000_file(tmp_path, pixels, **options)))
    assert not isinstance(pyramid, Jpeg2000Pyramid)
    for level in range(4):
        np.testing.assert_array_equal(pyramid.level(level), Pyramid(pixels, 12).level(level))


def test_several_tiles_are_decoded_in_full(tmp_path):
    """Each tile is transformed separately and mirrored at its own edges."""
    pixels, content = textured((641, 479), 8), io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG2000", irreversible=False, no_jp2=True, tile_size=(256, 256))
    path = write_dicom(tmp_path / "x.dcm", pixels, JPEG2000Lossless, BitsStored=8, HighBit=7)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([content.getvalue()])
    dataset.save_as(path)
    np.testing.assert_array_equal(open_pyramid(read_dataset(path)).level(2), Pyramid(pixels, 8).level(2))


def test_the_irreversible_wavelet_is_decoded_in_full(tmp_path):
    pixels = textured((641, 479))
    path = jpeg_2000_file(tmp_path, pixels, reversible=False, level=80)
    pyramid = open_pyramid(read_dataset(path))
    assert not isinstance(pyramid, Jpeg2000Pyramid)
    assert 0 < np.abs(pyramid.level(0).astype(int) - pixels).mean() < 20


@pytest.mark.parametrize("header", [{"BitsStored": 16, "HighBit": 15}, {"BitsStored": 12, "HighBit": 15}])
def test_a_header_with_other_bits_than_the_codestream_changes_no_value(tmp_path, header):
    pixels = textured((640, 480)) // 2 + 1000
    path = jpeg_2000_file(tmp_path, pixels)
    dataset = pydicom.dcmread(path)
    dataset.update(header)
    dataset.save_as(path)
    pyramid = open_pyramid(read_dataset(path))
    for level in (0, 1, 2):
        np.testing.assert_array_equal(pyramid.level(level), Pyramid(pixels, 16).level(level))


def test_a_codestream_of_more_bits_than_bits_stored_is_decoded_in_full(tmp_path):
    pixels = textured((1600, 1200))
    pixels[400:800, 200:600] = 30000
    path = rewritten(
        write_dicom(tmp_path / "plain.dcm", pixels), tmp_path / "x.dcm", pixels, JPEG2000Lossless, bitspersample=16
    )
    pyramid = open_pyramid(read_dataset(path))
    assert pyramid.bits == 15
    np.testing.assert_array_equal(pyramid.level(2), Pyramid(pixels, 15).level(2))


def test_signed_samples_keep_their_sign_when_halved(tmp_path):
    pixels = textured((640, 480)).astype(np.int16) - 2048
    for syntax in (ExplicitVRLittleEndian, JPEG2000Lossless):
        path = write_dicom(tmp_path / "x.dcm", pixels, syntax)
        np.testing.assert_array_equal(open_pyramid(read_dataset(path)).level(2), Pyramid(pixels, 12).level(2))


@needs_real_files
@pytest.mark.parametrize("path", SOME_REAL_FILES)
@pytest.mark.slow
def test_a_real_mammogram_gives_the_same_picture_in_every_codec(tmp_path, path):
    stored, _ = stored_values(read_dataset(path))
    paths = [rewritten(path, tmp_path / f"{syntax}.dcm", stored, syntax) for syntax in SYNTAXES]
    for size in (512, 1024):
        first, *others = [read(path, size) for path in paths]
        assert len({reading.transfer_syntax for reading in (first, *others)}) == len(SYNTAXES)
        for reading in others:
            np.testing.assert_array_equal(reading.picture, first.picture)


@needs_real_files
@pytest.mark.parametrize("path", REAL_FILES)
@pytest.mark.parametrize(
    ("window", "mean", "percentile_99"), [({}, 0.002, 0.012), ({"WindowCenter": 2048, "WindowWidth": 1500}, 0.01, 0.07)]
)
@pytest.mark.slow
def test_halving_before_windowing_differs_little_from_halving_after_it(path, window, mean, percentile_99):
    """Check the bounds that voi.py states, over the breast, after two halvings."""
    dataset = read_dataset(path)
    dataset.update(window)
    pyramid = Pyramid(*stored_values(dataset))
    voi = declared_voi(dataset, np.array(stored_range(pyramid.bits, pyramid.signed)))
    halved, full = (to_brightness(modality_values(pyramid.level(n), dataset), False, voi, None) for n in (2, 0))
    taps = np.array([-1, 2, 6, 2, -1], np.float32) / 8
    for _ in range(2):
        full = cv2.sepFilter2D(full, cv2.CV_32F, taps, taps, borderType=cv2.BORDER_REFLECT_101)[::2, ::2]
    difference = np.abs(np.clip(full, 0, 1) - halved)[halved > 0.02]
    assert difference.mean() < mean
    assert np.percentile(difference, 99) < percentile_99
