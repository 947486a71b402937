"""Reads folders and files of videos, in any common layout, into one collection.

| layout | a video is | flat | in classes |
| --- | --- | --- | --- |
| strips | an image, its square frames side by side along the longer edge | `clip.png` | `walk/clip.png` |
| videos | an MP4, AVI, WebM, MKV, MOV, ..., GIF, animated WebP or PNG | `clip.mp4` | `walk/clip.mp4` |
| frames | a folder of images of one size | `clip/001.png`, or the folder itself | `walk/clip/001.png` |
| arrays | `.npy` or `.npz`, uint8 (T, H, W, 3) or (N, T, H, W, 3) | `clips.npz` | `walk/clips.npy` |

The layout is detected from file contents, never from names. Actions come from class folders, identities and actions from folders
`identity/action/clip`, from a table `labels.csv` at the top (see `labels.read`), which wins, or from the keys `identity`, `action`
(or `label`) next to `video` (or `videos`) in an `.npz`. A folder written by `prepare.prepare_shards` is recognised by its index
and read without decoding.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfvidgen import storage
from tfvidgen.data import arrays, labels, pictures, video_io
from tfvidgen.data.collection import FrameStore, VideoCollection, drained
from tfvidgen.data.contents import Contents, read_contents
from tfvidgen.data.media import (
    DEFAULT_FPS,
    MAX_FILE_GIB,
    Media,
    UnreadableFileError,
    dangling_link,
    explained,
    sniff,
    special_kind,
)
from tfvidgen.data.shards import ShardedVideos, is_prepared
from tfvidgen.data.videos import LABELS, SPLIT, Videos, held_out

MIN_STRIP_RATIO = 2  # longer edge over shorter: images at or above this are strips, others are frames

MIXED_RATES = 1.05  # fastest over slowest frame rate: at or above this, motions visibly differ in speed

_MAX_LISTED = 20
_MAX_DEPTH = 4  # folder levels searched below the given one
DECODING_VERSION = 2  # increment when the same files would decode to different pixels
_NO_MEDIA = "it holds neither video nor picture nor array"
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
}
_NOT_TEXT = "its name is no UTF-8 text: rename it"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# The suffix never decides how a file is read; but a file named like a video that contains none is broken, not irrelevant.
_MEDIA_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .3gp .avi .mkv .webm .mpg .mpeg .vob .m2v .ts .mts .m2ts .wmv .flv .ogv "
    ".gif .webp .png .apng .jpg .jpeg .bmp .tif .tiff .avif .heic .npy .npz".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class SourceReport:
    """The contents of a folder or file.

    Attributes:
        source: The path that was scanned, or a dataset's name.
        layout: strips, videos, frames or arrays.
        names: One name per readable video.
        lengths: int64 (N,), counted frames of each.
        sizes: int64 (N, 2), height and width of each in pixels.
        fps: The most common frame rate; None if no file specifies one.
        rates: float64 (N,), the frame rate of each; NaN if its file specifies none.
        classes: Action -> number of videos, from folders, `labels.csv` or labels in arrays; empty if none is given.
        identities: Identity -> number of videos, from the same; empty if not given.
        labelled_by: Where folders or a table give labels: `labels.csv`, `folders action`, `folders identity/action`; else empty.
        num_held_out: Number of videos that `labels.csv` holds out.
        ignored: Hidden files, FIFOs, sockets and devices, and files that are neither images, videos nor arrays.
        unreadable: (path, reason) of each file that should contain a video but cannot be read.
    """

    source: str
    layout: str
    names: tuple[str, ...]
    lengths: np.ndarray
    sizes: np.ndarray
    fps: float | None
    rates: np.ndarray
    classes: dict[str, int]
    identities: dict[str, int]
    ignored: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]
    labelled_by: str = ""
    num_held_out: int = 0

    @classmethod
    def of_videos(cls, videos: Videos, layout: str) -> SourceReport:
        """The report of videos already loaded or prepared; no files are read."""

        def counts(field: str) -> dict[str, int]:
            names = getattr(videos, f"{field}_names") or ()
            return {name: int((getattr(videos, field) == index).sum()) for index, name in enumerate(names)}

        return cls(
            source=videos.source,
            layout=layout,
            names=videos.names,
            lengths=videos.lengths,
            sizes=np.tile(np.array(videos.size, np.int64), (len(videos), 1)),
            fps=videos.fps,
            rates=np.full(len(videos), videos.fps),
            classes=counts("action"),
            identities=counts("identity"),
            ignored=(),
            unreadable=(),
            num_held_out=0 if videos.held_out is None else int(videos.held_out.sum()),
        )

    @property
    def num_videos(self) -> int:
        return len(self.names)

    @property
    def num_frames(self) -> int:
        """Total number of frames."""
        return int(self.lengths.sum())

    def to_text(self) -> str:
        """The report as lines of `name  value`."""
        rows = [("source", self.source), ("layout", self.layout), ("videos", f"{self.num_videos:,}")]
        if self.num_videos:
            low, middle, high = self.lengths.min(), np.median(self.lengths), self.lengths.max()
            rows.append(("frames", f"{self.num_frames:,} in all; per video {low} to {high}, median {middle:g}"))
            sizes = collections.Counter(f"{height}x{width}" for height, width in self.sizes.tolist())
            rows.append(("height x width", _counted(sizes)))
            rows += self._rate_rows()
        for name, counts in (("classes", self.classes), ("identities", self.identities)):
            rows.append((name, f"{len(counts)}: {_counted(counts)}" if counts else "none"))
        if self.labelled_by:
            rows.append(("labels from", self.labelled_by))
        if self.num_held_out:
            rows.append(("held out", f"{self.num_held_out} videos, by {labels.NAME}"))
        rows.append(("ignored files", _listed(self.ignored, 5, "; ") if self.ignored else "none"))
        rows.append(("unreadable files", str(len(self.unreadable) or "none")))
        rows += [("", f"{path}: {reason}") for path, reason in self.unreadable[:_MAX_LISTED]]
        if len(self.unreadable) > _MAX_LISTED:
            rows.append(("", f"and {len(self.unreadable) - _MAX_LISTED} more"))
        return "\n".join(f"{name:<18}{value}" for name, value in rows)

    def _rate_rows(self) -> list[tuple[str, str]]:
        rates = self.rates[~np.isnan(self.rates)]
        counts = collections.Counter(f"{rate:g}" for rate in sorted(rates))
        if len(counts) < 2:
            return [("frames per second", "not said" if self.fps is None else f"{self.fps:g}")]
        rows = [("frames per second", f"{rates.min():g} to {rates.max():g}: {_counted(counts)}")]
        return rows + [("", warning) for warning in [mixed_rates_message(rates)] if warning]

    __str__ = to_text


class Unreadable(NamedTuple):
    """An unreadable file: its path below the folder, and the reason."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Unit:
    """The files of one video (or, for arrays, of one or more); `labels` has any of identity, action and split."""

    name: str
    paths: tuple[pathlib.Path, ...]
    labels: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Found:
    """The contents of a folder or file, detected from the first bytes of its files; `units` are to be decoded."""

    layout: str
    units: tuple[Unit, ...]
    ignored: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]
    labelled_by: str = ""  # as in `SourceReport`


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A decoded video: uint8 (T, H, W, 3), its frame rate if the file specifies one, and the names of its labels."""

    name: str
    frames: np.ndarray
    fps: float | None
    labels: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes units of a folder, in threads or processes: it and its results can be pickled.

    Attributes:
        root: The folder or file.
        layout: As in `Found`.
        size: (height, width) of a frame in pixels; None keeps the files' own.
        resize: `centre_crop`, `squash` or `pad`.
        max_frames: Read at most this many frames of each video; None reads all.
        fps: Frames per second to resample to; None keeps all frames.
        max_file_gib: Refuse a file whose header declares more than this many GiB of pixels.
    """

    root: pathlib.Path
    layout: str
    size: tuple[int, int] | None
    resize: str
    max_frames: int | None
    fps: float | None = None
    max_file_gib: float = MAX_FILE_GIB

    def __post_init__(self):
        if self.fps is not None and self.layout in ("strips", "frames", "arrays"):
            raise ValueError(
                f"`fps` (--fps) resamples videos by their time stamps, and {str(self.root)!r} holds {self.layout}, which have "
                "none: leave it out, or make video files of them."
            )

    def __call__(self, unit: Unit) -> list[Decoded] | Unreadable:
        """The videos of a unit, or why it is unreadable."""
        try:
            return self._decoded(unit)
        except UnreadableFileError as error:
            return Unreadable(_relative(error.path, self.root), error.reason)

    def _decoded(self, unit: Unit) -> list[Decoded]:
        size, resize, limit = self.size, self.resize, self.max_file_gib
        if self.layout == "videos":
            frames, fps = video_io.read_video(unit.paths[0], size, self.max_frames, resize, self.fps, limit)
            return [Decoded(unit.name, frames, fps, unit.labels)]
        if self.layout == "arrays":
            return _read_arrays(unit, size, resize, self.max_frames, limit)
        if self.layout == "strips":
            frames = video_io.read_strip(unit.paths[0], max_file_gib=limit)[: self.max_frames]
            return [Decoded(unit.name, video_io.resize_video(frames, size, resize), None, unit.labels)]
        return [Decoded(unit.name, _read_frames(unit.paths[: self.max_frames], size, resize, limit), None, unit.labels)]

    def measure(self, unit: Unit) -> list[Measure] | Unreadable:
        """Length, size and rate of the videos of a unit, or why it is unreadable; no pixels are kept."""
        if self.layout == "videos":
            try:
                info = video_io.probe_video(unit.paths[0], self.fps, self.max_file_gib)
            except UnreadableFileError as error:
                return Unreadable(_relative(error.path, self.root), error.reason)
            return [Measure(unit.name, info.num_frames, (info.height, info.width), info.fps, unit.labels)]
        videos = dataclasses.replace(self, size=None, max_frames=None)(unit)
        if isinstance(videos, Unreadable):
            return videos
        return [Measure(each.name, len(each.frames), each.frames.shape[1:3], each.fps, each.labels) for each in videos]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A video's name, number of frames, (height, width) in pixels, frame rate if its file specifies one, and labels."""

    name: str
    length: int
    size: tuple[int, int]
    fps: float | None
    labels: dict[str, str]


