"""The size of a batch, its examples, and how each image is flipped and augmented.

An example is what gets one score: an image, or with `unit` "breast" and "woman" a breast, which has several places for
images (`model.Breasts`). All depends only on (seed, epoch), so any epoch can be repeated exactly, on any computer.
"""

from dataclasses import dataclass

import numpy as np

from rsna_nb.config import ConfigError, RunConfig

VARIANTS = 4  # unchanged (0), mirrored left to right (1), top to bottom (2), both (3)
AUGMENTATION_PARAMETERS = 11  # random numbers that `augmentation.augment` needs for each image
FEW_STEPS = 10  # an epoch with fewer steps learns little: 256 images in one step cost 0.02 AUC
LARGEST_BATCH, SMALLEST_BATCH = 256, 8  # per GPU, where the setting leaves the batch to the data


@dataclass(frozen=True)
class Share:
    """The part of every global batch that one of several computers works on."""

    worker: int = 0  # number of this computer
    workers: int = 1  # number of computers
    replicas: int = 1  # number of devices of all computers

    @property
    def local(self) -> int:
        """Number of devices of one computer."""
        return self.replicas // self.workers


def batch_size(config: RunConfig, replicas: int, images: int) -> int:
    """The images per GPU in a batch: the setting `batch_size_per_gpu`, or what suits the data where that is 0.

    Then it is 256, halved, down to 8, until an epoch has 10 steps.

    >>> [batch_size(RunConfig(), replicas=1, images=count) for count in (43000, 1800, 256, 20)]
    [256, 128, 16, 8]
    >>> batch_size(RunConfig(batch_size_per_gpu=128), replicas=1, images=256)
    128
    """
    if config.batch_size_per_gpu:
        return config.batch_size_per_gpu
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and images // (size * config.gradient_accumulation * replicas) < FEW_STEPS:
        size //= 2
    return size


def places_of(config: RunConfig) -> int:
    """The images of one example in a training batch.

    >>> [places_of(RunConfig(unit=unit)) for unit in ("image", "breast", "woman")]
    [1, 2, 4]
    """
    return {"image": 1, "breast": config.images_per_breast, "woman": 2 * config.images_per_breast}[config.unit]


def examples_per_device(config: RunConfig, replicas: int, examples: int) -> int:
    """The examples whose images make a batch of `batch_size`, at least one."""
    places = places_of(config)
    return max(1, batch_size(config, replicas, examples * places) // places)


def global_batch(config: RunConfig, replicas: int, examples: int) -> int:
    """Examples in one optimizer step: those of a device times accumulation and replicas, at most all `examples`.

    It is a multiple of the replicas, because TensorFlow cannot add up the results of replicas with different shapes.

    Raises
    ------
    ConfigError
        If there are fewer examples than replicas.
    """
    wanted = examples_per_device(config, replicas, examples) * config.gradient_accumulation * replicas
    batch = min(wanted, examples - examples % replicas)
    if batch == 0:
        what = "images" if config.unit == "image" else "breasts"
        raise ConfigError(
            f"there are {examples} training {what} for {replicas} devices: use fewer devices or more women"
        )
    return batch


@dataclass(frozen=True)
class Sampling:
    """The batches of every epoch.

    The remainder of an epoch is dropped, since the images of a small last batch would have a larger weight. Each epoch
    drops other images.
    """

    cancer: np.ndarray  # 0 or 1 for each training example
    batch: int  # examples in one optimizer step, on all devices together
    seed: int
    flips: bool
    positives: int = 0  # examples with cancer in each batch; 0: their number varies by chance
    strong: bool = False  # whether images are changed by `augmentation.augment`
    places: int = 0  # images of an example; 0: an example is an image, and has no axis of places

    @classmethod
    def of(cls, config: RunConfig, cancer: np.ndarray, batch: int) -> "Sampling":
        """The sampling for these settings; "balanced_batches" needs examples of both classes in every batch.

        Raises
        ------
        ConfigError
            If batches are balanced and a batch has one example, or a class has none.
        """
        balanced = config.imbalance == "balanced_batches"
        if balanced and batch < 2:
            raise ConfigError(
                f"balanced_batches need batches of two {'images' if config.unit == 'image' else 'breasts'} or more: "
                "raise batch_size_per_gpu"
            )
        if balanced and len(np.unique(cancer)) < 2:
            raise ConfigError("balanced_batches need examples for training with cancer and without")
        positives = min(max(round(config.positive_fraction * batch), 1), batch - 1) if balanced else 0
        flips, strong = config.augmentation != "none", config.augmentation == "strong"
        places = 0 if config.unit == "image" else places_of(config)
        return cls(np.asarray(cancer), batch, config.seed, flips, positives, strong, places)

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self.cancer) // self.batch

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of an epoch, counted from 0, int64 (steps, batch), and the variants of their images.

        Examples are positions in `cancer`. In balanced batches positives repeat, each as often as any other; they are
        spread evenly over a batch, so that each device has some. Variants are int64, (steps, batch) or
        (steps, batch, places): the images of a breast are flipped independently of each other.
        """
        random = np.random.default_rng([self.seed, number])
        size = (self.steps, self.batch)
        if self.positives:
            images = np.empty(size, np.int64)
            places = np.arange(self.positives) * self.batch // self.positives
            others = np.setdiff1d(np.arange(self.batch), places)
            for label, where in ((1, places), (0, others)):
                pool = np.flatnonzero(self.cancer == label)
                images[:, where] = _rounds(pool, self.steps * len(where), random).reshape(self.steps, len(where))
        else:
            images = random.permutation(len(self.cancer))[: self.steps * self.batch].reshape(size)
        of_images = self._of_images
        variants = random.integers(0, VARIANTS, of_images) if self.flips else np.zeros(of_images, np.int64)
        return images, variants

    @property
    def _of_images(self) -> tuple[int, ...]:
        """(steps, batch), and the places of an example if it has several."""
        return (self.steps, self.batch, *([self.places] if self.places else []))

    def draws(self, number: int) -> np.ndarray:
        """Random numbers for `augmentation.augment`, float32 in 0-1: AUGMENTATION_PARAMETERS for each image."""
        # They have their own generator, so that "strong" keeps the order and the flips of "flips".
        random = np.random.default_rng([self.seed, number, 1])
        return random.random((*self._of_images, AUGMENTATION_PARAMETERS), np.float32)

    def of_worker(self, number: int, share: Share) -> tuple[np.ndarray, ...]:
        """One computer's examples, variants and, for strong augmentation, draws of an epoch, one row per example.

        Each computer takes its slice of every batch, in the order of the computers.
        """
        part = self.batch // share.workers
        plans = [*self.epoch(number), *([self.draws(number)] if self.strong else [])]
        own = (plan[:, share.worker * part : (share.worker + 1) * part] for plan in plans)
        return tuple(plan.reshape(-1, *plan.shape[2:]) for plan in own)


def _rounds(pool: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` members of a pool: all of them in random order, then all in another order, and so on."""
    return np.concatenate([random.permutation(pool) for _ in range(-(-count // len(pool)))])[:count]
