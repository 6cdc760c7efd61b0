"""The layout language: tables of other forms, images found by a search, and what headers say."""

import codecs
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_nb import metadata
from rsna_nb.metadata import MetadataError, kaggle, load_metadata, reading
from rsna_nb.metadata import layout as layouts
from tests.conftest import SAMPLES, table_of, write_dicom

IDS = ["patient_id", "image_id", "laterality", "view", "cancer"]


@pytest.fixture
def folder(tmp_path):
    """A data folder with nothing near it in which a table could be."""
    folder = tmp_path / "above" / "between" / "data"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def write(folder):
    def write_files(layout: dict | None = None, files: tuple = (), **tables: list[dict]) -> Path:
        if layout is not None:
            (folder / "columns.json").write_text(json.dumps(layout))
        for name, rows in tables.items():
            pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        return folder

    return write_files


def row(patient: str, image: str, side: str = "L", view: str = "CC", **others: object) -> dict:
    return {"patient_id": patient, "image_id": image, "laterality": side, "view": view, "cancer": 0, **others}


def rows_of(df: pd.DataFrame) -> list[list]:
    return df[IDS].to_numpy().tolist()


# The tables' files


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_a_table_is_read_whatever_its_separator_and_encoding(folder, separator, encoding, caplog):
    df = table_of(3, 1).assign(note="Rötung, links; so")
    (folder / "train.csv").write_bytes(df.to_csv(index=False, sep=separator).encode(encoding))
    loaded = load_metadata(folder, check_files=False)
    assert loaded["note"].eq("Rötung, links; so").all()
    assert len(loaded) == 12
    assert ("read as latin-1" in caplog.text) == (encoding == "latin-1")


def test_a_workbook_is_read_with_the_rows_of_its_sheet(write, folder, monkeypatch):
    df = table_of(3, 1).astype({"cancer": object})
    df.loc[3, "cancer"] = "maybe"
    df.to_excel(folder / "t.xlsx", index=False)
    write({"table": "t.xlsx"})
    with pytest.raises(MetadataError, match=r"t\.xlsx: row 5: cancer is 'maybe'"):
        load_metadata(folder, check_files=False)
    with monkeypatch.context() as limited:
        limited.setattr(reading, "MOST_BYTES", 100)
        with pytest.raises(MetadataError, match="too large unpacked"):
            load_metadata(folder)
    df.assign(cancer=0).to_excel(folder / "t.xlsx", index=False)
    assert load_metadata(folder, check_files=False)["patient_id"].tolist() == df["patient_id"].tolist()


def test_spaces_around_values_do_not_count(write):
    folder = write(train=[row("7 ", " a", "L ", age=" ", site_id=1, implant=0, machine_id=1)])
    loaded = load_metadata(folder, check_files=False)
    assert rows_of(loaded) == [["7", "a", "L", "CC", 0]]
    assert loaded["age"].isna().all()


def test_rows_with_more_fields_than_the_header_are_refused(folder):
    (folder / "train.csv").write_text("a,b\n1,2,3\n4,5,6\n")
    with pytest.raises(MetadataError, match="line 2"):
        load_metadata(folder, check_files=False)


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_columns_json_may_begin_with_any_byte_order_mark(write, folder, mark):
    write(train=[row("7", "a", cancer="")])
    encoding = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le"}.get(mark, "utf-16-be")
    text = json.dumps({"columns": {"view": "view"}, "values": {"cancer": {"": 1, "1": 1}}})
    (folder / "columns.json").write_bytes(mark + text.encode(encoding))
    assert load_metadata(folder, check_files=False)["cancer"].tolist() == [1]


