"""TensorFlow Serving's gRPC services, PredictionService and ModelService, and gRPC's health service, on the event loop.

Requests are taken as bytes, which the workers parse: the message classes need TensorFlow, and parsing takes time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from google.protobuf import message as protobuf
from tensorflow_serving.apis import model_pb2

from export.server import limits
from export.server.limits import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, RequestError
from export.server.rest import wait_until

if TYPE_CHECKING:
    from export.server.application import Application

_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # grpc.health.v1.HealthCheckResponse, field 1


class Services:
    """Handlers of the services; every error is returned as a status."""

    def __init__(self, app: Application):
        self.app, self._places = app, app.config.max_connections

    async def predict(self, message: bytes, timeout: float) -> bytes:
        spec = _model_spec(message, limits.PREDICT_REQUEST)
        self.app.check_name(spec.name)
        return await self.app.predict(self._worker(spec), "grpc", message, timeout)

    async def metadata(self, message: bytes, timeout: float) -> bytes:
        spec = _model_spec(message, limits.SMALL_REQUEST)
        self.app.check_name(spec.name)
        return (await self.app.ask(self._worker(spec), "grpc metadata", message, timeout))[1]

    async def status(self, message: bytes, timeout: float) -> bytes:
        spec = _model_spec(message, limits.SMALL_REQUEST)
        self.app.check_name(spec.name)
        known = self.app.versions.status(spec.version.value if spec.HasField("version") else None, spec.version_label)
        states = [(number, status.state, status.code, status.message) for number, status in known.items()]
        return (await self.app.ask(self.app.versions.get(), "grpc status", b"", timeout, states=states))[1]

    async def health(self, message: bytes, timeout: float) -> bytes:
        return _SERVING if self.app.ready else _NOT_SERVING

    def _worker(self, spec: model_pb2.ModelSpec):
        return self.app.versions.get(spec.version.value if spec.HasField("version") else None, spec.version_label)

    def handler(self, method, max_bytes: int, needs_place: bool = True):
        """A method of one request and one response, whose bytes are reserved before the request is read."""

        async def answer(context) -> bytes:
            limit, remaining = self.app.config.timeout_seconds, context.time_remaining()
            timeout = limit if remaining is None else max(0.0, min(limit, remaining))
            if needs_place and self._places <= 0:
                raise RequestError(RESOURCE_EXHAUSTED, "too many requests are being worked on: try again later")
            self._places -= needs_place
            budget, held = self.app.budget, 0
            try:
                # How large the message will be is not told. Most take no time to read, so there is soon room for the next.
                if not await wait_until(lambda: budget.held + max_bytes <= budget.limit, timeout):
                    budget.take(max_bytes)  # refuses
                budget.take(max_bytes)
                held = max_bytes
                try:
                    message = await asyncio.wait_for(context.read(), timeout)
                except asyncio.TimeoutError:
                    raise limits.late(timeout) from None
                if not isinstance(message, bytes):
                    raise RequestError(INVALID_ARGUMENT, "the call ended without a request")
                budget.give(held)
                held = 0
                budget.take(limits.cost(len(message)))
                held = limits.cost(len(message))
                response = await method(message, timeout)
                budget.take(len(response))
                held += len(response)
                return response
            finally:
                budget.give(held)
                self._places += needs_place

        async def handle(_, context) -> bytes:
            with self.app.working():
                try:
                    return await answer(context)
                except RequestError as error:
                    failure = error
            await context.abort(grpc.StatusCode[failure.code], str(failure)[:1000])

        return grpc.stream_unary_rpc_method_handler(handle)  # on the wire it is the same as unary_unary


def _model_spec(message: bytes, large) -> model_pb2.ModelSpec:
    try:
        return model_pb2.ModelSpec.FromString(limits.check_message(message, large))
    except protobuf.DecodeError:
        raise RequestError(INVALID_ARGUMENT, "`model_spec` is not a ModelSpec") from None


async def start(app: Application, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Starts a server; returns it and its port. Raises OSError if the port is taken."""
    config, services = app.config, Services(app)
    milliseconds = int(1000 * config.timeout_seconds)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server on the port fails instead of sharing requests
            ("grpc.server_handshake_timeout_ms", milliseconds),
            ("grpc.max_connection_idle_ms", milliseconds),
        ]
    )
    large, small = config.max_request_bytes, limits.MAX_SMALL
    handlers = {
        "tensorflow.serving.PredictionService": {
            "Predict": services.handler(services.predict, large),
            "GetModelMetadata": services.handler(services.metadata, small),
        },
        "tensorflow.serving.ModelService": {"GetModelStatus": services.handler(services.status, small)},
        "grpc.health.v1.Health": {"Check": services.handler(services.health, small, needs_place=False)},
    }
    for service, methods in handlers.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise OSError(f"cannot listen on {host}:{port} for gRPC: choose another --grpc_port, 0 for any free one, or -1")
    await server.start()
    return server, bound
