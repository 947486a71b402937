"""Videos decoded once into sharded files, and trained on from there without fitting into memory.

A prepared folder holds `shard-<position of its first file>.tfrecord` and, written last, `index.json`: what was prepared
and how, names, lengths and labels, the SHA-256 of every shard and the digest of the whole.

A shard is a TFRecord file with one record per frame: its raw RGB bytes. All records of a set are equally long, so where a
frame lies is arithmetic, and `TFRecordDatasetV2` reads from a byte offset: any clip of any video is found by graph
operations that read nothing else, and every frame that is read passes its CRC-32C. Batches are therefore those of
`make_dataset`, in its order, bit for bit, without a shuffle buffer.

Frames are not compressed. Measured on 64x64 frames, one core: PNG takes 0.55 of the bytes on filmed clips and 0.24 on
drawn ones, and 0.06 to 0.1 ms more per frame to decode, several times what finding and reading the raw frame costs
(0.02 ms); and records of one length need no table of offsets.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfvidgen import storage
from tfvidgen.data import codecs, sources, video_io
from tfvidgen.data.clips import MAX_STEPS, batch_plan, clip_frame_indices, clip_span
from tfvidgen.data.collection import VideoCollection

if TYPE_CHECKING:
    import tensorflow as tf

INDEX = "index.json"
VERSION = 1

_FORMAT = "tfvidgen shards"
_OURS = re.compile(r"shard-\d{8,}\.(tfrecord|json)|index\.json|\..+\.part")
_FRAME_HEADER, _FRAME_FOOTER = 12, 4  # TFRecord: uint64 length, CRC of it, the bytes, CRC of them
_READ_BUFFER = 1 << 18
_BLOCK = 1 << 22
_AGAIN = "Run trainers.prepare_data again with the same arguments: only what is damaged or missing is decoded again."


class Shard(NamedTuple):
    """A file of frames: name in the folder, bytes, and SHA-256 of them."""

    file: str
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedVideos:
    """What is known about prepared videos, whose pixels stay on disk. It stands where a `VideoCollection` would.

    Attributes:
        folder: The prepared folder.
        size: Height and width of a frame.
        resize: How frames of another shape were brought to it.
        shards: The files.
        shard: int64 (N,), position in `shards` of the file that holds each video.
        first_byte: int64 (N,), where in it the video begins.
        lengths: int64 (N,), frames of each video.
        names, identity, action, identity_names, action_names, fps, source: As in a `VideoCollection`.
        stored_digest: Digest of all videos, or None for a subset, whose digest has to be computed.
        codecs: What the videos were read through, as of `codecs.folder_codecs`; of a folder that was prepared before this
            was noted, unknown.
    """

    folder: pathlib.Path
    size: tuple[int, int]
    resize: str
    shards: tuple[Shard, ...]
    shard: np.ndarray
    first_byte: np.ndarray
    lengths: np.ndarray
    names: tuple[str, ...]
    identity: np.ndarray | None
    action: np.ndarray | None
    identity_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None
    fps: float
    source: str
    stored_digest: str | None
    codecs: dict[str, str]

    @classmethod
    def open(cls, folder: str | os.PathLike) -> ShardedVideos:
        """Reads the index of a prepared folder and checks that every shard is there with all its bytes.

        Raises:
            ValueError: If the folder is none or not finished, was prepared by another version, or a shard is missing,
                truncated or too long. Other damage is found by `verify`, by `collection` and when a frame is read.
        """
        folder = pathlib.Path(folder)
        index = _read_index(folder)
        try:
            videos = cls._of(folder, index)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(_damaged_index(folder, error)) from None
        for shard in videos.shards:
            _check_size(folder, shard)
        return videos

    @classmethod
    def _of(cls, folder: pathlib.Path, index: dict[str, Any]) -> ShardedVideos:
        entries = index["shards"]
        lengths = [np.array(entry["lengths"], np.int64) for entry in entries]
        record_bytes = _record_bytes(index["options"]["size"])
        return cls(
            folder=folder,
            size=tuple(index["options"]["size"]),
            resize=index["options"]["resize"],
            shards=tuple(Shard(entry["file"], entry["num_bytes"], entry["sha256"]) for entry in entries),
            shard=np.repeat(np.arange(len(entries)), [len(each) for each in lengths]),
            first_byte=np.concatenate([record_bytes * (np.cumsum(each) - each) for each in lengths]),
            lengths=np.concatenate(lengths),
            names=tuple(name for entry in entries for name in entry["names"]),
            fps=index["fps"],
            source=str(folder),
            stored_digest=index["digest"],
            codecs=index.get("source_codecs") or {"codec": codecs.UNKNOWN_CODEC},
            **_labels(index),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def video(self, index: int) -> np.ndarray:
        """uint8 (T, H, W, 3): reads one video."""
        path = self.folder / self.shards[self.shard[index]].file
        num_bytes = int(self.lengths[index]) * _record_bytes(self.size)
        content = np.fromfile(path, np.uint8, num_bytes, offset=int(self.first_byte[index]))
        if len(content) < num_bytes:
            raise ValueError(f"The shard {str(path)!r} is truncated. {_AGAIN}")
        return _frames(content, self.size)

    def clips(
        self, num_frames: int, stride: int = 1, clip_start: str = "first", short_clip: str = "error"
    ) -> np.ndarray:
        """uint8 (N, num_frames, H, W, 3): one clip of each video, as `VideoCollection.clips` cuts them."""
        rows = clip_frame_indices(self, num_frames, stride, clip_start, short_clip)
        clips = np.empty((len(self), num_frames, *self.size, 3), np.uint8)
        for index, row in enumerate(rows - self.first_frame[:, None]):
            clips[index] = self.video(index)[row]
        return clips

    @functools.cached_property
    def first_frame(self) -> np.ndarray:
        """int64 (N,): position at which each video begins where all frames lie one after the other."""
        return np.cumsum(self.lengths) - self.lengths

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 as of `VideoCollection.digest`: a run may go on from memory or from shards. Reads all of a subset."""
        if self.stored_digest is not None:
            return self.stored_digest
        sha = hashlib.sha256()
        for array in (self.lengths, self.identity, self.action):
            sha.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        sha.update("\n".join(self.names).encode())
        sha.update(str((int(self.lengths.sum()), *self.size, 3)).encode())
        for index in range(len(self)):
            sha.update(self.video(index).data)
        return sha.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> ShardedVideos:
        """The videos at `indices` (positions or a boolean mask), in that order. Nothing is copied."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise ValueError(f"A mask must have shape ({len(self)},). Received {indices.shape}.")
            indices = np.flatnonzero(indices)
        if len(indices) == 0:
            raise ValueError(f"A collection needs at least one video. Received none from {self.source!r}.")
        return dataclasses.replace(
            self,
            shard=self.shard[indices],
            first_byte=self.first_byte[indices],
            lengths=self.lengths[indices],
            names=tuple(self.names[index] for index in indices),
            identity=None if self.identity is None else self.identity[indices],
            action=None if self.action is None else self.action[indices],
            stored_digest=None,
        )

    def collection(self) -> VideoCollection:
        """Reads everything into memory and checks the SHA-256 of every shard on the way. Raises ValueError."""
        frames = np.empty((int(self.lengths.sum()), *self.size, 3), np.uint8)
        for position in np.unique(self.shard):
            shard = self.shards[position]
            content = np.fromfile(self.folder / shard.file, np.uint8)
            if hashlib.sha256(content.data).hexdigest() != shard.sha256:
                raise ValueError(_damaged(self.folder, [shard]))
            for index in np.flatnonzero(self.shard == position):
                first, start, length = self.first_byte[index], self.first_frame[index], self.lengths[index]
                video = content[first : first + length * _record_bytes(self.size)]
                frames[start : start + length] = _frames(video, self.size)
        return VideoCollection(
            frames,
            self.lengths,
            self.names,
            self.identity,
            self.action,
            self.identity_names,
            self.action_names,
            self.fps,
            self.source,
        )

    def verify(self) -> None:
        """Reads every shard and compares its SHA-256. Raises ValueError naming all that differ."""
        damaged = [shard for shard in self.shards if _sha256(self.folder / shard.file) != shard.sha256]
        if damaged:
            raise ValueError(_damaged(self.folder, damaged))

    def require(self, size: int | tuple[int, int] | None, resize: str) -> None:
        """Raises ValueError if the videos were prepared at another size or by another way of resizing."""
        size = video_io.check_size(size)
        video_io.check_resize(resize)
        if size is not None and (size, resize) != (self.size, self.resize):
            raise ValueError(
                f"{str(self.folder)!r} was prepared with frames of {_by(self.size)} (height x width) and "
                f"resize={self.resize}, and {_by(size)} with resize={resize} is asked for. Ask for what is there, or "
                "prepare the videos again into another folder."
            )


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether a folder was written by `prepare_shards`, finished or not."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return False
    try:
        with open(folder / INDEX, encoding="utf-8", errors="replace") as file:
            return _FORMAT in file.read(64)
    except FileNotFoundError:
        return any(folder.glob("shard-*.json"))


def load_prepared(
    folder: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    resize: str = "centre_crop",
    max_videos: int | None = None,
    max_frames: int | None = None,
) -> VideoCollection:
    """What `load_videos` makes of a prepared folder; the arguments are its."""
    videos = ShardedVideos.open(folder)
    videos.require(size, resize)
    if max_videos is not None and max_videos < len(videos):
        videos = videos.subset(np.arange(max_videos))
    if max_frames is not None:
        videos = dataclasses.replace(videos, lengths=np.minimum(videos.lengths, max_frames), stored_digest=None)
    return videos.collection()


def scan_prepared(folder: str | os.PathLike) -> sources.SourceReport:
    """What `scan` says of a prepared folder: the index, without reading a shard."""
    videos = ShardedVideos.open(folder)

    def counts(labels: np.ndarray | None, names: tuple[str, ...] | None) -> dict[str, int]:
        return {} if labels is None else {name: int((labels == index).sum()) for index, name in enumerate(names)}

    return sources.SourceReport(
        source=str(folder),
        layout=f"prepared ({len(videos.shards)} shards)",
        names=videos.names,
        lengths=videos.lengths,
        sizes=np.tile(np.array(videos.size, np.int64), (len(videos), 1)),
        fps=videos.fps,
        classes=counts(videos.action, videos.action_names),
        identities=counts(videos.identity, videos.identity_names),
        ignored=(),
        unreadable=(),
    )


# ---- training -------------------------------------------------------------------------------------------------------


def make_sharded_dataset(
    videos: ShardedVideos,
    batch_size: int,
    num_frames: int,
    stride: int = 1,
    clip_start: str = "first",
    short_clip: str = "error",
    seed: int = 0,
    start_step: int = 0,
) -> tf.data.Dataset:
    """The dataset of `tfvidgen.data.make_dataset`, arguments and batches, with pixels read from shards as they are needed.

    Order, random starts and pixels of a (seed, step) are the same. Only graph operations are used: several clips are
    read at once, Python is not held up, and the dataset can be sent to a tf.data service (see `distribute`). Of a clip
    all frames from its first to its last are read, so a `stride` of 4 reads four times what it keeps.

    A frame that fails its CRC ends the iteration with `tf.errors.DataLossError`; `ShardedVideos.verify` then names the
    file.
    """
    import tensorflow as tf

    plan = batch_plan(videos, batch_size, num_frames, stride, clip_start, short_clip, seed)
    record_bytes = _record_bytes(videos.size)
    with tf.device("CPU:0"):
        files = tf.constant([os.fsencode(videos.folder / shard.file) for shard in videos.shards])
        shard, first_byte = tf.constant(videos.shard), tf.constant(videos.first_byte)
        buffer_bytes = tf.constant(min(_READ_BUFFER, clip_span(num_frames, stride) * record_bytes), tf.int64)

    def located(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], ...]:
        known, position = plan(step)
        begin = tf.reduce_min(position, axis=1)  # a loop may begin in the middle
        place = {
            "file": tf.gather(files, tf.gather(shard, known["video_id"])),
            "offset": tf.gather(first_byte, known["video_id"]) + begin * record_bytes,
            "num_records": tf.reduce_max(position, axis=1) - begin + 1,
            "kept": position - begin[:, None],
        }
        return known, place

    def read(known: dict[str, tf.Tensor], place: dict[str, tf.Tensor]) -> tf.data.Dataset:
        # The public TFRecordDataset has no offsets, the operation under it has.
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
        return {**batch, "video": tf.reshape(pixels, (batch_size, num_frames, *videos.size, 3))}

    dataset = tf.data.Dataset.range(start_step, MAX_STEPS).map(located).unbatch()
    # Each dataset that is interleaved has one element, so clips come out in the order in which they went in.
    dataset = dataset.interleave(
        read, cycle_length=8, block_length=1, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.map(clip).batch(batch_size, drop_remainder=True).map(decode).prefetch(2)


def distribute(
    dataset: tf.data.Dataset, address: str, start_step: int = 0, job_name: str | None = None
) -> tf.data.Dataset:
    """Has a tf.data service make the batches, so that reading them takes nothing from the machine that trains.

    The service needs one dispatcher with exactly one worker, which sees the shards under the same path. More workers
    would not divide the steps: with sharding off, as here, each of them makes every batch, and the other modes of the
    service divide by the worker and promise no order. So does a `job_name`: processes that share one share its batches.
    Either would train some steps twice and others never, hence the steps are checked as they arrive.

    Args:
        dataset: From `make_sharded_dataset`, or `make_dataset`, whose frames then travel to the worker with the graph.
        address: `grpc://host:port` of the dispatcher.
        start_step: The first step of `dataset`.
        job_name: Lets a restarted process go on with the batches of the job it left; None begins at `start_step`.

    Returns:
        The same batches in the same order. A batch out of order ends it with `tf.errors.InvalidArgumentError`.

    Raises:
        ValueError: If `address` is none.
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


