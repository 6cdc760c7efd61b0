"""One DICOM file -> one picture: float32 (height, width) in 0-1, the breast bright on black.

`read_mammogram` and `read` are the ways in. `reading_steps` shows the same way step by step, and `headers` looks at
many files without their pixels. A reader of another format belongs beside reader.py: it decodes a file into a
`Pyramid`, calls `reader.read_frame`, returns its `Reading` and raises `DicomError`.
"""

from rsna_nb.dicom import headers, preprocessing_steps
from rsna_nb.dicom.crop import Placement, placement
from rsna_nb.dicom.errors import DicomError
from rsna_nb.dicom.preprocessing_steps import Step, reading_steps
from rsna_nb.dicom.reader import Box, Reading, read, read_mammogram, shape_of

# fmt: off
__all__ = [
    "Box", "DicomError", "Placement", "Reading", "Step", "headers", "placement", "preprocessing_steps", "read",
    "read_mammogram", "reading_steps", "shape_of",
]
# fmt: on
