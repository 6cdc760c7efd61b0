"""An evaluation in words: the summary that a radiologist reads first, and the model card."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb.config import RunConfig
from rsna_nb.evaluation import epochs
from rsna_nb.evaluation.evaluated_run import Evaluation
from rsna_nb.metrics import RATES, CrossFit, Interval, rate_intervals, threshold_text
from rsna_nb.notebook import Markdown, Unavailable, attempt
from rsna_nb.runs import Run, RunError

SCREENING_SHARE = 0.01  # at most this share of women in screening have cancer; a table with more is enriched

SEEN = {
    "image": "one image at a time, without earlier examinations, comparison of sides or history",
    "breast": "the images of one breast, without earlier examinations, comparison of sides or history",
    "woman": "the images of both breasts of one examination, without earlier examinations or history",
}
HEADS = {
    "recall_rate": "Recall rate (%)",
    "sensitivity": "Sensitivity (%)",
    "ppv": "PPV (%)",
    "specificity": "Specificity (%)",
}
OPTIMISTIC = {name: name.replace("_", " ") for name in RATES} | {"ppv": "PPV", "f1": "F1"}


def of_100(estimate: float, low: float, high: float) -> str:
    """A share with its interval as numbers of 100; with a decimal if it is small or its interval narrow.

    Examples
    --------
    >>> of_100(0.784, 0.626, 0.881), of_100(0.0324, 0.0291, 0.0349)
    ('78 (63 to 88)', '3.2 (2.9 to 3.5)')
    """
    if np.isnan(estimate):
        return "not defined"
    # whole numbers suffice for the wide intervals of few women
    digits = 1 if estimate < 0.1 or high - low < 0.05 else 0
    limits = "no interval" if np.isnan(low) else f"{100 * low:.{digits}f} to {100 * high:.{digits}f}"
    return f"{100 * estimate:.{digits}f} ({limits})"


def is_generated(run: Run) -> bool:
    """Whether the run was trained on a generated data set, according to environment.json."""
    return bool(_environment(run).get("generated", False))


def _label(run: Run) -> str:
    """What "cancer" means in the data that the run was trained on; "" if it is proven by biopsy or not recorded."""
    return str(_environment(run).get("label", ""))


def _environment(run: Run) -> dict[str, Any]:
    try:
        return json.loads(run.file("config/environment.json").read_text())
    except (RunError, json.JSONDecodeError):
        return {}


def in_short(evaluation: Evaluation, fit: CrossFit | Unavailable, auc: Interval, n: int) -> Markdown:
    """The evaluation in a few sentences with numbers, and its limits; brackets hold 95 % intervals over women."""
    lines = [f"**{note}**"] if (note := imported_note(evaluation.run)) else []
    lines += [f"Run **{evaluation.run.id}** was evaluated on its {evaluation.split} women: {_counts(evaluation)}."]
    if isinstance(fit, Unavailable):
        lines.append(f"*The sensitivity is not available: {fit.reason}.*")
    else:
        shares = _recalled(evaluation, fit, n)
        lines.append(
            f"**Of 100 breasts with cancer it finds {of_100(*shares['sensitivity'])} when "
            f"{of_100(*shares['women recalled'])} of 100 women are recalled.** "
            f"Of 100 women recalled, {of_100(*shares['PPV by woman'])} have cancer, in either breast. Of 100 breasts "
            f"without cancer, it clears {of_100(*shares['specificity'])}."
        )
    pairs = of_100(auc.estimate, auc.low, auc.high)
    lines.append(
        "Shown one breast with cancer and one without, it gives the first the higher score in "
        f"{pairs} of 100 such pairs: an AUC of {auc}."
    )
    lines.append(
        "Brackets hold 95 % intervals over women. The threshold for each woman was chosen on other women, for the best "
        "F1, the harmonic mean of sensitivity and PPV. Other thresholds are listed under *Operating points*."
    )
    return Markdown("\n\n".join([*lines, "> **Limits.** " + " ".join(limits(evaluation))]))


def imported_note(run: Run) -> str:
    """Where an imported run comes from, and what the user stated about the women that it scored; "" for other runs."""
    if not run.imported:
        return ""
    origin, stated = run.imported["origin"], _environment(run).get("other_women", "")
    note = f"This detector was imported and not trained here: {origin}, by {run.imported['authors']}."
    note += f" Its images are {run.imported['images']}."
    return f"{note} {stated}." if stated else note


def _counts(evaluation: Evaluation) -> str:
    women, breasts = evaluation.women, evaluation.breasts
    return (
        f"{len(women):,} women, {women['cancer'].sum():,} of them with cancer: {len(breasts):,} breasts, "
        f"{breasts['cancer'].sum():,} with cancer, in {len(evaluation.predictions):,} images"
    )


def _recalled(evaluation: Evaluation, fit: CrossFit, n: int) -> dict[str, tuple[float, float, float]]:
    """(estimate, low, high) of sensitivity and specificity by breast, and of recall rate and PPV by woman."""
    breasts = evaluation.breasts.assign(called=fit.calls)
    women = breasts.groupby("patient_id")[["cancer", "called"]].max().reset_index()
    [breast_limits] = rate_intervals(evaluation.breasts, [fit.calls], n)
    [woman_limits] = rate_intervals(women, [women["called"].to_numpy(dtype=bool)], n)
    called = women["called"].astype(bool)  # a woman is recalled if either of her breasts is
    ppv = float(women.loc[called, "cancer"].mean()) if called.any() else float("nan")
    return {
        "sensitivity": (fit.point.sensitivity, *breast_limits[0]),
        "specificity": (fit.point.specificity, *breast_limits[1]),
        "women recalled": (float(called.mean()), *woman_limits[3]),
        "PPV by woman": (ppv, *woman_limits[2]),
    }


def limits(evaluation: Evaluation) -> list[str]:
    """What this evaluation cannot show, as sentences."""
    share = evaluation.women["cancer"].mean()
    sentences = ["This is for research only, not for clinical use."]
    if is_generated(evaluation.run):
        sentences.append("These mammograms are generated, so nothing here applies to real ones.")
    if meaning := _label(evaluation.run):
        sentences.append(f"**{meaning}**")
    if share > SCREENING_SHARE:
        sentences.append(
            f"{100 * share:.0f} of 100 women here have cancer; in screening, fewer than 1 of 100 have. The PPV there "
            "would be far lower."
        )
    sentences.append("This is one training run on one data set: other women, machines or seeds give other results.")
    return sentences


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`operating.operating_table`: the median threshold, and the rates in percent with intervals, by rule."""
    columns = {"Threshold": [*map(threshold_text, table["threshold"])]} | {
        head: [of_100(*row) for row in zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)]
        for name, head in HEADS.items()
    }
    return pd.DataFrame(columns, index=list(table["rule"]))


