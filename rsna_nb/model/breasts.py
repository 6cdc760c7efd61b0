"""The images of each breast, as the network of `unit` "breast" and "woman" takes them: places and view codes.

A breast has a row of places. A place holds the number of an image, and a view code: 0 for no image, 1 for CC, 2 for
MLO, 3 for another or an unknown view, and these three plus `OPPOSITE` for an image of the woman's other breast. The
score depends neither on the order of the places nor on what lies in a place with the code 0.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

CODES = {"CC": 1, "MLO": 2}
OTHER_VIEW = 3
OPPOSITE = 3  # is added to the code of an image of the other breast
NO_IMAGE = -1


@dataclass(frozen=True, eq=False)
class Breasts:
    """The breasts of a table of images, in the order in which they first occur.

    Attributes
    ----------
    table
        A row for each breast: patient_id, laterality and, if the images have it, cancer (1 if any image has 1).
    images
        int64 (breasts, places), the rows of the images' table, `NO_IMAGE` where a breast has fewer images.
    views
        int32 (breasts, places), view codes.
    opposite
        int64 (breasts,), the row of the woman's other breast, -1 if it has no image. None if `unit` is "breast".
    """

    table: pd.DataFrame
    images: np.ndarray
    views: np.ndarray
    opposite: np.ndarray | None = None

    @classmethod
    def of(cls, rows: pd.DataFrame, unit: str) -> "Breasts":
        """Group images by breast.

        Parameters
        ----------
        rows
            A row for each image, with patient_id, laterality and view.
        unit
            "breast", or "woman" for a network that also sees the other breast.

        Raises
        ------
        ValueError
            If an image has no patient_id or laterality.

        Examples
        --------
        >>> rows = pd.DataFrame({"patient_id": list("aaab"), "laterality": list("LLRL"), "view": ["CC", "MLO"] * 2})
        >>> breasts = Breasts.of(rows, "woman")
        >>> breasts.images.tolist(), breasts.views.tolist(), breasts.opposite.tolist()
        ([[0, 1], [2, -1], [3, -1]], [[1, 2], [1, 0], [2, 0]], [1, 0, -1])
        """
        if unknown := int(rows[["patient_id", "laterality"]].isna().any(axis=1).sum()):
            raise ValueError(f"{unknown} of {len(rows)} images lack patient_id or laterality: their breast is unknown")
        groups = rows.groupby(["patient_id", "laterality"], sort=False)
        breast, place = groups.ngroup().to_numpy(), groups.cumcount().to_numpy()
        shape = (groups.ngroups, place.max(initial=-1) + 1)
        images, views = np.full(shape, NO_IMAGE, np.int64), np.zeros(shape, np.int32)
        images[breast, place] = np.arange(len(rows))
        views[breast, place] = rows["view"].str.upper().map(CODES).fillna(OTHER_VIEW).to_numpy(np.int32)
        columns = [name for name in ("patient_id", "laterality", "cancer") if name in rows]
        table = rows.iloc[images[:, 0]][columns].reset_index(drop=True)
        if "cancer" in rows:
            table["cancer"] = groups["cancer"].max().to_numpy()
        return cls(table, images, views, _opposite(table) if unit == "woman" else None)

    @property
    def of_image(self) -> np.ndarray:
        """The breast of each image, int64 (images,)."""
        breast = np.empty(int((self.images != NO_IMAGE).sum()), np.int64)
        row, place = np.nonzero(self.images != NO_IMAGE)
        breast[self.images[row, place]] = row
        return breast

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """All images of each breast, and of the other one if `unit` is "woman", as `drawn` returns them."""
        return self._beside(self.images, self.views)

    def drawn(self, seed: int, epoch: int, places: int) -> tuple[np.ndarray, np.ndarray]:
        """At most `places` images of each breast, drawn at random for an epoch, of as many views as there are.

        If `unit` is "woman", as many places follow for the other breast.

        Returns
        -------
        The rows of the images' table, int64, and view codes, int32, both (breasts, places or twice as many). A place
        without an image has the code 0 and repeats an image of the same breast: a black image would change the
        statistics of batch normalisation.
        """
        random = np.random.default_rng([seed, epoch, 2])  # 0 and 1 are those of `sampling`
        order = np.argsort(np.where(self.views > 0, random.random(self.views.shape), 2), axis=1)
        images, views = (np.take_along_axis(values, order, axis=1) for values in (self.images, self.views))
        # How many images of the same view come before each: the first of every view are taken first. Where there are
        # fewer places than views, the views are drawn at random.
        before = np.full(views.shape, views.shape[1] + 1.0)
        for code in range(1, OTHER_VIEW + 1):
            count = np.cumsum(views == code, axis=1) + random.random((len(views), 1))
            before = np.where(views == code, count, before)
        order = np.argsort(before, axis=1, kind="stable")[:, :places]
        images, views = (np.take_along_axis(values, order, axis=1) for values in (images, views))
        more = [(0, 0), (0, places - order.shape[1])]
        return self._beside(np.pad(images, more, constant_values=NO_IMAGE), np.pad(views, more))

    def _beside(self, images: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fill the places without an image, and add those of the other breast."""
        images = np.where(images == NO_IMAGE, images[:, :1], images)
        if self.opposite is None:
            return images, views
        known = self.opposite[:, np.newaxis] >= 0
        other_images = np.where(known, images[self.opposite], images[:, :1])
        other_views = np.where(known & (views[self.opposite] > 0), views[self.opposite] + OPPOSITE, 0)
        return np.hstack([images, other_images]), np.hstack([views, other_views.astype(np.int32)])


def _opposite(table: pd.DataFrame) -> np.ndarray:
    """The row of each breast's other side, -1 without one."""
    sides = pd.MultiIndex.from_frame(table[["patient_id", "laterality"]])
    other = table["laterality"].map({"L": "R", "R": "L"})
    return sides.get_indexer(pd.MultiIndex.from_arrays([table["patient_id"], other]))
