import numpy as np
import pytest

from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.training.sampling import AUGMENTATION_PARAMETERS, VARIANTS, Sampling, Share, global_batch

CANCER = np.arange(50) % 7 == 3  # 7 of 50


def sampling_of(cancer: np.ndarray = CANCER, batch: int = 8, **settings: object) -> Sampling:
    return Sampling.of(RunConfig(**settings), cancer.astype(int), batch)


def balanced(cancer: np.ndarray = CANCER, batch: int = 8, positive_fraction: float = 0.25) -> Sampling:
    return sampling_of(cancer, batch, imbalance="balanced_batches", positive_fraction=positive_fraction)


def strong() -> Sampling:
    return sampling_of(augmentation="strong")


def assert_same(first: tuple, second: tuple) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_epoch_has_no_image_twice_and_drops_the_remainder():
    sampling = sampling_of()
    assert sampling.steps == 6
    for number in range(5):
        images, variants = sampling.epoch(number)
        assert images.shape == variants.shape == (6, 8)
        assert images.dtype == variants.dtype == np.int64
        assert len(np.unique(images)) == 48
        assert images.min() >= 0
        assert images.max() < 50


def test_every_epoch_drops_other_images():
    sampling = sampling_of()
    dropped = {tuple(np.setdiff1d(np.arange(50), sampling.epoch(number)[0])) for number in range(20)}
    assert len(dropped) > 10


@pytest.mark.parametrize("make", [sampling_of, balanced])
def test_an_epoch_is_a_function_of_its_seed_and_number_alone(make):
    sampling = make()
    in_turn = [sampling.epoch(number) for number in range(4)]
    for number in (2, 0, 3, 1):
        assert_same(sampling.epoch(number), in_turn[number])
        assert_same(make().epoch(number), in_turn[number])
    orders = [tuple(images.ravel()) for images, _ in in_turn]
    assert len(set(orders)) == 4


def test_another_seed_is_another_order_and_other_flips():
    first, second = (sampling_of(seed=seed).epoch(1) for seed in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert not np.array_equal(one, other)
    assert not np.array_equal(sampling_of(seed=1).epoch(0)[0], sampling_of(seed=0).epoch(1)[0])


@pytest.mark.parametrize("imbalance", ["none", "balanced_batches"])
def test_flips_do_not_change_the_order(imbalance):
    plain, flipped = (sampling_of(augmentation=name, imbalance=imbalance).epoch(3) for name in ("none", "flips"))
    np.testing.assert_array_equal(plain[0], flipped[0])


@pytest.mark.parametrize("imbalance", ["none", "balanced_batches"])
def test_flips_are_all_four_in_equal_shares_and_none_without_augmentation(imbalance):
    """For 100,000 images the standard deviation of a share is 0.0014."""
    cancer = np.arange(1000) % 50 == 0
    sampling = sampling_of(cancer, 10, imbalance=imbalance)
    variants = np.concatenate([sampling.epoch(number)[1].ravel() for number in range(100)])
    np.testing.assert_allclose(np.bincount(variants, minlength=VARIANTS) / variants.size, 0.25, atol=0.01)
    plain = sampling_of(cancer, 10, imbalance=imbalance, augmentation="none")
    assert not plain.epoch(0)[1].any()


def test_the_flips_of_an_image_differ_from_epoch_to_epoch():
    seen = np.zeros((50, VARIANTS), bool)
    for number in range(200):
        seen[sampling_of().epoch(number)] = True
    assert seen.all()


def test_the_draws_of_strong_augmentation_are_even_and_a_function_of_seed_and_epoch():
    """For 10,000 draws the standard deviation of the share in a tenth of the range is 0.003."""
    draws = np.concatenate([strong().draws(number).reshape(-1, AUGMENTATION_PARAMETERS) for number in range(210)])
    assert draws.dtype == np.float32
    for numbers in draws[:10_000].T:
        np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0] / 10_000, 0.1, atol=0.015)
    np.testing.assert_array_equal(strong().draws(3), strong().draws(3))
    others = [strong().draws(2), sampling_of(augmentation="strong", seed=1).draws(3)]
    assert not any(np.isin(other, strong().draws(3)).mean() > 0.01 for other in others)


def test_strong_augmentation_has_the_order_and_the_flips_of_flips():
    assert_same(strong().epoch(3), sampling_of().epoch(3))


@pytest.mark.parametrize(
    ("batch", "positive_fraction", "expected"),
    [(8, 0.25, 2), (8, 0.5, 4), (10, 0.125, 1), (8, 0.001, 1), (8, 0.99, 7), (2, 0.5, 1), (2, 0.9, 1), (10, 0.26, 3)],
)
def test_balanced_batches_have_the_share_of_positives_asked_for_but_never_none_or_all(
    batch, positive_fraction, expected
):
    sampling = balanced(batch=batch, positive_fraction=positive_fraction)
    assert sampling.positives == expected
    for number in range(3):
        images, _ = sampling.epoch(number)
        assert (CANCER[images].sum(axis=1) == expected).all()


