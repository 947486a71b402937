"""The compiled part of the loop: where its time goes, and what XLA makes of it."""

import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.systems import NUM_FRAMES, SYSTEMS, collection
from tests.trainers.mean_colour import MeanColour, NormedColour, assert_equal, dataset, lines, mean_colour, state, train
from tfvidgen import data
from trainers.engine import loop
from trainers.engine.progress import Clock
from trainers.engine.steps import Steps


# ---------------------------------------------------------------- time
def slow_dataset(seconds: float):
    """The data, each batch `seconds` late."""

    def wait(step):
        time.sleep(seconds)
        return step

    def dataset_fn(start_step):
        def late(batch):
            step = tf.numpy_function(wait, [batch["step"]], tf.int64)
            return {**batch, "step": tf.ensure_shape(step, batch["step"].shape)}

        return dataset(start_step).map(late)

    return dataset_fn


def test_waiting_for_input_is_told_from_training(tmp_path):
    said = []
    train(mean_colour(), tmp_path / "slow", 12, slow_dataset(0.1), steps_per_loop=6, report=said.append)
    train(mean_colour(), tmp_path / "fast", 12, steps_per_loop=6, checkpoint_every_steps=6)
    slow, fast = (lines(tmp_path / name)[-1]["seconds"] for name in ("slow", "fast"))
    assert set(slow) == set(fast) == {"input", "step", "rest"}
    assert slow["input"] > 0.25 > fast["input"]  # six late batches; some were made during the checkpoint
    assert slow["input"] > slow["step"]
    assert all(seconds >= 0 for parts in (slow, fast) for seconds in parts.values())
    assert said[-1].split(": ")[1].startswith("input wait ") and ", the rest " in said[-1]


SHARE = """
import time, keras, tensorflow as tf
from tests.systems import NUM_FRAMES, SYSTEMS, collection
from tfvidgen import data
from trainers.engine.steps import Steps
tf.config.threading.set_inter_op_parallelism_threads(1)
model = SYSTEMS[0].build()
SYSTEMS[0].compile(model, keras.optimizers.SGD)
iterator = iter(data.make_dataset(collection(), 4, NUM_FRAMES, seed=7).take(1).cache().repeat())
steps = Steps(model, tf.distribute.get_strategy())
steps(iterator, 1)
begin = time.monotonic()
print(steps(iterator, 20).input_seconds / (time.monotonic() - begin))
"""


@pytest.mark.long
def test_steps_are_not_taken_for_input_with_one_thread_between_operations():
    """TensorFlow then runs one operation after another, and the closing time stamp waited behind the whole step."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", SHARE], capture_output=True, text=True, env=environment, check=True)
    assert 0.0 < float(done.stdout) < 0.5  # it was 0.98, and is 0.02


def test_checkpoints_and_actions_are_the_rest(tmp_path):
    def act(step, logs):
        time.sleep(0.3)

    train(mean_colour(), tmp_path, 4, actions=[loop.Action(act, 2)])
    assert lines(tmp_path)[1]["seconds"]["rest"] > 0.3 > lines(tmp_path)[1]["seconds"]["step"]


def test_a_clock_that_cannot_see_the_input_says_less():
    clock = Clock()
    clock.steps_begin()
    time.sleep(0.02)
    parts = clock.steps_end(float("nan"))
    assert set(parts) == {"step", "rest"} and parts["step"] >= 0.02
    assert "steps" in clock.summary() and "input" not in clock.summary()
    clock.steps_begin()
    time.sleep(0.02)
    parts = clock.steps_end(0.015)
    assert parts["input"] == 0.015 and 0.005 <= parts["step"] < 0.5


def test_steps_stop_after_a_bad_one():
    def spoil(batch):
        video = tf.cast(batch["video"], tf.float32)
        return {**batch, "video": tf.where(batch["step"][0] == 3, video * np.nan, video)}

    taken = Steps(mean_colour(), tf.distribute.get_strategy())(iter(dataset(0).map(spoil)), 10)
    assert (taken.num_steps, taken.is_good) == (4, False)
    assert np.isnan(taken.last["colour_loss"]) and np.isfinite(taken.last["code_size"])


# ---------------------------------------------------------------- XLA
class VolumeColour(MeanColour):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.volume = keras.layers.Conv3D(2, 3, name="volume")

    def build(self, input_shape=None):
        self.volume.build((None, None, None, None, 3))
        super().build()

    def train_step(self, batch):
        seen = tf.reduce_mean(self.volume(tf.cast(batch["video"], tf.float32)))
        return {**super().train_step(batch), "seen": seen}


class WordyColour(MeanColour):
    def train_step(self, batch):
        words = tf.strings.as_string(batch["video_id"])
        return {**super().train_step(batch), "length": tf.reduce_mean(tf.cast(tf.strings.length(words), tf.float32))}


def compiled(model_class) -> MeanColour:
    keras.utils.set_random_seed(3)
    model = model_class()
    model.build()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return model


@pytest.mark.long
def test_xla_agrees_with_tensorflow_in_weights_and_batch_norm_statistics(tmp_path):
    states = []
    for xla in (False, True):
        model = compiled(NormedColour)
        train(model, tmp_path / str(xla), 6, xla=xla)
        states.append(state(model))
    assert np.abs(states[0]["norm.moving_mean"]).max() > 0.01  # they have moved
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.long
def test_a_run_may_go_on_without_xla(tmp_path):
    train(compiled(NormedColour), tmp_path, 2, xla=True)
    resumed, straight = compiled(NormedColour), compiled(NormedColour)
    train(resumed, tmp_path, 4)
    train(straight, tmp_path / "straight", 4)
    for name, value in state(straight).items():
        np.testing.assert_allclose(state(resumed)[name], value, atol=1e-6, err_msg=name)


def test_xla_is_for_one_device(tmp_path, two_replicas):
    with two_replicas.scope():
        model = mean_colour()
    with pytest.raises(
        ValueError, match="XLA compiles the step for a single device only. Received 2 replicas.*strategy=none"
    ):
        train(model, tmp_path, 2, strategy=two_replicas, xla=True)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="only refused without a GPU")
def test_xla_is_refused_for_volumes_on_a_cpu(tmp_path):
    model = compiled(VolumeColour)
    before = state(model)
    with pytest.raises(ValueError, match="3-D convolutions on a CPU 20 to 140 times slower.*leave out --xla"):
        train(model, tmp_path, 2, xla=True)
    assert_equal(state(model), before)
    train(model, tmp_path, 2)


def test_what_xla_cannot_compile_is_said(tmp_path):
    with pytest.raises(ValueError, match="XLA cannot compile this system's step here: leave out --xla"):
        train(compiled(WordyColour), tmp_path, 2, xla=True)
    train(compiled(WordyColour), tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "system", [s for s in SYSTEMS if s.name.startswith("navsynth")], ids=lambda system: system.name
)
def test_xla_trains_navsynth_as_tensorflow_does(system, tmp_path):
    states = []
    for xla in (False, True):
        keras.utils.set_random_seed(3)
        model = system.build()
        system.compile(model, lambda rate: keras.optimizers.SGD(rate, momentum=0.9))

        def batches(start_step):
            return data.make_dataset(collection(), 4, NUM_FRAMES, seed=7, start_step=start_step)

        train(model, tmp_path / str(xla), 4, batches, xla=xla)
        states.append(state(model))
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, atol=1e-5, rtol=0, err_msg=name)
