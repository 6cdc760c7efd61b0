"""The gain of an ensemble over its best member, and of several fold models over a single one; all by breast.

Nothing is evaluated on the women that it was chosen on. Weights and the best member are chosen on validation women,
and evaluated on test women or, if there are none, on the validation women of other folds.

AUC and average precision are of raw scores. pF1 treats scores as probabilities, so it is computed from scores
corrected for class weights, as they are submitted (`submission`). Ranks, and scores that cannot be corrected, stay raw.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rsna_nb import metrics
from rsna_nb.ensemble.combine import WAYS, Choose, best_single, from_scale, values_of, weights_on
from rsna_nb.ensemble.model_pool import ModelPool
from rsna_nb.evaluation import STATISTICS
from rsna_nb.metrics import Interval, MetricsError, Women, by_breast
from rsna_nb.notebook import UnavailableError
from rsna_nb.runs import Run


def evaluated(pool: ModelPool, way: str, choose: Choose, scored: ModelPool | None = None) -> pd.DataFrame:
    """The breasts that the pool is evaluated on, scored by weights that were chosen on other women.

    The weights of test women are chosen on the validation women, those of validation women on the other folds
    (`metrics.assign_folds`, which makes folds if there is only one).

    Parameters
    ----------
    pool
        The members; the weights are chosen by their scores.
    way, choose
        The scale on which members are combined, and what picks their weights.
    scored
        The pool whose scores are combined by these weights, if it is another one: with corrected scores.
    """
    values = values_of(scored or pool, (scored or pool).scores, way).to_numpy()
    validation, own = pool.of("validation"), pool.of(pool.evaluated_split)
    rows = pool.rows[own]
    # Test women need no folds, as no weight was chosen on them.
    fold = np.zeros(len(rows)) if pool.evaluated_split == "test" else metrics.assign_folds(rows)
    scores = np.empty(len(rows))
    for one in np.unique(fold):
        others = validation.copy()
        if pool.evaluated_split == "validation":
            others[own] = fold != one
        # Weights follow from raw scores, as in Ensemble.fit, whatever is combined by them.
        weights = weights_on(pool, others, way, choose)
        scores[fold == one] = from_scale(values[own][fold == one] @ weights, way)
    return by_breast(rows.assign(score=scores))


def pf1_pool(pool: ModelPool) -> ModelPool:
    """The pool whose scores pF1 is computed from.

    Its scores are corrected for class weights. If they cannot be corrected, it is the pool itself, whose
    `class_weights` are then empty.
    """
    try:
        return pool.prior_corrected()
    except MetricsError:
        return pool


def member_figures(pool: ModelPool, n: int) -> pd.DataFrame:
    """AUC, average precision and pF1 by breast of each member alone, with intervals from `n` bootstrap samples.

    The table has a row per member and a column per metric, on the women of `pool.evaluated_split`.
    """
    own = pool.of(pool.evaluated_split)
    pools = {key: pf1_pool(pool) if key == "pf1" else pool for key in STATISTICS}
    columns = {}
    for key, words in STATISTICS.items():
        # The way "mean" leaves the scores as they are, and takes the mean over the folds of a member.
        values = values_of(pools[key], pools[key].scores, "mean")[own]
        tables = {name: by_breast(pool.rows[own].assign(score=values[name])) for name in pool.names}
        columns[words] = {name: metrics.bootstrap(breasts, key, n=n) for name, breasts in tables.items()}
    return pd.DataFrame(columns)


def gains(pool: ModelPool, n: int) -> pd.DataFrame:
    """Each way of combining, compared with the best single member on the same scale.

    Both are chosen on other women than those that they are evaluated on.

    Returns
    -------
    Intervals from `n` bootstrap samples: index (way, metric), columns "best single", "ensemble" and "difference".

    Raises
    ------
    UnavailableError
        With a single member, or too few women to choose on (`MetricsError`).
    """
    if len(pool.members) == 1:
        raise UnavailableError(f"{pool.names[0]} is the only member: there is nothing to combine it with")
    rows = {}
    for way, choose in WAYS.items():
        # The best single member is on the same scale, or the difference in pF1 would be that of the scales.
        raw = [evaluated(pool, way, one) for one in (best_single, choose)]
        scored = pool if way == "rank" else pf1_pool(pool)
        for_pf1 = raw if scored is pool else [evaluated(pool, way, one, scored) for one in (best_single, choose)]
        for key, words in STATISTICS.items():
            best, ensemble = for_pf1 if key == "pf1" else raw
            alone, together = metrics.bootstrap(best, key, n=n), metrics.bootstrap(ensemble, key, n=n)
            rows[way, words] = (alone, together, metrics.difference(best, ensemble, key, n=n))
    index = pd.MultiIndex.from_tuples(rows, names=["way", "metric"])
    return pd.DataFrame(list(rows.values()), index, columns=["best single", "ensemble", "difference"])


def fold_gains(pool: ModelPool, n: int) -> pd.DataFrame:
    """The metrics of the fold models' mean score, compared with the mean of their own metrics, on the test women.

    Returns
    -------
    Intervals from `n` bootstrap samples of women: index (member, metric) for each member of several folds, columns
    "mean of the folds", "their ensemble" and "difference".

    Raises
    ------
    UnavailableError
        If no member has several folds, or there are no test women: all other women were used to train some fold.
    """
    several = {name: runs for name, runs in pool.members.items() if len(runs) > 1}
    if not several:
        raise UnavailableError("no member has several folds")
    if pool.evaluated_split != "test":
        raise UnavailableError(
            "every woman was used to train some fold: train the folds with test_fraction to hold women out"
        )
    # The correction is not linear, so the mean is taken after it, as Ensemble does.
    rows = {
        (name, words): _fold_gain(pf1_pool(pool) if key == "pf1" else pool, runs, key, n)
        for name, runs in several.items()
        for key, words in STATISTICS.items()
    }
    index = pd.MultiIndex.from_tuples(rows, names=["member", "metric"])
    return pd.DataFrame(list(rows.values()), index, columns=["mean of the folds", "their ensemble", "difference"])


def _fold_gain(pool: ModelPool, runs: Sequence[Run], statistic: str, n: int) -> tuple[Interval, ...]:
    """The mean of the folds' metrics, the metric of their mean score, and the difference, on the same draws."""
    rows = pool.rows[pool.of("test")]
    scores = pool.scores.loc[pool.of("test"), [run.id for run in runs]]
    together = by_breast(rows.assign(score=scores.mean(axis=1)))
    singles = [by_breast(rows.assign(score=scores[name])) for name in scores]
    tables = [metrics.matched(one, together)[0] for one in [*singles, together]]
    labels, women = tables[0]["cancer"].to_numpy(), Women.of(tables[0], "patient_id")
    *each, whole = (metrics.evaluator(statistic, labels, df["score"].to_numpy()) for df in tables)

    # All folds are computed on the same draws: with draws of their own, their variation would not cancel.
    def mean(weights: np.ndarray) -> np.ndarray:
        return np.mean([evaluate(weights) for evaluate in each], axis=0)

    found = metrics.resampled(women, [mean, whole, lambda weights: whole(weights) - mean(weights)], n, seed=0)
    return tuple(
        # The third is a difference, which is not confined to 0-1.
        metrics.draws_interval(estimate, draws, women.positives, women.rarer, is_share=number < 2)
        for number, (estimate, draws) in enumerate(found)
    )


def correlations(pool: ModelPool) -> pd.DataFrame:
    """Spearman's correlation of the members' scores by breast, (members, members).

    Breasts with cancer are above the diagonal, those without below it. (A correlation over all breasts would mostly say
    that both members can tell the two apart.) A single member of several folds has its fold models compared instead.

    Raises
    ------
    UnavailableError
        If only one model scored these women.
    """
    own = pool.of(pool.evaluated_split)
    scores = pool.scores[own] if len(pool.members) == 1 else values_of(pool, pool.scores, "mean")[own]
    if scores.shape[1] == 1 or scores.isna().any(axis=None):
        raise UnavailableError(f"{pool.names[0]} is the only one that scored these women")
    tables = {name: by_breast(pool.rows[own].assign(score=scores[name])) for name in scores}
    cancer = next(iter(tables.values()))["cancer"] == 1
    by_name = pd.DataFrame({name: table["score"] for name, table in tables.items()})
    # Constant scores have no correlation: that cell stays NaN.
    above, below = (by_name[rows].corr("spearman").to_numpy() for rows in (cancer, ~cancer))
    both = np.triu(above, 1) + np.tril(below, -1) + np.eye(len(above))
    return pd.DataFrame(both, by_name.columns, by_name.columns)
