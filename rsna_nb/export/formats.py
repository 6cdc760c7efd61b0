"""The formats: how each is written, and how its own runtime reads it.

A format is a pair of functions. `write(model, path)` writes a serving model; `read(path)` returns a function from the
inputs by name to the scores, float32 (batch, 1).
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Inputs = Mapping[str, np.ndarray]
Scorer = Callable[[Inputs], np.ndarray]


@dataclass(frozen=True)
class Format:
    """An entry of `FORMATS`.

    Attributes
    ----------
    words
        The format's name, for people.
    runtime
        The package that runs it, by its import name.
    suffix
        The end of the file's name, or of the folder's.
    packages
        The packages, by their import names, that writing and checking need.
    """

    words: str
    runtime: str
    suffix: str
    packages: tuple[str, ...]
    write: Callable[[keras.Model, Path], None]
    read: Callable[[Path], Scorer]

    @property
    def version(self) -> str:
        """The version of the runtime that is installed."""
        return str(importlib.import_module(self.runtime).__version__)

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _write_onnx(model: keras.Model, path: Path) -> None:
    """Write an ONNX file; `keras.Model.export` leaves out the constants of its Normalization, as in EfficientNet."""
    import tf2onnx  # here and below: an extra, which other formats do not need

    _teach_tf2onnx()
    traced = _traced(model)
    inputs, outputs = [f"{each.name}:0" for each in model.inputs], [each.name for each in traced.outputs]
    graph = tf2onnx.tf_loader.from_function(traced, inputs, outputs)
    names = dict(zip([*inputs, *outputs], [*(each.name for each in model.inputs), "score"], strict=True))
    tf2onnx.convert.from_graph_def(
        graph, input_names=inputs, output_names=outputs, tensors_to_rename=names, output_path=str(path)
    )
    _name_axes(path)


def _traced(model: keras.Model) -> Any:
    """The model as one graph, without inner functions."""
    specs = [tf.TensorSpec(each.shape, each.dtype, name=each.name) for each in model.inputs]
    # Keras compiles grouped convolutions (ConvNeXt) as functions of their own, which tf2onnx does not look into.
    tf.config.run_functions_eagerly(True)
    try:
        function = tf.function(lambda *inputs: model(list(inputs), training=False)["score"])
        return function.get_concrete_function(*specs)
    finally:
        tf.config.run_functions_eagerly(False)


def _name_axes(path: Path) -> None:
    """Name the free axes of an ONNX file's inputs and output "batch" and "places", where tf2onnx has numbers."""
    import onnx

    content = onnx.load(path)
    for value in [*content.graph.input, *content.graph.output]:
        for axis, name in zip(value.type.tensor_type.shape.dim, ("batch", "places"), strict=False):
            if axis.HasField("dim_param"):
                axis.dim_param = name
    onnx.save(content, path)


@cache
def _teach_tf2onnx() -> None:
    """Give tf2onnx the operation Erfc of exact GELU (ConvNeXt, vision transformers), which 1.17 leaves as it is."""
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **options: Any) -> None:
            shapes, dtypes = node.output_shapes, node.output_dtypes
            one = ctx.make_const(f"{node.name}/one", np.ones((), np.float32))
            erf = ctx.make_node("Erf", node.input, shapes=shapes, dtypes=dtypes)
            ctx.remove_node(node.name)
            difference = [one.output[0], erf.output[0]]
            ctx.make_node("Sub", difference, name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes)


def _read_onnx(path: Path) -> Scorer:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["score"], dict(inputs))[0]


def _write_saved_model(model: keras.Model, path: Path) -> None:
    model.export(str(path), format="tf_saved_model", verbose=False)


def _read_saved_model(path: Path) -> Scorer:
    loaded = tf.saved_model.load(str(path))

    def score(inputs: Inputs) -> np.ndarray:
        tensors = {name: tf.constant(values) for name, values in inputs.items()}
        return loaded.signatures["serving_default"](**tensors)["score"].numpy()

    return score


def _write_litert(model: keras.Model, path: Path) -> None:
    # Only LiteRT's own operations: Keras would also allow TensorFlow's, which its runtimes do not have.
    builtin = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    model.export(str(path), format="litert", verbose=False, target_spec=builtin)


def _read_litert(path: Path) -> Scorer:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    return lambda inputs: runner(**inputs)["score"]


FORMATS = {
    "onnx": Format("ONNX", "onnxruntime", ".onnx", ("onnx", "tf2onnx", "onnxruntime"), _write_onnx, _read_onnx),
    "savedmodel": Format("SavedModel", "tensorflow", ".savedmodel", (), _write_saved_model, _read_saved_model),
    "litert": Format("LiteRT", "ai_edge_litert", ".tflite", ("ai_edge_litert",), _write_litert, _read_litert),
}
