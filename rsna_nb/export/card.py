"""The model card of an export, in Markdown: the run, its metrics as recorded, and what goes in and comes out."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from rsna_nb import evaluation
from rsna_nb.evaluation import summary
from rsna_nb.export.check import Agreement
from rsna_nb.export.formats import Format
from rsna_nb.metrics import threshold_text
from rsna_nb.notebook import Unavailable, attempt
from rsna_nb.runs import Run

RESEARCH = "**For research and teaching only.** Not for clinical use of any kind."
PREPARED = {
    "breast": "windowed as its header says, with black air, cropped to the breast, in its proportions, padded with 0",
    "rsna-first-place": "prepared as by the first place of the RSNA challenge",
}


def model_card(
    run: Run, kind: Format, path: Path, model: keras.Model, agreement: Agreement, files: Mapping[str, str]
) -> str:
    """Describe an export.

    Parameters
    ----------
    run, kind, path
        The run, the format, and the path that the export will have.
    model
        The run's model in float32.
    agreement
        What the check found.
    files
        The SHA-256 of each file, by its name within `path`.
    """
    evaluated = attempt(evaluation.evaluate, run)
    if isinstance(evaluated, Unavailable):
        reason = f"It was not evaluated here: {_without_path(evaluated, run)}."
        about = f"Run `{run.id}`, network `{run.config.backbone}`. {reason} {summary.imported_note(run)}".strip()
    else:
        about = summary.model_card(evaluated).text
    parts = {
        "": f"{RESEARCH}\n\n{about}",
        "The file": _table(_of_file(kind, path, agreement, files)),
        "Input": _of_inputs(run, model),
        "Output": _of_output(run),
        "Metrics": _of_metrics(run),
        "Threshold": _of_thresholds(run),
    }
    title = f"# {run.id} as {kind.words}\n"
    return "\n".join([title, *(f"## {name}\n\n{text}\n" if name else f"{text}\n" for name, text in parts.items())])


def _without_path(missing: Unavailable, run: Run) -> str:
    """The reason without the folder of this computer, since the card is passed on."""
    return missing.reason.replace(str(run.path), run.id)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| **{name}** | {text} |" for name, text in rows.items())])


def _of_file(kind: Format, path: Path, agreement: Agreement, files: Mapping[str, str]) -> dict[str, str]:
    own = importlib.metadata.version("rsna_nb")
    rounding = (
        f"; training computed in half precision, and its network there gives scores that differ by up to "
        f"{agreement.rounding:.1e}"
        if agreement.rounding
        else ""
    )
    return {
        "Format": f"{kind.words}, read by {kind.runtime} {kind.version}",
        "Written by": f"rsna_nb {own}, keras {keras.__version__}, tensorflow {tf.__version__}",
        "Precision": f"float32{rounding}",
        "Check": f"{kind.runtime} against the run: {agreement}; with batches of 1 and more",
    } | {f"SHA-256 of {Path(path.name, name)}": f"`{digest}`" for name, digest in files.items()}


def _of_inputs(run: Run, model: keras.Model) -> str:
    height, width = run.config.image_shape
    images = (
        f"an 8-bit greyscale image of {height} x {width} pixels, {PREPARED[run.config.reading]}: "
        f"`rsna_nb.prepare.to_8_bits(rsna_nb.dicom.read_mammogram(path, [{height}, {width}], run.image_recipe))`. The "
        "file itself divides by 255."
    )
    name = model.inputs[0].name
    if len(model.inputs) == 1:
        return f"`{name}`: uint8 (batch, {height}, {width}, 1). Each is {images}"
    opposite = ", and 4, 5, 6 for the same views of the other breast" * (run.config.unit == "woman")
    codes = (
        f"1 for CC, 2 for MLO, 3 for another view{opposite}; 0 for a place without an image, whose pixels are ignored"
    )
    return (
        f"`{name}`: uint8 (batch, places, {height}, {width}, 1), the images of a breast in any order. Each is {images}"
        f"\n\n`{model.inputs[1].name}`: int32 (batch, places): {codes}."
    )


def _of_output(run: Run) -> str:
    of_breast = "" if run.config.unit != "image" else " A breast has the mean of its images' scores."
    of = "image" if run.config.unit == "image" else "breast"
    return (
        f"`score`: float32 (batch, 1), 0-1, higher where cancer in the {of} is more likely.{of_breast} It is not a "
        "probability: class weights and balanced batches raise it (notebook 04 shows the calibration)."
    )


def _recorded(run: Run) -> dict[str, Any]:
    """The results that 04_evaluate wrote, or nothing."""
    path = run.path / "evaluation.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _of_metrics(run: Run) -> str:
    if found := _recorded(run):
        rows = {
            row["unit"]: "; ".join(_interval(*each) for each in row.items() if each[0] != "unit" and each[1])
            for row in found["metrics"]
        }
        return f"On {found['women']} {found['split']} women, with 95 % intervals over women.\n\n{_table(rows)}"
    metrics = attempt(getattr, run, "metrics")
    if isinstance(metrics, Unavailable):
        return f"None: {_without_path(metrics, run)}."
    rows = {
        f"{split}, by {unit}": ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        for split in ("validation", "test")
        for unit, values in metrics.get(split, {}).items()
    }
    return f"As training recorded them; notebook 04 adds intervals.\n\n{_table(rows)}"


def _interval(name: str, value: Mapping[str, float]) -> str:
    if value["estimate"] is None:
        return f"{name} not defined"
    limits = "no interval" if value["low"] is None else f"{value['low']:.3f} to {value['high']:.3f}"
    return f"{name} {value['estimate']:.3f} ({limits})"


def _of_thresholds(run: Run) -> str:
    if published := run.imported.get("threshold"):
        return f"Published: {published:g}, for images prepared as published."
    points = _recorded(run).get("operating_points", [])
    if not isinstance(points, list) or not points:
        return "None was chosen: notebook 04 chooses thresholds on other women than those whose rates it shows."
    rows = {row["rule"]: threshold_text(row["threshold"]) for row in points}
    return (
        f"On scores of breasts, each the median of those chosen on parts of the women (notebook 04).\n\n{_table(rows)}"
    )
