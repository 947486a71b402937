import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.batch_norm import BatchNorm


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("affine", [True, False])
def test_fused_batch_norm_equals_keras(policy, affine):
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(0.5, 2.0, (6, 5, 4, 7)), tf.float32)
    upstream = tf.constant(random.normal(size=x.shape), tf.float32)
    options = {"momentum": 0.9, "epsilon": 1e-5, "center": affine, "scale": affine, "dtype": policy}
    results = []
    for layer in (keras.layers.BatchNormalization(synchronized=True, **options), BatchNorm(**options)):
        layer.build(x.shape)
        for i, weight in enumerate(layer.trainable_variables):
            weight.assign(np.linspace(0.5 + i, 1.5, 7))
        weights = [weight.value for weight in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(layer(x, training=True), tf.float32)
            total = tf.reduce_sum(y * upstream)
        gradients = tape.gradient(total, [x, *weights])
        results.append([y, *gradients, *(w.value for w in layer.non_trainable_variables), layer(x, training=False)])
    tolerance = 1e-5 if policy == "float32" else 1e-2
    for expected, value in zip(*results, strict=True):
        np.testing.assert_allclose(
            tf.cast(value, tf.float32), tf.cast(expected, tf.float32), rtol=tolerance, atol=tolerance
        )