def test_mini_mias_has_no_header_line_comments_and_women_in_pairs(write, folder):
    lines = ["INFO ABOUT THE PICTURES", "=" * 10, "mdb001 G CIRC B 535 425 197", "", "mdb002 G CIRC M 522 280 69"]
    lines += ["mdb003 D NORM", "mdb004 D NORM", "mdb005 F CIRC B 477 133 30", "mdb005 F CIRC B 500 168 26", "NOTES 1 2"]
    (folder / "Info.txt").write_text("\n".join(lines))
    layout = {
        "table": "Info.txt",
        "names": ["number", "tissue", "finding", "severity", "x", "y", "radius"],
        "lines": r"mdb\d+ .*",
        "pairs": {"woman": "number"},
        "images": "all-mias/{number}.pgm",
        "columns": {"patient_id": "woman", "image_id": "number", "laterality": "number", "view": "number"},
        "values": {"laterality": {"*[13579]": "R", "*": "L"}, "view": {"*": "MLO"}, "cancer": {"": 0, "B": 0, "M": 1}},
        "several_rows": True,
    }
    layout["columns"]["cancer"] = "severity"
    df = load_metadata(write(layout), check_files=False)
    assert df["patient_id"].tolist() == ["1", "1", "2", "2", "3"]
    assert df["laterality"].tolist() == ["R", "L", "R", "L", "R"]
    assert df["cancer"].tolist() == [0, 1, 0, 0, 0]
    assert df["path"][4] == str(folder / "all-mias" / "mdb005.pgm")


def test_tables_of_one_kind_are_stacked_and_faults_name_theirs(write):
    layout = {"table": ["mass_{split}.csv", "calc_{split}.csv", "absent.csv"], "columns": {"view": "view"}}
    folder = write(layout, mass_train=[row("7", "a")], calc_train=[row("7", "b"), row("8", "c")])
    assert load_metadata(folder, check_files=False)["image_id"].tolist() == ["a", "b", "c"]
    write(calc_train=[row("7", "b"), row("8", "a", side="left")])
    with pytest.raises(MetadataError) as caught:
        load_metadata(folder, check_files=False)
    assert "row 3 of calc_train.csv: laterality is 'left'" in str(caught.value)
    assert "row 3 of calc_train.csv: image_id a already occurs in row 2 of mass_train.csv" in str(caught.value)


# Rows, extracts and joined tables


def test_rows_pick_a_split_and_the_log_counts_the_others(write, caplog):
    caplog.set_level(logging.INFO)
    rows = [row("7", "a", split="training"), row("7", "b", split="training"), row("8", "c", split="test")]
    layout = {
        "table": "t.csv",
        "rows": {"split": {"train": ["training"], "test": ["test"]}},
        "columns": {"view": "view"},
    }
    folder = write(layout, t=rows)
    assert load_metadata(folder, check_files=False)["image_id"].tolist() == ["a", "b"]
    assert load_metadata(folder, "test", check_files=False)["image_id"].tolist() == ["c"]
    assert "1 of 3 rows are left out: split is not 'training'" in caplog.text
    assert "2 of 3 rows are left out: split is not 'test'" in caplog.text


def test_training_rows_are_never_given_out_as_test_rows(write, caplog):
    folder = write({"table": "t.csv", "columns": {"view": "view"}}, t=[row("7", "a", split="test")])
    with pytest.raises(MetadataError, match="does not say which rows are for testing"):
        load_metadata(folder, "test", check_files=False)
    load_metadata(folder, check_files=False)
    assert "whatever column split says ('test')" in caplog.text


def test_rows_may_ask_for_an_empty_cell_or_a_pattern(write):
    rows = [row("7", "a", kind="2D"), row("7", "b", kind="2D", spot="1.0"), row("7", "c", kind="cview")]
    folder = write({"table": "t.csv", "rows": {"spot": [""], "kind": ["2*"]}, "columns": {"view": "view"}}, t=rows)
    assert load_metadata(folder, check_files=False)["image_id"].tolist() == ["a"]


