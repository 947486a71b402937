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
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfvidgen import storage

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
    def writer(self, key: Mapping[str, Any]) -> Iterator[storage.ArrayWriter]:
        """Gives a writer; its rows become the entry when the block ends without an error, and vanish when it does not."""
        with storage.whole_folder(self.path(key), may_exist=True) as part:
            with storage.ArrayWriter(part / "rows.npy") as rows:
                yield rows
            if not rows.num_rows:
                raise ValueError("No rows were computed: there are no clips.")
            storage.write_json(part / "key.json", key)
