"""State shared by the server's interfaces: a model's versions, the budget, the metrics, and whether it is stopping."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from export.server import limits
from export.server.limits import INTERNAL, NOT_FOUND, RequestError
from export.server.versions import Versions
from export.server.worker import Worker


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """The process's only loop, in a thread of its own: gRPC's asyncio interface wants one for all of its servers."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="server", daemon=True).start()
    return loop


class Metrics:
    """Prometheus metrics, in a separate registry; those of the newest version's process begin with `worker_`."""

    def __init__(self, app: Application):
        import prometheus_client as prometheus

        self._prometheus = prometheus
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        prometheus.ProcessCollector("worker", lambda: app.versions.workers[0].pid, registry=registry)
        self.requests = prometheus.Counter(
            "tfvidgen_requests", "Predict requests.", ["api", "endpoint", "code"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "tfvidgen_request_seconds", "Time from a received request to its outputs.", ["endpoint"], registry=registry
        )
        self.batch_rows = prometheus.Histogram(
            "tfvidgen_batch_rows", "Rows per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        waiting = prometheus.Gauge("tfvidgen_waiting_requests", "Requests waiting for the model.", registry=registry)
        waiting.set_function(lambda: sum(worker.num_calls for worker in app.versions.workers))
        held = prometheus.Gauge(
            "tfvidgen_bytes_in_flight", "Bytes reserved for requests and responses.", registry=registry
        )
        held.set_function(lambda: app.budget.held)
        self.version = prometheus.Gauge("tfvidgen_model_version", "Newest loaded version.", registry=registry)
        self.loads = prometheus.Counter("tfvidgen_loads", "Attempts to load a version.", ["result"], registry=registry)

    def loaded(self, number: int, seconds: float | None) -> None:
        self.loads.labels("error" if seconds is None else "ok").inc()
        if seconds is not None:
            self.version.set(number)

    def text(self) -> bytes:
        return self._prometheus.generate_latest(self.registry)


class Application:
    """The backend of both REST and gRPC, on the event loop.

    Args:
        config: Server settings, as `export.serve.Config`.
        labels: Version label -> version.
    """

    def __init__(self, config: Any, labels: Mapping[str, int]):
        self.config, self.stopping, self.num_working = config, False, 0
        self.budget = limits.Budget(config.max_bytes_in_flight)
        names = ("max_batch_size", "max_queue", "max_json_bytes", "max_bytes_in_flight")
        settings = {name: getattr(config, name) for name in names}

        def make(folder, on_end):
            return Worker(folder, settings, lambda rows: self.metrics.batch_rows.observe(rows), on_end)

        self.versions = Versions(
            config.model_base_path,
            config.num_versions,
            labels,
            make,
            lambda number, seconds: self.metrics.loaded(number, seconds),
        )
        self.metrics = Metrics(self)

    @property
    def ready(self) -> bool:
        return not self.stopping and bool(self.versions.workers)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Wraps a request from its first byte to the last of its response: a stopping server waits for it."""
        self.num_working += 1
        try:
            yield
        finally:
            self.num_working -= 1

    def check_name(self, name: str) -> None:
        """Raises RequestError for the name of another model."""
        if name != self.config.model_name:
            raise RequestError(NOT_FOUND, f"no model {name[:100]!r}: this is {self.config.model_name!r}")

    async def predict(self, worker: Worker, api: str, body: bytes, timeout: float, **header: Any) -> bytes:
        """The response to a predict request of either interface, `rest` or `grpc`. Raises RequestError."""
        begin, code, endpoint = time.monotonic(), "OK", "unknown"
        try:
            head, response = await self.ask(worker, api, body, timeout, **header)
            endpoint = head["endpoint"]
            return response
        except RequestError as error:
            code, endpoint = error.code, error.endpoint
            raise
        except BaseException:
            code = INTERNAL
            raise
        finally:
            self.metrics.requests.labels(api, endpoint, code).inc()
            self.metrics.seconds.labels(endpoint).observe(time.monotonic() - begin)

    async def ask(
        self, worker: Worker, kind: str, body: bytes, timeout: float, **header: Any
    ) -> tuple[dict[str, Any], bytes]:
        """What a worker answers within the time. Raises RequestError."""
        header |= {"kind": kind, "timeout": timeout, "model": self.config.model_name}
        try:
            return await asyncio.wait_for(worker.call(header, body), timeout)
        except asyncio.TimeoutError:
            raise limits.late(timeout) from None


def main_loop_call(coroutine: Any) -> Any:
    """Runs a coroutine on the event loop and waits for its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, event_loop()).result()
