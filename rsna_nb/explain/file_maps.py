"""Heat maps in the pixels of the original files, for the viewer."""

import cv2
import keras
import numpy as np
import pandas as pd

from rsna_nb.config import resolve
from rsna_nb.evaluation import PREPARE_FIRST, data_folder
from rsna_nb.explain.breasts import maps_in_breasts
from rsna_nb.explain.geometry import Geometry
from rsna_nb.explain.maps import heat_maps
from rsna_nb.inference import read_images
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import image_file, store_path
from rsna_nb.prepare import ledger as ledgers
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
    config = run.config
    store = store_path(resolve(config.store_dir), data_folder(run), config.img_size, run.image_recipe)
    ledger, keys = ledgers.read(store), list(images[KEY].itertuples(index=False, name=None))
    if missing := ["/".join(key) for key in keys if key not in ledger or ledger[key].status != "ok"]:
        raise UnavailableError(f"{store} lacks {len(missing)} images, first {missing[0]}: {PREPARE_FIRST}")
    maps = (
        heat_maps(model, read_images(image_file(store, *key) for key in keys), method, flips)
        if config.unit == "image"
        else maps_in_breasts(model, run, images, method, flips)
    )
    geometries = [Geometry.of(ledger[key], config.image_shape, run.image_recipe) for key in keys]
    found = zip(images["path"], geometries, maps, strict=True)
    return {path: _reduced(geometry.map_to_file(heat_map)) for path, geometry, heat_map in found}


def _reduced(heat_map: np.ndarray) -> np.ndarray:
    scale = min(1, SIDE / max(heat_map.shape))
    height, width = (max(1, round(side * scale)) for side in heat_map.shape)
    return cv2.resize(heat_map, (width, height), interpolation=cv2.INTER_AREA)
