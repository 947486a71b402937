"""Convolutions of frames and clips with explicit padding, as used by discriminators."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.layers.spectral_norm import SpectralNorm
from tfvidgen.layers.tiled_convolution import TAPS, tiled_convolution

_MANY_CHANNELS = 64  # input channels from which the extra additions of `tiled_convolution` pay off


def pytorch_uniform(seed: int | None = None, mode: str = "fan_in") -> keras.initializers.Initializer:
    """PyTorch's default initialiser for convolutions: uniform in +-1/sqrt(fan)."""
    return keras.initializers.VarianceScaling(1.0 / 3.0, mode, "uniform", seed=seed)


class Convolution(keras.layers.Layer):
    """Convolution of (N, H, W, C) or (N, T, H, W, C) with `padding` zeros on both sides of each axis, as in PyTorch.

    With stride 2, Keras's "same" pads differently from PyTorch. The kernel has shape (*kernel_size, C, filters).

    Args:
        filters: Output channels.
        kernel_size: Kernel size along the spatial and temporal axes; two or three ints.
        strides, padding: Along the same axes.
        use_bias: Whether to add a bias.
        spectral_norm: Whether to divide the kernel by its largest singular value, see `SpectralNorm`.
        kernel_initializer: Defaults to PyTorch's, see `pytorch_uniform`.
        seed: Seeds the default initialiser and spectral normalisation.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        strides: Sequence[int],
        padding: Sequence[int],
        use_bias: bool = False,
        spectral_norm: bool = False,
        kernel_initializer=None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not len(kernel_size) == len(strides) == len(padding) or len(kernel_size) not in (2, 3):
            raise ValueError(
                "`kernel_size`, `strides` and `padding` need two ints each for frames, three for clips. Received "
                f"{tuple(kernel_size)}, {tuple(strides)} and {tuple(padding)}."
            )
        self.filters, self.use_bias = filters, use_bias
        self.kernel_size, self.strides, self.padding = tuple(kernel_size), tuple(strides), tuple(padding)
        self.kernel_initializer = kernel_initializer or pytorch_uniform(seed)
        self.norm = SpectralNorm(seed=seed, name="spectral_norm") if spectral_norm else None

    def build(self, input_shape):
        shape = (*self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer, autocast=False)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        if self.norm is not None:
            self.norm.build(shape)
        self.built = True

    def compute_output_shape(self, input_shape):
        taken = zip(input_shape[1:-1], self.kernel_size, self.strides, self.padding, strict=True)
        inner = [None if n is None else (n + 2 * p - k) // s + 1 for n, k, s, p in taken]
        return (input_shape[0], *inner, self.filters)

    def call(self, x, training=False):
        kernel = ops.convert_to_tensor(self.kernel)
        if self.norm is not None:
            kernel = self.norm(kernel, training=training)
        halves_on_cpu = self._halves_clips_on_cpu(x.shape)
        if halves_on_cpu and self.kernel_size[0] == TAPS <= x.shape[1] and x.shape[-1] >= _MANY_CHANNELS:
            x = tiled_convolution(x, kernel)
        else:
            kernel = ops.cast(kernel, x.dtype)
            if any(self.padding):
                x = ops.pad(x, ((0, 0), *((p, p) for p in self.padding), (0, 0)))
            if halves_on_cpu:
                x = _by_phases(x, kernel)
            else:
                x = ops.conv(x, kernel, self.strides, "valid", "channels_last")
        return x + ops.cast(self.bias, x.dtype) if self.use_bias else x

    def _halves_clips_on_cpu(self, shape) -> bool:
        """Whether this is a spatially halving convolution of clips on a CPU, for which there are faster implementations."""
        return (
            len(self.kernel_size) == 3
            and (self.kernel_size[1:], self.strides, self.padding) == ((4, 4), (1, 2, 2), (0, 1, 1))
            and all(n is not None for n in shape[1:])
            and shape[2] % 2 == shape[3] % 2 == 0
            and keras.config.backend() == "tensorflow"
            and not tf.config.list_physical_devices("GPU")
        )


def _by_phases(x, kernel):
    """The same convolution as one of stride 1, after space-to-depth: (N, T, H, W, C) with the padding included.

    With three input channels it takes half the time of the library's strided kernel, with more channels the same time; but
    TensorFlow's graph rewriter fails on that kernel after a padding ("remapper failed").
    """
    shape = tf.shape(x)
    frames = tf.nn.space_to_depth(tf.reshape(x, (-1, *x.shape[2:])), 2)  # (N T, H/2, W/2, 4 C)
    x = tf.reshape(frames, (shape[0], shape[1], *frames.shape[1:]))  # (N, T, H/2, W/2, 4 C)
    time, height, width, channels, filters = kernel.shape
    # (time, 4, 4, C, filters) -> (time, 2, 2, 4 C, filters), channels in the order of space-to-depth
    taps = tf.reshape(kernel, (time, height // 2, 2, width // 2, 2, channels, filters))
    taps = tf.transpose(taps, (0, 1, 3, 2, 4, 5, 6))
    taps = tf.reshape(taps, (time, height // 2, width // 2, 4 * channels, filters))
    return tf.nn.conv3d(x, taps, [1] * 5, "VALID")
