"""Atomic writes of files and folders, even if a process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

_PREFIX, _LOCK = ".part-", "lock"  # prefix of temporary folders; name of the lock file in them


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary path with the same file name; it replaces `path` on success and is removed on error.

    Leftovers of killed processes in the folder of `path` are removed at the first call for that folder.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent.absolute())
    with _locked_folder(path.parent, _PREFIX) as folder:
        part = folder / path.name
        yield part
        os.replace(part, path)


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes JSON atomically: readers see either the old file or the complete new one."""
    text = json.dumps(content, indent=indent) + "\n"
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, may_exist: bool = False) -> Iterator[pathlib.Path]:
    """A temporary folder next to `path`; it becomes `path` on success and is removed on error.

    Leftovers of killed processes next to `path` are removed first.

    Args:
        path: A path that does not exist, or an empty folder.
        may_exist: If another process has created `path` meanwhile, keep it: its content is assumed to be the same.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as part:
        yield part
        try:
            os.replace(part, path)
        except OSError:
            if not (may_exist and path.exists()):
                raise


@contextlib.contextmanager
def temporary_folder(parent: str | os.PathLike, prefix: str = _PREFIX) -> Iterator[pathlib.Path]:
    """An empty temporary folder, which may be moved away; whatever remains is removed at the end.

    It is in `<parent>/<prefix>xxxxxxxx`, next to a file that is locked while this process lives, so the next call with the same
    parent and prefix can identify leftovers of killed processes, and removes them first.
    """
    sweep(parent, prefix)
    with _locked_folder(parent, prefix) as folder:
        yield folder


def sweep(parent: str | os.PathLike, prefix: str = _PREFIX, unlocked: bool = False) -> None:
    """Removes temporary folders left by killed processes, but not those of live ones.

    Kernel locks (`flock`) are used: they end with their process, and work across hosts if the file system forwards them to its
    server. On file systems without locks, nothing is removed.

    Args:
        parent: Folder to clean; need not exist.
        prefix: As in `temporary_folder`.
        unlocked: Also removes matching folders without a lock file, as created by version 0.1.
    """
    try:
        with os.scandir(parent) as entries:
            found = [pathlib.Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
    except OSError:  # missing or not readable
        return
    is_temporary = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}").fullmatch  # as `mkdtemp` names them
    for folder in found:
        if not is_temporary(folder.name) or folder.is_symlink():
            continue
        with contextlib.suppress(OSError):  # in use, deleted meanwhile, or another user's
            names = os.listdir(folder)
            if _LOCK in names:
                with _abandoned(folder / _LOCK):
                    _remove(folder, names)
            elif unlocked:
                _remove(folder, names)
            folder.rmdir()  # only if empty: its process was killed early, or is about to lock it and will retry


@functools.lru_cache(1000)
def _sweep_once(folder: pathlib.Path) -> None:
    """`sweep`, once per folder: callers may write thousands of files into it."""
    sweep(folder)


@contextlib.contextmanager
def _locked_folder(parent: str | os.PathLike, prefix: str) -> Iterator[pathlib.Path]:
    lock = None
    while lock is None:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _lock(folder / _LOCK)
    try:
        content = folder / "content"
        content.mkdir()
        yield content
    finally:
        with contextlib.suppress(OSError):
            _remove(folder, os.listdir(folder))
        os.close(lock)  # before removing the folder: on NFS an open file stays in it
        with contextlib.suppress(OSError):
            folder.rmdir()


def _lock(path: pathlib.Path) -> int | None:
    """Creates a file that is locked until closed; None if a concurrent sweep is removing its folder."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = os.fstat(file).st_nlink == 0
    except BlockingIOError:
        taken = True
    except OSError:  # no locks on this file system
        taken = False
    if taken:
        os.close(file)
    return None if taken else file


@contextlib.contextmanager
def _abandoned(lock: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a dead process. Raises OSError if the process is alive or locks are unsupported."""
    file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def _remove(folder: pathlib.Path, names: list[str]) -> None:
    """Removes a folder's entries, the lock last, so that the next sweep can continue if this process is killed."""
    for name in sorted(names, key=lambda name: name == _LOCK):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def plain_path(path: str | os.PathLike) -> Iterator[str]:
    """A path that TensorFlow can read: `path` itself, or a temporary symbolic link to it.

    TensorFlow treats the path of a checkpoint or SavedModel as a glob pattern, in UTF-8: from a folder named `lr[1e-3]` it cannot
    read back its own files. The link is removed at the end; files written through it remain.

    Args:
        path: An existing folder to read or write, or the prefix of a checkpoint's files to read.

    Raises:
        ValueError: If a link is needed but its target does not exist, or no temporary folder has a plain path.
    """
    if _is_plain(path):
        yield os.fspath(path)
        return
    path = pathlib.Path(path).absolute()
    linked = {"": path} if path.exists() else {file.name[len(path.name) :]: file for file in _files_of(path)}
    if not linked:
        raise ValueError(f"There is neither a folder nor a checkpoint {str(path)!r}.")
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    place = next((place for place in places if _is_plain(place) and os.access(place, os.W_OK | os.X_OK)), None)
    if place is None:
        raise ValueError(
            f"TensorFlow cannot read {str(path)!r}, and there is no folder for temporary files to link to it from: TMPDIR must "
            f"name one whose path is UTF-8 and contains none of {' '.join(_PATTERN)}."
        )
    with temporary_folder(place, "tfvidgen-link-") as temporary:
        for suffix, target in linked.items():
            (temporary / f"path{suffix}").symlink_to(target, target_is_directory=target.is_dir())
        yield str(temporary / "path")


def _files_of(prefix: pathlib.Path) -> list[pathlib.Path]:
    """The files of a checkpoint: its prefix, a dot, and TensorFlow's suffixes."""
    if not prefix.parent.is_dir():
        return []
    return [file for file in prefix.parent.iterdir() if file.name.startswith(f"{prefix.name}.")]


_PATTERN = "*?[]\\"


def _is_plain(path: str | os.PathLike) -> bool:
    path = os.fspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False
    return not set(path) & set(_PATTERN)


class ArrayWriter:
    """A growing `.npy` file, for arrays larger than memory. NumPy pads the header so that the first axis can grow.

    A context manager; the file is a valid array after it exits without an error.
    """

    def __init__(self, path: str | os.PathLike):
        self._file, self._row = open(path, "wb"), None
        self.num_rows = 0

    def __enter__(self) -> ArrayWriter:
        return self

    def add(self, rows: np.ndarray) -> None:
        """Appends rows (n, ...); dtype and trailing axes must match the first block.

        Raises:
            ValueError: If they do not.
        """
        rows = np.ascontiguousarray(rows)
        row = (np.lib.format.dtype_to_descr(rows.dtype), rows.shape[1:])
        if self._row is None:
            self._row = row
            self._write_header()
        if row != self._row:
            raise ValueError(f"Every block of rows must match the first one, {self._row}. Received {row}.")
        self._file.write(rows.data)
        self.num_rows += len(rows)

    def __exit__(self, kind, error, trace) -> None:
        with self._file:
            if kind is None and self._row is not None:
                self._file.seek(0)
                self._write_header()

    def _write_header(self) -> None:
        dtype, shape = self._row
        header = {"descr": dtype, "fortran_order": False, "shape": (self.num_rows, *shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
