"""An evaluation in words: what a radiologist reads first, the model card; and as JSON."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb.evaluation.evaluated_run import Evaluation
from rsna_nb.metrics import RATES, CrossFit, Interval, rate_intervals
from rsna_nb.notebook import Markdown, Unavailable
from rsna_nb.runs import Run, RunError

SCREENING_SHARE = 0.01  # of women with cancer, at most; a table with more is enriched
DEMO_LOG = "data: the generated demo set"  # what metadata.find_data logs: of runs before environment.json had it


def of_100(estimate: float, low: float, high: float) -> str:
    """A share with its interval as so many of 100: "78 (63 to 88)", with a decimal where it is small or sure."""
    if np.isnan(estimate):
        return "not defined"
    digits = 1 if estimate < 0.1 or high - low < 0.05 else 0
    limits = "no interval" if np.isnan(low) else f"{100 * low:.{digits}f} to {100 * high:.{digits}f}"
    return f"{100 * estimate:.{digits}f} ({limits})"


def is_drawn(run: Run) -> bool:
    """Whether the run trained on a generated data set: environment.json says so, or the log of an older run."""
    with contextlib.suppress(RunError, KeyError, json.JSONDecodeError):
        return bool(json.loads(run.file("config/environment.json").read_text())["generated"])
    log = run.path / "logs" / "train.log"
    return log.is_file() and DEMO_LOG in log.read_text(errors="replace")


def counts(evaluation: Evaluation) -> str:
    women, breasts = evaluation.women, evaluation.breasts
    return (
        f"{len(women):,} women, {women['cancer'].sum():,} of them with cancer: {len(breasts):,} breasts, "
        f"{breasts['cancer'].sum():,} with cancer, in {len(evaluation.predictions):,} images"
    )


def in_short(evaluation: Evaluation, fit: CrossFit | Unavailable, auc: Interval, n: int) -> Markdown:
    """The run in a few sentences with numbers, and what it is not. In brackets are 95 % intervals over women."""
    lines = [f"Run **{evaluation.run.id}** was judged on its {evaluation.split} women: {counts(evaluation)}."]
    if isinstance(fit, Unavailable):
        lines.append(f"*How many cancers it finds is left out: {fit.reason}.*")
    else:
        shares = recalled(evaluation, fit, n)
        lines.append(
            f"**Of 100 breasts with cancer it finds {of_100(*shares['sensitivity'])} when "
            f"{of_100(*shares['women recalled'])} of 100 women are recalled.** "
            f"Of 100 women recalled, {of_100(*shares['PPV by woman'])} have cancer; of 100 breasts without cancer, it "
            f"clears {of_100(*shares['specificity'])}."
        )
    pairs = of_100(auc.estimate, auc.low, auc.high)
    lines.append(
        "Shown one breast with cancer and one without, it gives the first the higher score in "
        f"{pairs} of 100 such pairs: an AUC of {auc}."
    )
    lines.append(
        "In brackets stand 95 % intervals over women. Each woman's threshold was chosen on other women, for the best "
        "F1; other thresholds stand under *Operating points*."
    )
    return Markdown("\n\n".join([*lines, "> **What it is not.** " + " ".join(what_it_is_not(evaluation))]))


def recalled(evaluation: Evaluation, fit: CrossFit, n: int) -> dict[str, tuple[float, float, float]]:
    """(estimate, low, high) of the breasts' sensitivity and specificity, and of recall and PPV by woman."""
    breasts = evaluation.breasts.assign(called=fit.calls)
    women = breasts.groupby("patient_id")[["cancer", "called"]].max().reset_index()
    [breast_limits] = rate_intervals(evaluation.breasts, [fit.calls], n)
    [woman_limits] = rate_intervals(women, [women["called"].to_numpy(dtype=bool)], n)
    called = women["called"].astype(bool)
    ppv = float(women.loc[called, "cancer"].mean()) if called.any() else float("nan")
    return {
        "sensitivity": (fit.point.sensitivity, *breast_limits[0]),
        "specificity": (fit.point.specificity, *breast_limits[1]),
        "women recalled": (float(called.mean()), *woman_limits[3]),
        "PPV by woman": (ppv, *woman_limits[2]),
    }


def what_it_is_not(evaluation: Evaluation) -> list[str]:
    """The limits of this evaluation, as sentences."""
    share = evaluation.women["cancer"].mean()
    sentences = ["It is for research only, not for clinical use."]
    if is_drawn(evaluation.run):
        sentences.append("These mammograms are drawn by a program, so nothing here says anything about real ones.")
    if share > SCREENING_SHARE:
        sentences.append(
            f"{100 * share:.0f} of 100 women here have cancer, in screening fewer than 1 of 100: there, far fewer of "
            "the women recalled would have cancer."
        )
    sentences.append("It is one training run on one data set: other women, machines or seeds give other figures.")
    return sentences


