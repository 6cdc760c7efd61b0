"""Headers are read without pixels and without anything that identifies a woman."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1

from rsna_nb.dicom import headers
from rsna_nb.dicom import preprocessing_steps as steps
from rsna_nb.metadata import load_metadata
from rsna_nb.metadata.file_headers import header_values
from tests.conftest import write_dicom

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

WHO = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-555-0142",
    "PatientBirthDate": "19610724",
    "PatientAddress": "12 Elm Street",
    "OtherPatientIDs": "SSN-078-05",
    "AccessionNumber": "ACC778899",
    "StudyInstanceUID": "1.2.840.99999.1",
    "SeriesInstanceUID": "1.2.840.99999.2",
    "StudyDate": "20190314",
    "AcquisitionDateTime": "20190314101112",
    "InstitutionName": "Saint Elsewhere",
    "InstitutionAddress": "Boston Harbor",
    "StationName": "MAMMO-ROOM-7",
    "DeviceSerialNumber": "SN-4711-X",
    "OperatorsName": "Radtech^Rita",
    "ReferringPhysicianName": "House^Gregory",
    "PerformingPhysicianName": "Wilson^James",
    "StudyDescription": "follow-up of Mrs Doe",
    "ImageComments": "call the sister",
    "PatientComments": "afraid of needles",
    "AdditionalPatientHistory": "mother at fifty",
    "RequestingService": "Oncology West",
}
# Attributes of each kind that the basic profile of PS3.15 removes: names, ids, dates, UIDs, places, devices, free text.


def write_personal(path: Path, pixels: np.ndarray, **attributes: object) -> Path:
    """Write a mammogram whose header names people and places, also in a private and in a nested element."""
    write_dicom(path, pixels, SpecificCharacterSet="ISO_IR 100", **WHO, **attributes)
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0011, "Maker of Machines", create=True).add_new(1, "LO", "private Jane Doe")
    item = pydicom.Dataset()
    item.PatientName, item.TextValue = "Nested^Nora", "seen by Dr House"
    dataset.ContentSequence = [item]
    dataset.save_as(path)
    return path


SECRETS = [*WHO.values(), "Doe^Jane", "DOE JANE", "JANE DOE", "private Jane", "Nested^Nora", "Dr House", "of Machines"]


@pytest.fixture
def odd_files(tmp_path, breast) -> dict[str, Path]:
    """Files with one fault each, and one without."""
    whole = write_personal(tmp_path / "whole.dcm", breast)
    names = "empty", "text", "missing", "cut", "no size", "odd words", "odd letters", "pipe", "deflated"
    files = {name: tmp_path / f"{name}.dcm" for name in names}
    files["empty"].write_bytes(b"")
    os.mkfifo(files["pipe"])
    write_dicom(files["deflated"], breast, DeflatedExplicitVRLittleEndian)
    assert header_values((str(files["deflated"]), ("Rows",))) is None
    files["text"].write_text("the chart of Jane Doe")
    files["cut"].write_bytes(whole.read_bytes()[:600])
    write_personal(files["no size"], breast, Rows=None)
    write_personal(files["odd words"], breast, PhotometricInterpretation="JANE DOE", VOILUTFunction="Doe^Jane")
    in_latin = whole.read_bytes().replace(
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", b"\x08\x00\x05\x00CS\x08\x00Doe^Jane"
    )
    files["odd letters"].write_bytes(in_latin)  # pydicom warns of it and quotes it
    rows = b"\x28\x00\x10\x00US\x02\x00" + breast.shape[0].to_bytes(2, "little")
    text_for_rows = tmp_path / "text for rows.dcm"  # pydicom's error quotes it
    text_for_rows.write_bytes(whole.read_bytes().replace(rows, b"\x28\x00\x10\x00US\x09\x00Doe^Jane!"))
    return files | {"whole": whole, "text for rows": text_for_rows}


def test_scan_describes_the_files_of_a_data_set(generated):
    table = load_metadata(generated)
    found = headers.scan(table["path"].tolist(), 0, 0)
    assert found["path"].tolist() == table["path"].tolist()
    assert (found["error"] == "").all()
    assert set(found["transfer_syntax"]) <= {"JPEG2000Lossless", "JPEGLosslessSV1", "ExplicitVRLittleEndian"}
    assert (found["BitsStored"] == 12).all()
    assert (found["BitsAllocated"] == 16).all()
    assert ((found["VOILUTFunction"] == "SIGMOID") == (found["windows"] == 3)).all()
    assert found["file_bytes"].tolist() == [os.path.getsize(path) for path in table["path"]]


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1])
def test_a_file_has_its_attributes_in_a_row(tmp_path, breast, syntax):
    path = write_dicom(tmp_path / "a.dcm", breast, syntax, WindowCenter=[2048, 100], WindowWidth=[4096, 50])
    row = headers.header(str(path))
    assert row["transfer_syntax"] == syntax.keyword
    assert (row["Rows"], row["Columns"]) == breast.shape
    assert (row["PhotometricInterpretation"], row["VOILUTFunction"]) == ("MONOCHROME2", "absent")
    assert (row["windows"], row["voi_tables"], row["error"]) == (2, 0, "")


@pytest.fixture
def here(monkeypatch):
    """Headers are read in this process, which saves starting others."""
    monkeypatch.setattr(headers.workers, "run", lambda read, tasks: ((task, read(task)) for task in tasks))


def test_a_sample_depends_on_the_seed_and_keeps_the_order_of_the_files(generated, here):
    paths = load_metadata(generated)["path"].tolist()
    first, again, other = (headers.scan(paths, 7, seed)["path"].tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert first == [path for path in paths if path in first]
    assert len(first) == 7


def test_a_file_that_cannot_be_read_is_a_row_with_its_error(odd_files, here):
    found = headers.scan([str(path) for path in odd_files.values()], 0, 0)
    errors = dict(zip(odd_files, found["error"], strict=True))
    assert errors["empty"] == "the file is empty"
    assert errors["text"] == "not a DICOM file"
    assert errors["missing"] == "the file is missing"
    assert errors["text for rows"] == "defective header: BytesLengthException"
    assert errors["cut"] == errors["no size"] == "no Rows (0028,0010) and Columns (0028,0011): not an image"
    assert errors["whole"] == errors["odd words"] == errors["odd letters"] == ""
    assert errors["deflated"] == "the file is deflated, and can inflate to any size"
    assert errors["pipe"] == "cannot be read: OSError"
    odd = found.iloc[list(odd_files).index("odd words")]
    assert odd["PhotometricInterpretation"] == odd["VOILUTFunction"] == "other"


def test_nothing_that_identifies_a_woman_is_returned_or_printed(odd_files, capfd):
    found = headers.scan([str(path) for path in odd_files.values()], 0, 0)
    shown = json.dumps(found.drop(columns="path").astype(str).to_dict("records"))
    said = capfd.readouterr()
    assert not [secret for secret in SECRETS if secret in shown + said.out + said.err]


def test_all_attributes_describe_pixels_or_are_words_of_the_standard():
    others = {name for name in headers.ATTRIBUTES if Tag(name).group != 0x0028}
    assert others == {"ImageLaterality", "ViewPosition", "Modality", "PresentationIntentType", "PresentationLUTShape"}
    assert others <= set(headers.CODES)


def test_what_a_file_is_meant_for_is_in_its_row(tmp_path, breast):
    said = {"Modality": "MG", "PresentationIntentType": "FOR PROCESSING", "PresentationLUTShape": "INVERSE"}
    row = headers.header(str(write_dicom(tmp_path / "a.dcm", breast, **said, ViewPosition="MLO")))
    assert {name: row[name] for name in (*said, "ViewPosition")} == said | {"ViewPosition": "MLO"}
    names = dict.fromkeys((*said, "ViewPosition"), "DOE^JANE")
    row = headers.header(str(write_dicom(tmp_path / "b.dcm", breast, **names)))
    assert {row[name] for name in names} == {"other"}


@pytest.mark.parametrize("keyword", ["BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"])
def test_a_reason_for_a_notebook_quotes_no_text_from_the_file(tmp_path, breast, keyword):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", breast))
    tag = pydicom.datadict.tag_for_keyword(keyword)
    dataset[tag] = pydicom.DataElement(tag, "LO", "Doe^Jane", validation_mode=pydicom.config.IGNORE)
    dataset.save_as(tmp_path / "x.dcm")
    reason = steps.picture(str(tmp_path / "x.dcm"), 64)
    assert isinstance(reason, str)
    assert "Doe" not in reason


def test_a_png_file_has_a_size_and_bits_and_no_fault(tmp_path):
    for name, bits in (("8.png", np.uint8), ("16.png", np.uint16)):
        cv2.imwrite(str(tmp_path / name), np.ones((20, 10), bits))
    found = headers.scan([str(tmp_path / "8.png"), str(tmp_path / "16.png")], 0, 0)
    assert found["error"].tolist() == ["", ""]
    assert found["transfer_syntax"].tolist() == ["PNG", "PNG"]
    assert found[["Rows", "Columns", "BitsStored", "windows"]].values.tolist() == [[20, 10, 8, 0], [20, 10, 16, 0]]
    assert set(found["Modality"]) == {"absent"}