def test_parts_of_a_value_become_columns(write):
    files = ["Mass_P1_L/1/000.dcm", "Mass_P2_R/1/000.dcm"]
    layout = {
        "table": "t.csv",
        "extract": {"file": "^(?P<folder>[^/]+)/", "folder": "_(?P<woman>P[0-9]+)_"},
        "columns": {"patient_id": "woman", "image_id": "folder"},
        "images": "{folder}.dcm",
    }
    df = load_metadata(write(layout, t=[row("", "", file=file) for file in files]), check_files=False)
    assert df["patient_id"].tolist() == ["P1", "P2"]
    assert [Path(path).name for path in df["path"]] == ["Mass_P1_L.dcm", "Mass_P2_R.dcm"]


def test_findings_are_joined_by_examination_and_side(write, folder, caplog):
    caplog.set_level(logging.INFO)
    images = [row("7", "a", "L", exam=100), row("7", "b", "R", exam=100), row("8", "c", "L", exam=200)]
    images += [row("9", "d", "L", exam=300), row("9", "e", "R", exam=300)]
    found = [{"acc": "100.0", "side": "L", "severity": 4}, {"acc": "100.0", "side": "L", "severity": 0}]
    found += [{"acc": "300.0", "side": "R", "severity": 1}]
    join = {"table": "f.csv", "on": {"exam": "acc", "laterality": "side"}, "several_rows": True}
    layout = {
        "table": "t.csv",
        "joined": [join],
        "columns": {"cancer": "severity"},
        "values": {"cancer": {"[01]": 1, "4": 0, "": 0}},
        "several_rows": True,
    }
    df = load_metadata(write(layout, t=images, f=found), check_files=False)
    assert df.set_index("image_id")["cancer"].to_dict() == {"a": 1, "b": 0, "c": 0, "d": 0, "e": 1}
    assert "3 of 6 rows have no match" in caplog.text
    assert "4 of 5 rows have another spelling of exam" in caplog.text
    join["several_rows"] = False
    with pytest.raises(MetadataError, match="row 2 has several matches"):
        load_metadata(write(layout), check_files=False)
    join["on"] = {"exam": "severity"}
    with pytest.raises(MetadataError, match=r"no row has a match .*exam = severity, in the first rows '"):
        load_metadata(write(layout), check_files=False)


def test_a_key_that_is_written_in_several_ways_in_one_table_is_a_fault(write):
    layout = {"table": "t.csv", "joined": [{"table": "f.csv", "on": {"exam": "acc"}}], "columns": {"view": "view"}}
    folder = write(
        layout, t=[row("7", "a", exam="10006")], f=[{"acc": acc, "severity": 1} for acc in ("10006", "10006.0")]
    )
    with pytest.raises(MetadataError, match=r"f\.csv: row 3: acc 10006\.0 looks like another way to write 10006"):
        load_metadata(folder, check_files=False)


def test_the_label_may_come_from_several_columns(write):
    sides = [("L", "1", "Left"), ("R", "1", "Left"), ("L", "0", ""), ("R", "0", "")]
    rows = [
        row("7" if case == "1" else "8", f"{n}", side, x_case=case, x_side=x) for n, (side, case, x) in enumerate(sides)
    ]
    layout = {
        "table": "t.csv",
        "columns": {"cancer": "{x_case}/{x_side}/{laterality}"},
        "values": {"cancer": {"1/Left/L": 1, "1/Right/R": 1, "0//?": 0, "1/*": 0}},
    }
    assert load_metadata(write(layout, t=rows), check_files=False)["cancer"].tolist() == [1, 0, 0, 0]


def test_an_id_of_several_columns_is_not_made_of_half_of_them(write):
    layout = {"table": "t.csv", "columns": {"patient_id": "{site}_{woman}"}}
    folder = write(layout, t=[row("", "a", site="s", woman="7"), row("", "b", site="s", woman="")])
    with pytest.raises(MetadataError, match="row 3: patient_id is empty"):
        load_metadata(folder, check_files=False)


