"""Learned codes: a table whose rows are trained along with the networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
from keras import ops

from tfvidgen._tensorflow import tf

_SLOTS = {"adam": ("first_moment", "second_moment"), "momentum": ("velocity",), "sgd": (), "none": ()}
PROJECTIONS = ("unit_ball", "unit_sphere", "none")
_EPSILON = 1e-8


class LatentTable(keras.layers.Layer):
    """One learned code per row; the layer owns the rows and the rule that moves them.

    A training step gathers the rows of its batch, takes gradients at the gathered rows and hands both to `update`. Only
    those rows are read, moved and projected, so a step costs the same for a hundred rows and for a million. A row that
    comes twice in a batch moves once, by the sum of its gradients. Under a strategy the rows of all replicas are applied
    once, on every replica. Rows and slots are weights, so a checkpoint holds them.

    Args:
        num_rows: Codes in the table.
        shape: Shape of one code; its last axis is the vector that is projected, e.g. `(D,)` or `(T, D)`.
        learning_rate: Float, or a `keras.optimizers.schedules.LearningRateSchedule` of the training step.
        update_rule: `adam` (lazy: a row's moments and step count move only when the row is used), `momentum`, `sgd`, or
            `none` for rows that stay as they were drawn.
        projection: After every update each vector is put into the `unit_ball` (z / max(1, |z|)), onto the
            `unit_sphere` (z / |z|), or left alone (`none`).
        rank: Keeps each row's (T, D) matrix at this rank through its singular value decomposition, before the
            projection (which only scales vectors, so the rank stays). None for full rank.
        initial_stddev: Rows start as N(0, initial_stddev^2), projected.
        beta_1, beta_2: Decay rates of Adam's moments; `beta_1` is the momentum of `momentum`.
        seed: Seed of the initial rows.

    Call arguments:
        row_ids: int (B,), each in 0..num_rows-1.

    Output shape: (B, *shape), float32.

    Raises:
        ValueError: If an argument is out of range, or `rank` is asked for where a row is not a matrix.

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
                f"`rank` needs rows of shape (T, D) and lies in 1..min(T, D). Received rank={rank}, shape={shape}."
            )
        self.num_rows, self.row_shape = int(num_rows), shape
        self.learning_rate, self.update_rule, self.projection, self.rank = learning_rate, update_rule, projection, rank
        self.initial_stddev, self.beta_1, self.beta_2, self.seed = float(initial_stddev), beta_1, beta_2, seed

    def build(self, input_shape=None):
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
        self.built = True

    def call(self, row_ids):
        if keras.config.backend() == "tensorflow" and not tf.distribute.in_cross_replica_context():
            # From the variable itself, on this replica. `ops.take` reads it as a tensor first, and after a scatter update
            # TensorFlow answers every such read with a copy of the whole table.
            return tf.raw_ops.ResourceGather(resource=self.rows.value.handle, indices=row_ids, dtype=tf.float32)
        return ops.take(self.rows, row_ids, axis=0)

    def project(self, rows):
        """Applies the rank and norm constraints to rows (..., *shape)."""
        if self.rank is not None:
            # Eq. 7: rebuild from the top singular vectors
            u, s, v = ops.svd(rows, full_matrices=False)
            rows = ops.matmul(u[..., : self.rank] * s[..., None, : self.rank], v[..., : self.rank, :])
        if self.projection == "none":
            return rows
        norm = ops.sqrt(ops.sum(ops.square(rows), axis=-1, keepdims=True))
        if self.projection == "unit_ball":
            return rows / ops.maximum(norm, 1.0)
        return rows / ops.maximum(norm, _EPSILON)

    def update(self, row_ids, gradients, step):
        """Moves this replica's rows along their gradients, once, on every replica. Call it in replica context.

        Args:
            row_ids: int (B,), the rows that were gathered.
            gradients: (B, *shape), of a loss that is already divided by the number of replicas.
            step: Scalar, the training step; only a learning rate schedule reads it.
        """
        if self.update_rule == "none":
            return
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            row_ids, gradients = replica.all_gather(row_ids, axis=0), replica.all_gather(gradients, axis=0)
        replica.merge_call(self._update_everywhere, args=(row_ids, gradients, step))

    def _update_everywhere(self, strategy, row_ids, gradients, step):
        rate = self.learning_rate(step) if isinstance(self.learning_rate, Callable) else self.learning_rate
        counts = [self.num_updates.value] if self.update_rule == "adam" else []

        def apply(rows, slots, counts, row_ids, gradients, rate):
            ids, position = tf.unique(row_ids)
            gradient = tf.math.unsorted_segment_sum(gradients, position, tf.size(ids))
            row, old_slots = tf.gather(rows, ids), [tf.gather(slot, ids) for slot in slots]
            if self.update_rule == "adam":
                count = tf.gather(counts[0], ids) + 1.0
                counts[0].scatter_update(tf.IndexedSlices(count, ids))
                t = tf.reshape(count, [-1] + [1] * len(self.row_shape))
                first = self.beta_1 * old_slots[0] + (1 - self.beta_1) * gradient
                second = self.beta_2 * old_slots[1] + (1 - self.beta_2) * tf.square(gradient)
                new_slots = [first, second]
                move = (first / (1 - self.beta_1**t)) / (tf.sqrt(second / (1 - self.beta_2**t)) + _EPSILON)
            elif self.update_rule == "momentum":
                move = self.beta_1 * old_slots[0] + gradient
                new_slots = [move]
            else:
                move, new_slots = gradient, []
            rows.scatter_update(tf.IndexedSlices(self.project(row - tf.cast(rate, row.dtype) * move), ids))
            for slot, value in zip(slots, new_slots, strict=True):
                slot.scatter_update(tf.IndexedSlices(value, ids))

        # one variable leads `extended.update`; its siblings live on the same devices
        strategy.extended.update(
            self.rows.value,
            apply,
            args=([slot.value for slot in self.slots], counts, row_ids, gradients, rate),
            group=True,
        )
