"""The loop: what is saved, what is continued, what is refused, and what signals do."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.marks import first
from tests.systems import SYSTEMS
from tests.trainers.mean_colour import (
    MeanColour,
    assert_equal,
    dataset,
    lines,
    mean_colour,
    metrics,
    state,
    train,
    written,
)
from trainers.engine import checkpoints, loop

pytestmark = pytest.mark.usefixtures("quick_graphs")


# ---------------------------------------------------------------- going on
@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(run folder, state) of ten steps without a stop."""
    run_dir, model = tmp_path_factory.mktemp("straight"), mean_colour()
    train(model, run_dir, 10)
    return run_dir, state(model)


def test_a_run_leaves_its_losses_and_last_checkpoints(straight):
    run_dir, _ = straight
    found = lines(run_dir)
    assert [line["step"] for line in found] == [2, 4, 6, 8, 10]
    assert all(set(line) == {"step", "colour_loss", "code_size", "seconds"} for line in found)
    assert found[-1]["colour_loss"] < found[0]["colour_loss"]
    assert written(run_dir) == ["ckpt-10", "ckpt-8"]


def test_what_is_reported_is_the_mean_over_the_inner_loop(straight, tmp_path):
    train(mean_colour(), tmp_path, 10, steps_per_loop=1)
    single = metrics(tmp_path)
    assert [line["step"] for line in single] == list(range(1, 11))
    for i, line in enumerate(metrics(straight[0])):
        expected = np.mean([step["colour_loss"] for step in single[2 * i : 2 * i + 2]])
        assert line["colour_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "left_behind",
    [
        "",
        '{"step": 6, "colour_loss": 9.0, "code_size": 9.0}\n',
        '{"step": 6, "colour_loss": 9.0, "code_size": 9.0}\n{"step": 8, "colour_l',
        '{"step": 6',
    ],
    ids=["nothing", "a later line", "a later and half a line", "half a line"],
)
def test_a_resumed_run_continues_losses_and_state(straight, tmp_path, left_behind):
    train(mean_colour(), tmp_path, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(left_behind)
    model = mean_colour()
    train(model, tmp_path, 10)
    assert metrics(tmp_path) == metrics(straight[0])
    assert_equal(state(model), straight[1])


def test_a_run_without_a_checkpoint_begins_anew(straight, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "colour_loss": 9.0}\n')  # killed before the first checkpoint
    train(mean_colour(), tmp_path, 10)
    assert metrics(tmp_path) == metrics(straight[0])


def test_a_finished_run_is_left_alone(straight, tmp_path):
    run_dir, expected = straight
    before = (run_dir / "metrics.jsonl").read_bytes(), written(run_dir)
    model, said = mean_colour(), []
    assert train(model, run_dir, 10, report=said.append) == {}
    assert said == ["already trained for 10 steps"]
    assert ((run_dir / "metrics.jsonl").read_bytes(), written(run_dir)) == before
    assert_equal(state(model), expected)


@pytest.mark.long
def test_one_step_at_a_time_equals_four_at_a_time_bit_for_bit(tmp_path):
    states = []
    for steps_per_loop in (1, 4):
        keras.utils.set_random_seed(3)
        model = SYSTEMS[1].build()
        SYSTEMS[1].compile(model, lambda rate: keras.optimizers.Adam(rate))
        train(model, tmp_path / str(steps_per_loop), 4, steps_per_loop=steps_per_loop)
        states.append(state(model))
    assert_equal(*states)


def test_resume_must_find_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="resume=must, but there is no checkpoint under .*resume=auto"):
        train(mean_colour(), tmp_path, 2, resume="must")
    train(mean_colour(), tmp_path, 2)
    train(mean_colour(), tmp_path, 4, resume="must")
    assert [line["step"] for line in metrics(tmp_path)] == [2, 4]


def test_an_unknown_resume_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of auto, never, must. Received 'yes'"):
        train(mean_colour(), tmp_path, 2, resume="yes")


