"""The generated data set: layout, determinism, headers and codecs, anatomy, and no leak of the label."""

import io
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

from rsna_nb import metrics, synthetic
from rsna_nb.synthetic import anatomy, drawing, files
from rsna_nb.synthetic import table as tables
from rsna_nb.synthetic.lesions import LESION_KINDS
from tests.bench.bench_synthetic_honesty import leak_auc
from tests.films import make_breast

SMALL = {"patients": 5, "prevalence": 0.4, "seed": 3, "scale": 0.06, "test_patients": 2}
MACHINES = {machine.machine_id: machine for machine in tables.MACHINES}
LOOK = drawing.Look()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, generated in this process."""
    return synthetic.generate(tmp_path_factory.mktemp("synthetic") / "data", workers=1, **SMALL)


@pytest.fixture(scope="module")
def table(data_dir: Path) -> pd.DataFrame:
    return pd.read_csv(data_dir / "train.csv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@cache
def breasts(count: int, **arguments: object) -> list[anatomy.Breast]:
    return [make_breast(np.random.default_rng(seed), **arguments) for seed in range(count)]


def women(count: int, **arguments: object) -> list[dict[str, anatomy.Breast]]:
    return [anatomy.make_woman(np.random.default_rng(seed), **arguments) for seed in range(count)]


def kinds(breast: anatomy.Breast) -> list[str]:
    return [lesion.kind for lesion in breast.lesions]


# The table


def test_the_table_has_the_real_columns_and_a_row_for_each_image() -> None:
    table = synthetic.make_table(500, 0.1, seed=0)
    assert list(table.columns) == tables.TRAIN_COLUMNS
    assert table["image_id"].is_unique
    assert table.groupby("patient_id")["cancer"].max().sum() == 50
    views = table.groupby(["patient_id", "laterality"])["view"]
    assert views.agg(lambda v: {"CC", "MLO"} <= set(v)).all()
    assert table["age"].dropna().between(26, 89).all()


def test_each_woman_has_one_machine_and_at_most_one_affected_breast() -> None:
    table = synthetic.make_table(500, 0.5, seed=1)
    assert (table.groupby("patient_id")[["machine_id", "site_id", "age"]].nunique() <= 1).all(axis=None)
    assert (table.groupby(["patient_id", "laterality"])["cancer"].nunique() == 1).all()
    assert table[table["cancer"] == 1].groupby("patient_id")["laterality"].nunique().max() == 1


def test_all_ten_machines_occur_and_site_2_has_neither_density_nor_implants() -> None:
    table = synthetic.make_table(4000, 0.3, seed=2)
    assert set(table["machine_id"]) == set(MACHINES)
    site_2 = table[table["site_id"] == 2]
    assert site_2["density"].isna().all()
    assert not site_2["implant"].any()
    assert table[table["site_id"] == 1]["density"].isin(list("ABCD")).all()


def test_the_table_depends_on_the_seed_alone() -> None:
    assert synthetic.make_table(50, 0.3, 5).equals(synthetic.make_table(50, 0.3, 5))
    assert not synthetic.make_table(50, 0.3, 5).equals(synthetic.make_table(50, 0.3, 6))


@pytest.mark.parametrize("prevalence", [0.0, 0.001, 1.0])
def test_a_table_in_which_no_woman_or_every_woman_has_cancer_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="at least one woman with and one without"):
        synthetic.make_table(20, prevalence, 0)


@pytest.mark.parametrize(("prevalence", "seed"), [(0.04, 0), (0.4, 7)])
def test_the_columns_of_test_csv_predict_cancer_no_better_than_real_ones(prevalence: float, seed: int) -> None:
    assert 0.55 < leak_auc(synthetic.make_table(4000, prevalence, seed)) <= 0.68


# The files


def test_layout_is_that_of_the_competition(data_dir: Path, table: pd.DataFrame) -> None:
    test = pd.read_csv(data_dir / "test.csv")
    assert list(table.columns) == tables.TRAIN_COLUMNS
    assert list(test.columns) == tables.TEST_COLUMNS
    for split, rows in (("train", table), ("test", test)):
        named = {f"{row.patient_id}/{row.image_id}.dcm" for row in rows.itertuples()}
        found = {f"{path.parent.name}/{path.name}" for path in (data_dir / f"{split}_images").rglob("*.*")}
        assert found == named
    submission = pd.read_csv(data_dir / "sample_submission.csv")
    assert list(submission.columns) == ["prediction_id", "cancer"]
    assert list(submission["prediction_id"]) == list(test["prediction_id"].unique())
    assert test["patient_id"].nunique() == SMALL["test_patients"]
    assert not set(test["patient_id"]) & set(table["patient_id"])


def test_the_files_do_not_depend_on_the_number_of_workers(data_dir: Path, tmp_path: Path) -> None:
    synthetic.generate(tmp_path / "again", workers=2, **SMALL)
    assert contents(tmp_path / "again") == contents(data_dir)


def test_an_interrupted_generation_continues_to_the_same_bytes(data_dir: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(data_dir, part)
    (part / "generated.json").rename(part / "generating.json")
    for name in ("train.csv", "lesions.csv", "test.csv"):
        (part / name).unlink()
    files = sorted(part.rglob("*.dcm"))
    for path in files[::2]:
        path.unlink()
    (files[0].with_name(".half.dcm.1.part")).write_bytes(b"half")
    synthetic.generate(part, workers=1, **SMALL)
    assert contents(part) == contents(data_dir)


def test_a_complete_data_set_is_not_touched(data_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    assert synthetic.generate(data_dir, workers=1, **SMALL) == data_dir
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_other_arguments_for_the_same_folder_are_refused(data_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"seed=3, not 4"):
        synthetic.generate(data_dir, workers=1, **{**SMALL, "seed": 4})


@pytest.mark.parametrize("wrong", [{"scale": 0.01}, {"scale": 2}, {"test_patients": -1}, {"prevalence": 0}])
def test_an_argument_out_of_range_is_named_and_nothing_is_written(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        synthetic.generate(tmp_path / "data", workers=1, **{**SMALL, **wrong})
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize("name", ["train.csv", "train_images"])
def test_a_folder_with_data_that_was_not_generated_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "train_images" else (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=f"{name} .*not generated"):
        synthetic.generate(tmp_path, workers=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_generated_json_holds_the_arguments(data_dir: Path) -> None:
    assert json.loads((data_dir / "generated.json").read_text()) == {
        "generator_version": tables.VERSION,
        **SMALL,
    }


# DICOM


def stored_pixels(dataset: pydicom.Dataset) -> list[np.ndarray]:
    """Decode the pixels, by two independent decoders if the syntax is compressed."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == ExplicitVRLittleEndian:
        return [dataset.pixel_array]
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    if syntax == JPEG2000Lossless:
        shifted = np.asarray(Image.open(io.BytesIO(frame)))  # Pillow shifts 12 bits up to 16
        return [imagecodecs.jpeg2k_decode(frame), shifted >> 4]
    return [decode(frame) for decode in (imagecodecs.jpeg8_decode, imagecodecs.jpegsof3_decode)]


