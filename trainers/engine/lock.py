"""Lets only one process at a time write a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import socket
import time
from types import TracebackType


class RunLock:
    """Held while a process writes a run folder: `with RunLock(run_dir): ...`.

    The lock is the kernel's (`flock` on the file `lock`), so it ends with its process, however that ends: there are no
    stale locks to clear. The file says who holds it. Network file systems forward `flock` to their server; one without
    lock support is used unlocked.

    Raises:
        ValueError: On entry, if a live process holds it; with its id, host and start time.
    """

    def __init__(self, run_dir: str | os.PathLike):
        self._path = pathlib.Path(run_dir) / "lock"
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._file, 1000, 0)
                os.close(self._file)
                raise ValueError(self._in_use(holder)) from None
            except OSError:  # no locks on this file system
                pass
            # The last holder removes the file: the one just locked may no longer be in the folder.
            try:
                if os.path.samestat(os.fstat(self._file), self._path.stat()):
                    break
            except FileNotFoundError:
                pass
            os.close(self._file)
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(who).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _in_use(self, holder: bytes) -> str:
        try:
            who = json.loads(holder)
            text = f"process {who['pid']} on {who['host']}, since {who['since']}"
        except (ValueError, KeyError, TypeError):  # it has not identified itself yet
            text = "another process"
        return (
            f"The run folder {self._path.parent} is in use by {text}. Wait until it ends, stop it (with SIGTERM it saves "
            "first), or name another --run_dir."
        )
