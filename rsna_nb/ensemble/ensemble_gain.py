"""What combining members gains over the best of them, and fold models over one of their kind; all by breast.

Nothing is judged on the women that it was chosen on: what is chosen, weights or the best member, is chosen on
validation women, and judged on test women or, where there are none, on validation women of other folds.
"""

import numpy as np
import pandas as pd

from rsna_nb.ensemble.combine import WAYS, Choose, best_one, from_scale, values_of, weights_on
from rsna_nb.ensemble.model_pool import Member, ModelPool
from rsna_nb.evaluation import STATISTICS, differences, main_intervals
from rsna_nb.metrics import Interval, Women, assign_folds, by_breast, draws_interval, evaluator, matched, resampled
from rsna_nb.notebook import Markdown, UnavailableError


def judged(library: ModelPool, way: str, choose: Choose) -> pd.DataFrame:
    """The breasts that the library is judged on, scored by weights that were chosen on other women.

    Those are the validation women where it is judged on test women, else the validation women of other folds
    (`operating.assign_folds`, which deals them where there is one fold).
    """
    values = values_of(library, library.scores, way).to_numpy()
    validation, own = library.of("validation"), library.of(library.split)
    rows = library.rows[own]
    part = np.zeros(len(rows)) if library.split == "test" else assign_folds(rows)
    scores = np.empty(len(rows))
    for one in np.unique(part):
        others = validation.copy()
        if library.split == "validation":
            others[own] = part != one
        weights = weights_on(library, others, way, choose)
        scores[part == one] = from_scale(values[own][part == one] @ weights, way)
    return by_breast(rows.assign(score=scores))


def member_figures(library: ModelPool, n: int) -> pd.DataFrame:
    """AUC, average precision and pF1 by breast of each member alone, with intervals, on the women judged."""
    own = library.of(library.split)
    values = values_of(library, library.scores, "mean")[own]
    figures = {
        name: main_intervals(by_breast(library.rows[own].assign(score=values[name])), n) for name in library.names
    }
    return pd.DataFrame(figures).T


def gains(library: ModelPool, n: int) -> pd.DataFrame:
    """Each way beside the best single member on its scale: index (way, figure), columns of Intervals.

    Both are chosen on other women than they are judged on. `UnavailableError` with one member alone.
    """
    if len(library.members) == 1:
        raise UnavailableError(f"{library.names[0]} is the only member: there is nothing to combine it with")
    tables = {
        way: differences(judged(library, way, best_one), judged(library, way, choose), ("best single", "ensemble"), n)
        for way, choose in WAYS.items()
    }
    return pd.concat(tables, names=["way", "figure"])


def fold_gains(library: ModelPool, n: int) -> pd.DataFrame:
    """Of each member of several folds, `fold_gain`: index (member, figure).

    `UnavailableError` where there is no such member, or no test women: all others trained some fold.
    """
    several = [member for member in library.members if len(member.runs) > 1]
    if not several:
        raise UnavailableError("no member has several folds")
    if library.split != "test":
        raise UnavailableError("every woman trained some fold: train them with test_fraction to set women aside")
    tables = {member.name: fold_gain(library, member, n) for member in several}
    return pd.concat(tables, names=["member", "figure"])


def fold_gain(library: ModelPool, member: Member, n: int) -> pd.DataFrame:
    """The mean of the fold models' scores beside the mean of their single figures, on the test women.

    As `comparison.differences`.
    """
    rows = library.rows[library.of("test")]
    scores = library.scores.loc[library.of("test"), [run.id for run in member.runs]]
    singles = [by_breast(rows.assign(score=scores[name])) for name in scores]
    together = by_breast(rows.assign(score=scores.mean(axis=1)))
    found = [beside_mean(singles, together, statistic, n) for statistic in STATISTICS]
    columns = ["mean of the folds", "their ensemble", "difference"]
    return pd.DataFrame(found, columns=columns, index=list(STATISTICS.values()))


def in_words(found: pd.DataFrame) -> Markdown:
    """`fold_gains` as sentences: by how much, with the interval."""
    lines = []
    for row in found.reset_index().to_dict("records"):
        before, after, more = row["mean of the folds"], row["their ensemble"], row["difference"]
        sure = "no interval" if np.isnan(more.low) else f"{more.low:+.4f} to {more.high:+.4f}"
        figures = f"{before.estimate:.4f} and {after.estimate:.4f}, **{more.estimate:+.4f}** ({sure})"
        lines.append(f"- {row['member']}, {row['figure']}: {figures}")
    return Markdown("\n".join(lines))


def beside_mean(singles: list[pd.DataFrame], together: pd.DataFrame, statistic: str, n: int) -> tuple[Interval, ...]:
    """The mean of the figures of some tables, that of another, and the difference, on the same draws of women."""
    tables = [matched(one, together)[0] for one in [*singles, together]]
    labels, women = tables[0]["cancer"].to_numpy(), Women.of(tables[0], "patient_id")
    *each, whole = (evaluator(statistic, labels, df["score"].to_numpy()) for df in tables)

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.mean([evaluate(weights) for evaluate in each], axis=0)

    kinds = [mean, whole, lambda weights: whole(weights) - mean(weights)]
    found = resampled(women, kinds, n, seed=0)
    return tuple(
        draws_interval(estimate, draws, women.positives, women.rarer, is_share=number < 2)
        for number, (estimate, draws) in enumerate(found)
    )


def correlations(library: ModelPool) -> pd.DataFrame:
    """Spearman's correlation of the members' scores by breast, of the women judged: above the diagonal of breasts with
    cancer, below it without. (Of all together it would mostly say that both can tell the two apart.)

    Of one member of several folds it is between its models, on test women.
    """
    own = library.of(library.split)
    scores = values_of(library, library.scores, "mean")[own]
    if len(library.members) == 1:
        scores = library.scores[own]
    if scores.shape[1] == 1 or scores.isna().any(axis=None):
        raise UnavailableError(f"{library.names[0]} is the only one that scored these women")
    tables = {name: by_breast(library.rows[own].assign(score=scores[name])) for name in scores}
    cancer = next(iter(tables.values()))["cancer"] == 1
    by_name = pd.DataFrame({name: table["score"] for name, table in tables.items()})
    above, below = (by_name[rows].corr("spearman").to_numpy() for rows in (cancer, ~cancer))
    both = np.triu(above, 1) + np.tril(below, -1) + np.eye(len(above))
    return pd.DataFrame(both, by_name.columns, by_name.columns)
