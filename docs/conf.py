"""Settings of Sphinx, which builds the site by `make docs`. The package is read and never imported."""

import ast
import tomllib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rsna_nb"

project = "rsna_nb"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
html_title = f"rsna_nb {release}"
extensions = ["myst_parser", "autoapi.extension"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # as GitHub does, so that the links work in both
smartquotes = False  # "" is a value of many settings
default_role = "literal"  # `x` is code in docstrings
suppress_warnings = [
    "autoapi.python_import_resolution",  # constants that are bound several at once
    "ref.python",  # names that two steps export
]

html_theme = "alabaster"
html_theme_options = {
    "body_max_width": "none",
    "description": "For research only. Not for clinical use.",
    "font_family": "system-ui, sans-serif",
    "head_font_family": "system-ui, sans-serif",
    "page_width": "1200px",
    "show_powered_by": False,
}
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_copyright = False

autoapi_dirs = [str(PACKAGE)]
autoapi_root = "api"
autoapi_add_toctree_entry = False
autoapi_options = ["members", "imported-members"]


def modules_of(package: Path) -> set[str]:
    """Return the modules that a package exports by `__all__`, without its functions, classes and values."""
    body = ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body
    lists = [node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    inner = [node for node in body if isinstance(node, ast.ImportFrom) and node.module != f"rsna_nb.{package.name}"]
    return set(ast.literal_eval(lists[0])) - {alias.name for node in inner for alias in node.names}


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: list[str]) -> bool | None:
    """Leave out the modules inside a step that the step does not export."""
    step, _, module = name.removeprefix("rsna_nb.").rpartition(".")
    return (what == "module" and bool(step) and module not in modules_of(PACKAGE / step)) or None


def sections(app: Sphinx, what: str, name: str, obj: Any, options: list[str], lines: list[str]) -> None:
    """Convert the sections of NumPy docstrings. The extension would take an attribute's "word: more" for a type."""
    if what not in {"attribute", "data", "property"}:
        lines[:] = str(NumpyDocstring(lines, what=what, name=name)).split("\n")


def setup(app: Sphinx) -> None:
    """Connect the two functions."""
    app.connect("autodoc-process-docstring", sections)
    app.connect("autoapi-skip-member", skip)
