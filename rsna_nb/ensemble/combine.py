"""Members of an ensemble -> one score for each image.

Images are scored first. A breast's score is then the mean of its images' scores, as for a single run. Members are
combined on a scale: probabilities, ranks or logits. A rank is the share of the run's own validation images with a
lower score. Ranks are comparable between models of different folds, whose scores are not, and a new image has a rank
too.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit

from rsna_nb import metrics
from rsna_nb.config import ConfigError, is_folder_name
from rsna_nb.ensemble.model_pool import ModelPool, corrected
from rsna_nb.evaluation import with_fold
from rsna_nb.metrics import MetricsError, by_breast, logit, share_below

GREEDY_STEPS = 25  # members added by greedy selection; one may be added several times
NO_VALIDATION = "an imported detector has none, so combine it by the mean of probabilities or logits"
Choose = Callable[[pd.DataFrame, list[str]], np.ndarray]  # breasts with a column per member, their names -> weights


def _to_scale(scores: np.ndarray, reference: np.ndarray, way: str) -> np.ndarray:
    """Probabilities on the scale of a way; `reference` are the scores of the run's validation images."""
    if way == "rank":
        if not len(reference):
            raise MetricsError(f"ranks are computed among validation scores: {NO_VALIDATION}")
        # share_below alone would put a missing score above all others.
        return np.where(np.isnan(scores), np.nan, share_below(scores, reference))
    return logit(scores) if way == "logit" else scores


def from_scale(values: np.ndarray, way: str) -> np.ndarray:
    """Scores in 0-1 again; probabilities and ranks are in it already."""
    return expit(values) if way == "logit" else values


def values_of(pool: ModelPool, scores: pd.DataFrame, way: str) -> pd.DataFrame:
    """The members' scores on the way's scale, (images, members).

    A member's score is the mean over those of its runs that scored the image. `scores` are (images, runs), as
    `ModelPool.scores` or `inference.predict_by_runs` give them.
    """
    # Only validation scores are a reference for ranks: the scale must not depend on the images that are scored.
    known = pool.scores[pool.of("validation")]
    scaled = {run.id: _to_scale(scores[run.id].to_numpy(), known[run.id].dropna().to_numpy(), way) for run in pool.runs}
    by_run = pd.DataFrame(scaled, index=scores.index)
    return pd.DataFrame({name: by_run[[run.id for run in runs]].mean(axis=1) for name, runs in pool.members.items()})


def _breasts_of(rows: pd.DataFrame, values: pd.DataFrame, way: str) -> pd.DataFrame:
    """A row per breast: patient_id, laterality, cancer, fold, and a column with each member's score."""
    tables = [by_breast(rows.assign(score=from_scale(values[name].to_numpy(), way))) for name in values]
    # by_breast sorts all tables alike, so that row i is the same breast in each of them.
    breasts = with_fold(tables[0].drop(columns="score"), rows)
    breasts[values.columns] = np.stack([table["score"] for table in tables], axis=1)
    return breasts


def fold_auc(breasts: pd.DataFrame, scores: np.ndarray) -> float:
    """The mean of the folds' AUCs by breast, because scores of different folds are not on one scale.

    Folds with breasts of one class have no AUC and are ignored; `MetricsError` if all folds are like that.
    """
    cancer, fold = breasts["cancer"].to_numpy(), breasts["fold"].to_numpy()
    # A NaN here would win every argmax below: NumPy treats it as the largest.
    own = [fold == one for one in np.unique(fold) if 0 < cancer[fold == one].mean() < 1]
    if not own:
        raise MetricsError("members cannot be compared: no fold has breasts with and without cancer")
    return float(np.mean([metrics.auc(cancer[rows], scores[rows]) for rows in own]))


