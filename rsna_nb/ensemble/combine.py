"""Members of an ensemble -> one score an image, how much that gains, and the file that keeps it.

Images are scored first and breasts are the mean of their images then, as for a single run. Members are combined on a
scale: probabilities, ranks or logits. A rank is the share of the validation images of the same run that score lower,
so that models of different folds, whose scores share no scale, have one in common, and a new image has a rank too.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from rsna_nb import metrics
from rsna_nb.config import ConfigError, is_folder_name, resolve
from rsna_nb.ensemble.model_pool import ModelPool, gather
from rsna_nb.evaluation import class_weights, find_run, plain, weighs_nothing, with_fold
from rsna_nb.metrics import MetricsError, by_breast, logit, prior_correction, share_below
from rsna_nb.runs import Run, RunError, load_run
from rsna_nb.system import write_whole

STEPS = 25  # of greedy selection: members drawn, with replacement
FOLDER = "ensembles"  # in runs_dir
Choose = Callable[[pd.DataFrame, list[str]], np.ndarray]  # breasts with a column a member, their names -> weights


def to_scale(scores: np.ndarray, reference: np.ndarray, way: str) -> np.ndarray:
    """Probabilities on the scale of a way; `reference` are those of the run's validation images."""
    if way == "rank":
        return np.where(np.isnan(scores), np.nan, share_below(scores, reference))
    return logit(scores) if way == "logit" else scores


def from_scale(values: np.ndarray, way: str) -> np.ndarray:
    """A score in 0-1 again; ranks are in it."""
    return expit(values) if way == "logit" else values


def values_of(library: ModelPool, scores: pd.DataFrame, way: str) -> pd.DataFrame:
    """Images by members on the way's scale: the mean over those of a member's runs that scored the image.

    `scores` are (images, runs) as `ModelPool.scores` or `inference.predict_by_runs` have them.
    """
    known, validation = library.scores, library.of("validation")
    scaled = pd.DataFrame(index=scores.index)
    for run in library.runs:
        reference = known.loc[validation, run.id].dropna().to_numpy()
        scaled[run.id] = to_scale(scores[run.id].to_numpy(), reference, way)
    return pd.DataFrame(
        {member.name: scaled[[run.id for run in member.runs]].mean(axis=1) for member in library.members}
    )


def breasts_of(rows: pd.DataFrame, values: pd.DataFrame, way: str) -> pd.DataFrame:
    """A row a breast: patient_id, laterality, cancer, fold and each member's score."""
    tables = [by_breast(rows.assign(score=from_scale(values[name].to_numpy(), way))) for name in values]
    breasts = tables[0].drop(columns="score")
    breasts = with_fold(breasts, rows)
    breasts[values.columns] = np.stack([table["score"] for table in tables], axis=1)
    return breasts


def fold_auc(breasts: pd.DataFrame, scores: np.ndarray) -> float:
    """The AUC by breast, the mean of the folds': models of different folds share no scale."""
    cancer, fold = breasts["cancer"].to_numpy(), breasts["fold"].to_numpy()
    return float(np.nanmean([metrics.auc(cancer[fold == one], scores[fold == one]) for one in np.unique(fold)]))


def equal(breasts: pd.DataFrame, names: list[str]) -> np.ndarray:
    return np.full(len(names), 1 / len(names))


def best_one(breasts: pd.DataFrame, names: list[str]) -> np.ndarray:
    """All weight on the member with the largest `fold_auc`."""
    figures = [fold_auc(breasts, breasts[name].to_numpy()) for name in names]
    return np.eye(len(names))[int(np.argmax(figures))]


