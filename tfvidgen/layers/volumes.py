"""Convolutions that halve or double time, height and width, in the implementations that are fastest on a CPU."""

from __future__ import annotations

import keras
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.layers.spectral_norm import SpectralNorm

# Measured on AVX-512 cores: on 4x4 maps the library's 3-D kernels reach a fifth to a half of the speed of a matrix product,
# and gathering patches is almost free; from 8x8 on they are as fast or faster.
_FEW_PIXELS = 4


class DownConv3D(keras.layers.Conv3D):
    """Convolution with a 4x4x4 kernel and stride 2: (B, T, H, W, C) -> (B, T/2, H/2, W/2, filters).

    Numerically equal to `Conv3D`. T, H and W must be even and static.

    Args:
        filters: Output channels.
        use_bias: Whether to add a bias; useless before a batch norm, which cancels it.
        spectral_norm: Divides the kernel by its largest singular value, see `SpectralNorm`.
    """

    def __init__(self, filters: int, use_bias: bool = False, spectral_norm: bool = False, **kwargs):
        super().__init__(filters, 4, 2, padding="same", use_bias=use_bias, data_format="channels_last", **kwargs)
        seed = getattr(self.kernel_initializer, "seed", None)
        self.spectral_norm = SpectralNorm(seed=seed, name="spectral_norm") if spectral_norm else None

    def build(self, input_shape):
        super().build(input_shape)
        if self.spectral_norm is not None:
            self.spectral_norm.build(self.kernel.shape)

    def call(self, inputs, training=False):
        kernel = self.kernel
        if self.spectral_norm is not None:
            kernel = ops.cast(self.spectral_norm(kernel, training=training), inputs.dtype)
        if _on_large_maps(inputs.shape[2] // 2):
            outputs = self.convolution_op(inputs, kernel)
        else:
            patches = _patches(inputs)  # (B, T/2, H/2, W/2, 64 C), or 32 C
            matrix = _as_matrix(tf.convert_to_tensor(kernel), only_middle=inputs.shape[1] == 2)
            rows = tf.matmul(tf.reshape(patches, (-1, patches.shape[-1])), matrix)
            outputs = tf.reshape(rows, (-1, *patches.shape[1:-1], self.filters))
        return outputs + ops.cast(self.bias, outputs.dtype) if self.use_bias else outputs


class UpConv3D(keras.layers.Conv3DTranspose):
    """Transposed convolution with a 4x4x4 kernel, stride 2 and no bias: (B, T, H, W, C) -> (B, 2T, 2H, 2W, filters).

    Numerically equal to `Conv3DTranspose`. T, H and W must be static.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(filters, 4, 2, padding="same", use_bias=False, data_format="channels_last", **kwargs)

    def call(self, inputs):
        if _on_large_maps(inputs.shape[2]):
            return super().call(inputs)
        matrix = _as_matrix(tf.convert_to_tensor(self.kernel), only_middle=inputs.shape[1] == 1)
        rows = tf.matmul(tf.reshape(inputs, (-1, inputs.shape[-1])), matrix, transpose_b=True)
        return _overlap_add(tf.reshape(rows, (-1, *inputs.shape[1:-1], matrix.shape[0])))


def _on_large_maps(pixels: int) -> bool:
    """Whether the library's kernel is faster for maps of that many pixels per side."""
    if keras.config.backend() != "tensorflow" or tf.config.list_physical_devices("GPU"):
        return True
    return pixels > _FEW_PIXELS


def _patches(x):
    """(B, T, H, W, C) -> (B, T/2, H/2, W/2, 64 C): the 4x4x4 patch of each output, in kernel order (im2col).

    With two frames it is 32 C: the first and last temporal taps only meet padding.
    """

    @tf.custom_gradient
    def gather(x):
        for axis in (3, 2, 1):  # the axis gathered last becomes the kernel's first
            alone = axis == 1 and x.shape[1] == 2
            x = tf.concat([x[:, :1], x[:, 1:]], -1) if alone else _gather_taps(x, axis)
        return x, _overlap_add

    return gather(x)


def _overlap_add(x):
    """(B, T, H, W, 64 C) -> (B, 2T, 2H, 2W, C): sums overlapping patches (col2im); the adjoint of `_patches`."""

    @tf.custom_gradient
    def scatter(x):
        for axis in (1, 2, 3):
            alone = axis == 1 and x.shape[1] == 1  # 32 C
            x = tf.concat(tf.split(x, 2, -1), 1) if alone else _scatter_taps(x, axis)
        return x, _patches

    return scatter(x)


def _gather_taps(x, axis: int):
    """Stacks pixels 2i - 1 .. 2i + 2 along an axis as channels of position i."""
    shape = x.shape
    half = shape[axis] // 2
    x = tf.pad(x, _on_axis(axis, [1, 1], [0, 0]))
    pairs = tf.reshape(x, (-1, *shape[1:axis], half + 1, 2, *shape[axis + 1 :]))
    odd, even = tf.unstack(pairs, axis=axis + 1)  # pixels 2i - 1 and 2i
    size = _on_axis(axis, half, -1)
    first, second = _on_axis(axis, 0, 0), _on_axis(axis, 1, 0)
    return tf.concat([tf.slice(v, begin, size) for begin in (first, second) for v in (odd, even)], -1)


def _scatter_taps(x, axis: int):
    """Adds tap k of position i to pixel 2i + k - 1 along an axis; the adjoint of `_gather_taps`."""
    shape = x.shape
    taps = tf.split(x, 4, -1)
    size = _on_axis(axis, shape[axis], -1)
    before = tf.slice(tf.pad(taps[3], _on_axis(axis, [1, 0], [0, 0])), _on_axis(axis, 0, 0), size)  # of i - 1
    after = tf.slice(tf.pad(taps[0], _on_axis(axis, [0, 1], [0, 0])), _on_axis(axis, 1, 0), size)  # of i + 1
    pixels = tf.stack([taps[1] + before, taps[2] + after], axis + 1)
    return tf.reshape(pixels, (-1, *shape[1:axis], 2 * shape[axis], *shape[axis + 1 : -1], shape[-1] // 4))


def _on_axis(axis: int, value, other) -> list:
    return [value if i == axis else other for i in range(5)]


def _as_matrix(kernel, only_middle: bool):
    """(4, 4, 4, I, O) -> (64 I, O), or (32 I, O) with only the two middle temporal taps."""

    @tf.custom_gradient
    def middle(kernel):
        def gradient(upstream):  # ten times faster than the built-in gradient of a slice
            return tf.concat([tf.zeros_like(upstream[:1]), upstream, tf.zeros_like(upstream[:1])], 0)

        return kernel[1:3], gradient

    return tf.reshape(middle(kernel) if only_middle else kernel, (-1, kernel.shape[-1]))
