"""VGAN: generating videos with scene dynamics.

Paper: Vondrick, Pirsiavash and Torralba, NIPS 2016, https://arxiv.org/abs/1609.02612. Official code:
cvondrick/videogan@88c0c4d (Torch 7).

Two streams decode a latent code: a foreground clip f with a mask m, and a static background image b, combined as
G(z) = m * f + (1 - m) * b. A spatio-temporal discriminator judges whole clips; a sparsity penalty on the mask encourages
the use of the background stream. Conditioned on a first frame instead of a code, the same networks predict the future. The
trained discriminator, with a new last layer, classifies actions.

Shapes in comments are those of the published size: 32 frames of 64x64 pixels, width 64.

Differences from the official code (each pinned by a test):
Deviation: no bias before batch norm, which cancels it: the 1,920 biases of the official generator only drift. Counting
them, the generators are equal in size. Pinned by test_generator_parameter_count_is_published.
Deviation: a single sigmoid logit instead of two softmax logits, whose softmax depends on their difference only; so other
adversarial losses apply as well. Both logits get the same gradient with opposite signs, so under Adam their difference moves
by two steps where a single logit moves by one: the last layer learns half as fast. Pinned by
test_one_logit_is_the_difference_of_two and test_one_logit_moves_half_as_fast_under_adam.
Deviation: the generator's step evaluates the discriminator after its update; the official code reuses the outputs from
before it. Pinned by test_the_generator_learns_from_the_updated_discriminator.
Deviation: Adam adds its epsilon of 1e-8 after bias correction, as PyTorch does and as for all systems here; Torch 7 adds it
before. Steps of the published networks differ by 0.01 % at first, less later: few gradients are so small. Pinned by
test_the_optimizer_is_pytorch_s_adam.
Deviation: clips may have any multiple of 16 frames (at 64x64 pixels), not just 32; at 32 the networks are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.layers.augmentation import augment, check_augmentation
from tfvidgen.layers.batch_norm import BatchNorm
from tfvidgen.layers.dcgan import real_clips
from tfvidgen.layers.draws import replica_normal, replica_uniform, split_key, update_key
from tfvidgen.layers.replicas import num_replicas, sampling_key, step_key
from tfvidgen.layers.spectral_norm import NormedDense, SpectralNorm
from tfvidgen.layers.upsampling import UpConv2D
from tfvidgen.layers.volumes import DownConv3D, UpConv3D
from tfvidgen.losses.adversarial import (
    Kind,
    category_loss,
    check_kind,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from tfvidgen.models.base import LatentSpec, VideoGenerator
from tfvidgen.optimizers import StepGuard, check_counts, pytorch_adam

LATENT_DIM = 100  # paper
MASK_WEIGHT = 0.1  # lambda of the mask's L1 norm (paper)
ENCODER_EPSILON = 1e-3  # of the batch norms of the conditional encoder (official code)
FIRST_FRAME_WEIGHT = 10.0  # of the conditional generator's L1 loss on its first frame (official code)
_LEAK = 0.2  # negative slope of leaky ReLU (official code)


def _stages(size: int, num_frames: int) -> int:
    """Number of doublings from 4x4 to `size`; ValueError for unsupported sizes and lengths."""
    stages = max(size, 1).bit_length() - 3
    if stages < 1 or size != 4 << stages:
        raise ValueError(f"`size` must be 8, 16, 32, 64, 128, ...: the networks double 4x4 pixels. Received {size}.")
    if num_frames < 1 or num_frames % (1 << stages):
        raise ValueError(
            f"At {size}x{size} pixels the networks double time, too, {stages} times: `num_frames` must be a multiple of "
            f"{1 << stages}. Received {num_frames}."
        )
    return stages


def _channels(width: int, stages: int) -> list[int]:
    """Channels at 4x4, 8x8, ...: 512, 256, 128, 64 for width 64 and four stages."""
    return [width * 2 ** min(i, 3) for i in reversed(range(stages))]


def _kernel(seed: int | None, offset: int) -> keras.initializers.Initializer:
    # official code: N(0, 0.01), biases 0
    return keras.initializers.RandomNormal(0.0, 0.01, seed=None if seed is None else seed + offset)


def _norm(seed: int | None, offset: int, epsilon: float = 1e-5, **kwargs) -> BatchNorm:
    # official code: gain N(1, 0.02)
    gain = keras.initializers.RandomNormal(1.0, 0.02, seed=None if seed is None else seed + offset)
    return BatchNorm(momentum=0.9, epsilon=epsilon, gamma_initializer=gain, **kwargs)


# ---------------------------------------------------------------- two-stream generator (paper; layers: official code)
class _Stream(keras.layers.Layer):
    """Upsamples a 4x4 map to an image or a clip: transposed convolutions with batch norm and ReLU in between."""

    def __init__(self, up, channels: Sequence[int], num_outputs: int, seed: int | None, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.ups = [
            up(c, kernel_initializer=_kernel(seed, i), dtype=policy, name=f"up_{i}")
            for i, c in enumerate(channels[1:], 1)
        ]
        self.norms = [_norm(seed, 10 + i, dtype=policy, name=f"norm_{i}") for i in range(1, len(channels))]
        self.head = up(num_outputs, kernel_initializer=_kernel(seed, len(channels)), dtype=policy, name="head")

    def build(self, input_shape):
        shape = input_shape
        for up, norm in zip(self.ups, self.norms, strict=True):
            up.build(shape)
            shape = (None, *(2 * length for length in shape[1:-1]), up.filters)  # time too, for clips
            norm.build(shape)
        self.head.build(shape)
        self.bias = self.add_weight(name="bias", shape=(self.head.filters,), initializer="zeros")
        self.built = True

    def call(self, x, training=False):
        # images: (B, 4, 4, 512) -> 8x8x256 -> 16x16x128 -> (B, 32, 32, 64)
        # clips: (B, 2, 4, 4, 512) -> 4x8x8x256 -> 8x16x16x128 -> (B, 16, 32, 32, 64)
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = ops.relu(norm(up(x), training=training))
        return ops.cast(self.head(x), "float32") + ops.cast(self.bias, "float32")  # (B, 64, 64, 3), (B, 32, 64, 64, 4)


class FrameEncoder(keras.layers.Layer):
    """Encoder of the conditional generator: first frames (B, size, size, 3) -> (B, 4, 4, C), C = `width * 8` from 64 pixels.

    Args:
        size, width: As for `TwoStreamGenerator`.
        epsilon: Of the batch norms.

    Source: the paper's future generation; layers of the official code.
    """

    def __init__(
        self,
        size: int = 64,
        width: int = 128,
        epsilon: float = ENCODER_EPSILON,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = size
        channels = list(reversed(_channels(width, _stages(size, size))))  # 128, 256, 512, 1024
        policy = self.dtype_policy
        self.downs = [
            keras.layers.Conv2D(
                c,
                4,
                2,
                "same",
                use_bias=i == 0,
                kernel_initializer=_kernel(seed, i),
                data_format="channels_last",
                dtype=policy,
                name=f"down_{i}",
            )
            for i, c in enumerate(channels)
        ]
        self.norms = [_norm(seed, 10 + i, epsilon, dtype=policy, name=f"norm_{i}") for i in range(1, len(channels))]

    def build(self, input_shape=None):
        shape = (None, self.size, self.size, 3)
        for i, down in enumerate(self.downs):
            down.build(shape)
            shape = (None, shape[1] // 2, shape[2] // 2, down.filters)
            if i:
                self.norms[i - 1].build(shape)
        self.built = True

    def call(self, frame, training=False):
        x = ops.relu(self.downs[0](frame))  # (B, 32, 32, 128), no batch norm
        for down, norm in zip(self.downs[1:], self.norms, strict=True):
            x = ops.relu(norm(down(x), training=training))  # (B, 16, 16, 256), (B, 8, 8, 512), (B, 4, 4, 1024)
        return x


class TwoStreamGenerator(keras.layers.Layer):
    """Code or first frame -> foreground clip, mask, and background image.

    Args:
        size: Height and width; 4 times a power of two, at least 8.
        num_frames: Frames of a clip; a multiple of size / 4.
        width: Channels before the last layer; each earlier stage has twice as many, up to `width * 8`. The official
            conditional generator has twice the width.
        latent_dim: Width of a code.
        conditional: Takes a first frame, encoded by a `FrameEncoder`, instead of a code.
        encoder_epsilon: See `FrameEncoder`.

    Call arguments:
        start: Codes (B, latent_dim), or frames (B, size, size, 3) in [-1, 1].

    Returns:
        `foreground` (B, T, H, W, 3) in [-1, 1], `mask` (B, T, H, W, 1) in [0, 1], `background` (B, 1, H, W, 3) in
        [-1, 1], float32.

    Source: the two-stream architecture of the paper; layers, biases and initialisation of the official code. The heads of
        foreground and mask are fused into one layer with four output channels, which is equivalent.
    """

    def __init__(
        self,
        size: int = 64,
        num_frames: int = 32,
        width: int = 64,
        latent_dim: int = LATENT_DIM,
        conditional: bool = False,
        encoder_epsilon: float = ENCODER_EPSILON,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        stages = _stages(size, num_frames)
        self.size, self.num_frames, self.latent_dim, self.conditional = size, num_frames, latent_dim, conditional
        self.first_frames = num_frames >> stages  # length F of the 4x4 clip: 2 for 32 frames of 64x64 pixels
        channels = self.channels = _channels(width, stages)
        policy = self.dtype_policy

        def sub_seed(offset):
            return None if seed is None else seed + offset

        def dense(units, offset, name):
            return keras.layers.Dense(
                units, use_bias=False, kernel_initializer=_kernel(seed, offset), dtype=policy, name=name
            )

        self.encoder = self.background_start = None
        if conditional:
            self.encoder = FrameEncoder(size, width, encoder_epsilon, sub_seed(300), dtype=policy, name="encoder")
            self.foreground_start = dense(self.first_frames * channels[0], 1, "foreground_start")
        else:
            # a transposed convolution of a 1x1 input is a matrix product
            self.background_start = dense(16 * channels[0], 0, "background_start")
            self.background_norm = _norm(seed, 10, dtype=policy, name="background_norm")
            self.foreground_start = dense(self.first_frames * 16 * channels[0], 1, "foreground_start")
        self.foreground_norm = _norm(seed, 11, dtype=policy, name="foreground_norm")
        # b has 3 channels; f and m have 3 + 1
        self.background = _Stream(UpConv2D, channels, 3, sub_seed(100), dtype=policy, name="background")
        self.foreground = _Stream(UpConv3D, channels, 4, sub_seed(200), dtype=policy, name="foreground")

    def build(self, input_shape=None):
        picture = (None, 4, 4, self.channels[0])  # where both streams start
        if self.conditional:
            self.encoder.build()
            self.foreground_start.build(picture)
        else:
            self.background_start.build((None, self.latent_dim))
            self.background_norm.build(picture)
            self.foreground_start.build((None, self.latent_dim))
        clip = (None, self.first_frames, *picture[1:])
        self.foreground_norm.build(clip)
        self.background.build(picture)
        self.foreground.build(clip)
        self.built = True

    def call(self, start, training=False):
        channels = self.channels[0]  # C: 512, or 1024 in the conditional generator; F is `first_frames`
        if self.conditional:
            still = self.encoder(start, training=training)  # (B, 64, 64, 3) -> (B, 4, 4, C)
            # each position of the 4x4 map becomes F time steps: (B, 4, 4, F, C)
            moving = ops.reshape(self.foreground_start(still), (-1, 4, 4, self.first_frames, channels))
            moving = ops.transpose(moving, (0, 3, 1, 2, 4))  # (B, F, 4, 4, C)
        else:
            still = ops.reshape(self.background_start(start), (-1, 4, 4, channels))  # (B, 100) -> (B, 4, 4, C)
            still = ops.relu(self.background_norm(still, training=training))
            # (B, 100) -> (B, F, 4, 4, C)
            moving = ops.reshape(self.foreground_start(start), (-1, self.first_frames, 4, 4, channels))
        moving = ops.relu(self.foreground_norm(moving, training=training))
        outputs = self.foreground(moving, training=training)  # (B, 32, 64, 64, 4)
        return {
            "foreground": ops.tanh(outputs[..., :3]),  # f (B, 32, 64, 64, 3)
            "mask": ops.sigmoid(outputs[..., 3:]),  # m (B, 32, 64, 64, 1)
            "background": ops.tanh(self.background(still, training=training))[:, None],  # b (B, 1, 64, 64, 3)
        }


def compose(foreground, mask, background):
    """m * f + (1 - m) * b, the paper's two-stream combination: foreground where the mask is 1, background where it is 0."""
    return background + mask * (foreground - background)  # b is broadcast over time: (B, T, H, W, 3)


