"""Tables of values, the order in which a table, a window and the range are used, damaged numbers, and hot pixels."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from rsna_nb.config import ImageRecipe
from rsna_nb.dicom import DicomError, read
from rsna_nb.dicom.voi import hot_pixels
from tests.conftest import SAMPLES, write_dicom
from tests.test_dicom import brightness

CURVE = np.linspace(0, 1, 4096) ** 2  # what the tables map the stored values 0 to 4095 to
WINDOW = {"WindowCenter": 1600, "WindowWidth": 1600}
CASES = SAMPLES / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no cases in RSNA_NB_SAMPLES")


def sequence(descriptor, data, descriptor_vr: str = "US", data_vr: str = "OW") -> Sequence:
    """Return a LUT sequence with one table, whose elements are written as they are given."""
    item = Dataset()
    item.add_new("LUTDescriptor", descriptor_vr, descriptor)
    item.add_new("LUTData", data_vr, data)
    return Sequence([item])


def entries(bits: int) -> np.ndarray:
    return np.rint(CURVE * (2**bits - 1)).astype(np.int64)


def words(values: np.ndarray) -> bytes:
    return values.astype("<u2").tobytes()


LUTS = {
    "8 bits, one entry a word": (8, words, "OW"),
    "8 bits, two entries a word": (8, lambda values: values.astype(np.uint8).tobytes(), "OW"),
    "8 bits, numbers": (8, lambda values: values.tolist(), "US"),
    "8 bits, two entries a number": (8, lambda values: values.astype(np.uint8).view("<u2").tolist(), "US"),
    "12 bits": (12, words, "OW"),
    "16 bits": (16, words, "OW"),
    "16 bits, numbers": (16, lambda values: values.tolist(), "US"),
    "16 bits, signed numbers": (16, lambda values: values.astype(np.uint16).view(np.int16).tolist(), "SS"),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize(("bits", "encode", "vr"), LUTS.values(), ids=LUTS)
def test_a_table_is_indexed_whatever_its_entries(tmp_path, breast, syntax, bits, encode, vr):
    table = sequence([4096, 0, bits], encode(entries(bits)), data_vr=vr)
    path = write_dicom(tmp_path / "x.dcm", breast, syntax, VOILUTSequence=table)
    assert (read(path, 64).window, read(path, 64).notes) == ("LUT", ())
    np.testing.assert_allclose(brightness(path), (entries(bits) / (2**bits - 1))[breast], atol=1e-6)


@pytest.mark.parametrize("encode", [lambda v: v.astype(">u2").tobytes(), lambda v: v.astype("u1").view("<u2").tolist()])
def test_a_table_of_a_big_endian_file_has_big_endian_words(tmp_path, breast, encode):
    data = encode(entries(8))
    table = sequence([4096, 0, 8], data, data_vr="OW" if isinstance(data, bytes) else "US")
    path = write_dicom(tmp_path / "x.dcm", breast.astype(">u2"), ExplicitVRBigEndian, VOILUTSequence=table)
    np.testing.assert_allclose(brightness(path), (entries(8) / 255)[breast], atol=1e-6)


@pytest.mark.parametrize("slope", [40, 1e6, 1e12])
def test_values_beyond_a_table_get_its_last_and_its_first_entry(tmp_path, breast, slope):
    table = sequence([4096, 0, 16], words(entries(16)))
    attributes = {"VOILUTSequence": table, "RescaleSlope": slope, "RescaleIntercept": -6 * slope}
    path = write_dicom(tmp_path / "x.dcm", breast, **attributes)
    np.testing.assert_array_equal(brightness(path), breast > 6)


SIGNS = {  # descriptor and its value representation, first input in words, intercept
    "unsigned says signed": ([4096, 63488, 16], "US", -2048),
    "signed says signed": ([4096, -2048, 16], "SS", -2048),
    "signed says unsigned": ([4096, -25536, 16], "SS", 40000),
    "unsigned says unsigned": ([4096, 40000, 16], "US", 40000),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize(("descriptor", "vr", "intercept"), SIGNS.values(), ids=SIGNS)
def test_the_values_of_the_image_decide_whether_the_first_input_is_signed(
    tmp_path, breast, syntax, descriptor, vr, intercept
):
    table = sequence(descriptor, words(entries(16)), descriptor_vr=vr)
    attributes = {"VOILUTSequence": table, "RescaleSlope": 1, "RescaleIntercept": intercept}
    path = write_dicom(tmp_path / "x.dcm", breast, syntax, **attributes)
    np.testing.assert_allclose(brightness(path), (entries(16) / 65535)[breast], atol=1e-6)


def test_if_the_stored_range_leaves_both_signs_the_values_of_the_image_decide(tmp_path, breast):
    """A table of the inputs -2048 to 2047 maps as much of 0 to 65535 as one of 63488 to 67583."""
    table = sequence([4096, 63488, 16], words(entries(16)))
    path = write_dicom(tmp_path / "x.dcm", breast // 2, BitsStored=16, HighBit=15, VOILUTSequence=table)
    reading = read(path, (400, 300))
    assert reading.window == "LUT"
    assert np.unique(np.rint(reading.picture * 65535)).size > 100


DAMAGED = {
    "cut off": sequence([4096, 0, 16], words(entries(16))[:1000]),
    "empty": sequence([4096, 0, 16], b""),
    "no descriptor": sequence([], words(entries(16))),
    "too long": sequence([2048, 0, 16], words(entries(16))),
    "of more than its 8 bits": sequence([4096, 0, 8], words(entries(16))),
    "of 3 bits": sequence([4096, 0, 3], words(entries(16))),
    "of other values than the image's": sequence([4096, 5000, 16], words(entries(16))),
    "of one output": sequence([4096, 0, 16], words(np.full(4096, 7))),
    "of one output for the image's values": sequence([4096, 4095, 16], words(entries(16))),
    "text": sequence("three words", words(entries(16)), descriptor_vr="LO"),
}


@pytest.mark.parametrize("table", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_table_gives_way_to_the_window_and_then_to_the_range(tmp_path, breast, table):
    windowed = read(write_dicom(tmp_path / "x.dcm", breast, VOILUTSequence=table, **WINDOW), 256)
    assert (windowed.window, windowed.notes) == ("LINEAR 1600 1600 (LUT cannot be used)", ("window",))
    whole = read(write_dicom(tmp_path / "whole.dcm", breast, **WINDOW), 256)
    assert (whole.window, whole.notes) == ("LINEAR 1600 1600", ())
    np.testing.assert_array_equal(windowed.picture, whole.picture)
    ranged = read(write_dicom(tmp_path / "x.dcm", breast, VOILUTSequence=table), 256)
    assert ranged.window.startswith("min-max 5 ")
    assert ranged.window.endswith(" (LUT cannot be used)")
    assert ranged.notes == ("window",)


def test_a_table_and_a_window_that_cannot_be_used_are_both_named(tmp_path, breast):
    attributes = {"VOILUTSequence": DAMAGED["empty"], "WindowCenter": 9e6, "WindowWidth": 10}
    reading = read(write_dicom(tmp_path / "x.dcm", breast, **attributes), 256)
    assert reading.window.endswith(" (LUT, LINEAR 9e+06 10 cannot be used)")


def damaged(path: Path, keyword: str) -> Path:
    """Write a name where the header has a number of ten characters."""
    number, value = b"1234.56789", b"Meyer^Anna"
    dataset = pydicom.dcmread(path)
    dataset.add_new(keyword, "DS", number.decode())
    dataset.save_as(path)
    path.write_bytes(path.read_bytes().replace(number, value))
    return path


@pytest.mark.parametrize("recipe", [None, ImageRecipe("rsna-first-place")], ids=["own", "rsna-first-place"])
@pytest.mark.parametrize("keyword", ["WindowCenter", "WindowWidth"])
def test_a_window_that_is_no_number_is_noted(tmp_path, breast, keyword, recipe):
    reading = read(damaged(write_dicom(tmp_path / "1.dcm", breast, **WINDOW), keyword), 64, recipe)
    assert reading.window.endswith(" (window cannot be used)")
    assert "window" in reading.notes


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescaling_that_is_no_number_is_noted_and_left_out(tmp_path, breast, keyword):
    plain = read(write_dicom(tmp_path / "1.dcm", breast, **WINDOW), 64)
    reading = read(damaged(tmp_path / "1.dcm", keyword), 64)
    assert (plain.notes, reading.notes) == ((), ("rescale",))
    np.testing.assert_array_equal(reading.picture, plain.picture)


def test_a_slope_of_0_is_noted(tmp_path, breast):
    path = write_dicom(tmp_path / "1.dcm", breast, RescaleSlope="0", RescaleIntercept="0")
    assert read(path, 64).notes == ("rescale",)


@pytest.mark.parametrize("keyword", ["RescaleSlope", "WindowCenter"])
def test_an_empty_number_is_not_noted(tmp_path, breast, keyword):
    assert read(write_dicom(tmp_path / "1.dcm", breast, **{keyword: ""}), 64).notes == ()


def test_a_sequence_of_empty_elements_is_no_table(tmp_path, breast):
    reading = read(write_dicom(tmp_path / "x.dcm", breast, VOILUTSequence=sequence([], b""), **WINDOW), 256)
    assert (reading.window, reading.notes) == ("LINEAR 1600 1600", ())


@pytest.mark.parametrize("encode", [words, lambda values: values.astype(np.uint8).tobytes()], ids=["words", "packed"])
def test_a_modality_table_of_8_bits_and_more_than_256_entries_is_applied(tmp_path, breast, encode):
    table = sequence([4096, 0, 8], encode(entries(8)))
    window = {"WindowCenter": 127.5, "WindowWidth": 255, "VOILUTFunction": "LINEAR_EXACT"}
    path = write_dicom(tmp_path / "x.dcm", breast, ModalityLUTSequence=table, **window)
    np.testing.assert_allclose(brightness(path), (entries(8) / 255)[breast], atol=1e-6)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_a_modality_table_of_signed_pixels_begins_below_zero(tmp_path, breast, vr):
    table = sequence([4096, 63488 if vr == "US" else -2048, 16], words(np.arange(4096)), descriptor_vr=vr)
    attributes = {"ModalityLUTSequence": table, "WindowCenter": 2048, "WindowWidth": 4096}
    path = write_dicom(tmp_path / "x.dcm", breast.astype(np.int16) - 2048, **attributes)
    plain = write_dicom(tmp_path / "plain.dcm", breast, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_array_equal(brightness(path), brightness(plain))


def test_a_damaged_modality_table_is_refused_because_the_window_needs_its_output(tmp_path, breast):
    path = write_dicom(tmp_path / "x.dcm", breast, ModalityLUTSequence=DAMAGED["cut off"], **WINDOW)
    with pytest.raises(DicomError, match=r"defective ModalityLUTSequence \(0028,3000\): it has 500 words for 4096"):
        read(path, 64)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("value", [9000, 65535])
@pytest.mark.parametrize("size", [100, 400])
def test_a_few_hot_pixels_do_not_set_the_scale(tmp_path, smooth_breast, photometric, value, size):
    pixels = 4095 - smooth_breast if photometric == "MONOCHROME1" else smooth_breast
    attributes = {"PhotometricInterpretation": photometric, "BitsStored": 16, "HighBit": 15}
    plain = read(write_dicom(tmp_path / "plain.dcm", pixels, **attributes), size)
    hot = pixels.copy()
    for row, column in ((200, 60), (120, 30), (250, 100), (251, 101), (290, 20)):
        hot[row, column] = value
    reading = read(write_dicom(tmp_path / "x.dcm", hot, **attributes), size)
    assert (plain.notes, reading.notes) == ((), ("hot pixels",))
    assert np.abs(reading.picture - plain.picture).mean() < 0.5 / 255


def test_microcalcifications_stay_in_the_range(tmp_path, smooth_breast):
    rng = np.random.default_rng(0)
    for row, column in rng.integers((150, 40), (200, 90), (12, 2)):
        smooth_breast[row : row + 2, column : column + 2] = 3500  # the brightest tissue has 3000
    reading = read(write_dicom(tmp_path / "x.dcm", smooth_breast), 400)
    assert reading.window == "min-max 5 3500"
    assert reading.notes == ()


@pytest.fixture
def smooth_breast() -> np.ndarray:
    """A breast of 12 bits, (400, 300), whose brightness varies slowly and has a little noise."""
    y, x = np.mgrid[:400, :300]
    distance = ((y - 200) / 150) ** 2 + (x / 180) ** 2
    tissue = 3000 - 1200 * distance - np.random.default_rng(0).integers(0, 60, distance.shape)
    return np.where(distance < 1, tissue, 5).astype(np.uint16)


def test_a_picture_of_small_details_alone_has_no_hot_pixels():
    values = np.zeros((40, 40), np.float32)
    values[::8, ::8] = 1
    assert not hot_pixels(values, np.ones(values.shape, bool)).any()


def picture_of(tmp_path, dataset: pydicom.Dataset, size: int) -> np.ndarray:
    dataset.save_as(tmp_path / "other.dcm")
    return read(tmp_path / "other.dcm", size).picture


@needs_cases
def test_the_table_of_8_bits_of_the_cases_gives_its_curve(tmp_path):
    path = CASES / "voi_lut_8bit_4096_entries.dcm"
    dataset = pydicom.dcmread(path)
    outputs = np.frombuffer(dataset.VOILUTSequence[0].LUTData, "<u2")
    dataset.PixelData = outputs[dataset.pixel_array].astype("<u2").tobytes()
    del dataset.VOILUTSequence
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    np.testing.assert_allclose(read(path, 512).picture, picture_of(tmp_path, dataset, 512), atol=1 / 255)


@needs_cases
def test_the_values_beyond_16_bits_of_the_cases_get_the_last_entry():
    reading = read(CASES / "voi_lut_values_beyond_16bit.dcm", 512)
    assert reading.window == "LUT"
    assert np.median(reading.picture[reading.picture > 0]) == 1


@needs_cases
def test_the_signed_table_of_the_cases_gives_the_same_in_explicit_vr(tmp_path):
    path = CASES / "voi_lut_signed_domain_implicit_vr.dcm"
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = dataset.VOILUTSequence[0]
    dataset.VOILUTSequence = sequence([4096, -2048, 16], item.LUTData, descriptor_vr="SS")
    assert read(path, 512).window == "LUT"
    np.testing.assert_array_equal(read(path, 512).picture, picture_of(tmp_path, dataset, 512))


@needs_cases
def test_the_cut_table_of_the_cases_gives_way_to_its_window(tmp_path):
    path = CASES / "voi_lut_truncated_beside_window.dcm"
    dataset = pydicom.dcmread(path)
    del dataset.VOILUTSequence
    assert read(path, 512).notes == ("outline", "window")
    np.testing.assert_array_equal(read(path, 512).picture, picture_of(tmp_path, dataset, 512))


@needs_cases
@pytest.mark.parametrize("size", [256, 512, 1024])
def test_the_hot_pixel_of_the_cases_does_not_set_the_scale(tmp_path, size):
    path = CASES / "no_window_one_hot_pixel.dcm"
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.copy()
    pixels[pixels == 65535] = np.median(pixels)
    dataset.PixelData = pixels.tobytes()
    reading = read(path, size)
    assert reading.notes == ("hot pixels",)
    assert np.abs(reading.picture - picture_of(tmp_path, dataset, size)).mean() < 0.1 / 255
