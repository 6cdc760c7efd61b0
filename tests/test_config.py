import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from papermill.iorw import read_yaml_file

from rsna_nb.config import BACKBONE_NAMES, ConfigError, RunConfig, resolve
from rsna_nb.notebook import copy_notebooks
from tests.notebooks import NOTEBOOKS, parameters_cell

ROOT = Path(__file__).parents[1]


def test_json_gives_the_same_settings_back(tmp_path):
    config = RunConfig(img_size=[1024, 512], epochs=3, run_name="x")
    config.to_json(tmp_path / "config.json")
    assert RunConfig.from_json(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochz": 3}, ["epochz", "epochs"]),
        ({"img_size": 500}, ["img_size", "32", "500"]),
        ({"img_size": [512]}, ["img_size", "[512]"]),
        ({"img_size": 0}, ["img_size"]),
        ({"img_size": True}, ["img_size"]),
        ({"val_fraction": 1.5}, ["val_fraction", "0.9", "1.5"]),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, ["val_fraction", "test_fraction", "0.5"]),
        ({"val_fraction": float("nan")}, ["val_fraction", "nan"]),
        ({"clip_norm": float("inf")}, ["clip_norm", "inf"]),
        ({"epochs": 0}, ["epochs", "1", "0"]),
        ({"epochs": 2.5}, ["epochs", "integer", "2.5"]),
        ({"epochs": True}, ["epochs", "True"]),
        ({"epochs": "3"}, ["epochs", "'3'"]),
        ({"monitor": "val_los"}, ["monitor", "val_loss", "val_auc", "val_pf1", "'val_los'"]),
        ({"fold": 5}, ["fold 5", "n_folds"]),
        ({"leave_out": "site 2"}, ["leave_out", "machine_id=49", "'site 2'"]),
        ({"leave_out": "site_id="}, ["leave_out"]),
        ({"leave_out": "site_id=2", "fold": 0}, ["fold 0", "leave_out", "site_id=2"]),
        ({"weights": "none"}, ["freeze_backbone", "weights"]),
        ({"weights": ""}, ["weights"]),
        ({"fine_tune_epochs": 2, "freeze_backbone": False}, ["fine_tune_epochs", "freeze_backbone"]),
        ({"warmup_epochs": 5, "epochs": 5}, ["warmup_epochs", "fewer than 5"]),
        ({"run_name": "../x"}, ["run_name", "'../x'"]),
        ({"run_name": 20260901}, ["run_name", "-r run_name"]),
        ({"schema_version": 2}, ["schema_version", "1", "2"]),
    ],
)
def test_a_wrong_setting_is_named(settings, words):
    with pytest.raises(ConfigError) as caught:
        RunConfig(**settings)
    assert not [word for word in words if word not in str(caught.value)], caught.value


def test_all_faults_are_named_at_once_a_line_each():
    faults = {"epochz": 3, "epochs": 0, "monitor": "loss", "img_size": 500, "fold": 7, "freeze_backbone": "perhaps"}
    with pytest.raises(ConfigError) as caught:
        RunConfig(**faults)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(faults)
    assert all(any(name in line for line in lines) for name in faults)


def test_what_papermill_passes_as_text_is_understood():
    config = RunConfig(freeze_backbone="true", img_size="[1024, 512]", learning_rate="1e-3")
    assert (config.freeze_backbone, config.img_size, config.learning_rate) == (True, [1024, 512], 0.001)
    assert RunConfig(learning_rate=1).learning_rate == 1.0


def test_numpy_numbers_and_paths_are_taken(tmp_path):
    config = RunConfig(
        epochs=np.int64(3), dropout=np.float64(0.5), feature_bank=np.bool_(False), img_size=np.array([64, 32])
    ).replace(data_dir=tmp_path)
    assert config == RunConfig(epochs=3, dropout=0.5, feature_bank=False, img_size=[64, 32], data_dir=str(tmp_path))
    config.to_json(tmp_path / "config.json")
    assert RunConfig.from_json(tmp_path / "config.json") == config


