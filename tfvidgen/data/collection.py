"""Videos in memory: uint8 frames in one array, with names and labels."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tfvidgen.data.videos import LABELS, Videos


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class VideoCollection(Videos):
    """Decoded videos of one frame size, with their metadata.

    Subsets, mirror images and parts share `frames` with the collection that they were made of.

    Attributes:
        frames: uint8 (F, H, W, 3), RGB.
        lengths, names, identity, action, identity_names, action_names, fps, source, skipped, mirrored, held_out: As in
            `Videos`.
        first_frame: int64 (N,), where in `frames` each video begins; if not given, they follow one another and are all there is.
    """

    frames: np.ndarray
    lengths: np.ndarray
    names: tuple[str, ...]
    identity: np.ndarray | None = None
    action: np.ndarray | None = None
    identity_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None
    fps: float = 8.0
    source: str = "arrays"
    skipped: tuple[tuple[str, str], ...] = ()
    mirrored: np.ndarray | None = None
    held_out: np.ndarray | None = None
    first_frame: np.ndarray | None = None

    def __post_init__(self):
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(
                f"`frames` must be uint8 (F, H, W, 3). Received {self.frames.dtype} {self.frames.shape}: convert values to "
                "0..255 uint8 RGB first."
            )
        if len(self.lengths) == 0:
            raise ValueError(f"A collection needs at least one video. Received none from {self.source!r}.")
        follow = np.cumsum(self.lengths) - self.lengths
        if self.first_frame is None and int(np.sum(self.lengths)) == len(self.frames):
            object.__setattr__(self, "first_frame", follow.astype(np.int64))
        if self.first_frame is None or int(np.min(self.lengths)) < 1:
            raise ValueError(
                f"`lengths` must be positive and sum to the number of frames. Received lengths that sum to "
                f"{int(np.sum(self.lengths))} (smallest {int(np.min(self.lengths))}) for {len(self.frames)} frames."
            )
        if np.shape(self.first_frame) != self.lengths.shape:
            raise ValueError(f"`first_frame` must have shape ({len(self)},). Received {np.shape(self.first_frame)}.")
        if self.first_frame.min() < 0 or (self.first_frame + self.lengths).max() > len(self.frames):
            raise ValueError(f"Every video must lie within `frames`, of which there are {len(self.frames)}.")
        if self.mirrored is not None and (self.mirrored.dtype != bool or self.mirrored.shape != self.lengths.shape):
            raise ValueError(
                f"`mirrored` must be bool ({len(self)},). Received {self.mirrored.dtype} {self.mirrored.shape}."
            )
        if len(self.names) != len(self.lengths) or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"`names` must hold one unique name per video. Received {len(self.names)} names "
                f"({len(set(self.names))} different) for {len(self.lengths)} videos."
            )
        for field in LABELS:
            labels, label_names = getattr(self, field), getattr(self, f"{field}_names")
            if (labels is None) != (label_names is None):
                raise ValueError(f"`{field}` and `{field}_names` must be given together or not at all.")
            if labels is None:
                continue
            if labels.shape != self.lengths.shape:
                raise ValueError(f"`{field}` must have shape ({len(self)},). Received {labels.shape}.")
            if labels.min() < 0 or labels.max() >= len(label_names):
                raise ValueError(
                    f"`{field}` must lie in 0..{len(label_names) - 1}. Received {labels.min()}..{labels.max()}."
                )

    @classmethod
    def from_videos(
        cls,
        videos: Iterable[np.ndarray],
        names: Sequence[str] | None = None,
        identity: Sequence[int] | None = None,
        action: Sequence[int] | None = None,
        identity_names: Sequence[str] | None = None,
        action_names: Sequence[str] | None = None,
        fps: float = 8.0,
        source: str = "arrays",
    ) -> VideoCollection:
        """Packs videos, each uint8 (T_i, H, W, 3), into a collection. Raises ValueError if shapes or dtypes differ.

        Videos that an iterator makes one after another are in memory once; those of a list twice, while the list is.
        """

        def name(index: int) -> str:
            return names[index] if names is not None and index < len(names) else f"video_{index:05d}"

        frames, lengths, first = FrameStore(), [], None
        for index, video in enumerate(videos):
            first = first or video.shape
            if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] != first[1:]:
                raise ValueError(
                    f"Every video must be uint8 (T, H, W, 3) with one H and W. {name(index)!r} is {video.dtype} {video.shape}, "
                    f"{name(0)!r} is {first}: give a frame size to resize to."
                )
            frames.add(video)
            lengths.append(len(video))
        if not lengths:
            raise ValueError(f"A collection needs at least one video. Received none from {source!r}.")
        names = tuple(map(name, range(len(lengths))) if names is None else names)
        if len(names) != len(lengths):
            raise ValueError(f"`names` must hold one name per video. Received {len(names)} for {len(lengths)} videos.")
        return cls(
            frames=frames.array(),
            lengths=np.array(lengths, np.int64),
            names=names,
            identity=None if identity is None else np.asarray(identity, np.int32),
            action=None if action is None else np.asarray(action, np.int32),
            identity_names=None if identity_names is None else tuple(identity_names),
            action_names=None if action_names is None else tuple(action_names),
            fps=float(fps),
            source=source,
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def _digests_are_known(self) -> bool:
        return True  # or soon: each video is hashed once, for all subsets

    def _stored(self, index: int, start: int, stop: int) -> np.ndarray:
        first = self.first_frame[index]
        return self.frames[first + start : first + stop]

    def _stored_clips(self, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.asarray(self.frames)[
            self.first_frame[indices, None] + positions
        ]  # several times as fast as one after another

    def _located(self, indices: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
        return {"first_frame": self.first_frame[indices] + starts}


# ---- memory ---------------------------------------------------------------------------------------------------------


def empty_frames(shape: Sequence[int]) -> np.ndarray:
    """Uninitialised uint8 of this shape, aligned to pages: TensorFlow uses such memory without copying it."""
    return np.frombuffer(_memory(math.prod(shape)), np.uint8, math.prod(shape)).reshape(shape)


class FrameStore:
    """Collects frames (T_i, H, W, 3) of one size into one array, which grows in place, so that they are in memory once."""

    def __init__(self):
        self._memory: mmap.mmap | None = None
        self._num_bytes, self._size = 0, (0, 0, 3)

    def add(self, frames: np.ndarray) -> None:
        """Appends frames. All must have the same size."""
        self._size = frames.shape[1:]
        end = self._num_bytes + frames.nbytes
        if self._memory is None or end > len(self._memory):
            self._resize(
                max(end, self._num_bytes + self._num_bytes // 4, _LEAST_BYTES)
            )  # untouched pages take no memory
        self._memory[self._num_bytes : end] = np.ascontiguousarray(frames).data.cast("B") if frames.size else b""
        self._num_bytes = end
        if isinstance(frames, np.memmap) and frames.mode == "r":  # pages of a file are read again if they are needed
            _release(frames)

    def array(self) -> np.ndarray:
        """uint8 (F, H, W, 3): all frames. Call it once, last."""
        self._resize(self._num_bytes)
        return np.frombuffer(self._memory, np.uint8, self._num_bytes).reshape(-1, *self._size)

    def _resize(self, num_bytes: int) -> None:
        if self._memory is None:
            self._memory = _memory(num_bytes)
            return
        try:
            self._memory.resize(max(1, num_bytes))
        except (SystemError, ValueError):  # where the system cannot move pages, as on macOS
            before, self._memory = self._memory, _memory(num_bytes)
            self._memory[: self._num_bytes] = before[: self._num_bytes]


_LEAST_BYTES = 1 << 24
_PART_BYTES = 1 << 20


def drained(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yields frames (T, H, W, 3) in parts, and lets go of the memory of each before the next, so that who copies them holds one.

    Nobody may read the frames afterwards, nor what lies before them in the same memory: of videos that share it, drain all in
    their order. Memory of `FrameStore`, `empty_frames` and mapped files is let go of; other memory is when `frames` is.
    """
    count = max(1, _PART_BYTES // max(1, frames[:1].nbytes))
    for start in range(0, len(frames), count):
        part = frames[start : start + count]
        yield part
        _release(part)


def _release(frames: np.ndarray) -> None:
    """Lets go of the pages of mapped memory up to the end of these frames, from the page on in which they begin.

    Pages of a file would be read again if they were needed; others would be zeros.
    """
    owner = frames
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):  # of `np.frombuffer`
        owner = owner.obj
    if not isinstance(owner, mmap.mmap) or not frames.flags.c_contiguous:
        return
    first = frames.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    # The page that the last video ended in goes now: a set of the smallest ones would keep all its pages otherwise.
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    if (num_bytes := (first + frames.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start) > 0:
        owner.madvise(mmap.MADV_DONTNEED, start, num_bytes)


def _memory(num_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes / 2**30:,.1f} GiB of frames: {error.strerror}") from None
