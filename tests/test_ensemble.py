"""Members, ways of combining them and what they gain, on run folders made by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as reference

from rsna_nb.config import ConfigError
from rsna_nb.ensemble import combine as ensemble
from rsna_nb.ensemble import ensemble_gain as gain
from rsna_nb.ensemble import model_pool as members
from rsna_nb.ensemble.combine import Ensemble
from rsna_nb.metrics import MetricsError, by_breast
from rsna_nb.notebook import UnavailableError
from rsna_nb.runs import Run, RunError, list_runs
from tests.test_evaluation import predictions_of, write_run

WOMEN, FOLDS = 60, 3


def scored(rows: pd.DataFrame, seed: int, signal: float = 1.5) -> pd.DataFrame:
    """The rows with new scores: `signal` for cancer, and noise of this seed."""
    noise = np.random.default_rng(seed).normal(0, 1, len(rows))
    return rows.assign(score=1 / (1 + np.exp(-(signal * (rows["cancer"] - 0.5) + noise))))


def fold_runs(runs_dir: Path, recipe: str, first: int = 0, test: bool = True, **settings: object) -> list[Run]:
    """A run for each of three folds: every third woman is for test, where asked, the others dealt in turn."""
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
    library = members.gather(runs[::-1])
    assert library.names == [f"3 folds of {runs[0].id}"]
    assert not library.rows.duplicated(members.KEY).any()
    validation, test = library.of("validation"), library.of("test")
    assert (library.scores[validation].notna().sum(axis=1) == 1).all()
    assert library.scores[test].notna().all(axis=None)
    assert library.split == "test"
    own = Ensemble.fitted("one", library, "mean").predictions
    for run in runs:
        both = own.merge(run.predictions, on=members.KEY)
        of_fold = both[both["split_x"] == "validation"]
        assert (of_fold["fold"] == run.config.fold).all()
        np.testing.assert_allclose(of_fold["score_x"], of_fold["score_y"])
    means = sum(run.predictions.set_index("image_id").query("split == 'test'")["score"] for run in runs) / FOLDS
    np.testing.assert_allclose(own[test].set_index("image_id")["score"], means[own.loc[test, "image_id"]])


def test_runs_of_other_recipes_are_members_of_their_own(tmp_path):
    library = members.gather([*fold_runs(tmp_path, "a"), *fold_runs(tmp_path, "b", 10, dropout=0.5)])
    assert [len(member.runs) for member in library.members] == [3, 3]
    assert library.scores.shape == (len(library.rows), 6)


def test_each_way_is_the_mean_on_its_scale(tmp_path):
    library = members.gather(single_runs(tmp_path, [1, 2]))
    first, second = (library.scores[run.id].to_numpy() for run in library.runs)
    expected = {
        "mean": (first + second) / 2,
        "rank": (pd.Series(first).rank() - 0.5 + pd.Series(second).rank() - 0.5) / 2 / len(first),
        "logit": 1 / (1 + np.sqrt((1 / first - 1) * (1 / second - 1))),
    }
    for way, scores in expected.items():
        np.testing.assert_allclose(Ensemble.fitted("x", library, way).predictions["score"], scores, err_msg=way)


def test_ranks_are_within_the_validation_of_the_same_run_for_new_images_too(tmp_path):
    library = members.gather(fold_runs(tmp_path, "a"))
    values = ensemble.values_of(library, library.scores, "rank")
    for fold, run in enumerate(library.runs):
        rows = library.of("validation") & (library.rows["fold"] == fold).to_numpy()
        ranks = library.scores.loc[rows, run.id].rank() - 0.5
        np.testing.assert_allclose(values.iloc[rows, 0], ranks / rows.sum())
    new = pd.DataFrame({run.id: [0.0, 1.0, np.nan] for run in library.runs})
    scores = Ensemble.fitted("x", library, "rank").scores(new)
    assert scores[:2].tolist() == [0, 1]
    assert np.isnan(scores[2])


def test_greedy_selection_is_at_least_the_best_single_one_where_it_chose_and_leaves_the_useless_out(tmp_path):
    library = members.gather(single_runs(tmp_path, [2, 2, -3]))
    chosen = Ensemble.fitted("x", library, "greedy")
    assert chosen.library.names == library.names[:2]
    assert chosen.weights.sum() == pytest.approx(1)
    breasts = by_breast(chosen.predictions)
    figures = gain.member_figures(library, 20)["AUC"]
    best = max(interval.estimate for interval in figures)
    assert reference.roc_auc_score(breasts["cancer"], breasts["score"]) > best


def test_what_is_chosen_is_judged_on_other_women(tmp_path):
    library = members.gather(single_runs(tmp_path, [0.0] * 12))
    assert library.split == "validation"
    in_sample = by_breast(Ensemble.fitted("x", library, "greedy").predictions)
    honest = gain.judged(library, "greedy", ensemble.greedy)
    claimed, found = (reference.roc_auc_score(df["cancer"], df["score"]) for df in (in_sample, honest))
    assert claimed > found + 0.05


def test_weights_do_not_depend_on_the_test_women(tmp_path):
    runs = [*fold_runs(tmp_path, "a"), *fold_runs(tmp_path, "b", 10, dropout=0.5)]
    before = Ensemble.fitted("x", members.gather(runs), "greedy").weights
    for run in runs[:3]:
        df = run.predictions
        df.loc[df["split"] == "test", "score"] = df["cancer"]
        df.to_csv(run.path / "predictions.csv", index=False)
    np.testing.assert_array_equal(Ensemble.fitted("x", members.gather(runs), "greedy").weights, before)


def test_gains_are_differences_to_the_best_single_member_in_every_way(tmp_path):
    library = members.gather([*fold_runs(tmp_path, "a"), *fold_runs(tmp_path, "b", 10, dropout=0.5)])
    found = gain.gains(library, 50)
    assert found.index.tolist() == [
        (way, figure) for way in ensemble.WAYS for figure in ("AUC", "average precision", "pF1")
    ]
    row = found.loc[("mean", "AUC")]
    assert row["difference"].estimate == pytest.approx(row["ensemble"].estimate - row["best single"].estimate)
    assert row["difference"].low < row["difference"].estimate < row["difference"].high
    with pytest.raises(UnavailableError, match="is the only member"):
        gain.gains(members.gather(library.runs[:3]), 50)


def test_the_folds_gain_is_that_of_their_mean_score_over_their_mean_figure(tmp_path):
    library = members.gather(fold_runs(tmp_path, "a"))
    found = gain.fold_gains(library, 50)
    tables = [by_breast(run.predictions.query("split == 'test'")) for run in library.runs]
    aucs = [reference.roc_auc_score(df["cancer"], df["score"]) for df in tables]
    together = reference.roc_auc_score(tables[0]["cancer"], sum(df["score"] for df in tables) / FOLDS)
    row = found.loc[(library.names[0], "AUC")]
    assert row["mean of the folds"].estimate == pytest.approx(np.mean(aucs))
    assert row["their ensemble"].estimate == pytest.approx(together)
    assert row["difference"].estimate == pytest.approx(together - np.mean(aucs))
    assert row["difference"].low > 0  # these folds differ by noise alone, of which a mean has less
    assert f"**{row['difference'].estimate:+.4f}** (" in gain.in_words(found).text


def test_without_test_women_the_folds_gain_is_refused(tmp_path):
    library = members.gather(fold_runs(tmp_path, "a", test=False))
    with pytest.raises(UnavailableError, match="train them with test_fraction"):
        gain.fold_gains(library, 20)
    with pytest.raises(UnavailableError, match="no member has several folds"):
        gain.fold_gains(members.gather(library.runs[:1]), 20)


def test_correlations_are_of_breasts_with_cancer_above_and_without_below(tmp_path):
    library = members.gather(single_runs(tmp_path, [1, 2]))
    tables = [by_breast(run.predictions) for run in library.runs]
    table = gain.correlations(library)
    for value, cell in ((1, table.iloc[0, 1]), (0, table.iloc[1, 0])):
        expected = spearmanr(*(df.loc[df["cancer"] == value, "score"] for df in tables)).statistic
        assert cell == pytest.approx(expected)
    folds = members.gather(fold_runs(tmp_path / "folds", "a"))
    assert gain.correlations(folds).index.tolist() == [run.id for run in folds.runs]
    with pytest.raises(UnavailableError, match="the only one"):
        gain.correlations(members.gather(library.runs[:1]))


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


def test_for_one_is_validation_for_another(runs_dir: Path) -> list[Run]:
    runs = single_runs(runs_dir, [1, 2])
    df = runs[1].predictions
    df.loc[df["patient_id"] == "101", "split"] = "test"
    df.to_csv(runs[1].path / "predictions.csv", index=False)
    return runs


test_for_one_is_validation_for_another.__test__ = False  # type: ignore[attr-defined]


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
    "other folds": (other_folds, "dealt the validation women to other folds"),
    "a woman in two folds": (one_woman_in_two_folds, "are in the validation of two folds, first patient_id"),
    "another split": (test_for_one_is_validation_for_another, "images are scored by only one of the two runs: run"),
    "other test women": (other_test_women, "images are scored by only one of the two runs: run"),
    "a fold twice": (lambda runs_dir: [*(runs := fold_runs(runs_dir, "a")), runs[0]], "are the same fold of the same"),
    "a run twice": (lambda runs_dir: single_runs(runs_dir, [1]) * 2, "is named twice"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_runs_on_other_splits_are_refused_with_words_that_say_which(tmp_path, make, message):
    runs = make(tmp_path)
    with pytest.raises(MetricsError, match=message):
        members.gather(runs)


def test_all_runs_on_the_newest_ones_split_are_found_the_newest_of_each_recipe(tmp_path):
    own = {"data_dir": str(tmp_path / "rsna")}
    single_runs(tmp_path, [1], **own)
    shutil.rmtree(fold_runs(tmp_path, "a", dropout=0.4, **own)[2].path)
    first, again = fold_runs(tmp_path, "b", **own), fold_runs(tmp_path, "c", **own)
    rows, settings = predictions_of(), {"n_folds": FOLDS, "test_fraction": 0.3} | own
    newest = write_run(tmp_path / "20261124-000000-new", rows, fold=0, **settings)
    write_run(tmp_path / "20261123-000000-seed", rows, fold=0, split_seed=1, **settings)
    found = [run.id for run in members.find_runs("", tmp_path)]
    assert found == [newest.id, *(run.id for run in again[1:])]  # of "a" a fold is missing
    assert [run.id for run in members.find_runs(f"{first[0].id}, {newest.id}", tmp_path)] == [first[0].id, newest.id]
    with pytest.raises(RunError, match="there is no run nothing"):
        members.find_runs("nothing", tmp_path)


def test_runs_that_left_out_a_machine_and_those_of_another_version_are_passed_over(tmp_path, caplog):
    folds = fold_runs(tmp_path, "a", data_dir=str(tmp_path / "rsna"))
    write_run(tmp_path / "20261125-000000-left-out", predictions_of(), leave_out="machine_id=49")
    newer = write_run(tmp_path / "20261126-000000-newer", predictions_of())
    (newer.path / "config" / "config.json").write_text('{"of_a_later_version": 1}')
    assert [run.id for run in members.find_runs("", tmp_path)] == [run.id for run in folds]
    assert "run 20261126-000000-newer is passed over" in caplog.text


@pytest.mark.parametrize("way", ensemble.WAYS)
def test_an_ensemble_is_the_same_when_it_is_read_again_elsewhere(tmp_path, way):
    runs = [*fold_runs(tmp_path / "runs", "a"), *fold_runs(tmp_path / "runs", "b", 10, dropout=0.5)]
    made = Ensemble.fitted("both", members.gather(runs), way)
    folder = ensemble.write(made, tmp_path / "runs", {"gain": gain.member_figures(made.library, 20)})
    assert folder == (tmp_path / "runs" / "ensembles" / "both").resolve()
    assert [run.id for run in list_runs(tmp_path / "runs")] == sorted(run.id for run in runs)
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    for name in ("both", tmp_path / "elsewhere" / "ensembles" / "both" / "ensemble.json"):
        again = ensemble.load(str(name), tmp_path / "elsewhere")
        assert (again.name, again.way) == ("both", way)
        pd.testing.assert_frame_equal(again.predictions, made.predictions)
    written = pd.read_csv(tmp_path / "elsewhere" / "ensembles" / "both" / "predictions.csv")
    np.testing.assert_allclose(written["score"], made.predictions["score"])


def test_a_run_is_an_ensemble_of_itself(tmp_path):
    (run,) = single_runs(tmp_path, [1])
    for name in ("", run.id, str(run.path)):
        alone = ensemble.load(name, tmp_path)
        np.testing.assert_allclose(alone.predictions["score"], run.predictions["score"])


def test_a_damaged_or_impossible_ensemble_is_named(tmp_path):
    library = members.gather(single_runs(tmp_path, [1, 2]))
    folder = ensemble.write(Ensemble.fitted("both", library, "mean"), tmp_path, {})
    for wrong, message in (("{", "is no ensemble"), ('{"name": "both"}', "is no ensemble: KeyError")):
        (folder / "ensemble.json").write_text(wrong)
        with pytest.raises(RunError, match=message):
            ensemble.load("both", tmp_path)
    with pytest.raises(ConfigError, match="way must be one of mean, rank, logit, greedy, not 'median'"):
        Ensemble.fitted("x", library, "median")
    with pytest.raises(ConfigError, match="name must be"):
        Ensemble.fitted("../x", library, "mean")


def test_runs_of_another_folder_stand_in_the_file_by_their_paths(tmp_path):
    runs = single_runs(tmp_path / "there", [1, 2])
    folder = ensemble.write(Ensemble.fitted("both", members.gather(runs), "mean"), tmp_path / "here", {})
    written = json.loads((folder / "ensemble.json").read_text())
    assert [member["runs"] for member in written["members"]] == [[str(run.path)] for run in runs]
    assert ensemble.load("both", tmp_path / "here").library.names == [run.id for run in runs]
