"""Which images make an epoch's batches, in which order, and how each is flipped and otherwise changed.

All are functions of (seed, epoch): any epoch can be begun anew, on any machine, and is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rsna_nb.config import ConfigError, RunConfig

VARIANTS = 4  # as it is, mirrored left to right (1), top to bottom (2), both (3)
AUGMENTATION_PARAMETERS = 11  # numbers that `augmentation.augment` needs for each image


@dataclass(frozen=True)
class Share:
    """The part of every global batch that one of several machines works on, and the devices that all have."""

    worker: int = 0
    workers: int = 1
    replicas: int = 1

    @property
    def local(self) -> int:
        """Devices of one machine."""
        return self.replicas // self.workers


def global_batch(config: RunConfig, replicas: int, images: int) -> int:
    """Images of one step of the optimizer: a multiple of the replicas, and no more than there are."""
    wanted = config.batch_size_per_gpu * config.gradient_accumulation * replicas
    if wanted <= images:
        return wanted
    batch = images - images % replicas
    if batch == 0:
        raise ConfigError(f"there are {images} training images for {replicas} devices: use fewer devices or more women")
    return batch


@dataclass(frozen=True)
class Sampling:
    """The batches of every epoch over `cancer`, 0 or 1 for each training image, of `batch` images each.

    What is left over in an epoch is dropped, since a small last batch would weigh more.
    """

    cancer: np.ndarray
    batch: int
    seed: int
    flips: bool
    positives: int = 0  # in each batch; 0 leaves it to chance
    strong: bool = False  # whether images are changed by `augmentation.augment`

    @classmethod
    def of(cls, config: RunConfig, cancer: np.ndarray, batch: int) -> "Sampling":
        """As the settings ask; with "balanced_batches" every batch has both kinds of image."""
        balanced = config.imbalance == "balanced_batches"
        if balanced and batch < 2:
            raise ConfigError("balanced_batches need batches of two images or more: raise batch_size_per_gpu")
        if balanced and len(np.unique(cancer)) < 2:
            raise ConfigError("balanced_batches need training images with cancer and without")
        positives = min(max(round(config.positive_fraction * batch), 1), batch - 1) if balanced else 0
        flips, strong = config.augmentation != "none", config.augmentation == "strong"
        return cls(np.asarray(cancer), batch, config.seed, flips, positives, strong)

    @property
    def steps(self) -> int:
        return len(self.cancer) // self.batch

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(images, variants): positions and 0-3, both int64 (steps, batch), of an epoch counted from 0.

        In balanced batches positives come round again, evenly, and stand evenly spaced, so that each device has some.
        """
        random = np.random.default_rng([self.seed, number])
        size = (self.steps, self.batch)
        if self.positives:
            images = np.empty(size, np.int64)
            places = np.arange(self.positives) * self.batch // self.positives
            others = np.setdiff1d(np.arange(self.batch), places)
            for label, where in ((1, places), (0, others)):
                pool = np.flatnonzero(self.cancer == label)
                images[:, where] = np.resize(list(rounds(pool, self.steps * len(where), random)), (size[0], len(where)))
        else:
            images = random.permutation(len(self.cancer))[: size[0] * size[1]].reshape(size)
        variants = random.integers(0, VARIANTS, size) if self.flips else np.zeros(size, np.int64)
        return images, variants

    def draws(self, number: int) -> np.ndarray:
        """float32 (steps, batch, AUGMENTATION_PARAMETERS) in 0-1, by which an epoch's images are changed."""
        return np.random.default_rng([self.seed, number, 1]).random(
            (self.steps, self.batch, AUGMENTATION_PARAMETERS), np.float32
        )

    def of_worker(self, number: int, share: Share) -> tuple[np.ndarray, ...]:
        """The epoch's images, variants and, where it is strong, draws of one machine, a row each image.

        A machine has its slice of each batch, the first machine the first.
        """
        part = self.batch // share.workers
        plans = [*self.epoch(number), *([self.draws(number)] if self.strong else [])]
        own = (plan[:, share.worker * part : (share.worker + 1) * part] for plan in plans)
        return tuple(plan.reshape(-1, *plan.shape[2:]) for plan in own)


def rounds(pool: np.ndarray, count: int, random: np.random.Generator) -> Iterator[int]:
    """`count` members: all in random order, then all in another, and so on."""
    while count > 0:
        yield from random.permutation(pool)[:count]
        count -= len(pool)
