import json

import pandas as pd
import pytest

from rsna_nb.metadata import kaggle
from rsna_nb.metadata import table as metadata
from rsna_nb.metadata.table import MetadataError, load_metadata
from tests.conftest import table_of


@pytest.fixture
def write(tmp_path):
    def write_table(df: pd.DataFrame, split: str = "train"):
        df.to_csv(tmp_path / f"{split}.csv", index=False)
        return tmp_path

    return write_table


def test_a_generated_set_is_read_with_ids_as_text_and_a_path_each(generated):
    df = load_metadata(generated)
    assert df["patient_id"].map(type).eq(str).all()
    assert df["cancer"].isin([0, 1]).all()
    assert df["path"][0] == str(generated / "train_images" / df["patient_id"][0] / f"{df['image_id'][0]}.dcm")


def test_the_test_table_has_no_label(generated):
    df = load_metadata(generated, split="test")
    assert "prediction_id" in df
    assert "cancer" not in df


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("patient_id", "../x", "row 3: patient_id '../x' is not a plain number or word"),
        ("image_id", "", "row 3: image_id nan is not a plain number or word"),
        ("image_id", "00", "row 3: image_id 00 stands in row 2 already"),
        ("laterality", "left", "row 3: laterality is 'left', not L or R"),
        ("cancer", 2, "row 3: cancer is '2', not 0 or 1"),
        ("cancer", "yes", "train.csv: row 3: cancer is 'yes', not 0 or 1"),
        ("cancer", "", "row 3: cancer is nan, not 0 or 1"),
        ("age", "045Y", "row 3: age is '045Y', not a number of years"),
    ],
)
def test_a_fault_is_reported_with_its_row(write, column, value, message):
    df = table_of(3, 1).astype({column: object})
    df.loc[1, column] = value
    with pytest.raises(MetadataError) as caught:
        load_metadata(write(df), check_files=False)
    assert message in str(caught.value)


def test_blank_lines_are_passed_over_and_counted(write):
    df = table_of(3, 1).astype({"cancer": object})
    df.loc[1, "cancer"] = 2
    folder = write(df)
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join([*lines[:2], "", *lines[2:], ""]))
    with pytest.raises(MetadataError, match="row 4: cancer is '2'"):
        load_metadata(folder, check_files=False)
    (folder / "train.csv").write_text("\n".join([*lines[:2], "", *lines[3:]]))
    assert load_metadata(folder, check_files=False).index.tolist() == list(range(len(df) - 1))


def test_all_faults_are_reported_at_once_the_first_twenty_and_a_count(write):
    df = table_of(10, 5).assign(laterality="X").drop(columns="age")
    with pytest.raises(MetadataError) as caught:
        load_metadata(write(df), check_files=False)
    assert "column age is missing" in str(caught.value)
    assert len(caught.value.faults) == 41
    assert str(caught.value).endswith("and 21 more")


