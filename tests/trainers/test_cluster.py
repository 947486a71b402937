"""Where a run trains: what TF_CONFIG and the flags may say, and which rows of a batch a replica gets."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.systems import NUM_FRAMES, collection
from tfvidgen import data
from trainers import cluster

TWO = {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}


def text(jobs=None, task="worker", index=0) -> str:
    return json.dumps({"cluster": TWO if jobs is None else jobs, "task": {"type": task, "index": index}})


# ---------------------------------------------------------------- TF_CONFIG
@pytest.mark.parametrize("unset", ["", "  \n"])
def test_no_cluster_without_tf_config(unset):
    assert cluster.read_cluster(unset) is None


def test_a_cluster_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text(index=1))
    assert cluster.read_cluster() == (tuple(TWO["worker"]), 1)


def test_a_chief_is_the_first_worker():
    jobs = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    assert cluster.read_cluster(text(jobs, "chief")) == (("a:1", "b:1", "c:1"), 0)
    assert cluster.read_cluster(text(jobs, "worker", 1)) == (("a:1", "b:1", "c:1"), 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{cluster: 1}", "is not JSON"),
        ("[1]", "names no cluster"),
        ("{}", "names no cluster"),
        (json.dumps({"task": {"type": "worker", "index": 0}}), "names no cluster"),
        (text({}), "names no cluster"),
        (text({"worker": []}), "lists no addresses for 'worker'"),
        (text({"worker": "host:1"}), "lists no addresses for 'worker'"),
        (text({"worker": ["host"]}), "'host' that is not host:port"),
        (text({"worker": ["grpc://host:1"]}), "'grpc://host:1' that is not host:port"),
        (text({"worker": ["a:1", "a:1"]}), "lists an address twice"),
        (text({"chief": ["a:1", "b:1"]}, "chief"), "more than one chief"),
        (text({"worker": ["a:1"], "ps": ["b:1"]}), "has a job 'ps'"),
        (json.dumps({"cluster": TWO}), "does not say which worker this is"),
        (text(task="chief"), "does not say which worker this is"),
        (text(index="0"), "does not say which worker this is"),
        (text(index=True), "does not say which worker this is"),
        (text(index=2), "the index 2, and 'worker' has 0..1"),
        (text(index=-1), "the index -1, and 'worker' has 0..1"),
    ],
)
def test_a_tf_config_that_cannot_be_used(content, message):
    with pytest.raises(ValueError) as caught:
        cluster.read_cluster(content)
    said = str(caught.value)
    assert said.startswith("TF_CONFIG ") and message in said
    assert f"Received {content!r}" in said and 'e.g. {"cluster": {"worker": [' in said and "unset it" in said


@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_bad_tf_config_stops_the_strategies_that_read_it(monkeypatch, name):
    monkeypatch.setenv("TF_CONFIG", text(index=7))
    with pytest.raises(ValueError, match="index 7"):
        cluster.make_strategy(name)
    assert cluster.make_strategy("none").num_replicas_in_sync == 1


# ---------------------------------------------------------------- strategies
def test_strategies(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    gpus, cpus = (len(tf.config.list_logical_devices(kind)) for kind in ("GPU", "CPU"))
    for name, expected in (("none", 1), ("auto", max(1, gpus)), ("mirrored", gpus or cpus)):
        assert cluster.make_strategy(name).num_replicas_in_sync == cluster.num_replicas(name) == expected


def test_replicas_of_several_workers_are_counted_without_joining_them(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text({"worker": ["a:1", "b:1", "c:1"]}))
    per_worker = max(1, len(tf.config.list_logical_devices("GPU")))
    assert cluster.num_replicas("auto") == cluster.num_replicas("multiworker") == 3 * per_worker
    assert cluster.num_replicas("none") == 1


def test_one_worker_needs_no_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text({"worker": ["a:1"]}))
    strategy = cluster.make_strategy("auto")
    assert not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    assert cluster.is_chief(strategy) and cluster.num_workers(strategy) == 1


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("tpu", "", "auto, none, mirrored, multiworker. Received 'tpu'"),
        ("multiworker", "", "needs the environment variable TF_CONFIG, e.g. {"),
        ("mirrored", "GPU:99", "no device 'GPU:99' here. Received devices='GPU:99'; there are .*CPU:0"),
        ("none", "CPU:0,CPU:1", "none takes one device. Received 'CPU:0,CPU:1'"),
        ("mirrored", "CPU:0,CPU:0", "named once each"),
        ("mirrored", ",", "named once each"),
    ],
)
def test_unknown_strategies_and_devices(monkeypatch, name, devices, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for ask in (cluster.make_strategy, cluster.num_replicas):
        with pytest.raises(ValueError, match=message):
            ask(name, devices)


def test_workers_take_all_their_devices(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text())
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        cluster.make_strategy("auto", "CPU:0")


def test_workers_are_joined_in_a_fresh_process(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text())
    tf.constant(1) + 1
    with pytest.raises(ValueError, match="start a fresh process"):
        cluster.make_strategy("multiworker")


@pytest.mark.parametrize(
    ("name", "devices", "expected"), [("none", "cpu:1", 1), ("auto", "CPU:1", 1), ("auto", "CPU:0, CPU:1", 2)]
)
def test_devices_are_chosen_by_name(monkeypatch, name, devices, expected):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = cluster.make_strategy(name, devices)
    assert strategy.num_replicas_in_sync == cluster.num_replicas(name, devices) == expected
    with strategy.scope():
        variable = tf.Variable(1.0)
    where = {value.device.rpartition("device:")[2] for value in strategy.experimental_local_results(variable)}
    assert where == {part.strip().upper() for part in devices.split(",")}


# ---------------------------------------------------------------- batches
def test_replicas_get_the_rows_of_one_batch_in_order(two_replicas):
    def dataset():
        return data.make_dataset(collection(), 4, NUM_FRAMES, seed=7, start_step=5)

    iterator = cluster.distribute(two_replicas, dataset())
    for expected in dataset().take(3):
        batch = next(iterator)
        assert set(batch) == set(expected)
        for name, value in batch.items():
            halves = two_replicas.experimental_local_results(value)
            assert [len(half) for half in halves] == [2, 2]
            np.testing.assert_array_equal(np.concatenate(halves), expected[name])


@pytest.mark.parametrize(
    ("size", "remainder", "message"), [(3, True, "have 3 examples"), (4, False, "have any number of examples")]
)
def test_a_batch_that_replicas_cannot_share_is_refused(two_replicas, size, remainder, message):
    batches = data.make_dataset(collection(), 1, NUM_FRAMES, seed=7).unbatch().batch(size, drop_remainder=remainder)
    with pytest.raises(ValueError, match=f"shared by 2 replicas.*{message}: make batch_size a multiple of 2"):
        cluster.distribute(two_replicas, batches)


def test_one_process_agrees_with_itself(two_replicas):
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        assert cluster.of_all_workers(strategy, 7) == [7]
        cluster.agree(strategy, 7, "never said")


def test_the_same_devices_are_one_strategy():
    """Collectives of two strategies of one process would be given the same numbers."""
    assert cluster.make_strategy("mirrored", "CPU:0,CPU:1") is cluster.make_strategy("mirrored", "CPU:0,CPU:1")
    assert cluster.make_strategy("mirrored", "CPU:0") is not cluster.make_strategy("mirrored", "CPU:0,CPU:1")
