"""The networks of MoCoGAN, shared by RMoCoGAN and RJGAN: frame generator, image and video discriminator.

Shapes in comments are those of the published size: 64x64 pixels, width 64, 16 frames.

Source: Tulyakov et al., CVPR 2018, https://arxiv.org/abs/1707.04993; layers of the official code
sergeytulyakov/mocogan@937a99d, models.py: no biases, LeakyReLU 0.2, PyTorch's default initialisation.
"""

from __future__ import annotations

import keras
from keras import ops

from tfvidgen.layers.batch_norm import BatchNorm
from tfvidgen.layers.convolution import Convolution, pytorch_uniform
from tfvidgen.layers.draws import add_noise, split_key
from tfvidgen.layers.upsampling import UpConv2D

_LEAK = 0.2
_TAPS = 4
HEADS = ("plain", "patch")


def num_stages(size: int) -> int:
    """Number of doublings from 4x4 to `size`; ValueError for an unsupported size."""
    stages = max(size, 1).bit_length() - 3
    if size < 8 or size != 4 << stages:
        raise ValueError(
            f"`size` must be 64, as published, or another of 8, 16, 32, 128, ...: these networks start at 4x4 pixels and double. "
            f"Received {size}."
        )
    return stages


def real_clips(video, num_frames: int, size: int):
    """uint8 clips of a batch -> float32 in [-1, 1]; ValueError for clips whose shape does not fit the model."""
    if tuple(video.shape[1:]) != (num_frames, size, size, 3):
        raise ValueError(
            f"This model trains on {'single frames' if num_frames == 1 else f'clips of {num_frames} frames'} of "
            f"{size}x{size} pixels, `video` of shape (B, {num_frames}, {size}, {size}, 3). Received {tuple(video.shape)}: "
            "build it with the `num_frames` and `size` of the data."
        )
    return ops.cast(video, "float32") / 127.5 - 1.0


def _norm(policy, name: str) -> BatchNorm:
    return BatchNorm(momentum=0.9, epsilon=1e-5, dtype=policy, name=name)


def _seed(seed: int | None, offset: int) -> int | None:
    return None if seed is None else seed + offset


