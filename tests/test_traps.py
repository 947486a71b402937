"""Ten ways in which TensorFlow and Keras go wrong, most of them silently, and the tests that this library goes another way.

| trap | what keeps out of it | where that is tested |
| --- | --- | --- |
| 1 A seed generator draws the same numbers on every replica | draws are stateless, made for the global batch and sliced | here: test_replicas_see_their_slices_of_one_draw, test_no_draw_has_a_state; tests/conformance/test_contract.py::test_two_replicas_equal_one_device |
| 2 States of seed generators are in no checkpoint | every variable is saved by name | here: test_dropout_and_several_replicas_resume_bit_for_bit |
| 3 Optimizers that are not built before the first step fail on several replicas | `compile` builds them in the strategy's scope | here: test_optimizers_have_their_slots_before_the_first_step |
| 4 XLA over a whole step fails on several replicas, over half of it batch norm drifts apart | nothing is compiled by XLA unless asked for | here: test_replicas_keep_equal_batch_norm_statistics, test_nothing_is_compiled_by_xla |
| 5 XLA makes 3-D convolutions on a CPU 20 to 140 times slower | as 4 | here: test_nothing_is_compiled_by_xla |
| 6 `fit` fails on several workers | it says so and names the loop | tests/models/test_base.py::test_fit_on_many_workers_is_refused_and_names_the_loop |
| 7 Gradient accumulation of Keras fails on several replicas | it is refused by name | here: test_gradient_accumulation_on_replicas_is_refused |
| 8 A distributed iterator cannot be saved | a batch is a function of the step | here: test_dropout_and_several_replicas_resume_bit_for_bit; tests/data/test_batches.py::test_starting_late_equals_skipping |
| 9 Adam of Keras moves rows that a batch does not use, at the cost of the whole table | tables have their own lazy rules | tests/layers/test_latent_table.py::test_adam_is_lazy_and_equals_keras_adam_on_rows_used_in_every_step, tests/layers/test_latent_table.py::test_lookup_never_reads_the_whole_table |
| 10 A weights file that is written in place breaks when its writer is killed | checkpoints take the old one's place when they are whole | tests/trainers/engine/test_loop.py::test_a_stopped_process_goes_on_and_equals_a_straight_run_bit_for_bit, tests/trainers/engine/test_checkpoints.py::test_half_written_checkpoints_are_removed_and_are_no_damage |
"""  # noqa: E501

import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfvidgen
from tests.systems import NUM_FRAMES, SYSTEMS, collection
from tfvidgen import data
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.layers.replicas import num_replicas, replica_slice, step_key
from tfvidgen.models.base import VideoGenerator
from tfvidgen.optimizers import Adam, StepGuard, optimizers_of
from trainers.engine import checkpoints, loop

TESTS = pathlib.Path(__file__).parent
PACKAGE = pathlib.Path(tfvidgen.__file__).parent  # the installed one, wherever the tests lie


