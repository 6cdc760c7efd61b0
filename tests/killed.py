"""Trains, and kills itself somewhere: as in a power cut, nothing is tidied up. For tests of resuming.

killed.py <logical devices> <JSON of settings> <place> <count> <before | after>

It kills itself before or after it passes the place for the count-th time; 0 is never. With `resume` among the settings
that run is resumed. How often each place was passed is printed.
"""

import json
import os
import signal
import sys
from collections import Counter
from typing import Any

import tensorflow as tf

from rsna_nb.config import RunConfig
from rsna_nb.training import train
from rsna_nb.training.callbacks import StopAtNaN
from rsna_nb.training.distribution import Devices

PLACES = {
    "step": (StopAtNaN, "on_train_batch_end"),  # in an epoch
    "fsync": (os, "fsync"),  # in a save, the file being there in part
    "replace": (os, "replace"),  # in a save, the file taking its name
    "results": (Devices, "results"),  # in a forward pass: of the bank's making, or validation
}
passed: Counter[str] = Counter()


def kill_at(place: str, count: int, when: str) -> None:
    owner, name = PLACES[place]
    plain = getattr(owner, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        passed[place] += 1
        if passed[place] == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*arguments, **options)
        if passed[place] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counting)


def main(devices: str, text: str, place: str = "step", count: str = "0", when: str = "before") -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
    for each in PLACES:
        kill_at(each, int(count) if each == place else 0, when)
    settings = json.loads(text)
    train(RunConfig.resumed(settings) if "resume" in settings else RunConfig(**settings))
    print(json.dumps(passed))


if __name__ == "__main__":
    main(*sys.argv[1:])
