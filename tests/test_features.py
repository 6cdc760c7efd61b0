import dataclasses
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from rsna_nb import splits
from rsna_nb.backbones.registry import build_backbone
from rsna_nb.config import RunConfig
from rsna_nb.model import body_of, build_model
from rsna_nb.training import features
from rsna_nb.training.data import Data, prepare, split_table
from rsna_nb.training.distribution import Devices
from rsna_nb.training.features import BATCH, Features, features_of
from rsna_nb.training.inputs import Examples, Pictures
from rsna_nb.training.sampling import VARIANTS, Sampling, Share

MIRRORED = {0: (), 1: (1,), 2: (0,), 3: (0, 1)}  # axes of (height, width)


@dataclass(frozen=True)
class Counting(Devices):
    """One CPU that counts the images of each batch; it is killed after batch `last` and has memory for `most`."""

    names: tuple[str, ...] = ("/device:CPU:0",)
    last: int = 10**6
    most: int = 10**6
    batches: list[int] = field(default_factory=list)

    def results(self, function, *batch):
        if len(self.batches) == self.last:
            raise KeyboardInterrupt
        if len(batch[0]) > self.most:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        self.batches.append(len(batch[0]))
        return super().results(function, *batch)


def weights_file(folder: Path, seed: int) -> str:
    keras.utils.set_random_seed(seed)
    build_backbone("small", 64, "none").save_weights(folder / f"{seed}.weights.h5")
    return str(folder / f"{seed}.weights.h5")


@pytest.fixture(scope="module")
def settings(training_folders, small_weights) -> dict:
    return training_folders | {
        "img_size": 64,
        "backbone": "small",
        "weights": small_weights,
        "limit_patients": 14,
        "val_fraction": 0.3,
        "test_fraction": 0.2,
        "batch_size_per_gpu": 8,
    }


@pytest.fixture(scope="module")
def config(settings) -> RunConfig:
    return RunConfig(**settings)


@pytest.fixture(scope="module")
def pooled(config) -> keras.Model:
    return pooled_of(config)


def prepared(config: RunConfig, folder: Path) -> Data:
    """The prepared data with their own bank in `folder`; all tests share the images."""
    data = prepare(config, *split_table(config))
    return Data(data.table, data.ledger, folder / "store")


@pytest.fixture
def data(config, tmp_path) -> Data:
    """The data with an empty bank."""
    return prepared(config, tmp_path)


@pytest.fixture(scope="module")
def filled(config, pooled, tmp_path_factory) -> Data:
    """The data with a complete bank, which tests only read."""
    data = prepared(config, tmp_path_factory.mktemp("filled"))
    bank(config, data, pooled)
    return data


@pytest.fixture
def copied(data, filled) -> Data:
    """The data with a complete bank of one block, which a test may change."""
    shutil.copytree(bank_of(filled), bank_of(data))
    return data


def bank_of(data: Data) -> Path:
    return data.store.with_name("store.features")


def pooled_of(config: RunConfig, precision: str = "float32") -> keras.Model:
    return body_of(build_model(config, precision))


def bank(config: RunConfig, data: Data, pooled: keras.Model, **limits: int) -> tuple[Features, list[int]]:
    """The features, and the number of images in each batch that passed through the network."""
    devices = Counting(**limits)
    return features_of(config, data, pooled, devices), devices.batches


def blocks(data: Data) -> list[Path]:
    return sorted(bank_of(data).glob("*/*.npz"))


def keys_in(paths: list[Path]) -> set[int]:
    return {key for path in paths for key in np.load(path)["keys"].tolist()}


def images_of(data: Data, *splits: str) -> int:
    return int(data.table["split"].isin(splits).sum())


def needed(messages: list[str]) -> list[int]:
    """The numbers of missing forward passes in the log."""
    return [int(message.split(", ")[1].split()[0]) for message in messages if "forward passes" in message]


def direct(pooled: keras.Model, files: list[str], variant: int) -> np.ndarray:
    """The features of images that OpenCV reads and NumPy flips."""
    pictures = np.stack([np.flip(cv2.imread(file, cv2.IMREAD_UNCHANGED), MIRRORED[variant]) for file in files])
    return pooled.predict(pictures[..., np.newaxis] / np.float32(255), verbose=0)


