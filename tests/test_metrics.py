import keras
import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from sklearn import metrics as reference

from rsna_nb import metrics


@pytest.fixture
def labels_and_scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.1).astype(int)
    return labels, np.round(np.clip(0.3 * labels + rng.beta(1, 3, 500), 0, 1), 2)


def literal_pf1(labels, scores) -> float:
    """The challenge's definition, one breast after another."""
    true_positives = false_positives = positives = 0.0
    for label, score in zip(labels, scores, strict=True):
        score = max(0.0, min(1.0, score))
        if label:
            positives += 1
            true_positives += score
        else:
            false_positives += score
    if true_positives == 0:
        return 0.0
    precision, recall = true_positives / (true_positives + false_positives), true_positives / positives
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(100))
def test_pf1_is_the_challenges_definition(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random(rng.integers(1, 40)) < rng.choice([0, 0.1, 0.5, 1])).astype(int)
    scores = rng.choice([np.round(rng.normal(0.5, 0.5, len(labels)), 1), rng.integers(0, 2, len(labels))])
    assert metrics.pf1(labels, scores) == pytest.approx(literal_pf1(labels, scores), abs=1e-12)


def test_pf1_with_0_and_1_is_f1(labels_and_scores):
    labels, scores = labels_and_scores
    called = (scores > 0.4).astype(int)
    assert metrics.pf1(labels, called) == pytest.approx(reference.f1_score(labels, called))


def test_all_ones_score_what_the_challenge_says():
    labels = np.r_[np.ones(492), np.zeros(23826 - 492)]
    assert metrics.pf1(labels, np.ones(len(labels))) == pytest.approx(0.0405, abs=5e-5)


def test_the_metrics_by_image_are_scikit_learns(labels_and_scores):
    labels, scores = labels_and_scores
    weights = np.where(labels == 1, 5.0, 0.5)
    called = scores >= 0.5
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    expected = {
        "loss": reference.log_loss(labels, clipped, sample_weight=weights),
        "bce": reference.log_loss(labels, clipped),
        "auc": reference.roc_auc_score(labels, scores),
        "accuracy": reference.accuracy_score(labels, called),
        "precision": reference.precision_score(labels, called),
        "recall": reference.recall_score(labels, called),
        "f1": reference.f1_score(labels, called),
    }
    assert metrics.by_image(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_one_class_alone_has_no_auc():
    figures = metrics.by_image([0, 0, 0], [0.1, 0.2, 0.3])
    assert np.isnan(figures["auc"])
    assert np.isnan(figures["recall"])
    assert figures["precision"] == figures["f1"] == 0


def test_scores_go_by_breast():
    df = pd.DataFrame(
        {
            "patient_id": ["1", "1", "1", "2", "2"],
            "laterality": ["L", "L", "R", "L", "L"],
            "cancer": [1, 1, 0, 0, 0],
            "score": [0.2, 0.6, 0.3, 0.1, 0.5],
        }
    )
    assert metrics.by_breast(df).to_numpy().tolist() == [["1", "L", 1, 0.4], ["1", "R", 0, 0.3], ["2", "L", 0, 0.3]]
    assert metrics.by_breast(df, how="max")["score"].tolist() == [0.6, 0.3, 0.5]
    figures = metrics.summary(df)
    assert (figures["image"]["count"], figures["breast"]["count"], figures["breast"]["positives"]) == (5, 3, 1)
    assert figures["breast"]["auc"] == 1
    either = metrics.by_breast(df.assign(view="CC"), how="noisy_or")
    assert list(either) == ["patient_id", "laterality", "cancer", "score"]
    assert either["score"].to_numpy() == pytest.approx([1 - 0.8 * 0.4, 0.3, 1 - 0.9 * 0.5])
    assert metrics.by_breast(df.assign(score=[1.0, 0.5, 0, 0, 0]), how="noisy_or")["score"].tolist() == [1, 0, 0]


def test_soft_and_focal_losses_are_keras_own():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 50), random.random(50)
    soft = metrics.by_image(labels, scores, positive_label=0.9, focal_gamma=2.0)["loss"]
    targets = keras.ops.convert_to_tensor(labels[:, None] * 0.9)
    expected = keras.losses.binary_focal_crossentropy(targets, scores[:, None], gamma=2.0)
    assert soft == pytest.approx(float(keras.ops.mean(expected)), abs=1e-6)
    assert metrics.by_image(labels, scores)["loss"] == metrics.by_image(labels, scores)["bce"]


