"""A run -> one HTML page to share: notebook 04_evaluate, executed by papermill, without its code.

The page needs no other file. It contains its style, its figures are data URIs, it has no script, and its content
security policy forbids the browser to fetch anything. nbconvert renders it with the template in report_template/.

    python -m rsna_nb.evaluation.report <run> [--compare <run>] [--runs-dir runs] [--pictures 6]
"""

import argparse
import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbconvert import HTMLExporter
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from traitlets.config import Config

from rsna_nb.config import resolve
from rsna_nb.evaluation.evaluated_run import find_run
from rsna_nb.evaluation.results import result_path
from rsna_nb.notebook import NOTEBOOKS
from rsna_nb.runs import Run, RunError
from rsna_nb.system import add_to_mlflow, write_whole

EXPORT = Config(
    {
        "TagRemovePreprocessor": {"enabled": True, "remove_cell_tags": {"remove_cell"}},
        # figures before tables before text: nbconvert's own order starts with widgets and scripts
        "NbConvertBase": {"display_data_priority": ["image/png", "text/markdown", "text/html", "text/plain"]},
    }
)
SAVED = ("ROC", "Mammograms, hits")
CLEAN = SanitizeHTML(
    tags="a blockquote br code em h1 h2 h3 h4 hr li ol p pre strong table tbody td th thead tr ul".split(),
    attributes={"a": ["class", "href"], "td": ["colspan", "rowspan"], "th": ["colspan", "rowspan"]}
    | {f"h{level}": ["id"] for level in range(1, 5)},
    strip=True,
)


class ReportError(RuntimeError):
    """The report cannot be made; the message says what to do."""


def make_report(run: Run, compare: str = "", runs_dir: str | Path = "runs", **parameters: Any) -> Path:
    """Evaluate a run and write its page; the executed notebook is written next to it.

    Parameters
    ----------
    run, compare, runs_dir
        The run, the id or path of another to compare with or "", and the folder that ids are looked up in.
    parameters
        Other parameters of 04_evaluate: draws, pictures.

    Returns
    -------
    report.html in the run folder. Its name contains the parameters that are not the default
    (`results.result_path`), so that it overwrites no report with other parameters.

    Raises
    ------
    ReportError
        If the notebook stops; the message says why.
    """
    executed, page = (
        result_path(run, name, compare=compare, **parameters) for name in ("evaluate.ipynb", "report.html")
    )
    given = {"run": str(run.path), "compare": compare, "runs_dir": str(resolve(runs_dir)), "viewer_megabytes": 0}
    given |= parameters
    try:
        notebook = papermill.execute_notebook(NOTEBOOKS / "04_evaluate.ipynb", str(executed), given, progress_bar=False)
    except PapermillExecutionError as error:
        raise ReportError(f"04_evaluate stopped: {error.ename}: {error.evalue} (see {executed})") from error
    write_whole(page, render(notebook, run.id).encode())
    add_to_mlflow(run.path, page)
    return page


def render(notebook: NotebookNode, name: str = "") -> str:
    """The page of an executed notebook: its words and outputs, and a table of contents of its second-level headings.

    Cells tagged remove_cell are dropped, and so is standard error. The title is `name` and the first heading.

    `ReportError` for an output that is an error, and for a figure without alt text.
    """
    for output in _outputs(notebook):
        if output.output_type == "error":
            raise ReportError(f"the notebook stopped with an error: {output.ename}: {output.evalue}")
        if "image/png" in output.get("data", {}) and not _alt(output):
            raise ReportError("a figure has no alt text: see plots.style.with_alt")
    exporter = HTMLExporter(
        template_name="report_template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        filters={"without_scripts": _without_scripts},
        config=EXPORT,
    )
    return exporter.from_notebook_node(notebook, {"metadata": {"name": name}})[0]


def _outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _alt(output: NotebookNode) -> str:
    return output.get("metadata", {}).get("image/png", {}).get("alt", "")


def _without_scripts(html: str) -> str:
    """Keep plain text, links and tables only.

    nbconvert's own filter `clean_html` escapes headings and paragraphs, and keeps the content of <style>.
    """
    return CLEAN.sanitize_html_tags(re.sub(r"(?is)<(style|script)\b.*?</\1\s*>", "", html))


def save_figure(notebook: Path, path: str | Path) -> None:
    """Save the figures of an executed notebook whose alt texts start with `SAVED`, side by side, as one PNG.

    `ReportError` if it has none of them.
    """
    found: dict[str, str] = {}
    for output in _outputs(nbformat.read(notebook, as_version=4)):
        found |= {kind: output["data"]["image/png"] for kind in SAVED if _alt(output).startswith(kind)}
    images = [Image.open(io.BytesIO(base64.b64decode(found[kind]))) for kind in SAVED if kind in found]
    if not images:
        raise ReportError(f"{path} is not made: {notebook} has no figure {' or '.join(SAVED)}")
    height = max(image.height for image in images)
    page = Image.new("RGB", (sum(image.width for image in images), height), "white")
    left = 0
    for image in images:
        page.paste(image, (left, (height - image.height) // 2))
        left += image.width
    page.save(path, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line: print the path of the page, or exit with one line that says why there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m rsna_nb.evaluation.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", nargs="?", default="", help="a run's id or path; without it, the newest")
    parser.add_argument("--compare", default="", help="another run to compare with")
    parser.add_argument("--runs-dir", default="runs", help="folder that contains the run folders")
    parser.add_argument(
        "--pictures",
        type=int,
        default=6,
        help="number of examples of each kind; 0 omits them, for data that may not be redistributed",
    )
    parser.add_argument("--figure", default="", help="also save the ROC curve and the clearest hits as this PNG")
    chosen = parser.parse_args(arguments)
    try:
        run = find_run(chosen.run, chosen.runs_dir)
        print(make_report(run, chosen.compare, chosen.runs_dir, pictures=chosen.pictures))
        if chosen.figure:
            notebook = result_path(run, "evaluate.ipynb", compare=chosen.compare, pictures=chosen.pictures)
            save_figure(notebook, chosen.figure)
    except (ReportError, RunError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
