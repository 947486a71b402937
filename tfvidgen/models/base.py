"""The contract of every system: named latents in, videos out, the whole algorithm in `train_step`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.optimizers import LossScaler, check_counts

ROLES = (
    "content",
    "motion",
    "label",
)  # what a latent decides: what is seen, how it moves, or which class it belongs to
LABEL = "label"  # the name of the label in every latent dict
EXCHANGEABLE = ("identity", "action", "video", "shared")


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """What one entry of a latent dict is.

    Attributes:
        shape: Shape of one video's entry; None where the length is free.
        dtype: `float32` for codes, `int32` for labels.
        prior: Where `sample_latents` takes it from, in words.
        role: `content` (what is seen), `motion` (how it moves) or `label` (which class it belongs to). The entry with the
            role `label` is called `label`. Whatever keeps or exchanges one side of a video asks for roles, not names.
        num_values: Of a label: it lies in 0..num_values - 1. None for codes.

    Raises:
        ValueError: If the role is none of these, or a label has no `num_values`: without a bound, a label that does not
            exist would be decoded to a wrong video instead of an error.
    """

    shape: tuple[int | None, ...]
    dtype: str
    prior: str
    role: str
    num_values: int | None = None

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"`role` must be one of {ROLES}. Received {self.role!r}.")
        if (self.role == "label") != (self.num_values is not None):
            raise ValueError(
                "`num_values` says how many values a label has, and only a label has it. Received "
                f"role={self.role!r}, num_values={self.num_values}."
            )


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one argument of `exchange` chooses from.

    Attributes:
        of: Whose codes they are: an `identity`'s or `action`'s, a `video`'s own (the number is then a video id), or one
            `shared` by all videos.
        num_values: The number lies in 0..num_values - 1.
        names: What the values are called, or empty where only their numbers are known.
    """

    of: str
    num_values: int
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.of not in EXCHANGEABLE:
            raise ValueError(f"`of` must be one of {EXCHANGEABLE}. Received {self.of!r}.")

    def name(self, value: int) -> str:
        """What to call a value: `action 2 (jump)`, `video 7`."""
        number = self.of if self.of == "shared" else f"{self.of} {value}"
        return f"{number} ({self.names[value]})" if value < len(self.names) else number


