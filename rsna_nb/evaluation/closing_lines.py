"""What a run has reached and what can be done next, in lines for a terminal."""

import sys
from pathlib import Path

from rsna_nb.config import resolve
from rsna_nb.evaluation.evaluated_run import Evaluation, evaluate
from rsna_nb.metrics import bootstrap, scores_breasts
from rsna_nb.notebook import PACKAGE, Unavailable, attempt
from rsna_nb.runs import Run

NEXT = {
    "a page to share": "{bin}python -m rsna_nb.evaluation.report {run}",
    "all about it": "{bin}jupyter lab notebooks/04_evaluate.ipynb",
    "score images": "{bin}python -m rsna_nb.predict {run} <files or folders>",
}


def in_lines(run: Run, draws: int = 2000) -> str:
    """The time and the AUC of a finished run, and the next commands.

    The AUC is that of the test women, or else of the validation women, by image and by breast, with 95 % intervals
    from `draws` bootstrap samples of women.
    """
    found = run.metrics
    lines = [
        f"run {run.path}",
        f"{found['epochs']} epochs in {found['training_seconds'] / 60:.1f} min; the best network is that of epoch "
        f"{found['best_epoch']}",
    ]
    evaluation = attempt(evaluate, run)
    lines += [str(evaluation)] if isinstance(evaluation, Unavailable) else _auc(evaluation, draws)
    name = run.id if run.path.parent == resolve("runs") else str(run.path)
    width, venv = max(map(len, NEXT)), Path(sys.prefix)
    folder = (
        f"{venv.name}/bin/" if venv.parent == PACKAGE.parent else ""
    )  # that of `make setup`, which need not be active
    commands = {what: command.format(bin=folder, run=name) for what, command in NEXT.items()}
    return "\n".join([*lines, "next:", *(f"  {what:{width}}  {command}" for what, command in commands.items())])


def _auc(evaluation: Evaluation, draws: int) -> list[str]:
    tables = {"breast": evaluation.breasts}
    if not scores_breasts(evaluation.predictions):
        tables = {"image": evaluation.predictions, **tables}
    women = evaluation.women["cancer"]
    chosen = ", which chose the epoch: an optimistic estimate" if evaluation.split == "validation" else ""
    return [
        f"{len(women)} {evaluation.split} women, {women.sum()} of them with cancer{chosen}",
        *(f"  AUC by {unit:8} {bootstrap(table, 'auc', n=draws)}" for unit, table in tables.items()),
    ]
