"""Where a prepared picture lies in its file: boxes and maps from the one to the other.

Boxes are (n, 4): x_min, y_min, x_max, y_max in pixels, half open; maps are (rows, columns). A pixel's centre lies at
+0.5. The picture was made from whole pixels of a coarser level of the file (`dicom.read`). Halving moves its content
by less than half of one of them, and so of the picture's own pixels, which is not corrected.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from rsna_nb.dicom import Box, Placement, Reading, placement
from rsna_nb.prepare import Record


@dataclass(frozen=True)
class Geometry:
    """`box`, in stored pixels, fills the rectangle `inner` of a picture of `shape`; the file has `rows` and `columns`.

    The box is of whole pixels of the level that was read, so it can reach past the file by less than one of these.
    """

    box: Box
    inner: Placement
    shape: tuple[int, int]
    rows: int
    columns: int

    @classmethod
    def of(cls, found: Reading | Record, shape: tuple[int, int]) -> "Geometry":
        """From what reading found, or its row of a store's ledger."""
        crop = [int(side) for side in found.crop.split()] if isinstance(found, Record) else found.crop
        x_min, y_min, x_max, y_max = crop
        pixel = 2**found.level
        width, height = -(-(x_max - x_min) // pixel), -(-(y_max - y_min) // pixel)
        box = (x_min, y_min, x_min + width * pixel, y_min + height * pixel)
        return cls(box, placement((height, width), shape), shape, found.rows, found.columns)

    @property
    def scale(self) -> np.ndarray:
        """Pixels of the picture for each of the file: (4,), across and down for either corner of a box."""
        x_min, y_min, x_max, y_max = self.box
        return np.tile([self.inner.width / (x_max - x_min), self.inner.height / (y_max - y_min)], 2)

    def to_picture(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes in the file's pixels -> in the picture's, not rounded."""
        return (boxes - np.tile(self.box[:2], 2)) * self.scale + np.tile([self.inner.left, self.inner.top], 2)

    def to_file(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes in the picture's pixels -> in the file's, not rounded."""
        return (boxes - np.tile([self.inner.left, self.inner.top], 2)) / self.scale + np.tile(self.box[:2], 2)

    def map_to_file(self, values: np.ndarray) -> np.ndarray:
        """A map (height, width) of the picture -> float32 (rows, columns) of the file, 0 outside of the crop."""
        if values.shape != self.shape:
            raise ValueError(f"the map must be of the picture's shape {self.shape}, not {values.shape}")
        x_min, y_min, x_max, y_max = self.box
        at = self.inner
        inner = np.asarray(values[at.top : at.top + at.height, at.left : at.left + at.width], np.float32)
        enlarged = cv2.resize(inner, (x_max - x_min, y_max - y_min), interpolation=cv2.INTER_LINEAR)
        whole = np.zeros((self.rows, self.columns), np.float32)
        whole[y_min:y_max, x_min:x_max] = enlarged[: self.rows - y_min, : self.columns - x_min]
        return whole
