"""Lazy rows: only the batch's rows move, duplicates are summed, projections and ranks hold."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.latent_table import LatentTable


def table(num_rows=6, shape=(4,), **kwargs) -> LatentTable:
    kwargs = {"projection": "none", "update_rule": "sgd", "learning_rate": 0.1, "seed": 1, **kwargs}
    layer = LatentTable(num_rows, shape, **kwargs)
    layer.build()
    return layer


def test_only_the_batch_rows_move_and_duplicates_are_summed():
    layer = table()
    before = layer.rows.numpy()
    gradients = np.arange(12, dtype=np.float32).reshape(3, 4)
    layer.update(tf.constant([2, 5, 2]), tf.constant(gradients), 0)
    expected = before.copy()
    expected[2] -= 0.1 * (gradients[0] + gradients[2])
    expected[5] -= 0.1 * gradients[1]
    np.testing.assert_allclose(layer.rows.numpy(), expected, atol=1e-6)


def test_adam_is_lazy_and_equals_keras_adam_on_rows_used_in_every_step():
    layer = table(2, (3,), update_rule="adam", learning_rate=0.05)
    reference = tf.Variable(layer.rows.numpy()[0])
    unused = layer.rows.numpy()[1]
    optimizer = keras.optimizers.Adam(0.05, epsilon=1e-8)
    optimizer.build([reference])
    for i in range(5):
        gradient = tf.constant([1.0, -2.0, 0.5]) * (i + 1)
        optimizer.apply([gradient], [reference])
        layer.update(tf.constant([0]), gradient[None], i)
    np.testing.assert_allclose(layer.rows.numpy()[0], reference.numpy(), atol=1e-6)
    np.testing.assert_array_equal(layer.rows.numpy()[1], unused)  # Keras Adam on a table would go on moving it


def test_momentum_by_hand():
    layer = table(1, (1,), update_rule="momentum", learning_rate=0.5)
    start = layer.rows.numpy()[0, 0]
    for step in range(2):
        layer.update(tf.constant([0]), tf.constant([[1.0]]), step)
    assert layer.rows.numpy()[0, 0] == pytest.approx(start - 0.5 * 1.0 - 0.5 * 1.9, abs=1e-6)


def test_schedule_reads_the_step():
    layer = table(1, (1,), learning_rate=keras.optimizers.schedules.PiecewiseConstantDecay([9], [1.0, 0.0]))
    start = layer.rows.numpy()[0, 0]
    layer.update(tf.constant([0]), tf.constant([[1.0]]), tf.constant(3, tf.int64))
    assert layer.rows.numpy()[0, 0] == pytest.approx(start - 1.0)
    layer.update(tf.constant([0]), tf.constant([[1.0]]), tf.constant(12, tf.int64))
    assert layer.rows.numpy()[0, 0] == pytest.approx(start - 1.0)


@pytest.mark.parametrize("projection", ["unit_ball", "unit_sphere"])
def test_projection_holds_from_the_start_and_after_every_update(projection):
    layer = table(3, (5, 4), projection=projection, initial_stddev=3.0, learning_rate=10.0)
    for step in range(3):
        norms = np.linalg.norm(layer.rows.numpy(), axis=-1)
        assert norms.max() <= 1 + 1e-6
        if projection == "unit_sphere":
            np.testing.assert_allclose(norms, 1.0, atol=1e-6)
        layer.update(tf.constant([0, 1, 2]), tf.random.stateless_normal((3, 5, 4), [1, step]), step)
    inside = table(1, (2,), projection="unit_ball", initial_stddev=0.0)
    inside.update(tf.constant([0]), tf.constant([[-3.0, -4.0]]), 0)
    np.testing.assert_allclose(inside.rows.numpy(), [[0.3, 0.4]], atol=1e-6)  # 0.5 long: left as it is


def test_rank_by_singular_values():
    layer = table(2, (6, 5), rank=2, projection="unit_ball", initial_stddev=1.0)
    layer.update(tf.constant([0, 1]), tf.random.stateless_normal((2, 6, 5), [3, 4]), 0)
    for matrix in layer.rows.numpy():
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert (singular[2:] < 1e-5).all() and singular[1] > 1e-3
    full = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    u, s, v = np.linalg.svd(full, full_matrices=False)
    expected = (u[:, :2] * s[:2]) @ v[:2]
    rows = table(1, (6, 5), rank=2).project(full[None])
    np.testing.assert_allclose(np.asarray(rows)[0], expected, atol=1e-5)


def test_frozen_rows_stay():
    layer = table(update_rule="none")
    before = layer.rows.numpy()
    layer.update(tf.constant([0]), tf.ones((1, 4)), 0)
    np.testing.assert_array_equal(layer.rows.numpy(), before)


def test_replicas_apply_every_row_once_on_all(two_replicas):
    with two_replicas.scope():
        layer = table(4, (2,))
    before = layer.rows.numpy()

    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        ids = tf.stack([replica, 3])  # replica 0 uses rows 0 and 3, replica 1 rows 1 and 3
        layer.update(ids, tf.ones((2, 2)), 0)

    tf.function(lambda: two_replicas.run(step))()
    expected = before - 0.1 * np.array([[1, 1], [1, 1], [0, 0], [2, 2]])
    for values in layer.rows.value.values:
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["adam", "momentum", "sgd"])
def test_an_update_that_is_not_kept_leaves_rows_and_slots(rule):
    layer = table(update_rule=rule)
    ids = tf.constant([2, 5, 2])
    layer.update(ids, tf.ones((3, 4)), 0)
    before = [weight.numpy() for weight in layer.weights]
    layer.update(ids, tf.fill((3, 4), np.inf), 1, keep=tf.constant(False))
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value, err_msg=weight.path)
    layer.update(ids, tf.ones((3, 4)), 1, keep=tf.constant(True))
    again = table(update_rule=rule)
    for step in range(2):
        again.update(ids, tf.ones((3, 4)), step)
    for kept, expected in zip(layer.weights, again.weights, strict=True):
        np.testing.assert_array_equal(kept.numpy(), expected.numpy(), err_msg=kept.path)


# ---------------------------------------------------------------- the average of rows
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("host_memory", [False, True])
def test_rows_that_are_taken_in_late_have_the_average_over_all_steps(replicas, host_memory, two_replicas):
    """Against the definition, in float64, over every row after every step; also a step that was not kept."""
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    decay, used = 0.8, [[0, 1], [0, 0], [0, 1], [1, 1], [0, 1], [0, 3], [0, 1], [1, 0]]  # by the first replica
    with strategy.scope():
        layer = table(6, (2, 3), update_rule="adam", learning_rate=0.3, host_memory=host_memory)
        count = tf.Variable(0.0, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        parts = layer.keep_average(decay, count)

    @tf.function
    def step(ids, keep):
        def replica_step():
            mine = ids + tf.distribute.get_replica_context().replica_id_in_sync_group
            layer.update(mine, tf.sin(9.0 * layer(mine)), 0, keep=keep)

        strategy.run(replica_step)
        count.assign_add(1.0)

    expected = np.zeros((6, 2, 3))
    for i, ids in enumerate(used):
        step(tf.constant(ids), tf.constant(i != 4))
        expected = decay * expected + (1 - decay) * layer.rows.numpy()
    sums, since = parts["sums"].numpy(), parts["since"].numpy()
    kept = (decay ** (len(used) - since)).reshape(-1, 1, 1)
    np.testing.assert_allclose(kept * sums + (1 - kept) * layer.rows.numpy(), expected, atol=1e-6)
    assert since[5] == 0 and since[3] == 5 and since[1] == 7


# ---------------------------------------------------------------- rows in host memory
RULES = ["adam", "momentum", "sgd"]


def move_on_two_replicas(strategy, rule: str, host_memory: bool) -> LatentTable:
    """A table after three steps of rows that both replicas share and rows that they do not."""
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.3])
    with strategy.scope():
        layer = table(4, (3, 2), update_rule=rule, learning_rate=rate, rank=1, host_memory=host_memory, name="codes")

    @tf.function
    def step(number):
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            ids = tf.stack([replica, 3])
            codes = layer(ids)
            layer.update(ids, codes * tf.cast(replica + 1, tf.float32), number)

        strategy.run(replica_step)

    for number in range(3):
        step(tf.constant(number, tf.int64))
    return layer


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
def test_rows_in_host_memory_move_as_rows_on_every_replica(rule, two_replicas):
    on_host, mirrored = (move_on_two_replicas(two_replicas, rule, host_memory) for host_memory in (True, False))
    assert [weight.path for weight in on_host.weights] == [weight.path for weight in mirrored.weights]
    start = table(4, (3, 2), update_rule=rule, rank=1)
    for weight, expected, first in zip(on_host.weights, mirrored.weights, start.weights, strict=True):
        np.testing.assert_allclose(weight.numpy(), expected.numpy(), atol=1e-6, err_msg=weight.path)
        assert np.abs(weight.numpy() - first.numpy())[[0, 1, 3]].min() > 0


def test_there_is_one_table_in_host_memory_for_all_replicas(two_replicas):
    with two_replicas.scope():
        on_host, mirrored = (table(update_rule="adam", host_memory=host_memory) for host_memory in (True, False))
    for weight in on_host.weights:
        assert not isinstance(weight.value, tf.distribute.DistributedValues)
        assert weight.value.device.endswith("CPU:0")
    for weight in mirrored.weights:
        assert len(weight.value.values) == 2
    np.testing.assert_array_equal(on_host.rows.numpy(), mirrored.rows.numpy())


def test_only_rows_of_the_batch_leave_host_memory():
    """The device that trains is the second processor here; whatever touches the table itself is pinned to the host."""
    layer = table(host_memory=True, update_rule="adam")
    ids = tf.constant([1, 4])

    @tf.function
    def step(ids):
        with tf.device("CPU:1"):
            layer.update(ids, tf.sin(layer(ids)), 0)

    graph = step.get_concrete_function(ids).graph
    tables = {handle.name for handle in graph.internal_captures if handle.dtype == tf.resource}
    assert len(tables) == 4  # rows, two moments, the count
    touching = [op for op in graph.get_operations() if tables & {value.name for value in op.inputs}]
    assert {op.type for op in touching} == {"ResourceGather", "ResourceScatterUpdate"}
    assert all(op.device.endswith("CPU:0") for op in touching)
    [work] = [op for op in graph.get_operations() if op.type == "Sin"]
    assert work.device.endswith("CPU:1")
    with tf.device("CPU:1"):
        assert layer(ids).device.endswith("CPU:1")  # the codes are where they are asked for


def test_a_table_on_the_host_equals_one_on_the_device():
    ids = tf.constant([1, 1, 3])
    tables = [table(host_memory=host_memory, update_rule="adam", projection="unit_ball") for host_memory in (0, 1)]
    for step in range(3):
        for layer in tables:
            layer.update(ids, 1.5 * layer(ids), step)
    for a, b in zip(*(layer.weights for layer in tables), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_rows_stay_float32_under_any_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = table()
        assert layer(np.array([0])).dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "at least one row"),
        ({"shape": ()}, "positive size"),
        ({"update_rule": "lbfgs"}, "update_rule.*adam.*lbfgs"),
        ({"projection": "cube"}, "projection.*unit_ball.*cube"),
        ({"rank": 2}, "rank=2, shape=\\(4,\\)"),
        ({"shape": (3, 4), "rank": 9}, "rank=9"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        table(**arguments)


def test_lookup_never_reads_the_whole_table():
    # After a scatter update TensorFlow answers a read of a variable with a copy of it: 80 ms for a million rows.
    table = LatentTable(10, (4,))
    table.build()
    graph = tf.function(lambda row_ids: table(row_ids)).get_concrete_function(tf.TensorSpec((2,), tf.int32)).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert "ResourceGather" in operations and "ReadVariableOp" not in operations
