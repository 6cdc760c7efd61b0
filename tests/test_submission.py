"""From test images to submission.csv, by a tiny run and by an ensemble of two, on the generated set."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_nb import metrics
from rsna_nb.config import ConfigError
from rsna_nb.ensemble import Ensemble, gather, load, submission
from rsna_nb.metadata import load_metadata
from rsna_nb.metrics import MetricsError, cross_fitted, threshold_by_f1
from rsna_nb.notebook import Unavailable
from rsna_nb.runs import Run
from tests.test_ensemble import fold_runs, single_runs
from tests.test_evaluation import predictions_of, write_run


@pytest.fixture(scope="module")
def runs(trained) -> list[Run]:
    """Two runs of one epoch on the same split."""
    return [trained(f"seed{seed}", seed=seed, epochs=1) for seed in (1, 2)]


@pytest.fixture
def alone(runs) -> Ensemble:
    return load(str(runs[0].path))


@pytest.mark.slow
def test_raw_scores_of_validation_images_equal_those_in_predictions_csv(runs, generated):
    both = Ensemble.fit(gather(runs), "logit", "both")
    for model, predictions in ((load(str(runs[0].path)), runs[0].predictions), (both, both.predictions)):
        assert submission.scale(model, "raw") is model
        images = submission.images_of(model, generated, "validation")
        breasts = submission.score_breasts(submission.score_images(model, images), 0.5)
        expected = metrics.by_breast(predictions)
        expected["prediction_id"] = expected["patient_id"] + "_" + expected["laterality"]
        found = submission.submission_of(breasts).set_index("prediction_id")["cancer"]
        assert len(found) == len(expected)
        np.testing.assert_allclose(found[expected["prediction_id"]], expected["score"], atol=1e-5)
        submission.check(submission.submission_of(breasts))


def prior_corrected(run: Run) -> pd.Series:
    """The scores of predictions.csv as probabilities: class weights multiplied the odds by the odds of no cancer."""
    images, positives = run.metrics["images"]["train"], run.metrics["positives"]["train"]
    odds = run.predictions["score"] / (1 - run.predictions["score"]) * positives / (images - positives)
    return odds / (1 + odds)


def test_each_runs_class_weights_are_corrected_for_before_runs_are_combined(runs, alone, generated):
    both = Ensemble.fit(gather(runs), "mean", "both")
    for model, expected in (
        (alone, prior_corrected(runs[0])),
        (both, (prior_corrected(runs[0]) + prior_corrected(runs[1])) / 2),
    ):
        model = submission.scale(model, "probability")
        images = submission.images_of(model, generated, "validation")
        breasts = submission.score_breasts(submission.score_images(model, images), 0.5)
        known = metrics.by_breast(runs[0].predictions.assign(score=expected))
        known["prediction_id"] = known["patient_id"] + "_" + known["laterality"]
        found = submission.submission_of(breasts).set_index("prediction_id")["cancer"]
        np.testing.assert_allclose(found[known["prediction_id"]], known["score"], atol=1e-5)
        np.testing.assert_allclose(submission.validation_breasts(model)["score"], known["score"], atol=1e-6)


def test_scores_that_are_not_probabilities_can_be_submitted_raw_or_as_calls_only(tmp_path):
    ranks = Ensemble.fit(gather(single_runs(tmp_path / "a", [1, 2])), "rank", "ranks")
    soft = load("", single_runs(tmp_path / "b", [1], positive_label=0.9)[0].path.parent)
    for model, reason in ((ranks, "combines ranks"), (soft, "trained with positive_label 0.9")):
        with pytest.raises(submission.SubmissionError, match=rf'{reason}.*: set scores to "raw", or as_calls to true'):
            submission.scale(model, "probability")
        assert submission.scale(model, "raw") is submission.scale(model, "probability", as_calls=True) is model
        assert isinstance(submission.validation_pf1(model, "raw", False).iloc[1, 0], Unavailable)
    plain = load("", single_runs(tmp_path / "c", [1], imbalance="none")[0].path.parent)
    found = submission.scale(plain, "probability")
    np.testing.assert_array_equal(found.predictions["score"], plain.predictions["score"])
    with pytest.raises(submission.SubmissionError, match='scores must be "probability" or "raw", not'):
        submission.scale(plain, "odds")


def test_validation_pf1_is_shown_for_each_way_to_submit(alone, runs):
    breasts = metrics.by_breast(runs[0].predictions)
    table = submission.validation_pf1(alone, "probability", as_calls=False, threshold=0.3)
    assert table["submitted"].tolist() == ["", "yes", ""]
    scores = [breasts["score"], metrics.by_breast(runs[0].predictions.assign(score=prior_corrected(runs[0])))["score"]]
    for found, own in zip(table["validation pF1"], [*scores, breasts["score"] >= 0.3], strict=True):
        assert found.estimate == pytest.approx(metrics.pf1(breasts["cancer"], own))
    table = submission.validation_pf1(alone, "raw", as_calls=True)
    assert table["submitted"].tolist() == ["", "", "yes"]
    calls = cross_fitted(breasts, threshold_by_f1)
    assert table.iloc[2, 0].estimate == pytest.approx(calls.point.f1)


def test_with_a_single_cancer_scores_can_be_submitted_and_calls_need_a_threshold(tmp_path):
    run = write_run(tmp_path / "run", predictions_of(20, 1))
    model = load(str(run.path))
    assert "at least 2 women with cancer" in str(submission.validation_pf1(model, "raw", False).iloc[2, 0])
    with pytest.raises(MetricsError, match=r"at least 2 women with cancer.*: set the parameter threshold to a score"):
        submission.threshold_of(model)
    assert submission.threshold_of(model, 0.4) == 0.4


def test_a_submission_of_the_test_images_has_the_ids_of_sample_submission_csv(alone, generated):
    images = submission.images_of(alone, generated)
    scored = submission.score_images(alone, images)
    assert (scored["error"] == "").all()
    found = submission.submission_of(submission.score_breasts(scored, 0.5))
    submission.check(found, generated / "sample_submission.csv")
    assert found["cancer"].between(0, 1).all()
    first = found.iloc[0]
    rows = scored[scored["prediction_id"] == first["prediction_id"]]
    assert (rows["patient_id"] + "_" + rows["laterality"] == first["prediction_id"]).all()
    assert first["cancer"] == pytest.approx(rows["score"].mean())


def test_breasts_with_unreadable_files_get_the_mean_of_the_others_or_the_prior(alone, generated, tmp_path):
    data = shutil.copytree(generated, tmp_path / "data")
    images = load_metadata(data, "test")
    breasts = list(images.groupby("prediction_id", sort=False))
    (one, some), (none, all_of_it) = breasts[:2]
    for path in [some["path"].iloc[0], *all_of_it["path"][:-1]]:
        Path(path).write_text("no DICOM")
    Path(all_of_it["path"].iloc[-1]).unlink()
    scored = submission.score_images(alone, submission.images_of(alone, data))
    found = submission.score_breasts(scored, 0.123)
    table = submission.submission_of(found)
    score = table.set_index("prediction_id")["cancer"]
    assert score[none] == 0.123
    rest = scored[(scored["prediction_id"] == one) & (scored["error"] == "")]
    assert len(rest) == len(some) - 1
    assert score[one] == pytest.approx(rest["score"].mean())
    (path,) = submission.write(tmp_path, table, scored, found)
    submission.check(pd.read_csv(path), data / "sample_submission.csv")
    ledger = pd.read_csv(tmp_path / "submission_ledger.csv").set_index("prediction_id")
    assert len(ledger) == len(images)
    assert (ledger["error"].notna() == ledger["score"].isna()).all()
    assert ledger["error"].notna().sum() == 1 + len(all_of_it)
    assert set(ledger.index[ledger["breast_is"] == "the prior"]) == {none}


def test_the_prior_is_the_prevalence_on_the_scale_of_the_scores(alone, runs, generated):
    breasts = load_metadata(generated).groupby(["patient_id", "laterality"])["cancer"].max()
    prior = breasts.mean()
    assert submission.prevalence(alone) == pytest.approx(prior)
    both = Ensemble.fit(gather(runs), "logit", "both")
    for model in (alone, both):
        assert submission.score_of_unreadable(submission.scale(model, "probability")) == pytest.approx(prior)
        images, positives = runs[0].metrics["images"]["train"], runs[0].metrics["positives"]["train"]
        odds = prior / (1 - prior) * (images - positives) / positives
        assert submission.score_of_unreadable(model) == pytest.approx(odds / (1 + odds))


def test_the_threshold_of_calls_is_cross_fitted(alone, runs):
    expected = cross_fitted(metrics.by_breast(runs[0].predictions), threshold_by_f1).point.threshold
    assert submission.threshold_of(alone) == expected
    assert submission.threshold_of(alone, 0.25) == 0.25
    for check in (submission.threshold_of, lambda model, value: submission.validation_pf1(model, "raw", False, value)):
        with pytest.raises(ConfigError, match="threshold must be a score from 0 to 1"):
            check(alone, 2.0)
    unknown = Unavailable("there are no files")
    assert submission.threshold_of(unknown, 0.25) == 0.25
    with pytest.raises(submission.SubmissionError, match="there are no files: set threshold"):
        submission.threshold_of(unknown)
    scores = [expected - 1e-6, expected, 1.0]
    breasts = pd.DataFrame({"prediction_id": ["1_L", "1_R", "2_L"], "score": scores})
    assert submission.submission_of(breasts, expected)["cancer"].tolist() == [0, 1, 1]


def test_flips_change_the_scores(alone, generated):
    images = submission.images_of(alone, generated)
    plain, flipped = (submission.score_images(alone, images, flips)["score"] for flips in (False, True))
    assert (plain - flipped).abs().max() > 1e-6


def test_with_flips_the_validation_scores_and_the_threshold_are_made_with_flips_too(alone, runs):
    folder = submission.choose_data(alone)
    expected = submission.score_images(alone, submission.images_of(alone, folder, "validation"), flips=True)
    flipped = submission.with_flips(alone)
    np.testing.assert_allclose(flipped.predictions["score"], expected["score"], atol=1e-6)
    assert not np.allclose(flipped.predictions["score"], alone.predictions["score"], atol=1e-6)
    own = cross_fitted(submission.validation_breasts(flipped), threshold_by_f1).point.threshold
    assert submission.threshold_of(flipped) == own != submission.threshold_of(alone)
    both = submission.with_flips(Ensemble.fit(gather(runs), "mean", "both"))
    np.testing.assert_allclose(both.pool.scores[runs[0].id], expected["score"], atol=1e-6)
    assert submission.with_flips(alone, flips=False) is alone


def test_with_flips_missing_validation_files_are_an_error_that_names_them(runs, tmp_path):
    moved = shutil.copytree(runs[0].path, tmp_path / "moved")
    config = moved / "config" / "config.json"
    config.write_text(config.read_text().replace(runs[0].config.data_dir, str(tmp_path / "gone")))
    with pytest.raises(submission.SubmissionError, match=r"cannot be scored with flips: .*gone, which"):
        submission.with_flips(load(str(moved)))
    data = shutil.copytree(runs[0].config.data_dir, tmp_path / "gone")
    woman, image = runs[0].predictions.loc[0, ["patient_id", "image_id"]]
    (data / "train_images" / woman / f"{image}.dcm").write_text("no DICOM")
    with pytest.raises(submission.SubmissionError, match=rf"1 \({image}\) of the .* can no longer be read"):
        submission.with_flips(load(str(moved)))


def test_an_empty_data_dir_is_the_folder_that_the_runs_were_trained_on(alone, generated, tmp_path):
    assert submission.choose_data(alone) == generated
    assert submission.choose_data(alone, tmp_path) == tmp_path
    gone = single_runs(tmp_path / "a", [1], data_dir=str(tmp_path / "gone"))
    with pytest.raises(submission.SubmissionError, match=r"data_dir is empty, and .*gone"):
        submission.choose_data(load(str(gone[0].path)))
    one, other = single_runs(tmp_path / "b", [1, 2])
    several = Ensemble.fit(gather([one, other]), "mean")
    with pytest.raises(submission.SubmissionError, match=r"several folders: .*rsna, .*rsna"):
        submission.choose_data(several)


def test_a_warning_tells_when_generated_and_real_mammograms_meet(alone, generated, tmp_path, caplog):
    assert "the generated mammograms in" in submission.describe_data(alone, generated).text
    assert f"In training, `data_dir` was `{str(generated)!r}`." in submission.describe_data(alone, generated).text
    assert not caplog.text
    assert "trained on generated mammograms" in submission.describe_data(alone, tmp_path).text
    assert "trained on generated mammograms" in caplog.text
    (real,) = single_runs(tmp_path, [1])
    unknown = load(str(real.path))
    assert "trained on" not in submission.describe_data(unknown, generated).text
    real.write_json("config/environment.json", {"generated": False})
    assert "trained on real mammograms" in submission.describe_data(unknown, generated).text


def test_a_different_submission_is_kept_under_another_name(tmp_path):
    images = pd.DataFrame(
        {"prediction_id": ["1_L"], "patient_id": "1", "image_id": "1", "score": 0.1, "error": "", "notes": ""}
    )
    breasts = submission.score_breasts(images, 0.5)
    first = submission.submission_of(breasts)
    assert len(submission.write(tmp_path, first, images, breasts)) == 1
    assert len(submission.write(tmp_path, first, images, breasts)) == 1  # the same again
    for score in (0.2, 0.3):  # within the same second, too
        other = images.assign(score=score)
        path, *renamed = submission.write(
            tmp_path, first.assign(cancer=score), other, submission.score_breasts(other, 0.5)
        )
        assert pd.read_csv(path)["cancer"].tolist() == [score]
        assert [file.name[:11] for file in renamed] == ["submission-", "submission_"]
    kept = [pd.read_csv(file)["cancer"].item() for file in tmp_path.glob("submission-*.csv")]
    assert sorted(kept) == [0.1, 0.2]


def test_validation_images_of_folds_or_of_other_data_are_refused(alone, generated, tmp_path):
    folds = Ensemble.fit(gather(fold_runs(tmp_path, "a")), "mean", "folds")
    with pytest.raises(submission.SubmissionError, match="all but one of them were trained on a validation image"):
        submission.images_of(folds, generated, "validation")
    other = write_table(tmp_path / "other", load_metadata(generated).iloc[:1])
    with pytest.raises(submission.SubmissionError, match=r"of the validation images are not in the table of"):
        submission.images_of(alone, other, "validation")
    with pytest.raises(submission.SubmissionError, match='must be "test" or "validation"'):
        submission.images_of(alone, generated, "train")


def write_table(folder: Path, table: pd.DataFrame) -> Path:
    """A data folder with some rows of a table and their images."""
    folder.mkdir()
    table.drop(columns="path").to_csv(folder / "train.csv", index=False)
    for row in table.itertuples():
        file = folder / "train_images" / row.patient_id / f"{row.image_id}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(row.path, file)
    return folder


GOOD = {"prediction_id": ["1_L", "1_R", "2_L"], "cancer": [0.0, 0.5, 1.0]}
WRONG = {
    "a breast missing": ({"prediction_id": ["1_L", "1_R"], "cancer": [0, 1]}, r"not in the submission: 1 \(2_L\)"),
    "another breast": (
        {"prediction_id": ["1_L", "1_R", "2_L", "9_L"], "cancer": [0, 1, 0, 1]},
        r"not in .*: 1 \(9_L\)",
    ),
    "a breast twice": (
        {"prediction_id": ["1_L", "1_R", "2_L", "1_R"], "cancer": [0, 1, 0, 1]},
        r"occurs twice: 1 \(1_R\)",
    ),
    "no number": (GOOD | {"cancer": [0, np.nan, 1]}, r"no finite number from 0 to 1: 1 \(1_R\)"),
    "infinite": (GOOD | {"cancer": [np.inf, 0, 1]}, r"no finite number from 0 to 1: 1 \(1_L\)"),
    "above 1": (GOOD | {"cancer": [0, 0, 1.1]}, r"no finite number from 0 to 1: 1 \(2_L\)"),
    "text": (GOOD | {"cancer": ["0", "yes", "1"]}, r"no finite number from 0 to 1: 1 \(1_R\)"),
    "other columns": (
        {"prediction_id": GOOD["prediction_id"], "score": GOOD["cancer"]},
        "columns must be prediction_id, cancer",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_a_submission_that_kaggle_would_refuse_is_refused_with_its_ids(tmp_path, wrong, message):
    sample = tmp_path / "sample_submission.csv"
    pd.DataFrame(GOOD).to_csv(sample, index=False)
    submission.check(pd.DataFrame(GOOD).iloc[::-1], sample)
    with pytest.raises(submission.SubmissionError, match=message):
        submission.check(pd.DataFrame(wrong), sample)
