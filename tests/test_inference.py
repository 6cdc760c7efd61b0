"""DICOM files -> scores; and the check that no image is in two splits."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_nb import inference
from rsna_nb.config import RunConfig
from rsna_nb.dicom import Reading, read, read_mammogram
from rsna_nb.metadata.table import load_metadata
from rsna_nb.prepare import reading, to_8_bits
from rsna_nb.runs import Run, RunError
from rsna_nb.splits import SplitError
from rsna_nb.training import data
from rsna_nb.training import run as training
from tests.small import SMALL


@pytest.fixture(scope="module")
def run(small_run) -> Run:
    return small_run  # a shorter name


@pytest.fixture(scope="module")
def half(trained) -> Run:
    """A run trained in bfloat16, at another size."""
    return trained("half", mixed_precision="bfloat16", img_size=[96, 64], epochs=1)


def paths_of(run: Run, generated: Path) -> list[str]:
    """The files of predictions.csv, in its order."""
    return load_metadata(generated).set_index("image_id")["path"][run.predictions["image_id"]].tolist()


@pytest.mark.slow
def test_several_runs_score_as_each_alone_and_read_a_file_once_for_each_size(
    run, half, generated, monkeypatch, tmp_path
):
    same_size = Run(tmp_path / "same-size")
    shutil.copytree(run.path, same_size.path)
    sizes = []

    def counted(path: str, shape: tuple[int, int], recipe: object = None) -> Reading:
        sizes.append(shape)
        return read(path, shape)

    monkeypatch.setattr(reading, "read", counted)
    paths = paths_of(run, generated)[:7]
    scores = inference.predict_by_runs([run, same_size, half], paths, batch_size=3)
    assert sizes == [(64, 64)] * 7 + [(96, 64)] * 7
    assert list(scores) == ["path", run.id, same_size.id, half.id, "error", "notes"]
    for one in (run, same_size, half):
        alone = inference.predict(one, paths)
        assert list(alone) == ["path", "score", "error", "notes"]
        np.testing.assert_allclose(scores[one.id], alone["score"], atol=1e-5)
    assert scores[run.id].nunique() > 1
    with pytest.raises(RunError, match="a run is named twice"):
        inference.predict_by_runs([run, run], paths)


@pytest.mark.slow
def test_a_model_trained_in_bfloat16_scores_as_in_training(half, generated):
    scores = inference.predict(half, paths_of(half, generated))
    np.testing.assert_allclose(scores["score"], half.predictions["score"], atol=1e-5)


@pytest.mark.slow
def test_flips_are_the_mean_over_the_four_mirror_images(run, generated):
    path = paths_of(run, generated)[0]
    picture = to_8_bits(read_mammogram(path, (64, 64))).astype(np.float32)[np.newaxis, ..., np.newaxis] / 255
    model = inference.load_model(run)
    mirrors = [picture, picture[:, ::-1], picture[:, :, ::-1], picture[:, ::-1, ::-1]]
    expected = np.mean([model.predict(mirror, verbose=0) for mirror in mirrors])
    (found,) = inference.predict(run, [path], flips=True)["score"]
    assert found == pytest.approx(expected, abs=1e-6)
    assert found != pytest.approx(float(model.predict(picture, verbose=0)[0, 0]), abs=1e-6)


@pytest.mark.slow
def test_many_files_are_read_by_processes_with_the_same_scores_in_the_same_order(run, generated, tmp_path, monkeypatch):
    table = load_metadata(generated)
    bad = tmp_path / "bad.dcm"
    bad.write_text("no DICOM")
    paths = [*table["path"][:20], bad, *table["path"][20 : reading.MAX_HERE + 5]]
    in_parallel = inference.predict(run, paths)
    monkeypatch.setattr(reading, "MAX_HERE", len(paths))
    pd.testing.assert_frame_equal(in_parallel, inference.predict(run, paths), atol=1e-6)
    assert in_parallel["error"][20] == "not a DICOM, PNG, JPEG, TIFF or PGM file"
    assert in_parallel["score"].isna().sum() == 1


def test_an_empty_list_gives_an_empty_table(run):
    found = inference.predict(run, [])
    assert found.empty
    assert list(found) == ["path", "score", "error", "notes"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_single_path_is_one_file(run, generated, kind):
    path = paths_of(run, generated)[0]
    found = inference.predict(run, kind(path))
    assert found["path"].tolist() == [path]
    assert found["score"].notna().all()


def test_a_file_that_is_named_twice_has_two_rows(run, generated):
    one, other = paths_of(run, generated)[:2]
    found = inference.predict(run, iter([one, other, one]))
    assert found["path"].tolist() == [one, other, one]
    assert found["score"][0] == found["score"][2] != found["score"][1]


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_is_refused_by_name(run, generated, several):
    folder = str(generated / "train_images")
    with pytest.raises(ValueError, match=f"{folder} is a folder.*files in it"):
        inference.predict(run, [paths_of(run, generated)[0], folder] if several else folder)


def twice(generated: Path, folder: Path, other_split: bool) -> tuple[RunConfig, pd.DataFrame, list[str]]:
    """A copy of the data in which an image is there twice: with the same woman, or with a woman in validation."""
    shutil.copytree(generated, folder / "data")
    config = RunConfig(**SMALL | {"data_dir": str(folder / "data"), "store_dir": str(folder / "stores")})
    table, _ = data.split_table(config)
    first = table[table["split"] == "train"].iloc[0]
    others = table["split"] == "validation" if other_split else table["patient_id"] == first["patient_id"]
    other = table[others & (table["image_id"] != first["image_id"])].iloc[0]
    shutil.copy(first["path"], other["path"])
    return config, table, [f"{row['patient_id']}/{row['image_id']} ({row['split']})" for row in (first, other)]


@pytest.mark.slow
def test_an_image_in_two_splits_is_refused_with_both_its_names(generated, tmp_path):
    config, table, names = twice(generated, tmp_path, other_split=True)
    with pytest.raises(SplitError) as error:
        data.prepare(config, table, tmp_path / "data")
    assert all(name in str(error.value) for name in names)
    assert "1 such pairs" in str(error.value)


@pytest.mark.slow
def test_an_image_that_a_woman_has_twice_is_logged(generated, tmp_path, caplog):
    config, table, names = twice(generated, tmp_path, other_split=False)
    assert len(data.prepare(config, table, tmp_path / "data").table) == len(table)
    assert f"the same image: {names[0]} and {names[1]}" in caplog.text


def test_labels_of_a_breast_that_disagree_end_a_run_before_anything_is_prepared_or_are_all_positive(
    generated, tmp_path
):
    df = pd.read_csv(generated / "train.csv", dtype={"patient_id": str, "image_id": str})
    df.loc[df.index[df["cancer"] == 1][0], "cancer"] = 0
    df.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "train_images").symlink_to(generated / "train_images")
    folders = {"data_dir": str(tmp_path), "store_dir": str(tmp_path / "stores"), "runs_dir": str(tmp_path / "runs")}
    with pytest.raises(ValueError, match="disagree on cancer"):
        training.train(RunConfig(**SMALL | folders))
    assert not (tmp_path / "stores").exists()
    table, _ = data.split_table(RunConfig(**SMALL | folders, mixed_breasts="any_positive"))
    assert table["cancer"].sum() == df["cancer"].sum() + 1


def test_files_of_the_same_size_are_compared_by_their_content(tmp_path):
    contents = [b"a" * 40, b"b" * 20 + b"a" * 20, b"a" * 40, b"a" * 41]
    files = [tmp_path / str(number) for number in range(4)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    table = pd.DataFrame({"image_id": list("0123"), "file": map(str, files), "png_bytes": [40, 40, 40, 41]})
    ((one, other),) = data.same_pictures(table)
    assert (one["image_id"], other["image_id"]) == ("0", "2")


def test_a_damaged_model_is_named(run, tmp_path):
    copy = Run(Path(shutil.copytree(run.path, tmp_path / "copy")))
    copy.checkpoint.write_bytes(copy.checkpoint.read_bytes()[:9999])
    with pytest.raises(RunError, match=r"best\.keras cannot be loaded"):
        inference.load_model(copy)


def test_a_batch_size_of_0_is_refused(run, generated):
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        inference.predict(run, paths_of(run, generated)[:1], batch_size=0)


@pytest.mark.slow
def test_large_images_are_scored_in_small_batches(run, half, generated, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_PIXELS", 3 * 64 * 64)
    seen = []
    paths = paths_of(run, generated)[:4]
    expected = inference.predict_by_runs([run, half], paths, batch_size=4)
    found = inference.predict_by_runs(
        [run, half], paths, watch=lambda rows, images, models: seen.append((len(rows), images.shape[1:3], len(models)))
    )
    assert seen == [(3, (64, 64), 1), (1, (64, 64), 1), (2, (96, 64), 1), (2, (96, 64), 1)]
    pd.testing.assert_frame_equal(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def by_breast(single_breast_run, breast_run) -> dict[str, Run]:
    """A run of each unit other than the image."""
    return {"breast": single_breast_run, "woman": breast_run}


@pytest.mark.parametrize("unit", ["breast", "woman"])
@pytest.mark.slow
def test_files_get_the_score_of_their_breast_as_in_training(by_breast, run, unit, generated, caplog):
    one, table = by_breast[unit], load_metadata(generated).set_index("image_id")
    rows = table.loc[one.predictions["image_id"]].sample(frac=1, random_state=0)
    expected = one.predictions.set_index("image_id")["score"][rows.index]
    found = inference.predict(one, rows["path"], images=rows)
    np.testing.assert_allclose(found["score"], expected, atol=1e-5)
    # The generated files' headers give a wrong side for one in a hundred, so the names of some may differ.
    together = inference.predict_by_runs([run, one], rows["path"], images=rows)
    np.testing.assert_allclose(together[one.id], expected, atol=1e-5)
    np.testing.assert_allclose(together[run.id], inference.predict(run, rows["path"])["score"], atol=1e-5)
    assert not caplog.records


def test_without_a_table_the_headers_say_which_files_show_one_breast(by_breast, generated):
    one, table = by_breast["breast"], load_metadata(generated)
    rows = table[table["patient_id"] == table["patient_id"].iloc[0]]
    found = inference.predict(one, rows["path"])
    expected = inference.predict(one, rows["path"], images=rows)
    np.testing.assert_array_equal(found["score"], expected["score"])
    assert found["score"].nunique() == rows["laterality"].nunique()


def test_a_file_without_a_known_breast_is_scored_alone_and_noted(by_breast, generated, caplog):
    one, rows = by_breast["woman"], load_metadata(generated).iloc[:3]
    unknown = rows.assign(patient_id=["", None, rows["patient_id"].iloc[2]], laterality=["L", "L", None])
    found = inference.predict(one, rows["path"], images=unknown)
    assert found["notes"].str.contains(inference.ALONE, regex=False).all()
    assert "3 of 3 files" in caplog.text
    alone = [
        inference.predict(one, [path], images=rows.iloc[[place]])["score"][0] for place, path in enumerate(rows["path"])
    ]
    np.testing.assert_allclose(found["score"], alone, atol=1e-6)
    with pytest.raises(ValueError, match="images has 2 rows and must have one for each of the 3 paths"):
        inference.predict(one, rows["path"], images=rows[:2])


def test_a_breast_is_scored_by_its_readable_files_each_counted_once(by_breast, generated, tmp_path):
    one, table = by_breast["breast"], load_metadata(generated)
    rows = table[(table["patient_id"] == table["patient_id"].iloc[0]) & (table["laterality"] == "L")]
    (broken := tmp_path / "broken.dcm").write_bytes(b"no image")
    expected = inference.predict(one, rows["path"], images=rows)["score"].iloc[0]
    paths = [*rows["path"], str(broken), rows["path"].iloc[0]]
    found = inference.predict(one, paths, images=pd.concat([rows, rows[:1], rows[:1]]))
    assert found["score"].isna().tolist() == [False] * len(rows) + [True, False]
    np.testing.assert_allclose(found["score"].dropna(), expected, atol=1e-6)
    assert np.isnan(inference.predict(one, [broken], images=rows[:1])["score"][0])


def test_flips_turn_all_images_of_a_breast_alike(by_breast, generated):
    one, table = by_breast["breast"], load_metadata(generated)
    rows = table[(table["patient_id"] == table["patient_id"].iloc[0]) & (table["laterality"] == "L")]
    pictures = np.stack([to_8_bits(read_mammogram(path, (64, 64))) for path in rows["path"]])[None, ..., None] / 255
    views = rows["view"].map({"CC": 1, "MLO": 2}).to_numpy()[None]
    model = inference.load_model(one)
    mirrors = [np.flip(pictures, axes) for axes in ((), (2,), (3,), (2, 3))]
    expected = np.mean([model.predict([mirror.astype(np.float32), views], verbose=0) for mirror in mirrors])
    assert inference.predict(one, rows["path"], flips=True, images=rows)["score"].iloc[0] == pytest.approx(
        expected, abs=1e-6
    )
