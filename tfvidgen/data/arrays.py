"""Reads videos and their labels from `.npy` and `.npz` files: headers first, so that nothing is allocated on their word.

Frames are read in blocks, so that they are in memory once even while they are decompressed or resized.
"""

from __future__ import annotations

import math
import os
import threading
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

from tfvidgen.data.collection import drained, empty_frames
from tfvidgen.data.media import MAX_FILE_GIB, UnreadableFileError, check_declared, explained
from tfvidgen.data.video_io import resize_video

_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# NumPy parses headers by `ast`, which before Python 3.13 fails in several threads at once: "AST constructor recursion depth
# mismatch", so that a whole file would be called damaged.
_parsing = threading.Lock()
_MAX_LABEL_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 18


def read_arrays(
    path: str | os.PathLike,
    kind: str,
    fields: tuple[str, ...],
    max_file_gib: float = MAX_FILE_GIB,
    size: tuple[int, int] | None = None,
    resize: str = "centre_crop",
    max_frames: int | None = None,
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Reads the videos of a file, and the labels beside them.

    Args:
        path: The file.
        kind: `npy`, memory-mapped if it is in C's order and its frames keep their size, or `npz`, with the key `video` or `videos`.
        fields: Keys of labels, of which `action` may also be called `label`.
        max_file_gib, size, resize: As in `video_io.read_video`.
        max_frames: Return at most this many frames from the beginning of each video; None returns all.

    Returns:
        uint8 (T, H, W, 3) or (N, T, H, W, 3), and for each field that is there one text per video.

    Raises:
        UnreadableFileError: If it is truncated, damaged, or holds something else.
    """
    with explained(path):
        if kind == "npy":
            with open(path, "rb") as file:
                shape, dtype, fortran_order = _header(path, file)
                _check_videos(path, shape, dtype, max_file_gib, size)
                if fortran_order:
                    return _converted(_from_fortran_order(path, file, shape), size, resize, max_frames), {}
                begin = file.tell()
            return _converted(np.memmap(path, np.uint8, "r", begin, shape), size, resize, max_frames), {}
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            key = next((key for key in ("video", "videos") if key in names), None)
            if key is None:
                raise UnreadableFileError(path, f"it has no key `video` or `videos`, only {', '.join(names) or 'none'}")
            with archive.open(names[key]) as entry:
                shape, dtype, fortran_order = _header(path, entry)
                _check_videos(path, shape, dtype, max_file_gib, size)
                if fortran_order:  # no frame is whole before all are read
                    videos = _converted(_from_fortran_order(path, entry, shape), size, resize, max_frames)
                else:
                    videos = _collected(_decompressed(path, entry, shape), shape, size, resize, max_frames)
                _require_end(path, entry, names[key])
            count = 1 if len(shape) == 4 else shape[0]
            sources = {field: field for field in fields if field in names}
            if "label" in names and "action" in fields:
                sources.setdefault("action", "label")
            return videos, {field: _labels(path, archive, names[s], field, count) for field, s in sources.items()}


def _header(path, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Shape and dtype of the array whose file begins here, and whether it is in Fortran's order."""
    version = np.lib.format.read_magic(file)
    # Version 3.0 only allows names of fields in UTF-8, which no array of ours has.
    if version not in _HEADER_READERS:
        raise UnreadableFileError(path, f"its array format {version} is unknown: save it again with numpy.save")
    with _parsing:
        shape, fortran_order, dtype = _HEADER_READERS[version](file)
    if dtype.hasobject:
        raise UnreadableFileError(
            path, f"it holds an object array, {dtype} {shape}, of Python objects: save one uint8 array of equal videos"
        )
    return shape, dtype, fortran_order


def _check_videos(path, shape: tuple[int, ...], dtype: np.dtype, max_file_gib: float, size) -> None:
    if dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3 or min(shape) < 1:
        raise UnreadableFileError(
            path, f"expected uint8 RGB (T, H, W, 3) or (N, T, H, W, 3), and it holds {dtype} {shape}"
        )
    check_declared(path, math.prod(shape), max_file_gib, f"uint8 {shape}")
    if size is not None:  # frames of a pixel each would become more than any memory holds
        resized = (*shape[:-3], *size, 3)
        check_declared(path, math.prod(resized), max_file_gib, f"uint8 {shape}, resized to {resized}")


def _decompressed(path, entry: BinaryIO, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The frames of an array of this shape, in blocks, from a file that stands behind its header."""
    num_frames, frame = math.prod(shape[:-3]), shape[-3:]
    step = max(1, _BLOCK_BYTES // math.prod(frame))
    for start in range(0, num_frames, step):
        count = min(step, num_frames - start)
        yield _next(path, entry, (count, *frame))


def _from_fortran_order(path, file: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape, in C's order, from a file in Fortran's that stands behind its header."""
    videos = empty_frames(shape)
    # Columns of a channel: every block goes to all frames, so a tenth of the videos at a time.
    step = max(1, videos.nbytes // 10 // math.prod(shape[:-2]))
    for channel in videos.transpose():  # (W, H, T) or (W, H, T, N): the transposed array is in the file's order
        for first in range(0, len(channel), step):
            columns = channel[first : first + step]
            columns[...] = _next(path, file, columns.shape)
    return videos


def _next(path, file: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    data = file.read(math.prod(shape))
    if len(data) < math.prod(shape):
        raise UnreadableFileError(
            path, "it is truncated or damaged: it ends before the frames that its header promises"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _converted(videos: np.ndarray, size, resize: str, max_frames: int | None) -> np.ndarray:
    """Videos resized and cut as `read_arrays` says; the same memory if their frames keep their size."""
    if size is None or videos.shape[-3:-1] == size:
        return videos[..., :max_frames, :, :, :]
    return _collected(drained(videos.reshape(-1, *videos.shape[-3:])), videos.shape, size, resize, max_frames)


def _collected(
    blocks: Iterable[np.ndarray], shape: tuple[int, ...], size, resize: str, max_frames: int | None
) -> np.ndarray:
    """Videos of this shape, whose frames come in blocks, in memory of their own."""
    length, size = shape[-4], size or shape[-3:-1]
    kept = min(length, max_frames or length)
    videos = empty_frames((*shape[:-4], kept, *size, 3))
    frames = videos.reshape(-1, *size, 3)
    num_read = num_kept = 0
    for block in blocks:
        positions = np.arange(num_read, num_read + len(block)) % length
        num_read += len(block)
        if kept < length:
            block = block[positions < kept]
        if len(block):
            frames[num_kept : num_kept + len(block)] = resize_video(block, size, resize)
            num_kept += len(block)
    return videos


def _entry(path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as entry:
        with _parsing:
            array = np.lib.format.read_array(entry, allow_pickle=False)
        _require_end(path, entry, name)
        return array


def _require_end(path, entry: BinaryIO, name: str) -> None:
    if entry.read(1):  # also has the checksum of the whole entry compared
        raise UnreadableFileError(path, f"it is damaged: {name!r} is longer than its header says")


def _labels(path, archive: zipfile.ZipFile, name: str, field: str, count: int) -> list[str]:
    """One text per video."""
    with archive.open(name) as entry:
        shape, dtype, _ = _header(path, entry)
    if math.prod(shape) != count:
        raise UnreadableFileError(path, f"its `{field}` has {math.prod(shape)} values for {count} videos")
    if dtype.itemsize * count > _MAX_LABEL_BYTES:
        raise UnreadableFileError(path, f"its `{field}` has labels of {dtype.itemsize} bytes each: shorten them")
    values = np.ravel(_entry(path, archive, name))
    if values.dtype.kind != "S":
        return [str(value) for value in values]
    try:
        return [value.decode() for value in values.tolist()]
    except UnicodeDecodeError:
        raise UnreadableFileError(path, f"its `{field}` has bytes that are no UTF-8 text") from None
