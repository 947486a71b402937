"""A process for each loaded version: it parses requests, runs the model and writes responses.

The process that holds the connections never waits for a parser, a model that loads, or Python's lock while one does, and all
that a version has taken is the system's again when its process ends. Both talk over a socket, in messages of a header (JSON)
and a body (bytes).
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from export.server import limits
from export.server.limits import UNAVAILABLE, RequestError

_SIZES = struct.Struct(">II")  # of a message's header and body
_NUM_THREADS = 2  # that parse, and as many that write: more would only wait for Python's lock
_STOP_SECONDS = 5.0  # for a process that has been told to end
logger = logging.getLogger("export.serve")


# ---------------------------------------------------------------- in the server's process
class Worker:
    """A worker process, seen from the server's event loop.

    Args:
        folder: The version folder.
        settings: The server's settings that a worker needs: `max_batch_size`, `max_queue`, `max_json_bytes`, `max_bytes_in_flight`.
        on_batch: Called with the number of rows of each batch.
        on_end: Called once, when the process has ended without having been told to.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        settings: dict[str, Any],
        on_batch: Callable[[int], None],
        on_end: Callable[[], None],
    ):
        self.number, self.pid, self.num_calls = int(folder.name), 0, 0
        self._folder, self._settings, self._on_batch, self._on_end = folder, settings, on_batch, on_end
        self._answers: dict[int, asyncio.Future] = {}
        self._ids = itertools.count()
        self._closing = False

    async def start(self) -> None:
        """Starts the process and waits until it has loaded its version. Raises RequestError with the reason if it cannot."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (theirs, str(self._folder), self._settings)
            self._process = _context().Process(target=_main, args=arguments, name="worker", daemon=True)
            try:
                await loop.run_in_executor(None, self._process.start)  # imports TensorFlow, the first time
            except BaseException:
                ours.close()
                raise
        self.pid = self._process.pid
        atexit.register(self._process.kill)  # else a program that ends without `close` would wait for it
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 22)
        self._reading = asyncio.ensure_future(self._read())
        try:
            await self.call({"kind": "load"})
        except BaseException:
            await self.close()
            raise

    async def call(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Sends a request and waits for its answer. Raises RequestError."""
        if self._closing:
            raise RequestError(UNAVAILABLE, f"version {self.number} is unloaded")
        number, answer = next(self._ids), asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self.num_calls += 1
        try:
            self._writer.write(_prefix(header | {"id": number}, body))
            self._writer.write(body)
            head, body = await answer
        finally:
            self.num_calls -= 1
            del self._answers[number]
        if head["code"] != "OK":
            raise RequestError(head["code"], head["message"], head["status"], head.get("endpoint", "unknown"))
        return head, body

    def reject_waiting(self) -> None:
        """Has the calls refused that have not begun."""
        self._writer.write(_prefix({"kind": "close", "id": -1}, b""))

    async def close(self) -> None:
        """Ends the process."""
        self._closing = True
        self._writer.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._process.join, _STOP_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            await loop.run_in_executor(None, self._process.join)
        atexit.unregister(self._process.kill)
        await self._reading

    async def _read(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head_size, body_size = _SIZES.unpack(await self._reader.readexactly(_SIZES.size))
                head = json.loads(await self._reader.readexactly(head_size))
                body = await self._reader.readexactly(body_size)
                if head["kind"] == "batch":
                    self._on_batch(head["rows"])
                elif (answer := self._answers.get(head["id"])) and not answer.done():  # else nobody waits any more
                    answer.set_result((head, body))
                del body
        gone = RequestError(UNAVAILABLE, f"the process of version {self.number} has ended: try again later")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(gone)
        if not self._closing:
            self._closing = True
            self._writer.close()
            self._on_end()


@functools.cache
def _context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a process that has imported TensorFlow and done nothing else: they start in a moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["export.server.preload"])
    return context


