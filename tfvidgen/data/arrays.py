"""Reads videos and their labels from `.npy` and `.npz` files: headers first, so that nothing is allocated on their word."""

from __future__ import annotations

import math
import os
import zipfile
from typing import BinaryIO

import numpy as np

from tfvidgen.data.media import MAX_FILE_GIB, UnreadableFileError, check_declared, explained

_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_LABEL_BYTES = 1 << 28


def read_arrays(
    path: str | os.PathLike, kind: str, fields: tuple[str, ...], max_file_gib: float = MAX_FILE_GIB
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Reads the videos of a file, and the labels beside them.

    Args:
        path: The file.
        kind: `npy`, memory-mapped, or `npz`, with the key `video` or `videos`.
        fields: Keys of labels, of which `action` may also be called `label`.
        max_file_gib: As in `video_io.read_video`.

    Returns:
        uint8 (T, H, W, 3) or (N, T, H, W, 3), and for each field that is there one text per video.

    Raises:
        UnreadableFileError: If it is truncated, damaged, or holds something else.
    """
    with explained(path):
        if kind == "npy":
            with open(path, "rb") as file:
                _check_videos(path, *_header(path, file), max_file_gib)
            return np.load(path, mmap_mode="r", allow_pickle=False), {}
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            key = next((key for key in ("video", "videos") if key in names), None)
            if key is None:
                raise UnreadableFileError(path, f"it has no key `video` or `videos`, only {', '.join(names) or 'none'}")
            with archive.open(names[key]) as entry:
                shape, dtype = _header(path, entry)
                _check_videos(path, shape, dtype, max_file_gib)
            videos = _entry(path, archive, names[key])
            count = 1 if videos.ndim == 4 else len(videos)
            sources = {field: field for field in fields if field in names}
            if "label" in names and "action" in fields:
                sources.setdefault("action", "label")
            return videos, {field: _labels(path, archive, names[s], field, count) for field, s in sources.items()}


def _header(path, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array whose file begins here."""
    version = np.lib.format.read_magic(file)
    # Version 3.0 only allows names of fields in UTF-8, which no array of ours has.
    if version not in _HEADER_READERS:
        raise UnreadableFileError(path, f"its array format {version} is unknown: save it again with numpy.save")
    shape, _, dtype = _HEADER_READERS[version](file)
    if dtype.hasobject:
        raise UnreadableFileError(
            path, f"it holds an object array, {dtype} {shape}, of Python objects: save one uint8 array of equal videos"
        )
    return shape, dtype


def _check_videos(path, shape: tuple[int, ...], dtype: np.dtype, max_file_gib: float) -> None:
    if dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3 or min(shape) < 1:
        raise UnreadableFileError(
            path, f"expected uint8 RGB (T, H, W, 3) or (N, T, H, W, 3), and it holds {dtype} {shape}"
        )
    check_declared(path, math.prod(shape), max_file_gib, f"uint8 {shape}")


def _entry(path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as entry:
        array = np.lib.format.read_array(entry, allow_pickle=False)
        if entry.read(1):  # also has the checksum of the whole entry compared
            raise UnreadableFileError(path, f"it is damaged: {name!r} is longer than its header says")
        return array


def _labels(path, archive: zipfile.ZipFile, name: str, field: str, count: int) -> list[str]:
    """One text per video."""
    with archive.open(name) as entry:
        shape, dtype = _header(path, entry)
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
