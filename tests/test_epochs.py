"""The choice of the epoch: by other runs, and what it gains on the women who make it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from rsna_nb import metrics
from rsna_nb.config import RunConfig
from rsna_nb.evaluation import epochs, out_of_fold, summary
from rsna_nb.metrics import MetricsError
from rsna_nb.notebook import UnavailableError
from rsna_nb.runs import Run, RunError
from tests.bench import bench_epoch_choice as drawn
from tests.conftest import table_of

EPOCHS = 6


def scores_of(table: pd.DataFrame, seed: int) -> np.ndarray:
    """Scores of each epoch drawn at random, (n, EPOCHS) float32."""
    return np.random.default_rng(seed).uniform(0.05, 0.95, (len(table), EPOCHS)).astype(np.float32)


def write_run(folder: Path, table: pd.DataFrame, scores: np.ndarray, kept: bool = True, **settings: object) -> Run:
    """A finished run without a model: its history, predictions at the best epoch and the scores of all epochs."""
    for name in ("config", "logs"):
        (folder / name).mkdir(parents=True)
    RunConfig(monitor="val_auc", imbalance="none", **settings).to_json(folder / "config" / "config.json")
    run, count = Run(folder), scores.shape[1]
    aucs = [roc_auc_score(table["cancer"], column) for column in scores.T]
    best = int(np.argmax(aucs)) + 1
    pd.DataFrame({"epoch": range(1, count + 1), "val_auc": aucs}).to_csv(folder / "logs" / "history.csv", index=False)
    found = table.assign(split="validation", score=scores[:, best - 1].astype(float))
    found.to_csv(folder / "predictions.csv", index=False)
    if kept:
        keys = table[epochs.KEYS].reset_index(drop=True)
        columns = pd.DataFrame(scores, columns=[f"epoch_{epoch}" for epoch in range(1, count + 1)])
        pd.concat([keys, columns], axis=1).to_csv(folder / "validation_scores.csv", index=False)
    run.write_json("metrics.json", {"best_epoch": best, "images": {"train": 100}, "positives": {"train": 20}})
    return run


@pytest.fixture
def table() -> pd.DataFrame:
    return table_of(60, 20)


@pytest.fixture
def folds(table) -> list[tuple[pd.DataFrame, np.ndarray]]:
    """The women of three folds and their scores; the second fold stopped after four epochs."""
    parts = [table[table["patient_id"].astype(int) % 3 == fold].reset_index(drop=True) for fold in range(3)]
    lengths = (EPOCHS, 4, EPOCHS)
    return [(part, scores_of(part, fold)[:, : lengths[fold]]) for fold, part in enumerate(parts)]


def test_each_runs_epoch_is_the_best_mean_of_the_others_and_its_own_curve_has_no_part_in_it():
    curves = {
        name: pd.Series(values, range(1, 4))
        for name, values in {"a": [0.0, 1.0, 0.9], "b": [0.5, 0.0, 0.6], "c": [0.4, 0.6, 0.0]}.items()
    }
    assert epochs.chosen_by_others(curves) == {"a": 1, "b": 2, "c": 3}
    curves["a"] = pd.Series([9.0, 0.0, 0.0], range(1, 4))
    assert epochs.chosen_by_others(curves)["a"] == 1


def test_a_run_that_stopped_early_keeps_its_last_network():
    long, short = pd.Series([0.1, 0.2, 0.3, 0.35], range(1, 5)), pd.Series([0.9, 0.5], [1, 2])
    middle = pd.Series([0.0, 0.0, 0.5, 0.0], range(1, 5))
    chosen = epochs.chosen_by_others({"long": long, "short": short, "middle": middle})
    # of the mean of the runs that still train, "middle" would choose 1 and "long" 3, where "short" has left
    assert chosen == {"long": 3, "short": 2, "middle": 1}
    assert epochs.chosen_by_others({"long": long}) == {}
    undefined = pd.Series([np.nan, np.nan, np.nan, np.nan], range(1, 5))
    assert epochs.chosen_by_others({"long": long, "undefined": undefined}) == {"undefined": 4}


def test_out_of_fold_scores_are_those_of_the_epoch_that_the_other_folds_chose(folds, tmp_path):
    runs = {fold: write_run(tmp_path / f"run-{fold}", *own) for fold, own in enumerate(folds)}
    found = out_of_fold.out_of_fold(runs)
    chosen = epochs.epochs_of(runs)
    assert set(chosen) == {0, 1, 2}
    assert [run.metrics["best_epoch"] for run in runs.values()] != list(chosen.values()), "else nothing is seen"
    for fold, (part, scores) in enumerate(folds):
        own = found[found["fold"] == fold].set_index("image_id").loc[part["image_id"]]
        np.testing.assert_array_equal(own["score"].astype(np.float32), scores[:, chosen[fold] - 1])
        assert set(own["epoch"]) == {chosen[fold]}
    in_sample = out_of_fold.out_of_fold(runs, in_sample=True)
    best = {fold: run.metrics["best_epoch"] for fold, run in runs.items()}
    assert in_sample.groupby("fold")["epoch"].first().to_dict() == best
    optimism = out_of_fold.epoch_optimism(runs, found, in_sample)
    breasts = [out_of_fold.breasts_of(each) for each in (in_sample, found)]
    aucs = [metrics.fold_metrics(each, n=2)["within folds"].estimate for each in breasts]
    assert optimism.loc["AUC", "optimism"] == pytest.approx(aucs[0] - aucs[1], abs=0.001)
    assert "The epochs that the other folds chose" in out_of_fold.epochs_note(runs).text
    assert "same women" not in out_of_fold.epochs_note(runs).text


def test_a_run_of_an_earlier_version_and_a_single_fold_are_used_at_their_own_epoch_and_it_is_said(folds, tmp_path):
    runs = {fold: write_run(tmp_path / f"run-{fold}", *own, kept=fold != 1) for fold, own in enumerate(folds)}
    found = out_of_fold.out_of_fold(runs)
    assert set(found.loc[found["fold"] == 1, "epoch"]) == {runs[1].metrics["best_epoch"]}
    assert (
        "chosen on the same women in fold 1**, because its run has no validation_scores.csv"
        in out_of_fold.epochs_note(runs).text
    )
    in_sample = out_of_fold.out_of_fold(runs, in_sample=True)
    others = {fold: run for fold, run in runs.items() if fold != 1}
    judged = [table[table["fold"] != 1] for table in (found, in_sample)]
    pd.testing.assert_frame_equal(
        out_of_fold.epoch_optimism(runs, found, in_sample), out_of_fold.epoch_optimism(others, *judged)
    )
    with pytest.raises(UnavailableError, match="no fold's epoch was chosen by other folds"):
        out_of_fold.epoch_optimism({0: runs[0]}, found, in_sample)
    text = out_of_fold.epochs_note({0: runs[0]}).text
    assert "chosen on the same women in fold 0**, because no other fold is finished" in text
    with pytest.raises(RunError, match="earlier version, which kept the scores of the best epoch only"):
        epochs.validation_scores(runs[1])
    assert "cannot be said: run run-1 is of an earlier version" in summary.choice_note(runs[1]).text


def test_a_breasts_score_stands_at_each_of_its_images(table, tmp_path):
    """As a network that scores breasts writes it: without image_id."""
    run = write_run(tmp_path / "run", table, scores_of(table, 0))
    by_image = epochs.validation_scores(run)
    breasts = by_image.drop(columns="image_id").groupby(["patient_id", "laterality"]).mean().reset_index()
    breasts.to_csv(run.path / "validation_scores.csv", index=False)
    images = run.predictions
    found = epochs.scores_at(run, images, 2)
    assert found["image_id"].tolist() == images["image_id"].tolist()
    expected = breasts.set_index(["patient_id", "laterality"])["epoch_2"]
    assert metrics.by_breast(found)["score"].to_numpy() == pytest.approx(expected.sort_index().to_numpy())
    assert epochs.run_optimism(run).epochs == EPOCHS
    breasts.iloc[1:].to_csv(run.path / "validation_scores.csv", index=False)
    with pytest.raises(MetricsError, match="has no score of 2 images"):
        epochs.scores_at(run, images, 2)


@pytest.mark.parametrize("monitor", ["val_loss", "val_auc", "val_pf1"])
def test_the_value_that_chooses_is_that_of_training_on_the_women_that_weigh(table, monitor):
    scores, weights = scores_of(table, 1), {0: 0.6, 1: 2.0}
    loss = {"weights": table["cancer"].map(weights).to_numpy(), "positive_label": 0.9, "focal_gamma": 2.0}
    inside = table["patient_id"].astype(int) % 4 > 0
    value = epochs.value_of(table, scores, monitor, weights, **loss)(inside.to_numpy(dtype=float)[None])
    rows = table[inside]
    for epoch in range(EPOCHS):
        own = scores[inside, epoch].astype(float)
        found = metrics.by_image(rows["cancer"], own, **loss | {"weights": loss["weights"][inside]})
        breasts = metrics.by_breast(rows.assign(score=metrics.prior_correction(own, weights)))
        expected = {"val_loss": -found["loss"], "val_auc": found["auc"]}
        expected["val_pf1"] = metrics.pf1(breasts["cancer"], breasts["score"])
        assert value[0, epoch] == pytest.approx(expected[monitor])


def test_where_there_is_one_epoch_nothing_is_chosen(table):
    scores = scores_of(table, 0)[:, :1]
    assert epochs.choice_optimism(table, scores, epochs.value_of(table, scores, "val_auc")).optimism == 0


def test_the_best_of_epochs_drawn_at_random_is_optimism_alone(table):
    """The truth is 0.5 whatever is chosen."""
    found = []
    for seed in range(20):
        scores = scores_of(table, seed)
        found.append(epochs.choice_optimism(table, scores, epochs.value_of(table, scores, "val_auc")))
    assert np.mean([each.in_sample for each in found]) > 0.55
    assert np.mean([each.elsewhere for each in found]) == pytest.approx(0.5, abs=0.04)


def test_an_epoch_that_is_better_for_all_women_is_no_optimism(table):
    scores = scores_of(table, 0)
    scores[:, 3] = (0.3 + 0.4 * table["cancer"] + 0.1 * scores[:, 3]).astype(np.float32)
    found = epochs.choice_optimism(table, scores, epochs.value_of(table, scores, "val_auc"))
    assert (found.in_sample, found.optimism) == (1, 0)


def test_the_optimism_needs_two_women_of_each_kind(table):
    one = table[table["patient_id"].isin(["0", "30", "31"])].reset_index(drop=True)
    scores = scores_of(one, 0)
    with pytest.raises(MetricsError, match="fewer than 2 women with cancer"):
        epochs.choice_optimism(one, scores, epochs.value_of(one, scores, "val_auc"))


def test_the_note_has_the_figures_of_the_runs_files(table, tmp_path):
    run = write_run(tmp_path / "run", table, scores_of(table, 3))
    found, text = epochs.run_optimism(run), summary.choice_note(run).text
    assert f"**{found.optimism:.3f}**" in text
    assert f"{found.in_sample:.3f}" in text
    assert "6 epochs" in text


@pytest.mark.slow
def test_on_drawn_labels_the_interval_of_folds_covers_half_and_the_folds_own_choice_does_not():
    """A small version of the benchmark. Chosen in sample, the AUC of nothing to learn is above 0.5."""
    errors: dict[str, list[float]] = {"other": [], "same": []}
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        folds = drawn.fold_tables(*drawn.drawn(rng, effect=0), rng)
        curves = {fold: own["curve"] for fold, own in enumerate(folds)}
        chosen = {"other": epochs.chosen_by_others(curves), "same": {f: int(c.idxmax()) for f, c in curves.items()}}
        for way, numbers in chosen.items():
            intervals, truth = drawn.cross_validated(folds, 0, numbers)
            errors[way].append(intervals["within folds"].estimate - truth)
            covered += way == "other" and intervals["within folds"].low <= truth <= intervals["within folds"].high
    assert covered >= 34
    gained = np.array(errors["same"]) - np.array(errors["other"])
    assert gained.mean() > 3 * gained.std() / np.sqrt(len(gained)), "choosing in sample gains"
    spread = 0.045  # of 1,000 data sets, tests/bench/bench_epoch_choice.py
    assert abs(np.mean(errors["other"])) < 3 * spread / np.sqrt(len(gained))


def test_phases_that_ended_early_are_compared_phase_by_phase():
    """The head of one run stops after 2 epochs, that of another after 4: fine-tuning begins at other epochs."""

    def of(head: list[float], tuned: list[float]) -> pd.Series:
        index = [("head", epoch + 1) for epoch in range(len(head))] + [
            ("tuned", epoch + 1) for epoch in range(len(tuned))
        ]
        return pd.Series([*head, *tuned], pd.MultiIndex.from_tuples(index))

    curves = {0: of([0.5, 0.4], [0.6, 0.9]), 1: of([0.5, 0.6, 0.5, 0.4], [0.7, 0.8, 0.1])}
    assert epochs.chosen_by_others(curves) == {0: 2 + 2, 1: 4 + 2}
    curves = {0: of([0.9, 0.4], [0.1]), 1: of([0.5, 0.4, 0.8], [0.2])}
    assert epochs.chosen_by_others(curves) == {0: 2, 1: 1}  # the third epoch of the head is the second of run 0


def test_a_curve_that_ends_undefined_continues_with_its_last_defined_value():
    curves = {"a": pd.Series([0.1, 0.9, np.nan], [1, 2, 3]), "b": pd.Series([0.2, 0.3, 0.8], [1, 2, 3])}
    curves["c"] = pd.Series([0.0, 0.0, 0.0], [1, 2, 3])
    assert epochs.chosen_by_others(curves)["c"] == 3  # means 0.15, 0.6 and (0.9 + 0.8) / 2
