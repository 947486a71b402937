"""NAVSynth: non-adversarial video synthesis with learned priors.

Paper: Aich et al., CVPR 2020, https://arxiv.org/abs/2003.09565. Official code: abhishekaich27/Navsynth@a652f7a
(Chair-CAD only).

The latents of a video are a static code shared by all frames and a transient code per frame. A GRU maps the transient codes
to correlated motion codes r_1..r_L; a DCGAN generator maps each [static; r_i] to a frame. Codes and networks are trained
jointly with a reconstruction loss; there is no discriminator.

Shapes in comments are those of the official sizes: L = 16 frames of 64x64 pixels, D_s = 56, D_t = 200, r_i of width 200.

Differences from the official code, which contradicts the paper (each pinned by a test):
* the GRU runs over time, and codes are indexed by frame; there it runs a single step with the frames as its batch, and a
  view instead of a transpose mixes time with code dimensions;
* the static code is trained; there a detached copy keeps it at its initial value;
* every code is projected onto the unit ball after every update (Sec. 3.3); there all are divided by one global maximum;
* the blur kernel of its Laplacian pyramid (`pyramid="official"`) is the product of its 1-D kernels; there it is their sum.
Deviation: the generator has batch norm by default, as in the DCGAN that the paper cites; `norm="none"` matches the official
code. Pinned by test_generator_parameter_count_is_published.
Deviation: the motion codes are not batch-normalised (official code: `BatchNorm1d(affine=False)` over frames), because
the paper has no such layer and batch statistics would couple the codes of a batch. Pinned by
test_motion_codes_do_not_depend_on_batch.
Deviation: the batches of a step mix videos; the official code makes 300 steps in a row on one video, with new optimizers for
each, before it goes to the next, which forgets the earlier ones: after one such round over six 32x32 clips of actors, the four
earliest are at 16.1 dB and all at 18.6 dB on average; with as many mixed steps, 21.2 dB. Pinned by test_steps_mix_videos and
test_steps_on_one_video_in_a_row_forget_the_others.
Deviation, off by default: `decoded_frames` decodes only some frames of each clip per step, so that a step of the same cost
covers more clips. Measured in docs/results.md; pinned by test_a_step_may_decode_some_frames_of_each_clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.layers.batch_norm import BatchNorm
from tfvidgen.layers.draws import num_rows, replica_integers, replica_uniform, split_key
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.layers.replicas import sampling_key, step_key
from tfvidgen.layers.upsampling import UpConv2D
from tfvidgen.losses.laplacian import PYRAMIDS
from tfvidgen.losses.reconstruction import per_frame_loss
from tfvidgen.losses.triplet import temporal_triplet_loss
from tfvidgen.models.base import Choice, LatentSpec, VideoGenerator
from tfvidgen.optimizers import StepGuard, pytorch_adam

STATIC_BY = ("video", "identity", "shared")  # what a static code belongs to (Sec. 2 and 4.1)
TRANSIENT_BY = ("video", "action")  # what transient codes belong to (Sec. 4.1)
CONDITIONING = ("none", "concat", "norm")
UPDATES = ("alternating", "joint")  # Eq. 3.1 and 3.2 in turn, or at once
LOSSES = ("laplacian", "l1", "l2", "laplacian_l2", "perceptual")


# ---------------------------------------------------------------- RNN R with weights theta (Sec. 3)
class MotionRNN(keras.layers.Layer):
    """Maps transient codes to correlated motion codes: r_i is a function of z_1..z_i.

    Args:
        units: Hidden units of the GRU (paper: 500).
        motion_dim: Width of a motion code.

    Input shape: (B, T, transient_dim). Output shape: (B, T, motion_dim), float32.

    Source: Sec. 3 and 4.2; linear output layer and initialisation (Xavier-uniform, zero biases) from the official code.
    """

    def __init__(self, units: int = 500, motion_dim: int = 200, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        xavier = keras.initializers.GlorotUniform
        seeds = [None] * 3 if seed is None else [seed, seed + 1, seed + 2]
        # one layer of 500 hidden units (Sec. 4.2); zero initial state
        self.gru = keras.layers.GRU(
            units,
            return_sequences=True,
            kernel_initializer=xavier(seeds[0]),
            recurrent_initializer=xavier(seeds[1]),
            dtype=self.dtype_policy,
            name="gru",
        )
        self.output_layer = keras.layers.Dense(
            motion_dim, kernel_initializer=xavier(seeds[2]), dtype=self.dtype_policy, name="output"
        )

    def build(self, input_shape):
        self.gru.build(input_shape)
        self.output_layer.build((*input_shape[:-1], self.gru.units))
        self.built = True

    def call(self, transient):
        return self.output_layer(self.gru(transient))  # z (B, T, 200) -> (B, T, 500) -> r (B, T, 200)


# ---------------------------------------------------------------- generator G with weights gamma (Sec. 4.2)
class _ConditionalNorm(keras.layers.Layer):
    """Batch norm whose gain and bias are linear functions of a label embedding; plain batch norm if not `conditional`."""

    def __init__(self, conditional: bool, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.conditional = conditional
        self.norm = BatchNorm(
            momentum=0.9,
            epsilon=1e-5,
            center=not conditional,
            scale=not conditional,
            gamma_initializer=keras.initializers.RandomNormal(1.0, 0.02, seed=seed),
            dtype=self.dtype_policy,
            name="norm",
        )

    def build(self, input_shape, condition_shape=None):
        self.norm.build(input_shape)
        if self.conditional:
            channels = input_shape[-1]
            self.gain = keras.layers.Dense(
                channels, kernel_initializer="zeros", bias_initializer="ones", dtype=self.dtype_policy, name="gain"
            )
            self.bias = keras.layers.Dense(channels, kernel_initializer="zeros", dtype=self.dtype_policy, name="bias")
            self.gain.build(condition_shape)
            self.bias.build(condition_shape)
        self.built = True

    def call(self, x, condition=None, training=False):
        x = self.norm(x, training=training)
        if self.conditional:
            # gain and bias (N, C) -> (N, 1, 1, C)
            x = x * self.gain(condition)[:, None, None] + self.bias(condition)[:, None, None]
        return x


class FrameGenerator(keras.layers.Layer):
    """DCGAN generator: one code per frame -> one frame in [-1, 1].

    Args:
        code_dim: Width D of a frame's code [z_s; r_i].
        size: Height and width of a frame; 4 times a power of two, at least 8.
        width: Channels before the last layer; each earlier stage has twice as many, up to `width * 8`.
        norm: `batch` (DCGAN) or `none` (official code).
        num_labels: Labels of the conditional generator, 0 for none.
        label_dim: Width of the label embedding.
        conditioning: How the label is used: `concat` appends its embedding to the code (cGAN), `norm` is conditional batch
            norm.

    Input shape: (N, code_dim), and labels int (N,) where `num_labels` > 0. Output shape: (N, size, size, 3), float32.

    Source: Sec. 4.2: DCGAN (Radford et al. 2016), and a conditional generator for Weizmann; channels 512, 256, 128, 64 and no
        bias from the official code; N(0, 0.02) initialisation from DCGAN. The first transposed convolution has a 1x1 input,
        so it is a matrix product.
    """

    def __init__(
        self,
        code_dim: int,
        size: int = 64,
        width: int = 64,
        norm: str = "batch",
        num_labels: int = 0,
        label_dim: int = 16,
        conditioning: str = "none",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        stages = max(size, 1).bit_length() - 3  # doublings from 4x4
        if size < 8 or size != 4 << stages:
            raise ValueError(f"`size` must be 8, 16, 32, 64, 128, ... for this generator. Received {size}.")
        if norm not in ("batch", "none"):
            raise ValueError(f"`norm` must be 'batch' or 'none'. Received {norm!r}.")
        if conditioning not in CONDITIONING:
            raise ValueError(f"`conditioning` must be one of {CONDITIONING}. Received {conditioning!r}.")
        if (conditioning != "none") != (num_labels > 0):
            raise ValueError(
                f"conditioning={conditioning!r} and num_labels={num_labels} contradict: labels need 'concat' or 'norm'."
            )
        if conditioning == "norm" and norm != "batch":
            raise ValueError("conditioning='norm' needs norm='batch'.")
        self.code_dim, self.size, self.conditioning, self.label_dim = code_dim, size, conditioning, label_dim
        policy = self.dtype_policy

        def initializer(offset):
            return keras.initializers.RandomNormal(0.0, 0.02, seed=None if seed is None else seed + offset)

        channels = [width * 2 ** min(i, 3) for i in reversed(range(stages))]  # e.g. 512, 256, 128, 64
        self.embedding = None
        if num_labels:
            draw = keras.initializers.RandomNormal(0.0, 1.0, seed=None if seed is None else seed + 100)
            self.embedding = keras.layers.Embedding(
                num_labels, label_dim, embeddings_initializer=draw, dtype="float32", name="label_embedding"
            )
        self.project = keras.layers.Dense(
            16 * channels[0], use_bias=False, kernel_initializer=initializer(0), dtype=policy, name="project"
        )
        self.ups = [
            UpConv2D(c, kernel_initializer=initializer(i), dtype=policy, name=f"up_{i}")
            for i, c in enumerate(channels[1:], 1)
        ]
        # DCGAN: after every transposed convolution but the last
        self.norms = [
            _ConditionalNorm(
                conditioning == "norm", None if seed is None else seed + 200 + i, dtype=policy, name=f"norm_{i}"
            )
            if norm == "batch"
            else None
            for i in range(stages)
        ]
        # low precision saves nothing with three output channels, and the loss needs exact pixels
        self.to_rgb = UpConv2D(3, kernel_initializer=initializer(stages), dtype="float32", name="to_rgb")
        self.channels = channels

    def build(self, input_shape=None):
        width = self.code_dim  # D = D_s + width of r_i
        if self.embedding is not None:
            self.embedding.build((None,))
            if self.conditioning == "concat":
                width += self.label_dim
        self.project.build((None, width))
        size = 4
        for i, channels in enumerate(self.channels):
            if self.norms[i] is not None:
                self.norms[i].build((None, size, size, channels), (None, self.label_dim))
            layer = self.ups[i] if i < len(self.ups) else self.to_rgb
            layer.build((None, size, size, channels))
            size *= 2
        self.built = True

    def call(self, code, labels=None, training=False):
        condition = None
        if self.embedding is not None:
            condition = self.embedding(labels)  # (N,) -> (N, 16)
            if self.conditioning == "concat":
                code = ops.concatenate([code, condition], axis=-1)  # (N, 256 + 16)
        x = ops.reshape(self.project(code), (-1, 4, 4, self.channels[0]))  # (N, 256) -> (N, 4, 4, 512)
        for i in range(len(self.channels)):
            if self.norms[i] is not None:
                x = self.norms[i](x, condition, training=training)
            x = ops.relu(x)
            # (N, 8, 8, 256), (N, 16, 16, 128), (N, 32, 32, 64), (N, 64, 64, 3)
            x = self.ups[i](x) if i < len(self.ups) else self.to_rgb(x)
        return ops.tanh(x)  # frames in [-1, 1]


# ---------------------------------------------------------------- the system
class NAVSynth(VideoGenerator):
    """Learned static and transient codes, a GRU over time, and a frame generator.

    Args:
        num_videos: Videos of the training set.
        num_frames: Frames L of a clip; the length of a transient code.
        size: Height and width of a frame.
        static_by: One static code per `video`, per `identity`, or `shared` by all videos.
        transient_by: Transient codes per `video` or per `action`.
        identity_of_video: int per video, 0..K-1. Required for `static_by="identity"`.
        action_of_video: int per video, 0..K-1. Required for `transient_by="action"` and for a conditional generator.
        static_dim: D_s (official code: 56).
        transient_dim: D_t (official code: 200).
        motion_dim: Width of a motion code r_i (official code: 200).
        rnn_units: Hidden units of the GRU (paper: 500).
        width: Generator width, see `FrameGenerator`.
        norm: `batch` or `none`.
        conditioning: `none`, `concat` or `norm`: whether and how the generator sees the action label.
        label_dim: Width of the label embedding.
        use_static: False drops the static code (ablation).
        latent_rule: `adam`, `momentum`, `sgd`, or `none`, which freezes the codes (ablation -Z).
        projection: `unit_ball` (paper), `unit_sphere` or `none`.
        rank: rho of Eq. 7, of the transient codes, for interpolation; None for full rank.
        static_stddev, transient_stddev: Standard deviations of the "two different Gaussian distributions" that the codes are
            initialised from (Sec. 3.3). None for 1/sqrt(dim), i.e. a norm of about one.
        host_memory: Keeps the codes in host memory, for tables larger than device memory; see `LatentTable`.
        seed: Seeds initial weights and codes, and every random draw of a step.
    """

    def __init__(
        self,
        num_videos: int,
        num_frames: int = 16,
        size: int = 64,
        static_by: str = "video",
        transient_by: str = "video",
        identity_of_video: Sequence[int] | None = None,
        action_of_video: Sequence[int] | None = None,
        static_dim: int = 56,
        transient_dim: int = 200,
        motion_dim: int = 200,
        rnn_units: int = 500,
        width: int = 64,
        norm: str = "batch",
        conditioning: str = "none",
        label_dim: int = 16,
        use_static: bool = True,
        latent_rule: str = "adam",
        projection: str = "unit_ball",
        rank: int | None = None,
        static_stddev: float | None = None,
        transient_stddev: float | None = None,
        host_memory: bool = False,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._config = {
            name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__", "_config")
        }
        for name, value, choices in (("static_by", static_by, STATIC_BY), ("transient_by", transient_by, TRANSIENT_BY)):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Received {value!r}.")
        identity = self._labels("identity_of_video", identity_of_video, num_videos, static_by == "identity")
        action = self._labels(
            "action_of_video", action_of_video, num_videos, transient_by == "action" or conditioning != "none"
        )
        self.num_frames, self.size, self.seed = num_frames, size, seed
        self.use_static, self.conditional = use_static, conditioning != "none"
        self.static_by, self.transient_by = static_by, transient_by
        self.static_of_video = {"video": list(range(num_videos)), "identity": identity, "shared": [0] * num_videos}[
            static_by
        ]
        self.transient_of_video = {"video": list(range(num_videos)), "action": action}[transient_by]
        self.label_of_video = action if self.conditional else None
        self._label_of_transient = list(range(max(action) + 1)) if transient_by == "action" else action
        rows = {"update_rule": latent_rule, "projection": projection, "host_memory": host_memory}
        # z^(s): Z_V is initialised from two different Gaussians and projected (Sec. 3.3)
        self.static = LatentTable(
            max(self.static_of_video) + 1,
            (static_dim,),
            initial_stddev=static_dim**-0.5 if static_stddev is None else static_stddev,
            seed=seed,
            name="static",
            **rows,
        )
        # z^(t), optionally of rank rho (Eq. 7)
        self.transient = LatentTable(
            max(self.transient_of_video) + 1,
            (num_frames, transient_dim),
            initial_stddev=transient_dim**-0.5 if transient_stddev is None else transient_stddev,
            rank=rank,
            seed=seed + 1,
            name="transient",
            **rows,
        )
        # R with theta, then G with gamma; recurrences and codes stay in float32 under every precision policy
        self.rnn = MotionRNN(rnn_units, motion_dim, seed=seed + 10, dtype="float32", name="rnn")
        self.generator = FrameGenerator(
            motion_dim + (static_dim if use_static else 0),
            size=size,
            width=width,
            norm=norm,
            num_labels=max(action) + 1 if self.conditional else 0,
            label_dim=label_dim,
            conditioning=conditioning,
            seed=seed + 20,
            dtype=self.dtype_policy,
            name="generator",
        )

    @staticmethod
    def _labels(name, labels, num_videos, needed):
        if labels is None:
            if needed:
                raise ValueError(f"`{name}` is needed: one int per video, {num_videos} in all. Received None.")
            return None
        labels = [int(label) for label in labels]
        if len(labels) != num_videos or min(labels) < 0:
            raise ValueError(
                f"`{name}` must hold one int >= 0 for each of {num_videos} videos. Received {len(labels)} values."
            )
        return labels

    def get_config(self):
        return {**super().get_config(), **self._config}

    def build(self, input_shape=None):
        self.static.build()
        self.transient.build()
        self.rnn.build((None, self.num_frames, self.transient.row_shape[-1]))
        self.generator.build()
        self.built = True

    def compile(
        self,
        generator_optimizer=None,
        rnn_optimizer=None,
        latent_learning_rate=None,
        update: str = "alternating",
        loss: str = "laplacian",
        pyramid: str = "binomial",
        l2_weight: float = 10.0,
        static_weight: float = 0.01,
        triplet_weight: float = 0.01,
        positive_radius: int = 2,
        negative_radius: int = 5,
        triplet_margin: float = 2.0,
        perceptual_loss=None,
        decoded_frames: int | None = None,
        accumulate: int = 1,
    ):
        """Sets optimizers and loss weights, and creates all optimizer slots. Call it in the strategy's scope.

        Args:
            generator_optimizer: Trains the generator. Defaults to PyTorch's Adam at 6.25e-5 (official code).
            rnn_optimizer: Trains the GRU. Defaults to PyTorch's Adam at 6.25e-5.
            latent_learning_rate: Learning rate of the codes, a float or a schedule; None keeps that of the tables.
            update: `alternating` (the paper's two stages, Eq. 3.1 and 3.2) or `joint` (a single pass; 3/5 of the cost).
            loss: `laplacian` (paper), `l1`, `l2`, `laplacian_l2` (Laplacian + `l2_weight` times mean squared error), or
                `perceptual`, which needs `perceptual_loss`.
            pyramid: The Laplacian pyramid, one of `tfvidgen.losses.laplacian.PYRAMIDS`: `binomial` (ours) or `official`.
            l2_weight: Weight of the mean squared error in `laplacian_l2`.
            static_weight: lambda_s of Eq. 6; 0 disables the static loss.
            triplet_weight: lambda_t of Eq. 6; 0 disables the triplet loss.
            positive_radius, negative_radius, triplet_margin: The triplet condition, see `temporal_triplet_loss`. The
                paper uses alpha for both window and margin.
            perceptual_loss: Callable (generated, real) -> (B, T), e.g. `tfvidgen.losses.perceptual.PerceptualLoss`.
            decoded_frames: Frames per clip that a step decodes, chosen at random for each step and clip; None for all. The
                RNN and the triplet loss always see whole clips.
            accumulate: Micro-batches per stage, see `tfvidgen.optimizers.StepGuard`.
        """
        if update not in UPDATES:
            raise ValueError(f"`update` must be one of {UPDATES}. Received {update!r}.")
        if loss not in LOSSES:
            raise ValueError(f"`loss` must be one of {LOSSES}. Received {loss!r}.")
        if pyramid not in PYRAMIDS:
            raise ValueError(f"`pyramid` must be one of {PYRAMIDS}. Received {pyramid!r}.")
        if (loss == "perceptual") != (perceptual_loss is not None):
            raise ValueError("loss='perceptual' and `perceptual_loss` go together: give both or neither.")
        if triplet_weight and self.num_frames <= negative_radius + 1:
            raise ValueError(
                f"A triplet needs a frame more than negative_radius={negative_radius} frames away, and clips have "
                f"{self.num_frames} frames: lower negative_radius, use longer clips, or set triplet_weight=0."
            )
        if decoded_frames is not None and not 1 <= decoded_frames <= self.num_frames:
            raise ValueError(
                f"`decoded_frames` must be at least 1 and at most num_frames={self.num_frames}, or None for all. Received "
                f"{decoded_frames}."
            )
        self.decoded_frames = decoded_frames or self.num_frames
        generator_optimizer = generator_optimizer or pytorch_adam(6.25e-5)
        rnn_optimizer = rnn_optimizer or pytorch_adam(6.25e-5)
        super().compile(optimizer=generator_optimizer, accumulate=accumulate)
        self.generator_optimizer, self.rnn_optimizer = generator_optimizer, rnn_optimizer
        generator_optimizer.build(self.generator.trainable_variables)
        rnn_optimizer.build(self.rnn.trainable_variables)
        if latent_learning_rate is not None:
            self.static.learning_rate = self.transient.learning_rate = latent_learning_rate
        self.update, self.frame_loss_kind, self.l2_weight, self.perceptual_loss = (
            update,
            loss,
            l2_weight,
            perceptual_loss,
        )
        self.pyramid = pyramid
        self.static_weight, self.triplet_weight = static_weight, triplet_weight
        self.triplet = {
            "positive_radius": positive_radius,
            "negative_radius": negative_radius,
            "margin": triplet_margin,
        }

    # ------------------------------------------------------------ latents
    @property
    def latent_spec(self):
        learned = "a random row of the learned table"
        spec = {"transient": LatentSpec(self.transient.row_shape, "float32", learned, "motion")}
        if self.use_static:
            spec = {"static": LatentSpec(self.static.row_shape, "float32", learned, "content"), **spec}
        if self.conditional:
            num_labels = max(self.label_of_video) + 1
            spec["label"] = LatentSpec((), "int32", "the label of the sampled transient code", "label", num_labels)
        return spec

    def latent_length(self, num_frames=None):
        """One transient code per frame, at most the trained length."""
        if num_frames is not None and not 1 <= num_frames <= self.num_frames:
            raise ValueError(
                f"Learned transient codes have {self.num_frames} frames. Received num_frames={num_frames}: ask for 1 to "
                f"{self.num_frames}, or interpolate between frames."
            )
        return num_frames or self.num_frames

    def lookup(self, video_id):
        """The codes of training videos, given their ids, int (B,)."""
        # z^(t) (B, 16, 200), z^(s) (B, 56), labels (B,)
        latents = {"transient": self.transient(ops.take(ops.array(self.transient_of_video, "int32"), video_id, axis=0))}
        if self.use_static:
            latents["static"] = self.static(ops.take(ops.array(self.static_of_video, "int32"), video_id, axis=0))
        if self.conditional:
            latents["label"] = ops.take(ops.array(self.label_of_video, "int32"), video_id, axis=0)
        return latents

    @property
    def exchange_spec(self):
        """Owners of the rows of both tables, with names for identities and actions."""
        names = {"identity": self.identity_names, "action": self.action_names}
        return {
            "identity": Choice(self.static_by, self.static.num_rows, names.get(self.static_by, ())),
            "action": Choice(self.transient_by, self.transient.num_rows, names.get(self.transient_by, ())),
        }

    @property
    def row_owners(self):
        """Owners of the rows of both tables and of the label embedding."""
        owners = {"static.rows": self.static_by, "transient.rows": self.transient_by}  # names in a checkpoint
        return {**owners, "generator.label_embedding.embeddings": "action"} if self.conditional else owners

    def exchange(self, identity, action):
        """Combines the static code of `identity` with the transient codes of `action`, int (B,) each (Table 3, Fig. 6).

        Both are row numbers of the tables, see `exchange_spec`: with `static_by="video"` an identity is a video id.
        """
        latents = {"transient": self.transient(action)}  # (B, 16, 200)
        if self.use_static:
            latents["static"] = self.static(identity)  # (B, 56)
        if self.conditional:
            latents["label"] = ops.take(ops.array(self._label_of_transient, "int32"), action, axis=0)  # (B,)
        return latents

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False, prior="learned"):
        """Samples latents of new videos; the same seed gives the same latents.

        Args:
            num_videos: Int, or a scalar tensor.
            num_frames: At most the trained length; None for that length. Any length with `prior="gaussian"`.
            seed: Int, or a scalar tensor.
            labels: For a conditional generator: an int, or int (num_videos,). Transient codes are then chosen among those of
                videos with that label. None chooses among all.
            prior: `learned` combines a random static row with a random transient row (Sec. 1: "randomly choose a static
                vector from the dictionary"); `gaussian` samples codes from their initial distribution, the ablation -Z of
                Table 4.
        """
        length = self.num_frames if num_frames is None else num_frames
        seeds = split_key(sampling_key(seed), 2)  # keys of static and transient codes
        if prior not in ("learned", "gaussian"):
            raise ValueError(f"`prior` must be 'learned' or 'gaussian'. Received {prior!r}.")

        def rows(table, seed):
            return tf.random.stateless_uniform((num_videos,), seed, 0, table.num_rows, tf.int32)

        if labels is None:
            action = rows(self.transient, seeds[1])
        else:
            labels = self._checked_labels(labels, num_videos)
            action = self._rows_with_label(labels, seeds[1])
        latents = self.exchange(rows(self.static, seeds[0]), action)
        if prior == "gaussian":  # replaces the learned codes; the label stays
            shape = (num_videos, length, self.transient.row_shape[-1])
            latents["transient"] = tf.random.stateless_normal(shape, seeds[1], stddev=self.transient.initial_stddev)
            if self.use_static:
                shape = (num_videos, *self.static.row_shape)
                latents["static"] = tf.random.stateless_normal(shape, seeds[0], stddev=self.static.initial_stddev)
        else:
            if isinstance(length, int):
                self.latent_length(length)
            latents["transient"] = latents["transient"][:, :length]  # (B, T, 200)
        return latents

    def _rows_with_label(self, labels, seed):
        """Samples a row of the transient table for each label, int32 (B,), among those of videos with that label."""
        of_label = np.asarray(self._label_of_transient)
        rows = np.argsort(of_label, kind="stable").astype(np.int32)  # grouped by label, 0 first
        counts = np.bincount(of_label, minlength=self.num_labels)
        if not counts.all():
            raise ValueError(
                f"No trained video has label {int(np.argmin(counts))}, so there is no code to draw for it."
            )
        first = np.cumsum(counts) - counts  # where each label's group begins in `rows`
        draws = tf.random.stateless_uniform(tf.shape(labels), seed)  # (B,), scaled to each label's count
        count = tf.gather(tf.constant(counts, tf.int32), labels)
        nth = tf.minimum(tf.cast(draws * tf.cast(count, tf.float32), tf.int32), count - 1)
        return tf.gather(tf.constant(rows), tf.gather(tf.constant(first, tf.int32), labels) + nth)

    # ------------------------------------------------------------ forward
    def motion_codes(self, latents):
        """r_1..r_L from the transient codes z_1..z_L (Sec. 3): (B, T, motion_dim)."""
        return self.rnn(latents["transient"])  # (B, T, 200)

    def decode_motion(self, latents, motion, training=False):
        """Decodes motion codes (B, T, motion_dim) to frames, with the static code and label of `latents`."""
        num_frames = ops.shape(motion)[1]
        code = motion  # (B, T, 200)
        if self.use_static:
            static = ops.repeat(latents["static"][:, None], num_frames, axis=1)  # (B, 56) -> (B, T, 56)
            code = ops.concatenate([static, motion], axis=-1)  # z_i = [z_s; r_i], Eq. 2: (B, T, 256)
        code = ops.reshape(code, (-1, self.generator.code_dim))  # (B T, 256)
        labels = ops.repeat(latents["label"], num_frames, axis=0) if self.conditional else None  # (B T,)
        frames = self.generator(code, labels, training=training)  # (B T, 64, 64, 3)
        return ops.reshape(frames, (-1, num_frames, self.size, self.size, 3))  # (B, T, 64, 64, 3)

    def decode(self, latents, training=False):
        return self.decode_motion(latents, self.motion_codes(latents), training=training)

    def interpolate_frames(self, latents, first: int = 1, last: int = 4, num_steps: int = 3, space: str | None = None):
        """Unseen frames between two frames of a video (Sec. 4.3.3).

        Args:
            latents: Latents of B videos.
            first, last: 0-based positions; the paper's "second and fifth frames" are 1 and 4.
            num_steps: k; frame n is at first + n/k (last - first) for n = 1..k, so the last one equals frame `last`.
            space: `motion` interpolates the RNN's outputs, `transient` its inputs, which the RNN then processes after those
                of the frames up to `first`. The paper does not say which. None for `transient` if the model has a `rank`,
                which only the transient codes have, else for `motion`.

        Returns:
            (B, k, H, W, 3) in [-1, 1].
        """
        if not 0 <= first < last < self.num_frames or num_steps < 1:
            raise ValueError(
                f"Needs 0 <= first < last < {self.num_frames} and num_steps >= 1. Received first={first}, last={last}, "
                f"num_steps={num_steps}."
            )
        if space is None:
            space = "motion" if self.transient.rank is None else "transient"
        if space not in ("motion", "transient"):
            raise ValueError(f"`space` must be 'motion' or 'transient'. Received {space!r}.")
        weight = ops.reshape(ops.arange(1, num_steps + 1, dtype="float32") / num_steps, (1, -1, 1))  # n/k, (1, k, 1)

        def blend(codes):
            start, end = codes[:, first : first + 1], codes[:, last : last + 1]  # (B, 1, D)
            return start + weight * (end - start)  # z_2 + n/k (z_5 - z_2), (B, k, D)

        if space == "motion":
            return self.decode_motion(latents, blend(self.motion_codes(latents)))  # (B, k, H, W, 3)
        transient = latents["transient"]
        # a prefix of frames gives the RNN its state at frame `first`
        path = ops.concatenate([transient[:, : first + 1], blend(transient)], axis=1)  # (B, first + 1 + k, 200)
        return self.decode_motion(latents, self.rnn(path)[:, first + 1 :])  # (B, k, H, W, 3)

    # ------------------------------------------------------------ training
    @property
    def num_decoded_frames(self):
        """`decoded_frames`, as given to `compile`."""
        return self.decoded_frames

    def _frame_losses(self, generated, real):
        """The loss l of every frame (Sec. 4.2), (B, T)."""
        if self.frame_loss_kind == "perceptual":
            return self.perceptual_loss(generated, real)
        if self.frame_loss_kind == "laplacian_l2":
            square = per_frame_loss("l2", generated, real)  # (B, T)
            return per_frame_loss("laplacian", generated, real, pyramid=self.pyramid) + self.l2_weight * square
        return per_frame_loss(self.frame_loss_kind, generated, real, pyramid=self.pyramid)

    def validation_losses(self, batch):
        """`reconstruction_loss`: the training loss l of each video of a batch, averaged over frames, (B,).

        Codes are looked up by `video_id`, or, if static codes belong to identities and transient ones to actions, by the
        batch's `identity` and `action`, so that cells held out of training can be evaluated as well.
        """
        real = ops.cast(batch["video"], "float32") / 127.5 - 1.0  # (B, T, H, W, 3)
        # by cell of the identity x action grid (Table 3)
        by_cell = self.static_by == "identity" and self.transient_by == "action"
        if by_cell and "identity" in batch and "action" in batch:
            latents = self.exchange(batch["identity"], batch["action"])
        else:
            latents = self.lookup(batch["video_id"])
        return {"reconstruction_loss": ops.mean(self._frame_losses(self.decode(latents), real), axis=1)}  # (B,)

    def _objective(self, latents, real, frame, with_triplet, positions=None):
        """Eq. 6 and its terms, over the frames `real` (B, K, H, W, 3).

        Args:
            latents: Latents of B videos.
            real: Frames in [-1, 1].
            frame: (B,), index among the K of the random frame k of the static loss.
            with_triplet: Whether to include the triplet loss.
            positions: (B, K), positions of those frames in their clips; None for all frames in order.
        """
        motion = decoded = self.motion_codes(latents)  # (B, T, 200)
        if positions is not None:
            decoded = ops.take_along_axis(motion, positions[..., None], axis=1)  # (B, K, 200)
        # decoded frames (B, K, H, W, 3); losses (B, K)
        frame_losses = self._frame_losses(self.decode_motion(latents, decoded, training=True), real)
        losses = {"reconstruction_loss": ops.mean(frame_losses)}  # l_rec, Sec. 3.1
        total = losses["reconstruction_loss"]
        if self.static_weight:
            chosen = ops.one_hot(frame, frame_losses.shape[1], dtype=frame_losses.dtype)  # (B, K)
            losses["static_loss"] = ops.mean(ops.sum(frame_losses * chosen, axis=1))  # l_static, Eq. 4
            total += self.static_weight * losses["static_loss"]
        if self.triplet_weight and with_triplet:
            # l_triplet of Eq. 6, on the RNN's outputs: Sec. 3.3 has it train both the RNN and the transient codes.
            losses["triplet_loss"] = ops.mean(temporal_triplet_loss(motion, **self.triplet))
            total += self.triplet_weight * losses["triplet_loss"]
        return total, losses

    def train_step(self, batch):
        real, step = batch["video"], self.step_of(batch)  # uint8 (B, T, H, W, 3)
        num_local = num_rows(real)
        key, num_decoded, positions = step_key(self.seed, step), self.decoded_frames, None
        frame = replica_integers(key, (num_local,), num_decoded)  # k of Eq. 4, (B,)
        if num_decoded < self.num_frames:
            # K random frames of each clip, in random order
            shuffled = tf.argsort(replica_uniform(split_key(key, 1)[0], (num_local, self.num_frames)), axis=1)
            positions = shuffled[:, :num_decoded]  # (B, K)
            real = tf.gather(real, positions, batch_dims=1)  # (B, K, H, W, 3)
        real = tf.cast(real, tf.float32) / 127.5 - 1.0  # [-1, 1]
        # the rows of z^(t) and z^(s) of these videos, (B,) each
        rows = {"transient": tf.gather(tf.constant(self.transient_of_video), batch["video_id"])}
        if self.use_static:
            rows["static"] = tf.gather(tf.constant(self.static_of_video), batch["video_id"])
        # gradients are taken with respect to the gathered codes, not the tables
        codes = {name: getattr(self, name)(ids) for name, ids in rows.items()}
        labels = {}
        if self.conditional:
            labels["label"] = tf.gather(tf.constant(self.label_of_video), batch["video_id"])
        guard, inputs = StepGuard(self), (labels, real, frame, positions)

        def objective(with_triplet):
            def of_part(codes, labels, real, frame, positions):
                return self._objective({**codes, **labels}, real, frame, with_triplet, positions)

            return of_part

        if self.update == "alternating":
            # Stage 1 (Eq. 3.1): min over gamma, given (Z, theta); the triplet loss does not depend on gamma
            guard.minimise(
                objective(with_triplet=False),
                self.generator.trainable_variables,
                self.generator_optimizer,
                inputs=(codes, *inputs),
            )

        # Stage 2 (Eq. 3.2): min over (Z, theta), given gamma; over gamma as well for `joint`
        # theta here, and Z by the tables' own rule below
        moved = [(self.rnn.trainable_variables, self.rnn_optimizer)]
        if self.update == "joint":
            moved.insert(0, (self.generator.trainable_variables, self.generator_optimizer))
        gradients, code_gradients, losses = guard.gradients(
            objective(with_triplet=True), *(variables for variables, _ in moved), inputs=inputs, codes=codes
        )
        for group, (variables, optimizer) in zip(gradients, moved, strict=True):
            optimizer.apply(group, variables)
        # z^(s) gets no gradient from the triplet loss, which depends on the RNN's outputs alone (Sec. 3.3)
        for name, ids in rows.items():
            guard.update(getattr(self, name), ids, code_gradients[name], step)  # also projects (Sec. 3.3)
        return guard.finish(losses)
