import dataclasses
import json
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from rsna_nb import evaluation, metrics, plots
from rsna_nb.config import RunConfig
from rsna_nb.evaluation import comparison, out_of_fold, results, summary
from rsna_nb.metrics import MetricsError, operating
from rsna_nb.notebook import Unavailable, UnavailableError, attempt
from rsna_nb.prepare import image_file, store_path
from rsna_nb.runs import Run, RunError
from tests.notebooks import NOTEBOOKS


def predictions_of(women: int = 60, with_cancer: int = 20, seed: int = 0) -> pd.DataFrame:
    """predictions.csv of a run, with the columns that training writes: four images a woman, cancer on the left."""
    rng = np.random.default_rng(seed)
    woman, image = np.repeat(np.arange(women), 4), np.tile(np.arange(4), women)
    cancer = ((woman < with_cancer) & (image < 2)).astype(int)
    breast = rng.normal(0, 0.8, (women, 2))[woman, image // 2]
    site = 1 + woman % 2
    return pd.DataFrame(
        {
            "site_id": site,
            "patient_id": (100 + woman).astype(str),
            "image_id": (1000 + np.arange(len(woman))).astype(str),
            "laterality": np.where(image < 2, "L", "R"),
            "view": np.where(image % 2 == 0, "CC", "MLO"),
            "age": rng.integers(38, 80, women)[woman].astype(float),
            "cancer": cancer,
            "biopsy": cancer,
            "invasive": cancer * (woman % 3 > 0),
            "BIRADS": np.nan,
            "implant": (woman % 20 == 0).astype(int),
            "density": np.where(site == 1, np.array(list("ABCD"))[woman % 4], None),
            "machine_id": np.array([49, 21, 29])[woman % 3],
            "difficult_negative_case": False,
            "split": "validation",
            "score": 1 / (1 + np.exp(-(2 * cancer - 1 + breast + rng.normal(0, 0.3, len(woman))))),
        }
    )


def write_run(folder: Path, predictions: pd.DataFrame, **settings: object) -> Run:
    """A run folder as training leaves it, but for the model."""
    for name in ("config", "logs"):
        (folder / name).mkdir(parents=True)
    settings = {"data_dir": str(folder / "rsna"), "store_dir": str(folder / "stores"), "img_size": 64} | settings
    RunConfig(**settings).to_json(folder / "config" / "config.json")
    predictions.to_csv(folder / "predictions.csv", index=False)
    run = Run(folder)
    run.write_json(
        "metrics.json",
        {"best_epoch": 3, "epochs": 5, "images": {"train": 1000}, "positives": {"train": 100}},
    )
    return run


def write_store(run: Run) -> None:
    """A prepared image for each row of the run's predictions."""
    store = store_path(run.config.store_dir, evaluation.data_folder(run), run.config.img_size)
    for ids in zip(run.predictions["patient_id"], run.predictions["image_id"], strict=True):
        file = image_file(store, *ids)
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((64, 64), 90, np.uint8))


@pytest.fixture
def run(tmp_path) -> Run:
    return write_run(tmp_path / "runs" / "20261123-101530-fake", predictions_of())


@pytest.fixture
def evaluated(run) -> evaluation.Evaluation:
    return evaluation.evaluate(run)


def changed(**columns: object) -> pd.DataFrame:
    """The predictions with the first row's values changed."""
    df = predictions_of()
    for name, value in columns.items():
        df[name] = df[name].astype(object)
        df.loc[0, name] = value
    return df


