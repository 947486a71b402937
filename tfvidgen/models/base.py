"""The contract of every system: named latents in, videos out, the whole algorithm in `train_step`."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.optimizers import LossScaler, check_counts


class LatentSpec(NamedTuple):
    """What one entry of a latent dict is.

    Attributes:
        shape: Shape of one video's entry; None where the length is free.
        dtype: `float32` for codes, `int32` for labels.
        prior: Where `sample_latents` takes it from, in words.
        num_values: Of a label: it lies in 0..num_values - 1. None for codes.
    """

    shape: tuple[int | None, ...]
    dtype: str
    prior: str
    num_values: int | None = None


class VideoGenerator(keras.Model):
    """A system that turns named latents into videos and knows how to train itself.

    Subclasses have a plain-value constructor with `get_config`, create every variable in `build`, take their optimizers
    and loss weights in `compile`, and implement `train_step`, `latent_spec`, `sample_latents` and `decode`. Systems that
    learn a code per video implement `lookup`; systems with an encoder implement `encode`.

    A latent dict maps names to tensors with the videos first, e.g. `{"static": (B, Ds), "transient": (B, T, Dt)}`.
    `decode` is the one door: exchange takes some keys from another dict, interpolation blends a key.

    `train_step` takes its gradients through a `tfvidgen.optimizers.StepGuard`. A model whose policy is `mixed_float16` has
    a `loss_scaler`; otherwise that is None and the guard does nothing.

    Class attribute:
        network_forms: Forms of its networks that a system can build, ascending; a new model has the last. Where weights of
            an earlier version would not fit, or would mean something else, a change adds a form, and the constructor goes on
            building the older ones: it finds the form in `self.network_form`.

    Args:
        network_form: One of `network_forms`; None for the last. It is part of the model's config; a config without one, as
            version 0.1 wrote them, means the first.
    """

    network_forms: tuple[int, ...] = (1,)

    def __init__(self, network_form: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if network_form is not None and network_form not in self.network_forms:
            known = ", ".join(map(str, self.network_forms))
            raise ValueError(
                f"`network_form` of {type(self).__name__} must be one of {known}, or None for the last. Received "
                f"{network_form!r}."
            )
        self.network_form = network_form or self.network_forms[-1]
        self._mean_reconstruction_loss = keras.metrics.Mean(name="mean_reconstruction_loss")
        self.loss_scaler = None
        if self.compute_dtype == "float16":
            with keras.name_scope(self.name):
                self.loss_scaler = LossScaler(name="loss_scaler")

    def get_config(self):
        return {**super().get_config(), "network_form": self.network_form}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return super().from_config({"network_form": 1, **config}, custom_objects)

    def compile(self, optimizer=None, accumulate: int = 1, **kwargs):
        """Keras's `compile` without its own loss scaling and without XLA; systems call it from theirs.

        `accumulate` is how many micro-batches each update of a step has, see `tfvidgen.optimizers.StepGuard`.

        Keras would scale the loss for the one optimizer it is given, and on a GPU compile the step with XLA, which
        refuses steps that synchronise replicas and lets batch norm statistics drift apart.
        """
        check_counts(accumulate=accumulate)
        self.accumulate = accumulate
        super().compile(**{"optimizer": optimizer, "jit_compile": False, "auto_scale_loss": False, **kwargs})

    def fit(self, *args, **kwargs):
        """Keras's `fit` with this system's `train_step`, on one device or under `MirroredStrategy`.

        Epochs, callbacks, history and `validation_data` are Keras's. What it logs is the last step of an epoch; for
        `validation_data` it is the mean over its batches (see `test_step`). Datasets of `tfvidgen.data` never end, so give
        `steps_per_epoch` and `validation_steps`.

        Raises:
            ValueError: Under a strategy of several workers, where Keras's `fit` fails: `trainers.engine.loop.run` trains there; and
                for batches that replicas cannot share evenly, where their losses would count for more or less.
        """
        self._refuse_many_workers("fit")
        self._refuse_uneven_batches(kwargs.get("x", args[0] if args else None))
        return super().fit(*args, **kwargs)

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

    @property
    def latent_spec(self) -> dict[str, LatentSpec]:
        """Names, shapes and priors of the latents that `decode` takes."""
        raise NotImplementedError

    def sample_latents(self, num_videos, num_frames: int | None = None, seed=0) -> dict[str, Any]:
        """Draws latents of new videos; the same seed gives the same latents."""
        raise NotImplementedError

    def decode(self, latents: dict[str, Any], training: bool = False):
        """Latents of B videos -> float32 (B, T, H, W, 3) in [-1, 1]."""
        raise NotImplementedError

    def lookup(self, video_id) -> dict[str, Any]:
        """The latents learned for videos of the training set, int (B,)."""
        raise NotImplementedError(
            f"{type(self).__name__} does not learn a code per video: use `sample_latents` or `encode`."
        )

    def encode(self, video) -> dict[str, Any]:
        """The latents of given videos, float32 (B, T, H, W, 3) in [-1, 1]."""
        raise NotImplementedError(
            f"{type(self).__name__} has no encoder: use `lookup`, or search with `tfvidgen.editing`."
        )

    def generate(self, num_videos, num_frames: int | None = None, seed=0):
        """New videos, float32 (num_videos, T, H, W, 3) in [-1, 1]; the same seed gives the same videos."""
        return self.decode(self.sample_latents(num_videos, num_frames, seed))

    def call(self, latents, training: bool = False):
        return self.decode(latents, training=training)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of the paper's algorithm on a batch; returns scalars by name. Runs in replica context."""
        raise NotImplementedError

    def reconstruction_losses(self, batch: dict[str, Any]):
        """How far the model's own videos are from those of a batch, (B,). Changes nothing.

        Here the mean square in [-1, 1] of `decode(encode(video))` or, where codes are learned per video, of
        `decode(lookup(video_id))`: the batch then holds videos of the training set. A system may have another measure.

        Raises:
            ValueError: If the system neither encodes videos nor learns a code for each.
        """
        video = ops.cast(batch["video"], "float32") / 127.5 - 1.0
        if type(self).encode is not VideoGenerator.encode:
            latents = self.encode(video)
        elif type(self).lookup is not VideoGenerator.lookup:
            latents = self.lookup(batch["video_id"])
        else:
            raise ValueError(
                f"{type(self).__name__} makes new videos only, so there is nothing to compare a video with: leave out "
                "`validation_data`, and measure what it makes with `python -m trainers.evaluate`."
            )
        return ops.mean(ops.square(self.decode(latents) - video), axis=(1, 2, 3, 4))

    def test_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The mean of `reconstruction_losses` over the batches so far, for `evaluate` and `validation_data`."""
        self._mean_reconstruction_loss.update_state(self.reconstruction_losses(batch))
        return {"reconstruction_loss": self._mean_reconstruction_loss.result()}