def test_papermill_gives_a_written_file_back_as_it_was(tmp_path):
    config = RunConfig(learning_rate=5e-5, weights="none", freeze_backbone=False, img_size=[64, 32])
    config.to_json(tmp_path / "config.json")
    assert RunConfig(**read_yaml_file(str(tmp_path / "config.json"))) == config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["not valid JSON"]),
        ("[1]", ["object"]),
        ('{"img_size": 500, "epochz": 3}', ["img_size", "epochz"]),
        ('{"epochs": 3, "epochs": 5}', ["epochs", "more than once"]),
        (None, ["cannot be read"]),
    ],
)
def test_a_wrong_file_is_named_on_each_line(tmp_path, content, words):
    path = tmp_path / "config.json"
    if content:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_json(path)
    assert all(word in str(caught.value) for word in words)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    """Editors on Windows write a byte-order mark."""
    path = tmp_path / "config.json"
    path.write_text('{"epochs": 3}', encoding="utf-8-sig")
    assert RunConfig.from_json(path).epochs == 3


def test_settings_are_immutable_and_copies_are_checked():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().epochs = 3
    assert RunConfig(seed=1).replace(epochs=3) == RunConfig(seed=1, epochs=3)
    with pytest.raises(ConfigError, match="epochs"):
        RunConfig().replace(epochs=0)


# From the cell to the settings: the unchanged cell of 03_train is run in a dictionary, as a kernel would run it.

CELL = parameters_cell(NOTEBOOKS / "03_train.ipynb")


def notebook(*lines: str, below: str = "", settings: str = "", cell: str = CELL, used: dict | None = None) -> dict:
    """A notebook's globals after its parameters cell, in which `lines` replace those of the same names.

    `used` is a kernel in which the notebook has run before.
    """
    for line in (*lines, *([f'settings = "{settings}"'] if settings else [])):
        name = re.split(r"\W", line)[0]
        cell = re.sub(rf"^{name}\b.*$", line, cell, count=1, flags=re.M)
        assert line in cell
    namespace: dict = {"In": ["", cell], "Out": {}, "_": "", "exit": None} if used is None else used
    exec(cell, namespace)
    exec(below, namespace)
    return namespace


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "recipe.json"
    path.write_text('{"epochs": 7, "dropout": 0.1, "img_size": 256}')
    return str(path)


LINE, FILE, LATER = "the parameters cell", "recipe.json", "-f, -p or a line below"
WAYS = {
    "nothing is changed": ({}, {}, {}),
    "a line of the cell": ({"lines": ["epochs = 3"]}, {"epochs": 3}, {"epochs": LINE}),
    "two names in one line": ({"lines": ["epochs, seed = 3, 7"], "without": "seed"}, {"epochs": 3, "seed": 7}, {}),
    "the file wins over the cell": (
        {"lines": ["epochs = 3", "seed = 5"], "file": True},
        {"epochs": 7, "dropout": 0.1, "img_size": 256, "seed": 5},
        {"epochs": FILE, "dropout": FILE, "seed": LINE},
    ),
    "the file wins over a line that is the default": (
        {"lines": ["epochs = 35"], "file": True},
        {"epochs": 7, "dropout": 0.1, "img_size": 256},
        {"epochs": FILE},
    ),
    "papermill wins over the cell": (
        {"lines": ["epochs = 3"], "below": "# Parameters\nepochs = 9\n"},
        {"epochs": 9},
        {"epochs": LATER},
    ),
    "papermill wins over the file": (
        {"file": True, "below": "# Parameters\nepochs = 9\n"},
        {"epochs": 9, "dropout": 0.1, "img_size": 256},
        {"epochs": LATER, "dropout": FILE},
    ),
    "a value of papermill wins also if it is the default": (
        {"file": True, "below": "# Parameters\nepochs = 35\n"},
        {"dropout": 0.1, "img_size": 256},
        {"dropout": FILE},
    ),
    "a line below the cell": ({"file": True, "below": "dropout = 0.2"}, {"epochs": 7, "img_size": 256}, {}),
}