FAULTS = {
    "NaN score": (changed(score=np.nan), "score is not a number in 1 of 240 rows"),
    "a word for a score": (changed(score="high"), "score is not a number"),
    "score above 1": (changed(score=1.2), "score is outside 0-1"),
    "score below 0": (changed(score=-0.1), "score is outside 0-1"),
    "cancer 2": (changed(cancer=2), "cancer is not 0 or 1"),
    "mixed labels": (
        changed(cancer=0),
        "both 0 and 1 in the same breast in 2 of 240 rows, first in row 2: patient_id 100",
    ),
    "no laterality": (changed(laterality=None), "laterality is empty"),
    "a split of its own": (
        changed(split="train"),
        "split is not validation or test in 1 of 240 rows, first in row 2: patient_id 100",
    ),
    "an image twice": (
        changed(image_id="1001"),
        "an image occurs twice in 1 of 240 rows, first in row 3: patient_id 100, image_id 1001",
    ),
    "no column score": (predictions_of().drop(columns="score"), "the predictions lack score"),
    "no column split": (predictions_of().drop(columns="split"), "the predictions lack split"),
    "no rows": (predictions_of()[:0], "the predictions have no rows"),
    "no cancer": (predictions_of(with_cancer=0), "60 validation women, 0 of them with cancer"),
    "cancer alone": (predictions_of().query("cancer == 1"), "20 validation women, 20 of them with cancer"),
    "one woman": (predictions_of(1, 1), "1 validation women, 1 of them with cancer"),
}


@pytest.mark.parametrize(("predictions", "message"), FAULTS.values(), ids=FAULTS)
def test_predictions_with_faults_are_refused_by_file_and_row(tmp_path, predictions, message):
    with pytest.raises(MetricsError) as caught:
        evaluation.evaluate(write_run(tmp_path / "run", predictions))
    assert message in str(caught.value)
    assert str(tmp_path / "run" / "predictions.csv") in str(caught.value)


def test_an_empty_file_is_refused_by_name(run):
    (run.path / "predictions.csv").write_text("")
    with pytest.raises(MetricsError, match=r"predictions\.csv"):
        evaluation.evaluate(run)


def test_the_test_women_are_taken_where_there_are_some(tmp_path):
    df = predictions_of()
    df.loc[df["patient_id"].astype(int) % 2 == 0, "split"] = "test"
    evaluated = evaluation.evaluate(write_run(tmp_path / "run", df))
    assert evaluated.split == "test"
    assert len(evaluated.women) == 30
    assert "took no part in training" in summary.checkpoint_note(evaluated).text


def test_the_newest_run_with_predictions_is_found(run):
    unfinished = run.path.parent / "20261124-000000-unfinished"
    (unfinished / "config").mkdir(parents=True)
    RunConfig().to_json(unfinished / "config" / "config.json")
    assert evaluation.find_run("", run.path.parent).id == run.id
    assert evaluation.find_run(run.id, run.path.parent).path == run.path
    with pytest.raises(RunError, match=r"has predictions\.csv: train one"):
        evaluation.find_run("", run.path)


def test_the_newest_run_that_this_version_can_read_is_found(run, caplog):
    newer = write_run(run.path.parent / "20261124-000000-later-version", predictions_of())
    settings = json.loads((newer.path / "config" / "config.json").read_text())
    (newer.path / "config" / "config.json").write_text(json.dumps(settings | {"setting_of_tomorrow": 1}))
    assert evaluation.find_run("", run.path.parent).id == run.id
    assert newer.id in caplog.text


def test_an_unavailable_argument_is_returned_and_reads_as_its_reason():
    def fails() -> None:
        raise UnavailableError("too few women.")

    unavailable = attempt(fails)
    assert unavailable == Unavailable("too few women")
    assert attempt(len, unavailable) is unavailable
    assert unavailable._repr_markdown_().endswith(": too few women.*")
    with pytest.raises(TypeError):
        attempt(len, 3)


def test_class_weights_are_those_of_the_training_images(run):
    assert evaluation.class_weights(run) == metrics.class_weights([1] * 100 + [0] * 900)


def test_without_class_weights_there_is_no_prior_correction_and_the_reason_is_given(tmp_path):
    run = write_run(tmp_path / "none", predictions_of(), imbalance="none")
    calibrated = evaluation.calibrate(evaluation.evaluate(run))
    assert "prior-corrected" not in calibrated.table.index
    assert "trained without class weights" in calibrated.note.text
    run = write_run(tmp_path / "unknown", predictions_of())
    run.write_json("metrics.json", {})
    assert "does not say how many training images" in evaluation.calibrate(evaluation.evaluate(run)).note.text