# ---------------------------------------------------------------- spatio-temporal discriminator (layers: official code)
class VideoDiscriminator(keras.layers.Layer):
    """3-D convolutional discriminator: clips (B, T, size, size, 3) -> logits (B,), float32.

    Args:
        size, num_frames: As for `TwoStreamGenerator`.
        width: Channels of the first layer; each later one has twice as many, up to `width * 8`.
        spectral_norm: Divides every kernel by its largest singular value.

    Source: the official code: 64, 128, 256, 512 channels, leaky ReLU with slope 0.2, batch norm except in the first layer.
    """

    def __init__(
        self,
        size: int = 64,
        num_frames: int = 32,
        width: int = 64,
        spectral_norm: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        stages = _stages(size, num_frames)
        self.clip_shape = (None, num_frames, size, size, 3)
        self.num_maps = width * 2 ** min(stages - 1, 3)  # 512
        self.feature_dim = (num_frames >> stages) * 16 * self.num_maps  # 2 * 4 * 4 * 512 = 16384
        policy = self.dtype_policy
        # kernel 4, stride 2; a bias in the first layer only, which no batch norm follows
        self.downs = [
            DownConv3D(
                c,
                use_bias=i == 0,
                spectral_norm=spectral_norm,
                kernel_initializer=_kernel(seed, i),
                dtype=policy,
                name=f"down_{i}",
            )
            for i, c in enumerate(reversed(_channels(width, stages)))
        ]
        self.norms = [
            _norm(seed, 10 + i, epsilon=1e-3, dtype=policy, name=f"norm_{i}") for i in range(1, len(self.downs))
        ]
        self.head = NormedDense(1, kernel_initializer=_kernel(seed, 20), name="head")
        self.head_norm = None
        if spectral_norm:
            self.head_norm = SpectralNorm(seed=None if seed is None else seed + 21, name="head_norm")

    def build(self, input_shape=None):
        shape = self.clip_shape
        for i, down in enumerate(self.downs):
            down.build(shape)
            shape = (None, *(length // 2 for length in shape[1:-1]), down.filters)
            if i:
                self.norms[i - 1].build(shape)
        self.head.build((None, self.feature_dim))
        if self.head_norm is not None:
            self.head_norm.build(self.head.kernel.shape)
        self.built = True

    def features(self, video, training: bool = False):
        """(B, T, size, size, 3) -> (B, feature_dim), the input of the last layer."""
        x = ops.leaky_relu(self.downs[0](video, training=training), _LEAK)  # (B, 16, 32, 32, 64)
        for down, norm in zip(self.downs[1:], self.norms, strict=True):
            # (B, 8, 16, 16, 128), (B, 4, 8, 8, 256), (B, 2, 4, 4, 512)
            x = ops.leaky_relu(norm(down(x, training=training), training=training), _LEAK)
        return ops.cast(ops.reshape(x, (-1, self.feature_dim)), "float32")  # (B, 16384)

    def call(self, video, training=False):
        # the last 2x4x4 convolution covers the whole map, so it is a matrix product
        features = self.features(video, training=training)  # (B, 16384)
        return self.head(features, norm=self.head_norm, training=training)[:, 0]  # (B, 1) -> (B,)


# ---------------------------------------------------------------- the system
class VGAN(VideoGenerator):
    """Two-stream generator and spatio-temporal discriminator.

    Latents: `content` (B, latent_dim), the paper's z ~ N(0, 1). Videos always have the trained length.

    Args:
        num_frames: Frames of a clip; a multiple of size / 4 (paper: 32).
        size: Height and width of a frame; 8, 16, 32, 64, ... (paper: 64).
        latent_dim: Width of z (paper: 100).
        width: Channels of the generator's last and the discriminator's first hidden layer (official code: 64).
        spectral_norm: Applies spectral normalisation to the discriminator.
        seed: Seeds the initial weights and every random draw of a step.
    """

    conditional = False

    def __init__(
        self,
        num_frames: int = 32,
        size: int = 64,
        latent_dim: int = LATENT_DIM,
        width: int = 64,
        spectral_norm: bool = False,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._config = {
            "num_frames": num_frames,
            "size": size,
            "latent_dim": latent_dim,
            "width": width,
            "spectral_norm": spectral_norm,
            "seed": seed,
        }
        self.num_frames, self.size, self.latent_dim, self.seed = num_frames, size, latent_dim, seed
        # official conditional code: both networks have twice the width; the discriminator from network form 2 on
        generator_width = discriminator_width = width
        if self.conditional:
            generator_width, discriminator_width = 2 * width, (2 * width if self.network_form >= 2 else width)
        self.generator = TwoStreamGenerator(
            size,
            num_frames,
            generator_width,
            latent_dim,
            self.conditional,
            encoder_epsilon=ENCODER_EPSILON if self.network_form >= 2 else 1e-5,
            seed=seed,
            dtype=self.dtype_policy,
            name="generator",
        )
        self.discriminator = VideoDiscriminator(
            size,
            num_frames,
            discriminator_width,
            spectral_norm,
            seed=seed + 1000,
            dtype=self.dtype_policy,
            name="discriminator",
        )

    def get_config(self):
        return {**super().get_config(), **self._config}

    def build(self, input_shape=None):
        self.generator.build()
        self.discriminator.build()
        self.built = True

    def compile(
        self,
        generator_optimizer=None,
        discriminator_optimizer=None,
        adversarial_loss: Kind = "non_saturating",
        mask_weight: float | None = None,
        first_frame_weight: float = FIRST_FRAME_WEIGHT,
        l2_weight: float = 0.0,
        r1_weight: float = 0.0,
        augmentation: Sequence[str] = (),
        gradient_clip_norm: float = 0.0,
        accumulate: int = 1,
        discriminator_steps: int = 1,
    ):
        """Sets optimizers and loss weights, and creates all optimizer slots. Call it in the strategy's scope.

        Args:
            generator_optimizer, discriminator_optimizer: Default to PyTorch's Adam at 2e-4 with beta_1 = 0.5 (rates: official
                code).
            adversarial_loss: One of `tfvidgen.losses.adversarial.KINDS`, or a pair of callables, see there; the official
                code uses `non_saturating`.
            mask_weight: lambda of the mask's mean; None for 0.1 (paper), and for 0 in the conditional system, whose official
                code has no such penalty.
            first_frame_weight: Weight of the L1 loss between the generated and the given first frame (official code: 10);
                conditional system only.
            l2_weight: Weight decay added to the gradients, as in PyTorch's Adam.
            r1_weight: gamma of the R1 penalty; 0 disables it.
            augmentation: Names of `tfvidgen.layers.augmentation.AUGMENTATIONS`, applied to all clips the discriminator sees.
            gradient_clip_norm: Maximum global gradient norm per network; 0 disables clipping.
            accumulate: Micro-batches per update, see `tfvidgen.optimizers.StepGuard`.
            discriminator_steps: Discriminator updates per generator update. A step's batch is then that many times larger
                and split evenly among them; each update generates as many clips as its part has, and so does the
                generator's.
        """
        check_counts(discriminator_steps=discriminator_steps)
        adversarial_loss = check_kind(adversarial_loss)
        generator_optimizer = generator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
        discriminator_optimizer = discriminator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
        if mask_weight is None:
            mask_weight = 0.0 if self.conditional else MASK_WEIGHT
        super().compile(optimizer=generator_optimizer, accumulate=accumulate)
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        generator_optimizer.build(self.generator.trainable_variables)
        discriminator_optimizer.build(self.discriminator.trainable_variables)
        self.discriminator_steps = discriminator_steps
        self.adversarial_loss, self.mask_weight, self.first_frame_weight = (
            adversarial_loss,
            mask_weight,
            first_frame_weight,
        )
        self.l2_weight, self.r1_weight, self.gradient_clip_norm = l2_weight, r1_weight, gradient_clip_norm
        self.augmentation = check_augmentation(augmentation)

    # ------------------------------------------------------------ latents
    @property
    def latent_spec(self):
        return {"content": LatentSpec((self.latent_dim,), "float32", "N(0, 1)", "content")}

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        """Samples codes of videos of the trained length; arguments and errors as for `VideoGenerator.sample_latents`."""
        self._check_arguments(num_videos, num_frames, labels)
        # z ~ N(0, I), (B, 100)
        return {"content": tf.random.stateless_normal((num_videos, self.latent_dim), sampling_key(seed))}

    def _check_arguments(self, num_videos, num_frames, labels):
        self.latent_length(num_frames)
        if labels is not None:
            self._checked_labels(labels, num_videos)

    # ------------------------------------------------------------ forward
    def streams(self, latents: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """The `foreground`, `mask` and `background` of each video, see `TwoStreamGenerator`."""
        return self.generator(latents["content"], training=training)

    def decode(self, latents, training=False):
        return compose(**self.streams(latents, training=training))  # (B, T, H, W, 3)

    # ------------------------------------------------------------ training (official code: D, then G, each iteration)
    def train_step(self, batch):
        real = real_clips(batch["video"], self.num_frames, self.size)  # (B, T, H, W, 3) in [-1, 1]
        step = self.step_of(batch)
        key = step_key(self.seed, step)
        latent_key, *changes = split_key(key, 4)
        guard, losses = StepGuard(self), {}
        # With one discriminator update and no accumulation, clips are generated once and shared by both updates. Otherwise
        # they are generated again for the generator's update, so that no tape is kept meanwhile; the generator's moving
        # batch norm statistics are then updated by both passes.
        made_once = self.discriminator_steps == guard.accumulate == 1
        if not made_once:
            for i, (part,) in enumerate(guard.shares(self.discriminator_steps, real)):
                keys = split_key(update_key(key, i), 4)
                generated = guard.in_parts(
                    lambda part, key=keys[0]: compose(**self.streams(self._latents_of_step(part, key), training=True)),
                    part,
                )
                losses |= self._improve_discriminator(guard, part, generated, keys[1:3])
            real = part  # the generator's update has as many clips as the discriminator's last one

        def objective(real):
            latents = self._latents_of_step(real, latent_key)  # z, or first frames of `real`
            streams = self.streams(latents, training=True)
            generated = compose(**streams)  # (B, T, H, W, 3)
            if made_once:
                losses.update(self._improve_discriminator(guard, real, tf.stop_gradient(generated), changes[:2]))
            # generator: adversarial loss under the updated discriminator
            logits = self._judge(generated, changes[2])  # (B,)
            logs = {"generator_loss": generator_loss(logits, self.adversarial_loss)}
            # the paper's sparsity penalty: mean L1 norm of the mask, which is not negative
            logs["mask_loss"] = tf.reduce_mean(streams["mask"])
            total = logs["generator_loss"] + self.mask_weight * logs["mask_loss"]
            if self.conditional:
                # future generation: the first frame must be the given one
                logs["first_frame_loss"] = tf.reduce_mean(tf.abs(generated[:, 0] - latents["first_frame"]))
                total += self.first_frame_weight * logs["first_frame_loss"]
            return total, logs

        logs = guard.minimise(
            objective,
            self.generator.trainable_variables,
            self.generator_optimizer,
            inputs=(real,),
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )
        if self.conditional:  # first frames for `sample_latents`
            self._remember(self.encode(real)["first_frame"], step)
        return guard.finish({**losses, **logs})

    def _judge(self, video, key):
        return self.discriminator(augment(video, self.augmentation, key), training=True)  # (B,)

    def _improve_discriminator(self, guard, real, generated, changes):
        """One update; real and generated clips pass separately, so batch norm uses the batch statistics of each alone."""

        def objective(real, generated):
            logs = {}
            if self.r1_weight:
                real_logits, logs["r1_penalty"] = r1_penalty(lambda x: self._judge(x, changes[0]), real)
            else:
                real_logits = self._judge(real, changes[0])
            generated_logits = self._judge(generated, changes[1])
            # cross-entropy of real against generated; losses are summed, not averaged, over the passes (official code)
            logs["discriminator_loss"] = discriminator_loss(real_logits, generated_logits, self.adversarial_loss)
            return logs["discriminator_loss"] + self.r1_weight * logs.get("r1_penalty", 0.0), logs

        return guard.minimise(
            objective,
            self.discriminator.trainable_variables,
            self.discriminator_optimizer,
            inputs=(real, generated),
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )

    def _latents_of_step(self, real, key):
        return {"content": replica_normal(key, (tf.shape(real)[0], self.latent_dim))}  # (B, 100)


class ConditionalVGAN(VGAN):
    """Predicts the video that follows a given first frame.

    Latents: `first_frame` (B, size, size, 3) in [-1, 1]. There is no noise, so the prediction is deterministic. `encode`
    returns the first frame of a video. The most recent first frames of training are stored among the weights, so that
    `sample_latents` has frames to start from, also in a served model.

    Args:
        num_remembered: Number of first frames that are stored.
        num_frames, size, width, spectral_norm, seed: As for `VGAN`; both networks have twice the width (official code).

    Network form 1 had a discriminator of half that width and an epsilon of 1e-5 in the batch norms of the encoder.

    Source: the paper's future generation; layers, L1 weight and epsilon of the official code, main_conditional.lua.
    """

    conditional = True
    network_forms = (1, 2)

    def __init__(
        self,
        num_frames: int = 32,
        size: int = 64,
        width: int = 64,
        num_remembered: int = 64,
        spectral_norm: bool = False,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(num_frames, size, width=width, spectral_norm=spectral_norm, seed=seed, **kwargs)
        if num_remembered < 1:
            raise ValueError(f"`num_remembered` must be at least 1. Received {num_remembered}.")
        self.num_remembered = num_remembered
        del self._config["latent_dim"]  # no code, so no width of one
        self._config["num_remembered"] = num_remembered

    def build(self, input_shape=None):
        def noise(shape, dtype):
            return ops.cast(keras.random.randint(shape, 0, 256, seed=self.seed), dtype)

        self.first_frames = self.add_weight(
            name="first_frames",
            shape=(self.num_remembered, self.size, self.size, 3),
            dtype="uint8",
            initializer=noise,
            trainable=False,
        )
        super().build(input_shape)

    @property
    def latent_spec(self):
        return {
            "first_frame": LatentSpec((self.size, self.size, 3), "float32", "a first frame seen in training", "content")
        }

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        """Samples from the stored first frames. Arguments and errors as for `VGAN`."""
        self._check_arguments(num_videos, num_frames, labels)
        rows = tf.random.stateless_uniform((num_videos,), sampling_key(seed), 0, self.num_remembered, tf.int32)
        # uint8 (N, H, W, 3) -> float32 (B, H, W, 3) in [-1, 1]
        return {"first_frame": ops.cast(ops.take(self.first_frames, rows, axis=0), "float32") / 127.5 - 1.0}

    def encode(self, video, seed=None, training=False):
        """The first frame of videos (B, T, size, size, 3) in [-1, 1]."""
        return {"first_frame": video[:, 0]}  # (B, H, W, 3)

    def streams(self, latents, training=False):
        """The `foreground`, `mask` and `background` of each video, see `TwoStreamGenerator`."""
        return self.generator(latents["first_frame"], training=training)

    def _latents_of_step(self, real, key):
        return self.encode(real)

    def _remember(self, frames, step):
        """Overwrites the oldest stored frames with the step's first frames, of all replicas."""
        replica = tf.distribute.get_replica_context()
        if num_replicas() > 1:
            frames = replica.all_gather(frames, axis=0)  # those of the global batch
        frames = tf.cast(tf.round((frames + 1.0) * 127.5), tf.uint8)[: self.num_remembered]
        first = step * tf.cast(tf.shape(frames)[0], step.dtype)  # a ring buffer, indexed by the step alone
        rows = tf.math.floormod(first + tf.range(tf.shape(frames)[0], dtype=step.dtype), self.num_remembered)

        def store(variable, rows, frames):
            variable.scatter_update(tf.IndexedSlices(frames, rows))

        def everywhere(strategy, rows, frames):
            strategy.extended.update(self.first_frames.value, store, args=(rows, frames))

        replica.merge_call(everywhere, args=(rows, frames))


# ---------------------------------------------------------------- action classifier (paper: representation learning)
class ActionClassifier(keras.Model):
    """A trained discriminator with dropout and a new classification layer, fine-tuned end to end.

    Use Keras's `fit` and `evaluate` on batches of `tfvidgen.data` with `video` and `action`.

    Args:
        discriminator: Of a `VGAN`; its weights are updated in place, and its own last layer is not used.
        num_actions: Number of classes.
        dropout: Share of the last feature maps that are dropped, each as a whole (paper: 0.5).
        seed: Seeds the initial weights of the last layer and the dropout.

    Call arguments:
        video: (B, T, size, size, 3) in [-1, 1].

    Output shape: (B, num_actions), logits, float32.

    Source: the paper's representation learning; the dropout of whole feature maps (Torch's `VolumetricDropout`) and the layers
        cut off from the official code, main_ucf.lua. What is kept is scaled up in training, where Torch scales down
        afterwards: the same up to the scale of the last layer.
    """

    def __init__(
        self,
        discriminator: VideoDiscriminator,
        num_actions: int,
        dropout: float = 0.5,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_actions < 2 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"Needs at least two actions and a dropout in [0, 1). Received num_actions={num_actions}, dropout={dropout}."
            )
        self.discriminator, self.num_actions, self.dropout, self.seed = discriminator, num_actions, dropout, seed
        self.head = keras.layers.Dense(num_actions, kernel_initializer=_kernel(seed, 0), dtype="float32", name="head")
        self._mean_loss = keras.metrics.Mean(name="mean_classification_loss")
        self._mean_accuracy = keras.metrics.Mean(name="mean_accuracy")

    def build(self, input_shape=None):
        if not self.discriminator.built:
            self.discriminator.build()
        self.head.build((None, self.discriminator.feature_dim))
        self.built = True

    def compile(self, optimizer=None):
        """Sets the optimizer; PyTorch's Adam at 2e-4 with beta_1 = 0.5 by default."""
        optimizer = optimizer or pytorch_adam(2e-4, beta_1=0.5)
        super().compile(optimizer=optimizer, jit_compile=False, auto_scale_loss=False)
        self.optimizer.build(self._moved)

    @property
    def _moved(self):
        # the discriminator's own head takes no part in the loss
        unused = {id(variable) for variable in self.discriminator.head.trainable_variables}
        return [variable for variable in self.trainable_variables if id(variable) not in unused]

    def call(self, video, training=False):
        return self.head(self.discriminator.features(video, training=training))  # (B, 16384) -> (B, num_actions)

    def _loss_and_accuracy(self, batch, features):  # features (B, 16384)
        if "action" not in batch:
            raise ValueError("A classifier needs an `action` for every video: use a set with action labels.")
        action = batch["action"]
        with tf.control_dependencies(
            [tf.debugging.assert_less(action, self.num_actions, "an action lies beyond num_actions")]
        ):
            logits = self.head(features)  # (B, num_actions)
        accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1, action.dtype), action), tf.float32))
        return category_loss(logits, action), accuracy

    def train_step(self, batch):
        """One step: the cross-entropy of the actions trains everything but the discriminator's own last layer."""
        video = real_clips(batch["video"], *self.discriminator.clip_shape[1:3])

        def objective():
            features = self.discriminator.features(video, training=True)  # (B, 16384)
            maps = tf.reshape(features, (tf.shape(features)[0], -1, self.discriminator.num_maps))  # (B, 2 * 4 * 4, 512)
            # dropout by a stateless draw, so that replicas draw slices of one mask: (B, 512), one for each map
            drawn = replica_uniform(step_key(self.seed, batch["step"][0]), [tf.shape(maps)[0], maps.shape[-1]])
            kept = tf.cast(drawn >= self.dropout, maps.dtype) / (1.0 - self.dropout)
            features = tf.reshape(maps * kept[:, None], tf.shape(features))  # (B, 16384)
            loss, accuracy = self._loss_and_accuracy(batch, features)
            return loss, {"classification_loss": loss, "accuracy": accuracy}

        guard = StepGuard(self)
        return guard.finish(guard.minimise(objective, self._moved, self.optimizer))

    def test_step(self, batch):
        """Running means of loss and accuracy over batches."""
        video = real_clips(batch["video"], *self.discriminator.clip_shape[1:3])
        loss, accuracy = self._loss_and_accuracy(batch, self.discriminator.features(video))
        count = tf.shape(video)[0]
        self._mean_loss.update_state(loss, sample_weight=count)
        self._mean_accuracy.update_state(accuracy, sample_weight=count)
        return {"classification_loss": self._mean_loss.result(), "accuracy": self._mean_accuracy.result()}
