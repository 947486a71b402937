"""RJGAN: jointly trained image and video generation using residual vectors.

Paper: Dandi et al., WACV 2020, Sec. 4.1, https://arxiv.org/abs/1912.07991. Neither code nor the appendix with the dimensions
is public.

The latents of a video are a summary vector mu, drawn from a fixed Gaussian, and a residual per frame that a GRU produces
from noise and mu: z_t = mu + delta_t. A DCGAN generator maps each z_t to a frame. The image discriminator sees frames of
videos and the summary frame G_I(mu), so G_I doubles as an image generator with a known prior. Networks are MoCoGAN's.

Shapes in comments are those of the defaults: 64x64 pixels, mu of width 60, noise of width 10.

Choices where the paper gives no details: mu has 60 dimensions (MoCoGAN's 50 + 10) and the noise 10, h_0 = 0, the GRU's
state is the residual, the generator's loss is non-saturating, and summary frames are judged at every step.
Deviation: the third pair of terms in Eq. 1 reuses the real frames of the first, so their logits count twice rather than
being computed twice; both come from the same distribution. Pinned by test_summary_term_counts_real_frames_twice.
Deviation: summary frames pass through the generator in one batch with the others at every step, but count only in every
n-th, which keeps branches out of the graph; the generator's batch norm always sees them. Pinned by
test_summary_counts_every_n_steps.
"""

from __future__ import annotations

