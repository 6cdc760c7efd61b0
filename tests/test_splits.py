from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from rsna_nb.config import RunConfig
from rsna_nb.splits import SplitError, assign, hold_out, k_folds, leave_one_out, limit_patients
from tests.conftest import table_of
from tests.test_imbalance import rsna_table


@pytest.fixture
def table() -> pd.DataFrame:
    return table_of(200, 30)


def women(df: pd.DataFrame, rows: np.ndarray) -> set[str]:
    return set(df["patient_id"].iloc[rows])


def test_a_hold_out_separates_women_and_keeps_the_shares_of_cancer_and_sites(table):
    rest, held = hold_out(table, 0.2, seed=1)
    assert not women(table, rest) & women(table, held)
    assert sorted([*rest, *held]) == list(range(len(table)))
    assert len(women(table, held)) == 40
    assert table["cancer"].iloc[held].sum() == 24
    assert table["site_id"].iloc[held].value_counts().tolist() == [80, 80]


def test_the_same_seed_gives_the_same_split_in_any_order_of_rows(table):
    _, held = hold_out(table, 0.2, seed=1)
    shuffled = table.sample(frac=1, random_state=0)
    _, again = hold_out(shuffled, 0.2, seed=1)
    assert women(table, held) == women(shuffled, again)
    assert women(table, held) != women(table, hold_out(table, 0.2, seed=2)[1])


def test_every_woman_validates_in_one_fold_and_folds_are_alike(table):
    folds = k_folds(table, 5, seed=3)
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(len(table)))
    for training, validation in folds:
        assert not women(table, training) & women(table, validation)
        assert len(women(table, validation)) == 40
        assert table["cancer"].iloc[validation].sum() == 24


@pytest.fixture(scope="module")
def rsna() -> pd.DataFrame:
    """A table with the counts of the real one, and a woman who has images of two machines."""
    df = rsna_table().astype({"patient_id": str})
    woman = df["patient_id"] == df.loc[(df["machine_id"] == 49) & (df["cancer"] == 0), "patient_id"].iloc[-1]
    df.loc[df.index[woman][0], "machine_id"] = 93
    return df


def uneven(df: pd.DataFrame) -> pd.DataFrame:
    """The table with 1 to 8 positive images of each woman with cancer, instead of about 2."""
    positive = df[df["cancer"] == 1].drop_duplicates("patient_id")
    counts = np.random.default_rng(0).choice([1, 2, 3, 4, 6, 8], len(positive), p=[0.05, 0.5, 0.15, 0.2, 0.07, 0.03])
    return pd.concat([df[df["cancer"] == 0], positive.loc[positive.index.repeat(counts)]], ignore_index=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [lambda df: df, uneven], ids=["rsna", "uneven"])
def test_folds_of_a_table_like_the_real_one_are_alike(rsna, shape, seed):
    df = shape(rsna)
    assert df["patient_id"].nunique() == 11_913
    assert df.loc[df["cancer"] == 1, "patient_id"].nunique() == 486
    folds = [df.iloc[validation] for _, validation in k_folds(df, 5, seed)]
    assert sum(map(len, folds)) == len(df)
    assert sum(fold["patient_id"].nunique() for fold in folds) == 11_913

    def spread(count: Callable[[pd.DataFrame], int]) -> int:
        counts = [count(fold) for fold in folds]
        return max(counts) - min(counts)

    assert spread(lambda fold: fold["cancer"].sum()) <= 3
    assert spread(lambda fold: fold.loc[fold["cancer"] == 1, "patient_id"].nunique()) <= 5
    assert spread(lambda fold: fold["patient_id"].nunique()) <= 1
    assert spread(lambda fold: fold.loc[fold["site_id"] == 2, "patient_id"].nunique()) <= 5


def test_two_machines_of_the_real_table_cannot_validate_and_a_woman_of_two_machines_is_unused(rsna):
    refused, unused = {}, {}
    for machine in sorted(rsna["machine_id"].unique()):
        try:
            split = assign(rsna, RunConfig(leave_out=f"machine_id={machine}"))
        except SplitError as error:
            refused[machine] = str(error)
        else:
            assert (split == "validation").tolist() == (rsna["machine_id"] == machine).tolist()
            unused[machine] = (split == "unused").sum()
    assert set(refused) == {197, 210}
    assert all("validation" in error and "with cancer" in error for error in refused.values())
    assert {machine for machine, count in unused.items() if count} == {49, 93}


