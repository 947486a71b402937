"""A development server for exported models that speaks TensorFlow Serving's REST and gRPC.

For machines without TensorFlow Serving: the same requests and answers, dynamic batching, new versions without a pause,
Prometheus metrics. It has neither authentication nor encryption; put TensorFlow Serving where strangers can reach it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import pathlib
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

from trainers import cli
from trainers.cli import option


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a server."""

    model_base_path: str = option("", "Folder with the version folders, as export.saved_model writes it.")
    model_name: str = option("default", "Name of the model in requests.")
    host: str = option("127.0.0.1", "Address to listen on. Another one lets other machines in.")
    rest_port: int = option(8501, "Port of the REST interface; 0 for any free one.", minimum=0)
    grpc_port: int = option(8500, "Port of the gRPC interface; 0 for any free one, -1 for none.", minimum=-1)
    num_versions: int = option(1, "How many of the newest versions are served.", minimum=1)
    poll_seconds: float = option(2.0, "Seconds between two looks for new versions.", minimum=0.05)
    max_batch_size: int = option(16, "Most rows of a request, and of requests that run together.", minimum=1)
    max_queue: int = option(128, "Most requests that wait; one more is answered UNAVAILABLE.", minimum=1)
    timeout_seconds: float = option(30.0, "After so long a request, or a silent connection, is given up.", minimum=0.1)
    max_request_bytes: int = option(16 << 20, "Most bytes of a request.", minimum=1024)
    max_connections: int = option(64, "Most connections or calls of each interface at a time.", minimum=1)
    grace_seconds: float = option(10.0, "Time that running requests get when the server stops.", minimum=0)


class Metrics:
    """Counts for Prometheus, in a registry of its own."""

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
            "tfvidgen_batch_rows", "Rows that ran together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        waiting = prometheus.Gauge("tfvidgen_waiting_requests", "Requests that wait for the model.", registry=registry)
        waiting.set_function(lambda: batcher().num_waiting)
        self.version = prometheus.Gauge("tfvidgen_model_version", "Newest version that was loaded.", registry=registry)
        self.loads = prometheus.Counter("tfvidgen_loads", "Versions that were loaded.", ["result"], registry=registry)

    def loaded(self, number: int, seconds: float | None) -> None:
        self.loads.labels("error" if seconds is None else "ok").inc()
        if seconds is not None:
            self.version.set(number)

    def text(self) -> bytes:
        return self._prometheus.generate_latest(self.registry)


class Application:
    """What both interfaces share: the model's versions, the batcher, the counts, and whether the server is stopping."""

    def __init__(self, config: Config):
        from export.server import runtime

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
        """Round an answer: a stopping server waits for it."""
        with self._lock:
            self._num_working += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_working -= 1

    @contextlib.contextmanager
    def counted(self, api: str) -> Iterator[_Call]:
        """Round a predict request, for the metrics."""
        from export.server import runtime

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
        self.name = "unknown"  # callers cannot make new label values

    def endpoint(self, version: Any, name: str) -> Any:
        self._endpoint = version.endpoint(name)
        self.name = self._endpoint.name
        return self._endpoint

    def run(self, inputs: dict[str, Any], timeout: float) -> dict[str, Any]:
        return self._app.batcher.run(self._endpoint, inputs, timeout)


class Server:
    """Both interfaces, started on construction; `stop` ends them.

    Attributes:
        rest_port, grpc_port: Where it listens; `grpc_port` is None where gRPC is off.

    Raises:
        ValueError: If there is no version that can be loaded.
        OSError: If a port is taken.
    """

    def __init__(self, config: Config):
        from export.server import rest

        self.app = Application(config)
        self.grpc_port, self._grpc = None, None
        self._rest = rest.RestServer(self.app, config.host, config.rest_port)
        self.rest_port = self._rest.server_address[1]
        try:
            self.app.versions.start(config.poll_seconds)
            if not self.app.ready:
                failed = [f"version {n}: {s.message}" for n, s in self.app.versions.status().items()]
                reason = "; ".join(failed) or "it has no folder named by a number that holds a saved_model.pb"
                raise ValueError(f"--model_base_path={config.model_base_path} holds nothing to serve: {reason}")
            if config.grpc_port >= 0:
                from export.server import rpc

                self._grpc, self.grpc_port = rpc.start(self.app, config.host, config.grpc_port)
        except BaseException:
            self.app.versions.close()
            self.app.batcher.close()
            self._rest.server_close()
            raise
        self._thread = threading.Thread(target=self._rest.serve_forever, args=(0.05,), name="rest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes no new connections, answers what is running within the time of grace, refuses the rest, and ends."""
        from export.server import rest

        grace = self.app.config.grace_seconds
        self.app.stopping = True
        self._rest.shutdown()
        self._rest.server_close()  # those that come now are refused at once, and do not wait for a server that ends
        stopped = self._grpc.stop(grace) if self._grpc else None
        rest.wait_until(lambda: self.app.num_working == 0, grace)
        if stopped:
            stopped.wait()
        self.app.batcher.close()
        rest.wait_until(lambda: self.app.num_working == 0, rest.LINGER_SECONDS)  # until the refused know it
        self.app.versions.close()
        self._thread.join()


def _check_installed(config: Config) -> None:
    needed = {"prometheus_client": "prometheus-client"}
    if config.grpc_port >= 0:
        needed |= {"grpc": "grpcio", "tensorflow_serving": "tensorflow-serving-api"}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        hint = "" if missing == ["prometheus-client"] else " (or serve REST alone with --grpc_port=-1)"
        raise ValueError(f"{', '.join(missing)} must be installed: pip install 'tfvidgen[serving]'{hint}")


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.model_base_path:
        raise cli.UsageError("--model_base_path is missing: name the folder that holds the version folders.")
    if not pathlib.Path(config.model_base_path).is_dir():
        raise ValueError(f"--model_base_path={config.model_base_path} is not a folder.")
    _check_installed(config)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = Server(config)
    name = f"{config.host}:{server.rest_port}"
    print(f"development server: http://{name}/v1/models/{config.model_name}", end="")
    print(f", gRPC {config.host}:{server.grpc_port}" if server.grpc_port else "", flush=True)
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        print("other machines can reach it: there is no authentication", flush=True)
    stop.wait()
    print("stopping", flush=True)
    server.stop()
    return 0


def main(argv=None) -> int:
    return cli.main("export.serve", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
