import cv2
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.training import inputs
from rsna_nb.training.augmentation import augment
from rsna_nb.training.inputs import Examples, Pictures, filled_share, sample_batch, sample_changes
from rsna_nb.training.sampling import Sampling, Share

SHAPE = (32, 64)
PICTURES = Pictures(SHAPE)
ALONE = Share()
MIRRORED = {0: (), 1: (1,), 2: (0,), 3: (0, 1)}  # axes of (height, width)


@pytest.fixture
def rows(tmp_path) -> pd.DataFrame:
    """Eleven images of noise; the corners of image i have the grey value i."""
    files, random = [], np.random.default_rng(0)
    for i in range(11):
        picture = random.integers(0, 256, SHAPE, np.uint8)
        picture[[0, 0, -1, -1], [0, -1, 0, -1]] = i
        files.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(files[-1], picture)
    return pd.DataFrame({"file": files, "cancer": [1, 0, 0] * 3 + [0, 1]})


def stored(rows: pd.DataFrame) -> np.ndarray:
    """The stored images, uint8 (images, height, width)."""
    return np.stack([cv2.imread(file, cv2.IMREAD_UNCHANGED) for file in rows["file"]])


def examples_of(rows: pd.DataFrame, batch: int = 4, **settings: object) -> Examples:
    """Examples in which row i has the weight 100 + i."""
    labels = rows["cancer"].to_numpy(np.float32)[:, np.newaxis]
    weights = 100 + np.arange(len(rows), dtype=np.float32)[:, np.newaxis]
    return Examples(labels, weights, Sampling.of(RunConfig(**settings), rows["cancer"].to_numpy(), batch))


def batches(rows: pd.DataFrame, examples: Examples, count: int, first: int = 0, share: Share = ALONE) -> list:
    dataset = PICTURES.training(rows, examples, first, share).take(count)
    return list(dataset.as_numpy_iterator())


def together(batches: list) -> list[np.ndarray]:
    """The images, variants, labels and weights of all batches, each as one array."""
    flat = [tf.nest.flatten(batch) for batch in batches]
    return [np.concatenate(values) for values in zip(*flat, strict=True)]


def test_a_batch_has_the_sampled_pictures_as_they_are_stored_their_variants_labels_and_weights(rows):
    examples = examples_of(rows)
    images, variants = examples.sampling.epoch(0)
    found = batches(rows, examples, count=2)
    for step, ((pictures, flips), labels, weights) in enumerate(found):
        assert pictures.dtype == np.uint8
        assert flips.dtype == np.int64
        assert labels.dtype == weights.dtype == np.float32
        np.testing.assert_array_equal(pictures, stored(rows)[images[step], ..., np.newaxis])
        np.testing.assert_array_equal(flips, variants[step])
        np.testing.assert_array_equal(labels[:, 0], rows["cancer"][images[step]])
        np.testing.assert_array_equal(weights[:, 0], 100 + images[step])


def test_the_shapes_of_a_batch_are_known_before_it_is_read(rows):
    (pictures, variants), labels, weights = PICTURES.training(rows, examples_of(rows), 0, ALONE).element_spec
    assert (pictures.shape, pictures.dtype) == ((4, *SHAPE, 1), tf.uint8)
    assert variants.shape == (4,)
    assert labels.shape == weights.shape == (4, 1)


@pytest.mark.parametrize("compiled", [False, True], ids=["as it is", "compiled by XLA"])
def test_the_network_is_given_0_to_1_with_each_picture_flipped_as_its_variant_says(rows, compiled):
    pictures, variants = stored(rows)[:8, ..., np.newaxis], np.array([0, 1, 2, 3, 3, 1, 0, 2])
    to_network = tf.function(PICTURES.to_network, jit_compile=compiled)
    values = to_network(tf.constant(pictures), tf.constant(variants)).numpy()
    assert values.dtype == np.float32
    for value, picture, variant in zip(values, pictures, variants, strict=True):
        np.testing.assert_allclose(value, np.flip(picture, MIRRORED[variant]) / 255, rtol=1e-6)
    plain = to_network(tf.constant(pictures)).numpy()
    np.testing.assert_allclose(plain, pictures / 255, rtol=1e-6)
    assert (plain.min(), plain.max()) == (0, 1)


