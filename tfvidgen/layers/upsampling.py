"""Transposed convolution that doubles an image, in the implementations that are fastest on a CPU."""

from __future__ import annotations

import keras

from tfvidgen._tensorflow import tf

# Measured on AVX-512 cores, where the library's kernels reach the speed of a matrix product except in two cases:
_FEW_FILTERS = 4  # forward, up to this many output channels: a sixth of that speed
_FEW_PIXELS = {"bfloat16": 8, "float32": 4}  # kernel gradient, up to this many pixels per side: 1/3 to 3/4 of it


def _phases(kernel):
    """Sub-pixel form of a transposed convolution: kernel (4, 4, C', C) -> (3, 3, C, 4 C'), which yields all four phases.

    Output row 2i uses taps 3 and 1 on rows i - 1 and i; output row 2i + 1 uses taps 2 and 0 on rows i and i + 1.
    """

    def split(taps):  # (4, ...) -> (2 phases, 3 taps, ...)
        zero = tf.zeros_like(taps[:1])
        return tf.stack([tf.concat([taps[3:4], taps[1:2], zero], 0), tf.concat([zero, taps[2:3], taps[0:1]], 0)])

    rows = split(kernel)  # (2, 3, 4, C', C)
    both = split(tf.transpose(rows, (2, 0, 1, 3, 4)))  # (2, 3, 2, 3, C', C): columns, then rows
    both = tf.transpose(both, (3, 1, 5, 2, 0, 4))
    return tf.reshape(both, (3, 3, kernel.shape[3], 4 * kernel.shape[2]))


def _double(x, kernel):
    shape = tf.shape(x)
    shape = tf.stack([shape[0], 2 * shape[1], 2 * shape[2], kernel.shape[2]])
    return tf.nn.conv2d_transpose(x, kernel, shape, 2, "SAME")


def _kernel_gradient(x, kernel, upstream):
    """Kernel gradient: the library's kernel, or for few pixels a convolution with channels and examples swapped."""
    if x.shape[1] is not None and x.shape[1] <= _FEW_PIXELS.get(x.dtype.name, 0):
        pictures = tf.transpose(upstream, (3, 1, 2, 0))  # (C', 2H, 2W, N)
        taps = tf.transpose(x, (1, 2, 0, 3))  # (H, W, N, C), dilated by the stride of 2
        gradient = tf.nn.conv2d(pictures, taps, 1, [[0, 0], [1, 1], [1, 1], [0, 0]], dilations=2)
        return tf.transpose(gradient, (1, 2, 0, 3))
    return tf.raw_ops.Conv2DBackpropFilter(
        input=upstream, filter_sizes=kernel.shape, out_backprop=x, strides=[1, 2, 2, 1], padding="SAME"
    )


class UpConv2D(keras.layers.Conv2DTranspose):
    """Transposed convolution with a 4x4 kernel, stride 2 and no bias: (N, H, W, C) -> (N, 2H, 2W, filters).

    Numerically equal to `Conv2DTranspose`. On a CPU, the forward pass of a generator's last layer, with three output
    channels, is a single 3x3 convolution to the four phases of the output (sub-pixel convolution), and the kernel gradient
    of the first layers is a convolution as well.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(filters, 4, 2, padding="same", use_bias=False, data_format="channels_last", **kwargs)

    def call(self, inputs):
        if keras.config.backend() != "tensorflow" or tf.config.list_physical_devices("GPU"):
            return super().call(inputs)

        @tf.custom_gradient
        def double(x, kernel):
            if self.filters <= _FEW_FILTERS:
                # (N, H, W, 4 filters) -> (N, 2H, 2W, filters)
                y = tf.nn.depth_to_space(tf.nn.conv2d(x, _phases(kernel), 1, "SAME"), 2)
            else:
                y = _double(x, kernel)

            def gradient(upstream):
                return tf.nn.conv2d(upstream, kernel, 2, "SAME"), _kernel_gradient(x, kernel, upstream)

            return y, gradient

        return double(inputs, tf.convert_to_tensor(self.kernel))