@pytest.mark.parametrize(("given", "expected", "origins"), WAYS.values(), ids=WAYS)
def test_a_later_line_wins(recipe, given, expected, origins):
    cell = "\n".join(line for line in CELL.splitlines() if not line.startswith(given.get("without", "nothing")))
    settings = recipe if given.get("file") else ""
    namespace = notebook(*given.get("lines", []), below=given.get("below", ""), settings=settings, cell=cell)
    config = RunConfig.from_notebook(namespace, "settings")
    assert config == RunConfig(**expected)
    table = config.origins(namespace)._repr_markdown_().splitlines()
    rows = {line.split("`")[1]: line for line in table if line.startswith("| `")}
    assert set(rows) == set(expected)
    assert all(origin in rows[name] for name, origin in origins.items())


def test_deleting_the_cells_comments_changes_nothing(recipe):
    bare = "\n".join(line.partition("  #")[0] for line in CELL.splitlines() if not line.startswith("#"))
    namespace = notebook("seed = 5", below="epochs = 9", settings=recipe, cell=bare)
    assert RunConfig.from_notebook(namespace, "settings") == RunConfig(epochs=9, dropout=0.1, img_size=256, seed=5)


MISSPELT = {
    "in the cell": {"lines": ["epochz: int = 3"], "cell": CELL.replace("epochs: int", "epochz: int")},
    "in the cell, unannotated": {"lines": ["epochz = 3"], "cell": CELL.replace("epochs: int", "epochz: int")},
    "by papermill": {"below": "# Parameters\nepochz = 3\n"},
    "below the cell": {"below": "epochz = 3"},
}


@pytest.mark.parametrize("is_used", [False, True], ids=["fresh kernel", "used kernel"])
@pytest.mark.parametrize("given", MISSPELT.values(), ids=MISSPELT)
def test_a_misspelt_name_is_an_error(given, is_used):
    used = None
    if is_used:
        used = notebook()
        RunConfig.from_notebook(used, "settings")
        used |= {"seconds": 3.5, "folder": "x", "runs": {}, "store": "y"}  # of later cells
    lines = given.get("lines", [])
    namespace = notebook(*lines, below=given.get("below", ""), cell=given.get("cell", CELL), used=used)
    with pytest.raises(ConfigError, match=r"epochz is not a setting .*epochs"):
        RunConfig.from_notebook(namespace, "settings")


def test_a_variable_of_ones_own_is_named_with_what_to_do_or_begins_with_an_underscore():
    with pytest.raises(ConfigError, match=r"home is not a setting.*underscore"):
        RunConfig.from_notebook(notebook(below="home = '/data'"), "settings")
    namespace = notebook(below="_home = '/data'; data_dir = _home + '/rsna'")
    assert RunConfig.from_notebook(namespace, "settings").data_dir == "/data/rsna"