def greedy(breasts: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Add the member that helps `fold_auc` most, with replacement, `STEPS` times; the best of the bags on the way.

    Caruana et al. 2004, Ensemble selection from libraries of models (ICML). The first is the best single member.
    """
    scores = breasts[names].to_numpy().T  # (members, breasts)
    counts, total = np.zeros(len(names)), np.zeros(len(breasts))
    best, weights = -np.inf, counts
    for step in range(1, STEPS + 1):
        figures = [fold_auc(breasts, (total + member) / step) for member in scores]
        chosen = int(np.argmax(figures))
        counts[chosen] += 1
        total += scores[chosen]
        if figures[chosen] > best:
            best, weights = figures[chosen], counts / step
    return weights


WAYS: dict[str, Choose] = {"mean": equal, "rank": equal, "logit": equal, "greedy": greedy}


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members, how they are combined, and their weights, which sum to 1."""

    name: str
    way: str
    library: ModelPool
    weights: np.ndarray
    undo: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # class weights by run id

    @classmethod
    def fitted(cls, name: str, library: ModelPool, way: str) -> "Ensemble":
        """The weights chosen on all validation women; members without weight are left out.

        `ConfigError` for another way or a name that is no folder's.
        """
        if way not in WAYS:
            raise ConfigError(f"way must be one of {', '.join(WAYS)}, not {way!r}")
        if not is_folder_name(name) or not name:
            raise ConfigError(f"name must be letters, digits, - _ . and not {name!r}")
        weights = weights_on(library, library.of("validation"), way, WAYS[way])
        members = tuple(member for member, weight in zip(library.members, weights, strict=True) if weight)
        return cls(name, way, replace(library, members=members), weights[weights > 0])

    def prior_corrected(self) -> "Ensemble":
        """The ensemble whose scores are probabilities: each run's class weights are corrected for before they are
        combined.

        Its members' weights are the same. `MetricsError` where a run's scores are no probabilities, or its weights are
        not known (`evaluation.class_weights`), and for ranks.
        """
        if self.way == "rank":
            raise MetricsError(f"ensemble {self.name} combines ranks, which are not probabilities")
        undo: dict[str, Mapping[int, float]] = {}
        for run in self.library.runs:
            try:
                undo |= {} if weighs_nothing(run) else {run.id: class_weights(run)}
            except MetricsError as error:
                raise MetricsError(f"run {run.id}: {error}") from error
        return replace(self, undo=undo)

    def scores(self, scores: pd.DataFrame) -> np.ndarray:
        """One score (images,) in 0-1 of the runs' scores (images, runs), NaN where they are."""
        for name, weights in self.undo.items():
            known = scores[name].dropna()
            scores = scores.assign(**{name: pd.Series(prior_correction(known, weights), index=known.index)})
        return from_scale(values_of(self.library, scores, self.way).to_numpy() @ self.weights, self.way)

    @property
    def predictions(self) -> pd.DataFrame:
        """As a run's predictions.csv. The weights of "greedy" were chosen on its validation rows."""
        return self.library.rows.assign(score=self.scores(self.library.scores))


def weights_on(library: ModelPool, rows: np.ndarray, way: str, choose: Choose) -> np.ndarray:
    """The weights that `choose` picks on some of the library's rows, bool (images,)."""
    values = values_of(library, library.scores, way)
    return choose(breasts_of(library.rows[rows], values[rows], way), library.names)


def write(ensemble: Ensemble, runs_dir: str | Path, found: Mapping[str, Any]) -> Path:
    """ensemble.json, with what was `found` of it, and predictions.csv, in runs_dir/ensembles/<name>/, which it returns.

    The runs stand in it by their ids, those of another folder by their paths.
    """
    runs_dir = resolve(runs_dir).resolve()
    content = {
        "name": ensemble.name,
        "way": ensemble.way,
        "members": [
            {"name": member.name, "weight": weight, "runs": [reference(run, runs_dir) for run in member.runs]}
            for member, weight in zip(ensemble.library.members, ensemble.weights.tolist(), strict=True)
        ],
    }
    folder = runs_dir / FOLDER / ensemble.name
    write_whole(folder / "predictions.csv", ensemble.predictions.to_csv(index=False).encode())
    write_whole(folder / "ensemble.json", (json.dumps(content | plain(found), indent=2) + "\n").encode())
    return folder


def reference(run: Run, runs_dir: Path) -> str:
    return run.id if run.path.resolve().parent == runs_dir else str(run.path.resolve())


def load(name: str, runs_dir: str | Path = "runs") -> Ensemble:
    """An ensemble by its name, its folder or its ensemble.json, or a run as an ensemble of itself; "": the newest run.

    Raises
    ------
    RunError
        Where there is no such ensemble or run, one of its runs is missing, or ensemble.json is damaged.
    """
    for folder in (Path(name), resolve(runs_dir) / FOLDER / name) if name else ():
        path = folder if folder.name == "ensemble.json" else folder / "ensemble.json"
        if path.is_file():
            return read(path)
    run = find_run(name, runs_dir)
    return Ensemble(run.id, "mean", gather([run]), np.ones(1))


def read(path: Path) -> Ensemble:
    """The ensemble of a file that `write` wrote; its runs lie where they lay beside it."""
    try:
        content = json.loads(path.read_text())
        runs_dir = path.resolve().parents[2]
        runs = [load_run(run, runs_dir) for member in content["members"] for run in member["runs"]]
        weights = np.array([member["weight"] for member in content["members"]], dtype=float)
        name, way = str(content["name"]), str(content["way"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is no ensemble: {error!r}") from error
    library = gather(runs)
    if way not in WAYS or len(weights) != len(library.members):
        raise RunError(
            f"{path} is no ensemble: the way is {way}, {len(weights)} weights of {len(library.members)} members"
        )
    return Ensemble(name, way, library, weights)