@pytest.mark.parametrize("machine", tables.MACHINES, ids=lambda machine: str(machine.machine_id))
def test_every_machine_stores_the_pixels_drawn_and_its_own_header(machine: tables.Machine, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (97, 81)).astype(np.uint16)
    path = tmp_path / "image.dcm"
    files.write_dicom(path, pixels, machine, {"SOPInstanceUID": "1.2.3"})
    dataset = pydicom.dcmread(path)
    inverted = machine.machine_id in (210, 29)
    assert dataset.PhotometricInterpretation == ("MONOCHROME1" if inverted else "MONOCHROME2")
    for stored in stored_pixels(dataset):
        assert np.array_equal(4095 - stored if inverted else stored, pixels)
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, 12, 11)
    assert dataset.get("VOILUTFunction") == machine.voi
    assert np.atleast_1d(dataset.get("WindowWidth", 750)).astype(float).min() >= 750


def test_sv1_files_are_lossless_jpeg_with_selection_value_1() -> None:
    frame = next(generate_frames(files.encode(np.zeros((16, 16), np.uint16), JPEGLosslessSV1), number_of_frames=1))
    start_of_frame, start_of_scan = frame.index(b"\xff\xc3"), frame.index(b"\xff\xda")
    assert frame[start_of_frame + 4] == 12  # precision
    assert frame[start_of_scan + 7] == 1  # Ss: the predictor


