"""A table of images -> the women of the page, their images in the order in which radiologists hang them.

Right breasts stand on the left and left breasts on the right, the CC views above the MLO views. Earlier examinations
stand left of later ones.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from rsna_nb.metadata import BREAST
from rsna_nb.notebook import UnavailableError

COLUMNS = ["path", *BREAST, "view"]
# Columns that tell examinations apart and order them in time; EMBED's accession numbers (acc_anon) do not.
EXAMS = ("date", "exam", "exam_year", "study_date_anon", "Acquisition date")
VIEWS = ("CC", "MLO")
OF_A_WOMAN = ("age", "site_id", "machine_id", "density", "implant")
OF_AN_IMAGE = ("image_id", "cancer", "score", "attention", "BIRADS", "biopsy", "invasive", "difficult_negative_case")


def check_table(images: pd.DataFrame, lists: Mapping[str, Iterable[str]], maps: Iterable[str]) -> None:
    """Raise `ValueError` for a table without a column, and for women and maps that it lacks.

    A table without images raises `UnavailableError`.
    """
    if images.empty:
        raise UnavailableError("there are no images to show")
    if missing := [name for name in COLUMNS if name not in images]:
        raise ValueError(f"the table of images lacks the columns {', '.join(missing)}")
    odd = images.loc[~images["laterality"].isin(["L", "R"]), "path"]
    if len(odd):
        raise ValueError(f"laterality must be L or R: it is neither in {len(odd)} rows, first of {odd.iloc[0]}")
    known = set(images["patient_id"])
    for name, women in lists.items():
        if unknown := [woman for woman in women if woman not in known]:
            raise ValueError(f"list {name!r}: {len(unknown)} women are not in the table, first {unknown[0]}")
    paths = set(images["path"].astype(str))
    if unknown := [path for path in maps if str(path) not in paths]:
        raise ValueError(f"{len(unknown)} maps are of files that the table lacks, first {unknown[0]}")


def exam_column(images: pd.DataFrame) -> str:
    """Return the column that tells a woman's examinations apart, "" if the table has none."""
    return next((name for name in EXAMS if name in images), "")


def women_of(images: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the women in the order of the table, each with her id, facts and examinations.

    An examination has a name, "" if the table tells none apart, and rows of two images, right and left: positions in
    the table or None.
    """
    numbered = images.assign(number=range(len(images)))
    exam = exam_column(images)
    women = []
    for patient_id, rows in numbered.groupby("patient_id", sort=False):
        parts = rows.groupby(exam, dropna=False) if exam else [("", rows)]
        exams = [{"name": _text(name), "rows": _hung(part)} for name, part in parts]
        women.append({"id": str(patient_id), "facts": facts_of(rows.iloc[0], OF_A_WOMAN), "exams": exams})
    return women


def _hung(rows: pd.DataFrame) -> list[list[int | None]]:
    """Return lines of (right, left), CC above MLO above other views; a repeated view gets another line."""
    names = rows["view"].fillna("").astype(str).str.upper()  # tables may have cc for CC
    repeat = names.groupby([rows["laterality"], names]).cumcount()
    views = names.map(lambda view: (VIEWS.index(view), "") if view in VIEWS else (len(VIEWS), view))
    lines: dict[tuple[Any, int], dict[str, int]] = {}
    for view, again, side, number in zip(views, repeat, rows["laterality"], rows["number"], strict=True):
        lines.setdefault((view, int(again)), {})[side] = int(number)
    return [[lines[key].get("R"), lines[key].get("L")] for key in sorted(lines)]


def facts_of(row: pd.Series, names: Iterable[str]) -> dict[str, str]:
    """Return the values of a row that are not empty, as text by their names."""
    return {name: _text(row[name]) for name in names if name in row and pd.notna(row[name])}


def _text(value: Any) -> str:
    """Return a whole number, a fraction with up to four digits that count, or another value as text."""
    is_fraction = isinstance(value, float) and not value.is_integer()
    return f"{value:.4g}" if is_fraction else f"{value:.0f}" if isinstance(value, float) else str(value)
