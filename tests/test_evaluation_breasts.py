"""04_evaluate of a run whose network scores breasts: each image has the score of its breast, and its attention."""

import numpy as np
import pandas as pd
import pytest

from rsna_nb import evaluation, metrics
from rsna_nb.evaluation import comparison, summary
from rsna_nb.metrics import operating
from rsna_nb.runs import Run
from tests.test_evaluation import other_run, predictions_of, write_run, write_store

BREAST = ["patient_id", "laterality"]


def by_breast_of(predictions: pd.DataFrame) -> pd.DataFrame:
    """The predictions as a network of breasts gives them; MLO has the larger attention."""
    score = predictions.groupby(BREAST)["score"].transform("mean")
    return predictions.assign(score=score, attention=np.where(predictions["view"] == "MLO", 0.7, 0.3))


@pytest.fixture
def run(tmp_path) -> Run:
    run = write_run(tmp_path / "runs" / "20261123-101530-fake", by_breast_of(predictions_of()), unit="breast")
    run.write_json("metrics.json", run.metrics | {"examples": 480, "positive_examples": 48})
    return run


@pytest.fixture
def evaluated(run) -> evaluation.Evaluation:
    return evaluation.evaluate(run)


def test_the_only_row_of_metrics_is_the_breast_with_the_networks_own_score(evaluated):
    found = evaluation.main_metrics(evaluated, 20)
    assert list(found.index) == ["breast"]
    own = evaluated.predictions.drop_duplicates(BREAST)
    assert found["AUC"].iloc[0].estimate == pytest.approx(metrics.auc(own["cancer"], own["score"]))
    assert "pF1, raw scores" in found


def test_there_are_no_groups_by_view_and_the_reason_is_given(evaluated):
    found = comparison.subgroups(evaluated, 20).set_index("group")
    assert found.loc["view", "reason"] == "a score is of all views of a breast"
    assert (found.loc["machine", "reason"] == "").all()


def test_the_example_of_a_breast_is_the_image_with_the_largest_attention(run, evaluated):
    write_store(run)
    fit = operating.cross_fitted(evaluated.breasts, operating.threshold_by_f1)
    for rows in evaluation.examples(evaluated, fit, 4).values():
        assert len(rows) > 0
        assert set(rows["view"]) == {"MLO"}
        assert set(rows["attention"]) == {0.7}


def test_runs_of_different_units_are_compared_on_the_same_breasts_and_the_units_are_named(run, evaluated):
    other = other_run(run, predictions_of())
    table = comparison.compared(evaluated, other, 20)
    names = [f"{other.id} (unit image)", f"{run.id} (unit breast)", "difference"]
    assert list(table.columns) == names
    assert table.loc["AUC", "difference"].estimate == pytest.approx(0, abs=1e-12)  # the other's means are the same
    alike = write_run(run.path.parent / "20261125-090000-third", by_breast_of(predictions_of()), unit="breast")
    assert list(comparison.compared(evaluated, alike, 20).columns) == [alike.id, run.id, "difference"]


@pytest.mark.parametrize(
    ("unit", "sees"),
    [("image", "sees one image at a time"), ("breast", "images of one breast"), ("woman", "images of both breasts")],
)
def test_the_model_card_says_what_the_network_sees_and_scores(tmp_path, unit, sees):
    run = write_run(tmp_path / "20261123-101530-card", by_breast_of(predictions_of()), unit=unit, combine="max")
    run.write_json("metrics.json", run.metrics | {"examples": 480, "positive_examples": 48})
    text = summary.model_card(evaluation.evaluate(run)).text
    assert sees in text
    assert ("combined by max" in text) == (unit != "image")
    assert ("in 480 breasts" in text) == (unit != "image")