def test_a_fixed_share_of_positives_weighs_as_class_weights_of_that_share(tmp_path):
    run = write_run(tmp_path / "balanced", predictions_of(), imbalance="balanced_batches")
    run.write_json("metrics.json", run.metrics | {"sampled_share": 0.2})
    weights = evaluation.class_weights(run)
    assert weights == metrics.class_weights([1] * 100 + [0] * 900, share=0.2)
    assert 100 * weights[1] / (100 * weights[1] + 900 * weights[0]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"imbalance": "focal"}, r'without class weights \(imbalance "focal"\)'),
        ({"positive_label": 0.9}, r"trained with positive_label 0\.9"),
    ],
)
def test_scores_of_other_losses_are_not_corrected(tmp_path, settings, reason):
    run = write_run(tmp_path / "other", predictions_of(), **settings)
    with pytest.raises(MetricsError, match=reason):
        evaluation.class_weights(run)


def test_prior_correction_is_of_each_image_before_breasts_are_made(evaluated):
    odds = evaluated.predictions["score"] / (1 - evaluated.predictions["score"]) * (100 / 900)
    expected = (
        (odds / (1 + odds)).groupby([evaluated.predictions["patient_id"], evaluated.predictions["laterality"]]).mean()
    )
    np.testing.assert_allclose(evaluated.breasts["corrected_score"], expected)
    table = evaluation.calibrate(evaluated).table
    assert list(table.index) == ["raw", "prior-corrected", "platt", "isotonic", "temperature"]
    assert table.loc["prior-corrected", "brier"] == pytest.approx(
        ((expected.to_numpy() - evaluated.breasts["cancer"]) ** 2).mean()
    )


def test_the_main_metrics_are_scikit_learns(evaluated):
    found_metrics = evaluation.main_metrics(evaluated, 50)
    breasts = evaluated.predictions.groupby(["patient_id", "laterality"]).agg(
        {"cancer": "max", "score": ["mean", "max"]}
    )
    labels = breasts["cancer", "max"]
    for how in ("mean", "max"):
        found = found_metrics.loc["breast, mean" if how == "mean" else "breast, highest"]
        assert found["AUC"].estimate == pytest.approx(reference.roc_auc_score(labels, breasts["score", how]))
        expected = reference.average_precision_score(labels, breasts["score", how])
        assert found["average precision"].estimate == pytest.approx(expected)
        assert found["AUC"].low < found["AUC"].estimate < found["AUC"].high


def test_the_bands_hold_the_curves_of_scikit_learn(evaluated):
    breasts = evaluated.breasts.assign(score=evaluated.breasts["score"].round(1))  # with ties
    bands = evaluation.bands(breasts, 200)
    roc, pr = (bands[bands["curve"] == curve] for curve in ("roc", "pr"))
    alarms, hits, _ = reference.roc_curve(breasts["cancer"], breasts["score"], drop_intermediate=False)
    inside = roc["x"] > 0
    np.testing.assert_allclose(roc["estimate"][inside], np.interp(roc["x"][inside], alarms, hits))
    precision, recall, _ = reference.precision_recall_curve(breasts["cancer"], breasts["score"])
    expected = [precision[:-1][recall[:-1] >= x - 1e-9][-1] for x in pr["x"]]
    np.testing.assert_allclose(pr["estimate"], expected)
    assert (bands["low"] <= bands["estimate"] + 1e-9).all()
    assert (bands["estimate"] <= bands["high"] + 1e-9).all()
    assert roc["low"].is_monotonic_increasing
    assert ((bands[["low", "high"]] >= 0) & (bands[["low", "high"]] <= 1)).all(axis=None)


