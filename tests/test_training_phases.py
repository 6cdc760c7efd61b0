"""Training of the head on a bank or on images, fine-tuning after it, and a user's own networks."""

import sys

import keras
import numpy as np
import pytest

from rsna_nb import inference, runs
from rsna_nb.backbones.registry import BACKBONES, build_backbone
from rsna_nb.config import RunConfig
from rsna_nb.metadata import load_metadata
from rsna_nb.training import train
from rsna_nb.training.checkpoints import BestCheckpoint
from rsna_nb.training.session import TrainingSession
from tests.small import changed_layers


@pytest.mark.slow
def test_the_head_learns_the_same_from_the_bank_as_from_the_pictures(frozen_settings):
    same = frozen_settings | {"dropout": 0.0, "epochs": 3, "early_stopping_patience": 0}
    plain, bank = (train(RunConfig(**same, feature_bank=used)) for used in (False, True))
    assert "the head trains on the feature bank" in bank.file("logs/train.log").read_text()
    for name in ("loss", "auc", "val_loss", "val_auc", "val_pf1"):
        np.testing.assert_allclose(bank.history[name], plain.history[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(bank.predictions["score"], plain.predictions["score"], atol=1e-4)


@pytest.mark.parametrize("bank", [True, False])
@pytest.mark.slow
def test_a_frozen_backbone_trains_its_head_alone_and_is_saved_with_it(frozen_settings, generated, bank):
    run = train(RunConfig(**frozen_settings | {"epochs": 1, "feature_bank": bank}))
    model = keras.models.load_model(run.checkpoint)
    assert len(model.trainable_variables) == 2
    untrained = build_backbone("small", 64, frozen_settings["weights"])
    for ours, theirs in zip(model.get_layer("backbone").get_weights(), untrained.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    table = load_metadata(generated).set_index("image_id")
    scores = inference.predict(run, table["path"][run.predictions["image_id"]])
    np.testing.assert_allclose(scores["score"], run.predictions["score"], atol=1e-5)


@pytest.mark.parametrize("bank", [True, False])
@pytest.mark.slow
def test_fine_tuning_begins_at_the_last_head_whichever_was_best(frozen_settings, monkeypatch, bank):
    """The validation women chose the best head: fine-tuning from it would flatter them in all of its epochs."""
    ends, begins = {}, []
    on_epoch_end, begin_phase = BestCheckpoint.on_epoch_end, TrainingSession.begin_phase

    def kernel(model: keras.Model) -> np.ndarray:
        return model.get_layer("cancer").kernel.numpy()

    def recording(self, epoch: int, logs: dict) -> None:
        ends[epoch + 1] = kernel(self.network)
        on_epoch_end(self, epoch, logs | {"val_loss": float(epoch)})  # the first epoch is the best

    def beginning(self, number: int) -> None:
        begin_phase(self, number)
        begins.append(kernel(self.model))

    monkeypatch.setattr(BestCheckpoint, "on_epoch_end", recording)
    monkeypatch.setattr(TrainingSession, "begin_phase", beginning)
    train(RunConfig(**frozen_settings | {"epochs": 2, "fine_tune_epochs": 1, "feature_bank": bank}))
    (begun,) = begins
    np.testing.assert_array_equal(begun, ends[2])
    assert np.abs(ends[2] - ends[1]).max() > 0


@pytest.mark.parametrize("bank", [True, False])
@pytest.mark.slow
def test_a_run_that_stopped_between_the_phases_goes_on_as_if_it_had_not(frozen_settings, monkeypatch, bank):
    settings = frozen_settings | {"epochs": 2, "fine_tune_epochs": 1, "feature_bank": bank}
    whole = train(RunConfig(**settings))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingSession, "begin_phase", lambda *_: sys.exit("stopped"))
        with pytest.raises(SystemExit):
            train(RunConfig(**settings, run_name="stopped"))
    stopped = next(run for run in runs.list_runs(settings["runs_dir"]) if run.config.run_name == "stopped")
    resumed = train(stopped.config.replace(resume=stopped.id))
    for name in ("loss", "val_loss", "val_auc"):
        assert resumed.history[name].tolist() == whole.history[name].tolist(), name
    np.testing.assert_array_equal(resumed.predictions["score"], whole.predictions["score"])


@pytest.mark.slow
def test_fine_tuning_trains_from_the_layer_named(frozen_settings):
    tuned = {"epochs": 2, "fine_tune_epochs": 2, "fine_tune_from": "stage_3", "fine_tune_learning_rate": 1e-3}
    coarse = {"learning_rate": 1.0}  # of the head, so that fine-tuning has something to gain
    run = train(RunConfig(**frozen_settings | tuned | coarse))
    assert run.history["phase"].tolist() == ["head"] * 2 + ["fine_tuning"] * 2
    assert run.history["epoch"].tolist() == [1, 2, 3, 4]
    assert run.history["learning_rate"][2] == pytest.approx(1e-3)
    assert run.metrics["best_epoch"] > 2, "else fine-tuning is not looked at"
    model = keras.models.load_model(run.checkpoint).get_layer("backbone")
    changed = changed_layers(model, build_backbone("small", 64, frozen_settings["weights"]))
    assert changed
    assert all("stage_3" in name for name in changed)


@keras.saving.register_keras_serializable("tests.phases")
class Subclassed(keras.Model):
    """A backbone without a graph of layers."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.convolution = keras.layers.Conv2D(4, 5, 8)

    def call(self, images):
        return self.convolution(images)


@pytest.mark.slow
def test_a_subclassed_backbone_trains(small_settings, monkeypatch):
    """An error in advisory output, such as peak memory, does not end a run."""
    from rsna_nb.backbones.registry import Backbone

    monkeypatch.setitem(BACKBONES, "subclassed", Backbone(lambda *_, **__: Subclassed(name="backbone")))
    run = train(RunConfig(**small_settings | {"backbone": "subclassed", "epochs": 1}))
    assert run.is_finished
