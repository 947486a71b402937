"""A development server for exported models that speaks TensorFlow Serving's REST and gRPC.

For machines without TensorFlow Serving: the same requests and responses, dynamic batching, version updates without
downtime, Prometheus metrics. It has neither authentication nor encryption; use TensorFlow Serving on untrusted networks.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import pathlib
import signal
import sys
import threading
import types

from trainers import cli
from trainers.cli import option


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
    timeout_seconds: float = option(30.0, "Timeout of requests and of idle connections, in seconds.", minimum=0.1)
    max_request_bytes: int = option(16 << 20, "Maximum size of a request, in bytes.", minimum=1024)
    max_connections: int = option(64, "Maximum concurrent connections or calls per interface.", minimum=1)
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
        from export.server import application, rest

        if not config.model_name:
            config = dataclasses.replace(config, model_name=serving.model_name(config.model_base_path))
        self.app = application.Application(config)
        self.grpc_port, self._grpc = None, None
        self._rest = rest.RestServer(self.app, config.host, config.rest_port)
        self.rest_port = self._rest.server_address[1]
        try:
            self.app.versions.start(config.poll_seconds)
            if not self.app.ready:
                failed = [f"version {n}: {s.message}" for n, s in self.app.versions.status().items()]
                reason = "; ".join(failed) or "it has no folder named by a version number with a saved_model.pb in it"
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
        """Stops accepting connections, answers running requests within the grace period, and rejects the rest."""
        from export.server import rest

        grace = self.app.config.grace_seconds
        self.app.stopping = True
        self._rest.shutdown()
        self._rest.server_close()  # new connections are refused at once instead of waiting
        stopped = self._grpc.stop(grace) if self._grpc else None
        rest.wait_until(lambda: self.app.num_working == 0, grace)
        if stopped:
            stopped.wait()
        self.app.batcher.close()
        rest.wait_until(lambda: self.app.num_working == 0, rest.LINGER_SECONDS)  # until rejected clients know
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
