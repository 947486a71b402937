"""Keras core layers that stand in for retired packages do what those did: spectral norm, instance norm, weight EMA."""

import keras
import numpy as np
import tensorflow as tf


def test_spectral_normalization_divides_by_the_largest_singular_value():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(6, use_bias=False), power_iterations=200)
    layer.build((None, 5))
    kernel = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    layer.layer.kernel.assign(kernel)
    layer(np.zeros((1, 5), np.float32), training=True)
    np.testing.assert_allclose(layer.layer.kernel, kernel / np.linalg.norm(kernel, 2), atol=1e-5)


def test_spectral_normalization_golden(shared):
    golden = np.load(shared / "golden" / "golden_card_packages.npz")
    kernel, sigma = golden["sn_kernel"], float(golden["sn_sigma_exact"])
    assert abs(np.linalg.norm(kernel.reshape(-1, 8).astype(np.float64), 2) - sigma) < 1e-5
    layer = keras.layers.SpectralNormalization(keras.layers.Conv2D(8, 3, use_bias=False), power_iterations=200)
    layer.build((None, 8, 8, 4))
    layer.layer.kernel.assign(kernel)
    layer(np.zeros((1, 8, 8, 4), np.float32), training=True)
    np.testing.assert_allclose(layer.layer.kernel, kernel / sigma, atol=1e-5)


def test_group_normalization_with_one_group_per_channel_is_instance_norm():
    frames = np.random.default_rng(0).normal(3, 2, (2, 6, 5, 4)).astype(np.float32)
    layer = keras.layers.GroupNormalization(groups=-1, epsilon=1e-5)
    layer.build(frames.shape)
    gamma, beta = np.float32([1, 2, 3, 4]), np.float32([0, 1, 0, -1])
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    centred = frames - frames.mean((1, 2), keepdims=True)
    expected = centred / np.sqrt(frames.var((1, 2), keepdims=True) + 1e-5) * gamma + beta
    np.testing.assert_allclose(layer(frames), expected, atol=1e-5)


def test_optimizer_keeps_an_exponential_moving_average():
    variable = keras.Variable(np.float32([1.0, -2.0]))
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    optimizer.build([variable])
    value = average = variable.numpy()
    for step in range(4):
        gradient = np.float32([1.0, step])
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
        value = value - 0.1 * gradient
        # Keras starts the average at the first updated value.
        average = value if step == 0 else 0.9 * average + 0.1 * value
    np.testing.assert_allclose(variable, value, rtol=1e-6)
    optimizer.finalize_variable_values([variable])
    np.testing.assert_allclose(variable, average, rtol=1e-6)
