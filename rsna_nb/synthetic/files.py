"""One generated image -> one DICOM file with the codec, header and windows of its machine."""

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

SAME_IN_ALL: dict[str, Any] = {
    "SOPClassUID": DigitalMammographyXRayImageStorageForPresentation, "Modality": "MG",
    "PresentationIntentType": "FOR PRESENTATION", "BodyPartExamined": "BREAST", "Manufacturer": "Generated",
    "SamplesPerPixel": 1, "PixelRepresentation": 0, "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11,
}  # fmt: skip


def write_dicom(path: Path, pixels: NDArray[np.uint16], machine: Machine, header: dict[str, Any]) -> None:
    """Write an image as a file of a machine.

    Parameters
    ----------
    path
        Its folder is made if it is missing. The file is written atomically.
    pixels
        uint16 (rows, columns), 0-4095, tissue bright. They are stored inverted if the machine writes MONOCHROME1.
    machine
        Decides the transfer syntax, the photometric interpretation and the windows.
    header
        Further attributes by DICOM keyword. `SOPInstanceUID` is required.
    """
    if machine.photometric == "MONOCHROME1":
        pixels = MAX_VALUE - pixels
    dataset, dataset.file_meta = Dataset(), FileMetaDataset()
    for keyword, value in (SAME_IN_ALL | _windows(machine) | header).items():
        setattr(dataset, keyword, value)
    dataset.ManufacturerModelName = f"Machine {machine.machine_id}"
    dataset.PhotometricInterpretation = machine.photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = encode(pixels, machine.syntax)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = machine.syntax
    dataset.file_meta.ImplementationClassUID = generate_uid(entropy_srcs=["rsna_nb.synthetic"])
    dataset.file_meta.ImplementationVersionName = f"RSNA_NB_{VERSION}"
    content = BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    write_whole(path, content.getvalue())


def _windows(machine: Machine) -> dict[str, Any]:
    """Return the attributes of rescaling and windowing that the machine writes."""
    found: dict[str, Any] = {}
    if machine.photometric == "MONOCHROME1" or machine.voi == "LINEAR":
        found |= {"RescaleIntercept": "0", "RescaleSlope": "1"}
    if machine.windows:
        found["WindowCenter"] = [f"{center:g}" for center, _ in machine.windows]
        found["WindowWidth"] = [f"{width:g}" for _, width in machine.windows]
    return found | ({"VOILUTFunction": machine.voi} if machine.voi else {})


def encode(pixels: NDArray[np.uint16], syntax: UID) -> bytes:
    """Return 12-bit pixels as the PixelData of a transfer syntax, without loss."""
    if syntax == ExplicitVRLittleEndian:
        return pixels.astype("<u2").tobytes()
    if syntax == JPEG2000Lossless:
        codestream = imagecodecs.jpeg2k_encode(
            pixels, level=0, codecformat="j2k", reversible=True, bitspersample=12, resolutions=6, numthreads=1
        )
        return encapsulate([bytes(codestream)])
    if syntax == JPEGLosslessSV1:
        # "SV1" means predictor (selection value) 1. imagecodecs.ljpeg_encode would take 6.
        return encapsulate([bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=12))])
    raise ValueError(f"Transfer syntax {syntax} ({UID(syntax).name}) is not among those generated.")
