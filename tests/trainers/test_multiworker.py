"""Two processes on this machine that train in step, against one that trains alone."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import systems
from tests.trainers import staged
from tests.trainers.mean_colour import metrics
from tfvidgen import data
from trainers.engine import checkpoints, loop
from trainers.engine.ema import WeightAverage

STEPS = 4
# Both the tests and the processes that they start run this: the same system, data, optimizers and loop.
PROGRAM = """
import os, pathlib, sys
import keras
from trainers.engine import cluster
strategy = cluster.make_strategy("auto")
from tests.trainers import test_multiworker
folder = pathlib.Path(sys.argv[1])
test_multiworker.train(strategy, folder / "run", sys.argv[2], folder / f"{sys.argv[2]}.npz")
"""


def train(strategy, run_dir: pathlib.Path, worker: str, out: pathlib.Path | None = None) -> dict[str, np.ndarray]:
    """Trains a tiny NAVSynth and returns, or writes, all its state; `worker` names the process in what actions leave."""
    system = systems.SYSTEMS[1]
    with strategy.scope():
        keras.utils.set_random_seed(3)
        model = system.build()
        system.compile(model, lambda rate: keras.optimizers.SGD(rate, momentum=0.9))
        average = WeightAverage(model, 0.7)

    def acted(step, logs):
        (run_dir / f"acted_{worker}_{step}").touch()

    loop.run(
        model,
        lambda start: data.make_dataset(systems.collection(), 4, systems.NUM_FRAMES, seed=7, start_step=start),
        run_dir,
        STEPS,
        strategy,
        steps_per_loop=2,
        checkpoint_every_steps=2,
        actions=[loop.Action(acted, STEPS)],
        average=average,
        report=lambda line: print(line, flush=True),
    )
    state = {**checkpoints.model_state(model), **average.state}
    values = {name: np.asarray(variable) for name, variable in state.items()}
    if out:
        np.savez(out, **values)
    return values


def two_addresses() -> list[str]:
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{free.getsockname()[1]}" for free in (first, second)]


def tf_config() -> list[dict[str, str]]:
    """What makes two processes the workers of TF_CONFIG."""
    jobs = {"worker": two_addresses()}
    return [{"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": "worker", "index": i}})} for i in (0, 1)]


def slurm(folder: pathlib.Path) -> list[dict[str, str]]:
    """What makes two processes the tasks of a Slurm step on this machine, with a `scontrol` that knows its one node."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 127.0.0.1\n")
    program.chmod(0o755)
    step = {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),  # it decides the ports
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "127.0.0.[1]",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
    }
    return [{**step, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in (0, 1)]


def start_two(*command: str, folder: pathlib.Path, flags=((), ()), cluster=None) -> list[subprocess.Popen]:
    """The same program as worker 0 and worker 1; temporary files go into `<folder>/tmp<index>`."""
    workers = []
    for index, joined in enumerate(cluster or tf_config()):
        (folder / f"tmp{index}").mkdir(exist_ok=True)
        variables = {
            **joined,
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
            "TMPDIR": str(folder / f"tmp{index}"),
        }
        arguments = [sys.executable, *(part.replace("INDEX", str(index)) for part in command), *flags[index]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        workers.append(subprocess.Popen(arguments, env={**os.environ, **variables}, **pipes))
    return workers


def finish(workers) -> list[tuple[int, str, str]]:
    """(exit status, standard output, standard error) of each."""
    results = []
    for worker in workers:
        out, error = worker.communicate(timeout=600)
        results.append((worker.returncode, out, error))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("joined_by", ["TF_CONFIG", "Slurm"])
def test_two_processes_equal_one_by_weights(tmp_path, joined_by):
    cluster = tf_config() if joined_by == "TF_CONFIG" else slurm(tmp_path)
    workers = start_two("-c", PROGRAM, str(tmp_path), "INDEX", folder=tmp_path, cluster=cluster)
    alone = train(tf.distribute.get_strategy(), tmp_path / "alone", "alone")
    (code_0, out_0, error_0), (code_1, out_1, error_1) = finish(workers)
    assert (code_0, code_1) == (0, 0), error_0 + error_1

    together = [dict(np.load(tmp_path / f"{index}.npz")) for index in (0, 1)]
    assert set(alone) == set(together[0]) == set(together[1])
    for name, expected in alone.items():
        np.testing.assert_array_equal(together[0][name], together[1][name], err_msg=name)
        np.testing.assert_allclose(together[0][name], expected, atol=1e-6, rtol=0, err_msg=name)

    # only the first worker writes and talks; what the second saved is gone
    run_dir = tmp_path / "run"
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "acted_0_4",
        "actions.json",
        "checkpoints",
        "metrics.jsonl",
    ]
    assert [line["step"] for line in metrics(run_dir)] == [2, 4]
    for line, expected in zip(metrics(run_dir), metrics(tmp_path / "alone"), strict=True):
        assert line == pytest.approx(expected, abs=1e-5)
    assert f"step {STEPS}/{STEPS}" in out_0 and out_1 == ""
    assert [list((tmp_path / f"tmp{index}").iterdir()) for index in (0, 1)] == [[], []]

    # and one process goes on from what two have saved
    model = systems.SYSTEMS[1].build()
    assert checkpoints.restore(model, run_dir, raw_weights=True) == STEPS
    for name, variable in checkpoints.model_state(model).items():
        np.testing.assert_array_equal(variable.numpy(), together[0][name], err_msg=name)


STAGED = """
import pathlib, sys
from trainers.engine import cluster
strategy = cluster.make_strategy("auto")
from tests.trainers import test_multiworker
folder = pathlib.Path(sys.argv[1])
test_multiworker.train_stages(strategy, folder / "run", folder / f"{sys.argv[2]}.npz")
"""


def train_stages(strategy, run_dir: pathlib.Path, out: pathlib.Path) -> None:
    """Trains the toy in two stages, whose codes are updated by ids as the batch brings them, and writes all its state."""
    with strategy.scope():
        model = staged.colour_glo()
        average = WeightAverage(model, 0.5)
    stages = staged.stages_of(model, 5, staged.clips, batch_size=2)
    options = {"steps_per_loop": 2, "checkpoint_every_steps": 4, "average": average, "report": lambda line: None}
    loop.run(model, stages, run_dir, 12, strategy, **options)
    state = {**checkpoints.model_state(model), **average.state}
    np.savez(out, **{name: np.asarray(variable) for name, variable in state.items()})


@pytest.mark.slow
def test_two_processes_train_stages_as_one_does(tmp_path):
    """What the ends of stages and epochs change is the same in all processes."""
    workers = start_two("-c", STAGED, str(tmp_path), "INDEX", folder=tmp_path)
    train_stages(tf.distribute.get_strategy(), tmp_path / "alone", tmp_path / "alone.npz")
    results = finish(workers)
    assert [code for code, _, _ in results] == [0, 0], results
    first, second, alone = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("0", "1", "alone"))
    assert set(first) == set(second) == set(alone)
    for name, expected in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], expected, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.slow
