"""The pointing game on the generated demo set: does a map's maximum lie in a lesion, by method, beside two baselines?

Trains the demo (notebooks/params/demo.json) with each seed, of the split, the order, the flips and the weights, or
takes runs that are there; prints the AUC by image, then for each method, with and without the flips, the share of the
validation images with cancer whose map points into a lesion's box, and by how much that is above a random point of the
breast and above the brightest point, with 95 % intervals over women. Asked of 08_explain's default, class_activation
over the flips without tolerance: a share of at least 0.5, and both differences' intervals above 0, where the AUC is at
least 0.85. A tolerance of 3 % of the picture's side is about that of Zhang et al. 2016.

    python tests/bench/bench_pointing.py [--seeds 42 1 2 3] [--run <id or path>] [--data-seed 8]
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from rsna_nb import evaluation, inference, metrics, synthetic
from rsna_nb.config import RunConfig
from rsna_nb.explain import explanation, pointing
from rsna_nb.explain import maps as explain
from rsna_nb.metadata.table import find_data
from rsna_nb.runs import Run
from rsna_nb.training import run as training

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.03  # of the longer side
CURVES = 20


def measure(name: str, run: Run) -> None:
    judged, model = evaluation.evaluate(run), inference.load_model(run)
    targets = pointing.targets(judged)
    images = explain.read_pictures(targets["file"])
    auc = metrics.auc(judged.predictions["cancer"], judged.predictions["score"])
    women = targets["patient_id"].nunique()
    print(f"{name}: AUC by image {auc:.3f}, {len(targets)} images of {women} women with cancer")
    for method in explain.METHODS:
        for flips in (True, False):
            started = time.perf_counter()
            heats = explain.maps(model, images, method, flips)
            seconds = (time.perf_counter() - started) / len(images)
            near = pointing.play(targets, images, heats, TOLERANCE * max(images.shape[1:3]))["map"].mean()
            found = pointing.hit_rates(pointing.play(targets, images, heats))
            print(f"  {method}{', flips' if flips else ''}: {found.pop('map')}, with tolerance {near:.3f}, ", end="")
            print(
                "; ".join(f"{key}: {interval}" for key, interval in found.items()), f"{1000 * seconds:.0f} ms an image"
            )
    shown = {"cancer": explanation.explained(model, run, targets.head(CURVES), "class_activation", True)}
    started = time.perf_counter()
    areas = explanation.curves(model, shown, "cancer").areas.mean().round(3).to_dict()
    print(f"  areas of {CURVES} images' curves: {areas}, {time.perf_counter() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[RunConfig().seed])
    parser.add_argument("--run", action="append", default=[], help="take this run and train none")
    parser.add_argument("--data-seed", type=int, help="generate the set anew with this seed, in a folder of its own")
    arguments = parser.parse_args()
    for run in arguments.run:
        measure(run, evaluation.find_run(run))
    with tempfile.TemporaryDirectory() as folder:
        new = None if arguments.data_seed is None or arguments.run else Path(folder) / "data"
        for seed in [] if arguments.run else arguments.seeds:
            data_dir = synthetic.generate(new, seed=arguments.data_seed) if new else find_data("")
            config = RunConfig.from_json(ROOT / "notebooks" / "params" / "demo.json")
            folders = {"data_dir": str(data_dir), "store_dir": f"{folder}/store", "runs_dir": f"{folder}/runs"}
            measure(f"seed {seed}", training.train(dataclasses.replace(config, seed=seed, split_seed=seed, **folders)))


if __name__ == "__main__":
    main()
