"""Every data set that the package knows by name, in small: what is read, who is in which split, and that it trains."""

import re
from pathlib import Path

import pandas as pd
import pytest

from rsna_nb import dicom
from rsna_nb.metadata import MetadataError, describe, load_metadata
from rsna_nb.metadata.labels import exams_with_cancer, with_label
from rsna_nb.metadata.layout import Layout, matching
from tests.datasets import DATA_SETS, WOMEN, Kept, described
from tests.notebooks import last_error_line, papermill_run, words

PAGE = Path(__file__).parents[1] / "docs" / "data_sets.md"
NAMES = {
    **dict.fromkeys(["radek1_256", "radek1_512", "radek1_1024", "radek1_dicomsdl", "awsaf49"], "RSNA as PNG"),
    **dict.fromkeys(["theoviel", "remekkinas"], "RSNA as PNG, one folder"),
    **dict.fromkeys(["vindr_dicom", "vindr_png"], "VinDr-Mammo"),
    "rsna": "RSNA",
    "mammo_clip": "RSNA as PNG of Mammo-CLIP",
    "cbis_tcia": "CBIS-DDSM",
    "cbis_jpeg": "CBIS-DDSM as JPEG",
    "inbreast": "INbreast",
    "cmmd": "CMMD",
    "embed": "EMBED",
    "csaw": "CSAW-CC",
    "cdd_cesm": "CDD-CESM",
    "mini_mias": "mini-MIAS",
}
TINY = """{"img_size": 64, "backbone": "small", "weights": "none", "freeze_backbone": false, "epochs": 1,
"batch_size_per_gpu": 8, "store_dir": "stores", "runs_dir": "runs"}"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Returns the folder of a data set and what is to be read from it; each is written once."""
    written: dict[str, tuple[Path, Kept]] = {}

    def make(name: str) -> tuple[Path, Kept]:
        if name not in written:
            folder = tmp_path_factory.mktemp(name) / "data"
            written[name] = folder, DATA_SETS[name](folder)
        return written[name]

    return make


def rows(df: pd.DataFrame, columns: list[str]) -> list[tuple]:
    return sorted(df[columns].itertuples(index=False, name=None))


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.slow
def test_a_data_set_is_recognised_and_its_rows_are_those_that_it_was_made_with(made, name):
    folder, kept = made(name)
    assert describe(folder).name == NAMES[name]
    for split, expected in kept.items():
        df = load_metadata(folder, split)
        columns = ["patient_id", "laterality", "view", "path"] + ["cancer"] * ("cancer" in df)
        assert rows(df, columns) == rows(expected, columns)
        assert df["path"].map(lambda path: Path(path).is_file()).all()
        assert df["image_id"].is_unique
        assert split == "test" or (df["cancer"].nunique() == 2 and df["patient_id"].nunique() >= 12)


@pytest.mark.parametrize("name", DATA_SETS)
def test_women_are_apart_with_no_other_setting(made, name):
    from rsna_nb.config import RunConfig
    from rsna_nb.training import split_table  # here: it imports TensorFlow

    folder, kept = made(name)
    table, data_dir = split_table(RunConfig(data_dir=str(folder)))
    assert data_dir == folder
    assert len(table) == len(kept["train"])
    assert set(table["split"]) == {"train", "validation"}
    assert table.groupby("patient_id")["split"].nunique().eq(1).all()
    assert table.groupby(["patient_id", "laterality"])["cancer"].nunique().eq(1).all()


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_image_of_a_data_set_reads(made, name):
    _, kept = made(name)
    for path in kept["train"]["path"][:12]:
        image = dicom.read_mammogram(path, 64)
        assert image.shape == (64, 64)
        assert image.max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_trains_one_epoch_by_its_folder_alone(made, name, tmp_path):
    folder, kept = made(name)
    (tmp_path / "tiny.json").write_text(TINY)
    answer = papermill_run(tmp_path, "-f", "tiny.json", "-p", "data_dir", folder)
    assert answer.returncode == 0, last_error_line(answer)
    [run] = tmp_path.glob("runs/*")
    log = (run / "logs" / "train.log").read_text()
    assert f"layout of the data: {NAMES[name]}" in log
    label = describe(folder).label
    assert not label or log.count(label) == 1
    prepared = rf"prepared: {len(kept['train'])} images in \S+, 0 files unreadable"
    assert re.search(prepared, words(tmp_path / "out.ipynb"))


def test_two_sizes_in_one_folder_are_an_error_that_names_them(tmp_path):
    for size in ("256", "512"):
        DATA_SETS[f"radek1_{size}"](tmp_path / f"images_as_pngs_{size}")
    with pytest.raises(MetadataError) as caught:
        load_metadata(tmp_path)
    assert "images_as_pngs_256" in str(caught.value)
    assert "images_as_pngs_512" in str(caught.value)
    assert "data_dir" in str(caught.value)
    assert len(load_metadata(tmp_path / "images_as_pngs_256")) == 4 * WOMEN


def test_one_size_in_the_folder_of_all_is_read(tmp_path):
    DATA_SETS["radek1_256"](tmp_path / "images_as_pngs_cv2_256")
    assert len(load_metadata(tmp_path)) == 4 * WOMEN


