"""Where a run trains: on one device, on several devices of one machine, or synchronously on several machines."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf

STRATEGIES = ("auto", "none", "mirrored", "multiworker")
_EXAMPLE = '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
# Set by srun for each task of a step.
_TASKS, _NODES, _TASKS_PER_NODE = "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE"
# Ports of a step's workers: each step has its own block, so that steps and jobs sharing a node do not collide. All blocks lie
# below Linux's ephemeral port range.
_FIRST_PORT, _PORTS_PER_STEP, _PORT_BLOCKS = 10000, 64, 311


class Cluster(NamedTuple):
    """Attributes: `workers`: all addresses, the chief's first; `index`: which of them is this process."""

    workers: tuple[str, ...]
    index: int


def read_cluster(text: str | None = None) -> Cluster | None:
    """Parses TF_CONFIG; None if it is not set.

    Args:
        text: Parsed instead of the environment variable TF_CONFIG.

    Raises:
        ValueError: If it is not JSON, names no cluster, or does not place this process in it.
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    if not text.strip():
        return None

    def wrong(what: str) -> ValueError:
        return ValueError(
            f"TF_CONFIG {what}. Received {text!r}. Expected the same on every worker except for the index, e.g. {_EXAMPLE}; "
            "unset it to train on this machine alone."
        )

    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise wrong(f"is not JSON ({error})") from None
    jobs = content.get("cluster") if isinstance(content, dict) else None
    if not isinstance(jobs, dict) or not jobs:
        raise wrong("names no cluster")
    if other := sorted(set(jobs) - {"chief", "worker"}):
        raise wrong(f"has a job {other[0]!r}, but synchronous training supports only 'worker' and 'chief'")
    for job, addresses in jobs.items():
        if not isinstance(addresses, list) or not addresses:
            raise wrong(f"lists no addresses for {job!r}")
        for address in addresses:
            if not re.fullmatch(r"[^\s/]+:\d+", str(address)):
                raise wrong(f"has an address {address!r} that is not host:port")
    workers = tuple(jobs.get("chief", [])) + tuple(jobs.get("worker", []))  # TensorFlow numbers them in this order
    if len(set(workers)) < len(workers):
        raise wrong("lists an address twice")
    if len(jobs.get("chief", [])) > 1:
        raise wrong("has more than one chief")
    task = content.get("task")
    job, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    if job not in jobs or isinstance(index, bool) or not isinstance(index, int):
        raise wrong("does not say which worker this is: task needs a type from the cluster and a whole number as index")
    if not 0 <= index < len(jobs[job]):
        raise wrong(f"gives this process the index {index}, but {job!r} has 0..{len(jobs[job]) - 1}")
    return Cluster(workers, index + (len(jobs.get("chief", [])) if job == "worker" else 0))


def read_slurm() -> Cluster | None:
    """The tasks of this Slurm step, started by `srun`, or None outside a step.

    Workers are numbered node by node, however Slurm distributes the tasks (`srun --distribution`); the tasks of a node get
    consecutive ports. TensorFlow's own `SlurmClusterResolver` is not used: it sorts nodes as text, so that with n9 and n10
    it expects task 0 on n10; it supports only one numeric range in a node's name; and it needs a GPU.

    Raises:
        ValueError: If a variable is missing or contradicts the others, or node names cannot be expanded.
    """
    if not os.environ.get(_TASKS, "").strip():
        return None

    def wrong(what: str) -> ValueError:
        return ValueError(
            f"The tasks of this Slurm step cannot be joined: {what}. Start them with srun, which sets the variables, or set "
            f"TF_CONFIG, which takes precedence, e.g. {_EXAMPLE}; --strategy=none or mirrored trains in this task alone."
        )

    def number(name: str, default: int | None = None) -> int:
        text = os.environ.get(name, "" if default is None else str(default)).strip()
        if not re.fullmatch(r"\d+", text):
            raise wrong(f"{name} is {repr(text) if text else 'not set'}, but should be a whole number")
        return int(text)

    num_tasks, rank = number(_TASKS), number("SLURM_PROCID")
    nodes, per_node = os.environ.get(_NODES, "").strip(), os.environ.get(_TASKS_PER_NODE, "").strip()
    for name, text in ((_NODES, nodes), (_TASKS_PER_NODE, per_node)):
        if not text:
            raise wrong(f"{name} is not set")
    counts: list[int] = []
    for part in per_node.split(","):
        match = re.fullmatch(
            r"(\d+)(?:\(x(\d+)\))?", part
        )  # 2(x3),1: two tasks on each of three nodes, one on a fourth
        if not match:
            raise wrong(f"{_TASKS_PER_NODE} is {per_node!r}, but should be like '2(x3),1'")
        counts += [int(match[1])] * int(match[2] or 1)
    try:
        hosts = _node_names(nodes)
    except ValueError as error:
        raise wrong(str(error)) from None
    if len(hosts) != len(counts) or sum(counts) != num_tasks:
        raise wrong(
            f"{_NODES}={nodes} has {len(hosts)} nodes, {_TASKS_PER_NODE}={per_node} counts {sum(counts)} tasks on "
            f"{len(counts)} nodes, and {_TASKS} is {num_tasks}"
        )
    places = [(node, local) for node, count in enumerate(counts) for local in range(count)]
    if rank >= num_tasks:
        raise wrong(f"SLURM_PROCID is {rank}, but {num_tasks} tasks have 0..{num_tasks - 1}")
    place = (number("SLURM_NODEID", places[rank][0]), number("SLURM_LOCALID", places[rank][1]))
    if place not in places:
        raise wrong(f"SLURM_NODEID={place[0]} and SLURM_LOCALID={place[1]} match none of its tasks")
    block = (31 * number("SLURM_JOB_ID", 0) + number("SLURM_STEP_ID", 0)) % _PORT_BLOCKS
    first_port = _FIRST_PORT + _PORTS_PER_STEP * block
    return Cluster(tuple(f"{hosts[node]}:{first_port + local}" for node, local in places), places.index(place))


def _node_names(nodes: str) -> list[str]:
    """`n[9-10],m1` -> node names in Slurm's order. Raises ValueError if scontrol is needed to expand them and fails."""
    if "[" not in nodes:
        return nodes.split(",")
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except FileNotFoundError:
        reason = "scontrol is not on PATH (in a container it has to be mounted)"
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip() or f"it exited with status {error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    raise ValueError(f"`{' '.join(command)}` is needed to expand {_NODES}, but failed: {reason}")


