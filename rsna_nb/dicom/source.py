"""A file of any format -> its stored values and what they mean, before anything is windowed or cropped."""

from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from rsna_nb.dicom.dataset import header_fault, read_dataset
from rsna_nb.dicom.decode import open_pyramid
from rsna_nb.dicom.errors import UnreadableError
from rsna_nb.dicom.pyramid import Pyramid
from rsna_nb.dicom.raster import format_of, open_raster


@dataclass(frozen=True)
class Frame:
    """The one frame of a file.

    Attributes
    ----------
    pyramid
        The stored values.
    dataset
        What they mean: the file's own data set, or one that was made for a file that is not DICOM.
    format
        "DICOM", "PNG", "JPEG", "TIFF" or "PGM".
    syntax
        The name of the transfer syntax, or a description such as "PNG, 16 bits".
    window
        The name of the window of a file that is not DICOM, such as "levels 0 255". "" if the file does not decide it.
    notes
        What is odd about the values of a file that is not DICOM, in the words of `NOTES`.
    """

    pyramid: Pyramid
    dataset: Dataset
    format: str
    syntax: str
    window: str = ""
    notes: tuple[str, ...] = ()


def open_frame(path: str | Path) -> Frame:
    """Open a file; its first bytes decide its format, not its name.

    Raises
    ------
    UnreadableError
        If the file is missing, damaged or of another format, or does not hold one greyscale frame.
    """
    try:
        name = format_of(path)
    except OSError as error:
        raise UnreadableError(header_fault(path, error)) from error
    if name == "DICOM":
        dataset = read_dataset(path)
        return Frame(open_pyramid(dataset), dataset, name, dataset.file_meta.TransferSyntaxUID.name)
    if not name:
        is_empty = Path(path).stat().st_size == 0
        raise UnreadableError("the file is empty" if is_empty else "not a DICOM, PNG, JPEG, TIFF or PGM file")
    pyramid, dataset, syntax, notes = open_raster(path, name)
    window = f"levels 0 {2**pyramid.bits - 1}" if "WindowWidth" in dataset else ""
    return Frame(pyramid, dataset, name, syntax, window, notes)
