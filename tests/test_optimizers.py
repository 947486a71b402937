"""Adam against Keras's; loss scaling: what optimizers see, what an overflow leaves behind, how the scale finds itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.marks import first
from tfvidgen.layers.draws import replica_normal
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.layers.replicas import micro_batch, num_parts
from tfvidgen.models.base import VideoGenerator
from tfvidgen.optimizers import MAX_SCALE, Adam, LossScaler, StepGuard, pytorch_adam
from trainers import cli
from trainers.engine import checkpoints, loop

pytestmark = pytest.mark.usefixtures("quick_graphs")

SHAPES = {"kernel": (5, 7), "bias": (3,)}


def _in_graph(optimizer, variables):
    return tf.function(lambda gradients: optimizer.apply(gradients, variables))


@pytest.mark.parametrize("options", [{}, {"beta_1": 0.5, "beta_2": 0.99, "weight_decay": 0.01, "clipnorm": 0.1}])
def test_adam_equals_keras(options):
    random = np.random.default_rng(0)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 10)
    sides = []
    for kind in (keras.optimizers.Adam, Adam):
        variables = [keras.Variable(np.ones(shape, np.float32), name=name) for name, shape in SHAPES.items()]
        optimizer = kind(rate, **options)
        optimizer.build(variables)
        sides.append((optimizer, variables, _in_graph(optimizer, variables)))
    for _ in range(6):
        gradients = [tf.constant(random.normal(size=shape), tf.float32) for shape in SHAPES.values()]
        for *_, apply in sides:
            apply(gradients)
    (theirs, expected, _), (ours, values, _) = sides
    assert [v.path.split("/")[-1] for v in ours.variables] == [v.path.split("/")[-1] for v in theirs.variables]
    for a, b in zip([*expected, *theirs.variables], [*values, *ours.variables], strict=True):
        np.testing.assert_allclose(b.value, a.value, rtol=1e-5, atol=1e-7)


def test_pytorch_s_epsilon_is_added_after_bias_correction():
    """By hand, as PyTorch documents it. Gradients as small as epsilon tell the places apart: Keras's steps are shorter."""
    gradients = np.array([[1e-8, -1e-7, 1e-3], [2e-8, 1e-7, -2e-3]], np.float32)
    sides = {
        "after": (pytorch_adam(0.1), 1e-8, lambda correction: 1.0),
        "before": (pytorch_adam(0.1, corrected_epsilon=False), 1e-8, lambda correction: correction**-0.5),
        "keras": (Adam(0.1), 1e-7, lambda correction: correction**-0.5),
    }
    values = {}
    for name, (optimizer, epsilon, scale) in sides.items():
        variable = keras.Variable(np.zeros(3, np.float32))
        m, v, expected = np.zeros(3), np.zeros(3), np.zeros(3)
        for t, gradient in enumerate(gradients.astype(np.float64), 1):
            optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            correction = 1 - 0.999**t
            expected -= 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / correction) + epsilon * scale(correction))
        np.testing.assert_allclose(variable, expected, rtol=2e-4)
        values[name] = np.abs(variable.numpy())
    assert values["after"][0] > 5 * values["before"][0] > 20 * values["keras"][0]
    assert keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(pytorch_adam(0.1)), custom_objects={"Adam": Adam}
    ).corrected_epsilon
    with pytest.raises(ValueError, match="not available with amsgrad"):
        pytorch_adam(0.1, amsgrad=True)


def test_sparse_gradients_move_what_dense_ones_do():
    rows = keras.Variable(np.ones((4, 3), np.float32)), keras.Variable(np.ones((4, 3), np.float32))
    sparse = tf.IndexedSlices(tf.constant([[1.0, 2, 3], [4, 5, 6]]), tf.constant([2, 0]), tf.constant([4, 3]))
    for variable, gradient in zip(rows, (sparse, tf.convert_to_tensor(sparse)), strict=True):
        optimizer = pytorch_adam(0.1)
        for _ in range(2):
            optimizer.apply([gradient], [variable])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0][1], np.ones(3))


