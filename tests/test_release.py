"""A wheel built from the source distribution works outside a checkout: it has all files, and copies the notebooks."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder of an unpacked wheel, which is built without a network from an unpacked source distribution."""
    folder = tmp_path_factory.mktemp("release")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run([*build, "--target", "sdist"], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    subprocess.run([*build, "--target", "wheel"], cwd=next(folder.glob("*/")), check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def python(package: Path, folder: Path, *arguments: str) -> str:
    """The output of Python with the unpacked wheel, in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(package)}
    run = [sys.executable, *arguments]
    return subprocess.run(run, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file that belongs to the project, by its path in `folder`."""
    paths = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_wheel_has_the_package_the_notebooks_their_recipes_and_the_licence(package):
    installed = files(package / "rsna_nb")
    notebooks = {f"notebooks/{name}": content for name, content in files(ROOT / "notebooks").items()}
    assert {"notebooks/03_train.ipynb", "notebooks/params/demo.json", "viewer/page/viewer.js"} <= {*installed}
    assert {"metadata/layouts/vindr.json", "evaluation/report_template/index.html.j2"} <= {*installed}
    assert installed == files(ROOT / "rsna_nb") | notebooks
    information = next(package.glob("rsna_nb-*.dist-info"))
    assert (information / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert {path.name for path in package.iterdir()} == {"rsna_nb", information.name}


def test_the_notebooks_are_copied_and_a_changed_one_is_kept(package, tmp_path):
    command = ("-m", "rsna_nb.notebook")
    assert python(package, tmp_path, *command) == f"files copied to notebooks: {len(files(ROOT / 'notebooks'))}\n"
    assert files(tmp_path / "notebooks") == files(ROOT / "notebooks")
    changed, missing = tmp_path / "notebooks" / "params" / "demo.json", tmp_path / "notebooks" / "03_train.ipynb"
    changed.write_text("{}")
    missing.unlink()
    said = python(package, tmp_path, *command, str(tmp_path))
    assert said.startswith(f"{changed} is kept, because it differs")
    assert said.endswith(f"\nfiles copied to {tmp_path / 'notebooks'}: 1\n")
    assert changed.read_text() == "{}"
    assert missing.is_file()


@pytest.mark.slow  # each imports TensorFlow
@pytest.mark.parametrize("module", ["predict", "export"])
def test_commands_run_outside_a_checkout(package, tmp_path, module):
    assert python(package, tmp_path, "-m", f"rsna_nb.{module}", "--help").startswith(
        f"usage: python -m rsna_nb.{module}"
    )


def test_a_run_of_the_installed_package_names_no_commit_of_another_project(package, tmp_path):
    installed = shutil.copytree(package, tmp_path / "environment")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "another project"]):
        subprocess.run([*git, *arguments], check=True)
    code = "from rsna_nb.runs import environment; print(environment([])['git'])"
    assert python(installed, tmp_path, "-c", code) == "None\n"
