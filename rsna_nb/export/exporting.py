"""A run -> a checked export and its model card."""

import logging
import re
import shutil
import uuid
from pathlib import Path

import keras

from rsna_nb.config import resolve
from rsna_nb.export import check
from rsna_nb.export.card import model_card
from rsna_nb.export.formats import FORMATS, Format
from rsna_nb.export.serving import in_float32, serving_model
from rsna_nb.inference import load_model
from rsna_nb.runs import Run
from rsna_nb.system import digest, write_whole

log = logging.getLogger("rsna_nb.export")


class ExportError(RuntimeError):
    """A run cannot be exported; the message says why, and what to do."""


def export_run(run: Run, to: str, out: str | Path = "") -> Path:
    """Write a run's best model for another runtime, check it there, and write a model card beside it.

    The file takes 8-bit prepared images, computes in float32 and returns scores (`serving.serving_model`). It gets its
    name only after its scores of `check.PICTURES` pictures, in its own runtime, were within `check.TOLERANCE` of the
    run's.

    Parameters
    ----------
    run
        A run that has a model.
    to
        A key of `FORMATS`.
    out
        The path of the file, or of the folder for "savedmodel"; "" is <run folder>/export/<id> with the format's
        suffix. An export that is there already is replaced.

    Returns
    -------
    The path of the export. The model card has the same name followed by `.md`.

    Raises
    ------
    ExportError
        If the format is not known, a package is missing, the network has an operation that the format lacks, the
        scores differ, or `out` is something else than an export.
    RunError
        If the run has no model.
    """
    if to not in FORMATS:
        raise ExportError(f"the format must be one of {', '.join(FORMATS)}, not {to!r}")
    kind = FORMATS[to]
    if kind.missing:
        raise ExportError(f"{kind.words} needs {', '.join(kind.missing)}: pip install 'rsna_nb[export]'")
    path = resolve(out) if out else run.path / "export" / f"{run.id}{kind.suffix}"
    _check_place(path, kind)
    if not (run.is_finished or run.imported):
        log.warning("run %s is not finished: its best network may still change", run.id)
    own = load_model(run)
    model = in_float32(own)
    part = path.parent / f".export-{uuid.uuid4().hex[:8]}"
    part.mkdir(parents=True)
    try:
        written = part / f"model{kind.suffix}"
        _write(model, kind, written, run)
        agreement = _checked(kind, written, (own, model), run)
        card = model_card(run, kind, path, model, agreement, digests(written))
        if path.is_dir():
            path.rename(part / "before")
        written.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_whole(path.with_name(f"{path.name}.md"), card.encode())
    log.info("exported: %s; its model card: %s.md", path, path.name)
    return path


def _check_place(path: Path, kind: Format) -> None:
    """Raise `ExportError` if something else than an export of this kind would be replaced."""
    is_folder = kind.suffix == FORMATS["savedmodel"].suffix
    if path.is_dir() and not (is_folder and (path / "saved_model.pb").is_file()):
        raise ExportError(f"{path} is a folder of other files: give --out a name of its own")
    if path.is_file() and is_folder:
        raise ExportError(f"{path} is a file, and a SavedModel is a folder: give --out another name")


def _write(model: keras.Model, kind: Format, path: Path, run: Run) -> None:
    try:
        kind.write(serving_model(model), path)
    except Exception as error:  # converters raise errors of any class
        raise ExportError(
            f"the network {run.config.backbone} of run {run.id} cannot be written as {kind.words}: "
            f"{_reason(error)}; savedmodel holds every network of TensorFlow"
        ) from error


def _checked(kind: Format, path: Path, models: tuple[keras.Model, keras.Model], run: Run) -> check.Agreement:
    """Return how well the export agrees with the run; `ExportError` if it does not."""
    pictures = check.pictures_of(run)
    try:
        agreement = check.compare(kind.read(path), *models, pictures)
    except Exception as error:  # so do runtimes
        raise ExportError(
            f"{kind.runtime} cannot run the {kind.words} of run {run.id}: {_reason(error)}; another format may work"
        ) from error
    if not agreement.difference <= check.TOLERANCE:  # also if it is NaN
        raise ExportError(
            f"the {kind.words} of run {run.id} is not written, because its scores in {kind.runtime} are not the run's: "
            f"{agreement}, and at most {check.TOLERANCE:g} is allowed; another format may work"
        )
    log.info("checked in %s: %s", kind.runtime, agreement)
    if agreement.highest - agreement.lowest < 100 * check.TOLERANCE:
        log.warning("the scores of the check are nearly equal, so that it shows little")
    return agreement


def _reason(error: Exception) -> str:
    """The first line of an error, or what LiteRT's converter says of an operation after its place in the graph."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    found = re.search(r"'tf\.\w+' op .*", lines[0])
    return f"{type(error).__name__}: {found[0] if found else lines[0][:500]}"


def digests(path: Path) -> dict[str, str]:
    """The SHA-256 in hexadecimal of a file, or of each file in a folder, by its name there."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): digest(file) for file in files}