def scan(path: str | os.PathLike, fps: float | None = None, max_file_gib: float = MAX_FILE_GIB) -> SourceReport:
    """Reads every file once and reports its contents, without keeping pixels.

    Args:
        path: Folder or file.
        fps: Report videos as they are when resampled to this many frames per second; None reports the files' own.
        max_file_gib: As in `load_videos`.

    Returns:
        The report, including unreadable files.

    Raises:
        ValueError: If the path is missing, holds no videos, or holds several layouts at once.
    """
    video_io.check_fps(fps)
    root = existing(path)
    if is_prepared(root):
        videos = ShardedVideos.open(root)
        return SourceReport.of_videos(videos, f"prepared ({len(videos.shards)} shards)")
    found = find(root)
    measures, unreadable = [], list(found.unreadable)
    measure = Decoder(root, found.layout, None, "squash", None, fps, max_file_gib).measure
    for _, measured in _in_order(measure, found.units):
        if isinstance(measured, Unreadable):
            unreadable.append(measured)
        else:
            measures += measured

    def counts(field: str) -> dict[str, int]:
        values = collections.Counter(measure.labels[field] for measure in measures if field in measure.labels)
        return {value: values[value] for value in sorted(values, key=_natural)}

    return SourceReport(
        source=str(path),
        layout=found.layout,
        names=tuple(measure.name for measure in measures),
        lengths=np.array([measure.length for measure in measures], np.int64),
        sizes=np.array([measure.size for measure in measures], np.int64).reshape(-1, 2),
        fps=_common_fps(measure.fps for measure in measures),
        rates=np.array([measure.fps or np.nan for measure in measures], np.float64),
        classes=counts("action"),
        identities=counts("identity"),
        ignored=found.ignored,
        unreadable=tuple(unreadable),
        labelled_by=found.labelled_by,
        num_held_out=sum(measure.labels.get(SPLIT) == "held_out" for measure in measures),
    )


