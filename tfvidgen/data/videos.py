"""The base class of video datasets, in memory or on disk, and the index arithmetic of clips."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

CLIP_STARTS = ("first", "centre", "random")
SHORT_CLIP_POLICIES = ("error", "loop", "hold", "drop")
LABELS = ("identity", "action")  # fields of `Videos`, each with its `_names`
SPLIT = "split"  # label of a video whose source says whether it is trained or held out
# Supported versions ("forms") of `Videos.digest`; the last is current. Digests of different forms are not comparable.
DIGEST_FORMS = (1, 2)

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
        mirrored: bool (N,), whether a video is shown flipped left to right, or None if none is.
        held_out: bool (N,), which videos the source says are not to be trained on, or None if it does not say.
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
    mirrored: np.ndarray | None
    held_out: np.ndarray | None

    def _stored(self, index: int, start: int, stop: int) -> np.ndarray:
        """uint8 (stop - start, H, W, 3): frames of one video as they are stored, so never mirrored."""
        raise NotImplementedError(f"{type(self).__name__} must implement `_stored`.")

    def _located(self, indices: np.ndarray, starts: np.ndarray) -> dict[str, Any]:
        """The subclass's fields that locate frames of the videos at `indices`, from frame `starts` of each on."""
        raise NotImplementedError(f"{type(self).__name__} must implement `_located`.")

    def video(self, index: int) -> np.ndarray:
        """uint8 (T, H, W, 3): the frames of one video."""
        frames = self._stored(index, 0, int(self.lengths[index]))
        return frames if self.mirrored is None or not self.mirrored[index] else frames[:, :, ::-1]

    def _stored_clips(self, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """uint8 (n, T, H, W, 3): frames `positions` int64 (n, T) of the videos at `indices`, as they are stored."""
        clips = np.empty((*positions.shape, *self.size, 3), np.uint8)
        for clip, index, position in zip(clips, indices, positions, strict=True):
            start = position.min()
            clip[:] = self._stored(index, start, position.max() + 1)[position - start]
        return clips

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
    def video_digests(self) -> np.ndarray:
        """uint8 (N, 32): SHA-256 of the pixels of each video; of a mirrored one, of `mirrored` and that of the video itself.

        Subsets and mirror images take them from the videos that they were made of, and prepared videos from the index.
        """
        if (derived := self.__dict__.pop("_derived_digests", None)) is not None:
            return derived()
        digests = [
            hashlib.sha256(np.ascontiguousarray(self._stored(index, 0, int(length))).data).digest()
            for index, length in enumerate(self.lengths)
        ]
        for index in () if self.mirrored is None else np.flatnonzero(self.mirrored):
            digests[index] = _mirrored_digest(digests[index])
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, hashlib.sha256().digest_size)

    @property
    def _digests_are_known(self) -> bool:
        """Whether `video_digests` reads no pixels from disk, so that subsets should take theirs from there."""
        return not {"video_digests", "_derived_digests"}.isdisjoint(self.__dict__)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the digests of all videos, lengths, names and labels: identifies the data, wherever the pixels are."""
        sha = hashlib.sha256(b"tfvidgen videos, form 2")
        self._hash_facts(sha)
        sha.update(self.video_digests.tobytes())
        return sha.hexdigest()

    @functools.cached_property
    def _digest_1(self) -> str:
        """Form 1, with which runs of earlier versions record their data: over all pixels, so it reads them."""
        sha = hashlib.sha256()
        self._hash_facts(sha)
        for index in range(len(self)):
            sha.update(np.ascontiguousarray(self.video(index)).data)
        return sha.hexdigest()

    def digest_of(self, form: int) -> str:
        """The digest in a form of `DIGEST_FORMS`, to compare with a recorded one. Raises ValueError for another form."""
        if form not in DIGEST_FORMS:
            raise ValueError(f"`form` must be one of {DIGEST_FORMS}. Received {form}.")
        return self._digest_1 if form == 1 else self.digest

    def _hash_facts(self, sha: Any) -> None:
        for array in (self.lengths, self.identity, self.action):
            sha.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        sha.update("\n".join(self.names).encode("utf-8", "surrogateescape"))  # names of files need not be UTF-8
        sha.update(str((self.num_frames, *self.size, 3)).encode())

    def clips(
        self, num_frames: int, stride: int = 1, clip_start: str = "first", short_clip: str = "error"
    ) -> np.ndarray:
        """uint8 (N, num_frames, H, W, 3): one clip of each video, at its first or centre position."""
        if clip_start not in ("first", "centre"):
            raise ValueError(f"`clip_start` must be 'first' or 'centre' for fixed clips. Received {clip_start!r}.")
        check_clips(self, num_frames, stride, short_clip)
        starts = clip_starts(self.lengths, num_frames, stride, clip_start)
        return self.clips_at(np.arange(len(self)), starts, num_frames, stride, short_clip)

    def clips_at(
        self, indices: Sequence[int] | np.ndarray, starts: np.ndarray, num_frames: int, stride: int, short_clip: str
    ) -> np.ndarray:
        """uint8 (n, num_frames, H, W, 3): clips of the videos at `indices`, from frame `starts` int64 (n,) of each on.

        A frame beyond the end is taken from the first again (`loop`), else the last is repeated. Only frames from the first to
        the last of a clip are read.
        """
        indices = np.asarray(indices)
        clips = self._stored_clips(
            indices, clip_positions(self.lengths[indices], starts, num_frames, stride, short_clip)
        )
        if self.mirrored is not None:
            flipped = self.mirrored[indices]
            clips[flipped] = clips[flipped, :, :, ::-1]
        return clips

    def subset(self: AnyVideos, indices: Sequence[int] | np.ndarray) -> AnyVideos:
        """The videos at `indices` (integers or a boolean mask), in that order, without copying pixels.

        Labels and their names are unchanged.

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
        names = tuple(self.names[index] for index in indices)
        part = self._taken(indices, np.zeros(len(indices), np.int64), self.lengths[indices], names)
        return part._with_digests(lambda: self.video_digests[indices]) if self._digests_are_known else part

    def cut(self: AnyVideos, span: int, clips_per_video: int | None = None) -> AnyVideos:
        """Cuts long videos into parts, each of which is a video with an id and a name of its own, without copying pixels.

        A video of T frames becomes T // span parts of equal length, give or take a frame, but no more than `clips_per_video`, which
        follow one another and together hold all of its frames. One of fewer than 2 * span frames stays whole.

        Args:
            span: Frames of a video that a clip spans, see `clip_span`.
            clips_per_video: Most parts of a video; None for as many as there are.

        Returns:
            The parts, video by video. That of `film.mp4` which begins 12.4 seconds after its start, at `fps` frames a second, is
            called `film.mp4@00:12.4`.

        Raises:
            ValueError: If an argument is less than 1.
        """
        for name, value in (("span", span), ("clips_per_video", clips_per_video)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received {value}.")
        counts = np.maximum(self.lengths // span, 1)
        if clips_per_video is not None:
            counts = np.minimum(counts, clips_per_video)
        if counts.max() == 1:
            return self
        rows = np.repeat(np.arange(len(self)), counts)
        part = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        lengths, counts = self.lengths[rows], counts[rows]
        starts, stops = part * lengths // counts, (part + 1) * lengths // counts
        digits = 1  # as few as tell the parts apart
        while (stops - starts)[counts > 1].min() * 10**digits <= self.fps:
            digits += 1
        ticks = np.floor(starts * 10**digits / self.fps).astype(np.int64)
        names = tuple(
            self.names[row] if count == 1 else f"{self.names[row]}@{_clock(int(tick), digits)}"
            for row, count, tick in zip(rows, counts, ticks, strict=True)
        )
        return self._taken(rows, starts, stops - starts, names)

    def with_mirrored(self: AnyVideos, own_actions: bool) -> AnyVideos:
        """These videos, followed by their mirror images (flipped left to right) in the same order, without copying pixels.

        Args:
            own_actions: Gives mirrored actions labels of their own, so `action_names` doubles: a mirrored clip shows a
                different motion of the same identity. False keeps the labels.

        Raises:
            ValueError: If `own_actions` is true and there are no actions, or there are mirror images already.
        """
        if own_actions and self.action is None:
            raise ValueError(
                f"Mirrored videos cannot have actions of their own: {self.source!r} has no actions. Put the videos into one "
                "folder per action, or keep the labels (same_action)."
            )
        if self.mirrored is not None:
            raise ValueError(f"{self.source!r} has mirror images already: call `with_mirrored` once.")
        twice = np.tile(np.arange(len(self)), 2)
        names = (*self.names, *(f"{name} mirrored" for name in self.names))
        both = self._taken(twice, np.zeros(len(twice), np.int64), self.lengths[twice], names)
        changes = {"mirrored": np.repeat([False, True], len(self))}
        if own_actions:
            changes["action"] = both.action + len(self.action_names) * changes["mirrored"].astype(np.int32)
            changes["action_names"] = (*self.action_names, *(f"{name}_mirrored" for name in self.action_names))
        both = dataclasses.replace(both, **changes)

        def digests() -> np.ndarray:
            own = self.video_digests
            flipped = b"".join(_mirrored_digest(digest.tobytes()) for digest in own)
            return np.concatenate([own, np.frombuffer(flipped, np.uint8).reshape(own.shape)])

        return both._with_digests(digests) if self._digests_are_known else both

    def _taken(
        self: AnyVideos, indices: np.ndarray, starts: np.ndarray, lengths: np.ndarray, names: tuple[str, ...]
    ) -> AnyVideos:
        """Parts of the videos at `indices`: `lengths` frames, from frame `starts` of each on."""
        return dataclasses.replace(
            self,
            lengths=lengths.astype(np.int64),
            names=names,
            identity=None if self.identity is None else self.identity[indices].astype(np.int32),
            action=None if self.action is None else self.action[indices].astype(np.int32),
            mirrored=None if self.mirrored is None else self.mirrored[indices],
            held_out=None if self.held_out is None else self.held_out[indices],
            **self._located(indices, starts),
        )

    def _with_digests(self: AnyVideos, digests: Callable[[], np.ndarray]) -> AnyVideos:
        """These videos, whose digests are computed by `digests` when they are first asked for.

        They are no field, so that `dataclasses.replace` never carries them over to other pixels.
        """
        self.__dict__["_derived_digests"] = digests
        return self


def held_out(sides: Sequence[str | None]) -> np.ndarray | None:
    """bool (N,) of the sides of a split, `trained` or `held_out`; None if they are not given."""
    return None if None in sides else np.array([side == "held_out" for side in sides])


def _clock(ticks: int, digits: int) -> str:
    """Ticks of 10^-digits seconds as minutes, seconds and fraction: `00:12.4`."""
    seconds, fraction = divmod(ticks, 10**digits)
    return f"{seconds // 60:02d}:{seconds % 60:02d}.{fraction:0{digits}d}"


def _mirrored_digest(digest: bytes) -> bytes:
    return hashlib.sha256(b"mirrored" + digest).digest()


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


def unused_frames(lengths: np.ndarray, num_frames: int, stride: int, clip_start: str) -> int:
    """Frames of videos with these lengths, int64 (N,), that lie outside every clip that can be taken of them."""
    return 0 if clip_start == "random" else int(np.maximum(lengths - clip_span(num_frames, stride), 0).sum())


def check_clips(videos: Videos, num_frames: int, stride: int, short_clip: str) -> None:
    """Raises ValueError unless every video yields a clip under `short_clip`, which must not be `drop`."""
    if short_clip == "drop":
        raise ValueError("short_clip='drop' changes which videos there are: call `apply_short_clip_policy` first.")
    apply_short_clip_policy(videos, num_frames, stride, short_clip)


def clip_starts(
    lengths: np.ndarray, num_frames: int, stride: int, clip_start: str, draw: np.ndarray | None = None
) -> np.ndarray:
    """int64 (N,): the first frame of a clip of each video, 0 in one that is too short.

    Args:
        lengths: int64 (N,), frames of each video.
        num_frames, stride: Of the clips.
        clip_start: `first`, `centre` or `random`.
        draw: float64 (N,) in [0, 1), for random starts, which are uniform over all valid ones.
    """
    room = np.maximum(lengths - clip_span(num_frames, stride), 0)
    if clip_start == "random":
        return (draw * (room + 1)).astype(np.int64)
    return room // 2 if clip_start == "centre" else np.zeros_like(room)


def clip_positions(
    lengths: np.ndarray, starts: np.ndarray, num_frames: int, stride: int, short_clip: str
) -> np.ndarray:
    """int64 (N, num_frames): the frames of clips that begin at `starts` of videos with `lengths` frames."""
    position = starts[:, None] + stride * np.arange(num_frames)
    if short_clip == "loop":
        position %= lengths[:, None]
    return np.minimum(position, lengths[:, None] - 1)
