import logging
import zipfile
from pathlib import Path

import pytest

from rsna_nb import synthetic
from rsna_nb.config import RunConfig
from rsna_nb.evaluation import data_folder
from rsna_nb.metadata import KaggleError, announce, find_data, kaggle
from rsna_nb.notebook import UnavailableError
from rsna_nb.prepare import store_path
from rsna_nb.runs import Run
from tests.web import CURRENT_VERSION, serve

RADEK1 = "kaggle:radek1/rsna-mammography-images-as-pngs"
FOLDER = "images_as_pngs_cv2_512"


@pytest.fixture(autouse=True)
def away_from_kaggle(tmp_path, monkeypatch):
    """Not on Kaggle, with an empty cache and in a folder of its own."""
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(kaggle, "INPUT", tmp_path / "input")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def generate(monkeypatch):
    """The folders in which a data set would have been generated."""
    folders = []
    monkeypatch.setattr(synthetic, "generate", folders.append)
    return folders


def data_set(folder: Path) -> Path:
    """A mounted data set, as far as it is looked at: RSNA as PNG."""
    (folder / "train_images" / "1").mkdir(parents=True)
    (folder / "train_images" / "1" / "2.png").touch()
    return folder


@pytest.mark.parametrize("place", ["rsna-breast-cancer-detection", "competitions/rsna-breast-cancer-detection"])
def test_the_competition_is_found_in_either_place_and_before_other_data(place):
    (kaggle.INPUT / place).mkdir(parents=True)
    assert kaggle.mounted() is None, "a mount needs its table"
    (kaggle.INPUT / place / "train.csv").touch()
    data_set(kaggle.INPUT / "another")
    for setting in ("", "kaggle:competition"):
        assert find_data(setting) == find_data(setting, fetch=False) == kaggle.INPUT / place


@pytest.mark.parametrize("place", ["breasts", "datasets/somebody/rsna-png", "datasets/somebody/rsna-png/a/512"])
def test_the_only_other_mounted_data_set_is_found(place):
    mount = data_set(kaggle.INPUT / place)
    (kaggle.INPUT / "datasets" / "somebody" / "wheels").mkdir(parents=True)
    data_set(mount / "train_images" / "inside")
    assert find_data("") == mount


def test_a_mounted_data_set_with_a_columns_json_is_found():
    (kaggle.INPUT / "own" / "mammograms").mkdir(parents=True)
    (kaggle.INPUT / "own" / "mammograms" / "columns.json").touch()
    assert find_data("") == kaggle.INPUT / "own" / "mammograms"


def test_folders_of_pictures_are_not_searched_for_data_sets():
    for woman in range(101):
        (kaggle.INPUT / "pictures" / str(woman)).mkdir(parents=True)
    data_set(kaggle.INPUT / "pictures" / "set")
    with pytest.raises(KaggleError, match="no mammograms are attached"):
        find_data("")


def test_several_mounted_data_sets_are_named():
    mounts = [data_set(kaggle.INPUT / "datasets" / owner / "breasts") for owner in "ab"]
    with pytest.raises(KaggleError, match=f"set data_dir to one of {mounts[0]}, {mounts[1]}"):
        find_data("")


@pytest.mark.parametrize("sign", ["folder", "environment"])
def test_on_kaggle_the_generated_set_is_taken_only_if_asked_for(sign, generate, monkeypatch):
    kaggle.INPUT.mkdir() if sign == "folder" else monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    for call in (find_data, announce):
        with pytest.raises(KaggleError, match="Add Input and attach the competition"):
            call("")
    assert not generate
    assert [find_data("demo")] == generate == [Path("data/demo").absolute()]


@pytest.mark.parametrize("setting", ["", "demo"])
def test_generated_data_are_announced_first_in_the_log_and_in_the_notebook(setting, generate, caplog):
    find_data(setting)
    assert caplog.messages[0].startswith("GENERATED data, not real mammograms: ")
    assert caplog.records[0].levelno == logging.WARNING
    assert announce(setting).text.startswith("**GENERATED data, not real mammograms**")


def test_a_folder_is_announced_by_what_is_in_it(generated, tmp_path, caplog):
    assert find_data(str(generated)) == generated
    assert "GENERATED data" in caplog.text
    caplog.clear()
    assert announce(tmp_path).text == f"Data: `{tmp_path}`."
    assert find_data("mine") == Path("mine").absolute()
    assert "GENERATED" not in caplog.text
    assert announce(RADEK1).text == f"Data: `{RADEK1}`."


def test_naming_a_folder_generates_and_logs_nothing(generate, caplog):
    assert find_data("", fetch=False) == find_data("demo", fetch=False) == Path("data/demo").absolute()
    assert not generate
    assert not caplog.text


@pytest.mark.parametrize(
    "setting", ["kaggle:", "kaggle:radek1", "kaggle:a b/c", "kaggle:a/b/../../c", "kaggle:a/b//c", "kaggle:rivals"]
)
def test_a_setting_of_another_form_is_refused_with_the_right_form(setting):
    with pytest.raises(KaggleError, match=r"write kaggle:competition or kaggle:<owner>/<data set>, and"):
        find_data(setting)


