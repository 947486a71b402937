"""Laplacian pyramid of frames, and the reconstruction loss on its levels.

The pyramid is linear, so the loss builds it once, from the difference of the two frames. Blur, decimation and expansion are
separable and computed as products with small banded matrices.

There are three pyramids, see `PYRAMIDS`. All split a frame x into bands and a residual; a level has half the height and width
of the one before it.

* `binomial`, ours: taps (1, 3, 3, 1) / 8 around the middle of the two pixels that a coarse one replaces; a band is x minus the
  expansion of the coarse image, which is bilinear interpolation (twice the transposed reduction, after Burt and Adelson).
* `official`, of the public code of NAVSynth and GLO: a Gaussian blur with sigma 2 over five taps; a band is x - blur(x), and
  the next level the mean of each 2x2 pixels of blur(x).
* `zero_padded`, of tensorflow-graphics 2021.12.3, with which runs of earlier versions were trained: taps (1, 4, 6, 4, 1) / 16
  around every second pixel, zeros outside the frame, expansion after Burt and Adelson. Frames may have any size.

The first two reflect the frame at its border, the outermost pixel included. A uniform error then lies in the residual alone,
and every pixel has the same weight. With zeros outside, the two outermost rows of a 64x64 frame weigh 1.48 where those inside
weigh 1.1 (gradient of the loss at a uniform error, in units of that of the mean error).

Deviation: the public code repeats the outermost pixel instead, by which the two outermost rows weigh 1.29, the outermost alone
1.55; reflected, they weigh 1. Pinned by test_border_rows_weigh_what_all_do.
Deviation: its kernel is g(x)^2 + g(y)^2, which is not a Gaussian: at size 5 and sigma 2 its centre and corner weights are .0607
and .0223, those of the product .0632 and .0232. Pinned by test_gaussian_taps_and_the_sum_kernel_of_public_code.

Source: Burt and Adelson, IEEE Trans. Communications 1983; loss: Bojanowski et al., ICML 2018 (GLO), Sec. 3.2, and Aich
et al., CVPR 2020, Sec. 4.2, https://arxiv.org/abs/2003.09565; code: abhishekaich27/Navsynth@a652f7a, utils.py.
"""

from __future__ import annotations

import functools

import numpy as np
from keras import ops

