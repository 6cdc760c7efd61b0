"""What a header says an image is: refused, noted, of which side and view, and with pixels of which shape."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes

from rsna_nb.dicom import NOTES, DicomError, placement, read
from rsna_nb.dicom.fitting import fit
from rsna_nb.dicom.purpose import MODIFIER_NOTES, VIEW_CODES
from rsna_nb.explain.geometry import Geometry
from rsna_nb.prepare import Record, prepare_images
from rsna_nb.prepare.store import STATED
from tests.conftest import SAMPLES, write_dicom

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

CASES = SAMPLES / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no cases in RSNA_NB_SAMPLES")
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def code(value: str, scheme: str = "SRT", modifiers: tuple[str, ...] = ()) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "as Dr Doe said"
    if modifiers:
        item.ViewModifierCodeSequence = Sequence([code(modifier) for modifier in modifiers])
    return item


REFUSED = {
    "ultrasound": ({"Modality": "US"}, "not a radiograph: Modality (0008,0060) is US"),
    "magnetic resonance": ({"Modality": "MR"}, "not a radiograph"),
    "tomography": ({"Modality": "CT"}, "not a radiograph"),
    "report": ({"Modality": "SR"}, "not a radiograph"),
    "screen": (
        {"Modality": "MG", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
        "a screen, document, localizer, mask or crop, not a mammogram: ImageType is SCREEN SAVE",
    ),
    "mask of CBIS-DDSM": ({"SeriesDescription": "ROI mask images"}, "SeriesDescription is ROI MASK IMAGES"),
    "crop of CBIS-DDSM": ({"SeriesDescription": "cropped images"}, "SeriesDescription is CROPPED IMAGES"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "not a mammogram: ImageType is LOCALIZER"),
    "scanned document": ({"ConversionType": "SD"}, "not a mammogram: ConversionType is SD"),
}


@pytest.mark.parametrize(("attributes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_mammogram_by_its_header_is_refused(tmp_path, breast, attributes, reason):
    with pytest.raises(DicomError) as caught:
        read(write_dicom(tmp_path / "x.dcm", breast, **attributes), 64)
    assert reason in caught.value.reason


SPOT, MAGNIFICATION, ROLLED = "R-102D7", "R-102D6", "R-102D3"
NOTED = {
    "nothing": ({}, ()),
    "mammogram": ({"Modality": "MG", "ImageType": ["DERIVED", "PRIMARY"], "ConversionType": "DF"}, ()),
    "mammogram of CBIS-DDSM": ({"SeriesDescription": "full mammogram images"}, ()),
    "for presentation": ({"PresentationIntentType": "FOR PRESENTATION"}, ()),
    "for processing": ({"PresentationIntentType": "FOR PROCESSING"}, ("for processing",)),
    "for processing by its class": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"}, ("for processing",)),
    "computed radiography": ({"Modality": "CR"}, ("modality",)),
    "digital radiography": ({"Modality": "DX"}, ("modality",)),
    "scanned film": ({"Modality": "RG"}, ("modality",)),
    "contact view": ({"EstimatedRadiographicMagnificationFactor": "1.08", "PaddleDescription": "24CM X 29CM"}, ()),
    "magnification": ({"EstimatedRadiographicMagnificationFactor": "1.8"}, ("magnified",)),
    "paddle": ({"PaddleDescription": "10CM MAG"}, ("magnified",)),
    "spot paddle": ({"PaddleDescription": "Spot Contact"}, ("spot view",)),
    "modifiers": (
        {"ViewCodeSequence": Sequence([code("R-10242", modifiers=(SPOT, ROLLED, MAGNIFICATION))])},
        ("magnified", "spot view"),
    ),
    "modifier of the image": (
        {"ViewModifierCodeSequence": Sequence([code("399055006", "SCT")])},
        ("spot view",),
    ),
    "rolled": ({"ViewCodeSequence": Sequence([code("R-10242", modifiers=(ROLLED,))])}, ()),
}


@pytest.mark.parametrize(("attributes", "notes"), NOTED.values(), ids=NOTED)
def test_what_is_odd_about_a_mammogram_is_noted(tmp_path, breast, attributes, notes):
    reading = read(write_dicom(tmp_path / "x.dcm", breast, **attributes, **WINDOW), 64)
    assert reading.notes == notes
    assert set(notes) <= set(NOTES)
    plain = read(write_dicom(tmp_path / "plain.dcm", breast, **WINDOW), 64)
    np.testing.assert_array_equal(reading.picture, plain.picture)


def test_the_codes_are_those_of_the_standard():
    """pydicom holds PS3.16; its Code knows which SRT code is which of SNOMED CT."""
    ours = {code: word for code, word in (VIEW_CODES | MODIFIER_NOTES).items() if code.isdigit()}
    known = {
        getattr(group, name).value: getattr(group, name)
        for group in (codes.cid4014, codes.cid4015)
        for name in group.dir()
    }
    meanings = {word: known[code].meaning for code, word in ours.items()}
    assert meanings == {
        "CC": "cranio-caudal",
        "MLO": "medio-lateral oblique",
        "ML": "medial-lateral",
        "LM": "latero-medial",
        "LMO": "latero-medial oblique",
        "FB": "caudo-cranial",
        "SIO": "superolateral to inferomedial oblique",
        "ISO": "inferomedial to superolateral oblique",
        "XCCL": "cranio-caudal exaggerated laterally",
        "XCCM": "cranio-caudal exaggerated medially",
        "magnified": "Magnification",
        "spot view": "Spot Compression",
    }
    older = {word: code for code, word in (VIEW_CODES | MODIFIER_NOTES).items() if not code.isdigit()}
    for number, word in ours.items():
        assert pydicom.sr.coding.Code(older[word], "SRT", "") == known[number]


def frame_laterality(side: str) -> Sequence:
    anatomy, group = Dataset(), Dataset()
    anatomy.FrameLaterality = side
    group.FrameAnatomySequence = Sequence([anatomy])
    return Sequence([group])


SIDES = {
    "image": ({"ImageLaterality": "R", "ViewPosition": "MLO"}, "R", "MLO"),
    "series": ({"Laterality": "L", "ViewPosition": "cc "}, "L", "CC"),
    "image before series": ({"ImageLaterality": "R", "Laterality": "L"}, "R", ""),
    "frame": ({"SharedFunctionalGroupsSequence": frame_laterality("L")}, "L", ""),
    "unknown, then series": ({"ImageLaterality": "U", "Laterality": "R"}, "R", ""),
    "both": ({"ImageLaterality": "B"}, "", ""),
    "code": ({"ViewCodeSequence": Sequence([code("R-10226")])}, "", "MLO"),
    "newer code": ({"ViewCodeSequence": Sequence([code("399192008", "SCT")])}, "", "XCCL"),
    "word before code": ({"ViewPosition": "AT", "ViewCodeSequence": Sequence([code("R-10226")])}, "", "AT"),
    "empty": ({"ImageLaterality": "", "ViewPosition": "", "ViewCodeSequence": Sequence([])}, "", ""),
    "names": ({"ImageLaterality": "DOE^JANE", "ViewPosition": "DOE^JANE"}, "", ""),
    "name and code": ({"ViewPosition": "JANE", "ViewCodeSequence": Sequence([code("R-10242")])}, "", "CC"),
}


@pytest.mark.parametrize(("attributes", "laterality", "view"), SIDES.values(), ids=SIDES)
def test_a_reading_has_the_side_and_the_view_of_its_header(tmp_path, breast, attributes, laterality, view):
    reading = read(write_dicom(tmp_path / "x.dcm", breast, **attributes), 64)
    assert (reading.laterality, reading.view) == (laterality, view)


def test_a_damaged_descriptive_element_does_not_stop_a_file(tmp_path, breast):
    path = write_dicom(tmp_path / "x.dcm", breast, **WINDOW)
    dataset = pydicom.dcmread(path)
    for keyword in ("Modality", "ImageType", "ViewCodeSequence", "ImagerPixelSpacing", "Laterality", "CodeValue"):
        dataset.add_new(keyword, "OB", b"\x01\x02")
    dataset.save_as(path)
    reading = read(path, 64)
    assert (reading.laterality, reading.view, reading.aspect, reading.notes) == ("", "", 1.0, ())


@pytest.fixture
def round_breast() -> np.ndarray:
    """A frame of 12 bits (600, 400): a half disc of tissue with a bright round spot."""
    y, x = np.mgrid[:600, :400]
    tissue = np.where((y - 300) ** 2 + x**2 < 250**2, 2000 - 2 * x, 5)
    return np.where((y - 380) ** 2 + (x - 120) ** 2 < 20**2, 4000, tissue).astype(np.uint16)


OBLONG = {  # rows of the file for 600 rows of square pixels, and columns for 400
    "ratio": ({"PixelAspectRatio": [2, 1]}, (300, 400)),
    "ratio of wide pixels": ({"PixelAspectRatio": [1, 2]}, (600, 200)),
    "spacing": ({"ImagerPixelSpacing": ["0.14", "0.07"]}, (300, 400)),
    "spacing before the other spacing": ({"ImagerPixelSpacing": [0.1, 0.05], "PixelSpacing": [1, 1]}, (300, 400)),
    "other spacing": ({"PixelSpacing": [0.05, 0.1]}, (600, 200)),
    "spacing of 0, then the other": ({"ImagerPixelSpacing": [0, 0], "PixelSpacing": [0.2, 0.1]}, (300, 400)),
}


@pytest.mark.parametrize("size", [(128, 96), (280, 200), (512, 512), (700, 300)])
@pytest.mark.parametrize(("attributes", "stored"), OBLONG.values(), ids=OBLONG)
def test_pixels_that_are_not_square_are_resampled_to_square_ones(tmp_path, round_breast, attributes, stored, size):
    pixels = cv2.resize(round_breast, stored[::-1], interpolation=cv2.INTER_AREA)
    reading = read(write_dicom(tmp_path / "x.dcm", pixels, **attributes, **WINDOW), size)
    plain = read(write_dicom(tmp_path / "plain.dcm", round_breast, **WINDOW), size)
    aspect = 600 / stored[0] * stored[1] / 400
    assert (reading.aspect, reading.notes) == (pytest.approx(aspect), ("aspect",))
    assert (reading.rows, reading.columns) == stored
    crop = np.multiply(reading.crop, np.tile([400 / stored[1], 600 / stored[0]], 2))
    assert np.abs(crop - plain.crop).max() <= 8  # the same box, in pixels of the file
    rows, columns = np.nonzero(reading.picture > 0.95)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3 + 0.05 * np.ptp(rows))  # the spot is round again
    assert np.abs(reading.picture - plain.picture).mean() < 0.02


@pytest.mark.parametrize("size", [(128, 96), (512, 512)])
@pytest.mark.parametrize(("attributes", "stored"), OBLONG.values(), ids=OBLONG)
def test_a_box_of_a_file_with_oblong_pixels_lies_on_its_content(tmp_path, round_breast, attributes, stored, size):
    pixels = cv2.resize(round_breast, stored[::-1], interpolation=cv2.INTER_AREA)
    reading = read(write_dicom(tmp_path / "x.dcm", pixels, **attributes, **WINDOW), size)
    geometry = Geometry.of(reading, size)
    rows, columns = np.nonzero(pixels > 3500)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], float)
    at_rows, at_columns = np.nonzero(reading.picture > 0.9)
    found = [at_columns.min(), at_rows.min(), at_columns.max() + 1, at_rows.max() + 1]
    assert np.abs(geometry.to_image(box)[0] - found).max() <= 1 + 2 * geometry.scale.max()
    np.testing.assert_allclose(geometry.to_file(geometry.to_image(box)), box)
    spot = geometry.map_to_file((reading.picture > 0.9).astype(np.float32)) > 0.5
    assert (spot & (pixels > 3500)).sum() > 0.7 * (spot | (pixels > 3500)).sum()
    record = Record("1", "1", level=reading.level, rows=reading.rows, columns=reading.columns, aspect=reading.aspect)
    record = replace(record, crop=" ".join(map(str, reading.crop)))
    assert Geometry.of(record, size) == geometry


@pytest.mark.parametrize(("ratio", "is_noted"), [((1.005, 1), False), ((1, 1), False), ((1, 50), True), ((9, 1), True)])
def test_a_ratio_that_is_nearly_1_or_impossible_changes_nothing(tmp_path, breast, ratio, is_noted):
    spacing = [f"{0.1 * ratio[0]:g}", f"{0.1 * ratio[1]:g}"]
    reading = read(write_dicom(tmp_path / "x.dcm", breast, ImagerPixelSpacing=spacing, **WINDOW), 128)
    plain = read(write_dicom(tmp_path / "plain.dcm", breast, **WINDOW), 128)
    assert (reading.aspect, reading.notes) == (1.0, ("aspect",) if is_noted else ())
    np.testing.assert_array_equal(reading.picture, plain.picture)


@pytest.mark.parametrize(("box", "aspect"), [((100, 200), 2.0), ((200, 100), 0.5), ((50, 50), 1.3)])
def test_a_fitted_image_is_placed_by_the_proportions_of_what_it_shows(box, aspect):
    at = placement(box, (300, 200), aspect)
    assert at.height / at.width == pytest.approx(aspect * box[0] / box[1], rel=0.01)
    filled = fit(np.ones(box, np.float32), (300, 200), aspect) > 0
    assert filled[at.top : at.top + at.height, at.left : at.left + at.width].all()
    assert filled.sum() == at.height * at.width


def test_fine_lines_are_averaged_along_the_side_that_is_reduced(tmp_path):
    """A resize that enlarges the other side would only interpolate, and show lines that are not there."""
    lines = np.tile(np.arange(400) % 2, (50, 1)).astype(np.float32)
    fitted = fit(lines, (100, 100), aspect=4.0)
    assert fitted[25:75, 5:-5].std() < 0.01


@needs_cases
def test_the_report_of_the_cases_is_refused():
    with pytest.raises(DicomError, match="not a mammogram: ImageType is SCREEN SAVE"):
        read(CASES / "dose_report_screen.dcm", 512)


@needs_cases
def test_the_magnified_spot_view_of_the_cases_is_noted_and_has_its_side():
    reading = read(CASES / "magnified_spot_view.dcm", 512)
    assert (reading.laterality, reading.view, reading.notes) == ("R", "CC", ("magnified", "spot view", "no air"))


def test_a_side_and_a_view_that_contradict_the_table_are_noted_in_the_ledger(tmp_path, breast):
    said = {"ImageLaterality": "R", "ViewPosition": "CC", "EstimatedRadiographicMagnificationFactor": "1.8"}
    path = str(write_dicom(tmp_path / "x.dcm", breast, **said, **WINDOW))
    rows = [("L", "CC"), ("R", "MLO"), ("R", "CC"), ("", "")]  # the table is corrected, and the file not read again
    tables = [
        pd.DataFrame([["1", "1", path, *row]], columns=["patient_id", "image_id", "path", *STATED]) for row in rows
    ]
    ledgers = [prepare_images(table, tmp_path, tmp_path, 64, ThreadPoolExecutor(1)) for table in tables]
    assert [df["notes"][0] for df in ledgers] == ["magnified; side", "magnified; view", "magnified", "magnified"]
    assert len({df["milliseconds"][0] for df in ledgers}) == 1
    assert ledgers[0].loc[0, ["header_laterality", "header_view"]].tolist() == ["R", "CC"]


@needs_cases
def test_the_raw_picture_of_the_cases_is_noted():
    assert "for processing" in read(CASES / "for_processing_air_bright.dcm", 512).notes


@needs_cases
def test_the_oblong_pixels_of_the_cases_give_the_proportions_of_the_breast():
    reading = read(CASES / "pixels_not_square.dcm", 512)
    assert (reading.aspect, reading.notes) == (2.0, ("aspect",))
    square = read(CASES / "no_window_one_hot_pixel.dcm", 512)  # the same mammogram in square pixels
    assert np.abs(np.subtract(np.multiply(reading.crop, (1, 2, 1, 2)), square.crop)).max() <= 8
    assert np.abs(reading.picture - square.picture).mean() < 0.02
