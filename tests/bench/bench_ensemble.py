"""What an ensemble of the demo recipe's fold models gains over a single one, on women in none of their training data.

A quarter of the women are set aside for testing, the others are split into folds. There is one run per fold, with the
settings of the demo.

    python tests/bench/bench_ensemble.py [--folds 3] [--epochs 18] [--runs-dir DIR]

With --runs-dir the runs are kept: finished ones are not trained again, and stopped ones are resumed. On two cores
a fold takes 3 to 5 minutes.
"""

import argparse
import tempfile
from pathlib import Path

from rsna_nb.config import RunConfig
from rsna_nb.ensemble import ensemble_gain, gather
from rsna_nb.experiments import cross_validation

ROOT = Path(__file__).parents[2]


def main() -> None:
    demo = RunConfig.from_json(ROOT / "notebooks" / "params" / "demo.json")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=demo.epochs)
    parser.add_argument("--runs-dir", help="where the runs are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = demo.replace(
            epochs=arguments.epochs,
            test_fraction=0.25,
            n_folds=arguments.folds,
            runs_dir=arguments.runs_dir or folder,
        )
        pool = gather(list(cross_validation.cross_validate(config).values()))
        for run in pool.runs:
            found = run.metrics["test"]["breast"]
            print(
                f"fold {run.config.fold}, {found['positives']} of {found['count']} test breasts with cancer: AUC "
                f"{found['auc']:.4f}, average precision {found['average_precision']:.4f}, pF1 {found['pf1']:.4f}"
            )
        print(ensemble_gain.fold_gains(pool, 2000).to_string())


if __name__ == "__main__":
    main()