# ---------------------------------------------------------------- loss scaling
class TwoStages(VideoGenerator):
    """Two networks that take turns, as generator and discriminator do, over learned codes, an embedding and batch norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.codes = LatentTable(4, (3,), update_rule="adam", learning_rate=0.1, seed=1, name="codes")
        self.labels = keras.layers.Embedding(4, 3, dtype=policy, name="labels")
        self.norm = keras.layers.BatchNormalization(dtype=policy, name="norm")  # lets replicas overflow alone
        draws = [keras.initializers.RandomNormal(seed=seed) for seed in (2, 3)]
        self.first = keras.layers.Dense(3, kernel_initializer=draws[0], dtype=policy, name="first")
        self.second = keras.layers.Dense(3, kernel_initializer=draws[1], dtype=policy, name="second")

    def build(self, input_shape=None):
        self.codes.build()
        self.labels.build((None,))
        for layer in (self.norm, self.first, self.second):
            layer.build((None, 3))
        self.built = True

    def compile(self, first_optimizer, second_optimizer, accumulate=1):
        super().compile(optimizer=first_optimizer, accumulate=accumulate)
        self.first_optimizer, self.second_optimizer = first_optimizer, second_optimizer
        first_optimizer.build(self.first_variables)
        second_optimizer.build(self.second.trainable_variables)

    @property
    def first_variables(self):
        return [v for layer in (self.labels, self.norm, self.first) for v in layer.trainable_variables]

    def _loss(self, codes, batch):
        x = self.first(self.norm(codes + tf.cast(self.labels(batch["id"]), tf.float32), training=True))
        return tf.reduce_mean(tf.square(tf.cast(self.second(x), tf.float32) - 1.0))

    def train_step(self, batch):
        guard = StepGuard(self)
        codes = self.codes(batch["id"])

        def of_first(codes, batch):
            loss = self._loss(codes, batch)
            return loss * tf.reduce_mean(batch["first_weight"]), {}

        def of_second(codes, batch):
            loss = self._loss(codes["codes"], batch)
            return loss * tf.reduce_mean(batch["second_weight"]), {"square_loss": loss}

        guard.minimise(of_first, self.first_variables, self.first_optimizer, inputs=(codes, batch))
        second = self.second.trainable_variables
        (gradients,), at_codes, logs = guard.gradients(of_second, second, inputs=(batch,), codes={"codes": codes})
        self.second_optimizer.apply(gradients, second)
        guard.update(self.codes, batch["id"], at_codes["codes"], 0)
        return guard.finish(logs)


def two_stages(optimizer=Adam, rate=0.1, accumulate=1, **kwargs) -> TwoStages:
    keras.utils.set_random_seed(3)
    model = TwoStages(**kwargs)
    model.build()
    model.compile(optimizer(rate), optimizer(rate), accumulate)
    return model


def batches(first_weight=1.0, second_weight=1.0, num_steps=1, examples=slice(None), size=4) -> tf.data.Dataset:
    """Global batches. A weight is one number or one per step, and lies on these examples; the others have 1."""
    num_steps = max(num_steps, np.size(first_weight))
    steps = {"id": np.stack([[i % 4, 1, 2, i % 3] * (size // 4) for i in range(num_steps)]).astype(np.int32)}
    for name, weight in (("first_weight", first_weight), ("second_weight", second_weight)):
        steps[name] = np.ones((num_steps, size), np.float32)
        steps[name][:, examples] = np.reshape(weight, (-1, 1))
    return tf.data.Dataset.from_tensor_slices(steps)


def stepper(model, strategy=None):
    """A function that trains a model on batches and returns the logs of every step."""
    strategy = strategy or tf.distribute.get_strategy()

    @tf.function
    def step(batch):
        logs = strategy.run(model.train_step, args=(batch,))
        return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

    def run(dataset) -> list[dict[str, float]]:
        distributed = strategy.experimental_distribute_dataset(dataset)
        return [{name: float(value) for name, value in step(batch).items()} for batch in distributed]

    return run


def eager_steps(model, dataset) -> list[dict[str, float]]:
    """The logs of a few steps, which is less work than to compile them."""
    return [{name: float(value) for name, value in model.train_step(batch).items()} for batch in dataset]


def everything(model) -> dict[str, np.ndarray]:
    """All state, each replica's copy by itself."""
    copies = {name: getattr(v, "values", [v]) for name, v in checkpoints.model_state(model).items()}
    return {f"{name}@{i}": copy.numpy() for name, values in copies.items() for i, copy in enumerate(values)}


def changed(before, after) -> set[str]:
    assert set(before) == set(after)
    return {name.split("@")[0] for name in before if not np.array_equal(before[name], after[name])}


