"""Metrics of the scores of a cross-validation, on predictions made by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from rsna_nb import metrics, plots, splits
from rsna_nb.evaluation import out_of_fold
from rsna_nb.metrics import MetricsError
from rsna_nb.metrics.operating import assign_folds
from rsna_nb.runs import Run
from tests.conftest import table_of

DRAWS = 50


@pytest.fixture
def predictions() -> pd.DataFrame:
    """60 women in 3 folds whose models have other scales, 20 of them with cancer in all images."""
    df = table_of(60, 20)
    fold = df["patient_id"].astype(int) % 3
    logits = np.random.default_rng(0).normal(1.5 * df["cancer"], 1)
    return df.assign(split="validation", fold=fold, run="r", score=1 / (1 + np.exp(-logits - 3 * fold)))


def runs_of(predictions: pd.DataFrame, folder: Path, column: str = "fold") -> dict:
    found = {}
    for value, own in predictions.groupby(column):
        run = Run(folder / f"run-{value}")
        run.path.mkdir(parents=True)
        own.drop(columns=["fold", "run"]).to_csv(run.path / "predictions.csv", index=False)
        found[value] = run
    return found


def concordance_within(breasts: pd.DataFrame) -> float:
    """Pair by pair."""
    pairs = breasts.merge(breasts, on="fold", suffixes=("", "_other")).query("cancer == 1 and cancer_other == 0")
    won = (pairs["score"] > pairs["score_other"]) + (pairs["score"] == pairs["score_other"]) / 2
    return float(won.mean())


def test_within_folds_compares_each_pair_of_a_fold_once_and_no_other(predictions):
    breasts = out_of_fold.breasts_of(predictions)
    found = metrics.fold_metrics(breasts, n=DRAWS)
    aucs = [roc_auc_score(own["cancer"], own["score"]) for _, own in breasts.groupby("fold")]
    assert found["within folds"].estimate == pytest.approx(concordance_within(breasts))
    assert found["mean of folds"].estimate == pytest.approx(np.mean(aucs))
    assert found["pooled"].estimate == pytest.approx(roc_auc_score(breasts["cancer"], breasts["score"]))
    assert found["within folds"].estimate > found["pooled"].estimate + 0.05
    for interval in found.values():
        assert interval.low < interval.estimate < interval.high


def test_intervals_of_folds_are_wider_for_the_training_women_that_models_share(predictions):
    breasts = out_of_fold.breasts_of(predictions)
    found, one = metrics.fold_metrics(breasts, n=DRAWS), metrics.fold_metrics(breasts.assign(fold=0), n=DRAWS)
    women = metrics.Women.of(breasts, "patient_id")
    for interval, widen in ((found["pooled"], 1.5**0.5), (one["pooled"], 1.0)):
        expected = metrics.draws_interval(interval.estimate, interval.draws, women.positives, women.rarer, widen=widen)
        assert (interval.low, interval.high) == (expected.low, expected.high)
    np.testing.assert_array_equal(found["pooled"].draws, one["pooled"].draws)
    assert found["pooled"].high - found["pooled"].low > 1.1 * (one["pooled"].high - one["pooled"].low)


def test_a_folds_scale_changes_the_pooled_auc_alone(predictions):
    before = metrics.fold_metrics(predictions, n=DRAWS)
    scale = 1 + predictions["fold"]
    after = metrics.fold_metrics(predictions.assign(score=predictions["score"] ** scale / scale), n=DRAWS)
    for name in ("within folds", "mean of folds"):
        np.testing.assert_array_equal(after[name].draws, before[name].draws)
    assert after["pooled"].estimate != before["pooled"].estimate


def test_draws_are_of_women_and_weigh_the_pairs_of_each_fold(predictions):
    breasts = out_of_fold.breasts_of(predictions)
    found = metrics.fold_metrics(breasts, n=3, seed=5)["within folds"]
    women = metrics.Women.of(breasts, "patient_id")
    for counts, draw in zip(women.drawn(3, 5), found.draws, strict=True):
        assert draw == pytest.approx(concordance_within(breasts.loc[breasts.index.repeat(counts[women.codes])]))


def test_a_fold_without_cancer_has_no_pairs_and_the_mean_of_folds_is_not_defined(predictions):
    breasts = out_of_fold.breasts_of(predictions)
    breasts = breasts[(breasts["cancer"] == 0) | (breasts["fold"] > 0)]
    found = metrics.fold_metrics(breasts, n=DRAWS)
    assert found["within folds"].estimate == pytest.approx(concordance_within(breasts))
    assert np.isnan(found["mean of folds"].estimate)


def test_the_runs_validation_images_stand_in_it_once_with_their_fold(predictions, tmp_path):
    tested = predictions.assign(split=np.where(predictions["fold"] == 2, "test", "validation"))
    found = out_of_fold.out_of_fold(runs_of(tested.assign(fold=tested["fold"].clip(upper=1)), tmp_path))
    expected = predictions[predictions["fold"] < 2].set_index("image_id")["fold"]
    assert found.set_index("image_id")["fold"].to_dict() == expected.to_dict()
    assert set(found["run"]) == {"run-0", "run-1"}


def test_a_woman_in_two_folds_is_refused(predictions, tmp_path):
    predictions.loc[0, "fold"] = 1
    with pytest.raises(MetricsError, match="1 women are in two folds, first patient_id 0"):
        out_of_fold.out_of_fold(runs_of(predictions, tmp_path))
    with pytest.raises(MetricsError, match="no fold is finished"):
        out_of_fold.out_of_fold({})


def test_which_folds_are_missing_is_said_with_what_to_do(predictions, tmp_path):
    runs = runs_of(predictions, tmp_path)
    assert "All 3 folds are finished" in out_of_fold.which(runs, 3).text
    text = out_of_fold.which({1: runs[1]}, 3).text
    assert "2 of 3 folds are missing: 0, 2" in text
    assert "`-p fold 0`" in text


def test_a_part_of_the_folds_and_one_alone_are_evaluated(predictions):
    for folds in ([0, 2], [1]):
        part = predictions[predictions["fold"].isin(folds)]
        overall = out_of_fold.overall(part, DRAWS)
        assert overall.loc["AUC", "within folds"].estimate == pytest.approx(
            concordance_within(out_of_fold.breasts_of(part))
        )
        assert len(out_of_fold.fold_table(part, DRAWS)) == len(folds)
    assert np.isnan(overall.loc["AUC", "standard deviation"])


def test_the_table_of_folds_has_each_folds_own_figures(predictions):
    table = out_of_fold.fold_table(predictions, DRAWS)
    assert table["women"].tolist() == [20, 20, 20]
    assert table["with cancer"].tolist() == [7, 7, 6]
    assert table["positive images"].sum() == predictions["cancer"].sum()
    own = out_of_fold.breasts_of(predictions).query("fold == 1")
    assert table.loc[1, "AUC"].estimate == pytest.approx(roc_auc_score(own["cancer"], own["score"]))
    overall = out_of_fold.overall(predictions, DRAWS)
    aucs = [auc.estimate for auc in table["AUC"]]
    assert overall.loc["AUC", "standard deviation"] == pytest.approx(np.std(aucs, ddof=1))
    assert (overall.loc["AUC", "lowest"], overall.loc["AUC", "highest"]) == pytest.approx((min(aucs), max(aucs)))


def test_thresholds_are_chosen_on_the_other_folds(predictions):
    breasts = out_of_fold.breasts_of(predictions)
    np.testing.assert_array_equal(assign_folds(breasts), breasts["fold"])


def test_sites_and_machines_have_their_auc_within_folds_or_a_reason(predictions):
    predictions.loc[predictions["machine_id"] == 50, "cancer"] = 0
    table = out_of_fold.sites_and_machines(predictions, DRAWS).set_index(["group", "value"])
    own = out_of_fold.breasts_of(predictions[predictions["site_id"] == 2])
    assert table.loc[("site", "2"), "estimate"] == pytest.approx(concordance_within(own))
    assert table.loc[("machine", "50"), "reason"] == "no women with cancer"
    assert np.isnan(table.loc[("machine", "50"), "estimate"])
    none = out_of_fold.sites_and_machines(predictions.assign(site_id=np.nan, machine_id=np.nan), DRAWS)
    assert none["reason"].tolist() == ["empty in predictions.csv"] * 2


@pytest.fixture
def without_group(predictions, tmp_path) -> pd.DataFrame:
    """Site 2 by a model that never saw it: the scores of the folds, reversed for a quarter of the images."""
    groups = pd.DataFrame({"value": ["1", "2"], "reason": ["the train split would have no image with cancer", ""]})
    own = predictions[predictions["site_id"] == 2].assign(run="")
    own["score"] = own["score"].where(own.index % 4 != 1, 1 - own["score"])
    runs = {str(site): run for site, run in runs_of(own, tmp_path / "sites", "site_id").items()}
    return out_of_fold.leave_one_group_out_table(groups, runs, predictions, DRAWS).set_index("value")


def test_a_site_never_seen_is_beside_the_same_breasts_out_of_fold(without_group, predictions):
    same = out_of_fold.breasts_of(predictions[predictions["site_id"] == 2])
    row = without_group.loc["2"]
    assert row["out of fold"].estimate == pytest.approx(concordance_within(same))
    assert row["difference"].estimate == pytest.approx(row["never seen"].estimate - row["out of fold"].estimate)
    assert row["run"] == "run-2"
    assert pd.isna(without_group.loc["1", "never seen"])
    assert without_group.loc["1", "reason"].startswith("the train split")


def test_figures_say_in_words_what_they_show(without_group, predictions):
    auc = out_of_fold.overall(predictions, DRAWS).loc["AUC", ["within folds", "mean of folds", "pooled"]]
    folds, breasts = out_of_fold.fold_table(predictions, DRAWS), out_of_fold.breasts_of(predictions)
    forest = plots.fold_forest(folds, auc)
    assert f"fold 2 {folds.loc[2, 'AUC']}" in forest.get_label()
    assert [label.get_text() for label in forest.axes[0].get_yticklabels()] == [
        *("fold 0", "fold 1", "fold 2"),
        *("within folds", "mean of folds", "pooled"),
    ]
    roc = plots.fold_roc(breasts, auc)
    assert str(auc["pooled"]) in roc.get_label()
    assert len(roc.axes[0].lines) == 3 + 2
    sites = plots.leave_one_group_out_forest(without_group.reset_index(), "site_id")
    assert "1: the train split would have no image with cancer" in sites.get_label()


def test_who_is_in_each_fold_is_counted(predictions):
    table = out_of_fold.composition(predictions, splits.k_folds(predictions, 3, seed=0))
    assert table["women"].tolist() == [20, 20, 20]
    assert table[["site 1", "site 2"]].to_numpy().sum() == len(predictions)
    assert table["positive images"].sum() == predictions["cancer"].sum()


def test_what_was_found_is_written_beside_the_runs(predictions, tmp_path):
    results = {"overall": out_of_fold.overall(predictions, DRAWS)}
    table, figures = out_of_fold.write(tmp_path / "cross_validation" / "x", predictions, results)
    assert len(pd.read_csv(table)) == len(predictions)
    row = json.loads(figures.read_text())["overall"][0]
    assert set(row["within folds"]) == {"estimate", "low", "high"}
    assert str(results["overall"].loc["pF1", "within folds"]) == "not defined"