def make_strategy(name: str = "auto", devices: str = "") -> tf.distribute.Strategy:
    """Creates the strategy; with several workers, call it before TensorFlow runs any operation.

    Args:
        name: `none`: one device; `mirrored`: all GPUs, or all logical CPUs where there are none; `multiworker`: the
            workers of TF_CONFIG with all their GPUs or, if that is not set, the tasks of this Slurm step with their
            GPUs; `auto`: multiworker if there are several such workers, mirrored if there are several GPUs, else none.
        devices: Comma-separated names of the devices to use, e.g. `GPU:0,GPU:1`; empty for all. `none` takes one.

    Raises:
        ValueError: For an unknown name or device, or for a TF_CONFIG or Slurm step that cannot be used.
    """
    import tensorflow as tf

    if cluster := _cluster(name, devices):
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(None if read_cluster() else _slurm_resolver(cluster))
        except RuntimeError as error:
            raise ValueError(
                f"Several workers must be joined before TensorFlow runs anything: start a fresh process. ({error})"
            ) from None
        except tf.errors.UnknownError as error:
            raise ValueError(
                f"This worker cannot listen at {cluster.workers[cluster.index]} ({error.message}). If another program is using "
                "the port, choose others in TF_CONFIG; under Slurm, starting the step again gives it other ports."
            ) from None
    chosen, in_step = _of_this_machine(name, devices)
    if not in_step:
        return tf.distribute.OneDeviceStrategy(chosen[0]) if devices else tf.distribute.get_strategy()
    return _mirrored(tuple(chosen))


