"""Differentiable augmentation of discriminator inputs, consistent across the frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence

from keras import ops

from tfvidgen.layers.draws import replica_uniform

AUGMENTATIONS = ("colour", "translation", "cutout")
_MAX_SHIFT = 0.125  # fraction of the side (official code: ratio=0.125)
_CUTOUT = 0.5  # side of the square as a fraction of the image's (official code: ratio=0.5)


def check_augmentation(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; ValueError for an unknown one."""
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"`augmentation` takes names from {AUGMENTATIONS}. Received {unknown[0]!r}.")
    return tuple(names)


def augment(x, names: Sequence[str], key):
    """Augments each example at random, real and generated alike, so that a discriminator cannot memorise a small set.

    All frames of a clip share one random draw, which preserves its motion.

    Args:
        x: float (B, T, H, W, C) or (B, H, W, C) in [-1, 1].
        names: Names of `AUGMENTATIONS`, applied in the order of that tuple; empty changes nothing.
        key: int64 (2,), the same on every replica.

    Returns:
        Same shape and dtype as `x`. Colours may leave [-1, 1], as in the official code; shifted-in and cut-out pixels are 0,
        mid grey.

    Source: Zhao et al. 2020, https://arxiv.org/abs/2006.10738, and the official code's ranges: brightness +-0.5, saturation
        0..2, contrast 0.5..1.5, shifts to 1/8 of the side, a square of half the side.
    """
    if not names:
        return x
    height, width = x.shape[-3:-1]
    batch = ops.shape(x)[0]
    draws = replica_uniform(key, (batch, 7))  # always 7, so that one augmentation does not depend on the others
    if "colour" in names:
        brightness, saturation, contrast = (_per_example(draws[:, i], x) for i in range(3))
        x = x + ops.cast(brightness - 0.5, x.dtype)
        grey = ops.mean(x, axis=-1, keepdims=True)
        x = grey + (x - grey) * ops.cast(2.0 * saturation, x.dtype)
        mean = ops.mean(x, axis=tuple(range(1, len(x.shape))), keepdims=True)  # of the whole clip
        x = mean + (x - mean) * ops.cast(0.5 + contrast, x.dtype)
    if "translation" in names:
        rows = ops.cast(_shift(draws[:, 3], height), x.dtype)
        columns = ops.cast(_shift(draws[:, 4], width), x.dtype)
        x = ops.einsum("bij,b...jwc->b...iwc", rows, x)
        x = ops.einsum("bij,b...hjc->b...hic", columns, x)
    if "cutout" in names:
        inside_rows = _inside(draws[:, 5], height)
        inside_columns = _inside(draws[:, 6], width)
        hole = inside_rows[:, :, None] * inside_columns[:, None, :]  # (B, H, W)
        shape = (-1, *(1,) * (len(x.shape) - 4), height, width, 1)
        x = x * ops.cast(ops.reshape(1.0 - hole, shape), x.dtype)
    return x


def _per_example(values, x):
    return ops.reshape(values, (-1,) + (1,) * (len(x.shape) - 1))


def _shift(uniform, size: int):
    """(B,) -> (B, size, size): matrices that shift rows by up to an eighth of the side, filling with zeros."""
    most = int(size * _MAX_SHIFT + 0.5)
    by = ops.floor(uniform * (2 * most + 1)) - most
    position = ops.arange(size, dtype="float32")
    source = position[None, :, None] - by[:, None, None]  # row i takes row i - by
    return ops.cast(ops.equal(source, position[None, None, :]), "float32")


def _inside(uniform, size: int):
    """(B,) -> (B, size): 1 inside an interval of half the length, centred anywhere."""
    length = int(size * _CUTOUT + 0.5)
    first = ops.floor(uniform * (size + 1 - length % 2)) - length // 2
    position = ops.arange(size, dtype="float32")[None]
    return ops.cast((position >= first[:, None]) & (position < first[:, None] + length), "float32")
