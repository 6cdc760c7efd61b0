"""What DICOM objects need to know of the image files that they are made from."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from rsna_nb.dicom import read_header

REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # a study's is the name of a folder, so that nothing else may be in it


class Source(NamedTuple):
    """The UIDs of an image file, and the patient id, which separates patients."""

    path: str
    study: str
    series: str
    instance: str
    sop_class: str
    patient_id: str


def sources_of(files: Iterable[str]) -> list[Source | str]:
    """Read the UIDs of each file; text says why a file can have no DICOM object."""
    found: list[Source | str] = []
    first: dict[str, str] = {}  # the file of each SOPInstanceUID
    for file in files:
        source = _source_of(file)
        if isinstance(source, Source) and source.instance in first:
            source = f"it has the SOPInstanceUID (0008,0018) of {first[source.instance]}"
        elif isinstance(source, Source):
            first[source.instance] = file
        found.append(source)
    return found


def _source_of(file: str) -> Source | str:
    try:
        header = read_header(file)
    except Exception:  # a damaged header makes pydicom raise nearly any built-in exception
        return "it is not a DICOM file, or its header is damaged"
    uids = {keyword: str(header.get(keyword) or "") for keyword in REQUIRED}
    if faults := [keyword for keyword, value in uids.items() if not UID.fullmatch(value)]:
        return f"{', '.join(faults)} missing, or not a UID"
    study, series, instance, sop_class = uids.values()
    return Source(file, study, series, instance, sop_class, str(header.get("PatientID") or ""))