HEADS = {
    "recall_rate": "breasts recalled, of 100",
    "sensitivity": "cancers found, of 100",
    "ppv": "with cancer, of 100 recalled",
    "specificity": "not recalled, of 100 without cancer",
}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`operating.operating_table` in numbers of 100 with their intervals, a row a rule."""
    columns = {
        head: [of_100(*row) for row in zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)]
        for name, head in HEADS.items()
    }
    return pd.DataFrame(columns, index=list(table["rule"]))


def published(table: pd.DataFrame) -> pd.DataFrame:
    """`operating.PUBLISHED` in numbers of 100, each row by its letter and system."""
    columns = {head: table[name].map(lambda share: f"{100 * share:.1f}") for name, head in HEADS.items()}
    names = table["letter"] + ": " + table["system"]
    return pd.DataFrame(columns).set_axis(list(names)).replace("nan", "not given")


def optimism(fit: CrossFit) -> pd.DataFrame:
    """The rates at the threshold of best F1, chosen on the women judged and on others, and what that flatters."""
    rows = {
        name.replace("_", " "): (getattr(fit.in_sample, name), getattr(fit.point, name), fit.optimism[name])
        for name in [*RATES, "f1"]
    }
    columns = ["chosen on the same women", "chosen on other women", "optimism"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(3) + 0.0  # not -0.0


def checkpoint_note(evaluation: Evaluation) -> Markdown:
    """What choosing the checkpoint did to the figures."""
    config = evaluation.run.config
    if evaluation.split == "test":
        return Markdown("The test women took no part in training, nor in choosing the checkpoint.")
    return Markdown(
        f"**There are no test women.** The checkpoint was chosen by `{config.monitor}`{of_epochs(evaluation.run)} on "
        "the very women that it is judged on here, so that every figure is somewhat better than new women would give; "
        "no interval has this in it. Train with `test_fraction` for figures that are free of it."
    )


def of_epochs(run: Run) -> str:
    try:
        return f" among {run.metrics['epochs']} epochs (epoch {run.metrics['best_epoch']})"
    except (RunError, KeyError, json.JSONDecodeError):
        return ""


def model_card(evaluation: Evaluation) -> Markdown:
    """What the model is, what it was made from, what it is for and where it ends; what is not recorded says so."""
    config = evaluation.run.config
    split = (
        f"{config.leave_out.replace('=', ' ')} for validation"
        if config.leave_out
        else f"fold {config.fold} of {config.n_folds}"
        if config.fold >= 0
        else f"{config.val_fraction:.0%} for validation"
    )
    rows = {
        "Run": f"`{evaluation.run.id}`",
        "Network": f"`{config.backbone}`, {config.pooling} pooling, {' x '.join(map(str, config.image_shape))} pixels; "
        f"weights `{config.weights}`, backbone {'frozen' if config.freeze_backbone else 'trained'}",
        "Data": f"{'generated mammograms, ' * is_drawn(evaluation.run)}`{folder_name(evaluation.run)}`",
        "Trained on": trained_on(evaluation.run),
        "Split": f"by woman, seed {config.split_seed}: {split}, {config.test_fraction:.0%} for test",
        "Judged on": f"{evaluation.split}: {counts(evaluation)}",
        "Checkpoint": f"best `{config.monitor}` on the validation women{of_epochs(evaluation.run)}",
        "Made with": made_with(evaluation.run),
        "Intended use": "research and teaching only",
        "Not for": "clinical use of any kind: diagnosis, screening, triage, or a second opinion on a woman's pictures",
        "Limits": "sees one picture at a time: no earlier examinations, no comparison of sides, no history. Cancer is "
        "what the table says. Small groups say little. How it does on machines that the table lacks is unknown.",
    }
    return Markdown("\n".join(["| | |", "|---|---|", *(f"| **{name}** | {text} |" for name, text in rows.items())]))


def folder_name(run: Run) -> str:
    return run.config.data_dir.rstrip("/").rpartition("/")[2] or "the default data folder"


def trained_on(run: Run) -> str:
    weighting = f"imbalance `{run.config.imbalance}`, augmentation `{run.config.augmentation}`"
    try:
        images, positives = (run.metrics[name]["train"] for name in ("images", "positives"))
    except (RunError, KeyError, json.JSONDecodeError):
        return f"a number of images that metrics.json does not say; {weighting}"
    return f"{images:,} images, {positives:,} with cancer; {weighting}"


def made_with(run: Run) -> str:
    """Versions, commit and fingerprint of the table, as environment.json has them."""
    try:
        made = json.loads(run.file("config/environment.json").read_text())
        versions = ", ".join(f"{name} {made['packages'][name]}" for name in ("rsna_nb", "tensorflow", "keras"))
        commit = f"commit {made['git']['commit'][:8]}" if made["git"] else "no commit"
        changed = " with changes" if made["git"] and made["git"]["changed"] else ""
        return f"{versions}; {commit}{changed}; table {made['table_fingerprint'][:8]}"
    except (RunError, KeyError, json.JSONDecodeError):
        return "not recorded"


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: intervals without their draws, tables as rows, NaN as null."""
    if isinstance(value, Unavailable):
        return {"unavailable": value.reason}
    if isinstance(value, Interval):
        return {name: plain(getattr(value, name)) for name in ("estimate", "low", "high")}
    if isinstance(value, CrossFit):
        return {name: plain(getattr(value, name)) for name in ("thresholds", "point", "in_sample", "optimism")}
    if isinstance(value, pd.DataFrame):
        named = value if isinstance(value.index, pd.RangeIndex) else value.reset_index()
        return [plain(row) for row in named.to_dict("records")]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
