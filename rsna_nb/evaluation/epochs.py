"""How much the choice of the epoch flatters the women that it was chosen on.

The best of 35 epochs on some women is partly the luckiest on them, so a metric of these women must not come from an
epoch that they chose. `chosen_by_others` takes the epoch of each run of a cross-validation from the other runs, and
`choice_optimism` estimates how much a single run without test women gains.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.evaluation.evaluated_run import class_weights, held_out
from rsna_nb.metrics import PREPARE, MetricsError
from rsna_nb.notebook import Unavailable, attempt
from rsna_nb.runs import Run, RunError

KEYS = ["patient_id", "laterality", "image_id"]
FOLDS, REPEATS = 10, 20
Name = TypeVar("Name", bound=Hashable)
Value = Callable[[np.ndarray], np.ndarray]  # weights of the rows (draws, n) -> the value of each epoch (draws, epochs)


def validation_scores(run: Run) -> pd.DataFrame:
    """The run's validation_scores.csv: a row for each validation example, its ids as text, and float32 scores.

    The columns are patient_id, laterality, image_id (not where the network scores breasts), epoch_1, epoch_2 and so
    on. `RunError` if the run has no such file.
    """
    if run.is_finished and not run.imported and not (run.path / "validation_scores.csv").is_file():
        raise RunError(f"run {run.id} is of an earlier version, which kept the scores of the best epoch only")
    path = run.file("validation_scores.csv")
    names = pd.read_csv(path, nrows=0).columns
    types = {name: str if name in KEYS else "float32" for name in names}
    return pd.read_csv(path, dtype=types)


def scores_at(run: Run, images: pd.DataFrame, epoch: int) -> pd.DataFrame:
    """The images with the scores of another epoch; a breast's score stands at each of its images.

    `RunError` if the run did not keep them, `MetricsError` if an image has none.
    """
    table = validation_scores(run)
    keys, column = [name for name in KEYS if name in table], f"epoch_{epoch}"
    found = images.drop(columns="score").merge(
        table[[*keys, column]].rename(columns={column: "score"}), on=keys, how="left", validate="m:1"
    )
    if missing := int(found["score"].isna().sum()):
        raise MetricsError(f"{run.path / 'validation_scores.csv'} has no score of {missing} images of predictions.csv")
    found = found[images.columns].assign(score=found["score"].astype(float))
    return found.assign(attention=np.nan) if "attention" in found else found  # written was that of the kept network


def curve(run: Run) -> pd.Series:
    """The metric `monitor` of each epoch, negated if lower is better; the index has the phase and its epoch, from 1."""
    history = run.history
    phase = history["phase"] if "phase" in history else pd.Series("", history.index)
    index = pd.MultiIndex.from_arrays([phase, history.groupby(phase).cumcount() + 1])
    values = history[run.config.monitor].set_axis(index)
    return -values if run.config.monitor == "val_loss" else values


def chosen_by_others(curves: Mapping[Name, pd.Series]) -> dict[Name, int]:
    """For each run, the epoch with the highest mean of the other runs' curves; the first of equal ones.

    A run that stopped early keeps its last network: its curve continues with the last defined value, and where the
    chosen epoch is later than its last, it is used at its last. If the mean were taken over the runs that still
    trained, it would jump wherever a run leaves it. Runs are compared phase by phase, because early stopping ends the
    phase of the head in another epoch of each run. Empty for fewer than two runs.

    Parameters
    ----------
    curves
        `curve` of each run, higher is better: its epochs in their order, with (phase, epoch of the phase) as index, or
        with the epoch alone if there is one phase. NaN where the metric is not defined.

    Examples
    --------
    >>> first, second = pd.Series([1.0, 3.0, 2.0], [1, 2, 3]), pd.Series([5.0, 4.0], [1, 2])
    >>> chosen_by_others({0: first, 1: second})
    {0: 1, 1: 2}
    """
    if len(curves) < 2:
        return {}
    by_phase = {name: own if own.index.nlevels == 2 else pd.concat({"": own}) for name, own in curves.items()}
    phases = dict.fromkeys(phase for own in by_phase.values() for phase in own.index.get_level_values(0))
    continued = pd.concat(
        {
            phase: pd.DataFrame({name: _of_phase(own, phase) for name, own in by_phase.items()}).ffill()
            for phase in phases
        }
    )
    chosen = {}
    for name, own in by_phase.items():
        others = continued.drop(columns=name).mean(axis=1)
        if others.notna().any():
            phase, epoch = others.index[int(np.nanargmax(others.to_numpy()))]
            before = list(phases).index(phase)
            lengths = [len(_of_phase(own, each)) for each in list(phases)[: before + 1]]
            chosen[name] = sum(lengths[:-1]) + min(epoch, lengths[-1])
    return chosen


def _of_phase(own: pd.Series, phase: Any) -> pd.Series:
    """The values of a phase by its epochs, from 1; empty if the run has no such phase."""
    values = own[own.index.get_level_values(0) == phase]
    return values.set_axis(range(1, len(values) + 1))


def epochs_of(runs: Mapping[Name, Run]) -> dict[Name, int]:
    """`chosen_by_others` for the runs that kept the scores of every epoch; other runs are not in it."""
    curves = {}
    for name, run in runs.items():
        if not isinstance(own := attempt(curve, run), Unavailable):
            curves[name] = own
    kept = {name for name, run in runs.items() if (run.path / "validation_scores.csv").is_file()}
    return {name: epoch for name, epoch in chosen_by_others(curves).items() if name in kept}


def best_epoch(run: Run) -> int:
    """The epoch whose network the run kept; 0 if it is not recorded."""
    recorded = attempt(lambda: int(run.metrics.get("best_epoch", 0)))
    return 0 if isinstance(recorded, Unavailable) else recorded


@dataclass(frozen=True)
class ChoiceOptimism:
    """The AUC by breast of the epoch chosen on these women and on others of them, and the difference."""

    epochs: int
    in_sample: float
    optimism: float  # how much the choice flatters the women that it was made on

    @property
    def elsewhere(self) -> float:
        """The AUC less the optimism."""
        return self.in_sample - self.optimism


def choice_optimism(rows: pd.DataFrame, scores: np.ndarray, value: Value) -> ChoiceOptimism:
    """Estimate the optimism of the AUC by breast at the best epoch, by a repeated cross-validation of the choice.

    The women are divided into `FOLDS`, those with cancer evenly. The epoch is chosen on all folds but one, and
    compared with the epoch that all women chose, by the pairs of breasts inside this fold. The optimism is the mean
    difference of the AUC over folds and `REPEATS` divisions. The networks stay the same: only the choice is repeated
    (Efron & Tibshirani 1997, J. Am. Stat. Assoc. 92:548).

    Measured by tests/bench/bench_epoch_choice.py on 200 data sets each with nothing and with something to learn, by
    val_loss, val_auc and val_pf1: the mean differs from the true optimism, which is known to 0.005, by at most 0.005
    (-0.005 to +0.005). A bootstrap evaluated on the women not drawn is too high by 0.004 to 0.011, because drawing
    repeats women and so doubles the chance variation; Harrell's bootstrap, evaluated on all women, is too low by up
    to 0.012 where nothing is learned, because these women contain those drawn. The true optimism of one run varies by
    0.07 from data set to data set, the estimate by 0.02: it says what such a choice gains on average.

    Parameters
    ----------
    rows
        A row for each validation example, with patient_id, laterality and cancer.
    scores
        Of each row and epoch, (n, epochs).
    value
        What the choice maximises, from weights of the rows (`value_of`).

    Raises
    ------
    MetricsError
        With fewer than 2 women with cancer, or with a breast without.
    """
    breasts, by_epoch = _breasts(rows, scores)
    women = metrics.Women.of(breasts, "patient_id")
    if women.rarer < 2:
        raise MetricsError("the choice of the epoch cannot be evaluated with fewer than 2 women with cancer or without")
    folds = min(FOLDS, women.rarer)
    held = np.concatenate(
        [
            np.stack([number == own for number in range(folds)])
            for own in (metrics.assign_folds(breasts, folds, seed) for seed in range(REPEATS))
        ]
    )  # (REPEATS x folds, breasts)
    woman_held = pd.DataFrame(held.T).groupby(breasts["patient_id"].to_numpy()).first()
    row_weights = 1.0 - woman_held.loc[rows["patient_id"]].to_numpy(dtype=float).T
    chosen = _best(value(row_weights))
    positive = breasts["cancer"].to_numpy() == 1
    of_all = value(np.ones((1, len(rows))))
    if np.isnan(of_all).all():
        raise MetricsError("what the choice of the epoch maximises is not defined in any epoch")
    everyone = int(_best(of_all)[0])
    gained = pairs = 0.0
    for epoch in np.unique(chosen):
        own = held[chosen == epoch].astype(float)
        count = (own @ positive) * (own @ ~positive)
        # On the same pairs: where all choose the same epoch, nothing is gained.
        of_own, of_everyone = (PREPARE["auc"](positive, by_epoch[:, number])(own) for number in (epoch, everyone))
        gained += float(np.nansum((of_everyone - of_own) * count))
        pairs += float(count.sum())
    in_sample = float(metrics.auc(breasts["cancer"], by_epoch[:, everyone]))
    return ChoiceOptimism(scores.shape[1], in_sample, gained / pairs if pairs else float("nan"))


def _best(values: np.ndarray) -> np.ndarray:
    """The first epoch with the highest value in each draw (draws,); NaN never is."""
    return np.argmax(np.where(np.isnan(values), -np.inf, values), axis=1)


def _breasts(rows: pd.DataFrame, scores: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """patient_id, laterality and cancer of each breast, and the mean scores of its rows, (breasts, epochs)."""
    keys = [rows["patient_id"].to_numpy(), rows["laterality"].to_numpy()]
    means = pd.DataFrame(scores.astype(float)).groupby(keys).mean()
    breasts = rows.groupby(["patient_id", "laterality"])["cancer"].max().reset_index()
    return breasts, means.to_numpy()


def value_of(
    rows: pd.DataFrame,
    scores: np.ndarray,
    monitor: str,
    prior_weights: Mapping[int, float] | None = None,
    **loss: Any,
) -> Value:
    """Prepare what the choice of the epoch maximises: from weights of the rows (draws, n) to (draws, epochs).

    Parameters
    ----------
    rows, scores
        As in `choice_optimism`.
    monitor
        "val_loss" (negated), "val_auc" by row, or "val_pf1" by breast.
    prior_weights
        Class weights that the scores are corrected for before val_pf1; None corrects nothing.
    **loss
        `weights` (n,), `positive_label` and `focal_gamma` of `metrics.by_image`, of val_loss.
    """
    positive, scores = rows["cancer"].to_numpy() == 1, scores.astype(float)
    if monitor == "val_loss":
        targets = (positive * loss.get("positive_label", 1.0))[:, None]
        losses = metrics.cross_entropy(targets, scores, loss.get("focal_gamma", 0.0))
        own = np.asarray(loss.get("weights", np.ones(len(rows))))
        return lambda weights: -((weights * own) @ losses) / (weights @ own)[:, None]
    if monitor == "val_auc":
        return _each([PREPARE["auc"](positive, column) for column in scores.T])
    corrected = metrics.prior_correction(scores, prior_weights) if prior_weights else scores
    breasts, by_epoch = _breasts(rows, corrected)
    first = _first_rows(rows)
    pf1 = _each([PREPARE["pf1"](breasts["cancer"].to_numpy() == 1, column) for column in by_epoch.T])
    return lambda weights: pf1(weights[:, first])  # a woman's breasts weigh what her rows do


def _first_rows(rows: pd.DataFrame) -> np.ndarray:
    """The position of the first row of each breast, in the order of `_breasts`."""
    positions = pd.Series(np.arange(len(rows)))
    return positions.groupby([rows["patient_id"].to_numpy(), rows["laterality"].to_numpy()]).first().to_numpy()


def _each(evaluates: list[Value]) -> Value:
    def values(weights: np.ndarray) -> np.ndarray:
        chunks = (weights[start : start + 32] for start in range(0, len(weights), 32))
        return np.concatenate([np.stack([evaluate(own) for evaluate in evaluates], axis=1) for own in chunks])

    return values


def run_optimism(run: Run) -> ChoiceOptimism:
    """`choice_optimism` of a run, on its validation women and by its `monitor`.

    `RunError` if the run did not keep the scores of every epoch, `MetricsError` for faults of its files.
    """
    table = validation_scores(run)
    keys = [name for name in KEYS if name in table]
    images = held_out(run).query("split == 'validation'")
    labels = images.groupby(keys)["cancer"].max().reset_index()
    rows = table[keys].merge(labels, on=keys, how="left", validate="1:1")
    if missing := int(rows["cancer"].isna().sum()):
        raise MetricsError(f"predictions.csv of run {run.id} lacks {missing} examples of validation_scores.csv")
    scores, config = table.drop(columns=keys).to_numpy(), run.config
    weights = attempt(class_weights, run)
    prior = None if isinstance(weights, Unavailable) else weights
    loss = {
        "weights": rows["cancer"].map(_loss_weights(run)).to_numpy(),
        "positive_label": config.positive_label,
        "focal_gamma": config.focal_gamma if config.imbalance == "focal" else 0.0,
    }
    return choice_optimism(rows, scores, value_of(rows, scores, config.monitor, prior, **loss))


def _loss_weights(run: Run) -> dict[int, float]:
    """The class weights of val_loss, which soft labels leave as they are."""
    found, config = run.metrics, run.config
    if "examples" in found:
        count, positives = found["examples"], found["positive_examples"]
    else:
        count, positives = (found[name]["train"] for name in ("images", "positives"))
    hard = config.replace(positive_label=1.0)
    return metrics.training_class_weights(hard, count, positives, found.get("sampled_share", 0.5)) or {0: 1.0, 1: 1.0}
