"""Which clips are measured: cut from real videos by a seed, read from a folder, or made by a model.

Whatever they come from, clips are uint8 (n, T, H, W, 3) and come in batches, so that as many can be measured as one has
patience for. Clip i does not depend on how many are asked for: the first 256 of 2048 clips are those of 256.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen.data.codecs import NO_CODEC
from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.videos import CLIP_STARTS, SHORT_CLIP_POLICIES, clip_span

if TYPE_CHECKING:
    from tfvidgen.data.shards import ShardedVideos
    from tfvidgen.models.base import VideoGenerator

BATCH = 16  # clips in a batch; a model draws so many from one seed, so it is part of the protocol

_RANGE_SLACK = 1e-2  # a tanh never leaves [-1, 1]; the sum of rounding errors of bfloat16 may


class Clips:
    """Clips to measure.

    Attributes:
        origin: What they are, ready for JSON: everything that decides them beside number, frames and stride.
        available: How many there are, or None where there is no end.
        refuse_duplicates: Whether two equal clips mean a mistake rather than a poor model.
    """

    origin: dict[str, Any]
    available: int | None = None
    refuse_duplicates: bool = False

    def batches(self, num_clips: int, num_frames: int, stride: int = 1) -> Iterator[np.ndarray]:
        """Yields uint8 (n, num_frames, H, W, 3), n at most BATCH, `num_clips` in all."""
        raise NotImplementedError(f"{type(self).__name__} must implement `batches`.")

    def labels(self, num_clips: int) -> np.ndarray | None:
        """int32 (num_clips,): the class of each clip, or None where it is not known."""
        return None

    def label_names(self) -> tuple[str, ...] | None:
        """The names of the classes, or None where they have none."""
        return None

    def name(self, index: int) -> str:
        """What to call a clip."""
        return f"clip {index}"

    def take(self, indices: Sequence[int], num_frames: int, stride: int = 1) -> list[np.ndarray]:
        """uint8 (num_frames, H, W, 3) of a few clips, for pictures."""
        raise NotImplementedError(f"{type(self).__name__} must implement `take`.")


class VideoClips(Clips):
    """One clip of each of a collection's videos, in an order and from a start that a seed decides.

    Args:
        videos: The videos.
        seed: Decides the order, so which videos are among the first N, and random starts.
        clip_start: `first`, `centre` or `random`.
        stride: Distance between the frames that a clip of stride 1 has, in frames of the video.
        short_clip: What becomes of a video shorter than a clip: `error`, `loop` or `hold`.
        origin: More facts about the videos for the record, such as `codec` and `split`.
        refuse_duplicates: Whether equal clips are an error.
    """

    def __init__(
        self,
        videos: VideoCollection | ShardedVideos,
        seed: int = 0,
        clip_start: str = "random",
        stride: int = 1,
        short_clip: str = "error",
        origin: dict[str, Any] | None = None,
        refuse_duplicates: bool = False,
    ):
        if clip_start not in CLIP_STARTS:
            raise ValueError(f"`clip_start` must be one of {CLIP_STARTS}. Received {clip_start!r}.")
        if short_clip not in SHORT_CLIP_POLICIES[:3]:
            raise ValueError(f"`short_clip` must be one of {SHORT_CLIP_POLICIES[:3]}. Received {short_clip!r}.")
        self.videos, self.available, self.refuse_duplicates = videos, len(videos), refuse_duplicates
        self._clip_start, self._stride, self._short_clip = clip_start, stride, short_clip
        self._order = np.random.default_rng([seed, 0]).permutation(len(videos))
        self._draw = np.random.default_rng([seed, 1]).random(len(videos))
        self.origin = {
            "source": videos.source,
            "digest": videos.digest,
            "videos": len(videos),
            "resolution": list(videos.size),
            "fps": videos.fps,
            "sampling": f"one clip per video, in random order, start: {clip_start}",
            "stride": stride,
            "short_clip": short_clip,
            "seed": seed,
            **(origin or {}),
        }

    def batches(self, num_clips: int, num_frames: int, stride: int = 1) -> Iterator[np.ndarray]:
        order = self._order[:num_clips]
        if len(order) < num_clips:
            raise ValueError(
                f"{num_clips} clips are asked for and {self.videos.source!r} has {len(self.videos)} videos, of which each "
                "gives one: ask for fewer, or add videos."
            )
        self._check_lengths(order, num_frames, stride)
        for first in range(0, num_clips, BATCH):
            yield np.stack([self._clip(index, num_frames, stride) for index in order[first : first + BATCH]])

    def _clip(self, index: int, num_frames: int, stride: int) -> np.ndarray:
        video = self.videos.video(index)
        room = max(len(video) - clip_span(num_frames, self._stride * stride), 0)
        start = {"first": 0, "centre": room // 2, "random": int(self._draw[index] * (room + 1))}[self._clip_start]
        position = start + self._stride * stride * np.arange(num_frames)
        if self._short_clip == "loop":
            position %= len(video)
        return video[np.minimum(position, len(video) - 1)]

    def of_videos(self, video_ids: Sequence[int], num_frames: int) -> np.ndarray:
        """uint8 (n, num_frames, H, W, 3): the clips of some videos, whatever their place in the order."""
        return np.stack([self._clip(index, num_frames, 1) for index in video_ids])

    def take(self, indices: Sequence[int], num_frames: int, stride: int = 1) -> list[np.ndarray]:
        return [self._clip(self._order[index], num_frames, stride) for index in indices]

    def _check_lengths(self, order: np.ndarray, num_frames: int, stride: int) -> None:
        span = clip_span(num_frames, self._stride * stride)
        short = order[np.asarray(self.videos.lengths)[order] < span]
        if self._short_clip == "error" and len(short):
            listed = ", ".join(f"{self.videos.names[i]} ({self.videos.lengths[i]})" for i in short[:5])
            raise ValueError(
                f"{len(short)} of the {len(order)} videos that are measured of {self.videos.source!r} are shorter than the "
                f"{span} frames that {num_frames} frames at stride {self._stride * stride} need: {listed}"
                f"{' and others' if len(short) > 5 else ''}. Ask for fewer frames, or set short_clip to loop or hold; the "
                "record then says so."
            )

    @functools.cached_property
    def repeated(self) -> list[tuple[str, str]]:
        """(name, name of the first one) of each video that repeats another one; of prepared videos none are looked for."""
        if not isinstance(self.videos, VideoCollection):
            return []
        alike: dict[bytes, list[int]] = {}  # by one frame: the others need be looked at only where it is the same
        for index, length in enumerate(self.videos.lengths):
            frame = np.ascontiguousarray(self.videos.video(index)[length // 2])
            alike.setdefault(hashlib.sha256(frame.data).digest(), []).append(index)
        first: dict[bytes, int] = {}
        found = []
        for index in sorted(index for indices in alike.values() if len(indices) > 1 for index in indices):
            digest = hashlib.sha256(np.ascontiguousarray(self.videos.video(index)).data).digest()
            if first.setdefault(digest, index) != index:
                found.append((self.videos.names[index], self.videos.names[first[digest]]))
        return found

    def video_ids(self, num_clips: int) -> np.ndarray:
        """int (num_clips,): which video each clip is cut from."""
        return self._order[:num_clips]

    def labels(self, num_clips: int) -> np.ndarray | None:
        return None if self.videos.action is None else self.videos.action[self._order[:num_clips]]

    def label_names(self) -> tuple[str, ...] | None:
        return self.videos.action_names

    def name(self, index: int) -> str:
        return self.videos.names[self._order[index]]


class ModelClips(Clips):
    """New clips of a model, as many as one likes.

    Args:
        model: A built system.
        seed: Decides the clips; batch i is drawn from a hash of (seed, i).
        short_clip: What becomes of a clip that the model makes shorter than asked: `error`, `loop` or `hold`.
        origin: Facts for the record, such as the run and its step.
        label_names: Of the classes that the model learned, to find them among those of other real videos; None takes them to
            be the same, in the same order.
    """

    def __init__(
        self,
        model: VideoGenerator,
        seed: int = 0,
        short_clip: str = "error",
        origin: dict[str, Any] | None = None,
        label_names: tuple[str, ...] | None = None,
    ):
        self._model, self._seed, self._short_clip, self._label_names = model, seed, short_clip, label_names
        self._is_longer = False  # whether the model was found to make longer clips than its own when asked to
        self.origin = {
            "source": type(model).__name__,
            "codec": NO_CODEC,
            "sampling": f"{BATCH} clips from each seed, the first frames of each",
            "short_clip": short_clip,
            "seed": seed,
            **(origin or {}),
        }

    def _latents(self, batch: int, num_frames: int | None) -> dict[str, Any]:
        seed = int(np.random.SeedSequence([self._seed, batch]).generate_state(1)[0] >> 1)
        return self._model.sample_latents(BATCH, num_frames, seed=seed)

    def batches(self, num_clips: int, num_frames: int, stride: int = 1) -> Iterator[np.ndarray]:
        for batch in range(math.ceil(num_clips / BATCH)):
            yield self._batch(batch, num_frames, stride)[: num_clips - batch * BATCH]

    def take(self, indices: Sequence[int], num_frames: int, stride: int = 1) -> list[np.ndarray]:
        batches = {batch: self._batch(batch, num_frames, stride) for batch in {int(i) // BATCH for i in indices}}
        return [batches[int(index) // BATCH][int(index) % BATCH] for index in indices]

    def _batch(self, batch: int, num_frames: int, stride: int) -> np.ndarray:
        span = clip_span(num_frames, stride)
        videos = self._videos(batch, span if self._is_longer else None)
        if videos.shape[1] < span and self._short_clip == "error":
            videos = self._longer(batch, span, videos.shape[1], num_frames, stride)
        position = stride * np.arange(num_frames)
        if self._short_clip == "loop":
            position %= videos.shape[1]
        return to_bytes(
            videos[:, np.minimum(position, videos.shape[1] - 1)], f"the frames of {type(self._model).__name__}"
        )

    def redrawn(
        self,
        video_ids: np.ndarray,
        keeps_content: bool,
        num_frames: int,
        stride: int = 1,
        clips_of: Callable[[Sequence[int], int], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Clips of training videos whose latents of content, or whose other latents, are kept, and the rest drawn anew.

        Args:
            video_ids: int (N,), of training videos.
            keeps_content: Keep the latents with the role `content`, otherwise all but those.
            num_frames, stride: Of a clip.
            clips_of: (ids, T) -> uint8 (n, T, H, W, 3), clips of these videos, which an encoder needs.

        Returns:
            uint8 (N, num_frames, H, W, 3).

        Raises:
            ValueError: If the system neither learns a code per video nor encodes one, has no latent of content or none of
                motion, or makes shorter clips.
        """
        name = type(self._model).__name__
        content = self._model.latent_names("content")
        if not (self._model.reconstructs and content and self._model.latent_names("motion")):
            raise ValueError(
                f"This metric keeps one latent of a training video and draws the others anew, and {name} has no latents of "
                "content and of motion for a given video: measure a system that learns or encodes them."
            )
        position, clips = stride * np.arange(num_frames), []
        for batch, first in enumerate(range(0, len(video_ids), BATCH)):
            ids = np.asarray(video_ids[first : first + BATCH], np.int32)
            batch_of = (
                {"video": clips_of(ids, self._model.num_frames)} if self._model.has_encoder else {"video_id": ids}
            )
            learned = self._model.infer(batch_of)
            drawn = self._latents(batch, None)
            latents = {
                code: values if (code in content) == keeps_content else drawn[code][: len(values)]
                for code, values in learned.items()
            }
            videos = np.asarray(self._model.decode_function(latents))
            if videos.shape[1] <= position[-1]:
                raise ValueError(
                    f"{name} makes clips of {videos.shape[1]} frames, and {num_frames} frames at stride {stride} need "
                    f"{position[-1] + 1}: ask for fewer frames."
                )
            clips.append(to_bytes(videos[:, position], f"the frames of {name}"))
        return np.concatenate(clips)

    def _videos(self, batch: int, num_frames: int | None) -> np.ndarray:
        return np.asarray(self._model.decode_function(self._latents(batch, num_frames)))

    def _longer(self, batch: int, span: int, own: int, num_frames: int, stride: int) -> np.ndarray:
        """Videos of a system whose length is free; many learn one length."""
        message = (
            f"{type(self._model).__name__} makes clips of {own} frames, and {num_frames} frames at stride {stride} need "
            f"{span}: ask for fewer frames, or set short_clip to loop or hold; the record then says so."
        )
        try:
            videos = self._videos(batch, span)
        except ValueError as error:
            raise ValueError(message) from error
        if videos.shape[1] < span:
            raise ValueError(message)
        self._is_longer = True
        return videos

    def labels(self, num_clips: int) -> np.ndarray | None:
        if not self._model.num_labels:
            return None
        labels = [np.asarray(self._latents(batch, None)["label"]) for batch in range(math.ceil(num_clips / BATCH))]
        return np.concatenate(labels)[:num_clips].astype(np.int32)

    def label_names(self) -> tuple[str, ...] | None:
        return self._label_names

    def name(self, index: int) -> str:
        return f"new {index}"


