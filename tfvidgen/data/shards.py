"""Videos decoded once into shards (by `prepare`), for training on datasets larger than memory.

A prepared folder holds `shard-<position of its first file>.tfrecord` and, written last, `index.json`: source and options,
names, lengths and labels, the SHA-256 of every shard and of the pixels of every video, and the digest of the whole.

A shard is a TFRecord file with one record per frame: its raw RGB bytes. All records of a set have the same length, so a
frame's offset is computed, and `TFRecordDatasetV2` reads from a byte offset: graph ops read any clip of any video and nothing
else, and check the CRC-32C of every frame. Batches therefore equal those from memory, bit for bit and in the same order,
without a shuffle buffer.

Frames are not compressed. Measured on 64x64 frames, one core: PNG takes 0.55 of the bytes on filmed clips and 0.24 on
drawn ones, but 0.06 to 0.1 ms more per frame to decode, several times the cost of locating and reading the raw frame
(0.02 ms); and records of equal length need no offset table.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfvidgen.data import codecs, video_io
from tfvidgen.data.collection import VideoCollection, empty_frames
from tfvidgen.data.contents import file_sha256
from tfvidgen.data.videos import LABELS, SPLIT, Videos, held_out

INDEX = "index.json"
FORMAT = "tfvidgen shards"
VERSION = 2
READABLE_VERSIONS = (
    1,
    2,
)  # 1 has no digests of single videos, and identifies its source by names, sizes and times of files

_BLOCK_BYTES = 1 << 20  # read at a time where all videos are loaded
_FRAME_HEADER, _FRAME_FOOTER = 12, 4  # TFRecord: uint64 length, its CRC, the data, their CRC
_AGAIN = "Run trainers.prepare_data again with the same arguments: only what is damaged or missing is decoded again."


class Shard(NamedTuple):
    """A file of frames: its name in the folder, size in bytes, and SHA-256."""

    file: str
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShardedVideos(Videos):
    """Metadata of prepared videos, whose pixels stay on disk; usable in place of a `VideoCollection`.

    Attributes:
        folder: The prepared folder.
        size: Height and width of a frame.
        resize: How frames of other sizes were resized.
        shards: The files.
        shard: int64 (N,), position in `shards` of the file that holds each video.
        first_byte: int64 (N,), byte offset of the video in that file.
        lengths: int64 (N,), frames of each video.
        names, identity, action, identity_names, action_names, fps, source, mirrored, held_out: As in `Videos`.
        codecs: Codecs of the source videos, from `codecs.folder_codecs`; unknown for folders prepared before these were
            recorded.
        asked_fps: Frames per second that the videos were resampled to; None if all frames were kept.
        skipped: As in `Videos`.
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
    codecs: dict[str, str]
    asked_fps: float | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    mirrored: np.ndarray | None = None
    held_out: np.ndarray | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike) -> ShardedVideos:
        """Reads the index of a prepared folder and checks that every shard exists with the right size.

        Raises:
            ValueError: If the folder is not a prepared folder, is unfinished or of another format version, or a shard is
                missing, truncated or too long. Other damage is detected by `verify`, by `collection` and when frames are
                read.
        """
        folder = pathlib.Path(folder)
        index = read_index(folder)
        try:
            videos = cls.of_index(folder, index)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(_damaged_index(folder, error)) from None
        for shard in videos.shards:
            _check_size(folder, shard)
        return videos

    @classmethod
    def of_index(cls, folder: pathlib.Path, index: dict[str, Any]) -> ShardedVideos:
        """Builds the object from an index, unchecked. Raises KeyError, TypeError or ValueError if it is damaged."""
        entries = index["shards"]
        lengths = [np.array(entry["lengths"], np.int64) for entry in entries]
        frame_bytes = record_bytes(index["options"]["size"])
        opened = cls(
            folder=folder,
            size=tuple(index["options"]["size"]),
            resize=index["options"]["resize"],
            shards=tuple(Shard(entry["file"], entry["num_bytes"], entry["sha256"]) for entry in entries),
            shard=np.repeat(np.arange(len(entries)), [len(each) for each in lengths]),
            first_byte=np.concatenate([frame_bytes * (np.cumsum(each) - each) for each in lengths]),
            lengths=np.concatenate(lengths),
            names=tuple(name for entry in entries for name in entry["names"]),
            fps=index["fps"],
            source=str(folder),
            codecs=index.get("source_codecs") or {"codec": codecs.UNKNOWN_CODEC},
            asked_fps=index["options"].get("fps"),
            skipped=tuple((path, reason) for path, reason in index.get("skipped", ())),
            **_labels(index),
        )
        if index["version"] == 1:
            opened.__dict__["_digest_1"] = index["digest"]
            return opened
        digests = np.frombuffer(bytes.fromhex("".join(entry["video_sha256"] for entry in entries)), np.uint8)
        digests = digests.reshape(len(opened), -1)
        return opened._with_digests(lambda: digests)

    def _stored(self, index: int, start: int, stop: int) -> np.ndarray:
        path = self.folder / self.shards[self.shard[index]].file
        first, num_bytes = int(self.first_byte[index]) + start * self.record_bytes, (stop - start) * self.record_bytes
        content = np.fromfile(path, np.uint8, num_bytes, offset=first)
        if len(content) < num_bytes:
            raise ValueError(f"The shard {str(path)!r} is truncated. {_AGAIN}")
        return _frames(content, self.size)

    @property
    def record_bytes(self) -> int:
        """Bytes per frame in a shard."""
        return record_bytes(self.size)

    def _located(self, indices: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
        return {"shard": self.shard[indices], "first_byte": self.first_byte[indices] + starts * self.record_bytes}

    def collection(self) -> VideoCollection:
        """Loads everything into memory, verifying the SHA-256 of every shard. Raises ValueError."""
        frames = empty_frames((self.num_frames, *self.size, 3))
        first_frame = np.cumsum(self.lengths) - self.lengths
        block = max(1, _BLOCK_BYTES // self.record_bytes)  # frames, so that no shard or film is in memory beside them
        for position in np.unique(self.shard):
            shard = self.shards[position]
            if file_sha256(self.folder / shard.file) != shard.sha256:
                raise ValueError(_damaged(self.folder, [shard]))
            for index in np.flatnonzero(self.shard == position):
                begin, length = int(first_frame[index]), int(self.lengths[index])
                for start in range(0, length, block):
                    stop = min(start + block, length)
                    frames[begin + start : begin + stop] = self._stored(index, start, stop)
        loaded = VideoCollection(
            frames,
            self.lengths,
            self.names,
            self.identity,
            self.action,
            self.identity_names,
            self.action_names,
            self.fps,
            self.source,
            skipped=self.skipped,
            mirrored=self.mirrored,
            held_out=self.held_out,
        )
        return loaded._with_digests(lambda: self.video_digests) if self._digests_are_known else loaded

    def verify(self) -> None:
        """Verifies the SHA-256 of every shard. Raises ValueError naming all that differ."""
        damaged = [shard for shard in self.shards if file_sha256(self.folder / shard.file) != shard.sha256]
        if damaged:
            raise ValueError(_damaged(self.folder, damaged))

    def require(self, size: int | tuple[int, int] | None, resize: str, fps: float | None = None) -> None:
        """Raises ValueError if the videos were prepared with another size, resize mode or, if one is asked for, frame rate."""
        size = video_io.check_size(size)
        video_io.check_resize(resize)
        if fps is not None and fps != self.asked_fps:
            there = "all frames of its files" if self.asked_fps is None else f"fps={self.asked_fps:g}"
            raise ValueError(
                f"{str(self.folder)!r} was prepared with {there}, and fps={fps:g} is asked for. Ask for what is there, or "
                "prepare the videos again into another folder."
            )
        if size is not None and (size, resize) != (self.size, self.resize):
            raise ValueError(
                f"{str(self.folder)!r} was prepared with frames of {_by(self.size)} (height x width) and "
                f"resize={self.resize}, and {_by(size)} with resize={resize} is asked for. Ask for what is there, or "
                "prepare the videos again into another folder."
            )


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether a folder was written by `prepare.prepare_shards`, finished or not."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        return False
    try:
        with open(folder / INDEX, encoding="utf-8", errors="replace") as file:
            return FORMAT in file.read(64)
    except FileNotFoundError:
        return any(folder.glob("shard-*.json"))


def _labels(index: dict[str, Any]) -> dict[str, Any]:
    labels = {}
    for field in LABELS:
        names = index[f"{field}_names"]
        position = {name: number for number, name in enumerate(names or ())}
        values = [value for entry in index["shards"] for value in entry[field]]
        labels[field] = None if names is None else np.array([position[value] for value in values], np.int32)
        labels[f"{field}_names"] = None if names is None else tuple(names)
    labels["held_out"] = held_out([side for entry in index["shards"] for side in entry.get(SPLIT, [None])])
    return labels


def read_index(folder: pathlib.Path) -> dict[str, Any]:
    """The index of a prepared folder. Raises ValueError if it is missing, damaged or of another version."""
    if not (folder / INDEX).is_file():
        if any(folder.glob("shard-*.json")):
            raise ValueError(f"{str(folder)!r} is not finished. {_AGAIN}")
        raise ValueError(f"{str(folder)!r} has no {INDEX}: give a folder that trainers.prepare_data wrote.")
    return read_note(folder / INDEX)


def read_note(path: pathlib.Path) -> dict[str, Any]:
    """The index, or an unfinished preparation's note on a shard. Raises ValueError if damaged or of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(_damaged_index(path.parent, error, path.name)) from None
    if content.get("version") not in READABLE_VERSIONS:
        raise ValueError(
            f"{str(path)!r} is of version {content.get('version')}, and this tfvidgen reads versions "
            f"{' and '.join(map(str, READABLE_VERSIONS))}: prepare the videos again into another folder."
        )
    return content


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


def record_bytes(size: Sequence[int]) -> int:
    """Bytes of a frame's record; `size` is (height, width)."""
    return _FRAME_HEADER + size[0] * size[1] * 3 + _FRAME_FOOTER


def _frames(records: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 bytes of complete records -> (T, H, W, 3)."""
    pixels = records.reshape(-1, record_bytes(size))[:, _FRAME_HEADER:-_FRAME_FOOTER]
    return np.ascontiguousarray(pixels).reshape(-1, *size, 3)


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
