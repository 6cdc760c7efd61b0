from math import comb

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rsna_nb import metrics, plots
from rsna_nb.evaluation import imbalance
from rsna_nb.metadata import load_metadata
from rsna_nb.metrics import prior_correction
from rsna_nb.synthetic.table import TRAIN_COLUMNS
from tests.conftest import table_of

# The counts of the real train.csv: site, machine, images, positive images.
MACHINES = [
    (1, 49, 23_529, 614),
    (1, 170, 923, 23),
    (1, 190, 145, 5),
    (1, 197, 29, 0),
    (1, 210, 1_070, 0),
    (1, 216, 1_908, 8),
    (1, 93, 1_915, 14),
    (2, 21, 8_221, 154),
    (2, 29, 8_267, 161),
    (2, 48, 8_699, 179),
]
WOMEN, BREASTS_WITH_CANCER, WITH_BOTH = 11_913, 492, 6
EXTRA_VIEWS = {"MLO": 4_077, "CC": 2_939, "AT": 19, "LM": 10, "ML": 8, "LMO": 1}  # beyond one CC and one MLO per breast


def shared_out(total: int, weights: pd.Series) -> pd.Series:
    """Divide `total` into whole numbers in proportion to `weights`; the largest remainders are rounded up."""
    exact = total * weights / weights.sum()
    whole = np.floor(exact).astype(int)
    whole[(exact - whole).nlargest(total - whole.sum()).index] += 1
    return whole


