"""State shared by the server's interfaces: a model's versions, the batcher, the metrics, and whether it is stopping."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from export.server import runtime


class Metrics:
    """Prometheus metrics, in a separate registry."""

    def __init__(self, batcher):
        import prometheus_client as prometheus

        self._prometheus = prometheus
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.requests = prometheus.Counter(
            "tfvidgen_requests", "Predict requests.", ["api", "endpoint", "code"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "tfvidgen_request_seconds", "Time from a parsed request to its outputs.", ["endpoint"], registry=registry
        )
        self.batch_rows = prometheus.Histogram(
            "tfvidgen_batch_rows", "Rows per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        waiting = prometheus.Gauge("tfvidgen_waiting_requests", "Requests waiting for the model.", registry=registry)
        waiting.set_function(lambda: batcher().num_waiting)
        self.version = prometheus.Gauge("tfvidgen_model_version", "Newest loaded version.", registry=registry)
        self.loads = prometheus.Counter("tfvidgen_loads", "Attempts to load a version.", ["result"], registry=registry)

    def loaded(self, number: int, seconds: float | None) -> None:
        self.loads.labels("error" if seconds is None else "ok").inc()
        if seconds is not None:
            self.version.set(number)

    def text(self) -> bytes:
        return self._prometheus.generate_latest(self.registry)


class Application:
    """The backend of both REST and gRPC.

    Args:
        config: Server settings, as `export.serve.Config`.
    """

    def __init__(self, config: Any):
        self.config, self.stopping = config, False
        self.metrics = Metrics(lambda: self.batcher)
        self.versions = runtime.Versions(config.model_base_path, config.num_versions, self.metrics.loaded)
        self.batcher = runtime.Batcher(config.max_batch_size, config.max_queue, self.metrics.batch_rows.observe)
        self._num_working, self._lock = 0, threading.Lock()

    @property
    def ready(self) -> bool:
        return not self.stopping and any(status.state == "AVAILABLE" for status in self.versions.status().values())

    @property
    def num_working(self) -> int:
        return self._num_working

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Wraps a response: a stopping server waits for it."""
        with self._lock:
            self._num_working += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_working -= 1

    @contextlib.contextmanager
    def counted(self, api: str) -> Iterator[_Call]:
        """Wraps a predict request, to record its metrics."""
        call = _Call(self)
        begin, code = time.monotonic(), "OK"
        try:
            yield call
        except BaseException as error:
            code = error.code if isinstance(error, runtime.RequestError) else runtime.INTERNAL
            raise
        finally:
            self.metrics.requests.labels(api, call.name, code).inc()
            self.metrics.seconds.labels(call.name).observe(time.monotonic() - begin)


class _Call:
    def __init__(self, app: Application):
        self._app, self._endpoint = app, None
        self.name = "unknown"  # callers cannot create new label values

    def endpoint(self, version: Any, name: str) -> Any:
        self._endpoint = version.endpoint(name)
        self.name = self._endpoint.name
        return self._endpoint

    def run(self, inputs: dict[str, Any], timeout: float) -> dict[str, Any]:
        return self._app.batcher.run(self._endpoint, inputs, timeout)
