"""What TensorFloat-32, bfloat16 and float16 change in features, scores and training, and the time that they save.

    python tests/bench/bench_precision.py                               one network of each family, random weights
    python tests/bench/bench_precision.py --runs runs/<id>              a run scores its validation images
    python tests/bench/bench_precision.py --training resnet18 small:woman    detectors learn which noise is coarse
    KERAS_BACKEND=jax python tests/bench/bench_precision.py             on another backend of Keras

Runs need the `unit` "image"; STORE names the folder of prepared images if it is not the run's own. Features of random
weights are compared by the length of their difference, with batch normalisation set to the images' own statistics.
TensorFlow computes float32 as TensorFloat-32 on GPUs that have it (compute capability
8 and higher) unless told otherwise; without such a GPU both rows are equal.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

NETWORKS = [
    "resnet50v2",
    "resnet50",
    "densenet121",
    "convnextsmall",
    "efficientnetb0",
    "efficientnet_lite0",
    "yolo11n",
]
PRECISIONS = ["float32", "tensorfloat32", "bfloat16", "float16"]
BATCH = 32
EPOCHS = 20  # of training, 4 steps each
VIEWS = [1, 2, 3, 4]  # of four images: CC, MLO and another view of the breast, and CC of the other breast


def set_tensorfloat(enabled: bool) -> None:
    """Let the GPU round the factors of float32 products to 10 bits, or not."""
    import keras

    match keras.backend.backend():
        case "jax":
            import jax

            jax.config.update("jax_default_matmul_precision", "tensorfloat32" if enabled else "float32")
        case "torch":
            import torch

            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
        case "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_tensor_float_32_execution(enabled)


def with_precision(precision: str):
    """The dtype policy of a precision, after setting what TensorFloat-32 is to do."""
    import keras

    set_tensorfloat(precision == "tensorfloat32")
    policy = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}.get(precision, "float32")
    return keras.DTypePolicy(policy)


def smooth_noise(count: int, side: int):
    """Pictures in 0-1 with structure of several sizes, (count, side, side, 1)."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    grains = random.choice([4, 8, 16, 32, 64], count)
    noise = [cv2.resize(random.random((grain, grain), np.float32), (side, side)) for grain in grains]
    return np.array(noise)[..., np.newaxis]


def in_batches(model, images):
    """The network's outputs as float32, and the images per second after a first batch that compiles."""
    import numpy as np

    model.predict_on_batch(images[:BATCH])
    started = time.perf_counter()
    outputs = [np.float32(model.predict_on_batch(images[a : a + BATCH])) for a in range(0, len(images), BATCH)]
    return np.concatenate(outputs), len(images) / (time.perf_counter() - started)


def networks(name: str, side: int) -> list[dict]:
    """A row for each precision: how far the pooled features are from float32."""
    import keras
    import numpy as np

    from rsna_nb.backbones import build_backbone

    keras.utils.set_random_seed(0)
    images, rows, expected, weights = smooth_noise(4 * BATCH, side), [], None, None
    for precision in PRECISIONS:
        keras.config.set_dtype_policy(with_precision(precision))
        backbone = build_backbone(name, side, "none")
        if weights is None:
            for layer in backbone._flatten_layers():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.momentum = 0.0
            backbone(images[:BATCH], training=True)
            weights = backbone.get_weights()
        backbone.set_weights(weights)
        pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
        features, speed = in_batches(keras.Model(backbone.input, pooled), images)
        expected = features if expected is None else expected
        distance = np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)
        rows.append(
            {
                "network": name,
                "precision": precision,
                "finite": bool(np.isfinite(features).all()),
                "difference, median": float(np.median(distance)),
                "largest": float(distance.max()),
                "images per second": round(speed),
            }
        )
    return rows


