"""Women -> training, validation, test and folds. No woman is ever in two splits.

Women are grouped into strata: those with cancer and those without, of each site. Within a stratum, women with the most
positive images come first, so that positive images are spread as evenly as women with cancer are.

Written by hand because scikit-learn's StratifiedGroupKFold, which keeps women together too, balances only the classes
and not the sites, and makes no hold-out of a given size.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pandas as pd

from rsna_nb.config import RunConfig

Indices = np.ndarray  # positions of rows, int, ascending
UNUSED = "unused"  # the split of images that are neither trained on nor evaluated
_CLASSES = {1: "with cancer", 0: "without cancer"}


class SplitError(ValueError):
    """The table has too few women, or too few with cancer, for the split."""


def hold_out(metadata: pd.DataFrame, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split the women into two groups.

    Parameters
    ----------
    metadata
        A table with patient_id, cancer and, if known, site_id; one row per image.
    fraction
        The fraction of women in the second group, 0-1. It is applied to each stratum and rounded to whole women. A
        stratum of two or more women gives at least one and keeps at least one.
    seed
        Decides which women are held out. The order of the rows has no effect.

    Returns
    -------
    The positions of the rows in the first and in the second group, each ascending.

    Examples
    --------
    >>> table = pd.DataFrame({"patient_id": list("aabbccdd"), "cancer": [1, 1, 0, 0, 1, 0, 0, 0]})
    >>> rest, held_out = hold_out(table, 0.5, seed=0)
    >>> table["patient_id"].iloc[held_out].unique().tolist()
    ['b', 'c']
    """
    held_out = []
    for women in _strata(metadata, seed):
        count = round(fraction * len(women))
        if fraction > 0 and len(women) > 1:
            count = min(max(count, 1), len(women) - 1)
        # Evenly spaced, so that women with many positive images, who come first, are in both groups.
        places = np.floor((np.arange(count) + 0.5) * len(women) / max(count, 1)).astype(int)
        held_out += [women[place] for place in places]
    return _both_sides(metadata["patient_id"].isin(held_out))


def k_folds(metadata: pd.DataFrame, n_folds: int, seed: int) -> list[tuple[Indices, Indices]]:
    """Split the women into folds. Every woman validates in exactly one.

    Women with cancer are assigned first, those with the most positive images before the others, each to the fold with
    the fewest positive images so far (Graham 1969, SIAM J. Appl. Math. 17:416). Women without cancer then go to the
    fold with the fewest women.

    Parameters
    ----------
    metadata
        A table with patient_id, cancer and, if known, site_id; one row per image.
    n_folds
        The number of folds.
    seed
        Decides which women are in which fold.

    Returns
    -------
    (training, validation) positions of rows for each fold, each ascending.

    Examples
    --------
    >>> table = pd.DataFrame({"patient_id": list("abcd"), "cancer": [1, 0, 1, 0]})
    >>> [validation.tolist() for _, validation in k_folds(table, 2, seed=0)]
    [[2, 3], [0, 1]]
    """
    positives = metadata.groupby("patient_id")["cancer"].sum().to_dict()
    fold_of: dict[str, int] = {}
    images, women = [0] * n_folds, [0] * n_folds
    # Strata come in the order of their keys, those without cancer first: reversed, those with cancer are first.
    for woman in chain.from_iterable(reversed(list(_strata(metadata, seed)))):
        # The fewest images first, then the fewest women, then the lowest number: the same choice every time.
        *_, fold = min(zip(images if positives[woman] else women, women, range(n_folds), strict=True))
        fold_of[woman] = fold
        images[fold] += positives[woman]
        women[fold] += 1
    folds = metadata["patient_id"].map(fold_of)
    return [_both_sides(folds == fold) for fold in range(n_folds)]


def leave_one_out(metadata: pd.DataFrame, column: str) -> dict[object, tuple[Indices, Indices]]:
    """Split the images by a column, such as the site or the mammography unit, once for each of its values.

    Returns
    -------
    For each value, the positions of the images of women who have no image with it, and of the images with it. A woman
    with images of two units is in the training of neither.

    Examples
    --------
    >>> table = pd.DataFrame({"patient_id": list("aabc"), "machine_id": list("XYXY")})
    >>> {machine: training.tolist() for machine, (training, _) in leave_one_out(table, "machine_id").items()}
    {'X': [3], 'Y': [2]}
    """
    values = sorted(metadata[column].dropna().unique())
    return {value: _apart(metadata, metadata[column] == value) for value in values}


def groups_of(metadata: pd.DataFrame, column: str) -> pd.Series:
    """The values of a column that images can be left out by, as text.

    Raises
    ------
    SplitError
        If the table has no such column, or it is empty. The message names the columns that have values.
    """
    if column not in metadata or metadata[column].isna().all():
        known = ", ".join(str(name) for name in metadata if metadata[name].notna().any())
        raise SplitError(f"the table has no column {column} with values to leave out; it has {known}")
    return as_text(metadata[column])


