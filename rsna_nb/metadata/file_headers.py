"""Columns that the files' headers have and the table has not, such as the view of CMMD's images."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom

from rsna_nb.dicom import read_header
from rsna_nb.metadata.checks import MetadataError, shortened
from rsna_nb.metadata.search import Images
from rsna_nb.system import workers

log = logging.getLogger(__name__)

FEW = 200  # files whose headers are read before worker processes would have started
Task = tuple[str, tuple[str, ...]]


def with_headers(images: Images, headers: dict[str, str], table: Path) -> Images:
    """Add columns from the files' headers.

    Parameters
    ----------
    images
        The rows with their files.
    headers
        Column -> DICOM keyword, or several for elements of sequences: "ViewCodeSequence.CodeMeaning". Of the rows that
        share a file, those are kept that have the header's value in every such column that the table has too.
    table
        The table's file, for messages.

    Raises
    ------
    MetadataError
        If no row agrees with the header of its file.
    """
    source, paths, exist = images
    files = list(dict.fromkeys(paths[exist]))
    values = _read_all(files, tuple(headers.values()))
    found = pd.DataFrame([values.get(path, {}) for path in paths], index=source.index, columns=list(headers.values()))
    found = found.set_axis(list(headers), axis=1).astype(object).where(found.notna().to_numpy(), None)
    unread = [path for path in files if path not in values]
    if unread:
        log.warning("%s: %d files have no header that can be read: %s", table, len(unread), shortened(unread))
    shared = [name for name in headers if name in source]
    agree = (source[shared].astype(object) == found[shared]) & found[shared].notna()
    keep = agree.all(axis=1) | ~exist
    if not (keep & exist).any():
        raise MetadataError(table, [f"no row agrees with its file's header in {', '.join(shared) or 'anything'}"])
    without = len(files) - paths[keep & exist].nunique()
    if without:
        log.info("%s: %d files have no row with their header's %s and are left out", table, without, ", ".join(shared))
    new = found[[name for name in headers if name not in source]]
    return Images(pd.concat([source, new], axis=1)[keep], paths[keep], exist[keep])


def _read_all(files: list[str], keywords: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return the values of each file that has a header."""
    tasks: list[Task] = [(file, keywords) for file in files]
    here = ((task, header_values(task)) for task in tasks)
    outcomes = workers.run(header_values, tasks) if len(tasks) > FEW else here
    return {task[0]: values for task, values in outcomes if isinstance(values, dict)}


def header_values(task: Task) -> dict[str, str] | None:
    """Return the values of some elements in a file's header, by keyword; None if there is no header."""
    path, keywords = task
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd values; they are compared as they are
            dataset = read_header(path, [keyword.partition(".")[0] for keyword in keywords])
            values = {keyword: _value(dataset, keyword) for keyword in keywords}
    except Exception:  # a damaged header makes pydicom raise nearly any built-in exception
        return None
    return {keyword: value for keyword, value in values.items() if value}


def _value(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return an element's value as text; of a sequence, the element of its first item."""
    name, _, rest = keyword.partition(".")
    value: Any = dataset.get(name)
    if value is None or (rest and not value):
        return ""
    return _value(value[0], rest) if rest else str(value).strip()