def training(name: str, side: int) -> list[dict]:
    """A row for each precision: a detector's loss in training, and its speed. `name` is "network" or "network:woman".

    The label says whether the first image of a woman is one of the coarser ones.
    """
    import keras
    import numpy as np

    from rsna_nb.config import RunConfig
    from rsna_nb.model import build_model

    network, _, unit = name.partition(":")
    images, rows = smooth_noise(4 * BATCH, side), []
    labels = np.abs(np.diff(images, axis=1)).mean(axis=(1, 2, 3))
    inputs, batch = images, BATCH
    if unit:
        inputs = [images.reshape(-1, len(VIEWS), *images.shape[1:]), np.int32([VIEWS] * (len(images) // len(VIEWS)))]
        labels, batch = labels[:: len(VIEWS)], BATCH // len(VIEWS)
    labels = np.float32(labels < np.median(labels))
    config = RunConfig(
        backbone=network, unit=unit or "image", weights="none", img_size=side, freeze_backbone=False, dropout=0.0
    )
    for precision in PRECISIONS:
        keras.utils.set_random_seed(0)
        with_precision(precision)
        model = build_model(config, {"tensorfloat32": "float32"}.get(precision, precision))
        model.compile(keras.optimizers.Adam(1e-4), "binary_crossentropy")
        first = model.fit(inputs, labels, batch, epochs=1, shuffle=False, verbose=0).history["loss"]
        started = time.perf_counter()
        later = model.fit(inputs, labels, batch, epochs=EPOCHS - 1, shuffle=False, verbose=0).history["loss"]
        seconds = time.perf_counter() - started
        rows.append(
            {
                "network": name,
                "precision": precision,
                "finite": all(bool(np.isfinite(weight).all()) for weight in model.get_weights()),
                "loss, first epoch": first[0],
                "last epoch": later[-1],
                "loss scale": float(getattr(model.optimizer, "dynamic_scale", 1)),
                "images per second": round(len(images) * (EPOCHS - 1) / seconds),
            }
        )
    return rows


def trained(folder: str) -> list[dict]:
    """A row for each precision: how far the scores of a run's validation images are from float32, and their AUC."""
    import keras
    import numpy as np
    from sklearn.metrics import roc_auc_score

    import rsna_nb.backbones  # noqa: F401, registers the layers of its networks

    run = Path(folder)
    config, known, pictures = load(run)
    rows, expected = [], None
    for precision in PRECISIONS:
        model = changed(keras.models.load_model(run / "checkpoints" / "best.keras", compile=False), precision)
        scores, speed = in_batches(model, pictures)
        expected = scores if expected is None else expected
        rows.append(
            {
                "run": f"{config['backbone']}, {config['img_size']} pixels",
                "precision": precision,
                "difference, median": float(np.median(np.abs(scores - expected))),
                "largest": float(np.abs(scores - expected).max()),
                "from predictions.csv": float(np.abs(scores[:, 0] - known["score"]).max()),
                "AUC by image": float(roc_auc_score(known["cancer"], scores[:, 0])),
                "images per second": round(speed),
            }
        )
    return rows


def load(run: Path):
    """The settings of a run, and the rows and pictures of its validation images."""
    import cv2
    import numpy as np
    import pandas as pd

    config = json.loads((run / "config" / "config.json").read_text())
    predictions = pd.read_csv(run / "predictions.csv", dtype={"patient_id": str, "image_id": str})
    known = predictions[predictions["split"] == "validation"]
    first = known[["patient_id", "image_id"]].iloc[0]
    stores = Path(os.environ.get("STORE", config["store_dir"])).glob("*/images")
    images = next(folder for folder in stores if (folder / first.patient_id / f"{first.image_id}.png").is_file())
    files = [images / patient / f"{image}.png" for patient, image in zip(known.patient_id, known.image_id, strict=True)]
    pictures = np.float32([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files])[..., np.newaxis] / 255
    return config, known, pictures


def changed(model, precision: str):
    """The same network with another compute type, but for its last layer."""
    import keras

    policy = with_precision(precision)

    def clone(layer):
        if isinstance(layer, keras.Model):
            copied = keras.models.clone_model(layer, clone_function=clone)
            copied.name = layer.name
            return copied
        settings = layer.get_config()
        if layer.name != "cancer" and not isinstance(layer, keras.layers.InputLayer):
            settings["dtype"] = policy.name
        return type(layer).from_config(settings)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def main() -> None:
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names in BACKBONES; default: one of each family")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--training", nargs="*", default=[], help="network or network:woman")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = arguments.size
    parts = {"networks": partial(networks, side=size), "training": partial(training, side=size), "runs": trained}
    if arguments.part:
        print("ROWS " + json.dumps(parts[arguments.part[0]](arguments.part[1])))
        return
    if not (arguments.networks or arguments.runs or arguments.training):
        arguments.networks = NETWORKS
    failed = False
    for part, name in [(kind, name) for kind in parts for name in getattr(arguments, kind)]:
        command = [sys.executable, __file__, "--part", part, name, "--size", str(arguments.size)]
        answer = subprocess.run(command, capture_output=True, text=True)
        found = [json.loads(line[5:]) for line in answer.stdout.splitlines() if line.startswith("ROWS ")]
        if found:
            print(pd.DataFrame(found[0]).to_string(index=False, float_format="{:.3g}".format), flush=True)
        else:
            failed = True
            print(f"{name} failed: {answer.stderr[-1500:]}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
