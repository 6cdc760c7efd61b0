"""Reads the tensors of a PyTorch checkpoint as NumPy arrays, without PyTorch and without running code from the file.

A checkpoint is a pickle, and unpickling may call any function that the file names. Here only the few names that
describe tensors and containers are accepted. The options and metrics that training scripts save beside the weights are
skipped: a placeholder stands for them. A file that names anything else is refused before anything is called. A file
whose tensors would need far more memory than its own size is refused as well. Both formats of `torch.save` are
read: the ZIP archive (since PyTorch 1.6) and the earlier sequence of pickles.
"""

import io
import logging
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from rsna_nb.backbones.weights import WeightsError

log = logging.getLogger(__name__)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that is not a ZIP archive
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "BFloat16Storage": np.uint16,  # converted to float32: NumPy has no bfloat16
}
SKIPPED = frozenset({  # what timm's script and others like it write beside the weights: options, a metric, a device
    ("argparse", "Namespace"),
    ("__builtin__", "set"),
    ("torch", "device"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
})  # fmt: skip
MOST_TIMES_OF_FILE = 2  # tensors may share memory, so together they may be larger than the file, but not by much
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep the weights beside optimizer and epoch; averaged weights come first."""


@dataclass(frozen=True)
class _Storage:
    """The memory of a tensor: its type in the file, its key and its number of values."""

    kind: str
    key: str
    size: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, as `torch._utils._rebuild_tensor_v2` receives it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Skipped:
    """Placeholder of an object that is skipped; keeps nothing of it."""

    def __new__(cls, *_: Any) -> "_Skipped":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights in a PyTorch checkpoint.

    Parameters
    ----------
    path
        A file that `torch.save` has written: a state dict, or a training checkpoint that contains one under a key of
        `WRAPPERS`.

    Returns
    -------
    The tensors by their names; a leading "module." of every name, which DataParallel adds, is removed.

    Raises
    ------
    WeightsError
        If the file is another kind of file, is damaged, holds no tensors, or names anything but tensors, containers and
        `SKIPPED`.
    """
    try:
        content, memory = _unpickled(Path(path))
        described, wrapper = _state_dict(content)
        _check_sizes(described, Path(path).stat().st_size)
        tensors = {name: _array(each, memory) for name, each in described.items()}
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle raises nearly any built-in exception
        raise WeightsError(f"it cannot be read as a PyTorch checkpoint ({type(error).__name__}: {error})") from error
    if wrapper:
        log.info("%s: the weights under %s are read", Path(path).name, wrapper)
    is_wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if is_wrapped else name: array for name, array in tensors.items()}


