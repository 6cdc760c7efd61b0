"""Which files there are, from their headers alone: no pixel is read, and nothing that tells who a woman is.

Only what stands in `ATTRIBUTES` is read. None of it is among the attributes that the basic confidentiality profile
of DICOM (PS3.15 Annex E) removes. Text is kept only where it is one of the words that the standard defines, and of
an error its kind alone: a name that stands in a wrong place is not shown either.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from rsna_nb.system import workers

NUMBERS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"]
CODES = {
    "PhotometricInterpretation": {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"},
    "VOILUTFunction": {"LINEAR", "LINEAR_EXACT", "SIGMOID"},
    "ImageLaterality": {"L", "R", "U", "B"},
}
COUNTED = ["WindowCenter", "VOILUTSequence"]  # how many there are, not what they hold
ATTRIBUTES = [*NUMBERS, *CODES, *COUNTED]
COLUMNS = ["path", "transfer_syntax", *NUMBERS, *CODES, "windows", "voi_tables", "file_bytes", "error"]
LARGEST = 65535  # of a number that DICOM keeps in 16 bits


def scan(paths: Sequence[str], sample: int, seed: int) -> pd.DataFrame:
    """The headers of some files, a row each, in the order of `paths`.

    Parameters
    ----------
    paths
        DICOM files.
    sample
        How many of them, drawn at random by `seed`; 0, or more than there are: all.

    Returns
    -------
    `COLUMNS`: `transfer_syntax` is the keyword that pydicom gives it, `windows` and `voi_tables` are counts, an
    attribute that is absent is "absent" or NaN, and a word that the standard does not know is "other". A header that
    cannot be read has an `error`, which is "" for the others.
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
    """The row of one file; it never raises."""
    row: dict[str, Any] = {"path": path, "error": ""}
    try:
        row["file_bytes"] = Path(path).stat().st_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote what they warn of
            row |= attributes(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=ATTRIBUTES))
    except FileNotFoundError:
        row["error"] = "the file is missing"
    except InvalidDicomError:
        row["error"] = "not a DICOM file" if row["file_bytes"] else "the file is empty"
    except Exception as error:  # pydicom's are of many kinds, and their messages quote what they could not read
        row["error"] = f"defective header: {type(error).__name__}"
    return row


def attributes(dataset: pydicom.Dataset) -> dict[str, Any]:
    """The allowed attributes, none of their values text of somebody's own."""
    syntax = pydicom.uid.UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    row: dict[str, Any] = {"transfer_syntax": (syntax.keyword or "other") if syntax else "absent"}
    row |= {keyword: number(dataset.get(keyword)) for keyword in NUMBERS}
    row |= {keyword: code(dataset.get(keyword), words) for keyword, words in CODES.items()}
    row |= {name: count(dataset.get(keyword)) for name, keyword in zip(["windows", "voi_tables"], COUNTED, strict=True)}
    if np.isnan([row["Rows"], row["Columns"]]).any():
        row["error"] = "no Rows (0028,0010) and Columns (0028,0011): not an image"
    return row


def number(value: Any) -> float:
    return value if isinstance(value, int) and 0 <= value <= LARGEST else float("nan")


def code(value: Any, words: set[str]) -> str:
    if value in (None, ""):
        return "absent"
    return value if isinstance(value, str) and value in words else "other"


def count(value: Any) -> int:
    """Values that an element has: 0 where it is absent or empty."""
    if value in (None, ""):
        return 0
    return len(value) if isinstance(value, MultiValue | pydicom.Sequence) else 1
