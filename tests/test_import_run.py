"""A published detector becomes runs with the same scores; its origin and training data are known to every step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from rsna_nb import dicom, ensemble, evaluation, inference, training
from rsna_nb.backbones import WeightsError
from rsna_nb.config import ConfigError, RunConfig
from rsna_nb.dicom.source import open_frame
from rsna_nb.ensemble import ensemble_gain, submission
from rsna_nb.evaluation import summary
from rsna_nb.import_run import __main__ as command
from rsna_nb.import_run import import_detector, recipes, score_labelled
from rsna_nb.metadata import load_metadata
from rsna_nb.metrics import MetricsError
from rsna_nb.notebook import Unavailable, UnavailableError
from rsna_nb.runs import Run, RunError, list_runs
from tests import winner
from tests.conftest import REAL_DIR, needs_real_files
from tests.test_checkpoint import write_zip
from tests.test_first_place import constant_tensors, literal, literal_otsu

NAME, ROOT = "rsna-first-place", Path(__file__).parents[1]
SIZE = (64, 64)


def of_size(recipe: recipes.Recipe, size: tuple[int, int]) -> recipes.Recipe:
    return replace(recipe, settings=dict(recipe.settings) | {"img_size": list(size)})


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", autouse=True)
def small_recipe(module_patch) -> None:
    """The recipe with a network and images that take seconds."""
    winner.make_small(module_patch)
    full = recipes.RECIPES[NAME]
    module_patch.setitem(recipes.RECIPES, NAME, of_size(full, SIZE))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("published")
    return [winner.write_fold(folder / f"best_convnext_fold_{fold}.pth.tar", fold) for fold in range(2)]


@pytest.fixture(scope="module")
def imported(files, tmp_path_factory) -> list[Run]:
    """Two folds without predictions."""
    return import_detector(files, NAME, runs_dir=tmp_path_factory.mktemp("imported") / "runs")


@pytest.fixture
def runs(imported, tmp_path) -> list[Run]:
    """A copy of the two folds that a test may change."""
    shutil.copytree(imported[0].path.parent, tmp_path / "runs")
    return list_runs(tmp_path / "runs")


@pytest.fixture(scope="module")
def scored(imported, generated, stores, tmp_path_factory) -> list[Run]:
    """The two folds after they have scored the generated set."""
    runs_dir = shutil.copytree(imported[0].path.parent, tmp_path_factory.mktemp("scored") / "runs")
    return score_labelled(NAME, generated, runs_dir=runs_dir, store_dir=stores)


def test_data_sets_of_the_training_are_known_layouts():
    known = {json.loads(path.read_text())["name"] for path in (ROOT / "rsna_nb/metadata/layouts").glob("*.json")}
    assert recipes.RECIPES[NAME].trained_on.keys() <= known, "others would not be refused"


def test_a_run_for_each_file_and_an_ensemble_of_them(imported, files):
    runs_dir = imported[0].path.parent
    assert [run.config.run_name for run in imported] == [f"{NAME}-fold0", f"{NAME}-fold1"]
    assert [run.config.fold for run in imported] == [0, 1]
    assert not list(runs_dir.glob(".*")), "no temporary folder stays"
    model = ensemble.load(NAME, runs_dir)
    assert [run.id for run in model.pool.runs] == [run.id for run in imported]
    note = imported[1].imported
    assert note["file"] == files[1].name
    assert [file["name"] for file in note["files"]] == [file.name for file in files]
    assert note["threshold"] == 0.31
    assert {"origin", "authors", "licence", "address", "published", "measured_here", "rsna_nb"} <= note.keys()


@pytest.mark.slow
def test_the_network_of_a_run_is_that_of_the_file(imported):
    picture = np.random.default_rng(0).integers(0, 256, SIZE).astype(float)
    images = (picture / 255).astype(np.float32)[np.newaxis, ..., np.newaxis]
    for fold, run in enumerate(imported):
        (found,) = inference.score(inference.load_model(run), images)
        assert found == pytest.approx(winner.score(winner.random_tensors(fold), picture), abs=1e-5)


def test_a_file_that_does_not_fit_leaves_nothing_behind(files, tmp_path):
    cut = winner.random_tensors(5)
    del cut["stages.0.blocks.0.gamma"]
    cut_file = write_zip(tmp_path / "cut.pth", cut)
    with pytest.raises(WeightsError, match=r"cut\.pth.*stages\.0\.blocks\.0\.gamma"):
        import_detector([files[0], cut_file], NAME, runs_dir=tmp_path / "runs")
    assert not [*(tmp_path / "runs").iterdir()]


@pytest.mark.parametrize(("outputs", "reason"), [(0, "is missing"), (1000, r"has the shape \(1000, 24\)")])
def test_a_file_without_a_head_of_one_output_is_refused(tmp_path, outputs, reason):
    tensors = {name: each for name, each in winner.random_tensors(5).items() if not name.startswith("head.fc")}
    if outputs:
        tensors["head.fc.weight"] = np.zeros((outputs, winner.WIDTHS[-1]), np.float32)
    file = write_zip(tmp_path / "x.pth", tensors)
    with pytest.raises(
        WeightsError, match=rf"not a detector with one score: its last layer, head\.fc\.weight, {reason}"
    ):
        import_detector([file], NAME, runs_dir=tmp_path / "runs")


def test_the_same_files_are_not_imported_twice(runs, files, tmp_path):
    renamed = [Path(shutil.copy(file, tmp_path / f"{n}.pth")) for n, file in enumerate(files)]
    with pytest.raises(RunError, match=f"imported before, as {runs[0].id}, {runs[1].id}: remove these folders"):
        import_detector(renamed, NAME, runs_dir=tmp_path / "runs", name="other")
    with pytest.raises(ConfigError, match=r"the ensemble .* exists already: give another --name"):
        import_detector([files[0], winner.write_fold(tmp_path / "c.pth", 3)], NAME, runs_dir=tmp_path / "runs")
    with pytest.raises(WeightsError, match="two of the files are the same"):
        import_detector([files[0], files[0]], NAME, runs_dir=tmp_path / "new")


def test_a_missing_file_of_a_run_is_explained_by_its_import(imported):
    with pytest.raises(RunError, match=r"has no predictions\.csv, because it was imported .*import_run --score"):
        _ = imported[0].predictions
    with pytest.raises(RunError, match="imported and cannot be resumed"):
        training.train(RunConfig.resumed({"resume": imported[0].id, "runs_dir": str(imported[0].path.parent)}))
    with pytest.raises(RunError, match=r"no run in .* has predictions\.csv"):
        evaluation.find_run("", imported[0].path.parent)


@pytest.mark.slow
def test_an_imported_ensemble_submits_without_any_predictions(imported, generated, caplog):
    model = ensemble.load(NAME, imported[0].path.parent)
    with pytest.raises(submission.SubmissionError, match=r"data_dir is empty.*was imported"):
        submission.choose_data(model)
    images = submission.images_of(model, generated)
    scored = submission.score_images(submission.scale(model, "raw"), images)
    each = [inference.predict(run, images["path"])["score"] for run in imported]
    np.testing.assert_allclose(scored["score"], np.mean(each, axis=0), atol=1e-6)
    assert submission.threshold_of(model) == 0.31
    assert "0.31 was published with the detector and not chosen here; images are cropped by Otsu" in caplog.text
    assert submission.threshold_of(model, 0.4) == 0.4
    assert submission.score_of_unreadable(model) == pytest.approx(492 / 23826)
    assert "trained on real mammograms" in submission.describe_data(model, generated).text
    with pytest.raises(submission.SubmissionError, match=r'imported.*set scores to "raw"'):
        submission.scale(model, "probability")
    assert submission.with_flips(model) is model
    table = submission.validation_pf1(model, "raw", as_calls=False)
    assert all(isinstance(found, Unavailable) for found in table["validation pF1"])
    with pytest.raises(submission.SubmissionError, match="fold runs"):
        submission.images_of(model, generated, "validation")


def test_the_published_threshold_is_not_used_with_another_preprocessing(files, tmp_path):
    (run,) = import_detector(files[:1], NAME, reading="breast", runs_dir=tmp_path)
    assert (run.config.run_name, run.image_recipe.name) == (f"{NAME}-breast", "breast")
    assert run.imported["images"] == "preprocessed by this project and not as published"
    with pytest.raises(submission.SubmissionError, match="set the parameter threshold"):
        submission.threshold_of(ensemble.load(run.id, tmp_path))


@pytest.mark.slow
@needs_real_files
def test_breasts_of_real_mammograms_are_scored_as_by_a_literal_script_of_the_recipe(tmp_path, monkeypatch):
    shape = (256, 128)
    monkeypatch.setitem(recipes.RECIPES, NAME, of_size(recipes.RECIPES[NAME], shape))
    folds = [winner.write_fold(tmp_path / f"{fold}.pth.tar", 10 + fold) for fold in range(4)]
    import_detector(folds, NAME, runs_dir=tmp_path / "runs")
    images = load_metadata(REAL_DIR)
    images["prediction_id"] = images["patient_id"] + "_" + images["laterality"]
    model = ensemble.load(NAME, tmp_path / "runs")
    found = submission.score_breasts(submission.score_images(model, images), 0.5).set_index("prediction_id")["score"]
    networks = [winner.random_tensors(10 + fold) for fold in range(4)]
    expected: dict[str, list[float]] = {}
    for row in images.itertuples():
        pixels = open_frame(row.path).pyramid.level(0)
        inverted = pydicom.dcmread(row.path).PhotometricInterpretation == "MONOCHROME1"
        picture = literal(pixels, literal_otsu(pixels, inverted), Path(row.path), shape).astype(float)
        score = np.mean([winner.score(tensors, picture) for tensors in networks])
        expected.setdefault(row.prediction_id, []).append(score)
    assert found.nunique() == len(found)
    for name, scores in expected.items():
        assert found[name] == pytest.approx(np.mean(scores), abs=1e-3)


@pytest.mark.slow
def test_the_breast_detector_becomes_part_of_every_run_and_files_are_still_read_once(
    files, generated, tmp_path, monkeypatch
):
    roi = write_zip(tmp_path / "yolox.pth", {"start_epoch": 1, "model": constant_tensors((52, 104, 208, 390))})
    runs = import_detector(files, NAME, roi=roi, runs_dir=tmp_path / "runs")
    assert all(run.image_recipe.detector == run.path / "checkpoints" / "roi.npz" for run in runs)
    assert runs[0].imported["roi"]["name"] == "yolox.pth"
    assert runs[0].imported["images"] == "made as published"
    read = []
    pictures = inference.read_pictures
    monkeypatch.setattr(inference, "read_pictures", lambda *given: read.append(given) or pictures(*given))
    path = load_metadata(generated)["path"].iloc[0]
    both = inference.predict_by_runs(runs, path)
    assert len(read) == 1
    without = inference.predict_by_runs(import_detector(files, NAME, name="otsu", runs_dir=tmp_path / "other"), path)
    assert both.iloc[0, 1] != without.iloc[0, 1]
    with pytest.raises(ConfigError, match='roi has no effect with reading "breast"'):
        import_detector(files, NAME, "breast", roi, runs_dir=tmp_path / "third")
    with pytest.raises(dicom.DetectorError, match=rf"{files[0].name}: the tensors are not those of a YOLOX"):
        import_detector(files, NAME, roi=files[0], runs_dir=tmp_path / "third")
    assert not list((tmp_path / "third").iterdir())


@pytest.mark.slow
def test_labelled_images_become_the_test_women_of_every_fold(scored, generated):
    table = load_metadata(generated)
    for run in scored:
        df = run.predictions
        assert len(df) == len(table)
        assert set(df["split"]) == {"test"}
        direct = inference.predict(run, table["path"])
        np.testing.assert_allclose(df["score"], direct["score"], atol=1e-6)
        assert run.metrics["images"] == {"test": len(table)}
        assert run.metrics["test"]["breast"]["auc"] > 0
        made = json.loads(run.file("config/environment.json").read_text())
        assert made["generated"]
        assert run.config.data_dir == str(generated)


def test_an_evaluation_says_first_that_the_detector_was_imported(scored):
    evaluated = evaluation.evaluate(evaluation.find_run("", scored[0].path.parent))
    assert evaluated.split == "test"
    assert evaluated.scale.startswith("pF1 is computed from the raw scores: the run was imported")
    note = summary.checkpoint_note(evaluated).text
    assert "imported and not trained here" in note
    assert "Its images are cropped by Otsu's threshold and not by the published breast detector" in note
    assert "not measured here: pF1 of calls at 0.31" in note
    card = summary.model_card(evaluated).text
    assert "as published: `best_convnext_fold_1.pth.tar`" in card
    assert "MIT for the code" in card


def test_folds_that_have_only_test_women_are_combined_by_means(scored):
    pool = ensemble.gather(scored)
    assert pool.evaluated_split == "test"
    assert not isinstance(ensemble_gain.fold_gains(pool, 50), Unavailable)
    for way in ("rank", "greedy"):
        with pytest.raises(MetricsError, match="an imported detector has none"):
            ensemble.Ensemble.fit(pool, way, "x")
    mean = ensemble.load(NAME, scored[0].path.parent)
    written = pd.read_csv(scored[0].path.parent / "ensembles" / NAME / "predictions.csv")
    expected = np.mean([run.predictions["score"] for run in scored], axis=0)
    np.testing.assert_allclose(mean.predictions["score"], expected)
    np.testing.assert_allclose(written["score"], expected)


@pytest.mark.slow
def test_data_sets_of_the_detectors_training_are_refused_unless_they_have_other_women(runs, generated, tmp_path):
    shutil.copytree(generated, tmp_path / "real", ignore=shutil.ignore_patterns("generated.json", "prepared"))
    arguments = (NAME, tmp_path / "real", "", tmp_path / "runs", tmp_path / "stores")
    with pytest.raises(RunError, match=r"looks like RSNA.*three of its four folds.*--other-women"):
        score_labelled(*arguments)
    assert not (tmp_path / "stores").exists()
    found = score_labelled(*arguments, other_women=True)
    assert "stated that these are other women" in summary.imported_note(found[0])
    with pytest.raises(RunError, match=r"has scored .*real already: .* remove .*predictions\.csv first"):
        score_labelled(*arguments, other_women=True)


def test_runs_that_take_different_images_are_not_scored_together(runs, files, generated, tmp_path):
    (own,) = import_detector(files[:1], NAME, reading="breast", runs_dir=tmp_path / "runs")
    both = ensemble.Ensemble.fit(ensemble.gather([runs[0], own]), "mean", "both")
    ensemble.write(both, tmp_path / "runs", {})
    with pytest.raises(RunError, match="the runs of both take images of several sizes or readings"):
        score_labelled("both", generated, runs_dir=tmp_path / "runs")


def test_a_run_that_was_trained_here_is_not_scored_again(small_run, generated):
    with pytest.raises(RunError, match="was trained here"):
        score_labelled(small_run.path, generated)


@pytest.mark.slow
def test_the_command_imports_and_scores(files, generated, stores, tmp_path, capsys):
    common = ["--runs-dir", str(tmp_path / "runs"), "--store-dir", stores]
    command.main(["--recipe", NAME, str(files[0]), "--data-dir", str(generated), *common])
    (run,) = list_runs(tmp_path / "runs")
    assert run.is_finished
    assert run.config.fold == -1
    with pytest.raises(SystemExit, match="imported before"):
        command.main(["--recipe", NAME, str(files[0]), *common])
    with pytest.raises(SystemExit) as stopped:
        command.main([str(files[0])])
    assert stopped.value.code == 2
    assert "give --recipe and files" in capsys.readouterr().err


def test_an_evaluation_without_predictions_says_what_to_do(imported):
    with pytest.raises(UnavailableError, match="import_run --score"):
        evaluation.evaluate(imported[0])
