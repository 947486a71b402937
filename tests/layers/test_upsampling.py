import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.upsampling import Doubling


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("filters", "height", "width"), [(3, 4, 4), (3, 5, 6), (16, 4, 4), (16, 12, 10)])
def test_doubling_and_its_gradients_equal_conv2d_transpose(policy, filters, height, width):
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(3, height, width, 24)), tf.float32)
    upstream = tf.constant(random.normal(size=(3, 2 * height, 2 * width, filters)), tf.float32)
    plain = keras.layers.Conv2DTranspose(filters, 4, 2, padding="same", use_bias=False, dtype=policy)
    layer = Doubling(filters, dtype=policy)
    results = []
    for each in (plain, layer):
        each.build(x.shape)
        each.kernel.assign(plain.kernel)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(each(x), tf.float32)
            total = tf.reduce_sum(y * upstream)
        results.append([y, *tape.gradient(total, [x, each.kernel.value])])
    for expected, value in zip(*results, strict=True):
        tolerance = (1e-5 if policy == "float32" else 5e-3) * float(tf.reduce_max(tf.abs(expected)))
        np.testing.assert_allclose(value, expected, atol=tolerance)


def test_doubling_takes_any_size_in_a_graph():
    layer = Doubling(3)
    layer.build((None, None, None, 2))
    double = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 2))])
    assert double(tf.ones((1, 3, 5, 2))).shape == (1, 6, 10, 3)