@pytest.mark.parametrize("content", ["", "a,b\n", "a,b\n1,2,3\n1\n,,,,,\n"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(MetadataError, match=r"train\.csv"):
        load_metadata(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(MetadataError, match=r"train\.csv: there is no such table"):
        load_metadata(tmp_path)


def test_a_table_is_read_without_its_images_only_when_asked(write):
    folder = write(table_of(3, 1))
    assert len(load_metadata(folder, check_files=False)) == 12
    with pytest.raises(MetadataError, match="none of its 12 images is there"):
        load_metadata(folder)


def test_a_missing_file_stays_in_the_table(write, caplog):
    folder = write(table_of(3, 1))
    first = folder / "train_images" / "0" / "00.dcm"
    first.parent.mkdir(parents=True)
    first.touch()
    assert len(load_metadata(folder)) == 12
    assert "11 of 12 images" in caplog.text


def test_a_column_map_serves_vindr_mammo(tmp_path):
    rows = [
        {"study_id": "001", "image_id": "f0", "laterality": "L", "view_position": "CC", "breast_birads": "BI-RADS 1"},
        {"study_id": "001", "image_id": "f1", "laterality": "R", "view_position": "MLO", "breast_birads": "BI-RADS 5"},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "breast-level_annotations.csv", index=False)
    columns = {
        "table": "breast-level_annotations.csv",
        "images": "images/{study_id}/{image_id}.dicom",
        "columns": {"patient_id": "study_id", "view": "view_position", "cancer": "breast_birads"},
        "values": {"cancer": {"BI-RADS 1": 0, "BI-RADS 5": 1}},
    }
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    df = load_metadata(tmp_path, check_files=False)
    assert df["cancer"].tolist() == [0, 1]
    assert df["view"].tolist() == ["CC", "MLO"]
    assert df["path"][1] == str(tmp_path / "images" / "001" / "f1.dicom")
    assert df["age"].isna().all()


def test_a_column_map_serves_cbis_ddsm_with_a_row_a_finding(tmp_path):
    row = {"patient_id": "P_1", "left or right breast": "LEFT", "image view": "CC", "image file path": "x/0.dcm"}
    rows = [row | {"pathology": "BENIGN"}, row | {"pathology": "MALIGNANT"}]
    pd.DataFrame(rows).to_csv(tmp_path / "mass_case_description_train_set.csv", index=False)
    columns = {
        "table": "mass_case_description_{split}_set.csv",
        "images": "{image file path}",
        "columns": {
            "image_id": "{patient_id}_{left or right breast}_{image view}",
            "laterality": "left or right breast",
            "view": "image view",
            "cancer": "pathology",
        },
        "values": {"laterality": {"LEFT": "L", "RIGHT": "R"}, "cancer": {"BENIGN": 0, "MALIGNANT": 1}},
        "several_rows": True,
    }
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    df = load_metadata(tmp_path, check_files=False)
    assert df[["image_id", "laterality", "cancer"]].to_numpy().tolist() == [["P_1_LEFT_CC", "L", 1]]
    pd.DataFrame([*rows, rows[0] | {"image file path": "y/0.dcm"}]).to_csv(
        tmp_path / "mass_case_description_train_set.csv", index=False
    )
    with pytest.raises(MetadataError, match="the rows of image_id P_1_LEFT_CC differ in path"):
        load_metadata(tmp_path, check_files=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"view": "nowhere"}}, "column 'nowhere' is missing"),
        ({"values": {"laterality": {"L": "L"}}}, "row 3: laterality is 'R', not L"),
        ({"images": "../{image_id}.dcm"}, "leaves the data folder"),
        ({"images": "{nowhere}.dcm"}, "nowhere"),
        ({"tables": "x"}, "not a column map"),
        ({"table": "{splt}.csv"}, r"columns.json: table '\{splt\}.csv': only \{split\} can stand in braces, not splt"),
        ({"images": "a/{image_id.dcm"}, "columns.json: images 'a/.image_id.dcm': expected '}'"),
        ({"images": "{}.dcm"}, "images '{}.dcm': a column's name is missing between braces"),
        ({"columns": {"view": "{view"}}, "columns: view '{view'"),
        ({"columns": "view"}, "columns must be an object"),
        ({"columns": {"view": 1}}, "columns: view 1: must be text, not int"),
        ({"values": {"cancer": ["0"]}}, "values must be an object of objects"),
    ],
)
def test_a_wrong_column_map_is_explained(write, tmp_path, change, message):
    write(table_of(3, 1))
    (tmp_path / "columns.json").write_text(json.dumps(change))
    with pytest.raises(MetadataError, match=message):
        load_metadata(tmp_path, check_files=False)


def test_columns_that_leak_never_become_inputs():
    df = table_of(3, 1).assign(biopsy=0)
    assert list(metadata.model_inputs(df, ["age", "machine_id"])) == ["age", "machine_id"]
    for name in ("biopsy", "BIRADS", "density", "breast_birads", "cancer", "patient_id"):
        with pytest.raises(ValueError, match=name):
            metadata.model_inputs(df, ["age", name])


def test_the_folder_mounted_on_kaggle_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle, "mounted", lambda: tmp_path)
    assert metadata.find_data("") == tmp_path
    assert metadata.find_data(str(tmp_path / "mine")) == tmp_path / "mine"


def test_a_mount_needs_its_table(tmp_path):
    assert kaggle.mounted(tmp_path) is None
    (tmp_path / "train.csv").touch()
    assert kaggle.mounted(tmp_path) == tmp_path


def test_a_download_without_credentials_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("kagglehub")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(kaggle.KaggleError, match="make an API token"):
        kaggle.download()


@pytest.mark.parametrize(("status", "message"), [(401, "API token"), (403, "accept the rules"), (500, "error")])
def test_a_refused_download_says_what_to_do(monkeypatch, status, message):
    kagglehub = pytest.importorskip("kagglehub")
    import requests

    response = requests.Response()
    response.status_code = status

    def refuse(*_: object, **__: object) -> None:
        raise kagglehub.exceptions.KaggleApiHTTPError("refused", response=response)

    monkeypatch.setattr(kagglehub, "competition_download", refuse)
    with pytest.raises(kaggle.KaggleError, match=message):
        kaggle.download()