@pytest.mark.parametrize(
    "place", ["datasets/radek1/rsna-mammography-images-as-pngs", "rsna-mammography-images-as-pngs"]
)
def test_a_mounted_data_set_is_not_fetched(place):
    (kaggle.INPUT / place / FOLDER / "train").mkdir(parents=True)
    assert find_data(f"{RADEK1}/{FOLDER}") == kaggle.INPUT / place / FOLDER
    with pytest.raises(KaggleError, match=f"no folder png_9 in radek1/.*, which has {FOLDER}, {FOLDER}/train$"):
        find_data(f"{RADEK1}/png_9")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server that kagglehub takes for Kaggle. Its archive has two folders of a data set."""
    pytest.importorskip("kagglehub")
    from kagglesdk import kaggle_env

    (tmp_path / "site").mkdir()
    with zipfile.ZipFile(tmp_path / "site" / "archive.zip", "w") as archive:
        for folder in (FOLDER, "images_as_pngs_cv2_256"):
            archive.writestr(f"{folder}/train_images/1/2.png", b"picture")
        archive.writestr("train.csv", b"table")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "token")
    with serve(tmp_path / "site") as site:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, site.url)
        yield site


def test_a_data_set_is_fetched_once_and_then_read_without_a_network(site, tmp_path):
    setting = f"{RADEK1}/{FOLDER}"
    with pytest.raises(KaggleError, match="not on this computer yet"):
        find_data(setting, fetch=False)
    folder = find_data(setting)
    assert (folder / "train_images" / "1" / "2.png").read_bytes() == b"picture"
    assert f"versions/{CURRENT_VERSION}/{FOLDER}" in folder.as_posix()
    site.refused = {"GetDataset": 500, "DownloadDataset": 500}
    assert find_data(setting) == find_data(setting, fetch=False) == folder
    assert find_data(f"{RADEK1}/images_as_pngs_cv2_256").is_dir(), "another folder of it"
    assert site.requests["/archive.zip"] == 1
    with pytest.raises(KaggleError, match=f"no folder png in .*, which has .*{FOLDER}"):
        find_data(f"{RADEK1}/png")


def test_the_competition_is_fetched_once(site):
    folder = find_data("kaggle:competition")
    assert (folder / "train.csv").read_text() == "table"
    assert find_data("kaggle:competition") == find_data("kaggle:competition", fetch=False) == folder
    assert site.requests["/archive.zip"] == 1


def test_the_setting_names_one_folder_for_config_json_runs_and_stores(site, tmp_path):
    setting = f"{RADEK1}/{FOLDER}"
    RunConfig(data_dir=setting, runs_dir=str(tmp_path)).to_json(tmp_path / "run" / "config" / "config.json")
    run = Run(tmp_path / "run")
    assert run.config.data_dir == setting == RunConfig.resumed({"resume": "run", "runs_dir": str(tmp_path)}).data_dir
    with pytest.raises(UnavailableError, match="not on this computer yet"):
        data_folder(run)
    folder = find_data(run.config.data_dir)
    assert data_folder(run) == folder
    assert store_path("stores", folder, 512).name.startswith(f"{FOLDER}-512x512-")


def test_a_second_process_waits_for_the_download_and_does_not_repeat_it(site, monkeypatch):
    cached, answers = kaggle._cached, iter([None])
    find_data(RADEK1)
    monkeypatch.setattr(kaggle, "_cached", lambda what: next(answers, cached(what)))  # looked before it was finished
    assert find_data(RADEK1).is_dir()
    assert site.requests["/archive.zip"] == 1


@pytest.mark.parametrize(
    ("setting", "call", "status", "message"),
    [
        ("kaggle:competition", "DownloadDataFiles", 401, "make an API token"),
        ("kaggle:competition", "DownloadDataFiles", 403, "accept the rules"),
        ("kaggle:competition", "DownloadDataFiles", 500, "Kaggle answered with an error"),
        (RADEK1, "GetDataset", 403, "no data set radek1/rsna-mammography-images-as-pngs that your account may read"),
        (RADEK1, "GetDataset", 404, "compare the name"),
    ],
)
def test_a_refused_download_says_what_to_do(site, setting, call, status, message):
    site.refused = {call: status}
    with pytest.raises(KaggleError, match=message) as raised:
        find_data(setting)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("setting", ["kaggle:competition", RADEK1])
def test_without_a_network_the_error_says_so(site, setting, monkeypatch):
    from kagglesdk import kaggle_env

    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, "http://127.0.0.1:9")
    with pytest.raises(KaggleError, match=r"^Kaggle cannot be reached to fetch"):
        find_data(setting)


def test_a_download_without_credentials_says_what_to_do(site, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KaggleError, match="make an API token"):
        find_data("kaggle:competition")


def test_an_archive_that_is_none_is_an_error_of_one_sentence(site):
    (site.folder / "archive.zip").write_bytes(b"<html>")
    with pytest.raises(KaggleError, match=r"radek1/.* cannot be fetched: Unsupported archive"):
        find_data(RADEK1)
