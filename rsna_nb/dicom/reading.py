"""An image, and how it was made from a file."""

from dataclasses import dataclass

import numpy as np

Box = tuple[int, int, int, int]  # x_min, y_min, x_max, y_max in pixels; the last column and row are x_max-1, y_max-1


@dataclass(frozen=True)
class Reading:
    """An image and how it was made.

    Attributes
    ----------
    picture
        float32 (height, width) in 0-1.
    transfer_syntax, photometric
        Name of the file's transfer syntax, or for instance "PNG, 16 bits", and its PhotometricInterpretation.
    window
        The VOI transformation that was applied, such as "LINEAR 2048 4096" (center and width), or "levels 0 255" for
        the levels of a picture of 8 bits.
    bits
        Bits of the stored range: BitsStored, or more if a pixel exceeds it.
    rows, columns
        Size of the file's frame in pixels.
    level
        The image was made from the frame at 1/2^level of its size.
    crop
        The breast's bounding box in pixels of the full frame.
    format
        What the file is: "DICOM", "PNG", "JPEG", "TIFF" or "PGM".
    aspect
        Height of a pixel divided by its width. Where it is not 1, the image has been resampled to square pixels.
    laterality, view
        Of the header: "L", "R" or "", and a view such as "MLO" or "". All later steps use the table's.
    notes
        What is odd about the file, in the words of `NOTES`.
    """

    picture: np.ndarray
    transfer_syntax: str
    photometric: str
    window: str
    bits: int
    rows: int
    columns: int
    level: int
    crop: Box
    format: str = "DICOM"
    aspect: float = 1.0
    laterality: str = ""
    view: str = ""
    notes: tuple[str, ...] = ()
