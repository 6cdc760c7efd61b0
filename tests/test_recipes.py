"""Each file of notebooks/params, trained for one step on small pictures."""

from pathlib import Path

import keras
import pytest
from keras import applications

from rsna_nb import training
from rsna_nb.backbones import FAMILIES
from rsna_nb.config import RunConfig
from rsna_nb.vit import TRANSFORMERS
from tests.notebooks import NOTEBOOKS

RECIPES = sorted((NOTEBOOKS / "params").glob("*.json"))
SIDE = 64


def published(backbone: str, folder: Path) -> str:
    """In place of the ImageNet weights, which are on the network: a file of the same form, of random numbers."""
    path = folder / f"{backbone}.weights.h5"
    if backbone in TRANSFORMERS:
        import keras_hub

        arguments = TRANSFORMERS[backbone].arguments
        keras_hub.models.ViTBackbone(**arguments, image_shape=(SIDE, SIDE, 3)).save_weights(path)
    else:
        name = next(name for names in FAMILIES.values() for name in names.split() if name.lower() == backbone)
        network = getattr(applications, name)(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
        network.save_weights(path)
    return str(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_for_one_step(path, generated, tmp_path):
    keras.utils.set_random_seed(0)
    recipe = RunConfig.from_json(path)
    small = {
        "data_dir": str(generated),
        "store_dir": str(tmp_path / "stores"),
        "runs_dir": str(tmp_path / "runs"),
        "img_size": [SIDE, SIDE // 2] if isinstance(recipe.img_size, list) else SIDE,
        "weights": published(recipe.backbone, tmp_path) if recipe.weights == "imagenet" else recipe.weights,
        "limit_patients": 8,
        "val_fraction": 0.4,
        "batch_size_per_gpu": 256,  # cut to the images there are: one step
        "gradient_accumulation": 1,
        "epochs": 1,
        "fine_tune_epochs": min(1, recipe.fine_tune_epochs),
        "warmup_epochs": 0,
    }
    run = training.train(RunConfig(**vars(recipe) | small))
    assert len(run.history) == 1 + small["fine_tune_epochs"]
    assert ": 1 steps an epoch" in run.file("logs/train.log").read_text()
    assert run.history["loss"].notna().all()
    assert run.predictions["score"].between(0, 1).all()
