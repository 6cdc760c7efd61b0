"""An image that is cropped, masked and sized already is only decoded; everything else takes the usual way."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from rsna_nb import dicom
from rsna_nb.dicom.ready import is_ready
from rsna_nb.dicom.source import open_frame
from tests.conftest import REAL_DIR, needs_real_files

SIZE = 256


def drawn() -> np.ndarray:
    """An ellipse of tissue that spans the height, on black, uint8 (SIZE, SIZE)."""
    tissue = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(tissue, (72, 128), (127, 128), 0, -90, 90, 1, -1)
    texture = np.random.default_rng(0).integers(60, 200, tissue.shape).astype(np.uint8)
    return tissue * cv2.GaussianBlur(texture, (5, 5), 0)


def ready(folder: Path, picture: np.ndarray, size: int = SIZE) -> bool:
    cv2.imwrite(str(folder / "1.png"), picture)
    return is_ready(open_frame(folder / "1.png"), (size, size))


def with_letter(picture: np.ndarray, at: tuple[int, int]) -> np.ndarray:
    return cv2.putText(picture, "R", at, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1)


def test_what_an_earlier_preparation_has_cropped_keeps_its_levels(tmp_path):
    assert ready(tmp_path, drawn())
    reading = dicom.read(tmp_path / "1.png", SIZE)
    np.testing.assert_array_equal(np.rint(255 * reading.picture), drawn())
    assert (reading.crop, reading.format, reading.notes) == ((0, 0, SIZE, SIZE), "PNG", ())


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: with_letter(picture, (10, 30)),
        lambda picture: with_letter(picture, (180, 60)),  # it touches the breast
        lambda picture: 255 - picture,
        lambda picture: np.where(np.arange(SIZE) < 40, 0, 255 - picture).astype(np.uint8),  # inverted, in black padding
        lambda picture: np.maximum(picture, 1),  # air that is not black
        lambda picture: np.where(np.arange(SIZE) >= SIZE - 2, 255, picture).astype(np.uint8),  # a line at the edge
        lambda picture: np.where(np.arange(SIZE) < 40, 255, picture).astype(np.uint8),  # a plate
        lambda picture: cv2.copyMakeBorder(picture[::2, ::2], 64, 64, 64, 64, cv2.BORDER_CONSTANT, value=0),
    ],
    ids=["letter", "touching letter", "inverted", "padded", "fog", "line", "plate", "not cropped"],
)
def test_everything_else_takes_the_usual_way(tmp_path, change):
    assert not ready(tmp_path, change(drawn()))


def test_other_sizes_and_depths_take_the_usual_way(tmp_path):
    assert not ready(tmp_path, drawn(), SIZE // 2)
    assert not ready(tmp_path, drawn().astype(np.uint16) << 8)


@needs_real_files
@pytest.mark.parametrize("size", [512, 1024])
def test_prepared_real_mammograms_are_ready_and_come_back_unchanged(tmp_path, size):
    for path in sorted(REAL_DIR.rglob("*.dcm")):
        picture = np.rint(255 * dicom.read_mammogram(path, size)).astype(np.uint8)
        assert ready(tmp_path, picture, size)
        np.testing.assert_array_equal(np.rint(255 * dicom.read_mammogram(tmp_path / "1.png", size)), picture)