def load_videos(
    path: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    resize: str = "centre_crop",
    skip_bad: bool = False,
    cache_dir: str | os.PathLike | None = None,
    max_videos: int | None = None,
    max_frames: int | None = None,
    fps: float | None = None,
    max_file_gib: float = MAX_FILE_GIB,
) -> VideoCollection:
    """Reads a folder or file of videos, in any layout listed in the module docstring.

    Args:
        path: Folder or file.
        size: (height, width) in pixels to resize frames to, or one number for both; None keeps them, if they agree.
        resize: `centre_crop` first crops the largest centred window of the target aspect ratio, `squash` stretches, `pad` adds
            black bars.
        skip_bad: Skip unreadable files with a warning instead of raising.
        cache_dir: Folder for caching decoded frames. Later calls with files of the same names and contents, wherever they lie,
            and the same arguments memory-map them instead of decoding. None disables caching.
        max_videos: Read only the first videos, in order of names; None reads all.
        max_frames: Read at most this many frames of each video; None reads all.
        fps: Frames per second to resample video files to by their time stamps, so that a motion has one speed. None keeps
            all frames, and warns if rates differ.
        max_file_gib: A file whose header declares more than this many GiB of pixels is unreadable.

    Returns:
        Videos in natural order of their names (`clip2` before `clip10`), which are their paths below `path`; `skipped` lists
        what `skip_bad` left out.

    Raises:
        ValueError: If the path is missing or contains no videos or several layouts; if files are unreadable and `skip_bad`
            is false (one error lists all); if frame sizes differ and `size` is None; if `fps` is given for files that have
            no frame rate.
    """
    size = video_io.check_size(size)
    video_io.check_resize(resize)
    video_io.check_fps(fps)
    for name, limit in (("max_videos", max_videos), ("max_frames", max_frames)):
        if limit is not None and limit < 1:
            raise ValueError(f"`{name}` must be at least 1, or None for all. Received {limit}.")
    root = existing(path)
    if is_prepared(root):
        return _load_prepared(root, size, resize, max_videos, max_frames, fps)

    def decoded(store: FrameStore | storage.ArrayWriter) -> dict:
        return _decode_all(root, store, size, resize, skip_bad, max_videos, max_frames, fps, max_file_gib)

    if cache_dir is None:
        store = FrameStore()
        index = decoded(store)
        frames = store.array()
    else:
        place = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()
        contents = contents_of(root, pathlib.Path(cache_dir) / "hashes" / f"{place[:32]}.json")
        key = contents.key([DECODING_VERSION, size, resize, skip_bad, max_videos, max_frames, fps, max_file_gib])
        frames, index = _cached(pathlib.Path(cache_dir) / key, decoded, contents)
    skipped = tuple(Unreadable(*each) for each in index["skipped"])
    for message in (skipped and skipped_message(path, skipped), index["mixed_rates"]):
        if message:
            warnings.warn(message, stacklevel=2)
    numbers = {field: index[field] and np.array(index[field], np.int32) for field in LABELS}
    label_names = {f"{field}_names": index[f"{field}_names"] and tuple(index[f"{field}_names"]) for field in LABELS}
    return VideoCollection(
        frames=frames,
        lengths=np.array(index["lengths"], np.int64),
        names=tuple(index["names"]),
        fps=index["fps"],
        source=str(path),
        skipped=skipped,
        held_out=held_out(index[SPLIT]),
        **numbers,
        **label_names,
    )


