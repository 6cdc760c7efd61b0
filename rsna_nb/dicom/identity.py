"""The patient id, side and view in a file's header, for files that come without a table.

`headers` describes data sets and reads nothing that identifies a woman. This module reads her id, which groups the
images of one woman; no name, date or other text of the header is returned.
"""

import warnings
from typing import NamedTuple

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from rsna_nb.dicom.purpose import purpose_of


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
            if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return HeaderNames()  # dcmread would inflate it into memory, however large; such a file is not scored
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            purpose = purpose_of(dataset)
            patient_id = " ".join(str(dataset.get("PatientID") or "").split())
    except Exception:  # a damaged header makes pydicom raise nearly any built-in exception
        return HeaderNames()
    return HeaderNames(patient_id, purpose.laterality, purpose.view)
