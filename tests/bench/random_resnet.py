"""Generated data and a ResNet50V2 with random weights, for benchmarks that measure time and not how good a model is."""

from pathlib import Path

import keras

from rsna_nb import synthetic


def settings_in(folder: Path, women: int) -> dict[str, str]:
    """Write the data and the weights into `folder`; return settings that name them and folders for store and runs."""
    data_dir = synthetic.generate(folder / "data", women, 0.4, seed=1, scale=0.1)
    weights = folder / "resnet50v2.weights.h5"
    keras.utils.set_random_seed(0)
    keras.applications.ResNet50V2(include_top=False, weights=None, input_shape=(224, 224, 3)).save_weights(weights)
    folders = {"data_dir": str(data_dir), "store_dir": f"{folder}/store", "runs_dir": f"{folder}/runs"}
    return folders | {"weights": str(weights)}
