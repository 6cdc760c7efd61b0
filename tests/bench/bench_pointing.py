"""The pointing game on the generated demo set: how often does the maximum of a heat map lie in a lesion?

Trains the demo (notebooks/params/demo.json) once for each seed, which seeds the split, shuffling, flips and weight
initialisation, or uses runs that exist already. Prints the AUC by image. For each method, with and without flips, it
then prints the share of the validation images with cancer whose map points into a lesion's box, and how much this
exceeds a random point of the breast and the brightest point, with 95 % intervals over women.

The default of 08_explain (class_activation over the flips, no tolerance) should reach a share of at least 0.5, with the
intervals of both differences above 0, where the AUC is at least 0.85. A tolerance of 3 % of the image's side is about
that of Zhang et al. 2016.

    python tests/bench/bench_pointing.py [--seeds 42 1 2 3] [--run <id or path>] [--data-seed 8]
"""

import argparse
import tempfile
import time
from pathlib import Path

from rsna_nb import evaluation, explain, inference, metrics, synthetic
from rsna_nb.config import RunConfig
from rsna_nb.explain.explanation import explain_images
from rsna_nb.explain.maps import METHODS, heat_maps
from rsna_nb.explain.pointing import count_hits
from rsna_nb.inference import read_images
from rsna_nb.metadata import find_data
from rsna_nb.runs import Run
from rsna_nb.training import run as training

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.03  # share of the longer side
CURVES = 20  # images whose deletion and insertion curves are computed


def measure(name: str, run: Run) -> None:
    """Print the results of a run."""
    evaluated, model = evaluation.evaluate(run), inference.load_model(run)
    targets = explain.targets(evaluated)
    images = read_images(targets["file"])
    auc = metrics.auc(evaluated.predictions["cancer"], evaluated.predictions["score"])
    women = targets["patient_id"].nunique()
    print(f"{name}: AUC by image {auc:.3f}, {len(targets)} images of {women} women with cancer")
    for method in METHODS:
        for flips in (True, False):
            started = time.perf_counter()
            maps = heat_maps(model, images, method, flips)
            seconds = (time.perf_counter() - started) / len(images)
            near = count_hits(targets, images, maps, TOLERANCE * max(images.shape[1:3]))["map"].mean()
            found = explain.hit_rates(count_hits(targets, images, maps))
            print(f"  {method}{', flips' if flips else ''}: {found.pop('map')}, with tolerance {near:.3f}, ", end="")
            print(
                "; ".join(f"{key}: {interval}" for key, interval in found.items()), f"{1000 * seconds:.0f} ms per image"
            )
    shown = {"cancer": explain_images(model, run, targets.head(CURVES), "class_activation", True)}
    started = time.perf_counter()
    areas = explain.perturbation_curves(model, shown, "cancer").areas.mean().round(3).to_dict()
    print(f"  areas of {CURVES} images' curves: {areas}, {time.perf_counter() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[RunConfig().seed])
    parser.add_argument("--run", action="append", default=[], help="use this run, train none; may be repeated")
    parser.add_argument("--data-seed", type=int, help="generate another demo set with this seed")
    arguments = parser.parse_args()
    for run in arguments.run:
        measure(run, evaluation.find_run(run))
    with tempfile.TemporaryDirectory() as folder:
        new = None if arguments.data_seed is None or arguments.run else Path(folder) / "data"
        for seed in [] if arguments.run else arguments.seeds:
            data_dir = synthetic.generate(new, seed=arguments.data_seed) if new else find_data("")
            config = RunConfig.from_json(ROOT / "notebooks" / "params" / "demo.json")
            folders = {"data_dir": str(data_dir), "store_dir": f"{folder}/store", "runs_dir": f"{folder}/runs"}
            measure(f"seed {seed}", training.train(config.replace(seed=seed, split_seed=seed, **folders)))


if __name__ == "__main__":
    main()