import keras
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.layers.augmentation import augment, check_augmentation
from tfvidgen.layers.dcgan import FrameGenerator, ImageDiscriminator, VideoDiscriminator, real_clips
from tfvidgen.layers.draws import num_rows, random_frames, replica_normal, split_key, update_key
from tfvidgen.layers.replicas import sampling_key, step_key
from tfvidgen.losses.adversarial import (
    Kind,
    check_kind,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from tfvidgen.models.base import LatentSpec, VideoGenerator
from tfvidgen.optimizers import StepGuard, check_counts, pytorch_adam


# ---------------------------------------------------------------- recurrent network R_M (Sec. 4.1)
class ResidualGRU(keras.layers.Layer):
    """delta^(t) = h_t = GRU([epsilon_t; mu], h_(t-1)), h_0 = 0.

    Args:
        summary_dim: Width of mu and of a residual.
        noise_dim: Width of epsilon_t.
        linear_output: Adds a linear layer after the GRU, whose state is bounded to (-1, 1).

    Call arguments:
        summary: float32 (B, summary_dim).
        noise: float32 (B, T, noise_dim); any T.

    Output shape: (B, T, summary_dim).

    Source: Sec. 4.1, p(delta^(t) | delta^(<t), mu) by a GRU cell that receives noise and mu.
    """

    def __init__(
        self,
        summary_dim: int = 60,
        noise_dim: int = 10,
        linear_output: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.summary_dim, self.noise_dim = summary_dim, noise_dim

        def uniform(offset):  # PyTorch's default, as in MoCoGAN's code
            bound = summary_dim**-0.5
            return keras.initializers.RandomUniform(-bound, bound, None if seed is None else seed + offset)

        self.gru = keras.layers.GRU(
            summary_dim,
            return_sequences=True,
            kernel_initializer=uniform(0),
            recurrent_initializer=uniform(1),
            bias_initializer=uniform(2),
            dtype=self.dtype_policy,
            name="gru",
        )
        self.output_layer = None
        if linear_output:
            self.output_layer = keras.layers.Dense(
                summary_dim, kernel_initializer=uniform(3), dtype=self.dtype_policy, name="output"
            )

    def build(self, input_shape=None):
        self.gru.build((None, None, self.noise_dim + self.summary_dim))
        if self.output_layer is not None:
            self.output_layer.build((None, None, self.summary_dim))
        self.built = True

    def call(self, summary, noise):
        summary = ops.repeat(summary[:, None], ops.shape(noise)[1], axis=1)  # mu (B, 60) -> (B, T, 60)
        residual = self.gru(ops.concatenate([noise, summary], axis=-1))  # (B, T, 70) -> (B, T, 60)
        return residual if self.output_layer is None else self.output_layer(residual)


# ---------------------------------------------------------------- the system; G_I, D_I and D_V are in `layers.dcgan`
class RJGAN(VideoGenerator):
    """Summary vector and residuals; an image discriminator of frames and summary frames, and a video discriminator.

    With `num_frames=1` it is the paper's image-only baseline (Sec. 5.2): G_I and D_I on single frames.

    Args:
        num_frames: Frames of a training clip; new videos may have any length. 1 for the image-only baseline.
        size: Height and width of a frame: 64 as published, or 8, 16, 32, 128, ...
        summary_dim: Width of mu.
        noise_dim: Width of epsilon_t.
        summary_stddev: sigma of the prior N(0, sigma^2 I) of mu.
        linear_residual: See `ResidualGRU`.
        width, discriminator_width, image_head, video_head, temporal_taps, noise_stddev, spectral_norm, seed: As for
            `MoCoGAN`.

    Raises:
        ValueError: For an unsupported size, or clips shorter than the receptive field of D_V.
    """

    def __init__(
        self,
        num_frames: int = 16,
        size: int = 64,
        summary_dim: int = 60,
        noise_dim: int = 10,
        summary_stddev: float = 1.0,
        linear_residual: bool = False,
        width: int = 64,
        discriminator_width: int = 64,
        image_head: str = "plain",
        video_head: str = "plain",
        temporal_taps: int = 4,
        noise_stddev: float = 0.0,
        spectral_norm: bool = False,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._config = {
            name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__", "_config")
        }
        self.num_frames, self.size, self.seed = num_frames, size, seed
        self.summary_dim, self.noise_dim, self.summary_stddev = summary_dim, noise_dim, summary_stddev
        self.images_only = num_frames == 1  # baseline of Sec. 5.2
        # G_I takes mu + delta^(t), and mu itself, both of width 60
        self.generator = FrameGenerator(summary_dim, size, width, seed + 20, dtype=self.dtype_policy, name="generator")
        options = {
            "size": size,
            "width": discriminator_width,
            "noise_stddev": noise_stddev,
            "spectral_norm": spectral_norm,
            "dtype": self.dtype_policy,
        }
        self.image_discriminator = ImageDiscriminator(
            head=image_head, seed=seed + 40, name="image_discriminator", **options
        )
        self.residual_gru = self.video_discriminator = None  # the baseline has neither R_M nor D_V
        if not self.images_only:
            # recurrences stay in float32 under every precision policy
            self.residual_gru = ResidualGRU(
                summary_dim, noise_dim, linear_residual, seed=seed + 10, dtype="float32", name="residual_gru"
            )
            self.video_discriminator = VideoDiscriminator(
                head=video_head, temporal_taps=temporal_taps, seed=seed + 60, name="video_discriminator", **options
            )
            self.video_discriminator.check_length(num_frames)

    def get_config(self):
        return {**super().get_config(), **self._config}

    def build(self, input_shape=None):
        for network in (self.generator, self.residual_gru, self.image_discriminator, self.video_discriminator):
            if network is not None:
                network.build()
        self.built = True

    def compile(
        self,
        generator_optimizer=None,
        image_discriminator_optimizer=None,
        video_discriminator_optimizer=None,
        adversarial_loss: Kind = "non_saturating",
        summary_every_steps: int = 1,
        frames_per_clip: int = 1,
        l2_weight: float = 0.0,
        r1_weight: float = 0.0,
        augmentation=(),
        gradient_clip_norm: float = 0.0,
        accumulate: int = 1,
        discriminator_steps: int = 1,
    ):
        """Sets optimizers and loss weights, and creates all optimizer slots. Call it in the strategy's scope.

        Args:
            generator_optimizer: Trains G_I and R_M. All three default to PyTorch's Adam at 2e-4 with beta_1 = 0.5 (MoCoGAN's).
            image_discriminator_optimizer: Trains D_I.
            video_discriminator_optimizer: Trains D_V.
            adversarial_loss: One of `tfvidgen.losses.adversarial.KINDS`, or a pair of callables, see there.
            summary_every_steps: The last two terms of Eq. 1 count in steps divisible by this; 0 disables them.
            frames_per_clip: Frames per clip that D_I sees.
            l2_weight, r1_weight, augmentation, gradient_clip_norm: As for `MoCoGAN`.
            accumulate: Micro-batches per update, see `tfvidgen.optimizers.StepGuard`.
            discriminator_steps: Updates of the discriminators per generator update. A step's batch is then that many times
                larger and split evenly among them; each update generates as many clips as its part has, and so does the
                generator's.
        """
        check_counts(discriminator_steps=discriminator_steps)
        adversarial_loss = check_kind(adversarial_loss)
        if frames_per_clip < 1 or summary_every_steps < 0:
            raise ValueError(
                "`frames_per_clip` must be at least 1 and `summary_every_steps` at least 0. Received "
                f"{frames_per_clip} and {summary_every_steps}."
            )
        self.generator_optimizer = generator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
        self.image_discriminator_optimizer = image_discriminator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
        super().compile(optimizer=self.generator_optimizer, accumulate=accumulate)
        self.generator_optimizer.build(self._generator_variables())
        self.image_discriminator_optimizer.build(self.image_discriminator.trainable_variables)
        if not self.images_only:
            self.video_discriminator_optimizer = video_discriminator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
            self.video_discriminator_optimizer.build(self.video_discriminator.trainable_variables)
        self.discriminator_steps = discriminator_steps
        self.adversarial_loss, self.summary_every_steps, self.frames_per_clip = (
            adversarial_loss,
            summary_every_steps,
            frames_per_clip,
        )
        self.l2_weight, self.r1_weight, self.gradient_clip_norm = l2_weight, r1_weight, gradient_clip_norm
        self.augmentation = check_augmentation(augmentation)

    def _generator_variables(self):
        # G_I and R_M are updated together, as "the combined generator" (Sec. 4.1)
        networks = [self.generator] if self.images_only else [self.generator, self.residual_gru]
        return [variable for network in networks for variable in network.trainable_variables]

    # ------------------------------------------------------------ latents (Sec. 4.1)
    @property
    def latent_spec(self):
        spec = {"summary": LatentSpec((self.summary_dim,), "float32", f"N(0, {self.summary_stddev:g}^2)", "content")}
        if not self.images_only:
            prior = "a GRU over noise and the summary"
            spec["residual"] = LatentSpec((None, self.summary_dim), "float32", prior, "motion")
        return spec

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        """Samples latents of videos of any length; arguments and errors as for `VideoGenerator.sample_latents`.

        With the same seed, a longer video starts like a shorter one.
        """
        if labels is not None:
            self._checked_labels(labels, num_videos)
        if num_frames is None or isinstance(num_frames, int):
            num_frames = self.latent_length(num_frames)
        summary, noise = split_key(sampling_key(seed), 2)
        # mu ~ N(0, sigma^2 I), (B, 60)
        latents = {
            "summary": tf.random.stateless_normal((num_videos, self.summary_dim), summary, stddev=self.summary_stddev)
        }
        if not self.images_only:
            # time first, so that extra frames append draws and leave the others unchanged: epsilon (T, B, 10)
            noise = tf.random.stateless_normal((num_frames, num_videos, self.noise_dim), noise)
            latents["residual"] = self.residual_gru(latents["summary"], tf.transpose(noise, (1, 0, 2)))  # (B, T, 60)
        return latents

    def _training_latents(self, num_videos, key):
        """Like `sample_latents`, for this replica's part of the global batch."""
        summary, noise = split_key(key, 2)
        # mu ~ N(0, sigma^2 I), (B, 60)
        latents = {"summary": replica_normal(summary, (num_videos, self.summary_dim), self.summary_stddev)}
        if not self.images_only:
            noise = replica_normal(noise, (num_videos, self.num_frames, self.noise_dim))  # (B, T, 10)
            latents["residual"] = self.residual_gru(latents["summary"], noise)  # delta (B, T, 60)
        return latents

    # ------------------------------------------------------------ forward
    def _frames(self, codes, training=False):
        """G_I, frame by frame: (B, T, summary_dim) -> (B, T, H, W, 3)."""
        frames = self.generator(ops.reshape(codes, (-1, self.summary_dim)), training=training)  # (B T, 64, 64, 3)
        return ops.reshape(frames, (-1, ops.shape(codes)[1], self.size, self.size, 3))  # (B, T, 64, 64, 3)

    def decode(self, latents, training=False):
        missing = [name for name in self.latent_spec if name not in latents]
        if missing:
            raise ValueError(f"`latents` needs {', '.join(self.latent_spec)}. Missing: {', '.join(missing)}.")
        codes = latents["summary"][:, None]  # mu (B, 1, 60)
        # z^(t) = mu + delta^(t) (Sec. 4.1): (B, T, 60) -> (B, T, 64, 64, 3)
        return self._frames(codes if self.images_only else codes + latents["residual"], training)

    def decode_summary(self, latents):
        """The summary frame G_I(mu) of each video (Sec. 4.1): (B, H, W, 3) in [-1, 1]."""
        return self.generator(latents["summary"])

    def generate_images(self, num_images, seed=0):
        """Generates images from mu alone, without R_M (Sec. 5.2): (num_images, H, W, 3) in [-1, 1]."""
        return self.decode_summary(self.sample_latents(num_images, 1, seed))

    # ------------------------------------------------------------ training (Eq. 1; discriminators, then generator)
    def _clips_and_summaries(self, num_videos, key):
        """Generated clips (B, T, H, W, 3) and their summary frames (B, H, W, 3), in one pass through the generator."""
        latents = self._training_latents(num_videos, key)
        codes = latents["summary"][:, None]  # mu (B, 1, 60)
        if self.images_only:
            return None, self._frames(codes, training=True)[:, 0]  # (B, H, W, 3)
        if not self.summary_every_steps:
            return self._frames(codes + latents["residual"], training=True), None  # (B, T, H, W, 3)
        # [z^(1), ..., z^(T), mu] (B, T + 1, 60) -> (B, T + 1, H, W, 3)
        frames = self._frames(tf.concat([codes + latents["residual"], codes], axis=1), training=True)
        return frames[:, :-1], frames[:, -1]  # (B, T, H, W, 3), (B, H, W, 3)

    def train_step(self, batch):
        real = real_clips(batch["video"], self.num_frames, self.size)  # (B, T, H, W, 3) in [-1, 1]
        step = self.step_of(batch)
        key = step_key(self.seed, step)
        # weight of the summary terms of Eq. 1 in this step: "periodically", 0 or 1
        share = 1.0  # every step
        if not self.images_only and self.summary_every_steps > 1:
            share = tf.cast(tf.equal(step % self.summary_every_steps, 0), tf.float32)
        guard = StepGuard(self)

        logs = {}
        for i, (clips, images) in enumerate(guard.shares(self.discriminator_steps, real, batch.get("image"))):
            keys = split_key(update_key(key, i), 12)[:4]
            logs |= self._improve_discriminators(guard, clips, images, share, keys)
        # the image-only baseline has no D_V, whose update uses a key
        keys = split_key(key, 12)[3 if self.images_only else 4 :]
        logs |= self._improve_generator(guard, num_rows(clips) // guard.accumulate, share, keys)
        return guard.finish(logs)

    def _improve_discriminators(self, guard, real, images, share, keys):
        """One update of D_I and of D_V, on the same generated clips; returns their losses by name."""
        num_videos = num_rows(real) // guard.accumulate  # per micro-batch
        # outside any tape: no gradient reaches the generator
        clips, summaries = guard.in_parts(lambda: self._clips_and_summaries(num_videos, keys[0]))
        real_frames = random_frames(keys[1], real, self.frames_per_clip)  # S_1 of Eq. 1: (B n, H, W, 3)
        if images is not None:  # (B, m, H, W, 3): loose images, seen by D_I only (Sec. 5.1, mixed datasets)
            images = tf.cast(images, tf.float32) / 127.5 - 1.0
            images = tf.reshape(images, (-1, *images.shape[2:]))  # (B m, H, W, 3)
        logs = self._improve_image_discriminator(guard, real_frames, images, clips, summaries, share, keys[2])
        if not self.images_only:
            logs |= self._improve_video_discriminator(guard, real, clips, keys[3])
        return logs

    def _improve_image_discriminator(self, guard, real, images, clips, summaries, share, key):
        """One update of D_I, by terms 1, 2, 5 and 6 of Eq. 1."""
        keys = iter(split_key(key, 7))
        discriminator = self.image_discriminator
        real_change = next(keys)
        frames_key, frames_change = (next(keys), next(keys)) if clips is not None else (None, None)
        summaries_change = next(keys) if summaries is not None else None
        noise = list(keys)

        def judge_real(x):
            return discriminator(x, noise[0], training=True)

        def objective(real, images, clips, summaries):
            kind, logs, loss = self.adversarial_loss, {}, 0.0
            if images is not None:
                real = tf.concat([real, images], axis=0)
            real = augment(real, self.augmentation, real_change)
            # (N, 1, 1, 1), or (N, 4, 4, 1) with a patch head
            real_logits, r1 = r1_penalty(judge_real, real) if self.r1_weight else (judge_real(real), 0.0)
            if clips is not None:  # terms 1 and 2: real and generated frames
                frames = random_frames(frames_key, clips, self.frames_per_clip)  # (B n, H, W, 3)
                frames = augment(frames, self.augmentation, frames_change)
                generated_logits = discriminator(frames, noise[1], training=True)
                logs["image_discriminator_loss"] = discriminator_loss(real_logits, generated_logits, kind)
                loss += logs["image_discriminator_loss"]
            if summaries is not None:  # terms 5 and 6: the same real frames and G_I(mu)
                summaries = augment(summaries, self.augmentation, summaries_change)
                summary_logits = discriminator(summaries, noise[2], training=True)
                logs["summary_discriminator_loss"] = discriminator_loss(real_logits, summary_logits, kind)
                loss += share * logs["summary_discriminator_loss"]
            return loss + self.r1_weight * r1, logs

        return guard.minimise(
            objective,
            discriminator.trainable_variables,
            self.image_discriminator_optimizer,
            inputs=(real, images, clips, summaries),
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )

    def _improve_video_discriminator(self, guard, real, clips, key):
        """One update of D_V, by terms 3 and 4 of Eq. 1."""
        real_change, change, real_noise, noise = split_key(key, 4)
        discriminator = self.video_discriminator

        def judge_real(x):
            return discriminator(x, real_noise, training=True)

        def objective(real, clips):
            real = augment(real, self.augmentation, real_change)
            clips = augment(clips, self.augmentation, change)
            real_logits, r1 = r1_penalty(judge_real, real) if self.r1_weight else (judge_real(real), 0.0)
            logits = discriminator(clips, noise, training=True)  # (B, T', 1, 1, 1), or 4x4 with a patch head
            loss = discriminator_loss(real_logits, logits, self.adversarial_loss)
            return loss + self.r1_weight * r1, {"video_discriminator_loss": loss}

        return guard.minimise(
            objective,
            discriminator.trainable_variables,
            self.video_discriminator_optimizer,
            inputs=(real, clips),
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )

    def _improve_generator(self, guard, num_videos, share, keys):
        """One update of G_I and R_M on fresh samples, `num_videos` per micro-batch; returns its losses by name."""

        def objective():
            # D_I and D_V are fixed here
            kind, names, logs, total = self.adversarial_loss, self.augmentation, {}, 0.0
            of_part = iter(keys)
            clips, summaries = self._clips_and_summaries(num_videos, next(of_part))
            if clips is not None:  # terms 2 and 4 of Eq. 1: frames under D_I, clips under D_V
                frames = random_frames(next(of_part), clips, self.frames_per_clip)  # (B n, H, W, 3)
                frames = augment(frames, names, next(of_part))
                logits = self.image_discriminator(frames, next(of_part), training=True)
                logs["image_generator_loss"] = generator_loss(logits, kind)
                clips = augment(clips, names, next(of_part))  # (B, T, H, W, 3)
                logits = self.video_discriminator(clips, next(of_part), training=True)
                logs["video_generator_loss"] = generator_loss(logits, kind)
                total += logs["image_generator_loss"] + logs["video_generator_loss"]
            if summaries is not None:  # term 6: G_I(mu) under D_I
                summaries = augment(summaries, names, next(of_part))
                logits = self.image_discriminator(summaries, next(of_part), training=True)
                logs["summary_generator_loss"] = generator_loss(logits, kind)
                total += share * logs["summary_generator_loss"]
            logs["generator_loss"] = total
            return total, logs

        return guard.minimise(
            objective,
            self._generator_variables(),
            self.generator_optimizer,
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )
