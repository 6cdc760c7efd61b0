"""Values of data set elements that may be absent or damaged. A value that cannot be used is returned as not stated."""

from typing import Any

import numpy as np
from pydicom import Dataset, Sequence
from pydicom.multival import MultiValue


def first_number(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value of an element, or None if the element is absent, empty or not a finite number."""
    try:
        value = dataset.get(keyword)
        number = float(value[0] if isinstance(value, MultiValue) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def is_stated(dataset: Dataset, *keywords: str) -> bool:
    """Return whether an element has a value, even a damaged one that the other functions return as not stated."""
    values = [dataset.get_item(keyword).value for keyword in keywords if keyword in dataset]
    texts = [value.strip() if isinstance(value, bytes | str) else value for value in values]
    return any(text not in (None, b"", "", []) for text in texts)


def two_numbers(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return the two positive numbers of an element, or None if it holds anything else."""
    value = _stated(dataset, keyword)
    try:
        first, second = map(float, value if isinstance(value, MultiValue) else ())
    except (TypeError, ValueError):
        return None
    return (first, second) if 0 < first < np.inf and 0 < second < np.inf else None


def words(dataset: Dataset, keyword: str) -> list[str]:
    """Return the texts of an element in capitals, [] if it is absent or no text."""
    value = _stated(dataset, keyword)
    values = value if isinstance(value, MultiValue) else [value]
    return [text.strip().upper() for text in values if isinstance(text, str) and text.strip()]


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, [] if it is absent or no sequence."""
    value = _stated(dataset, keyword)
    return list(value) if isinstance(value, Sequence) else []


def _stated(dataset: Dataset, keyword: str) -> Any:
    """Return the value of an element that only describes the image, or None. A damaged one must not stop the file."""
    try:
        return dataset.get(keyword)
    except Exception:  # a damaged element makes pydicom raise nearly any built-in exception
        return None
