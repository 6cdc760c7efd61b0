"""The figures of 00 to 03, by what is drawn and written on them."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from rsna_nb import plots
from rsna_nb.dicom import preprocessing_steps as steps
from rsna_nb.evaluation import imbalance
from tests.conftest import table_of, write_dicom


def words(figure: Figure) -> list[str]:
    """All that is written on a figure: titles, axes, ticks, and texts."""
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    for axis in figure.axes:
        texts += [axis.get_xlabel(), axis.get_ylabel(), axis.get_title(), axis.get_title(loc="left")]
        texts += [label.get_text() for label in (*axis.get_xticklabels(), *axis.get_yticklabels())]
    return [text for text in texts if text]


def shares(total: int, positives: list[int]) -> pd.DataFrame:
    counts = pd.DataFrame({"total": total, "positives": positives}, index=[f"group {i}" for i in range(len(positives))])
    return imbalance.with_shares(counts)


def test_the_forest_has_a_dot_and_its_counts_for_each_group_and_hollow_ones_for_small_groups():
    both = pd.concat([shares(1000, [20, 30]), shares(40, [2])])
    figure = plots.prevalence_forest(both, 0.025)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    filled, hollow = dots
    assert filled.get_xdata() == pytest.approx([0.02, 0.03])
    assert hollow.get_xdata() == pytest.approx([0.05])
    assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()
    assert {"20 of 1,000", "30 of 1,000", "2 of 40"} <= set(words(figure))
    assert "group 1 3.0% of 1,000" in figure.get_label()


def test_an_interval_that_goes_on_ends_in_an_arrow():
    both = pd.concat([shares(10_000, [200]), shares(10, [9])])
    figure = plots.prevalence_forest(both)
    arrows = [line for line in figure.axes[0].lines if line.get_marker() == ">"]
    assert [len(arrow.get_xdata()) for arrow in arrows] == [1]
    assert arrows[0].get_xdata()[0] == figure.axes[0].get_xlim()[1] < 0.9


def test_intervals_are_drawn_whole_where_every_group_is_small():
    both = shares(20, [4, 5])
    axis = plots.prevalence_forest(both).axes[0]
    assert axis.get_xlim()[1] > both["high"].max()


def test_shortcuts_have_the_colour_of_their_kind_and_unavailable_ones_are_not_drawn():
    rows = [
        ("before", "age", "", 0.6),
        ("train.csv", "biopsy", "", 1.0),
        ("before", "view", "empty in this table", np.nan),
    ]
    df = pd.DataFrame(rows, columns=["kind", "column", "unavailable", "auc"]).assign(low=0.55, high=1.0)
    figure = plots.shortcut_aucs(df)
    dots = {line.get_label(): line for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert dots["known before the diagnosis"].get_xdata().tolist() == [0.6]
    assert dots["in train.csv only"].get_xdata().tolist() == [1.0]
    assert not [text for text in words(figure) if "view" in text]
    nothing = plots.shortcut_aucs(df.assign(auc=np.nan, unavailable="too few women"))
    assert "not available: too few women" in words(nothing)


def test_axes_have_the_terms_of_the_field():
    trap = plots.accuracy_trap(0.02)
    assert {"Specificity (%)", "Accuracy by breast (%)"} <= set(words(trap))
    marks = [line for line in trap.axes[0].lines if line.get_marker() in "so"]
    assert all(50 < value < 100.1 for mark in marks for value in (*mark.get_xdata(), *mark.get_ydata()))
    batches = plots.batch_positives(imbalance.batches(1000, 20, [16, 32]))
    assert {"Positive images in a batch", "Batches without a positive image (%)"} <= set(words(batches))
    assert [bar.get_height() for bar in batches.axes[1].patches] == pytest.approx([72.2, 51.9], abs=0.3)
    corrected = plots.prior_correction_curve({0: 0.51, 1: 25.0})
    assert "0.5 → 2 %" in words(corrected)
    overview = plots.table_overview(table_of(6, 2).assign(age=np.nan))
    assert {"Women by age", "Age (years)", "Women"} <= set(words(overview))
    assert "6 women of unknown age" in overview.get_label()


def test_counts_of_a_split_are_on_its_bar():
    table = table_of(10, 5).assign(split=["validation"] * 16 + ["train"] * 24)
    figure = plots.class_counts(table)
    widths = {bar.get_y(): [] for bar in figure.axes[0].patches}
    for bar in figure.axes[0].patches:
        widths[bar.get_y()].append(bar.get_width())
    assert list(widths.values()) == [[16, 0], [4, 20]]
    assert (
        figure.get_label()
        == "Images of each split: train 24 images, 4 with cancer; validation 16 images, 16 with cancer."
    )


def test_training_curves_are_the_history_and_the_kept_epoch_is_marked():
    names = ["loss", "auc", "precision", "recall", "f1"]
    columns = [*names, *(f"val_{name}" for name in names)]
    history = pd.DataFrame(np.arange(30).reshape(3, 10) / 30, columns=columns).assign(
        epoch=[1, 2, 3], learning_rate=1e-3
    )
    figure = plots.training_curves(history, 2)
    for axis, name in zip(figure.axes, names, strict=False):
        training, validation, kept = axis.lines
        np.testing.assert_array_equal(training.get_ydata(), history[name])
        np.testing.assert_array_equal(validation.get_ydata(), history[f"val_{name}"])
        assert set(kept.get_xdata()) == {2}
    assert f"AUC {history['val_auc'][1]:.3f}" in figure.get_label()


def test_a_grid_has_each_picture_in_its_place_and_words_where_there_is_none():
    cells = [("CC", "49", np.zeros((8, 8))), ("MLO", "48", np.ones((8, 8))), ("MLO", "49", "the file is empty")]
    figure = plots.picture_grid(pd.DataFrame(cells, columns=["view", "machine_id", "picture"]), "view", "machine_id")
    drawn = [[image.get_array().max() for image in axis.images] for axis in figure.axes]
    assert drawn == [[], [0.0], [1.0], []]
    assert [text.get_text() for text in figure.axes[3].texts] == ["the file is empty"]
    assert {"machine 48", "machine 49", "view CC", "view MLO"} <= set(words(figure))


def test_the_steps_of_reading_each_have_a_histogram_of_all_their_pixels(tmp_path, breast):
    way = steps.reading_steps(str(write_dicom(tmp_path / "x.dcm", breast)), 64)
    figure = plots.steps_with_histograms(way)
    for axis, step in zip(figure.axes[len(way) :], way, strict=True):
        assert sum(bar.get_height() for bar in axis.patches) == step.picture.size
        assert axis.get_xlabel() == step.unit


def test_a_batch_of_breasts_is_hung_by_breast_with_cc_and_mlo_first_and_no_empty_places():
    images = np.arange(8, dtype=float).reshape(2, 4, 1, 1, 1) / 8 * np.ones((1, 1, 8, 8, 1))
    views = np.array([[2, 1, 0, 5], [3, 0, 1, 0]])
    figure = plots.sample_batch(images, np.array([0, 1]), views)
    drawn = [(axis.images[0].get_array()[0, 0] * 8, axis.get_title()) for axis in figure.axes if axis.images]
    assert drawn == [
        (6, "cancer · CC"),
        (4, "cancer · other view"),
        (1, "no cancer · CC"),
        (0, "no cancer · MLO"),
        (3, "other breast · MLO"),
    ]
    assert "cancer (CC, other view); no cancer (CC, MLO, other breast · MLO)" in figure.get_label()
