"""Air that is brighter than tissue is turned, whatever the header says, and nothing else; no breast is refused."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from rsna_nb import dicom
from rsna_nb.dicom.polarity import Air, find_air
from rsna_nb.dicom.preprocessing_steps import reading_steps
from rsna_nb.synthetic.table import MACHINES
from tests.conftest import REAL_FILES, SAMPLES, needs_real_files, write_dicom
from tests.films import KINDS, draw_film
from tests.test_crop import drawn

CASES = SAMPLES / "cases"
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def notes_of(path: Path) -> tuple[str, ...]:
    return dicom.read(path, 64).notes


@pytest.mark.parametrize("window", [{}, WINDOW], ids=["no window", "window"])
@pytest.mark.parametrize(
    ("header", "bright_air", "noted"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"PhotometricInterpretation": "MONOCHROME1"}, True, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, False, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True, False),
        ({"PresentationLUTShape": "INVERSE"}, True, True),
        ({"PresentationLUTShape": "INVERSE"}, False, True),
        ({"PresentationLUTShape": "IDENTITY"}, False, False),
        ({"PresentationIntentType": "FOR PROCESSING"}, True, True),
    ],
)
def test_air_is_dark_whatever_the_header_says_and_a_contradiction_is_noted(
    tmp_path, breast, window, header, bright_air, noted
):
    right = dicom.read(write_dicom(tmp_path / "right.dcm", breast, **window), 128)
    assert right.notes == ()
    stored = 4095 - breast if bright_air else breast
    found = dicom.read(write_dicom(tmp_path / "other.dcm", stored, **window, **header), 128)
    assert [note for note in found.notes if note != "for processing"] == ["turned"] * noted
    assert found.crop == right.crop
    np.testing.assert_allclose(found.picture, right.picture, atol=0.01)


def test_the_steps_show_that_an_image_was_turned(tmp_path, breast):
    path = write_dicom(tmp_path / "1.dcm", 4095 - breast, **WINDOW)
    steps = reading_steps(str(path), 128)
    assert steps[2].name == "polarity: MONOCHROME2, turned"
    np.testing.assert_array_equal(steps[-1].picture, dicom.read_mammogram(path, 128))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_without_air_the_header_decides_and_it_is_noted(tmp_path, breast, photometric):
    full = breast[150:250, :100]
    path = write_dicom(tmp_path / "1.dcm", full, PhotometricInterpretation=photometric, **WINDOW)
    reading = dicom.read(path, 100)
    assert reading.notes == ("no air",)
    expected = full / 4095 if photometric == "MONOCHROME2" else 1 - full / 4095
    np.testing.assert_allclose(reading.picture, expected, atol=0.01)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: str(machine.machine_id))
def test_generated_mammograms_are_right_and_their_inverses_are_not(machine, seed):
    picture, _ = drawn(np.random.default_rng(seed), machine, 300 / machine.rows, implant=seed == 0)
    assert find_air(picture) is Air.DARK
    assert find_air(1 - picture) is Air.BRIGHT


@pytest.mark.parametrize("kind", KINDS)
def test_films_are_right_and_their_inverses_are_not(kind):
    picture = cv2.resize(draw_film(kind, 0)[0], (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    assert find_air(picture) is Air.DARK
    assert find_air(1 - picture) is Air.BRIGHT


def white_frame(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, 7, constant_values=1.0)


def white_band(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, 0), (60, 0)), constant_values=1.0)


def black_bands(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, 0), (60, 60)))


def nothing(picture: np.ndarray) -> np.ndarray:
    return picture


@pytest.mark.parametrize("around", [nothing, white_frame, white_band, black_bands])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_around_a_cropped_picture_does_not_pass_for_air(around: Callable, seed: int):
    picture, mask = drawn(np.random.default_rng(seed), MACHINES[0], 300 / MACHINES[0].rows)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert find_air(around(picture)) is Air.DARK
    assert find_air(around(1 - picture)) is Air.BRIGHT


def test_the_black_around_a_film_does_not_pass_for_its_air():
    picture, _ = drawn(np.random.default_rng(0), MACHINES[0], 300 / MACHINES[0].rows)
    fogged = np.float32(0.35) + np.float32(0.65) * picture  # air as grey as no air is
    assert find_air(fogged) is Air.UNSEEN
    assert find_air(np.pad(fogged, 12)) is Air.UNSEEN


@needs_real_files
@pytest.mark.parametrize("path", REAL_FILES)
def test_no_real_mammogram_is_turned_or_noted(path):
    assert notes_of(path) == ()


@pytest.mark.skipif(not CASES.is_dir(), reason="no cases in RSNA_NB_SAMPLES")
@pytest.mark.parametrize("case", ["for_processing_air_bright", "presentation_lut_inverse"])
def test_the_cases_of_bright_air_are_turned(case):
    assert "turned" in notes_of(CASES / f"{case}.dcm")


def test_a_crop_too_small_for_a_breast_is_refused(tmp_path):
    pixels = np.zeros((400, 300), np.uint16)
    pixels[200:217, 100:119] = 2000
    path = write_dicom(tmp_path / "1.dcm", pixels, ExplicitVRLittleEndian, **WINDOW)
    with pytest.raises(dicom.DicomError, match="no breast found: the largest region brighter than air is"):
        dicom.read(path, 64)


@pytest.mark.parametrize("spacing", [35, 45, 75])
@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_a_screen_of_small_text_with_wide_spacing_is_refused(tmp_path, thickness, spacing):
    """OpenCV's versions draw other letters. A dense block of text is not told from a breast."""
    screen = np.zeros((1000, 800), np.uint8)
    for line in range(60, 900, spacing):
        cv2.putText(screen, "DOSE REPORT AGD 1.4 mGy", (20, line), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, thickness)
    path = write_dicom(tmp_path / "1.dcm", screen.astype(np.uint16) * 16, ExplicitVRLittleEndian, **WINDOW)
    with pytest.raises(dicom.DicomError, match=r"no (breast|tissue) found"):
        dicom.read(path, 64)


def test_low_contrast_is_noted(tmp_path, breast):
    dull = np.where(breast > 100, 1500 + breast // 20, 5).astype(np.uint16)
    assert notes_of(write_dicom(tmp_path / "1.dcm", dull, **WINDOW)) == ("low contrast",)
