"""Keeps the newest versions of a folder loaded, each in a process of its own, and takes up new ones as they appear."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
import re
import time
from collections.abc import Callable, Mapping

from export.server.limits import INVALID_ARGUMENT, NOT_FOUND, RequestError
from export.server.worker import Worker

logger = logging.getLogger("export.serve")


@dataclasses.dataclass(frozen=True)
class Status:
    """State of a version folder, in TF Serving's terms: LOADING, AVAILABLE or END."""

    state: str
    code: str = "OK"
    message: str = ""


class Versions:
    """Loads the newest versions of a base folder and polls for new ones. All of it happens on one event loop.

    A new version is loaded and warmed up while the old one keeps serving. A version that fails to load is not retried until
    its files change; one whose process ends is loaded again. If no new version can be loaded, the loaded ones stay.

    Args:
        base_path: Folder with the version folders.
        num_versions: Number of newest versions to serve.
        labels: Label -> version.
        make: Makes the worker of a version folder; its second argument is to be called when the process ends by itself.
        on_load: Called with a version's number and loading time in seconds after it was loaded, or with the number and
            None if loading failed.
    """

    def __init__(
        self,
        base_path: str | pathlib.Path,
        num_versions: int,
        labels: Mapping[str, int],
        make: Callable[[pathlib.Path, Callable[[], None]], Worker],
        on_load: Callable[[int, float | None], None],
    ):
        self._base_path, self._num_versions, self._labels = pathlib.Path(base_path), num_versions, dict(labels)
        self._make, self._on_load = make, on_load
        self._loaded: dict[int, Worker] = {}
        self._failed: dict[int, tuple] = {}
        self._status: dict[int, Status] = {}
        self._ending: set[asyncio.Task] = set()
        self._polling: asyncio.Task | None = None

    def get(self, number: int | None = None, label: str = "") -> Worker:
        """A loaded version by number or label; the newest by neither. Raises RequestError."""
        if label:
            number = self._labels.get(label)
            if number is None:
                raise RequestError(INVALID_ARGUMENT, f"Unrecognized servable version label: {label[:100]}")
        if number is None and self._loaded:
            return self._loaded[max(self._loaded)]
        if number not in self._loaded:
            wanted = "a version" if number is None else f"version {number}"
            loaded = ", ".join(map(str, sorted(self._loaded))) or "none"
            raise RequestError(NOT_FOUND, f"{wanted} is not loaded; loaded: {loaded}")
        return self._loaded[number]

    @property
    def workers(self) -> list[Worker]:
        """Of the loaded versions, the newest first."""
        return [self._loaded[number] for number in sorted(self._loaded, reverse=True)]

    def status(self, number: int | None = None, label: str = "") -> dict[int, Status]:
        """States by number, the newest first: of all versions, or of one. Raises RequestError."""
        if label:
            number = self.get(label=label).number
        if number is not None and number not in self._status:
            raise RequestError(NOT_FOUND, f"Could not find version {number}")
        return {n: s for n, s in sorted(self._status.items(), reverse=True) if number in (None, n)}

    async def poll(self) -> None:
        """Checks the base folder once; loads new versions and drops those that are gone or superseded."""
        found = await asyncio.get_running_loop().run_in_executor(None, _scan, self._base_path)
        for number in sorted(found, reverse=True):
            if sum(n > number for n in self._loaded if n in found) >= self._num_versions:
                break
            folder, content = found[number]
            if number not in self._loaded and self._failed.get(number) != content:
                await self._load(number, folder, content)
        wanted = sorted((n for n in self._loaded if n in found), reverse=True)[: self._num_versions]
        for number in set(self._loaded) - set(wanted) if wanted else ():
            self._status[number] = Status("END")
            self._end(self._loaded.pop(number))
            logger.info("version %d is unloaded", number)
        for number in set(self._status) - set(found) - set(self._loaded):
            del self._status[number]

    async def _load(self, number: int, folder: pathlib.Path, content: tuple) -> None:
        self._status[number] = Status("LOADING")
        begin = time.monotonic()
        worker = self._make(folder, lambda: self._lost(number))
        try:
            await worker.start()
        except Exception as error:  # a bad folder must not stop the server
            logger.warning("version %d cannot be loaded: %s", number, error)
            self._failed[number] = content
            self._status[number] = Status("END", "UNKNOWN", str(error)[:500])
            self._on_load(number, None)
            return
        self._failed.pop(number, None)
        self._status[number] = Status("AVAILABLE")
        self._loaded[number] = worker
        self._on_load(number, time.monotonic() - begin)
        logger.info("version %d is loaded", number)

    def _lost(self, number: int) -> None:
        if worker := self._loaded.pop(number, None):
            logger.warning("the process of version %d has ended; it is started again", number)
            self._status[number] = Status("END", "UNAVAILABLE", "its process has ended")
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        """Ends a worker when the calls that it has are answered."""

        async def end() -> None:
            while worker.num_calls:
                await asyncio.sleep(0.05)
            await worker.close()

        task = asyncio.ensure_future(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def start(self, poll_seconds: float) -> None:
        """Polls once, then again and again."""
        await self.poll()

        async def run() -> None:
            while True:
                await asyncio.sleep(poll_seconds)
                try:
                    await self.poll()
                except Exception:
                    logger.exception("cannot check for versions in %s", self._base_path)

        self._polling = asyncio.ensure_future(run())

    async def close(self) -> None:
        """Ends every worker; calls that are not answered are refused."""
        if self._polling:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling
        workers, self._loaded = list(self._loaded.values()), {}
        await asyncio.gather(*(worker.close() for worker in workers), *self._ending)


def _scan(base_path: pathlib.Path) -> dict[int, tuple[pathlib.Path, tuple]]:
    """Number -> version folder and its content, for every folder that TF Serving would take for a version."""
    folders = [
        path for path in (base_path.iterdir() if base_path.is_dir() else ()) if re.fullmatch("[0-9]{1,18}", path.name)
    ]
    return {int(path.name): (path, _content(path)) for path in folders if (path / "saved_model.pb").is_file()}


def _content(folder: pathlib.Path) -> tuple:
    """Changes when a file of the folder does, so that a version still being copied is retried."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
