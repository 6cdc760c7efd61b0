"""Heat maps in the pixels of the original files, for the viewer."""

import cv2
import keras
import numpy as np
import pandas as pd

from rsna_nb.evaluation import store_of
from rsna_nb.explain.breasts import maps_in_breasts
from rsna_nb.explain.geometry import geometries_of
from rsna_nb.explain.maps import heat_maps
from rsna_nb.inference import read_images
from rsna_nb.prepare import image_file
from rsna_nb.runs import Run

SIDE = 256  # pixels of the longer side of a map, which was enlarged from fewer
KEY = ["patient_id", "image_id"]


def maps_in_files(
    model: keras.Model, run: Run, images: pd.DataFrame, method: str, flips: bool
) -> dict[str, np.ndarray]:
    """Compute the maps of images, each over its whole file: 0 outside of the crop that the network saw.

    Parameters
    ----------
    model, run, method, flips
        As for `heat_maps`. If the run scored breasts, a map is what the image added to the score of its breast.
    images
        A row for each image, with patient_id, image_id, laterality and path.

    Returns
    -------
    By path, float32 (rows, columns) in 0-1, reduced to `SIDE` pixels.

    Raises
    ------
    UnavailableError
        If the store lacks an image.
    """
    store, keys = store_of(run), list(images[KEY].itertuples(index=False, name=None))
    geometries = geometries_of(run, keys)
    maps = (
        heat_maps(model, read_images(image_file(store, *key) for key in keys), method, flips)
        if run.config.unit == "image"
        else maps_in_breasts(model, run, images, method, flips)
    )
    found = zip(images["path"], geometries, maps, strict=True)
    return {path: _reduced(geometry.map_to_file(heat_map)) for path, geometry, heat_map in found}


def _reduced(heat_map: np.ndarray) -> np.ndarray:
    scale = min(1, SIDE / max(heat_map.shape))
    height, width = (max(1, round(side * scale)) for side in heat_map.shape)
    return cv2.resize(heat_map, (width, height), interpolation=cv2.INTER_AREA)
