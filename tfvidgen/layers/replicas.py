"""What a training step must know of its replicas, so that one device and many see the same numbers."""

from __future__ import annotations

from tfvidgen._tensorflow import tf


def num_replicas() -> int:
    """Replicas in sync. Optimizers sum gradients over them, so a step divides its losses by this."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def step_key(seed: int, step) -> tf.Tensor:
    """int64 (2,): the seed of a stateless draw. A function of (seed, step), so there is no random state to save."""
    return tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])


def replica_slice(values, num_local):
    """This replica's rows of a tensor that was drawn for the global batch.

    Args:
        values: (num_local * num_replicas, ...), the same on every replica.
        num_local: Examples on one replica.

    Returns:
        (num_local, ...).
    """
    first = tf.distribute.get_replica_context().replica_id_in_sync_group * num_local
    return values[first : first + num_local]
