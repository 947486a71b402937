"""Files and folders that are there whole or not at all, also when a process is killed or a disk is full."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary file beside `path` to write; it takes the place of `path` if all went well and is removed if not."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one."""
    text = json.dumps(content, indent=indent) + "\n"
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike, may_exist: bool = False) -> Iterator[pathlib.Path]:
    """A temporary folder beside `path` to fill; it becomes `path` if all went well and is removed if not.

    Args:
        path: Not there, or an empty folder.
        may_exist: If another process made `path` meanwhile, leave what it made: it would hold the same.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(prefix=".part-", dir=path.parent))
    try:
        yield part
        part.chmod(0o755)  # temporary folders begin private, what they become may be shared
        try:
            os.replace(part, path)
        except OSError:
            if not (may_exist and path.exists()):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def plain_path(folder: str | os.PathLike) -> Iterator[str]:
    """A path of `folder` that TensorFlow can read: the folder's own, or that of a temporary symbolic link to it.

    TensorFlow takes the path of a checkpoint or a SavedModel for a glob pattern, and for UTF-8: of a folder called `lr[1e-3]`
    it reads back nothing that it wrote there itself. The link is removed at the end; what is written through it stays.

    Args:
        folder: An existing folder.

    Raises:
        ValueError: If a link is needed, and no folder for temporary files has a plain path itself.
    """
    if _is_plain(folder):
        yield os.fspath(folder)
        return
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    place = next((place for place in places if _is_plain(place) and os.access(place, os.W_OK | os.X_OK)), None)
    if place is None:
        raise ValueError(
            f"TensorFlow cannot read {os.fspath(folder)!r}, and there is no folder for temporary files to link to it from: "
            f"TMPDIR must name one whose path is UTF-8 and has none of {' '.join(_PATTERN)} in it."
        )
    with tempfile.TemporaryDirectory(prefix="tfvidgen-", dir=place) as temporary:
        link = os.path.join(temporary, "link")
        os.symlink(os.path.abspath(folder), link, target_is_directory=True)
        yield link


_PATTERN = "*?[]\\"


def _is_plain(path: str | os.PathLike) -> bool:
    path = os.fspath(path)
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False
    return not set(path) & set(_PATTERN)


class ArrayWriter:
    """A growing `.npy` file, for arrays larger than memory. NumPy's header has room for the first axis to grow.

    A context manager; without an error the file is an array when it ends.
    """

    def __init__(self, path: str | os.PathLike):
        self._file, self._row = open(path, "wb"), None
        self.num_rows = 0

    def __enter__(self) -> ArrayWriter:
        return self

    def add(self, rows: np.ndarray) -> None:
        """Appends (n, ...) of the dtype and the further axes of the first block.

        Raises:
            ValueError: If it is another dtype or shape.
        """
        rows = np.ascontiguousarray(rows)
        row = (np.lib.format.dtype_to_descr(rows.dtype), rows.shape[1:])
        if self._row is None:
            self._row = row
            self._write_header()
        if row != self._row:
            raise ValueError(f"Every block of rows must be as the first, {self._row}. Received {row}.")
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