def test_both_formats_of_vindr_in_one_folder_are_an_error_until_one_is_chosen(tmp_path):
    DATA_SETS["vindr_dicom"](tmp_path)
    DATA_SETS["vindr_png"](tmp_path)
    with pytest.raises(MetadataError, match=r"images and images_png.*data_dir"):
        load_metadata(tmp_path)
    for folder in ("images", "images_png"):
        assert len(load_metadata(tmp_path / folder)) == 4 * WOMEN


def test_a_table_in_two_places_counts_once(tmp_path):
    kept = DATA_SETS["mini_mias"](tmp_path)
    (tmp_path / "Info.txt").write_bytes((tmp_path / "all-mias" / "Info.txt").read_bytes())
    columns = ["patient_id", "laterality", "view", "path", "cancer"]
    assert rows(load_metadata(tmp_path), columns) == rows(kept["train"], columns)


def test_birads_is_no_biopsy_and_says_so():
    for layout in Layout.known():
        assert not layout.label or re.fullmatch(r"Cancer means .*[^.]\.", layout.label)
    labels = {layout.name: layout.label for layout in Layout.known()}
    assert "not a biopsy" in labels["VinDr-Mammo"]
    assert "not always proven by biopsy" in labels["INbreast"]
    assert not labels["RSNA"]


def test_an_image_whose_label_is_null_is_left_out_unless_another_row_is_positive(caplog):
    caplog.set_level("INFO")
    df = pd.DataFrame({"image_id": list("aabbcd"), "cancer": ["0", None, "1", None, None, "0"]})
    left = with_label(df, Path("t.csv"))
    assert left.to_numpy().tolist() == [["b", "1"], ["d", "0"]]
    assert "t.csv: 2 images are left out" in caplog.text


def test_of_a_breast_with_cancer_only_the_examinations_with_cancer_are_kept(caplog):
    caplog.set_level("INFO")
    df = pd.DataFrame({"patient_id": list("aaaab"), "laterality": list("LLLRL"), "year": list("12211")})
    df["cancer"] = [0, 1, 0, 0, 0]
    assert exams_with_cancer(df, "year", Path("t.csv")).index.tolist() == [1, 2, 3, 4]
    assert "1 images of 1 breasts are left out: their examination (year) shows no cancer" in caplog.text
    with pytest.raises(MetadataError, match="column 'exam' is missing"):
        exams_with_cancer(df, "exam", Path("t.csv"))


def test_a_woman_of_many_examinations_is_no_placeholder(tmp_path):
    table = pd.DataFrame({"patient_id": "p1", "laterality": "L", "view": "CC", "cancer": 0}, index=range(120))
    table.assign(image_id=table.index, exam=table.index // 8).to_csv(tmp_path / "train.csv")
    columns = '{"columns": {"view": "view"}EXAM}'
    (tmp_path / "columns.json").write_text(columns.replace("EXAM", ""))
    with pytest.raises(MetadataError, match="'p1' has 120 images"):
        load_metadata(tmp_path, check_files=False)
    (tmp_path / "columns.json").write_text(columns.replace("EXAM", ', "exam": "exam"'))
    assert len(load_metadata(tmp_path, check_files=False)) == 120


def test_findings_of_the_other_breast_and_undecided_ones_in_embed():
    [layout] = [layout for layout in Layout.known() if layout.name == "EMBED"]
    labels = layout.values["cancer"]
    expected = {
        # severity, asses, side and bside of the finding, side of the image: the label
        ("0.0", "M", "L", "L", "L"): 1,
        ("1", "M", "L", "", "L"): 1,
        ("0.0", "M", "L", "L", "R"): 0,
        ("0.0", "M", "B", "R", "R"): 1,
        ("0.0", "M", "B", "R", "L"): 0,
        ("1.0", "M", "B", "B", "L"): 1,
        ("0.0", "M", "", "", "L"): None,
        ("2.0", "S", "L", "L", "L"): 0,
        ("4.0", "S", "", "", "R"): 0,
        ("3.0", "S", "L", "L", "L"): None,
        ("6.0", "M", "R", "R", "R"): None,
        ("", "N", "", "", "R"): 0,
        ("", "B", "B", "", "L"): 0,
        ("", "A", "R", "", "L"): 0,
        ("", "A", "R", "", "R"): None,
        ("", "S", "L", "", "L"): None,
        ("", "", "", "", "L"): None,
    }
    names = ("path_severity", "asses", "side", "bside", "ImageLateralityFinal")
    texts = {each: layout.columns["cancer"].format_map(dict(zip(names, each, strict=True))) for each in expected}
    assert {each: labels[matching(text, list(labels))] for each, text in texts.items()} == expected


def test_the_page_of_data_sets_is_that_of_the_layouts():
    """`python -m tests.datasets` prints what is to be put there."""
    page = PAGE.read_text()
    tables, unverified = described(Layout.known())
    assert f"<!-- data sets -->\n{tables}\n<!-- /data sets -->" in page
    assert f"<!-- not verified -->\n{unverified}\n<!-- /not verified -->" in page


def test_every_key_of_the_language_is_on_the_page():
    page = PAGE.read_text()
    keys = set(Layout.model_fields) - {"about", "recognised_by"}
    assert not [key for key in keys if f"`{key}`" not in page]
