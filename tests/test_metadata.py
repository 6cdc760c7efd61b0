import json

import pandas as pd
import pytest

from rsna_nb import metadata
from rsna_nb.metadata import MetadataError, load_metadata
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
        ("patient_id", "../x", "row 3: patient_id is '../x'"),
        ("patient_id", "00", "row 3: patient_id 00 looks like another way to write 0"),
        ("patient_id", "0.0", "row 3: patient_id 0.0 looks like another way to write 0"),
        ("image_id", "", "row 3: image_id is empty"),
        ("image_id", "00", "row 3: image_id 00 already occurs in row 2"),
        ("laterality", "left", "row 3: laterality is 'left', not L or R"),
        ("laterality", "", "row 3: laterality is empty"),
        ("view", "", "row 3: view is empty"),
        ("view", "??", "row 3: view is '??'"),
        ("cancer", 2, "row 3: cancer is '2', not 0 or 1"),
        ("cancer", "yes", "train.csv: row 3: cancer is 'yes'"),
        ("cancer", "", "row 3: cancer is empty"),
        ("age", "045Y", "row 3: age is '045Y'"),
        ("age", "inf", "row 3: age is 'inf'"),
    ],
)
def test_a_fault_is_reported_with_its_row(write, column, value, message):
    df = table_of(3, 1).astype({column: object})
    df.loc[1, column] = value
    with pytest.raises(MetadataError) as caught:
        load_metadata(write(df), check_files=False)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [-5, 9999])
def test_an_age_that_nobody_has_is_logged_with_its_row_and_missing(write, caplog, value):
    df = table_of(3, 1)
    df.loc[4, "age"] = value
    loaded = load_metadata(write(df), check_files=False)
    assert loaded["age"].isna().tolist() == [row == 4 for row in range(12)]
    assert loaded["age"].dropna().eq(50).all()
    assert f"row 6 '{value}.0'" in caplog.text
    assert "unusual values of age (1)" in caplog.text


@pytest.mark.parametrize(
    ("column", "value", "kept"),
    [
        ("implant", "9", False),
        ("implant", "yes", False),
        ("view", "XYZ", True),
        ("density", "E", True),
        ("BIRADS", "7", True),
    ],
)
def test_an_odd_description_is_logged_with_its_row_and_kept_unless_it_is_summed(write, caplog, column, value, kept):
    df = table_of(3, 1).assign(density="B", BIRADS=1).astype({column: object})
    df.loc[4, column] = value
    loaded = load_metadata(write(df), check_files=False)[column]
    assert str(loaded[4]) == value if kept else pd.isna(loaded[4])
    assert f"row 6 '{value}'" in caplog.text
    assert caplog.text.count("unusual") == 1


def test_usual_values_are_loaded_without_a_word(generated, caplog):
    load_metadata(generated)
    assert not caplog.text


@pytest.fixture
def mixed(write):
    """A table in which one image of a breast has no cancer and the other has, in two breasts."""
    df = table_of(6, 2)
    df.loc[df["image_id"].isin(["00", "11"]), "cancer"] = 0
    return write(df)


def test_a_breast_whose_images_disagree_on_cancer_is_named_with_what_to_do(mixed):
    with pytest.raises(MetadataError) as caught:
        load_metadata(mixed, check_files=False)
    assert len(caught.value.faults) == 2
    assert "patient_id 0, laterality L" in caught.value.faults[0]
    assert "1 in row 4 and 0 in row 2" in caught.value.faults[0]
    assert "mixed_breasts" in str(caught.value)
    assert "any_positive" in str(caught.value)


def test_all_mixed_breasts_are_counted_and_twenty_named(write):
    df = table_of(30, 25)
    df.loc[df.index % 4 == 0, "cancer"] = 0
    with pytest.raises(MetadataError, match="and 5 more") as caught:
        load_metadata(write(df), check_files=False)
    assert len(caught.value.faults) == 25


def test_any_positive_labels_all_images_of_the_breast_and_logs_how_many_changed(mixed, caplog):
    df = load_metadata(mixed, check_files=False, mixed_breasts="any_positive")
    assert df["cancer"].tolist() == [1] * 8 + [0] * 16
    assert "2 images of 2 breasts" in caplog.text
    assert "row 2; row 7" in caplog.text


def test_labels_that_disagree_can_be_looked_at(mixed):
    assert load_metadata(mixed, check_files=False, mixed_breasts="keep")["cancer"].sum() == 6
    with pytest.raises(ValueError, match="any_positive"):
        load_metadata(mixed, check_files=False, mixed_breasts="any")


def test_a_column_that_stands_twice_is_a_fault(write):
    folder = write(table_of(3, 1))
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join([lines[0] + ",cancer", *(line + ",0" for line in lines[1:])]))
    with pytest.raises(MetadataError, match="column cancer occurs in the table twice"):
        load_metadata(folder, check_files=False)


def test_a_table_of_one_column_names_the_separators(write):
    folder = write(table_of(3, 1))
    (folder / "train.csv").write_text((folder / "train.csv").read_text().replace(",", "|"))
    with pytest.raises(MetadataError, match=r"one column.*commas, semicolons or tabs"):
        load_metadata(folder, check_files=False)


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
    df = table_of(10, 5).assign(laterality="X").drop(columns="view")
    with pytest.raises(MetadataError) as caught:
        load_metadata(write(df), check_files=False)
    assert "column view is missing" in str(caught.value)
    assert len(caught.value.faults) == 41
    assert str(caught.value).endswith("and 21 more")