def test_axes_are_labelled_with_the_standard_terms(evaluated):
    breasts = evaluated.breasts
    bands, auc = evaluation.bands(breasts, 20), metrics.bootstrap(breasts, "auc", n=20)
    points = plots.operating_points(breasts, operating.operating_table(breasts, 20), operating.PUBLISHED)
    figures = [plots.roc_curve(breasts, bands, auc), plots.precision_recall_curve(breasts, bands, auc), points]
    labels = [(figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) for figure in figures]
    assert labels == [
        ("1 - specificity (%)", "Sensitivity (%)"),
        ("Sensitivity (%)", "PPV (%)"),
        ("Recall rate (%, logarithmic)", "Sensitivity (%)"),
    ]
    assert plots.reliability_curves(evaluation.calibrate(evaluated)).axes[0].get_ylabel() == (
        "Observed share with cancer (%)"
    )


def test_a_band_counts_the_healthy_breasts_of_women_with_cancer():
    bands = evaluation.bands(metrics.by_breast(predictions_of(20, 20)), 50)
    assert bands["low"].notna().all()


def test_a_band_needs_two_women_of_each_kind():
    with pytest.raises(MetricsError, match="a band needs 2 women"):
        evaluation.bands(metrics.by_breast(predictions_of(10, 1)), 20)


def test_a_view_is_evaluated_on_its_own_images_and_a_kind_of_cancer_against_all_without(evaluated):
    found = comparison.subgroups(evaluated, 20).set_index(["group", "value"])
    df = evaluated.predictions
    view = df[df["view"] == "CC"]
    assert found.loc[("view", "CC"), "estimate"] == pytest.approx(
        reference.roc_auc_score(view["cancer"], view["score"])
    )
    kind = metrics.by_breast(df[(df["cancer"] == 0) | (df["invasive"] == 0)])
    row = found.loc[("cancer", "not invasive")]
    assert row["estimate"] == pytest.approx(reference.roc_auc_score(kind["cancer"], kind["score"]))
    assert row["positive_women"] == df.query("cancer == 1 and invasive == 0")["patient_id"].nunique()
    assert bool(row["small"]) == (row["positive_women"] < 10)
    assert found.loc[("implant", "yes"), "women"] == 3
    assert found.loc[("density", "not given"), "women"] == 30
    assert [group for group, _ in found.index if group == "age"] == ["age"] * df["age"].floordiv(10).clip(
        3, 7
    ).nunique()


def test_subgroups_have_an_auc_or_the_reason_why_not(run):
    df = predictions_of(90, 30)
    woman = df["patient_id"].astype(int) - 100
    df["site_id"] = np.select([woman < 25, woman < 40, woman < 50], [1, 2, np.nan], 3)
    evaluated = evaluation.evaluate(other_run(run, df))
    found = comparison.subgroups(evaluated, 50).query("group == 'site'").set_index("value")
    assert found.index.tolist() == ["1", "2", "3", "not given"]
    assert found["women"].tolist() == [25, 15, 40, 10]
    assert found["positive_women"].tolist() == [25, 5, 0, 0]
    assert found["reason"].tolist() == ["", "", "no women with cancer", "no women with cancer"]
    assert found["small"].tolist() == [False, True, True, True]
    assert found.loc["3", ["estimate", "low", "high"]].isna().all()
    expected = metrics.bootstrap(metrics.by_breast(df[df["site_id"] == 2]), "auc", n=50)
    assert found.loc["2", ["estimate", "low", "high"]].tolist() == [expected.estimate, expected.low, expected.high]
    left = comparison.group_rows(df[df["laterality"] == "L"].query("cancer == 1"), {"view": "view"}, metrics.bootstrap)
    assert left["reason"].tolist() == ["all have cancer"] * 2


def test_a_column_that_is_missing_or_empty_has_the_reason_in_its_row(tmp_path):
    df = predictions_of().drop(columns="implant").assign(density=None)
    found = comparison.subgroups(evaluation.evaluate(write_run(tmp_path / "run", df)), 20).set_index("group")
    assert found.loc["implant", "reason"] == "not in predictions.csv"
    assert found.loc["density", "reason"] == "empty in predictions.csv"


