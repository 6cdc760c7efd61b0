import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rsna_nb import dicom, metadata, prepare
from rsna_nb.dicom import preprocessing_steps as steps
from rsna_nb.dicom.fitting import fit
from rsna_nb.evaluation import imbalance
from tests.conftest import write_dicom
from tests.test_headers import SECRETS, write_personal
from tests.test_imbalance import rsna_table

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PREPARE = NOTEBOOKS / "00_prepare.ipynb"
EXPLORE, IMBALANCE = NOTEBOOKS / "01_explore.ipynb", NOTEBOOKS / "02_class_imbalance.ipynb"


def papermill_run(notebook: Path, folder: Path, *arguments: object, memory: int = 0) -> subprocess.CompletedProcess:
    """Run papermill as from a shell in `folder`. `memory` limits the bytes of each process; 0 does not."""
    command = [sys.executable, "-m", "papermill", notebook, folder / "out.ipynb", *arguments, "--no-progress-bar"]
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))) if memory else None,
    )


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.slow
def test_exploring_shows_the_data_and_the_faulty_files_but_no_names(generated, breast, tmp_path):
    data = shutil.copytree(generated, tmp_path / "data")
    head, *rows = (data / "train.csv").read_text().splitlines()[:30]
    (data / "train.csv").write_text("\n".join([f"{head},<img src=x>", *(f"{row},1" for row in rows)]))
    paths = [Path(path) for path in metadata.load_metadata(data)["path"]]
    paths[0].write_text("no DICOM")
    write_dicom(paths[1], np.full((400, 300), 7, np.uint16))
    write_personal(paths[2], breast, SOPInstanceUID="Doe^Jane is no UID", ImageLaterality="Doe^Jane")
    write_personal(paths[3], breast, PhotometricInterpretation="DOE JANE", VOILUTFunction="Doe^Jane")
    prepare.prepare_images(metadata.load_metadata(data), data, tmp_path / "stores", 64)
    arguments = ["-p", "data_dir", data, "-p", "store_dir", "stores", "-p", "img_size", 64, "-p", "out_dir", "tables"]
    answer = papermill_run(EXPLORE, tmp_path, *arguments, "-p", "example", paths[2].stem)
    assert answer.returncode == 0, answer.stderr[-3000:]
    executed = (tmp_path / "out.ipynb").read_text()
    assert executed.count('"image/png": "') == 4
    assert executed.count("<iframe ") == 2
    assert "machine 49" in executed
    assert "&lt;img src=x&gt;" in executed
    assert "<img src=x>" not in executed, "a table's text is no HTML"
    assert "background-color" in executed, "the share of missing values is shown by colour"
    assert paths[0].stem in executed
    assert "not a DICOM" in executed
    assert "every pixel has the same value" in executed
    assert "not a greyscale image" in executed
    assert "3 of" in executed
    tables = sorted(metadata.results_folder(tmp_path / "tables", data).iterdir())
    assert [path.name for path in tables] == ["headers-29-files-seed-42.csv", "machines.csv"]
    everything = executed + answer.stdout + answer.stderr + "".join(path.read_text() for path in tables)
    assert not [secret for secret in SECRETS if secret in everything]
    assert str(tables[0]) in executed
    assert len(executed) < 4_000_000, "two viewers of small images are in it"

    (data / "columns.json").write_text('{"columns": {"view": "view"}}')
    pd.read_csv(data / "train.csv", dtype=str).drop(columns="machine_id").to_csv(data / "train.csv", index=False)
    answer = papermill_run(PREPARE, tmp_path, *arguments[:9])
    assert answer.returncode == 0, answer.stderr[-3000:]
    executed = (tmp_path / "out.ipynb").read_text()
    assert "not a greyscale image" in executed
    assert executed.count("not given") > 3, "a data set without machines has its files under one name"
    assert not [secret for secret in SECRETS if secret in executed + answer.stdout + answer.stderr]


@pytest.mark.slow
def test_imbalance_needs_nothing_but_the_table_and_gives_the_published_counts(tmp_path):
    (tmp_path / "data").mkdir()
    rsna_table().to_csv(tmp_path / "data" / "train.csv", index=False)
    arguments = ["-p", "data_dir", "data", "-p", "out_dir", "tables"]
    answer = papermill_run(IMBALANCE, tmp_path, *arguments, memory=2 * 10**9)
    assert answer.returncode == 0, answer.stderr[-3000:]
    executed = (tmp_path / "out.ipynb").read_text()
    assert "54,706 images: 1,158 with cancer (2.12%), 53,548 without (97.88%)" in executed
    assert "accuracy of never finding a cancer: 97.9%" in executed
    assert executed.count('"image/png": "') == 7
    results = metadata.results_folder(tmp_path / "tables", tmp_path / "data")
    weights = json.loads((results / "class_weights.json").read_text())
    assert weights == {"0": pytest.approx(54_706 / 2 / 53_548), "1": pytest.approx(54_706 / 2 / 1_158)}
    shortcuts = pd.read_csv(results / "shortcuts-seed-42.csv").set_index(["kind", "column"])["auc"]
    assert shortcuts["train.csv", imbalance.TOGETHER["train.csv"]] == 1
    assert str(results / "shortcuts-seed-42.csv") in executed


KINDS = {
    "a window": {"WindowCenter": 2048, "WindowWidth": 4096},
    "no window": {},
    "a window that shows nothing": {"WindowCenter": 60000, "WindowWidth": 2},
    "inverted": {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2000, "WindowWidth": 3000},
    "sigmoid": {"VOILUTFunction": "SIGMOID", "WindowCenter": [2048, 1], "WindowWidth": [3000, 2]},
    "padding": {"PixelPaddingValue": 5},
}


@pytest.mark.parametrize("attributes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("img_size", [64, [192, 96], 512], ids=str)
def test_the_steps_lead_to_the_picture_that_is_read(tmp_path, breast, attributes, img_size):
    stored = 4095 - breast if attributes.get("PhotometricInterpretation") == "MONOCHROME1" else breast
    path = write_dicom(tmp_path / "a.dcm", stored, **attributes)
    first, windowed, upright, cropped, sized = steps.reading_steps(str(path), img_size)
    assert first.picture.shape == windowed.picture.shape == upright.picture.shape
    np.testing.assert_array_equal(sized.picture, dicom.read_mammogram(path, img_size))
    np.testing.assert_allclose(fit(cropped.picture, sized.picture.shape), sized.picture, atol=1e-6)


def test_a_picture_that_cannot_be_read_is_a_reason_without_text_of_the_header(tmp_path, breast):
    good = write_dicom(tmp_path / "good.dcm", breast)
    bad = write_personal(tmp_path / "bad.dcm", breast, PhotometricInterpretation="JANE DOE")
    read = steps.pictures([str(good), str(bad)], 64)
    assert read[str(good)].shape == (64, 64)
    assert read[str(bad)] == "not a greyscale image"
    with pytest.raises(dicom.DicomError) as caught:
        steps.reading_steps(str(bad), 64)
    assert "JANE" not in str(caught.value)


@pytest.mark.slow
def test_exploring_needs_no_tensorflow():
    code = "import sys; from rsna_nb import dicom, evaluation, metadata, plots, prepare, splits; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "keras"} & set(loaded)