FIXED = {"first_optimizer.0001", "second_optimizer.0001"}  # learning rates
SCALER = {"loss_scaler.factor", "loss_scaler.good_steps"}


def test_only_float16_has_a_scaler():
    for dtype in ("float32", "mixed_bfloat16"):
        model = two_stages(dtype=dtype)
        assert model.loss_scaler is None and not SCALER & set(checkpoints.model_state(model))
        [logs] = eager_steps(model, batches())
        assert set(logs) == {"square_loss"}
    assert SCALER <= set(checkpoints.model_state(two_stages(dtype="mixed_float16")))


@pytest.mark.parametrize("scale", first(1, [2.0**4, 2.0**12]))
def test_optimizers_and_rows_see_gradients_of_the_loss_itself(scale):
    """Under SGD a step is proportional to the gradient, so a scale that was left in would show."""
    states = []
    for dtype in ("float32", "mixed_float16"):
        model = two_stages(keras.optimizers.SGD, rate=0.5, dtype=dtype)
        if model.loss_scaler is not None:
            model.loss_scaler.factor.assign(scale)
        before = everything(model)
        eager_steps(model, batches(num_steps=3))
        states.append({name: value - before[name] for name, value in everything(model).items()})
    expected, moved = states
    for name in set(expected) - {f"{fixed}@0" for fixed in FIXED}:
        size = np.abs(expected[name]).max()
        assert size > 0, name
        np.testing.assert_allclose(moved[name], expected[name], atol=0.1 * size, err_msg=name)


def test_scaling_keeps_gradients_that_float16_cannot_hold():
    """A loss of 1e-8 moves nothing unscaled, and everything scaled."""
    moved = []
    for scale in (1.0, 2.0**15):
        model = two_stages(keras.optimizers.SGD, rate=1e8, dtype="mixed_float16")
        model.loss_scaler.factor.assign(scale)
        before = model.first.kernel.numpy()
        eager_steps(model, batches(1e-8, 1e-8))
        moved.append(np.abs(model.first.kernel.numpy() - before).max())
    assert moved[0] == 0 and moved[1] > 1e-4


@pytest.mark.parametrize(
    ("replicas", "accumulate"),
    [("one", 1), *(pytest.param("two", i, marks=pytest.mark.long) for i in (1, 2)), ("one", 2)],
)
def test_an_overflow_in_any_stage_on_any_replica_leaves_no_trace_but_a_smaller_scale(
    replicas, accumulate, two_replicas
):
    strategy = two_replicas if replicas == "two" else tf.distribute.get_strategy()
    with strategy.scope():
        model = two_stages(accumulate=accumulate, dtype="mixed_float16")
    size = 8 if (replicas, accumulate) == ("two", 2) else 4  # batch norm needs two examples
    run = stepper(model, strategy)
    run(batches(num_steps=2, size=size))  # all slots hold something
    scale = 2.0**15
    for stage in ("first_weight", "second_weight"):
        before = everything(model)
        # only the last replica's last micro-batch sees this weight, which times the scale is more than float16 holds
        [logs] = run(batches(**{stage: 1e6}, examples=slice(size - 2, None), size=size))
        after = everything(model)
        assert logs["skipped"] == 1 and logs["loss_scale"] == scale
        assert np.isfinite(logs["square_loss"])
        assert changed(before, after) == SCALER
        scale /= 2
        assert float(model.loss_scaler.factor.numpy()) == scale and int(model.loss_scaler.good_steps.numpy()) == 0
        [logs] = run(batches(size=size))
        assert logs["skipped"] == 0 and logs["loss_scale"] == scale
        assert changed(after, everything(model)) == set(checkpoints.model_state(model)) - FIXED - {"loss_scaler.factor"}
    if replicas == "two":
        state = everything(model)
        own = {"norm.moving_mean", "norm.moving_variance"}  # this batch norm is not synchronised
        for name in set(checkpoints.model_state(model)) - own:
            np.testing.assert_array_equal(state[f"{name}@0"], state[f"{name}@1"], err_msg=name)


