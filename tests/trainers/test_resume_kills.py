"""A run that is killed again and again is, in the end, the run that nobody disturbed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers.mean_colour import metrics
from trainers import checkpoints

NUM_KILLS, STEPS = 22, 660


def start(run_dir: pathlib.Path) -> subprocess.Popen:
    """A trainer that saves every other step, so that most of its time goes into saving."""
    flags = ["--preset=smoke", f"--run_dir={run_dir}", f"--total_steps={STEPS}", "--checkpoint_every_steps=2"]
    flags += ["--deterministic", "--strategy=none", "--update=joint", "--ema_decay=0.9", "--rnn_units=150"]
    flags += ["--sample_every_steps=100", "--noevaluate"]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    log = (run_dir.parent / f"{run_dir.name}.log").open("a")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainers.navsynth", *flags],
            env={**os.environ, "PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def said(run_dir: pathlib.Path) -> str:
    return (run_dir.parent / f"{run_dir.name}.log").read_text()[-3000:]


def last_step(run_dir: pathlib.Path) -> int:
    path = checkpoints.latest(run_dir / "checkpoints")
    return int(pathlib.Path(path).name[5:]) if path else 0


def half_written(run_dir: pathlib.Path) -> list[str]:
    """What is only there while a checkpoint is being written: a folder of parts, or the next list of checkpoints."""
    try:
        names = os.listdir(run_dir / "checkpoints")
    except FileNotFoundError:
        return []
    return [name for name in names if "temp" in name or ".tmp" in name]


def saved(run_dir: pathlib.Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(checkpoints.latest(run_dir / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_equals_a_straight_run_bit_for_bit(tmp_path):
    """Every other kill comes at the sight of a half-written checkpoint, the others at a random moment."""
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    undisturbed = start(straight)
    moments = random.Random(4)
    kills_while_saving = 0
    for kill in range(NUM_KILLS):
        process = start(killed)
        # far enough that all kills fit into the run, wherever it has been resumed
        while last_step(killed) < (kill + 1) * STEPS // (NUM_KILLS + 3):
            assert process.poll() is None, said(killed)
            time.sleep(0.01)
        if kill % 2:
            while not half_written(killed):
                assert process.poll() is None, said(killed)
        else:
            time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, said(killed)
        kills_while_saving += bool(half_written(killed))
        assert json.loads((killed / "lock").read_text())["pid"] == process.pid
    assert kills_while_saving >= 5

    process = start(killed)
    assert process.wait() == 0, said(killed)
    assert undisturbed.wait() == 0, said(straight)
    assert not half_written(killed)
    for folder in (killed, straight):
        assert sorted(path.name for path in folder.iterdir()) == [
            "checkpoints",
            "config.json",
            "metrics.jsonl",
            "samples",
            "tensorboard",
        ]
        assert len(list((folder / "checkpoints").iterdir())) == 5  # two checkpoints of two files, and their list
    expected, found = saved(straight), saved(killed)
    assert set(found) == set(expected) and any(name.startswith("average") for name in found)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert metrics(killed) == metrics(straight)
    sheets = {folder: (folder / "samples" / f"step_{STEPS:07d}.png").read_bytes() for folder in (killed, straight)}
    assert sheets[killed] == sheets[straight]
