"""Where a prepared image lies in its file: boxes and maps are converted from one to the other.

Boxes are (n, 4): x_min, y_min, x_max, y_max in pixels, half open. Maps are (rows, columns). A pixel's centre lies at
+0.5. The pixels of the image are square, those of the file need not be. The image was made from whole pixels of a
reduced level of the file (`dicom.reader`). Each halving shifts its content by less than half a pixel of that level, and
so by less than half a pixel of the image; this is not corrected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from rsna_nb.config import ImageRecipe
from rsna_nb.dicom import Box, Placement, Reading, placement
from rsna_nb.evaluation import PREPARE_FIRST, store_of
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import Record
from rsna_nb.prepare import ledger as ledgers
from rsna_nb.runs import Run


@dataclass(frozen=True)
class Geometry:
    """The placement of an image in its file.

    Parameters
    ----------
    box
        The crop in pixels of the file. It consists of whole pixels of the level that was read, so it can reach beyond
        the file by less than one of these.
    inner
        The rectangle of the image that the crop fills.
    shape
        (height, width) of the image.
    rows, columns
        Size of the file.
    """

    box: Box
    inner: Placement
    shape: tuple[int, int]
    rows: int
    columns: int

    @classmethod
    def of(cls, found: Reading | Record, shape: tuple[int, int], recipe: ImageRecipe | None = None) -> "Geometry":
        """The geometry of an image of `shape`, from its reading or from its row in a store's ledger.

        `recipe` is the preprocessing of the image; None is "breast". The other recipe rounds the crop's size down.
        """
        crop = [int(side) for side in found.crop.split()] if isinstance(found, Record) else found.crop
        x_min, y_min, x_max, y_max = crop
        pixel = 2**found.level  # each level of the file's pyramid halves it
        width, height = -(-(x_max - x_min) // pixel), -(-(y_max - y_min) // pixel)
        box = (x_min, y_min, x_min + width * pixel, y_min + height * pixel)
        rounded = recipe is None or recipe.name == "breast"
        inner = placement((height, width), shape, found.aspect, rounded)
        return cls(box, inner, shape, found.rows, found.columns)

    @property
    def scale(self) -> np.ndarray:
        """Pixels of the image for each pixel of the file: (4,), across and down for both corners of a box."""
        x_min, y_min, x_max, y_max = self.box
        return np.tile([self.inner.width / (x_max - x_min), self.inner.height / (y_max - y_min)], 2)

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes (n, 4) from pixels of the file to pixels of the image, without rounding."""
        return (boxes - np.tile(self.box[:2], 2)) * self.scale + np.tile([self.inner.left, self.inner.top], 2)

    def to_file(self, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes (n, 4) from pixels of the image to pixels of the file, without rounding."""
        return (boxes - np.tile([self.inner.left, self.inner.top], 2)) / self.scale + np.tile(self.box[:2], 2)

    def map_to_file(self, values: np.ndarray) -> np.ndarray:
        """Convert a map (height, width) of the image to float32 (rows, columns) of the file, 0 outside the crop.

        Raises `ValueError` if the map has another shape than the image.
        """
        if values.shape != self.shape:
            raise ValueError(f"the map must have the image's shape {self.shape}, not {values.shape}")
        x_min, y_min, x_max, y_max = self.box
        at = self.inner
        inner = np.asarray(values[at.top : at.top + at.height, at.left : at.left + at.width], np.float32)
        enlarged = cv2.resize(inner, (x_max - x_min, y_max - y_min), interpolation=cv2.INTER_LINEAR)
        # The crop's last pixels can lie beyond the file, where a level's size was rounded up.
        whole = np.zeros((self.rows, self.columns), np.float32)
        whole[y_min:y_max, x_min:x_max] = enlarged[: self.rows - y_min, : self.columns - x_min]
        return whole


def geometries_of(run: Run, ids: Sequence[tuple[str, str]]) -> list[Geometry]:
    """The geometry of prepared images, which are named by their patient_id and image_id.

    Raises `UnavailableError` if the store's ledger does not say where an image lies in its file.
    """
    store = store_of(run)
    ledger = ledgers.read(store)
    if missing := ["/".join(key) for key in ids if key not in ledger or ledger[key].status != "ok"]:
        raise UnavailableError(
            f"{store / 'ledger.csv'} does not say where {len(missing)} images lie, first {missing[0]}: {PREPARE_FIRST}"
        )
    return [Geometry.of(ledger[key], run.config.image_shape, run.image_recipe) for key in ids]
