"""A run -> one HTML file to pass on: 04_evaluate, run by papermill into the run folder, without its code.

The page needs nothing but itself: its style is inside, its figures are data URIs, it has no script, and its
content security policy forbids the browser to fetch anything.

    python -m rsna_nb.evaluation.report <run> [--compare <run>] [--runs-dir runs] [--pictures 6]
"""

import argparse
import base64
import html
import io
import re
import sys
from pathlib import Path
from string import Template
from typing import Any

import bleach
import mistune
import nbformat
import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from rsna_nb.config import resolve
from rsna_nb.evaluation.evaluated_run import find_run
from rsna_nb.runs import PACKAGE, Run, RunError
from rsna_nb.system import write_whole

NOTEBOOK = PACKAGE.parent / "notebooks" / "04_evaluate.ipynb"
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td", "p"}
TABLE_ATTRIBUTES = {"th": ["colspan", "rowspan"], "td": ["colspan", "rowspan"]}

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<nav aria-label="Contents"><h2>Contents</h2><ol>
$contents
</ol></nav>
<main>
$body
</main>
</body>
</html>
""")

STYLE = """
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
  color: #1b1b1b; background: #fff; overflow-wrap: break-word }
main, nav { max-width: 46rem; margin: 0 auto; padding: 0 1rem }
main { padding-bottom: 4rem }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1.5rem 0 .8rem }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid #ddd }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
a { color: #0072b2 }
nav h2 { font-size: .95rem; margin: 1.2rem 0 .3rem; padding: 0; border: 0; color: #555 }
nav ol { margin: 0; padding-left: 1.4rem; font-size: .95rem; columns: 2 14rem }
blockquote { margin: 1rem 0; padding: .1rem 1rem; border-left: 4px solid #d55e00; background: #fdf3ee }
figure { margin: 1.2rem 0 }
img { display: block; max-width: 100%; height: auto }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.35; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top }
thead th { border-bottom: 2px solid #999; vertical-align: bottom }
.scroll td, .scroll thead th { text-align: right }
.scroll td { white-space: nowrap }
pre { overflow-x: auto; padding: .7rem .9rem; background: #f5f5f5; font-size: .84rem; line-height: 1.45 }
code { font-size: .9em }
@media (min-width: 68rem) {
  body { display: grid; grid-template-columns: 15rem minmax(0, 46rem); justify-content: center; gap: 1rem }
  nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; margin: 0 }
  nav ol { columns: auto; line-height: 1.9 }
  main { margin: 0 }
}
@media print {
  body { display: block; font-size: 10.5pt }
  main, nav { max-width: none; padding: 0 }
  nav { position: static }
  h2, h3 { break-after: avoid }
  figure, tr, blockquote { break-inside: avoid }
  .scroll { overflow: visible; break-inside: avoid }
  pre { white-space: pre-wrap }
  a { color: inherit; text-decoration: none }
}
"""


class ReportError(RuntimeError):
    """The report cannot be made; the message says what to do."""


class Renderer(mistune.HTMLRenderer):
    """Markdown as HTML: raw HTML escaped, headings with an id, no pictures from elsewhere."""

    def __init__(self) -> None:
        super().__init__(escape=True)
        self.headings: list[tuple[int, str, str]] = []

    def heading(self, text: str, level: int, **_: Any) -> str:
        words = re.sub(r"<[^>]+>", "", text)
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        name = f"{slug}-{len(self.headings)}"
        self.headings.append((level, name, words))
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text


def make_report(run: Run, compare: str = "", runs_dir: str | Path = "runs", **parameters: Any) -> Path:
    """Evaluate a run and return its report.html; evaluate.ipynb beside it is the notebook as it ran.

    Parameters
    ----------
    run, compare, runs_dir
        The run, the id or path of another to compare with or "", and the folder that ids are looked up in.
    parameters
        Other parameters of 04_evaluate.

    Raises
    ------
    ReportError
        Where the notebook is not there or stops; the message has its reason.
    """
    if not NOTEBOOK.is_file():
        raise ReportError(f"{NOTEBOOK} is not there: reports are made in a checkout of the project")
    executed = run.path / "evaluate.ipynb"
    given = {"run": str(run.path), "compare": compare, "runs_dir": str(resolve(runs_dir)), **parameters}
    try:
        notebook = papermill.execute_notebook(str(NOTEBOOK), str(executed), given, progress_bar=False)
    except PapermillExecutionError as error:
        raise ReportError(f"04_evaluate stopped: {error.ename}: {error.evalue} (see {executed})") from error
    page = run.path / "report.html"
    write_whole(page, render(notebook, run.id).encode())
    return page


def save_figure(run: Run, path: str | Path, kinds: tuple[str, ...] = ("ROC", "Mammograms, hits")) -> None:
    """The report's figures whose alt texts begin so, side by side in one PNG; `ReportError` where it has none."""
    cells = nbformat.read(run.file("evaluate.ipynb"), as_version=4).cells
    found: dict[str, str] = {}
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        found |= {kind: output["data"]["image/png"] for kind in kinds if alt.startswith(kind)}
    images = [Image.open(io.BytesIO(base64.b64decode(found[kind]))) for kind in kinds if kind in found]
    if not images:
        raise ReportError(f"{path} is not made: evaluate.ipynb, beside the report, has no figure {' or '.join(kinds)}")
    height = max(image.height for image in images)
    page = Image.new("RGB", (sum(image.width for image in images), height), "white")
    left = 0
    for image in images:
        page.paste(image, (left, (height - image.height) // 2))
        left += image.width
    page.save(path, optimize=True)


def render(notebook: NotebookNode, name: str = "") -> str:
    """The page of an executed notebook: its words and its outputs, with a table of contents of its h2 headings.

    Cells tagged remove_cell are left out. The page's title is the h1 heading, after `name`.
    """
    renderer = Renderer()
    markdown = mistune.create_markdown(renderer=renderer, plugins=["table"])
    parts = []
    for cell in notebook.cells:
        if "remove_cell" in cell.metadata.get("tags", []):  # nbconvert's word for it
            continue
        if cell.cell_type == "markdown":
            parts.append(str(markdown(cell.source)))
        elif cell.cell_type == "code":
            parts += [render_output(output, markdown) for output in cell.outputs]
    titles = [html.escape(name)] * bool(name) + [words for level, _, words in renderer.headings if level == 1]
    items = [f'<li><a href="#{place}">{words}</a></li>' for level, place, words in renderer.headings if level == 2]
    return PAGE.substitute(title=" · ".join(titles[:2]), style=STYLE, contents="\n".join(items), body="\n".join(parts))


def render_output(output: NotebookNode, markdown: mistune.Markdown) -> str:
    """One output as HTML, the richest form that needs no script. Standard error stays in the notebook."""
    if output.output_type == "stream":
        return f"<pre>{html.escape(output.text)}</pre>" if output.name == "stdout" else ""
    if output.output_type == "error":
        raise ReportError(f"the notebook has an error in it: {output.ename}: {output.evalue}")
    data = output.data
    if "image/png" in data:
        return render_figure(data["image/png"], output.metadata.get("image/png", {}))
    if "text/markdown" in data:
        return str(markdown(data["text/markdown"]))
    if "text/html" in data:
        return render_table(data["text/html"])
    return f"<pre>{html.escape(data.get('text/plain', ''))}</pre>"


def render_figure(png: str, metadata: dict[str, Any]) -> str:
    if not metadata.get("alt"):
        raise ReportError("a figure has no alt text: see plots.style.with_alt")
    size = "".join(f' {side}="{int(metadata[side])}"' for side in ("width", "height") if side in metadata)
    source = "data:image/png;base64," + "".join(png.split())
    return f'<figure><img src="{source}" alt="{html.escape(metadata["alt"])}"{size}></figure>'


def render_table(source: str) -> str:
    """A DataFrame's HTML: the table alone, without style, script or links."""
    plain = re.sub(r"(?is)<(style|script)\b.*?</\1\s*>", "", source)
    clean = bleach.clean(plain, tags=TABLE_TAGS, attributes=TABLE_ATTRIBUTES, strip=True, strip_comments=True)
    return f'<div class="scroll">{clean}</div>'


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rsna_nb.evaluation.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", nargs="?", default="", help="a run's id or path; the newest where it is left out")
    parser.add_argument("--compare", default="", help="another run, to compare with")
    parser.add_argument("--runs-dir", default="runs", help="where run folders are")
    parser.add_argument(
        "--pictures", type=int, default=6, help="examples of each kind; 0 where they may not be passed on"
    )
    parser.add_argument("--figure", default="", help="also save the ROC curve and the clearest hits as this PNG")
    chosen = parser.parse_args(arguments)
    try:
        run = find_run(chosen.run, chosen.runs_dir)
        print(make_report(run, chosen.compare, chosen.runs_dir, pictures=chosen.pictures))
        if chosen.figure:
            save_figure(run, chosen.figure)
    except (ReportError, RunError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
