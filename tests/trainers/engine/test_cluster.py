"""Where a run trains: what TF_CONFIG, Slurm and the flags may say, and which rows of a batch a replica gets."""

import json
import os
import types

import numpy as np
import pytest
import tensorflow as tf

from tests.systems import NUM_FRAMES, collection
from tfvidgen import data
from trainers import environment
from trainers.engine import cluster

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
        (text(index=2), "the index 2, but 'worker' has 0..1"),
        (text(index=-1), "the index -1, but 'worker' has 0..1"),
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


# ---------------------------------------------------------------- Slurm
STEP = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "n[9-10],m1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "0",
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "3",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """The tests may themselves run as a Slurm task."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name == "TF_CONFIG"]:
        monkeypatch.delenv(name)


@pytest.fixture
def step(monkeypatch, tmp_path):
    """Makes this process a task of the step above, changed as asked; `None` removes a variable."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[9-10],m1" ] && printf "n9\\nn10\\nm1\\n" && exit\n')
    with program.open("a") as file:
        file.write('echo "scontrol: error: Invalid hostlist: $3" >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    def set_variables(**changes):
        for name, value in {**STEP, **changes}.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return set_variables


def hosts(workers) -> list[str]:
    return [address.partition(":")[0] for address in workers]


def test_the_tasks_of_a_step_are_the_workers_in_slurms_order(step):
    seen = []
    for rank in range(5):
        step(SLURM_PROCID=str(rank))
        seen.append(cluster.read_slurm())
    assert [task.index for task in seen] == [0, 1, 2, 3, 4]
    assert len({task.workers for task in seen}) == 1
    assert hosts(seen[0].workers) == ["n9", "n9", "n10", "n10", "m1"]  # not sorted as text, nor by name
    ports = [int(address.partition(":")[2]) for address in seen[0].workers]
    assert ports == [ports[0], ports[0] + 1, ports[0], ports[0] + 1, ports[0]]


def test_tasks_that_were_dealt_out_in_turn_find_their_own_node(step):
    """`srun --distribution=cyclic` puts task 1 on the second node."""
    step(SLURM_PROCID="1", SLURM_NODEID="1", SLURM_LOCALID="0")
    task = cluster.read_slurm()
    assert hosts(task.workers)[task.index] == "n10" and task.index == 2


def test_plain_node_names_need_no_scontrol(step, monkeypatch):
    monkeypatch.setenv("PATH", "")
    step(SLURM_STEP_NODELIST="a,b-2", SLURM_STEP_TASKS_PER_NODE="1(x2)", SLURM_STEP_NUM_TASKS="2")
    assert hosts(cluster.read_slurm().workers) == ["a", "b-2"]


def test_steps_that_share_a_node_have_ports_of_their_own(step):
    blocks = set()
    for job in range(100, 103):
        for number in range(3):
            step(SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(number))
            blocks.add(int(cluster.read_slurm().workers[0].partition(":")[2]))
    assert len(blocks) == 9 and all(port % 64 == 10000 % 64 for port in blocks)
    for job in (0, 311, 4_000_000_000):
        step(SLURM_JOB_ID=str(job))
        assert all(1024 < int(address.partition(":")[2]) < 32768 for address in cluster.read_slurm().workers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_PROCID": None}, "SLURM_PROCID is not set, but should be a whole number"),
        ({"SLURM_PROCID": "first"}, "SLURM_PROCID is 'first', but should be"),
        ({"SLURM_PROCID": "5"}, "SLURM_PROCID is 5, but 5 tasks have 0..4"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two'"),
        ({"SLURM_STEP_NUM_TASKS": "6"}, "counts 5 tasks on 3 nodes, and SLURM_STEP_NUM_TASKS is 6"),
        ({"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST is not set"),
        ({"SLURM_STEP_NODELIST": "a,b"}, "SLURM_STEP_NODELIST=a,b has 2 nodes"),
        ({"SLURM_STEP_TASKS_PER_NODE": None}, "SLURM_STEP_TASKS_PER_NODE is not set"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2"}, "is '2(x2', but should be like '2(x3),1'"),
        ({"SLURM_NODEID": "2", "SLURM_LOCALID": "1"}, "SLURM_NODEID=2 and SLURM_LOCALID=1 match none of its tasks"),
        ({"SLURM_STEP_NODELIST": "n[9-"}, "Invalid hostlist: n[9-"),
    ],
)
def test_a_slurm_step_that_cannot_be_used(step, changes, message):
    step(**changes)
    for name in ("auto", "multiworker"):
        for ask in (cluster.make_strategy, cluster.num_replicas):
            with pytest.raises(ValueError) as caught:
                ask(name)
            said = str(caught.value)
            assert said.startswith("The tasks of this Slurm step cannot be joined: ") and message in said
            assert "with srun" in said and "TF_CONFIG" in said and "--strategy=none or mirrored" in said
    assert cluster.num_replicas("none") == 1


def test_node_names_that_need_scontrol_where_there_is_none(step, monkeypatch):
    step()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"scontrol show hostnames n\[9-10\],m1.*scontrol is not on PATH"):
        cluster.read_slurm()


def test_replicas_of_a_step_are_counted_without_joining_it(step):
    step()
    per_worker = max(1, len(tf.config.list_logical_devices("GPU")))
    assert cluster.num_replicas("auto") == cluster.num_replicas("multiworker") == 5 * per_worker
    assert cluster.num_replicas("none") == 1


def test_one_task_joins_nothing_unless_asked(step):
    """As in a shell of `salloc`, or a batch script, where Slurm counts tasks of the job and not of a step."""
    step(SLURM_STEP_NUM_TASKS="1", SLURM_STEP_NODELIST="n9", SLURM_STEP_TASKS_PER_NODE="1")
    assert not isinstance(cluster.make_strategy("auto"), tf.distribute.MultiWorkerMirroredStrategy)
    step(SLURM_STEP_NUM_TASKS=None, SLURM_NTASKS="5")
    assert not isinstance(cluster.make_strategy("auto"), tf.distribute.MultiWorkerMirroredStrategy)
    with pytest.raises(ValueError, match="TF_CONFIG.* or a Slurm step started with srun"):
        cluster.make_strategy("multiworker")


def test_tf_config_comes_before_slurm(step, monkeypatch):
    step(SLURM_PROCID="9")
    monkeypatch.setenv("TF_CONFIG", text())
    assert cluster.num_replicas("multiworker") == 2 * max(1, len(tf.config.list_logical_devices("GPU")))


def test_tasks_of_a_step_take_all_their_devices(step):
    step()
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        cluster.make_strategy("auto", "CPU:0")


@pytest.mark.parametrize(
    ("num_visible", "on_node", "expected"),
    [
        (4, "4", [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1, 2, 3]]),  # all tasks of a node see the same
        (4, None, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1, 2, 3]]),
        (2, "4", [[0, 1]] * 5),  # Slurm gave each its own
        (1, None, [[0]] * 5),
        (0, None, [[]] * 5),
    ],
)
def test_tasks_of_a_node_share_its_gpus(step, monkeypatch, num_visible, on_node, expected):
    seen = types.SimpleNamespace(gpus=None)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(range(num_visible)))
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda gpus, kind: setattr(seen, "gpus", gpus))
    for rank, gpus in enumerate(expected):
        step(SLURM_PROCID=str(rank), SLURM_GPUS_ON_NODE=on_node)
        resolver = cluster._slurm_resolver(cluster.read_slurm())
        assert seen.gpus == gpus and resolver.num_accelerators() == {"GPU": len(gpus)}
        assert (resolver.task_type, resolver.task_id) == ("worker", rank)