def test_no_name_in_a_file_takes_the_place_of_another_variable(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text('{"RunConfig": 1, "_seed": 2}')
    namespace = notebook(settings=str(path))
    assert namespace["RunConfig"] is RunConfig
    with pytest.raises(ConfigError, match=r"(?s)RunConfig is not.*_seed is not"):
        RunConfig.from_notebook(namespace, "settings")


def test_a_cell_that_ran_twice_before_it_was_read_is_checked_like_one_that_ran_once(recipe):
    cell = CELL.replace("epochs: int", "epochz: int")
    with pytest.raises(ConfigError, match="epochz is not a setting"):
        RunConfig.from_notebook(notebook(cell=cell, used=notebook(cell=cell)), "settings")
    again = notebook(settings=recipe, used=notebook(settings=recipe))
    assert RunConfig.from_notebook(again, "settings").epochs == 7


def test_a_cell_that_stopped_before_its_end_is_an_error():
    namespace: dict = {}
    with pytest.raises(ZeroDivisionError):
        exec(CELL.replace("epochs: int = 35", "epochs: int = 1 // 0"), namespace)
    with pytest.raises(ConfigError, match="run it again"):
        RunConfig.from_notebook(namespace, "settings")


@pytest.mark.parametrize("line", ["epochs = {5}", "learning_rate = Decimal('x1')", "img_size = np.array([1024, 500])"])
def test_a_value_that_no_setting_can_have_is_an_error_and_not_ignored(line):
    namespace = notebook()
    exec("import numpy as np\nDecimal = type('Decimal', (), {'__init__': lambda self, text: None})", namespace)
    exec(line, namespace)
    with pytest.raises(ConfigError, match=line.split()[0]):
        RunConfig.from_notebook(namespace, "settings")


def test_numpy_values_of_a_notebook_are_settings():
    namespace = notebook()
    exec("import numpy as np\nimg_size, epochs = np.array([1024, 512]), np.array(5)", namespace)
    config = RunConfig.from_notebook(namespace, "settings")
    assert (config.img_size, config.epochs) == ([1024, 512], 5)
    assert RunConfig(img_size=[np.int64(1024), np.int64(512)]).img_size == [1024, 512]


def test_too_few_draws_are_named_before_anything_is_trained():
    cell = parameters_cell(NOTEBOOKS / "04_evaluate.ipynb")
    with pytest.raises(ConfigError, match="draws must be 2 or more"):
        RunConfig.from_notebook(notebook(cell=cell, below="draws = -5"), "run", "compare", "draws", "pictures")


def test_a_run_is_resumed_where_its_folders_have_other_names(tmp_path):
    RunConfig(data_dir="/here", epochs=3).to_json(tmp_path / "20261123-101530" / "config" / "config.json")
    asked = {"resume": "20261123-101530", "runs_dir": str(tmp_path), "data_dir": "/there"}
    config = RunConfig.resumed(asked)
    assert (config.data_dir, config.epochs) == ("/there", 3)
    with pytest.raises(ConfigError, match=r"epochs 4 \(the run has 3\)"):
        RunConfig.resumed(asked | {"epochs": 4})


def test_a_mended_misspelling_is_forgotten():
    namespace = notebook(below="epochz = 3")
    with pytest.raises(ConfigError):
        RunConfig.from_notebook(namespace, "settings")
    exec(CELL, namespace)
    exec("epochs = 3", namespace)
    assert RunConfig.from_notebook(namespace, "settings").epochs == 3


def test_cells_can_be_run_again_in_any_order():
    namespace = notebook("epochs = 3")
    config = RunConfig.from_notebook(namespace, "settings")
    exec("seconds, folder, store, runs, backbones, parts = 3.5, 'x', 'y', {}, ['a'], []", namespace)
    assert RunConfig.from_notebook(namespace, "settings") == config  # the cell that reads, alone
    exec("dropout = 0.3", namespace)
    assert RunConfig.from_notebook(namespace, "settings") == config.replace(dropout=0.3)
    exec(CELL, namespace)  # the whole notebook again: deleted lines no longer count
    assert RunConfig.from_notebook(namespace, "settings") == RunConfig()


def test_a_line_or_a_file_that_is_taken_back_counts_no_more(recipe):
    short = parameters_cell(NOTEBOOKS / "00_prepare.ipynb")
    namespace: dict = {}
    exec(short.replace("namespace=globals()", f"globals(), file={recipe!r}"), namespace)
    assert RunConfig.from_notebook(namespace, "scheduler").epochs == 7
    exec(short, namespace)
    assert RunConfig.from_notebook(namespace, "scheduler") == RunConfig()


def test_a_file_given_too_late_is_an_error_and_not_ignored(recipe):
    namespace = notebook(below=f"# Parameters\nsettings = {recipe!r}\n")
    with pytest.raises(ConfigError, match=r"settings .*-f"):
        RunConfig.from_notebook(namespace, "settings")


def test_all_faults_of_a_notebook_are_named_before_tensorflow_starts(tmp_path):
    (tmp_path / "faulty.json").write_text('{"dropot": 0.1, "pooling": "min"}')
    code = f"""
import sys
from tests.test_config import notebook
from rsna_nb.config import ConfigError, RunConfig
folder = {str(tmp_path)!r} + "/"
for file in ("faulty.json", "missing.json"):
    globals_ = notebook("backbone = 'resnet50v3'", "epochs = 0", below="sed = 3", settings=folder + file)
    try:
        RunConfig.from_notebook(globals_, "settings")
    except ConfigError as error:
        print(error)
assert not {{"tensorflow", "keras"}} & set(sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    for text in ("resnet50v2", "epochs", "did you mean seed"):
        assert sum(text in line for line in lines) == 2, text
    for text in ("faulty.json: dropot", "faulty.json: pooling", "missing.json"):
        assert sum(text in line for line in lines) == 1, text


def test_the_names_of_backbones_are_those_of_the_registry_and_a_registered_one_is_taken(tmp_path, monkeypatch):
    from rsna_nb.backbones import BACKBONES

    assert tuple(BACKBONES) == BACKBONE_NAMES
    path = tmp_path / "config.json"
    path.write_text('{"backbone": "mine"}')
    assert RunConfig.from_json(path).backbone == "mine"  # from a run of another process
    namespace = notebook("backbone = 'mine'")
    with pytest.raises(ConfigError, match="backbone mine"):
        RunConfig.from_notebook(namespace, "settings")
    monkeypatch.setitem(BACKBONES, "mine", BACKBONES["small"])
    assert RunConfig.from_notebook(namespace, "settings").backbone == "mine"


def test_a_notebook_without_a_marked_cell_works_from_its_globals():
    assert RunConfig.from_notebook({"In": [], "seed": 1, "df": {}, "epochz": 3}) == RunConfig(seed=1)


def test_a_notebooks_own_parameters_get_the_types_of_its_cell():
    cell = parameters_cell(NOTEBOOKS / "09_submit.ipynb")
    own = "run split flips scores as_calls threshold out_dir".split()
    namespace = notebook(below="run, flips, threshold = 20261123, 'true', 1", cell=cell)
    RunConfig.from_notebook(namespace, *own)
    assert (namespace["run"], namespace["flips"], namespace["threshold"]) == ("20261123", True, 1.0)
    assert type(namespace["threshold"]) is float


@pytest.mark.parametrize("value", [2000.5, "many", True])
def test_an_own_parameter_of_a_wrong_type_is_named(value):
    cell = parameters_cell(NOTEBOOKS / "04_evaluate.ipynb")
    namespace = notebook(below=f"draws = {value!r}", cell=cell)
    with pytest.raises(ConfigError, match=rf"draws must be of type int.*{value!r}"):
        RunConfig.from_notebook(namespace, "run", "compare", "draws", "pictures")


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_each_notebook_reads_all_that_its_cell_has_and_refuses_anything_else(path):
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    reads = [line for line in "\n".join(code).splitlines() if line.startswith(("_own = ", "config = "))]
    namespace = notebook(cell=parameters_cell(path))
    exec("\n".join(reads), namespace)
    cell = papermill.inspect_notebook(path)
    assert {name: namespace[name] for name in cell} == {name: eval(cell[name]["default"]) for name in cell}
    with pytest.raises(ConfigError, match="seeed is not a setting"):
        exec("\n".join(reads), notebook(cell=parameters_cell(path), below="seeed = 3"))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_later_cell_sets_a_setting(path):
    """It would count when the cell that reads the settings is run again."""
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    later = "\n".join(code[1:])
    assigned = {name for line in re.findall(r"^ *(\w+(?:, \w+)*) = ", later, re.M) for name in line.split(", ")}
    assert not assigned & set(RunConfig.model_fields)


def test_folders_are_the_projects_inside_a_checkout_and_the_working_ones_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("runs") == tmp_path / "runs"
    (tmp_path / "copied").mkdir()
    copy_notebooks(tmp_path / "copied")
    monkeypatch.chdir(tmp_path / "copied" / "notebooks")
    assert resolve("runs") == tmp_path / "copied" / "runs"
    (tmp_path / "rsna_nb").mkdir()
    (tmp_path / "rsna_nb" / "config.py").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert resolve("runs") == tmp_path / "runs"