PYRAMIDS = ("binomial", "official", "zero_padded")
_FIVE_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_FOUR_TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def gaussian_kernel(size: int = 5, sigma: float = 2.0) -> tuple[float, ...]:
    """Taps of a sampled 1-D Gaussian, normalised to sum to one.

    The 2-D kernel is the outer product of the taps with themselves.

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


def _filter_matrix(size: int, taps: tuple[float, ...], stride: int, first: int, reflect: bool) -> np.ndarray:
    """A filter along one axis, (ceil(size / stride), size): output i has its first tap on input `stride` i + `first`."""
    matrix = np.zeros(((size + stride - 1) // stride, size), np.float32)
    for row in range(len(matrix)):
        for tap, weight in enumerate(taps):
            column = stride * row + first + tap
            if reflect:  # -1 -> 0, -2 -> 1; size -> size - 1, ...
                column = -1 - column if column < 0 else min(column, 2 * size - 1 - column)
            if 0 <= column < size:
                matrix[row, column] += weight
    return matrix


@functools.lru_cache(maxsize=64)
def _matrices(size: int, pyramid: str) -> tuple[np.ndarray, np.ndarray]:
    """The two steps from one level to the next along one axis.

    For `official` a blur (size, size), then the mean of pairs (size / 2, size); otherwise a reduction (ceil(size / 2), size),
    then the expansion of its result (size, ceil(size / 2)).
    """
    if pyramid == "official":
        blur = _filter_matrix(size, gaussian_kernel(), 1, -2, reflect=True)
        return blur, _filter_matrix(size, (0.5, 0.5), 2, 0, reflect=True)
    if pyramid == "binomial":
        reduction = _filter_matrix(size, _FOUR_TAPS, 2, -1, reflect=True)
    else:
        # output i is centred on input 2i + 1 of an even axis and on 2i of an odd one, as with stride 2 and "same" padding
        reduction = _filter_matrix(size, _FIVE_TAPS, 2, -1 - size % 2, reflect=False)
    return reduction, 2.0 * reduction.T


def _along_both(rows: np.ndarray, columns: np.ndarray, images):
    """Applies matrices (h, H) and (w, W) to images (H, W, M) -> (h, w, M)."""
    height, width = images.shape[:2]
    images = ops.matmul(rows, ops.reshape(images, (height, -1)))  # (h, W M)
    return ops.matmul(columns, ops.reshape(images, (len(rows), width, -1)))


def _bands(images, num_levels: int, pyramid: str) -> list:
    """Bands and residual of images (H, W, M), with all frames and channels in M; levels have the same layout."""
    levels = []
    for _ in range(num_levels):
        (first_rows, second_rows), (first_columns, second_columns) = (
            _matrices(size, pyramid) for size in images.shape[:2]
        )
        first = _along_both(first_rows, first_columns, images)  # blurred, or reduced
        second = _along_both(second_rows, second_columns, first)  # reduced, or expanded
        smooth, coarse = (first, second) if pyramid == "official" else (second, first)
        levels.append(images - smooth)
        images = coarse
    return [*levels, images]


def _check(images, num_levels: int, pyramid: str) -> None:
    if pyramid not in PYRAMIDS:
        raise ValueError(f"`pyramid` must be one of {', '.join(PYRAMIDS)}. Received {pyramid!r}.")
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1. Received {num_levels}.")
    shape = tuple(images.shape)
    if len(shape) < 3 or any(size is None for size in shape[-3:]):
        raise ValueError(f"Frames must have shape (..., H, W, C) with H, W and C known. Received shape {shape}.")
    height, width = shape[-3:-1]
    if min(height, width) < 2**num_levels:
        raise ValueError(
            f"{num_levels} pyramid levels need frames of at least {2**num_levels} x {2**num_levels} pixels. Received "
            f"{height} x {width}: use larger frames or a smaller `num_levels`."
        )
    if pyramid != "zero_padded" and (height % 2**num_levels or width % 2**num_levels):
        raise ValueError(
            f"{num_levels} levels of the pyramid {pyramid!r} need height and width divisible by {2**num_levels}. Received "
            f"{height} x {width}: crop the frames, use a smaller `num_levels`, or pyramid='zero_padded'."
        )


def laplacian_pyramid(images, num_levels: int = 4, pyramid: str = "binomial") -> list:
    """Split frames into band-pass levels and a low-pass residual.

    Args:
        images: (N, H, W, C), any range; H and W divisible by `2**num_levels`, or for `zero_padded` at least that.
        num_levels: Number of band-pass levels K.
        pyramid: One of `PYRAMIDS`.

    Returns:
        K + 1 float32 tensors: level l has shape (N, ceil(H / 2^l), ceil(W / 2^l), C), the last one is the residual.

    Raises:
        ValueError: If the frames are too small for `num_levels`, their size is unknown, or an option is invalid.
    """
    images = ops.cast(ops.convert_to_tensor(images), "float32")
    if len(images.shape) != 4:
        raise ValueError(f"`images` must have shape (N, H, W, C). Received shape {tuple(images.shape)}.")
    _check(images, num_levels, pyramid)
    _, height, width, channels = images.shape
    columns = ops.reshape(ops.transpose(images, (1, 2, 0, 3)), (height, width, -1))
    return [
        ops.transpose(ops.reshape(level, (*level.shape[:2], -1, channels)), (2, 0, 1, 3))
        for level in _bands(columns, num_levels, pyramid)
    ]


def laplacian_pyramid_loss(generated, real, num_levels: int = 4, reduction: str = "mean", pyramid: str = "binomial"):
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
        pyramid: One of `PYRAMIDS`.

    Returns:
        float32 tensor of the leading dimensions: one loss per frame.

    Raises:
        ValueError: If the frames are too small for `num_levels`, their size is unknown, or an option is invalid.

    Source: Bojanowski et al., ICML 2018, Sec. 3.2, and Aich et al., CVPR 2020, Sec. 4.2, whose official code takes the means.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum'. Received {reduction!r}.")
    difference = ops.cast(generated, "float32") - ops.cast(real, "float32")
    _check(difference, num_levels, pyramid)
    leading, (height, width, channels) = ops.shape(difference)[:-3], difference.shape[-3:]
    frames = ops.reshape(difference, (-1, height, width, channels))
    columns = ops.reshape(ops.transpose(frames, (1, 2, 0, 3)), (height, width, -1))
    loss = 0.0
    for index, level in enumerate(_bands(columns, num_levels, pyramid)):
        level_sum = ops.sum(ops.reshape(ops.sum(ops.abs(level), axis=(0, 1)), (-1, channels)), axis=1)
        rows, cols = level.shape[:2]
        weight = 4.0**index if reduction == "sum" else 1.0 / (rows * cols * channels)
        loss += weight * level_sum
    return ops.reshape(loss, leading)
