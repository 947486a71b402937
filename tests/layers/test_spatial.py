"""Warp, cost volume and Gaussian filter against plain loops and golden numbers."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tfvidgen.layers.spatial import correlation_cost, dense_image_warp, gaussian_filter2d


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def test_warp_by_whole_pixels_moves_the_frame():
    image = normal(2, 5, 6, 3)
    flow = np.zeros((2, 5, 6, 2), np.float32)
    flow[..., 0], flow[..., 1] = 1, -2
    rows, cols = np.clip(np.arange(5) - 1, 0, 4), np.clip(np.arange(6) + 2, 0, 5)
    np.testing.assert_array_equal(dense_image_warp(image, flow), image[:, rows][:, :, cols])


def test_warp_interpolates_and_continues_the_edge():
    image, flow = normal(2, 7, 9, 2), normal(2, 7, 9, 2, seed=1, scale=3.0)
    warped = np.asarray(dense_image_warp(image, flow))
    for b in range(2):
        places = np.indices((7, 9)) - np.moveaxis(flow[b], -1, 0)
        for c in range(2):
            expected = ndimage.map_coordinates(image[b, :, :, c], places, order=1, mode="nearest")
            np.testing.assert_allclose(warped[b, :, :, c], expected, atol=1e-5)


def test_warp_is_differentiable_in_image_and_flow():
    image, flow = tf.constant(normal(1, 4, 5, 1)), tf.constant(normal(1, 4, 5, 2, seed=1, scale=0.4))
    cotangent = normal(1, 4, 5, 1, seed=2)
    with tf.GradientTape() as tape:
        tape.watch([image, flow])
        total = tf.reduce_sum(dense_image_warp(image, flow) * cotangent)
    for value, gradient in zip((image, flow), tape.gradient(total, [image, flow]), strict=True):
        direction = normal(*value.shape, seed=3, scale=1e-3)
        moved = [value + direction, value - direction]
        pairs = [(m, flow) if value is image else (image, m) for m in moved]
        up, down = (tf.reduce_sum(dense_image_warp(*pair) * cotangent) for pair in pairs)
        assert float(up - down) == pytest.approx(2 * np.sum(gradient * direction), rel=2e-2, abs=2e-5)


def test_warp_of_an_unknown_batch():
    signature = [tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None, 2))]
    graph = tf.function(dense_image_warp, input_signature=signature)
    image, flow = normal(2, 5, 6, 3), normal(2, 5, 6, 2, seed=1)
    np.testing.assert_allclose(graph(image, flow), dense_image_warp(image, flow), atol=1e-6)


def test_correlation_cost_equals_plain_loops():
    a, b = normal(2, 4, 5, 3), normal(2, 4, 5, 3, seed=1)
    expected = np.zeros((2, 4, 5, 25))
    for y, x, dy, dx in np.ndindex(4, 5, 5, 5):
        v, u = y + dy - 2, x + dx - 2
        if 0 <= v < 4 and 0 <= u < 5:
            expected[:, y, x, dy * 5 + dx] = np.mean(a[:, y, x] * b[:, v, u], axis=-1)
    np.testing.assert_allclose(correlation_cost(a, b, max_displacement=2), expected, atol=1e-6)


def test_gaussian_filter_equals_scipy():
    image = normal(2, 9, 7, 3)
    taps = np.exp(-(np.arange(-2, 3) ** 2) / 8.0)
    expected = ndimage.correlate1d(image.astype(np.float64), taps / taps.sum(), axis=1, mode="mirror")
    expected = ndimage.correlate1d(expected, taps / taps.sum(), axis=2, mode="mirror")
    np.testing.assert_allclose(gaussian_filter2d(image), expected, atol=1e-5)
    np.testing.assert_allclose(gaussian_filter2d(np.ones((1, 4, 4, 1), np.float32)), np.ones((1, 4, 4, 1)), rtol=1e-6)


def test_wrong_arguments_are_refused():
    image = normal(1, 4, 5, 3)
    with pytest.raises(ValueError, match=r"\(B, H, W, 2\).*\(1, 4, 4, 2\)"):
        dense_image_warp(image, normal(1, 4, 4, 2))
    with pytest.raises(ValueError, match="2 x 2.*1 x 5"):
        dense_image_warp(image[:, :1], normal(1, 1, 5, 2))
    with pytest.raises(ValueError, match=r"the same shape.*\(1, 4, 4, 3\)"):
        correlation_cost(image, image[:, :, :4])
    with pytest.raises(ValueError, match="max_displacement=-1"):
        correlation_cost(image, image, max_displacement=-1)
    with pytest.raises(ValueError, match="size=4"):
        gaussian_filter2d(image, size=4)
    with pytest.raises(ValueError, match="larger than 4"):
        gaussian_filter2d(image, size=9)


def test_golden(shared):
    golden = np.load(shared / "golden" / "golden_card_packages.npz")
    pairs = {
        "tfa_dense_image_warp": dense_image_warp(golden["image"], golden["flow"]),
        "tfa_correlation_cost_k1_d4": correlation_cost(golden["corr_a"], golden["corr_b"], max_displacement=4),
        "tfa_gaussian_filter2d_5_sigma2": gaussian_filter2d(golden["image"], size=5, sigma=2.0),
    }
    for name, values in pairs.items():
        np.testing.assert_allclose(values, golden[name], atol=1e-5, err_msg=name)


def test_cost_volume_golden(shared):
    golden = np.load(shared / "golden" / "pwcnet_numbers.npz")
    a, b = (golden[name].transpose(0, 2, 3, 1) for name in ("cv_feat1", "cv_feat2"))
    np.testing.assert_allclose(correlation_cost(a, b), golden["cv_raw"].transpose(0, 2, 3, 1), atol=1e-5)