def _load_prepared(
    folder: pathlib.Path,
    size: tuple[int, int] | None,
    resize: str,
    max_videos: int | None,
    max_frames: int | None,
    fps: float | None,
) -> VideoCollection:
    videos = ShardedVideos.open(folder)
    videos.require(size, resize, fps)
    if max_videos is not None and max_videos < len(videos):
        videos = videos.subset(np.arange(max_videos))
    if max_frames is not None:
        videos = dataclasses.replace(videos, lengths=np.minimum(videos.lengths, max_frames))
    return videos.collection()


def _decode_all(root, store, size, resize, skip_bad, max_videos, max_frames, fps, max_file_gib) -> dict:
    """Adds frames to `store` and returns the rest of a collection as JSON-serialisable values."""
    found = find(root)
    unreadable = list(found.unreadable)
    names, lengths, rates, first_size = [], [], [], None
    values: dict[str, list[str | None]] = {field: [] for field in (*LABELS, SPLIT)}
    decode = Decoder(root, found.layout, size, resize, max_frames, fps, max_file_gib)
    for _, decoded in _in_order(decode, found.units[:max_videos]):
        if isinstance(decoded, Unreadable):
            unreadable.append(decoded)
            continue
        if unreadable and not skip_bad:
            continue  # the error below lists every bad file; decoded videos are no longer needed
        for video in decoded[: None if max_videos is None else max_videos - len(names)]:
            first_size = first_size or video.frames.shape[1:3]
            if video.frames.shape[1:3] != first_size:
                raise ValueError(
                    f"Frames in {str(root)!r} differ in size (height x width): {names[0]!r} has {_by(first_size)}, "
                    f"{video.name!r} has {_by(video.frames.shape[1:3])}. Give a size to bring all to: `size` or --size."
                )
            for part in drained(video.frames):  # not twice in memory, however few the videos are
                store.add(part)
            names.append(video.name)
            lengths.append(len(video.frames))
            rates.append(video.fps)
            for field, column in values.items():
                column.append(video.labels.get(field))
    if unreadable and not (skip_bad and names):
        raise unreadable_error(root, unreadable, bool(found.units), skip_bad)
    index = {"names": names, "lengths": lengths, "skipped": unreadable, **common_facts(root, names, rates, values)}
    index["mixed_rates"] = mixed_rates_message(rates)
    for field in LABELS:
        label_names = index[f"{field}_names"]
        index[field] = label_names and [label_names.index(value) for value in values[field]]
    return {**index, SPLIT: values[SPLIT]}


