"""Loads exported versions and runs their endpoints: validates requests, batches them, picks up new versions.

Independent of HTTP and gRPC; `export.server.application` holds what both need of it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import logging
import pathlib
import re
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from tfvidgen import storage

logger = logging.getLogger("export.serve")

# gRPC status names, which REST maps to HTTP status codes.
INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
)


class RequestError(Exception):
    """A request answered with an error: `code` is a gRPC status name, the text is for the caller."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """dtype and shape of an input or output; None for free sizes."""

    dtype: np.dtype
    shape: tuple[int | None, ...]

    def text(self) -> str:
        return f"{self.dtype if self.dtype != object else 'string'} {str(self.shape).replace('None', '?')}"


class Endpoint:
    """One signature of a loaded version.

    Attributes:
        inputs, outputs: Name -> TensorSpec.
        batchable: Whether requests can be batched along the first axis.
    """

    def __init__(self, name: str, function: Callable):
        self.name = name
        self._function = function

        def specs(tensors):
            return {
                key: TensorSpec(np.dtype(value.dtype.as_numpy_dtype), tuple(value.shape.as_list()))
                for key, value in tensors.items()
            }

        self.inputs = specs(function.structured_input_signature[1])
        self.outputs = specs(function.structured_outputs)
        both = (*self.inputs.values(), *self.outputs.values())
        self.batchable = all(spec.shape[:1] == (None,) for spec in both)

    def check(self, inputs: Mapping[str, np.ndarray], max_rows: int) -> int:
        """Raises RequestError unless names, dtypes and shapes match; returns the number of rows (1 for scalars)."""
        missing = [name for name in self.inputs if name not in inputs]
        unknown = [name for name in inputs if name not in self.inputs]
        if missing or unknown:
            wrong = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(
                unknown
            )
            raise RequestError(INVALID_ARGUMENT, f"{self.name} takes {', '.join(self.inputs)}: {'; '.join(wrong)}")
        rows = 1
        for name, spec in self.inputs.items():
            value = inputs[name]
            self.check_spec(name, value.dtype, value.shape)
            if spec.shape:
                rows = value.shape[0]
                if not 1 <= rows <= max_rows:
                    raise RequestError(
                        INVALID_ARGUMENT, f"{name} must have 1 to {max_rows} rows in one request. Received {rows}"
                    )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise RequestError(INVALID_ARGUMENT, f"{name} must be finite")
        counts = {name: len(inputs[name]) for name, spec in self.inputs.items() if spec.shape}
        if len(set(counts.values())) > 1:
            raise RequestError(INVALID_ARGUMENT, f"all inputs need the same number of rows. Received {counts}")
        return rows

    def check_spec(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """Raises RequestError unless a tensor of this dtype and shape is valid for the input `name`."""
        if name not in self.inputs:
            raise RequestError(INVALID_ARGUMENT, f"{self.name} takes {', '.join(self.inputs)}: unknown {name}")
        spec = self.inputs[name]
        fits = len(shape) == len(spec.shape) and all(a in (None, b) for a, b in zip(spec.shape, shape, strict=True))
        if dtype != spec.dtype or not fits:
            given = TensorSpec(np.dtype(dtype), tuple(shape))
            raise RequestError(INVALID_ARGUMENT, f"{name} must be {spec.text()}. Received {given.text()}")

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calls the signature. Raises RequestError with TensorFlow's message."""
        import tensorflow as tf

        try:
            outputs = self._function(**{name: tf.constant(value) for name, value in inputs.items()})
            return {name: value.numpy() for name, value in outputs.items()}
        except tf.errors.OpError as error:
            codes = {
                tf.errors.INVALID_ARGUMENT: INVALID_ARGUMENT,
                tf.errors.OUT_OF_RANGE: INVALID_ARGUMENT,
                tf.errors.RESOURCE_EXHAUSTED: RESOURCE_EXHAUSTED,
            }
            raise RequestError(codes.get(error.error_code, INTERNAL), _reason(error)) from error
        except (TypeError, ValueError) as error:  # TensorFlow's own argument checks
            raise RequestError(INVALID_ARGUMENT, str(error)) from error


def _reason(error: Exception) -> str:
    """The message of a graph assertion without its trace, or the first lines of any other message."""
    found = re.search(r"assertion failed: \[(.*?)\]", str(error), re.DOTALL)
    return found.group(1) if found else str(error)[:500]


