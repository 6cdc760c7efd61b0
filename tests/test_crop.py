import cv2
import numpy as np
import pytest

from rsna_nb.crop import find_breast, fit


REDUCTION = 4  # of the pictures below to those in which the breast is looked for


@pytest.fixture
def picture(breast) -> np.ndarray:
    """float32 (1600, 1200): tissue in rows 200 to 1400 and columns 0 to 720."""
    return cv2.resize(breast.astype(np.float32) / 4095, (1200, 1600), interpolation=cv2.INTER_NEAREST)


def reduced(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, None, fx=1 / REDUCTION, fy=1 / REDUCTION, interpolation=cv2.INTER_AREA)


def box_of(picture: np.ndarray) -> np.ndarray:
    """The breast's box in pixels of the picture."""
    return REDUCTION * np.array(find_breast(reduced(picture)).box)


def with_marker(picture):
    text = np.zeros(picture.shape, np.uint8)  # OpenCV writes on 8 bits alone
    cv2.putText(text, "L CC", (900, 150), cv2.FONT_HERSHEY_SIMPLEX, 3, 255, 8)
    np.maximum(picture, text.astype(np.float32) / 255, out=picture)


def with_white_frame(picture):
    for edge in (picture[:25], picture[-25:], picture[:, :25], picture[:, -25:]):
        edge[:] = 1


def with_inset_frame(picture):
    frame = np.zeros_like(picture)
    frame[20:-20, :-20] = 1  # not at the chest wall: what it covers there is lost
    frame[70:-70, :-70] = 0
    np.maximum(picture, frame, out=picture)


def with_bright_border(picture):
    picture[:, -90:] = 0.97


def with_dark_then_bright_border(picture):
    picture[-60:] = 0.6


def with_line_to_the_breast(picture):
    picture[795:803, 700:1190] = 0.8


def with_noise(picture):
    picture += np.abs(np.random.default_rng(1).normal(0, 0.01, picture.shape)).astype(np.float32)


CHANGES = [
    with_marker,
    with_white_frame,
    with_inset_frame,
    with_bright_border,
    with_dark_then_bright_border,
    with_line_to_the_breast,
    with_noise,
]


@pytest.mark.parametrize("mirrored", [False, True], ids=["left", "right"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_box_is_the_breasts_whatever_is_around_it(picture, change, mirrored):
    change(picture)
    x_min, y_min, x_max, y_max = box_of(picture[:, ::-1] if mirrored else picture)
    if mirrored:
        x_min, x_max = 1200 - x_max, 1200 - x_min
    np.testing.assert_allclose((x_min, y_min, x_max, y_max), (0, 200, 720, 1400), atol=30)


def test_what_stands_apart_from_the_breast_is_gone(picture):
    with_marker(picture)
    picture[300:320, 600:700] = 1  # inside the box, apart from the breast
    small = reduced(picture)
    kept = small * find_breast(small).mask
    assert small[75:80, 150:175].max() == 1
    assert kept[75:80, 150:175].max() == 0
    assert kept[200, :100].mean() > 0.3


def test_an_image_all_tissue_is_kept_whole():
    tissue = np.random.default_rng(0).normal(0.5, 0.05, (800, 600)).astype(np.float32)
    assert box_of(tissue).tolist() == [0, 0, 600, 800]


def test_a_breast_of_almost_nothing_is_found(picture):
    picture[:] = 0
    cv2.circle(picture, (0, 800), 90, 0.5, -1)
    with_marker(picture)
    np.testing.assert_allclose(box_of(picture), (0, 710, 90, 890), atol=12)


def test_air_alone_has_no_breast():
    assert find_breast(np.zeros((100, 100), np.float32)) is None


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (256, 32), (512, 512)])
def test_a_picture_is_fitted_with_its_aspect_and_centred_on_zeros(shape):
    fitted = fit(np.ones((200, 100), np.float32), shape)
    assert fitted.shape == shape
    rows, columns = np.nonzero(fitted)
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    assert abs(height - 2 * width) <= 1
    assert height == shape[0] or width == shape[1]
    assert abs((rows.min() + rows.max() + 1) - shape[0]) <= 1
    assert abs((columns.min() + columns.max() + 1) - shape[1]) <= 1


def test_reducing_averages_areas():
    picture = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    expected = picture.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(fit(picture, (16, 16)), expected, atol=1e-6)
