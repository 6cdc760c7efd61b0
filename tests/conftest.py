"""Fixtures and small data that the tests share.

Tests on real files run if the folder RSNA_NB_SAMPLES (default: ../shared) has them; otherwise they are skipped.
"""

import logging
import os
import shutil

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # the workers share the cores
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the expected numbers were computed on a CPU

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    UID,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from rsna_nb import synthetic
from rsna_nb.system import locked

if TYPE_CHECKING:
    from rsna_nb.runs import Run

collect_ignore = ["bench"]  # the benchmarks need more packages than the tests
SAMPLES = Path(os.environ.get("RSNA_NB_SAMPLES", Path(__file__).parents[2] / "shared"))
REAL_DIR, OTHER_DIR = SAMPLES / "real_mammograms", SAMPLES / "dicom_samples"
# Beginnings of the names of the test files that take longest, in the order in which they start.
LONGEST = ("test_machines", "test_notebooks", "test_inference", "test_model", "test_submission", "test_checkpoints")
LONGEST += (
    "test_datasets",
    "test_training",
    "test_cross_validation",
    "test_features",
    "test_tuning",
    "test_recipes",
    "test_yolo11",
)
LONGEST += ("test_report", "test_synthetic", "test_pyramid", "test_vit", "test_imbalance", "test_explain", "test_study")
REAL_FILES = [pytest.param(path, id=path.stem) for path in sorted(REAL_DIR.glob("train_images/*/*.dcm"))]
needs_real_files = pytest.mark.skipif(not REAL_DIR.is_dir(), reason="no real mammograms in RSNA_NB_SAMPLES")


def rle_encoded(pixels: np.ndarray) -> bytes:
    return RLELosslessEncoder.encode(
        pixels,
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=8 * pixels.itemsize,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )


ENCODERS = {
    JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0),
    HTJ2KLossless: lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True),
    JPEGLosslessSV1: lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    RLELossless: rle_encoded,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest. If one started last, the other worker would wait for it idle."""
    items.sort(key=lambda item: [not item.path.stem.startswith(name) for name in LONGEST])


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Undo what `runs.log_to_console` did to the package's log, for the tests that follow in the same process."""
    yield
    log = logging.getLogger("rsna_nb")
    log.setLevel(logging.NOTSET)
    for handler in list(log.handlers):
        log.removeHandler(handler)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A generated data set of 24 women, half of them with cancer; all workers share it, and no test may change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # pytest-xdist gives each worker a folder within one
    return synthetic.generate(shared / "generated", 24, 0.5, seed=1, scale=0.06, workers=1)  # a lock makes others wait


@pytest.fixture(scope="session")
def stores(generated: Path) -> str:
    """The folder of the prepared images of `generated`, which all tests and workers share: a file is read once."""
    return str(generated.parent / "stores")


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A weights file of the small network, for tests that freeze its backbone."""
    import keras  # imported here because most tests need no TensorFlow

    from rsna_nb.backbones.registry import build_backbone

    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    keras.utils.set_random_seed(0)
    build_backbone("small", 64, "none").save_weights(path)
    return str(path)


@pytest.fixture(scope="session")
def training_folders(generated: Path, stores: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of the generated data, with a store that all tests share and a folder for runs."""
    folder = tmp_path_factory.mktemp("training")
    return {"data_dir": str(generated), "store_dir": stores, "runs_dir": str(folder / "runs")}


@pytest.fixture(scope="session")
def small_settings(training_folders: dict[str, str]) -> dict:
    """Settings of a training of seconds, of the whole network."""
    from tests.small import SMALL  # here: it imports Keras

    return SMALL | training_folders


@pytest.fixture(scope="session")
def frozen_settings(small_settings: dict, small_weights: str) -> dict:
    """The same with a frozen backbone that has weights of its own."""
    return small_settings | {"weights": small_weights, "freeze_backbone": True}


@pytest.fixture(scope="session")
def trained(small_settings: dict, generated: Path) -> Callable[..., "Run"]:
    """A copy of a finished run of `small_settings` with other settings, which one worker trains for all."""
    from rsna_nb.config import RunConfig
    from rsna_nb.runs import Run, list_runs
    from rsna_nb.training import train

    def copy_of(name: str, **settings: object) -> Run:
        shared = generated.parent / "trained" / name
        with locked(shared):
            finished = [run for run in list_runs(shared) if run.is_finished]
            own = small_settings | settings | {"run_name": name, "runs_dir": str(shared)}
            run = finished[0] if finished else train(RunConfig(**own))
        assert run.config == RunConfig(**own), f"another test names a run {name}"
        return Run(shutil.copytree(run.path, Path(small_settings["runs_dir"]) / run.id))

    return copy_of


@pytest.fixture(scope="session")
def small_run(trained: Callable[..., "Run"]) -> "Run":
    """A finished run with test women, which scores images."""
    return trained("first", test_fraction=0.2)


@pytest.fixture(scope="session")
def model(small_run):
    """`small_run` as `rsna_nb.predict` loads it."""
    from rsna_nb import ensemble

    return ensemble.load(str(small_run.path))


@pytest.fixture(scope="session")
def single_breast_run(trained: Callable[..., "Run"]) -> "Run":
    """A finished run with test women, which scores breasts."""
    return trained("single", unit="breast", test_fraction=0.2)


@pytest.fixture(scope="session")
def breast_run(trained: Callable[..., "Run"]) -> "Run":
    """A finished run with test women, which scores breasts beside the other one; their images' attention differs."""
    return trained("breast", unit="woman", test_fraction=0.2)


def write_dicom(path: Path, pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **attributes: object) -> Path:
    """Write a single-frame mammogram. `attributes` are elements by keyword: a value sets one, None removes it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
    content = ENCODERS[syntax](pixels) if syntax in ENCODERS else pixels.tobytes()
    dataset.PixelData = encapsulate([content]) if syntax.is_compressed else content
    dataset["PixelData"].VR = "OB" if syntax.is_compressed else "OW"
    dataset["PixelData"].is_undefined_length = syntax.is_compressed
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def breast() -> np.ndarray:
    """12-bit stored values, shape (400, 300): dark air and a textured half disc of tissue at the left edge."""
    y, x = np.mgrid[:400, :300]
    inside = ((y - 200) / 150) ** 2 + (x / 180) ** 2 < 1
    texture = np.random.default_rng(0).normal(1800, 250, inside.shape)
    return np.where(inside, np.clip(texture, 900, 4000), 5).astype(np.uint16)


def table_of(women: int, with_cancer: int, images_a_woman: int = 4) -> pd.DataFrame:
    """A metadata table without files. All images of a woman with cancer are positive."""
    rows = [
        {
            "site_id": 1 + woman % 2,
            "patient_id": str(woman),
            "image_id": f"{woman}{image}",
            "laterality": "LR"[image % 2],
            "view": ["CC", "MLO"][image // 2 % 2],
            "age": 50.0,
            "cancer": int(woman < with_cancer),
            "implant": 0,
            "machine_id": 49 + woman % 3,
        }
        for woman in range(women)
        for image in range(images_a_woman)
    ]
    return pd.DataFrame(rows)