def _unpickled(path: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Return the content of a checkpoint with placeholders for its tensors, and what reads a storage's memory."""
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
        # PyTorch neither compresses nor repeats. A compressed file may need a thousand times its size in memory.
        if len(set(names)) < len(names) or any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise WeightsError("it is a ZIP archive with compressed or repeated members, which PyTorch never writes")
        described = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(described) != 1:
            raise WeightsError("it is a ZIP archive without the data.pkl of a PyTorch checkpoint")
        folder = described[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise WeightsError("its numbers are big-endian, which is not supported")
        content, _ = _loaded(io.BytesIO(archive.read(described[0])))
        return content, lambda storage: archive.read(f"{folder}data/{storage.key}")
    return _unpickled_legacy(path)


def _unpickled_legacy(path: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    """Do the same as `_unpickled` for the format before PyTorch 1.6: five pickles, then all storages in sequence."""
    with path.open("rb") as file:
        try:
            is_checkpoint = _loaded(file)[0] == LEGACY_MAGIC
        except (pickle.UnpicklingError, ValueError):
            is_checkpoint = False
        if not is_checkpoint:
            raise WeightsError("it is not a PyTorch checkpoint")
        _loaded(file)  # the version of the protocol
        if not _loaded(file)[0].get("little_endian", True):
            raise WeightsError("its numbers are big-endian, which is not supported")
        content, storages = _loaded(file)
        keys, _ = _loaded(file)
        found = {key: _read_storage(file, storages[key]) for key in keys}
    return content, lambda storage: found[storage.key]


def _loaded(file: IO[bytes]) -> tuple[Any, dict[str, _Storage]]:
    """Return what the next pickle of a file holds, and the storages that it names by their keys."""
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name.startswith("EXT"):  # may stand for any function, and bypass `find_class`
            raise WeightsError("it uses extension codes, which may stand for code: the file is refused")
        # Objects are numbered one after another. The unpickler makes room for all numbers below the largest.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > (position or 0):
            raise WeightsError(f"it refers to object {argument}, which it cannot contain: the file is refused")
    file.seek(start)
    unpickler = _TensorUnpickler(file)
    return unpickler.load(), unpickler.storages


def _read_storage(file: IO[bytes], storage: _Storage) -> bytes:
    """Read the next storage of the earlier format: its number of values in 8 bytes, then the values."""
    (size,) = struct.unpack("<q", file.read(8))
    if size != storage.size:
        raise WeightsError(f"storage {storage.key} has {size} values, not {storage.size}: the file is damaged")
    return file.read(size * np.dtype(STORAGES[storage.kind]).itemsize)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and placeholders; everything else is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the file stands for; `WeightsError` unless it only describes tensors."""
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
        }
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) in SKIPPED:
            return _Skipped
        if (module, name) not in allowed:
            raise WeightsError(
                f"it names {module}.{name}, which is not a tensor: reading it could run code, so the file is refused. "
                "Where the file was made, save only model.state_dict() (docs/weights.md shows how)"
            )
        return allowed[module, name]

    def persistent_load(self, identifier: Any) -> _Storage:
        """Return the placeholder of a storage: ("storage", type, key, device, number of values, ...)."""
        tag, kind, key, _, size, *view = identifier
        if tag != "storage" or kind not in STORAGES or any(view):
            raise WeightsError(f"it has an unknown kind of storage: {tag} {kind}")
        return self.storages.setdefault(key, _Storage(kind, key, size))


def _rebuilt(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    """Stand in for `torch._utils._rebuild_tensor_v2`."""
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _state_dict(content: Any) -> tuple[Mapping[str, _Tensor], str]:
    """Return the tensors by name, out of the first wrapper that has any, and the wrapper; "" if there is none."""
    for wrapper in (*WRAPPERS, ""):
        state = content.get(wrapper) if wrapper and isinstance(content, Mapping) else content
        if isinstance(state, Mapping):
            tensors = {
                name: each for name, each in state.items() if isinstance(name, str) and isinstance(each, _Tensor)
            }
            if tensors:
                return tensors, wrapper
    keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
    raise WeightsError(
        f"it holds no tensors by name, neither at its top ({keys or type(content).__name__}) nor under one of "
        f"{', '.join(WRAPPERS)}; where the file was made, save only model.state_dict()"
    )


def _check_sizes(tensors: Mapping[str, _Tensor], available: int) -> None:
    """Raise `WeightsError` if the tensors together claim to be much larger than the file of `available` bytes."""
    claimed = sum(
        abs(math.prod(each.shape)) * np.dtype(STORAGES[each.storage.kind]).itemsize for each in tensors.values()
    )
    if claimed > MOST_TIMES_OF_FILE * available:
        raise WeightsError(f"its tensors claim {claimed} bytes and the file has {available}: it is damaged")


def _array(tensor: _Tensor, memory: Callable[[_Storage], bytes]) -> np.ndarray:
    """Return a tensor's values, copied; `WeightsError` if it reaches beyond its storage."""
    kind = tensor.storage.kind
    values: np.ndarray = np.frombuffer(memory(tensor.storage), STORAGES[kind])
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset < 0 or min(tensor.strides, default=0) < 0 or (0 not in tensor.shape and last >= len(values)):
        raise WeightsError(f"a tensor of {tensor.shape} is cut off: the file is damaged")
    view = np.lib.stride_tricks.as_strided(
        values[tensor.offset :], tensor.shape, [stride * values.itemsize for stride in tensor.strides]
    )
    if kind == "BFloat16Storage":  # the upper half of a float32
        return (view.astype(np.uint32) << 16).view(np.float32)
    return view.copy()