def rsna_table() -> pd.DataFrame:
    """A train.csv with the counts of RSNA's and invented women, the same each time."""
    machines = pd.DataFrame(MACHINES, columns=["site_id", "machine_id", "images", "positives"])
    women = shared_out(WOMEN, machines["images"])
    with_cancer = shared_out(BREASTS_WITH_CANCER, machines["positives"])
    breasts = machines.loc[machines.index.repeat(2 * women)].reset_index(names="machine")
    number = breasts.groupby("machine").cumcount()
    breasts["patient_id"] = 10_000 + breasts.index // 2
    breasts["laterality"] = np.where(number % 2, "R", "L")
    # The first machine has the women with cancer in both breasts; all other women have it in one.
    turn = np.where(
        breasts["machine"] == 0, np.where(number < 2 * WITH_BOTH, number, number // 2 + WITH_BOTH), number // 2
    )
    single = (breasts["machine"] > 0) | (number >= 2 * WITH_BOTH)
    breasts["cancer"] = ((turn < breasts["machine"].map(with_cancer)) & ~(single & (number % 2 == 1))).astype(int)
    breasts["extra"] = 0
    for (machine, cancer), group in breasts.groupby(["machine", "cancer"]):
        images, positives = machines.loc[machine, ["images", "positives"]]
        extra = (positives if cancer else images - positives) - 2 * len(group)
        breasts.loc[group.index, "extra"] = extra // len(group) + (np.arange(len(group)) < extra % len(group))
    random = np.random.default_rng(0)
    n, cancer = len(breasts), breasts["cancer"] == 1
    woman = breasts["patient_id"] - 10_000
    has_cancer = cancer.groupby(woman).transform("max")
    age = np.clip(np.rint(np.where(has_cancer, 63, 58) + 10 * random.standard_normal(WOMEN)[woman]), 26, 89)
    biopsied = cancer | (random.random(n) < 0.033)
    recalled = ~cancer & (biopsied | (random.random(n) < 0.1))
    breasts = breasts.assign(
        age=age,
        biopsy=biopsied.astype(int),
        invasive=(cancer & (random.random(n) < 0.7)).astype(int),
        BIRADS=np.where(biopsied | recalled, 0.0, np.where(random.random(n) < 0.5, 1.0, np.nan)),
        density=np.where(breasts["site_id"] == 1, random.choice(list("ABCD"), WOMEN)[woman], None),
        difficult_negative_case=recalled,
        implant=0,
    )
    df = breasts.loc[breasts.index.repeat(2 + breasts["extra"])].reset_index(drop=True)
    picture = df.groupby(["patient_id", "laterality"]).cumcount()
    df["view"] = np.where(picture == 0, "CC", "MLO")
    df.loc[picture > 1, "view"] = random.permutation(np.repeat(list(EXTRA_VIEWS), list(EXTRA_VIEWS.values())))
    df["image_id"] = 1_000_000 + df.index
    df.loc[df.index[df["site_id"] == 1][-1_477:], "implant"] = 1
    df.loc[df.index[:: len(df) // 36], "age"] = np.nan
    return df[TRAIN_COLUMNS]


@pytest.fixture(scope="module")
def rsna(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("rsna")
    rsna_table().to_csv(folder / "train.csv", index=False)
    return load_metadata(folder, check_files=False)


def test_the_table_has_the_published_counts(rsna):
    counts = rsna.groupby(["site_id", "machine_id"])["cancer"].agg(["size", "sum"]).reset_index()
    assert sorted(map(tuple, counts.to_numpy().tolist())) == sorted(MACHINES)
    shares = imbalance.prevalence(rsna)
    assert shares["total"].tolist() == [54_706, 23_826, 11_913]
    assert shares["positives"].tolist() == [1_158, 492, 486]
    assert rsna.groupby(["patient_id", "laterality"])["cancer"].nunique().max() == 1


def test_shares_lie_within_their_wilson_intervals(rsna):
    shares = pd.concat([imbalance.prevalence(rsna), imbalance.prevalence_by(rsna)])
    assert (shares["low"] <= shares["share"]).all()
    assert (shares["share"] <= shares["high"]).all()
    breasts = imbalance.prevalence(rsna).loc["breasts"]
    assert (breasts["low"], breasts["high"]) == pytest.approx((0.01892, 0.02253), abs=1e-5)


def test_groups_count_breasts_and_every_breast_is_in_one(rsna):
    groups = imbalance.prevalence_by(rsna)
    assert groups.loc["site_id", "total"].sum() == groups.loc["density", "total"].sum() == 23_826
    assert groups.loc[("view", "CC"), "positives"] == groups.loc[("view", "MLO"), "positives"] == 492
    assert groups.loc[("density", "not given"), "total"] == groups.loc[("site_id", "2"), "total"]
    machines = [group for column, group in groups.index if column == "machine_id"]
    assert machines == sorted(machines, key=int)


def test_a_column_that_is_missing_or_empty_has_no_groups():
    table = table_of(6, 2).drop(columns="implant").assign(age=np.nan)
    assert set(imbalance.prevalence_by(table).index.unique("column")) == {"site_id", "machine_id", "view"}


def test_groups_have_names_and_empty_fields_are_a_group():
    ages = pd.Series([39.9, 40, 70, np.nan], name="age")
    assert imbalance.group_names(ages).tolist() == ["under 40", "40 to 49", "70 and over", "not given"]
    machines = pd.Series([49.0, 210.0, np.nan], name="machine_id")
    assert imbalance.group_names(machines).tolist() == ["49", "210", "not given"]
    assert imbalance.in_order(pd.Series(["210", "not given", "49"])) == ["49", "210", "not given"]


def test_constant_guesses_score_what_the_definitions_say(rsna):
    labels = rsna.groupby(["patient_id", "laterality"])["cancer"].max()
    guesses = {"never": 0.0, "share": labels.mean(), "always": 1.0}
    scores = imbalance.constant_guesses(labels, guesses)
    assert scores.loc["always", "pF1"] == scores.loc["always", "F1"] == pytest.approx(0.0405, abs=5e-5)
    assert scores.loc["share", "pF1"] == pytest.approx(0.0206, abs=5e-5)
    assert scores.loc["never", "accuracy"] == pytest.approx(0.979, abs=5e-4)
    assert (scores["AUC"] == 0.5).all()
    assert scores["average precision"].tolist() == pytest.approx([labels.mean()] * 3)
    assert scores["cross-entropy"].idxmin() == scores["Brier"].idxmin() == "share"
    assert scores.loc["share", "cross-entropy"] == pytest.approx(log_loss(labels, np.full(len(labels), labels.mean())))
    assert np.isnan(scores.loc["never", "PPV"])


def test_the_best_constant_is_the_share_and_with_weights_one_half(rsna):
    share, weights = rsna["cancer"].mean(), metrics.class_weights(rsna["cancer"])
    guesses = np.linspace(0.001, 0.999, 999)
    plain = imbalance.constant_loss(guesses, share, {0: 1, 1: 1})
    weighted = imbalance.constant_loss(guesses, share, weights)
    assert guesses[plain.argmin()] == pytest.approx(share, abs=1e-3)
    assert guesses[weighted.argmin()] == pytest.approx(0.5, abs=1e-3)
    assert weighted.min() == pytest.approx(np.log(2))
    assert prior_correction(0.5, weights) == pytest.approx(share)


def test_positives_in_a_batch_are_as_counted_by_hand():
    table = imbalance.batches(200, 6, [16, 64])
    for size, row in table.iterrows():
        ways = [comb(6, found) * comb(194, size - found) / comb(200, size) for found in range(7)]
        assert row["none"] == pytest.approx(ways[0])
        assert row["expected"] == pytest.approx(sum(found * chance for found, chance in enumerate(ways)))
        assert sum(ways[int(row["low"]) : int(row["high"]) + 1]) >= 0.9
    assert table.loc[16, "none_an_epoch"] == pytest.approx(12 * table.loc[16, "none"])


def test_a_clustered_auc_is_scikit_learns_and_single_rows_have_delongs_variance():
    random = np.random.default_rng(0)
    labels = np.arange(300) < 60
    scores = np.round(random.normal(labels, 1.0), 1)  # with ties
    above, below = scores[labels], scores[~labels]
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    delong = wins.mean(axis=1).var(ddof=1) / len(above) + wins.mean(axis=0).var(ddof=1) / len(below)
    auc, variance = metrics.clustered_auc(labels, scores, np.arange(300))
    assert auc == pytest.approx(roc_auc_score(labels, scores))
    assert variance == pytest.approx(delong, rel=1e-6)
    twice = metrics.clustered_auc(np.tile(labels, 2), np.tile(scores, 2), np.tile(np.arange(300), 2))
    assert twice == pytest.approx((auc, variance))


def test_a_clustered_interval_covers_the_true_auc_where_a_womans_breasts_are_alike():
    random = np.random.default_rng(1)
    held = []
    for _ in range(400):
        has_cancer = np.repeat(np.arange(300) < 60, 2)
        shared = np.repeat(random.normal(size=300), 2)
        labels = has_cancer & (np.arange(600) % 2 == 0)
        scores = 0.8 * shared + 0.6 * random.normal(size=600) + labels
        auc, variance = metrics.clustered_auc(labels, scores, np.repeat(np.arange(300), 2))
        held.append(abs(auc - 0.760) < 1.96 * np.sqrt(variance))  # Phi(1 / sqrt 2)
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.slow
def test_columns_of_train_csv_alone_give_the_diagnosis_away(rsna):
    found = imbalance.shortcuts(rsna, seed=0).set_index(["kind", "column"])
    assert (found["unavailable"] == "").all()
    assert found.loc[("train.csv", imbalance.TOGETHER["train.csv"]), "auc"] == 1
    assert found.loc[("train.csv", "biopsy"), "auc"] > 0.95
    assert 0.6 < found.loc[("before", "age"), "auc"] < found.loc[("before", imbalance.TOGETHER["before"]), "auc"] < 0.75
    assert found.loc[("train.csv", "density"), "low"] < 0.5 < found.loc[("train.csv", "density"), "high"]


def test_shortcuts_that_cannot_be_measured_have_a_reason():
    table = table_of(60, 12).assign(BIRADS=np.nan)
    found = imbalance.shortcuts(table, seed=0).set_index("column")["unavailable"]
    assert found["biopsy"] == "not in this table"
    assert found["BIRADS"] == "empty in this table"
    assert found["implant"] == found["view"] == "the same for every breast"
    assert found["site_id"] == ""
    few = imbalance.shortcuts(table_of(60, 9), seed=0)
    assert few["unavailable"].str.contains("too few women with cancer (9", regex=False).all()
    assert few["auc"].isna().all()


def test_a_table_of_three_women_is_explored_without_a_warning():
    rows = [[1, str(woman), str(10 * woman), "L", "CC", np.nan, int(woman == 1), 0, 7] for woman in (1, 2, 3)]
    columns = ["site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "implant", "machine_id"]
    table = pd.DataFrame(rows, columns=columns)
    units, weights = imbalance.prevalence(table), metrics.class_weights(table["cancer"])
    found = imbalance.shortcuts(table, seed=42)
    figures = [
        plots.prevalence_forest(units),
        plots.prevalence_forest(imbalance.prevalence_by(table), units.loc["breasts", "share"]),
        plots.accuracy_trap(1 / 3),
        plots.constant_losses(1 / 3, weights),
        plots.prior_correction_curve(weights),
        plots.batch_positives(imbalance.batches(3, 1, [3])),
        plots.shortcut_aucs(found),
    ]
    for figure in figures:
        figure.draw_without_rendering()
    assert set(found["unavailable"]) == {"too few women with cancer (1, of 10 needed)"}
