"""Maps of a run whose network scores breasts."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from rsna_nb import evaluation, explain, inference, plots
from rsna_nb.explain import explanation, pointing
from rsna_nb.explain.breasts import BREAST, explain_breasts
from rsna_nb.notebook import UnavailableError
from tests.notebooks import NOTEBOOKS, run_cells


@pytest.fixture(scope="module")
def model(breast_run):
    return inference.load_model(breast_run)


@pytest.fixture(scope="module")
def targets(breast_run) -> pd.DataFrame:
    return pointing.targets(evaluation.evaluate(breast_run))


@pytest.fixture(scope="module")
def shown(breast_run, model, targets) -> dict[str, explain.ExplainedImages]:
    rows = targets.drop_duplicates(BREAST).head(2)
    return {"hits": explanation.explain_images(model, breast_run, rows, "class_activation", False)}


def test_a_breast_is_explained_by_all_its_images_and_those_of_the_other_in_the_order_of_hanging(
    breast_run, shown, targets
):
    known = breast_run.predictions
    for breast, (_, target) in zip(shown["hits"].breasts, shown["hits"].rows.iterrows(), strict=True):
        of_woman = known[known["patient_id"] == target["patient_id"]]
        assert set(breast.rows["image_id"]) == set(of_woman["image_id"])
        own = of_woman[of_woman["laterality"] == target["laterality"]]
        assert set(breast.rows["image_id"][~breast.opposite]) == set(own["image_id"])
        assert breast.opposite.any()
        assert list(breast.views) == sorted(breast.views)
        assert breast.maps.max() == 1


def test_the_map_of_an_image_is_the_one_of_its_breast(shown):
    one = shown["hits"]
    for number, breast in enumerate(one.breasts):
        place = breast.place(one.rows.iloc[number])
        np.testing.assert_array_equal(one.maps[number], breast.maps[place])
        np.testing.assert_array_equal(one.images[number], breast.images[place])
        np.testing.assert_array_equal(one.boxes[number], breast.boxes[place])
        assert len(one.boxes[number]) > 0


@pytest.mark.slow
def test_the_curves_follow_the_score_of_the_breast_while_one_image_changes(breast_run, model, shown):
    curves = explain.perturbation_curves(model, shown, "hits")
    scores = shown["hits"].rows["score"].to_numpy()
    np.testing.assert_allclose(curves.deletion[:, 0], scores, atol=1e-5)
    np.testing.assert_allclose(curves.insertion[:, -1], scores, atol=1e-5)
    assert (np.ptp(curves.deletion, axis=1) > 0).all()
    assert not np.allclose(inference.score(model, shown["hits"].images), scores, atol=1e-5)


def test_the_pointing_game_uses_the_maps_within_the_breast(breast_run, model, targets, shown):
    found = explain.pointing_game(model, breast_run, targets, "class_activation", False)
    assert len(found) == len(targets)
    rows = shown["hits"].rows
    again = pointing.count_hits(rows, shown["hits"].images, shown["hits"].maps)
    np.testing.assert_array_equal(found.loc[rows.index, "map"], again["map"])


def test_results_and_the_files_pixels_are_of_the_shown_images(breast_run, shown):
    evaluated = evaluation.evaluate(breast_run)
    settings = {"method": "grad_cam", "flips": False}
    assert len(explain.write_results(evaluated, settings, {"pointing": 0.5}, shown)) == 2
    in_file = explain.map_in_file(breast_run, shown)
    assert in_file.name == "/".join(shown["hits"].rows[["patient_id", "image_id"]].iloc[0])
    assert "AUC by breast" in explain.describe(evaluated, "grad_cam", False).text


def test_the_figures_name_views_attention_and_the_other_breast(shown):
    breast = explain.first_breast(shown)
    figure = plots.breast_overlay(breast)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    for number, row in breast.rows.iterrows():
        words = f"{row['laterality']} {row['view']} · att. {row['attention']:.2f}"
        assert titles[number] == "other breast: " * bool(breast.opposite[number]) + words
    assert "att. " in plots.overlays(shown, "hits").get_label()
    with pytest.raises(UnavailableError, match="the run scored single images"):
        explain.first_breast({"hits": explanation.ExplainedImages(*[shown["hits"].rows] * 4)})
    with pytest.raises(UnavailableError, match="there are no images"):
        explain.first_breast({})


def test_a_breast_named_twice_is_explained_once(breast_run, model, targets):
    rows = pd.concat([targets.head(1)] * 2)
    assert len(list(explain_breasts(model, breast_run, rows, "grad_cam", False))) == 1


@pytest.mark.slow
def test_the_notebook_shows_the_images_of_a_breast_and_writes_its_results(breast_run):
    folders = {"run": str(breast_run.path), "runs_dir": str(breast_run.path.parent)}
    shown = run_cells(NOTEBOOKS / "08_explain.ipynb", **folders, pictures=1, draws=50, flips=False)
    figures = [each.get_label() for each in shown if isinstance(each, Figure)]
    assert any(label.startswith("The images of a breast with score") for label in figures)
    (path,) = (breast_run.path / "explain").glob("class_activation*/explanation.json")
    written = json.loads(path.read_text())
    assert written["pointing_images"] > 0
    assert written["perturbation"]


@pytest.mark.slow
def test_the_evaluation_of_the_run_has_one_row_of_metrics(breast_run):
    folders = {"run": str(breast_run.path), "runs_dir": str(breast_run.path.parent)}
    run_cells(NOTEBOOKS / "04_evaluate.ipynb", **folders, draws=50, pictures=1)
    (path,) = breast_run.path.glob("evaluation*.json")
    assert [row["unit"] for row in json.loads(path.read_text())["metrics"]] == ["breast"]