# Women


@pytest.mark.parametrize("name", ["removed", "Anonymous", "unknown", "-"])
def test_a_placeholder_is_not_taken_for_a_woman(write, name):
    folder = write({"table": "t.csv", "columns": {"view": "view"}}, t=[row(name, "a"), row(name, "b"), row("7", "c")])
    with pytest.raises(
        MetadataError, match=rf"patient_id '{name}' is a placeholder and no woman's id: 2 images.*columns\.json"
    ):
        load_metadata(folder, check_files=False)


def test_an_empty_column_of_ids_says_what_to_do(write):
    folder = write({"table": "t.csv", "columns": {"view": "view"}}, t=[row("", "a"), row("", "b")])
    with pytest.raises(MetadataError, match=r"patient_id is empty in every row.*files' names"):
        load_metadata(folder, check_files=False)


def test_one_id_for_more_than_a_hundred_images_is_not_one_woman(write):
    rows = [row("7", f"i{number}") for number in range(101)]
    folder = write({"table": "t.csv", "columns": {"view": "view"}}, t=rows)
    with pytest.raises(MetadataError, match="patient_id '7' has 101 images"):
        load_metadata(folder, check_files=False)
    write(t=rows[:100])
    assert len(load_metadata(folder, check_files=False)) == 100


# Images found by a search

INBREAST = {
    "table": "t.csv",
    "images": "AllDICOMs/{File Name}_{woman}_MG_{side}_{position}_ANON.dcm",
    "columns": {"patient_id": "woman", "image_id": "File Name"},
}


def test_a_file_name_gives_the_woman_whom_the_table_does_not_name(write, caplog):
    caplog.set_level(logging.INFO)
    files = ["AllDICOMs/20_7b_MG_L_CC_ANON.dcm", "AllDICOMs/21_8c_MG_R_ML_ANON.dcm", "AllDICOMs/99_8c_MG_R_ML_ANON.dcm"]
    rows = [row("removed", "", **{"File Name": name}) for name in ("20", "21", "22")]
    df = load_metadata(write(INBREAST, files, t=rows))
    assert rows_of(df) == [["7b", "20", "L", "CC", 0], ["8c", "21", "L", "CC", 0]]
    assert [Path(path).is_file() for path in df["path"]] == [True, True]
    assert "1 more files belong to no row" in caplog.text
    assert "1 rows without a file are left out, since only files have woman: row 4" in caplog.text


def test_files_of_the_other_split_are_not_counted_as_left_over(write, caplog):
    caplog.set_level(logging.INFO)
    layout = {"table": "t.csv", "images": "**/{split}_images*/{patient_id}/{image_id}.png", "columns": {"view": "view"}}
    load_metadata(write(layout, ["train_images/7/a.png", "test_images/9/b.png"], t=[row("7", "a")]))
    assert "1 files found for its rows; 0 more files belong to no row" in caplog.text


def test_a_row_without_a_file_stays_if_the_table_says_whose_it_is(write, caplog):
    layout = {"table": "t.csv", "images": "**/{image_id}.png", "columns": {"view": "view"}}
    df = load_metadata(write(layout, ["x/y/a.png", "b.png"], t=[row("7", "a"), row("7", "b"), row("7", "c")]))
    assert df["path"].str.contains("*", regex=False).tolist() == [False, False, True]
    assert "1 of 3 images" in caplog.text


def test_two_sizes_of_one_image_are_an_error_that_names_the_folders(write):
    layout = {"table": "t.csv", "images": "**/{patient_id}/{image_id}.png", "columns": {"view": "view"}}
    files = [f"pngs_{size}/train/7/{image}.png" for size in (256, 512) for image in "ab"]
    folder = write(layout, files, t=[row("7", "a"), row("7", "b")])
    with pytest.raises(
        MetadataError, match=r"row 2 has several files: pngs_256 and pngs_512; .*give one of the folders"
    ):
        load_metadata(folder)
    layout["table"] = "../t.csv"
    (folder / "pngs_256" / "columns.json").write_text(json.dumps(layout))
    assert len(load_metadata(folder / "pngs_256")) == 2


