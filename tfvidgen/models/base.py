"""The contract of every system: named latents in, videos out, the whole algorithm in `train_step`."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras


class LatentSpec(NamedTuple):
    """What one entry of a latent dict is.

    Attributes:
        shape: Shape of one video's entry; None where the length is free.
        dtype: `float32` for codes, `int32` for labels.
        prior: Where `sample_latents` takes it from, in words.
    """

    shape: tuple[int | None, ...]
    dtype: str
    prior: str


class VideoGenerator(keras.Model):
    """A system that turns named latents into videos and knows how to train itself.

    Subclasses have a plain-value constructor with `get_config`, create every variable in `build`, take their optimizers
    and loss weights in `compile`, and implement `train_step`, `latent_spec`, `sample_latents` and `decode`. Systems that
    learn a code per video implement `lookup`; systems with an encoder implement `encode`.

    A latent dict maps names to tensors with the videos first, e.g. `{"static": (B, Ds), "transient": (B, T, Dt)}`.
    `decode` is the one door: exchange takes some keys from another dict, interpolation blends a key.
    """

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
