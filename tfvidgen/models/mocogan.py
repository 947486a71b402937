"""MoCoGAN: decomposing motion and content for video generation.

Paper: Tulyakov et al., CVPR 2018, https://arxiv.org/abs/1707.04993. Official code: sergeytulyakov/mocogan@937a99d.

The latents of a video are a content code shared by all frames, a sequence of motion codes that a GRU produces from noise,
and in the categorical variant an action label. A DCGAN generator maps each [content; category; motion_t] to a frame. The
image discriminator D_I sees single frames, the video discriminator D_V clips; the categorical D_V also predicts the action.

Shapes in comments are those of the published size: 64x64 pixels, d_C = 50, d_M = 10, width 64, K categories.

Differences from the official code:
* clips have the requested length and stride; the official script ignores both flags;
* D_I can see every frame of a clip; an off-by-one error there excludes the last.
Deviation, unless `independent_frames`: frames for D_I are taken from the clips for D_V, `frames_per_clip` of each, rather than
from as many other videos (official code: 10 frames beside 3 clips), so a step needs no frames but those of its clips. The
distribution of a single frame is the same; the frames of a step are fewer people. Pinned by
test_image_discriminator_sees_frames_of_the_batch and test_independent_frames_are_of_other_videos.
Deviation: D_I and D_V share one set of generated clips, because neither update changes the generator; the official code
generates new ones for each. The generator's own step samples afresh, as there. Pinned by
test_fakes_are_made_twice_a_step.
"""

from __future__ import annotations

import keras
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.layers.augmentation import augment, check_augmentation
from tfvidgen.layers.dcgan import FrameGenerator, ImageDiscriminator, VideoDiscriminator, real_clips
from tfvidgen.layers.draws import num_rows, random_frames, replica_integers, replica_normal, split_key, update_key
from tfvidgen.layers.replicas import sampling_key, step_key
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


