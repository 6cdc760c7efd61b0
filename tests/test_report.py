import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rsna_nb.evaluation import report
from rsna_nb.evaluation.report import ReportError, render
from rsna_nb.runs import Run
from tests.test_evaluation import predictions_of, write_run, write_store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --enable-logging=stderr"
OWN_HOSTS = ("google.com", "googleapis.com", "gvt1.com")  # which Chromium asks for itself
PNG = base64.b64encode(b"picture").decode()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = write_run(tmp_path_factory.mktemp("report") / "20261123-101530-fake", predictions_of())
    write_store(run)
    return run


@pytest.fixture(scope="module")
def page(run) -> Path:
    return report.make_report(run, draws=50)


def with_output(data: dict, **metadata: object) -> nbformat.NotebookNode:
    output = new_output("display_data", data, metadata=metadata)
    return new_notebook(cells=[new_code_cell("secret_code()", outputs=[output])])


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.slow
def test_the_page_stands_alone_and_shows_no_code(page, run):
    text = page.read_text()
    tags = Tags(text)
    assert not tags.of("script")
    assert not tags.of("iframe")
    for _, attributes in tags.found:
        for name in ("src", "srcset", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
    assert all(link["href"].startswith("data:") for link in tags.of("link"))
    assert not re.search(r"@import|url\(", text)
    assert "attempt(" not in text
    assert "import " not in text
    words = re.sub(r"data:[^\"']*", "", text).lower()
    assert not [name for name in ("http:", "https:", "mathjax", "require.js") if name in words]
    assert run.id in text[: text.index("</title>")]


def test_every_figure_has_alt_text_with_numbers(page):
    images = Tags(page.read_text()).of("img")
    assert len(images) == 11
    for image in images:
        assert re.search(r"\d", image["alt"])
        assert len(image["alt"]) > 40


def test_the_table_of_contents_leads_to_every_section(page):
    tags = Tags(page.read_text())
    links = [link["href"] for link in tags.of("a") if link["href"].startswith("#") and "class" not in link]
    places = {f"#{heading['id']}" for heading in tags.of("h2") if "id" in heading}
    assert len(links) == len(set(links)) == 11
    assert set(links) == places


def test_the_evaluation_is_beside_the_page(page, run):
    (written,) = run.path.glob("evaluation*.json")
    assert json.loads(written.read_text())["run"] == run.id
    assert json.loads(written.read_text())["women"] == 60
    executed = page.with_name(page.name.replace("report", "evaluate")).with_suffix(".ipynb")
    assert "viewer_megabytes = 0" in executed.read_text(), "a report neither makes nor stores the viewer"


def test_the_name_of_the_page_says_which_parameters_are_not_the_default(page, run):
    """So that a report with other parameters overwrites none that was made before."""
    assert page.parent == run.path
    assert page.name == "report-draws-50.html"


@pytest.mark.slow
def test_running_the_report_as_a_module_warns_of_nothing(tmp_path):
    """A face that imports the report makes `python -m` print a RuntimeWarning."""
    command = [sys.executable, "-W", "error", "-m", "rsna_nb.evaluation.report", "nothing", "--runs-dir", tmp_path]
    answer = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "there is no run nothing" in answer.stderr
    assert "Warning" not in answer.stderr


def chromium(page: Path, folder: Path) -> tuple[list[str], set[str]]:
    """(lines of the console, hosts asked for that are not Chromium's own) of opening a page."""
    log = folder / "net.json"
    options = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--window-size=400,900"]
    shot = f"--screenshot={folder / 'shot.png'}"
    answer = subprocess.run(
        [CHROMIUM, *FLAGS.split(), *options, shot, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert (folder / "shot.png").stat().st_size > 0
    urls = re.findall(r'"url":"(https?://[^"]+)"', log.read_text())
    hosts = {urlsplit(url).hostname or "" for url in urls}
    console = [line for line in answer.stderr.splitlines() if "CONSOLE" in line]
    return console, {host for host in hosts if not host.endswith(OWN_HOSTS)}


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_a_browser_opens_the_page_without_an_error_and_without_a_request(page, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://elsewhere.invalid/x.png"><script>console.error("bad")</script>')
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    console, hosts = chromium(bad, tmp_path / "a")
    assert len(console) == 1
    assert hosts == {"elsewhere.invalid"}
    assert chromium(page, tmp_path / "b") == ([], set())


def test_a_figure_without_alt_text_is_an_error():
    with pytest.raises(ReportError, match="a figure has no alt text"):
        render(with_output({"image/png": PNG}))


def test_a_figures_alt_text_and_size_are_kept_and_escaped():
    text = render(
        with_output({"image/png": PNG}, **{"image/png": {"alt": 'AUC "0.9" <b>', "width": 520, "height": 300}})
    )
    (image,) = Tags(text).of("img")
    assert image == {"src": f"data:image/png;base64,{PNG}", "alt": 'AUC "0.9" <b>', "width": "520", "height": "300"}
    assert "secret_code" not in text


def test_a_table_is_kept_and_what_it_brings_along_is_not():
    html = pd.DataFrame({"<script>alert(1)</script>": [1]}, index=["AUC"])._repr_html_()
    hostile = (
        html + '<style>p {background: url("http://x.invalid")}</style><img src="http://x.invalid"><script>go()</script>'
    )
    text = render(with_output({"text/html": hostile, "text/plain": ""}))
    tags = Tags(text)
    assert len(tags.of("table")) == 1
    assert not tags.of("script")
    assert not tags.of("img")
    assert len(tags.of("style")) == 1
    assert "x.invalid" not in text
    assert "go()" not in text


def test_words_are_markdown_and_raw_html_is_only_shown():
    parts = ["# Title", "## One & two", "<script>go()</script>", "![a picture](http://x.invalid/a.png)"]
    words = "\n\n".join([*parts, "| a | b |\n|---|---|\n| 1 | 2 |"])
    tags = Tags(render(new_notebook(cells=[new_markdown_cell(words)]), "run"))
    assert not tags.of("script")
    assert not tags.of("img")
    assert len(tags.of("table")) == 1
    assert [link["href"] for link in tags.of("a") if "class" not in link] == [f"#{tags.of('h2')[1]['id']}"]


def test_what_is_unavailable_is_shown_as_its_reason():
    text = render(with_output({"text/markdown": "*Not available: too few.*", "text/plain": "Unavailable('too few')"}))
    assert "<em>Not available: too few.</em>" in text
    assert "Unavailable" not in text


def test_cells_for_the_notebook_alone_are_not_on_the_page():
    cells = [new_markdown_cell("    make report", metadata={"tags": ["remove_cell"]}), new_markdown_cell("kept")]
    text = render(new_notebook(cells=cells))
    assert "kept" in text
    assert "make report" not in text


@pytest.mark.slow
def test_a_notebook_that_stops_says_why_and_makes_no_page(tmp_path):
    run = write_run(tmp_path / "broken", predictions_of().assign(score=2.0))
    with pytest.raises(
        ReportError, match=r"04_evaluate stopped: MetricsError: .*predictions\.csv: score is outside 0-1"
    ):
        report.make_report(run, draws=20)
    assert not list(run.path.glob("report*.html"))


def test_the_command_prints_where_the_page_is_or_one_line_that_says_why_not(tmp_path):
    with pytest.raises(SystemExit) as caught:
        report.main(["nothing", "--runs-dir", str(tmp_path)])
    assert "there is no run nothing" in str(caught.value)


def test_the_figures_that_there_are_make_a_png_and_none_is_an_error_that_names_them(tmp_path):
    run = write_run(tmp_path / "run", predictions_of())
    png = base64.b64encode(cv2.imencode(".png", np.zeros((4, 6), np.uint8))[1].tobytes()).decode()
    roc = with_output({"image/png": png}, **{"image/png": {"alt": "ROC curve by breast"}})
    notebook = run.path / "evaluate.ipynb"
    nbformat.write(roc, notebook)
    report.save_figure(notebook, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0
    nbformat.write(new_notebook(), notebook)
    with pytest.raises(ReportError, match=r"y\.png is not made: .* has no figure ROC or Mammograms, hits"):
        report.save_figure(notebook, tmp_path / "y.png")
