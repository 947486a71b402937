"""TGAN: temporal generative adversarial nets with singular value clipping.

Paper: Saito, Matsumoto and Saito, ICCV 2017, https://arxiv.org/abs/1611.06624. Official code: pfnet-research/tgan@09aa105
(Chainer).

A temporal generator maps one slow code to a fast code per frame; an image generator maps [slow, fast_t] to frame t. The
discriminator is a 3-D convolutional critic trained with the Wasserstein loss. It is kept Lipschitz by singular value
clipping: every few steps the singular values of its kernels are clipped to at most 1, and so are the gains of its batch
norms, relative to the standard deviation that they divide by.

Variants of the official code: `constraint="weights"` clips weights to +-0.01 after every step instead; the vanilla GAN is
`adversarial_loss="non_saturating"`, `constraint="none"` and noise within the discriminator.

Shapes in comments are those of the published size: 16 frames of 64x64 pixels, published widths, no categories.

Differences from the official code (each pinned by a test):
Deviation: no bias before batch norm, which cancels it, nor in the critic's last layer, where it cancels between real and
generated clips. Pinned by test_parameter_counts_are_those_of_the_layer_table.
Deviation: weight clipping leaves the batch norm gains alone; the official code clips them to 0.01 as well, after which
three layers attenuate the signal by a factor of a million. Pinned by test_weight_clipping_spares_the_gains.
Deviation: the vanilla GAN labels real examples 1; the official code's inverted labels differ only in the sign of the logit.
Pinned by test_inverted_labels_only_turn_the_logit_round.
The conditional variant is described in the paper but not in the code: the category is an additional input of both
generators, and a per-category bias in the discriminator's first layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.layers.augmentation import augment, check_augmentation
from tfvidgen.layers.batch_norm import BatchNorm
from tfvidgen.layers.dcgan import real_clips
from tfvidgen.layers.draws import add_noise, num_rows, replica_uniform, split_key, update_key
from tfvidgen.layers.gradients import clip_to_norm
from tfvidgen.layers.replicas import sampling_key, step_key
from tfvidgen.layers.spectral_norm import NormedDense, SpectralNorm
from tfvidgen.layers.upsampling import UpConv2D
from tfvidgen.layers.volumes import DownConv3D
from tfvidgen.losses.adversarial import Kind, check_kind, discriminator_loss, generator_loss, l2_penalty, r1_penalty
from tfvidgen.models.base import LatentSpec, VideoGenerator
from tfvidgen.optimizers import StepGuard, check_counts

LATENT_DIM = 100  # of slow and fast codes alike
CONSTRAINTS = ("singular_values", "weights", "none")
CLIP_EVERY_STEPS = 5  # paper
LEARNING_RATE = 5e-5  # of RMSprop (paper)
MAX_WEIGHT = 0.01  # of weight clipping (official code, after Arjovsky et al. 2017)
_SMALLEST_GAIN = 0.01  # of the discriminator's batch norms, in standard deviations (official code)
INITIALISATIONS = ("lecun", "uniform_images", "uniform")
NOISE_PLACES = ("activations", "pixels")
_UNIFORM = 0.01  # kernels in [-0.01, 0.01] (official code)
_ZERO_SUM = ("wgan", "minimax")  # the generator's loss is the negative of the discriminator's, up to constants
_LEAK = 0.2  # negative slope of leaky ReLU


def _seed(seed: int | None, offset: int) -> int | None:
    return None if seed is None else seed + offset


def _kernel(seed: int | None, offset: int, uniform: bool = False) -> keras.initializers.Initializer:
    if uniform:
        return keras.initializers.RandomUniform(-_UNIFORM, _UNIFORM, _seed(seed, offset))
    return keras.initializers.LecunNormal(_seed(seed, offset))  # Chainer's default


def _norm(**kwargs) -> BatchNorm:
    return BatchNorm(momentum=0.9, epsilon=2e-5, **kwargs)  # Chainer's defaults


def _halvings(size: int) -> int:
    """Number of doublings from 4x4 to `size`; ValueError for an unsupported size."""
    stages = max(size, 1).bit_length() - 3
    if stages < 1 or size != 4 << stages:
        raise ValueError(f"`size` must be 8, 16, 32, 64, 128, ...: the networks double 4x4 pixels. Received {size}.")
    return stages


# ---------------------------------------------------------------- generators G_0 and G_1 (layer table of the paper)
class TemporalGenerator(keras.layers.Layer):
    """G_0: slow codes -> one fast code per frame, (B, D) -> (B, num_frames, fast_dim) in [-1, 1].

    Args:
        slow_dim: Width of a slow code, including the one-hot category if there is one.
        fast_dim: Width of a fast code.
        num_frames: A power of two, at least 2: transposed convolutions repeatedly double the length, from 1.
        width: Channels at length 1; 512, 256, 128, 128 at lengths 1, 2, 4, 8.
        uniform: Initialises kernels uniformly in [-0.01, 0.01] instead of by Chainer's default, LeCun's normal distribution.

    Source: layer table of the paper; no beta in the batch norms (official code).
    """

    def __init__(
        self,
        slow_dim: int = LATENT_DIM,
        fast_dim: int = LATENT_DIM,
        num_frames: int = 16,
        width: int = 512,
        uniform: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        stages = num_frames.bit_length() - 1
        if num_frames < 2 or num_frames != 1 << stages:
            raise ValueError(
                f"`num_frames` must be 2, 4, 8, 16, 32, ...: the temporal generator doubles. Received {num_frames}."
            )
        self.slow_dim = slow_dim
        channels = [max(width >> min(i, 2), 1) for i in range(stages)]  # 512, 256, 128, 128
        policy = self.dtype_policy
        # a transposed convolution of a single time step is a matrix product
        self.project = keras.layers.Dense(
            channels[0], use_bias=False, kernel_initializer=_kernel(seed, 0, uniform), dtype=policy, name="project"
        )
        # kernel 4, stride 2; a bias in the last layer only, which no batch norm follows
        self.ups = [
            keras.layers.Conv1DTranspose(
                c,
                4,
                2,
                "same",
                use_bias=i == stages,
                kernel_initializer=_kernel(seed, i, uniform),
                dtype=policy,
                name=f"up_{i}",
            )
            for i, c in enumerate([*channels[1:], fast_dim], 1)
        ]
        self.norms = [_norm(center=False, dtype=policy, name=f"norm_{i}") for i in range(stages)]

    def build(self, input_shape=None):
        self.project.build((None, self.slow_dim))
        shape = (None, 1, self.project.units)
        for norm, up in zip(self.norms, self.ups, strict=True):
            norm.build(shape)
            up.build(shape)
            shape = (None, 2 * shape[1], up.filters)
        self.built = True

    def call(self, slow, training=False):
        x = self.project(slow)[:, None]  # z_0 (B, 100) -> (B, 1, 512)
        for norm, up in zip(self.norms, self.ups, strict=True):
            # each doubles the length: (B, 2, 256), (B, 4, 128), (B, 8, 128), (B, 16, 100)
            x = up(ops.relu(norm(x, training=training)))
        return ops.tanh(x)  # z_1 (B, 16, 100)


class ImageGenerator(keras.layers.Layer):
    """G_1: slow codes (B, D) and fast codes (B, T, D') -> videos (B, T, size, size, 3) in [-1, 1], frame by frame.

    Args:
        slow_dim, fast_dim: Widths of the codes.
        size: Height and width; 4 times a power of two, at least 8.
        width: Channels before the last layer: 512, 256, 128, 64, 32 from 4x4 to 64x64 pixels. Of the first, half come from
            the slow code and half from the fast one.
        uniform: As for `TemporalGenerator`.
        norm_per_unit: Whether the batch norms of the two projections have statistics, gain and bias for each of their 4,096
            units, as in the official code, or share them over the 4x4 pixels (network form 1).

    Source: layer table of the paper and the official code.
    """

    def __init__(
        self,
        slow_dim: int = LATENT_DIM,
        fast_dim: int = LATENT_DIM,
        size: int = 64,
        width: int = 32,
        uniform: bool = False,
        norm_per_unit: bool = True,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        stages = _halvings(size)
        self.slow_dim, self.fast_dim, self.size = slow_dim, fast_dim, size
        self.channels = [width * 2 ** min(i, 4) for i in reversed(range(stages + 1))]
        self.half = self.channels[0] // 2  # 256
        # what the batch norms of the projections see
        self.start_shape = (1, 1, 16 * self.half) if norm_per_unit else (4, 4, self.half)
        policy = self.dtype_policy

        def dense(offset, name):
            return keras.layers.Dense(
                16 * self.half,
                use_bias=False,
                kernel_initializer=_kernel(seed, offset, uniform),
                dtype=policy,
                name=name,
            )

        # one projection each to 256 channels of 4x4
        self.from_slow, self.from_fast = dense(0, "from_slow"), dense(1, "from_fast")
        self.slow_norm, self.fast_norm = (_norm(dtype=policy, name=f"{name}_norm") for name in ("slow", "fast"))
        self.ups = [
            UpConv2D(c, kernel_initializer=_kernel(seed, 1 + i, uniform), dtype=policy, name=f"up_{i}")
            for i, c in enumerate(self.channels[1:], 1)
        ]
        self.norms = [_norm(dtype=policy, name=f"norm_{i}") for i in range(1, stages + 1)]
        # low precision saves nothing with three output channels
        self.to_rgb = keras.layers.Conv2D(
            3, 3, padding="same", kernel_initializer=_kernel(seed, 20, uniform), dtype="float32", name="to_rgb"
        )

    def build(self, input_shape=None):
        self.from_slow.build((None, self.slow_dim))
        self.from_fast.build((None, self.fast_dim))
        self.slow_norm.build((None, *self.start_shape))
        self.fast_norm.build((None, *self.start_shape))
        shape = (None, 4, 4, self.channels[0])
        for up, norm in zip(self.ups, self.norms, strict=True):
            up.build(shape)
            shape = (None, 2 * shape[1], 2 * shape[2], up.filters)
            norm.build(shape)
        self.to_rgb.build(shape)
        self.built = True

    def call(self, slow, fast, training=False):
        num_frames = ops.shape(fast)[1]  # T

        def start(code, dense, norm):  # (N, D) -> (N, 4, 4, 256)
            units = ops.relu(norm(ops.reshape(dense(code), (-1, *self.start_shape)), training=training))
            return ops.reshape(units, (-1, 4, 4, self.half))

        # the slow code is projected once per video, then repeated for its frames
        still = ops.repeat(start(slow, self.from_slow, self.slow_norm), num_frames, axis=0)  # (B T, 4, 4, 256)
        moving = start(ops.reshape(fast, (-1, self.fast_dim)), self.from_fast, self.fast_norm)  # (B T, 4, 4, 256)
        x = ops.concatenate([still, moving], axis=-1)  # (B T, 4, 4, 512)
        for up, norm in zip(self.ups, self.norms, strict=True):
            # (B T, 8, 8, 256), (B T, 16, 16, 128), (B T, 32, 32, 64), (B T, 64, 64, 32)
            x = ops.relu(norm(up(x), training=training))
        frames = ops.tanh(self.to_rgb(x))  # (B T, 64, 64, 3)
        return ops.reshape(frames, (-1, num_frames, self.size, self.size, 3))  # (B, T, 64, 64, 3)


# ---------------------------------------------------------------- discriminator (layer table of the paper)
class VideoDiscriminator(keras.layers.Layer):
    """The critic: clips (B, T, size, size, 3) -> logits (B,), float32.

    Args:
        size: As for `ImageGenerator`.
        num_frames: Frames of a clip; a multiple of size / 4.
        width: Channels of the first layer: 64, 128, 256, 512.
        num_categories: Categories K of the conditional variant, 0 for none.
        spectral_norm: Divides every kernel by its largest singular value.
        uniform: As for `TemporalGenerator`.

    Call arguments:
        video: (B, T, size, size, 3) in [-1, 1].
        category: int (B,), of the conditional variant.
        noise_stddev: Standard deviation of Gaussian noise that is added before each leaky ReLU.
        noise_key: int64 (2,) of that noise; None for no noise.

    Source: layer table of the paper; no beta in the batch norms (official code).
    """

    def __init__(
        self,
        size: int = 64,
        num_frames: int = 16,
        width: int = 64,
        num_categories: int = 0,
        spectral_norm: bool = False,
        uniform: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        stages = _halvings(size)
        if num_frames < 1 or num_frames % (1 << stages):
            raise ValueError(
                f"At {size}x{size} pixels the discriminator halves a clip {stages} times: `num_frames` must be a multiple "
                f"of {1 << stages}. Received {num_frames}."
            )
        self.clip_shape = (None, num_frames, size, size, 3)
        self.num_categories = num_categories
        channels = [width * 2 ** min(i, 3) for i in range(stages)]  # 64, 128, 256, 512
        self.feature_dim = (num_frames >> stages) * 16 * channels[-1]  # 1 * 4 * 4 * 512 = 8192
        policy = self.dtype_policy
        self.downs = [
            DownConv3D(
                c,
                use_bias=i == 0,
                spectral_norm=spectral_norm,
                kernel_initializer=_kernel(seed, i, uniform),
                dtype=policy,
                name=f"down_{i}",
            )
            for i, c in enumerate(channels)
        ]
        self.norms = [_norm(center=False, dtype=policy, name=f"norm_{i}") for i in range(1, stages)]
        # what constant one-hot channels of the category would add to the first layer, without their memory
        self.of_category = None
        if num_categories:
            self.of_category = keras.layers.Dense(
                channels[0],
                use_bias=False,
                kernel_initializer=_kernel(seed, 30, uniform),
                dtype=policy,
                name="of_category",
            )
        self.head = NormedDense(1, use_bias=False, kernel_initializer=_kernel(seed, 20, uniform), name="head")
        self.head_norm = SpectralNorm(seed=_seed(seed, 21), name="head_norm") if spectral_norm else None

    @property
    def kernels(self):
        """All kernels that the constraints apply to; the last axis counts outputs."""
        layers = [*self.downs, self.head] + ([self.of_category] if self.num_categories else [])
        return [layer.kernel for layer in layers]

    def build(self, input_shape=None):
        shape = self.clip_shape
        for i, down in enumerate(self.downs):
            down.build(shape)
            shape = (None, *(length // 2 for length in shape[1:-1]), down.filters)
            if i:
                self.norms[i - 1].build(shape)
        if self.num_categories:
            self.of_category.build((None, self.num_categories))
        self.head.build((None, self.feature_dim))
        if self.head_norm is not None:
            self.head_norm.build(self.head.kernel.shape)
        self.built = True

    def call(self, video, category=None, noise_stddev: float = 0.0, noise_key=None, training=False):
        keys = [None] * len(self.downs)
        if noise_stddev and noise_key is not None:
            keys = split_key(noise_key, len(keys))
        x = self.downs[0](video, training=training)  # (B, 16, 64, 64, 3) -> (B, 8, 32, 32, 64)
        if self.num_categories:
            # (B,) -> (B, K) -> (B, 1, 1, 1, 64)
            x = x + self.of_category(ops.one_hot(category, self.num_categories, dtype=x.dtype))[:, None, None, None]
        x = ops.leaky_relu(add_noise(x, noise_stddev, keys[0]), _LEAK)
        for down, norm, key in zip(self.downs[1:], self.norms, keys[1:], strict=True):
            # (B, 4, 16, 16, 128), (B, 2, 8, 8, 256), (B, 1, 4, 4, 512)
            x = norm(down(x, training=training), training=training)
            x = ops.leaky_relu(add_noise(x, noise_stddev, key), _LEAK)
        # the last convolution covers the whole map, so it is a matrix product
        features = ops.cast(ops.reshape(x, (-1, self.feature_dim)), "float32")  # (B, 8192)
        return self.head(features, norm=self.head_norm, training=training)[:, 0]  # (B, 1) -> (B,)


# ---------------------------------------------------------------- singular value clipping (paper)
def clip_singular_values(kernel, largest: float = 1.0):
    """Clips the singular values of a kernel, as a matrix with one column per output, to at most `largest`.

    Computed from the eigendecomposition of the small Gram matrix W'W as W - W V max(0, 1 - largest / s) V', a hundred
    times faster than the SVD of such a tall matrix. Smaller singular values are unchanged, and a kernel without larger
    ones is returned as it is.

    Args:
        kernel: float32 (..., outputs).
        largest: Positive.

    Source: the paper's singular value clipping; the official code does the same through an SVD.
    """

    def clip(matrix):
        squares, vectors = ops.eigh(ops.matmul(ops.transpose(matrix), matrix))  # s^2 (O,) and V (O, O)
        excess = ops.relu(1.0 - largest * ops.rsqrt(ops.maximum(squares, 1e-12)))  # 1 - largest / s where s is larger
        surplus = ops.matmul(matrix, ops.matmul(vectors * excess, ops.transpose(vectors)))  # (M, O)
        return matrix - surplus, ops.max(squares)

    clipped, square = clip(ops.reshape(kernel, (-1, kernel.shape[-1])))  # W (M, O), O outputs
    # eigenvalues are accurate to 1e-7 of the largest; if that one is huge, those near `largest` need a second pass
    clipped = ops.cond(square > 100.0 * largest**2, lambda: clip(clipped)[0], lambda: clipped)
    return ops.reshape(clipped, kernel.shape)


def clip_gain(gain, moving_variance, epsilon: float):
    """Clips a batch norm's gain to [0.01, 1] times the standard deviation it divides by, so the layer is 1-Lipschitz.

    Source: singular value clipping of the paper; bounds of the official code.
    """
    deviation = ops.sqrt(moving_variance + epsilon)
    return ops.clip(gain, _SMALLEST_GAIN * deviation, deviation)


# ---------------------------------------------------------------- the system
class TGAN(VideoGenerator):
    """Temporal generator, image generator and a 3-D critic with clipped singular values.

    Latents: `slow` (B, slow_dim), uniform in [-1, 1], and `fast` (B, num_frames, fast_dim), the output of the temporal
    generator; exchange can combine the slow code of one video with the fast codes of another. With categories also
    `label` (B,).

    Args:
        num_frames: Frames of a clip; a power of two and a multiple of size / 4 (paper: 16).
        size: Height and width of a frame; 8, 16, 32, 64, ... (paper: 64).
        num_categories: Categories of the conditional variant, taken from the batch's `action`; 0 for none.
        slow_dim, fast_dim: Widths of the codes (paper: 100).
        temporal_width: Channels of the temporal generator at length 1 (paper: 512).
        width: Channels of the image generator before its last layer (paper: 32).
        discriminator_width: Channels of the discriminator's first layer (paper: 64).
        spectral_norm: Applies spectral normalisation to the discriminator, an alternative to clipping every few steps.
        initialisation: Of the kernels. `lecun` is Chainer's default everywhere; `uniform_images` is uniform in [-0.01, 0.01] in
            the image generator (official UCF-101 configurations), `uniform` in all networks (official Moving MNIST and Golf
            configurations, and some of UCF-101).
        seed: Seeds the initial weights and every random draw of a step.

    Network form 1 shared the statistics of the image generator's first two batch norms over the 4x4 pixels.
    """

    network_forms = (1, 2)

    def __init__(
        self,
        num_frames: int = 16,
        size: int = 64,
        num_categories: int = 0,
        slow_dim: int = LATENT_DIM,
        fast_dim: int = LATENT_DIM,
        temporal_width: int = 512,
        width: int = 32,
        discriminator_width: int = 64,
        spectral_norm: bool = False,
        initialisation: str = "lecun",
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._config = {
            name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__", "_config")
        }
        if num_categories < 0 or num_categories == 1:
            raise ValueError(f"`num_categories` must be 0 for none, or at least 2. Received {num_categories}.")
        if initialisation not in INITIALISATIONS:
            raise ValueError(f"`initialisation` must be one of {INITIALISATIONS}. Received {initialisation!r}.")
        self.num_frames, self.size, self.seed = num_frames, size, seed
        self.num_categories, self.slow_dim, self.fast_dim = num_categories, slow_dim, fast_dim
        # the temporal generator is small; codes stay in float32 under every precision policy
        self.temporal_generator = TemporalGenerator(
            slow_dim + num_categories,
            fast_dim,
            num_frames,
            temporal_width,
            uniform=initialisation == "uniform",
            seed=seed,
            dtype="float32",
            name="temporal_generator",
        )
        self.image_generator = ImageGenerator(
            slow_dim + num_categories,
            fast_dim,
            size,
            width,
            uniform=initialisation != "lecun",
            norm_per_unit=self.network_form >= 2,
            seed=seed + 100,
            dtype=self.dtype_policy,
            name="image_generator",
        )
        self.discriminator = VideoDiscriminator(
            size,
            num_frames,
            discriminator_width,
            num_categories,
            spectral_norm,
            uniform=initialisation == "uniform",
            seed=seed + 200,
            dtype=self.dtype_policy,
            name="discriminator",
        )

    def get_config(self):
        return {**super().get_config(), **self._config}

    def build(self, input_shape=None):
        self.temporal_generator.build()
        self.image_generator.build()
        self.discriminator.build()
        self.built = True

    def compile(
        self,
        generator_optimizer=None,
        discriminator_optimizer=None,
        adversarial_loss: Kind = "wgan",
        constraint: str = "singular_values",
        clip_every_steps: int = CLIP_EVERY_STEPS,
        noise_stddev: float = 0.0,
        noise_place: str = "activations",
        l2_weight: float = 0.0,
        r1_weight: float = 0.0,
        augmentation: Sequence[str] = (),
        gradient_clip_norm: float = 0.0,
        accumulate: int = 1,
        discriminator_steps: int = 1,
    ):
        """Sets optimizers and loss weights, and creates all optimizer slots. Call it in the strategy's scope.

        Args:
            generator_optimizer, discriminator_optimizer: Default to RMSprop at 5e-5 (paper). The first trains both
                generators.
            adversarial_loss: One of `tfvidgen.losses.adversarial.KINDS`, or a pair of callables, see there; `wgan` in the
                paper.
            constraint: `singular_values` (paper), `weights` clips them to +-0.01 after every step, or `none`.
            clip_every_steps: Period of singular value clipping (paper: 5).
            noise_stddev: Standard deviation of Gaussian noise for the discriminator (official vanilla variant: 0.3).
            noise_place: `activations`, before each leaky ReLU (official code), or `pixels`.
            l2_weight: Weight decay added to the gradients, as in PyTorch's Adam.
            r1_weight: gamma of the R1 penalty; 0 disables it.
            augmentation: Names of `tfvidgen.layers.augmentation.AUGMENTATIONS`, applied to all clips the discriminator sees.
            gradient_clip_norm: Maximum global gradient norm per network; 0 disables clipping.
            accumulate: Micro-batches per update, see `tfvidgen.optimizers.StepGuard`.
            discriminator_steps: Discriminator updates per generator update. A step's batch is then that many times larger
                and split evenly among them; each update generates as many clips as its part has. The generators are updated
                together with the last one.
        """
        if constraint not in CONSTRAINTS:
            raise ValueError(f"`constraint` must be one of {CONSTRAINTS}. Received {constraint!r}.")
        if noise_place not in NOISE_PLACES:
            raise ValueError(f"`noise_place` must be one of {NOISE_PLACES}. Received {noise_place!r}.")
        if clip_every_steps < 1 or noise_stddev < 0:
            raise ValueError(
                "`clip_every_steps` must be at least 1 and `noise_stddev` at least 0. Received "
                f"clip_every_steps={clip_every_steps}, noise_stddev={noise_stddev}."
            )
        if adversarial_loss == "wgan" and constraint == "none" and not (self.discriminator.head_norm or r1_weight):
            raise ValueError(
                "A Wasserstein critic without any constraint grows without bound: use constraint='singular_values' or "
                "'weights', spectral_norm=True, r1_weight > 0, or another adversarial_loss."
            )
        check_counts(discriminator_steps=discriminator_steps)
        adversarial_loss = check_kind(adversarial_loss)
        generator_optimizer = generator_optimizer or rmsprop()
        discriminator_optimizer = discriminator_optimizer or rmsprop()
        super().compile(optimizer=generator_optimizer, accumulate=accumulate)
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        generator_optimizer.build(self._generator_variables)
        discriminator_optimizer.build(self.discriminator.trainable_variables)
        self.discriminator_steps = discriminator_steps
        self.adversarial_loss, self.constraint, self.clip_every_steps = adversarial_loss, constraint, clip_every_steps
        self.noise_stddev, self.noise_place = noise_stddev, noise_place
        self.l2_weight, self.r1_weight = l2_weight, r1_weight
        self.gradient_clip_norm, self.augmentation = gradient_clip_norm, check_augmentation(augmentation)

    @property
    def _generator_variables(self):
        return self.temporal_generator.trainable_variables + self.image_generator.trainable_variables

    # ------------------------------------------------------------ latents (z_0 uniform: official code)
    @property
    def latent_spec(self):
        spec = {
            "slow": LatentSpec((self.slow_dim,), "float32", "uniform in [-1, 1]", "content"),
            "fast": LatentSpec(
                (self.num_frames, self.fast_dim), "float32", "the temporal generator's, of the slow code", "motion"
            ),
        }
        if self.num_categories:
            spec["label"] = LatentSpec((), "int32", "uniform", "label", self.num_categories)
        return spec

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        """Samples latents of videos of the trained length; arguments and errors as for `VideoGenerator.sample_latents`."""
        self.latent_length(num_frames)
        slow_key, label_key = split_key(sampling_key(seed), 2)
        latents = {"slow": tf.random.stateless_uniform((num_videos, self.slow_dim), slow_key, -1.0, 1.0)}  # (B, 100)
        if labels is not None:
            latents["label"] = self._checked_labels(labels, num_videos)
        elif self.num_categories:
            latents["label"] = tf.random.stateless_uniform((num_videos,), label_key, 0, self.num_categories, tf.int32)
        latents["fast"] = self.fast_codes(latents, training)  # (B, 16, 100)
        return latents

    def relabel(self, latents, labels):
        """The same slow codes with other labels; the fast codes depend on both and are recomputed."""
        latents = super().relabel(latents, labels)
        return {**latents, "fast": self.fast_codes(latents)}

    @property
    def row_owners(self):
        """Owners of the rows of the discriminator's category kernel."""
        return {"discriminator.of_category.kernel": "action"} if self.num_categories else {}

    # ------------------------------------------------------------ forward
    def _slow(self, latents):
        """The slow code, with the one-hot label appended in the conditional variant."""
        if not self.num_categories:
            return latents["slow"]
        # (B, slow_dim + K), the input of both generators
        return ops.concatenate([latents["slow"], ops.one_hot(latents["label"], self.num_categories)], axis=-1)

    def fast_codes(self, latents, training: bool = False):
        """z_1 = G_0(z_0): the fast codes (B, num_frames, fast_dim) of latents with `slow` and `label`."""
        return self.temporal_generator(self._slow(latents), training=training)  # (B, 100) -> (B, 16, 100)

    def decode(self, latents, training=False):
        return self.image_generator(self._slow(latents), latents["fast"], training=training)  # (B, T, H, W, 3)

    # ------------------------------------------------------------ training (Wasserstein loss and clipping: paper)
    def train_step(self, batch):
        real = real_clips(batch["video"], self.num_frames, self.size)  # (B, T, H, W, 3) in [-1, 1]
        step, category = self.step_of(batch), self._category_of(batch)
        key = step_key(self.seed, step)
        guard = StepGuard(self)

        # all but the last update train the discriminator alone; the last one is shared with the generators
        *earlier, (last, last_category) = guard.shares(self.discriminator_steps, real, category)
        for i, (share, share_category) in enumerate(earlier, 1):
            self._improve_discriminator(guard, share, share_category, update_key(key, i))
            if self.constraint == "weights":
                tf.distribute.get_replica_context().merge_call(self._constrain, args=(tf.constant(True),))
        losses = self._improve_both(guard, last, last_category, key)
        if self.constraint != "none":
            # singular values every few steps (paper), weights after every update (official code)
            period = self.clip_every_steps if self.constraint == "singular_values" else 1
            due = tf.equal(tf.math.floormod(step + 1, period), 0)
            tf.distribute.get_replica_context().merge_call(self._constrain, args=(due,))
        return guard.finish(losses)

    def _play(self, real, category, key):
        """Losses by name, and the discriminator's objective, on real clips and as many generated ones."""
        slow_key, *keys = split_key(key, 5)
        latents = {"slow": replica_uniform(slow_key, (num_rows(real), self.slow_dim), -1.0, 1.0)}
        if self.num_categories:  # generated clips get the labels of the real ones
            latents["label"] = category
        latents["fast"] = self.fast_codes(latents, training=True)
        generated = self.decode(latents, training=True)  # (B, T, H, W, 3)

        def judge(video, augmentation_key, noise_key):
            video = augment(video, self.augmentation, augmentation_key)
            if self.noise_place == "pixels":
                return self.discriminator(add_noise(video, self.noise_stddev, noise_key), category, training=True)
            return self.discriminator(
                video, category, noise_stddev=self.noise_stddev, noise_key=noise_key, training=True
            )  # (B,)

        losses = {}
        if self.r1_weight:
            real_logits, losses["r1_penalty"] = r1_penalty(lambda x: judge(x, keys[0], keys[1]), real)
        else:
            real_logits = judge(real, keys[0], keys[1])
        generated_logits = judge(generated, keys[2], keys[3])
        # wgan: mean(D(generated)) - mean(D(real)) for the critic, -mean(D(generated)) for the generators
        losses["discriminator_loss"] = discriminator_loss(real_logits, generated_logits, self.adversarial_loss)
        losses["generator_loss"] = generator_loss(generated_logits, self.adversarial_loss)
        return losses, losses["discriminator_loss"] + self.r1_weight * losses.get("r1_penalty", 0.0)

    def _improve_discriminator(self, guard, real, category, key):
        """One update of the discriminator alone."""

        def objective(real, category):  # (b, T, H, W, 3) and (b,), of one micro-batch
            losses, total = self._play(real, category, key)
            return total, losses

        guard.minimise(
            objective,
            self.discriminator.trainable_variables,
            self.discriminator_optimizer,
            inputs=(real, category),
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )

    def _improve_both(self, guard, real, category, key):
        """Updates generators and discriminator from one shared forward pass, both with the old weights (official code)."""
        # (variables, optimizer) of both sides
        players = (
            (self._generator_variables, self.generator_optimizer),
            (self.discriminator.trainable_variables, self.discriminator_optimizer),
        )
        generator_weights, discriminator_weights = ([v.value for v in variables] for variables, _ in players)
        one_game = self.adversarial_loss in _ZERO_SUM

        def objective(real, category):
            losses, of_discriminator = self._play(real, category, key)
            of_generator, penalty = losses["generator_loss"], 0.0
            if self.l2_weight:
                of_discriminator += self.l2_weight * l2_penalty(discriminator_weights)
                penalty = self.l2_weight * l2_penalty(generator_weights)
                of_generator += penalty
            # in a zero-sum game the two gradients differ only in sign, so one backward pass suffices
            return of_discriminator - penalty if one_game else [of_generator, of_discriminator], losses

        gradients, _, losses = guard.gradients(
            objective, *(variables for variables, _ in players), inputs=(real, category)
        )
        if one_game:
            gradients[0] = [-gradient for gradient in gradients[0]]  # the generators minimise what the critic maximises
        for gradient, (variables, optimizer) in zip(gradients, players, strict=True):
            optimizer.apply(clip_to_norm(gradient, self.gradient_clip_norm), variables)
        return losses

    def _category_of(self, batch):
        if not self.num_categories:
            return None
        if "action" not in batch:  # the data's action is the category
            raise ValueError(
                "A conditional TGAN needs an `action` for every video, and the batch has none: use a set with action "
                "labels, or num_categories=0."
            )
        message = f"an action lies outside 0..{self.num_categories - 1}: raise num_categories"
        inside = tf.reduce_all((batch["action"] >= 0) & (batch["action"] < self.num_categories))
        with tf.control_dependencies([tf.debugging.Assert(inside, [message])]):
            return tf.identity(batch["action"])

    def _constrain(self, strategy, due):
        """Applies the constraint if `due`, identically on every replica."""
        update = strategy.extended.update

        def clip():
            if self.constraint == "weights":
                for kernel in self.discriminator.kernels:
                    update(kernel.value, lambda v: v.assign(tf.clip_by_value(v, -MAX_WEIGHT, MAX_WEIGHT)))
                return
            # singular value clipping of all kernels, and of the batch norm gains that would undo it
            for kernel in self.discriminator.kernels:
                update(kernel.value, lambda v: v.assign(clip_singular_values(tf.convert_to_tensor(v))))
            for norm in self.discriminator.norms:

                def clip_norm(gain, variance, epsilon=norm.epsilon):
                    gain.assign(clip_gain(tf.convert_to_tensor(gain), tf.convert_to_tensor(variance), epsilon))

                update(norm.gamma.value, clip_norm, args=(norm.moving_variance.value,))

        tf.cond(strategy.experimental_local_results(due)[0], clip, lambda: None)


def rmsprop(learning_rate: float = LEARNING_RATE) -> keras.optimizers.Optimizer:
    """The official code's optimizer: Chainer's RMSprop, which divides by sqrt(v) + 1e-8.

    Keras divides by sqrt(v + epsilon), where an epsilon of 1e-8 would shrink the steps of all gradients below 1e-4.
    """
    return keras.optimizers.RMSprop(learning_rate, rho=0.99, epsilon=1e-16)
