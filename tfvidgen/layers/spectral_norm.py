"""Spectral normalisation of a kernel, and a dense layer that may use it."""

from __future__ import annotations

import keras
from keras import ops


class SpectralNorm(keras.layers.Layer):
    """Divides a kernel by an estimate of its largest singular value.

    The kernel is treated as a matrix with one row per output channel. Each training call does one power iteration,
    v = W'u / |W'u|, u = Wv / |Wv|, and divides by u'Wv, through which gradients flow to W only; evaluation uses the stored u
    and v. `keras.layers.SpectralNormalization` overwrites the kernel instead, so its gradient ignores the division.

    Args:
        filters_axis: Axis of the kernel that counts output channels; -1 for convolutions and dense layers, -2 for
            transposed convolutions.
        epsilon: Lower bound of norms, which avoids division by zero.

    Call arguments:
        kernel: The kernel.
        training: Whether to do a power iteration.

    Output shape: That of the kernel, float32.

    Source: Miyato et al. 2018, https://arxiv.org/abs/1802.05957; same iterates as `torch.nn.utils.spectral_norm`.
    """

    def __init__(self, filters_axis: int = -1, epsilon: float = 1e-12, seed: int | None = None, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.filters_axis, self.epsilon, self.seed = filters_axis, epsilon, seed

    def build(self, kernel_shape):
        rows = kernel_shape[self.filters_axis]
        size = 1
        for length in kernel_shape:
            size *= length
        for name, length, offset in (("u", rows, 0), ("v", size // rows, 1)):
            start = keras.initializers.RandomNormal(0.0, 1.0, seed=None if self.seed is None else self.seed + offset)
            weight = self.add_weight(name=name, shape=(length,), initializer=start, trainable=False)
            weight.assign(self._unit(ops.convert_to_tensor(weight)))
            setattr(self, name, weight)
        self.built = True

    def _unit(self, vector):
        return vector / ops.maximum(ops.norm(vector), self.epsilon)

    def call(self, kernel, training=False):
        kernel = ops.cast(kernel, "float32")
        matrix = ops.reshape(ops.moveaxis(kernel, self.filters_axis, 0), (self.u.shape[0], -1))  # W (outputs, the rest)
        u, v = ops.convert_to_tensor(self.u), ops.convert_to_tensor(self.v)
        if training:
            fixed = ops.stop_gradient(matrix)  # u and v are constants to the gradient
            v = self._unit(ops.matmul(u, fixed))
            u = self._unit(ops.matmul(fixed, v))
            self.u.assign(u)
            self.v.assign(v)
        sigma = ops.sum(u * ops.matmul(matrix, v))
        return kernel / sigma


class NormedDense(keras.layers.Dense):
    """A dense layer in float32 whose kernel may be divided by its largest singular value.

    Variables that a layer reads have that layer's compute dtype: were this product taken in the `call` of a discriminator that
    computes in bfloat16, kernel and bias would be rounded to it.

    Call arguments:
        inputs: float32 (B, features).
        norm: A built `SpectralNorm` of the kernel, or None.
        training: Whether the norm does a power iteration.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(units, dtype="float32", **kwargs)

    def call(self, inputs, norm=None, training=False):
        if norm is None:
            return super().call(inputs)
        outputs = ops.matmul(inputs, norm(self.kernel, training=training))
        return outputs + self.bias if self.use_bias else outputs