def test_the_scale_falls_until_gradients_fit_and_training_goes_on():
    model = two_stages(dtype="mixed_float16")
    logs = stepper(model)(batches(3e3, 3e3, num_steps=30))
    skipped = [int(step["skipped"]) for step in logs]
    assert 2 <= sum(skipped) < 15 and skipped == sorted(skipped, reverse=True)
    assert logs[-1]["loss_scale"] == 2.0 ** (15 - sum(skipped)) > 1
    assert logs[-1]["square_loss"] < 0.5 * logs[0]["square_loss"]
    assert int(model.first_optimizer.iterations.numpy()) == 30 - sum(skipped)


def test_gradients_that_never_fit_are_said_to_be_hopeless():
    model = two_stages(dtype="mixed_float16")
    model.loss_scaler.factor.assign(2.0)
    before = everything(model)
    logs = eager_steps(model, batches(np.inf, num_steps=3))
    assert logs[0]["loss_scale"] == 2.0
    assert all(np.isnan(step["loss_scale"]) for step in logs[1:])
    assert changed(before, everything(model)) == {"loss_scaler.factor"}
    assert float(model.loss_scaler.factor.numpy()) == 1.0


def test_the_scale_grows_after_good_steps_up_to_a_limit():
    scaler = LossScaler(initial_scale=MAX_SCALE / 2, growth_steps=3)
    scales = []
    for finite in (True, True, True, True, False, True, True, True, True, True, True):
        scaler.adapt(tf.constant(finite))
        scales.append(float(scaler.factor.numpy()) / MAX_SCALE)
    assert scales == [0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 1]


@pytest.mark.long
def test_a_resumed_run_goes_on_with_its_scale(tmp_path):
    weights = [1e6, 1.0, 1e6, 1.0, 1.0, 1e6]

    def train(folder, steps):
        model = two_stages(dtype="mixed_float16")
        loop.run(
            model,
            lambda start: batches(weights).skip(start),
            folder,
            steps,
            steps_per_loop=1,
            checkpoint_every_steps=2,
            report=lambda line: None,
        )
        return everything(model)

    straight = train(tmp_path / "straight", 6)
    train(tmp_path / "resumed", 4)
    resumed = train(tmp_path / "resumed", 6)
    assert straight["loss_scaler.factor@0"] == 2.0**12
    assert changed(straight, resumed) == set()


@pytest.mark.parametrize(("arguments", "message"), [({"initial_scale": 0.5}, "0.5"), ({"growth_steps": 0}, "=0")])
def test_a_scaler_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"initial_scale.*{message}"):
        LossScaler(**arguments)


# ---------------------------------------------------------------- parts of a batch
def test_a_run_whose_batch_has_no_such_parts_is_refused():
    with pytest.raises(cli.UsageError, match=r"--accumulate=4 .*--accumulate one of 1, 2, 3, 6, or .* multiple of 4\."):
        cli.accumulate(cli.RunConfig(batch_size=6, accumulate=4))


def test_a_run_divides_its_batch_by_replicas_too(two_replicas):
    config = cli.RunConfig(batch_size=4, accumulate=4)
    assert cli.accumulate(config) == 4
    with two_replicas.scope(), pytest.raises(cli.UsageError, match="2 replica.*--accumulate one of 1, 2, or"):
        cli.accumulate(config)


def test_rows_of_all_micro_batches_are_applied_once():
    """SGD of codes that come in both micro-batches: gradients of duplicates are summed, and one step is counted."""
    moved = []
    for accumulate in (1, 2):
        model = two_stages(keras.optimizers.SGD, accumulate=accumulate)
        model.norm.trainable = False  # divides by its moving statistics
        eager_steps(model, batches(num_steps=1))  # rows 0, 1, 2, 0
        moved.append(everything(model))
    for name, value in moved[0].items():
        np.testing.assert_allclose(moved[1][name], value, atol=1e-6, rtol=0, err_msg=name)
    np.testing.assert_array_equal(moved[1]["codes.num_updates@0"], [1, 1, 1, 0])


def test_a_micro_batch_draws_its_part_of_the_global_draw(two_replicas):
    key = tf.constant([1, 2], tf.int64)

    def draw():
        parts = []
        for index in range(3):
            with micro_batch(index, 3):
                assert num_parts() == 6
                parts.append(replica_normal(key, (2, 5)))
        return tf.concat(parts, 0)

    parts = two_replicas.experimental_local_results(two_replicas.run(draw))
    np.testing.assert_array_equal(tf.concat(parts, 0), replica_normal(key, (12, 5)))
    assert num_parts() == 1
