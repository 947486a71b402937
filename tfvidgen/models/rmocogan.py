"""RMoCoGAN: MoCoGAN whose content may vary a little from frame to frame.

Paper: Dandi et al., "Jointly Trained Image and Video Generation using Residual Vectors", WACV 2020, Sec. 4.2,
https://arxiv.org/abs/1912.07991. No public code.

Frame t has the content z_C + delta_C^(t) with delta_C^(t) = f(z_C, z_M^(t)): what changes over time comes through the
motion codes alone. Everything else is MoCoGAN's, so this file is that system plus f.

Deviation: the paper does not say what f is. Here it is 60 -> 128 -> 50 with a ReLU, and its last layer starts at zero, so
that training begins as MoCoGAN's does. Pinned by test_starts_as_mocogan.
"""

from __future__ import annotations

import keras
from keras import ops

from tfvidgen.models.mocogan import MoCoGAN


class ContentResidual(keras.layers.Layer):
    """f: content and motion codes -> what is added to the content of each frame; zero at the start.

    Args:
        content_dim: Width d_C of a content code.
        motion_dim: Width d_M of a motion code.
        units: Hidden units.

    Input shape: (B, content_dim) and (B, T, motion_dim). Output shape: (B, T, content_dim).
    """

    def __init__(self, content_dim: int, motion_dim: int, units: int = 128, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.content_dim, self.motion_dim = content_dim, motion_dim
        initializer = keras.initializers.HeUniform(seed)
        self.hidden = keras.layers.Dense(
            units, "relu", kernel_initializer=initializer, dtype=self.dtype_policy, name="hidden"
        )
        self.output_layer = keras.layers.Dense(
            content_dim, kernel_initializer="zeros", dtype=self.dtype_policy, name="output"
        )

    def build(self, input_shape=None):
        self.hidden.build((None, None, self.content_dim + self.motion_dim))
        self.output_layer.build((None, None, self.hidden.units))
        self.built = True

    def call(self, content, motion):
        content = ops.repeat(content[:, None], ops.shape(motion)[1], axis=1)
        return self.output_layer(self.hidden(ops.concatenate([content, motion], axis=-1)))


class RMoCoGAN(MoCoGAN):
    """MoCoGAN with a content residual; arguments and training are MoCoGAN's.

    Args:
        residual_units: Hidden units of the residual's network.
        **kwargs: Of `MoCoGAN`.
    """

    def __init__(self, residual_units: int = 128, **kwargs):
        super().__init__(**kwargs)
        self._config["residual_units"] = residual_units
        self.residual = ContentResidual(
            self.content_dim, self.motion_dim, residual_units, seed=self.seed + 80, dtype="float32", name="residual"
        )

    def _generator_networks(self):
        return [*super()._generator_networks(), self.residual]

    def frame_codes(self, latents):
        """[z_C + delta_C^(t); label; z_M^(t)] of every frame: (B, T, code_dim)."""
        codes = super().frame_codes(latents)
        delta = self.residual(latents["content"], latents["motion"])
        return ops.concatenate([codes[..., : self.content_dim] + delta, codes[..., self.content_dim :]], axis=-1)
