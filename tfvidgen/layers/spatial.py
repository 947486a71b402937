"""Spatial operations used by optical flow and older video models: warping, correlation, Gaussian filter.

Numerically equal to their counterparts in tensorflow-addons 0.23.
"""

from __future__ import annotations

import numpy as np
from keras import ops


def dense_image_warp(image, flow):
    """Backward-warps frames by a dense flow field, with bilinear interpolation.

    `output[b, y, x] = image[b, y - flow[b, y, x, 0], x - flow[b, y, x, 1]]`; positions outside the frame take the value of
    the nearest edge pixel. Differentiable in both arguments.

    Args:
        image: float (B, H, W, C), H and W at least 2.
        flow: float (B, H, W, 2) in pixels; channel 0 is vertical, channel 1 horizontal.

    Returns:
        (B, H, W, C) in the dtype of `image`.

    Raises:
        ValueError: If the shapes do not match.
    """
    image, flow = ops.convert_to_tensor(image), ops.convert_to_tensor(flow)
    shape, flow_shape = tuple(image.shape), tuple(flow.shape)
    if len(shape) != 4 or len(flow_shape) != 4 or flow_shape[-1] != 2 or shape[1:3] != flow_shape[1:3]:
        raise ValueError(
            f"`image` must have shape (B, H, W, C) and `flow` (B, H, W, 2). Received shapes {shape} and {flow_shape}."
        )
    if any(size is not None and size < 2 for size in shape[1:3]):
        raise ValueError(f"Warping needs frames of at least 2 x 2 pixels. Received {shape[1]} x {shape[2]}.")
    batch, height, width, channels = ops.shape(image)
    flow = ops.cast(flow, "float32")
    corners, fractions = [], []
    for axis, size in enumerate((height, width)):
        grid = ops.cast(ops.arange(size), "float32")
        grid = ops.reshape(grid, (-1, 1) if axis == 0 else (1, -1))
        place = grid - flow[..., axis]
        last = ops.cast(size - 2, "float32")
        # Upper left of the four neighbours, all inside the frame; clipping the fraction extends the edge outwards.
        corner = ops.minimum(ops.maximum(ops.floor(place), 0.0), last)
        corner = ops.stop_gradient(corner)
        corners.append(ops.cast(corner, "int32"))
        fractions.append(ops.cast(ops.clip(place - corner, 0.0, 1.0), image.dtype)[..., None])
    pixels = ops.reshape(image, (-1, channels))
    first = ops.reshape(ops.arange(batch, dtype="int32") * (height * width), (-1, 1, 1))
    (row, col), (down, right) = corners, fractions

    def fetch(row, col):
        return ops.take(pixels, first + row * width + col, axis=0)

    upper = fetch(row, col) * (1.0 - right) + fetch(row, col + 1) * right
    lower = fetch(row + 1, col) * (1.0 - right) + fetch(row + 1, col + 1) * right
    return upper * (1.0 - down) + lower * down


def correlation_cost(a, b, max_displacement: int = 4):
    """Cost volume: correlates each position of one feature map with its neighbourhood in another.

    `output[n, y, x, (dy + d) * (2d + 1) + (dx + d)] = mean_c a[n, y, x, c] * b[n, y + dy, x + dx, c]` with
    d = `max_displacement` and zeros outside the map.

    Args:
        a: float (B, H, W, C).
        b: float (B, H, W, C).
        max_displacement: Largest displacement d along each axis, in pixels of the map; not negative.

    Returns:
        (B, H, W, (2d + 1)^2).

    Raises:
        ValueError: If the shapes differ or `max_displacement` is negative.
    """
    a, b = ops.convert_to_tensor(a), ops.convert_to_tensor(b)
    if len(a.shape) != 4 or tuple(a.shape[1:]) != tuple(b.shape[1:]) or max_displacement < 0:
        raise ValueError(
            "`a` and `b` must have the same shape (B, H, W, C), and `max_displacement` must not be negative. Received "
            f"shapes {tuple(a.shape)} and {tuple(b.shape)}, max_displacement={max_displacement}."
        )
    _, height, width, _ = ops.shape(a)
    reach = 2 * max_displacement + 1
    border = (max_displacement, max_displacement)
    padded = ops.pad(b, [(0, 0), border, border, (0, 0)])
    costs = []
    for dy in range(reach):
        for dx in range(reach):
            costs.append(ops.mean(a * padded[:, dy : dy + height, dx : dx + width], axis=-1))
    return ops.stack(costs, axis=-1)


def gaussian_filter2d(image, size: int = 5, sigma: float = 2.0):
    """Gaussian blur of frames, with reflection padding that does not repeat the edge.

    Args:
        image: float (B, H, W, C), H and W larger than `size // 2`.
        size: Kernel size along each axis; odd.
        sigma: Standard deviation in pixels; positive.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: If `size` is not odd and positive, `sigma` is not positive, or the frames are too small.
    """
    image = ops.convert_to_tensor(image)
    shape = tuple(image.shape)
    if size < 1 or size % 2 == 0 or sigma <= 0:
        raise ValueError(f"`size` must be odd and positive and `sigma` positive. Received size={size}, sigma={sigma}.")
    radius = size // 2
    if len(shape) != 4 or any(length is not None and length <= radius for length in shape[1:3]):
        raise ValueError(
            f"`image` must have shape (B, H, W, C) with H and W larger than {radius} for size={size}. Received {shape}."
        )
    offsets = np.arange(size) - radius
    taps = np.exp(-(offsets**2) / (2.0 * sigma**2))
    taps /= taps.sum()
    blurred = ops.pad(image, [(0, 0), (radius, radius), (radius, radius), (0, 0)], mode="reflect")
    for kernel_shape in ((size, 1, 1, 1), (1, size, 1, 1)):  # separable: vertical, then horizontal
        kernel = np.tile(taps.reshape(kernel_shape), (1, 1, shape[-1], 1))
        kernel = ops.cast(kernel, image.dtype)
        blurred = ops.depthwise_conv(blurred, kernel, strides=1, padding="valid", data_format="channels_last")
    return blurred
