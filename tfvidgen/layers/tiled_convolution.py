"""3-D convolution with fewer multiplications: Winograd along time, two output frames per tile.

Two outputs of a temporal filter with four taps take eight products; by interpolation they take five, between linear
combinations of frames and of taps (Toom and Cook; Winograd 1980, F(2, 4); Lavin and Gray 2016,
https://arxiv.org/abs/1509.09308). Each product is a 2-D convolution, so a video discriminator does 5/8 of the work. Results
differ by rounding: relative errors of 2e-6 in float32 and 8e-3 in bfloat16, whose own precision is 3e-3.
"""

from __future__ import annotations

import functools

import numpy as np

from tfvidgen._tensorflow import tf

TAPS = 4
_POINTS = (0.0, 1.0, -1.0, 0.5)  # interpolation points, in addition to infinity
_TILE = 2  # output frames per tile
# For maps of up to this many pixels per side, the kernel gradient is a matrix product of patches and output gradients: there
# the library's kernel reaches half the speed of a matrix product in float32 and a third in bfloat16.
_FEW_PIXELS = {"bfloat16": 8, "float32": 4}


@functools.cache
def _transforms(num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transforms of the kernel (5, 4), the frames (5, J, T) and the products (T - 3, 5, J), float32, for J tiles."""
    size = _TILE + TAPS - 1
    output, kernel = np.zeros((_TILE, size)), np.zeros((size, TAPS))
    for i, point in enumerate(_POINTS):
        output[:, i] = point ** np.arange(_TILE)
        kernel[i] = point ** np.arange(TAPS) / np.prod([point - other for other in _POINTS if other != point])
    output[-1, -1] = kernel[-1, -1] = 1.0
    # the transform of the frames is the unique solution of: output i = sum over k of tap k times frame i + k
    products = np.einsum("ip,pk->ikp", output, kernel).reshape(-1, size)
    wanted = np.zeros((_TILE, TAPS, size))
    for i in range(_TILE):
        wanted[i, range(TAPS), range(i, i + TAPS)] = 1.0
    frames = np.linalg.lstsq(products, wanted.reshape(-1, size), rcond=None)[0]  # (5, 5)

    num_outputs = num_frames - TAPS + 1
    num_tiles = -(-num_outputs // _TILE)
    of_frames = np.zeros((size, num_tiles, num_tiles * _TILE + TAPS - 1))
    of_outputs = np.zeros((num_tiles * _TILE, size, num_tiles))
    for tile in range(num_tiles):
        first = tile * _TILE
        of_frames[:, tile, first : first + size] = frames
        of_outputs[first : first + _TILE, :, tile] = output
    # the last tile may extend beyond the clip: its surplus frames and outputs are cut off
    return tuple(
        np.ascontiguousarray(values, np.float32)
        for values in (kernel, of_frames[..., :num_frames], of_outputs[:num_outputs])
    )


def tiled_convolution(x, kernel):
    """Convolution with a 4x4x4 kernel, stride (1, 2, 2) and padding (0, 1, 1).

    Args:
        x: (B, T, H, W, C), static but for B; H and W even, T at least 4.
        kernel: (4, 4, 4, C, F), float32 or the dtype of `x`.

    Returns:
        (B, T - 3, H / 2, W / 2, F), in the dtype of `x`.
    """
    kernel = tf.convert_to_tensor(kernel)
    num_frames, height, width, channels = x.shape[1:]
    filters = kernel.shape[-1]
    of_kernel, of_frames, of_outputs = _transforms(num_frames)
    size, num_tiles, _ = of_frames.shape

    def kernels(kernel):  # five 2-D kernels (4, 4, C, F)
        sums = tf.matmul(tf.constant(of_kernel), tf.reshape(tf.cast(kernel, tf.float32), (TAPS, -1)))
        return tf.unstack(tf.cast(tf.reshape(sums, (size, TAPS, TAPS, channels, filters)), x.dtype))

    def over_time(matrix, values):
        """(rows, columns) times (B, columns, ...)."""
        return tf.matmul(tf.constant(matrix, values.dtype), values)

    @tf.custom_gradient
    def convolve(x, kernel):
        frames = tf.reshape(x, (-1, num_frames, height * width * channels))
        products = []
        for i, pictures in enumerate(kernels(kernel)):
            tiles = tf.reshape(over_time(of_frames[i], frames), (-1, height, width, channels))  # (B J, H, W, C)
            product = tf.nn.conv2d(tiles, pictures, 2, "SAME")  # (B J, H / 2, W / 2, F)
            products.append(tf.reshape(product, (-1, num_tiles, height * width * filters // 4)))
        y = over_time(of_outputs.reshape(len(of_outputs), -1), tf.concat(products, 1))

        def gradient(upstream):
            parts = tf.reshape(upstream, (-1, len(of_outputs), height * width * filters // 4))
            products = []
            for i, pictures in enumerate(kernels(kernel)):
                tiles = over_time(of_outputs[:, i].T, parts)
                tiles = tf.reshape(tiles, (-1, height // 2, width // 2, filters))
                shape = tf.stack([tf.shape(tiles)[0], height, width, channels])
                product = tf.nn.conv2d_transpose(tiles, pictures, shape, 2, "SAME")
                products.append(tf.reshape(product, (-1, num_tiles, height * width * channels)))
            adjoint = of_frames.reshape(-1, num_frames).T
            of_x = tf.reshape(over_time(adjoint, tf.concat(products, 1)), tf.shape(x))
            return of_x, tf.cast(_kernel_gradient(x, kernel.shape, upstream), kernel.dtype)

        return tf.reshape(y, (-1, len(of_outputs), height // 2, width // 2, filters)), gradient

    return convolve(x, kernel)


def _kernel_gradient(x, shape, upstream):
    x = tf.pad(x, [[0, 0], [0, 0], [1, 1], [1, 1], [0, 0]])
    if upstream.shape[2] <= _FEW_PIXELS.get(x.dtype.name, 0):
        patches = _patches(x)
        patches = tf.reshape(patches, (-1, patches.shape[-1]))
        product = tf.matmul(patches, tf.reshape(upstream, (-1, shape[-1])), transpose_a=True)
        return tf.reshape(product, shape)
    return tf.raw_ops.Conv3DBackpropFilterV2(
        input=x, filter_sizes=shape, out_backprop=upstream, strides=[1, 1, 2, 2, 1], padding="VALID"
    )


def _patches(x):
    """(B, T, H + 2, W + 2, C) -> (B, T - 3, H / 2, W / 2, 64 C): the 4x4x4 patch of each output, in kernel order."""
    for axis in (3, 2):
        half = x.shape[axis] // 2
        pairs = tf.reshape(x, (-1, *x.shape[1:axis], half, 2, *x.shape[axis + 1 :]))
        taps = tf.unstack(pairs, axis=axis + 1)
        begin, size = ([value if i == axis else other for i in range(5)] for value, other in ((1, 0), (half - 1, -1)))
        x = tf.concat([tf.slice(v, b, size) for b in ([0] * 5, begin) for v in taps], -1)
    num_outputs = x.shape[1] - TAPS + 1
    return tf.concat([x[:, i : i + num_outputs] for i in range(TAPS)], -1)
