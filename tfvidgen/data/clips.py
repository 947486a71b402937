"""Cuts clips out of a collection and turns them into batches; the order is a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tfvidgen.data.collection import VideoCollection

if TYPE_CHECKING:
    import tensorflow as tf

    from tfvidgen.data.shards import ShardedVideos

CLIP_STARTS = ("first", "centre", "random")
SHORT_CLIP_POLICIES = ("error", "loop", "hold", "drop")
MAX_STEPS = 1 << 40
# Forms of the order of clips and of their random starts, as functions of (seed, step), that this version makes; the last is
# what `make_dataset` gives. A run goes on only in the one that it was begun in.
DATA_ORDER_FORMS = (1,)


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


def make_dataset(
    collection: VideoCollection,
    batch_size: int,
    num_frames: int,
    stride: int = 1,
    clip_start: str = "first",
    short_clip: str = "error",
    seed: int = 0,
    start_step: int = 0,
) -> tf.data.Dataset:
    """An endless dataset of batches whose order is a pure function of (seed, step), so there is nothing to checkpoint.

    Each epoch is a new permutation of all videos and the stream of batches runs on over the ends of epochs, so every
    video is seen equally often for any batch size. A random start is drawn from (seed, step) too and may be the last
    possible one.

    Args:
        collection: The videos, already settled by `apply_short_clip_policy` where videos may be dropped.
        batch_size: Clips in a global batch.
        num_frames: Frames of a clip.
        stride: Distance between the frames of a clip, in frames of the video.
        clip_start: `first`, `centre` or `random`.
        short_clip: `error`, `loop` or `hold`.
        seed: Decides order and random starts.
        start_step: The step whose batch comes first.

    Returns:
        A dataset of dicts: `video` uint8 (B, T, H, W, 3), `video_id` int32 (B,), `step` int64 (B,) and, where the
        collection has them, `identity` and `action` int32 (B,).
    """
    import tensorflow as tf

    plan = batch_plan(collection, batch_size, num_frames, stride, clip_start, short_clip, seed)
    with tf.device("CPU:0"):
        frames = tf.constant(collection.frames)
        first_frame = tf.constant(collection.first_frame)

    def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        known, position = plan(step)
        rows = tf.gather(first_frame, known["video_id"])[:, None] + position
        video = tf.ensure_shape(tf.gather(frames, rows), (batch_size, num_frames, *collection.size, 3))
        return {"video": video, **known}

    return tf.data.Dataset.range(start_step, MAX_STEPS).map(batch, num_parallel_calls=1).prefetch(2)


def batch_plan(
    videos: VideoCollection | ShardedVideos,
    batch_size: int,
    num_frames: int,
    stride: int,
    clip_start: str,
    short_clip: str,
    seed: int,
) -> Callable[[tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """The arithmetic of `make_dataset`, without pixels: which frames a step sees, wherever they are kept.

    Args:
        videos: Of which lengths, names and labels are used.
        batch_size, num_frames, stride, clip_start, short_clip, seed: As for `make_dataset`.

    Returns:
        A graph function of a step, int64 (). It gives everything of the batch but the video, and int64 (B, T), the
        position of each frame in its video.

    Raises:
        ValueError: If an argument is out of range or a video too short.
    """
    import tensorflow as tf

    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received {batch_size}.")
    if clip_start not in CLIP_STARTS:
        raise ValueError(f"`clip_start` must be one of {CLIP_STARTS}. Received {clip_start!r}.")
    if short_clip == "drop":
        raise ValueError("short_clip='drop' changes which videos there are: call `apply_short_clip_policy` first.")
    apply_short_clip_policy(videos, num_frames, stride, short_clip)
    num_videos = len(videos)
    with tf.device("CPU:0"):
        lengths = tf.constant(videos.lengths)
    labels = {
        name: tf.constant(getattr(videos, name)) for name in ("identity", "action") if getattr(videos, name) is not None
    }
    span = clip_span(num_frames, stride)
    epochs_in_batch = (batch_size + num_videos - 2) // num_videos + 1  # a batch may reach into so many epochs

    def plan(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        first = step * batch_size
        epoch = first // num_videos
        orders = [
            tf.random.experimental.stateless_shuffle(
                tf.range(num_videos), tf.stack([tf.constant(seed, tf.int64), epoch + k])
            )
            for k in range(epochs_in_batch)
        ]
        offset = first % num_videos
        ids = tf.ensure_shape(tf.concat(orders, 0)[offset : offset + batch_size], (batch_size,))
        length = tf.gather(lengths, ids)
        room = tf.maximum(length - span, 0)
        if clip_start == "first":
            start = tf.zeros_like(room)
        elif clip_start == "centre":
            start = room // 2
        else:
            draw = tf.random.stateless_uniform((batch_size,), tf.stack([tf.constant(seed, tf.int64) + 1, step]))
            start = tf.minimum(tf.cast(draw * tf.cast(room + 1, tf.float32), tf.int64), room)
        position = start[:, None] + stride * tf.range(num_frames, dtype=tf.int64)
        if short_clip == "loop":
            position %= length[:, None]
        position = tf.minimum(position, length[:, None] - 1)
        known = {
            "video_id": ids,
            "step": tf.fill((batch_size,), step),
            **{name: tf.gather(values, ids) for name, values in labels.items()},
        }
        return known, position

    return plan
