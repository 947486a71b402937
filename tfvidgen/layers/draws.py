"""Stateless draws for the examples of a step: made for the global batch, sliced by replica and micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfvidgen._tensorflow import tf
from tfvidgen.layers.replicas import num_parts, replica_slice


def split_key(key, num: int) -> list[Any]:
    """Independent keys, int64 (2,) each, from one."""
    return tf.unstack(tf.random.split(key, num))


def update_key(key, index: int):
    """The key of the draws of a discriminator's update number `index` in a step, from the step's own."""
    return key if index == 0 else split_key(key, 1)[0] + index


def num_rows(x):
    """The length of the first axis, as an int where it is known."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def replica_normal(key, shape: Sequence[Any], stddev: float = 1.0):
    """N(0, stddev^2) for this replica's examples, float32.

    Args:
        key: int64 (2,), e.g. `step_key(seed, step)`; the same on every replica.
        shape: Of this replica's part, examples first; ints or scalar tensors.
        stddev: Standard deviation.
    """
    return _slice(tf.random.stateless_normal(_global(shape), key, stddev=stddev), shape)


def replica_uniform(key, shape: Sequence[Any], low: float = 0.0, high: float = 1.0):
    """Uniform in [low, high) for this replica's examples, float32. Arguments as for `replica_normal`."""
    return _slice(tf.random.stateless_uniform(_global(shape), key, low, high), shape)


def replica_integers(key, shape: Sequence[Any], limit: int):
    """Uniform in 0..limit-1 for this replica's examples, int32. Arguments as for `replica_normal`."""
    return _slice(tf.random.stateless_uniform(_global(shape), key, 0, limit, tf.int32), shape)


def add_noise(x, stddev: float, key):
    """Examples (B, ...) plus Gaussian noise; unchanged where `stddev` is 0 or `key` is None."""
    if not stddev or key is None:
        return x
    return x + tf.cast(replica_normal(key, (num_rows(x), *x.shape[1:]), stddev), x.dtype)


def random_frames(key, video, num_frames: int):
    """(B, T, H, W, C) -> (B * num_frames, H, W, C): that many frames of each clip, drawn independently."""
    index = replica_integers(key, (num_rows(video), num_frames), video.shape[1])
    return tf.reshape(tf.gather(video, index, batch_dims=1), (-1, *video.shape[2:]))


def _global(shape: Sequence[Any]) -> list[Any]:
    return [shape[0] * num_parts(), *shape[1:]]


def _slice(values, shape: Sequence[Any]):
    return values if num_parts() == 1 else replica_slice(values, shape[0])