@pytest.mark.parametrize("settings", [{}, {"imbalance": "balanced_batches"}, {"augmentation": "strong"}])
@pytest.mark.slow
def test_a_resumed_run_has_the_batches_of_one_that_was_not_stopped(rows, settings):
    examples = examples_of(rows, **settings)
    steps = examples.sampling.steps
    assert steps == 2
    whole = batches(rows, examples, count=4 * steps)
    for epoch in range(4):
        resumed = batches(rows, examples, count=steps, first=epoch)
        for ours, theirs in zip(together(resumed), together(whole[epoch * steps : (epoch + 1) * steps]), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_epochs_follow_one_another_without_end_and_no_batch_spans_two(rows):
    examples = examples_of(rows)
    found = batches(rows, examples, count=7)
    expected = np.concatenate([examples.sampling.epoch(number)[0] for number in range(4)])[:7]
    np.testing.assert_array_equal(np.stack([pictures[:, 0, 0, 0] for (pictures, _), _, _ in found]), expected)


def test_strong_augmentation_uses_the_draws_of_each_image(rows):
    examples = examples_of(rows, augmentation="strong")
    (pictures, variants, draws), _, _ = batches(rows, examples, count=2)[1]
    np.testing.assert_array_equal(draws, examples.sampling.draws(0)[1])
    flipped = PICTURES.to_network(pictures, tf.constant(variants))
    seen = PICTURES.to_network(pictures, tf.constant(variants), tf.constant(draws))
    np.testing.assert_array_equal(seen, augment(flipped, tf.constant(draws)))
    assert not np.array_equal(seen, flipped)


@pytest.mark.parametrize(("workers", "replicas"), [(1, 2), (2, 2), (2, 4)])
def test_each_device_takes_its_part_of_every_global_batch(rows, workers, replicas):
    """The devices of a computer take its batches in turn; all computers together make the global batch."""
    examples = examples_of(rows, batch=8)
    shares = [Share(worker, workers, replicas) for worker in range(workers)]
    local = replicas // workers
    of_machines = [batches(rows, examples, count=2 * local, share=share) for share in shares]
    for step in range(2):
        dealt = [batch for found in of_machines for batch in found[step * local : (step + 1) * local]]
        assert {pictures.shape for (pictures, _), _, _ in dealt} == {(8 // replicas, *SHAPE, 1)}
        pictures, variants, _, weights = together(dealt)
        images, flips = examples.sampling.epoch(step)
        np.testing.assert_array_equal(pictures[:, 0, 0, 0], images[0])
        np.testing.assert_array_equal(variants, flips[0])
        np.testing.assert_array_equal(weights[:, 0], 100 + images[0])


def test_evaluation_keeps_the_order_and_fills_up_with_the_first_picture(rows):
    found = [pictures for (pictures,) in PICTURES.evaluation(rows, 4, ALONE).as_numpy_iterator()]
    assert [batch.shape for batch in found] == [(4, *SHAPE, 1)] * 3
    assert found[0].dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate(found)[..., 0], stored(rows)[[*range(11), 0]])


def test_evaluation_on_two_computers_of_two_devices_has_all_rows_in_order(rows):
    shares = [Share(worker, 2, 4) for worker in (0, 1)]
    found = [[pictures for (pictures,) in PICTURES.evaluation(rows, 2, share).as_numpy_iterator()] for share in shares]
    assert [[len(batch) for batch in of_machine] for of_machine in found] == [[4, 4], [4, 4]]
    pictures = np.concatenate([batch for of_machine in found for batch in of_machine])[..., 0]
    np.testing.assert_array_equal(pictures, stored(rows)[[*range(11), 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
@pytest.mark.parametrize(("batch", "workers", "replicas"), [(1, 1, 1), (4, 1, 1), (4, 1, 2), (2, 2, 4), (3, 4, 4)])
def test_filled_shares_are_whole_steps_and_cover_all_positions(count, batch, workers, replicas):
    shares = [filled_share(count, batch, Share(worker, workers, replicas)) for worker in range(workers)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) % (batch * replicas // workers) == 0
    positions = np.concatenate(shares)
    np.testing.assert_array_equal(positions[:count], np.arange(count))
    assert not positions[count:].any()
    assert len(positions) - count < batch * replicas


def test_the_sample_batch_is_the_first_of_training_as_the_network_sees_it(rows):
    config = RunConfig(img_size=list(SHAPE), batch_size_per_gpu=4)
    images, labels, views = sample_batch(config, rows)
    assert views is None
    (pictures, variants), expected, _ = batches(rows, examples_of(rows), count=1)[0]
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, PICTURES.to_network(pictures, tf.constant(variants)).numpy())
    np.testing.assert_array_equal(labels, expected[:, 0])


def test_the_sample_batch_of_microbatches_is_the_whole_batch(rows):
    """Balanced batches have room for both classes, as in training, even if a microbatch has one image."""
    config = RunConfig(
        img_size=list(SHAPE), imbalance="balanced_batches", batch_size_per_gpu=1, gradient_accumulation=8
    )
    images, labels, views = sample_batch(config, rows)
    assert views is None
    assert images.shape == (8, *SHAPE, 1)
    assert set(labels) == {0, 1}


def test_the_sample_batch_is_as_long_as_the_batch_in_training_and_no_longer_than_can_be_looked_at(rows, monkeypatch):
    assert len(sample_batch(RunConfig(img_size=list(SHAPE)), rows)[0]) == 8  # the default, lowered
    config = RunConfig(img_size=list(SHAPE), batch_size_per_gpu=255)
    assert len(sample_batch(config, rows)[0]) == len(rows)
    monkeypatch.setattr(inputs, "MOST_SHOWN", 3)
    assert len(sample_batch(config, rows)[0]) == 3


@pytest.mark.parametrize(("augmentation", "kinds"), [("none", 1), ("flips", 4), ("strong", 21)])
def test_a_picture_in_several_epochs_begins_with_the_picture_as_it_is(rows, augmentation, kinds):
    config = RunConfig(img_size=list(SHAPE), augmentation=augmentation, imbalance="balanced_batches")
    seen = sample_changes(config, rows, count=20)
    assert seen.shape == (21, *SHAPE, 1)
    np.testing.assert_allclose(seen[0, ..., 0], stored(rows)[0] / 255, atol=1e-6)
    assert len(np.unique(seen.reshape(21, -1), axis=0)) == kinds
