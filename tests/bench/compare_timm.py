"""Compares whole networks with random weights to timm's, which PyTorch computes.

    python tests/bench/compare_timm.py write FOLDER [names ...]      where torch, timm and safetensors are installed
    python tests/bench/compare_timm.py compare FOLDER                where this package is installed

For each network, the first command writes a file of tensors with timm's config.json beside it, and the features of a
random picture. All weights are random; the statistics of batch normalisation are those of random pictures, because with
others the values grow from block to block. The second command loads the files and prints the largest difference of the
features, divided by the largest value of the reference.
"""

import json
import sys
from pathlib import Path

import numpy as np

SHAPE = (75, 107)  # no stride divides these sides
PATCHES = {"patch16": (64, 96), "patch14": (70, 98)}  # vision transformers here pad images differently from timm's
NETWORKS = {
    "efficientnetb0": "tf_efficientnet_b0 efficientnet_b0",
    "efficientnetb1": "tf_efficientnet_b1 efficientnet_b1",
    "efficientnetb2": "tf_efficientnet_b2",
    "efficientnetb3": "tf_efficientnet_b3",
    "efficientnetb4": "tf_efficientnet_b4",
    "efficientnetb5": "tf_efficientnet_b5",
    "efficientnetb6": "tf_efficientnet_b6",
    "efficientnetb7": "tf_efficientnet_b7",
    "efficientnetv2b0": "tf_efficientnetv2_b0",
    "efficientnetv2b1": "tf_efficientnetv2_b1",
    "efficientnetv2b2": "tf_efficientnetv2_b2",
    "efficientnetv2b3": "tf_efficientnetv2_b3",
    "efficientnetv2s": "tf_efficientnetv2_s efficientnetv2_s",
    "efficientnetv2m": "tf_efficientnetv2_m",
    "efficientnetv2l": "tf_efficientnetv2_l",
    "efficientnet_lite0": "tf_efficientnet_lite0 efficientnet_lite0",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "dinov2_small": "vit_small_patch14_dinov2",
    "dinov2_base": "vit_base_patch14_dinov2",
    "dinov2_with_registers_small": "vit_small_patch14_reg4_dinov2",
    "dinov2_with_registers_base": "vit_base_patch14_reg4_dinov2",
}


def write(folder: Path, ours: str, name: str) -> None:
    """Write the tensors, config.json and the features of timm's network `name`."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    patch = next((each for each in PATCHES if each in name), "")
    options = {"dynamic_img_size": True} if patch else {}
    model = timm.create_model(name, pretrained=False, num_classes=7, **options).eval()
    model.load_state_dict({each: randomised(each, tensor) for each, tensor in model.state_dict().items()})
    grey = torch.rand(8, 1, *PATCHES.get(patch, SHAPE))
    mean, deviation = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    colour = (grey.expand(-1, 3, -1, -1) - mean) / deviation
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.train().momentum = 1.0
        model.forward_features(colour)
        features = model.eval().forward_features(colour[:1])
    if patch:  # tokens: those before the patches are not part of the map
        rows, columns = (side // int(patch[-2:]) for side in grey.shape[2:])
        features = features[:, model.num_prefix_tokens :].reshape(1, rows, columns, -1)
    else:
        features = features.permute(0, 2, 3, 1)
    place = folder / f"{ours}-{name}"
    place.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), place / "model.safetensors")
    config = {key: model.pretrained_cfg[key] for key in ("architecture", "mean", "std")}
    (place / "config.json").write_text(json.dumps(config))
    np.savez(place / "features.npz", grey=grey[:1].permute(0, 2, 3, 1).numpy(), features=features.numpy())


def randomised(name: str, tensor):
    """Return random values about as large as trained ones, for the tensors that are all 0 or 1 in a new network."""
    import torch

    if tensor.ndim == 1 and name.endswith("weight"):
        return 0.5 + torch.rand(tensor.shape)
    if tensor.ndim == 1:
        return 0.2 * torch.randn(tensor.shape)
    if tensor.ndim == 2:  # large enough for an attention that differs from place to place
        return 3 * tensor
    return tensor if tensor.ndim == 0 or tensor.std() > 0.01 else 0.02 * torch.randn(tensor.shape)


def compare(place: Path) -> str:
    """A line of the table for a folder that `write` has made."""
    from rsna_nb.backbones import build_backbone

    with np.load(place / "features.npz") as file:
        grey, expected = file["grey"], file["features"]
    ours, _, name = place.name.partition("-")
    network = build_backbone(ours, grey.shape[1:3], str(place / "model.safetensors"))
    found = network(grey, training=False).numpy()
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    return f"| {ours} | {name} | {grey.shape[1]} x {grey.shape[2]} | {network.count_params():,} | {difference:.1e} |"


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    step, folder, *names = sys.argv[1:]
    if step == "write":
        for ours in names or NETWORKS:
            for name in NETWORKS[ours].split():
                write(Path(folder), ours, name)
    else:
        print("| backbone | timm | image | parameters | largest difference |\n|---|---|---|---|---|")
        for place in sorted(Path(folder).iterdir()):
            print(compare(place), flush=True)


if __name__ == "__main__":
    main()
