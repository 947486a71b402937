import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tolerances import assert_same_sums, rounding
from tfvidgen.layers.upsampling import UpConv2D

POLICIES = ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.low_precision)]
SIZES = [(3, 4, 4), (3, 5, 6), (16, 4, 4), (16, 12, 10)]


def output_and_gradients(layer, kernel, x, upstream) -> list[np.ndarray]:
    layer.build(x.shape)
    layer.kernel.assign(kernel)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.cast(layer(x), tf.float32)
        total = tf.reduce_sum(y * upstream)
    return [value.numpy() for value in (y, *tape.gradient(total, [x, layer.kernel.value]))]


def operands(filters, height, width):
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(3, height, width, 24)), tf.float32)
    upstream = tf.constant(random.normal(size=(3, 2 * height, 2 * width, filters)), tf.float32)
    kernel = random.normal(0, 0.1, (4, 4, filters, 24)).astype(np.float32)
    # products that are added up: two taps each way for an output, all taps for an input, all pixels for a tap
    return x, upstream, kernel, (4 * 24, 16 * filters, 3 * height * width)


def plain(filters, policy):
    return keras.layers.Conv2DTranspose(filters, 4, 2, padding="same", use_bias=False, dtype=policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("filters", "height", "width"), SIZES)
def test_doubling_and_its_gradients_equal_conv2d_transpose(policy, filters, height, width):
    x, upstream, kernel, terms = operands(filters, height, width)
    expected = output_and_gradients(plain(filters, policy), kernel, x, upstream)
    ours = output_and_gradients(UpConv2D(filters, dtype=policy), kernel, x, upstream)
    for value, of_library, count in zip(ours, expected, terms, strict=True):
        assert_same_sums(value, of_library, count, policy.removeprefix("mixed_"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("filters", "height", "width"), SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_wrong_tap_is_more_than_rounding(policy, filters, height, width, axis):
    """The tolerance of the test above finds what can go wrong in it: one row or column of taps taken for another."""
    x, upstream, kernel, terms = operands(filters, height, width)
    right = output_and_gradients(plain(filters, policy), kernel, x, upstream)
    kernel = np.take(kernel, [0, 1, 3, 2], axis=axis)
    wrong = output_and_gradients(UpConv2D(filters, dtype=policy), kernel, x, upstream)
    wrong[2] = np.take(wrong[2], [0, 1, 3, 2], axis=axis)  # the gradient of the kernel does not read it
    differs = [
        np.abs(a - b).max() > rounding(policy.removeprefix("mixed_"), count, b)
        for a, b, count in zip(wrong, right, terms, strict=True)
    ]
    assert differs == [True, True, True]


def test_doubling_takes_any_size_in_a_graph():
    layer = UpConv2D(3)
    layer.build((None, None, None, 2))
    double = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 2))])
    assert double(tf.ones((1, 3, 5, 2))).shape == (1, 6, 10, 3)
