"""Laplacian pyramid of frames, and the reconstruction loss on its levels.

The pyramid is linear, so the loss builds it once, from the difference of the two frames. Blur, decimation and expansion are
separable and computed as products with small banded matrices; the plain convolution form is kept as the reference.

Source: Burt and Adelson, IEEE Trans. Communications 1983; loss: Bojanowski et al., ICML 2018 (GLO), Sec. 3.2, and Aich
et al., CVPR 2020, Sec. 4.2, https://arxiv.org/abs/2003.09565. Border handling and expansion are those of the pyramid of
tensorflow-graphics 2021.12.3 (zeros outside the frame).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from keras import ops

BINOMIAL_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def gaussian_kernel(size: int = 5, sigma: float = 2.0) -> tuple[float, ...]:
    """Taps of a sampled 1-D Gaussian, normalised to sum to one.

    The 2-D kernel is the outer product of the taps with themselves.

    Deviation: the official code of the papers above sums g(x)^2 + g(y)^2 instead, which is not a Gaussian: at size 5 and
    sigma 2 its centre and corner weights are .0607 and .0223, those of the product .0632 and .0232.

    Args:
        size: Number of taps; odd and positive.
        sigma: Standard deviation in pixels; positive.

    Returns:
        `size` floats.

    Raises:
        ValueError: If `size` is not a positive odd number or `sigma` is not positive.
    """
    if size < 1 or size % 2 == 0 or sigma <= 0:
        raise ValueError(f"`size` must be odd and positive and `sigma` positive. Received size={size}, sigma={sigma}.")
    offsets = np.arange(size) - size // 2
    taps = np.exp(-(offsets**2) / (2.0 * sigma**2))
    return tuple((taps / taps.sum()).tolist())


@functools.lru_cache(maxsize=64)
def _reduce_matrix(size: int, kernel: tuple[float, ...]) -> np.ndarray:
    """Blur and decimation along one axis: (ceil(size / 2), size). Twice its transpose is the expansion."""
    reduced_size = (size + 1) // 2
    # Output i is centred on input 2i + 1 of an even axis and on 2i of an odd one, as with stride 2 and "same" padding.
    phase = 1 - size % 2
    matrix = np.zeros((reduced_size, size), np.float32)
    for row in range(reduced_size):
        for tap, weight in enumerate(kernel):
            column = 2 * row + phase + tap - len(kernel) // 2
            if 0 <= column < size:
                matrix[row, column] = weight
    return matrix


def _matrix_bands(images, num_levels: int, kernel: tuple[float, ...]) -> list:
    """Pyramid by matrix products, of (H, W, M) with all frames and channels in M; levels have the same layout."""
    levels = []
    for _ in range(num_levels):
        height, width = images.shape[:2]
        rows = _reduce_matrix(height, kernel)
        cols = _reduce_matrix(width, kernel)
        reduced = ops.reshape(ops.matmul(rows, ops.reshape(images, (height, -1))), (len(rows), width, -1))
        reduced = ops.matmul(cols, reduced)  # (ceil(H / 2), ceil(W / 2), M)
        expanded = ops.matmul(2.0 * cols.T, reduced)  # (ceil(H / 2), W, M)
        expanded = ops.matmul(2.0 * rows.T, ops.reshape(expanded, (len(rows), -1)))  # (H, W M)
        levels.append(images - ops.reshape(expanded, (height, width, -1)))
        images = reduced
    return [*levels, images]


def _insert_zeros(images, axis: int, size: int):
    """Upsample `axis` to `size` by inserting zeros; entries go to the positions that decimation kept."""
    pair = [ops.zeros_like(images), images] if size % 2 == 0 else [images, ops.zeros_like(images)]
    shape = list(ops.shape(images))
    shape[axis] *= 2
    doubled = ops.reshape(ops.stack(pair, axis=axis + 1), shape)
    return doubled[:, :size] if axis == 1 else doubled[:, :, :size]


def _convolution_bands(images, num_levels: int, kernel: tuple[float, ...]) -> list:
    """Pyramid by depthwise convolutions, of (N, H, W, C)."""
    taps = np.asarray(kernel, np.float32)
    blur = np.tile(np.outer(taps, taps)[:, :, None, None], (1, 1, images.shape[-1], 1))
    levels = []
    for _ in range(num_levels):
        _, height, width, _ = images.shape
        reduced = ops.depthwise_conv(images, blur, strides=2, padding="same", data_format="channels_last")
        expanded = _insert_zeros(_insert_zeros(reduced, 1, height), 2, width)
        # Three of four samples are zeros: doubling the kernel along each axis preserves brightness.
        expanded = ops.depthwise_conv(expanded, 4.0 * blur, strides=1, padding="same", data_format="channels_last")
        levels.append(images - expanded)
        images = reduced
    return [*levels, images]


def _check(images, num_levels: int, kernel: Sequence[float], method: str) -> tuple[float, ...]:
    kernel = tuple(float(tap) for tap in kernel)
    if len(kernel) % 2 == 0 or not np.allclose(kernel, kernel[::-1]):
        raise ValueError(f"`kernel` must hold an odd number of symmetric taps for one axis. Received {kernel}.")
    if method not in ("matrix", "convolution"):
        raise ValueError(f"`method` must be 'matrix' or 'convolution'. Received {method!r}.")
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1. Received {num_levels}.")
    shape = tuple(images.shape)
    if len(shape) < 3 or any(size is None for size in shape[-3:]):
        raise ValueError(f"Frames must have shape (..., H, W, C) with H, W and C known. Received shape {shape}.")
    if min(shape[-3:-1]) < 2**num_levels:
        raise ValueError(
            f"{num_levels} pyramid levels need frames of at least {2**num_levels} x {2**num_levels} pixels. Received "
            f"{shape[-3]} x {shape[-2]}: use larger frames or a smaller `num_levels`."
        )
    return kernel


def laplacian_pyramid(
    images, num_levels: int = 4, kernel: Sequence[float] = BINOMIAL_KERNEL, method: str = "matrix"
) -> list:
    """Split frames into band-pass levels and a low-pass residual.

    Args:
        images: (N, H, W, C), any range; H and W at least `2**num_levels`, odd sizes included.
        num_levels: Number of band-pass levels K.
        kernel: Symmetric 1-D blur kernel with an odd number of taps.
        method: "matrix" (fast) or "convolution" (reference); equal up to rounding.

    Returns:
        K + 1 float32 tensors: level l has shape (N, ceil(H / 2^l), ceil(W / 2^l), C), the last one is the residual.

    Raises:
        ValueError: If the frames are too small for `num_levels`, their size is unknown, or an option is invalid.
    """
    images = ops.cast(ops.convert_to_tensor(images), "float32")
    if len(images.shape) != 4:
        raise ValueError(f"`images` must have shape (N, H, W, C). Received shape {tuple(images.shape)}.")
    kernel = _check(images, num_levels, kernel, method)
    if method == "convolution":
        return _convolution_bands(images, num_levels, kernel)
    _, height, width, channels = images.shape
    columns = ops.reshape(ops.transpose(images, (1, 2, 0, 3)), (height, width, -1))
    return [
        ops.transpose(ops.reshape(level, (*level.shape[:2], -1, channels)), (2, 0, 1, 3))
        for level in _matrix_bands(columns, num_levels, kernel)
    ]


def laplacian_pyramid_loss(
    generated,
    real,
    num_levels: int = 4,
    reduction: str = "mean",
    kernel: Sequence[float] = BINOMIAL_KERNEL,
    method: str = "matrix",
):
    """L1 distance between the Laplacian pyramids of each pair of frames.

    Paper: L(v, v') = sum_l 2^(2l) |L^l(v) - L^l(v')|_1 with l = 0..K, the residual being level K. Level l has 4^l times
    fewer values than the frame, so the sum divided by H * W * C is the unweighted sum of the *means* of the levels
    (exactly if 2^K divides H and W). The mean form is the default: its scale, and so a learning rate, does not depend on
    the size of the frames.

    Args:
        generated: (..., H, W, C) with any leading dimensions, any range.
        real: Frames of the same shape.
        num_levels: Number of band-pass levels K.
        reduction: "mean" for the sum over levels of mean absolute values, "sum" for the paper's weighted sum.
        kernel: Symmetric 1-D blur kernel with an odd number of taps.
        method: "matrix" (fast) or "convolution" (reference); equal up to rounding.

    Returns:
        float32 tensor of the leading dimensions: one loss per frame.

    Raises:
        ValueError: If the frames are too small for `num_levels`, their size is unknown, or an option is invalid.

    Source: Bojanowski et al., ICML 2018, Sec. 3.2, and Aich et al., CVPR 2020, Sec. 4.2, whose official code takes the means.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum'. Received {reduction!r}.")
    difference = ops.cast(generated, "float32") - ops.cast(real, "float32")
    kernel = _check(difference, num_levels, kernel, method)
    leading, (height, width, channels) = ops.shape(difference)[:-3], difference.shape[-3:]
    frames = ops.reshape(difference, (-1, height, width, channels))
    if method == "convolution":
        levels = _convolution_bands(frames, num_levels, kernel)
        sums = [ops.sum(ops.abs(level), axis=(1, 2, 3)) for level in levels]
    else:
        columns = ops.reshape(ops.transpose(frames, (1, 2, 0, 3)), (height, width, -1))
        levels = _matrix_bands(columns, num_levels, kernel)
        sums = [ops.sum(ops.reshape(ops.sum(ops.abs(level), axis=(0, 1)), (-1, channels)), axis=1) for level in levels]
    loss = 0.0
    for index, (level, level_sum) in enumerate(zip(levels, sums, strict=True)):
        if reduction == "sum":
            weight = 4.0**index
        else:
            rows, cols = level.shape[1:3] if method == "convolution" else level.shape[:2]
            weight = 1.0 / (rows * cols * channels)
        loss += weight * level_sum
    return ops.reshape(loss, leading)