# ---------------------------------------------------------------- recurrent network R_M (Sec. 3.1)
class MotionGRU(keras.layers.Layer):
    """Maps noise to a sequence of motion codes: z_M^(t) = h_t = GRU(epsilon_t, h_(t-1)).

    Args:
        dim: Width d_M of a motion code, of the noise and of the hidden state.

    Call arguments:
        initial: float32 (B, dim), h_0.
        noise: float32 (B, T, dim), epsilon_1..epsilon_T; any T.

    Output shape: (B, T, dim), in (-1, 1) except for the decaying contribution of h_0.

    Source: Sec. 3.1; sizes, h_0 ~ N(0, 1) and PyTorch's uniform initialisation from the official code.
    """

    def __init__(self, dim: int = 10, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim

        def uniform(offset):  # PyTorch's default for recurrent layers
            return keras.initializers.RandomUniform(-(dim**-0.5), dim**-0.5, None if seed is None else seed + offset)

        self.gru = keras.layers.GRU(
            dim,
            return_sequences=True,
            kernel_initializer=uniform(0),
            recurrent_initializer=uniform(1),
            bias_initializer=uniform(2),
            dtype=self.dtype_policy,
            name="gru",
        )

    def build(self, input_shape=None):
        self.gru.build((None, None, self.dim))
        self.built = True

    def call(self, initial, noise):
        return self.gru(noise, initial_state=initial)  # h_1..h_T: (B, T, 10)


# ---------------------------------------------------------------- the system; G_I, D_I and D_V are in `layers.dcgan`
class MoCoGAN(VideoGenerator):
    """Content code, motion codes and an optional category; an image and a video discriminator.

    Args:
        num_frames: Frames of a training clip; new videos may have any length.
        size: Height and width of a frame: 64 as published, or 8, 16, 32, 128, ...
        content_dim: d_C.
        motion_dim: d_M.
        num_categories: Actions K of the categorical variant, whose batches need `action`, in 0..K-1; 0 for none.
        width: Generator width, see `FrameGenerator`.
        discriminator_width: See `ImageDiscriminator`.
        image_head: `plain` (one logit per frame) or `patch`, the official script's default.
        video_head: `plain` or `patch`.
        temporal_taps: Temporal kernel size of D_V; the published 4 gives a receptive field of 16 frames at 64x64 pixels.
        noise_stddev: Standard deviation of noise added before the discriminators' convolutions.
        spectral_norm: Applies spectral normalisation to the discriminators.
        seed: Seeds the initial weights and every random draw of a step.

    Raises:
        ValueError: For an unsupported size, or clips shorter than the receptive field of D_V.
    """

    def __init__(
        self,
        num_frames: int = 16,
        size: int = 64,
        content_dim: int = 50,
        motion_dim: int = 10,
        num_categories: int = 0,
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
        if num_categories == 1:
            raise ValueError("`num_categories` must be 0, for none, or at least 2. Received 1.")
        self.num_frames, self.size, self.seed = num_frames, size, seed
        self.content_dim, self.motion_dim, self.num_categories = content_dim, motion_dim, num_categories
        # recurrences stay in float32 under every precision policy
        self.motion_gru = MotionGRU(motion_dim, seed=seed + 10, dtype="float32", name="motion_gru")  # R_M
        # G_I: frames from [z_C; label; z_M^(t)]
        self.generator = FrameGenerator(
            content_dim + num_categories + motion_dim, size, width, seed + 20, dtype=self.dtype_policy, name="generator"
        )
        options = {
            "size": size,
            "width": discriminator_width,
            "noise_stddev": noise_stddev,
            "spectral_norm": spectral_norm,
            "dtype": self.dtype_policy,
        }
        # D_I: logits of frames
        self.image_discriminator = ImageDiscriminator(
            head=image_head, seed=seed + 40, name="image_discriminator", **options
        )
        # D_V: logits of clips and, if categorical, of their actions
        self.video_discriminator = VideoDiscriminator(
            head=video_head,
            num_categories=num_categories,
            temporal_taps=temporal_taps,
            seed=seed + 60,
            name="video_discriminator",
            **options,
        )
        self.video_discriminator.check_length(num_frames)

    def get_config(self):
        return {**super().get_config(), **self._config}

    def build(self, input_shape=None):
        for network in self._generator_networks():
            network.build()
        self.image_discriminator.build()
        self.video_discriminator.build()
        self.built = True

    def _generator_networks(self):
        """The networks that the generator's optimizer trains: G_I and R_M."""
        return [self.generator, self.motion_gru]

    def compile(
        self,
        generator_optimizer=None,
        image_discriminator_optimizer=None,
        video_discriminator_optimizer=None,
        adversarial_loss: Kind = "non_saturating",
        category_weight: float = 1.0,
        frames_per_clip: int = 1,
        independent_frames: bool = False,
        l2_weight: float = 0.0,
        r1_weight: float = 0.0,
        augmentation=(),
        gradient_clip_norm: float = 0.0,
        accumulate: int = 1,
        discriminator_steps: int = 1,
    ):
        """Sets optimizers and loss weights, and creates all optimizer slots. Call it in the strategy's scope.

        Args:
            generator_optimizer: Trains G_I and R_M. All three default to PyTorch's Adam at 2e-4 with beta_1 = 0.5 (official code).
            image_discriminator_optimizer: Trains D_I.
            video_discriminator_optimizer: Trains D_V.
            adversarial_loss: One of `tfvidgen.losses.adversarial.KINDS`, or a pair of callables, see there.
            category_weight: Weight of the category cross-entropy for D_V and generator (lambda of Sec. 3.4).
            frames_per_clip: Frames per clip that D_I sees.
            independent_frames: D_I sees as many frames, but from other videos than D_V (official code): real ones from `image` of
                the batch, uint8 (B, frames_per_clip, H, W, 3), generated ones each from a video of its own.
            l2_weight: Weight decay added to the gradients, as in PyTorch's Adam (official code: 1e-5).
            r1_weight: gamma of the R1 penalty on both discriminators; 0 disables it.
            augmentation: Names of `tfvidgen.layers.augmentation.AUGMENTATIONS`.
            gradient_clip_norm: Maximum global gradient norm per network; 0 disables clipping.
            accumulate: Micro-batches per update, see `tfvidgen.optimizers.StepGuard`.
            discriminator_steps: Updates of both discriminators per generator update. A step's batch is then that many times
                larger and split evenly among them; each update generates as many clips as its part has, and so does the
                generator's.
        """
        check_counts(discriminator_steps=discriminator_steps)
        adversarial_loss = check_kind(adversarial_loss)
        if frames_per_clip < 1:
            raise ValueError(f"`frames_per_clip` must be at least 1. Received {frames_per_clip}.")
        self.generator_optimizer = generator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
        self.image_discriminator_optimizer = image_discriminator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
        self.video_discriminator_optimizer = video_discriminator_optimizer or pytorch_adam(2e-4, beta_1=0.5)
        super().compile(optimizer=self.generator_optimizer, accumulate=accumulate)
        self.generator_optimizer.build(self._generator_variables())
        self.image_discriminator_optimizer.build(self.image_discriminator.trainable_variables)
        self.video_discriminator_optimizer.build(self.video_discriminator.trainable_variables)
        self.discriminator_steps, self.independent_frames = discriminator_steps, independent_frames
        self.adversarial_loss, self.category_weight, self.frames_per_clip = (
            adversarial_loss,
            category_weight,
            frames_per_clip,
        )
        self.l2_weight, self.r1_weight, self.gradient_clip_norm = l2_weight, r1_weight, gradient_clip_norm
        self.augmentation = check_augmentation(augmentation)

    def _generator_variables(self):
        # G_I and R_M share one optimizer (official code)
        return [variable for network in self._generator_networks() for variable in network.trainable_variables]

    # ------------------------------------------------------------ latents (motion codes: Sec. 3.1)
    @property
    def latent_spec(self):
        spec = {
            "content": LatentSpec((self.content_dim,), "float32", "N(0, 1)", "content"),
            "motion": LatentSpec((None, self.motion_dim), "float32", "a GRU over noise", "motion"),
        }
        if self.num_categories:
            spec["label"] = LatentSpec((), "int32", "uniform", "label", self.num_categories)
        return spec

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        """Samples latents of videos of any length; arguments and errors as for `VideoGenerator.sample_latents`.

        With the same seed, a longer video starts with the motion of a shorter one.
        """
        if num_frames is None or isinstance(num_frames, int):
            num_frames = self.latent_length(num_frames)
        content, initial, noise, label = split_key(sampling_key(seed), 4)
        # time first, so that extra frames append draws and leave the others unchanged: epsilon (T, B, 10)
        noise = tf.random.stateless_normal((num_frames, num_videos, self.motion_dim), noise)
        latents = {
            "content": tf.random.stateless_normal((num_videos, self.content_dim), content),  # z_C (B, 50)
            "motion": self.motion_gru(  # z_M (B, T, 10), of h_0 (B, 10) and epsilon (B, T, 10)
                tf.random.stateless_normal((num_videos, self.motion_dim), initial), tf.transpose(noise, (1, 0, 2))
            ),
        }
        if labels is not None:
            latents["label"] = self._checked_labels(labels, num_videos)  # (B,)
        elif self.num_categories:
            latents["label"] = tf.random.stateless_uniform((num_videos,), label, 0, self.num_categories, tf.int32)
        return latents

    def _training_latents(self, num_videos, key):
        """Like `sample_latents`, for this replica's part of the global batch."""
        content, initial, noise, label = split_key(key, 4)
        latents = {
            "content": replica_normal(content, (num_videos, self.content_dim)),  # z_C (B, 50)
            "motion": self.motion_gru(  # z_M (B, T, 10)
                replica_normal(initial, (num_videos, self.motion_dim)),
                replica_normal(noise, (num_videos, self.num_frames, self.motion_dim)),
            ),
        }
        if self.num_categories:
            latents["label"] = replica_integers(label, (num_videos,), self.num_categories)  # (B,)
        return latents

    # ------------------------------------------------------------ forward
    def frame_codes(self, latents):
        """[z_C; label; z_M^(t)] of every frame: (B, T, code_dim). Order of the official code."""
        motion = latents["motion"]  # (B, T, 10)
        num_frames = ops.shape(motion)[1]
        # content and label are the same for all frames
        parts = [ops.repeat(latents["content"][:, None], num_frames, axis=1)]  # (B, 50) -> (B, T, 50)
        if self.num_categories:
            label = ops.one_hot(latents["label"], self.num_categories, dtype="float32")  # (B, K)
            parts.append(ops.repeat(label[:, None], num_frames, axis=1))  # (B, T, K)
        return ops.concatenate([*parts, motion], axis=-1)  # (B, T, 50 + K + 10)

    def decode(self, latents, training=False):
        missing = [name for name in self.latent_spec if name not in latents]
        if missing:
            raise ValueError(f"`latents` needs {', '.join(self.latent_spec)}. Missing: {', '.join(missing)}.")
        codes = self.frame_codes(latents)
        # G_I, frame by frame: (B T, 50 + K + 10) -> (B T, 64, 64, 3)
        frames = self.generator(ops.reshape(codes, (-1, codes.shape[-1])), training=training)
        return ops.reshape(frames, (-1, ops.shape(codes)[1], self.size, self.size, 3))  # (B, T, 64, 64, 3)

    def _single_frames(self, count, key):
        """One random frame of each of `count` new videos, (count, H, W, 3)."""
        latent_key, position_key = split_key(key, 2)
        codes = self.frame_codes(self._training_latents(count, latent_key))  # (count, T, 50 + K + 10)
        position = replica_integers(position_key, (count,), self.num_frames)
        return self.generator(tf.gather(codes, position, batch_dims=1), training=True)

    # ------------------------------------------------------------ training (official code: D_I, D_V, then G_I and R_M)
    def train_step(self, batch):
        real = real_clips(batch["video"], self.num_frames, self.size)  # (B, T, H, W, 3) in [-1, 1]
        real_category, images = self._real_category(batch), self._real_images(batch)
        key = step_key(self.seed, self.step_of(batch))
        guard = StepGuard(self)

        logs = {}
        # each discriminator update has real clips of its own
        shares = guard.shares(self.discriminator_steps, real, real_category, images)
        for i, (share, category, frames) in enumerate(shares):
            keys = split_key(update_key(key, i), 12)[:5]
            logs |= self._improve_discriminators(guard, share, category, frames, keys)
        # G_I and R_M against both discriminators, on fresh samples
        logs |= self._improve_generator(guard, num_rows(share) // guard.accumulate, iter(split_key(key, 12)[5:]))
        return guard.finish(logs)

    def _real_category(self, batch):
        if not self.num_categories:
            return None
        if "action" not in batch:
            raise ValueError(
                f"num_categories={self.num_categories} needs `action` in every batch, and there is {', '.join(batch)}: "
                "train on videos with action labels, or without categories."
            )
        message = f"`action` must lie in 0..{self.num_categories - 1}"
        inside = (batch["action"] >= 0) & (batch["action"] < self.num_categories)
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(inside), [message, batch["action"]])]):
            return tf.identity(batch["action"])

    def _real_images(self, batch):
        """The frames of `image`, uint8 (B, n, H, W, 3), or None if D_I sees those of the clips."""
        if not self.independent_frames:
            return None
        expected = (self.frames_per_clip, self.size, self.size, 3)
        if "image" not in batch or tuple(batch["image"].shape[1:]) != expected:
            found = f"of shape {tuple(batch['image'].shape)}" if "image" in batch else "missing"
            raise ValueError(
                f"independent_frames=True needs `image` in every batch, uint8 (B, {', '.join(map(str, expected))}), the frames "
                f"that D_I sees, and it is {found}: give them, or let D_I see frames of the clips."
            )
        return batch["image"]

    def _improve_discriminators(self, guard, real, real_category, images, keys):
        """One update of D_I and of D_V, on the same generated clips; returns their losses by name."""
        num_videos = num_rows(real) // guard.accumulate  # per micro-batch
        latent_key, real_frames_key, frames_key, image_key, video_key = keys
        # (B, T, H, W, 3), outside any tape: no gradient reaches the generator
        generated = guard.in_parts(lambda: self.decode(self._training_latents(num_videos, latent_key), training=True))
        # D_I: real and generated frames, (B n, H, W, 3) with n = `frames_per_clip`
        if images is None:
            real_frames = random_frames(real_frames_key, real, self.frames_per_clip)
            frames = random_frames(frames_key, generated, self.frames_per_clip)
        else:
            real_frames = tf.reshape(tf.cast(images, tf.float32) / 127.5 - 1.0, (-1, *images.shape[2:]))
            frames = guard.in_parts(lambda: self._single_frames(num_videos * self.frames_per_clip, frames_key))
        image_logs = self._improve_discriminator(
            guard, self.image_discriminator, self.image_discriminator_optimizer, real_frames, frames, image_key
        )
        # D_V: real and generated clips, and the categories of the real ones
        video_logs = self._improve_discriminator(
            guard,
            self.video_discriminator,
            self.video_discriminator_optimizer,
            real,
            generated,
            video_key,
            real_category,
        )
        return {
            "image_discriminator_loss": image_logs.pop("loss"),
            "video_discriminator_loss": video_logs.pop("loss"),
            **image_logs,
            **video_logs,
        }

    def _improve_discriminator(self, guard, discriminator, optimizer, real, generated, key, real_category=None):
        """One update of D_I or D_V; returns its `loss` and the other terms by name."""
        real_noise, generated_noise, real_change, generated_change = split_key(key, 4)

        def judge_real(x):
            return self._judge(discriminator, x, real_noise)

        def objective(real, generated, real_category):
            real = augment(real, self.augmentation, real_change)
            generated = augment(generated, self.augmentation, generated_change)
            # logits (N, ..., 1) and category logits (N, K)
            if self.r1_weight:
                (real_logits, category_logits), r1 = r1_penalty(judge_real, real)
            else:
                (real_logits, category_logits), r1 = judge_real(real), 0.0
            generated_logits, _ = self._judge(discriminator, generated, generated_noise)
            # cross-entropy, real -> 1 and generated -> 0 (official code)
            logs = {"loss": discriminator_loss(real_logits, generated_logits, self.adversarial_loss)}
            total = logs["loss"] + self.r1_weight * r1
            if real_category is not None:  # D_V only: cross-entropy of the real category (Sec. 3.4)
                logs["real_category_loss"] = category_loss(category_logits, real_category)
                total += self.category_weight * logs["real_category_loss"]
            return total, logs

        return guard.minimise(
            objective,
            discriminator.trainable_variables,
            optimizer,
            inputs=(real, generated, real_category),
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )

    def _improve_generator(self, guard, num_videos, keys):
        """One update of G_I and R_M, with `num_videos` per micro-batch; returns its losses by name."""
        latent_key, frames_key, frames_change, clips_change, image_noise, video_noise = (next(keys) for _ in range(6))

        # fresh z_C, z_M and labels; both discriminators are fixed
        def objective():
            latents = self._training_latents(num_videos, latent_key)
            clips = self.decode(latents, training=True)  # (B, T, H, W, 3)
            if self.independent_frames:
                frames = self._single_frames(num_videos * self.frames_per_clip, frames_key)
            else:
                frames = random_frames(frames_key, clips, self.frames_per_clip)  # (B n, H, W, 3)
            frames = augment(frames, self.augmentation, frames_change)
            clips = augment(clips, self.augmentation, clips_change)
            image_logits, _ = self._judge(self.image_discriminator, frames, image_noise)
            video_logits, category_logits = self._judge(self.video_discriminator, clips, video_noise)
            # both discriminators should call the samples real (official code: -log D, unweighted sum)
            logs = {
                "image_generator_loss": generator_loss(image_logits, self.adversarial_loss),
                "video_generator_loss": generator_loss(video_logits, self.adversarial_loss),
            }
            total = logs["image_generator_loss"] + logs["video_generator_loss"]
            if self.num_categories:  # D_V should recover the label that was generated from (Sec. 3.4)
                logs["generated_category_loss"] = category_loss(category_logits, latents["label"])
                total += self.category_weight * logs["generated_category_loss"]
            logs["generator_loss"] = total
            return total, logs

        return guard.minimise(
            objective,
            self._generator_variables(),
            self.generator_optimizer,
            l2_weight=self.l2_weight,
            clip_norm=self.gradient_clip_norm,
        )

    @staticmethod
    def _judge(discriminator, x, noise_key):
        """Real/fake logits (B, ..., 1), and category logits averaged over positions, (B, K)."""
        outputs = discriminator(x, noise_key, training=True)  # (N, 1, 1, 1) or (N, T', 1, 1, 1 + K); 4x4 for patches
        return outputs[..., :1], tf.reduce_mean(outputs[..., 1:], axis=list(range(1, len(outputs.shape) - 1)))