def _prefix(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return _SIZES.pack(len(text), len(body)) + text


# ---------------------------------------------------------------- in the worker
def _main(connection: socket.socket, folder: str, settings: dict[str, Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to a whole group; the server decides when a worker ends
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        _Main(connection, pathlib.Path(folder), settings).run()
    except OSError:  # the server has ended
        pass
    os._exit(0)  # at once: TensorFlow's threads have nothing to finish


class _Main:
    """Reads messages until the server closes the connection."""

    def __init__(self, connection: socket.socket, folder: pathlib.Path, settings: dict[str, Any]):
        self._connection, self._folder, self._settings = connection, folder, settings
        self._sending = threading.Lock()
        self._budget = limits.Budget(settings["max_bytes_in_flight"])
        self._parsing, self._writing = (concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) for _ in range(2))

    def run(self) -> None:
        stream = self._connection.makefile("rb", buffering=1 << 16)
        while sizes := stream.read(_SIZES.size):
            head_size, body_size = _SIZES.unpack(sizes)
            head, body = json.loads(stream.read(head_size)), stream.read(body_size)
            if head["kind"] == "load":
                self._answer(head["id"], self._load)
            elif head["kind"] == "close":
                threading.Thread(target=self._batcher.close, daemon=True).start()
            else:
                self._parsing.submit(self._begin, head, body)
            del body

    def _send(self, header: dict[str, Any], body: bytes = b"") -> None:
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(_prefix(header, body))
            self._connection.sendall(body)

    def _answer(self, number: int, respond: Callable[[], bytes], **told: Any) -> None:
        """Sends what `respond` returns, or its error."""
        from export.server import runtime

        try:
            body, head = respond(), {"code": "OK"}
        except BaseException as error:
            failure = runtime.as_request_error(error)
            body, head = b"", {"code": failure.code, "message": str(failure), "status": failure.status}
        self._send({"kind": "answer", "id": number, **head, **told}, body)

    def _load(self) -> bytes:
        from export.server import runtime, values

        settings = self._settings
        self._version = runtime.Version(self._folder, settings["max_batch_size"])
        self._bound = values.JsonBound(self._version)
        self._batcher = runtime.Batcher(
            settings["max_batch_size"],
            settings["max_queue"],
            lambda rows: self._send({"kind": "batch", "rows": rows}),
        )
        return b""

    def _begin(self, head: dict[str, Any], body: bytes) -> None:
        """Parses a request and queues it; the batcher's answer is written elsewhere."""
        call = _Call(self._version, self._budget)
        try:
            if question := _QUESTIONS.get(head["kind"]):
                return self._answer(head["id"], functools.partial(question, self._version, head, body))
            if head["kind"] == "rest":
                inputs = call.read_json(head, body, self._bound, self._settings["max_json_bytes"])
            else:
                inputs = call.read_message(body)
            del body
            call.reserve(call.endpoint.output_bytes(inputs))
            outputs = self._batcher.submit(call.endpoint, inputs, head["timeout"])
        except BaseException as error:
            failure = error  # the name `error` ends with this block

            def fail() -> bytes:
                raise failure

            self._answer(head["id"], fail, endpoint=call.name)
            return call.end()
        outputs.add_done_callback(lambda done: self._writing.submit(self._finish, head, call, done))

    def _finish(self, head: dict[str, Any], call: _Call, outputs: concurrent.futures.Future) -> None:
        try:
            self._answer(head["id"], lambda: call.response(outputs.result()), endpoint=call.name)
        finally:
            call.end()


class _Call:
    """A predict request: its endpoint, what it has reserved, and the form of its response."""

    def __init__(self, version: Any, budget: limits.Budget):
        self._version, self._budget, self._reserved = version, budget, 0
        self.endpoint, self.name = None, "unknown"  # a caller's own name would be a new label of the metrics
        self._respond: Callable[[dict], bytes] | None = None

    def reserve(self, num_bytes: int) -> None:
        self._budget.take(num_bytes)
        self._reserved += num_bytes

    def end(self) -> None:
        self._budget.give(self._reserved)

    def _choose(self, name: str) -> Any:
        self.endpoint = self._version.endpoint(name)
        self.name = self.endpoint.name
        return self.endpoint

    def read_json(self, head: dict[str, Any], body: bytes, bound: Any, max_bytes: int) -> dict[str, Any]:
        from export.server import values

        body = values.unpacked(body, max_bytes) if head["gzip"] else body
        bound.check(body)
        request = values.parse_request(body)
        endpoint, rows = self._choose(request.get("signature_name", "")), "instances" in request
        inputs = values.json_inputs(endpoint, request)
        self.reserve(sum(value.nbytes for value in inputs.values()))
        self._respond = lambda outputs: values.response_body(endpoint, outputs, rows)
        return inputs

    def read_message(self, body: bytes) -> dict[str, Any]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        from export.server import values

        request = _parsed(predict_pb2.PredictRequest, body)
        endpoint = self._choose(request.model_spec.signature_name)
        unknown = [name for name in request.output_filter if name not in endpoint.outputs]
        if unknown:
            raise RequestError(
                limits.INVALID_ARGUMENT,
                f"{endpoint.name} returns {', '.join(endpoint.outputs)}: unknown {unknown[0][:100]}",
            )
        wanted, model = list(request.output_filter), request.model_spec.name

        def respond(outputs):
            response = predict_pb2.PredictResponse()
            response.model_spec.name = model
            response.model_spec.version.value = self._version.number
            response.model_spec.signature_name = endpoint.name
            for name in wanted or outputs:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
            return response.SerializeToString()

        self._respond = respond
        return values.message_inputs(endpoint, request, self.reserve)

    def response(self, outputs: dict[str, Any]) -> bytes:
        return self._respond(outputs)


def _parsed(request_class: Any, body: bytes) -> Any:
    from google.protobuf import message

    try:
        return request_class.FromString(body)
    except message.DecodeError:
        raise RequestError(limits.INVALID_ARGUMENT, f"the message is not a {request_class.__name__}") from None


# ---------------------------------------------------------------- questions about the model, answered in the worker
def _rest_metadata(version: Any, head: dict[str, Any], body: bytes) -> bytes:
    from export.server import values

    return json.dumps(values.metadata_body(head["model"], version)).encode()


def _grpc_metadata(version: Any, head: dict[str, Any], body: bytes) -> bytes:
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = _parsed(get_model_metadata_pb2.GetModelMetadataRequest, body)
    wanted = list(request.metadata_field)
    if wanted != ["signature_def"]:
        raise RequestError(limits.INVALID_ARGUMENT, f"metadata_field must be signature_def. Received {wanted}"[:300])
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = head["model"]
    response.model_spec.version.value = version.number
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.signature_defs)
    response.metadata["signature_def"].Pack(signatures)
    return response.SerializeToString()


def _grpc_status(version: Any, head: dict[str, Any], body: bytes) -> bytes:
    """The states that the server knows, as a message: its classes need TensorFlow, which only workers import."""
    import grpc
    from tensorflow_serving.apis import get_model_status_pb2

    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state, code, message in head["states"]:
        state = get_model_status_pb2.ModelVersionStatus.State.Value(state)
        entry = response.model_version_status.add(version=number, state=state)
        if code != "OK":
            entry.status.error_code = grpc.StatusCode[code].value[0]
            entry.status.error_message = message
    return response.SerializeToString()


_QUESTIONS: dict[str, Callable[[Any, dict[str, Any], bytes], bytes]] = {
    "rest metadata": _rest_metadata,
    "grpc metadata": _grpc_metadata,
    "grpc status": _grpc_status,
}
