import numpy as np
import pandas as pd
import pytest
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


def test_the_figures_by_image_are_scikit_learns(labels_and_scores):
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


def test_class_weights_make_the_classes_weigh_the_same_and_one_on_average():
    labels = np.r_[np.ones(1158), np.zeros(53548)]
    weights = metrics.class_weights(labels)
    assert 1158 * weights[1] == pytest.approx(53548 * weights[0])
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)
    assert weights[1] == pytest.approx(23.62, abs=0.01)
