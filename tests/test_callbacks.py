"""The callbacks one by one, on a network of one weight, with prescribed metrics."""

import keras
import numpy as np
import pandas as pd
import pytest

from rsna_nb import metrics
from rsna_nb.config import RunConfig
from rsna_nb.training import callbacks
from rsna_nb.training.callbacks import LearningRate, Validate
from rsna_nb.training.checkpoints import BestCheckpoint

RISING = [0.5, 0.6, 0.6, 0.55, 0.7, 0.65, 0.7, 0.69, 0.1, 0.2, 0.3, 0.4]


class Given(keras.callbacks.Callback):
    """Puts metrics into the logs of each epoch, and notes the learning rate after it."""

    def __init__(self, name: str, values: list[float]) -> None:
        super().__init__()
        self.name, self.values, self.rates = name, values, []
        self.scores = np.zeros(1)

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        logs[self.name] = self.values[epoch]
        self.rates.append(float(self.model.optimizer.learning_rate.numpy()))


def fit(*chosen: keras.callbacks.Callback, epochs: int, steps: int = 1, rate: float = 1.0) -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    data = np.zeros((steps, 1), np.float32)
    model.fit(data, data, batch_size=1, epochs=epochs, callbacks=list(chosen), verbose=0)


@pytest.mark.parametrize(("monitor", "sign"), [("val_auc", 1), ("val_pf1", 1), ("val_loss", -1)])
def test_plateau_stopping_and_the_best_checkpoint_agree_on_what_is_better(tmp_path, monitor, sign):
    config = RunConfig(monitor=monitor, reduce_lr_patience=1, early_stopping_patience=3)
    values = [sign * value for value in RISING]
    given = Given(monitor, values)
    best = BestCheckpoint(
        tmp_path / "best.keras", monitor, keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), writes=True
    )
    best.watch(given, None)
    fit(given, best, *callbacks.monitors(config, None), epochs=12)
    assert best.epoch == 1 + int(np.argmax(RISING))
    assert len(given.rates) == best.epoch + 3
    seen = pd.Series(RISING[: len(given.rates)])
    without_gain = seen <= seen.cummax().shift(fill_value=-np.inf)
    falls = pd.Series(given.rates).diff() < 0  # a rate is noted before the plateau of its own epoch
    assert falls[1:].tolist() == without_gain[:-1].tolist()


def test_patience_of_0_switches_a_monitor_off():
    config = RunConfig(reduce_lr_patience=0, early_stopping_patience=0)
    assert callbacks.monitors(config, None) == []
    cosine = RunConfig(lr_schedule="cosine", early_stopping_patience=0)
    assert callbacks.monitors(cosine, None) == []


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    given = Given("val_loss", [0.0] * 6)
    fit(LearningRate(1e-3, 0, 6, 5, 2, cosine=True), given, epochs=6, steps=5)
    rates = np.array(given.rates)
    assert rates[0] < rates[1] <= 1e-3
    assert (np.diff(rates[1:]) < 0).all()
    assert rates[5] < 1e-4


def test_after_the_warm_up_without_cosine_the_plateau_has_the_rate():
    config = RunConfig(reduce_lr_patience=1, early_stopping_patience=0)
    given = Given("val_loss", [1.0, 0.9, 0.9, 0.9])
    warm_up = LearningRate(1e-3, 0, 4, 5, 1, cosine=False)
    fit(warm_up, given, *callbacks.monitors(config, None), epochs=4, steps=5, rate=1e-3)
    np.testing.assert_allclose(given.rates, [1e-3 * 5 / 6, 1e-3, 1e-3, 5e-4], rtol=1e-5)


# Two epochs of a detector trained with class weights of 20 to 1, on eight breasts with one image each.
CANCER = [1, 1, 0, 0, 0, 0, 0, 0]
RAW = {
    "first": [0.97, 0.60, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30],
    "second": [0.995, 0.50, 0.50, 0.50, 0.50, 0.50, 0.50, 0.50],
}
WEIGHTS = {0: 0.5, 1: 10.0}


def pf1_of(scores: list[float], weights: dict[int, float] | None) -> float:
    women = [str(number) for number in range(len(CANCER))]
    rows = pd.DataFrame({"patient_id": women, "laterality": "L", "cancer": CANCER})
    logs: dict[str, float] = {}
    Validate(lambda: np.array(scores), rows, weights).on_epoch_end(0, logs)
    return logs["val_pf1"]


def test_val_pf1_picks_the_epoch_by_the_scores_that_a_submission_has():
    """By the uncorrected scores the order of these two epochs is reversed."""
    assert pf1_of(RAW["first"], None) > pf1_of(RAW["second"], None)
    assert pf1_of(RAW["first"], WEIGHTS) < pf1_of(RAW["second"], WEIGHTS)
    corrected = metrics.prior_correction(np.array(RAW["second"]), WEIGHTS)
    assert pf1_of(RAW["second"], WEIGHTS) == pytest.approx(metrics.pf1(CANCER, corrected))


@pytest.mark.parametrize("imbalance", ["class_weight", "balanced_batches", "focal", "none"])
@pytest.mark.parametrize("positive_label", [1.0, 0.9])
def test_the_weights_that_scores_are_corrected_for_are_those_that_training_had(imbalance, positive_label):
    config = RunConfig(imbalance=imbalance, positive_label=positive_label)
    found = metrics.training_class_weights(config, 1000, 20, sampled_share=0.125)
    labels = np.arange(1000) < 20
    expected = {"class_weight": 0.5, "balanced_batches": 0.125}
    if imbalance in expected and positive_label == 1:
        assert found == pytest.approx(metrics.class_weights(labels, expected[imbalance]))
    else:
        assert found is None