def test_resume_is_refused_where_it_was_not_asked_for(straight):
    model = mean_colour()
    before = state(model)
    with pytest.raises(ValueError, match="already holds .*ckpt-10.*resume=auto"):
        train(model, straight[0], 12, resume="never")
    assert_equal(state(model), before)
    assert len(metrics(straight[0])) == 5


def test_resume_may_be_forbidden_in_an_empty_folder(tmp_path):
    train(mean_colour(), tmp_path / "new" / "folder", 2, resume="never")
    assert written(tmp_path / "new" / "folder") == ["ckpt-2"]


# ---------------------------------------------------------------- checkpoints
def test_another_width_is_refused_by_name_and_nothing_is_loaded(straight):
    model = mean_colour(width=5)
    before = state(model)
    for attempt in (lambda: train(model, straight[0], 12), lambda: checkpoints.restore(model, straight[0])):
        with pytest.raises(ValueError, match="does not fit this model") as caught:
            attempt()
        assert "to_colour.kernel is (3, 3) in the checkpoint, (5, 3) in the model" in str(caught.value)
        assert "codes.rows is (6, 3) in the checkpoint, (6, 5) in the model" in str(caught.value)
        assert "bias" not in str(caught.value)
    assert_equal(state(model), before)


def test_another_system_is_refused(straight):
    model = SYSTEMS[0].build()
    with pytest.raises(ValueError, match=r"static.rows is missing.* and \d+ more"):
        checkpoints.restore(model, straight[0])


def test_restore_loads_weights_into_a_model_that_is_not_compiled(straight):
    model = MeanColour()
    model.build()
    assert checkpoints.restore(model, straight[0]) == 10
    for variable in model.weights:
        np.testing.assert_array_equal(variable.numpy(), straight[1][variable.path.partition("/")[2].replace("/", ".")])


def test_restore_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="No checkpoint under .*train first"):
        checkpoints.restore(mean_colour(), tmp_path)


def test_a_run_folder_may_be_moved(straight, tmp_path):
    train(mean_colour(), tmp_path / "here", 4)
    (tmp_path / "here").rename(tmp_path / "there")
    model = mean_colour()
    train(model, tmp_path / "there", 10)
    assert_equal(state(model), straight[1])
    assert written(tmp_path / "there") == ["ckpt-10", "ckpt-8"]


def test_state_is_everything_and_named_once():
    model = mean_colour()
    names = set(checkpoints.model_state(model))
    assert {"codes.rows", "codes.velocity", "to_colour.kernel", "to_colour.bias"} < names
    assert len(names) == len(model.weights) + len(model.optimizer.variables)
    assert len([name for name in names if name.startswith("optimizer.")]) == len(model.optimizer.variables)


def test_variables_that_share_a_name_are_refused():
    class TwoLayersOfOneName(MeanColour):
        def build(self, input_shape=None):
            self.twin = keras.layers.Dense(3, name="to_colour")
            self.twin.build((None, 3))
            super().build()

    model = TwoLayersOfOneName()
    model.build()
    with pytest.raises(ValueError, match="share a name.*to_colour.bias, to_colour.kernel"):
        checkpoints.model_state(model)


# ---------------------------------------------------------------- actions and progress
def test_actions_run_at_their_periods_and_at_the_end(tmp_path):
    calls = {3: [], 100: []}
    actions = [loop.Action(lambda step, logs, every=every: calls[every].append((step, logs)), every) for every in calls]
    logs = train(mean_colour(), tmp_path, 8, steps_per_loop=50, actions=actions)
    assert [step for step, _ in calls[3]] == [3, 6, 8]
    assert [step for step, _ in calls[100]] == [8]
    assert calls[3][-1][1] == logs
    assert [line["step"] for line in metrics(tmp_path)] == [3, 4, 6, 8]  # a loop ends wherever something is due
    assert calls[3][0][1] == {name: value for name, value in metrics(tmp_path)[0].items() if name != "step"}


def test_an_action_that_is_due_at_the_end_runs_once(tmp_path):
    steps = []
    train(mean_colour(), tmp_path, 4, actions=[loop.Action(lambda step, logs: steps.append(step), 2)])
    assert steps == [2, 4]