def test_the_baseline_finds_a_difference_between_machines_and_nothing_where_there_is_none(tmp_path):
    informed = predictions_of(200, 60)
    informed["machine_id"] = np.where(informed["patient_id"].astype(int) < 160, 1, 2)
    labels = informed.groupby(["patient_id", "laterality"])["cancer"].max()
    informed_score = comparison.baseline(evaluation.evaluate(write_run(tmp_path / "informed", informed)))["score"]
    by_machine = reference.roc_auc_score(labels, labels.index.get_level_values(0).astype(int) < 160)
    assert reference.roc_auc_score(labels, informed_score) > by_machine - 0.05
    aucs = []
    for seed in range(5):
        df = predictions_of(200, 60, seed)
        df["machine_id"] = np.random.default_rng(seed).integers(0, 5, 200).repeat(4)
        uninformed = evaluation.evaluate(write_run(tmp_path / f"uninformed {seed}", df))
        aucs.append(reference.roc_auc_score(labels, comparison.baseline(uninformed)["score"]))
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.05)


def test_the_baseline_has_the_scale_of_the_runs_scores(evaluated):
    guess, weights = comparison.baseline(evaluated), evaluation.class_weights(evaluated.run)
    assert guess["corrected_score"].mean() == pytest.approx(evaluated.breasts["cancer"].mean(), abs=0.03)
    np.testing.assert_allclose(metrics.prior_correction(guess["score"], weights), guess["corrected_score"])


def test_each_rule_shows_its_threshold_and_its_rates(evaluated):
    table = operating.operating_table(evaluated.breasts, 20)
    shown = summary.readable(table).loc["best F1"]
    assert float(shown["Threshold"]) == pytest.approx(table.set_index("rule").loc["best F1", "threshold"], abs=5e-4)
    assert shown["Sensitivity (%)"].startswith(f"{100 * table['sensitivity'].iloc[-1]:.0f} (")


def test_a_baseline_without_age_and_machine_is_unavailable(tmp_path):
    df = predictions_of().drop(columns="age").assign(machine_id=1)
    found = attempt(comparison.baseline, evaluation.evaluate(write_run(tmp_path / "run", df)))
    assert found == Unavailable("age and machine are missing, or the same for all")


def other_run(run: Run, predictions: pd.DataFrame) -> Run:
    return write_run(run.path.parent / "20261124-090000-other", predictions)


def test_a_run_is_better_than_a_worse_one_by_the_difference_of_their_metrics(run, evaluated):
    worse = predictions_of().sample(frac=1, random_state=0)
    worse["score"] = np.random.default_rng(1).random(len(worse))
    table = comparison.compared(evaluated, other_run(run, worse), 200)
    other, own, difference = table.loc["AUC"]
    assert list(table.columns) == ["20261124-090000-other", run.id, "difference"]
    assert difference.estimate == pytest.approx(own.estimate - other.estimate)
    assert 0 < difference.low < difference.estimate < difference.high


def test_runs_are_paired_by_image_and_not_by_row(run, evaluated):
    table = comparison.compared(evaluated, other_run(run, predictions_of().iloc[::-1]), 50)
    assert all(interval.estimate == pytest.approx(0) for interval in table["difference"])


@pytest.mark.parametrize("side", ["the other has more women", "the other has fewer women"])
def test_a_comparison_is_refused_where_one_may_have_trained_on_the_others_women(run, side):
    theirs = predictions_of(80, 20) if "more" in side else predictions_of()[:-40]
    with pytest.raises(MetricsError, match=r"are not among those that run .* held out"):
        comparison.compared(evaluation.evaluate(run), other_run(run, theirs), 20)


def test_a_run_evaluated_on_test_women_is_not_compared_with_one_evaluated_on_validation_women(run):
    theirs = predictions_of()
    theirs.loc[theirs["patient_id"].astype(int) % 2 == 0, "split"] = "test"
    with pytest.raises(MetricsError, match="is evaluated on validation women"):
        comparison.paired(evaluation.evaluate(run), other_run(run, theirs))


