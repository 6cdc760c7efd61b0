"""How many trials per minute a study runs with the feature bank, and what a trial costs besides its epochs.

The women are generated. The network is a frozen ResNet50V2 with random weights, because only time is measured. Images
have 224 pixels, and a trial has 35 epochs.

    python tests/bench/bench_tune.py --women 30 --trials 12
"""

import argparse
import tempfile
from pathlib import Path

import keras

from rsna_nb import runs, synthetic
from rsna_nb.backbones.registry import build_backbone
from rsna_nb.config import RunConfig
from rsna_nb.experiments import tuning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--women", type=int, default=30)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--backbone", default="resnet50v2")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=35)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = synthetic.generate(Path(folder) / "data", arguments.women, 0.4, seed=7)
        keras.utils.set_random_seed(0)
        weights = str(Path(folder) / "random.weights.h5")
        wanted = build_backbone(arguments.backbone, arguments.img_size, "none")
        inner = [layer for layer in wanted.layers if isinstance(layer, keras.Model)]
        (inner[0] if inner else wanted).save_weights(weights)
        config = RunConfig(
            data_dir=str(data),
            store_dir=f"{folder}/store",
            runs_dir=f"{folder}/runs",
            backbone=arguments.backbone,
            weights=weights,
            img_size=arguments.img_size,
            epochs=arguments.epochs,
            batch_size_per_gpu=16,
            test_fraction=0.2,
            early_stopping_patience=0,
        )
        plan = tuning.plan(config, "bench", "val_auc", ["learning_rate", "dropout", "pooling", "imbalance"])
        report(plan, tuning.table(tuning.tune(plan, arguments.trials)))


def report(plan: tuning.Plan, trials) -> None:
    done = trials.query("state == 'finished'")
    found = [runs.load_run(run, plan.folder) for run in done["run"]]
    done = done.assign(training=[run.metrics["training_seconds"] for run in found])
    done = done.assign(in_epochs=[run.history["seconds"].sum() for run in found])
    print(trials.groupby("state")["seconds"].describe()[["count", "mean", "min", "max"]].round(1).to_string())
    columns = ["seconds", "training", "in_epochs", "epochs"]
    print(f"the first trial, which computes the feature bank:\n{done[columns].head(1).round(1).to_string()}")
    later = done[done["trial"] > 0]
    print(f"the others, medians:\n{later[columns].median().round(1).to_string()}")
    print(f"{60 / trials['seconds'][1:].mean():.1f} trials per minute, {len(trials)} in all")


if __name__ == "__main__":
    main()
