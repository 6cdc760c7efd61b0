"""A training that is small: its settings, ways to stop it, and what a resumed one must be equal to."""

from collections.abc import Callable

import keras
import numpy as np
import pytest

from rsna_nb import runs
from rsna_nb.config import RunConfig
from rsna_nb.training import TrainingError, callbacks, train

SMALL = {
    "img_size": 64,
    "backbone": "small",
    "weights": "none",
    "freeze_backbone": False,
    "pooling": "max",
    "batch_size_per_gpu": 8,
    "val_fraction": 0.3,
    "learning_rate": 1e-3,
    "epochs": 3,
}
# A frozen network with every kind of state: bank, dropout, averaged weights, plateau, early stopping, two phases.
ALL_KINDS_OF_STATE = SMALL | {
    "freeze_backbone": True,
    "test_fraction": 0.2,
    "dropout": 0.4,
    "ema": 0.8,
    "epochs": 5,
    "fine_tune_epochs": 3,
    "fine_tune_learning_rate": 1e-3,
    "reduce_lr_patience": 1,
    "early_stopping_patience": 3,
}
TIMINGS = ["seconds", "images_per_second"]  # columns of a history that no two runs share


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End training once, at the step after so many."""
    plain, steps = callbacks.StopAtNaN.on_train_batch_end, iter(range(10**6))

    def stop(self, batch: int, logs: dict) -> None:
        plain(self, batch, logs)
        if next(steps) == step:
            raise TrainingError("stopped for the test")

    monkeypatch.setattr(callbacks.StopAtNaN, "on_train_batch_end", stop)


def failing_on(step: int, error: Exception | None, fault: Callable) -> type[callbacks.StopAtNaN]:
    """A class to put in the place of StopAtNaN, which calls `fault` at a step of the second epoch."""

    class Failing(callbacks.StopAtNaN):
        def on_train_batch_end(self, batch: int, logs: dict) -> None:
            if self.epoch == 1 and batch == step:
                fault(self, logs)
                if error:
                    raise error
            super().on_train_batch_end(batch, logs)

    return Failing


def resumed(run: runs.Run) -> runs.Run:
    again = train(RunConfig.resumed({"resume": run.id, "runs_dir": str(run.path.parent)}))
    assert again.path == run.path
    return again


def assert_equal(run: runs.Run, whole: runs.Run) -> None:
    assert run.history.drop(columns=TIMINGS).to_csv() == whole.history.drop(columns=TIMINGS).to_csv()
    ours, theirs = (keras.models.load_model(one.checkpoint, compile=False).get_weights() for one in (run, whole))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(run.predictions["score"], whole.predictions["score"])
    assert run.file("validation_scores.csv").read_bytes() == whole.file("validation_scores.csv").read_bytes()
    for name in ("best_epoch", "epochs", "validation", "test"):
        assert run.metrics[name] == whole.metrics[name]


def changed_layers(trained: keras.Model, before: keras.Model) -> list[str]:
    """Names of the layers of a network that have other weights than they had."""
    return [
        ours.name
        for ours, theirs in zip(trained.layers, before.layers, strict=True)
        if any(not np.array_equal(a, b) for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True))
    ]
