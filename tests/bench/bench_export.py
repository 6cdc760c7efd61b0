"""Time, size and agreement of exports, a row for each network and format, as a Markdown table.

    PYTHONPATH=. python tests/bench/bench_export.py                       one network of each family
    PYTHONPATH=. python tests/bench/bench_export.py nasnetlarge --size 512

Weights are random; the last layer spreads the scores of the drawn pictures over 0-1, so that differences are visible.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras

from rsna_nb.export import FORMATS, check
from rsna_nb.export.serving import serving_model
from tests.test_export import untrained

FAMILIES = [
    *("small", "resnet18", "efficientnet_lite0", "yolo11n", "vit_tiny", "dinov2_tiny", "dinov2_with_registers_small"),
    *("convnexttiny", "efficientnetb0", "efficientnetv2b0", "mobilenet", "mobilenetv2", "mobilenetv3small"),
    *("resnet50", "resnet50v2", "densenet121", "vgg16", "xception", "inceptionv3", "inceptionresnetv2", "nasnetmobile"),
]


def row_of(backbone: str, to: str, size: int) -> str:
    """Write and check one export; the row says what happened."""
    model, config = untrained(backbone=backbone, img_size=size)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / f"model{FORMATS[to].suffix}", time.process_time()
        try:
            FORMATS[to].write(serving_model(model), path)
            seconds = time.process_time() - start
            found = check.compare(FORMATS[to].read(path), model, model, check._drawn_pictures(config.image_shape))
        except Exception as error:  # a row, too
            return f"| {backbone} | {to} | {type(error).__name__}: {str(error).splitlines()[0][:200]} |"
        files = [path, *path.rglob("*")]
        megabytes = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    span = f"{found.lowest:.2f} to {found.highest:.2f}"
    return f"| {backbone} | {to} | {seconds:.0f} | {megabytes:.1f} | {found.difference:.1e} | {span} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=FAMILIES)
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--to", nargs="*", default=list(FORMATS))
    given = parser.parse_args()
    print("| network | format | CPU seconds | MB | largest difference | scores |\n|---|---|---|---|---|---|")
    for backbone in given.backbones:
        for to in given.to:
            print(row_of(backbone, to, given.size), flush=True)
            keras.backend.clear_session()


if __name__ == "__main__":
    main()
