"""The ledger of a store: ledger.csv, one row for each file that was prepared or refused.

It is appended to while the work goes on, so that a killed run knows what it had done, and written anew,
sorted, at the end. A row that was cut off or damaged is dropped, and its file is prepared again.
"""

import csv
import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

from rsna_nb.system import write_whole


@dataclass(frozen=True)
class Record:
    """A row, one line. `status` is "ok" or "error"; the picture was made from the file's at 1/2^`level` of its
    size; `crop` is "x_min y_min x_max y_max" in stored pixels, half open."""

    patient_id: str
    image_id: str
    status: str = "ok"
    error: str = ""
    transfer_syntax: str = ""
    photometric: str = ""
    window: str = ""
    bits: int = 0
    rows: int = 0
    columns: int = 0
    level: int = 0
    crop: str = ""
    source_bytes: int = 0
    source_mtime: int = 0  # ns
    png_bytes: int = 0
    milliseconds: float = 0.0


LONGEST_TEXT = 300  # letters
TYPES = get_type_hints(Record)
COLUMNS = list(TYPES)
Ledger = dict[tuple[str, str], Record]


def read(store: Path) -> Ledger:
    """(patient_id, image_id) -> the last record of each file."""
    path = store / "ledger.csv"
    ledger: Ledger = {}
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            (row,) = csv.reader([line], strict=True)
            record = Record(*(kind(value) for kind, value in zip(TYPES.values(), row, strict=True)))
        except (ValueError, csv.Error):  # the header, or a damaged row
            continue
        ledger[record.patient_id, record.image_id] = record
    return ledger


def append(store: Path, record: Record) -> None:
    """Add a row; a line that was cut off before it is closed first."""
    with (store / "ledger.csv").open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(as_csv([record]).encode())


def write(store: Path, ledger: Ledger) -> None:
    """The whole ledger, with a header and sorted by patient and image."""
    text = ",".join(COLUMNS) + "\n" + as_csv([ledger[key] for key in sorted(ledger)])
    write_whole(store / "ledger.csv", text.encode())


def as_csv(records: list[Record]) -> str:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(map(fields, records))
    return lines.getvalue()


def fields(record: Record) -> list[str | int | float]:
    """Texts come from the files: what would break a line is a space, and a damaged header is not quoted in full."""
    return [one_line(value) if isinstance(value, str) else value for value in asdict(record).values()]


def one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST_TEXT]
