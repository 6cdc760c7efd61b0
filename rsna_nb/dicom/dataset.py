"""One DICOM file -> a data set that is known to hold one greyscale radiograph of a plausible size."""

import warnings
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from rsna_nb.dicom.decode import MAX_PIXELS, TRANSFER_SYNTAXES
from rsna_nb.dicom.elements import first_number
from rsna_nb.dicom.errors import UnreadableError
from rsna_nb.dicom.purpose import check_purpose
from rsna_nb.dicom.raster import format_of

DEFER_SIZE = 1_000_000  # bytes: a larger element stays on the disk until its value is used
ALLOWED = {
    "Rows": range(1, 65536),
    "Columns": range(1, 65536),
    "BitsAllocated": (8, 16),
    "BitsStored": range(1, 17),
    "HighBit": range(16),
    "PixelRepresentation": (0, 1),
}


def read_dataset(path: str | Path) -> pydicom.Dataset:
    """Read a file's data set and check that it holds one greyscale frame. The pixels are not decoded yet.

    Raises
    ------
    UnreadableError
        If the file is missing, is not DICOM, has a defective header, or holds something other than such a frame.
    """
    try:
        # The transfer syntax is checked before dcmread, which inflates a deflated file into memory, however large.
        syntax = read_file_meta_info(path).get("TransferSyntaxUID", "")
        if not isinstance(syntax, pydicom.uid.UID) or syntax not in TRANSFER_SYNTAXES:
            raise UnreadableError(f"unsupported transfer syntax: {getattr(syntax, 'name', syntax) or 'absent'}")
        dataset = pydicom.dcmread(path, defer_size=DEFER_SIZE)
        check_purpose(dataset)
        _check_frame(dataset)
    except MemoryError:
        raise
    except Exception as error:  # a damaged header makes pydicom raise nearly any built-in exception
        raise UnreadableError(header_fault(path, error)) from error
    return dataset


def read_header(path: str | Path, keywords: list[str] | None = None) -> pydicom.Dataset:
    """Read a header, or some of its elements, without the pixels. A damaged one raises nearly any built-in exception.

    `ValueError` for a deflated file: dcmread would inflate it into memory, however large, and it has no score anyway.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote the values that they warn of
        if format_of(path) != "DICOM":
            raise InvalidDicomError
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise UnreadableError("the file is deflated, and can inflate to any size")
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=keywords)


def header_fault(path: str | Path, error: Exception) -> str:
    """Say in words why a header could not be read, with the error's own text after a colon."""
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, InvalidDicomError):
        return "not a DICOM file" if Path(path).stat().st_size else "the file is empty"
    return f"{'cannot be read' if isinstance(error, OSError) else 'defective header'}: {error}"


def _check_frame(dataset: pydicom.Dataset) -> None:
    """Raise `UnreadableError` unless the data set holds one greyscale frame of 8 or 16 bits and a plausible size."""
    if "PixelData" not in dataset:
        raise UnreadableError("no PixelData (7FE0,0010): cut off, or not an image")
    photometric = dataset.get("PhotometricInterpretation", "absent")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableError(f"not a greyscale image: PhotometricInterpretation (0028,0004) is {photometric}")
    for keyword in ("SamplesPerPixel", "NumberOfFrames"):
        if first_number(dataset, keyword) not in (None, 1):
            raise UnreadableError(f"{keyword} {Tag(keyword)} must be 1: it is {dataset[keyword].value}")
    for keyword, allowed in ALLOWED.items():
        value = dataset.get(keyword)
        if not isinstance(value, int) or value not in allowed:
            words = " or ".join(map(str, allowed)) if len(allowed) == 2 else f"{allowed[0]} to {allowed[-1]}"
            raise UnreadableError(f"{keyword} {Tag(keyword)} must be {words}: it is {value}")
    if dataset.BitsStored > dataset.BitsAllocated:
        raise UnreadableError(f"BitsStored is {dataset.BitsStored}, more than BitsAllocated ({dataset.BitsAllocated})")
    if dataset.Rows * dataset.Columns > MAX_PIXELS:
        raise UnreadableError(f"{dataset.Rows} Rows x {dataset.Columns} Columns: too large for a mammogram")
