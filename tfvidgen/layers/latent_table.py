"""Learned latent codes: a table whose rows are trained jointly with the networks."""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
from keras import ops

from tfvidgen._tensorflow import tf

_SLOTS = {"adam": ("first_moment", "second_moment"), "momentum": ("velocity",), "sgd": (), "none": ()}
PROJECTIONS = ("unit_ball", "unit_sphere", "none")
_EPSILON = 1e-8
_HOST = "CPU:0"


def _create_on_host(next_creator, **arguments):
    """Variable creator: one plain variable in host memory, even where a strategy would mirror it on every replica."""

    def create():
        with tf.device(_HOST):
            return tf.Variable(arguments["initial_value"], trainable=False, dtype=arguments["dtype"])

    with concurrent.futures.ThreadPoolExecutor(1) as outside_scope:  # a strategy's scope is thread-local
        return outside_scope.submit(create).result()


class _Average(NamedTuple):
    """State of the moving average of a table's rows, see `LatentTable.keep_average`."""

    decay: float
    num_steps: tf.Variable
    sums: tf.Variable
    since: tf.Variable


class LatentTable(keras.layers.Layer):
    """One learned code per row; the layer owns the rows and their update rule.

    A training step gathers the rows of its batch, computes gradients with respect to them and passes both to `update`. Only
    those rows are read, updated and projected, so the cost of a step does not depend on the size of the table. A row that
    occurs twice in a batch is updated once, with the sum of its gradients. Under a strategy, the rows of all replicas are
    applied once, on every replica. Rows and slots are weights, so they are checkpointed.

    Memory is num_rows x (1 + slots) codes in float32 on every replica: two slots for `adam` (plus one count per row), one
    for `momentum`, none for `sgd`. Initialisation takes another num_rows codes.

    `host_memory=True` is for tables larger than device memory. Rows and slots are then stored once, in host memory, for all
    devices of the host; a step transfers its batch's codes to the devices and their gradients back, and the update rule
    runs on the host. Each process of a multi-worker run holds its own table, so set a `seed`: nothing else makes their
    initial rows equal. Tested on logical CPU devices; not on a GPU.

    Args:
        num_rows: Codes in the table.
        shape: Shape of one code, e.g. `(D,)` or `(T, D)`; vectors along the last axis are projected.
        learning_rate: Float, or a `keras.optimizers.schedules.LearningRateSchedule` of the training step.
        update_rule: `adam` (lazy: a row's moments and step count change only when the row is used), `momentum`, `sgd`, or
            `none` for rows that keep their initial values.
        projection: After every update, each vector is projected onto the `unit_ball` (z / max(1, |z|)) or the `unit_sphere`
            (z / |z|), or left unchanged (`none`).
        rank: Truncates each row's (T, D) matrix to this rank by SVD, before the projection (which only scales vectors and
            so preserves the rank). None for full rank.
        initial_stddev: Rows are initialised from N(0, initial_stddev^2), then projected.
        beta_1, beta_2: Decay rates of Adam's moments; `beta_1` is the momentum of `momentum`.
        seed: Seed of the initial rows.
        host_memory: Keeps rows and slots in host memory, see above.

    Call arguments:
        row_ids: int (B,), each in 0..num_rows-1.

    Output shape: (B, *shape), float32.

    Raises:
        ValueError: If an argument is out of range, or `rank` is given but rows are not matrices.

    Source: projection and learned codes from Bojanowski et al., ICML 2018 (GLO); rank constraint from Aich et al., CVPR
        2020, Eq. 7.
    """

    def __init__(
        self,
        num_rows: int,
        shape: Sequence[int],
        learning_rate=0.02,
        update_rule: str = "adam",
        projection: str = "unit_ball",
        rank: int | None = None,
        initial_stddev: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        seed: int | None = None,
        host_memory: bool = False,
        **kwargs,
    ):
        kwargs["dtype"] = "float32"  # codes stay exact under any precision policy
        super().__init__(trainable=False, **kwargs)
        shape = tuple(int(size) for size in shape)
        if num_rows < 1 or not shape or min(shape) < 1:
            raise ValueError(
                f"A table needs at least one row of positive size. Received num_rows={num_rows}, shape={shape}."
            )
        if update_rule not in _SLOTS:
            raise ValueError(f"`update_rule` must be one of {tuple(_SLOTS)}. Received {update_rule!r}.")
        if projection not in PROJECTIONS:
            raise ValueError(f"`projection` must be one of {PROJECTIONS}. Received {projection!r}.")
        if rank is not None and (len(shape) != 2 or not 1 <= rank <= min(shape)):
            raise ValueError(
                f"`rank` needs rows of shape (T, D) and must lie in 1..min(T, D). Received rank={rank}, shape={shape}."
            )
        self.num_rows, self.row_shape = int(num_rows), shape
        self.learning_rate, self.update_rule, self.projection, self.rank = learning_rate, update_rule, projection, rank
        self.initial_stddev, self.beta_1, self.beta_2, self.seed = float(initial_stddev), beta_1, beta_2, seed
        self.host_memory = host_memory
        self._average: _Average | None = None
        if host_memory and keras.config.backend() != "tensorflow":
            raise ValueError(
                f"`host_memory` places variables, which needs the TensorFlow backend. The backend is {keras.config.backend()}: "
                "leave host_memory=False."
            )

    def build(self, input_shape=None):
        with self._placed():
            self._add_weights()
        self.built = True

    def _placed(self):
        return tf.variable_creator_scope(_create_on_host) if self.host_memory else contextlib.nullcontext()

    def _add_weights(self):
        full = (self.num_rows, *self.row_shape)
        draw = keras.initializers.RandomNormal(stddev=self.initial_stddev, seed=self.seed)
        self.rows = self.add_weight(
            name="rows", shape=full, trainable=False, initializer=lambda shape, dtype: self.project(draw(shape, dtype))
        )
        self.slots = [
            self.add_weight(name=name, shape=full, initializer="zeros", trainable=False)
            for name in _SLOTS[self.update_rule]
        ]
        if self.update_rule == "adam":
            self.num_updates = self.add_weight(
                name="num_updates", shape=(self.num_rows,), initializer="zeros", trainable=False
            )

    def call(self, row_ids):
        if self.host_memory:
            with tf.device(_HOST):
                codes = tf.raw_ops.ResourceGather(resource=self.rows.value.handle, indices=row_ids, dtype=tf.float32)
            return tf.identity(codes)  # copied to the calling device
        if keras.config.backend() == "tensorflow" and not tf.distribute.in_cross_replica_context():
            # Gathers from the variable itself, on this replica. `ops.take` first reads it as a tensor, which after a
            # scatter update copies the whole table every time.
            return tf.raw_ops.ResourceGather(resource=self.rows.value.handle, indices=row_ids, dtype=tf.float32)
        return ops.take(self.rows, row_ids, axis=0)

    def project(self, rows):
        """Applies the rank and norm constraints to rows (..., *shape)."""
        if self.rank is not None:
            # Eq. 7: reconstruct from the top singular vectors
            u, s, v = ops.svd(rows, full_matrices=False)
            rows = ops.matmul(u[..., : self.rank] * s[..., None, : self.rank], v[..., : self.rank, :])
        if self.projection == "none":
            return rows
        norm = ops.sqrt(ops.sum(ops.square(rows), axis=-1, keepdims=True))
        if self.projection == "unit_ball":
            return rows / ops.maximum(norm, 1.0)
        return rows / ops.maximum(norm, _EPSILON)

    def keep_average(self, decay: float, num_steps: tf.Variable) -> dict[str, tf.Variable]:
        """Starts tracking the state of an exponential moving average (EMA) of all rows over all steps.

        A row is constant between the steps that use it, so those steps are accumulated at once, just before its next
        update: this gives the EMA of every row over every step, at the cost of the batch's rows. With `kept` =
        `decay` ** (`num_steps` - `since`) the weighted sum of a row z is `kept` * `sums` + (1 - `kept`) * z, and its weights
        add up to 1 - `decay` ** `num_steps`.

        Args:
            decay: In (0, 1).
            num_steps: float32 scalar, the number of completed steps, incremented by the caller. It must be created, and this
                method called, in the strategy's scope.

        Returns:
            `sums`, float32 (num_rows, *shape), and `since`, float32 (num_rows,): the number of steps already in each row's
            sum.
        """
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        with self._placed():
            sums, since = (
                tf.Variable(tf.zeros(shape), trainable=False, dtype=tf.float32, aggregation=first)
                for shape in (self.rows.shape, (self.num_rows,))
            )
        self._average = _Average(decay, num_steps, sums, since)
        return {"sums": sums, "since": since}

    def update(self, row_ids, gradients, step, keep=None):
        """Applies the gradients of all replicas' rows, once, on every replica. Call it in replica context.

        Args:
            row_ids: int (B,), the rows that were gathered.
            gradients: (B, *shape), of a loss already divided by the number of replicas.
            step: Scalar, the training step; used by learning rate schedules only.
            keep: Scalar bool, the same on all replicas; False leaves rows and slots unchanged. None means True.
        """
        if self.update_rule == "none":
            return
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            row_ids = tf.identity(
                row_ids
            )  # on the replica's device: a tensor of the batch itself has none to gather to
            row_ids, gradients = replica.all_gather(row_ids, axis=0), replica.all_gather(gradients, axis=0)
        replica.merge_call(self._update_everywhere, args=(row_ids, gradients, step, keep))

    def _update_everywhere(self, strategy, row_ids, gradients, step, keep):
        slots = [slot.value for slot in self.slots]
        counts = [self.num_updates.value] if self.update_rule == "adam" else []
        averages = list(self._average[1:]) if self._average else []
        if self.host_memory:  # one table for all replicas, whose gathered rows and gradients are identical
            arguments = (slots, counts, averages, row_ids, gradients, step, keep)
            first = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], arguments)
            with tf.device(_HOST):
                self._move(self.rows.value, *first)
            return
        # `extended.update` takes one variable; the others are on the same devices
        arguments = (slots, counts, averages, row_ids, gradients, step, keep)
        strategy.extended.update(self.rows.value, self._move, args=arguments, group=True)

    def _move(self, rows, slots, counts, averages, row_ids, gradients, step, keep):
        """Applies the update rule to one copy of the table."""
        rate = self.learning_rate(step) if isinstance(self.learning_rate, Callable) else self.learning_rate
        ids, position = tf.unique(row_ids)  # U distinct rows of B
        gradient = tf.math.unsorted_segment_sum(gradients, position, tf.size(ids))  # (U, *shape)
        row, old_slots = tf.gather(rows, ids), [tf.gather(slot, ids) for slot in slots]

        def column(values):  # (U,) -> (U, 1, ...), to broadcast over codes
            return tf.reshape(values, [-1] + [1] * len(self.row_shape))

        if averages:
            num_steps, sums, since = averages
            new = -tf.math.expm1(math.log(self._average.decay) * (num_steps - tf.gather(since, ids)))  # 1 - kept
            old_sums = tf.gather(sums, ids)
            sums.scatter_update(tf.IndexedSlices(old_sums + column(new) * (row - old_sums), ids))
            since.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(ids), tf.convert_to_tensor(num_steps)), ids))

        def write(variable, new, old):
            value = new if keep is None else tf.where(keep, new, old)
            variable.scatter_update(tf.IndexedSlices(value, ids))

        if self.update_rule == "adam":
            old_count = tf.gather(counts[0], ids)
            write(counts[0], old_count + 1.0, old_count)
            t = column(old_count + 1.0)
            first = self.beta_1 * old_slots[0] + (1 - self.beta_1) * gradient
            second = self.beta_2 * old_slots[1] + (1 - self.beta_2) * tf.square(gradient)
            new_slots = [first, second]
            # bias-corrected by the row's own number of updates
            move = (first / (1 - self.beta_1**t)) / (tf.sqrt(second / (1 - self.beta_2**t)) + _EPSILON)
        elif self.update_rule == "momentum":
            move = self.beta_1 * old_slots[0] + gradient
            new_slots = [move]
        else:
            move, new_slots = gradient, []
        write(rows, self.project(row - tf.cast(rate, row.dtype) * move), row)
        for slot, new, old in zip(slots, new_slots, old_slots, strict=True):
            write(slot, new, old)
