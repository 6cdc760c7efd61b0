import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from rsna_nb import metrics
from rsna_nb.metrics import operating
from rsna_nb.metrics.operating import at_threshold, threshold_at_recall_rate, threshold_at_specificity, threshold_by_f1

LABELS = [0, 0, 0, 1, 0, 0, 1, 0, 1, 1]
SCORES = [0.1, 0.1, 0.2, 0.3, 0.3, 0.4, 0.5, 0.5, 0.5, 0.9]


def breasts(women: int = 200, positives: int = 30, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"patient_id": np.arange(women).repeat(2).astype(str), "laterality": ["L", "R"] * women})
    df["cancer"] = ((np.arange(2 * women) % 2 == 0) & (np.arange(2 * women) < 2 * positives)).astype(int)
    return df.assign(score=np.round(1 / (1 + np.exp(-rng.normal(size=len(df)) - 1.5 * df["cancer"])), 2))


def test_an_operating_point_counts_a_score_at_the_threshold_as_recalled():
    point = at_threshold(LABELS, SCORES, 0.5)
    assert (point.tp, point.fp, point.fn, point.tn) == (3, 1, 1, 5)
    assert (point.sensitivity, point.specificity, point.ppv, point.recall_rate) == (3 / 4, 5 / 6, 3 / 4, 0.4)
    assert point.f1 == reference.f1_score(LABELS, np.array(SCORES) >= 0.5)


def test_a_rate_of_nothing_is_not_defined():
    nothing = at_threshold(LABELS, SCORES, 1)
    assert np.isnan(nothing.ppv)
    assert (nothing.f1, nothing.recall_rate) == (0, 0)
    healthy = at_threshold([0, 0], [0.1, 0.9], 0.5)
    assert np.isnan([healthy.sensitivity, healthy.f1]).all()


def test_the_curve_is_scikit_learns():
    df = breasts()
    curve = operating.curve(df["cancer"], df["score"])
    fall_out, sensitivity, thresholds = reference.roc_curve(df["cancer"], df["score"], drop_intermediate=False)
    assert curve["threshold"].to_numpy()[:-1] == pytest.approx(thresholds[:0:-1])
    assert 1 - curve["specificity"].to_numpy() == pytest.approx(fall_out[::-1])
    assert curve["sensitivity"].to_numpy() == pytest.approx(sensitivity[::-1])
    ppv, sensitivity, _ = reference.precision_recall_curve(df["cancer"], df["score"])
    assert curve["ppv"].to_numpy()[:-1] == pytest.approx(ppv[:-1])
    assert curve["sensitivity"].to_numpy() == pytest.approx(sensitivity)
    for row in curve.iloc[::20].itertuples():
        assert row.f1 == pytest.approx(at_threshold(df["cancer"], df["score"], row.threshold).f1)


@pytest.mark.parametrize(
    ("rate", "threshold"), [(0.1, 0.9), (0.39, 0.9), (0.4, 0.5), (0.5, 0.4), (0.69, 0.4), (1, 0.1)]
)
def test_no_more_than_the_rate_is_recalled(rate, threshold):
    assert threshold_at_recall_rate(LABELS, SCORES, rate) == threshold


def test_nothing_is_recalled_where_the_highest_tie_is_above_the_rate():
    threshold = threshold_at_recall_rate(LABELS, SCORES, 0.05)
    assert threshold > 0.9
    assert at_threshold(LABELS, SCORES, threshold).recall_rate == 0


def test_rates_that_rounding_would_miss_are_met():
    scores = np.arange(100) / 100
    for percent in range(1, 100):
        threshold = threshold_at_recall_rate(scores > 0.5, scores, 1 - (100 - percent) / 100)
        assert (scores >= threshold).sum() == percent


@pytest.mark.parametrize(("specificity", "threshold"), [(0, 0.1), (1 / 3, 0.2), (0.5, 0.3), (0.51, 0.4), (0.8, 0.5)])
def test_the_specificity_is_at_least_what_is_asked(specificity, threshold):
    assert threshold_at_specificity(LABELS, SCORES, specificity) == threshold
    assert at_threshold(LABELS, SCORES, threshold_at_specificity(LABELS, SCORES, 1)).specificity == 1


def test_the_best_f1_is_the_best_of_all_and_the_highest_of_equals():
    best = threshold_by_f1(LABELS, SCORES)
    assert best == 0.5
    assert at_threshold(LABELS, SCORES, best).f1 == max(at_threshold(LABELS, SCORES, score).f1 for score in SCORES)
    assert threshold_by_f1([1, 0, 0, 1], [0.9, 0.8, 0.7, 0.6]) == 0.9  # 2 / 3 at 0.9 and at 0.6


def test_a_threshold_that_has_no_meaning_is_an_error():
    with pytest.raises(metrics.MetricsError, match="without a positive"):
        threshold_by_f1([0, 0], [0.1, 0.2])
    with pytest.raises(metrics.MetricsError, match="needs a negative"):
        threshold_at_specificity([1, 1], [0.1, 0.2], 0.9)
    with pytest.raises(metrics.MetricsError, match="1 of 2 are NaN"):
        threshold_by_f1([0, 1], [0.1, np.nan])


