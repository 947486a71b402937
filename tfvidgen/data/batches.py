"""Videos -> tf.data batches; their order is a pure function of (seed, step)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from tfvidgen.data import order
from tfvidgen.data.collection import empty_frames
from tfvidgen.data.shards import ShardedVideos
from tfvidgen.data.videos import CLIP_STARTS, LABELS, Videos, check_clips, clip_span

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from tfvidgen.data.collection import VideoCollection

MAX_STEPS = 1 << 40
# Supported versions ("forms") of clip order and random starts as functions of (seed, step); `make_dataset` uses the last by
# default. A run resumes only with the form it was started with. Form 1 shuffles all videos for every batch.
DATA_ORDER_FORMS = (1, 2)

_READ_BUFFER = 1 << 18  # bytes

# A step, int64 () -> its batch without `video`, and int64 (B, T), the position of each frame in its video. In `make_epochs`, of
# anything else that says which videos a batch has.
Plan = Callable[..., tuple[dict[str, "tf.Tensor"], "tf.Tensor"]]


def make_dataset(
    videos: Videos,
    batch_size: int,
    num_frames: int,
    stride: int = 1,
    clip_start: str = "first",
    short_clip: str = "error",
    seed: int = 0,
    start_step: int = 0,
    order_form: int = DATA_ORDER_FORMS[-1],
) -> tf.data.Dataset:
    """An infinite dataset of batches whose order is a pure function of (seed, step), so there is nothing to checkpoint.

    Each epoch is a new permutation of all videos and batches run across epoch boundaries, so every video is seen equally
    often for any batch size. Random starts are drawn from (seed, step) too, uniformly over all valid positions.

    Frames in memory are used where they lie, without a copy: they must not be changed while the dataset is in use.

    Order, random starts and pixels of a (seed, step) are the same from memory and from shards. From shards, clips are read
    on demand, every frame from the first to the last, so a `stride` of 4 reads four times what it keeps. A frame that fails
    its CRC raises `tf.errors.DataLossError`; `ShardedVideos.verify` then names the file.

    Args:
        videos: A `VideoCollection` or `ShardedVideos`, after `apply_short_clip_policy` where videos may be dropped.
        batch_size: Clips per global batch.
        num_frames: Frames per clip.
        stride: Distance between the frames of a clip, in frames of the video.
        clip_start: `first`, `centre` or `random`.
        short_clip: `error`, `loop` or `hold`.
        seed: Seed of order and random starts.
        start_step: The step of the first batch.
        order_form: The form of order and random starts, one of `DATA_ORDER_FORMS`. With form 2, the cost of a batch does not
            depend on the number of videos.

    Returns:
        A dataset of dicts: `video` uint8 (B, T, H, W, 3), `video_id` int32 (B,), `step` int64 (B,) and, where the videos
        have them, `identity` and `action` int32 (B,). It consists of graph ops only, so that a tf.data service can run it
        (see `distribute`).

    Raises:
        ValueError: If an argument is out of range or a video too short.
    """
    import tensorflow as tf

    plan = batch_plan(videos, batch_size, num_frames, stride, clip_start, short_clip, seed, order_form)
    steps = tf.data.Dataset.range(start_step, MAX_STEPS)
    return _read(videos, steps, plan, batch_size, num_frames, stride)


def make_epochs(
    videos: Videos,
    batch_size: int,
    num_frames: int,
    stride: int = 1,
    clip_start: str = "first",
    short_clip: str = "error",
    shuffle: bool = True,
    seed: int | None = None,
) -> tf.data.Dataset:
    """A finite dataset, for `fit` without `steps_per_epoch`: a clip of every video, in another order at each iteration.

    Its `len` is the number of batches; the last one is smaller if the videos do not fill it. Unlike `make_dataset`'s, its order
    depends on how often it was iterated, so a training that was interrupted cannot be repeated exactly.

    Args:
        videos, batch_size, num_frames, stride, clip_start, short_clip: As for `make_dataset`.
        shuffle: False for the order of the videos, every time.
        seed: Seed of orders and random starts; None for others in every program.

    Returns:
        Dicts as from `make_dataset`, but without `step`: a model in `fit` counts its own.

    Raises:
        ValueError: If an argument is out of range or a video too short.
    """
    import tensorflow as tf

    clips = _clip_plan(videos, batch_size, num_frames, stride, clip_start, short_clip)
    ids = tf.data.Dataset.range(len(videos), output_type=tf.int32)
    if shuffle:
        ids = ids.shuffle(len(videos), seed, reshuffle_each_iteration=True)
    draws = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)  # a key a batch

    def plan(ids: tf.Tensor, key: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return clips(ids, lambda: tf.random.stateless_uniform(tf.shape(ids), key))

    batches = tf.data.Dataset.zip((ids.batch(batch_size), draws))
    dataset = _read(videos, batches, tf.autograph.experimental.do_not_convert(plan), batch_size, num_frames, stride)
    return dataset.apply(tf.data.experimental.assert_cardinality(-(-len(videos) // batch_size)))


def _read(
    videos: Videos, elements: tf.data.Dataset, plan: Plan, batch_size: int, num_frames: int, stride: int
) -> tf.data.Dataset:
    """The batches that a plan makes of elements, with their pixels."""
    read = _read_shards if isinstance(videos, ShardedVideos) else _read_memory
    dataset = read(videos, elements, plan, batch_size, (num_frames, *videos.size, 3), clip_span(num_frames, stride))
    if videos.mirrored is not None:
        dataset = dataset.map(_flipped(videos), num_parallel_calls=1)
    return _as_it_is(dataset.prefetch(2))


def _as_it_is(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset without TensorFlow's rewriting, which would copy all frames in memory and has nothing to improve here."""
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options)