def test_machines_have_the_peculiarities_of_the_real_ones() -> None:
    images = sum(machine.images for machine in tables.MACHINES)
    sigmoid = [machine for machine in tables.MACHINES if machine.voi == "SIGMOID"]
    assert sum(machine.images for machine in sigmoid) / images == pytest.approx(0.22, abs=0.01)
    assert all(len(machine.windows) > 1 for machine in sigmoid)
    assert {m.machine_id for m in tables.MACHINES if m.photometric == "MONOCHROME1"} == {210, 29}
    assert {m.syntax for m in tables.MACHINES} == {JPEG2000Lossless, JPEGLosslessSV1, ExplicitVRLittleEndian}


def test_headers_agree_with_the_table(data_dir: Path, table: pd.DataFrame) -> None:
    for row in table.itertuples():
        dataset = pydicom.dcmread(data_dir / "train_images" / str(row.patient_id) / f"{row.image_id}.dcm")
        machine = MACHINES[row.machine_id]
        assert dataset.PatientID == str(row.patient_id)
        assert dataset.ViewPosition == row.view
        assert dataset.file_meta.TransferSyntaxUID == machine.syntax
        assert (dataset.Rows, dataset.Columns) == (round(machine.rows * 0.06), round(machine.columns * 0.06))
        assert float(dataset.ImagerPixelSpacing[0]) == pytest.approx(machine.spacing / 0.06, rel=1e-4)


# The breasts


@pytest.mark.parametrize("implant", [False, True])
@pytest.mark.slow
def test_a_cancer_lies_within_the_breast_in_the_views_that_show_it(implant: bool) -> None:
    for breast in breasts(40, cancer=True, implant=implant):
        assert [lesion.cancer for lesion in breast.lesions].count(1) == 1
        for view in ("CC", "MLO"):
            _, mask = drawing.draw_mammogram(breast, view, (200, 154), np.random.default_rng(0), LOOK)
            for _, (x_min, y_min, x_max, y_max) in drawing.lesion_boxes(breast, view, (200, 154)):
                assert mask[y_min:y_max, x_min:x_max].mean() > 0.97
                assert x_max > x_min
                assert y_max > y_min


def test_no_lesion_lies_over_the_muscle_or_the_implant() -> None:
    for breast in breasts(40, cancer=True, implant=True):
        for lesion in breast.lesions:
            assert all(
                breast.outlines[v].holds(*lesion.centre(breast.outlines[v], v), lesion.radius) for v in lesion.offset
            )


def test_a_lesion_is_as_far_behind_the_nipple_in_both_views() -> None:
    both = [breast for breast in breasts(40, cancer=True) if len(breast.lesions[0].offset) == 2]
    assert len(both) > 20
    for breast in both:
        lesion = breast.lesions[0]
        places = [outline.depth - lesion.centre(outline, view)[0] for view, outline in breast.outlines.items()]
        assert places[0] == pytest.approx(places[1])


def test_a_right_breast_lies_at_the_right_edge_with_its_boxes() -> None:
    breast = breasts(1, laterality="R", cancer=True)[0]
    _, mask = drawing.draw_mammogram(breast, "CC", (200, 154), np.random.default_rng(0), LOOK)
    assert mask[:, -1].any()
    assert not mask[:, 0].any()
    x_min, _, x_max, _ = drawing.lesion_boxes(breast, "MLO", (200, 154))[0][1]
    assert x_min > 154 / 3
    assert x_max <= 154


@pytest.mark.slow
def test_healthy_breasts_have_look_alikes_as_often_as_those_with_cancer() -> None:
    healthy, affected = breasts(400), breasts(400, cancer=True)
    for kind in ("smooth_mass", "single_calcification"):
        assert sum(kind in kinds(breast) for breast in healthy) > 60
    calcifications = [np.mean([kinds(b).count("single_calcification") for b in group]) for group in (healthy, affected)]
    assert calcifications[0] == pytest.approx(calcifications[1], rel=0.25)
    benign = {"smooth_mass", "single_calcification", "overlap", "symmetric_density"}
    assert {kind for breast in healthy for kind in kinds(breast)} == benign


def share(group: list[anatomy.Breast], *names: str) -> float:
    return float(np.mean([any(name in kinds(breast) for name in names) for breast in group]))


