"""A breast-cancer detector for screening mammograms: from image files to an honest evaluation."""

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

# Read by TensorFlow when it starts, which is after this package is imported.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # take GPU memory as needed, not all at once
# Fewer start-up lines; where no NVIDIA driver is, the line too that calls its absence an error.
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "2" if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg") else "3"
)

# What TensorFlow 2.19 to 2.21 print while they are imported, whatever the level above: that oneDNN is used, that there
# is no CUDA, and on GPUs that libraries are registered twice, which is harmless (tensorflow/tensorflow#62075).
START_LINES = re.compile(rb"WARNING: All log messages before absl|[IW]\d{4} |E\d{4} .*Unable to register cu")


class _QuietTensorFlow:
    """Lets TensorFlow be imported without its `START_LINES`, which a notebook would show twice. Other lines stay."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def quietly(module: ModuleType) -> None:
                with _without_start_lines():
                    execute(module)

            spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


@contextmanager
def _without_start_lines() -> Iterator[None]:
    # C++ writes to the file descriptor, which no Python stream sees.
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if not START_LINES.match(line)))


sys.meta_path.insert(0, _QuietTensorFlow())