def test_class_weights_make_the_classes_weigh_the_same_and_one_on_average():
    labels = np.r_[np.ones(1158), np.zeros(53548)]
    weights = metrics.class_weights(labels)
    assert 1158 * weights[1] == pytest.approx(53548 * weights[0])
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)
    assert weights[1] == pytest.approx(23.62, abs=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_metrics_by_weights_are_scikit_learns_with_ties(seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) < 8).astype(int)
    scores, weights = np.round(rng.random(60), 1), rng.integers(0, 4, (70, 60))
    weights[:, np.flatnonzero(labels)[0]] += 1  # no draw without a positive
    for figure, expected in (
        (metrics.auc, reference.roc_auc_score),
        (metrics.average_precision, reference.average_precision_score),
    ):
        assert figure(labels, scores) == pytest.approx(expected(labels, scores), abs=1e-12)
        by_draw = [expected(labels, scores, sample_weight=row) for row in weights]
        assert figure(labels, scores, weights) == pytest.approx(np.array(by_draw), abs=1e-12)
        assert figure(labels, scores, weights[1] / 7) == pytest.approx(by_draw[1], abs=1e-12)


@pytest.mark.parametrize("metric", [metrics.pf1, metrics.auc, metrics.average_precision])
def test_a_whole_weight_is_so_many_rows(metric, labels_and_scores):
    labels, scores = labels_and_scores
    weights = np.random.default_rng(0).integers(0, 4, len(labels))
    assert metric(labels, scores, weights) == pytest.approx(metric(labels.repeat(weights), scores.repeat(weights)))


def test_a_metric_of_one_class_is_not_defined():
    for labels in ([0, 0], [1, 1]):
        assert np.isnan(metrics.auc(labels, [0.1, 0.2]))
        assert np.isnan(metrics.average_precision(labels, [0.1, 0.2]))
    assert np.isnan(metrics.auc([0, 1], [0.1, 0.2], [[1, 0], [1, 1]])).tolist() == [True, False]
    with pytest.raises(metrics.MetricsError, match="1 of 2 scores are NaN"):
        metrics.auc([0, 1], [0.1, np.nan])