@pytest.mark.slow
def test_neither_overlaps_nor_densities_in_a_single_breast_tell_a_cancer() -> None:
    """A woman's other breast does: a density is malignant if that breast has none at the mirrored place."""
    healthy, affected = breasts(400), breasts(400, cancer=True)
    assert share(healthy, "overlap") == pytest.approx(share(affected, "overlap"), abs=0.06)  # standard error 0.028
    densities = share(healthy, "symmetric_density"), share(affected, "asymmetric_density")
    assert min(densities) > 0.12
    assert densities[0] == pytest.approx(densities[1], abs=0.08)


def test_an_overlap_looks_like_a_malignant_mass_and_is_in_one_view_alone() -> None:
    found = [lesion for breast in breasts(200) for lesion in breast.lesions if lesion.kind == "overlap"]
    assert len(found) > 20
    assert {len(lesion.offset) for lesion in found} == {1}
    assert not any(lesion.cancer for lesion in found)
    own, malignant = LESION_KINDS["overlap"], LESION_KINDS["spiculated_mass"]
    assert (own.shape, own.radius, own.contrast) == (malignant.shape, malignant.radius, malignant.contrast)


@pytest.mark.parametrize("view", anatomy.VIEWS)
@pytest.mark.slow
def test_neither_size_nor_place_of_an_overlap_tells_it_from_a_malignant_mass(view: str) -> None:
    pairs = [
        (lesion.cancer, lesion.radius, lesion.behind_nipple, lesion.offset[view])
        for breast in breasts(1000, cancer=True)
        for lesion in breast.lesions
        if lesion.kind in ("overlap", "spiculated_mass") and view in lesion.offset
    ]
    malignant, *measures = np.array(pairs).T
    assert 60 < len(malignant) - malignant.sum() < malignant.sum()
    for measure in measures:
        assert metrics.auc(malignant, measure) == pytest.approx(0.5, abs=0.1)  # standard error below 0.035


def test_a_share_of_malignant_masses_and_clusters_is_shown_by_one_view_alone() -> None:
    malignant = [breast.lesions[0] for breast in breasts(400, cancer=True)]
    assert all(lesion.cancer for lesion in malignant)
    single = [len(lesion.offset) == 1 for lesion in malignant if lesion.kind != "asymmetric_density"]
    assert np.mean(single) == pytest.approx(anatomy.ONE_VIEW, abs=0.07)
    assert all(len(lesion.offset) == 2 for lesion in malignant if lesion.kind == "asymmetric_density")
    breast = next(breast for breast in breasts(100, cancer=True) if len(breast.lesions[0].offset) == 1)
    (shown,) = breast.lesions[0].offset
    hidden = {"CC": "MLO", "MLO": "CC"}[shown]
    assert breast.lesions[0] in [lesion for lesion, _ in drawing.lesion_boxes(breast, shown, (200, 154))]
    assert breast.lesions[0] not in [lesion for lesion, _ in drawing.lesion_boxes(breast, hidden, (200, 154))]


def test_a_benign_density_is_in_both_breasts_at_mirrored_places() -> None:
    pairs = [
        [lesion for breast in woman.values() for lesion in breast.lesions if lesion.kind == "symmetric_density"]
        for woman in women(200)
    ]
    assert {len(pair) for pair in pairs} == {0, 2}
    for left, right in filter(None, pairs):
        assert left.seed == right.seed
        assert abs(left.behind_nipple - right.behind_nipple) < 0.06
        assert all(abs(left.offset[view] - right.offset[view]) < 0.06 for view in ("CC", "MLO"))


