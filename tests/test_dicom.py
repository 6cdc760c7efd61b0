"""Reading one DICOM file: transfer syntaxes, windows, padding, bits and signs, and files that are refused."""

import io
import pickle
import struct
import warnings

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from rsna_nb.dicom import DicomError, read, read_mammogram
from rsna_nb.dicom.dataset import read_dataset
from rsna_nb.dicom.decode import stored_values
from rsna_nb.dicom.polarity import declares_inverted
from rsna_nb.dicom.pyramid import Pyramid, level_for, stored_range
from rsna_nb.dicom.reader import read_frame
from rsna_nb.dicom.voi import declared_voi, modality_values, padding_mask, range_voi, to_brightness
from tests.conftest import OTHER_DIR, REAL_FILES, needs_real_files, write_dicom

SYNTAXES = [ExplicitVRLittleEndian, JPEG2000Lossless, HTJ2KLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless]


def brightness(path, halved: int = 0) -> np.ndarray:
    """Return the brightness of the whole frame, at full size or halved."""
    dataset = read_dataset(path)
    pyramid = Pyramid(*stored_values(dataset))
    stored = pyramid.level(halved)
    values, padding = modality_values(stored, dataset), padding_mask(stored, dataset)
    voi = declared_voi(dataset, np.array(stored_range(pyramid.bits, pyramid.signed)))
    if not voi.shows(values):
        voi = range_voi(values, np.ones(values.shape, np.uint8), padding, voi)
    return to_brightness(values, declares_inverted(dataset), voi, padding)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name[:20])
def test_every_transfer_syntax_gives_the_stored_values_and_the_same_picture(tmp_path, breast, syntax):
    path = write_dicom(tmp_path / "x.dcm", breast, syntax)
    stored, bits = stored_values(read_dataset(path))
    np.testing.assert_array_equal(stored, breast)
    assert bits == 12
    plain = write_dicom(tmp_path / "plain.dcm", breast)
    np.testing.assert_array_equal(read_mammogram(path, 128), read_mammogram(plain, 128))


def test_a_picture_has_the_size_asked_for_and_lies_between_0_and_1(tmp_path, breast):
    path = write_dicom(tmp_path / "x.dcm", breast)
    for size, shape in ((96, (96, 96)), ((128, 64), (128, 64)), ([64, 128], (64, 128))):
        picture = read_mammogram(path, size)
        assert picture.shape == shape
        assert picture.dtype == np.float32
        assert picture.min() == 0
        assert 0.5 < picture.max() <= 1


@pytest.mark.parametrize("size", [0, -64, 64.5, "512", (64,) * 3, [64, 0], None])
def test_a_wrong_img_size_is_an_error_that_names_it_and_not_the_file(tmp_path, breast, size):
    with pytest.raises(ValueError, match="img_size must be") as caught:
        read_mammogram(write_dicom(tmp_path / "x.dcm", breast), size)
    assert not isinstance(caught.value, DicomError)


def test_img_size_may_be_a_numpy_number(tmp_path, breast):
    path = write_dicom(tmp_path / "x.dcm", breast)
    np.testing.assert_array_equal(read_mammogram(path, np.int64(96)), read_mammogram(path, 96))


WINDOWS = {
    "linear": {"WindowCenter": 2000, "WindowWidth": 1500},
    "first of several": {"WindowCenter": [2000, 100], "WindowWidth": [1500, 10]},
    "exact": {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "LINEAR_EXACT"},
    "after slope": {"WindowCenter": 900, "WindowWidth": 700, "RescaleSlope": 0.5, "RescaleIntercept": -100},
}


@pytest.mark.parametrize("attributes", WINDOWS.values(), ids=WINDOWS)
def test_a_window_gives_the_same_values_as_pydicom(tmp_path, breast, attributes):
    path = write_dicom(tmp_path / "x.dcm", breast, **attributes)
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset, index=0)
    expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(brightness(path), expected, atol=2e-3)


