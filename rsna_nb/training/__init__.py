"""Settings -> a finished run: batches, devices, the feature bank, callbacks and checkpoints."""

from rsna_nb.training.callbacks import MODES, Logs, SignalError, TrainingError
from rsna_nb.training.checkpoints import STATE_FILE
from rsna_nb.training.data import prepare, split_table
from rsna_nb.training.distribution import explained_loss, find_devices
from rsna_nb.training.inputs import sample_batch, sample_changes
from rsna_nb.training.run import train

__all__ = [
    "MODES",
    "STATE_FILE",
    "Logs",
    "SignalError",
    "TrainingError",
    "explained_loss",
    "find_devices",
    "prepare",
    "sample_batch",
    "sample_changes",
    "split_table",
    "train",
]
