"""Base class of all systems: named latents in, videos out, the whole training algorithm in `train_step`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.optimizers import LossScaler, check_counts, optimizers_of

ROLES = (
    "content",
    "motion",
    "label",
)  # what a latent controls: appearance, motion or class
LABEL = "label"  # key of the label in every latent dict
EXCHANGEABLE = ("identity", "action", "video", "shared")  # whose code a row of a latent table is


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """Specification of one entry of a latent dict.

    Attributes:
        shape: Per-video shape; None along an axis of variable length.
        dtype: `float32` for codes, `int32` for labels.
        prior: The distribution that `sample_latents` draws from, as text.
        role: `content` (appearance), `motion` or `label` (class). The entry with the role `label` is also named `label`.
            Code that keeps or exchanges content or motion looks up roles, not names.
        num_values: Number of classes of a label, which lies in 0..num_values - 1. None for codes.

    Raises:
        ValueError: If the role is unknown, or a label has no `num_values`: without that bound, an invalid label would
            silently decode to a wrong video.
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
                "`num_values` is the number of values of a label, and only a label has it. Received "
                f"role={self.role!r}, num_values={self.num_values}."
            )


@dataclasses.dataclass(frozen=True)
class Choice:
    """The range of values of one argument of `exchange`.

    Attributes:
        of: What owns the codes: an `identity`, an `action`, a `video` (the value is then a video id), or `shared` for a
            single code shared by all videos.
        num_values: Values lie in 0..num_values - 1.
        names: Names of the values; empty if unknown.
    """

    of: str
    num_values: int
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.of not in EXCHANGEABLE:
            raise ValueError(f"`of` must be one of {EXCHANGEABLE}. Received {self.of!r}.")

    def name(self, value: int) -> str:
        """Display name of a value: `action 2 (jump)`, `video 7`."""
        number = self.of if self.of == "shared" else f"{self.of} {value}"
        return f"{number} ({self.names[value]})" if value < len(self.names) else number


