"""A picture with its heat map -> a Secondary Capture (PS3.3 A.8.1)."""

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from rsna_nb.dicom_out.algorithm import MARK, Algorithm
from rsna_nb.dicom_out.sources import Source

SERIES = {"": 9001, "L": 9002, "R": 9003}  # a series has one Laterality; the numbers are far from those of a modality
NARROWEST = 640  # pixels: room for the mark
BAND = 48  # rows above a picture of that width, which carry the mark, so that it covers no tissue
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")


def capture(
    picture: np.ndarray, source: Source, header: Dataset, side: str, number: int, algorithm: Algorithm
) -> Dataset:
    """Make a Secondary Capture without the attributes of patient and study.

    Parameters
    ----------
    picture
        uint8 (height, width, 3) in RGB, oriented as the source is.
    source, header
        The image file that the picture shows.
    side
        "L", "R", or "" if unknown.
    number
        InstanceNumber, from 1.
    algorithm
        The model of the heat map.
    """
    from highdicom.sc import SCImage

    result = SCImage(
        marked(picture, algorithm.name),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("A", "F"),  # highdicom asks for one; the source's follows
        study_instance_uid=source.study,
        sop_instance_uid=algorithm.uid(source.instance),
        instance_number=number,
        **algorithm.series(source, SERIES[side], "Heat map"),
    )
    result.Laterality = side
    result.PatientOrientation = header.get("PatientOrientation")  # empty if unknown
    result.ImageType = ["DERIVED", "SECONDARY"]
    result.ConversionType = "WSD"
    result.BurnedInAnnotation = "YES"
    result.BodyPartExamined = "BREAST"
    result.DerivationDescription = f"{MARK}. The image that {algorithm.name} scored, with its heat map in orange"
    result.SourceImageSequence = [_reference(source)]
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in header:  # what was lost in the source is lost here
            result[keyword] = header[keyword]
    return result


def _reference(source: Source) -> Dataset:
    """An item of SourceImageSequence (0008,2112)."""
    item, purpose = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.sop_class, source.instance
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = SOURCE_IMAGE[:3]
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def marked(picture: np.ndarray, model: str) -> np.ndarray:
    """Enlarge a picture to at least `NARROWEST` pixels, and add a band above it with the mark and the model's name.

    Both the picture and the result are uint8 (height, width, 3).
    """
    times = -(-NARROWEST // picture.shape[1])
    enlarged = cv2.resize(picture, None, fx=times, fy=times, interpolation=cv2.INTER_NEAREST)
    band = np.zeros((BAND, NARROWEST, 3), np.uint8)
    for text, bottom in ((MARK, 19), (f"heat map of {model}", 40)):
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
        size = 0.6 * min(1.0, (NARROWEST - 60) / width)
        cv2.putText(band, text, (8, bottom), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA)
    width = enlarged.shape[1]
    return np.vstack([cv2.resize(band, (width, BAND * width // NARROWEST)), enlarged])