# ---- preparing ------------------------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """How far a preparation is: files decoded or kept, files in all, frames decoded by this process."""

    num_done: int
    num_files: int
    num_frames: int


@dataclasses.dataclass(frozen=True)
class _Decode:
    """What a worker does with a file (or a folder of frames). Both ways it travels between processes."""

    root: pathlib.Path
    layout: str
    size: tuple[int, int]
    resize: str
    max_frames: int | None

    def __call__(self, unit: sources._Unit) -> list[sources._Clip] | tuple[str, str]:
        """The videos in it, or (file, what is wrong with it)."""
        try:
            clips = sources._decode(unit, self.layout, self.size, self.resize, self.max_frames)
        except video_io.UnreadableFileError as error:
            return sources._relative(error.path, self.root), error.reason
        return [dataclasses.replace(clip, frames=np.ascontiguousarray(clip.frames)) for clip in clips]


def prepare_shards(
    source: str | os.PathLike,
    out: str | os.PathLike,
    size: int | tuple[int, int] = 64,
    resize: str = "centre_crop",
    skip_bad: bool = False,
    num_workers: int = 0,
    shard_mb: int = 64,
    max_frames: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> ShardedVideos:
    """Decodes a folder or file of videos, in any layout that `load_videos` reads, into a prepared folder.

    Worker processes decode, this one writes. A shard appears under its name when it is whole, with its checksum beside
    it, and the index last; called again, also after a kill, the function keeps every shard whose checksum holds and
    decodes the rest. A finished folder is thus verified and mended.

    Args:
        source: Folder or file of videos.
        out: The prepared folder, new or from an earlier call with these arguments.
        size: (height, width) of a frame in pixels, or one number for both.
        resize: `centre_crop` cuts the largest centred window of the target's shape first, `squash` changes the shape.
        skip_bad: Leave unreadable files out with a warning instead of raising.
        num_workers: Processes that decode; 0 for one per core, 1 to decode in this process.
        shard_mb: A shard ends with the file that brings it to so many MiB.
        max_frames: Read only so many frames of each video; None reads all.
        report: Gets the progress after every file.

    Returns:
        The opened folder.

    Raises:
        ValueError: If an argument is out of range, `source` cannot be used or read (see `load_videos`), or `out` holds
            anything else, lies in `source`, is in use by another process or cannot be written.
    """
    size = video_io.check_size(size)
    if size is None:
        raise ValueError("`size` must be given: all prepared frames have one size.")
    video_io.check_resize(resize)
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("shard_mb", shard_mb, 1),
        ("max_frames", max_frames, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least}. Received {value}.")
    root, out = sources._existing(source), pathlib.Path(out)
    if is_prepared(root):
        raise ValueError(f"{str(source)!r} is already prepared: give the folder of the videos themselves.")
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{str(out)!r} lies in {str(source)!r}: prepare into a folder outside, where it is no video.")
    made = {
        "format": _FORMAT,
        "version": VERSION,
        "source": str(source),
        "source_digest": sources._cache_key(root, []),
        "options": {"size": list(size), "resize": resize, "max_frames": max_frames},
        "codec": "raw RGB, one TFRecord per frame",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            kept = _kept_shards(out, made)
            found = sources._find(root)
            if found.unreadable and not skip_bad:
                raise sources._unreadable_error(root, found.unreadable, bool(found.units), skip_bad)
            decode = _Decode(root, found.layout, size, resize, max_frames)
            workers = num_workers or os.cpu_count() or 1
            entries = _write_shards(out, made, found.units, kept, decode, workers, shard_mb << 20, report)
            skipped = [*found.unreadable, *(bad for entry in entries for bad in entry["skipped"])]
            if skipped and not (skip_bad and any(entry["names"] for entry in entries)):
                raise sources._unreadable_error(root, skipped, bool(found.units), skip_bad)
            index = _index(root, made, entries)
            index["source_codecs"] = codecs.folder_codecs(root, [name for entry in entries for name in entry["names"]])
            index["digest"] = dataclasses.replace(ShardedVideos._of(out, index), stored_digest=None).digest
            storage.write_json(out / INDEX, index, indent=None)
            files = {entry["file"] for entry in entries}
            for path in [*out.glob("shard-*.json"), *out.glob("shard-*.tfrecord")]:
                if path.name not in files:
                    path.unlink()
    except OSError as error:
        raise ValueError(f"Cannot prepare into {str(out)!r}: {error}. Free the disk or name another folder.") from None
    if skipped:
        listed = sources._listed([f"{file}: {reason}" for file, reason in skipped], 20, "; ")
        warnings.warn(f"Skipped {len(skipped)} unreadable files of {str(source)!r}: {listed}", stacklevel=2)
    return ShardedVideos.open(out)


def _write_shards(
    out: pathlib.Path,
    made: dict[str, Any],
    units: Sequence[sources._Unit],
    kept: dict[int, dict[str, Any]],
    decode: _Decode,
    num_workers: int,
    shard_bytes: int,
    report: Callable[[Progress], None] | None,
) -> list[dict[str, Any]]:
    """Fills the gaps between the kept shards; returns the entries of all, in order. `kept` is keyed by first unit."""
    entries, gaps, position = [], [], 0
    while position < len(units):
        if position in kept:
            entries.append(kept[position])
            position += kept[position]["num_units"]
        else:
            stop = min((first for first in kept if first > position), default=len(units))
            gaps.append((position, stop))
            position = stop
    missing = [unit for start, stop in gaps for unit in units[start:stop]]
    progress = Progress(len(units) - len(missing), len(units), 0)
    with contextlib.closing(_decoded(decode, missing, num_workers)) as decoded:
        for start, stop in gaps:
            writer = None
            for position in range(start, stop):
                writer = writer or _ShardWriter(out, made, position)
                num_frames = writer.add(next(decoded))
                if report:
                    progress = Progress(progress.num_done + 1, len(units), progress.num_frames + num_frames)
                    report(progress)
                if writer.num_bytes >= shard_bytes or position + 1 == stop:
                    entries.append(writer.close())
                    writer = None
    return sorted(entries, key=lambda entry: entry["first_unit"])


class _ShardWriter:
    """A shard as it grows, under a hidden name."""

    def __init__(self, out: pathlib.Path, made: dict[str, Any], first_unit: int):
        import tensorflow as tf

        self._out, self._made = out, made
        name = f"shard-{first_unit:08d}.tfrecord"
        self._part = out / f".{name}.part"
        self._writer, self._error = tf.io.TFRecordWriter(os.fsencode(self._part)), tf.errors.OpError
        self.num_bytes = 0
        self._entry = {"file": name, "first_unit": first_unit, "num_units": 0, "names": [], "lengths": [], "fps": []}
        self._entry |= {**{field: [] for field in sources._LABELS}, "skipped": []}

    def add(self, decoded: list[sources._Clip] | tuple[str, str]) -> int:
        """Writes the videos of a unit, or notes what is wrong with it. Returns the number of frames."""
        entry, num_frames = self._entry, 0
        entry["num_units"] += 1
        if isinstance(decoded, tuple):
            entry["skipped"].append(decoded)
            return 0
        for clip in decoded:
            try:
                for frame in clip.frames:
                    self._writer.write(frame.tobytes())
            except self._error as error:
                raise OSError(error.message) from None
            entry["names"].append(clip.name)
            entry["lengths"].append(len(clip.frames))
            entry["fps"].append(clip.fps)
            for field in sources._LABELS:
                entry[field].append(clip.labels.get(field))
            num_frames += len(clip.frames)
            self.num_bytes += len(clip.frames) * _record_bytes(clip.frames.shape[1:3])
        return num_frames

    def close(self) -> dict[str, Any]:
        """Gives the shard its name and writes what is known about it beside it."""
        try:
            self._writer.close()
        except self._error as error:
            raise OSError(error.message) from None
        entry = {**self._entry, "num_bytes": self.num_bytes, "sha256": _sha256(self._part)}
        path = self._out / entry["file"]
        os.replace(self._part, path)
        storage.write_json(path.with_suffix(".json"), {**self._made, "shard": entry}, indent=None)
        return entry


def _decoded(decode: _Decode, units: Sequence[sources._Unit], num_workers: int) -> Iterator:
    """Yields decode(unit) in order, computed by worker processes, never far ahead of who consumes them."""
    num_workers = min(num_workers, len(units))
    if num_workers <= 1:
        yield from map(decode, units)
        return
    # Processes, because what Python does per frame holds the GIL; spawned, because TensorFlow does not survive a fork.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
    )
    waiting: collections.deque = collections.deque()
    try:
        for unit in units:
            with _without_interrupts():  # submitting starts the workers
                waiting.append((unit, pool.submit(decode, unit)))
            if len(waiting) > 3 * num_workers:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()
    except concurrent.futures.process.BrokenProcessPool:
        name = waiting[0][0].name if waiting else units[-1].name
        raise ValueError(
            f"A worker process died at {name!r} or soon after: memory ran out, a damaged file broke its decoder, or a "
            'script calls this outside `if __name__ == "__main__"`. Finished shards are kept. Fewer workers need less '
            "memory; one works without processes (--num_workers=1)."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started in it never see Ctrl-C, which a terminal sends to the whole group: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for work on a pipe that stays open when its parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _kept_shards(out: pathlib.Path, made: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The entries of whole shards that an earlier call left, by first unit. Raises ValueError if `out` holds others."""
    strangers = sorted(name for name in os.listdir(out) if not _OURS.fullmatch(name))
    if strangers:
        raise ValueError(
            f"{str(out)!r} holds other files, such as {strangers[0]!r}: prepare into a new or empty folder."
        )
    entries = []
    if (out / INDEX).exists():
        index = _read_index(out)
        _check_same(out, index, made)
        entries += index["shards"]
    for path in sorted(out.glob("shard-*.json")):
        noted = _read_json(path)
        _check_same(out, noted, made)
        entries.append(noted["shard"])
    return {entry["first_unit"]: entry for entry in entries if _is_whole(out / entry["file"], entry)}


def _is_whole(path: pathlib.Path, entry: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["num_bytes"] and _sha256(path) == entry["sha256"]


def _check_same(out: pathlib.Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    _check_version(out, there)
    differences = [
        f"{name}={there['options'].get(name)} there, {value} now"
        for name, value in now["options"].items()
        if there["options"].get(name) != value
    ]
    if there["source_digest"] != now["source_digest"]:
        differences.append(
            f"{there['source']!r} there, {now['source']!r} now, whose files have other names, sizes or times of change"
        )
    if differences:
        raise ValueError(
            f"{str(out)!r} was prepared otherwise: {'; '.join(differences)}. Name another folder, or delete this one."
        )


def _index(root: pathlib.Path, made: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What `index.json` holds, but for the digest."""
    names = [name for entry in entries for name in entry["names"]]
    lengths = [length for entry in entries for length in entry["lengths"]]
    index = {**made, "num_videos": len(names), "num_frames": sum(lengths), "digest": None}
    index["fps"] = sources._common_fps(rate for entry in entries for rate in entry["fps"]) or video_io.DEFAULT_FPS
    for field in sources._LABELS:
        values = [value for entry in entries for value in entry[field]]
        index[f"{field}_names"] = sources._label_names(root, field, names, values)
    return {**index, "shards": entries}


def _labels(index: dict[str, Any]) -> dict[str, Any]:
    labels = {}
    for field in sources._LABELS:
        names = index[f"{field}_names"]
        position = {name: number for number, name in enumerate(names or ())}
        values = [value for entry in index["shards"] for value in entry[field]]
        labels[field] = None if names is None else np.array([position[value] for value in values], np.int32)
        labels[f"{field}_names"] = None if names is None else tuple(names)
    return labels


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        if any(folder.glob("shard-*.json")):
            raise ValueError(f"{str(folder)!r} is not finished. {_AGAIN}")
        raise ValueError(f"{str(folder)!r} has no {INDEX}: give a folder that trainers.prepare_data wrote.")
    index = _read_json(path)
    _check_version(folder, index)
    return index


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(_damaged_index(path.parent, error, path.name)) from None
    return content


def _check_version(folder: pathlib.Path, index: dict[str, Any]) -> None:
    if index.get("version") != VERSION:
        raise ValueError(
            f"{str(folder / INDEX)!r} is of version {index.get('version')}, and this tfvidgen reads version {VERSION}: "
            "prepare the videos again into another folder."
        )


def _damaged_index(folder: pathlib.Path, error: Exception, name: str = INDEX) -> str:
    reason = f"{type(error).__name__}: {error}"
    return f"{str(folder / name)!r} is damaged ({reason}): delete {str(folder)!r} and prepare the videos again."


def _damaged(folder: pathlib.Path, shards: Iterable[Shard]) -> str:
    names = ", ".join(repr(str(folder / shard.file)) for shard in shards)
    return f"Shards are damaged, their SHA-256 is not that of the index: {names}. {_AGAIN}"


def _check_size(folder: pathlib.Path, shard: Shard) -> None:
    path = folder / shard.file
    if not path.is_file():
        raise ValueError(f"The shard {str(path)!r} is missing. {_AGAIN}")
    if path.stat().st_size != shard.num_bytes:
        raise ValueError(
            f"The shard {str(path)!r} is truncated or was changed: it has {path.stat().st_size} bytes, not "
            f"{shard.num_bytes}. {_AGAIN}"
        )


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from preparing into the folder, and removes what unfinished ones left."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process prepares into {str(folder)!r}: wait for it, or stop it.") from None
        _remove_parts(folder)
        try:
            yield
        finally:
            _remove_parts(folder)
    finally:
        os.close(descriptor)


def _remove_parts(folder: pathlib.Path) -> None:
    storage.sweep(folder)
    for part in folder.glob(".*.part"):
        part.unlink()


def _sha256(path: pathlib.Path) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def _record_bytes(size: Sequence[int]) -> int:
    return _FRAME_HEADER + size[0] * size[1] * 3 + _FRAME_FOOTER


def _frames(records: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 bytes of whole records -> (T, H, W, 3)."""
    pixels = records.reshape(-1, _record_bytes(size))[:, _FRAME_HEADER:-_FRAME_FOOTER]
    return np.ascontiguousarray(pixels).reshape(-1, *size, 3)


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