def published(table: pd.DataFrame) -> pd.DataFrame:
    """`operating.PUBLISHED` in percent, each row by its letter and system."""
    columns = {head: table[name].map(lambda share: f"{100 * share:.1f}") for name, head in HEADS.items()}
    names = table["letter"] + ": " + table["system"]
    return pd.DataFrame(columns).set_axis(list(names)).replace("nan", "not given")


def optimism(fit: CrossFit) -> pd.DataFrame:
    """The rates at the threshold of best F1, chosen on the evaluated women and on other women, and the difference."""
    rows = {
        words: (getattr(fit.in_sample, name), getattr(fit.point, name), fit.optimism[name])
        for name, words in OPTIMISTIC.items()
    }
    columns = ["chosen on the same women", "chosen on other women", "optimism"]
    # adding 0.0 turns a rounded -0.0 into 0.0
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).round(3) + 0.0


def checkpoint_note(evaluation: Evaluation) -> Markdown:
    """A note on how the choice of the checkpoint affects the metrics."""
    config = evaluation.run.config
    if note := imported_note(evaluation.run):
        return Markdown(
            f"{note} It is not known here whether it was trained on some of these women. Published, but not measured "
            f"here: {evaluation.run.imported['published']}."
        )
    if evaluation.split == "test":
        return Markdown("The test women took no part in training, nor in choosing the checkpoint.")
    return Markdown(
        f"**There are no test women.** The checkpoint was chosen by `{config.monitor}`{_of_epochs(evaluation.run)} on "
        "the same women that it is evaluated on here. All metrics are therefore better than they would be on new "
        f"women, and no interval includes this. {choice_note(evaluation.run).text} Train with `test_fraction`, or "
        "cross-validate (05), to avoid it."
    )


