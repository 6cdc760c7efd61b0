"""Files of mammograms -> 8-bit images as the store would hold them, without a store: for files that are scored once."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from rsna_nb.dicom import DicomError, read, reader_of
from rsna_nb.prepare.tasks import to_8_bits
from rsna_nb.system import workers

if TYPE_CHECKING:
    from rsna_nb.config import ImageRecipe


class Picture(NamedTuple):
    """An image, uint8 (height, width), and what is odd about its file, in the words of `dicom.NOTES`."""

    image: np.ndarray
    notes: tuple[str, ...] = ()


MAX_HERE = 32  # up to this many files are read in this process: starting others takes longer


def read_pictures(
    paths: Sequence[str], shape: tuple[int, int], recipe: "ImageRecipe | None" = None
) -> Iterator[tuple[int, Picture | str]]:
    """Read files, in worker processes if there are more than `MAX_HERE`.

    Parameters
    ----------
    paths
        Files of any format that `dicom.read` takes. One that crashes its worker process does not affect the others.
    shape
        (height, width) of the images.
    recipe
        The preprocessing; None is "breast".

    Yields
    ------
    The position of a file in `paths` and its picture, with an image of `shape`, or the reason why it cannot be read.
    The order is arbitrary.

    Raises
    ------
    DetectorError
        If the recipe's breast detector cannot be used.
    """
    reader_of(recipe)  # checks the detector once; otherwise every file would fail with its error
    files = list(enumerate(paths))
    if len(files) <= MAX_HERE:
        yield from ((position, _read((position, path), shape, recipe)) for position, path in files)
        return
    for (position, _), outcome in workers.run(partial(_read_in_worker, shape=shape, recipe=recipe), files):
        yield position, outcome.reason if isinstance(outcome, workers.Death) else outcome


def _read_in_worker(file: tuple[int, str], shape: tuple[int, int], recipe: "ImageRecipe | None") -> Picture | str:
    """Call `_read` in a worker process."""
    cv2.setNumThreads(1)  # the worker processes share the cores
    return _read(file, shape, recipe)


def _read(file: tuple[int, str], shape: tuple[int, int], recipe: "ImageRecipe | None") -> Picture | str:
    """Return the picture of one (position, path), or the reason why it cannot be read."""
    try:
        found = read(file[1], shape, recipe)
    except DicomError as error:
        return error.reason
    return Picture(to_8_bits(found.picture), found.notes)
