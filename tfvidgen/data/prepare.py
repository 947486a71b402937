"""Decodes videos once, into the prepared folders that `shards` reads: decoding workers, one writer, locks, checks."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import pathlib
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfvidgen import storage
from tfvidgen.data import codecs, sources, video_io
from tfvidgen.data.contents import file_sha256
from tfvidgen.data.media import MAX_FILE_GIB
from tfvidgen.data.shards import (
    FORMAT,
    INDEX,
    VERSION,
    ShardedVideos,
    is_prepared,
    read_index,
    read_note,
    record_bytes,
)
from tfvidgen.data.sources import Decoded, Decoder, Unit, Unreadable
from tfvidgen.data.videos import LABELS, SPLIT

_HASHES = "hashes.json"  # of the files of the source
_OURS = re.compile(r"shard-\d{8,}\.(tfrecord|json)|index\.json|hashes\.json|\..+\.part")


class Progress(NamedTuple):
    """Progress of a preparation: files decoded or kept, files in total, frames decoded in this call."""

    num_done: int
    num_files: int
    num_frames: int


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
    fps: float | None = None,
    max_file_gib: float = MAX_FILE_GIB,
) -> ShardedVideos:
    """Decodes a folder or file of videos, in any layout that `load_videos` reads, into a prepared folder.

    Worker processes decode, this one writes. A shard gets its final name, with its checksum next to it, once complete; the
    index is written last. Called again, even after a kill, the function keeps every shard with a valid checksum and decodes
    the rest, so it also verifies and repairs a finished folder.

    Args:
        source: Folder or file of videos.
        out: The prepared folder, new or from an earlier call with the same arguments.
        size: (height, width) of a frame in pixels, or one number for both.
        resize: `centre_crop` first crops the largest centred window of the target aspect ratio, `squash` stretches, `pad` adds
            black bars.
        skip_bad: Skip unreadable files with a warning instead of raising.
        num_workers: Decoding processes; 0 for one per core, 1 to decode in this process.
        shard_mb: A shard is closed once it reaches this size in MiB.
        max_frames: Read at most this many frames of each video; None reads all.
        report: Called with the progress after every file.
        fps, max_file_gib: As in `load_videos`.

    Returns:
        The opened folder.

    Raises:
        ValueError: If an argument is out of range, `source` cannot be used or read (see `load_videos`), or `out` contains
            other files, lies inside `source`, is in use by another process or cannot be written.
    """
    size = video_io.check_size(size)
    if size is None:
        raise ValueError("`size` must be given: all prepared frames have one size.")
    video_io.check_resize(resize)
    video_io.check_fps(fps)
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("shard_mb", shard_mb, 1),
        ("max_frames", max_frames, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least}. Received {value}.")
    root, out = sources.existing(source), pathlib.Path(out)
    if is_prepared(root):
        raise ValueError(f"{str(source)!r} is already prepared: give the folder of the videos themselves.")
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{str(out)!r} lies in {str(source)!r}: prepare into a folder outside, where it is no video.")
    made = {
        "format": FORMAT,
        "version": VERSION,
        "source": str(source),
        "source_digest": None,
        "options": {"size": list(size), "resize": resize, "max_frames": max_frames, "fps": fps},
        "codec": "raw RGB, one TFRecord per frame",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            noted = _noted(out)
            _check_options(out, noted, made)
            contents = sources.contents_of(root, out / _HASHES)
            made["source_digest"] = contents.key([sources.DECODING_VERSION])
            _check_source(out, noted, made)
            kept = _kept_shards(out, noted)
            found = sources.find(root)
            if found.unreadable and not skip_bad:
                raise sources.unreadable_error(root, found.unreadable, bool(found.units), skip_bad)
            decode = Decoder(root, found.layout, size, resize, max_frames, fps, max_file_gib)
            workers = num_workers or os.cpu_count() or 1
            entries = _write_shards(out, made, found.units, kept, decode, workers, shard_mb << 20, report)
            skipped = [*found.unreadable, *(bad for entry in entries for bad in entry["skipped"])]
            if skipped and not (skip_bad and any(entry["names"] for entry in entries)):
                raise sources.unreadable_error(root, skipped, bool(found.units), skip_bad)
            contents.require_unchanged()
            index = _index(root, made, entries)
            index["skipped"] = skipped
            index["source_codecs"] = codecs.folder_codecs(root, [name for entry in entries for name in entry["names"]])
            index["digest"] = ShardedVideos.of_index(out, index).digest
            storage.write_json(out / INDEX, index, indent=None)
            files = {entry["file"] for entry in entries}
            for path in [*out.glob("shard-*.json"), *out.glob("shard-*.tfrecord")]:
                if path.name not in files:
                    path.unlink()
    except OSError as error:
        raise ValueError(f"Cannot prepare into {str(out)!r}: {error}. Free the disk or name another folder.") from None
    mixed = sources.mixed_rates_message(rate for entry in entries for rate in entry["fps"])
    for message in (skipped and sources.skipped_message(source, skipped), mixed):
        if message:
            warnings.warn(message, stacklevel=2)
    return ShardedVideos.open(out)


def _write_shards(
    out: pathlib.Path,
    made: dict[str, Any],
    units: Sequence[Unit],
    kept: dict[int, dict[str, Any]],
    decode: Decoder,
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
    """A shard being written, under a hidden name."""

    def __init__(self, out: pathlib.Path, made: dict[str, Any], first_unit: int):
        import tensorflow as tf

        self._out, self._made = out, made
        name = f"shard-{first_unit:08d}.tfrecord"
        self._part = out / f".{name}.part"
        self._writer, self._error = tf.io.TFRecordWriter(os.fsencode(self._part)), tf.errors.OpError
        self.num_bytes = 0
        self._entry = {"file": name, "first_unit": first_unit, "num_units": 0, "names": [], "lengths": [], "fps": []}
        self._entry |= {**{field: [] for field in (*LABELS, SPLIT)}, "video_sha256": "", "skipped": []}

    def add(self, decoded: list[Decoded] | Unreadable) -> int:
        """Writes the videos of a unit, or records why it is unreadable. Returns the number of frames."""
        entry, num_frames = self._entry, 0
        entry["num_units"] += 1
        if isinstance(decoded, Unreadable):
            entry["skipped"].append(decoded)
            return 0
        for video in decoded:
            try:
                for frame in video.frames:
                    self._writer.write(frame.tobytes())
            except self._error as error:
                raise OSError(error.message) from None
            entry["names"].append(video.name)
            entry["lengths"].append(len(video.frames))
            entry["fps"].append(video.fps)
            entry["video_sha256"] += hashlib.sha256(np.ascontiguousarray(video.frames).data).hexdigest()
            for field in (*LABELS, SPLIT):
                entry[field].append(video.labels.get(field))
            num_frames += len(video.frames)
            self.num_bytes += len(video.frames) * record_bytes(video.frames.shape[1:3])
        return num_frames

    def close(self) -> dict[str, Any]:
        """Renames the shard to its final name and writes its metadata next to it."""
        try:
            self._writer.close()
        except self._error as error:
            raise OSError(error.message) from None
        entry = {**self._entry, "num_bytes": self.num_bytes, "sha256": file_sha256(self._part)}
        path = self._out / entry["file"]
        os.replace(self._part, path)
        storage.write_json(path.with_suffix(".json"), {**self._made, "shard": entry}, indent=None)
        return entry


def _decoded(decode: Decoder, units: Sequence[Unit], num_workers: int) -> Iterator:
    """Yields decode(unit) in order, computed by worker processes with bounded read-ahead."""
    num_workers = min(num_workers, len(units))
    if num_workers <= 1:
        yield from map(decode, units)
        return
    # Processes, because per-frame Python code holds the GIL; spawned, because TensorFlow is not fork-safe.
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
    """Processes started inside ignore Ctrl-C, which a terminal sends to the whole group: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exits with the parent: the pipe on which a worker waits stays open when its parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _noted(out: pathlib.Path) -> list[dict[str, Any]]:
    """The index and the notes on shards of earlier calls. Raises ValueError if `out` contains other files or is of version 1."""
    strangers = sorted(name for name in os.listdir(out) if not _OURS.fullmatch(name))
    if strangers:
        raise ValueError(
            f"{str(out)!r} holds other files, such as {strangers[0]!r}: prepare into a new or empty folder."
        )
    noted = [read_index(out)] if (out / INDEX).exists() else []
    noted += [read_note(path) for path in sorted(out.glob("shard-*.json"))]
    if any(there["version"] != VERSION for there in noted):
        raise ValueError(
            f"{str(out)!r} was prepared by an earlier version, which did not record the contents of its source. It can be read, "
            "but not gone on with or mended: name another folder, or delete this one."
        )
    return noted