def test_a_table_of_ones_own_needs_no_description_and_the_log_names_what_it_lacks(write, caplog):
    df = load_metadata(
        write(table_of(10, 5)[["patient_id", "image_id", "laterality", "view", "cancer"]]), check_files=False
    )
    assert df[["site_id", "age", "implant", "machine_id"]].isna().all(axis=None)
    assert "without the columns site_id, age, implant, machine_id, which RSNA's table has" in caplog.text


@pytest.mark.parametrize("content", ["", "a,b\n", "a,b\n1,2,3\n1\n,,,,,\n"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(MetadataError, match=r"train\.csv"):
        load_metadata(tmp_path)


def test_an_empty_or_misspelt_folder_is_named(tmp_path):
    with pytest.raises(MetadataError, match=r"this folder is empty\. Check the setting data_dir"):
        load_metadata(tmp_path)
    with pytest.raises(MetadataError, match=r"tyop: there is no such folder\. Check the setting data_dir"):
        load_metadata(tmp_path / "tyop")


def test_a_table_is_read_without_its_images_only_when_asked(write):
    folder = write(table_of(3, 1))
    assert len(load_metadata(folder, check_files=False)) == 12
    with pytest.raises(MetadataError, match="none of its 12 images"):
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
        ({"values": {"laterality": {"L": "L"}}}, "row 3: laterality is 'R', not 'L'"),
        ({"images": "../{image_id}.dcm"}, "leaves the data folder"),
        ({"images": "{nowhere}.dcm"}, "nowhere"),
        ({"tables": "x"}, "columns.json: tables 'x'"),
        ({"table": "{splt}.csv"}, r"columns.json: table '\{splt\}.csv': only \{split\} may be used"),
        ({"images": "a/{image_id.dcm"}, "columns.json: images 'a/.image_id.dcm': expected '}'"),
        ({"images": "{}.dcm"}, "images '{}.dcm': a column's name is missing between braces"),
        ({"columns": {"view": "{view"}}, "columns.view '{view'"),
        ({"columns": "view"}, "columns 'view'"),
        ({"columns": {"view": 1}}, "columns.view 1: .*string"),
        ({"values": {"cancer": ["0"]}}, "values.cancer"),
    ],
)
def test_a_wrong_column_map_is_explained(write, tmp_path, change, message):
    write(table_of(3, 1))
    (tmp_path / "columns.json").write_text(json.dumps(change))
    with pytest.raises(MetadataError, match=message):
        load_metadata(tmp_path, check_files=False)


def test_all_faults_of_a_column_map_are_named_at_once(write, tmp_path):
    write(table_of(3, 1))
    (tmp_path / "columns.json").write_text('{"tables": "x", "images": 1, "several_rows": "yes"}')
    with pytest.raises(MetadataError) as caught:
        load_metadata(tmp_path, check_files=False)
    assert [name in str(caught.value) for name in ("tables", "images", "several_rows")] == [True] * 3
    (tmp_path / "columns.json").write_text("{'table': 'x'}")
    with pytest.raises(MetadataError, match=r"columns\.json: Invalid JSON"):
        load_metadata(tmp_path, check_files=False)


def test_a_column_map_may_begin_with_a_byte_order_mark_and_map_an_empty_label(write, tmp_path):
    write(table_of(3, 1).astype({"cancer": object}).replace({"cancer": {0: ""}}))
    layout = {"columns": {"view": "view"}, "values": {"cancer": {"": 0, "1": 1}}}
    (tmp_path / "columns.json").write_text("\ufeff" + json.dumps(layout), "utf-8")
    assert load_metadata(tmp_path, check_files=False)["cancer"].tolist() == [1] * 4 + [0] * 8


def test_tables_about_two_data_folders_of_one_name_are_kept_apart(tmp_path):
    first, second = (metadata.results_folder(tmp_path / "out", tmp_path / place / "data") for place in "ab")
    assert first != second
    assert first.is_dir()
    assert first.name.startswith("data-")
    assert first == metadata.results_folder(tmp_path / "out", tmp_path / "b" / ".." / "a" / "data")


@pytest.mark.parametrize(("one", "other"), [("10006", "1.0006E4"), ("10006", "1.0006e+04"), ("P1", "p1")])
def test_one_id_in_two_spellings_is_a_fault(write, one, other):
    df = table_of(3, 1)
    df.loc[0, "patient_id"], df.loc[1, "patient_id"] = one, other
    with pytest.raises(MetadataError, match=f"row 3: patient_id .* looks like another way to write {one}"):
        load_metadata(write(df), check_files=False)


def test_ids_of_32_hexadecimal_digits_are_not_taken_for_numbers(write):
    df = table_of(3, 1)
    hashes = {"0": "1234e567890123456789012345678901", "1": "1234e567890123456789012345678902", "2": "12e3"}
    df["patient_id"] = df["patient_id"].map(hashes)
    assert load_metadata(write(df), check_files=False)["patient_id"].nunique() == 3
