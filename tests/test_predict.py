"""`predict` scores files and folders: a row for each file, with its patient id, side and view."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from rsna_nb import dicom, inference, predict
from rsna_nb.metadata import load_metadata
from tests.conftest import REAL_DIR, needs_real_files, write_dicom


@pytest.fixture
def files(generated, tmp_path) -> list[Path]:
    """The images of one woman of the generated set, in a folder as RSNA has it."""
    table = load_metadata(generated)
    own = table[table["patient_id"] == table["patient_id"].iloc[0]]
    (folder := tmp_path / "images" / own["patient_id"].iloc[0]).mkdir(parents=True)
    return [Path(shutil.copy(path, folder)) for path in own["path"]]


def run_command(*arguments: object) -> None:
    predict.main([str(argument) for argument in arguments])


def test_scores_equal_those_of_inference_and_are_averaged_over_the_breast(small_run, model, files, generated):
    found = predict.score_files(model, [str(file) for file in files])
    expected = inference.predict(small_run, files)
    np.testing.assert_allclose(found.images["score"], expected["score"], atol=1e-6)
    table = load_metadata(generated).set_index("image_id").loc[[file.stem for file in files]]
    for name in ("patient_id", "laterality", "view"):
        assert found.images[name].tolist() == table[name].tolist()
    for row in found.breasts.itertuples():
        own = (table["laterality"] == row.laterality).to_numpy()
        assert row.score == pytest.approx(expected["score"][own].mean())
        assert row.images == own.sum()
    (woman,) = found.women.itertuples()
    assert woman.score == pytest.approx(found.breasts["score"].max())
    assert (found.images["probability"] < found.images["score"]).all(), "class weights raise scores"


def test_a_text_file_among_images_is_a_row_and_documents_beside_them_are_not(
    small_run, files, tmp_path, capsys, monkeypatch
):
    (files[0].parent / "notes.txt").write_text("not an image")
    (files[0].parent / ".hidden").write_text("")
    (tmp_path / "images" / "README.md").write_text("about these images")
    (tmp_path / "images" / "train.csv").write_text("patient_id,image_id\n")
    monkeypatch.chdir(tmp_path)
    run_command(small_run.path, "images")
    table = pd.read_csv("scores.csv", dtype={"patient_id": str})
    assert list(table) == ["path", "patient_id", "laterality", "view", "score", "probability", "error", "notes"]
    assert len(table) == len(files) + 1
    (bad,) = table[table["score"].isna()].itertuples()
    assert Path(bad.path).name == "notes.txt"
    assert bad.error == "not a DICOM, PNG, JPEG, TIFF or PGM file"
    shown = capsys.readouterr().out
    assert "left out: 2 tables and documents, such as README.md" in shown
    assert "was trained on generated mammograms: its scores of others are meaningless" in shown
    assert f"scored: {len(files)} of {len(table)} files" in shown
    assert len(pd.read_csv("scores-breasts.csv")) == 2
    assert len(pd.read_csv("scores-women.csv")) == 1


def test_probabilities_say_how_frequent_cancer_is_where_they_hold(model, files, caplog):
    caplog.set_level("INFO")
    predict.score_files(model, [str(files[0])])
    share = model.pool.runs[0].metrics["positive_breasts"] / model.pool.runs[0].metrics["breasts"]
    assert f"probabilities hold where {100 * share:.1f} % of the breasts have cancer" in caplog.text


def test_real_files_among_generated_ones_are_warned_of_too(model, files, generated, caplog):
    own = load_metadata(generated)["path"].iloc[0]
    predict._warn_of_generated(model, [own])
    assert not caplog.text
    predict._warn_of_generated(model, [own, str(files[0])])
    assert "its scores of others are meaningless" in caplog.text


def test_another_table_of_the_same_name_is_kept(small_run, files, tmp_path):
    out = tmp_path / "scores.csv"
    out.write_text("mine")
    run_command(small_run.path, files[0], "--out", out)
    run_command(small_run.path, files[0], "--out", out)
    kept = [file for file in tmp_path.glob("scores-2*.csv") if file.read_text() == "mine"]
    assert len(kept) == 1
    assert len(list(tmp_path.glob("*.csv"))) == 4, "the same scores again leave no other files"


def test_what_is_odd_about_a_file_stands_beside_its_score(model, tmp_path, caplog):
    caplog.set_level("INFO", "rsna_nb")
    grey = np.full((300, 200), 255, np.uint8)  # air is bright: the file says nothing about that
    cv2.ellipse(grey, (0, 150), (120, 130), 0, 0, 360, 60, -1)
    cv2.imwrite(str(tmp_path / "bright_air.png"), grey)
    (row,) = predict.score_files(model, [str(tmp_path / "bright_air.png")]).images.itertuples()
    assert not row.error
    assert "turned" in row.notes
    assert "1 of 1 files: neither name nor header tells the woman and the side" in caplog.text


def test_a_breast_with_an_unreadable_file_has_the_mean_of_the_others(model, files):
    files[0].write_bytes(files[0].read_bytes()[:4000])
    found = predict.score_files(model, [str(file) for file in files])
    row = found.images.iloc[0]
    assert row["error"]
    side = found.images["laterality"] == row["laterality"]
    (breast,) = found.breasts[found.breasts["laterality"] == row["laterality"]].itertuples()
    assert breast.unreadable == 1
    assert breast.score == pytest.approx(found.images.loc[side, "score"].mean())


def test_maps_are_drawn_over_the_images(small_run, files, tmp_path):
    run_command(small_run.path, *files[:2], "--out", tmp_path / "scores.csv", "--maps", tmp_path / "maps")
    maps = sorted((tmp_path / "maps").iterdir())
    assert [file.name for file in maps] == sorted(f"{file.name}.png" for file in files[:2])
    picture = cv2.imread(str(maps[0]))
    assert picture.shape == (64, 64, 3)
    assert (picture[..., 2] > picture[..., 0]).any(), "orange marks what raised the score"


def test_files_of_one_name_in_several_folders_have_their_own_maps():
    assert predict._map_names(["x/a/b-c.png", "x/a-b/c.png"]) == [
        str(Path("a/b-c.png.png")),
        str(Path("a-b/c.png.png")),
    ]


def test_a_file_whose_name_is_no_text_has_a_row(tmp_path):
    table = pd.DataFrame({"path": ["\udcff.dcm"], "score": [0.5]})
    predict._write(predict.Scores(table, table, table), tmp_path / "scores.csv")
    assert pd.read_csv(tmp_path / "scores.csv")["score"].tolist() == [0.5]
    assert "\\udcff.dcm" in predict._shown(table)


def named(file: Path) -> tuple[str, str, str]:
    return tuple(dicom.image_names([str(file)]).iloc[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm", ("6c613a14b80a8591", "R", "CC")),
        ("P39_L_DM_MLO.jpg", ("P39", "L", "MLO")),
        ("case7-RCC.png", ("", "R", "CC")),
        ("scan_LEFT_MLO.png", ("", "L", "MLO")),
        ("1234/5678.dcm", ("1234", "", "")),
        ("MLO.png", ("", "", "")),
        ("small_class.png", ("", "", "")),
    ],
)
def test_patient_id_side_and_view_are_read_from_names(tmp_path, name, expected):
    assert named(tmp_path / name) == expected


def test_headers_are_used_where_names_say_nothing(tmp_path, breast, caplog):
    stated = {"PatientID": " 12 ", "ImageLaterality": "L", "ViewPosition": "MLO", "PatientName": "Doe^Jane"}
    assert named(write_dicom(tmp_path / "a.dcm", breast, **stated)) == ("12", "L", "MLO")
    deflated = write_dicom(tmp_path / "d.dcm", breast, DeflatedExplicitVRLittleEndian, **stated)
    assert named(deflated) == ("", "", ""), "it could fill the memory"
    removed = write_dicom(tmp_path / "b_R_CC.dcm", breast, **stated | {"PatientID": "removed"})
    assert named(removed) == ("", "R", "CC")
    assert "the header gives the other side" in caplog.text
    dated = [str(write_dicom(tmp_path / "20230115" / f"{n}.dcm", breast, PatientID=f"{n}")) for n in (1, 2)]
    assert dicom.image_names(dated)["patient_id"].tolist() == ["1", "2"]
    assert "the header's is used: 2 files" in caplog.text


@pytest.mark.parametrize("placeholder", ["Anonym", "de-identified", "0", "xxx", "NOT_AVAILABLE"])
def test_what_stands_in_place_of_an_id_is_no_id(tmp_path, breast, placeholder):
    assert named(write_dicom(tmp_path / "a_R_CC.dcm", breast, PatientID=placeholder)) == ("", "R", "CC")


@pytest.mark.parametrize("count", [100, 101])
def test_an_id_of_more_images_than_a_woman_can_have_is_not_used(tmp_path, breast, caplog, count):
    source = write_dicom(tmp_path / "0_L_CC.dcm", breast, PatientID="site7")
    files = [str(source)] + [str(shutil.copy(source, tmp_path / f"{n}_L_CC.dcm")) for n in range(1, count)]
    found = dicom.image_names(files)["patient_id"]
    assert set(found) == ({"site7"} if count == 100 else {""})
    assert ("their patient id is not used" in caplog.text) == (count > 100)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["no-such-run", "."], "there is no run no-such-run"),
        ([None, "no-such-file.dcm"], "there is no file or folder no-such-file.dcm"),
        ([None, ".", "--out", "."], "is a folder: name a file"),
        ([None, __file__, "--out", f"{__file__}/scores.csv"], "File exists"),
        ([None, __file__, "--maps", __file__], "File exists"),
    ],
)
def test_a_wrong_argument_exits_with_2_before_anything_is_scored(small_run, arguments, reason, capsys, monkeypatch):
    monkeypatch.setattr(predict, "score_files", lambda *_: pytest.fail("scored"))
    with pytest.raises(SystemExit) as stopped:
        run_command(*(small_run.path if each is None else each for each in arguments))
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_if_nothing_can_be_scored_the_command_fails_after_writing_why(small_run, tmp_path):
    (tmp_path / "x.dcm").write_text("no image")
    with pytest.raises(SystemExit, match="no file could be scored"):
        run_command(small_run.path, tmp_path / "x.dcm", "--out", tmp_path / "scores.csv")
    assert pd.read_csv(tmp_path / "scores.csv")["error"].notna().all()


@needs_real_files
def test_the_real_mammograms_are_eight_rows(small_run, tmp_path):
    run_command(small_run.path, REAL_DIR, "--out", tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == 8
    assert table["score"].notna().all()
    assert len(pd.read_csv(tmp_path / "scores-women.csv")) == 3