def assert_those_of(found: Features, expected: Features, files: pd.Series) -> None:
    values, theirs = (one.values[one.position[files]] for one in (found, expected))
    np.testing.assert_allclose(values, theirs, atol=1e-5)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_the_bank_holds_what_the_network_makes_of_every_flipped_picture(config, copied, pooled):
    found, _ = bank(config, copied, pooled)
    assert sorted(found.position.index) == sorted(copied.table["file"][copied.table["split"] != "test"])
    assert found.values.dtype == np.float32
    for split, variants in (("train", range(VARIANTS)), ("validation", [0])):
        files = copied.rows(split)["file"].tolist()
        for variant in variants:
            values = found.values[found.position[files], variant]
            np.testing.assert_allclose(values, direct(pooled, files, variant), atol=1e-5)
    assert (np.ptp(found.values, axis=1).max(axis=1) > 1e-3).all()  # each variant has features of its own


def test_only_training_images_have_variants_and_test_women_are_not_in_the_bank(config, data, pooled, log):
    _, batches = bank(config, data, pooled)
    expected = VARIANTS * images_of(data, "train") + images_of(data, "validation")
    assert needed(log.messages) == [expected]
    assert expected <= sum(batches) < expected + (VARIANTS + 1) * BATCH  # a last batch is filled up
    assert len(keys_in(blocks(data))) == expected


def test_a_bar_shows_how_far_the_bank_is_and_how_long_it_will_take(config, data, pooled, capsys):
    bank(config, data, pooled)
    shown = capsys.readouterr().err
    assert "feature bank: 100 %" in shown
    assert "forward passes/s" in shown or "s/forward passes" in shown
    assert " left" in shown


def test_without_flips_every_image_is_computed_once(settings, data, pooled, log):
    found, _ = bank(RunConfig(**settings, augmentation="none"), data, pooled)
    assert needed(log.messages) == [images_of(data, "train", "validation")]
    assert found.values.shape == (images_of(data, "train", "validation"), 1, 96)


def test_a_second_call_computes_nothing_and_gives_the_same(config, data, pooled, log):
    first, _ = bank(config, data, pooled)
    written = {path: path.stat().st_mtime_ns for path in blocks(data)}
    again, batches = bank(config, data, pooled)
    assert batches == []
    assert len(needed(log.messages)) == 1
    assert {path: path.stat().st_mtime_ns for path in blocks(data)} == written
    np.testing.assert_array_equal(again.values, first.values)


def test_another_split_computes_only_what_no_split_before_it_had(settings, config, data, pooled, tmp_path, log):
    """A woman who moves from validation to training lacks three variants; one who moves from testing lacks all."""
    table = data.table.assign(split=splits.assign(data.table, RunConfig(**settings, split_seed=2)))
    now = dataclasses.replace(data, table=table)
    bank(config, data, pooled)
    found, _ = bank(config, now, pooled)
    had, wanted = (one.table["split"].map({"train": VARIANTS, "validation": 1, "test": 0}) for one in (data, now))
    new = (wanted - had).clip(lower=0)
    assert set(new) == {0, 1, 3, 4}
    assert needed(log.messages)[1] == new.sum()
    alone, _ = bank(config, dataclasses.replace(now, store=tmp_path / "alone"), pooled)
    assert_those_of(found, alone, now.rows("train")["file"])


def test_the_bank_does_not_depend_on_seed_head_or_loss(settings, copied):
    other = RunConfig(**settings, seed=7, dropout=0.5, learning_rate=1e-2, imbalance="focal", epochs=3)
    assert bank(other, copied, pooled_of(other))[1] == []


@pytest.mark.parametrize("change", ["weights", "pooling", "precision"])
@pytest.mark.slow
def test_another_network_has_another_folder(settings, copied, tmp_path, change):
    changed = {"weights": {"weights": weights_file(tmp_path, 1)}, "pooling": {"pooling": "max"}}.get(change, {})
    config = RunConfig(**settings | changed)
    pooled = pooled_of(config, "bfloat16" if change == "precision" else "float32")
    found, _ = bank(config, copied, pooled)
    assert len(list(bank_of(copied).iterdir())) == 2
    files = copied.rows("train")["file"].tolist()
    expected = direct(pooled, files, 3)
    tolerance = 1e-2 * np.abs(expected).max() if change == "precision" else 1e-5
    np.testing.assert_allclose(found.values[found.position[files], 3], expected, atol=tolerance)


