"""The ledger of a store: ledger.csv, one row for each file, prepared or unreadable.

Rows are appended while preparing runs, so that a killed run can be continued. At the end the file is rewritten in
sorted order. A row that was cut off or damaged is dropped with a warning, and its file is prepared again.

pandas cannot read such a file: an opening quote in a damaged row would swallow the rows after it. Therefore
each line is parsed separately.
"""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import pandas as pd

from rsna_nb.dicom import NOTES
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One row of the ledger, always on one line.

    `status` is "ok" or "error", and `error` the reason. From `format` to `aspect` the fields are those of
    `dicom.Reading`; `crop` is its box as "x_min y_min x_max y_max", and `notes` its notes, joined by "; ".
    `header_laterality` and `header_view` are what the file says, "" for nothing.
    """

    patient_id: str
    image_id: str
    status: str = "ok"
    error: str = ""
    notes: str = ""
    format: str = ""
    transfer_syntax: str = ""
    photometric: str = ""
    window: str = ""
    bits: int = 0
    rows: int = 0
    columns: int = 0
    level: int = 0
    aspect: float = 1.0
    crop: str = ""
    header_laterality: str = ""
    header_view: str = ""
    source_bytes: int = 0
    source_mtime: int = 0  # time of the last change in ns
    png_bytes: int = 0
    milliseconds: float = 0.0  # for reading and writing

    @property
    def source(self) -> tuple[int, int]:
        """Bytes and time of the last change in ns of the file when it was read."""
        return self.source_bytes, self.source_mtime


MAX_LETTERS = 300  # per text: a damaged header can hold a whole file
TYPES = get_type_hints(Record)
COLUMNS = list(TYPES)
HEADER = ",".join(COLUMNS)
Ledger = dict[tuple[str, str], Record]  # (patient_id, image_id) -> the last record of the file


def read(store: Path) -> Ledger:
    """Read the ledger of a store. It is empty if there is none yet."""
    path, ledger, damaged = store / "ledger.csv", Ledger(), 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in filter(None, text.splitlines()):
        try:
            (row,) = csv.reader([line], strict=True)
            record = Record(*(kind(value) for kind, value in zip(TYPES.values(), row, strict=True)))
            ledger[record.patient_id, record.image_id] = record
        except (ValueError, csv.Error):
            damaged += line != HEADER
    if damaged:
        log.warning("%s: damaged rows dropped: %d; their files will be prepared again", path, damaged)
    return ledger


def append(store: Path, record: Record) -> None:
    """Add a row. The line break is written first, so that the row is intact even if the last one was cut off."""
    with (store / "ledger.csv").open("a", encoding="utf-8") as file:
        file.write(f"{'' if file.tell() else HEADER}\n{_as_csv([record]).rstrip()}")


def write(store: Path, ledger: Ledger) -> None:
    """Write the whole ledger, with a header and sorted by patient and image."""
    text = f"{HEADER}\n{_as_csv([ledger[key] for key in sorted(ledger)])}"
    write_whole(store / "ledger.csv", text.encode())


def count_notes(ledger: pd.DataFrame) -> pd.DataFrame:
    """Count the files of a ledger that have each note.

    Returns
    -------
    A row for each note that occurs, the most frequent first, with the columns note, files and meaning.

    Examples
    --------
    >>> count_notes(pd.DataFrame({"notes": ["turned; view", "view", ""]}))[["note", "files"]].values.tolist()
    [['view', 2], ['turned', 1]]
    """
    each = ledger["notes"].fillna("").str.split("; ").explode()
    counts = each[each != ""].value_counts().rename_axis("note").reset_index(name="files")
    return counts.assign(meaning=counts["note"].map(NOTES))


def _as_csv(records: list[Record]) -> str:
    """Return a line for each record."""
    lines = io.StringIO()
    rows = ([_one_line(value) for value in vars(record).values()] for record in records)
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def _one_line(value: str | int | float) -> str | int | float:
    """Remove characters that would break the line, such as U+2028 in a damaged header, and cut off long texts."""
    if not isinstance(value, str):
        return value
    if not value.isprintable():
        value = "".join(letter if letter.isprintable() else " " for letter in value)
    return " ".join(value.split())[:MAX_LETTERS]
