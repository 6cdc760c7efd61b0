"""One generated picture -> one DICOM file, with the codec, header and windows of its machine."""

from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    generate_uid,
)

from rsna_nb.synthetic.drawing import MAX_VALUE
from rsna_nb.synthetic.table import VERSION, Machine
from rsna_nb.system import write_whole


def write_dicom(path: Path, pixels: NDArray[np.uint16], machine: Machine, header: dict[str, Any]) -> None:
    """Write 12-bit pixels, tissue bright, as a file of `machine`.

    Parameters
    ----------
    path : Path
        Its folder is made if missing; the file appears whole or not at all.
    pixels : ndarray of uint16, shape (rows, columns)
        0-4095. Stored inverted where the machine writes MONOCHROME1.
    machine : Machine
        Decides the transfer syntax, photometric interpretation and windows.
    header : dict
        DICOM keyword -> value; `SOPInstanceUID` is required.
    """
    if machine.photometric == "MONOCHROME1":
        pixels = MAX_VALUE - pixels
    dataset = Dataset()
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.Modality = "MG"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.BodyPartExamined = "BREAST"
    dataset.Manufacturer = "Generated"
    dataset.ManufacturerModelName = f"Machine {machine.machine_id}"
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = machine.photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    add_windows(dataset, machine)
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = encode(pixels, machine.syntax)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = machine.syntax
    dataset.file_meta.ImplementationClassUID = generate_uid(entropy_srcs=["rsna_nb.synthetic"])
    dataset.file_meta.ImplementationVersionName = f"RSNA_NB_{VERSION}"
    content = BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    write_whole(path, content.getvalue())


def add_windows(dataset: Dataset, machine: Machine) -> None:
    if machine.photometric == "MONOCHROME1" or machine.voi == "LINEAR":
        dataset.RescaleIntercept, dataset.RescaleSlope = "0", "1"
    if machine.windows:
        dataset.WindowCenter = [f"{centre:g}" for centre, _ in machine.windows]
        dataset.WindowWidth = [f"{width:g}" for _, width in machine.windows]
    if machine.voi:
        dataset.VOILUTFunction = machine.voi


def encode(pixels: NDArray[np.uint16], syntax: UID) -> bytes:
    """12-bit pixels as the PixelData of a transfer syntax, without loss."""
    if syntax == ExplicitVRLittleEndian:
        return pixels.astype("<u2").tobytes()
    if syntax == JPEG2000Lossless:
        codestream = imagecodecs.jpeg2k_encode(
            pixels, level=0, codecformat="j2k", reversible=True, bitspersample=12, resolutions=6, numthreads=1
        )
    elif syntax == JPEGLosslessSV1:  # predictor 1 is what "SV1" means; ljpeg_encode would take 6
        codestream = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=12)
    else:
        raise ValueError(f"Transfer syntax {syntax} ({UID(syntax).name}) is not among those generated.")
    return encapsulate([bytes(codestream)])