def equal_weights(breasts: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The same weight for each member; they sum to 1."""
    return np.full(len(names), 1 / len(names))


def best_single(breasts: pd.DataFrame, names: list[str]) -> np.ndarray:
    """All weight on the member with the largest `fold_auc`."""
    aucs = [fold_auc(breasts, breasts[name].to_numpy()) for name in names]
    return np.eye(len(names))[int(np.argmax(aucs))]


def greedy(breasts: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Weights by greedy selection: add the member that raises `fold_auc` most, `GREEDY_STEPS` times.

    A member may be added several times; the best set of all steps is returned. The first set is the best single
    member. Caruana et al. 2004, Ensemble selection from libraries of models (ICML).

    Examples
    --------
    >>> scores = {"a": [0.1, 0.4, 0.3, 0.9], "b": [0.2, 0.1, 0.6, 0.5]}
    >>> greedy(pd.DataFrame({"cancer": [0, 0, 1, 1], "fold": 0, **scores}), ["a", "b"])
    array([0., 1.])
    """
    scores = breasts[names].to_numpy().T  # (members, breasts)
    counts, total = np.zeros(len(names)), np.zeros(len(breasts))  # a running sum: each step adds one member to it
    best, weights = -np.inf, counts
    for step in range(1, GREEDY_STEPS + 1):
        aucs = [fold_auc(breasts, (total + member) / step) for member in scores]
        chosen = int(np.argmax(aucs))
        counts[chosen] += 1
        total += scores[chosen]
        if aucs[chosen] > best:  # later steps may make the set worse again
            best, weights = aucs[chosen], counts / step
    return weights


WAYS: dict[str, Choose] = {"mean": equal_weights, "rank": equal_weights, "logit": equal_weights, "greedy": greedy}


def weights_on(pool: ModelPool, rows: np.ndarray, way: str, choose: Choose) -> np.ndarray:
    """The weights (members,) that `choose` picks on some of the pool's rows, bool (images,)."""
    if choose is equal_weights:  # they depend on no women
        return equal_weights(pool.rows, pool.names)
    if not rows.any():
        raise MetricsError(f"weights are chosen on validation scores: {NO_VALIDATION}")
    values = values_of(pool, pool.scores, way)
    return choose(_breasts_of(pool.rows[rows], values[rows], way), pool.names)


@dataclass(frozen=True, eq=False)  # eq=False: two tables cannot be compared to one truth value
class Ensemble:
    """Members, the way in which they are combined, and their weights, which sum to 1."""

    name: str
    way: str
    pool: ModelPool
    weights: np.ndarray

    @classmethod
    def fit(cls, pool: ModelPool, way: str, name: str = "") -> "Ensemble":
        """Choose the weights on all validation women; members without weight are dropped.

        Parameters
        ----------
        pool
            The members, from `gather`.
        way
            "mean", "rank", "logit" or "greedy", one of `WAYS`.
        name
            The name of the ensemble and of its folder. "" is the id of the last run, the way, and four letters that
            differ for other runs.

        Raises
        ------
        ConfigError
            For another way, or a name that a folder cannot have.
        MetricsError
            If there are too few validation women to choose weights, or no validation scores for ranks.
        """
        if way not in WAYS:
            raise ConfigError(f"way must be one of {', '.join(WAYS)}, not {way!r}")
        ids = [run.id for run in pool.runs]
        # Without the four letters, other members with the same last run would get the same folder.
        name = name or f"{ids[-1]}-{way}-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:4]}"
        if not is_folder_name(name):
            raise ConfigError(f"name must be letters, digits, - _ . and not {name!r}")
        if way == "rank":
            values_of(pool, pool.scores, way)  # raises an error if there are no validation scores
        weights = weights_on(pool, pool.of("validation"), way, WAYS[way])
        # A member without weight would still cost a forward pass for every new image.
        members = {name: pool.members[name] for name, weight in zip(pool.names, weights, strict=True) if weight}
        return cls(name, way, replace(pool, members=members), weights[weights > 0])

    def prior_corrected(self) -> "Ensemble":
        """The ensemble with probabilities for scores: each run's class weights are corrected for before combining.

        The members' weights stay the same. `MetricsError` for ranks, which are not probabilities, and if a run's
        scores cannot be corrected.
        """
        if self.way == "rank":
            raise MetricsError(f"ensemble {self.name} combines ranks, which are not probabilities")
        return replace(self, pool=self.pool.prior_corrected())

    def scores(self, scores: pd.DataFrame) -> np.ndarray:
        """One score in 0-1 for each image, (images,), from the runs' raw scores (images, runs); NaN stays NaN."""
        return self._combined(corrected(scores, self.pool.class_weights))

    def _combined(self, scores: pd.DataFrame) -> np.ndarray:
        return from_scale(values_of(self.pool, scores, self.way).to_numpy() @ self.weights, self.way)

    @property
    def predictions(self) -> pd.DataFrame:
        """The validation and test images with scores, as a run's predictions.csv.

        The weights of "greedy" were chosen on these validation rows, whose metrics are therefore optimistic.
        """
        return self.pool.rows.assign(score=self._combined(self.pool.scores))