def test_a_fold_is_called_by_the_threshold_of_the_others():
    df = breasts()
    fold = operating.assign_folds(df)
    fit = operating.cross_fitted(df, threshold_by_f1)
    for i in range(5):
        others = df[fold != i]
        assert fit.thresholds[i] == threshold_by_f1(others["cancer"], others["score"])
        assert (fit.calls[fold == i] == (df["score"][fold == i] >= fit.thresholds[i])).all()
        changed = df.assign(score=df["score"].where(fold != i, 0.99))
        assert operating.cross_fitted(changed, threshold_by_f1).thresholds[i] == fit.thresholds[i]
    assert fit.point.tp == (fit.calls & (df["cancer"] == 1)).sum()
    assert fit.point.threshold == np.median(fit.thresholds)
    assert fit.in_sample == at_threshold(df["cancer"], df["score"], threshold_by_f1(df["cancer"], df["score"]))
    assert fit.optimism["f1"] == fit.in_sample.f1 - fit.point.f1
    assert list(fit.optimism) == ["sensitivity", "specificity", "ppv", "recall_rate", "f1"]


def test_choosing_on_the_same_women_flatters():
    fits = [operating.cross_fitted(breasts(100, 12, seed), threshold_by_f1) for seed in range(40)]
    assert np.mean([fit.optimism["f1"] for fit in fits]) > 0.02


def test_women_are_dealt_whole_and_those_with_cancer_evenly():
    df = breasts()
    fold = operating.assign_folds(df, folds=5)
    assert (df.assign(fold=fold).groupby("patient_id")["fold"].nunique() == 1).all()
    assert df.groupby(fold)["cancer"].sum().tolist() == [6] * 5
    assert df.groupby(fold).size().tolist() == [80] * 5
    assert (fold != operating.assign_folds(df, folds=5, seed=1)).any()


def test_folds_of_the_table_are_used():
    df = breasts().assign(fold=lambda df: df["patient_id"].astype(int) % 3)
    assert (operating.assign_folds(df) == df["fold"]).all()
    assert len(operating.cross_fitted(df, threshold_by_f1).thresholds) == 3
    assert (
        len(operating.cross_fitted(df.assign(fold=0), threshold_by_f1).thresholds) == 5
    )  # a hold-out is divided into folds again
    with pytest.raises(metrics.MetricsError, match="two folds for a woman"):
        operating.assign_folds(df.assign(fold=df.index % 3))
    with pytest.raises(metrics.MetricsError, match="at least 2 women with cancer, there are 1"):
        operating.assign_folds(breasts(positives=1))


def test_the_table_has_every_rule_with_its_interval():
    df = breasts()
    table = operating.operating_table(df, n=200).set_index("rule")
    assert list(table.index) == [
        "recall rate 1.5%", "recall rate 2.4%", "recall rate 3.5%", "recall rate 10.0%",
        "specificity 80%", "specificity 90%", "specificity 95%", "best F1",
    ]  # fmt: skip
    for rate in ("sensitivity", "specificity", "ppv", "recall_rate"):
        assert (table[f"{rate}_low"] < table[rate]).all()
        assert (table[rate] < table[f"{rate}_high"]).all()
    fit = operating.cross_fitted(df, threshold_by_f1)
    assert table.loc["best F1", "sensitivity"] == fit.point.sensitivity
    assert table.loc["best F1", "ppv_in_sample"] == fit.in_sample.ppv

    def sensitivity(labels, scores, weights) -> float:
        return np.average(fit.calls[labels == 1], weights=weights[labels == 1])

    interval = metrics.bootstrap(df, sensitivity, n=200)
    limits = table.loc["best F1", ["sensitivity_low", "sensitivity_high"]].tolist()
    assert limits == pytest.approx([interval.low, interval.high])


def test_the_published_rates_agree_with_each_other_and_theirs_are_the_recall_rates_asked_for():
    systems = operating.PUBLISHED  # but for medians, which are not of one algorithm
    systems = systems[~systems["system"].str.startswith("median")]
    false_alarms = 1 - systems["specificity"]
    prevalence = (systems["recall_rate"] - false_alarms) / (systems["sensitivity"] - false_alarms)
    assert prevalence.tolist() == pytest.approx([0.02] * 3, abs=0.002)  # as near as rates of three digits are
    best = systems.iloc[0]
    assert best["ppv"] == pytest.approx(0.02 * best["sensitivity"] / best["recall_rate"], abs=0.03)
    assert list(operating.RECALL_RATES[:3]) == systems["recall_rate"].tolist()


def test_the_healthy_breasts_of_women_with_cancer_have_a_specificity_with_an_interval():
    df = breasts(40, 40)
    [limits] = operating.rate_intervals(df, [(df["score"] > 0.6).to_numpy()], n=200)
    low, high = limits[1]
    assert 0 < low < high < 1
    [limits] = operating.rate_intervals(df, [np.zeros(80, bool)], n=200)
    assert limits[1] == metrics.exact_limits(1.0, 40)
