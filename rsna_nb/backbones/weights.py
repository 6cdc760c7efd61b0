"""Loads weights files into networks, and explains why a file does not fit."""

import math
import os
import shutil
import socket
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import h5py
import keras

Shape = tuple[int, ...]
DOWNLOAD_TIMEOUT = 30  # seconds without an answer; Keras itself would wait for ever
FAULTS_SHOWN = 4  # per kind
FORMATS = (
    "a .weights.h5 or .keras file of Keras 3, an .h5 file of earlier versions, or tensors of PyTorch (docs/weights.md)"
)


class WeightsError(RuntimeError):
    """Weights that are missing, cannot be read or do not fit the network; the message says what to do."""


def load_weights(network: keras.Model, path: str | Path) -> None:
    """Load a Keras weights file into a network, whatever the file is called.

    Keras chooses how to read a file by its name, so a `.weights.h5` file that somebody renamed to `.h5` is refused with
    a misleading count of layers. Here the content decides. If the network consists of another network and its
    preprocessing, a file of the inner network, as Keras publishes it, is accepted as well.

    Parameters
    ----------
    network
        A built network.
    path
        `.weights.h5` or `.keras` of Keras 3, or `.h5` as written by earlier versions and by `keras.applications`.

    Raises
    ------
    WeightsError
        If the file is not a weights file, or holds other arrays than the network has; the message names them.
    """
    # A backbone from keras.applications wraps the published network in a layer that scales the input. The file may
    # have the layout of either, so both are tried.
    inner = [layer for layer in network.layers if isinstance(layer, keras.Model)]
    candidates = [network, *(each for each in inner if each.count_params() == network.count_params())]
    with _named_for_keras(Path(path)) as file:
        found = _shapes_in(file)
        is_whole = sum(map(math.prod, found.values())) == network.count_params()
        for candidate in candidates if is_whole else []:  # Keras itself does not notice superfluous arrays
            with suppress(ValueError, KeyError, OSError, UserWarning), warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Keras only warns of layers that it finds no weights for
                candidate.load_weights(file)
                return
        expected = [_expected_shapes(candidate, file) for candidate in candidates]
    nearest = max(expected, key=lambda shapes: len(shapes.keys() & found.keys()))
    raise WeightsError(differences(nearest, found) or "its arrays have the right shapes, but are in another order")


def differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Describe how the named arrays of a file differ from those that a network needs; "" if they agree."""
    faults = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in found],
        "of another shape": [
            f"{name} is {found[name]}, not {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
        "not of this network": [f"{name} {found[name]}" for name in found if name not in expected],
    }
    return "; ".join(
        f"{kind}: {', '.join(names[:FAULTS_SHOWN])}"
        + (f" and {len(names) - FAULTS_SHOWN} more" if len(names) > FAULTS_SHOWN else "")
        for kind, names in faults.items()
        if names
    )


@contextmanager
def explained_download() -> Iterator[None]:
    """Turn a failed download by Keras into a `WeightsError` that names the file and where to put it."""
    timeout = socket.getdefaulttimeout()  # get_file has no argument for it, so the process's default is changed
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    except Exception as error:  # get_file raises bare Exceptions, and urllib its own while it reads
        if "URL fetch failure" not in str(error) and not isinstance(error, OSError | HTTPException):
            raise
        cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
        raise WeightsError(
            f"the ImageNet weights cannot be downloaded ({error}). Put that file into {cache}, or set weights to a "
            'weights file of your own, or use a recipe that needs none: settings "notebooks/params/demo.json"'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextmanager
def _named_for_keras(path: Path) -> Iterator[Path]:
    """Yield the file, or a copy of it, under the ending that Keras reads its content by: .weights.h5 or .h5."""
    if path.is_dir():
        raise WeightsError(f"it is a folder; give {FORMATS}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "archive.weights.h5"
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if "model.weights.h5" not in archive.namelist():
                    raise WeightsError(f"it is a ZIP file without model.weights.h5; give {FORMATS}")
                copy.write_bytes(archive.read("model.weights.h5"))
            path = copy
        try:
            with h5py.File(path) as content:
                is_legacy = "layer_names" in content.attrs or "model_weights" in content
        except OSError as error:
            raise WeightsError(f"it cannot be read as HDF5 ({error}); give {FORMATS}") from error
        # Keras reads a name in .weights.h5 as its own format and every other .h5 as the one of earlier versions.
        if path.suffix in (".h5", ".hdf5") and path.name.endswith(".weights.h5") != is_legacy:
            yield path
            return
        renamed = Path(folder) / ("renamed.h5" if is_legacy else "renamed.weights.h5")
        yield shutil.copyfile(path, renamed)


def _shapes_in(file: Path) -> dict[str, Shape]:
    """The arrays of an HDF5 weights file by name, without those of optimizers and random generators."""
    found: dict[str, Shape] = {}
    with h5py.File(file) as content:
        content.visititems(
            lambda name, item: found.update({name: item.shape}) if isinstance(item, h5py.Dataset) else None
        )
    # A compiled model saves its optimizer too, and dropout the state of its generator: neither counts as a weight.
    others = {"optimizer", "optimizer_weights", "seed_generator"}
    return {
        name.removeprefix("model_weights/").removesuffix(":0"): shape
        for name, shape in found.items()
        if not others & set(name.split("/"))
    }


def _expected_shapes(network: keras.Model, file: Path) -> dict[str, Shape]:
    """The arrays of a network, named as in a file of the same format."""
    if not file.name.endswith(".weights.h5"):
        return {f"{each.name}/{weight.path}": tuple(weight.shape) for each in network.layers for weight in each.weights}
    with tempfile.TemporaryDirectory() as folder:
        network.save_weights(own := Path(folder) / "own.weights.h5")
        return _shapes_in(own)