def test_a_negative_rescale_slope_is_followed(tmp_path, breast):
    """pydicom inverts such an image, because it takes the largest stored value for the largest output."""
    attributes = {"WindowCenter": -2000, "WindowWidth": 1501, "RescaleSlope": -1, "RescaleIntercept": 0}
    path = write_dicom(tmp_path / "x.dcm", breast, **attributes)
    expected = np.clip((-breast.astype(float) + 2000.5) / 1500 + 0.5, 0, 1)
    np.testing.assert_allclose(brightness(path), expected, atol=1e-6)


def test_a_sigmoid_window_takes_the_ends_of_the_stored_range_to_0_and_1(tmp_path, breast):
    breast[0, :2] = (0, 4095)
    path = write_dicom(
        tmp_path / "x.dcm", breast, WindowCenter=[2048, 1], WindowWidth=[3000, 1], VOILUTFunction="SIGMOID"
    )
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(dataset.pixel_array, dataset, index=0)
    assert values.min() > 0.05 * 4095  # what DICOM's own formula leaves
    expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(brightness(path), expected, atol=1e-4)


def test_a_voi_lut_comes_before_a_window(tmp_path, breast):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.arange(4096) ** 2 // 256).astype("<u2").tobytes()
    path = write_dicom(
        tmp_path / "x.dcm", breast, VOILUTSequence=Sequence([table]), WindowCenter=2000, WindowWidth=1500
    )
    expected = (breast.astype(np.int64) ** 2 // 256) / (4095**2 // 256)
    np.testing.assert_allclose(brightness(path), expected, atol=1e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"WindowCenter": 2000},
        {"WindowCenter": 2000, "WindowWidth": -3},
        {"WindowCenter": 9e6, "WindowWidth": 10},
        {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "CUBIC"},
    ],
)
def test_without_a_usable_window_the_range_of_the_pixels_is_used_and_named(tmp_path, breast, attributes):
    path = write_dicom(tmp_path / "x.dcm", breast, **attributes)
    low, high = breast.min(), breast.max()
    np.testing.assert_allclose(brightness(path), (breast.astype(float) - low) / (high - low), atol=1e-6)
    reading = read(path, 400)
    assert reading.window.startswith(f"min-max {low} {high}")
    assert reading.window.endswith("cannot be used)") == ("window" in reading.notes) == bool(attributes)
    assert "CUBIC" not in reading.window


@pytest.mark.parametrize("marker", [4095, 65535])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_bright_marker_does_not_change_the_range(tmp_path, breast, marker, photometric):
    breast[breast > 2600] = 2600
    marked = breast.copy()
    marked[20:40, 250:290] = marker
    if photometric == "MONOCHROME1":
        breast, marked = 4095 - breast, 4095 - np.minimum(marked, 4095)
    attributes = {"PhotometricInterpretation": photometric}
    paths = [write_dicom(tmp_path / f"{i}.dcm", pixels, **attributes) for i, pixels in enumerate((breast, marked))]
    np.testing.assert_allclose(read_mammogram(paths[1], 128), read_mammogram(paths[0], 128), atol=1e-6)


def test_a_breast_of_one_value_without_a_window_is_white(tmp_path):
    pixels = np.full((400, 300), 4000, np.uint16)
    pixels[:4, :40] = 10
    picture = read_mammogram(write_dicom(tmp_path / "x.dcm", pixels), 64)
    assert np.isfinite(picture).all()
    assert picture.max() == 1


def test_left_aligned_values_are_shifted_down(tmp_path, breast):
    window = {"WindowCenter": 2000, "WindowWidth": 1500}
    left_aligned = write_dicom(tmp_path / "x.dcm", breast << 4, HighBit=15, **window)
    plain = write_dicom(tmp_path / "plain.dcm", breast, **window)
    np.testing.assert_array_equal(read_mammogram(left_aligned, 64), read_mammogram(plain, 64))


@pytest.mark.parametrize(("center", "width"), [("", ""), ("abc", "def"), ("2000", "1e")])
def test_a_window_that_is_not_a_number_is_ignored(tmp_path, breast, center, width):
    path = write_dicom(tmp_path / "x.dcm", breast)
    dataset = pydicom.dcmread(path)
    for keyword, value in (("WindowCenter", center), ("WindowWidth", width)):
        with warnings.catch_warnings(action="ignore"):
            element = pydicom.DataElement(
                pydicom.datadict.tag_for_keyword(keyword), "LO", value, validation_mode=pydicom.config.IGNORE
            )
        dataset.add(element)
    dataset.save_as(path)
    assert read(path, 64).window.startswith("min-max")


