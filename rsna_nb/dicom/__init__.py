"""One DICOM file -> one picture: float32 (height, width) in 0-1, the breast bright on black."""

from rsna_nb.dicom import decode, headers, preprocessing_steps, reader
from rsna_nb.dicom.crop import Placement, placement
from rsna_nb.dicom.preprocessing_steps import Step, reading_steps
from rsna_nb.dicom.reader import Box, DicomError, Reading, read_mammogram

__all__ = [
    "Box",
    "DicomError",
    "Placement",
    "Reading",
    "Step",
    "decode",
    "headers",
    "placement",
    "preprocessing_steps",
    "read_mammogram",
    "reader",
    "reading_steps",
]
