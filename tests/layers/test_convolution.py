import math

import numpy as np
import pytest
import tensorflow as tf

from tests.tolerances import assert_same_sums
from tfvidgen.layers.convolution import Convolution


def by_hand(x, kernel, strides, padding):
    """The convolution's definition, position by position."""
    x = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    taps = kernel.shape[:-2]
    counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], taps, strides, strict=True)]
    y = np.zeros((len(x), *counts, kernel.shape[-1]))
    for position in np.ndindex(*counts):
        window = tuple(slice(p * s, p * s + k) for p, s, k in zip(position, strides, taps, strict=True))
        y[(slice(None), *position)] = np.tensordot(x[(slice(None), *window)], kernel, len(taps) + 1)
    return y


@pytest.mark.parametrize(
    ("taps", "strides", "padding"),
    [((4, 4), (2, 2), (1, 1)), ((3, 4, 4), (1, 2, 2), (0, 1, 1)), ((3, 4, 4), (2, 2, 2), (1, 1, 1))],
    ids=["frames", "halving of clips", "as it is"],
)
def test_equals_its_definition_with_gradients(taps, strides, padding):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *((5,) if len(taps) == 3 else ()), 6, 8, 5)).astype(np.float32)
    layer = Convolution(7, taps, strides, padding, use_bias=True)
    layer.build(x.shape)
    layer.bias.assign(random.normal(size=7))
    y = layer(x)
    expected = by_hand(x, layer.kernel.numpy(), strides, padding) + layer.bias.numpy()
    assert layer.compute_output_shape(x.shape) == tuple(y.shape)
    assert_same_sums(y, expected, terms=math.prod(taps) * 5)
    # linear in x and in the kernel: y' u taken along x is what the gradient says
    upstream = random.normal(size=y.shape).astype(np.float32)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum((layer(x) - layer.bias) * upstream)
    for gradient, value in zip(tape.gradient(total, [x, layer.kernel.value]), (x, layer.kernel), strict=True):
        assert float(tf.reduce_sum(gradient * value)) == pytest.approx(float(total), rel=1e-4, abs=1e-4)


def test_halving_of_clips_has_a_second_derivative():
    layer = Convolution(2, (2, 4, 4), (1, 2, 2), (0, 1, 1))
    layer.build((None, 3, 4, 4, 3))
    x = tf.random.stateless_normal((1, 3, 4, 4, 3), (0, 1))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(layer(x) ** 2)
        squares = tf.reduce_sum(inner.gradient(y, x) ** 2)
    assert float(tf.norm(outer.gradient(squares, layer.kernel.value))) > 0.1


@pytest.mark.low_precision
def test_computes_in_the_policy_and_keeps_float32_weights():
    layer = Convolution(4, (4, 4), (2, 2), (1, 1), spectral_norm=True, dtype="mixed_bfloat16")
    layer.build((None, 8, 8, 3))
    y = layer(tf.ones((1, 8, 8, 3), tf.bfloat16), training=True)
    assert y.dtype == tf.bfloat16
    assert {weight.dtype for weight in layer.weights} == {"float32"}


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="two ints each for frames"):
        Convolution(4, (4, 4), (1, 2, 2), (1, 1))
