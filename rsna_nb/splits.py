"""Women -> training, validation, test and folds. No woman is ever on two sides.

Women are dealt by stratum: with cancer or without, by site. Within a stratum those with the most positive
images are dealt first, so that positive images are spread as evenly as positive women.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pandas as pd

from rsna_nb.config import RunConfig

Indices = np.ndarray  # positions of rows, int, ascending
UNUSED = "unused"  # a split that takes part in nothing


class SplitError(ValueError):
    """The table has too few women, or too few with cancer, for the split asked for."""


def hold_out(metadata: pd.DataFrame, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """(rest, held out): positions of the rows of two groups of women, the second with `fraction` of them.

    Each stratum gives its share, rounded to whole women, one at least where it has two.
    """
    held_out = []
    for women in strata(metadata, seed):
        count = round(fraction * len(women))
        if fraction > 0 and len(women) > 1:
            count = min(max(count, 1), len(women) - 1)
        places = np.floor((np.arange(count) + 0.5) * len(women) / max(count, 1)).astype(int)
        held_out += [women[place] for place in places]
    return both_sides(metadata, metadata["patient_id"].isin(held_out))


def k_folds(metadata: pd.DataFrame, n_folds: int, seed: int) -> list[tuple[Indices, Indices]]:
    """(training, validation) positions for each fold; every woman is in one validation.

    Women with cancer are dealt first, those with the most positive images before others, each to the fold with the
    fewest positive images so far (Graham 1969, SIAM J. Appl. Math. 17:416); the others go where the fewest women are.
    """
    positives = metadata.groupby("patient_id")["cancer"].sum().to_dict()
    fold_of: dict[str, int] = {}
    images, women = [0] * n_folds, [0] * n_folds
    for woman in chain.from_iterable(reversed(list(strata(metadata, seed)))):
        *_, fold = min(zip(images if positives[woman] else women, women, range(n_folds), strict=True))
        fold_of[woman] = fold
        images[fold] += positives[woman]
        women[fold] += 1
    folds = metadata["patient_id"].map(fold_of)
    return [both_sides(metadata, folds == fold) for fold in range(n_folds)]


def leave_one_out(metadata: pd.DataFrame, column: str) -> dict[object, tuple[Indices, Indices]]:
    """For each value of `column` (a site, a machine): (rows of the women who never have it, its rows).

    A woman with images of two machines is in neither machine's training.
    """
    values = sorted(metadata[column].dropna().unique())
    return {value: apart(metadata, metadata[column] == value) for value in values}


def apart(metadata: pd.DataFrame, inside: pd.Series) -> tuple[Indices, Indices]:
    """(rows of the women who have none inside, the rows inside)."""
    women = metadata.loc[inside, "patient_id"]
    return np.flatnonzero(~metadata["patient_id"].isin(women)), np.flatnonzero(inside)


def leave_out(metadata: pd.DataFrame, group: str) -> tuple[Indices, Indices]:
    """(training, validation) where `group`, as "machine_id=49", validates; `SplitError` where there is none."""
    column, _, value = group.partition("=")
    names = groups_of(metadata, column)
    if not (names == value).any():
        known = ", ".join(names.dropna().sort_values(key=lambda name: name.str.zfill(20)).unique())
        raise SplitError(f"leave_out {group}: no image has the {column} {value}; there are {known}")
    return apart(metadata, names == value)


def groups_of(metadata: pd.DataFrame, column: str) -> pd.Series:
    """The values of a column that women can be left out by, in words; `SplitError` where it is not there, or empty."""
    if column not in metadata or metadata[column].isna().all():
        known = ", ".join(str(name) for name in metadata if metadata[name].notna().any())
        raise SplitError(f"the table has no column {column} with values to leave out; it has {known}")
    return as_text(metadata[column])


def as_text(values: pd.Series) -> pd.Series:
    """As text, whole numbers without ".0"; what is empty stays so."""
    return values.map(lambda value: str(value).removesuffix(".0"), na_action="ignore")


def strata(metadata: pd.DataFrame, seed: int) -> Iterator[list[str]]:
    """The women of each stratum in the order in which they are dealt."""
    site = metadata["site_id"].map(str) if "site_id" in metadata else ""
    women = (
        metadata[["patient_id", "cancer"]]
        .assign(site=site)
        .groupby("patient_id", sort=True)
        .agg(positives=("cancer", "sum"), site=("site", "first"))
    )
    women = women.sample(frac=1, random_state=seed)
    women["cancer"] = women["positives"] > 0
    women = women.sort_values("positives", ascending=False, kind="stable")
    for _, group in women.groupby(["cancer", "site"], sort=True):
        yield list(group.index)


def both_sides(metadata: pd.DataFrame, inside: pd.Series) -> tuple[Indices, Indices]:
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def limit_patients(metadata: pd.DataFrame, patients: int, seed: int) -> pd.DataFrame:
    """The rows of about `patients` women, the shares with cancer and of sites kept; all where it is 0 or too many.

    Each stratum is rounded to whole women, and gives one at least.
    """
    total = metadata["patient_id"].nunique()
    if patients == 0 or patients >= total:
        return metadata
    _, kept = hold_out(metadata, patients / total, seed)
    return metadata.iloc[kept].reset_index(drop=True)


def assign(metadata: pd.DataFrame, config: RunConfig) -> pd.Series:
    """ "train", "validation", "test" or "unused" for each row, as the settings ask.

    The test women are set aside first; the folds or the hold-out share the others. With `leave_out` one group
    validates, and other images of its women are "unused".

    Raises
    ------
    SplitError
        Where a side has no women with cancer, or none without.
    """
    split = pd.Series("train", index=metadata.index, name="split")
    rest = np.arange(len(metadata))
    if config.test_fraction > 0:
        rest, test = hold_out(metadata, config.test_fraction, config.split_seed)
        split.iloc[test] = "test"
    others = metadata.iloc[rest]
    if config.leave_out:
        training, validation = leave_out(others, config.leave_out)
        split.iloc[np.delete(rest, training)] = UNUSED
    elif config.fold >= 0:
        _, validation = k_folds(others, config.n_folds, config.split_seed)[config.fold]
    else:
        _, validation = hold_out(others, config.val_fraction / (1 - config.test_fraction), config.split_seed)
    split.iloc[rest[validation]] = "validation"
    check_sides(metadata["cancer"], split, ["train", "validation"] + ["test"] * (config.test_fraction > 0))
    return split


CLASSES = {1: "with cancer", 0: "without cancer"}


def check_classes(cancer: pd.Series) -> None:
    """`SplitError` where all images, or none, have cancer."""
    for value, words in CLASSES.items():
        if not (cancer == value).any():
            raise SplitError(f"the table has no image {words} (column cancer is never {value}): nothing can be learned")


def check_sides(cancer: pd.Series, split: pd.Series, sides: list[str]) -> None:
    """`SplitError` where one of the sides has no image with cancer, or none without."""
    check_classes(cancer)
    for side in sides:
        for value, words in CLASSES.items():
            if not (cancer[split == side] == value).any():
                raise SplitError(
                    f"the {side} split would have no image {words}, of {(cancer == value).sum()} in the table: "
                    "there are too few women, limit_patients is too small, or leave_out names too small a group"
                )
