"""One file -> one image: float32 (height, width) in 0-1, the breast bright on black.

`read_mammogram` returns the image; `read` also says how the file was read. `reading_steps` returns the intermediate
images, and `headers` describes many DICOM files without reading their pixels. The first bytes of a file decide whether
it is read as DICOM, PNG, JPEG, TIFF or PGM (source.py). A reader of another format decodes into a `Pyramid`, as
raster.py does, and raises `UnreadableError`. first_place.py has the preprocessing of the challenge's winner.
"""

from rsna_nb.dicom import headers, preprocessing_steps
from rsna_nb.dicom.dataset import read_header
from rsna_nb.dicom.errors import DetectorError, DicomError, without_text
from rsna_nb.dicom.fitting import Placement, placement, shape_of
from rsna_nb.dicom.identity import MOST_OF_A_WOMAN, PLACEHOLDERS, image_names
from rsna_nb.dicom.notes import NOTES
from rsna_nb.dicom.preprocessing_steps import Step, reading_steps
from rsna_nb.dicom.reader import read, read_mammogram, reader_of
from rsna_nb.dicom.reading import Box, Reading
from rsna_nb.dicom.whole import WholePicture, read_whole

# fmt: off
__all__ = [
    "MOST_OF_A_WOMAN", "NOTES", "PLACEHOLDERS", "Box", "DetectorError", "DicomError", "Placement", "Reading", "Step",
    "WholePicture", "headers", "image_names", "placement", "preprocessing_steps", "read", "read_header",
    "read_mammogram", "read_whole", "reader_of", "reading_steps", "shape_of", "without_text",
]
# fmt: on
