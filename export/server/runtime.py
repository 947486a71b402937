"""Loads an exported version and runs its endpoints: checks arrays against what the model takes, and batches requests.

Independent of HTTP and gRPC, and of processes; `export.server.worker` runs it in a process of its own.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import logging
import math
import pathlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from export.server.limits import (
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    RequestError,
    late,
)
from tfvidgen import storage

logger = logging.getLogger("export.serve")


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """dtype and shape of an input or output; None for free sizes."""

    dtype: np.dtype
    shape: tuple[int | None, ...]

    def text(self) -> str:
        return f"{self.dtype if self.dtype != object else 'string'} {str(self.shape).replace('None', '?')}"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The largest request that a model takes, from its `metadata.json`; None where that does not say.

    Attributes:
        rows: Rows of every input but scalars.
        frames: Frames of a video whose length is free.
        steps: Videos of an interpolation.
        length: Frames of a video if nothing else is asked for.
        frame_bytes: Bytes of a frame's pixels.
    """

    rows: int = 16
    frames: int | None = None
    steps: int | None = None
    length: int = 1
    frame_bytes: int = 1 << 16

    @classmethod
    def of(cls, folder: pathlib.Path, rows: int) -> Sizes:
        path = folder / "metadata.json"
        if not path.is_file():
            return cls(rows)
        metadata = json.loads(path.read_text(encoding="utf-8"))
        limits, video = metadata["limits"], metadata["video"]
        return cls(rows, limits["num_frames"], limits["num_steps"], video["num_frames"], math.prod(video["shape"][2:]))


