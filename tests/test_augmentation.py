import cv2
import numpy as np
import pytest
import tensorflow as tf

from rsna_nb.training import augmentation
from rsna_nb.training.augmentation import augment, warped
from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS

HEIGHT, WIDTH = 48, 32
RANDOM = np.random.default_rng(0)
BREAST = np.zeros((1, HEIGHT, WIDTH, 1), np.float32)
BREAST[:, 14:34, 8:24] = 0.2 + 0.6 * RANDOM.random((1, 20, 16, 1))
STILL = [0.5] * 6 + [1.0] + [0.5] * 4  # draws that change nothing
ANGLE, SCALE, X, Y, CONTRAST, BRIGHTNESS, ERASE = range(7)


def changed(pictures: np.ndarray = BREAST, compiled: bool = False, **draws: float) -> np.ndarray:
    """The augmented picture, with all other draws such that they change nothing."""
    values = np.array(STILL)
    for name, value in draws.items():
        values[globals()[name]] = value
    numbers = tf.constant(np.tile(values, (len(pictures), 1)), tf.float32)
    return tf.function(augment, jit_compile=compiled)(tf.constant(pictures), numbers).numpy()


def test_draws_in_the_middle_change_nothing():
    np.testing.assert_allclose(changed(), BREAST, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["as it is", "compiled by XLA"])
def test_air_stays_black_and_tissue_stays_in_0_to_1(compiled):
    pictures = np.repeat(BREAST, 64, axis=0)
    draws = tf.constant(RANDOM.random((64, AUGMENTATION_PARAMETERS)), tf.float32)
    seen = tf.function(augment, jit_compile=compiled)(tf.constant(pictures), draws).numpy()
    assert seen.dtype == np.float32
    assert seen.min() == 0
    assert seen.max() <= 1
    assert len(np.unique(seen.reshape(64, -1), axis=0)) == 64
    assert (seen[:, 0, 0] == 0).all()


def test_a_right_angle_turns_the_picture_as_numpy_does():
    square = RANDOM.random((1, 16, 16, 1)).astype(np.float32)
    quarter = tf.constant([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(warped(square, quarter).numpy()[0], np.rot90(square[0]), atol=1e-5)


def test_warping_agrees_with_opencv():
    picture, angle, scale = RANDOM.random((1, HEIGHT, WIDTH, 1)).astype(np.float32), 0.2, 1.1
    ours = warped(picture, augmentation.matrices(*(tf.constant([value]) for value in (angle, scale, 0.3, -0.5))))
    middle = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    half, shift = min(HEIGHT, WIDTH) / 2, 2 * augmentation.SHIFT * np.array([0.3, -0.5])
    matrix = np.column_stack([matrix, middle - matrix @ middle + half * shift])
    places = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1) @ matrix[:, :2].T + matrix[:, 2]
    theirs = cv2.remap(picture[0], *np.float32(places).transpose(2, 0, 1), cv2.INTER_LINEAR)
    np.testing.assert_allclose(ours.numpy()[0, ..., 0], theirs, atol=0.02)  # OpenCV's fractions are of 1/32


def centre(picture: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.array([np.average(axis, weights=picture[0, ..., 0]) for axis in (x, y)])


def test_a_shift_is_a_share_of_the_shorter_side():
    moved = centre(changed(X=1.0, Y=0.0)) - centre(BREAST)
    np.testing.assert_allclose(moved, [-augmentation.SHIFT * WIDTH, augmentation.SHIFT * WIDTH], atol=0.05)


def test_scale_changes_the_area_by_its_square():
    area = (changed(SCALE=1.0) > 0.1).sum() / (BREAST > 0.1).sum()
    assert area == pytest.approx((1 + augmentation.SCALE) ** 2, rel=0.1)


def test_contrast_is_around_the_tissues_own_mean():
    tissue = BREAST > 0
    stronger = changed(CONTRAST=1.0)
    assert stronger[tissue].mean() == pytest.approx(BREAST[tissue].mean(), abs=1e-3)
    assert stronger[tissue].std() == pytest.approx((1 + augmentation.CONTRAST) * BREAST[tissue].std(), rel=1e-3)
    assert (stronger[~tissue] == 0).all()


def test_brightness_is_added_to_tissue_alone():
    tissue = BREAST > 0
    difference = changed(BRIGHTNESS=0.0) - BREAST
    np.testing.assert_allclose(difference[tissue], -augmentation.BRIGHTNESS, atol=1e-5)
    assert (difference[~tissue] == 0).all()


def test_a_rectangle_is_erased_where_the_draw_is_low():
    erased = (changed(ERASE=0.0) == 0) & (BREAST > 0)
    least, most = augmentation.ERASED_SIDES
    side = (least + most) / 2  # the draws of its sides are 0.5
    rows, columns = np.flatnonzero(erased.any((0, 2, 3))), np.flatnonzero(erased.any((0, 1, 3)))
    assert len(rows) == pytest.approx(side * HEIGHT, abs=1)
    assert len(columns) == pytest.approx(side * WIDTH, abs=1)
    assert erased.sum() == len(rows) * len(columns)
    np.testing.assert_array_equal(changed(ERASE=0.99), changed())