def test_networks_with_equal_weights_that_differ_in_one_setting_have_other_folders(config, copied):
    """An activation, a stride or a dilation of one's own backbone has no weights."""

    def network(activation: str) -> keras.Model:
        keras.utils.set_random_seed(0)
        image = keras.Input((64, 64, 1))
        features = keras.layers.Conv2D(4, 3, activation=activation)(image)
        return keras.Model(image, keras.layers.GlobalMaxPooling2D(name="pooled")(features))

    first, same, other = (features.bank_folder(config, copied, network(name)) for name in ("relu", "relu", "gelu"))
    assert first == same != other


def test_the_bank_depends_on_the_content_of_a_weights_file_not_on_its_name(settings, copied, tmp_path):
    config = RunConfig(**settings | {"weights": weights_file(tmp_path, 0)})
    assert features.bank_folder(config, copied, pooled_of(config)) == blocks(copied)[0].parent
    Path(weights_file(tmp_path, 1)).rename(config.weights)
    assert features.bank_folder(config, copied, pooled_of(config)) != blocks(copied)[0].parent


def test_an_image_that_was_prepared_again_is_recomputed(config, copied, pooled, log):
    ledger = copied.ledger.copy()
    ledger.loc[copied.table["split"].eq("train").idxmax(), "source_mtime"] += 1
    again = dataclasses.replace(copied, ledger=ledger)
    bank(config, again, pooled)
    assert needed(log.messages) == [VARIANTS]
    assert bank(config, again, pooled)[1] == []
    assert bank(config, copied, pooled)[1] == []  # the earlier features are still found


def test_the_time_of_preparation_changes_nothing(config, copied, pooled):
    slower = dataclasses.replace(copied, ledger=copied.ledger.assign(milliseconds=1e6))
    assert bank(config, slower, pooled)[1] == []


def test_an_unreadable_image_does_not_shift_the_features_of_the_others(config, copied, pooled):
    ledger = copied.ledger.copy()
    ledger.loc[3, ["status", "error", "used"]] = "error", "not a DICOM file", False
    without = Data(copied.table.drop(index=3).reset_index(drop=True), ledger, copied.store)
    found, batches = bank(config, without, pooled)
    assert batches == []
    assert_those_of(found, bank(config, copied, pooled)[0], without.rows("train")["file"])


