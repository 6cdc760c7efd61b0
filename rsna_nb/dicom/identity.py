"""The patient id, side and view of files that come without a table, from their names, headers and folders.

`headers` describes data sets and reads nothing that identifies a woman. This module reads her id, which groups the
images of one woman; no name, date or other text of the header is returned.
"""

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rsna_nb.dicom.dataset import read_header
from rsna_nb.dicom.purpose import purpose_of

log = logging.getLogger(__name__)

# 20586908_6c613a14b80a8591_MG_R_CC_ANON (INbreast), P39_L_DM_MLO (CDD-CESM), patient7-RCC, scan_LEFT_MLO
SIDE_AND_VIEW = re.compile(
    r"(?:^|[_\-. ])(L|R|LEFT|RIGHT)[_\-. ]?(?:(?:DM|CM)[_\-. ])?"
    r"(XCCL|XCCM|XCC|CC|MLO|LMO|ML|LM|AT)(?=[_\-. ]|$)",
    re.IGNORECASE,
)
WOMAN = (re.compile(r"^\d+_([0-9a-f]{16})_MG_"), re.compile(r"^(P\d+)_[LR]_(?:DM|CM)_"))  # INbreast, CDD-CESM
PLACEHOLDERS = set(
    "removed anonymous anonymized anonymised anonym anon deidentified de-identified none unknown unnamed not_available "
    "n/a na nan null nil missing empty hidden redacted patient no_id noid xxx - -- ? .".split()
)
"""What headers and tables have in place of a woman's id, in lower case."""
MOST_OF_A_WOMAN = 100  # images
NO_ID = PLACEHOLDERS | {"", "0"}


class HeaderNames(NamedTuple):
    """PatientID (0010,0020), "L" or "R", and a view such as "MLO", as a header gives them; each "" if it does not."""

    patient_id: str = ""
    laterality: str = ""
    view: str = ""


def header_names(path: str) -> HeaderNames:
    """Read patient id, side and view; all are "" if the file is not DICOM or its header is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote the values that they warn of
            dataset = read_header(path)
            purpose = purpose_of(dataset)
            patient_id = " ".join(str(dataset.get("PatientID") or "").split())
    except Exception:  # a damaged header makes pydicom raise nearly any built-in exception
        return HeaderNames()
    return HeaderNames(patient_id, purpose.laterality, purpose.view)


def image_names(files: Sequence[str]) -> pd.DataFrame:
    """Find the woman, side and view of files that come without a table.

    A file's name takes precedence over its header. Where neither has a patient id, a folder whose name is a number, as
    in RSNA's data, is the patient id. An id of more than 100 files is not used: it cannot be that of one woman. The log
    has a warning of such an id, and where a header contradicts the name or the folder.

    Returns
    -------
    A row for each file with patient_id, laterality ("L" or "R") and view, each "" if unknown.
    """
    names = pd.DataFrame([_names(file) for file in files], columns=["patient_id", "laterality", "view"], dtype=object)
    pairs = zip(files, names["patient_id"], strict=True)
    if others := [file for file, woman in pairs if _numbered_folder(Path(file)) not in ("", woman)]:
        log.warning(
            "header and folder give different patient ids, and the header's is used: %d files, first %s",
            *(len(others), others[0]),
        )
    of_each = names["patient_id"].map(names["patient_id"].value_counts())
    many = (of_each > MOST_OF_A_WOMAN) & (names["patient_id"] != "")
    if many.any():
        log.warning(
            "%d files, first %s: their patient id is not used, because more than %d images cannot be of one woman",
            *(many.sum(), files[int(many.argmax())], MOST_OF_A_WOMAN),
        )
        names.loc[many, "patient_id"] = ""
    return names


def _numbered_folder(path: Path) -> str:
    """Return "12" for 12/34.png, RSNA's <patient_id>/<image_id>; "" for other names."""
    return path.parent.name if path.stem.isdigit() and path.parent.name.isdigit() else ""


def _names(file: str) -> tuple[str, str, str]:
    """Return patient_id, laterality and view of a file, each "" if unknown. A name takes precedence over a header."""
    path = Path(file)
    found = SIDE_AND_VIEW.search(path.stem)
    laterality, view = (found[1][0].upper(), found[2].upper()) if found else ("", "")
    header = header_names(file)
    by_name = next((match[1] for match in (pattern.match(path.name) for pattern in WOMAN) if match), "")
    by_header = header.patient_id if header.patient_id.lower() not in NO_ID else ""
    if found and header.laterality and header.laterality != laterality:
        log.warning("%s: the header gives the other side; the name's is used", file)
    # The folder comes last, because <date>/<number>.dcm looks the same.
    return by_name or by_header or _numbered_folder(path), laterality or header.laterality, view or header.view