def test_a_port_that_another_program_has_is_named(tmp_path):
    config = tf_config()[0]
    address = json.loads(config["TF_CONFIG"])["cluster"]["worker"][0]
    host, _, port = address.partition(":")
    program = "from trainers import cluster\ntry: cluster.make_strategy()\nexcept ValueError as error: print(error)"
    with socket.create_server((host, int(port))):
        variables = {**os.environ, **config, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        command = [sys.executable, "-c", program]
        said = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert f"This worker cannot listen at {address} (" in said.stdout and "choose others in TF_CONFIG" in said.stdout


# ---------------------------------------------------------------- the trainer itself
TRAINER = ("-m", "trainers.navsynth", "--preset=smoke", "--deterministic", "--noevaluate", "--update=joint")
SEVERAL = 300  # steps, of which the first 20 are over when the first checkpoint is seen


def start_trainers(folder: pathlib.Path, steps: int, flags=((), ())) -> list[subprocess.Popen]:
    command = (*TRAINER, f"--run_dir={folder / 'run'}", f"--total_steps={steps}", "--sample_every_steps=100000")
    command = (*command, "--checkpoint_every_steps=20", "--steps_per_loop=10")
    return start_two(*command, folder=folder, flags=flags)


def wait_for_checkpoint(workers, run_dir: pathlib.Path) -> None:
    """Returns once there is a checkpoint that was not there."""
    folder = run_dir / "checkpoints"
    before = checkpoints.latest(folder)
    while checkpoints.latest(folder) == before:
        assert all(worker.poll() is None for worker in workers), finish(workers)
        time.sleep(0.05)


def saved(run_dir) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(checkpoints.latest(run_dir / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    results = finish(start_trainers(folder, SEVERAL))
    assert [code for code, _, _ in results] == [0, 0], results
    return saved(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_workers_go_on_after_one_was_killed(tmp_path, undisturbed, victim):
    workers = start_trainers(tmp_path, SEVERAL)
    wait_for_checkpoint(workers, tmp_path / "run")
    workers[victim].kill()
    begin = time.monotonic()
    code, _, error = finish(workers)[1 - victim]
    assert time.monotonic() - begin < 120 and code != 0
    if victim == 1:  # worker 0 keeps the others' heartbeats, so without it TensorFlow itself may end a process first
        assert code == 1
        assert "Another worker has stopped" in error and "Restart all workers" in error and "ckpt-" in error
    step = int(pathlib.Path(checkpoints.latest(tmp_path / "run" / "checkpoints")).name[5:])
    assert 0 < step < SEVERAL

    results = finish(start_trainers(tmp_path, SEVERAL))
    assert [code for code, _, _ in results] == [0, 0], results
    again = saved(tmp_path / "run")
    assert set(again) == set(undisturbed)
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_worker_stops_all(tmp_path, asked):
    workers = start_trainers(tmp_path, 100000)
    wait_for_checkpoint(workers, tmp_path / "run")
    workers[asked].send_signal(signal.SIGTERM)
    results = finish(workers)
    assert [code for code, _, _ in results] == [128 + signal.SIGTERM] * 2, results
    assert "by a signal; the checkpoint is saved" in results[0][1] and results[1][1] == ""
    last = metrics(tmp_path / "run")[-1]["step"]
    assert checkpoints.latest(tmp_path / "run" / "checkpoints").endswith(f"ckpt-{last}")


@pytest.mark.slow
def test_workers_that_were_started_differently_all_say_so(tmp_path):
    results = finish(start_trainers(tmp_path, 4, flags=((), ("--seed=1",))))
    for code, _, error in results:
        assert (
            code == 1 and "The workers have different settings or data: start all of them with the same flags" in error
        )


@pytest.mark.slow
def test_workers_that_do_not_share_the_run_folder_all_say_so(tmp_path):
    assert [code for code, _, _ in finish(start_trainers(tmp_path, 4))] == [0, 0]
    flags = ((), (f"--run_dir={tmp_path / 'elsewhere'}",))
    command = (*TRAINER, f"--run_dir={tmp_path / 'run'}", "--total_steps=4", "--resume=auto")
    for code, _, error in finish(start_two(*command, folder=tmp_path, flags=flags)):
        assert code == 1 and "find different checkpoints" in error and "share one run folder" in error
