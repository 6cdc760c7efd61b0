from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from keras import layers

from rsna_nb.backbones.registry import build_backbone
from rsna_nb.config import RunConfig
from rsna_nb.model import build_model
from rsna_nb.training import memory
from rsna_nb.training.memory import control_group_memory, estimate, free_memory, largest_batch

MIB = 2**20


def detector(backbone: str = "small", precision: str = "float32", trained: bool = True) -> keras.Model:
    config = RunConfig(backbone=backbone, weights="none", img_size=64, freeze_backbone=False)
    model = build_model(config, precision)
    model.get_layer("backbone").trainable = trained
    return model


def activations(model: keras.Model) -> int:
    """Bytes for an image, without the image: 64 x 64 as uint8 and float32."""
    return estimate(model, 1) - estimate(model, 0) - 5 * 64 * 64


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return detector()


def test_a_network_of_two_layers_is_what_the_hand_computes():
    image = keras.Input((4, 4, 1))
    hidden = layers.Dense(8, name="hidden")(layers.Flatten()(image))
    model = keras.Model(image, layers.Dense(1)(hidden))
    weights = (16 * 8 + 8) + (8 + 1)
    in_image = 16 + 4 * 16  # uint8, float32
    # Most is alive in the backward pass of the last layer: the flat image and what `hidden` made of it, for the
    # gradients of both kernels, the gradient of the output, and that of `hidden` which comes of it.
    alive = 4 * (16 + 8 + 1 + 8)
    assert estimate(model, 5) == 4 * weights + 12 * weights + 5 * (in_image + alive)


def test_what_batch_normalisation_gives_is_not_kept_for_the_backward_pass():
    image = keras.Input((8, 8, 1))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 1)(image)))
    model = keras.Model(image, layers.Dense(1)(layers.GlobalAveragePooling2D()(x)))
    # Most is alive in the backward pass of ReLU: what convolution and ReLU gave, and the gradients before and after.
    assert estimate(model, 1) - estimate(model, 0) == 64 * 5 + 4 * 4 * 256


def test_a_frozen_network_needs_its_two_largest_neighbours():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 1)(image)  # 256 numbers
    x = layers.Conv2D(6, 1)(x)  # 384
    x = layers.Conv2D(2, 1)(x)  # 128
    model = keras.Model(image, x)
    model.trainable = False
    assert estimate(model, 1) - estimate(model, 0) == 64 * 5 + 4 * (256 + 384)


def test_a_skipped_layers_activation_stays_until_it_is_added():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 1)(image)
    skipped = x
    for _ in range(3):
        x = layers.Conv2D(4, 1)(x)
    model = keras.Model(image, layers.Add()([x, skipped]))
    model.trainable = False
    assert estimate(model, 1) - estimate(model, 0) == 64 * 5 + 4 * 3 * 256


def test_attention_keeps_its_queries_keys_values_and_what_the_softmax_gives():
    tokens = keras.Input((4, 6))
    model = keras.Model(tokens, layers.MultiHeadAttention(2, 3)(tokens, tokens))
    # Most is alive where the weighted values are differentiated: queries, keys, values and the shares of 2 x 4 x 4
    # pairs, and the gradients of what was mixed, of the shares and of the values.
    alive = 4 * (3 * 24 + 32 + 24 + 32 + 24)
    assert estimate(model, 1) - estimate(model, 0) == 24 * 5 + alive


def test_gelu_keeps_the_factors_that_it_is_made_of():
    image = keras.Input((16,))
    model = keras.Model(image, layers.Dense(1)(layers.Activation("gelu")(layers.Dense(8)(image))))
    # Most is alive where their product is differentiated: what it takes, x / √2, 1 + erf(x / √2), x / 2 and what it
    # gives, and the gradients of that and of both factors.
    assert estimate(model, 1) - estimate(model, 0) == 16 * 5 + 4 * 8 * (5 + 3)


def test_it_is_linear_in_the_batch(small):
    step = estimate(small, 1) - estimate(small, 0)
    assert step > 0
    assert [estimate(small, batch) for batch in (2, 7, 256)] == [estimate(small, 0) + n * step for n in (2, 7, 256)]


@pytest.mark.parametrize("backbone", ["small", "mobilenet"])
def test_a_trained_backbone_needs_more_than_a_frozen_one(backbone):
    model = detector(backbone)
    trained = activations(model), estimate(model, 0)
    model.get_layer("backbone").trainable = False
    assert trained[0] > 2 * activations(model)
    assert trained[1] > 3 * estimate(model, 0)


