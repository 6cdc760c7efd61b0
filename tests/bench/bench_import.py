"""The winner's recipe at full size, with random weights: are scores those of a literal script, and how fast?

    python tests/bench/bench_import.py [--folds 4] [--pictures 8]

Files in the winner's form are imported and score the real mammograms at 2048 x 1024. A literal script of the recipe
makes the same images from its description (tests/test_first_place.py), and the same networks score them.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pydicom

from rsna_nb import ensemble, inference, predict, runs
from rsna_nb.dicom.source import open_frame
from rsna_nb.import_run import import_detector
from rsna_nb.prepare import read_pictures

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package of the tests
from tests import winner
from tests.conftest import REAL_DIR
from tests.test_first_place import literal, literal_otsu


def peak() -> float:
    """Peak memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def literal_picture(path: str, shape: tuple[int, int]) -> np.ndarray:
    pixels = open_frame(path).pyramid.level(0)
    inverted = pydicom.dcmread(path, stop_before_pixels=True).PhotometricInterpretation == "MONOCHROME1"
    return literal(pixels, literal_otsu(pixels, inverted), Path(path), shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=8)
    given = parser.parse_args()
    folds = given.folds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network = keras.applications.ConvNeXtSmall(include_top=False, weights=None)
        files = [winner.write_fold(folder / f"{fold}.pth.tar", fold, network) for fold in range(folds)]
        started = time.perf_counter()
        made = import_detector(files, "rsna-first-place", runs_dir=folder / "runs")
        print(f"import: {(time.perf_counter() - started) / folds:.1f} s a fold, peak memory {peak():.2f} GiB")
        model = ensemble.load("rsna-first-place" if folds > 1 else made[0].id, folder / "runs")
        paths = predict.image_files([REAL_DIR])[: given.pictures]
        started = time.perf_counter()
        images = predict.score_files(model, paths).images
        seconds = (time.perf_counter() - started) / len(paths)
        print(f"predict: {len(images)} rows, {seconds:.1f} s a picture by {folds} networks, peak {peak():.2f} GiB")
        shape = made[0].config.image_shape
        started = time.perf_counter()
        pictures = dict(read_pictures(paths, shape, made[0].image_recipe))
        print(f"reading alone: {(time.perf_counter() - started) / len(paths):.2f} s a picture")
        expected = [literal_picture(path, shape) for path in paths]
        levels = [pictures[row].image.astype(int) - expected[row] for row in range(len(paths))]
        print(
            f"levels that differ: {sum(map(np.count_nonzero, levels))}, by {max(np.abs(each).max() for each in levels)}"
        )
        scores = np.zeros(len(paths))
        for run in made:
            own = inference.load_model(run)
            for row, picture in enumerate(expected):
                scores[row] += inference.score(own, picture[np.newaxis, ..., np.newaxis] / np.float32(255))[0] / folds
        print(f"scores {images['score'].min():.4f} to {images['score'].max():.4f}, largest difference from the script: "
              f"{np.abs(images['score'] - scores).max():.1e}")  # fmt: skip


if __name__ == "__main__":
    runs.log_to_console()
    main()
