"""Every recipe in notebooks/params trains for one step on small images."""

import dataclasses
import json
from pathlib import Path

import keras
import pytest
from keras import applications
from keras.src.applications import convnext

from rsna_nb import synthetic
from rsna_nb.backbones import vit
from rsna_nb.backbones.registry import FAMILIES
from rsna_nb.backbones.vit import TRANSFORMERS
from rsna_nb.config import RunConfig
from rsna_nb.training import run as training
from tests.notebooks import NOTEBOOKS

PARAMS = NOTEBOOKS / "params"
# resnet50v2-1024 is left out because it differs from resnet50v2-512 in its size alone, which a test below holds.
RECIPES = sorted(path for path in PARAMS.glob("*.json") if path.stem != "resnet50v2-1024")
SIDE = 64


@pytest.fixture
def light(monkeypatch) -> None:
    """Make the two largest networks small, keeping their names and the names of their layers."""
    depths = {"depths": [1, 1, 1, 1], "projection_dims": [16, 32, 64, 128], "default_size": 224}
    monkeypatch.setitem(convnext.MODEL_CONFIGS, "small", depths)
    monkeypatch.setattr(vit, "DEPTH", 10)  # the recipe trains from block_9 on
    monkeypatch.setitem(TRANSFORMERS, "vit_base", dataclasses.replace(TRANSFORMERS["vit_base"], width=192))


def published(backbone: str, folder: Path) -> str:
    """Write random weights in the form of the published ImageNet weights, unless a package carries the real ones."""
    if backbone == "efficientnet_lite0":
        return "imagenet"
    path = folder / f"{backbone}.weights.h5"
    if backbone in TRANSFORMERS:
        import keras_hub

        path, arguments = folder / backbone, TRANSFORMERS[backbone].arguments
        keras_hub.models.ViTBackbone(**arguments, image_shape=(SIDE, SIDE, 3)).save_to_preset(path)
    else:
        name = next(name for names in FAMILIES.values() for name in names.split() if name.lower() == backbone)
        network = getattr(applications, name)(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
        network.save_weights(path)
    return str(path)


# The larger networks take 8 to 20 s each. All recipes are read and checked in test_notebooks.
LARGE = ("pretrained", "resnet50v2-512", "strong", "vit", "yolo11")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LARGE)) for path in RECIPES],
)
def test_a_recipe_trains_for_one_step(path, light, generated, stores, tmp_path):
    keras.utils.set_random_seed(0)
    recipe = RunConfig.from_json(path)
    small = {
        "data_dir": str(generated),
        "store_dir": stores,
        "runs_dir": str(tmp_path / "runs"),
        "img_size": [SIDE, SIDE // 2] if isinstance(recipe.img_size, list) else SIDE,
        "weights": published(recipe.backbone, tmp_path) if recipe.weights == "imagenet" else recipe.weights,
        "limit_patients": 8,
        "val_fraction": 0.4,
        "batch_size_per_gpu": 255,  # limited to the training images: one step (256, the default, would be lowered)
        "gradient_accumulation": 1,
        "epochs": 1,
        "fine_tune_epochs": min(1, recipe.fine_tune_epochs),
        "warmup_epochs": 0,
    }
    run = training.train(RunConfig(**vars(recipe) | small))
    assert len(run.history) == 1 + small["fine_tune_epochs"]
    assert ": 1 steps per epoch" in run.file("logs/train.log").read_text()
    assert run.history["loss"].notna().all()
    assert run.predictions["score"].between(0, 1).all()


def test_the_recipes_of_one_network_differ_in_name_and_size_alone():
    smaller, larger = (json.loads((PARAMS / f"resnet50v2-{side}.json").read_text()) for side in (512, 1024))
    own = {side: {"run_name": f"resnet50v2-{side}", "img_size": side} for side in (512, 1024)}
    assert smaller | own[1024] == larger
    assert larger | own[512] == smaller


@pytest.mark.slow
def test_the_plans_recipe_finds_lesions_with_real_trained_weights(tmp_path):
    """The whole recipe as it stands: ImageNet weights, frozen, flips, class weights, the bank, up to 35 epochs."""
    data = synthetic.generate(tmp_path / "data", patients=60, prevalence=0.5, seed=7, scale=0.15)
    recipe = RunConfig.from_json(PARAMS / "pretrained.json")
    run = training.train(
        recipe.replace(
            data_dir=str(data), store_dir=str(tmp_path / "store"), runs_dir=str(tmp_path / "runs"), img_size=256
        )
    )
    assert "feature bank" in run.file("logs/train.log").read_text()
    assert len(run.history) == 35 or run.history["val_loss"].tail(10).min() > run.history["val_loss"].min()
    # With random weights it is 0.5: the untrained network's features hardly differ between images.
    assert run.metrics["validation"]["image"]["auc"] > 0.7
