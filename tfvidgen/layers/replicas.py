"""What a training step must know of its replicas and micro-batches, so that however many there are it sees the same numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tfvidgen._tensorflow import tf


class _MicroBatch(threading.local):
    """Which micro-batch this thread, which is this replica's, is computing, and how many a step has."""

    index, count = 0, 1


_current = _MicroBatch()


@contextlib.contextmanager
def micro_batch(index: int, count: int) -> Iterator[None]:
    """Within it, draws and losses are those of micro-batch `index` out of `count` of each replica's examples."""
    before = _current.index, _current.count
    _current.index, _current.count = index, count
    try:
        yield
    finally:
        _current.index, _current.count = before


def num_replicas() -> int:
    """Replicas in sync. Optimizers sum gradients over them."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def num_parts() -> int:
    """Equal parts of the global batch whose gradients are summed: replicas times micro-batches. Losses are divided by it."""
    return num_replicas() * _current.count


def step_key(seed: int, step) -> tf.Tensor:
    """int64 (2,): the seed of a stateless draw. A function of (seed, step), so there is no random state to save."""
    return tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])


def replica_slice(values, num_local):
    """This replica's rows of a tensor that was drawn for the global batch; in a micro-batch, that one's.

    Args:
        values: (num_local * num_parts, ...), the same on every replica.
        num_local: Examples of one micro-batch on one replica.

    Returns:
        (num_local, ...).
    """
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    first = (replica * _current.count + _current.index) * num_local
    return values[first : first + num_local]
