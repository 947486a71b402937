import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tolerances import assert_same_sums
from tfvidgen.layers.batch_norm import BatchNorm


@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.low_precision)])
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
    # In low precision the statistics are float32 all the same: what is rounded are products and results.
    terms = {"float32": 6 * 5 * 4, "mixed_bfloat16": 3}[policy]
    for expected, value in zip(*results, strict=True):
        assert_same_sums(value, expected, terms, policy.removeprefix("mixed_"))