def unreadable_error(root: pathlib.Path, unreadable: Sequence[Unreadable], others: bool, skip_bad: bool) -> ValueError:
    """One error that lists all unreadable files; `others`: whether there are any other files."""
    return ValueError(
        f"{len(unreadable)} files of {str(root)!r} cannot be read"
        + (":\n  " if others else ", and no other holds a video:\n  ")
        + _listed([f"{file}: {reason}" for file, reason in unreadable], _MAX_LISTED, "\n  ")
        + ("" if skip_bad else "\nMend or remove them, or leave them out with `skip_bad=True` or --skip_bad.")
    )


def skipped_message(path: str | os.PathLike, unreadable: Sequence[Unreadable]) -> str:
    """The warning about skipped unreadable files."""
    listed = _listed([f"{file}: {reason}" for file, reason in unreadable], _MAX_LISTED, "; ")
    return f"Skipped {len(unreadable)} unreadable files of {str(path)!r}: {listed}"


def mixed_rates_message(rates: Iterable[float | None]) -> str:
    """A warning if frame rates, where they are known, differ so much that motions do in speed; otherwise empty."""
    known = [rate for rate in rates if rate]
    if not known or max(known) < MIXED_RATES * min(known):
        return ""
    return (
        f"Frame rates differ, from {min(known):g} to {max(known):g} per second, so that the same motion has different speeds: "
        f"--fps={_common_fps(known):g} (`fps`) brings all to one by their time stamps."
    )


def common_facts(
    root: pathlib.Path,
    names: Sequence[str],
    rates: Iterable[float | None],
    labels: Mapping[str, Sequence[str | None]],
) -> dict[str, Any]:
    """Metadata of the whole collection: `fps`, `identity_names` and `action_names` (in natural order, or None).

    Args:
        root: Folder or file, for messages.
        names: Names of the videos.
        rates: Frame rate of each video, None if its file does not specify one.
        labels: The label of each video for each field of LABELS, or None.

    Raises:
        ValueError: If only some of the videos have a label.
    """
    facts = {"fps": _common_fps(rates) or DEFAULT_FPS}
    for field in LABELS:
        values = labels[field]
        present = {value for value in values if value is not None}
        if present and None in values:
            raise ValueError(
                f"Some videos of {str(root)!r} have `{field}` and some have not, such as "
                f"{names[values.index(None)]!r}: give it to all or to none."
            )
        facts[f"{field}_names"] = sorted(present, key=_natural) or None
    return facts


