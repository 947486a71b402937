"""Identifies the files of a source by their content; a file is read again only if anything about it has changed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import stat
import time
from collections.abc import Sequence
from typing import Any

from tfvidgen import storage

_BLOCK = 1 << 22
# Time stamps may be as coarse as this, so a file that changed more recently may change again without another stamp.
_STAMP_NS = 2_000_000_000


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the files of a source held when they were read.

    Attributes:
        files: The files.
        names: Their names below the source.
        marks: Device, inode, size, and times of modification and change in ns of each, or the reason why it has none.
        digests: SHA-256 of each; of what is no regular file or cannot be read, the reason.
    """

    files: tuple[pathlib.Path, ...]
    names: tuple[str, ...]
    marks: tuple[str, ...]
    digests: tuple[str, ...]

    def key(self, options: Sequence[Any]) -> str:
        """SHA-256 over names and contents of all files, and over JSON-serialisable options."""
        described = json.dumps([list(zip(self.names, self.digests, strict=True)), list(options)])
        return hashlib.sha256(described.encode()).hexdigest()

    def require_unchanged(self) -> None:
        """Raises ValueError if a file has changed since it was read here: what was decoded meanwhile may be of another content."""
        changed = [
            name for name, file, mark in zip(self.names, self.files, self.marks, strict=True) if mark != _mark(file)
        ]
        if changed:
            raise ValueError(
                f"{len(changed)} files changed while they were read, such as {changed[0]!r}: wait until nothing writes to them, "
                "and read them again."
            )


def read_contents(
    root: pathlib.Path, files: Sequence[pathlib.Path], known: str | os.PathLike | None = None
) -> Contents:
    """Reads files, or takes their digests from `known` where device, inode, size and both times are those of an earlier call.

    Args:
        root: The folder of the files, or the file itself.
        files: All files of the source.
        known: Path of a JSON file with what is known from earlier calls; it is read, if it exists, and replaced. None reads all.

    Raises:
        ValueError: If a file changes meanwhile.
    """
    before, now = _known(known), time.time_ns()
    marks = [_mark(file) for file in files]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        digests = list(pool.map(lambda file, mark: before.get(mark) or _digest(file, mark), files, marks))
    names = tuple(file.name if file == root else file.relative_to(root).as_posix() for file in files)
    contents = Contents(tuple(files), names, tuple(marks), tuple(digests))
    contents.require_unchanged()
    if known is not None:
        settled = {mark: digest for mark, digest in zip(marks, digests, strict=True) if _is_settled(mark, now)}
        if settled != before:
            storage.write_json(known, settled, indent=None)
    return contents


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def _mark(file: pathlib.Path) -> str:
    try:
        found = file.stat()
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):  # a pipe would block whoever opens it
        return f"no regular file: {stat.S_IFMT(found.st_mode)}"
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _digest(file: pathlib.Path, mark: str) -> str:
    if ":" in mark:
        return mark
    try:
        return file_sha256(file)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _is_settled(mark: str, now: int) -> bool:
    return ":" not in mark and max(map(int, mark.split()[-2:])) + _STAMP_NS < now


def _known(path: str | os.PathLike | None) -> dict[str, str]:
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):  # missing, or damaged: then all files are read
        return {}
    is_whole = isinstance(found, dict) and all(isinstance(value, str) and len(value) == 64 for value in found.values())
    return found if is_whole else {}
