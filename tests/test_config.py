import json
from pathlib import Path

import pytest
from papermill.iorw import read_yaml_file

from rsna_nb.config import ConfigError, RunConfig, resolve, settings_table

README = Path(__file__).parents[1] / "README.md"


def test_json_gives_the_same_settings_back(tmp_path):
    config = RunConfig(img_size=[1024, 512], epochs=3, run_name="x")
    config.to_json(tmp_path / "config.json")
    assert RunConfig.from_json(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochz": 3}, "epochz is not a setting (did you mean epochs?)"),
        ({"img_size": 500}, "img_size must be a multiple of 32"),
        ({"img_size": [512]}, "img_size"),
        ({"img_size": 0}, "img_size"),
        ({"val_fraction": 1.5}, "val_fraction must be at least 0.01 and below 0.9, not 1.5"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave no women"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"epochs": 2.5}, "epochs must be of type int"),
        ({"epochs": True}, "epochs must be of type int"),
        ({"monitor": "val_los"}, "monitor must be one of val_loss"),
        ({"fold": 5}, "fold must be below n_folds 5"),
        (
            {"leave_out": "site 2"},
            "leave_out must be empty, or a column and a value as \"machine_id=49\", not 'site 2'",
        ),
        ({"leave_out": "site_id="}, "leave_out must be"),
        ({"leave_out": "site_id=2", "fold": 0}, "fold 0 and leave_out site_id=2 both say who validates"),
        ({"weights": "none"}, "freeze_backbone"),
        ({"run_name": "../x"}, "run_name"),
        ({"run_name": 20260901}, "-r run_name"),
        ({"schema_version": 2}, "schema_version must be 1"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(settings)
    assert message in str(caught.value)


def test_what_papermill_passes_as_text_is_understood():
    config = RunConfig.from_dict({"freeze_backbone": "true", "img_size": "[1024, 512]", "learning_rate": 1})
    assert (config.freeze_backbone, config.img_size, config.learning_rate) == (True, [1024, 512], 1.0)


def test_papermill_gives_a_written_file_back_as_it_was(tmp_path):
    config = RunConfig(learning_rate=5e-5, weights="none", freeze_backbone=False, img_size=[64, 32])
    config.to_json(tmp_path / "config.json")
    assert RunConfig.from_dict(read_yaml_file(str(tmp_path / "config.json"))) == config


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        RunConfig.from_json(path)
    path.write_text(json.dumps({"img_size": 500}))
    with pytest.raises(ConfigError, match=r"config\.json: img_size"):
        RunConfig.from_json(path)


def test_settings_are_immutable():
    with pytest.raises(AttributeError):
        RunConfig().epochs = 3


def test_a_notebook_gives_its_variables_and_misspelt_ones_are_refused():
    cells = ["# Parameters: all\nepochs = 35", "# Parameters\nepochs = 3"]
    assert RunConfig.from_notebook({"In": cells, "epochs": 3, "df": "anything"}).epochs == 3
    with pytest.raises(ConfigError, match=r"epochz is not a setting \(did you mean epochs\?\)"):
        RunConfig.from_notebook({"In": [cells[0], "# Parameters\nepochz = 3"], "epochs": 35, "epochz": 3})


def test_a_notebook_takes_a_file_of_settings_and_what_its_cells_set_wins(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"epochs": 7, "dropout": 0.1}')
    cells = [
        "# Parameters: of this notebook\nsettings = ''\nfold = -1",
        f"# Parameters\nsettings = '{path}'\nepochs = 3",
    ]
    given = {"In": cells, "settings": str(path), "epochs": 3, "fold": -1}
    assert RunConfig.from_notebook(given, "settings") == RunConfig(epochs=3, dropout=0.1)
    with pytest.raises(ConfigError, match="settings is not a setting"):
        RunConfig.from_notebook(given)
    path.write_text('{"epochz": 7}')
    with pytest.raises(ConfigError, match=r"settings\.json: epochz is not a setting"):
        RunConfig.from_notebook(given, "settings")


def test_a_line_for_each_setting_leaves_the_file_those_that_have_their_default(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"epochs": 7, "dropout": 0.1, "seed": 5}')
    cell = f"# Parameters: all\nsettings = '{path}'\nepochs = 35\ndropout = 0.3\nseed = 42"
    variables = {"settings": str(path), "epochs": 35, "dropout": 0.3, "seed": 42}
    config = RunConfig.from_notebook({"In": [cell], **variables}, "settings")
    assert config == RunConfig(epochs=7, dropout=0.3, seed=5)
    config = RunConfig.from_notebook({"In": [cell, "# Parameters\nepochs = 35"], **variables}, "settings")
    assert config == RunConfig(epochs=35, dropout=0.3, seed=5)


def test_what_a_notebook_has_besides_its_parameters_is_no_setting():
    assert RunConfig.from_notebook({"In": ["# Parameters: x\nseed = 1"], "seed": 1, "weights": {}}) == RunConfig(seed=1)
    assert RunConfig.from_notebook({"seed": 1, "df": {}}) == RunConfig(seed=1)


@pytest.mark.parametrize(("value", "message"), [(2000.0, "draws must be of type int"), ("many", "not str 'many'")])
def test_a_notebooks_own_parameters_have_the_types_of_its_cell(value, message):
    cells = ["# Parameters: of this notebook\ndraws: int = 2000", f"# Parameters\ndraws = {value!r}"]
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_notebook({"In": cells, "draws": value}, "draws")


def test_a_notebook_forgets_a_misspelling_that_was_mended():
    cells = ["# Parameters: all\nepochz = 35", "x = 1", "# Parameters: all\nepochs = 35"]
    assert RunConfig.from_notebook({"In": cells, "epochs": 35, "epochz": 35}).epochs == 35


def test_folders_are_the_projects_inside_a_checkout_and_the_working_ones_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("runs") == tmp_path / "runs"
    (tmp_path / "rsna_nb").mkdir()
    (tmp_path / "rsna_nb" / "config.py").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert resolve("runs") == tmp_path / "runs"


def test_the_readme_has_the_table_of_settings():
    assert f"<!-- settings -->\n{settings_table()}\n<!-- /settings -->" in README.read_text()
