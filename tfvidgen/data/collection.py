"""Videos in memory: uint8 frames in one array, with names and labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfvidgen.data.videos import LABELS, Videos


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class VideoCollection(Videos):
    """Decoded videos of one frame size, with their metadata.

    Attributes:
        frames: uint8 (F, H, W, 3), RGB; the frames of all videos, concatenated.
        lengths, names, identity, action, identity_names, action_names, fps, source, skipped: As in `Videos`.
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

    def __post_init__(self):
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(
                f"`frames` must be uint8 (F, H, W, 3). Received {self.frames.dtype} {self.frames.shape}: convert values to "
                "0..255 uint8 RGB first."
            )
        if len(self.lengths) == 0:
            raise ValueError(f"A collection needs at least one video. Received none from {self.source!r}.")
        if int(np.min(self.lengths)) < 1 or int(np.sum(self.lengths)) != len(self.frames):
            raise ValueError(
                f"`lengths` must be positive and sum to the number of frames. Received lengths that sum to "
                f"{int(np.sum(self.lengths))} (smallest {int(np.min(self.lengths))}) for {len(self.frames)} frames."
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
        videos: Sequence[np.ndarray],
        names: Sequence[str] | None = None,
        identity: Sequence[int] | None = None,
        action: Sequence[int] | None = None,
        identity_names: Sequence[str] | None = None,
        action_names: Sequence[str] | None = None,
        fps: float = 8.0,
        source: str = "arrays",
    ) -> VideoCollection:
        """Packs videos, each uint8 (T_i, H, W, 3), into a collection. Raises ValueError if shapes or dtypes differ."""
        videos = list(videos)
        if not videos:
            raise ValueError(f"A collection needs at least one video. Received none from {source!r}.")
        names = tuple(names) if names is not None else tuple(f"video_{i:05d}" for i in range(len(videos)))
        if len(names) != len(videos):
            raise ValueError(f"`names` must hold one name per video. Received {len(names)} for {len(videos)} videos.")
        for name, video in zip(names, videos, strict=True):
            if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] != videos[0].shape[1:]:
                raise ValueError(
                    f"Every video must be uint8 (T, H, W, 3) with one H and W. {name!r} is {video.dtype} {video.shape}, "
                    f"{names[0]!r} is {videos[0].shape}: give a frame size to resize to."
                )
        return cls(
            frames=np.concatenate(videos),
            lengths=np.array([len(video) for video in videos], np.int64),
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

    def video(self, index: int) -> np.ndarray:
        """uint8 (T, H, W, 3): the frames of one video, as a view."""
        start = self.first_frame[index]
        return self.frames[start : start + self.lengths[index]]

    def _pixels_of(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"frames": np.concatenate([self.video(index) for index in indices])}

    def with_mirrored(self, own_actions: bool) -> VideoCollection:
        """These videos, followed by their mirror images (flipped left to right) in the same order.

        Args:
            own_actions: Gives mirrored actions labels of their own, so `action_names` doubles: a mirrored clip shows a
                different motion of the same identity. False keeps the labels.

        Raises:
            ValueError: If `own_actions` is true and there are no actions.
        """
        if own_actions and self.action is None:
            raise ValueError(
                f"Mirrored videos cannot have actions of their own: {self.source!r} has no actions. Put the videos into one "
                "folder per action, or keep the labels (same_action)."
            )
        action, action_names = self.action, self.action_names
        if action is not None:
            action = np.concatenate([action, action + len(action_names) if own_actions else action])
        if own_actions:
            action_names = (*action_names, *(f"{name}_mirrored" for name in action_names))
        return dataclasses.replace(
            self,
            frames=np.concatenate([self.frames, self.frames[:, :, ::-1]]),
            lengths=np.concatenate([self.lengths] * 2),
            names=(*self.names, *(f"{name} mirrored" for name in self.names)),
            identity=None if self.identity is None else np.concatenate([self.identity] * 2),
            action=action,
            action_names=action_names,
        )