def test_progress_lines_say_losses_and_speed(tmp_path):
    said = []
    train(mean_colour(), tmp_path / "a", 4, report=said.append, frames_per_step=16)
    assert said[-2].startswith("step 4/4  colour_loss 0.")
    assert "frames/s" in said[-2] and said[-2].endswith("ETA 0:00")


# ---------------------------------------------------------------- killed and resumed
class Killed(BaseException):
    """Ends a run where it stands, as a kill would: nothing is saved after it."""


class Diary:
    """An action that writes a line into a file, in two halves; and may be killed before, between and after them."""

    def __init__(self, run_dir, name: str, every_steps: int):
        self.path, self.name, self.every_steps, self.uses_weights = run_dir / f"{name}.txt", name, every_steps, False
        self.dies_at: tuple[int, str] | None = None

    def run(self, step, logs):
        self.rewind(step - 1)
        for half in ("before", "between", "after"):
            if self.dies_at == (step, half):
                raise Killed
            if half != "after":
                with self.path.open("a") as file:
                    file.write(f"{step} " if half == "before" else json.dumps(logs) + "\n")

    def rewind(self, step):
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.path.write_text(
            "".join(f"{line}\n" for line in lines if line.endswith("}") and int(line.split()[0]) <= step)
        )


PERIODS = {"steps_per_loop": 5, "checkpoint_every_steps": 4}


def diaries(run_dir):
    run_dir.mkdir(exist_ok=True)
    return [Diary(run_dir, name, every) for name, every in (("sheets", 6), ("evaluation", 8), ("end", 0))]


