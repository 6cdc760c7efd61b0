"""`predict --dicom` writes captures of the heat maps and reports of the scores into the studies of the images."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from rsna_nb import ensemble, predict
from rsna_nb.dicom_out.algorithm import MARK
from rsna_nb.dicom_out.capture import BAND, marked
from rsna_nb.metadata import load_metadata

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("highdicom"), reason="highdicom is not installed")
OF_PATIENT_AND_STUDY = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "PatientBirthDate": "19600229",
    "PatientSex": "F",
    "StudyDate": "20240102",
    "StudyTime": "101112",
    "StudyID": "7",
    "AccessionNumber": "A-1",
    "ReferringPhysicianName": "",
}


@pytest.fixture
def files(generated, tmp_path) -> list[str]:
    """The images of one woman and one study, whose header has more of both than generated files have."""
    table = load_metadata(generated)
    own = table[table["patient_id"] == table["patient_id"].iloc[0]]
    (folder := tmp_path / "images").mkdir()
    return [change(shutil.copy(path, folder), **OF_PATIENT_AND_STUDY) for path in own["path"]]


def change(path: str, **attributes: object) -> str:
    """Set attributes of a file; None removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def written(folder: Path, sop_class: str) -> list[Dataset]:
    found = [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
    return [dataset for dataset in found if dataset.SOPClassUID == sop_class]


def items(dataset: Dataset, kind: str) -> list[Dataset]:
    """All content items of a type in a report, in their order."""
    found = []
    for item in dataset.get("ContentSequence", []):
        found += [item] if item.ValueType == kind else []
        found += items(item, kind)
    return found


def groups(report: Dataset) -> list[Dataset]:
    return [each for each in items(report, "CONTAINER") if each.ConceptNameCodeSequence[0].CodeValue == "125007"]


def numbers(report: Dataset) -> list[float]:
    return [float(item.MeasuredValueSequence[0].NumericValue) for item in items(report, "NUM")]


def texts(report: Dataset) -> str:
    return "\n".join(item.TextValue for item in items(report, "TEXT"))


def referenced(item: Dataset) -> set[str]:
    return {image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for image in items(item, "IMAGE")}


def assert_valid(folder: Path) -> Path:
    """The validator, if it is installed, has nothing to say against the files of a folder; returns the last."""
    for path in sorted(folder.rglob("*.dcm")):
        if not shutil.which("dciodvfy"):
            continue
        answer = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        lines = (answer.stdout + answer.stderr).splitlines()
        # The score has a code of its own, because no standard has one for it. A side can be unknown.
        known = ("99RSNA_NB", "only permitted to be empty when actually unknown")
        faults = [line for line in lines if line.startswith(("Error", "Warning"))]
        assert [line for line in faults if not any(words in line for words in known)] == []
        assert {"SCImage", "ComprehensiveSR"} & set(lines)
    return path


@pytest.mark.slow
def test_captures_show_the_map_in_the_patients_study_and_the_sources_stay_as_they_are(model, files, tmp_path):
    before = [Path(file).read_bytes() for file in files]
    scores = predict.score_files(model, files, dicom_folder=tmp_path / "out")
    assert scores.images["notes"].eq("").all()
    captures = {
        each.SourceImageSequence[0].ReferencedSOPInstanceUID: each
        for each in written(tmp_path / "out", SecondaryCaptureImageStorage)
    }
    sources = [pydicom.dcmread(file) for file in files]
    assert set(captures) == {source.SOPInstanceUID for source in sources}
    for source in sources:
        capture = captures[source.SOPInstanceUID]
        for keyword in ("StudyInstanceUID", "PatientID", "PatientAge", *OF_PATIENT_AND_STUDY):
            assert capture.get(keyword) == source.get(keyword), keyword
        assert capture.SeriesInstanceUID != source.SeriesInstanceUID
        assert capture.Laterality == source.ImageLaterality
        assert capture.BurnedInAnnotation == "YES"
        assert capture.ContentQualification == "RESEARCH"
        assert MARK in capture.SeriesDescription
        pixels = capture.pixel_array
        assert pixels[:BAND].max() > 200, "the mark is burnt in"
        assert (pixels[BAND:, :, 0] > pixels[BAND:, :, 2]).any(), "orange marks what raised the score"
    assert len({capture.SeriesInstanceUID for capture in captures.values()}) == 2, "a series has one laterality"
    assert [Path(file).read_bytes() for file in files] == before


def test_the_report_has_the_score_of_each_image_and_breast_with_its_images(model, files, tmp_path, small_run):
    scores = predict.score_files(model, files, dicom_folder=tmp_path / "out")
    (report,) = written(tmp_path / "out", ComprehensiveSRStorage)
    sources = [pydicom.dcmread(file) for file in files]
    for keyword in ("StudyInstanceUID", "PatientID", "PatientAge", *OF_PATIENT_AND_STUDY):
        assert report.get(keyword) == sources[0].get(keyword), keyword
    assert numbers(report) == pytest.approx([*scores.images["score"], *scores.breasts["score"]], abs=1e-6)
    uids = [source.SOPInstanceUID for source in sources]
    sides = scores.images["laterality"].tolist()
    of_breasts = [{uid for uid, own in zip(uids, sides, strict=True) if own == side} for side in "LR"]
    assert [referenced(group) for group in groups(report)] == [*({uid} for uid in uids), *of_breasts]
    found = [
        item.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning[0]
        for item in items(report, "CODE")
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Finding Site"
    ]
    assert found == [*sides, "L", "R"]
    assert MARK in report.SeriesDescription
    assert MARK in texts(report)
    assert f"run {small_run.id}" in texts(report)
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")


@pytest.mark.slow
def test_a_second_run_overwrites_its_objects_and_another_model_writes_others(model, files, tmp_path):
    def names(**options) -> set[Path]:
        predict.score_files(model, files, dicom_folder=tmp_path / "out", **options)
        return set((tmp_path / "out").rglob("*.dcm"))

    first = names()
    assert names() == first
    assert len(names(flips=True)) == 2 * len(first)


def test_files_without_dicom_objects_are_scored_and_noted(model, files, tmp_path, caplog):
    picture = cv2.ellipse(np.zeros((300, 200), np.uint8), (0, 150), (120, 130), 0, 0, 360, 160, -1)
    cv2.imwrite(png := str(tmp_path / "picture.png"), picture)
    change(files[0], StudyInstanceUID=None)
    change(files[1], SOPInstanceUID=pydicom.dcmread(files[2]).SOPInstanceUID)
    given = [png, files[0], files[2], files[1]]
    images = predict.score_files(model, given, dicom_folder=tmp_path / "out").images
    assert images["score"].notna().all()
    assert "no DICOM object: it is not a DICOM file" in images["notes"][0]
    assert images["notes"][1] == "no DICOM object: StudyInstanceUID missing, or not a UID"
    assert images["notes"][2] == ""
    assert images["notes"][3] == f"no DICOM object: it has the SOPInstanceUID (0008,0018) of {files[2]}"
    assert "3 of 4 scored files, first" in caplog.text
    assert len(written(tmp_path / "out", SecondaryCaptureImageStorage)) == 1
    (report,) = written(tmp_path / "out", ComprehensiveSRStorage)
    assert numbers(report) == pytest.approx([images["score"][2]] * 2, abs=1e-6)


def test_an_image_of_an_unknown_side_has_none_in_its_objects(model, files, tmp_path):
    change(files[0], ImageLaterality=None)
    predict.score_files(model, files[:1], dicom_folder=tmp_path / "out")
    (capture,) = written(tmp_path / "out", SecondaryCaptureImageStorage)
    assert capture.Laterality == ""
    (report,) = written(tmp_path / "out", ComprehensiveSRStorage)
    assert len(numbers(report)) == 1, "the image, and no breast"
    assert_valid(tmp_path / "out")


def test_a_model_of_breasts_says_whose_score_an_image_has(breast_run, files, tmp_path):
    scores = predict.score_files(ensemble.load(str(breast_run.path)), files, dicom_folder=tmp_path / "out")
    (report,) = written(tmp_path / "out", ComprehensiveSRStorage)
    assert numbers(report)[: len(files)] == pytest.approx(scores.images["score"].tolist(), abs=1e-6)
    assert "an image has the score of its breast" in texts(report)


def test_objects_that_cannot_be_written_cost_no_scores(model, files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / pydicom.dcmread(files[0]).StudyInstanceUID).write_text("in the way of the study's folder")
    images = predict.score_files(model, files[:1], dicom_folder=tmp_path / "out").images
    assert images["score"].notna().all()
    assert "no DICOM object: it could not be made, " in images["notes"][0]


def test_no_text_of_a_header_is_in_the_note_of_an_error(model, files, tmp_path, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise ValueError("PatientName is Doe^Jane")

    monkeypatch.setattr("rsna_nb.dicom_out.results.capture", broken)
    images = predict.score_files(model, files[:1], dicom_folder=tmp_path / "out").images
    assert images["notes"][0].endswith("it could not be made, ValueError")
    assert "Doe" not in caplog.text


def test_a_sop_class_that_highdicom_does_not_know_is_noted(model, files, tmp_path):
    change(files[0], SOPClassUID="1.2.3")
    images = predict.score_files(model, files, dicom_folder=tmp_path / "out").images
    assert "no DICOM object: it could not be made, KeyError" in images["notes"][0]
    assert images["notes"][1:].eq("").all()
    (report,) = written(tmp_path / "out", ComprehensiveSRStorage)
    assert referenced(report) == {pydicom.dcmread(file).SOPInstanceUID for file in files[1:]}


def test_no_files_have_no_objects(model, tmp_path):
    assert len(predict.score_files(model, [], dicom_folder=tmp_path).images) == 0
    assert not list(tmp_path.iterdir())


def test_a_study_of_two_patients_has_a_report_for_each(model, files, tmp_path):
    change(files[0], PatientID="another")
    predict.score_files(model, files, dicom_folder=tmp_path / "out")
    reports = {report.PatientID: report for report in written(tmp_path / "out", ComprehensiveSRStorage)}
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    assert referenced(reports.pop("another")) == {uids[0]}
    (other,) = reports.values()
    assert referenced(other) == set(uids[1:])


def test_an_image_that_cannot_be_scored_is_named_in_the_report(model, files, tmp_path):
    content = Path(files[0]).read_bytes()
    Path(files[0]).write_bytes(content[: len(content) // 2])  # the header is whole
    images = predict.score_files(model, files, dicom_folder=tmp_path / "out").images
    assert images["error"][0]
    (report,) = written(tmp_path / "out", ComprehensiveSRStorage)
    uid = pydicom.dcmread(files[0], stop_before_pixels=True).SOPInstanceUID
    assert f"Not scored: the image {uid}" in texts(report)
    assert uid not in referenced(report)
    assert len(written(tmp_path / "out", SecondaryCaptureImageStorage)) == len(files) - 1


def test_no_text_of_a_header_that_is_in_an_error_is_in_the_report(model, files, tmp_path):
    change(files[0], PhotometricInterpretation="MEYER")
    images = predict.score_files(model, files, dicom_folder=tmp_path / "out").images
    assert "MEYER" in images["error"][0]
    (report,) = written(tmp_path / "out", ComprehensiveSRStorage)
    assert "Not scored: the image" in texts(report)
    assert "MEYER" not in str(report)


def test_unusual_values_of_the_patient_are_copied_as_they_are(model, files, tmp_path):
    with pydicom.config.disable_value_validation():
        odd = {"PatientSex": "UNKNOWN", "PatientBirthDate": "1960", "PatientName": "Yamada", "StudyTime": "25:00"}
        change(files[0], SpecificCharacterSet=None, **odd)
        predict.score_files(model, files[:1], dicom_folder=tmp_path / "out")
        for result in (pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")):
            assert {keyword: result[keyword].value for keyword in odd} == odd


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
def test_a_validator_finds_no_error(model, files, tmp_path):
    predict.score_files(model, files, dicom_folder=tmp_path / "out")
    broken = change(str(assert_valid(tmp_path / "out")), StudyInstanceUID=None)
    answer = subprocess.run(["dciodvfy", broken], capture_output=True, text=True, check=False)
    assert "Error" in answer.stderr + answer.stdout, "the validator says it if something is wrong"


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="dcmtk is not installed")
def test_a_second_reader_opens_them(model, files, tmp_path):
    predict.score_files(model, files[:1], dicom_folder=tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.dcm"):
        if pydicom.dcmread(path).SOPClassUID == ComprehensiveSRStorage:
            text = subprocess.run(["dsrdump", "+Pl", path], capture_output=True, text=True, check=True).stdout
            assert MARK in text
            assert 'NUM:(,,"Score of the detector' in text
        else:
            subprocess.run(["dcmj2pnm", "--write-png", path, tmp_path / "picture.png"], check=True)
            picture = cv2.imread(str(tmp_path / "picture.png"))[..., ::-1]
            np.testing.assert_array_equal(picture, pydicom.dcmread(path).pixel_array)


def test_the_mark_is_readable_above_pictures_of_all_sizes():
    for width in (31, 64, 700, 2048):
        picture = np.full((40, width, 3), 7, np.uint8)
        result = marked(picture, "a model with a name that is rather long, 20261127-101112-screening-breast-level")
        assert result.shape[1] >= 640
        assert result.shape[1] % width == 0
        band = result.shape[0] - 40 * result.shape[1] // width
        assert (result[band:] == 7).all()
        assert result[:band].max() > 200
        assert (result[:band, -4:] == 0).all(), "the text ends within the picture"


def test_without_highdicom_the_command_says_what_to_install(model, small_run, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        predict.main([str(small_run.path), files[0], "--dicom", str(tmp_path), "--out", str(tmp_path / "scores.csv")])
    assert "pip install 'rsna_nb[dicom-out]'" in capsys.readouterr().err


def test_the_command_writes_them_beside_the_table(small_run, files, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    predict.main([str(small_run.path), files[0], "--dicom", str(tmp_path / "out"), "--out", str(out)])
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 2
    assert f"DICOM objects: 2 in {tmp_path / 'out'}" in capsys.readouterr().out
    assert len(pd.read_csv(out)) == 1
