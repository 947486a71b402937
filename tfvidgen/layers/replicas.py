"""Replica and micro-batch context of a training step, so that results do not depend on how many there are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tfvidgen._tensorflow import tf


class _MicroBatch(threading.local):
    """Index and number of the micro-batch that this thread (one per replica) is computing."""

    index, count = 0, 1


_current = _MicroBatch()


@contextlib.contextmanager
def micro_batch(index: int, count: int) -> Iterator[None]:
    """Context in which draws and losses are those of micro-batch `index` of `count` on each replica."""
    before = _current.index, _current.count
    _current.index, _current.count = index, count
    try:
        yield
    finally:
        _current.index, _current.count = before


def num_replicas() -> int:
    """Number of replicas in sync, over which optimizers sum gradients."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def num_parts() -> int:
    """Replicas times micro-batches: equal parts of the global batch whose gradients are summed, so losses are divided by it."""
    return num_replicas() * _current.count


def step_key(seed: int, step) -> tf.Tensor:
    """Key of a stateless draw, int64 (2,). A pure function of (seed, step), so there is no random state to save."""
    return tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])


def sampling_key(seed) -> tf.Tensor:
    """Key of draws outside of training, int64 (2,): never that of a `step_key`, whose step is not negative.

    Args:
        seed: Int, or a scalar tensor.
    """
    return tf.stack([tf.cast(seed, tf.int64), tf.constant(-1, tf.int64)])


def replica_slice(values, num_local):
    """This replica's (and micro-batch's) rows of a tensor drawn for the global batch.

    Args:
        values: (num_local * num_parts, ...), the same on every replica.
        num_local: Examples per micro-batch and replica.

    Returns:
        (num_local, ...).
    """
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    first = (replica * _current.count + _current.index) * num_local
    return values[first : first + num_local]
