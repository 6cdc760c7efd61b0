import json
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.special import ndtr, softmax

from rsna_nb import inference, runs
from rsna_nb.backbones import BACKBONES, WeightsError, build_backbone, build_parts, vit
from rsna_nb.backbones.scaling import IMAGENET, SCALINGS
from rsna_nb.backbones.vit import TRANSFORMERS, interpolated
from rsna_nb.backbones.vit_tensors import _targets
from rsna_nb.config import RunConfig
from rsna_nb.metadata.table import load_metadata
from rsna_nb.model import build_model, layers_from
from rsna_nb.training import run as training
from rsna_nb.training.callbacks import TrainingError
from tests.small import SMALL, assert_equal, changed_layers, resumed, stop_at

SIDES = {"vit_tiny": 64, "dinov2_tiny": 70, "dinov2_with_registers_small": 70}  # image sides of the presets made here
DEEP, SHALLOW = vit.DEPTH, 2  # numbers of blocks; two blocks are a sixth of the work


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit, "DEPTH", SHALLOW)
        yield


@pytest.fixture
def deep(monkeypatch) -> None:
    monkeypatch.setattr(vit, "DEPTH", DEEP)


def hub():
    import keras_hub

    return keras_hub.models


def applied(network: keras.Model, pictures: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(network(pictures, training=False)).astype(np.float32)


@pytest.fixture(scope="module")
def presets(shallow, tmp_path_factory) -> dict[str, str]:
    """Folders as keras-hub's save_to_preset writes them, with random numbers in every weight."""
    rng, folders = np.random.default_rng(0), {}
    keras.utils.set_random_seed(0)
    for name, side in SIDES.items():
        transformer, sizes = TRANSFORMERS[name], {"image_shape": (side, side, 3)}
        if transformer.family == "DINOV2":
            antialias = bool(transformer.registers)  # as keras-hub's presets have it
            sizes |= {"position_embedding_shape": (side, side, 3), "antialias_in_interpolation": antialias}
        source = getattr(hub(), f"{transformer.family}Backbone")(**transformer.arguments, **sizes)
        source.set_weights([array + 0.05 * rng.standard_normal(array.shape) for array in source.get_weights()])
        folders[name] = str(tmp_path_factory.mktemp("presets") / name)
        source.save_to_preset(folders[name])
    return folders


def grey(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).random((2, height, width, 1), dtype=np.float32)


def by_keras_hub(name: str, folder: str, pictures: np.ndarray) -> np.ndarray:
    """The patches' tokens of keras-hub's own network, as a feature map."""
    transformer, side = TRANSFORMERS[name], pictures.shape[1]
    scaling = SCALINGS["tf" if transformer.family == "ViT" else "torch"]
    colour = np.repeat(pictures, 3, axis=-1) * scaling[0] + scaling[1]
    source = hub().Backbone.from_preset(folder, image_shape=(side, side, 3))
    tokens = applied(source, colour if transformer.family == "ViT" else {"images": colour})
    count = side // transformer.patch
    return tokens[:, 1 + transformer.registers :].reshape(len(pictures), count, count, -1)


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.slow
def test_at_the_presets_own_size_the_feature_map_equals_keras_hubs(presets, name):
    pictures = grey(SIDES[name], SIDES[name])
    ours = applied(build_backbone(name, SIDES[name], presets[name]), pictures)
    np.testing.assert_allclose(ours, by_keras_hub(name, presets[name], pictures), atol=1e-5)
    assert ours.std() > 0.1


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov2_with_registers_small"])
@pytest.mark.slow
def test_at_another_size_positions_are_interpolated_as_keras_hubs_dinov2_does(presets, name):
    pictures = grey(224, 224)[:1]
    ours = applied(build_backbone(name, 224, presets[name]), pictures)
    np.testing.assert_allclose(ours, by_keras_hub(name, presets[name], pictures), atol=1e-5)


def test_the_weights_file_in_a_presets_folder_gives_what_the_preset_gives(presets):
    for name in ("vit_tiny", "dinov2_tiny"):
        ours, theirs = (build_backbone(name, 64, each) for each in (f"{presets[name]}/model.weights.h5", presets[name]))
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_file_that_the_network_itself_saved_is_loaded(presets, tmp_path):
    ours = build_backbone("vit_tiny", 64, presets["vit_tiny"])
    ours.save_weights(tmp_path / "own.weights.h5")
    again = build_backbone("vit_tiny", 64, str(tmp_path / "own.weights.h5"))
    for one, other in zip(ours.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_positions_for_the_same_grid_stay_as_they_are():
    positions = np.random.default_rng(0).random((1, 1 + 4 * 6, 8), dtype=np.float32)
    np.testing.assert_array_equal(interpolated(positions, (4, 6), (4, 6)), positions)


@pytest.mark.parametrize("grid", [(8, 12), (3, 5), (4, 7)])
def test_interpolated_positions_keep_their_place_in_the_image(grid):
    rows, columns = np.mgrid[:4, :6]
    table = np.stack([rows / 3, columns / 5, np.ones((4, 6))], axis=-1).reshape(1, 24, 3)
    positions = np.concatenate([np.full((1, 1, 3), 9.0), table], axis=1).astype(np.float32)
    found = interpolated(positions, (4, 6), grid)
    np.testing.assert_array_equal(found[:, :1], positions[:, :1])  # the class token has no position in the grid
    down, across, same = np.moveaxis(found[0, 1:].reshape(*grid, 3), -1, 0)
    np.testing.assert_allclose(same, 1, atol=1e-5)
    assert np.ptp(down, axis=1).max() < 1e-5
    assert np.ptp(across, axis=0).max() < 1e-5
    assert (np.diff(down[:, 0]) > 0).all()
    assert (np.diff(across[0]) > 0).all()


@pytest.mark.parametrize(("name", "expected"), [("vit_tiny", (6, 4, 192)), ("dinov2_tiny", (7, 5, 192))])
def test_images_need_not_be_square_and_a_saved_network_gives_the_same(presets, tmp_path, name, expected):
    network = build_backbone(name, [96, 64], presets[name])
    features = applied(network, grey(96, 64))
    assert features.shape == (2, *expected)
    network.save(tmp_path / "network.keras")
    np.testing.assert_array_equal(applied(keras.models.load_model(tmp_path / "network.keras"), grey(96, 64)), features)


def test_a_size_that_the_patch_does_not_divide_is_padded_with_black_and_not_cut(presets):
    pictures = grey(64, 64)
    padded = np.pad(pictures, ((0, 0), (3, 3), (3, 3), (0, 0)))
    network = build_backbone("dinov2_tiny", 64, presets["dinov2_tiny"])
    found = applied(network, pictures)
    expected = applied(build_backbone("dinov2_tiny", 70, presets["dinov2_tiny"]), padded)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for edge in ((slice(None), 0), (slice(None), -1), (slice(None), slice(None), 0), (slice(None), slice(None), -1)):
        changed = pictures.copy()
        changed[edge] = 1 - changed[edge]
        assert np.abs(applied(network, changed) - found).max() > 1e-3


@pytest.mark.parametrize(("name", "side"), [("vit_base", 384), ("dinov2_small", 518)])
@pytest.mark.slow
def test_the_number_of_parameters_is_keras_hubs(deep, name, side):
    transformer = TRANSFORMERS[name]
    published = getattr(hub(), f"{transformer.family}Backbone").presets[transformer.preset]["metadata"]["params"]
    if transformer.family == "DINOV2":  # keras-hub counts positions twice (learned and interpolated) and a mask token
        published -= (1 + (side // 14) ** 2) * transformer.width + transformer.width
    assert build_backbone(name, side, "none").count_params() == published


def test_the_published_presets_are_those_that_keras_hub_knows():
    known = {*hub().ViTBackbone.presets, *hub().DINOV2Backbone.presets}
    assert {each.preset for each in TRANSFORMERS.values()} - {""} <= known


def test_a_preset_of_another_network_is_refused_with_both_names(presets):
    with pytest.raises(WeightsError, match="is vit_tiny, not vit_small: num_heads is 3, not 6, hidden_dim is 192"):
        build_backbone("vit_small", 64, presets["vit_tiny"])
    with pytest.raises(WeightsError, match="is a DINOV2, and vit_tiny is a ViT"):
        build_backbone("vit_tiny", 64, presets["dinov2_tiny"])
    with pytest.raises(
        WeightsError, match="is dinov2_with_registers_small, not dinov2_small: num_register_tokens is 4"
    ):
        build_backbone("dinov2_small", 64, presets["dinov2_with_registers_small"])
    with pytest.raises(WeightsError, match="is vit_tiny, not vit_small"):
        build_backbone("vit_small", 64, presets["vit_tiny"] + "/model.weights.h5")


def test_a_folder_that_is_no_preset_is_refused(presets, tmp_path):
    with pytest.raises(WeightsError, match="not a preset"):
        build_backbone("vit_tiny", 64, str(tmp_path))
    (tmp_path / "config.json").write_text('{"registered_name": "own>Net", "class_name": "Net", "config": {}}')
    with pytest.raises(WeightsError, match=r"cannot read the preset"):
        build_backbone("vit_tiny", 64, str(tmp_path))
    with pytest.raises(WeightsError, match="backbone mobilenet: it is a folder"):
        build_backbone("mobilenet", 64, presets["vit_tiny"])


def test_weights_that_are_not_published_are_refused():
    with pytest.raises(WeightsError, match="backbone vit_tiny has no ImageNet weights"):
        build_backbone("vit_tiny", 64, "imagenet")


def test_without_a_network_the_error_names_the_preset_and_what_to_do(tmp_path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    hub()
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"cannot read the preset dinov2_small .*save_to_preset.* set weights to it"):
        build_backbone("dinov2_small", 64, "imagenet")


def test_without_keras_hub_the_error_says_what_to_install(presets, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'rsna_nb\[vit\]'"):
        build_backbone("vit_tiny", 64, presets["vit_tiny"])
    assert build_backbone("vit_tiny", 64, "none").output_shape == (None, 4, 4, 192)


@pytest.fixture(scope="module")
def settings(generated, stores, presets, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("training")
    own = {"backbone": "vit_tiny", "weights": presets["vit_tiny"], "freeze_backbone": True, "pooling": "avg"}
    folders = {"data_dir": str(generated), "store_dir": stores, "runs_dir": str(folder / "runs")}
    phases = {"epochs": 2, "fine_tune_epochs": 2, "fine_tune_from": "block_2", "fine_tune_learning_rate": 1e-3}
    phases |= {"learning_rate": 0.1}  # so coarse that fine-tuning improves on the head's training
    return SMALL | own | folders | phases | {"limit_patients": 14, "test_fraction": 0.2, "dropout": 0.0}


@pytest.fixture(scope="module")
def run(settings) -> runs.Run:
    """Two epochs from the feature bank, and two that fine-tune the last block."""
    return training.train(RunConfig(**settings))


@pytest.mark.slow
def test_a_run_trains_from_the_feature_bank_and_then_from_the_block_named(settings, run):
    log = run.file("logs/train.log").read_text()
    assert "the head trains on the feature bank" in log
    assert "feature bank vit_tiny-avg-" in log
    assert run.history["phase"].tolist() == ["head"] * 2 + ["fine_tuning"] * 2
    assert run.metrics["best_epoch"] > 2, "otherwise the best model is not a fine-tuned one"
    trained = keras.models.load_model(run.checkpoint, compile=False).get_layer("backbone")
    changed = changed_layers(trained, build_backbone("vit_tiny", 64, settings["weights"]))
    assert changed
    assert all(name.startswith("block_2_") or name == "norm" for name in changed)


@pytest.mark.slow
def test_a_stopped_run_resumes_as_if_it_had_not_been_stopped(settings, run, tmp_path, monkeypatch):
    steps = run.metrics["images"]["train"] // settings["batch_size_per_gpu"]
    stop_at(3 * steps + 1, monkeypatch)  # in the last epoch, which fine-tunes
    with pytest.raises(TrainingError, match="stopped for the test"):
        training.train(RunConfig(**settings | {"runs_dir": str(tmp_path)}))
    assert_equal(resumed(runs.list_runs(tmp_path)[0]), run)


@pytest.mark.slow
def test_a_saved_network_needs_no_keras_hub_and_scores_as_in_training(run, generated):
    classes: list[dict] = []
    with zipfile.ZipFile(run.checkpoint) as archive:
        json.loads(archive.read("config.json"), object_hook=lambda item: classes.append(item) or item)
    assert {item["module"].split(".")[0] for item in classes if item.get("module")} <= {"keras", "rsna_nb"}
    rows = run.predictions[:5]
    files = load_metadata(generated).set_index("image_id")["path"][rows["image_id"]]
    np.testing.assert_allclose(inference.predict(run, files)["score"], rows["score"], atol=1e-5)


def test_in_half_precision_the_features_are_nearly_the_same(presets):
    config = RunConfig(backbone="vit_tiny", weights=presets["vit_tiny"], img_size=64)
    half, whole = (build_model(config, precision).get_layer("backbone") for precision in ("bfloat16", "float32"))
    assert half.get_layer("tokens").compute_dtype == half.get_layer("block_2_attention").compute_dtype == "bfloat16"
    ours, theirs = (applied(network, grey(64, 64)) for network in (half, whole))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999
    for one, other in zip(half.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fine_tuning_can_begin_at_any_block(deep):
    model = build_model(RunConfig(backbone="vit_tiny", weights="none", freeze_backbone=False, img_size=64))
    opened = [layer.name for layer in layers_from(model, "block_9")]
    assert opened[0] == "block_9_norm_1"
    assert {name.split("_")[1] for name in opened if name.startswith("block")} == {"9", "10", "11", "12"}


def test_the_recipe_is_valid_and_names_an_existing_block(deep):
    path = Path(__file__).parents[1] / "notebooks" / "params" / "vit.json"
    config = RunConfig.from_json(path)
    assert BACKBONES[config.backbone].imagenet
    small = config.replace(backbone="vit_tiny", weights="none", freeze_backbone=False, fine_tune_epochs=0)
    assert layers_from(build_model(small.replace(img_size=64)), config.fine_tune_from)
    assert keras.config.dtype_policy().name == "float32"


def published(name: str, side: int, has_class_position: bool = True) -> dict[str, np.ndarray]:
    """Random tensors under timm's names, with positions for a square of `side` patches."""
    rng, network = np.random.default_rng(3), vit.build(TRANSFORMERS[name], (64, 64))
    registers = "reg_token" if TRANSFORMERS[name].registers else ""
    tensors = {}
    for each, target in _targets(network, (1, 1), registers).items():
        shape = (1, side**2 + has_class_position, target.shape[2]) if each == "pos_embed" else target.shape
        values = 0.1 * rng.standard_normal(shape) + (each.endswith("weight") and len(shape) == 1)
        tensors[each] = values.astype(np.float32)
    return tensors


def write(folder: Path, tensors: dict[str, np.ndarray]) -> str:
    np.savez(folder / "weights.npz", **tensors)
    return str(folder / "weights.npz")


def normalized(x: np.ndarray, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x: np.ndarray, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def computed(tensors: dict[str, np.ndarray], picture: np.ndarray, patch: int) -> np.ndarray:
    """The whole network of `SHALLOW` blocks in NumPy: a scaled picture (h, w, 3) -> the patches' tokens (n, width)."""
    rows, columns = (side // patch for side in picture.shape[:2])
    cut = picture.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1)
    kernel = tensors["patch_embed.proj.weight"]
    x = cut @ kernel.reshape(len(kernel), -1).T + tensors["patch_embed.proj.bias"]
    x = np.concatenate([tensors["cls_token"][0], x]) + tensors["pos_embed"][0]
    x = np.concatenate([x[:1], *([tensors["reg_token"][0]] if "reg_token" in tensors else []), x[1:]])
    for number in range(SHALLOW):
        name = f"blocks.{number}"
        mixed = linear(normalized(x, tensors, f"{name}.norm1"), tensors, f"{name}.attn.qkv")
        queries, keys, values = mixed.reshape(len(x), 3, -1, 64).transpose(1, 2, 0, 3)
        seen = softmax(queries @ keys.transpose(0, 2, 1) / 8, axis=-1) @ values
        change = linear(seen.transpose(1, 0, 2).reshape(len(x), -1), tensors, f"{name}.attn.proj")
        x = x + change * tensors.get(f"{name}.ls1.gamma", 1)
        hidden = linear(normalized(x, tensors, f"{name}.norm2"), tensors, f"{name}.mlp.fc1")
        change = linear(hidden * ndtr(hidden), tensors, f"{name}.mlp.fc2")
        x = x + change * tensors.get(f"{name}.ls2.gamma", 1)
    return normalized(x, tensors, "norm")[-rows * columns :]


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [("vit_tiny", (0.5,) * 3, (0.5,) * 3), ("dinov2_with_registers_small", *IMAGENET), ("dinov2_small", *IMAGENET)],
)
def test_a_file_with_timms_names_gives_what_a_separate_computation_gives(tmp_path, name, mean, deviation):
    tensors, patch = published(name, 3), TRANSFORMERS[name].patch
    picture = grey(3 * patch, 3 * patch)[:1]
    backbone = build_backbone(name, 3 * patch, write(tmp_path, tensors | {"head.weight": np.ones((3, 3))}))
    expected = computed(tensors, (np.repeat(picture[0], 3, axis=-1) - mean) / deviation, patch)
    assert expected.std() > 0.1
    np.testing.assert_allclose(applied(backbone, picture)[0].reshape(9, -1), expected, rtol=1e-3, atol=1e-4)


def test_registers_may_have_the_authors_name_and_the_class_token_no_position(tmp_path):
    name = "dinov2_with_registers_small"
    tensors = published(name, 3, has_class_position=False)
    with_class = tensors | {"pos_embed": np.pad(tensors["pos_embed"], [(0, 0), (1, 0), (0, 0)])}
    with_class["register_tokens"] = with_class.pop("reg_token")
    with_class["mask_token"] = np.ones((1, 384))
    one, other = (build_backbone(name, [42, 56], write(tmp_path, each)) for each in (tensors, with_class))
    for first, second in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    with pytest.raises(WeightsError, match="pos_embed has 7 positions, which do not form a square"):
        build_backbone(name, 42, write(tmp_path, tensors | {"pos_embed": np.ones((1, 7, 384))}))


def test_a_copy_for_another_size_keeps_the_scaling(tmp_path):
    path = write(tmp_path, published("vit_tiny", 3))
    (tmp_path / "config.json").write_text(
        '{"architecture": "deit_tiny_patch16_224", "mean": [0.1, 0.2, 0.3], "std": [0.2, 0.2, 0.2]}'
    )
    copy = build_parts("vit_tiny", 64, "none", like=build_backbone("vit_tiny", 48, path)).backbone
    np.testing.assert_allclose(copy.get_layer("scaling").offset, [-0.5, -1, -1.5])
