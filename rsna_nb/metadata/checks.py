"""What a table must contain to be used, and what is only logged.

A *fault* stops loading: an id that cannot be a file name, a side other than L or R, a view that is not a word, a label
other than 0 or 1. Every later step depends on these columns, and no default for them would be right.

An *odd value* is one in a column that only describes an image, such as an age of 9999 or a view that DICOM does not
define. It is logged with its row and does not stop loading, because one odd row among 54,706 should not stop
somebody who cannot change the table.
"""

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd

from rsna_nb.dicom import MOST_OF_A_WOMAN, PLACEHOLDERS

log = logging.getLogger(__name__)

BREAST = ["patient_id", "laterality"]
IDENTITY = ["patient_id", "image_id", "laterality", "view"]
PLAIN_ID = "[A-Za-z0-9][A-Za-z0-9_.-]*"  # a file name on every system, and never ".."
RULES = {
    "patient_id": (PLAIN_ID, "a plain number or word"),
    "image_id": (PLAIN_ID, "a plain number or word"),
    "laterality": ("[LR]", "L or R"),
    "view": ("[A-Za-z][A-Za-z0-9 _./+-]*", "a word such as CC or MLO"),
    "age": (r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", "a number of years"),
    "cancer": (r"[01](\.0)?", "0 or 1"),
}
"""Column -> a regular expression for the form of its values, and the same in words."""
MAY_BE_EMPTY = {"age"}

OLDEST = 120  # years; one person on record has lived longer
VIEWS = set("CC MLO ML LM LMO FB SIO ISO XCC XCCL XCCM".split())
"""Abbreviations of the views for mammography that DICOM defines (PS3.16, CID 4014)."""
VIEW_MODIFIERS = set("AC AT CV ID IMF M NP RI RL RM RS S TAN".split())
"""Abbreviations of DICOM's view modifiers (CID 4015), which tables give as views too: RSNA's has AT, axillary tail."""
YES_NO = {"0", "1"}
USUAL_VALUES = {
    "view": VIEWS | VIEW_MODIFIERS,
    "implant": YES_NO,
    "density": set("ABCD"),
    "BIRADS": {*"0123456", "4A", "4B", "4C"},
    "biopsy": YES_NO,
    "invasive": YES_NO,
    "difficult_negative_case": YES_NO | {"True", "False"},
}
AVERAGED = {"age", "implant"}
"""Columns that are averaged or summed as numbers."""
PLACEHOLDER_ADVICE = (
    "Name the column with the women's ids in a columns.json; if only the files' names have them, name that part of the "
    'name in its images, such as "images": "{image_id}_{woman}_*.dcm" with "columns": {"patient_id": "woman"}'
)
SHOWN = 20  # faults in a message, rows in a line of the log

MIXED_BREASTS = ("error", "any_positive", "keep")
MIXED_ADVICE = (
    'Correct the labels, or set mixed_breasts to "any_positive" to label all images of such a breast positive'
)
MIXED_CHANGED = '%s: mixed_breasts is "any_positive": %d images of %d breasts are now labelled positive: %s'


class MetadataError(ValueError):
    """A table that cannot be used.

    Parameters
    ----------
    path
        The file with the faults. The message begins with it.
    faults
        Every fault, one sentence each. The message holds the first twenty and the number of the others.
    advice
        What the user can do about them. It ends the message.

    Attributes
    ----------
    faults
        All faults, as given.
    """

    def __init__(self, path: str | Path, faults: list[str], advice: str = "") -> None:
        self.faults = faults
        super().__init__(f"{path}: {shortened(faults)}" + (f". {advice}" if advice else ""))


def shortened(texts: list[str]) -> str:
    """The first twenty texts in one line, and how many more there are."""
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return "; ".join(texts[:SHOWN] + more)


def faults_of(values: pd.Series, allowed: str | list[str], words: str) -> list[str]:
    """One fault for each value that is not `allowed`.

    Parameters
    ----------
    values
        A column of text. Its index holds the row numbers of the file.
    allowed
        A regular expression for the whole value, or a list of values. An empty field matches neither.
    words
        What is allowed, in words.
    """
    fits = values.str.fullmatch(allowed, na=False) if isinstance(allowed, str) else values.isin(allowed)
    return [f"row {row}: {values.name} is {_quoted(value)}, not {words}" for row, value in values[~fits].items()]


def check_rows(df: pd.DataFrame, required: list[str], path: Path, unique_images: bool, exam: str = "") -> None:
    """Raise `MetadataError` with every fault of the table.

    Parameters
    ----------
    df
        The table in RSNA's column names, all text. Its index holds the row numbers of the file.
    required
        Columns that must be there. Of the columns in `RULES`, "cancer" is checked only where it is required.
    path
        The table's file, for the message.
    unique_images
        Whether each image_id may occur in one row only.
    exam
        The column that tells a woman's examinations apart; "" if there is none.
    """
    faults = [f"column {name} is missing" for name in required if name not in df]
    for name, (pattern, words) in RULES.items():
        if name in df and (name != "cancer" or name in required):
            faults += faults_of(df[name].dropna() if name in MAY_BE_EMPTY else df[name], pattern, words)
    if unique_images and "image_id" in df:
        faults += _repeated(df["image_id"])
    if "patient_id" in df:
        check_women(df, path, exam)
        faults += differently_written(df["patient_id"].dropna())
    if faults:
        raise MetadataError(path, faults)


def check_women(df: pd.DataFrame, path: Path, exam: str = "") -> None:
    """Raise `MetadataError` if patient_id is not one woman's id: women must not be in two splits, nor be taken for one.

    Parameters
    ----------
    df
        The table with at least patient_id, as text, a row or more for each image.
    path
        The table's file, for the message.
    exam
        The column that tells examinations apart: the images of one are counted. "" counts all images of a woman.
    """
    counts = _images_of(df, exam)
    empty = int(df["patient_id"].isna().sum())
    faults = [
        f"patient_id {name!r} is a placeholder and no woman's id: {count} images have it"
        for name, count in counts.items()
        if str(name).lower() in PLACEHOLDERS
    ]
    faults += ["patient_id is empty in every row"] if empty == len(df) else []
    faults += [
        f"patient_id {name!r} has {count} images: more than {MOST_OF_A_WOMAN} cannot be of one woman"
        for name, count in counts[counts > MOST_OF_A_WOMAN].items()
        if str(name).lower() not in PLACEHOLDERS
    ]
    if faults:
        raise MetadataError(path, faults, PLACEHOLDER_ADVICE)


def _images_of(df: pd.DataFrame, exam: str) -> pd.Series:
    """Return the number of images by patient_id, those of the largest examination if examinations are told apart."""
    images = df["image_id"] if "image_id" in df else df.index.to_series()
    keys = [df[name] for name in ("patient_id", exam) if name in df]
    return images.groupby(keys, dropna=False).nunique().groupby("patient_id").max()


def note_odd_values(df: pd.DataFrame, path: Path) -> None:
    """Log odd values, each column in one line with its rows.

    An age outside of 0 to 120 years, and an `implant` other than 0 or 1, becomes a missing value in `df` itself: both
    are numbers that are averaged and summed, and codes such as -5, 9 or 9999 would falsify the result. Values in other
    columns stay as they are, because they appear as groups of their own in every figure.
    """
    age = pd.to_numeric(df["age"])  # check_rows has made sure that every age is a number
    odd = {"age": age.notna() & ~age.between(0, OLDEST)}
    for name, usual in USUAL_VALUES.items():
        if name in df:
            # pandas reads a column as object, str or float, depending on its version and on empty fields.
            odd[name] = df[name].notna() & ~df[name].astype("string").str.removesuffix(".0").isin(usual)
    for name, rows in odd.items():
        if rows.any():
            texts = [f"row {row} {value!r}" for row, value in df.loc[rows, name].items()]
            fate = "treated as missing" if name in AVERAGED else "kept as they are"
            log.warning("%s: unusual values of %s (%d) are %s: %s", path, name, len(texts), fate, shortened(texts))
            if name in AVERAGED:
                df.loc[rows, name] = None


def settle_mixed_breasts(df: pd.DataFrame, path: Path, mixed_breasts: str) -> None:
    """Handle breasts whose images disagree on cancer: every metric by breast needs one label per breast.

    Parameters
    ----------
    df
        The table, `cancer` as numbers. Its index holds the row numbers of the file.
    path
        The table's file, for the message.
    mixed_breasts
        "error" raises `MetadataError` with all such breasts. "any_positive" labels all images of such a breast
        positive in `df` itself, and logs how many it changed. "keep" leaves the labels as they are.
    """
    if mixed_breasts not in MIXED_BREASTS:
        raise ValueError(f"mixed_breasts must be one of {', '.join(MIXED_BREASTS)}, not {mixed_breasts!r}")
    labels = df.groupby(BREAST)["cancer"]
    mixed = labels.transform("nunique") > 1
    if mixed_breasts == "keep" or not mixed.any():
        return
    # Grouping only the mixed ones: a loop over all 23,826 breasts of RSNA's table takes seconds.
    breasts = df[mixed].groupby(BREAST)["cancer"]
    if mixed_breasts == "error":
        faults = [
            f"the images of patient_id {patient}, laterality {side}, disagree on cancer: it is 1 in row "
            f"{cancer.idxmax()} and 0 in row {cancer.idxmin()}"
            for (patient, side), cancer in breasts
        ]
        raise MetadataError(path, faults, MIXED_ADVICE)
    changed = mixed & (df["cancer"] == 0)
    df["cancer"] = labels.transform("max")
    rows = shortened([f"row {row}" for row in df.index[changed]])
    log.warning(MIXED_CHANGED, path, changed.sum(), len(breasts), rows)


def plain_ids(ids: pd.Series) -> pd.Series:
    """The ids in the form that 10006, 10006.0, 010006 and 1.0006E4 have in common, in small letters."""
    # pandas writes "10006.0" where a column had an empty field, and a spreadsheet drops the zeros of "010006".
    # Text is compared and not numbers: other data sets have ids of 32 digits, which a float would round.
    # Names of files that differ only in case are one file on some systems.
    plain = ids.str.lower().str.removesuffix(".0").str.lstrip("0")
    is_power = plain.str.fullmatch(r"\d\.\d+e\+?\d{1,2}", na=False)
    return plain.where(~is_power, plain[is_power].map(lambda text: f"{Decimal(text):f}"))


def differently_written(ids: pd.Series) -> list[str]:
    """Faults for ids that are one number written in several ways: one woman would count as several, and be split."""
    distinct = ids.drop_duplicates()
    first = distinct.groupby(plain_ids(distinct)).transform("first")
    return [
        f"row {row}: {ids.name} {distinct[row]} looks like another way to write {first[row]}"
        for row in distinct.index[distinct != first]
    ]


def _repeated(ids: pd.Series) -> list[str]:
    """A fault for each id that already occurs in an earlier row."""
    first = ids.index.to_series().groupby(ids).first()
    later = ids[ids.duplicated() & ids.notna()]
    return [f"row {row}: {ids.name} {text} already occurs in row {first[text]}" for row, text in later.items()]


def _quoted(value: Any) -> str:
    return "empty" if pd.isna(value) else repr(value)