def _kept_shards(out: pathlib.Path, noted: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Entries of intact shards from earlier calls, by first unit."""
    entries = [entry for there in noted for entry in there.get("shards", [there.get("shard")])]
    return {entry["first_unit"]: entry for entry in entries if _is_whole(out / entry["file"], entry)}


def _is_whole(path: pathlib.Path, entry: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["num_bytes"] and file_sha256(path) == entry["sha256"]


def _check_options(out: pathlib.Path, noted: list[dict[str, Any]], now: dict[str, Any]) -> None:
    for there in noted:
        differences = [
            f"{name}={there['options'].get(name)} there, {value} now"
            for name, value in now["options"].items()
            if there["options"].get(name) != value
        ]
        if differences:
            raise _otherwise(out, differences)


def _check_source(out: pathlib.Path, noted: list[dict[str, Any]], now: dict[str, Any]) -> None:
    for there in noted:
        if there["source_digest"] != now["source_digest"]:
            what = "whose files have other names or contents, or are decoded otherwise by this version"
            raise _otherwise(out, [f"{there['source']!r} there, {now['source']!r} now, {what}"])


def _otherwise(out: pathlib.Path, differences: list[str]) -> ValueError:
    return ValueError(
        f"{str(out)!r} was prepared otherwise: {'; '.join(differences)}. Name another folder, or delete this one."
    )


def _index(root: pathlib.Path, made: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `index.json`, except the digest."""
    names = [name for entry in entries for name in entry["names"]]
    lengths = [length for entry in entries for length in entry["lengths"]]
    index = {**made, "num_videos": len(names), "num_frames": sum(lengths), "digest": None}
    rates = [rate for entry in entries for rate in entry["fps"]]
    labels = {field: [value for entry in entries for value in entry[field]] for field in LABELS}
    return {**index, **sources.common_facts(root, names, rates, labels), "shards": entries}


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from preparing into the folder, and removes leftovers of unfinished ones."""
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