class Trapped(VideoGenerator):
    """A small system that holds what the traps are about: dropout, batch norm, codes, and an operation XLA has not."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.codes = LatentTable(len(collection()), (3,), update_rule="adam", seed=1, name="codes")
        self.norm = keras.layers.BatchNormalization(synchronized=True, name="norm")
        self.dropout = keras.layers.Dropout(0.5, seed=5, name="dropout")
        self.colour = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=2), name="colour")

    def build(self, input_shape=None):
        self.codes.build()
        for layer in (self.norm, self.colour):
            layer.build((None, 3))
        self.built = True

    def compile(self, optimizer, **kwargs):
        super().compile(optimizer=optimizer, **kwargs)
        optimizer.build(self.trainable_variables)

    def train_step(self, batch):
        target = tf.reduce_mean(tf.cast(batch["video"], tf.float32), [1, 2, 3]) / 255.0
        # the number of each video, by way of its name: XLA knows no strings
        video_id = tf.strings.to_number(tf.strings.as_string(batch["video_id"]), tf.int32)
        guard = StepGuard(self)
        codes, weights = self.codes(video_id), [v.value for v in self.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([codes, weights])
            made = self.colour(self.dropout(self.norm(codes, training=True), training=True))
            loss = tf.reduce_mean(tf.square(made - target))
            total = loss / num_replicas()
        code_gradients, gradients = guard.gradient(tape, total, [codes, weights])
        self.optimizer.apply(gradients, self.trainable_variables)
        guard.update(self.codes, video_id, code_gradients, batch["step"][0])
        return guard.finish({"colour_loss": loss})


def trapped(strategy=None, optimizer=lambda: Adam(0.05), **compile_with) -> Trapped:
    with (strategy or tf.distribute.get_strategy()).scope():
        model = Trapped()
        model.build()
        model.compile(optimizer(), **compile_with)
    return model


def dataset(start_step: int = 0) -> tf.data.Dataset:
    return data.make_dataset(collection(), 4, NUM_FRAMES, seed=7, start_step=start_step)


def train(model, folder, steps, strategy=None, **arguments):
    arguments = {"steps_per_loop": 2, "checkpoint_every_steps": 2, "report": lambda line: None, **arguments}
    loop.run(model, dataset, folder, steps, strategy, **arguments)


@pytest.fixture(scope="module")
def mirrored_run(tmp_path_factory, two_replicas):
    """(folder as it was after two steps, model after four) on two replicas."""
    folder = tmp_path_factory.mktemp("mirrored")
    model = trapped(two_replicas)

    def keep(step, logs):
        if step == 2:
            shutil.copytree(folder / "run", folder / "half")

    train(model, folder / "run", 4, two_replicas, actions=[loop.Action(keep, 2)])
    return folder / "half", model


# ---------------------------------------------------------------- 1
def test_replicas_see_their_slices_of_one_draw(two_replicas):
    def draw():
        return replica_slice(tf.random.stateless_normal((2 * num_replicas(), 3), step_key(7, 11)), 2)

    first, second = two_replicas.experimental_local_results(tf.function(lambda: two_replicas.run(draw))())
    assert np.abs(first.numpy() - second.numpy()).min() > 0
    whole = tf.random.stateless_normal((4, 3), step_key(7, 11)).numpy()
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def test_no_draw_has_a_state():
    """Draws with a state are alike on all replicas, or differ from run to run: none in what a training step is made of."""
    stateful = re.compile(
        r"SeedGenerator\(|layers\.(\w*Dropout\w*|Gaussian\w+|Random\w+)\(|"
        r"tf\.random\.(normal|uniform|truncated_normal|shuffle|gamma|poisson|categorical|Generator|set_seed)\b"
    )
    assert stateful.search("x = keras.layers.SpatialDropout3D(0.5)") and stateful.search("tf.random.normal((2,))")
    files = [path for part in ("models", "layers", "losses") for path in (PACKAGE / part).glob("*.py")]
    found = {f"{path.name}: {match[0]}" for path in files for match in stateful.finditer(path.read_text())}
    assert len(files) > 10 and not found


# ---------------------------------------------------------------- 2 and 8
@pytest.mark.long
def test_dropout_and_several_replicas_resume_bit_for_bit(mirrored_run, two_replicas):
    half, straight = mirrored_run
    resumed = trapped(two_replicas)
    names = checkpoints.model_state(resumed)
    assert any(name.startswith("random.") for name in names)
    train(resumed, half, 4, two_replicas)
    for name, variable in checkpoints.model_state(straight).items():
        np.testing.assert_array_equal(names[name].numpy(), variable.numpy(), err_msg=name)


# ---------------------------------------------------------------- 3
@pytest.mark.parametrize("system", {system.model_class: system for system in SYSTEMS}.values(), ids=lambda s: s.name)
def test_optimizers_have_their_slots_before_the_first_step(system):
    model = system.build()
    system.compile(model, keras.optimizers.Adam)
    slots = [variable.shape for optimizer in optimizers_of(model) for variable in optimizer.variables]
    for variable in model.trainable_variables:  # two moments for each
        assert slots.count(variable.shape) >= 2, variable.path
    assert sum(len(shape) > 0 for shape in slots) >= 2 * sum(len(v.shape) > 0 for v in model.trainable_variables)


# ---------------------------------------------------------------- 4 and 5
@pytest.mark.long
def test_replicas_keep_equal_batch_norm_statistics(mirrored_run):
    model = mirrored_run[1]
    assert np.abs(model.norm.moving_mean.numpy()).max() > 0
    for name, variable in checkpoints.model_state(model).items():
        first, second = variable.values
        np.testing.assert_array_equal(first.numpy(), second.numpy(), err_msg=name)


def test_nothing_is_compiled_by_xla(tmp_path):
    """The step has an operation that XLA cannot compile, so it runs where nothing is compiled, and only there."""
    assert not tf.config.optimizer.get_jit()
    train(trapped(), tmp_path, 1)
    model = trapped()
    model.fit(dataset(), steps_per_epoch=1, verbose=0, shuffle=False)
    assert model.jit_compile is False
    compiled = trapped(jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?i)compil|XLA"):
        compiled.fit(dataset(), steps_per_epoch=1, verbose=0, shuffle=False)


# ---------------------------------------------------------------- 7
def test_gradient_accumulation_on_replicas_is_refused(tmp_path, two_replicas):
    def accumulating():
        return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)

    with pytest.raises(ValueError, match="gradient_accumulation_steps=2.*2 replicas.*accumulate=2"):
        train(trapped(two_replicas, accumulating), tmp_path, 1, two_replicas)
    train(trapped(optimizer=accumulating), tmp_path / "one device", 2)


# ---------------------------------------------------------------- the table above
def test_the_table_of_traps_names_tests_that_exist():
    rows = re.findall(r"^\| (\d+) .*\|$", __doc__, re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 11))
    named = set(re.findall(r"(?:(tests/\S+\.py)::)?\b(test_\w+)\b(?!\.py)", __doc__))
    assert len(named) >= 12
    for path, name in named:
        text = (TESTS.parent / path if path else pathlib.Path(__file__)).read_text()
        assert f"def {name}(" in text, f"{path}::{name}"