# ---------------------------------------------------------------- versions
class Version:
    """A loaded version folder. Requests hold a reference while they run, so it can be replaced at any time.

    Attributes:
        number: The folder's name as an integer.
        endpoints: Name -> Endpoint.
        signature_defs: Name -> SignatureDef, as stored in the SavedModel.
    """

    def __init__(self, folder: pathlib.Path):
        import tensorflow as tf
        from tensorflow.core.protobuf import saved_model_pb2

        from export import serving

        self.number, self.folder = int(folder.name), folder
        with storage.plain_path(folder) as plain:
            self._model = tf.saved_model.load(plain)  # keeps the signatures alive
        self.endpoints = {name: Endpoint(name, function) for name, function in self._model.signatures.items()}
        stored = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        self.signature_defs = {
            name: value for name, value in stored.meta_graphs[0].signature_def.items() if name in self.endpoints
        }
        for name, inputs in serving.first_requests(folder):
            self.endpoint(name).run(inputs)

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint of that name (empty: `serving_default`). Raises RequestError."""
        name = name or "serving_default"
        if name not in self.endpoints:
            raise RequestError(
                INVALID_ARGUMENT, f"no endpoint {name[:100]!r} in version {self.number}: {', '.join(self.endpoints)}"
            )
        return self.endpoints[name]


@dataclasses.dataclass(frozen=True)
class Status:
    """State of a version folder, in TF Serving's terms: LOADING, AVAILABLE or END."""

    state: str
    code: str = "OK"
    message: str = ""