def test_monochrome1_is_inverted(tmp_path, breast):
    upright = write_dicom(tmp_path / "2.dcm", breast, WindowCenter=2048, WindowWidth=4096)
    inverted = write_dicom(
        tmp_path / "1.dcm",
        (4095 - breast).astype(np.uint16),
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=2048,
        WindowWidth=4096,
    )
    np.testing.assert_allclose(brightness(inverted), brightness(upright), atol=1e-3)


def test_padding_is_air_and_does_not_change_the_range(tmp_path, breast):
    breast[:, 280:] = 4095
    path = write_dicom(tmp_path / "x.dcm", breast)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 4095)
    dataset.save_as(path)
    bright = brightness(path)
    assert (bright[:, 280:] == 0).all()
    assert bright[:, :280].max() == 1


def test_signed_values_keep_their_sign(tmp_path, breast):
    signed = breast.astype(np.int16) - 2048
    path = write_dicom(tmp_path / "x.dcm", signed, WindowCenter=0, WindowWidth=4096)
    np.testing.assert_array_equal(stored_values(read_dataset(path))[0], signed)
    plain = write_dicom(tmp_path / "plain.dcm", breast, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_allclose(brightness(path), brightness(plain), atol=1e-3)


def test_a_pixel_above_bits_stored_widens_the_range(tmp_path, breast):
    breast[200, 10] = 5000
    path = write_dicom(tmp_path / "x.dcm", breast, JPEG2000Lossless)
    stored, bits = stored_values(read_dataset(path))
    assert (stored[200, 10], bits) == (5000, 13)


def edited(path, **attributes):
    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def cut(path, share: float = 0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def as_text(path):
    path.write_text("no DICOM at all")
    return path


def emptied(path):
    path.write_bytes(b"")
    return path


FAULTS = {
    "empty": (emptied, "the file is empty"),
    "text": (as_text, "not a DICOM, PNG, JPEG, TIFF or PGM file"),
    "missing": (lambda path: path.with_name("nowhere.dcm"), "the file is missing"),
    "truncated": (cut, "cut off"),
    "truncated in the header": (lambda path: cut(path, 0.001), "no PixelData"),
    "colour": (lambda path: edited(path, PhotometricInterpretation="RGB", SamplesPerPixel=3), "not a greyscale image"),
    "three samples": (lambda path: edited(path, SamplesPerPixel=3), "SamplesPerPixel (0028,0002) must be 1: it is 3"),
    "two frames": (lambda path: edited(path, NumberOfFrames=2), "NumberOfFrames (0028,0008) must be 1"),
    "no photometric": (lambda path: edited(path, PhotometricInterpretation=""), "not a greyscale image"),
    "wrong rows": (lambda path: edited(path, Rows=401), "cut off"),
    "32 bits": (lambda path: edited(path, BitsAllocated=32), "BitsAllocated"),
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_file_is_refused_with_its_reason(tmp_path, breast, fault, reason):
    path = fault(write_dicom(tmp_path / "x.dcm", breast))
    with pytest.raises(DicomError) as caught:
        read_mammogram(path, 64)
    assert reason in caught.value.reason
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("syntax", SYNTAXES[1:], ids=lambda syntax: syntax.name[:20])
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path, breast, syntax):
    with pytest.raises(DicomError):
        read_mammogram(cut(write_dicom(tmp_path / "x.dcm", breast, syntax)), 64)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless], ids=lambda s: s.name[:20])
def test_a_codestream_of_another_size_than_the_header_is_refused(tmp_path, breast, syntax):
    path = edited(write_dicom(tmp_path / "x.dcm", breast, syntax), Rows=399)
    with pytest.raises(DicomError, match=r"\(400, 300\) pixels, the header says \(399, 300\)"):
        read_mammogram(path, 64)


