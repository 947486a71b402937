"""Rows of numbers, one block after the other onto disk, kept under the SHA-256 of everything they were computed from.

Features of real clips are the same for every model that is measured against them. They are written as they come, so
memory does not grow with the number of clips, and read back as a memory map.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

VERSION = 1  # of what a key means: raise it when the same key would give other rows


class RowStore:
    """A folder of two-dimensional arrays, each in a folder of its own named by the digest of its key.

    An entry is there whole or not at all, also when processes write the same one at once or are killed.

    Args:
        folder: Where entries are kept; made when the first is written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)

    def path(self, key: Mapping[str, Any]) -> pathlib.Path:
        """Folder of an entry, there or not. `key` is anything that JSON holds; the order of its names is no matter."""
        described = json.dumps({"version": VERSION, **key}, sort_keys=True)
        return self.folder / hashlib.sha256(described.encode()).hexdigest()

    def read(self, key: Mapping[str, Any]) -> np.ndarray | None:
        """The rows of a key as a read-only memory map, or None where there are none.

        Raises:
            ValueError: If the entry is damaged.
        """
        path = self.path(key)
        if not path.exists():
            return None
        try:
            if json.loads((path / "key.json").read_text(encoding="utf-8")) != json.loads(json.dumps(key)):
                raise ValueError("it holds something else than its name says")
            return np.load(path / "rows.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"The cached features {str(path)!r} are damaged ({error}): delete that folder.") from None

    @contextlib.contextmanager
    def writer(self, key: Mapping[str, Any]) -> Iterator[RowWriter]:
        """Gives a writer; its rows become the entry when the block ends without an error, and vanish when it does not."""
        path = self.path(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(tempfile.mkdtemp(prefix=".part-", dir=self.folder))
        try:
            with RowWriter(part / "rows.npy") as rows:
                yield rows
            (part / "key.json").write_text(json.dumps(key, indent=2), encoding="utf-8")
            part.chmod(0o755)  # temporary folders begin private, a cache may be shared
            try:
                os.replace(part, path)
            except OSError:
                if not path.exists():  # else another process was faster, with the same rows
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)


class RowWriter:
    """A growing `.npy` file (N, D). NumPy's header has room for the first axis to grow."""

    def __init__(self, path: pathlib.Path):
        self._file, self._header = open(path, "wb"), None
        self._num_rows = 0

    def __enter__(self) -> RowWriter:
        return self

    def add(self, rows: np.ndarray) -> None:
        """Appends (n, D) of the dtype and width of the first block."""
        rows = np.ascontiguousarray(rows)
        header = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "width": rows.shape[1:]}
        if self._header is None:
            self._header = header
            self._write_header()
        if header != self._header or rows.ndim != 2:
            raise ValueError(f"Every block of rows must be as the first, {self._header}. Received {header}.")
        self._file.write(rows.data)
        self._num_rows += len(rows)

    def __exit__(self, kind, error, trace) -> None:
        with self._file:
            if kind is None:
                if not self._num_rows:
                    raise ValueError("No rows were computed: there are no clips.")
                self._file.seek(0)
                self._write_header()

    def _write_header(self) -> None:
        header = {key: value for key, value in self._header.items() if key != "width"}
        shape = (self._num_rows, *self._header["width"])
        np.lib.format.write_array_header_1_0(self._file, {**header, "shape": shape})