def num_replicas(name: str = "auto", devices: str = "") -> int:
    """How many replicas `make_strategy` would have. Joins no workers: each is assumed to have as many GPUs as this one.

    Raises:
        ValueError: As `make_strategy`.
    """
    import tensorflow as tf

    if cluster := _cluster(name, devices):
        gpus = tf.config.list_logical_devices("GPU")
        return len(cluster.workers) * max(1, len(gpus if read_cluster() else _share(gpus, cluster)))
    chosen, in_step = _of_this_machine(name, devices)
    return len(chosen) if in_step else 1


def _cluster(name: str, devices: str) -> Cluster | None:
    """The workers that a strategy joins: TF_CONFIG's, else Slurm's; None for single-machine strategies."""
    if name not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}. Received {name!r}.")
    cluster = (read_cluster() or read_slurm()) if name in ("auto", "multiworker") else None
    if name == "multiworker" and cluster is None:
        raise ValueError(
            f"strategy=multiworker needs the environment variable TF_CONFIG, e.g. {_EXAMPLE}, or a Slurm step started with srun."
        )
    if cluster is None or (name == "auto" and len(cluster.workers) < 2):
        return None
    if devices:
        raise ValueError(
            f"`devices` selects among those of one machine, but a worker uses all of its own. Received {devices!r}: "
            "leave it out, and hide GPUs with the environment variable CUDA_VISIBLE_DEVICES."
        )
    return cluster


def _slurm_resolver(cluster: Cluster) -> tf.distribute.cluster_resolver.ClusterResolver:
    """Describes the cluster to TensorFlow. Hides GPUs that belong to other tasks of this node."""
    import tensorflow as tf

    gpus = _share(tf.config.list_physical_devices("GPU"), cluster)
    tf.config.set_visible_devices(gpus, "GPU")
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": len(gpus)},
        rpc_layer="grpc",
    )


def _share(gpus: Sequence[Any], cluster: Cluster) -> Sequence[Any]:
    """This task's share of the visible GPUs: all of them, or a part if the tasks of a node all see the same ones.

    Slurm can assign GPUs per task (`--gpus-per-task`): a task then sees fewer than the step has on the node.

    Raises:
        ValueError: If the GPUs of a node cannot be divided evenly.
    """
    hosts = [address.rpartition(":")[0] for address in cluster.workers]
    num_tasks = hosts.count(hosts[cluster.index])
    on_node = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if len(gpus) < max(num_tasks, int(on_node) if on_node.isdecimal() else 0):
        return gpus
    if len(gpus) % num_tasks:
        raise ValueError(
            f"{num_tasks} tasks of this node see the same {len(gpus)} GPUs and cannot share them evenly: start as many tasks as "
            "GPUs, one task, or give each its own with srun --gpus-per-task."
        )
    size = len(gpus) // num_tasks
    first = hosts[: cluster.index].count(hosts[cluster.index]) * size
    return gpus[first : first + size]


def _of_this_machine(name: str, devices: str) -> tuple[list[str], bool]:
    """Full names of the devices that `name` and `devices` select, and whether they train synchronously or only the first does."""
    import tensorflow as tf

    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    chosen = _named(devices, [*gpus, *cpus]) if devices else (gpus or cpus)
    if name == "none" and devices and len(chosen) > 1:
        raise ValueError(f"strategy=none takes one device. Received {devices!r}: use strategy=mirrored, or name one.")
    return chosen, name == "mirrored" or (name == "auto" and len(chosen) > 1 and bool(devices or gpus))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One strategy per set of devices: two of them in a process would give their collectives the same keys."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(devices))