def as_clips(videos: Clips | VideoCollection | ShardedVideos | np.ndarray, seed: int = 0) -> Clips:
    """Makes clips of what is at hand.

    Args:
        videos: Clips, a collection, or an array (N, T, H, W, 3), uint8 or floats in [-1, 1]; of an array, clips begin at
            the first frame.
        seed: Decides order and starts.
    """
    if isinstance(videos, Clips):
        return videos
    if isinstance(videos, np.ndarray):
        if videos.ndim != 5 or videos.shape[-1] != 3 or 0 in videos.shape:
            raise ValueError(f"Videos must have shape (N, T, H, W, 3), RGB last. Received shape {videos.shape}.")
        if videos.dtype != np.uint8 and 0 <= videos.min() and 0 < videos.max() <= 1:
            warnings.warn(
                "No value of the array is below 0, as if it were in [0, 1] and not in [-1, 1]: if so, pass 2 * x - 1.",
                stacklevel=2,
            )
        collection = VideoCollection.from_videos(list(to_bytes(videos, "the array")), source="array")
        return VideoClips(collection, seed, clip_start="first", origin={"codec": NO_CODEC})
    return VideoClips(videos, seed)


def to_bytes(videos: np.ndarray, what: str) -> np.ndarray:
    """uint8 videos of uint8, or of floats in [-1, 1].

    Raises:
        ValueError: If floats are NaN or outside [-1, 1]; the message says which range they seem to have.
    """
    from tfvidgen.visualize import to_uint8

    if videos.dtype == np.uint8:
        return videos
    if not (np.issubdtype(videos.dtype, np.floating) or videos.dtype.name == "bfloat16"):
        raise ValueError(
            f"Videos must be uint8 with values 0..255, or floats in [-1, 1]; {what} are {videos.dtype}: convert them."
        )
    videos = videos.astype(np.float32)
    if not np.isfinite(videos).all():
        raise ValueError(f"Among {what} are NaN or infinity, which are no colours: the model that made them diverged.")
    low, high = float(videos.min()), float(videos.max())
    if low < -1 - _RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(
            f"Floats must lie in [-1, 1]; {what} reach from {low:.4g} to {high:.4g}: "
            + ("divide by 127.5 and subtract 1." if high > 2 else "scale them to that range.")
        )
    return to_uint8(videos)
