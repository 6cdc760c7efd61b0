"""README.md and docs: links, commands and tables must agree with the code, and `make docs` builds the site."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rsna_nb.config import settings_table
from tests.notebooks import NOTEBOOKS, parameters_cell

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def anchors(page: Path) -> set[str]:
    """The names that GitHub and the site give to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_to_files_and_headings_that_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page)))
    dead = []
    for link in links:
        file, _, anchor = link.partition("#")
        if ":" not in file:
            target = (page.parent / file).resolve() if file else page
            dead += [link] if not target.is_file() or (anchor and anchor not in anchors(target)) else []
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_word_in_angle_brackets_is_lost_as_html(page):
    prose = re.sub(r"`[^`]*`|^ {4}.*$", "", FENCE.sub("", text_of(page)), flags=re.M)
    assert not re.findall(r"(?<!\\)<(?!https?:)[a-zA-Z/][^>]*>", prose)


def test_the_readme_can_be_read_in_ten_minutes():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 200


def test_the_page_of_settings_has_their_table():
    page = text_of(ROOT / "docs" / "settings.md")
    assert f"<!-- settings -->\n{settings_table()}\n<!-- /settings -->" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_files_modules_and_parameters_that_exist(page):
    text = text_of(page)
    files = re.findall(r"(?<![\w/])((?:notebooks|tests|rsna_nb)/[\w/.-]+\.(?:ipynb|json|py))", text)
    missing = [file for file in files if not (ROOT / file).exists()]
    modules = [ROOT / module.replace(".", "/") for module in re.findall(r"python -m (rsna_nb[\w.]*\w)", text)]
    missing += [path for path in modules if not path.is_dir() and not path.with_suffix(".py").is_file()]
    rules = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.M))
    missing += [rule for rule in re.findall(r"(?<=[`\n])make ([\w-]+)", text) if rule not in rules]
    for name, arguments in re.findall(r"papermill notebooks/(\w+)\.ipynb ([^`\n]*)", text):
        known = set(re.findall(r"^(\w+)(?:: \w+)? =", parameters_cell(NOTEBOOKS / f"{name}.ipynb"), re.M))
        missing += [f"{name}: {given}" for given in re.findall(r"-p (\w+)", arguments) if given not in known]
    assert not missing


def test_every_page_is_in_the_contents_and_no_figure_is_left_open():
    listed = set(re.findall(r"^(\w+)$", text_of(ROOT / "docs" / "index.md"), re.M))
    assert {page.stem for page in PAGES if page.parent.name == "docs"} - listed == {"index"}
    assert not [page.name for page in PAGES if re.search(r"\b(RANGE|TODO)\b", text_of(page))]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_the_web_for_nothing(tmp_path):
    pytest.importorskip("sphinx", reason="`make docs` installs it")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-d", tmp_path / "trees", ROOT / "docs", tmp_path / "site"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    loaded = r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//|url\([\"']?(?:https?:)?//|@import"
    built = [path for path in (tmp_path / "site").rglob("*") if path.suffix in (".html", ".css")]
    assert len(built) > len(PAGES)
    assert not [path for path in built if re.search(loaded, path.read_text(encoding="utf-8"))]