def table(women: int = 60, positives: int = 20, images: int = 4, seed: int = 0, shift: float = 1) -> pd.DataFrame:
    """Women with `images` images each, half of them of either breast, those of the left with the cancer."""
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"patient_id": np.repeat(np.arange(women), images).astype(str)})
    df["image_id"] = df.index.astype(str)
    df["laterality"] = np.where(df.index % images < max(images // 2, 1), "L", "R")
    df["cancer"] = ((df.index // images < positives) & (df["laterality"] == "L")).astype(int)
    noise = rng.normal(size=women).repeat(images) + rng.normal(size=len(df))
    return df.assign(score=1 / (1 + np.exp(-noise - shift * df["cancer"])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda df: df.drop(columns=["score", "laterality"]), "lack laterality, score; they have patient_id"),
        (lambda df: df.iloc[:0], "have no rows"),
        (
            lambda df: df.assign(score=df["score"].where(df.index != 7)),
            "not a number in 1 of 240 .*row 7: patient",
        ),
        (lambda df: df.assign(score=df["score"].where(df.index != 3, 1.5)), "outside 0-1 in 1 of .*row 3.*score 1.5"),
        (lambda df: df.assign(score="high"), "score is not a number"),
        (lambda df: df.assign(cancer=df["cancer"] * 2), "cancer is not 0 or 1 in 40 of .*row 0.*cancer 2"),
        (lambda df: df.assign(cancer=df["cancer"].where(df.index > 0)), "cancer is not 0 or 1 in 1 of"),
        (lambda df: df.assign(patient_id=df["patient_id"].where(df.index != 2)), "patient_id is empty"),
        (
            lambda df: df.assign(cancer=df["cancer"].where(df.index != 5, 0)),
            "both 0 and 1 in the same breast .*patient_id 1, laterality L",
        ),
    ],
)
def test_a_table_with_a_fault_is_an_error_that_names_it(change, message):
    df = table()
    assert metrics.check_predictions(df).equals(df)
    with pytest.raises(metrics.MetricsError, match=message):
        metrics.check_predictions(change(df))


def test_the_same_seed_gives_the_same_interval():
    df = table()
    first, again, other = (metrics.bootstrap(df, "auc", n=200, seed=seed) for seed in (0, 0, 1))
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)
    assert first.estimate == pytest.approx(reference.roc_auc_score(df["cancer"], df["score"]))
    assert 0 < first.low < first.estimate < first.high < 1
    assert (len(first.draws), first.positives) == (200, 20)
    assert str(first) == f"{first.estimate:.3f} ({first.low:.3f} to {first.high:.3f})"


@pytest.mark.parametrize("statistic", ["auc", "average_precision", "pf1"])
def test_women_are_drawn_and_not_images(statistic):
    one = table(images=1)
    four = one.loc[one.index.repeat(4)]
    few, many = metrics.bootstrap(one, statistic, n=300), metrics.bootstrap(four, statistic, n=300)
    assert few.draws == pytest.approx(many.draws, abs=1e-12)
    assert (few.low, few.high) == pytest.approx((many.low, many.high))


def test_several_metrics_and_functions_share_the_draws():
    df = table()
    own = {"auc": "auc", "again": lambda labels, scores, weights: metrics.auc(labels, scores, weights)}
    own["excess"] = lambda *of: metrics.auc(*of) + 2
    found = {name: metrics.bootstrap(df, statistic, n=100) for name, statistic in own.items()}
    assert found["auc"].draws == pytest.approx(found["again"].draws)
    assert found["excess"].draws == pytest.approx(found["auc"].draws + 2)
    assert found["excess"].high - found["excess"].estimate == pytest.approx(
        found["excess"].estimate - found["excess"].low
    )  # outside 0-1: on its own scale
    with pytest.raises(metrics.MetricsError, match="no statistic f2: give one of auc"):
        metrics.bootstrap(df, "f2")


def test_the_number_of_cancers_varies_from_draw_to_draw():
    def share(labels, scores, weights) -> float:
        return np.average(labels, weights=weights)

    draws = metrics.bootstrap(table(images=1), share, n=500).draws
    assert draws.std() == pytest.approx(np.sqrt(1 / 3 * 2 / 3 / 60), rel=0.1)


def test_no_interval_where_none_can_be_made():
    alone = metrics.bootstrap(table(positives=1), "auc", n=100)
    assert np.isnan([alone.low, alone.high]).all()
    assert str(alone) == f"{alone.estimate:.3f} (no interval)"
    assert str(metrics.bootstrap(table(positives=0), "auc", n=100)) == "not defined"
    assert str(metrics.bootstrap(table().assign(score=0.5), "auc", n=100)) == "0.500 (no interval)"
    few = metrics.bootstrap(table(positives=3), "auc", n=300)
    assert np.isnan(few.draws).any()  # a draw without any of the three
    assert 0 < few.low < few.high < 1


def perfect(df: pd.DataFrame) -> pd.DataFrame:
    return df.assign(score=df["cancer"].astype(float))


@pytest.mark.parametrize("statistic", ["auc", "average_precision", "pf1", lambda *of: metrics.auc(*of)])
def test_a_metric_of_exactly_1_has_the_exact_limits_of_its_women(statistic):
    found = metrics.bootstrap(perfect(table(positives=20)), statistic, n=100)
    assert (found.estimate, found.low, found.high) == (1, *metrics.exact_limits(1.0, 20))
    single = metrics.bootstrap(perfect(table(positives=1)), statistic, n=100)
    assert (single.low, single.high) == (pytest.approx(0.025), 1)


def test_a_metric_of_exactly_0_has_the_exact_limits_of_its_women():
    df = table(positives=20)
    for statistic in ("auc", "pf1"):
        found = metrics.bootstrap(df.assign(score=1.0 - df["cancer"]), statistic, n=100)
        assert (found.estimate, found.low, found.high) == (0, *metrics.exact_limits(0.0, 20))


def test_a_hair_below_1_does_not_widen_the_interval_to_all_of_0_to_1():
    draws = 1 - np.abs(np.random.default_rng(0).normal(0, 1e-6, 200))
    found = metrics.draws_interval(1 - 1e-7, draws, positives=50, groups=50)
    assert 0.9 < found.low < found.estimate < found.high <= 1


def test_the_auc_of_a_single_fold_has_an_interval_that_is_not_far_wider_than_its_draws():
    """22 women, 9 of them with cancer, as a fold of the demo: 0.521 to 0.978 before, for an AUC of 0.873."""
    width, plain = [], []
    for seed in range(10):
        found = metrics.bootstrap(metrics.by_breast(table(22, 9, seed=seed, shift=2.2)), "auc", n=300)
        width.append(found.high - found.low)
        plain.append(np.ptp(np.nanpercentile(found.draws, [2.5, 97.5])))
    assert np.mean(plain) < np.mean(width) < 1.5 * np.mean(plain)


def test_the_healthy_breasts_of_women_with_cancer_are_negatives_too():
    df = metrics.by_breast(table(women=20, positives=20))  # one breast with cancer and one without, each woman
    women = metrics.Women.of(df, "patient_id")
    assert (women.positives, women.negatives, women.total, women.rarer) == (20, 20, 20, 20)
    found = metrics.bootstrap(df, "auc", n=200)
    assert 0 < found.low < found.estimate < found.high < 1
    expected = metrics.draws_interval(found.estimate, found.draws, positives=20, groups=20)
    assert (found.low, found.high) == (expected.low, expected.high)


@pytest.mark.parametrize(
    ("draws", "message"),
    [(0, "draws must be 2 or more, not 0"), (1, "2 or more, not 1"), (2000.0, r"a whole number, not 2000\.0")],
)
def test_draws_that_no_interval_can_be_made_from_are_refused(draws, message):
    with pytest.raises(metrics.MetricsError, match=message):
        metrics.bootstrap(table(), "auc", n=draws)


@pytest.mark.parametrize(("share", "women"), [(1, 20), (0, 20), (1, 1), (0, 300)])
def test_a_share_of_all_or_none_has_the_exact_interval(share, women):
    low, high = metrics.exact_limits(share, women)
    extreme = low if share == 1 else 1 - high
    assert extreme**women == pytest.approx(0.025)
    assert (high if share == 1 else low) == share


def test_fewer_women_with_cancer_give_a_wider_interval():
    widths = []
    for positives in (40, 10, 3):
        found = metrics.bootstrap(table(women=200, positives=positives), "auc", n=300)
        widths.append(found.high - found.low)
    assert widths == sorted(widths)


def test_a_share_of_independent_women_has_wilsons_interval_with_the_t_quantile():
    share, women = 0.8, 40
    spread = np.sqrt(share * (1 - share) / women)
    draws = share + np.random.default_rng(0).normal(size=1000) * spread
    draws = (draws - draws.mean()) / draws.std(ddof=1) * spread * np.sqrt((women - 1) / women) + share
    found = metrics.draws_interval(share, np.append(draws.clip(0, 1), np.nan), positives=women, groups=women)
    z = student.ppf(0.975, women - 1)
    middle = (share + z**2 / (2 * women)) / (1 + z**2 / women)
    half = z * np.sqrt(share * (1 - share) / women + z**2 / (4 * women**2)) / (1 + z**2 / women)
    assert [found.low, found.high] == pytest.approx([middle - half, middle + half], abs=0.002)


def test_what_is_no_share_has_an_interval_on_its_own_scale():
    draws = np.array([0.1, 0.2, 0.3, 0.2])
    found = metrics.draws_interval(0.2, draws, positives=10, groups=10, is_share=False)
    reach = 2.262157 * np.sqrt(10 / 9) * draws.std(ddof=1)  # t for 9 degrees of freedom
    assert [found.low, found.high] == pytest.approx([0.2 - reach, 0.2 + reach], abs=1e-6)
    assert metrics.draws_interval(0.0, draws, 10, 10, is_share=False).low < 0


def test_a_difference_of_two_shares_has_an_interval_within_minus_1_to_1():
    found = metrics.draws_interval(0.05, np.array([-0.6, 0.7, -0.1, 0.2]), positives=2, groups=2, is_share=False)
    assert (found.low, found.high) == (-1, 1)


def test_draws_of_0_and_1_leave_an_interval_inside_of_0_to_1():
    some = metrics.draws_interval(0.9, np.array([0.8, 0.85, 0.9, 0.95, 1.0]), positives=20, groups=20)
    assert 0.6 < some.low < 0.9 < some.high < 1
    only = metrics.draws_interval(0.5, np.array([0.0, 1.0, 1.0, 0.0]), positives=2, groups=2)
    assert 0 <= only.low < 0.01 < 0.99 < only.high <= 1


def test_a_difference_is_paired():
    a = table()
    b = a.assign(score=np.clip(a["score"] + 0.1 * a["cancer"], 0, 1))
    found = metrics.difference(a, b.sample(frac=1, random_state=0), "auc", n=300)
    first, second = metrics.bootstrap(a, "auc", n=300), metrics.bootstrap(b, "auc", n=300)
    assert found.estimate == pytest.approx(second.estimate - first.estimate)
    assert found.draws == pytest.approx(second.draws - first.draws)
    assert found.low < found.estimate < found.high
    assert found.high - found.low < 0.5 * (first.high - first.low)
    assert str(metrics.difference(a, a, "auc", n=100)) == "0.000 (no interval)"
    breasts = metrics.difference(metrics.by_breast(a), metrics.by_breast(b), "pf1", n=100)
    assert breasts.estimate > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda df: df.iloc[1:], "1 rows are in only one of the two, first patient_id and image_id .*'0', '0'"),
        (lambda df: df.assign(cancer=df["cancer"].where(df.index > 1, 0)), "2 rows differ in cancer"),
        (lambda df: df.drop(columns="image_id"), "the first predictions have 0 L twice"),
        (lambda df: df.drop(columns="score"), "lack score"),
    ],
)
def test_runs_on_other_rows_are_not_compared(change, message):
    with pytest.raises(metrics.MetricsError, match=message):
        metrics.difference(table(), change(table()), "auc")
