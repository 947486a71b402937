"""Two processes with TensorFlow's default threads, side by side, end in the same state bit for bit."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from tests.conformance.order import rewritten_graphs, unordered
from tests.systems import SYSTEMS
from tfvidgen.models.base import VideoGenerator
from tfvidgen.optimizers import StepGuard

STEPS = 20
QUICK = "tgan_conditional"  # in which the order was lost: a long test, and the others are slow ones
ROOT = pathlib.Path(__file__).parents[2]


def _side_by_side(commands: list[list[str]], folder: pathlib.Path) -> list[str]:
    """What each of them printed, or the error output of one that failed."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    processes, printed = [], []
    for i, command in enumerate(commands):
        with open(folder / f"{i}.out", "wb") as out, open(folder / f"{i}.err", "wb") as err:
            processes.append(subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=environment))
    for i, process in enumerate(processes):
        status = process.wait()
        assert status == 0, (folder / f"{i}.err").read_text()[-3000:]
        printed.append((folder / f"{i}.out").read_text())
    return printed


@pytest.fixture(scope="session")
def pair_of_results(tmp_path_factory):
    """By name, what both processes say of a system. One pair takes `QUICK`, another one all other systems."""

    @functools.cache
    def results(quick: bool) -> dict[str, tuple[dict, dict]]:
        names = [system.name for system in SYSTEMS if (system.name == QUICK) == quick]
        command = ["-m", "tests.conformance.repeat", str(STEPS), *names]
        printed = _side_by_side([command, command], tmp_path_factory.mktemp("repeat"))
        one, other = ([json.loads(line) for line in lines.splitlines()] for lines in printed)
        return {a["system"]: (a, b) for a, b in zip(one, other, strict=True)}

    return results


@pytest.fixture(
    params=[pytest.param(s.name, marks=pytest.mark.long if s.name == QUICK else pytest.mark.slow) for s in SYSTEMS],
)
def both(request, pair_of_results) -> tuple[dict, dict]:
    return pair_of_results(request.param == QUICK)[request.param]


def test_two_processes_take_the_same_steps(both):
    one, other = both
    assert one["digest"] == other["digest"]


def test_no_variable_is_read_and_written_in_any_order(both):
    """What goes wrong once in a hundred processes shows in the graph that each of them runs."""
    for result in both:
        assert result["unordered"] == []


class WassersteinCritic(VideoGenerator):
    """The least that went wrong: the gradient of the last kernel depends on every weight but that kernel itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.last = (
            keras.layers.Dense(n, use_bias=False, dtype=self.dtype_policy, name=name)
            for n, name in ((4, "first"), (1, "last"))
        )
        self.first.build((None, 3))
        self.last.build((None, 4))
        self.built = True
        super().compile(optimizer=keras.optimizers.SGD(0.1))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, batch):
        guard, weights = StepGuard(self), [variable.value for variable in self.trainable_variables]
        with tf.GradientTape() as tape:
            logits = self.last(keras.ops.leaky_relu(self.first(batch)))
            loss = -tf.reduce_mean(tf.cast(logits, tf.float32))
        self.optimizer.apply(guard.gradient(tape, loss, weights), self.trainable_variables)
        return guard.finish({"critic_loss": loss})


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_weight_moves_after_all_gradients_have_read_it(precision):
    critic = WassersteinCritic(dtype=precision)
    graphs = rewritten_graphs(tf.function(critic.train_step), tf.ones((2, 3)))
    assert [unordered(graph) for graph in graphs] == [[]]


def test_order_is_seen_in_the_graph():
    """What the contracts above rest on: two writes and a read that wait for each other, and the same without."""
    found = []
    for waits in (True, False):
        with tf.Graph().as_default() as graph:
            variable = tf.raw_ops.Placeholder(dtype=tf.resource)
            read = tf.raw_ops.ReadVariableOp(resource=variable, dtype=tf.float32, name="read")
            with tf.control_dependencies([read] if waits else []):
                first = tf.raw_ops.AssignAddVariableOp(resource=variable, value=1.0, name="first")
            with tf.control_dependencies([first] if waits else []):
                tf.raw_ops.AssignAddVariableOp(resource=variable, value=1.0, name="second")
        found.append(set(unordered(graph.as_graph_def())))
    assert found == [set(), {"first | read", "second | read", "second | first"}]


def test_the_graphs_that_run_are_found():
    variable = tf.Variable(1.0)
    graphs = rewritten_graphs(tf.function(lambda x: variable.assign_add(x * tf.convert_to_tensor(variable))), 2.0)
    kinds = {node.op for graph in graphs for node in graph.node}
    assert {"ReadVariableOp", "AssignAddVariableOp"} <= kinds
    assert not any(unordered(graph) for graph in graphs)
