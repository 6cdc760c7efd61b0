"""The kinds of DICOM files in a data set, from their headers alone: no pixels, and nothing that identifies a woman.

Only the attributes in `ATTRIBUTES` are read. None of them is among those that DICOM's basic confidentiality profile
(PS3.15 Annex E) removes. A text value is kept only if it is one of the words that the standard defines, and of an
error only its type, so that a name in the wrong place is not shown either.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydicom.multival import MultiValue

from rsna_nb.dicom.dataset import header_fault, read_header
from rsna_nb.dicom.purpose import NO_RADIOGRAPHS, VIEWS
from rsna_nb.dicom.raster import format_of
from rsna_nb.system import workers

NUMBERS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"]
CODES = {
    "PhotometricInterpretation": {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"},
    "VOILUTFunction": {"LINEAR", "LINEAR_EXACT", "SIGMOID"},
    "ImageLaterality": {"L", "R", "U", "B"},
    "ViewPosition": VIEWS,
    "Modality": {"MG", "CR", "DX", "RG", "RF", "OT", *NO_RADIOGRAPHS},
    "PresentationIntentType": {"FOR PRESENTATION", "FOR PROCESSING"},
    "PresentationLUTShape": {"IDENTITY", "INVERSE"},
}
COUNTS = {"WindowCenter": "windows", "VOILUTSequence": "voi_tables"}  # attribute -> column with the number of values
ATTRIBUTES = [*NUMBERS, *CODES, *COUNTS]
COLUMNS = ["path", "transfer_syntax", *NUMBERS, *CODES, *COUNTS.values(), "file_bytes", "error"]
MAX_NUMBER = 65535  # these attributes have 16 bits


def scan(paths: Sequence[str], sample: int, seed: int) -> pd.DataFrame:
    """Read the headers of some files in parallel.

    Parameters
    ----------
    paths
        Image files. One that is not DICOM has no more than a size and a number of bits.
    sample
        Number of files to read, chosen at random. 0, or more than the number of `paths`, reads all.
    seed
        Seeds the choice.

    Returns
    -------
    A row for each file read, in the order of `paths`, with `COLUMNS`. `transfer_syntax` is pydicom's keyword, such as
    "JPEG2000Lossless", or the format of a file that is not DICOM, such as "PNG". `windows` and `voi_tables` are counts.
    A missing attribute is "absent" or NaN, and a word that the standard does not define is "other". `error` says why a
    header cannot be read and is "" for the others.
    """
    chosen = list(paths)
    if 0 < sample < len(chosen):
        positions = np.random.default_rng(seed).choice(len(chosen), sample, replace=False)
        chosen = [chosen[position] for position in sorted(positions)]
    rows = {}
    for path, outcome in workers.run(header, chosen):
        rows[path] = {"path": path, "error": outcome.reason} if isinstance(outcome, workers.Death) else outcome
    return pd.DataFrame([rows[path] for path in chosen], columns=COLUMNS)


def header(path: str) -> dict[str, Any]:
    """Read the header of one file: its row of `scan`. What goes wrong becomes the row's `error`."""
    row: dict[str, Any] = {"path": path, "error": ""}
    try:
        row["file_bytes"] = Path(path).stat().st_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote the values that they warn of
            name = format_of(path)
            is_raster = name not in ("DICOM", "")
            row |= _size_of(path, name) if is_raster else _allowed_values(read_header(path, ATTRIBUTES))
    except Exception as error:  # a damaged header makes pydicom raise nearly any built-in exception
        fault, *quoted = header_fault(path, error).split(":", 1)
        row["error"] = f"{fault}: {type(error).__name__}" if quoted else fault
    return row


def _size_of(path: str, name: str) -> dict[str, Any]:
    """Return what the beginning of a PNG, JPEG, TIFF or PGM file says: its size and bits."""
    with Image.open(path) as image:
        bits = 16 if image.mode.startswith("I") else 8
        numbers = {"Rows": image.height, "Columns": image.width, "BitsAllocated": bits, "BitsStored": bits}
    return {"transfer_syntax": name, **numbers, **dict.fromkeys(CODES, "absent"), **dict.fromkeys(COUNTS.values(), 0)}


def _allowed_values(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Return the allowed attributes of a data set, without any free text from the file."""
    syntax = pydicom.uid.UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    row: dict[str, Any] = {"transfer_syntax": (syntax.keyword or "other") if syntax else "absent"}
    row |= {keyword: _number(dataset.get(keyword)) for keyword in NUMBERS}
    row |= {keyword: _code(dataset.get(keyword), words) for keyword, words in CODES.items()}
    row |= {column: _count(dataset.get(keyword)) for keyword, column in COUNTS.items()}
    if np.isnan([row["Rows"], row["Columns"]]).any():
        row["error"] = "no Rows (0028,0010) and Columns (0028,0011): not an image"
    return row


def _number(value: Any) -> float:
    """Return a 16-bit number, or NaN if the value is anything else."""
    return value if isinstance(value, int) and 0 <= value <= MAX_NUMBER else float("nan")


def _code(value: Any, words: set[str]) -> str:
    """Return the value if it is one of the words, else "other" or "absent"."""
    if value in (None, ""):
        return "absent"
    return value if isinstance(value, str) and value in words else "other"


def _count(value: Any) -> int:
    """Return the number of values of an element, 0 if it is absent or empty."""
    if value in (None, ""):
        return 0
    return len(value) if isinstance(value, MultiValue | pydicom.Sequence) else 1
