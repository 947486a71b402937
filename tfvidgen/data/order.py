"""The order of videos in training: which video is at each position, computed without listing any other position.

The permutation of an epoch is a generalised Feistel cipher with cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002, Sec. 5 (Method 3), with a keyed hash for its random functions. Integer arithmetic alone defines it, so it
is the same on every machine and in every version of TensorFlow. `tf.random.experimental.index_shuffle` is not used, because
in TensorFlow 2.21 it repeats values for some sizes above 65,536.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

# With 8 rounds, the 120 permutations of 5 videos are not equally frequent over 20,000 epochs; with 12 they are.
_ROUNDS = 12
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, the increment of SplitMix64
_FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64
_MASK = (1 << 64) - 1


def shuffled(positions: tf.Tensor, num_videos: int, seed: int) -> tf.Tensor:
    """The videos at some positions of an infinite sequence of epochs, each a pseudorandom permutation of all videos.

    Args:
        positions: int64 (B,), not negative; position `p` lies in epoch `p // num_videos`.
        num_videos: Number of videos, at least 1.
        seed: Seed of the order.

    Returns:
        int32 (B,), in 0..num_videos-1. Time and memory depend on B alone.
    """
    import tensorflow as tf

    def number(value: int) -> tf.Tensor:
        return tf.constant(value & _MASK, tf.uint64)

    # Indices are pairs (left, right) of Z_a x Z_b, a*b >= num_videos, with as few pairs to spare as possible, so that hardly any
    # need a second walk. a is even: with both odd, every round would be an even permutation.
    root = math.isqrt(num_videos)
    a = min(range(2 * (root // 4 + 1), 2 * root + 2, 2), key=lambda a: -num_videos % a)
    sides = number(a), number(-(-num_videos // a))
    size, half = number(num_videos), number(32)
    factors = [number(factor) for factor in _FACTORS]

    def mixed(value: tf.Tensor) -> tf.Tensor:
        # to 32 bits, so that the sums below do not overflow: they must be bijective
        value *= factors[0]
        value = (value ^ tf.bitwise.right_shift(value, half)) * factors[1]
        return tf.bitwise.right_shift(value, half)

    positions = tf.cast(positions, tf.uint64)
    keys = number(_finalized(seed + _GOLDEN)) + positions // size  # (B,)
    keys = keys * number(_GOLDEN) + tf.stack([number(_finalized(i + 1)) for i in range(_ROUNDS)])[:, None]
    keys = tf.unstack(tf.bitwise.left_shift(mixed(keys), half) ^ mixed(keys + number(_GOLDEN)))

    def walk(index: tf.Tensor, is_walking: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        halves = [index % sides[0], index // sides[0]]
        for i, key in enumerate(keys):
            this, other = i % 2, 1 - i % 2
            halves[this] = (halves[this] + mixed(halves[other] ^ key)) % sides[this]
        index = tf.where(is_walking, halves[0] + sides[0] * halves[1], index)
        return index, index >= size

    start = positions % size, tf.ones_like(positions, tf.bool)
    index, _ = tf.while_loop(lambda _, is_walking: tf.reduce_any(is_walking), walk, start)
    return tf.cast(index, tf.int32)


def _finalized(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a bijection of 64-bit integers."""
    value &= _MASK
    for shift, factor in ((30, _FACTORS[0]), (27, _FACTORS[1]), (31, 1)):
        value = (value ^ (value >> shift)) * factor & _MASK
    return value