def test_leaving_a_machine_out_keeps_its_women_out_of_training(table):
    table.loc[table["image_id"] == "00", "machine_id"] = 93  # woman 0 has two machines
    splits = leave_one_out(table, "machine_id")
    assert set(splits) == {49, 50, 51, 93}
    training, validation = splits[93]
    assert women(table, validation) == {"0"}
    assert "0" not in women(table, training)
    for training, validation in splits.values():
        assert not women(table, training) & women(table, validation)


@pytest.mark.parametrize("settings", [{}, {"test_fraction": 0.25}, {"fold": 2}, {"fold": 2, "test_fraction": 0.25}])
def test_no_woman_is_on_two_sides_and_the_shares_are_of_all_women(table, settings):
    config = RunConfig(val_fraction=0.25, **settings)
    split = assign(table, config)
    assert table.assign(split=split).groupby("patient_id")["split"].nunique().eq(1).all()
    shares = split.value_counts(normalize=True)
    assert shares.get("test", 0) == pytest.approx(config.test_fraction, abs=0.01)
    fold_share = (1 - config.test_fraction) / config.n_folds
    assert shares["validation"] == pytest.approx(fold_share if config.fold >= 0 else 0.25, abs=0.01)


def test_the_test_women_are_the_same_for_every_fold(table):
    splits = [assign(table, RunConfig(test_fraction=0.2, fold=fold)) for fold in range(5)]
    tests = [frozenset(table["patient_id"][split == "test"]) for split in splits]
    assert len(set(tests)) == 1
    validations = [set(table["patient_id"][split == "validation"]) for split in splits]
    assert sum(map(len, validations)) + len(tests[0]) == 200


def test_a_group_that_is_left_out_validates_and_other_images_of_its_women_are_unused(table):
    table.loc[table["image_id"] == "00", "machine_id"] = 93  # woman 0 has two machines
    table.loc[table["image_id"] == "30", "machine_id"] = 93
    table.loc[table["patient_id"] == "190", "machine_id"] = 93
    split = assign(table, RunConfig(leave_out="machine_id=93"))
    assert (split == "validation").tolist() == (table["machine_id"] == 93).tolist()
    assert set(table["patient_id"][split == "unused"]) == {"0", "3"}
    assert split.value_counts().to_dict() == {"train": 197 * 4, "validation": 6, "unused": 6}


def test_the_test_women_are_the_same_where_a_site_is_left_out(table):
    split = assign(table, RunConfig(leave_out="site_id=2", test_fraction=0.2))
    assert (split == "test").equals(assign(table, RunConfig(test_fraction=0.2)) == "test")
    assert set(table["site_id"][split == "validation"]) == {2}
    assert set(table["site_id"][split == "train"]) == {1}


def test_machine_numbers_that_pandas_read_as_fractions_are_found(table):
    table["machine_id"] = table["machine_id"].astype(float)
    table.loc[5, "machine_id"] = np.nan
    split = assign(table, RunConfig(leave_out="machine_id=49"))
    assert (split == "validation").tolist() == (table["machine_id"] == 49).tolist()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("machine=49", "no column machine.* site_id, patient_id, "),
        ("machine_id=7", "leave_out machine_id=7: .* 49, 50, 51"),
    ],
)
def test_a_group_that_the_table_lacks_is_refused_with_those_that_it_has(table, group, message):
    with pytest.raises(SplitError, match=message):
        assign(table, RunConfig(leave_out=group))


def test_a_limit_keeps_the_share_with_cancer(table):
    df = limit_patients(table, 40, seed=0)
    assert df["patient_id"].nunique() == 40
    assert df["cancer"].sum() == 24
    assert limit_patients(table, 0, seed=0) is table


@pytest.mark.parametrize(("with_cancer", "message"), [(0, "no image with cancer"), (20, "no image without cancer")])
def test_a_table_of_one_class_is_refused(with_cancer, message):
    with pytest.raises(SplitError, match=message):
        assign(table_of(20, with_cancer), RunConfig())


def test_too_few_women_for_a_side_are_refused():
    with pytest.raises(SplitError, match=r"validation split .* no image with cancer, of 4"):
        assign(table_of(20, 1), RunConfig())


def test_a_table_without_sites_is_split():
    df = table_of(20, 10).assign(site_id=float("nan"))
    assert assign(df, RunConfig()).value_counts().to_dict() == {"train": 64, "validation": 16}