@pytest.mark.parametrize("label", [0, 1])
def test_balanced_batches_of_one_kind_of_image_are_refused(label):
    with pytest.raises(ConfigError, match="need examples for training with cancer and without"):
        balanced(np.full(10, label), batch=4)


@pytest.mark.parametrize("imbalance", ["none", "class_weight", "focal"])
def test_other_batches_leave_the_positives_to_chance(imbalance):
    sampling = sampling_of(imbalance=imbalance)
    assert sampling.positives == 0
    assert len(np.unique(CANCER[sampling.epoch(0)[0]].sum(axis=1))) > 1


@pytest.mark.parametrize("positives", [1, 2, 7, 25, 43, 48, 49])
@pytest.mark.parametrize("label", [0, 1])
def test_every_image_of_a_class_is_drawn_once_before_any_is_drawn_again(positives, label):
    """With 1 to 49 positives of 50 images, so that an epoch draws more or fewer of a class than there are."""
    cancer = np.arange(50) < positives
    sampling = balanced(cancer, batch=8, positive_fraction=0.5)
    members = np.flatnonzero(cancer == label)
    for number in range(3):
        images = sampling.epoch(number)[0].ravel()
        drawn = images[cancer[images] == label]
        rounds = [drawn[start : start + len(members)] for start in range(0, len(drawn), len(members))]
        for whole in rounds[:-1]:
            np.testing.assert_array_equal(np.sort(whole), members)
        assert len(np.unique(rounds[-1])) == len(rounds[-1])


def test_a_second_round_has_another_order():
    sampling = balanced(np.arange(400) < 20, batch=10, positive_fraction=0.5)
    images = sampling.epoch(0)[0].ravel()
    rounds = images[images < 20].reshape(-1, 20)
    assert len(rounds) == 10
    assert len(np.unique(rounds, axis=0)) == 10


@pytest.mark.parametrize("positive_fraction", [0.05, 0.125, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_positives_are_spread_so_that_devices_differ_by_at_most_one(positive_fraction, devices):
    images, _ = balanced(np.arange(200) < 30, 24, positive_fraction).epoch(0)
    of_each = (images < 30).reshape(-1, devices, 24 // devices).sum(axis=2)
    assert (np.ptp(of_each, axis=1) <= 1).all()


def test_a_batch_of_one_cannot_be_balanced():
    with pytest.raises(ConfigError, match="balanced_batches need batches of two images or more: raise batch_size_per"):
        balanced(batch=1)
    assert sampling_of(batch=1).steps == 50


@pytest.mark.parametrize("make", [sampling_of, balanced, strong])
@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (1, 4), (2, 2), (2, 4), (4, 8)])
def test_the_slices_of_all_computers_put_together_are_the_epoch_in_order(make, workers, replicas):
    sampling = make()
    slices = [sampling.of_worker(2, Share(worker, workers, replicas)) for worker in range(workers)]
    plans = [*sampling.epoch(2), *([sampling.draws(2)] if sampling.strong else [])]
    assert {len(part) for part in slices} == {len(plans)}
    for kind, whole in enumerate(plans):
        parts = [part[kind].reshape(sampling.steps, 8 // workers, *whole.shape[2:]) for part in slices]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_a_share_knows_the_devices_of_its_computer():
    assert Share().local == 1
    assert [Share(worker, 2, 8).local for worker in (0, 1)] == [4, 4]


@pytest.mark.parametrize(
    ("batch", "accumulation", "replicas", "images", "expected"),
    [
        (4, 1, 1, 10, 4),
        (4, 1, 2, 10, 8),
        (4, 2, 1, 10, 8),
        (2, 2, 2, 10, 8),
        (5, 2, 1, 10, 10),
        (255, 1, 1, 10, 10),
        (255, 1, 4, 10, 8),
        (2, 64, 3, 10, 9),
        (255, 1, 10, 10, 10),
        (256, 1, 1, 300, 256),  # a given number is used as it is
        (0, 1, 1, 2560, 256),  # 0 leaves it to the data
        (0, 1, 1, 2559, 128),
        (0, 1, 2, 2560, 256),
        (0, 2, 1, 2560, 256),
        (0, 1, 1, 256, 16),
        (0, 1, 1, 20, 8),
        (0, 1, 10, 20, 20),
    ],
)
def test_the_global_batch_divides_by_the_replicas_fits_the_data_and_follows_from_few_images(
    batch, accumulation, replicas, images, expected
):
    config = RunConfig(batch_size_per_gpu=batch, gradient_accumulation=accumulation)
    assert global_batch(config, replicas, images) == expected


@pytest.mark.parametrize(("images", "replicas"), [(3, 4), (0, 1)])
def test_fewer_images_than_devices_are_refused(images, replicas):
    with pytest.raises(ConfigError, match=f"{images} training images for {replicas} devices"):
        global_batch(RunConfig(), replicas, images)