def left(run_dir) -> list:
    return [metrics(run_dir), *((run_dir / f"{name}.txt").read_text() for name in ("sheets", "evaluation", "end"))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(what it left, state) of 18 steps whose lines, checkpoints and actions seldom fall on the same step."""
    run_dir, model = tmp_path_factory.mktemp("undisturbed"), mean_colour()
    train(model, run_dir, 18, actions=diaries(run_dir), **PERIODS)
    found = left(run_dir)
    assert [line["step"] for line in found[0]] == [4, 5, 6, 8, 10, 12, 15, 16, 18]
    assert [[line.split()[0] for line in text.splitlines()] for text in found[1:]] == [
        ["6", "12", "18"],
        ["8", "16", "18"],
        ["18"],
    ]
    return found, state(model)


@pytest.mark.parametrize(
    ("which", "step", "half"),
    first(
        3,
        [
            (0, 6, "before"),
            (0, 12, "between"),
            (1, 8, "after"),
            (1, 16, "before"),
            (0, 18, "between"),
            (1, 18, "after"),
            (2, 18, "before"),
            (2, 18, "between"),
            (2, 18, "after"),
        ],
    ),
)
def test_an_action_that_a_kill_cut_short_is_done_on_resume_and_once(tmp_path, undisturbed, which, step, half):
    actions = diaries(tmp_path)
    actions[which].dies_at = (step, half)
    with pytest.raises(Killed):
        train(mean_colour(), tmp_path, 18, actions=actions, **PERIODS)
    model = mean_colour()
    train(model, tmp_path, 18, actions=diaries(tmp_path), **PERIODS)
    assert left(tmp_path) == undisturbed[0]
    assert_equal(state(model), undisturbed[1])
    before = left(tmp_path)
    train(mean_colour(), tmp_path, 18, actions=diaries(tmp_path), **PERIODS)  # nothing is left to do
    assert left(tmp_path) == before


@pytest.mark.parametrize("at", [1, 8, 17, *(pytest.param(at, marks=pytest.mark.long) for at in (4, 7, 11, 12))])
def test_a_run_that_is_stopped_after_any_step_leaves_the_same(tmp_path, undisturbed, at, monkeypatch):
    """Also between lines: what a line has of the steps before the stop goes through the checkpoint, bit for bit."""
    calls = loop.Steps.__call__

    def stop_at(self, iterator, num_steps):
        taken = calls(self, iterator, 1)
        stop_at.steps += 1
        if stop_at.steps == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return taken

    stop_at.steps, said = 0, []
    monkeypatch.setattr(loop.Steps, "__call__", stop_at)
    with pytest.raises(SystemExit):
        train(mean_colour(), tmp_path, 18, actions=diaries(tmp_path), report=said.append, **PERIODS)
    monkeypatch.undo()
    assert f"ckpt-{at}" in written(tmp_path) and f"stopped at step {at} by a signal" in said[-1]
    model = mean_colour()
    train(model, tmp_path, 18, actions=diaries(tmp_path), **PERIODS)
    assert left(tmp_path) == undisturbed[0]
    assert_equal(state(model), undisturbed[1])


@pytest.mark.parametrize("end", ["signal", "time"])
def test_an_action_between_checkpoints_is_done_once_where_the_run_is_stopped_there(tmp_path, end):
    done = []

    def act(name, step):
        done.append((name, step))
        if (name, step) == ("first", 6) and done.count((name, step)) == 1:
            if end == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                clock.setattr(loop.time, "monotonic", lambda: 1e9)

    actions = [
        loop.Action(lambda step, logs, name=name: act(name, step), every_steps=6, name=name)
        for name in ("first", "second")
    ]
    with pytest.MonkeyPatch.context() as clock, pytest.raises(SystemExit) if end == "signal" else nullcontext():
        train(mean_colour(), tmp_path, 12, actions=actions, max_minutes=60)
    assert written(tmp_path) == ["ckpt-4", "ckpt-6"]
    assert done == ([("first", 6)] if end == "signal" else [("first", 6), ("second", 6)])
    train(mean_colour(), tmp_path, 12, actions=actions)
    assert done == [(name, step) for step in (6, 12) for name in ("first", "second")]


def test_a_run_that_had_no_time_for_a_step_says_so(tmp_path):
    said = []
    train(mean_colour(), tmp_path, 4, max_minutes=1e-9, report=said.append)
    assert "there is no checkpoint yet" in said[-1] and "raise max_minutes" in said[-1]
    train(mean_colour(), tmp_path, 4)
    train(mean_colour(), tmp_path, 8, max_minutes=1e-9, report=said.append)
    assert "stopped at step 4" in said[-1] and "raise max_minutes" in said[-1]


def test_a_finished_run_that_is_trained_longer_equals_one_of_that_length(tmp_path, straight):
    train(mean_colour(), tmp_path, 6)
    model = mean_colour()
    train(model, tmp_path, 10)
    assert metrics(tmp_path) == metrics(straight[0])
    assert_equal(state(model), straight[1])


def test_an_action_is_due_again_after_its_checkpoint_was_lost(tmp_path, undisturbed):
    train(mean_colour(), tmp_path, 18, actions=diaries(tmp_path), **PERIODS)
    path = tmp_path / "checkpoints" / "ckpt-18.index"
    path.write_bytes(path.read_bytes()[:20])
    actions = diaries(tmp_path)
    actions[1].dies_at = (18, "before")
    with pytest.raises(Killed):
        train(mean_colour(), tmp_path, 18, actions=actions, **PERIODS)
    train(mean_colour(), tmp_path, 18, actions=diaries(tmp_path), **PERIODS)
    assert left(tmp_path) == undisturbed[0]


# ---------------------------------------------------------------- time
def test_a_run_ends_before_its_time_is_up_and_goes_on(tmp_path, straight, monkeypatch):
    passed = [0.0]
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))

    def wait(step, logs):
        passed[0] += 6000.0 if step == 4 else 0.0

    said, action = [], loop.Action(wait, 4, name="wait")
    logs = train(mean_colour(), tmp_path, 10, actions=[action], max_minutes=100, report=said.append)
    assert (
        said[-1]
        == "stopped at step 4, having reached its time limit; the checkpoint is saved and the same command resumes from it"
    )
    assert logs["colour_loss"] == metrics(tmp_path)[-1]["colour_loss"]
    model = mean_colour()
    train(model, tmp_path, 10, actions=[action], max_minutes=100)
    assert metrics(tmp_path) == metrics(straight[0])
    assert_equal(state(model), straight[1])


def test_progress_shows_within_an_inner_loop_and_a_signal_ends_it(tmp_path):
    """Steps of a tenth of a second, in an inner loop of a thousand: it is no call of a thousand."""

    def late(batch):
        def wait(step):
            time.sleep(0.1)
            return step

        return {**batch, "step": tf.ensure_shape(tf.numpy_function(wait, [batch["step"]], tf.int64), (4,))}

    said = []

    def report(line):
        said.append(line)
        if line.startswith("step "):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(mean_colour(), tmp_path, 1000, lambda start: dataset(start).map(late), steps_per_loop=1000,
              checkpoint_every_steps=1000, report=report)  # fmt: skip
    assert said[0].startswith("step 1/1000  colour_loss ")
    assert said[1] == "SIGTERM: the run saves and ends after this step; repeat the signal to end it without saving"
    assert written(tmp_path) == ["ckpt-1"] and not (tmp_path / "metrics.jsonl").exists()


# ---------------------------------------------------------------- signals
@pytest.mark.parametrize(
    ("number", "at"), first(2, [(signal.SIGTERM, 2), (signal.SIGTERM, 4), (signal.SIGTERM, 10), (signal.SIGINT, 2)])
)
def test_a_signal_saves_and_stops_even_while_an_action_runs(straight, tmp_path, number, at):
    def interrupt(step, logs):
        if step == at:
            os.kill(os.getpid(), number)

    handler, said = signal.getsignal(number), []
    with pytest.raises(SystemExit) as caught:
        train(mean_colour(), tmp_path, 10, actions=[loop.Action(interrupt, 2)], report=said.append)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is handler
    assert f"stopped at step {at}" in said[-1]
    assert f"ckpt-{at}" in written(tmp_path)
    assert metrics(tmp_path)[-1]["step"] == at
    model = mean_colour()
    train(model, tmp_path, 10)
    assert_equal(state(model), straight[1])


def command(run_dir, steps: int) -> subprocess.Popen:
    """`trainers.navsynth --preset=smoke` in a process of its own."""
    arguments = ["--preset=smoke", f"--run_dir={run_dir}", f"--total_steps={steps}", "--checkpoint_every_steps=20"]
    arguments += ["--deterministic", "--noevaluate", "--strategy=none"]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "trainers.navsynth", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def saved(run_dir) -> dict[str, np.ndarray]:
    """Everything in the last checkpoint."""
    reader = tf.train.load_checkpoint(str(run_dir / "checkpoints"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def wait_for_checkpoint(process: subprocess.Popen, run_dir) -> None:
    """Returns once the run has written a checkpoint that was not there."""
    folder = str(run_dir / "checkpoints")
    before = tf.train.latest_checkpoint(folder)
    while tf.train.latest_checkpoint(folder) == before:
        assert process.poll() is None, f"the run ended before it could be stopped: {finish(process)}"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_process_goes_on_and_equals_a_straight_run_bit_for_bit(tmp_path, number):
    """The same command twice, stopped and to the end; beside one that nobody disturbs."""
    steps, stopped, undisturbed = 240, tmp_path / "stopped", tmp_path / "undisturbed"
    straight = command(undisturbed, steps)

    process = command(stopped, steps)
    wait_for_checkpoint(process, stopped)
    process.send_signal(number)
    code, out, error = finish(process)
    if number == signal.SIGKILL:
        assert code == -number, error
        assert 0 < max(whole_lines(stopped)) < steps
    else:
        assert code == 128 + number, error
        step = int(tf.train.load_variable(str(stopped / "checkpoints"), "step/.ATTRIBUTES/VARIABLE_VALUE"))
        assert f"stopped at step {step} by a signal" in out
        assert metrics(stopped)[-1]["step"] == step < steps

    code, _, error = finish(command(stopped, steps))
    assert code == 0, error
    assert finish(straight)[0] == 0
    assert_equal(saved(stopped), saved(undisturbed))
    assert metrics(stopped) == metrics(undisturbed)


def whole_lines(run_dir) -> list[int]:
    """Steps whose line was not cut off."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]