def test_a_file_that_fits_a_pattern_in_two_ways_is_an_error(write):
    layout = {"table": "t.csv", "images": "{image_id}_{rest}.png", "columns": {"view": "view"}}
    folder = write(layout, ["a_b_c.png"], t=[row("7", "a"), row("7", "a_b")])
    with pytest.raises(MetadataError, match=r"a_b_c\.png fits images .* in two ways"):
        load_metadata(folder)
    assert load_metadata(write(t=[row("7", "a_b")]))["image_id"].tolist() == ["a_b"]


def test_two_images_do_not_share_a_file(write):
    layout = {"table": "t.csv", "images": "{patient_id}_{part}.png", "columns": {"image_id": "{image_id}-{part}"}}
    folder = write(layout, ["7_x.png", "7_y.png"], t=[row("7", "a"), row("7", "b")])
    with pytest.raises(MetadataError, match="image_id b-x has the same file as a-x"):
        load_metadata(folder)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{nothing}/{at}.png", "names no column of the table: nothing, at"),
        ("../{x}/{image_id}.png", "leaves the data folder"),
        ("z/{x}/{image_id}.png", "none of its 1 images exists: no file in"),
    ],
)
def test_a_pattern_that_cannot_be_searched_is_explained(write, images, message):
    folder = write({"table": "t.csv", "images": images, "columns": {"view": "view"}}, ["y/a.png"], t=[row("7", "a")])
    with pytest.raises(MetadataError, match=message):
        load_metadata(folder)


def cmmd(write, **changes: object) -> Path:
    """CMMD in small: a row for each breast, a folder for each woman, side and view in the headers only."""
    layout = {
        "table": "t.csv",
        "images": "CMMD/{ID1}/{date}/{series}/{file}.dcm",
        "headers": {"LeftRight": "ImageLaterality", "view": "ViewCodeSequence.CodeMeaning"},
        "columns": {
            "patient_id": "ID1",
            "image_id": "{ID1}-{file}",
            "laterality": "LeftRight",
            "cancer": "classification",
        },
        "values": {
            "view": {"cranio-caudal": "CC", "medio-lateral oblique": "MLO"},
            "cancer": {"Benign": 0, "Malignant": 1},
        },
        **changes,
    }
    table = [
        {"ID1": "D1-0001", "LeftRight": "L", "classification": "Benign"},
        {"ID1": "D1-0001", "LeftRight": "R", "classification": "Malignant"},
        {"ID1": "D1-0002", "LeftRight": "R", "classification": "Benign"},
    ]
    return write(layout, t=table)


def write_view(path: Path, side: str | None, meaning: str) -> Path:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeMeaning = meaning
    return write_dicom(path, np.zeros((4, 4), np.uint16), ImageLaterality=side, ViewCodeSequence=[code])


def test_headers_pick_the_row_of_the_side_and_give_the_view(write, caplog):
    caplog.set_level(logging.INFO)
    folder = cmmd(write)
    place = folder / "CMMD" / "D1-0001" / "2010" / "s"
    for number, (side, meaning) in enumerate(
        [("L", "cranio-caudal"), ("R", "cranio-caudal"), ("R", "medio-lateral oblique")]
    ):
        write_view(place / f"1-{number}.dcm", side, meaning)
    other = folder / "CMMD" / "D1-0002" / "2010" / "s"
    for number, side in enumerate(["L", "R"]):
        write_view(other / f"1-{number}.dcm", side, "cranio-caudal")
    (other / "1-2.dcm").write_bytes(b"no DICOM")
    assert rows_of(load_metadata(folder)) == [
        ["D1-0001", "D1-0001-1-0", "L", "CC", 0],
        ["D1-0001", "D1-0001-1-1", "R", "CC", 1],
        ["D1-0001", "D1-0001-1-2", "R", "MLO", 1],
        ["D1-0002", "D1-0002-1-1", "R", "CC", 0],
    ]
    assert "1 files have no header that can be read" in caplog.text
    assert "2 files have no row with their header's LeftRight" in caplog.text


