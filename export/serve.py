"""A development server for exported models that speaks TensorFlow Serving's REST and gRPC.

For machines without TensorFlow Serving: the same requests and responses, dynamic batching, version updates without
downtime, Prometheus metrics. It has neither authentication nor encryption; use TensorFlow Serving on untrusted networks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import logging
import pathlib
import re
import signal
import sys
import threading
import types

from trainers import cli
from trainers.cli import option

RECEIVE_SECONDS = 0.1  # in which a stopping server reads what its system has received


@dataclasses.dataclass(frozen=True)
class Config:
    """Server settings."""

    model_base_path: str = option("", "Folder with the version folders, as written by export.saved_model.")
    model_name: str = option("", "Model name in requests; empty for the one in metadata.json.")
    host: str = option("127.0.0.1", "Address to listen on; a non-loopback address admits other machines.")
    rest_port: int = option(8501, "Port of the REST interface; 0 for any free one.", minimum=0)
    grpc_port: int = option(8500, "Port of the gRPC interface; 0 for any free one, -1 disables it.", minimum=-1)
    num_versions: int = option(1, "Number of newest versions to serve.", minimum=1)
    poll_seconds: float = option(2.0, "Seconds between checks for new versions.", minimum=0.05)
    max_batch_size: int = option(16, "Maximum rows per request and per batch of requests.", minimum=1)
    max_queue: int = option(128, "Maximum queued requests; further ones are rejected as UNAVAILABLE.", minimum=1)
    timeout_seconds: float = option(
        30.0,
        "Time for a request to arrive, from the last response on; for its answer; and to take that, in seconds.",
        minimum=0.1,
    )
    max_request_bytes: int = option(16 << 20, "Maximum size of a gRPC request, in bytes.", minimum=1024)
    max_json_bytes: int = option(4 << 20, "Maximum size of a JSON request, unpacked, in bytes.", minimum=1024)
    max_bytes_in_flight: int = option(
        288 << 20,
        "Budget for requests and responses in flight, in bytes per process; a request counts 16 times its size, as parsed. "
        "Further requests are rejected as RESOURCE_EXHAUSTED.",
        minimum=1 << 20,
    )
    max_connections: int = option(
        64, "Maximum concurrent requests per interface; half as many as there may be connections.", minimum=1
    )
    version_labels: str = option("", "Version labels, for example stable:1,canary:2.")
    grace_seconds: float = option(10.0, "Grace period for running requests on shutdown, in seconds.", minimum=0)


class Server:
    """Both interfaces, started on construction and ended by `stop`.

    Attributes:
        rest_port, grpc_port: Ports it listens on; `grpc_port` is None if gRPC is off.

    Raises:
        ValueError: If there is no version that can be loaded.
        OSError: If a port is taken.
    """

    def __init__(self, config: Config):
        from export import serving
        from export.server import application, limits, rest

        if not config.model_name:
            config = dataclasses.replace(config, model_name=serving.model_name(config.model_base_path))
        for name in ("max_json_bytes", "max_request_bytes"):
            if limits.cost(getattr(config, name)) > config.max_bytes_in_flight:
                raise ValueError(
                    f"--max_bytes_in_flight={config.max_bytes_in_flight} holds no request of --{name}={getattr(config, name)}: "
                    f"it must be at least {limits.cost(getattr(config, name))}."
                )
        self.app = application.Application(config, version_labels(config.version_labels))
        self.grpc_port, self._grpc = None, None
        self._rest = rest.RestServer(self.app, config.host, config.rest_port)
        self.rest_port = self._rest.port
        self._call = application.main_loop_call
        try:
            self._call(self._start())
        except BaseException:
            self._call(self._close())
            raise

    async def _start(self) -> None:
        config = self.app.config
        self._rest.start()  # before the model: /healthz answers while it loads
        if config.grpc_port >= 0:
            from export.server import rpc

            self._grpc, self.grpc_port = await rpc.start(self.app, config.host, config.grpc_port)
        await self.app.versions.start(config.poll_seconds)
        if not self.app.ready:
            failed = [f"version {n}: {s.message}" for n, s in self.app.versions.status().items()]
            reason = "; ".join(failed) or "it has no folder named by a version number with a saved_model.pb in it"
            raise ValueError(f"--model_base_path={config.model_base_path} holds nothing to serve: {reason}")

    def stop(self) -> None:
        """Refuses new connections, answers what was received within the grace period, and rejects the rest."""
        self._call(self._stop())

    async def _stop(self) -> None:
        from export.server import rest

        grace = self.app.config.grace_seconds
        self.app.stopping = True
        await self._rest.stop_accepting()
        await asyncio.sleep(RECEIVE_SECONDS)  # what clients have sent before is read
        self._rest.end_idle()
        stopped = asyncio.ensure_future(self._grpc.stop(grace)) if self._grpc else None
        await rest.wait_until(lambda: not self._rest.num_busy and not self.app.num_working, grace)
        for worker in self.app.versions.workers:
            worker.reject_waiting()
        # the batch that runs ends, and rejected clients know
        await rest.wait_until(lambda: self.app.num_working == 0, self.app.config.timeout_seconds)
        if stopped:
            await stopped
        await self._close()

    async def _close(self) -> None:
        if self._grpc:
            await self._grpc.stop(None)
        await self._rest.stop_accepting()
        await self._rest.close()
        await self.app.versions.close()


def version_labels(text: str) -> dict[str, int]:
    """`stable:1,canary:2` as a dict. Raises ValueError."""
    labels = {}
    for entry in filter(None, text.split(",")):
        label, _, number = entry.partition(":")
        if not label or not re.fullmatch("[0-9]{1,18}", number):
            raise ValueError(f"--version_labels must be like stable:1,canary:2. Received {entry!r} in {text!r}.")
        labels[label] = int(number)
    return labels


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
    print(f"development server: http://{name}/v1/models/{server.app.config.model_name}", end="")
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