def as_text(values: pd.Series) -> pd.Series:
    """Values as text. Whole numbers are written without ".0", which pandas adds if a column has empty fields.

    Empty fields stay empty.

    Examples
    --------
    >>> as_text(pd.Series([49.0, None, 210.0])).tolist()
    ['49', nan, '210']
    """
    return values.map(
        lambda value: str(int(value)) if isinstance(value, float) and value.is_integer() else str(value),
        na_action="ignore",
    )


def limit_patients(metadata: pd.DataFrame, patients: int, seed: int) -> pd.DataFrame:
    """The images of about `patients` women; the fractions with cancer and of each site are kept.

    Each stratum is rounded to whole women and gives at least one. With 0, or more women than the table has, all stay.
    """
    total = metadata["patient_id"].nunique()
    if patients == 0 or patients >= total:
        return metadata
    _, kept = hold_out(metadata, patients / total, seed)
    return metadata.iloc[kept].reset_index(drop=True)


def assign(metadata: pd.DataFrame, config: RunConfig) -> pd.Series:
    """The split of each image, as the settings ask.

    The test women are set aside first. Validation then takes the hold-out or the fold of the other women. With
    `leave_out`, one group of images is the validation set, and the other images of its women are "unused".

    Returns
    -------
    "train", "validation", "test" or "unused" for each row of the table, with its index.

    Raises
    ------
    SplitError
        If a split would have no image with cancer, or none without.
    """
    split = pd.Series("train", index=metadata.index, name="split")
    rest = np.arange(len(metadata))
    if config.test_fraction > 0:
        rest, test = hold_out(metadata, config.test_fraction, config.split_seed)
        split.iloc[test] = "test"
    # val_fraction is a fraction of all women, and the hold-out below is made from those who are left.
    others = metadata.iloc[rest]
    if config.leave_out:
        training, validation = _leave_out(others, config.leave_out)
        split.iloc[np.delete(rest, training)] = UNUSED
    elif config.fold >= 0:
        _, validation = k_folds(others, config.n_folds, config.split_seed)[config.fold]
    else:
        _, validation = hold_out(others, config.val_fraction / (1 - config.test_fraction), config.split_seed)
    split.iloc[rest[validation]] = "validation"
    check_sides(metadata["cancer"], split, ["train", "validation"] + ["test"] * (config.test_fraction > 0))
    return split


def check_classes(cancer: pd.Series) -> None:
    """Raise `SplitError` if all images have cancer, or none has."""
    for value, words in _CLASSES.items():
        if not (cancer == value).any():
            raise SplitError(
                f"the table has no image {words} (column cancer is never {value}): a model cannot be trained"
            )


def check_sides(cancer: pd.Series, split: pd.Series, sides: list[str]) -> None:
    """Raise `SplitError` if one of the splits named in `sides` has no image with cancer, or none without."""
    check_classes(cancer)
    for side in sides:
        for value, words in _CLASSES.items():
            if not (cancer[split == side] == value).any():
                raise SplitError(
                    f"the {side} split would have no image {words}, of {(cancer == value).sum()} in the table: "
                    "there are too few women, limit_patients is too small, or leave_out names too small a group"
                )


def _strata(metadata: pd.DataFrame, seed: int) -> Iterator[list[str]]:
    """The women of each stratum: shuffled, then those with the most positive images first."""
    # An empty site is a stratum of its own, "nan": grouping by the value itself would drop its women.
    site = metadata["site_id"].map(str) if "site_id" in metadata else ""
    by_woman = metadata[["patient_id", "cancer"]].assign(site=site).groupby("patient_id", sort=True)
    # Sorted by patient_id before shuffling, so that the order of the table's rows does not matter.
    women = by_woman.agg(positives=("cancer", "sum"), site=("site", "first")).sample(frac=1, random_state=seed)
    women["cancer"] = women["positives"] > 0
    women = women.sort_values("positives", ascending=False, kind="stable")
    for _, group in women.groupby(["cancer", "site"], sort=True):
        yield list(group.index)


def _leave_out(metadata: pd.DataFrame, group: str) -> tuple[Indices, Indices]:
    """(training, validation) if a group such as "machine_id=49" is the validation set."""
    column, _, value = group.partition("=")
    names = groups_of(metadata, column)
    if not (names == value).any():
        # Padded with zeros, numbers sort by their size.
        known = ", ".join(names.dropna().sort_values(key=lambda name: name.str.zfill(20)).unique())
        raise SplitError(f"leave_out {group}: no image has the {column} {value}; there are {known}")
    return _apart(metadata, names == value)


def _apart(metadata: pd.DataFrame, inside: pd.Series) -> tuple[Indices, Indices]:
    """The rows of the women who have no row inside, and the rows inside."""
    # Women who have images inside and outside are not trained on.
    women = metadata.loc[inside, "patient_id"]
    return np.flatnonzero(~metadata["patient_id"].isin(women)), np.flatnonzero(inside)


def _both_sides(inside: pd.Series) -> tuple[Indices, Indices]:
    return np.flatnonzero(~inside), np.flatnonzero(inside)