def test_images_that_one_run_alone_has_scored_are_not_dropped_silently(run):
    theirs = predictions_of().drop_duplicates("patient_id")
    with pytest.raises(MetricsError, match="images are scored by only one of the two runs"):
        comparison.paired(evaluation.evaluate(run), other_run(run, theirs))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split": lambda df: df["split"].where(df["laterality"] == "L", "test")}, "a woman is in both splits"),
        (
            {"laterality": lambda df: df["laterality"].where(df.index > 0, "l")},
            "laterality is not L or R .*row 2: patient_id 100, image_id 1000",
        ),
    ],
)
def test_women_on_both_sides_and_a_third_side_are_refused(run, change, reason):
    other = other_run(run, predictions_of().assign(**change))
    with pytest.raises(MetricsError, match=reason):
        evaluation.evaluate(other)


@pytest.mark.parametrize("counts", [{}, {"images": 9, "positives": 0}, {"images": 9, "positives": 9}, {"images": None}])
def test_without_known_class_weights_pf1_is_raw_and_noisy_or_is_missing(run, counts):
    given = {name: {"train": count} for name, count in ({"positives": 1} | counts if counts else {}).items()}
    run.write_json("metrics.json", given)
    evaluated = evaluation.evaluate(run)
    found = evaluation.main_metrics(evaluated, 20)
    assert list(found.index) == ["breast, mean", "breast, highest", "image"]
    assert list(found.columns) == ["AUC", "average precision", "pF1"]
    assert found.loc["breast, mean", "pF1"].estimate == pytest.approx(
        metrics.pf1(evaluated.breasts["cancer"], evaluated.breasts["score"])
    )
    assert "metrics.json" in evaluated.scale


def corrected_pf1(df: pd.DataFrame) -> float:
    """pF1 by breast of scores corrected for the weights of 100 positives among 1,000 training images."""
    odds = df["score"] / (1 - df["score"]) * 100 / 900
    breasts = metrics.by_breast(df.assign(score=odds / (1 + odds)))
    return metrics.pf1(breasts["cancer"], breasts["score"])


def test_pf1_is_of_corrected_scores_wherever_it_is_reported(run, evaluated):
    expected, raw = (
        corrected_pf1(predictions_of()),
        metrics.pf1(evaluated.breasts["cancer"], evaluated.breasts["score"]),
    )
    assert abs(expected - raw) > 0.05
    row = evaluation.main_metrics(evaluated, 20).loc["breast, mean"]
    assert (row["pF1"].estimate, row["pF1, raw scores"].estimate) == pytest.approx((expected, raw))
    assert "corrected" in evaluated.scale
    other = predictions_of(seed=1).assign(cancer=predictions_of()["cancer"])
    table = comparison.compared(evaluated, other_run(run, other), 20)
    assert table.loc["pF1", run.id].estimate == pytest.approx(expected)
    assert table.loc["pF1", "20261124-090000-other"].estimate == pytest.approx(corrected_pf1(other))
    predictions = out_of_fold.out_of_fold({0: run})
    assert out_of_fold.fold_table(predictions, 20).loc[0, "pF1"].estimate == pytest.approx(expected)
    assert out_of_fold.overall(predictions, 20).loc["pF1", "pooled"].estimate == pytest.approx(expected)
    assert out_of_fold.overall(predictions, 20).loc["pF1, raw scores", "pooled"].estimate == pytest.approx(raw)


def test_runs_whose_scores_have_different_scales_are_compared_by_raw_scores(run, evaluated):
    other = write_run(run.path.parent / "20261124-090000-other", predictions_of(), imbalance="focal")
    table = comparison.compared(evaluated, other, 20)
    assert list(table.index) == ["AUC", "average precision", "pF1, raw scores"]


def test_an_evaluation_with_other_parameters_does_not_overwrite_the_first(run):
    files = {
        evaluation.write_results(run, {"call": number}, **parameters)
        for number, parameters in enumerate(
            [
                {},
                {"compare": "20261124-090000-other"},
                {"draws": 200},
                {"draws": 200, "compare": "20261124-090000-other"},
            ]
        )
    }
    assert {json.loads(file.read_text())["call"] for file in files} == {0, 1, 2, 3}
    assert evaluation.write_results(run, {}, compare="", draws=2000).name == "evaluation.json"


