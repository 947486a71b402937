"""What every set of videos is, and the arithmetic of cutting clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tfvidgen.data.collection import VideoCollection

CLIP_STARTS = ("first", "centre", "random")
SHORT_CLIP_POLICIES = ("error", "loop", "hold", "drop")


def clip_span(num_frames: int, stride: int) -> int:
    """Frames of a video that a clip covers, its first and last included."""
    return (num_frames - 1) * stride + 1


def apply_short_clip_policy(
    collection: VideoCollection, num_frames: int, stride: int = 1, short_clip: str = "error"
) -> VideoCollection:
    """Settles what happens to videos shorter than a clip, before ids are given out.

    `loop` (play again from the start) and `hold` (repeat the last frame) keep every video: the indices handle them.
    `drop` removes them; `error` lists them. Nothing is ever filled with zeros.

    Raises:
        ValueError: If the policy is `error` and a video is too short, or `drop` leaves none.
    """
    if num_frames < 1 or stride < 1:
        raise ValueError(
            f"`num_frames` and `stride` must be at least 1. Received num_frames={num_frames}, stride={stride}."
        )
    if short_clip not in SHORT_CLIP_POLICIES:
        raise ValueError(f"`short_clip` must be one of {SHORT_CLIP_POLICIES}. Received {short_clip!r}.")
    span = clip_span(num_frames, stride)
    short = np.flatnonzero(collection.lengths < span)
    if len(short) == 0 or short_clip in ("loop", "hold"):
        return collection
    listed = ", ".join(f"{collection.names[i]} ({collection.lengths[i]})" for i in short[:10])
    more = f" and {len(short) - 10} more" if len(short) > 10 else ""
    if short_clip == "error":
        raise ValueError(
            f"{len(short)} of {len(collection)} videos are shorter than the {span} frames that num_frames={num_frames} at "
            f"stride={stride} needs: {listed}{more}. Lower num_frames or stride, or choose short_clip=loop, hold or drop."
        )
    if len(short) == len(collection):
        raise ValueError(
            f"short_clip=drop leaves no video: all {len(collection)} are shorter than the {span} frames that "
            f"num_frames={num_frames} at stride={stride} needs (the longest has {collection.lengths.max()})."
        )
    return collection.subset(collection.lengths >= span)


def clip_frame_indices(
    collection: VideoCollection, num_frames: int, stride: int = 1, clip_start: str = "first", short_clip: str = "error"
) -> np.ndarray:
    """int64 (N, num_frames): which rows of `collection.frames` make up one clip of each video.

    `clip_start` is `first` or `centre` here; random starts belong to `make_dataset`, where a step decides them.
    """
    if clip_start not in ("first", "centre"):
        raise ValueError(f"`clip_start` must be 'first' or 'centre' for fixed clips. Received {clip_start!r}.")
    if short_clip == "drop":
        raise ValueError("short_clip='drop' changes which videos there are: call `apply_short_clip_policy` first.")
    apply_short_clip_policy(collection, num_frames, stride, short_clip)
    room = np.maximum(collection.lengths - clip_span(num_frames, stride), 0)
    start = room // 2 if clip_start == "centre" else np.zeros_like(room)
    position = start[:, None] + stride * np.arange(num_frames)
    if short_clip == "loop":
        position %= collection.lengths[:, None]
    position = np.minimum(position, collection.lengths[:, None] - 1)
    return collection.first_frame[:, None] + position
