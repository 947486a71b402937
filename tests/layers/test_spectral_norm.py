import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.convolution import Convolution
from tfvidgen.layers.spectral_norm import SpectralNorm

KINDS = {  # name in the golden file: axes of PyTorch's kernel in our order, axis of the filters
    "torch_conv2d": ((2, 3, 1, 0), -1),
    "torch_conv3d": ((2, 3, 4, 1, 0), -1),
    "torch_linear": ((1, 0), -1),
    "torch_convtranspose3d": ((2, 3, 4, 1, 0), -2),
}


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "spectral_norm.npz")


@pytest.mark.parametrize("name", KINDS)
def test_power_iteration_equals_pytorch(golden, name):
    axes, filters_axis = KINDS[name]
    weight = golden[f"{name}/weight_orig"]
    kernel = weight.transpose(axes)
    layer = SpectralNorm(filters_axis)
    layer.build(kernel.shape)
    layer.u.assign(golden[f"{name}/u_before"])

    # v runs over the kernel without the filters' axis, in our order of axes and in PyTorch's
    rest = np.moveaxis(np.arange(weight.size).reshape(weight.shape), int(golden[f"{name}/dim"]), 0)[0]
    ours = np.moveaxis(np.arange(weight.size).reshape(weight.shape).transpose(axes), filters_axis, 0)[0].ravel()
    order = [np.flatnonzero(rest.ravel() == index)[0] for index in ours]
    layer.v.assign(golden[f"{name}/v_before"][order])

    if f"{name}/weight_eval_first" in golden:
        expected = golden[f"{name}/weight_eval_first"].transpose(axes)
        np.testing.assert_allclose(layer(kernel), expected, atol=1e-5)
    for step in range(1, 6):
        normalised = layer(kernel, training=True)
        if step in (1, 2, 5):
            sigma = np.linalg.norm(kernel) / np.linalg.norm(normalised)
            np.testing.assert_allclose(sigma, golden[f"{name}/sigma_after_{step}"], rtol=1e-5)
            np.testing.assert_allclose(layer.u, golden[f"{name}/u_after_{step}"], atol=1e-5)
            np.testing.assert_allclose(layer.v, golden[f"{name}/v_after_{step}"][order], atol=1e-5)


def test_convolution_has_the_outputs_of_pytorch(golden):
    layer = Convolution(8, (3, 3), (1, 1), (1, 1), use_bias=True, spectral_norm=True)
    layer.build((None, 6, 6, 4))
    layer.kernel.assign(golden["torch_conv2d/weight_orig"].transpose(2, 3, 1, 0))
    layer.bias.assign(golden["torch_conv2d/bias"])
    layer.norm.u.assign(golden["torch_conv2d/u_before"])
    x = golden["torch_conv2d/input"].transpose(0, 2, 3, 1)
    y = layer(x, training=True)
    np.testing.assert_allclose(y, golden["torch_conv2d/out_train_1"].transpose(0, 2, 3, 1), atol=1e-5)


def test_largest_singular_value_becomes_one_and_the_gradient_knows_of_the_division():
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 4, 5)), tf.float32)
    layer = SpectralNorm(seed=1)
    layer.build(kernel.shape)
    for _ in range(200):
        layer(kernel, training=True)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        normalised = layer(kernel)
        total = tf.reduce_sum(normalised**2)
    assert np.linalg.svd(normalised.numpy().reshape(-1, 5), compute_uv=False)[0] == pytest.approx(1.0, abs=1e-4)
    # a longer kernel gives the same normalised one, so the gradient has no part along the kernel
    gradient = tape.gradient(total, kernel)
    assert float(tf.norm(gradient)) > 0.1
    assert float(tf.reduce_sum(gradient * kernel)) == pytest.approx(0.0, abs=1e-3)


def test_evaluation_changes_nothing():
    layer = SpectralNorm(seed=1)
    layer.build((3, 4))
    before = [weight.numpy() for weight in layer.weights]
    layer(np.random.default_rng(0).normal(size=(3, 4)))
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
