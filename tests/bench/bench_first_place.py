"""The preprocessing of the challenge's winner compared with our own, on the eight real mammograms.

For each file: the boxes of both crops and their intersection over union, the milliseconds from file to image on one
core, and the mean difference in grey levels (0-255) over the intersection, with both images mapped to the file. The
first line has the milliseconds that the breast detector takes, which do not depend on its weights.

    python tests/bench/bench_first_place.py [--size 2048 1024] [--roi <roi.npz>] [--pictures <folder>]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from rsna_nb import dicom
from rsna_nb.config import ImageRecipe
from rsna_nb.dicom.yolox import SIDE, Yolox, expected_shapes
from rsna_nb.explain.geometry import Geometry
from rsna_nb.prepare import to_8_bits

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package of the tests
from tests.conftest import REAL_DIR

ROUNDS = 3


def milliseconds(work: Callable[[], object]) -> float:
    """Return the shortest of `ROUNDS` times, counted on the processor, so that other programs hardly disturb them."""
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return 1000 * min(times)


def overlap(first: dicom.Box, second: dicom.Box) -> tuple[dicom.Box, float]:
    """Return the intersection of two boxes, and the intersection over union."""
    box = (*np.maximum(first[:2], second[:2]).tolist(), *np.minimum(first[2:], second[2:]).tolist())
    shared, *own = (max(0, one[2] - one[0]) * max(0, one[3] - one[1]) for one in (box, first, second))
    return box, shared / (sum(own) - shared)


def compare(path: Path, shape: tuple[int, int], recipe: ImageRecipe) -> list[object]:
    ways = (None, recipe)
    readings = [dicom.read(path, shape, way) for way in ways]
    (x_min, y_min, x_max, y_max), share = overlap(readings[0].crop, readings[1].crop)
    mapped = [
        Geometry.of(reading, shape, way).map_to_file(reading.picture)[y_min:y_max, x_min:x_max]
        for reading, way in zip(readings, ways, strict=True)
    ]
    difference = 255 * np.abs(mapped[0] - mapped[1]).mean()
    times = [milliseconds(lambda way=way: dicom.read(path, shape, way)) for way in ways]
    return [path.stem, *(str(reading.crop) for reading in readings), share, *times, difference]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(2048, 1024), help="height and width")
    parser.add_argument("--roi", type=Path, help="breast detector; without one, Otsu's threshold makes the crop")
    parser.add_argument("--pictures", type=Path, help="folder to write both images of each file into")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    shape, recipe = tuple(given.size), ImageRecipe("rsna-first-place", given.roi)
    zeros = Yolox({name: np.zeros(each, np.float32) for name, each in expected_shapes().items()})
    picture = np.zeros((SIDE, SIDE), np.float32)
    print(f"detector: {milliseconds(lambda: zeros.best_box(picture)):.0f} ms")
    print(f"{'image':9}  {'our crop':24} {'the winner':24}  IoU    ms  winner's ms  mean difference of 255")
    for path in sorted(REAL_DIR.glob("train_images/*/*.dcm")):
        print("{:9}  {:24} {:24} {:.3f} {:5.0f} {:12.0f} {:23.1f}".format(*compare(path, shape, recipe)))
        for name, way in (("ours", None), ("winner", recipe)) if given.pictures else ():
            given.pictures.mkdir(parents=True, exist_ok=True)
            grey = to_8_bits(dicom.read_mammogram(path, shape, way))
            cv2.imwrite(str(given.pictures / f"{path.stem}-{name}.png"), grey)


if __name__ == "__main__":
    main()