def test_a_file_without_pixels_is_refused(tmp_path, breast):
    with pytest.raises(DicomError, match="no PixelData"):
        read_mammogram(write_dicom(tmp_path / "x.dcm", breast, PixelData=None), 64)


def test_an_unknown_transfer_syntax_is_named(tmp_path, breast):
    path = write_dicom(tmp_path / "x.dcm", breast, JPEG2000Lossless)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.save_as(path)
    with pytest.raises(DicomError, match="MPEG2"):
        read_mammogram(path, 64)


@pytest.mark.parametrize("value", [0, 4095])
def test_an_image_of_one_value_is_refused(tmp_path, value):
    path = write_dicom(tmp_path / "x.dcm", np.full((400, 300), value, np.uint16))
    with pytest.raises(DicomError, match=f"every pixel has the same value, {value}"):
        read_mammogram(path, 64)


def test_an_image_of_air_alone_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 20, (400, 300)).astype(np.uint16)
    path = write_dicom(tmp_path / "x.dcm", noise, WindowCenter=2048, WindowWidth=4096)
    with pytest.raises(DicomError, match="no tissue"):
        read_mammogram(path, 64)


def test_an_error_can_be_pickled_to_another_process():
    error = pickle.loads(pickle.dumps(DicomError("a.dcm", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.dcm", "broken", "a.dcm: broken")


@needs_real_files
@pytest.mark.parametrize("size", [512, 1024])
@pytest.mark.parametrize("path", REAL_FILES)
def test_a_real_mammogram_is_whole_bright_and_on_black(path, size):
    reading = read(path, size)
    picture = reading.picture
    x_min, y_min, x_max, y_max = reading.crop
    assert max((picture > 0).any(axis=1).sum(), (picture > 0).any(axis=0).sum()) > 0.98 * size  # it fills one side
    assert (y_max - y_min) > 0.6 * reading.rows or (x_max - x_min) > 0.6 * reading.columns
    assert np.median(picture[picture > 0]) > 0.1
    corners = [picture[:8, :8], picture[:8, -8:], picture[-8:, :8], picture[-8:, -8:]]
    assert all((corner == 0).all() for corner in corners)


@needs_real_files
@pytest.mark.parametrize("path", REAL_FILES[:4])
def test_the_marker_of_a_real_mammogram_is_outside_of_the_crop_and_the_breast_inside(path):
    bright = brightness(path)
    x_min, y_min, x_max, y_max = read(path, 64).crop
    outside = bright.copy()
    outside[y_min:y_max, x_min:x_max] = 0
    rows, columns = np.nonzero(outside > 0.3)
    assert rows.max() - rows.min() < 0.05 * len(bright)  # a line of text
    assert columns.max() - columns.min() < 0.12 * bright.shape[1]
    assert len(rows) > 500


@needs_real_files
@pytest.mark.parametrize(
    "name", [pytest.param("966_fixed", marks=pytest.mark.slow), "RG2_JPLL", "JPEGLosslessP14SV1_1s_1f_u_16_16"]
)
def test_other_real_files_have_the_values_that_a_second_codec_reads(name):
    """pydicom has no decoder of its own for these files, so the stored values are compared with a second codec's."""
    path = OTHER_DIR / f"{name}.dcm"
    dataset = read_dataset(path)
    stored, bits = stored_values(dataset)
    np.testing.assert_array_equal(stored, second_decoder(dataset))
    values, low, high = stored.astype(float), stored.min(), stored.max()
    if dataset.get("WindowCenter"):
        values = apply_voi_lut(apply_modality_lut(stored, dataset), dataset, index=0).astype(float)
        low, high = 0, 2**bits - 1
    expected = (values - low) / (high - low)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    np.testing.assert_allclose(brightness(path), expected, atol=2e-3)
    assert 0 < read_mammogram(path, 512).mean() < 1


def second_decoder(dataset: Dataset) -> np.ndarray:
    codestream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    if dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1:
        return imagecodecs.jpegsof3_decode(codestream)
    return np.asarray(Image.open(io.BytesIO(codestream))) >> (16 - dataset.BitsStored)


@needs_real_files
def test_a_window_that_shows_nothing_is_replaced_and_named():
    reading = read(OTHER_DIR / "JPEG2KLossless_1s_1f_u_16_16.dcm", 256)
    assert reading.window.startswith("min-max 3")
    assert reading.window.endswith("(LINEAR 2725 5310 cannot be used)")
    assert reading.picture.std() > 0.1


@needs_real_files
def test_a_defective_real_codestream_is_refused_with_its_reason():
    with pytest.raises(DicomError, match="defective JPEG 2000"):
        read_mammogram(OTHER_DIR / "966_broken.dcm", 512)


def with_pixel_data(path, content: bytes):
    """Replace the pixel data of a file by one fragment with other bytes."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([content])
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("offsets", [[64, 2**31], [64, 10**6], [64, 60], [0, 64], [64, 64]])
def test_rle_segments_with_wrong_offsets_are_refused(tmp_path, breast, offsets):
    """The decoder follows the offsets: without a check it reads past the end of the data, or crashes."""
    path = write_dicom(tmp_path / "x.dcm", breast, RLELossless)
    header = struct.pack("<16I", 2, *offsets, *[0] * 13)
    with pytest.raises(DicomError, match="defective RLE"):
        read_mammogram(with_pixel_data(path, header + bytes(2000)), 64)


@pytest.mark.parametrize(
    ("syntax", "options"), [(JPEGLosslessSV1, {"lossless": True, "predictor": 1}), (JPEGExtended12Bit, {"level": 95})]
)
def test_jpeg_data_that_end_too_soon_are_refused_despite_an_end_marker(tmp_path, breast, syntax, options):
    codestream = imagecodecs.jpeg8_encode(breast, bitspersample=12, **options)
    path = write_dicom(tmp_path / "x.dcm", breast, JPEGLosslessSV1)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    assert read_mammogram(with_pixel_data(path, codestream), 64).any()
    for share in (0.3, 0.6, 0.9):
        cut_off = codestream[: int(len(codestream) * share)] + b"\xff\xd9"
        with pytest.raises(DicomError, match="defective JPEG"):
            read_mammogram(with_pixel_data(path, cut_off), 64)


def test_jpeg_2000_tiles_without_data_are_refused(tmp_path, breast):
    pixels, content = (breast >> 4).astype(np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG2000", irreversible=False, no_jp2=True, tile_size=(128, 128))
    codestream = content.getvalue()
    attributes = {"BitsStored": 8, "HighBit": 7}
    whole = with_pixel_data(write_dicom(tmp_path / "x.dcm", pixels, JPEG2000Lossless, **attributes), codestream)
    assert read_mammogram(whole, 64).max() > 0
    last_tile = codestream.rindex(b"\xff\x90\x00\x0a")
    with pytest.raises(DicomError, match="12 tiles: too many, or some are missing"):
        read_mammogram(with_pixel_data(whole, codestream[:last_tile] + b"\xff\xd9"), 64)


def test_pixel_data_of_several_frames_are_not_taken_for_one(tmp_path, breast):
    path = write_dicom(tmp_path / "x.dcm", np.vstack([breast, breast]))
    with pytest.raises(DicomError, match="more than one frame"):
        read_mammogram(edited(path, Rows=400), 64)


def test_a_header_that_claims_too_many_pixels_is_refused(tmp_path, breast):
    """Rows, Columns and the codestream can claim four billion pixels. No memory is allocated for them."""
    path = write_dicom(tmp_path / "x.dcm", breast, JPEG2000Lossless)
    with pytest.raises(DicomError, match="too large for a mammogram"):
        read_mammogram(edited(path, Rows=65535, Columns=65535), 64)


@pytest.mark.parametrize("shape", [(3328, 2560), (4081, 1000), (1000, 4081), (2047, 2049), (401, 300)])
@pytest.mark.parametrize("size", [(512, 512), (1024, 1024), (256, 1024), (1024, 96), (2048, 2048)])
def test_level_for_is_the_coarsest_level_that_fills_the_size(shape, size):
    """The side that limits the fit decides. A box that is smaller than the size is read at full resolution."""
    for crop in ((0, 0, shape[1], shape[0]), (10, 20, shape[1] // 2, shape[0] - 30)):
        level = level_for(crop, size)
        sides = crop[3] - crop[1], crop[2] - crop[0]
        shares = [
            max(side / 2**n / target for side, target in zip(sides, size, strict=True)) for n in (level, level + 1)
        ]
        assert shares[0] >= 1 or level == 0
        assert shares[1] < 1


def test_a_picture_is_read_at_the_coarsest_level_that_fills_the_size(tmp_path):
    large = cv2.resize(np.random.default_rng(0).integers(900, 4000, (40, 30)).astype(np.uint16), (1224, 1632))
    path = write_dicom(tmp_path / "x.dcm", large)
    assert [read(path, size).level for size in (64, 200, 408, 409, 816, 817, 2000)] == [3, 3, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "attributes", [{"PixelPaddingValue": 0}, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 5}]
)
def test_padding_as_dark_as_air_changes_nothing(tmp_path, breast, attributes):
    large = cv2.resize(np.where(breast < 900, 0, breast).astype(np.uint16), (1200, 1600))
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = read(write_dicom(tmp_path / "plain.dcm", large, **window), 256)
    attributes = {"PixelPaddingValue": 0} | attributes
    padded = read(with_elements(write_dicom(tmp_path / "x.dcm", large, **window), attributes), 256)
    assert padded.crop == plain.crop
    np.testing.assert_allclose(padded.picture, plain.picture, atol=0.01)


def test_bright_padding_leaves_no_bright_rim_in_a_halved_picture(tmp_path, breast):
    large = cv2.resize(breast, (1200, 1600), interpolation=cv2.INTER_NEAREST)
    plain = read(write_dicom(tmp_path / "plain.dcm", large, WindowCenter=2048, WindowWidth=4096), 256)
    large[:, 700:] = 4095
    large[:, 720:900] = 4094
    attributes = {"PixelPaddingValue": 4094, "PixelPaddingRangeLimit": 4095}
    padded = read(
        with_elements(write_dicom(tmp_path / "x.dcm", large, WindowCenter=2048, WindowWidth=4096), attributes), 256
    )
    assert padded.level > 0
    assert padded.picture.max() <= plain.picture.max() + 0.05


def with_elements(path, attributes: dict[str, int]):
    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        dataset.add_new(keyword, "US", value)
    dataset.save_as(path)
    return path


def test_objects_beside_the_breast_in_its_box_are_masked(tmp_path, breast):
    breast[60:70, 150:175] = 4000
    path = write_dicom(tmp_path / "x.dcm", breast, WindowCenter=2048, WindowWidth=4096)
    reading = read(path, 300)
    assert reading.crop[1] <= 60
    assert reading.crop[2] >= 175
    plain = np.where(breast == 4000, 5, breast).astype(np.uint16)
    plain = read(write_dicom(tmp_path / "plain.dcm", plain, WindowCenter=2048, WindowWidth=4096), 300)
    np.testing.assert_allclose(reading.picture, plain.picture, atol=1e-6)


def test_a_frame_of_another_format_needs_no_more_than_its_photometric_interpretation(tmp_path, breast):
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    reading = read_frame(Pyramid(breast, 12), dataset, "PNG", (128, 128))
    assert reading.transfer_syntax == "PNG"
    np.testing.assert_array_equal(reading.picture, read_mammogram(write_dicom(tmp_path / "x.dcm", breast), 128))


def test_a_modality_table_is_applied(tmp_path, breast):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.LUTData = (np.arange(4096)[::-1] // 2).astype("<u2").tobytes()
    window = {"WindowCenter": 1024, "WindowWidth": 2048}
    path = write_dicom(tmp_path / "x.dcm", 4095 - breast, ModalityLUTSequence=Sequence([table]), **window)
    expected = np.clip(((breast // 2).astype(float) - 1023.5) / 2047 + 0.5, 0, 1)
    np.testing.assert_allclose(brightness(path), expected, atol=1e-3)


def test_a_voi_lut_is_indexed_by_rounded_values(tmp_path, breast):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.arange(4096) ** 2 // 256).astype("<u2").tobytes()
    attributes = {"VOILUTSequence": Sequence([table]), "RescaleSlope": "0.25", "RescaleIntercept": "0"}
    path = write_dicom(tmp_path / "x.dcm", breast, **attributes)
    index = np.rint(breast / 4).astype(np.int64)
    np.testing.assert_allclose(brightness(path), (index**2 // 256) / (4095**2 // 256), atol=1e-6)


def test_signed_left_aligned_values_are_shifted_down(tmp_path, breast):
    signed = breast.astype(np.int16) - 2048
    path = write_dicom(tmp_path / "x.dcm", (signed << 4).astype(np.int16), HighBit=15)
    np.testing.assert_array_equal(stored_values(read_dataset(path))[0], signed)


def test_an_overlay_in_the_bits_above_the_samples_is_masked(tmp_path, breast):
    overlay = breast | np.where(np.indices(breast.shape)[0] > 300, 1 << 15, 0).astype(np.uint16)
    path = write_dicom(tmp_path / "x.dcm", overlay)
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x6000, 0x0102), "US", 15)
    dataset.save_as(path)
    stored, bits = stored_values(read_dataset(path))
    assert bits == 12
    np.testing.assert_array_equal(stored, breast)


def test_big_endian_bytes_in_words_are_swapped(tmp_path, breast):
    eight = (breast >> 4).astype(np.uint8)
    swapped = eight.view(np.uint16).byteswap().view(np.uint8)
    path = write_dicom(tmp_path / "x.dcm", swapped, ExplicitVRBigEndian, BitsStored=8, HighBit=7)
    np.testing.assert_array_equal(stored_values(read_dataset(path))[0], eight)
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, eight)


def test_mid_grey_rows_at_the_end_of_jpeg_lossless_are_legal(tmp_path, breast):
    breast[-8:] = 2048
    path = write_dicom(tmp_path / "x.dcm", breast, JPEGLosslessSV1)
    codestream = imagecodecs.jpeg8_encode(breast, lossless=True, predictor=1, bitspersample=12)
    np.testing.assert_array_equal(stored_values(read_dataset(with_pixel_data(path, codestream)))[0], breast)


def test_marker_bytes_inside_a_jpeg_2000_comment_are_not_taken_for_a_tile_part(tmp_path, breast):
    codestream = bytes(imagecodecs.jpeg2k_encode(breast, codecformat="j2k", reversible=True, level=0, bitspersample=12))
    first = codestream.index(b"\xff\x90")
    comment = b"\xff\x64" + struct.pack(">HH", 10, 0) + b"\xff\x90\0\x0a\0\0"
    path = write_dicom(tmp_path / "x.dcm", breast, JPEG2000Lossless)
    path = with_pixel_data(path, codestream[:first] + comment + codestream[first:])
    np.testing.assert_array_equal(stored_values(read_dataset(path))[0], breast)


def test_a_codestream_may_have_fill_bytes_and_padding_after_its_end(tmp_path, breast):
    codestream = imagecodecs.jpeg8_encode(breast, lossless=True, predictor=1, bitspersample=12)
    filled = codestream[:2] + b"\xff\xff" + codestream[2:] + bytes(500)
    path = with_pixel_data(write_dicom(tmp_path / "x.dcm", breast, JPEGLosslessSV1), filled)
    np.testing.assert_array_equal(stored_values(read_dataset(path))[0], breast)


@pytest.mark.parametrize("shape", [(4000, 43), (4000, 171), (400, 24)])
def test_narrow_images_are_read(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(1000, 4000, shape).astype(np.uint16)
    path = write_dicom(tmp_path / "x.dcm", pixels, WindowCenter=2048, WindowWidth=4096)
    assert read_mammogram(path, 128).max() > 0


@pytest.mark.parametrize("shape", [(400, 1), (1, 400), (3, 3), (17, 19)])
def test_images_too_small_for_a_breast_are_refused(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(1000, 4000, shape).astype(np.uint16)
    path = write_dicom(tmp_path / "x.dcm", pixels, WindowCenter=2048, WindowWidth=4096)
    with pytest.raises(DicomError, match=r"no (breast|tissue) found"):
        read_mammogram(path, 128)