def test_a_backbone_trained_from_a_late_layer_on_lies_between():
    model = detector()
    sizes = [activations(model)]
    for layer in model.get_layer("backbone").layers[:5]:
        layer.trainable = False
    sizes.append(activations(model))
    sizes.append(activations(detector(trained=False)))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_halves_the_activations_and_not_the_weights(small, precision):
    half = detector(precision=precision)
    assert activations(half) == pytest.approx(activations(small) / 2, rel=0.01)
    assert estimate(half, 0) == estimate(small, 0)


def test_nested_models_are_the_same_as_their_layers(small):
    backbone = build_backbone("small", 64, "none")
    image = keras.Input((64, 64, 1))
    nested = keras.Model(image, keras.Sequential([keras.Sequential([backbone])])(image))
    assert estimate(nested, 3) == estimate(backbone, 3)
    assert estimate(small, 3) > estimate(backbone, 3)


def test_each_call_of_a_shared_layer_counts():
    image = keras.Input((8, 8, 1))
    shared = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(1, 3, padding="same")])
    twice, thrice = keras.Model(image, shared(shared(image))), keras.Model(image, shared(shared(shared(image))))
    assert estimate(thrice, 0) == estimate(twice, 0)
    assert estimate(thrice, 1) - estimate(twice, 1) == 4 * 64


def test_resnet50v2_frozen_at_512_in_float32_is_the_figure_known():
    model = build_model(RunConfig(weights="none", img_size=512, freeze_backbone=False))
    model.get_layer("backbone").trainable = False
    assert estimate(model, 256) == pytest.approx(13 * 2**30, rel=0.05)


def test_the_largest_batch_fits_and_one_image_more_does_not(small):
    for free in (50 * MIB, 8 * 2**30, estimate(small, 37), estimate(small, 37) - 1):
        batch = largest_batch(small, free)
        assert estimate(small, batch) <= free < estimate(small, batch + 1)


def test_nothing_fits_where_not_even_one_image_does(small):
    assert largest_batch(small, estimate(small, 1)) == 1
    for free in (estimate(small, 1) - 1, estimate(small, 0) - 1, 0, -MIB):
        assert largest_batch(small, free) == 0


def test_what_has_no_graph_or_no_size_is_refused():
    class Subclass(keras.Model):
        pass

    with pytest.raises(ValueError, match=r"detector cannot be estimated.*Subclass.* is not a functional model"):
        estimate(Subclass(name="detector"), 1)
    image = keras.Input((None, None, 1), name="mammogram")
    with pytest.raises(ValueError, match=r"mammogram cannot be estimated: its size is open, \(None, None, None, 1\)"):
        largest_batch(keras.Model(image, layers.Conv2D(1, 3)(image)), MIB)


def test_free_memory_is_some_of_the_machines():
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert 0 < free_memory() * len(tf.config.list_logical_devices("CPU")) < 1024 * total


def test_the_gpu_with_the_least_left_counts(monkeypatch):  # the tests have no GPU
    machine = [("CPU", 1), ("GPU", 8 * MIB), ("GPU", 9 * MIB)]
    devices = [SimpleNamespace(device_type=kind, name=f"{kind} {limit}", memory_limit=limit) for kind, limit in machine]
    taken = {f"GPU {8 * MIB}": 2 * MIB, f"GPU {9 * MIB}": 4 * MIB}
    monkeypatch.setattr(memory.device_lib, "list_local_devices", lambda config: devices)
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda name: {"current": taken[name], "peak": 0})
    assert free_memory() == 5 * MIB


@pytest.mark.parametrize(
    ("membership", "folder", "names", "unlimited"),
    [
        ("0::/pod/task", ".", ("memory.max", "memory.current", "inactive_file"), "max"),
        (
            "5:cpu:/other\n4:memory:/pod/task\n0::/",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            "9223372036854771712",
        ),
    ],
)
def test_every_control_groups_limit_counts_and_the_file_cache_does_not(tmp_path, membership, folder, names, unlimited):
    limit, usage, cache = names
    for path, most in (("pod", str(900 * MIB)), ("pod/task", unlimited)):
        group = tmp_path / folder / path
        group.mkdir(parents=True, exist_ok=True)
        (group / limit).write_text(f"{most}\n")
        (group / usage).write_text(f"{500 * MIB}\n")
        (group / "memory.stat").write_text(f"anon 1\n{cache} {200 * MIB}\n")
    assert min(control_group_memory(tmp_path, membership)) == 600 * MIB
    assert list(control_group_memory(tmp_path, "1:cpu:/pod/task")) == []
