"""The base class of video datasets, in memory or on disk, and the index arithmetic of clips."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

CLIP_STARTS = ("first", "centre", "random")
SHORT_CLIP_POLICIES = ("error", "loop", "hold", "drop")
LABELS = ("identity", "action")  # fields of `Videos`, each with its `_names`
# Supported versions ("forms") of `Videos.digest`; the last is current. Digests of different forms are not comparable.
DIGEST_FORMS = (1,)

AnyVideos = TypeVar("AnyVideos", bound="Videos")


class Videos:
    """Videos of one frame size, with their metadata. Subclasses are frozen dataclasses with these fields.

    Attributes:
        size: Height and width of a frame.
        lengths: int64 (N,), frames of each video.
        names: One unique name per video, for messages and contact sheets.
        identity: int32 (N,) in 0..len(identity_names)-1, or None if unknown.
        action: int32 (N,) in 0..len(action_names)-1, or None. Class folders define actions.
        identity_names: Names of the identities, or None.
        action_names: Names of the actions, or None.
        fps: Playback rate in frames per second.
        source: Origin: a path or the name of a named dataset.
        skipped: (path, reason) of each unreadable file that was left out.
    """

    size: tuple[int, int]
    lengths: np.ndarray
    names: tuple[str, ...]
    identity: np.ndarray | None
    action: np.ndarray | None
    identity_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None
    fps: float
    source: str
    skipped: tuple[tuple[str, str], ...]

    def video(self, index: int) -> np.ndarray:
        """uint8 (T, H, W, 3): the frames of one video."""
        raise NotImplementedError(f"{type(self).__name__} must implement `video`.")

    def _pixels_of(self, indices: np.ndarray) -> dict[str, Any]:
        """The subclass's fields that locate the pixels of the videos at `indices`, for `subset`."""
        raise NotImplementedError(f"{type(self).__name__} must implement `_pixels_of`.")

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        parts = [
            f"{_counted(len(self), 'video', 'videos')} of {_counted(high, 'frame', 'frames', low)} ({self.num_frames:,} in all)",
            f"{self.size[0]}x{self.size[1]} (height x width)",
        ]
        if self.identity_names is not None:
            parts.append(_counted(len(self.identity_names), "identity", "identities"))
        if self.action_names is not None:
            parts.append(_counted(len(self.action_names), "action", "actions"))
        if len(parts) == 2:
            parts.append("no labels")
        return f"<{type(self).__name__}: {', '.join(parts)}, {self.fps:g} fps, from {self.source!r}>"

    @property
    def num_frames(self) -> int:
        """Total number of frames."""
        return int(self.lengths.sum())

    @functools.cached_property
    def first_frame(self) -> np.ndarray:
        """int64 (N,): index of each video's first frame when all frames are concatenated."""
        return (np.cumsum(self.lengths) - self.lengths).astype(np.int64)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over pixels, lengths, names and labels: identifies the data, wherever the pixels are stored."""
        sha = hashlib.sha256()
        for array in (self.lengths, self.identity, self.action):
            sha.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        sha.update("\n".join(self.names).encode())
        sha.update(str((self.num_frames, *self.size, 3)).encode())
        for index in range(len(self)):
            sha.update(np.ascontiguousarray(self.video(index)).data)
        return sha.hexdigest()

    def clips(
        self, num_frames: int, stride: int = 1, clip_start: str = "first", short_clip: str = "error"
    ) -> np.ndarray:
        """uint8 (N, num_frames, H, W, 3): one clip of each video, at its first or centre position."""
        positions = clip_positions(self, num_frames, stride, clip_start, short_clip)
        clips = np.empty((len(self), num_frames, *self.size, 3), np.uint8)
        for index, position in enumerate(positions):
            clips[index] = self.video(index)[position]
        return clips

    def subset(self: AnyVideos, indices: Sequence[int] | np.ndarray) -> AnyVideos:
        """The videos at `indices` (integers or a boolean mask), in that order. Labels and their names are unchanged.

        Raises:
            ValueError: If a mask has the wrong length, or no video is selected.
        """
        indices = np.asarray(indices)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise ValueError(f"A mask must have shape ({len(self)},). Received {indices.shape}.")
            indices = np.flatnonzero(indices)
        if len(indices) == 0:
            raise ValueError(f"A collection needs at least one video. Received none from {self.source!r}.")
        return dataclasses.replace(
            self,
            lengths=self.lengths[indices].astype(np.int64),
            names=tuple(self.names[index] for index in indices),
            identity=None if self.identity is None else self.identity[indices].astype(np.int32),
            action=None if self.action is None else self.action[indices].astype(np.int32),
            **self._pixels_of(indices),
        )


def _counted(count: int, singular: str, plural: str, least: int | None = None) -> str:
    """For example `1 video`, `1,200 videos`, or `3 to 7 frames` with the minimum of a range."""
    noun = singular if count == 1 else plural
    return f"{count:,} {noun}" if least in (None, count) else f"{least:,} to {count:,} {noun}"


def clip_span(num_frames: int, stride: int) -> int:
    """Frames of a video that a clip spans, first and last included."""
    return (num_frames - 1) * stride + 1


def apply_short_clip_policy(
    videos: AnyVideos, num_frames: int, stride: int = 1, short_clip: str = "error"
) -> AnyVideos:
    """Applies the policy for videos shorter than a clip, before ids are assigned.

    `loop` (restart from the first frame) and `hold` (repeat the last frame) keep every video and are handled by indexing.
    `drop` removes short videos; `error` lists them. Clips are never zero-padded.

    Raises:
        ValueError: If the policy is `error` and a video is too short, or `drop` would leave none.
    """
    if num_frames < 1 or stride < 1:
        raise ValueError(
            f"`num_frames` and `stride` must be at least 1. Received num_frames={num_frames}, stride={stride}."
        )
    if short_clip not in SHORT_CLIP_POLICIES:
        raise ValueError(f"`short_clip` must be one of {SHORT_CLIP_POLICIES}. Received {short_clip!r}.")
    span = clip_span(num_frames, stride)
    short = np.flatnonzero(videos.lengths < span)
    if len(short) == 0 or short_clip in ("loop", "hold"):
        return videos
    listed = ", ".join(f"{videos.names[i]} ({videos.lengths[i]})" for i in short[:10])
    more = f" and {len(short) - 10} more" if len(short) > 10 else ""
    if short_clip == "error":
        raise ValueError(
            f"{len(short)} of {len(videos)} videos are shorter than the {span} frames that num_frames={num_frames} at "
            f"stride={stride} needs: {listed}{more}. Lower num_frames or stride, or choose short_clip=loop, hold or drop."
        )
    if len(short) == len(videos):
        raise ValueError(
            f"short_clip=drop leaves no video: all {len(videos)} are shorter than the {span} frames that "
            f"num_frames={num_frames} at stride={stride} needs (the longest has {videos.lengths.max()})."
        )
    return videos.subset(videos.lengths >= span)


def check_clips(videos: Videos, num_frames: int, stride: int, short_clip: str) -> None:
    """Raises ValueError unless every video yields a clip under `short_clip`, which must not be `drop`."""
    if short_clip == "drop":
        raise ValueError("short_clip='drop' changes which videos there are: call `apply_short_clip_policy` first.")
    apply_short_clip_policy(videos, num_frames, stride, short_clip)


def clip_positions(
    videos: Videos, num_frames: int, stride: int = 1, clip_start: str = "first", short_clip: str = "error"
) -> np.ndarray:
    """int64 (N, num_frames): the frame indices of each video's clip.

    `clip_start` is `first` or `centre`; random starts depend on the step and are drawn in `make_dataset`.
    """
    if clip_start not in ("first", "centre"):
        raise ValueError(f"`clip_start` must be 'first' or 'centre' for fixed clips. Received {clip_start!r}.")
    check_clips(videos, num_frames, stride, short_clip)
    room = np.maximum(videos.lengths - clip_span(num_frames, stride), 0)
    start = room // 2 if clip_start == "centre" else np.zeros_like(room)
    position = start[:, None] + stride * np.arange(num_frames)
    if short_clip == "loop":
        position %= videos.lengths[:, None]
    return np.minimum(position, videos.lengths[:, None] - 1)