def choice_note(run: Run) -> Markdown:
    """How much the choice of the epoch flatters the validation women of a run, in words."""
    found = attempt(epochs.run_optimism, run)
    if isinstance(found, Unavailable):
        return Markdown(f"How much better cannot be said: {found.reason}.")
    if np.isnan(found.optimism):
        return Markdown("How much better cannot be said: the validation women are too few.")
    result = (
        f"so about **{found.optimism:.3f}** of it is optimism"
        if found.optimism >= 0.0005  # else 0.000 would be called optimism
        else f"so no optimism was found ({found.optimism:.3f}; by chance it can be below 0)"
    )
    return Markdown(
        f"How much better was estimated by choosing among the {found.epochs} epochs on some women and evaluating on "
        f"others, in repeated divisions: the AUC by breast of the chosen epoch is {found.in_sample:.3f} where "
        f"the same women chose it, and {found.elsewhere:.3f} where others did, {result}. Average precision and pF1 are "
        "affected too."
    )


def _recorded(read: Callable[[], str], otherwise: str) -> str:
    """What `read` finds in the run folder, or `otherwise` if a file or a value is missing or damaged."""
    try:
        return read()
    except (RunError, KeyError, json.JSONDecodeError):
        return otherwise


def _of_epochs(run: Run) -> str:
    return _recorded(lambda: f" among {run.metrics['epochs']} epochs (epoch {run.metrics['best_epoch']})", "")


def model_card(evaluation: Evaluation) -> Markdown:
    """The model card: network, data, training, intended use and limits.

    What the run folder does not record is marked as such.
    """
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
        f"weights `{config.weights}`, backbone {'frozen' if config.freeze_backbone else 'trained'}; {_unit(config)}",
        "Data": f"{'generated mammograms, ' * is_generated(evaluation.run)}`{_folder_name(evaluation.run)}`",
        "Label": _label(evaluation.run) or "cancer as the data set's table gives it",
        "Trained on": _trained_on(evaluation.run),
        "Split": f"by woman, seed {config.split_seed}: {split}, {config.test_fraction:.0%} for test",
        "Evaluated on": f"{evaluation.split} women: {_counts(evaluation)}",
        "Checkpoint": f"best `{config.monitor}` on the validation women{_of_epochs(evaluation.run)}",
        "Made with": _recorded(lambda: _made_with(evaluation.run), "not recorded"),
        "Intended use": "research and teaching only",
        "Not for": "clinical use of any kind: diagnosis, screening, triage, or a second opinion on a woman's images",
        "Limits": f"The model sees {SEEN[config.unit]}. "
        "Labels come from the table. Results of small groups are uncertain. Performance on other mammography units is "
        "unknown.",
    }
    rows |= _rows_of_imported(evaluation.run)
    return Markdown("\n".join(["| | |", "|---|---|", *(f"| **{name}** | {text} |" for name, text in rows.items())]))


def _unit(config: RunConfig) -> str:
    """What the network scores, and how it combines images."""
    if config.unit == "image":
        return "scores single images; a breast has the mean of its images' scores"
    beside = " beside the other breast" * (config.unit == "woman")
    return f"scores a breast{beside} by all its images, combined by {config.combine}"


def _rows_of_imported(run: Run) -> dict[str, str]:
    """Return the rows of the model card that differ for an imported run; none for other runs."""
    if not run.imported:
        return {}
    return {
        "Trained on": f"elsewhere, on other data: {run.imported['origin']}; {run.imported['address']}",
        "Licence": run.imported["licence"],
        "Split": "none: all labelled images of the table were scored",
        "Checkpoint": f"as published: `{run.imported['file']}`",
    }


def _folder_name(run: Run) -> str:
    return run.config.data_dir.rstrip("/").rpartition("/")[2] or "the default data folder"


def _trained_on(run: Run) -> str:
    def counts() -> str:
        images, positives = (run.metrics[name]["train"] for name in ("images", "positives"))
        counted = f"{images:,} images, {positives:,} with cancer"
        if run.config.unit == "image":
            return counted
        return f"{counted}, in {run.metrics['examples']:,} breasts"

    weighting = f"imbalance `{run.config.imbalance}`, augmentation `{run.config.augmentation}`"
    return f"{_recorded(counts, 'an unrecorded number of images')}; {weighting}"


def _made_with(run: Run) -> str:
    """Versions, commit and fingerprint of the table, from environment.json."""
    made = json.loads(run.file("config/environment.json").read_text())
    versions = ", ".join(f"{name} {made['packages'][name]}" for name in ("rsna_nb", "tensorflow", "keras"))
    commit = f"commit {made['git']['commit'][:8]}" if made["git"] else "no commit"
    changed = " with changes" if made["git"] and made["git"]["changed"] else ""
    return f"{versions}; {commit}{changed}; table {made['table_fingerprint'][:8]}"
