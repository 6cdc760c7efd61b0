"""What an ensemble of the demo recipe's fold models gains over their mean, on test women that none of them saw.

A quarter of the women are set aside, the others dealt to folds; one run a fold, its settings those of the demo.

    python tests/bench/bench_ensemble.py [--folds 3] [--epochs 18] [--runs-dir DIR]

With --runs-dir the runs are kept: those that are finished are not trained again, and those that were stopped go on. On
two cores a fold takes 3 to 5 minutes.
"""

import argparse
import tempfile
from pathlib import Path

from rsna_nb.config import RunConfig
from rsna_nb.ensemble import ensemble_gain as gain
from rsna_nb.ensemble.model_pool import gather
from rsna_nb.experiments.cross_validation import cross_validate

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
        library = gather(list(cross_validate(config).values()))
        for run in library.runs:
            found = run.metrics["test"]["breast"]
            print(
                f"fold {run.config.fold}, {found['positives']} of {found['count']} test breasts with cancer: AUC "
                f"{found['auc']:.4f}, average precision {found['average_precision']:.4f}, pF1 {found['pf1']:.4f}"
            )
        print(gain.in_words(gain.fold_gains(library, 2000)).text)


if __name__ == "__main__":
    main()
