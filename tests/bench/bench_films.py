"""How often is a right image turned, an inverted one missed, breast lost or a label kept?

Polarity: every real mammogram, generated mammograms and drawn films (tests/films.py), each as it is and in the variants
below: halves, the breast's box as a PNG set holds it, bright, grey and black borders. Each image is judged as it is and
with its content inverted, while borders keep their level. A right image that is called inverted is an error of the
first kind, of which there may be none. An inverted one that is not recognised is an error of the second kind where its
air is visible; the halves and middles show little air or none, so the header decides there.

Crop: the share of breast and of foreign objects that the crop keeps on drawn films, at the worst and on average.

    python tests/bench/bench_films.py [--generated 200] [--films 8] [--pictures <folder of more pictures>]
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from math import log2
from pathlib import Path

import cv2
import numpy as np

from rsna_nb.dicom.crop import find_breast
from rsna_nb.dicom.dataset import read_dataset
from rsna_nb.dicom.decode import open_pyramid
from rsna_nb.dicom.polarity import Air, declares_inverted, find_air
from rsna_nb.dicom.pyramid import Pyramid, stored_range
from rsna_nb.dicom.reader import SEARCH_SIDE
from rsna_nb.dicom.voi import declared_voi, modality_values, to_brightness
from rsna_nb.synthetic.dataset import exposed
from rsna_nb.synthetic.drawing import MAX_VALUE, draw_mammogram
from rsna_nb.synthetic.table import DENSITIES, MACHINES

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package of the tests
from tests.conftest import REAL_DIR
from tests.films import KINDS, draw_film, make_breast

LITTLE_AIR = ("left half", "right half", "box left half", "box right half", "box middle")


def small(pyramid: Pyramid) -> np.ndarray:
    """Return the level of a pyramid that is searched for the breast."""
    return pyramid.level(max(0, int(log2(max(pyramid.shape) / SEARCH_SIDE))))


def real() -> Iterator[np.ndarray]:
    for path in sorted(REAL_DIR.glob("train_images/*/*.dcm")):
        dataset = read_dataset(path)
        pyramid = open_pyramid(dataset)
        voi = declared_voi(dataset, np.array(stored_range(pyramid.bits, pyramid.signed)))
        yield to_brightness(modality_values(small(pyramid), dataset), declares_inverted(dataset), voi, None)


def generated(number: int) -> Iterator[np.ndarray]:
    """Draw mammograms of all machines, densities and views; every fifth has an implant."""
    for seed in range(number):
        rng, machine = np.random.default_rng(seed), MACHINES[seed % len(MACHINES)]
        breast = make_breast(rng, "LR"[seed % 2], str(rng.choice(list(DENSITIES))), seed % 5 == 0, bool(seed % 3))
        scale = rng.uniform(220, 399) / machine.rows
        size = round(machine.rows * scale), round(machine.columns * scale)
        pixels, _ = draw_mammogram(breast, str(rng.choice(["CC", "MLO"])), size, rng, exposed(machine.look, rng))
        yield pixels.astype(np.float32) / MAX_VALUE


def films(number: int) -> Iterator[np.ndarray]:
    for kind in KINDS:
        for seed in range(number):
            yield small(Pyramid(draw_film(kind, seed)[0], 8)).astype(np.float32) / 255


def pictures(folder: Path) -> Iterator[np.ndarray]:
    """Read the 8-bit pictures of a folder."""
    for path in sorted(folder.iterdir()):
        yield small(Pyramid(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), 8)).astype(np.float32) / 255


def variants(picture: np.ndarray, content: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield variants of `content`, which is `picture` or its inverse."""
    height, width = picture.shape
    yield "as it is", content
    yield "left half", content[:, : width // 2]
    yield "right half", content[:, width // 2 :]
    yield "top half", content[: height // 2]
    yield "bottom half", content[height // 2 :]
    if (breast := find_breast(picture)) is not None:
        x_min, y_min, x_max, y_max = breast.box
        box = content[y_min:y_max, x_min:x_max]
        rows, columns = box.shape
        yield "box", box
        yield "box left half", box[:, : columns // 2]
        yield "box right half", box[:, columns // 2 :]
        yield "box middle", box[rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)]
        yield "box in a black square", np.pad(box, ((0, 0), [(max(rows, columns) - columns) // 2] * 2))
    for name, level in (("white", 1.0), ("grey", 0.6)):
        for side in ("top", "left", "right"):
            bordered, thick = content.copy(), int(rng.integers(2, max(3, height // 12)))
            bordered[{"top": np.s_[:thick], "left": np.s_[:, :thick], "right": np.s_[:, -thick:]}[side]] = level
            yield f"{name} border at the {side}", bordered
        yield f"{name} frame", np.pad(content, int(rng.integers(2, max(3, height // 30))), constant_values=level)
        yield f"{name} band", np.pad(content, ((0, 0), (width // 3, 0)), constant_values=level)
    yield "black bands", np.pad(content, ((0, 0), (width // 3, width // 3)))
    yield "black frame", np.pad(content, height // 20)


def judge(name: str, some: Iterator[np.ndarray]) -> None:
    """Print the errors of both kinds for each variant, and their sums."""
    right: dict[str, Counter] = {}
    turned: dict[str, Counter] = {}
    for number, picture in enumerate(some):
        for counts, content in ((right, picture), (turned, 1 - picture)):
            for variant, image in variants(picture, content, np.random.default_rng(number)):
                counts.setdefault(variant, Counter())[find_air(np.ascontiguousarray(image))] += 1
    print(f"{name}: right images called dark, unseen, bright; inverted ones called bright, unseen, dark")
    for variant in right:
        told = [right[variant][air] for air in (Air.DARK, Air.UNSEEN, Air.BRIGHT)]
        told += [turned[variant][air] for air in (Air.BRIGHT, Air.UNSEEN, Air.DARK)]
        print(f"  {variant:26s}" + "".join(f"{number:6d}" for number in told))
    wrong = sum(counts[Air.BRIGHT] for counts in right.values())
    print(f"  first kind: {wrong} of {sum(counts.total() for counts in right.values())} right images would be turned")
    visible = [counts for variant, counts in turned.items() if variant not in LITTLE_AIR]
    missed = sum(counts.total() - counts[Air.BRIGHT] for counts in visible)
    print(
        f"  second kind: {missed} of {sum(counts.total() for counts in visible)} inverted images with air were missed"
    )


def measure_crop(number: int) -> None:
    """Print how much of the breast and of foreign objects the crop keeps on drawn films."""
    for kind in KINDS:
        kept = []
        for seed in range(number):
            picture, breast, foreign = draw_film(kind, seed)
            pyramid = Pyramid(picture, 8)
            found = find_breast(small(pyramid).astype(np.float32) / 255)
            assert found is not None
            mask = cv2.resize(found.mask, picture.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
            kept.append((mask[breast].mean(), mask[foreign].mean() if foreign.any() else 0.0))
        breasts, objects = np.array(kept).T
        print(
            f"  {kind:24s} breast kept: at the worst {breasts.min():.4f}; foreign: {objects.mean():.3f} on average, "
            f"above 0.2 on {np.count_nonzero(objects > 0.2)} of {number}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=int, default=200)
    parser.add_argument("--films", type=int, default=8, help="of each kind")
    parser.add_argument("--pictures", type=Path, help="folder of scanned films, for example all-mias")
    arguments = parser.parse_args()
    print("crop on drawn films:")
    measure_crop(arguments.films)
    if REAL_DIR.is_dir():
        judge("real mammograms", real())
    judge("drawn films", films(arguments.films))
    judge("generated mammograms", generated(arguments.generated))
    if arguments.pictures:
        judge("pictures of the folder", pictures(arguments.pictures))


if __name__ == "__main__":
    main()