# ---- finding --------------------------------------------------------------------------------------------------------


def existing(path: str | os.PathLike) -> pathlib.Path:
    """The path. Raises ValueError if it does not exist, or is a FIFO, socket or device."""
    root = pathlib.Path(path)
    if kind := special_kind(root):
        raise ValueError(f"{str(path)!r} is {kind}: give a folder or file of videos.")
    if link := dangling_link(root):
        raise ValueError(f"No file or folder {str(path)!r}: {link}.")
    if not root.exists():
        raise ValueError(f"No file or folder {str(path)!r}: check the path, or mount what it lies on.")
    return root


def find(root: pathlib.Path) -> Found:
    """Inspects every file and determines the layout. Raises ValueError if there is none, or more than one."""
    files, others, unreadable = _files(root)
    media: dict[pathlib.Path, Media] = {}
    ignored = list(others)
    for file, sniffed in _in_order(lambda file: _attempt(sniff, file), files):
        # a link that leads nowhere may have led to a video, or to a folder of frames
        claims = file.suffix.lower() in _MEDIA_SUFFIXES or file == root or bool(dangling_link(file))
        if isinstance(sniffed, Media) and sniffed.kind != "other":
            if _is_text(_name(file, root)):
                media[file] = sniffed
            else:
                unreadable.append((file, _NOT_TEXT))
        elif claims:
            reason = f"it is {archive}: unpack it" if (archive := _archive(file)) else _NO_MEDIA
            unreadable.append((file, getattr(sniffed, "reason", reason)))
        else:
            archive = _archive(file)
            ignored.append(_relative(file, root) + (f" ({archive}: unpack it)" if archive else ""))

    folders = collections.defaultdict(list)
    for file in media:
        folders[file.parent].append(file)
    seen = collections.defaultdict(list)  # (layout, folders below root) -> folders
    for folder, content in folders.items():
        depth = len(folder.parts) - len(root.parts)
        for layout in sorted({_layout(media[file], file == root) for file in content}):
            seen[layout, depth].append(folder)
    if len(seen) > 1:
        raise ValueError(_mixed(root, seen, folders, media))
    listed = tuple(Unreadable(_relative(file, root), reason) for file, reason in unreadable)
    if not seen:
        if not unreadable:
            what = f"{len(ignored)} other files, such as {ignored[0]}" if ignored else "no file at all"
            raise ValueError(
                f"No videos in {str(root)!r}: saw {what} (looked {_MAX_DEPTH} folders deep). Expected video files, "
                "strips, folders of frames, or .npy/.npz arrays, directly or in class folders."
            )
        return Found("none", (), tuple(ignored), listed)
    (layout, depth), parents = next(iter(seen.items()))
    deepest = 3 if layout == "frames" else 2  # identity/action/clip
    if depth > deepest:
        inner = parents[0]
        for _ in range(deepest):
            inner = inner.parent
        raise ValueError(
            f"The {layout} in {str(root)!r} lie too many folders deep, in {_relative(parents[0], root)!r}. "
            f"Give the folder that holds the classes, such as {str(inner)!r}."
        )

    units = []
    for folder in parents:
        if layout == "frames":
            broken = any(file.parent == folder for file, _ in unreadable)
            if not broken:  # a video with an unreadable frame is unusable
                name = _relative(folder, root)
                frames = tuple(_in_order_of_numbers(folders[folder]))
                units.append(Unit(name, frames, _labels_of(folder.parent, depth - 1)))
        else:
            units += [Unit(_relative(file, root), (file,), _labels_of(folder, depth)) for file in folders[folder]]
    labelled_by = ("", "folders action", "folders identity/action")[max(0, depth - (layout == "frames"))]
    table = root / labels.NAME
    if root.is_dir() and table.is_file():
        rows = labels.read(table)
        labels.require_all(table, rows, [unit.name for unit in units], [file for file, _ in listed])
        units = [dataclasses.replace(unit, labels={**unit.labels, **rows[unit.name]}) for unit in units]
        ignored.remove(labels.NAME)
        labelled_by = " and ".join(filter(None, (labels.NAME, labelled_by)))
    return Found(layout, tuple(units), tuple(ignored), listed, labelled_by)