def test_both_breasts_of_a_woman_are_alike_and_are_no_copies() -> None:
    """The same view of both, mirrored: their coarse structures agree more than those of two women."""

    def coarse(breast: anatomy.Breast, seed: int) -> np.ndarray:
        plain = anatomy.Breast("L", breast.density, reference.outlines, (), breast.tissue_seed)
        pixels, _ = drawing.draw_mammogram(plain, "CC", (200, 154), np.random.default_rng(seed), LOOK)
        return cv2.resize(pixels[:, :80].astype(np.float32), (10, 25), interpolation=cv2.INTER_AREA).ravel()

    group = women(12)
    reference = group[0]["L"]
    left, right = ([coarse(woman[side], seed) for woman in group] for side, seed in (("L", 1), ("R", 2)))
    assert not any(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
    mean = np.mean([*left, *right], axis=0)  # what all breasts have in common
    own = [np.corrcoef(a - mean, b - mean)[0, 1] for a, b in zip(left, right, strict=True)]
    others = [np.corrcoef(a - mean, b - mean)[0, 1] for a, b in zip(left, [*right[1:], right[0]], strict=True)]
    assert np.mean(own) > 0.5 > 0.2 > np.mean(others)


def test_lesions_csv_has_a_row_for_each_view_that_shows_a_finding(data_dir: Path, table: pd.DataFrame) -> None:
    lesions = pd.read_csv(data_dir / "lesions.csv").merge(table[["image_id", "view", "laterality"]], on="image_id")
    key = ["patient_id", "laterality"]
    malignant = lesions[lesions["cancer"] == 1]
    positive = table[table["cancer"] == 1]
    assert set(map(tuple, malignant[key].to_numpy())) == set(map(tuple, positive[key].drop_duplicates().to_numpy()))
    of_overlaps = lesions[lesions["kind"] == "overlap"].groupby(key)["view"].nunique()
    assert (of_overlaps == 1).all()
    sides = lesions[lesions["kind"] == "symmetric_density"].groupby("patient_id")["laterality"].nunique()
    assert (sides == 2).all()


def test_a_lesion_is_brighter_than_the_tissue_without_it() -> None:
    breast = next(b for b in breasts(50, cancer=True, density="A") if kinds(b)[0] == "spiculated_mass")
    without = anatomy.Breast(breast.laterality, breast.density, breast.outlines, (), breast.tissue_seed)
    drawn, plain = (
        drawing.draw_mammogram(b, "MLO", (400, 308), np.random.default_rng(1), LOOK)[0] for b in (breast, without)
    )
    difference, boxes = drawn.astype(int) - plain, drawing.lesion_boxes(breast, "MLO", (400, 308))
    x_min, y_min, x_max, y_max = boxes[0][1]
    assert difference[y_min:y_max, x_min:x_max].max() > 300
    for _, (x_min, y_min, x_max, y_max) in boxes:
        difference[y_min:y_max, x_min:x_max] = 0
    assert np.abs(difference).max() < 60  # nothing but the noise, which follows the signal


def test_the_air_is_dark_except_for_the_marker_away_from_the_breast() -> None:
    for view in ("CC", "MLO"):
        pixels, mask = drawing.draw_mammogram(breasts(1)[0], view, (500, 385), np.random.default_rng(0), LOOK)
        rows, columns = np.nonzero((pixels > 0) & ~mask)
        assert columns.min() > 385 / 2
        assert rows.max() < 500 / 4
        assert pixels[~mask].max() > 3500  # how letters are smoothed depends on the version of OpenCV
        assert pixels[mask].mean() > 400


def test_density_makes_a_breast_brighter_on_average() -> None:
    means = []
    for density in "ABCD":
        drawn = [
            drawing.draw_mammogram(breast, "CC", (200, 154), np.random.default_rng(seed), LOOK)
            for seed, breast in enumerate(breasts(12, density=density))
        ]
        means.append(np.mean([pixels[mask].mean() for pixels, mask in drawn]))
    assert means == sorted(means)


def test_a_full_size_picture_has_full_size_noise_and_marker() -> None:
    pixels, mask = drawing.draw_mammogram(breasts(1)[0], "CC", (3328, 2560), np.random.default_rng(0), LOOK)
    assert pixels.shape == mask.shape == (3328, 2560)
    tissue = pixels[1600:1700, 300:400].astype(float)
    assert np.abs(np.diff(tissue, axis=1)).mean() > 3


@pytest.mark.slow
def test_two_processes_that_make_one_data_set_share_the_work(data_dir: Path, tmp_path: Path) -> None:
    code = "import sys; from rsna_nb import synthetic; synthetic.generate(sys.argv[1], 5, 0.4, 3, 0.06, 2, workers=1)"
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "both"], stderr=subprocess.DEVNULL) for _ in "ab"]
    assert [child.wait() for child in both] == [0, 0]
    assert contents(tmp_path / "both") == contents(data_dir)
