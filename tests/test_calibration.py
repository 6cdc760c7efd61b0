import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from rsna_nb import metrics
from rsna_nb.metrics import calibration, operating


@pytest.fixture
def known() -> pd.DataFrame:
    """4,000 women with two breasts whose `chance` of cancer is known, 8 % on average."""
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"patient_id": np.arange(4000).repeat(2), "laterality": ["L", "R"] * 4000})
    df["chance"] = expit(rng.normal(-3, 1.3, len(df)))
    return df.assign(cancer=(rng.random(len(df)) < df["chance"]).astype(int), score=df["chance"])


def test_the_prior_correction_finds_the_true_probabilities(known):
    chance = known["chance"].to_numpy()
    weights = metrics.class_weights(known["cancer"])
    weighted = chance * weights[1] / (chance * weights[1] + (1 - chance) * weights[0])  # what training converges to
    assert weighted.mean() > 3 * chance.mean()
    assert calibration.prior_correction(weighted, weights) == pytest.approx(chance)
    assert calibration.prior_correction([0, 0.5, 1], {0: 1, 1: 3}).tolist() == [0, 0.25, 1]
    with pytest.raises(metrics.MetricsError, match="above 0"):
        calibration.prior_correction([0.5], {0: 0, 1: 1})
    with pytest.raises(metrics.MetricsError, match=r"1 of 2 scores .* first is 1\.5, in row 1"):
        calibration.prior_correction([0.5, 1.5], {0: 1, 1: 1})


def test_the_prior_correction_undoes_a_weighted_fit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100000, 1))
    labels = rng.random(len(x)) < expit(x[:, 0] - 3)
    weights = metrics.class_weights(labels)
    model = LogisticRegression(C=1e6).fit(x, labels, sample_weight=np.where(labels, weights[1], weights[0]))
    corrected = calibration.prior_correction(model.predict_proba(x)[:, 1], weights)
    assert corrected == pytest.approx(expit(x[:, 0] - 3), abs=0.03)
    assert corrected.mean() == pytest.approx(labels.mean(), rel=0.02)


def test_reliability_is_scikit_learns(known):
    labels, scores = known["cancer"], known["score"]
    table = calibration.reliability(labels, scores)
    observed, mean_score = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    assert table["count"].tolist() == [800] * 10
    assert table["observed"].to_numpy() == pytest.approx(observed)
    assert table["mean_score"].to_numpy() == pytest.approx(mean_score)
    expected = binomtest(int(table["positives"][3]), 800).proportion_ci(method="wilson")
    assert table.loc[3, ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high], abs=1e-6)
    error = np.mean(np.abs(observed - mean_score))
    assert calibration.expected_calibration_error(labels, scores) == pytest.approx(error)


def test_equal_scores_are_in_one_bin():
    scores = np.repeat([0.0, 0.1, 0.2, 0.9], [50, 5, 30, 15])
    table = calibration.reliability(scores > 0.15, scores)
    assert table["count"].sum() == 100
    assert all(len(set(scores[np.isclose(scores, mean)])) == 1 for mean in table["mean_score"][[0, 2]])
    assert calibration.reliability([0, 1, 0], [0.3, 0.3, 0.3])["count"].tolist() == [3]


def test_the_calibration_slope_is_a_logistic_regressions(known):
    logits = 2 * calibration.logit(known["score"]) + 1
    slope, intercept = calibration.calibration_slope(known["cancer"], expit(logits))
    model = LogisticRegression(C=1e8, tol=1e-10, max_iter=1000).fit(logits[:, np.newaxis], known["cancer"])
    assert slope == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert slope == pytest.approx(0.5, abs=0.05)
    assert intercept > 0.5  # twice as extreme, so too low on average
    assert calibration.calibration_slope(known["cancer"], known["score"]) == pytest.approx((1, 0), abs=0.1)
    shifted = expit(calibration.logit(known["score"]) + 1)
    assert calibration.calibration_slope(known["cancer"], shifted) == pytest.approx((1, -1), abs=0.1)
    assert np.isnan(calibration.calibration_slope([0, 0], [0.1, 0.2])).all()
    assert np.isnan(calibration.calibration_slope([0, 1], [0.1, 0.1])[0])


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_a_known_fault_is_repaired(known, method):
    sharp = known.assign(score=expit(3 * calibration.logit(known["chance"])))
    before = calibration.expected_calibration_error(sharp["cancer"], sharp["score"])
    scores = calibration.recalibrated(sharp, method)
    assert calibration.expected_calibration_error(sharp["cancer"], scores) < 0.25 * before
    assert np.abs(scores - known["chance"]).mean() < 0.012
    assert ((scores > 0) & (scores < 1)).all()


def test_a_temperature_does_not_undo_class_weights(known):
    weighted = known.assign(score=expit(calibration.logit(known["chance"]) + 3))
    means = {method: calibration.recalibrated(weighted, method).mean() for method in ("platt", "temperature")}
    assert means["platt"] == pytest.approx(known["cancer"].mean(), rel=0.05)
    assert means["temperature"] > 3 * known["cancer"].mean()


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_a_woman_is_never_in_the_fit_of_her_own_scores(known, method):
    few = known.iloc[:1200]
    fold = operating.assign_folds(few)
    before = calibration.recalibrated(few, method)
    own = fold == 0
    flipped = few.assign(cancer=few["cancer"].where(~own | (few["cancer"] == 0), 0), fold=fold)
    after = calibration.recalibrated(flipped, method)
    assert after[own] == pytest.approx(before[own], abs=1e-9)
    assert (after[~own] != before[~own]).any()


def test_separated_classes_still_give_probabilities():
    df = pd.DataFrame({"patient_id": range(40), "cancer": [0] * 30 + [1] * 10, "score": np.linspace(0, 1, 40)})
    for method in ("platt", "isotonic", "temperature"):
        scores = calibration.recalibrated(df, method)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert reference.roc_auc_score(df["cancer"], scores) > 0.95


def test_nothing_to_calibrate_on_is_an_error():
    df = pd.DataFrame({"patient_id": range(10), "cancer": [0] * 9 + [1], "score": np.linspace(0, 1, 10)})
    with pytest.raises(metrics.MetricsError, match="at least 2 women with cancer"):
        calibration.recalibrated(df)
    with pytest.raises(metrics.MetricsError, match="of one class"):
        calibration.recalibrated(df.assign(cancer=1))
    with pytest.raises(metrics.MetricsError, match="no calibration method beta: give one of platt"):
        calibration.recalibrated(df, "beta")


def test_the_table_shows_what_each_way_does(known):
    weights = {0: 0.5, 1: 10.0}
    odds = known["chance"] / (1 - known["chance"]) * 20
    weighted = known.assign(score=odds / (1 + odds))
    ways = {"raw": weighted["score"], "prior_corrected": calibration.prior_correction(weighted["score"], weights)}
    ways["platt"] = calibration.recalibrated(weighted, "platt")
    table = calibration.calibration_table(known["cancer"], ways)
    assert list(table.index) == ["raw", "prior_corrected", "platt"]
    brier = reference.brier_score_loss(known["cancer"], known["chance"])
    assert table.loc["prior_corrected", "brier"] == pytest.approx(brier)
    assert table.loc["raw", "intercept"] == pytest.approx(-np.log(20), abs=0.1)
    assert table.loc[["prior_corrected", "platt"], "slope"].tolist() == pytest.approx([1, 1], abs=0.1)
    assert table["observed"].nunique() == 1
