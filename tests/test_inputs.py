import cv2
import numpy as np
import pandas as pd
import pytest

from rsna_nb import inputs
from rsna_nb.config import ConfigError, RunConfig

SETTINGS = {"img_size": 32, "batch_size_per_gpu": 4, "epochs": 3}


@pytest.fixture
def rows(tmp_path) -> pd.DataFrame:
    """Ten pictures; picture i has the grey value 10 i but for a bright corner, top left."""
    files = []
    for i in range(10):
        picture = np.full((32, 32), 10 * i, np.uint8)
        picture[:8, :8] = 255
        files.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(files[-1], picture)
    return pd.DataFrame({"file": files, "cancer": [1, 0] * 5})


def epochs_of(config: RunConfig, rows: pd.DataFrame) -> np.ndarray:
    """(epochs, images, height, width) of all training batches."""
    batches = [images for images, _, _ in inputs.training_batches(config, rows, {0: 1.0, 1: 1.0}).as_numpy_iterator()]
    steps = len(rows) // config.batch_size_per_gpu
    return np.stack(batches).reshape(-1, steps * config.batch_size_per_gpu, 32, 32)


def identity(images: np.ndarray) -> np.ndarray:
    """Which picture each is, whatever its flips."""
    return np.round(images[:, 16, 16] * 25.5).astype(int)


def test_images_are_0_to_1_with_their_label_and_weight(rows):
    config = RunConfig(**SETTINGS)
    images, labels, weights = next(inputs.training_batches(config, rows, {0: 0.5, 1: 4.0}).as_numpy_iterator())
    assert images.shape == (4, 32, 32, 1)
    assert images.dtype == np.float32
    assert images.max() == 1
    assert labels.shape == weights.shape == (4, 1)
    expected = (identity(images[..., 0]) + 1) % 2
    np.testing.assert_array_equal(labels[:, 0], expected)
    np.testing.assert_array_equal(weights[:, 0], np.where(expected == 1, 4.0, 0.5))


def test_an_epoch_has_no_image_twice_and_drops_the_remainder(rows):
    epochs = epochs_of(RunConfig(**SETTINGS), rows)
    assert epochs.shape[:2] == (3, 8)
    orders = [tuple(identity(images)) for images in epochs]
    assert all(len(set(order)) == 8 for order in orders)
    assert len(set(orders)) == 3


def test_order_and_flips_depend_on_seed_and_epoch_alone(rows):
    config = RunConfig(**SETTINGS)
    np.testing.assert_array_equal(epochs_of(config, rows), epochs_of(config, rows))
    assert not np.array_equal(epochs_of(config, rows), epochs_of(RunConfig(**SETTINGS, seed=1), rows))
    more = epochs_of(RunConfig(**SETTINGS | {"epochs": 5}), rows)
    np.testing.assert_array_equal(more[:3], epochs_of(config, rows))


def test_flips_are_all_four_in_equal_shares_and_none_without_augmentation(rows):
    images = epochs_of(RunConfig(**SETTINGS | {"epochs": 200}), rows).reshape(-1, 32, 32)
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 1
    np.testing.assert_allclose(corners.mean(axis=0), 0.25, atol=0.05)
    plain = epochs_of(RunConfig(**SETTINGS, augmentation="none"), rows).reshape(-1, 32, 32)
    assert (plain[:, 0, 0] == 1).all()


def test_evaluation_keeps_the_order_and_fills_the_last_batch(rows):
    images = np.concatenate(list(inputs.evaluation_batches(RunConfig(**SETTINGS), rows).as_numpy_iterator()))
    assert images.shape == (12, 32, 32, 1)
    assert identity(images[..., 0]).tolist() == [*range(10), 0, 0]


@pytest.mark.parametrize(
    ("batch", "replicas", "images", "expected"), [(4, 1, 10, 4), (4, 2, 10, 8), (256, 1, 10, 10), (256, 4, 10, 8)]
)
def test_the_global_batch_divides_by_the_replicas_and_fits_the_data(batch, replicas, images, expected):
    assert inputs.global_batch(RunConfig(batch_size_per_gpu=batch), replicas, images) == expected


def test_fewer_images_than_devices_are_refused():
    with pytest.raises(ConfigError, match="3 training images for 4 devices"):
        inputs.global_batch(RunConfig(), 4, 3)
