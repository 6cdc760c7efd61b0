"""The AUC and the training time of the demo, for its own seed and three others.

A seed changes the split, the order of the images, the augmentation and the initial weights. To generate the data set
with another seed as well:

    python tests/bench/bench_demo.py --data-seed 8
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from rsna_nb import synthetic
from rsna_nb.config import RunConfig
from rsna_nb.metadata import find_data
from rsna_nb.training import run as training

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-seed", type=int, help="generate a data set with this seed in a temporary folder")
    parser.add_argument("--seeds", type=int, nargs="*", default=[RunConfig().seed, 1, 2, 3])
    arguments = parser.parse_args()
    config = RunConfig.from_json(ROOT / "notebooks" / "params" / "demo.json")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data_seed is None:
            data_dir = find_data("")
        else:
            data_dir = synthetic.generate(Path(folder) / "data", seed=arguments.data_seed)
        config = config.replace(data_dir=str(data_dir), store_dir=f"{folder}/store", runs_dir=f"{folder}/runs")
        aucs = []
        for seed in arguments.seeds:
            found = training.train(config.replace(seed=seed, split_seed=seed)).metrics
            aucs.append(found["validation"]["image"]["auc"])
            print(
                f"seed {seed}: AUC by image {aucs[-1]:.3f}, by breast {found['validation']['breast']['auc']:.3f}, "
                f"{found['positives']['validation']} positive validation images, best epoch {found['best_epoch']} of "
                f"{found['epochs']}, training {found['training_seconds']:.0f} s"
            )
    print(f"mean {np.mean(aucs):.3f} (at least 0.85), lowest {min(aucs):.3f} (at least 0.82)")


if __name__ == "__main__":
    main()