class Endpoint:
    """One signature of a loaded version.

    Attributes:
        inputs, outputs: Name -> TensorSpec.
        batchable: Whether requests can be batched along the first axis.
        sizes: The largest request.
    """

    def __init__(self, name: str, function: Callable, sizes: Sizes | None = None):
        self.name, self.sizes = name, sizes or Sizes()
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

    def largest(self, name: str) -> tuple[int | None, ...]:
        """The largest shape of an input; None for sizes without a limit."""
        shape = self.inputs[name].shape
        free = (self.sizes.rows, *[self.sizes.frames] * len(shape))
        return tuple(limit if size is None else size for size, limit in zip(shape, free, strict=False))

    def check(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Raises RequestError unless names, dtypes, shapes and values fit; returns the number of rows (1 for scalars)."""
        self.check_names(inputs)
        rows = 1
        for name, spec in self.inputs.items():
            value = inputs[name]
            self.check_spec(name, value.dtype, value.shape)
            rows = value.shape[0] if spec.shape else rows
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise RequestError(INVALID_ARGUMENT, f"{name} must be finite")
        counts = {name: len(inputs[name]) for name, spec in self.inputs.items() if spec.shape}
        if len(set(counts.values())) > 1:
            raise RequestError(INVALID_ARGUMENT, f"all inputs need the same number of rows. Received {counts}")
        return rows

    def check_names(self, inputs: Mapping[str, Any]) -> None:
        """Raises RequestError unless there is a value for each input, and for nothing else."""
        missing = [name for name in self.inputs if name not in inputs]
        unknown = [name for name in inputs if name not in self.inputs]
        wrong = [
            f"{text} {', '.join(names)[:200]}" for text, names in (("missing", missing), ("unknown", unknown)) if names
        ]
        if wrong:
            raise RequestError(INVALID_ARGUMENT, f"{self.name} takes {', '.join(self.inputs)}: {'; '.join(wrong)}")

    def check_spec(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """Raises RequestError unless a tensor of this dtype and shape is valid for the input `name`. Makes no array."""
        spec, largest = self.inputs[name], self.largest(name)
        fits = len(shape) == len(spec.shape) and all(a in (None, b) for a, b in zip(spec.shape, shape, strict=True))
        if dtype != spec.dtype or not fits:
            given = TensorSpec(np.dtype(dtype), tuple(shape))
            raise RequestError(INVALID_ARGUMENT, f"{name} must be {spec.text()}. Received {given.text()}"[:500])
        for axis, (size, limit) in enumerate(zip(shape, largest, strict=True)):
            if size < 1 or (limit is not None and size > limit):
                what, bound = "frames" if axis else "rows in one request", f"1 to {limit}" if limit else "at least 1"
                raise RequestError(INVALID_ARGUMENT, f"{name} must have {bound} {what}. Received {size}")

    def num_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes of an input of that shape."""
        return math.prod(shape) * self.inputs[name].dtype.itemsize

    def output_bytes(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Bytes of the outputs for these inputs, before they are computed; files count as the pixels in them."""

        def asked(name: str, otherwise: int, limit: int | None) -> int:
            value = int(inputs[name]) if name in inputs and not self.inputs[name].shape else otherwise
            return max(1, value if limit is None else min(value, limit))

        shapes = [value.shape for value in inputs.values() if value.ndim]
        free = [value.shape[1] for name, value in inputs.items() if self.inputs[name].shape[1:2] == (None,)]
        rows = shapes[0][0] if shapes else asked("num_steps", 1, self.sizes.steps)
        frames = free[0] if free else asked("num_frames", self.sizes.length, self.sizes.frames)
        total = 0
        for spec in self.outputs.values():
            sizes = zip(spec.shape, (rows, *[frames] * len(spec.shape)), strict=False)
            itemsize = self.sizes.frame_bytes if spec.dtype == object else spec.dtype.itemsize
            total += math.prod(asked if size is None else size for size, asked in sizes) * itemsize
        return total

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


# ---------------------------------------------------------------- a version
class Version:
    """A loaded version folder.

    Args:
        folder: The version folder, named by its number.
        max_rows: Maximum rows per request.

    Attributes:
        number: The folder's name as an integer.
        endpoints: Name -> Endpoint.
        signature_defs: Name -> SignatureDef, as stored in the SavedModel.
    """

    def __init__(self, folder: pathlib.Path, max_rows: int = 16):
        import tensorflow as tf
        from tensorflow.core.protobuf import saved_model_pb2

        from export import serving

        self.number, self.folder = int(folder.name), folder
        with storage.plain_path(folder) as plain:
            self._model = tf.saved_model.load(plain)  # keeps the signatures alive
        sizes = Sizes.of(folder, max_rows)
        self.endpoints = {name: Endpoint(name, function, sizes) for name, function in self._model.signatures.items()}
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
                FAILED_PRECONDITION, f"no endpoint {name[:100]!r} in version {self.number}: {', '.join(self.endpoints)}"
            )
        return self.endpoints[name]


# ---------------------------------------------------------------- batching
@dataclasses.dataclass(eq=False)
class _Pending:
    endpoint: Endpoint
    inputs: dict[str, np.ndarray]
    rows: int
    timeout: float
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
        max_rows: Maximum rows per batch.
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

    def submit(self, endpoint: Endpoint, inputs: Mapping[str, np.ndarray], timeout: float) -> concurrent.futures.Future:
        """Queues a request; the future of its outputs ends with a RequestError if it fails. Raises RequestError if refused.

        Args:
            endpoint: Of a version that stays loaded.
            inputs: Checked here once more, by their values, too.
            timeout: Seconds after which it is not begun any more.
        """
        rows = endpoint.check(inputs)
        pending = _Pending(
            endpoint, dict(inputs), rows, timeout, time.monotonic() + timeout, concurrent.futures.Future()
        )
        with self._changed:
            if self._closed:
                raise RequestError(UNAVAILABLE, "the server is stopping")
            if len(self._queue) >= self._max_queue:
                raise RequestError(UNAVAILABLE, f"{self._max_queue} requests are already waiting: try again later")
            self._queue.append(pending)
            self._changed.notify()
        return pending.future

    def run(self, endpoint: Endpoint, inputs: Mapping[str, np.ndarray], timeout: float) -> dict[str, np.ndarray]:
        """Queues a request, waits and returns the outputs. Raises RequestError."""
        future = self.submit(endpoint, inputs, timeout)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise late(timeout) from None

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
            batch = [pending for pending in batch if pending.future.set_running_or_notify_cancel()]
            for pending in batch:
                if pending.deadline <= now:
                    pending.future.set_exception(late(pending.timeout))
            batch = [pending for pending in batch if pending.deadline > now]
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