def frames_tensor(frames: np.ndarray) -> tf.Tensor:
    """Frames, uint8 of any shape, as a tensor on the CPU that shares their memory, so they must not be changed.

    What is not aligned to TensorFlow's 64 bytes, not contiguous or read-only is copied; `empty_frames` makes what need not be.
    """
    import numpy as np
    import tensorflow as tf

    frames = np.asarray(frames)
    if not (frames.flags.c_contiguous and frames.flags.writeable) or frames.ctypes.data % 64:
        aligned = empty_frames(frames.shape)
        aligned[:] = frames
        frames = aligned
    return tf.experimental.dlpack.from_dlpack(frames.__dlpack__())


def batch_plan(
    videos: Videos,
    batch_size: int,
    num_frames: int,
    stride: int,
    clip_start: str,
    short_clip: str,
    seed: int,
    order_form: int = DATA_ORDER_FORMS[-1],
) -> Plan:
    """The index arithmetic of `make_dataset`: which frames each step uses, wherever they are stored.

    Args:
        videos: Only lengths, names and labels are used.
        batch_size, num_frames, stride, clip_start, short_clip, seed, order_form: As for `make_dataset`.

    Returns:
        A graph function of a step, int64 (). It returns the batch without `video`, and int64 (B, T), the
        position of each frame in its video.

    Raises:
        ValueError: If an argument is out of range or a video too short.
    """
    import tensorflow as tf

    if order_form not in DATA_ORDER_FORMS:
        raise ValueError(f"`order_form` must be one of {DATA_ORDER_FORMS}. Received {order_form}.")
    num_videos = len(videos)
    clips = _clip_plan(videos, batch_size, num_frames, stride, clip_start, short_clip)

    def plan(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        if order_form == 1:
            ids = _shuffled_1(step, batch_size, num_videos, seed)
        else:
            ids = order.shuffled(step * batch_size + tf.range(batch_size, dtype=tf.int64), num_videos, seed)
        key = tf.stack([tf.constant(seed, tf.int64) + 1, step])
        known, position = clips(ids, lambda: tf.random.stateless_uniform((batch_size,), key))
        return {**known, "step": tf.fill((batch_size,), step)}, position

    return tf.autograph.experimental.do_not_convert(plan)  # it has no Python control flow, and converting takes long


def _clip_plan(
    videos: Videos, batch_size: int, num_frames: int, stride: int, clip_start: str, short_clip: str
) -> Callable[[tf.Tensor, Callable[[], tf.Tensor]], tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """Where the clips of given videos lie: a graph function of ids, int32 (B,), and of draws in [0, 1), float32 (B,), which it
    asks for if starts are random. It returns ids and labels, and int64 (B, T), the position of each frame in its video.

    Raises:
        ValueError: If an argument is out of range or a video too short.
    """
    import tensorflow as tf

    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received {batch_size}.")
    if clip_start not in CLIP_STARTS:
        raise ValueError(f"`clip_start` must be one of {CLIP_STARTS}. Received {clip_start!r}.")
    check_clips(videos, num_frames, stride, short_clip)
    with tf.device("CPU:0"):
        lengths = tf.constant(videos.lengths)
    labels = {name: tf.constant(getattr(videos, name)) for name in LABELS if getattr(videos, name) is not None}
    span = clip_span(num_frames, stride)

    def clips(ids: tf.Tensor, draws: Callable[[], tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        length = tf.gather(lengths, ids)
        room = tf.maximum(length - span, 0)
        if clip_start == "first":
            start = tf.zeros_like(room)
        elif clip_start == "centre":
            start = room // 2
        else:
            start = tf.minimum(tf.cast(draws() * tf.cast(room + 1, tf.float32), tf.int64), room)
        position = start[:, None] + stride * tf.range(num_frames, dtype=tf.int64)
        if short_clip == "loop":
            position %= length[:, None]
        position = tf.minimum(position, length[:, None] - 1)
        return {"video_id": ids, **{name: tf.gather(values, ids) for name, values in labels.items()}}, position

    return clips


def _shuffled_1(step: tf.Tensor, batch_size: int, num_videos: int, seed: int) -> tf.Tensor:
    """Form 1 of the order: int32 (B,), out of a shuffle of all videos for every epoch that the batch touches."""
    import tensorflow as tf

    first = step * batch_size
    epochs = (batch_size + num_videos - 2) // num_videos + 1  # the most that a batch can touch
    orders = [
        tf.random.experimental.stateless_shuffle(
            tf.range(num_videos), tf.stack([tf.constant(seed, tf.int64), first // num_videos + k])
        )
        for k in range(epochs)
    ]
    offset = first % num_videos
    return tf.ensure_shape(tf.concat(orders, 0)[offset : offset + batch_size], (batch_size,))


def _flipped(videos: Videos) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """A function of a batch that flips its mirrored videos."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        mirrored = tf.constant(videos.mirrored)

    def flip(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        which = tf.gather(mirrored, batch["video_id"])[:, None, None, None, None]
        return {**batch, "video": tf.where(which, batch["video"][:, :, :, ::-1], batch["video"])}

    return flip


def _read_memory(
    videos: VideoCollection, elements: tf.data.Dataset, plan: Plan, batch_size: int, shape: tuple[int, ...], span: int
) -> tf.data.Dataset:
    import tensorflow as tf

    frames = frames_tensor(videos.frames)
    with tf.device("CPU:0"):
        first_frame = tf.constant(videos.first_frame)

    def batch(*element: tf.Tensor) -> dict[str, tf.Tensor]:
        known, position = plan(*element)
        rows = tf.gather(first_frame, known["video_id"])[:, None] + position
        count = known["video_id"].shape[0]  # None where the last batch may be smaller
        return {"video": tf.ensure_shape(tf.gather(frames, rows), (count, *shape)), **known}

    return elements.map(batch, num_parallel_calls=1)


def _read_shards(
    videos: ShardedVideos, elements: tf.data.Dataset, plan: Plan, batch_size: int, shape: tuple[int, ...], span: int
) -> tf.data.Dataset:
    """Reads several clips in parallel with graph ops, so Python is not blocked."""
    import tensorflow as tf

    record_bytes = videos.record_bytes
    with tf.device("CPU:0"):
        files = tf.constant([os.fsencode(videos.folder / shard.file) for shard in videos.shards])
        shard, first_byte = tf.constant(videos.shard), tf.constant(videos.first_byte)
        buffer_bytes = tf.constant(min(_READ_BUFFER, span * record_bytes), tf.int64)

    def located(*element: tf.Tensor) -> tuple[dict[str, tf.Tensor], ...]:
        known, position = plan(*element)
        begin = tf.reduce_min(position, axis=1)  # a looped clip may start mid-video
        place = {
            "file": tf.gather(files, tf.gather(shard, known["video_id"])),
            "offset": tf.gather(first_byte, known["video_id"]) + begin * record_bytes,
            "num_records": tf.reduce_max(position, axis=1) - begin + 1,
            "kept": position - begin[:, None],
        }
        return known, place

    def read(known: dict[str, tf.Tensor], place: dict[str, tf.Tensor]) -> tf.data.Dataset:
        # The public TFRecordDataset has no byte offsets; the underlying op does.
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=place["file"][None],
            compression_type="",
            buffer_size=buffer_bytes,
            byte_offsets=place["offset"][None],
        )
        records = tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))
        records = records.take(place["num_records"]).batch(place["num_records"])
        return tf.data.Dataset.zip((records, tf.data.Dataset.from_tensors((known, place["kept"]))))

    def clip(records: tf.Tensor, rest: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, tf.Tensor]:
        known, kept = rest
        return {"video": tf.gather(records, kept), **known}

    def decode(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        pixels = tf.io.decode_raw(batch["video"], tf.uint8)
        count = batch["video_id"].shape[0]
        return {**batch, "video": tf.reshape(pixels, (-1 if count is None else count, *shape))}

    planned = elements.map(located)
    full = planned.element_spec[0]["video_id"].shape[0] is not None
    dataset = planned.unbatch()
    # Each interleaved dataset has one element, so clips keep their order.
    dataset = dataset.interleave(
        read, cycle_length=8, block_length=1, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.map(clip).batch(batch_size, drop_remainder=full).map(decode)


def distribute(
    dataset: tf.data.Dataset, address: str, start_step: int = 0, job_name: str | None = None
) -> tf.data.Dataset:
    """Offloads batching to a tf.data service, so that reading data uses no resources of the training machine.

    The service needs one dispatcher with exactly one worker, where the shards have the same path. More workers would not
    split the steps: with sharding off, as here, each produces every batch, and the other sharding policies guarantee no
    order. Processes that share a `job_name` divide its batches among them. Either would train some steps twice and others
    never, hence the steps are checked on arrival.

    Args:
        dataset: From `make_dataset`. Frames of a `VideoCollection` are sent to the worker inside the graph.
        address: `grpc://host:port` of the dispatcher.
        start_step: The first step of `dataset`.
        job_name: Lets a restarted process continue its previous job; None starts at `start_step`.

    Returns:
        The same batches in the same order. A batch out of order raises `tf.errors.InvalidArgumentError`.

    Raises:
        ValueError: If `address` is not of the form grpc://host:port.
    """
    import tensorflow as tf

    if not re.fullmatch(r"grpc://[^/\s]+:\d+", address):
        raise ValueError(f"`address` must be that of a tf.data dispatcher, grpc://host:port. Received {address!r}.")
    service = tf.data.experimental.service
    dataset = dataset.apply(service.distribute(service.ShardingPolicy.OFF, address, job_name))

    def in_order(expected: tf.Tensor, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        message = "The tf.data service sent a batch out of order: it must have one worker, and a job one process."
        with tf.control_dependencies([tf.debugging.assert_equal(batch["step"], expected, message)]):
            return expected + 1, {name: tf.identity(value) for name, value in batch.items()}

    return dataset.scan(tf.constant(start_step, tf.int64), in_order).prefetch(2)
