"""The rules for the structure of the package: the order of its steps, their public faces, sizes and docstrings.

A step is an entry of `rsna_nb/`, either a module or a package. The face of a package is its `__init__`: what it exports
is all that other steps may use. The tests read the source, so they also see imports inside functions.
"""

import ast
import graphlib
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rsna_nb"
# Data flow from the first step to the last. A step may import only from the steps before it.
ORDER = (
    *("system", "notebook", "config", "runs", "synthetic", "dicom", "metrics", "metadata", "prepare", "splits"),
    *("backbones", "model", "training", "inference", "evaluation", "ensemble", "import_run", "export", "experiments"),
    *("explain", "dicom_out", "viewer", "predict", "plots"),
)
WITHOUT_TENSORFLOW = ("config", "metadata", "dicom", "prepare", "splits", "metrics", "evaluation", "viewer", "plots")
# Methods that Keras calls and documents; overriding one needs no docstring of its own.
OF_KERAS = {"build", "call", "compute_output_shape", "get_config", "train_step"}
MOST_LINES_OF_A_MODULE, MOST_LINES_OF_A_FUNCTION = 300, 60
LONGER_MODULES = {"rsna_nb.config": 545}  # each of its 52 settings has a type, a range, a default and a help text


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Path]:
    """The file of every module by its dotted name. `rsna_nb.dicom` stands for `rsna_nb/dicom/__init__.py`."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def steps() -> set[str]:
    return {name.split(".")[1] for name in modules() if name != "rsna_nb"}


@cache
def imported(tree: ast.Module) -> set[tuple[str, str]]:
    """The imports from the package as (module, name). The name is "" for a plain `import rsna_nb.x`."""
    nodes = list(ast.walk(tree))
    named = [
        (node.module or "", alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    whole = [(alias.name, "") for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {(module, name) for module, name in named + whole if module.split(".")[0] == "rsna_nb"}


@cache
def attributes(tree: ast.Module) -> set[tuple[str, str]]:
    """Every attribute `x.y` in a piece of code as (x, y)."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {(node.value.id, node.attr) for node in nodes if isinstance(node.value, ast.Name)}


def taken_from(module: str, name: str) -> str:
    """The module that `from module import name` reads: a submodule of that name, or else `module` itself."""
    return f"{module}.{name}" if f"{module}.{name}" in modules() else module


def step_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@cache
def notebook_code() -> dict[Path, ast.Module]:
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        found[path] = ast.parse(re.sub(r"^\s*[%!].*", "", code, flags=re.M))
    return found


def users(step: str) -> dict[str, ast.Module]:
    """The code that may use a step only through its face: the other steps and the notebooks."""
    others = {name: parsed(path) for name, path in modules().items() if step_of(name) != step}
    return others | {path.name: tree for path, tree in notebook_code().items()}


def used_names(tree: ast.Module, step: str) -> set[str]:
    """The names of a step that a piece of code imports from its face, or reads as attributes of the step."""
    face = f"rsna_nb.{step}"
    used = {name for module, name in imported(tree) if module == face}
    if ("rsna_nb", step) in imported(tree):
        used |= {name for owner, name in attributes(tree) if owner == step}
    return used


def exported(step: str) -> list[str]:
    """The names in `__all__` of a step. For a module without one: its names without a leading underscore."""
    tree = parsed(modules()[f"rsna_nb.{step}"])
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in bound_by(node)]
    return ast.literal_eval(lists[0]) if lists else [name for name in bound(tree) if not name.startswith("_")]


def bound(tree: ast.Module) -> set[str]:
    """The names that a module defines or imports at its top level."""
    return {name for node in tree.body for name in bound_by(node)}


def bound_by(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return {node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)}


def faces() -> list[str]:
    return sorted(step for step in steps() if (PACKAGE / step).is_dir())


def test_the_package_has_one_entry_for_each_step():
    entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]
    # `find rsna_nb -maxdepth 1` counts the folder itself; import_run, export and predict are commands that users type.
    assert len(entries) + 1 <= 26
    assert steps() == set(ORDER)


def test_no_step_imports_from_a_later_step():
    upwards = {
        f"{name} imports {step_of(taken_from(*each))}"
        for name, path in modules().items()
        for each in imported(parsed(path))
        if {step_of(name), step_of(taken_from(*each))} <= set(ORDER)
        if ORDER.index(step_of(taken_from(*each))) > ORDER.index(step_of(name))
    }
    assert not upwards


def test_there_are_no_circular_imports():
    graph = {
        name: {taken_from(*each) for each in imported(parsed(path))} - {"rsna_nb"} for name, path in modules().items()
    }
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"modules that import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("step", ORDER)
def test_other_steps_and_notebooks_import_a_step_through_its_face(step):
    inner = {
        f"{user} imports {module}"
        for user, tree in users(step).items()
        for module, _ in imported(tree)
        if module.startswith(f"rsna_nb.{step}.")
    }
    assert not inner
    private = {user: used_names(tree, step) - set(exported(step)) for user, tree in users(step).items()}
    assert not {user: names for user, names in private.items() if names}