class Versions:
    """Keeps the newest versions of a base folder loaded and polls for new ones.

    A new version is loaded and warmed up while the old one keeps serving. A version that fails to load is not retried until
    its files change. If no new version can be loaded, the loaded ones stay.

    Args:
        base_path: Folder with the version folders.
        num_versions: Number of newest versions to serve.
        on_load: Called with a version's number and loading time in seconds after it was loaded, or with the number and
            None if loading failed.
    """

    def __init__(
        self,
        base_path: str | pathlib.Path,
        num_versions: int = 1,
        on_load: Callable[[int, float | None], None] | None = None,
    ):
        self._base_path, self._num_versions = pathlib.Path(base_path), num_versions
        self._on_load = on_load or (lambda number, seconds: None)
        self._loaded: dict[int, Version] = {}
        self._failed: dict[int, tuple] = {}
        self._status: dict[int, Status] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def get(self, number: int | None = None) -> Version:
        """A loaded version; None for the newest. Raises RequestError."""
        loaded = self._loaded  # replaced as a whole, never modified
        if number is None and loaded:
            return loaded[max(loaded)]
        if number not in loaded:
            wanted = "a version" if number is None else f"version {number}"
            raise RequestError(
                NOT_FOUND, f"{wanted} is not loaded; loaded: {', '.join(map(str, sorted(loaded))) or 'none'}"
            )
        return loaded[number]

    def status(self) -> dict[int, Status]:
        return dict(sorted(self._status.items(), reverse=True))

    def poll(self) -> None:
        """Checks the base folder once; loads new versions and drops those that are gone or superseded."""
        found = {
            int(path.name): path
            for path in (self._base_path.iterdir() if self._base_path.is_dir() else ())
            if path.name.isdigit() and (path / "saved_model.pb").is_file()
        }
        loaded = dict(self._loaded)
        for number in sorted(found, reverse=True):
            if sum(n > number for n in loaded if n in found) >= self._num_versions:
                break
            if number in loaded or self._failed.get(number) == (content := _content(found[number])):
                continue
            self._set_status(number, Status("LOADING"))
            begin = time.monotonic()
            try:
                loaded[number] = Version(found[number])
            except Exception as error:  # a bad folder must not stop the server
                logger.warning("version %d cannot be loaded: %s", number, error)
                self._failed[number] = content
                self._set_status(number, Status("END", "UNKNOWN", str(error)[:500]))
                self._on_load(number, None)
                continue
            self._failed.pop(number, None)
            self._set_status(number, Status("AVAILABLE"))
            self._loaded = dict(loaded)
            self._on_load(number, time.monotonic() - begin)
            logger.info("version %d is loaded", number)
        wanted = sorted((n for n in loaded if n in found), reverse=True)[: self._num_versions]
        if wanted:
            for number in set(loaded) - set(wanted):
                self._set_status(number, Status("END"))
                logger.info("version %d is unloaded", number)
            self._loaded = {number: loaded[number] for number in wanted}
        for number in set(self._status) - set(found) - set(self._loaded):
            self._status = {key: value for key, value in self._status.items() if key != number}

    def _set_status(self, number: int, status: Status) -> None:
        self._status = {**self._status, number: status}

    def start(self, poll_seconds: float) -> None:
        """Polls once, then in a background thread."""
        self.poll()

        def run():
            while not self._stop.wait(poll_seconds):
                try:
                    self.poll()
                except Exception:
                    logger.exception("cannot check for versions in %s", self._base_path)

        self._thread = threading.Thread(target=run, name="versions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()


def _content(folder: pathlib.Path) -> tuple:
    """Changes when a file of the folder does, so that a version still being copied is retried."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


# ---------------------------------------------------------------- batching
@dataclasses.dataclass(eq=False)
class _Pending:
    endpoint: Endpoint
    inputs: dict[str, np.ndarray]
    rows: int
    deadline: float
    future: concurrent.futures.Future

    def joins(self, other: _Pending) -> bool:
        return self.endpoint is other.endpoint and all(
            value.shape[1:] == other.inputs[name].shape[1:] for name, value in self.inputs.items()
        )


class Batcher:
    """Dynamic batching: runs one batch at a time, joining requests that arrive while the model is busy.

    Requests are never delayed to fill a batch: an idle model runs a single request at once. If a batch fails, its requests
    are rerun one by one, so that only the invalid one fails.

    Batching does not change a request's latents, and its pixels by at most one level of 255: kernels sum in a different
    order for a different batch size. On one machine, a request that runs alone always returns the same bytes, and so does a
    batch of the same rows (docs/serving.md, for models that compute in float32).

    Args:
        max_rows: Maximum rows per batch, and per request.
        max_queue: Maximum queued requests; further ones are rejected as UNAVAILABLE.
        on_batch: Called with the number of rows of each batch.
    """

    def __init__(self, max_rows: int = 16, max_queue: int = 128, on_batch: Callable[[int], None] | None = None):
        self.max_rows, self._max_queue = max_rows, max_queue
        self._on_batch = on_batch or (lambda rows: None)
        self._queue: collections.deque[_Pending] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def run(self, endpoint: Endpoint, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """Queues a request, waits and returns the outputs. Raises RequestError."""
        rows = endpoint.check(inputs, self.max_rows)
        pending = _Pending(endpoint, dict(inputs), rows, time.monotonic() + timeout, concurrent.futures.Future())
        with self._changed:
            if self._closed:
                raise RequestError(UNAVAILABLE, "the server is stopping")
            if len(self._queue) >= self._max_queue:
                raise RequestError(UNAVAILABLE, f"{self._max_queue} requests are already waiting: try again later")
            self._queue.append(pending)
            self._changed.notify()
        try:
            return pending.future.result(timeout)
        except concurrent.futures.TimeoutError:
            pending.future.cancel()
            raise RequestError(DEADLINE_EXCEEDED, f"no answer within {timeout:g} s") from None

    def close(self) -> None:
        """Finishes the running batch, rejects queued requests, and stops."""
        with self._changed:
            self._closed = True
            waiting = [pending for pending in self._queue if pending.future.set_running_or_notify_cancel()]
            self._queue.clear()
            self._changed.notify()
        for pending in waiting:
            pending.future.set_exception(RequestError(UNAVAILABLE, "the server is stopping"))
        self._thread.join()

    def _take(self) -> list[_Pending]:
        """The oldest request and those that can be batched with it; empty when closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return []
            batch = [self._queue.popleft()]
            rows = batch[0].rows
            if batch[0].endpoint.batchable:
                for other in list(self._queue):
                    if rows + other.rows <= self.max_rows and batch[0].joins(other):
                        batch.append(other)
                        rows += other.rows
                        self._queue.remove(other)
            return batch

    def _work(self) -> None:
        while batch := self._take():
            now = time.monotonic()
            batch = [p for p in batch if p.deadline > now and p.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            self._on_batch(sum(pending.rows for pending in batch))
            try:
                results = self._run_together(batch) if len(batch) > 1 else None
            except Exception:  # one of them is invalid, or together they are too large
                results = None
            if results is None:
                for pending in batch:
                    self._run_alone(pending)
            else:
                for pending, outputs in zip(batch, results, strict=True):
                    pending.future.set_result(outputs)

    @staticmethod
    def _run_together(batch: list[_Pending]) -> list[dict[str, np.ndarray]]:
        joined = {name: np.concatenate([p.inputs[name] for p in batch]) for name in batch[0].inputs}
        outputs = batch[0].endpoint.run(joined)
        ends = np.cumsum([pending.rows for pending in batch])[:-1]
        split = {name: np.split(value, ends) for name, value in outputs.items()}
        return [{name: parts[i] for name, parts in split.items()} for i in range(len(batch))]

    @staticmethod
    def _run_alone(pending: _Pending) -> None:
        try:
            pending.future.set_result(pending.endpoint.run(pending.inputs))
        except Exception as error:  # including anything else TensorFlow raises: the thread must go on
            pending.future.set_exception(error)


def as_request_error(error: BaseException) -> RequestError:
    """Any exception as a RequestError that can be sent."""
    if isinstance(error, RequestError):
        return error
    logger.error("request failed", exc_info=error)
    return RequestError(INTERNAL, f"{type(error).__name__}: {error}"[:500])
