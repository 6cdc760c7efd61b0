"""The model as DICOM objects name it, and the UIDs that it gives them."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from pydicom.uid import generate_uid

from rsna_nb.dicom_out.sources import Source

MARK = "RESEARCH ONLY - NOT FOR CLINICAL USE"


class Algorithm:
    """A run or an ensemble: its name, the version of the package, and what else decides its scores."""

    def __init__(self, model: str, parameters: Sequence[str]) -> None:
        """`model` is the name of the run or ensemble; the parameters are words."""
        self.name, self.version = ascii_of(model), importlib.metadata.version("rsna_nb")
        self.parameters = [ascii_of(text) for text in parameters]

    def uid(self, *parts: str) -> str:
        """A UID that depends on the algorithm and these parts only."""
        return generate_uid(entropy_srcs=["rsna_nb", self.version, self.name, *self.parameters, *parts])

    def series(self, source: Source, number: int, what: str) -> dict[str, Any]:
        """Arguments of highdicom's classes for a series in the study of `source`, which no other patient shares."""
        return {
            "series_instance_uid": self.uid(source.study, source.patient_id, str(number)),
            "series_number": number,
            "series_description": f"{what}: {MARK}",
            "manufacturer": "rsna_nb",
            "manufacturer_model_name": self.name[:64],
            "device_serial_number": self.uid()[-16:],
            "software_versions": self.version,
            "content_qualification": "RESEARCH",
        }


def ascii_of(text: str) -> str:
    """The text in characters that every SpecificCharacterSet (0008,0005) has; others become question marks."""
    return text.encode("ascii", "replace").decode()