def _named(devices: str, known: Sequence[str]) -> list[str]:
    """`GPU:0,CPU:0` -> full names."""
    short = {name.rpartition("device:")[2]: name for name in known}
    names = [part.strip().upper() for part in devices.split(",") if part.strip()]
    unknown = [name for name in names if name not in short]
    if unknown or not names or len(set(names)) < len(names):
        what = f"There is no device {unknown[0]!r} here" if unknown else "Each device may be named only once"
        raise ValueError(f"{what}. Received devices={devices!r}; available are {', '.join(short)}.")
    return [short[name] for name in names]


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run folder: with several workers, only the first does."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().as_dict():
        return True
    return strategy.extended.should_checkpoint


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Number of processes that train synchronously."""
    resolver = strategy.cluster_resolver
    return 1 if resolver is None else max(1, sum(map(len, resolver.cluster_spec().as_dict().values())))


def describe(strategy: tf.distribute.Strategy) -> str:
    """The devices that train: `CPU:0 (2 cores)`, `GPU:0, GPU:1`, or `3 workers, each on GPU:0`."""
    import tensorflow as tf

    from trainers import environment

    placed = strategy.experimental_local_results(strategy.run(lambda: tf.identity(tf.zeros(()))))
    specs = [tf.DeviceSpec.from_string(tensor.device) for tensor in placed]
    text = ", ".join(f"{spec.device_type}:{spec.device_index}" for spec in specs)
    if any(spec.device_type == "CPU" for spec in specs):
        text += f" ({environment.processor()['cores']} cores)"
    workers = num_workers(strategy)
    return f"{workers} workers, each on {text}" if workers > 1 else text


def distribute(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset) -> Any:
    """An iterator over a dataset of global batches: each replica gets its own rows, the first replica the first ones.

    Every worker makes the same global batches and keeps its own rows, so a step's batch is the same for any number of
    workers. TensorFlow's automatic sharding would distribute elements or files instead.

    Raises:
        ValueError: If a batch cannot be divided among the replicas.
    """
    import tensorflow as tf

    num_replicas = strategy.num_replicas_in_sync
    if num_replicas == 1:
        return iter(dataset)
    for size in {spec.shape[0] for spec in tf.nest.flatten(dataset.element_spec)}:
        if not size or size % num_replicas:
            raise ValueError(
                f"A global batch is split over {num_replicas} replicas. Received batches of {size or 'any number of'} "
                f"examples: make batch_size a multiple of {num_replicas}, and drop the remainder."
            )

    def local(context: tf.distribute.InputContext) -> tf.data.Dataset:
        num_local = num_replicas // context.num_input_pipelines
        first = context.input_pipeline_id * num_local

        def rows(value: tf.Tensor) -> tf.Tensor:
            by_replica = tf.reshape(value, (num_replicas, value.shape[0] // num_replicas, *value.shape[1:]))
            return by_replica[first : first + num_local]

        batches = dataset.map(lambda batch: tf.nest.map_structure(rows, batch)).unbatch()
        # Declared infinite; otherwise every worker would ask all others before each batch whether they have one.
        return batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)).prefetch(num_local)

    return iter(strategy.distribute_datasets_from_function(local))


def of_all_workers(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """Each worker's value, in worker order. All workers must call it."""
    import tensorflow as tf

    workers = num_workers(strategy)
    if workers == 1:
        return [value]
    gathered = strategy.gather(strategy.run(lambda: tf.constant([value], tf.int64)), axis=0).numpy()
    return gathered[:: strategy.num_replicas_in_sync // workers].tolist()  # the same on all replicas of a worker


def agree(strategy: tf.distribute.Strategy, value: int, message: str) -> None:
    """Raises ValueError(message) on every worker unless all pass the same value. All workers must call it."""
    if len(set(of_all_workers(strategy, value))) > 1:
        raise ValueError(message)