def test_a_block_is_written_once_it_has_many_rows(config, data, filled, pooled, monkeypatch):
    assert len(blocks(filled)) == 1
    monkeypatch.setattr(features, "ROWS_A_BLOCK", BATCH)
    found, batches = bank(config, data, pooled)
    assert len(blocks(data)) == -(-len(batches) // 2)
    assert_those_of(found, bank(config, filled, pooled)[0], data.rows("train")["file"])


def test_finished_blocks_survive_when_the_process_is_killed(config, data, filled, pooled, monkeypatch, log):
    monkeypatch.setattr(features, "SECONDS_A_BLOCK", 0)
    with pytest.raises(KeyboardInterrupt):
        bank(config, data, pooled, last=3)
    assert len(blocks(data)) == 3
    kept = keys_in(blocks(data))
    found, _ = bank(config, data, pooled)
    whole, rest = needed(log.messages)
    assert rest == whole - len(kept)
    assert len(keys_in(blocks(data))) == whole
    assert_those_of(found, bank(config, filled, pooled)[0], data.rows("train")["file"])


def test_out_of_memory_halves_the_batches_of_the_bank(config, data, filled, pooled, log):
    found, batches = bank(config, data, pooled, most=10)
    assert max(batches) <= BATCH // 4
    assert "batches of 8 images" in log.text
    np.testing.assert_allclose(found.values, bank(config, filled, pooled)[0].values, atol=1e-5)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        bank(config, dataclasses.replace(data, store=data.store.parent / "none" / "store"), pooled, most=0)


def test_partial_files_of_a_killed_process_are_removed(config, data, pooled):
    part = features.bank_folder(config, data, pooled) / ".0123.npz.abc.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    bank(config, data, pooled)
    assert not part.exists()


def turned(content: bytes, name: str, place: int) -> bytes:
    """Invert three bytes, `place` bytes after the name of an array."""
    start = content.index(f"{name}.npy".encode()) + place
    return content[:start] + bytes(byte ^ 255 for byte in content[start : start + 3]) + content[start + 3 :]


def shorter(content: bytes, name: str) -> bytes:
    """Shorten the length of an array's header, so that the array begins too early."""
    place = content.index(b"\x93NUMPY", content.index(f"{name}.npy".encode())) + 8
    return content[:place] + bytes([content[place] - 8]) + content[place + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "cut in the values": lambda content: content[: len(content) // 2],
    "cut in the directory": lambda content: content[:-30],
    "another file": lambda content: b"no zip file",
    "keys": lambda content: turned(content, "keys", 300),
    "values": lambda content: turned(content, "values", 3000),
    "header of the values": lambda content: turned(content, "values", 45),
    "length of the values' header": lambda content: shorter(content, "values"),
    "fewer channels": lambda content: content.replace(b", 96)", b", 90)"),
    "directory": lambda content: content[:-90] + bytes(10) + content[-80:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.slow
def test_a_damaged_block_is_named_in_the_log_and_recomputed(config, copied, filled, pooled, log, damage):
    (block,) = blocks(copied)
    content = block.read_bytes()
    block.write_bytes(damage(content))
    assert block.read_bytes() != content
    found, _ = bank(config, copied, pooled)
    assert f"block {block.name} is damaged" in log.text
    np.testing.assert_allclose(found.values, bank(config, filled, pooled)[0].values, atol=1e-5)
    assert bank(config, copied, pooled)[1] == []


def test_of_several_blocks_only_the_damaged_one_is_recomputed(config, data, pooled, monkeypatch, log):
    monkeypatch.setattr(features, "SECONDS_A_BLOCK", 0)
    bank(config, data, pooled)
    damaged, *others = blocks(data)
    lost = keys_in([damaged]) - keys_in(others)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    bank(config, data, pooled)
    assert needed(log.messages)[1] == len(lost)


def examples_of(config: RunConfig, data: Data) -> Examples:
    cancer = data.rows("train")["cancer"].to_numpy()
    labels = cancer.astype(np.float32)[:, np.newaxis]
    weights = np.arange(len(cancer), dtype=np.float32)[:, np.newaxis]
    return Examples(labels, weights, Sampling.of(config, cancer, config.batch_size_per_gpu))


@pytest.mark.parametrize("imbalance", ["none", "balanced_batches"])
@pytest.mark.parametrize("share", [Share(), Share(0, 1, 2), Share(1, 2, 4)])
def test_the_banks_batches_are_those_of_the_pictures_passed_through_the_network(
    settings, filled, pooled, imbalance, share
):
    config = RunConfig(**settings, imbalance=imbalance)
    found, _ = bank(config, filled, pooled)
    pictures, examples, rows = Pictures((64, 64)), examples_of(config, filled), filled.rows("train")
    few = (examples.sampling.steps + 1) * share.local  # batches: an epoch, and the first of the next
    sources = [source.training(rows, examples, 3, share).take(few) for source in (pictures, found)]
    assert sources[1].element_spec[0][0].shape == (8 // share.replicas, 96)
    for (images, *theirs), ((values,), *ours) in zip(*sources, strict=True):
        expected = pooled(pictures.to_network(*images), training=False)
        np.testing.assert_allclose(found.to_network(values), expected, atol=1e-5)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("share", [Share(), Share(1, 2, 4)])
def test_evaluation_from_the_bank_is_of_unflipped_pictures_in_order(config, filled, pooled, share):
    found, _ = bank(config, filled, pooled)
    pictures, rows = Pictures((64, 64)), filled.rows("validation")
    for (values,), (images,) in zip(*(source.evaluation(rows, 4, share) for source in (found, pictures)), strict=True):
        np.testing.assert_allclose(values, pooled(pictures.to_network(images)), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"augmentation": "none"}, True),
        ({"augmentation": "strong"}, False),
        ({"feature_bank": False}, False),
        ({"freeze_backbone": False}, False),
    ],
)
def test_a_bank_is_used_for_a_frozen_backbone_unless_switched_off(changed, expected):
    assert features.applies(RunConfig(**changed)) == expected
