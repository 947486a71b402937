"""The perceptual loss by hand arithmetic and with the real network."""

import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.features.vgg16 import VGG16Features
from tfvidgen.losses.perceptual import PerceptualLoss


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def simple_features(frames):
    return {"double": 2.0 * frames, "corner": frames[:, :1, :1] ** 2}


def expected_loss(generated, real, pixel, double, corner):
    difference = np.abs(generated - real).mean((-3, -2, -1))
    corner_difference = np.abs(generated[..., :1, :1, :] ** 2 - real[..., :1, :1, :] ** 2).mean((-3, -2, -1))
    return pixel * difference + double * 2 * difference + corner * corner_difference


def test_pixels_and_maps_are_summed_with_their_weights():
    generated, real = random_frames(2, 3, 4, 4, 3), random_frames(2, 3, 4, 4, 3, seed=1)
    loss = np.asarray(PerceptualLoss(simple_features)(generated, real))
    assert loss.shape == (2, 3) and loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected_loss(generated, real, 1, 1, 1), rtol=1e-5)
    weighted = PerceptualLoss(simple_features, pixel_weight=0.5, layer_weights={"corner": 3.0})
    np.testing.assert_allclose(weighted(generated, real), expected_loss(generated, real, 0.5, 0, 3), rtol=1e-5)
    np.testing.assert_allclose(weighted(generated[0, 0], real[0, 0]), weighted(generated, real)[0, 0], rtol=1e-5)


def test_gradient_reaches_the_generated_frames_only():
    loss_fn = PerceptualLoss(VGG16Features(("block1_conv2", "block2_conv1"), weights="random"))
    generated, real = (tf.constant(random_frames(1, 2, 8, 8, 3, seed=seed)) for seed in (0, 1))
    with tf.GradientTape() as tape:
        tape.watch([generated, real])
        loss = tf.reduce_mean(loss_fn(generated, real))
    of_generated, of_real = tape.gradient(loss, [generated, real])
    assert of_real is None
    assert np.all(np.isfinite(of_generated)) and np.abs(of_generated).max() > 0
    np.testing.assert_allclose(loss_fn(real, real), np.zeros((1, 2)), atol=1e-7)


def test_wrong_arguments_are_refused():
    frames = random_frames(1, 4, 4, 3)
    with pytest.raises(ValueError, match=r"\['block1'\].*\['corner', 'double'\]"):
        PerceptualLoss(simple_features, layer_weights={"block1": 1.0})(frames, frames)
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 3\) and \(1, 3, 4, 3\)"):
        PerceptualLoss(simple_features)(frames, frames[:, :3])