def test_gpus_that_tasks_cannot_share_evenly(step, monkeypatch):
    step(SLURM_GPUS_ON_NODE="3")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [0, 1, 2])
    with pytest.raises(ValueError, match="2 tasks of this node see the same 3 GPUs.*--gpus-per-task"):
        cluster._slurm_resolver(cluster.read_slurm())


# ---------------------------------------------------------------- strategies
def test_strategies(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    gpus, cpus = (len(tf.config.list_logical_devices(kind)) for kind in ("GPU", "CPU"))
    for name, expected in (("none", 1), ("auto", max(1, gpus)), ("mirrored", gpus or cpus)):
        assert cluster.make_strategy(name).num_replicas_in_sync == cluster.num_replicas(name) == expected


def test_a_strategy_is_described_by_its_devices(two_replicas):
    cores = f"({environment.processor()['cores']} cores)"
    assert cluster.describe(two_replicas) == f"CPU:0, CPU:1 {cores}"
    assert cluster.describe(cluster.make_strategy("none", "CPU:0")) == f"CPU:0 {cores}"


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
        ("mirrored", "GPU:99", "no device 'GPU:99' here. Received devices='GPU:99'; available are .*CPU:0"),
        ("none", "CPU:0,CPU:1", "none takes one device. Received 'CPU:0,CPU:1'"),
        ("mirrored", "CPU:0,CPU:0", "named only once"),
        ("mirrored", ",", "named only once"),
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


def test_tasks_of_a_step_are_joined_in_a_fresh_process(step):
    step()
    tf.constant(1) + 1
    with pytest.raises(ValueError, match="start a fresh process"):
        cluster.make_strategy("auto")


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
    ("size", "remainder", "message"), [(3, True, "of 3 examples"), (4, False, "of any number of examples")]
)
def test_a_batch_that_replicas_cannot_share_is_refused(two_replicas, size, remainder, message):
    batches = data.make_dataset(collection(), 1, NUM_FRAMES, seed=7).unbatch().batch(size, drop_remainder=remainder)
    with pytest.raises(ValueError, match=f"split over 2 replicas.*{message}: make batch_size a multiple of 2"):
        cluster.distribute(two_replicas, batches)


def test_one_process_agrees_with_itself(two_replicas):
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        assert cluster.of_all_workers(strategy, 7) == [7]
        cluster.agree(strategy, 7, "never said")


def test_the_same_devices_are_one_strategy():
    """Collectives of two strategies of one process would be given the same numbers."""
    assert cluster.make_strategy("mirrored", "CPU:0,CPU:1") is cluster.make_strategy("mirrored", "CPU:0,CPU:1")
    assert cluster.make_strategy("mirrored", "CPU:0") is not cluster.make_strategy("mirrored", "CPU:0,CPU:1")