@pytest.mark.parametrize("step", faces())
def test_a_face_has_a_docstring_and_exports_only_names_that_are_used(step):
    tree = parsed(PACKAGE / step / "__init__.py")
    assert ast.get_docstring(tree)
    assert "__all__" in bound(tree)
    assert set(exported(step)) <= bound(tree)
    assert not unused(step), "nobody outside of the step uses these names"


def unused(step: str) -> set[str]:
    """Names that a face exports and nobody uses. Errors do not count, because users may want to catch them."""
    used: set[str] = set()
    tests = {str(path): parsed(path) for path in sorted((ROOT / "tests").rglob("*.py"))}
    for tree in (users(step) | tests).values():
        used |= used_names(tree, step)
    return {
        name
        for name in set(exported(step)) - used
        if not name.endswith("Error") and not re.search(rf"\b{step}(\.| import .*\b){name}\b", documents())
    }


@cache
def documents() -> str:
    """The text of the README, of the docs and of all docstrings."""
    texts = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]]
    nodes = [node for path in modules().values() for node in ast.walk(parsed(path))]
    documented = [node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return "\n".join(texts + [ast.get_docstring(node) or "" for node in documented])


def test_reading_and_evaluating_start_without_tensorflow():
    names = [name for name in modules() if step_of(name) in WITHOUT_TENSORFLOW]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    loaded = {{"tensorflow", "keras", "torch", "jax"}} & set(sys.modules)
    assert not loaded, f"{{name}} imports {{loaded}}"
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", [name for name in modules() if step_of(name) in ("backbones", "model")])
def test_networks_do_not_import_tensorflow(name):
    """They run on every backend of Keras: the benchmark of precisions trains them without TensorFlow."""
    nodes = list(ast.walk(parsed(modules()[name])))
    found = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert "tensorflow" not in {(module or "").split(".")[0] for module in found}


def public(tree: ast.Module, module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Functions, classes and methods without a leading underscore, except methods that override one of Keras."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                for method in methods:
                    keras = node.bases and (method.name in OF_KERAS or method.name.startswith("on_"))
                    if not method.name.startswith("_") and not keras:
                        yield f"{module}.{node.name}.{method.name}", method


def test_everything_public_has_a_docstring():
    missing = [name for name, path in modules().items() if not ast.get_docstring(parsed(path))]
    for module, path in modules().items():
        missing += [name for name, node in public(parsed(path), module) if not ast.get_docstring(node)]
    assert not missing, "\n".join(missing)


def lines_of(node: ast.FunctionDef) -> int:
    """The number of lines of a function without its docstring."""
    doc = node.body[0] if ast.get_docstring(node) else None
    return (node.end_lineno or 0) - node.lineno + 1 - ((doc.end_lineno or 0) - doc.lineno + 1 if doc else 0)


def test_modules_and_functions_stay_short():
    long = defaultdict(list)
    for module, path in modules().items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGER_MODULES.get(module, MOST_LINES_OF_A_MODULE):
            long["modules"].append(f"{module}: {lines} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and lines_of(node) > MOST_LINES_OF_A_FUNCTION:
                long["functions"].append(f"{module}.{node.name}: {lines_of(node)} lines")
    assert not long


def test_the_log_of_a_module_that_is_run_as_a_command_is_the_packages():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert 'if __name__ == "__main__"' not in text or "getLogger(__name__)" not in text, name


def test_the_docs_name_every_step_once_in_their_order():
    layout = (ROOT / "docs" / "package.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", layout, re.M)
    named = [name for cell in rows for name in re.findall(r"`(.*?)`", cell)]
    assert named == [f"{step}/" if (PACKAGE / step).is_dir() else f"{step}.py" for step in ORDER]


# Notebooks and users call these: their names and arguments do not change.
NAMES_THAT_STAY = {
    "metadata.load_metadata": ["data_dir", "split", "check_files"],
    "synthetic.generate": ["data_dir", "patients", "prevalence", "seed", "scale"],
    "dicom.read_mammogram": ["path", "img_size"],
    "prepare.prepare_images": ["metadata", "data_dir", "store_dir", "img_size", "executor"],
    "splits.hold_out": ["metadata", "fraction", "seed"],
    "splits.k_folds": ["metadata", "n_folds", "seed"],
    "splits.leave_one_out": ["metadata", "column"],
    "backbones.build_backbone": ["name", "img_size", "weights"],
    "model.build_model": ["config"],
    "training.train": ["config"],
    "inference.predict": ["run", "paths"],
    "runs.load_run": ["path"],
    "runs.list_runs": ["runs_dir"],
    "metrics.pf1": ["labels", "scores"],
    "metrics.by_breast": ["predictions", "how"],
    "metrics.bootstrap": ["predictions", "statistic", "groups", "n", "seed"],
    "explain.grad_cam": ["model", "images"],
    "config.RunConfig.from_json": ["path"],
    "config.RunConfig.to_json": ["self", "path"],
}


@pytest.mark.parametrize("name", NAMES_THAT_STAY)
def test_the_names_that_users_call_keep_their_arguments(name):
    step, *attributes = name.split(".")
    function = importlib.import_module(f"rsna_nb.{step}")
    for attribute in attributes:
        function = getattr(function, attribute)
    found = list(inspect.signature(function).parameters)
    assert found[: len(NAMES_THAT_STAY[name])] == NAMES_THAT_STAY[name]