class FrameGenerator(keras.layers.Layer):
    """G_I: one code -> one frame in [-1, 1].

    Args:
        code_dim: Width of a code.
        size: Height and width of a frame; 8, 16, 32, 64, ...
        width: Channels before the last layer; each earlier stage has twice as many, up to `width * 8`.

    Input shape: (N, code_dim). Output shape: (N, size, size, 3), float32.
    """

    def __init__(self, code_dim: int, size: int = 64, width: int = 64, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        stages = num_stages(size)
        policy = self.dtype_policy
        self.code_dim = code_dim
        self.channels = [width * 2 ** min(i, 3) for i in reversed(range(stages))]  # e.g. 512, 256, 128, 64
        # A transposed convolution of a 1x1 input is a matrix product; PyTorch takes its fan from output channels and taps.
        self.project = keras.layers.Dense(
            16 * self.channels[0],
            use_bias=False,
            kernel_initializer=pytorch_uniform(_seed(seed, 0), "fan_out"),
            dtype=policy,
            name="project",
        )
        self.ups = [
            UpConv2D(c, kernel_initializer=pytorch_uniform(_seed(seed, i)), dtype=policy, name=f"up_{i}")
            for i, c in enumerate(self.channels[1:], 1)
        ]
        self.norms = [_norm(policy, f"norm_{i}") for i in range(stages)]
        # low precision saves nothing with three output channels
        self.to_rgb = UpConv2D(
            3, kernel_initializer=pytorch_uniform(_seed(seed, stages)), dtype="float32", name="to_rgb"
        )

    def build(self, input_shape=None):
        self.project.build((None, self.code_dim))
        size = 4
        for i, channels in enumerate(self.channels):
            self.norms[i].build((None, size, size, channels))
            (self.ups[i] if i < len(self.ups) else self.to_rgb).build((None, size, size, channels))
            size *= 2
        self.built = True

    def call(self, code, training=False):
        x = ops.reshape(self.project(code), (-1, 4, 4, self.channels[0]))  # (N, code_dim) -> (N, 4, 4, 512)
        for norm, up in zip(self.norms, [*self.ups, self.to_rgb], strict=True):
            # (N, 8, 8, 256), (N, 16, 16, 128), (N, 32, 32, 64), (N, 64, 64, 3)
            x = up(ops.relu(norm(x, training=training)))
        return ops.tanh(x)


class _Discriminator(keras.layers.Layer):
    """Convolutions that halve height and width, then a head: one logit from the last 4x4 pixels, or a patch of logits."""

    def __init__(self, size, width, head, outputs, times, noise_stddev, spectral_norm, seed, **kwargs):
        super().__init__(**kwargs)
        if head not in HEADS:
            raise ValueError(f"A discriminator's head must be one of {HEADS}. Received {head!r}.")
        stages = num_stages(size) - (1 if head == "patch" else 0)
        if stages < 1:
            raise ValueError(f"A patch discriminator needs frames of at least 16 pixels. Received size={size}.")
        policy = self.dtype_policy
        self.size, self.noise_stddev = size, noise_stddev
        self.noisy_head = head == "patch" and not times  # official code: only this head adds noise
        halving = {
            "kernel_size": (*times, _TAPS, _TAPS),
            "strides": (*(1 for _ in times), 2, 2),
            "padding": (*(0 for _ in times), 1, 1),
            "spectral_norm": spectral_norm,
            "dtype": policy,
        }
        last = {**halving, "strides": (*(1 for _ in times), 1, 1), "padding": (*(0 for _ in times), 0, 0)}
        self.convolutions = [
            Convolution(width * 2 ** min(i, 3), seed=_seed(seed, i), name=f"conv_{i}", **halving) for i in range(stages)
        ]
        self.norms = [None] + [_norm(policy, f"norm_{i}") for i in range(1, stages)]
        self.head = Convolution(
            outputs, seed=_seed(seed, stages), name="head", **(halving if head == "patch" else last)
        )

    def _build(self, shape):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            convolution.build(shape)
            shape = convolution.compute_output_shape(shape)
            if norm is not None:
                norm.build(shape)
        self.head.build(shape)
        self.built = True

    def call(self, x, noise_key=None, training=False):
        """Frames or clips -> logits (N, ..., outputs), float32."""
        keys = [None] * (len(self.convolutions) + 1)
        if self.noise_stddev and noise_key is not None:
            keys = split_key(noise_key, len(keys))
        x = ops.cast(x, self.compute_dtype)
        for convolution, norm, key in zip(self.convolutions, self.norms, keys[:-1], strict=True):
            x = convolution(add_noise(x, self.noise_stddev, key), training=training)
            if norm is not None:
                x = norm(x, training=training)
            # frames: (N, 32, 32, 64), (N, 16, 16, 128), (N, 8, 8, 256), (N, 4, 4, 512); the last not with a patch head
            # clips: the same with 13, 10, 7 and 4 frames, as (N, T, H, W, C)
            x = ops.leaky_relu(x, _LEAK)
        if self.noisy_head:
            x = add_noise(x, self.noise_stddev, keys[-1])
        return ops.cast(self.head(x, training=training), "float32")  # (N, 1, 1, 1) or (N, 1, 1, 1, 1 + K)


class ImageDiscriminator(_Discriminator):
    """D_I: frames -> real/fake logits.

    Args:
        size: Height and width of a frame.
        width: Channels of the first layer; each later one has twice as many, up to `width * 8`.
        head: `plain` for one logit per frame, `patch` for 4x4 (official training script).
        noise_stddev: Standard deviation of Gaussian noise before each strided convolution.
        spectral_norm: Whether to apply spectral normalisation to every kernel.

    Call arguments:
        frames: (N, size, size, 3) in [-1, 1].
        noise_key: int64 (2,) of the noise; None for no noise.

    Output shape: (N, 1, 1, 1) or (N, 4, 4, 1), float32.
    """

    def __init__(
        self,
        size: int = 64,
        width: int = 64,
        head: str = "plain",
        noise_stddev: float = 0.0,
        spectral_norm: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(size, width, head, 1, (), noise_stddev, spectral_norm, seed, **kwargs)

    def build(self, input_shape=None):
        self._build((None, self.size, self.size, 3))


class VideoDiscriminator(_Discriminator):
    """D_V: clips -> real/fake logits and, optionally, category logits.

    Temporal convolutions are unpadded, so a clip needs at least `field` frames (the receptive field): 16 at 64x64 pixels
    with the published kernel size of 4. Longer clips give one logit per temporal position.

    Args:
        size, width, head, noise_stddev, spectral_norm: As for `ImageDiscriminator`.
        num_categories: K of the categorical discriminator, 0 for none.
        temporal_taps: Temporal kernel size of each convolution; smaller ones accept shorter clips.

    Call arguments:
        clips: (N, T, size, size, 3) in [-1, 1].
        noise_key: As for `ImageDiscriminator`.

    Output shape: (N, T', 1 or 4, 1 or 4, 1 + K), float32; category logits last.
    """

    def __init__(
        self,
        size: int = 64,
        width: int = 64,
        head: str = "plain",
        num_categories: int = 0,
        temporal_taps: int = 4,
        noise_stddev: float = 0.0,
        spectral_norm: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        if temporal_taps < 1:
            raise ValueError(f"`temporal_taps` must be at least 1. Received {temporal_taps}.")
        times = (temporal_taps,)
        super().__init__(size, width, head, 1 + num_categories, times, noise_stddev, spectral_norm, seed, **kwargs)
        self.field = (len(self.convolutions) + 1) * (temporal_taps - 1) + 1  # in frames, head included

    def build(self, input_shape=None):
        self._build((None, None, self.size, self.size, 3))

    def check_length(self, num_frames: int) -> None:
        """Raises ValueError for clips shorter than the receptive field."""
        if num_frames < self.field:
            raise ValueError(
                f"The video discriminator needs {self.field} frames at {self.size}x{self.size} pixels. Received clips of "
                f"num_frames={num_frames}: make them longer, or lower `temporal_taps`."
            )
