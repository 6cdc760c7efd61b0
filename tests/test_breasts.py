"""Networks that score breasts: their images by place and view, the layers that combine them, and their training."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from rsna_nb import ensemble, inference, metrics, runs
from rsna_nb.config import RunConfig
from rsna_nb.model import Breasts, attention_of, body_of, build_model, combination_of, head_of, score_breasts
from rsna_nb.model.breasts import NO_IMAGE, OPPOSITE
from rsna_nb.model.combination import Combination
from rsna_nb.training import sample_batch
from rsna_nb.training.sampling import Sampling, global_batch, places_of

HOW = ["mean", "max", "attention"]
SHAPE = (64, 32)


def images_of(counts: dict[str, int], views: tuple[str, ...] = ("CC", "MLO")) -> pd.DataFrame:
    """Images of breasts named like "aL", with these counts, in an order that mixes the breasts."""
    rows = [
        {"patient_id": name[0], "laterality": name[1], "view": views[place % len(views)], "cancer": int(name == "aL")}
        for place in range(8)
        for name, count in counts.items()
        if place < count
    ]
    return pd.DataFrame(rows)


ROWS = images_of({"aL": 2, "aR": 8, "bL": 1, "cR": 3})


def network(unit: str, combine: str, **settings: object):
    """A network with random weights in its combination too, which begins with zeros for the views."""
    settings = {"backbone": "small", "weights": "none", "freeze_backbone": False, "img_size": list(SHAPE)} | settings
    model = build_model(RunConfig(unit=unit, combine=combine, **settings))
    combination, random = model.get_layer("combination"), np.random.default_rng(0)
    combination.set_weights([random.normal(size=weight.shape) / 4 for weight in combination.get_weights()])
    return model


def test_every_image_is_in_a_place_of_its_own_breast_with_its_view():
    breasts = Breasts.of(ROWS, "breast")
    assert breasts.table.to_dict("list") == {
        "patient_id": ["a", "a", "b", "c"], "laterality": ["L", "R", "L", "R"], "cancer": [1, 0, 0, 0],
    }  # fmt: skip
    assert sorted(breasts.images[breasts.images != NO_IMAGE]) == list(range(len(ROWS)))
    for breast, (images, views) in enumerate(zip(breasts.images, breasts.views, strict=True)):
        own = ROWS.iloc[images[images != NO_IMAGE]]
        assert own[["patient_id", "laterality"]].drop_duplicates().to_numpy().tolist() == [
            breasts.table.loc[breast, ["patient_id", "laterality"]].tolist()
        ]
        assert views[images != NO_IMAGE].tolist() == own["view"].map({"CC": 1, "MLO": 2}).tolist()
        assert not views[images == NO_IMAGE].any()
    assert (breasts.of_image == Breasts.of(ROWS, "woman").of_image).all()
    assert breasts.table["patient_id"].to_numpy()[breasts.of_image].tolist() == ROWS["patient_id"].tolist()


def test_where_places_are_fewer_than_views_each_view_is_drawn_as_often():
    views = ["CC"] * 4 + ["MLO", "ML"]
    rows = pd.DataFrame({"patient_id": ["a"] * 6, "laterality": ["L"] * 6, "view": views})
    drawn = [Breasts.of(rows, "breast").drawn(0, epoch, 2)[1][0] for epoch in range(300)]
    shares = [np.mean([code in pair for pair in drawn]) for code in (1, 2, 3)]
    assert shares == pytest.approx([2 / 3] * 3, abs=0.1)  # standard error 0.03


def test_views_are_known_in_lower_case_too():
    rows = pd.DataFrame({"patient_id": ["a"] * 2, "laterality": ["L"] * 2, "view": ["cc", "mlo"]})
    assert Breasts.of(rows, "breast").views.tolist() == [[1, 2]]


def test_an_unknown_view_has_a_code_of_its_own():
    rows = ROWS.assign(view=[None, "ML", *ROWS["view"][2:]])
    assert Breasts.of(rows, "breast").views[:2, 0].tolist() == [3, 3]


def test_a_draw_depends_on_seed_and_epoch_and_never_leaves_its_breast():
    breasts = Breasts.of(ROWS, "breast")
    drawn = [breasts.drawn(seed, epoch, 2) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert (drawn[0][0] == drawn[1][0]).all()
    assert (drawn[0][0] != drawn[2][0]).any()
    assert (drawn[0][0] != drawn[3][0]).any()
    for images, views in drawn:
        assert (breasts.of_image[images] == np.arange(4)[:, None]).all()
        assert (views[2] > 0).tolist() in ([True, False], [False, True])  # a breast of one image
        assert (np.sort(views[[0, 1, 3]], axis=1) == [1, 2]).all()  # both views, although aR has four of each
        for row, codes in zip(images, views, strict=True):
            assert len(set(row[codes > 0])) == (codes > 0).sum()  # no image twice


def test_every_image_is_drawn_in_some_epoch():
    seen = [Breasts.of(ROWS, "breast").drawn(0, epoch, 2) for epoch in range(40)]
    assert {int(image) for images, views in seen for image in images[views > 0]} == set(range(len(ROWS)))


@pytest.mark.parametrize("places", [1, 3, 8])
def test_there_are_as_many_places_as_asked_for(places):
    images, views = Breasts.of(ROWS, "breast").drawn(0, 0, places)
    assert images.shape == views.shape == (4, places)
    assert (views > 0).sum(axis=1).tolist() == [min(count, places) for count in (2, 8, 1, 3)]


def test_beside_a_breast_lie_the_images_of_the_other_one_of_the_same_woman():
    breasts = Breasts.of(ROWS, "woman")
    for images, views in (breasts.all(), breasts.drawn(0, 0, 2)):
        half = views.shape[1] // 2
        assert not (views[:, :half] > OPPOSITE).any()
        for breast, other in enumerate([1, 0, None, None]):
            codes, own = views[breast, half:], images[breast, half:]
            if other is None:
                assert not codes.any()
                continue
            assert (codes[codes > 0] > OPPOSITE).all()
            assert set(breasts.of_image[own[codes > 0]]) == {other}
            assert (codes > 0).sum() == min((breasts.views[other] > 0).sum(), half)


@pytest.mark.parametrize("combine", HOW)
@pytest.mark.parametrize("unit", ["breast", "woman"])
def test_neither_the_order_of_images_nor_masked_places_change_a_score(unit, combine):
    """A breast of eight images and one of one are in the same batch."""
    model, random = network(unit, combine), np.random.default_rng(1)
    images = random.random((4, 10, *SHAPE, 1)).astype(np.float32)
    views = np.array(
        [[1, 2, 1, 2, 3, 1, 2, 2, 4, 5], [2] + 9 * [0], [1, 2, 0, 0, 4, 5, 5, 6, 0, 0], [3, 1, 4] + 7 * [0]], np.int32
    )
    if unit == "breast":
        views[views > OPPOSITE] = 0
    expected = model.predict_on_batch([images, views])
    assert len(np.unique(expected)) == 4
    for _ in range(3):
        order = random.permutation(10)
        shuffled = model.predict_on_batch([images[:, order], views[:, order]])
        np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-6)
    more = np.concatenate([images, 1e3 * random.random((4, 3, *SHAPE, 1))], axis=1).astype(np.float32)
    padded = model.predict_on_batch([more, np.pad(views, [(0, 0), (0, 3)])])
    np.testing.assert_allclose(padded, expected, rtol=0, atol=1e-6)
    alone = model.predict_on_batch([images[1:2, :1], views[1:2, :1]])
    np.testing.assert_allclose(alone, expected[1:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("combine", HOW)
@pytest.mark.parametrize("unit", ["breast", "woman"])
def test_the_combination_is_the_formula(unit, combine):
    """Gated attention as in equation 9 of Ilse et al. 2018, in NumPy, one breast at a time."""
    random = np.random.default_rng(2)
    features = random.normal(size=(3, 4, 5)).astype(np.float32)
    views = np.array([[1, 2, 4, 5], [2, 0, 3, 0], [1, 4, 0, 6]], np.int32)
    layer = Combination(combine, unit == "woman")
    layer(features, views)
    layer.set_weights([random.normal(size=weight.shape) for weight in layer.get_weights()])
    result = np.asarray(layer(features, views))
    vectors, *rest = layer.get_weights()

    def combined(shown: np.ndarray) -> np.ndarray:
        if combine != "attention":
            return getattr(shown, combine)(axis=0)
        tanh, gate = np.split(shown @ rest[0], 2, axis=1)
        logits = (np.tanh(tanh) / (1 + np.exp(-gate))) @ rest[1][:, 0]
        weights = np.exp(logits) / np.exp(logits).sum()
        return weights @ shown

    for row, codes, found in zip(features, views, result, strict=True):
        shown = {side: row[codes // 3.5 == side] + vectors[(codes[codes // 3.5 == side] - 1) % 3] for side in (0, 1)}
        own = [code for code in codes if 0 < code <= 3]
        vector = combined(row[np.isin(codes, own) & (codes > 0)] + vectors[np.array(own) - 1])
        if unit == "woman":
            difference = vector - combined(shown[1]) if len(shown[1]) else np.zeros(5)
            vector = np.concatenate([vector, difference])
        np.testing.assert_allclose(found, vector, atol=1e-5)


@pytest.mark.parametrize("combine", HOW)
def test_the_weights_of_the_images_of_a_breast_sum_to_1(combine):
    model, breasts = network("woman", combine), Breasts.of(ROWS, "woman")
    features = np.random.default_rng(0).random((len(ROWS), model.get_layer("backbone").output_shape[-1]), np.float32)
    attention = attention_of(head_of(model), features, breasts)
    assert ((attention >= 0) & (attention <= 1)).all()
    np.testing.assert_allclose(np.bincount(breasts.of_image, attention), 1, atol=1e-6)


@pytest.mark.parametrize("unit", ["breast", "woman"])
def test_breasts_are_scored_as_by_the_whole_network(unit):
    model, breasts = network(unit, "attention"), Breasts.of(ROWS, unit)
    pictures = np.random.default_rng(3).random((len(ROWS), *SHAPE, 1)).astype(np.float32)
    scores = score_breasts(head_of(model), body_of(model).predict_on_batch(pictures), breasts)
    images, views = breasts.all()
    np.testing.assert_allclose(scores, model.predict_on_batch([pictures[images], views])[:, 0], atol=1e-6)


def test_the_batch_is_counted_in_images():
    config = {unit: RunConfig(unit=unit, batch_size_per_gpu=8, images_per_breast=2) for unit in ("breast", "woman")}
    assert [places_of(each) for each in config.values()] == [2, 4]
    assert [global_batch(each, 2, 100) for each in config.values()] == [8, 4]
    assert global_batch(config["woman"].replace(batch_size_per_gpu=1), 2, 100) == 2  # at least a breast on each device


@pytest.mark.parametrize("augmentation", ["flips", "strong"])
def test_the_images_of_a_breast_are_flipped_and_augmented_independently(augmentation):
    config = RunConfig(unit="woman", augmentation=augmentation, batch_size_per_gpu=80)
    sampling = Sampling.of(config, np.arange(200) % 2, 20)
    _, variants = sampling.epoch(0)
    assert variants.shape == (10, 20, 4)
    equal = (variants[..., :1] == variants[..., 1:]).mean()
    assert 0.2 < equal < 0.3  # a quarter by chance
    if augmentation == "strong":
        draws = sampling.draws(0)
        assert draws.shape[:3] == (10, 20, 4)
        assert len(np.unique(draws)) > 0.99 * draws.size


def test_balanced_batches_count_breasts():
    config = RunConfig(unit="breast", imbalance="balanced_batches", positive_fraction=0.25, batch_size_per_gpu=16)
    sampling = Sampling.of(config, np.repeat([1, 0], [3, 37]), 8)
    examples, _ = sampling.epoch(0)
    assert (sampling.cancer[examples].sum(axis=1) == 2).all()


def test_the_head_of_a_network_for_images_starts_one_for_breasts(small_run, small_settings):
    plain = RunConfig(**small_settings, unit="image").replace(weights=str(small_run.path))
    kernel, bias = build_model(plain).get_layer("cancer").get_weights()
    for unit in ("breast", "woman"):
        started, own_bias = build_model(plain.replace(unit=unit)).get_layer("cancer").get_weights()
        np.testing.assert_array_equal(started[: len(kernel)], kernel)
        np.testing.assert_array_equal(own_bias, bias)
        assert not started[len(kernel) :].any()


@pytest.mark.slow
def test_a_network_for_breasts_starts_another_combination(run, caplog):
    before = combination_of(inference.load_model(run))
    config = run.config.replace(weights=str(run.path), combine="mean")
    with caplog.at_level(logging.INFO):
        started = combination_of(build_model(config))
    np.testing.assert_array_equal(started.view_vectors, before.view_vectors)
    assert np.abs(before.view_vectors).max() > 0
    assert "from there view_vectors; untrained none; left out attention, gate" in caplog.text


def test_images_of_no_known_breast_are_named():
    rows = pd.DataFrame({"patient_id": ["1", None], "laterality": ["L", "L"], "view": ["CC", "CC"]})
    with pytest.raises(ValueError, match="1 of 2 images lack patient_id"):
        Breasts.of(rows, "breast")


@pytest.fixture(scope="module", params=["single_breast_run", "breast_run"])
def run(request) -> runs.Run:
    return request.getfixturevalue(request.param)


def test_predictions_have_a_score_for_each_breast(run):
    images, breasts = run.predictions, pd.read_csv(run.file("predictions-breasts.csv"), dtype={"patient_id": str})
    key = ["patient_id", "laterality"]
    assert (images.groupby(key)["score"].nunique() == 1).all()
    np.testing.assert_allclose(images.groupby(key)["attention"].sum(), 1, atol=1e-6)
    merged = images.merge(breasts, on=[*key, "split"], suffixes=("", "_of_breast"))
    assert len(merged) == len(images)
    np.testing.assert_allclose(merged["score"], merged["score_of_breast"], rtol=1e-15)
    assert breasts.set_index(key)["images"].to_dict() == images.groupby(key).size().to_dict()


def test_the_metrics_are_by_breast(run):
    images = run.predictions.query("split == 'validation'")
    breasts = images.drop_duplicates(["patient_id", "laterality"])
    assert set(run.metrics["validation"]) == {"breast"}
    assert run.metrics["validation"]["breast"]["auc"] == pytest.approx(metrics.auc(breasts["cancer"], breasts["score"]))
    best = run.history.set_index("epoch").loc[run.metrics["best_epoch"]]
    assert best["val_auc"] == pytest.approx(run.metrics["validation"]["breast"]["auc"], abs=1e-9)
    table = json.loads((run.path / "metrics.json").read_text())
    assert table["examples"] < table["images"]["train"]


def test_the_saved_network_gives_the_scores_of_predictions(run):
    """Each breast by itself, with its images in another order, from the store's files."""
    import keras

    from rsna_nb.inference import read_images
    from rsna_nb.training import prepare, split_table

    model, data = keras.models.load_model(run.checkpoint, compile=False), prepare(run.config, *split_table(run.config))
    rows = data.rows("test")
    breasts, known = Breasts.of(rows, run.config.unit), run.predictions.query("split == 'test'")
    pictures = read_images(rows["file"])
    for images, views, (_, breast) in zip(*breasts.all(), breasts.table.iterrows(), strict=True):
        order = np.flatnonzero(views)[::-1]
        score = model.predict_on_batch([pictures[images[order]][None], views[None, order]])
        own = known[(known["patient_id"] == breast["patient_id"]) & (known["laterality"] == breast["laterality"])]
        np.testing.assert_allclose(own["score"], score[0, 0], atol=1e-5)


def test_an_ensemble_of_networks_for_images_and_for_breasts_scores_breasts_by_the_mean_of_both(small_run, run):
    pool = ensemble.gather([run, small_run])
    combined = metrics.by_breast(ensemble.Ensemble.fit(pool, "mean").predictions)
    each = [metrics.by_breast(one.predictions)["score"] for one in (run, small_run)]
    np.testing.assert_allclose(combined["score"], np.mean(each, axis=0), atol=1e-12)
    assert not metrics.scores_breasts(pool.rows)
    loaded = {way: ensemble.Ensemble.fit(pool, way).predictions["score"] for way in ("rank", "logit", "greedy")}
    assert all(scores.between(0, 1).all() for scores in loaded.values())


def test_the_sample_batch_shows_breasts(small_run, small_settings):
    from rsna_nb.training import prepare, split_table

    config = RunConfig(**small_settings, unit="woman")
    rows = prepare(config, *split_table(config)).rows("train")
    images, labels, views = sample_batch(config, rows)
    assert images.shape == (2, 4, 64, 64, 1)
    assert views.shape == (2, 4)
    assert len(labels) == 2
    assert 0 < images.max() <= 1
