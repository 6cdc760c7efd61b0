"""Members, ways to combine them and what that gains, on run folders made by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as reference

from rsna_nb.config import ConfigError
from rsna_nb.ensemble import Ensemble, combine, ensemble_gain, files, model_pool
from rsna_nb.metrics import MetricsError, auc, by_breast, pf1
from rsna_nb.notebook import UnavailableError
from rsna_nb.runs import Run, RunError, list_runs
from tests.test_evaluation import predictions_of, write_run

WOMEN, FOLDS = 60, 3


def scored(rows: pd.DataFrame, seed: int, signal: float = 1.5) -> pd.DataFrame:
    """The rows with new scores: noise from this seed, and `signal` added for cancer."""
    noise = np.random.default_rng(seed).normal(0, 1, len(rows))
    return rows.assign(score=1 / (1 + np.exp(-(signal * (rows["cancer"] - 0.5) + noise))))


def fold_runs(runs_dir: Path, recipe: str, first: int = 0, test: bool = True, **settings: object) -> list[Run]:
    """A run for each of three folds. With `test`, every third woman is a test woman; the others take turns."""
    table = predictions_of(WOMEN, 20)
    woman = table["patient_id"].astype(int)
    is_test = (woman % 3 == 0) & test
    runs = []
    for fold in range(FOLDS):
        rows = table[is_test | (~is_test & (woman // 3 % FOLDS == fold))]
        rows = rows.assign(split=np.where(is_test[rows.index], "test", "validation"))
        own = {"fold": fold, "n_folds": FOLDS, "test_fraction": 0.3 * test, "run_name": f"{recipe}{fold}"} | settings
        runs.append(write_run(runs_dir / f"20261123-10000{fold}-{recipe}", scored(rows, first + fold, 0.7), **own))
    return runs


def single_runs(runs_dir: Path, signals: list[float], **settings: object) -> list[Run]:
    """Runs of different recipes on the same validation women."""
    rows = predictions_of(WOMEN, 20)
    return [
        write_run(runs_dir / f"20261123-1100{i:02}-single", scored(rows, 50 + i, signal), seed=i, **settings)
        for i, signal in enumerate(signals)
    ]


def test_the_folds_of_a_recipe_are_one_member_with_every_image_once(tmp_path):
    runs = fold_runs(tmp_path, "a")
    pool = model_pool.gather(runs[::-1])
    assert pool.names == [f"3 folds of {runs[0].id}"]
    assert not pool.rows.duplicated(model_pool.KEY).any()
    validation, test = pool.of("validation"), pool.of("test")
    assert (pool.scores[validation].notna().sum(axis=1) == 1).all()
    assert pool.scores[test].notna().all(axis=None)
    assert pool.evaluated_split == "test"
    own = Ensemble.fit(pool, "mean", "one").predictions
    for run in runs:
        both = own.merge(run.predictions, on=model_pool.KEY)
        of_fold = both[both["split_x"] == "validation"]
        assert (of_fold["fold"] == run.config.fold).all()
        np.testing.assert_allclose(of_fold["score_x"], of_fold["score_y"])
    means = sum(run.predictions.set_index("image_id").query("split == 'test'")["score"] for run in runs) / FOLDS
    np.testing.assert_allclose(own[test].set_index("image_id")["score"], means[own.loc[test, "image_id"]])


def test_runs_of_different_recipes_are_different_members(tmp_path):
    pool = model_pool.gather([*fold_runs(tmp_path, "a"), *fold_runs(tmp_path, "b", 10, dropout=0.5)])
    assert [len(runs) for runs in pool.members.values()] == [3, 3]
    assert pool.scores.shape == (len(pool.rows), 6)


def test_each_way_is_the_mean_on_its_scale(tmp_path):
    pool = model_pool.gather(single_runs(tmp_path, [1, 2]))
    first, second = (pool.scores[run.id].to_numpy() for run in pool.runs)
    expected = {
        "mean": (first + second) / 2,
        "rank": (pd.Series(first).rank() - 0.5 + pd.Series(second).rank() - 0.5) / 2 / len(first),
        "logit": 1 / (1 + np.sqrt((1 / first - 1) * (1 / second - 1))),
    }
    for way, scores in expected.items():
        np.testing.assert_allclose(Ensemble.fit(pool, way, "x").predictions["score"], scores, err_msg=way)


def test_new_images_are_ranked_among_the_validation_images_of_the_same_run(tmp_path):
    pool = model_pool.gather(fold_runs(tmp_path, "a"))
    values = combine.values_of(pool, pool.scores, "rank")
    for fold, run in enumerate(pool.runs):
        rows = pool.of("validation") & (pool.rows["fold"] == fold).to_numpy()
        ranks = pool.scores.loc[rows, run.id].rank() - 0.5
        np.testing.assert_allclose(values.iloc[rows, 0], ranks / rows.sum())
    new = pd.DataFrame({run.id: [0.0, 1.0, np.nan] for run in pool.runs})
    scores = Ensemble.fit(pool, "rank", "x").scores(new)
    assert scores[:2].tolist() == [0, 1]
    assert np.isnan(scores[2])


def test_greedy_selection_beats_the_best_single_member_in_sample_and_drops_a_useless_one(tmp_path):
    pool = model_pool.gather(single_runs(tmp_path, [2, 2, -3]))
    chosen = Ensemble.fit(pool, "greedy", "x")
    assert chosen.pool.names == pool.names[:2]
    assert chosen.weights.sum() == pytest.approx(1)
    breasts = by_breast(chosen.predictions)
    figures = ensemble_gain.member_figures(pool, 20)["AUC"]
    best = max(interval.estimate for interval in figures)
    assert reference.roc_auc_score(breasts["cancer"], breasts["score"]) > best


def test_weights_are_evaluated_on_other_women_than_they_were_chosen_on(tmp_path):
    pool = model_pool.gather(single_runs(tmp_path, [0.0] * 12))
    assert pool.evaluated_split == "validation"
    in_sample = by_breast(Ensemble.fit(pool, "greedy", "x").predictions)
    honest = ensemble_gain.evaluated(pool, "greedy", combine.greedy)
    claimed, found = (reference.roc_auc_score(df["cancer"], df["score"]) for df in (in_sample, honest))
    assert claimed > found + 0.05


def test_weights_do_not_depend_on_the_test_women(tmp_path):
    runs = [*fold_runs(tmp_path, "a"), *fold_runs(tmp_path, "b", 10, dropout=0.5)]
    before = Ensemble.fit(model_pool.gather(runs), "greedy", "x").weights
    for run in runs[:3]:
        df = run.predictions
        df.loc[df["split"] == "test", "score"] = df["cancer"]
        df.to_csv(run.path / "predictions.csv", index=False)
    np.testing.assert_array_equal(Ensemble.fit(model_pool.gather(runs), "greedy", "x").weights, before)


def test_members_that_cannot_be_compared_are_refused_instead_of_the_first_being_taken():
    breasts = pd.DataFrame({"cancer": [1, 1, 0, 0], "fold": [0, 0, 1, 1], "a": [0.1, 0.2, 0.3, 0.4], "b": 0.5})
    for choose in (combine.greedy, combine.best_single):
        with pytest.raises(MetricsError, match="no fold has breasts with and without cancer"):
            choose(breasts, ["a", "b"])
    one_more = pd.concat([breasts, pd.DataFrame({"cancer": [1, 0], "fold": 2, "a": [0.1, 0.2], "b": [0.2, 0.1]})])
    assert combine.best_single(one_more, ["a", "b"]).tolist() == [0, 1]


@pytest.mark.slow
def test_pf1_is_of_scores_whose_class_weights_are_corrected_for_and_ranks_stay_raw(tmp_path):
    pool = model_pool.gather(single_runs(tmp_path / "a", [1, 2]))
    assert ensemble_gain.pf1_pool(pool).class_weights.keys() == {run.id for run in pool.runs}
    figures = ensemble_gain.member_figures(pool, 20)
    for run in pool.runs:  # of 1,000 training images 100 had cancer: the weights multiplied the odds by 9
        odds = run.predictions["score"] / (1 - run.predictions["score"]) / 9
        own, raw = by_breast(run.predictions.assign(score=odds / (1 + odds))), by_breast(run.predictions)
        assert figures.loc[run.id, "pF1"].estimate == pytest.approx(pf1(own["cancer"], own["score"]))
        assert figures.loc[run.id, "AUC"].estimate == pytest.approx(auc(raw["cancer"], raw["score"]))
    raw = by_breast(Ensemble.fit(pool, "rank").predictions)
    corrected = by_breast(Ensemble.fit(pool, "mean").prior_corrected().predictions)
    found = ensemble_gain.gains(pool, 20)["ensemble"]
    assert found["rank", "pF1"].estimate == pytest.approx(pf1(raw["cancer"], raw["score"]))
    assert found["mean", "pF1"].estimate == pytest.approx(pf1(corrected["cancer"], corrected["score"]))
    soft = model_pool.gather(single_runs(tmp_path / "b", [1, 2], positive_label=0.9))
    assert ensemble_gain.pf1_pool(soft) is soft
    raw = by_breast(soft.runs[0].predictions)
    found = ensemble_gain.member_figures(soft, 20).loc[soft.runs[0].id, "pF1"]
    assert found.estimate == pytest.approx(pf1(raw["cancer"], raw["score"]))


def test_folds_of_one_recipe_on_other_data_are_no_member_together(tmp_path):
    runs = fold_runs(tmp_path, "a")
    for run in runs:
        run.write_json("config/environment.json", {"data_fingerprint": "same"})
    assert len(model_pool.gather(runs).members) == 1
    runs[0].write_json("config/environment.json", {"data_fingerprint": "other"})
    with pytest.raises(MetricsError):
        model_pool.gather(runs)


def test_gains_are_differences_to_the_best_single_member_in_every_way(tmp_path):
    pool = model_pool.gather([*fold_runs(tmp_path, "a"), *fold_runs(tmp_path, "b", 10, dropout=0.5)])
    found = ensemble_gain.gains(pool, 50)
    assert found.index.tolist() == [
        (way, figure) for way in combine.WAYS for figure in ("AUC", "average precision", "pF1")
    ]
    row = found.loc[("mean", "AUC")]
    assert row["difference"].estimate == pytest.approx(row["ensemble"].estimate - row["best single"].estimate)
    assert row["difference"].low < row["difference"].estimate < row["difference"].high
    with pytest.raises(UnavailableError, match="is the only member"):
        ensemble_gain.gains(model_pool.gather(pool.runs[:3]), 50)


def test_the_gain_of_the_folds_compares_their_mean_score_with_the_mean_of_their_metrics(tmp_path):
    pool = model_pool.gather(fold_runs(tmp_path, "a"))
    found = ensemble_gain.fold_gains(pool, 50)
    tables = [by_breast(run.predictions.query("split == 'test'")) for run in pool.runs]
    aucs = [reference.roc_auc_score(df["cancer"], df["score"]) for df in tables]
    together = reference.roc_auc_score(tables[0]["cancer"], sum(df["score"] for df in tables) / FOLDS)
    row = found.loc[(pool.names[0], "AUC")]
    assert row["mean of the folds"].estimate == pytest.approx(np.mean(aucs))
    assert row["their ensemble"].estimate == pytest.approx(together)
    assert row["difference"].estimate == pytest.approx(together - np.mean(aucs))
    assert row["difference"].low > 0  # these folds differ by noise alone, of which a mean has less


def test_without_test_women_the_gain_of_the_folds_is_refused(tmp_path):
    pool = model_pool.gather(fold_runs(tmp_path, "a", test=False))
    with pytest.raises(UnavailableError, match="with test_fraction"):
        ensemble_gain.fold_gains(pool, 20)
    with pytest.raises(UnavailableError, match="no member has several folds"):
        ensemble_gain.fold_gains(model_pool.gather(pool.runs[:1]), 20)


def test_correlations_are_of_breasts_with_cancer_above_the_diagonal_and_without_below(tmp_path):
    pool = model_pool.gather(single_runs(tmp_path, [1, 2]))
    tables = [by_breast(run.predictions) for run in pool.runs]
    table = ensemble_gain.correlations(pool)
    for value, cell in ((1, table.iloc[0, 1]), (0, table.iloc[1, 0])):
        expected = spearmanr(*(df.loc[df["cancer"] == value, "score"] for df in tables)).statistic
        assert cell == pytest.approx(expected)
    folds = model_pool.gather(fold_runs(tmp_path / "folds", "a"))
    assert ensemble_gain.correlations(folds).index.tolist() == [run.id for run in folds.runs]
    with pytest.raises(UnavailableError, match="the only one"):
        ensemble_gain.correlations(model_pool.gather(pool.runs[:1]))


def other_women(runs_dir: Path) -> list[Run]:
    fewer = write_run(runs_dir / "20261123-120000-fewer", predictions_of(WOMEN - 10, 20))
    return [*single_runs(runs_dir, [1]), fewer]


def other_folds(runs_dir: Path) -> list[Run]:
    runs = fold_runs(runs_dir, "b", dropout=0.5)
    tables = [run.predictions for run in runs]
    for one, fold in ((0, 1), (1, 0)):
        tables[fold].to_csv(runs[one].path / "predictions.csv", index=False)
    return [*fold_runs(runs_dir, "a"), *runs]


def one_woman_in_two_folds(runs_dir: Path) -> list[Run]:
    runs = fold_runs(runs_dir, "a")
    shutil.copy(runs[0].path / "predictions.csv", runs[1].path / "predictions.csv")
    return runs


def validation_for_one_is_test_for_another(runs_dir: Path) -> list[Run]:
    runs = single_runs(runs_dir, [1, 2])
    df = runs[1].predictions
    df.loc[df["patient_id"] == "101", "split"] = "test"
    df.to_csv(runs[1].path / "predictions.csv", index=False)
    return runs


def other_test_women(runs_dir: Path) -> list[Run]:
    runs = fold_runs(runs_dir, "a")
    df = runs[2].predictions
    df[df["patient_id"] != "102"].to_csv(runs[2].path / "predictions.csv", index=False)
    return runs


REFUSED = {
    "other validation women": (
        other_women,
        "10 of the 60 women that run 20261123-110000-single is evaluated on are not",
    ),
    "other folds": (other_folds, "assigned the validation women to different folds"),
    "a woman in two folds": (one_woman_in_two_folds, "are in the validation of two folds, first patient_id"),
    "another split": (validation_for_one_is_test_for_another, "images are scored by only one of the two runs: run"),
    "other test women": (other_test_women, "images are scored by only one of the two runs: run"),
    "a fold twice": (lambda runs_dir: [*(runs := fold_runs(runs_dir, "a")), runs[0]], "are the same fold of the same"),
    "a run twice": (lambda runs_dir: single_runs(runs_dir, [1]) * 2, "is named twice"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_runs_on_different_splits_are_refused_and_named(tmp_path, make, message):
    runs = make(tmp_path)
    with pytest.raises(MetricsError, match=message):
        model_pool.gather(runs)


def test_without_names_the_newest_run_of_each_recipe_and_fold_on_the_newest_split_is_found(tmp_path):
    own = {"data_dir": str(tmp_path / "rsna")}
    single_runs(tmp_path, [1], **own)
    shutil.rmtree(fold_runs(tmp_path, "a", dropout=0.4, **own)[2].path)
    first, again = fold_runs(tmp_path, "b", **own), fold_runs(tmp_path, "c", **own)
    rows, settings = predictions_of(), {"n_folds": FOLDS, "test_fraction": 0.3} | own
    newest = write_run(tmp_path / "20261124-000000-new", rows, fold=0, **settings)
    write_run(tmp_path / "20261123-000000-seed", rows, fold=0, split_seed=1, **settings)
    found = [run.id for run in model_pool.find_runs("", tmp_path)]
    assert found == [newest.id, *(run.id for run in again[1:])]  # of "a" a fold is missing
    for names in (f"{first[0].id}, {newest.id}", [first[0].id, newest.id]):
        assert [run.id for run in model_pool.find_runs(names, tmp_path)] == [first[0].id, newest.id]
    with pytest.raises(RunError, match="there is no run nothing"):
        model_pool.find_runs("nothing", tmp_path)


def test_runs_without_a_machine_and_runs_of_another_version_are_skipped(tmp_path, caplog):
    folds = fold_runs(tmp_path, "a", data_dir=str(tmp_path / "rsna"))
    write_run(tmp_path / "20261125-000000-left-out", predictions_of(), leave_out="machine_id=49")
    newer = write_run(tmp_path / "20261126-000000-newer", predictions_of())
    (newer.path / "config" / "config.json").write_text('{"of_a_later_version": 1}')
    assert [run.id for run in model_pool.find_runs("", tmp_path)] == [run.id for run in folds]
    assert "20261126-000000-newer" in caplog.text


@pytest.mark.parametrize("way", combine.WAYS)
def test_an_ensemble_is_the_same_after_its_folder_was_moved(tmp_path, way):
    runs = [*fold_runs(tmp_path / "runs", "a"), *fold_runs(tmp_path / "runs", "b", 10, dropout=0.5)]
    made = Ensemble.fit(model_pool.gather(runs), way, "both")
    folder = files.write(made, tmp_path / "runs", {"gain": ensemble_gain.member_figures(made.pool, 20)})
    assert folder == (tmp_path / "runs" / "ensembles" / "both").resolve()
    assert [run.id for run in list_runs(tmp_path / "runs")] == sorted(run.id for run in runs)
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    for name in ("both", tmp_path / "elsewhere" / "ensembles" / "both" / "ensemble.json"):
        again = files.load(str(name), tmp_path / "elsewhere")
        assert (again.name, again.way) == ("both", way)
        pd.testing.assert_frame_equal(again.predictions, made.predictions)
    written = pd.read_csv(tmp_path / "elsewhere" / "ensembles" / "both" / "predictions.csv")
    np.testing.assert_allclose(written["score"], made.predictions["score"])


def test_an_ensemble_is_not_overwritten_by_another_of_its_name(tmp_path):
    runs = single_runs(tmp_path, [1, 2, 1.5])
    first, other = (Ensemble.fit(model_pool.gather(some), "mean", "both") for some in (runs[:2], runs[1:]))
    folder = files.write(first, tmp_path, {})
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for another in (other, Ensemble.fit(first.pool, "logit", "both")):
        with pytest.raises(ConfigError, match=r"name: .*both holds another ensemble.*Give another name"):
            files.write(another, tmp_path, {})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    files.write(first, tmp_path, {"found": 1})  # the same ensemble, with more results
    with pytest.raises(ConfigError, match="other runs, weights, scores or results"):
        files.write(first, tmp_path, {"found": 2})
    assert Ensemble.fit(other.pool, "mean").name != Ensemble.fit(model_pool.gather([runs[0], runs[2]]), "mean").name


def test_a_run_is_an_ensemble_of_itself(tmp_path):
    (run,) = single_runs(tmp_path, [1])
    for name in ("", run.id, str(run.path)):
        alone = files.load(name, tmp_path)
        np.testing.assert_allclose(alone.predictions["score"], run.predictions["score"])


def test_a_damaged_or_impossible_ensemble_is_refused_and_named(tmp_path):
    pool = model_pool.gather(single_runs(tmp_path, [1, 2]))
    folder = files.write(Ensemble.fit(pool, "mean", "both"), tmp_path, {})
    for wrong, message in (("{", "ensemble.json is not an ensemble"), ('{"name": "both"}', "KeyError")):
        (folder / "ensemble.json").write_text(wrong)
        with pytest.raises(RunError, match=message):
            files.load("both", tmp_path)
    with pytest.raises(ConfigError, match="way must be one of mean, rank, logit, greedy, not 'median'"):
        Ensemble.fit(pool, "median", "x")
    with pytest.raises(ConfigError, match="name must be"):
        Ensemble.fit(pool, "mean", "../x")


def test_runs_of_another_folder_are_kept_by_their_paths(tmp_path):
    runs = single_runs(tmp_path / "there", [1, 2])
    folder = files.write(Ensemble.fit(model_pool.gather(runs), "mean", "both"), tmp_path / "here", {})
    written = json.loads((folder / "ensemble.json").read_text())
    assert [member["runs"] for member in written["members"]] == [[str(run.path)] for run in runs]
    assert files.load("both", tmp_path / "here").pool.names == [run.id for run in runs]