class VideoGenerator(keras.Model):
    """A system that turns named latents into videos and knows how to train itself.

    Subclasses have a plain-value constructor with `get_config`, create every variable in `build`, take their optimizers
    and loss weights in `compile`, and implement `train_step`, `latent_spec`, `sample_latents` and `decode`. Systems that
    learn a code per video implement `lookup`; systems with an encoder implement `encode`; systems whose codes belong to
    identities and actions, or whose videos can swap them, implement `exchange_spec` and `exchange`.

    Every system sets `num_frames`, the frames of a clip that it trains on.

    A latent dict maps names to tensors with the videos first, e.g. `{"static": (B, Ds), "transient": (B, T, Dt)}`.
    `decode` is the one door: exchange takes some keys from another dict, interpolation blends a key. Callers never ask which
    system they have: `latent_spec` gives the role of each latent, `exchange_spec` what an exchange chooses from.

    `train_step` takes its gradients through a `tfvidgen.optimizers.StepGuard`. A model whose policy is `mixed_float16` has
    a `loss_scaler`; otherwise that is None and the guard does nothing.

    Class attributes:
        validation_names: Names of what `validation_losses` returns.
        network_forms: Forms of its networks that a system can build, ascending; a new model has the last. Where weights of
            an earlier version would not fit, or would mean something else, a change adds a form, and the constructor goes on
            building the older ones: it finds the form in `self.network_form`.

    Args:
        network_form: One of `network_forms`; None for the last. It is part of the model's config; a config without one, as
            version 0.1 wrote them, means the first.
        identity_names, action_names: What the data calls its identities and actions, by label; empty where unknown. They
            are part of the model's config, so a loaded model knows what its numbers mean.
    """

    validation_names: tuple[str, ...] = ("reconstruction_loss",)
    network_forms: tuple[int, ...] = (1,)

    def __init__(
        self,
        network_form: int | None = None,
        identity_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.identity_names, self.action_names = tuple(identity_names), tuple(action_names)
        if network_form is not None and network_form not in self.network_forms:
            known = ", ".join(map(str, self.network_forms))
            raise ValueError(
                f"`network_form` of {type(self).__name__} must be one of {known}, or None for the last. Received "
                f"{network_form!r}."
            )
        self.network_form = network_form or self.network_forms[-1]
        self.frozen_networks: dict[str, keras.Layer] = {}
        self.frozen_digests: dict[str, str] = {}
        self._validation_means = {name: keras.metrics.Mean(name=f"mean_{name}") for name in self.validation_names}
        self.loss_scaler = None
        if self.compute_dtype == "float16":
            with keras.name_scope(self.name):
                self.loss_scaler = LossScaler(name="loss_scaler")

    def get_config(self):
        return {
            **super().get_config(),
            "network_form": self.network_form,
            "identity_names": list(self.identity_names),
            "action_names": list(self.action_names),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return super().from_config({"network_form": 1, **config}, custom_objects)

    def freeze(self, name: str, network: keras.Layer, digest: str = "") -> keras.Layer:
        """Gives a pretrained network that is never trained its place in the system, and returns it.

        It is exported with the endpoints that go through it. It is in no checkpoint, average or optimizer, and float16 does
        not guard it: it comes from its file again, whose digest `config.json` keeps. Call it in the constructor.

        Args:
            name: What the run folder calls it, e.g. `flow`.
            network: Built or not.
            digest: SHA-256 of the file that its weights are from; empty for weights that a seed draws.

        Raises:
            ValueError: If the system has a frozen network of that name.
        """
        if name in self.frozen_networks:
            raise ValueError(
                f"{type(self).__name__} has a frozen network {name!r} already: give this one another name."
            )
        network.trainable = False
        self.frozen_networks[name] = network
        self.frozen_digests[name] = digest
        return network

    @property
    def learned_variables(self) -> list[keras.Variable]:
        """All of `weights` but those of frozen networks: what a run must not lose."""
        frozen = {id(variable) for network in self.frozen_networks.values() for variable in network.variables}
        return [variable for variable in self.weights if id(variable) not in frozen]

    def compile(self, optimizer=None, accumulate: int = 1, **kwargs):
        """Keras's `compile` without its own loss scaling and without XLA; systems call it from theirs.

        `accumulate` is how many micro-batches each update of a step has, see `tfvidgen.optimizers.StepGuard`.

        Keras would scale the loss for the one optimizer it is given, and on a GPU compile the step with XLA, which
        refuses steps that synchronise replicas and lets batch norm statistics drift apart.
        """
        check_counts(accumulate=accumulate)
        self.accumulate = accumulate
        super().compile(**{"optimizer": optimizer, "jit_compile": False, "auto_scale_loss": False, **kwargs})

    def fit(self, x=None, *args, **kwargs):
        """Keras's `fit` with this system's `train_step`, on one device or under `MirroredStrategy`.

        Epochs, callbacks, history and `validation_data` are Keras's. What it logs is the last step of an epoch; for
        `validation_data` it is the mean over its batches (see `test_step`). Datasets of `tfvidgen.data` never end, so give
        `steps_per_epoch` and `validation_steps`.

        Args:
            x: A dataset of batches, dicts as of `tfvidgen.data.make_dataset` of which only `video` uint8 (B, T, H, W, 3) is
                needed (`video_id` too where a code is learned per video, and `action` where the system is conditional);
                or arrays: such a dict with the clips first, or the clips alone, whose positions then are their ids. Where
                batches have no `step`, the model counts its steps itself.

        Raises:
            ValueError: Under a strategy of several workers, where Keras's `fit` fails: `trainers.engine.loop.run` trains there;
                for batches without videos; and for batches that replicas cannot share evenly, where their losses would
                count for more or less.
        """
        self._refuse_many_workers("fit")
        x = self._with_video_ids(x)
        self._refuse_batches_without_videos(x)
        self._refuse_uneven_batches(x)
        return super().fit(x, *args, **kwargs)

    def step_of(self, batch: dict[str, Any]):
        """The training step that a batch belongs to, int64 (): its own, or how often the first optimizer was applied."""
        return batch["step"][0] if "step" in batch else tf.cast(self.optimizer.iterations, tf.int64)

    @staticmethod
    def _with_video_ids(x):
        """Arrays as a dict of arrays with the positions of the clips as ids; anything else as it is."""
        if isinstance(x, np.ndarray) or tf.is_tensor(x):
            x = {"video": x}
        arrays = isinstance(x, dict) and all(isinstance(v, np.ndarray) or tf.is_tensor(v) for v in x.values())
        if arrays and "video" in x and "video_id" not in x:
            x = {**x, "video_id": np.arange(len(x["video"]), dtype=np.int32)}
        return x

    def _refuse_batches_without_videos(self, x: Any) -> None:
        spec = x.element_spec if isinstance(x, tf.data.Dataset) else x
        if isinstance(x, tf.data.Dataset | dict) and not (isinstance(spec, dict) and "video" in spec):
            found = f"a dict of {', '.join(spec)}" if isinstance(spec, dict) else f"{type(spec).__name__}"
            raise ValueError(
                "Every batch must be a dict with `video`, uint8 (B, T, H, W, 3), as `tfvidgen.data.make_dataset` makes "
                f"them. Received {found}."
            )
        if isinstance(spec, dict) and "video" in spec:
            video, needs_id = spec["video"], type(self).lookup is not VideoGenerator.lookup
            if video.dtype != "uint8" or len(video.shape) != 5:
                raise ValueError(
                    "`video` must be uint8 (B, T, H, W, 3), colours in 0..255. Received "
                    f"{getattr(video.dtype, 'name', video.dtype)} {tuple(video.shape)}."
                )
            if needs_id and "video_id" not in spec:
                raise ValueError(
                    f"{type(self).__name__} learns a code per video, so every batch needs `video_id`, int32 (B,). Received "
                    f"{', '.join(spec)}."
                )

    def evaluate(self, *args, **kwargs):
        """Keras's `evaluate` with this system's `test_step`. Raises ValueError as `fit` does."""
        self._refuse_many_workers("evaluate")
        return super().evaluate(*args, **kwargs)

    def _refuse_many_workers(self, method: str) -> None:
        strategy = self.distribute_strategy
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            system = type(self).__module__.rpartition(".")[2]
            raise ValueError(
                f"`{method}` of Keras works on one device and under MirroredStrategy. Received a "
                "MultiWorkerMirroredStrategy: use `trainers.engine.loop.run(model, dataset_fn, run_dir, total_steps, "
                f"strategy)` or `python -m trainers.{system}`, which train with the same `train_step` on any number of workers."
            )

    def _refuse_uneven_batches(self, dataset: Any) -> None:
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        if num_replicas == 1 or not isinstance(dataset, tf.data.Dataset):
            return
        for size in {spec.shape[0] for spec in tf.nest.flatten(dataset.element_spec)}:
            if size and size % num_replicas:
                raise ValueError(
                    f"A batch of {size} examples cannot be divided by {num_replicas} replicas: make it a multiple of that."
                )

    # ---------------------------------------------------------------- latents
    @property
    def latent_spec(self) -> dict[str, LatentSpec]:
        """Names, shapes, priors and roles of the latents that `decode` takes."""
        raise NotImplementedError

    def latent_names(self, role: str) -> tuple[str, ...]:
        """Names of the latents with a role, one of `ROLES`; empty where the system has none."""
        if role not in ROLES:
            raise ValueError(f"`role` must be one of {ROLES}. Received {role!r}.")
        return tuple(name for name, spec in self.latent_spec.items() if spec.role == role)

    @property
    def num_labels(self) -> int:
        """How many labels a conditional system knows; 0 for an unconditional one."""
        return self.latent_spec[LABEL].num_values if LABEL in self.latent_spec else 0

    def latent_length(self, num_frames: int | None = None) -> int:
        """The length of the motion latents of a video, which for some systems is not its number of frames.

        Args:
            num_frames: Frames of the video; None for the trained length.

        Raises:
            ValueError: If the system cannot make videos of that length. Here those with a latent of free length make any,
                others the one they were trained at.
        """
        if num_frames is None:
            return self.num_frames
        free = any(None in spec.shape for spec in self.latent_spec.values())
        if num_frames < 1 or not (free or num_frames == self.num_frames):
            own = f"the {self.num_frames} frames it was" if self.num_frames > 1 else "the one frame it was"
            known = "1 frame or more" if free else f"{own} built for"
            raise ValueError(
                f"{type(self).__name__} makes videos of {known}. Received num_frames={num_frames}: leave it out, or train "
                "with another num_frames."
            )
        return num_frames

    def lengths(self, most: int) -> list[int]:
        """Every number of frames up to `most` that a video of this system can have, ascending."""
        possible = []
        for num_frames in range(1, most + 1):
            try:
                self.latent_length(num_frames)
            except ValueError:
                continue
            possible.append(num_frames)
        return possible

    def sample_latents(
        self, num_videos, num_frames: int | None = None, seed=0, labels=None, training: bool = False
    ) -> dict[str, Any]:
        """Draws latents of new videos; the same seed gives the same latents.

        Args:
            num_videos: Int, or a scalar tensor.
            num_frames: One of the lengths the system can make, see `latent_length`; None for the trained one.
            seed: Int, or a scalar tensor.
            labels: Of a conditional system: an int for all videos or int (num_videos,), in 0..num_labels - 1; None draws
                them.
            training: Whether networks that make latents use, and move, the statistics of this batch.

        Raises:
            ValueError: For a length that the system cannot make, a label that does not exist, or labels for an
                unconditional system.
        """
        raise NotImplementedError

    def relabel(self, latents: dict[str, Any], labels) -> dict[str, Any]:
        """The same latents under other labels, with all that depends on them.

        Args:
            latents: Of B videos.
            labels: An int for all videos or int (B,), in 0..num_labels - 1.

        Raises:
            ValueError: As `sample_latents`.
        """
        return {**latents, LABEL: self._checked_labels(labels, ops.shape(next(iter(latents.values())))[0])}

    def _checked_labels(self, labels, num_videos):
        """int32 (num_videos,) of what `labels=` may be. Values of a graph's tensors are not looked at."""
        if not self.num_labels:
            raise ValueError(
                f"This {type(self).__name__} is unconditional: leave `labels` out, or train a conditional one."
            )
        if not tf.is_tensor(labels) or hasattr(labels, "numpy"):
            given = np.asarray(labels)
            if given.dtype.kind not in "iu" or given.ndim > 1:
                raise ValueError(f"`labels` must be an int or int (num_videos,). Received {given.dtype} {given.shape}.")
            if not isinstance(num_videos, tf.Tensor) and given.ndim and len(given) != num_videos:
                raise ValueError(f"`labels` must be one per video, {num_videos} in all. Received {len(given)}.")
            if given.size and not 0 <= given.min() <= given.max() < self.num_labels:
                raise ValueError(f"`labels` must lie in 0..{self.num_labels - 1}. Received {given.tolist()}.")
        return tf.broadcast_to(tf.cast(labels, tf.int32), (num_videos,))

    def decode(self, latents: dict[str, Any], training: bool = False):
        """Latents of B videos -> float32 (B, T, H, W, 3) in [-1, 1]."""
        raise NotImplementedError

    @functools.cached_property
    def decode_function(self):
        """`decode` as a graph function, traced once for a model that is asked again and again."""
        return tf.function(lambda latents: self.decode(latents), reduce_retracing=True)

    def lookup(self, video_id) -> dict[str, Any]:
        """The latents learned for videos of the training set, int (B,)."""
        raise NotImplementedError(
            f"{type(self).__name__} does not learn a code per video: use `sample_latents` or `encode`."
        )

    def encode(self, video, seed=None, training=False) -> dict[str, Any]:
        """The latents of given videos.

        Args:
            video: float32 (B, T, H, W, 3) in [-1, 1].
            seed: Draws from the posterior of an encoder that has one: the same seed gives the same latents. None takes the
                posterior's mean; an encoder without a posterior does not look at it.
            training: Whether the encoder uses, and moves, the statistics of this batch.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no encoder: use `lookup`, or search with `tfvidgen.editing`."
        )

    @property
    def has_encoder(self) -> bool:
        """Whether `encode` gives the latents of any video."""
        return type(self).encode is not VideoGenerator.encode

    @property
    def has_lookup(self) -> bool:
        """Whether `lookup` gives a code of every video of the training set."""
        return type(self).lookup is not VideoGenerator.lookup

    @property
    def reconstructs(self) -> bool:
        """Whether `reconstruct` works: the system encodes videos, or learns a code for each of the training set."""
        return self.has_encoder or self.has_lookup

    def infer(self, batch: dict[str, Any], seed=None) -> dict[str, Any]:
        """The latents of a batch's videos: by the encoder where there is one, else by `lookup` of their `video_id`.

        Args:
            batch: `video`, uint8 (B, T, H, W, 3), for an encoder; `video_id`, int (B,) of the training set, for `lookup`.
            seed: As for `encode`.

        Raises:
            ValueError: If the system neither encodes videos nor learns a code for each.
        """
        if self.has_encoder:
            return self.encode(ops.cast(batch["video"], "float32") / 127.5 - 1.0, seed)
        if self.has_lookup:
            return self.lookup(batch["video_id"])
        raise ValueError(
            f"{type(self).__name__} makes new videos only: it has no encoder and learns no code per video, so there are no "
            "latents of a given one. Measure what it makes with `python -m trainers.evaluate`."
        )

    def reconstruct(self, batch: dict[str, Any], seed=None):
        """The system's own version of a batch's videos, float32 (B, T, H, W, 3) in [-1, 1]; see `infer`."""
        return self.decode(self.infer(batch, seed))

    @property
    def exchange_spec(self) -> dict[str, Choice]:
        """What the arguments `identity` and `action` of `exchange` choose from; empty for a system that cannot exchange."""
        return {}

    @property
    def num_identities(self) -> int:
        """How many identities `exchange` chooses from; 0 for a system that cannot."""
        return self.exchange_spec["identity"].num_values if self.exchange_spec else 0

    @property
    def num_actions(self) -> int:
        """How many actions `exchange` chooses from; 0 for a system that cannot."""
        return self.exchange_spec["action"].num_values if self.exchange_spec else 0

    @property
    def row_owners(self) -> dict[str, str]:
        """Variables with a row for each identity, action or video, by their names in a checkpoint -> whose the rows are.

        Of `EXCHANGEABLE`. Another run's rows are taken over where the names of their owners match.
        """
        return {}

    def exchange(self, identity, action) -> dict[str, Any]:
        """The latents of videos that show an identity in an action, int (B,) each; `exchange_spec` says what they number."""
        raise NotImplementedError(
            f"{type(self).__name__} learns no codes of identities and actions: exchange latents of videos with "
            "`tfvidgen.editing.exchange`."
        )

    def generate(self, num_videos, num_frames: int | None = None, seed=0, labels=None):
        """New videos, float32 (num_videos, T, H, W, 3) in [-1, 1]. Arguments and errors as for `sample_latents`."""
        given = {} if labels is None else {"labels": labels}
        return self.decode(self.sample_latents(num_videos, num_frames, seed, **given))

    def call(self, latents, training: bool = False):
        return self.decode(latents, training=training)

    # ---------------------------------------------------------------- training
    @property
    def num_decoded_frames(self) -> int:
        """How many frames of each clip a training step decodes."""
        return self.num_frames

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of the paper's algorithm on a batch; returns scalars by name. Runs in replica context."""
        raise NotImplementedError

    def validation_losses(self, batch: dict[str, Any]) -> dict[str, Any]:
        """How well the system explains the videos of a batch: (B,) by name. Changes nothing, draws nothing.

        Here `reconstruction_loss`, the mean square between a video and `reconstruct`, in [-1, 1]. A system may have another
        measure, and more of them, such as the KL terms of a posterior; `validation_names` lists them.

        Raises:
            ValueError: If the system neither encodes videos nor learns a code for each.
        """
        video = ops.cast(batch["video"], "float32") / 127.5 - 1.0
        return {"reconstruction_loss": ops.mean(ops.square(self.reconstruct(batch) - video), axis=(1, 2, 3, 4))}

    def test_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The means of `validation_losses` over the batches so far, for `evaluate` and `validation_data`."""
        for name, losses in self.validation_losses(batch).items():
            self._validation_means[name].update_state(losses)
        return {name: mean.result() for name, mean in self._validation_means.items()}