def _archive(file: pathlib.Path) -> str:
    """What kind of archive a file is, or an empty string."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(8)
    except OSError:
        return ""
    return next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), "")


def _labels_of(folder: pathlib.Path, depth: int) -> dict[str, str]:
    """The labels given by the folder that holds a video, `depth` folders deep: none, the action, identity/action."""
    return dict(zip(("action", "identity"), (folder.name, folder.parent.name)[: max(0, depth)], strict=False))


def _files(root: pathlib.Path) -> tuple[list[pathlib.Path], list[str], list[tuple[pathlib.Path, str]]]:
    """Files in natural order; hidden entries, FIFOs, sockets and devices; folders that cannot be entered, and why."""
    if root.is_file():
        return [root], [], []
    files, others, closed = [], [], []

    def note(error: OSError) -> None:
        closed.append((pathlib.Path(error.filename), error.strerror or str(error)))

    for folder, folder_names, file_names in os.walk(root, onerror=note, followlinks=True):
        folder = pathlib.Path(folder)
        others += [_relative(folder / name, root) for name in folder_names + file_names if name.startswith(".")]
        too_deep = len(folder.parts) - len(root.parts) >= _MAX_DEPTH
        visible = [name for name in folder_names if not name.startswith(".") and not too_deep]
        folder_names[:] = [name for name in visible if _is_text(name)]
        closed += [(folder / name, _NOT_TEXT) for name in visible if not _is_text(name)]
        for name in file_names:
            if kind := special_kind(folder / name):
                others.append(f"{_relative(folder / name, root)} ({kind})")
            elif not name.startswith("."):
                files.append(folder / name)
    return sorted(files, key=lambda file: _natural(_relative(file, root))), sorted(others, key=_natural), closed


def _in_order_of_numbers(files: Sequence[pathlib.Path]) -> Sequence[pathlib.Path]:
    """Files whose names are all numbers (-1, 0.15, 2e-3), in the order of these; others as they are."""
    numbers = [_NUMBER.fullmatch(file.stem) and float(file.stem) for file in files]
    if None in numbers:
        return files
    return [file for _, file in sorted(zip(numbers, files, strict=True), key=lambda pair: pair[0])]


def contents_of(root: pathlib.Path, known: str | os.PathLike | None = None) -> Contents:
    """The contents of all files of a source; `known` as for `read_contents`."""
    return read_contents(root, [root] if root.is_file() else _files(root)[0], known)


def _layout(media: Media, single: bool) -> str:
    if media.kind in ("video", "animation"):
        return "videos"
    if media.kind in ("npy", "npz"):
        return "arrays"
    long, short = max(media.height, media.width), min(media.height, media.width)
    return "strips" if single or long >= MIN_STRIP_RATIO * short else "frames"


def _mixed(root, seen, folders, media) -> str:
    nouns = {
        "strips": "elongated pictures (strips)",
        "frames": "roughly square pictures (frames)",
        "videos": "video files",
        "arrays": "array files",
    }
    parts = []
    for (layout, depth), parents in sorted(seen.items()):
        files = [file for folder in parents for file in folders[folder] if _layout(media[file], False) == layout]
        where = "directly in it" if depth == 0 else f"{depth} folder{'s' * (depth > 1)} deep"
        parts.append(f"{len(files)} {nouns[layout]} {where}, such as {_relative(files[0], root)!r}")
    return (
        f"{str(root)!r} holds several layouts, and which is meant cannot be told: {'; '.join(parts)}. "
        "Keep one layout in one depth of folders, or give the path of one of them."
    )


# ---- reading --------------------------------------------------------------------------------------------------------


def _attempt(function: Callable, *args):
    """The result, or the error of an unreadable file as a value, so that a thread pool keeps it in order."""
    try:
        return function(*args)
    except UnreadableFileError as error:
        return error


def _read_frames(paths: Sequence[pathlib.Path], size, resize: str, max_file_gib: float) -> np.ndarray:
    store, first_size = FrameStore(), None
    for path in paths:
        image = pictures.read_image(path, max_file_gib)
        first_size = first_size or image.size
        if image.size != first_size:
            raise UnreadableFileError(
                path,
                f"it has {_by(image.size[::-1])} pixels (height x width), the first frame of its video, "
                f"{paths[0].name!r}, has {_by(first_size[::-1])}",
            )
        with explained(path):  # memory may run out
            store.add(video_io.resize_image(image, size, resize)[None])
    return store.array()


def _read_arrays(unit: Unit, size, resize: str, max_frames: int | None, max_file_gib: float) -> list[Decoded]:
    (path,) = unit.paths
    kind = sniff(path).kind
    videos, columns = arrays.read_arrays(path, kind, LABELS, max_file_gib, size, resize, max_frames)
    single = videos.ndim == 4
    videos = videos[None] if single else videos
    for field in columns:
        if field in unit.labels:
            raise UnreadableFileError(path, f"its `{field}` competes with its class folder: keep one of them")
    digits = len(str(len(videos) - 1))
    return [
        Decoded(
            unit.name if single else f"{unit.name}[{index:0{digits}d}]",
            np.ascontiguousarray(video),  # a view of a mapped file cannot be sent to another process
            None,
            {**unit.labels, **{field: column[index] for field, column in columns.items()}},
        )
        for index, video in enumerate(videos)
    ]


# ---- caching --------------------------------------------------------------------------------------------------------


def _cached(
    folder: pathlib.Path, decoded: Callable[[storage.ArrayWriter], dict], contents: Contents
) -> tuple[np.ndarray, dict]:
    if not folder.exists():
        with storage.whole_folder(folder, may_exist=True) as part:
            with storage.ArrayWriter(part / "frames.npy") as store:
                index = decoded(store)
            contents.require_unchanged()
            storage.write_json(part / "index.json", index, indent=None)
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return np.load(folder / "frames.npy", mmap_mode="c"), index  # "c": TensorFlow shares only writable memory
    except (OSError, ValueError) as error:
        raise ValueError(f"The cache {str(folder)!r} is damaged ({error}): delete it to decode again.") from None


# ---- helpers --------------------------------------------------------------------------------------------------------


def _in_order(function: Callable, items: Iterable) -> Iterator[tuple]:
    """Yields (item, function(item)) in order, computed by one thread per core with bounded read-ahead."""
    workers = os.cpu_count() or 1
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        ahead = itertools.islice(items, 4 * workers)
        waiting = collections.deque((item, pool.submit(function, item)) for item in ahead)
        try:
            while waiting:
                item, future = waiting.popleft()
                result = future.result()
                waiting.extend((new, pool.submit(function, new)) for new in itertools.islice(items, 1))
                yield item, result
        finally:
            for _, future in waiting:
                future.cancel()


def _natural(text: str) -> list:
    """Sort key: `clip2` before `clip10`, folder by folder; `1` and `01` are ordered as text."""
    parts = [re.split(r"(\d+)", part) for part in text.split("/")]
    return [[[int(s) if i % 2 else s.lower() for i, s in enumerate(part)] for part in parts], text]


def _name(path: pathlib.Path, root: pathlib.Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _relative(path: pathlib.Path, root: pathlib.Path) -> str:
    """The path below the root; bytes that are no UTF-8 text are shown as `\\xe9`."""
    return os.fsencode(_name(path, root)).decode("utf-8", "backslashreplace")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _common_fps(rates: Iterable[float | None]) -> float | None:
    counts = collections.Counter(rate for rate in rates if rate is not None)
    return counts.most_common(1)[0][0] if counts else None


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _listed(items: Sequence[str], limit: int, separator: str) -> str:
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])


def _counted(counts: dict[str, int]) -> str:
    return _listed([f"{name} ({count:,})" for name, count in counts.items()], _MAX_LISTED, ", ")
