"""RMoCoGAN: MoCoGAN whose content may vary slightly from frame to frame.

Paper: Dandi et al., "Jointly Trained Image and Video Generation using Residual Vectors", WACV 2020, Sec. 4.2,
https://arxiv.org/abs/1912.07991. No public code.

The content of frame t is z_C + delta_C^(t) with delta_C^(t) = f(z_C, z_M^(t)): temporal dependence enters through the
motion codes alone. Everything else is MoCoGAN, so this file only adds f.

Shapes in comments are those of MoCoGAN's published size: d_C = 50, d_M = 10, K categories.

Deviation: the paper does not specify f. Here it is an MLP, 60 -> 128 -> 50 with a ReLU, whose last layer is initialised to
zero, so that training starts from MoCoGAN. Pinned by test_starts_as_mocogan.
"""

from __future__ import annotations

import keras
from keras import ops

from tfvidgen.models.mocogan import MoCoGAN


# ---------------------------------------------------------------- content residual f (Sec. 4.2)
class ContentResidual(keras.layers.Layer):
    """f: content and motion codes -> residual of the content code of each frame; zero at initialisation.

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
        content = ops.repeat(content[:, None], ops.shape(motion)[1], axis=1)  # z_C (B, 50) -> (B, T, 50)
        # [z_C; z_M^(t)] (B, T, 60) -> (B, T, 128) -> delta_C^(t) (B, T, 50)
        return self.output_layer(self.hidden(ops.concatenate([content, motion], axis=-1)))


# ---------------------------------------------------------------- the system (Sec. 4.2; losses and updates: MoCoGAN's)
class RMoCoGAN(MoCoGAN):
    """MoCoGAN with a content residual; other arguments and training as for MoCoGAN.

    Args:
        residual_units: Hidden units of the residual network.
        **kwargs: Arguments of `MoCoGAN`.
    """

    def __init__(self, residual_units: int = 128, **kwargs):
        super().__init__(**kwargs)
        self._config["residual_units"] = residual_units
        self.residual = ContentResidual(
            self.content_dim, self.motion_dim, residual_units, seed=self.seed + 80, dtype="float32", name="residual"
        )

    def _generator_networks(self):
        return [*super()._generator_networks(), self.residual]  # G_I, R_M and f

    def frame_codes(self, latents):
        """[z_C + delta_C^(t); label; z_M^(t)] of every frame: (B, T, code_dim)."""
        codes = super().frame_codes(latents)  # (B, T, 50 + K + 10)
        delta = self.residual(latents["content"], latents["motion"])  # (B, T, 50)
        # the residual is added to the first d_C columns only
        return ops.concatenate([codes[..., : self.content_dim] + delta, codes[..., self.content_dim :]], axis=-1)
