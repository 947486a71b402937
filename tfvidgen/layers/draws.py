"""Stateless random draws for the examples of a step: made for the global batch, sliced by replica and micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfvidgen._tensorflow import tf
from tfvidgen.layers.replicas import num_parts, replica_slice


def split_key(key, num: int) -> list[Any]:
    """Splits a key into `num` independent ones, int64 (2,) each."""
    return tf.unstack(tf.random.split(key, num))


def update_key(key, index: int):
    """The key of discriminator update `index` within a step; the first update uses the step's own key."""
    return key if index == 0 else split_key(key, 1)[0] + index


def num_rows(x):
    """Length of the first axis: an int if known statically, else a scalar tensor."""
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def replica_normal(key, shape: Sequence[Any], stddev: float = 1.0):
    """N(0, stddev^2) for this replica's examples, float32.

    Args:
        key: int64 (2,), e.g. `step_key(seed, step)`; the same on every replica.
        shape: Shape for this replica's examples, which are the first axis; ints or scalar tensors.
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
    """Adds Gaussian noise to examples (B, ...); unchanged if `stddev` is 0 or `key` is None."""
    if not stddev or key is None:
        return x
    return x + tf.cast(replica_normal(key, (num_rows(x), *x.shape[1:]), stddev), x.dtype)


def random_frames(key, video, num_frames: int):
    """(B, T, H, W, C) -> (B * num_frames, H, W, C): frames sampled from each clip, with replacement."""
    index = replica_integers(key, (num_rows(video), num_frames), video.shape[1])  # (B, num_frames)
    return tf.reshape(tf.gather(video, index, batch_dims=1), (-1, *video.shape[2:]))


def _global(shape: Sequence[Any]) -> list[Any]:
    return [shape[0] * num_parts(), *shape[1:]]


def _slice(values, shape: Sequence[Any]):
    return values if num_parts() == 1 else replica_slice(values, shape[0])