def test_many_headers_are_read_by_worker_processes(write, monkeypatch):
    monkeypatch.setattr("rsna_nb.metadata.file_headers.FEW", 1)
    folder = cmmd(write)
    for number in range(3):
        write_view(folder / "CMMD" / "D1-0002" / "d" / "s" / f"{number}.dcm", "R", "cranio-caudal")
    assert load_metadata(folder)["view"].tolist() == ["CC"] * 3


# Layouts that the package knows, and tables elsewhere


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A function that makes the package know layouts."""

    def know(**contents: dict) -> None:
        (tmp_path / "package" / "layouts").mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (tmp_path / "package" / "layouts" / f"{name}.json").write_text(json.dumps(content))

    monkeypatch.setattr(layouts.resources, "files", lambda _: tmp_path / "package")
    return know


def test_a_folder_is_recognised_by_what_is_in_it(known, write):
    both = {"table": "t.csv", "columns": {"view": "view"}, "images": "{image_id}.png"}
    known(
        one=both
        | {"name": "First set", "label": "BI-RADS 4 or 5", "recognised_by": [["t.csv", "x/*/*.png"], ["u.csv"]]},
        two=both | {"name": "Second set", "recognised_by": ["t.csv", "y.png"]},
    )
    folder = write(None, ["x/1/a.png"], t=[row("7", "a")])
    assert metadata.describe(folder) == ("First set", "BI-RADS 4 or 5")
    assert len(load_metadata(folder, check_files=False)) == 1
    write(None, ["y.png"])
    with pytest.raises(MetadataError, match=r"looks like First set and Second set.*columns\.json"):
        load_metadata(folder)
    write({"table": "t.csv"})
    assert metadata.describe(folder) == ("data", "")


def test_rsnas_own_folder_and_an_unknown_one_have_rsnas_layout(generated, folder, known):
    known(one={"name": "All", "recognised_by": ["train.csv"]})
    assert metadata.describe(generated).name == "RSNA"
    assert metadata.describe(folder).name == "RSNA"


def test_a_table_elsewhere_is_taken_from_the_setting(write, folder, tmp_path):
    write(None, ["train_images/0/00.dcm"])
    other = tmp_path / "other"
    other.mkdir()
    table_of(3, 1).to_csv(other / "train.csv", index=False)
    table_of(4, 1).drop(columns="cancer").to_csv(other / "test.csv", index=False)
    for table in (other, other / "train.csv"):
        assert len(load_metadata(folder, table=table)) == 12
        assert len(load_metadata(folder, "test", check_files=False, table=table)) == 16
    (other / "train.csv").rename(other / "mine.csv")
    assert len(load_metadata(folder, table=other / "mine.csv")) == 12
    with pytest.raises(MetadataError, match="one table cannot serve for training and testing"):
        load_metadata(folder, "test", table=other / "mine.csv")
    with pytest.raises(MetadataError, match=r"there is no train\.csv in this folder, which the setting table names"):
        load_metadata(folder, table=other)
    with pytest.raises(MetadataError, match=r"absent\.csv: there is no such table, which the setting table names"):
        load_metadata(folder, table=other / "absent.csv")


@pytest.mark.parametrize("place", ["..", "../..", "../beside"])
def test_a_table_near_the_images_is_found_and_the_log_says_which(write, folder, caplog, place):
    caplog.set_level(logging.INFO)
    write(None, ["train_images/0/00.dcm"])
    (folder / place).mkdir(exist_ok=True)
    table_of(3, 1).to_csv(folder / place / "train.csv", index=False)
    df = load_metadata(folder)
    assert df["path"][0] == str(folder / "train_images" / "0" / "00.dcm")
    assert f"{folder} has no train.csv" in caplog.text


def test_the_table_of_the_competition_on_kaggle_serves_a_mounted_set(write, folder, tmp_path, monkeypatch):
    mount = tmp_path / "input" / "competitions" / kaggle.COMPETITION
    mount.mkdir(parents=True)
    table_of(3, 1).to_csv(mount / "train.csv", index=False)
    monkeypatch.setattr(kaggle, "INPUT", tmp_path / "input")
    assert len(load_metadata(write(None, ["train_images/0/00.dcm"]))) == 12


def test_of_two_different_tables_near_the_images_none_is_guessed(write, folder):
    write(None, ["train_images/0/00.dcm"])
    for name, women in (("one", 3), ("two", 4)):
        (folder.parent / name).mkdir()
        table_of(women, 1).to_csv(folder.parent / name / "train.csv", index=False)
    with pytest.raises(
        MetadataError, match=r"several near it may be meant: .*one/train\.csv, .*two/train\.csv.*setting table"
    ):
        load_metadata(folder)


def test_without_a_table_the_error_says_to_give_one(write):
    with pytest.raises(
        MetadataError, match=r"train\.csv: there is no such table .*nor above or beside it\. Give the table"
    ):
        load_metadata(write(None, ["train_images/0/00.dcm"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": {"split": {"training": ["a"]}}}, r"rows\.split .*must be a list of texts, or"),
        ({"rows": {"split": "train"}}, "must be a list of texts, or"),
        ({"extract": {"a": "("}}, "not a regular expression"),
        ({"table": ["t.csv", 1]}, "must be a file name, or a list of file names"),
        ({"recognised_by": ["a", ["b"]]}, "must be a list of file patterns"),
        ({"joined": [{"table": "t.csv"}]}, r"joined\.0\.on .*required"),
        ({"rows": {"nowhere": ["1"]}}, "column 'nowhere' is missing: columns.json names it in rows"),
        ({"extract": {"nowhere": "(?P<a>.)"}}, "column 'nowhere' is missing: columns.json names it in extract"),
        ({"rows": {"view": ["XX"]}}, "no row has 'XX' in column view, but 'CC'"),
    ],
)
def test_a_wrong_key_of_the_language_is_explained(write, content, message):
    with pytest.raises(MetadataError, match=message):
        load_metadata(write(content, train=[row("7", "a")]), check_files=False)


@pytest.mark.skipif(not (SAMPLES / "cases").is_dir(), reason="no cases in RSNA_NB_SAMPLES")
@pytest.mark.parametrize(
    ("case", "message"), [("inbreast", "'removed' is a placeholder"), ("ids", "another way to write 10006")]
)
def test_published_tables_that_would_mix_women_are_refused(case, message):
    with pytest.raises(MetadataError, match=message):
        load_metadata(SAMPLES / "cases" / case, check_files=False)


@pytest.mark.skipif(not (SAMPLES / "cases").is_dir(), reason="no cases in RSNA_NB_SAMPLES")
def test_published_tables_are_read_as_they_are(tmp_path):
    assert load_metadata(SAMPLES / "cases" / "embed_empty", check_files=False)["cancer"].tolist() == [0, 1, 0]
    source = SAMPLES / "cases" / "vindr"
    layout = json.loads((source / "columns.json").read_text())
    layout["rows"] = {"split": {"train": ["training"], "test": ["test"]}}
    (tmp_path / "columns.json").write_text(json.dumps(layout))
    women = []
    for split in ("train", "test"):
        df = load_metadata(tmp_path, split, check_files=False, table=source, mixed_breasts="any_positive")
        assert len(df) == 4
        women.append(set(df["patient_id"]))
    assert not women[0] & women[1]
