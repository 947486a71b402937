"""The Laplacian pyramid and its loss: two forms against each other, a plain loop, and golden numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.losses import laplacian
from tfvidgen.losses.laplacian import gaussian_kernel, laplacian_pyramid, laplacian_pyramid_loss


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def merge(levels):
    """Invert the pyramid: expand the residual and add the bands."""
    image = np.asarray(levels[-1], np.float64)
    for band in reversed(levels[:-1]):
        rows, cols = (laplacian._reduce_matrix(size, laplacian.BINOMIAL_KERNEL) for size in band.shape[1:3])
        image = np.einsum("ih,nijc,jw->nhwc", 2 * rows, image, 2 * cols) + np.asarray(band)
    return image


def plain_reduce(image, kernel):
    """Blur and decimate (H, W) by loops, zeros outside."""
    height, width = image.shape
    reduced = np.zeros(((height + 1) // 2, (width + 1) // 2))
    for row in range(reduced.shape[0]):
        for col in range(reduced.shape[1]):
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    y, x = 2 * row + 1 - height % 2 + dy, 2 * col + 1 - width % 2 + dx
                    if 0 <= y < height and 0 <= x < width:
                        reduced[row, col] += kernel[dy + 2] * kernel[dx + 2] * image[y, x]
    return reduced


def test_level_sizes_and_inverse():
    image = random_frames(2, 17, 12, 3)
    levels = laplacian_pyramid(image, num_levels=3)
    assert [tuple(level.shape[1:3]) for level in levels] == [(17, 12), (9, 6), (5, 3), (3, 2)]
    np.testing.assert_allclose(merge(levels), image, atol=1e-5)


@pytest.mark.parametrize("method", ["matrix", "convolution"])
def test_residual_equals_plain_loops(method):
    image = random_frames(1, 13, 10, 1)
    expected = plain_reduce(image[0, :, :, 0], laplacian.BINOMIAL_KERNEL)
    residual = np.asarray(laplacian_pyramid(image, num_levels=1, method=method)[1])[0, :, :, 0]
    np.testing.assert_allclose(residual, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 24), (17, 13), (31, 32)])
@pytest.mark.parametrize("kernel", [laplacian.BINOMIAL_KERNEL, gaussian_kernel(5, 2.0)])
def test_matrix_form_equals_convolution_form(size, kernel):
    image = random_frames(3, *size, 3)
    fast = laplacian_pyramid(image, num_levels=3, kernel=kernel)
    reference = laplacian_pyramid(image, num_levels=3, kernel=kernel, method="convolution")
    for left, right in zip(fast, reference, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    other = random_frames(3, *size, 3, seed=1)
    for reduction in ("mean", "sum"):
        losses = [
            laplacian_pyramid_loss(image, other, 3, reduction, kernel, method) for method in ("matrix", "convolution")
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)


def test_gradients_of_both_forms_agree():
    generated, real = tf.constant(random_frames(2, 2, 16, 16, 3)), random_frames(2, 2, 16, 16, 3, seed=1)
    gradients = []
    for method in ("matrix", "convolution"):
        with tf.GradientTape() as tape:
            tape.watch(generated)
            loss = tf.reduce_mean(laplacian_pyramid_loss(generated, real, num_levels=2, method=method))
        gradients.append(tape.gradient(loss, generated).numpy())
    assert np.abs(gradients[0]).max() > 0
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_loss_of_the_difference_is_the_distance_of_the_pyramids():
    generated, real = random_frames(4, 16, 16, 3), random_frames(4, 16, 16, 3, seed=1)
    pyramids = [laplacian_pyramid(frames, num_levels=3) for frames in (generated, real)]
    expected = sum(np.abs(np.asarray(a) - np.asarray(b)).mean(axis=(1, 2, 3)) for a, b in zip(*pyramids, strict=True))
    np.testing.assert_allclose(laplacian_pyramid_loss(generated, real, num_levels=3), expected, rtol=1e-5)


def test_paper_sum_per_value_is_the_sum_of_level_means():
    generated, real = random_frames(3, 32, 64, 3), random_frames(3, 32, 64, 3, seed=1)
    levels = laplacian_pyramid(generated - real, num_levels=4)
    paper = sum(4.0**index * np.abs(np.asarray(level)).sum(axis=(1, 2, 3)) for index, level in enumerate(levels))
    summed = laplacian_pyramid_loss(generated, real, num_levels=4, reduction="sum")
    np.testing.assert_allclose(summed, paper, rtol=1e-5)
    mean = laplacian_pyramid_loss(generated, real, num_levels=4)
    np.testing.assert_allclose(np.asarray(summed) / (32 * 64 * 3), mean, rtol=1e-5)


def test_one_loss_per_frame_for_any_leading_dimensions():
    generated, real = random_frames(2, 3, 16, 16, 3), random_frames(2, 3, 16, 16, 3, seed=1)
    losses = np.asarray(laplacian_pyramid_loss(generated, real))
    assert losses.shape == (2, 3) and losses.dtype == np.float32
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(losses[index], laplacian_pyramid_loss(generated[index], real[index]), rtol=1e-5)
    assert np.all(np.asarray(laplacian_pyramid_loss(real, real)) == 0)


def test_unknown_batch_size_in_a_graph():
    frames = random_frames(2, 3, 16, 16, 3)
    graph = tf.function(
        lambda generated: laplacian_pyramid_loss(generated, tf.zeros_like(generated)),
        input_signature=[tf.TensorSpec((None, None, 16, 16, 3))],
    )
    np.testing.assert_allclose(graph(frames), laplacian_pyramid_loss(frames, np.zeros_like(frames)), rtol=1e-5)


def test_low_precision_frames_are_measured_in_float32():
    frames = keras.ops.cast(random_frames(1, 16, 16, 3), "bfloat16")
    loss = laplacian_pyramid_loss(frames, np.zeros((1, 16, 16, 3), np.float32))
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"


def test_gaussian_taps_and_the_sum_kernel_of_public_code():
    taps = np.array(gaussian_kernel(5, 2.0))
    assert taps.sum() == pytest.approx(1)
    product = np.outer(taps, taps)
    assert (product[2, 2], product[0, 0]) == pytest.approx((0.0632, 0.0232), abs=5e-5)
    squared = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 2.0**2)) ** 2
    public = squared[:, None] + squared
    public /= public.sum()
    assert (public[2, 2], public[0, 0]) == pytest.approx((0.0607, 0.0223), abs=5e-5)
    assert np.linalg.matrix_rank(product) == 1 and np.linalg.matrix_rank(public) == 2


def test_wrong_arguments_are_refused():
    frames = np.zeros((1, 12, 16, 3), np.float32)
    with pytest.raises(ValueError, match="at least 16 x 16.*12 x 16"):
        laplacian_pyramid_loss(frames, frames)
    with pytest.raises(ValueError, match="'mean' or 'sum'.*'max'"):
        laplacian_pyramid_loss(frames, frames, 2, reduction="max")
    with pytest.raises(ValueError, match="'matrix' or 'convolution'.*'fft'"):
        laplacian_pyramid(frames, 2, method="fft")
    with pytest.raises(ValueError, match="symmetric"):
        laplacian_pyramid(frames, 2, kernel=(0.5, 0.3, 0.2))
    with pytest.raises(ValueError, match="at least 1"):
        laplacian_pyramid(frames, 0)
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        laplacian_pyramid(frames[0], 2)
    with pytest.raises(ValueError, match="odd"):
        gaussian_kernel(4)


def test_pyramid_golden(shared):
    golden = np.load(shared / "golden" / "golden_card_packages.npz")
    for method in ("matrix", "convolution"):
        levels = laplacian_pyramid(golden["image"], num_levels=3, method=method)
        for index, level in enumerate(levels):
            np.testing.assert_allclose(level, golden[f"tfg_pyramid_split_level{index}"], atol=1e-5)
        for index in (1, 2):
            residual = laplacian_pyramid(golden["image"], num_levels=index, method=method)[-1]
            np.testing.assert_allclose(residual, golden[f"tfg_pyramid_down{index}"], atol=1e-5)
        np.testing.assert_allclose(merge(levels), golden["tfg_pyramid_merge"], atol=1e-5)