class VideoGenerator(keras.Model):
    """Base class of all systems: decodes named latents into videos and implements its own training step.

    Subclasses have a constructor of plain values with a matching `get_config`, create every variable in `build`, take their
    optimizers and loss weights in `compile`, and implement `train_step`, `latent_spec`, `sample_latents` and `decode`.
    Systems that learn a code per video implement `lookup`; systems with an encoder implement `encode`; systems whose codes
    belong to identities and actions, or whose videos can swap them, implement `exchange_spec` and `exchange`.

    Every system sets `num_frames`, the length of its training clips.

    A latent dict maps names to batched tensors, e.g. `{"static": (B, Ds), "transient": (B, T, Dt)}`. All videos are made by
    `decode`: exchange takes some entries from another dict, interpolation blends one entry. Callers are system-agnostic:
    `latent_spec` gives the role of each latent, `exchange_spec` the values that can be exchanged.

    `train_step` computes its gradients through a `tfvidgen.optimizers.StepGuard`. Under the policy `mixed_float16` a model
    has a `loss_scaler`; otherwise it is None and the guard scales nothing.

    Class attributes:
        validation_names: Names of the losses that `validation_losses` returns.
        stages: Names of the stages that the system is trained in, in order; empty for a single one. `train_step` does what
            `self.stage` says.
        sampling_stage: The stage that trains what `sample_latents` draws from; before it there are only latents of given
            videos. Empty if every stage can sample.
        network_forms: Versions of the architecture that a system can build, ascending; new models use the last. A change
            that makes existing weights incompatible adds a form, and the constructor still builds the older ones, selected
            by `self.network_form`.

    Args:
        network_form: One of `network_forms`; None for the last. Part of the model's config; a config without it, as written
            by version 0.1, means form 1.
        identity_names, action_names: Names of the identities and actions, indexed by label; empty if unknown. Part of the
            model's config, so a loaded model can name its labels.
    """

    validation_names: tuple[str, ...] = ("reconstruction_loss",)
    stages: tuple[str, ...] = ()
    sampling_stage: str = ""
    network_forms: tuple[int, ...] = (1,)

    def __init__(
        self,
        network_form: int | None = None,
        identity_names: Sequence[str] = (),
        action_names: Sequence[str] = (),
        **kwargs,
    ):
        names = self.stages
        if isinstance(names, str) or len({*names, ""}) <= len(names) or self.sampling_stage not in ("", *names):
            raise ValueError(
                f"`stages` of {type(self).__name__} must be a tuple of distinct names, and `sampling_stage` one of them or empty. "
                f"Received stages={names!r}, sampling_stage={self.sampling_stage!r}."
            )
        super().__init__(**kwargs)
        self.identity_names, self.action_names = tuple(identity_names), tuple(action_names)
        if network_form is not None and network_form not in self.network_forms:
            known = ", ".join(map(str, self.network_forms))
            raise ValueError(
                f"`network_form` of {type(self).__name__} must be one of {known}, or None for the last. Received "
                f"{network_form!r}."
            )
        self.network_form = network_form or self.network_forms[-1]  # new models get the newest form
        self.stage = self.stages[0] if self.stages else ""
        self.frozen_networks: dict[str, keras.Layer] = {}  # filled by `freeze`
        self.frozen_digests: dict[str, str] = {}  # SHA-256 of their weight files
        self._validation_means = {name: keras.metrics.Mean(name=f"mean_{name}") for name in self.validation_names}
        self.loss_scaler = None  # only float16 needs one
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
        return super().from_config({"network_form": 1, **config}, custom_objects)  # version 0.1 wrote no form

    def freeze(self, name: str, network: keras.Layer, digest: str = "") -> keras.Layer:
        """Registers a pretrained, frozen network and returns it.

        The network is exported with the endpoints that use it. It is excluded from checkpoints, weight averages, optimizers
        and the float16 guard: its weights are reloaded from their file, whose digest `config.json` records. Call this in
        the constructor.

        Args:
            name: Name of the network in the run folder, e.g. `flow`.
            network: Built or unbuilt.
            digest: SHA-256 of the weight file; empty for weights initialised from a seed.

        Raises:
            ValueError: If the system already has a frozen network of that name.
        """
        if name in self.frozen_networks:
            raise ValueError(
                f"{type(self).__name__} already has a frozen network {name!r}: give this one another name."
            )
        network.trainable = False  # its inputs still get gradients
        self.frozen_networks[name] = network
        self.frozen_digests[name] = digest
        return network

    @property
    def learned_variables(self) -> list[keras.Variable]:
        """All of `weights` except those of frozen networks: the state that a run must save."""
        # compared by identity: Keras variables overload ==
        frozen = {id(variable) for network in self.frozen_networks.values() for variable in network.variables}
        return [variable for variable in self.weights if id(variable) not in frozen]

    def begin_stage(self, name: str) -> None:
        """Makes `name` the current stage, of `stages`: what `train_step` does from its next trace on.

        Raises:
            ValueError: If the system has no such stage.
        """
        if name not in self.stages:
            known = (
                f"must be one of {', '.join(self.stages)}"
                if self.stages
                else "does not exist: it is trained in a single stage"
            )
            raise ValueError(f"A stage of {type(self).__name__} {known}. Received {name!r}.")
        if name != self.stage:
            self.stage = name
            self.train_function = None  # of Keras's `fit`, traced in the previous stage

    @property
    def can_sample(self) -> bool:
        """Whether the current stage, or one before it, trains what `sample_latents` draws from."""
        return not self.sampling_stage or self.stages.index(self.stage) >= self.stages.index(self.sampling_stage)

    def require_sampling(self) -> None:
        """Raises ValueError if there is nothing to sample from yet."""
        if not self.can_sample:
            raise ValueError(
                f"This {type(self).__name__} was trained up to its stage {self.stage!r}, but new videos can only be sampled from "
                f"the stage {self.sampling_stage!r} onwards: train that first. Until then, reconstruct or edit given videos."
            )

    def compile(self, optimizer=None, accumulate: int = 1, **kwargs):
        """Keras's `compile` without automatic loss scaling or XLA; systems call it from their own `compile`.

        `accumulate` is the number of micro-batches per update, see `tfvidgen.optimizers.StepGuard`.

        By default Keras would scale the loss for a single optimizer only, and compile the step with XLA on a GPU, which
        rejects steps that synchronise replicas and lets batch norm statistics diverge between them.
        """
        check_counts(accumulate=accumulate)
        self.accumulate = accumulate
        super().compile(**{"optimizer": optimizer, "jit_compile": False, "auto_scale_loss": False, **kwargs})

    def fit(self, x=None, *args, **kwargs):
        """Keras's `fit` with this system's `train_step`, on one device or under `MirroredStrategy`.

        Epochs, callbacks, history and `validation_data` work as in Keras. Training logs are those of the last step of each
        epoch; validation logs are means over the batches (see `test_step`). Datasets of `make_dataset` are infinite: set
        `steps_per_epoch` and `validation_steps`. Those of `video_dataset_from_directory` end after an epoch.

        Args:
            x: A dataset of batch dicts as made by `tfvidgen.data.make_dataset`, of which only `video` uint8 (B, T, H, W, 3)
                is required (plus `video_id` if a code is learned per video, and `action` if the system is conditional);
                or arrays: such a dict for the whole set, or the clips alone, whose indices then serve as video ids. Without
                `step` in the batches, the model counts its own steps. Later `stages` than the first may take other batches.

        Raises:
            ValueError: Under a multi-worker strategy, where Keras's `fit` fails (use `trainers.engine.loop.run`); for
                batches without videos, in `validation_data` as well; and for batches that cannot be split evenly across
                replicas, whose losses would be weighted unequally.
        """
        self._refuse_many_workers("fit")
        if kwargs.get("validation_data") is not None:
            kwargs["validation_data"] = self._checked_data(kwargs["validation_data"], needs_ids=not self.has_encoder)
        if isinstance(x, tf.data.Dataset) and not args:
            kwargs.setdefault("shuffle", False)  # Keras's default of True is not for datasets, and it warns of it
        return super().fit(self._checked_data(x, trains=True), *args, **kwargs)

    def step_of(self, batch: dict[str, Any]):
        """The training step of a batch, int64 (): the batch's own `step`, else a count of updates.

        The count is that of the first optimizer, or of all of them together for a system with `stages`: one stage need not use
        the optimizer of another, and every step must draw other numbers.
        """
        if "step" in batch:
            return batch["step"][0]
        counting = optimizers_of(self) if self.stages else [self.optimizer]
        return tf.add_n([tf.cast(optimizer.iterations, tf.int64) for optimizer in counting])

    def _checked_data(self, x: Any, trains: bool = False, needs_ids: bool = True) -> Any:
        """`x` as Keras takes it; raises ValueError as `fit` does."""
        x = self._with_video_ids(x)
        if not (trains and self.stage in self.stages[1:]):
            self._refuse_batches_without_videos(x, needs_ids)
        self._refuse_uneven_batches(x)
        return x

    @staticmethod
    def _with_video_ids(x):
        """Arrays as a dict of arrays with the clips' indices as ids; anything else is returned unchanged."""
        if isinstance(x, np.ndarray) or tf.is_tensor(x):
            x = {"video": x}
        arrays = isinstance(x, dict) and all(isinstance(v, np.ndarray) or tf.is_tensor(v) for v in x.values())
        if arrays and "video" in x and "video_id" not in x:
            x = {**x, "video_id": np.arange(len(x["video"]), dtype=np.int32)}  # (N,)
        return x

    def _refuse_batches_without_videos(self, x: Any, needs_ids: bool) -> None:
        spec = x.element_spec if isinstance(x, tf.data.Dataset) else x
        if (x is None or isinstance(x, tf.data.Dataset | dict | list | tuple)) and not (
            isinstance(spec, dict) and "video" in spec
        ):
            found = f"a dict of {', '.join(spec)}" if isinstance(spec, dict) else f"{type(spec).__name__}"
            raise ValueError(
                "Every batch must be a dict with `video`, uint8 (B, T, H, W, 3), as `tfvidgen.data.make_dataset` makes "
                f"them. Received {found}."
            )
        if isinstance(spec, dict) and "video" in spec:
            video = spec["video"]
            dtype, shape = getattr(video, "dtype", type(video).__name__), tuple(getattr(video, "shape", ()))
            if dtype != "uint8" or len(shape) != 5 or shape[-1] not in (3, None):
                raise ValueError(
                    "`video` must be uint8 (B, T, H, W, 3), colours in 0..255. Received "
                    f"{getattr(dtype, 'name', dtype)} {shape}."
                )
            if self.has_lookup and needs_ids and "video_id" not in spec:
                raise ValueError(
                    f"{type(self).__name__} learns a code per video, so every batch needs `video_id`, int32 (B,). Received "
                    f"{', '.join(spec)}."
                )

    def evaluate(self, x=None, *args, **kwargs):
        """Keras's `evaluate` with this system's `test_step`. Takes data and raises ValueError as `fit` does."""
        self._refuse_many_workers("evaluate")
        return super().evaluate(self._checked_data(x, needs_ids=not self.has_encoder), *args, **kwargs)

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
        # only datasets state their batch size
        if num_replicas == 1 or not isinstance(dataset, tf.data.Dataset):
            return
        for size in {spec.shape[0] for spec in tf.nest.flatten(dataset.element_spec)}:
            if size and size % num_replicas:  # a size of None is known only at run time
                raise ValueError(
                    f"A batch of {size} examples cannot be divided by {num_replicas} replicas: make it a multiple of that."
                )

    # ---------------------------------------------------------------- latents
    @property
    def latent_spec(self) -> dict[str, LatentSpec]:
        """Name, shape, prior and role of each latent that `decode` takes."""
        raise NotImplementedError

    def latent_names(self, role: str) -> tuple[str, ...]:
        """Names of the latents with the given role, one of `ROLES`; empty if there are none."""
        if role not in ROLES:
            raise ValueError(f"`role` must be one of {ROLES}. Received {role!r}.")
        return tuple(name for name, spec in self.latent_spec.items() if spec.role == role)

    @property
    def num_labels(self) -> int:
        """Number of labels of a conditional system; 0 for an unconditional one."""
        return self.latent_spec[LABEL].num_values if LABEL in self.latent_spec else 0

    def latent_length(self, num_frames: int | None = None) -> int:
        """Length of the motion latents of a video, which for some systems differs from its number of frames.

        Args:
            num_frames: Frames of the video; None for the trained length.

        Raises:
            ValueError: If the system cannot generate videos of that length. By default, systems with a latent of variable
                length support any length, others only the trained one.
        """
        if num_frames is None:
            return self.num_frames
        free = any(None in spec.shape for spec in self.latent_spec.values())  # e.g. motion codes of a recurrence
        if num_frames < 1 or not (free or num_frames == self.num_frames):
            own = f"the {self.num_frames} frames it was" if self.num_frames > 1 else "the one frame it was"
            known = "1 frame or more" if free else f"{own} built for"
            raise ValueError(
                f"{type(self).__name__} generates videos of {known}. Received num_frames={num_frames}: leave it out, or train "
                "with another num_frames."
            )
        return num_frames

    def lengths(self, most: int) -> list[int]:
        """All supported video lengths up to `most` frames, ascending."""
        possible = []
        # asks `latent_length` for each, so that subclasses need to override one method only
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
        """Samples latents of new videos; the same seed gives the same latents.

        Args:
            num_videos: Int, or a scalar tensor.
            num_frames: A supported length, see `latent_length`; None for the trained one.
            seed: Int, or a scalar tensor.
            labels: For a conditional system: an int for all videos or int (num_videos,), in 0..num_labels - 1; None samples
                them.
            training: Whether networks that produce latents normalise by batch statistics and update the moving ones.

        Raises:
            ValueError: For an unsupported length, a label out of range, or labels for an unconditional system.
        """
        raise NotImplementedError

    def training_latents(self, num_videos: int, seed: int) -> dict[str, Any]:
        """Latents like those that training steps decode, to recompute batch norm statistics from.

        By default those of `sample_latents`; systems whose early stages cannot sample return others there, e.g. learned codes.
        """
        return self.sample_latents(num_videos, seed=seed, training=True)

    def relabel(self, latents: dict[str, Any], labels) -> dict[str, Any]:
        """The same latents with other labels; entries that depend on the label are recomputed.

        Args:
            latents: Latents of B videos.
            labels: An int for all videos or int (B,), in 0..num_labels - 1.

        Raises:
            ValueError: As for `sample_latents`.
        """
        # B is the length of any entry
        return {**latents, LABEL: self._checked_labels(labels, ops.shape(next(iter(latents.values())))[0])}

    def _checked_labels(self, labels, num_videos):
        """`labels` as int32 (num_videos,). Values of symbolic tensors are not checked."""
        if not self.num_labels:
            raise ValueError(
                f"This {type(self).__name__} is unconditional: leave `labels` out, or train a conditional one."
            )
        if not tf.is_tensor(labels) or hasattr(labels, "numpy"):  # values are known, not symbolic
            given = np.asarray(labels)
            if given.dtype.kind not in "iu" or given.ndim > 1:
                raise ValueError(
                    f"`labels` must be an int or an int array (num_videos,). Received {given.dtype} {given.shape}."
                )
            if not isinstance(num_videos, tf.Tensor) and given.ndim and len(given) != num_videos:
                raise ValueError(f"`labels` must be one per video, {num_videos} in all. Received {len(given)}.")
            if given.size and not 0 <= given.min() <= given.max() < self.num_labels:
                raise ValueError(f"`labels` must lie in 0..{self.num_labels - 1}. Received {given.tolist()}.")
        return tf.broadcast_to(tf.cast(labels, tf.int32), (num_videos,))  # () or (B,) -> (B,)

    def decode(self, latents: dict[str, Any], training: bool = False):
        """Latents of B videos -> float32 (B, T, H, W, 3) in [-1, 1]."""
        raise NotImplementedError

    @functools.cached_property
    def decode_function(self):
        """`decode` as a cached graph function, so that repeated calls do not retrace."""
        # retracing is reduced by relaxing shapes, so that other batch sizes share one trace
        return tf.function(lambda latents: self.decode(latents), reduce_retracing=True)

    def lookup(self, video_id) -> dict[str, Any]:
        """The latents learned for training videos, given their ids, int (B,)."""
        raise NotImplementedError(
            f"{type(self).__name__} does not learn a code per video: use `sample_latents` or `encode`."
        )

    def encode(self, video, seed=None, training=False) -> dict[str, Any]:
        """Encodes videos to latents.

        Args:
            video: float32 (B, T, H, W, 3) in [-1, 1].
            seed: Samples from the encoder's posterior; the same seed gives the same latents. None takes the posterior mean.
                Ignored by deterministic encoders.
            training: Whether the encoder normalises by batch statistics and updates the moving ones.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no encoder: use `lookup`, or search with `tfvidgen.editing`."
        )

    @property
    def has_encoder(self) -> bool:
        """Whether `encode` is implemented, for any video."""
        return type(self).encode is not VideoGenerator.encode

    @property
    def has_lookup(self) -> bool:
        """Whether `lookup` is implemented, for every training video."""
        return type(self).lookup is not VideoGenerator.lookup

    @property
    def reconstructs(self) -> bool:
        """Whether `reconstruct` works: the system has an encoder or learns a code per training video."""
        return self.has_encoder or self.has_lookup

    def infer(self, batch: dict[str, Any], seed=None) -> dict[str, Any]:
        """Latents of the videos of a batch: from the encoder if there is one, else by `lookup` of `video_id`.

        Args:
            batch: `video`, uint8 (B, T, H, W, 3), for an encoder; `video_id`, int (B,), of training videos, for `lookup`.
            seed: As for `encode`.

        Raises:
            ValueError: If the system has neither an encoder nor a code per video.
        """
        if self.has_encoder:
            return self.encode(ops.cast(batch["video"], "float32") / 127.5 - 1.0, seed)  # 0..255 -> [-1, 1]
        if self.has_lookup:
            return self.lookup(batch["video_id"])
        raise ValueError(
            f"{type(self).__name__} generates new videos only: it has no encoder and learns no code per video, so there are no "
            "latents of a given one. Evaluate what it generates with `python -m trainers.evaluate`."
        )

    def reconstruct(self, batch: dict[str, Any], seed=None):
        """Reconstructions of a batch's videos, float32 (B, T, H, W, 3) in [-1, 1]; see `infer`."""
        return self.decode(self.infer(batch, seed))

    @property
    def exchange_spec(self) -> dict[str, Choice]:
        """Valid values of `exchange`'s arguments `identity` and `action`; empty if exchange is not supported."""
        return {}

    @property
    def num_identities(self) -> int:
        """Number of identities that `exchange` accepts; 0 if exchange is not supported."""
        return self.exchange_spec["identity"].num_values if self.exchange_spec else 0

    @property
    def num_actions(self) -> int:
        """Number of actions that `exchange` accepts; 0 if exchange is not supported."""
        return self.exchange_spec["action"].num_values if self.exchange_spec else 0

    @property
    def row_owners(self) -> dict[str, str]:
        """Variables with one row per identity, action or video: checkpoint name -> owner, one of `EXCHANGEABLE`.

        When initialising from another run, rows are copied where the names of their owners match.
        """
        return {}

    def exchange(self, identity, action) -> dict[str, Any]:
        """Latents of videos that combine an identity with an action, int (B,) each; see `exchange_spec` for their values."""
        raise NotImplementedError(
            f"{type(self).__name__} learns no codes of identities and actions: exchange latents of videos with "
            "`tfvidgen.editing.exchange`."
        )

    def generate(self, num_videos, num_frames: int | None = None, seed=0, labels=None):
        """Generates videos, float32 (num_videos, T, H, W, 3) in [-1, 1].

        Arguments and errors as for `sample_latents`; also raises ValueError if there is nothing to sample from yet, or for
        less than one video.
        """
        self.require_sampling()
        for name, count in (("num_videos", num_videos), ("num_frames", 1 if num_frames is None else num_frames)):
            is_whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
            # lengths below 1 are left to `latent_length`, which knows those of the system
            if not tf.is_tensor(count) and not (is_whole and (count >= 1 or name == "num_frames")):
                raise ValueError(f"`{name}` must be an int of at least 1. Received {count!r}.")
        given = {} if labels is None else {"labels": labels}  # systems without labels need not take the argument
        return self.decode(self.sample_latents(num_videos, num_frames, seed, **given))

    def call(self, latents, training: bool = False):
        return self.decode(latents, training=training)

    # ---------------------------------------------------------------- training
    @property
    def num_decoded_frames(self) -> int:
        """Number of frames of each clip that a training step decodes."""
        return self.num_frames

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One training step of the paper's algorithm; returns scalar logs by name. Runs in replica context."""
        raise NotImplementedError

    def validation_losses(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Per-video losses of a batch, (B,) by name. Deterministic and without side effects.

        By default `reconstruction_loss`, the mean squared error between a video and `reconstruct`, for pixels in [-1, 1].
        Systems may override this with other losses, e.g. the KL terms of a posterior; `validation_names` lists them.

        Raises:
            ValueError: If the system has neither an encoder nor a code per video.
        """
        video = ops.cast(batch["video"], "float32") / 127.5 - 1.0  # 0..255 -> [-1, 1], (B, T, H, W, 3)
        # mean over frames, pixels and channels: (B,)
        return {"reconstruction_loss": ops.mean(ops.square(self.reconstruct(batch) - video), axis=(1, 2, 3, 4))}

    def test_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Running means of `validation_losses` over batches, for `evaluate` and `validation_data`."""
        for name, losses in self.validation_losses(batch).items():
            self._validation_means[name].update_state(losses)  # (B,): every video has the same weight
        return {name: mean.result() for name, mean in self._validation_means.items()}