def test_runs_of_one_id_in_two_folders_have_results_of_two_names(tmp_path):
    names = {
        results.result_path(Run(tmp_path), "evaluation.json", compare=f"studies/{study}/trial-1").name for study in "ab"
    }
    assert len(names) == 2


def test_the_parameters_in_the_names_of_results_are_those_of_the_notebook():
    notebook = nbformat.read(NOTEBOOKS / "04_evaluate.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    given: dict = {}
    exec(cell.source, given)
    assert {name: given[name] for name in results.DEFAULTS} == results.DEFAULTS


def test_a_comparison_with_itself_or_with_other_labels_is_refused(run, evaluated):
    with pytest.raises(UnavailableError, match="with itself"):
        comparison.compared(evaluated, run, 20)
    with pytest.raises(UnavailableError, match="no other run was named"):
        comparison.compared(evaluated, None, 20)
    other = predictions_of()
    other["cancer"] = other.groupby("patient_id")["cancer"].transform(lambda labels: labels.to_numpy()[::-1])
    with pytest.raises(MetricsError, match="different labels in the two runs"):
        comparison.compared(evaluated, other_run(run, other), 20)


def test_examples_are_the_extremes_of_each_kind(run, evaluated):
    write_store(run)
    fit = operating.cross_fitted(evaluated.breasts, operating.threshold_by_f1)
    found = evaluation.examples(evaluated, fit, 4)
    breasts = evaluated.breasts.assign(called=fit.calls)
    assert found["hits"]["score"].max() == breasts.query("cancer == 1 and called")["score"].max()
    assert found["misses"]["score"].min() == breasts.query("cancer == 1 and not called")["score"].min()
    assert found["false alarms"]["cancer"].eq(0).all()
    shown = found["hits"].iloc[0]
    own = evaluated.predictions.query("patient_id == @shown.patient_id and laterality == @shown.laterality")
    assert shown["image_id"] == own.loc[own["score"].idxmax(), "image_id"]


def test_without_the_store_or_an_image_the_examples_are_unavailable_with_the_reason(run, evaluated):
    fit = operating.cross_fitted(evaluated.breasts, operating.threshold_by_f1)
    with pytest.raises(UnavailableError, match=r"no store of prepared images at .*: run notebooks/00"):
        evaluation.examples(evaluated, fit, 4)
    with pytest.raises(UnavailableError, match="the parameter pictures is 0"):
        evaluation.examples(evaluated, fit, 0)
    write_store(run)
    for file in Path(run.config.store_dir).rglob("*.png"):
        file.unlink()
    with pytest.raises(UnavailableError, match=r"are not in the store, first .*: run notebooks/00_prepare"):
        evaluation.examples(evaluated, fit, 4)


def test_the_summary_has_the_numbers_of_a_count_by_hand(evaluated):
    fit = operating.cross_fitted(evaluated.breasts, operating.threshold_by_f1)
    breasts = evaluated.breasts.assign(called=fit.calls)
    women = breasts.groupby("patient_id")[["cancer", "called"]].max()
    auc = metrics.bootstrap(evaluated.breasts, "auc", n=100)
    text = summary.in_short(evaluated, fit, auc, 100).text
    assert "60 women, 20 of them with cancer: 120 breasts, 20 with cancer, in 240 images" in text
    assert f"finds {100 * breasts.query('cancer == 1')['called'].mean():.0f} (" in text
    assert f"when {100 * women['called'].mean():.0f} (" in text
    assert f"Of 100 women recalled, {100 * women.query('called')['cancer'].mean():.0f} (" in text
    assert f"an AUC of {auc}" in text
    assert "33 of 100 women here have cancer; in screening, fewer than 1 of 100" in text
    assert "not for clinical use" in text
    assert "generated" not in text


@pytest.mark.parametrize(
    ("content", "generated"), [({"generated": True}, True), ({"generated": False}, False), ({}, False)]
)
def test_generated_mammograms_are_said_to_be_generated(run, evaluated, content, generated):
    run.write_json("config/environment.json", content)
    auc = metrics.bootstrap(evaluated.breasts, "auc", n=20)
    assert ("mammograms are generated" in summary.in_short(evaluated, Unavailable("few"), auc, 20).text) == generated
    assert ("generated mammograms, `rsna`" in summary.model_card(evaluated).text) == generated


@pytest.mark.parametrize("label", ["Cancer means BI-RADS 4 or 5 here, not a biopsy.", ""])
def test_a_label_that_is_no_biopsy_is_said_at_the_beginning_and_in_the_model_card(run, evaluated, label):
    run.write_json("config/environment.json", {"label": label} if label else {})
    auc = metrics.bootstrap(evaluated.breasts, "auc", n=20)
    short = summary.in_short(evaluated, Unavailable("few"), auc, 20).text
    assert short.count("not a biopsy") == bool(label)
    expected = label or "cancer as the data set's table gives it"
    assert f"| **Label** | {expected} |" in summary.model_card(evaluated).text


def test_a_run_that_does_not_say_is_not_called_generated(run):
    (run.path / "logs" / "train.log").write_text("INFO data: the generated demo set in data/demo\n")
    assert not summary.is_generated(run)


def test_with_one_woman_with_cancer_the_sensitivity_is_not_available(tmp_path):
    evaluated = evaluation.evaluate(write_run(tmp_path / "run", predictions_of(20, 1)))
    fit = attempt(operating.cross_fitted, evaluated.breasts, operating.threshold_by_f1)
    text = summary.in_short(evaluated, fit, metrics.bootstrap(evaluated.breasts, "auc", n=20), 20).text
    assert "not available: choosing on other women needs at least 2 women with cancer" in text


def test_shares_are_of_100_with_their_interval():
    assert summary.of_100(0.784, 0.626, 0.881) == "78 (63 to 88)"
    assert summary.of_100(0.0324, 0.0291, 0.0349) == "3.2 (2.9 to 3.5)"
    assert summary.of_100(0.974, 0.972, 0.976) == "97.4 (97.2 to 97.6)"
    assert summary.of_100(1.0, float("nan"), float("nan")) == "100 (no interval)"
    assert summary.of_100(float("nan"), 0.1, 0.2) == "not defined"


def test_the_model_card_names_data_split_use_and_limits(evaluated):
    text = summary.model_card(evaluated).text
    for words in (
        "1,000 images, 100 with cancer",
        "`rsna`",
        "seed 42",
        "research and teaching only",
        "clinical use of any kind",
    ):
        assert words in text
    assert "among 5 epochs (epoch 3)" in summary.checkpoint_note(evaluated).text


def test_published_results_stand_in_the_order_of_the_figures_letters():
    table = summary.published(operating.PUBLISHED)
    assert [name[0] for name in table.index] == list("abcd")
    assert table.index[0] == "a: best single algorithm"
    assert table.loc["c: top 3 together", "PPV (%)"] == "not given"


def test_everything_that_is_written_is_json(evaluated):
    fit = operating.cross_fitted(evaluated.breasts, operating.threshold_by_f1)
    content = {
        "metrics": evaluation.main_metrics(evaluated, 20),
        "fit": fit,
        "groups": comparison.subgroups(evaluated, 20),
        "missing": Unavailable("few"),
        "not a number": float("nan"),
        "point": dataclasses.asdict(fit.point),
        "numbers": (np.int64(3), np.array([1.5, np.inf])),
    }
    written = json.loads(json.dumps(evaluation.plain(content), allow_nan=False))
    assert written["missing"] == {"unavailable": "few"}
    assert written["not a number"] is None
    assert written["numbers"] == [3, [1.5, None]]
    assert set(written["metrics"][0]["AUC"]) == {"estimate", "low", "high"}
    assert written["fit"]["point"]["tp"] == fit.point.tp
