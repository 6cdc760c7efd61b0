"""TF_CONFIG, and several devices in one process."""

import json
import subprocess
import sys

import pytest

from rsna_nb.config import RunConfig
from rsna_nb.training import find_devices, train
from rsna_nb.training.distribution import DistributionError
from tests.small import TIMINGS


@pytest.mark.parametrize("task", ["ps", "evaluator"])
def test_computers_with_other_tasks_are_refused(monkeypatch, task):
    machines = {"worker": ["127.0.0.1:1", "127.0.0.1:2"], task: ["127.0.0.1:3"]}
    content = {"cluster": machines, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(content))
    with pytest.raises(DistributionError, match=f'TF_CONFIG has worker, {task}: only "worker"'):
        find_devices.__wrapped__()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"chief": ["a:1", "b:1"], "worker": ["c:1"]}, "task": {"type": "chief", "index": 0}}',
    ],
)
def test_a_faulty_tf_config_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(DistributionError, match="TF_CONFIG must be"):
        find_devices.__wrapped__()


@pytest.mark.slow
def test_one_computer_alone_trains_as_without_tf_config(frozen_settings, monkeypatch, tmp_path):
    content = {"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}}
    same = frozen_settings | {"epochs": 1, "runs_dir": str(tmp_path)}
    histories = []
    for named in (content, {}):
        monkeypatch.setenv("TF_CONFIG", json.dumps(named))
        find_devices.cache_clear()
        run = train(RunConfig(**same, run_name=f"machines{len(named)}"))
        histories.append(run.history.drop(columns=TIMINGS).to_csv())
    assert histories[0] == histories[1]


DEALT = """
import json
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from rsna_nb.training.distribution import find_devices

devices = find_devices()
device = lambda: tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
forward = devices.compiled(lambda images, more: tf.concat([images, more, tf.fill(images.shape, device())], 1))
images = tf.reshape(tf.range(6.0), (6, 1))
print(json.dumps({
    "names": devices.names,
    "results": devices.results(forward, images, 10 * images).tolist(),
    "joined": devices.all_gather(np.arange(6).reshape(3, 2)).tolist(),
    "total": devices.all_reduce_sum(np.arange(3)).tolist(),
    "told": devices.broadcast("runs/Ærø"),
}))
"""


@pytest.mark.slow
def test_two_devices_of_one_computer_share_a_batch_and_give_it_back_in_order():
    answer = subprocess.run([sys.executable, "-c", DEALT], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = json.loads(answer.stdout.splitlines()[-1])
    assert len(set(found["names"])) == 2
    assert found["results"] == [[n, 10 * n, n >= 3] for n in range(6)]
    assert found["joined"] == [[0, 1], [2, 3], [4, 5]]
    assert found["total"] == [0, 1, 2]
    assert found["told"] == "runs/Ærø"
