"""The Laplacian pyramids and their loss: matrices against plain convolutions, weights of borders, and golden numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.losses.laplacian import PYRAMIDS, gaussian_kernel, laplacian_pyramid, laplacian_pyramid_loss

FIVE_TAPS = np.array([1, 4, 6, 4, 1]) / 16


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def blurred(images, taps, stride=1, mode="symmetric"):
    """A depthwise convolution of images (N, H, W, C) padded so that output i is centred on input `stride` i + (stride - 1) / 2."""
    pad = (len(taps) - stride + 1) // 2
    widths = ((0, 0), (pad, len(taps) - stride - pad), (pad, len(taps) - stride - pad), (0, 0))
    padded = np.pad(images, widths, **({"mode": mode} if mode else {}))
    kernel = np.tile(np.outer(taps, taps)[:, :, None, None], (1, 1, images.shape[-1], 1)).astype(np.float32)
    return tf.nn.depthwise_conv2d(padded, kernel, (1, stride, stride, 1), "VALID").numpy()


def by_convolutions(images, num_levels, pyramid):
    """The pyramids as their definitions say, one convolution after the other."""
    levels = []
    for _ in range(num_levels):
        height, width = images.shape[1:3]
        if pyramid == "official":
            smooth = blurred(images, gaussian_kernel(5, 2.0))
            coarse = tf.nn.avg_pool2d(smooth, 2, 2, "VALID").numpy()
        elif pyramid == "binomial":
            coarse = blurred(images, np.array([1, 3, 3, 1]) / 8, stride=2)
            smooth = tf.image.resize(coarse, (height, width), "bilinear").numpy()
        else:  # every second pixel of the blur; expansion is the same blur of the image with zeros put in between
            phase = [1 - size % 2 for size in (height, width)]
            coarse = blurred(images, FIVE_TAPS, mode=None)[:, phase[0] :: 2, phase[1] :: 2]
            smooth = np.zeros_like(images)
            smooth[:, phase[0] :: 2, phase[1] :: 2] = coarse
            smooth = 4 * blurred(smooth, FIVE_TAPS, mode=None)
        levels.append(images - smooth)
        images = coarse
    return [*levels, images]


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("size", [(32, 24), (16, 16), (17, 13)])
def test_matrices_do_what_the_convolutions_do(pyramid, size):
    if size == (17, 13) and pyramid != "zero_padded":
        with pytest.raises(ValueError, match=f"{pyramid!r} need height and width divisible by 8. Received 17 x 13"):
            laplacian_pyramid(random_frames(3, *size, 3), 3, pyramid)
        return
    image = random_frames(3, *size, 3)
    levels = laplacian_pyramid(image, 3, pyramid)
    assert [level.shape[1] for level in levels] == [-(-size[0] // 2**i) for i in range(4)]
    for level, expected in zip(levels, by_convolutions(image, 3, pyramid), strict=True):
        np.testing.assert_allclose(level, expected, atol=1e-5)


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_the_bands_give_the_frame_back(pyramid):
    """A band holds what the coarse image lacks: adding them up undoes the split."""
    image = random_frames(2, 16, 32, 3)
    *bands, residual = (np.asarray(level) for level in laplacian_pyramid(image, 3, pyramid))
    if pyramid == "official":  # the mean of 2x2 pixels loses information, so only the bands of one level are left
        np.testing.assert_allclose(bands[0] + blurred(image, gaussian_kernel(5, 2.0)), image, atol=1e-5)
        return
    for band in reversed(bands):
        if pyramid == "binomial":
            residual = band + tf.image.resize(residual, band.shape[1:3], "bilinear").numpy()
        else:
            sparse = np.zeros_like(band)
            sparse[:, 1::2, 1::2] = residual
            residual = band + 4 * blurred(sparse, FIVE_TAPS, mode=None)
    np.testing.assert_allclose(residual, image, atol=1e-5)


def row_weights(pyramid, size=64):
    """Share of each row in the change of the loss at a uniform error, 1 on average for a loss that is the mean error."""
    change = 2.0**-4 * np.eye(size, dtype=np.float32)[:, :, None, None] * np.ones((size, size, size, 1), np.float32)
    error = np.ones((size, size, size, 1), np.float32)
    # a band that is zero has a kink there, which both sides take alike
    above, below = (laplacian_pyramid_loss(error + sign * change, 0 * error, pyramid=pyramid) for sign in (1, -1))
    return (np.asarray(above) - np.asarray(below)) / (2 * 2.0**-4) * size


def test_border_rows_weigh_what_all_do():
    for pyramid in ("binomial", "official"):
        np.testing.assert_allclose(row_weights(pyramid), 1.0, atol=2e-3)
    old = row_weights("zero_padded")
    assert old[[0, 1, -2, -1]].mean() > 1.3 * old[24:40].mean()


def test_the_official_code_repeats_the_outermost_pixel():
    """Which is what gives its two outermost rows 1.29 of the weight; by one reflected pixel more it would be ours."""

    def residual_weights(mode):
        matrix = np.eye(64)
        for size in (64, 32, 16, 8):
            padded = np.pad(np.eye(size), ((2, 2), (0, 0)), mode=mode)
            blur = sum(tap * padded[i : i + size] for i, tap in enumerate(gaussian_kernel(5, 2.0)))
            matrix = 0.5 * (blur[::2] + blur[1::2]) @ matrix
        return matrix.sum(0) * 64 / len(matrix)

    assert residual_weights("edge")[:2].mean() == pytest.approx(1.29, abs=0.005)
    assert residual_weights("edge")[0] == pytest.approx(1.555, abs=0.005)
    np.testing.assert_allclose(residual_weights("symmetric"), 1.0, atol=1e-9)


def test_inside_the_frame_the_official_pyramid_is_the_public_code_s():
    """But for the sum of the kernel's axes: four pixels from the border on, where no padding reaches."""
    image = random_frames(1, 32, 32, 1)
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    kernel = np.outer(gaussian_kernel(5, 2.0), gaussian_kernel(5, 2.0))[:, :, None, None].astype(np.float32)
    public = tf.nn.conv2d(padded, kernel, 1, "VALID").numpy()
    band, residual = (np.asarray(level) for level in laplacian_pyramid(image, 1, "official"))
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(band[inside], (image - public)[inside], atol=1e-6)
    public = tf.nn.avg_pool2d(public, 2, 2, "VALID").numpy()
    np.testing.assert_allclose(residual[:, 1:-1, 1:-1], public[:, 1:-1, 1:-1], atol=1e-6)


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
    with pytest.raises(
        ValueError, match="`pyramid` must be one of binomial, official, zero_padded. Received 'steerable'"
    ):
        laplacian_pyramid(frames, 2, "steerable")
    with pytest.raises(ValueError, match="at least 1"):
        laplacian_pyramid(frames, 0)
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        laplacian_pyramid(frames[0], 2)
    with pytest.raises(ValueError, match="odd"):
        gaussian_kernel(4)


def test_pyramid_golden(shared):
    golden = np.load(shared / "golden" / "golden_card_packages.npz")
    levels = laplacian_pyramid(golden["image"], num_levels=3, pyramid="zero_padded")
    for index, level in enumerate(levels):
        np.testing.assert_allclose(level, golden[f"tfg_pyramid_split_level{index}"], atol=1e-5)
    for index in (1, 2):
        residual = laplacian_pyramid(golden["image"], num_levels=index, pyramid="zero_padded")[-1]
        np.testing.assert_allclose(residual, golden[f"tfg_pyramid_down{index}"], atol=1e-5)
