"""TensorFlow Serving's REST interface, limited to a single model, on the standard library's HTTP server."""

from __future__ import annotations

import base64
import http.server
import json
import re
import socket
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

import numpy as np

from export.server.runtime import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    Endpoint,
    RequestError,
    TensorSpec,
    Version,
    as_request_error,
)

if TYPE_CHECKING:
    from export.server.application import Application

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "UNAVAILABLE": 503,
    "RESOURCE_EXHAUSTED": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
}
_MODEL = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?(?P<verb>:predict|/metadata)?"
)
LINGER_SECONDS = 2.0  # for a client to read why its request was rejected before it was fully sent
METRICS_PATH = "/monitoring/prometheus/metrics"


# ---------------------------------------------------------------- values
def parse_request(body: bytes) -> dict[str, Any]:
    """The JSON object of a predict request. Raises RequestError."""

    def no_constant(text):
        raise ValueError(f"{text} is not JSON")

    try:
        request = json.loads(body.decode("utf-8"), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError and JSONDecodeError
        raise RequestError(INVALID_ARGUMENT, f"the body is not JSON: {error}"[:300]) from None
    if not isinstance(request, dict):
        raise RequestError(INVALID_ARGUMENT, "the body must be a JSON object with `inputs` or `instances`")
    unknown = sorted(set(request) - {"inputs", "instances", "signature_name"})
    if unknown or ("inputs" in request) == ("instances" in request):
        raise RequestError(
            INVALID_ARGUMENT,
            f"a request has `inputs` or `instances`, and may have `signature_name`. Received {', '.join(request)[:200]}",
        )
    if not isinstance(request.get("signature_name", ""), str):
        raise RequestError(INVALID_ARGUMENT, "`signature_name` must be a string")
    return request


def request_inputs(endpoint: Endpoint, request: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a request in columnar (`inputs`) or row (`instances`) format. Raises RequestError."""
    only = next(iter(endpoint.inputs)) if len(endpoint.inputs) == 1 else None
    if "inputs" in request:
        columns = request["inputs"]
        if not isinstance(columns, dict):
            if only is None:
                raise RequestError(INVALID_ARGUMENT, f"`inputs` must be an object with {', '.join(endpoint.inputs)}")
            columns = {only: columns}
    else:
        rows = request["instances"]
        scalars = [name for name, spec in endpoint.inputs.items() if not spec.shape]
        if scalars:
            raise RequestError(
                INVALID_ARGUMENT,
                f"{endpoint.name} takes scalars ({', '.join(scalars)}): send `inputs`, not `instances`",
            )
        if not isinstance(rows, list):
            raise RequestError(INVALID_ARGUMENT, "`instances` must be a list")
        if only is not None and not any(isinstance(row, dict) for row in rows):
            rows = [{only: row} for row in rows]
        if not all(isinstance(row, dict) and row.keys() == endpoint.inputs.keys() for row in rows):
            raise RequestError(
                INVALID_ARGUMENT, f"every instance must be an object with exactly {', '.join(endpoint.inputs)}"
            )
        columns = {name: [row[name] for row in rows] for name in endpoint.inputs}
    unknown = [name for name in columns if name not in endpoint.inputs]
    if unknown:
        raise RequestError(
            INVALID_ARGUMENT, f"{endpoint.name} takes {', '.join(endpoint.inputs)}: unknown {', '.join(unknown)[:200]}"
        )
    return {name: _array(name, value, endpoint.inputs[name]) for name, value in columns.items()}


def _array(name: str, value: Any, spec: TensorSpec) -> np.ndarray:
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise RequestError(INVALID_ARGUMENT, f"{name} is not a rectangular list of numbers") from None
    allowed = "iu" if spec.dtype.kind in "iu" else "iuf"
    if array.size and array.dtype.kind not in allowed:
        kind = "whole numbers" if allowed == "iu" else "numbers"
        raise RequestError(INVALID_ARGUMENT, f"{name} must hold {kind} that fit into {spec.dtype}")
    if array.size and spec.dtype.kind in "iu":
        bounds = np.iinfo(spec.dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise RequestError(INVALID_ARGUMENT, f"{name} must lie in {bounds.min}..{bounds.max}")
    with np.errstate(over="ignore"):  # overflows to infinity, which the endpoint rejects
        return array.astype(spec.dtype)


def json_array(array: np.ndarray) -> bytes:
    """An array as nested JSON lists; bytes become `{"b64": ...}`."""
    if array.dtype == np.uint8 and array.ndim and array.size:
        return _json_uint8(array)
    if array.dtype == object:
        return json.dumps(_base64(array.tolist())).encode()
    return json.dumps(array.tolist()).encode()


def _base64(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return [_base64(part) for part in value]


_DIGITS = np.array([list(f"{value:3d},".encode()) for value in range(256)], np.uint8)


def _json_uint8(array: np.ndarray) -> bytes:
    """Every number takes four characters, so array operations produce the text of a video: 15 times as fast as json."""
    text = _DIGITS[array]  # (..., 4)
    while text.ndim > 1:
        text = text.reshape(*text.shape[:-2], -1)  # a list's elements in a row, each followed by a comma
        text[..., -1] = ord("]")
        edge = np.empty((*text.shape[:-1], 1), np.uint8)
        text = np.concatenate([np.full_like(edge, ord("[")), text, np.full_like(edge, ord(","))], axis=-1)
    return text[:-1].tobytes()


def response_body(endpoint: Endpoint, outputs: dict[str, np.ndarray], row_format: bool) -> bytes:
    """`predictions` in row or `outputs` in columnar format; the name is omitted if there is only one output."""
    if len(outputs) == 1:
        value = json_array(next(iter(outputs.values())))
    elif row_format:
        columns = {name: _plain(values) for name, values in outputs.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        value = json.dumps(rows).encode()
    else:
        value = b"{" + b", ".join(json.dumps(n).encode() + b": " + json_array(v) for n, v in outputs.items()) + b"}"
    return b'{"' + (b"predictions" if row_format else b"outputs") + b'": ' + value + b"}"


def _plain(array: np.ndarray) -> list:
    return _base64(array.tolist()) if array.dtype == object else array.tolist()


def metadata_body(name: str, version: Version) -> dict[str, Any]:
    """The response of `/metadata`: the signatures as the JSON form of their protocol buffers."""
    from google.protobuf import json_format

    signatures = {
        key: json_format.MessageToDict(
            value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for key, value in version.signature_defs.items()
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(version.number)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


# ---------------------------------------------------------------- HTTP
class Handler(http.server.BaseHTTPRequestHandler):
    """One connection. Every response except the metrics is JSON, every error `{"error": ...}`."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # otherwise a malformed request line would get no status
    disable_nagle_algorithm = True
    server_version = "tfvidgen-development-server"
    sys_version = ""
    server: RestServer

    @property
    def app(self) -> Application:
        return self.server.app

    def setup(self) -> None:
        self.timeout = self.app.config.timeout_seconds  # for idle connections
        super().setup()

    def do_GET(self) -> None:
        self._answer(self._get, read_body=False)

    def do_POST(self) -> None:
        self._answer(self._post, read_body=True)

    def _other_method(self) -> None:
        self._give_up(405, f"{self.command} is not allowed here")

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _other_method

    def _answer(self, route, read_body: bool) -> None:
        with self.app.working():
            try:
                body = self._body() if read_body or "Content-Length" in self.headers else b""
            except _HttpError as error:
                return self._give_up(error.status, str(error))
            try:
                content, kind = route(urllib.parse.unquote(self.path.partition("?")[0]), body)
            except _HttpError as error:
                self._send_error(error.status, str(error))
            except Exception as error:
                failure = as_request_error(error)
                self._send_error(HTTP_STATUS[failure.code], str(failure))
            else:
                self._send(200, content, kind)

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get("Transfer-Encoding") or not lengths:
            raise _HttpError(411, "send the body with a Content-Length")
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0].strip()):
            raise _HttpError(400, f"Content-Length must be one number. Received {', '.join(lengths)[:100]}")
        length, limit = int(lengths[0]), self.app.config.max_request_bytes
        if length > limit:
            raise _HttpError(413, f"the body has {length} bytes, and the limit is {limit}")
        body = self.rfile.read(length)
        if len(body) < length:
            raise _HttpError(400, f"the body ended after {len(body)} of {length} bytes")
        return body

    def _check_model(self, found: re.Match) -> None:
        if found["name"] != self.app.config.model_name:
            raise RequestError(NOT_FOUND, f"no model {found['name'][:100]!r}: this is {self.app.config.model_name!r}")
        if found["label"]:
            raise RequestError(NOT_FOUND, "this server has no version labels: name a version, or none for the newest")

    def _version(self, found: re.Match) -> Version:
        self._check_model(found)
        return self.app.versions.get(int(found["version"]) if found["version"] else None)

    def _get(self, path: str, body: bytes) -> tuple[bytes, str]:
        if path == "/healthz":
            if not self.app.ready:
                raise _HttpError(503, "no version is loaded, or the server is stopping")
            return b'{"status": "ok"}', "application/json"
        if path == METRICS_PATH:
            return self.app.metrics.text(), "text/plain; version=0.0.4; charset=utf-8"
        found = _MODEL.fullmatch(path)
        if not found:
            raise _HttpError(404, f"nothing found at {path[:100]!r}")
        if found["verb"] == ":predict":
            raise _HttpError(405, "predict requires POST")
        if found["verb"]:
            return json.dumps(metadata_body(found["name"], self._version(found))).encode(), "application/json"
        self._check_model(found)
        wanted = found["version"] and int(found["version"])
        known = {n: status for n, status in self.app.versions.status().items() if wanted in (None, n)}
        if wanted is not None and not known:
            raise RequestError(NOT_FOUND, f"version {wanted} does not exist")
        content = [
            {
                "version": str(number),
                "state": status.state,
                "status": {"error_code": status.code, "error_message": status.message},
            }
            for number, status in known.items()
        ]
        return json.dumps({"model_version_status": content}).encode(), "application/json"

    def _post(self, path: str, body: bytes) -> tuple[bytes, str]:
        found = _MODEL.fullmatch(path)
        if not found:
            raise _HttpError(404, f"nothing found at {path[:100]!r}: predict at /v1/models/NAME:predict")
        if found["verb"] != ":predict":
            raise _HttpError(405, "this requires GET")
        with self.app.counted("rest") as call:
            request = parse_request(body)
            endpoint = call.endpoint(self._version(found), request.get("signature_name", ""))
            outputs = call.run(request_inputs(endpoint, request), self.app.config.timeout_seconds)
        return response_body(endpoint, outputs, "instances" in request), "application/json"

    def _give_up(self, status: int, message: str) -> None:
        """Rejects a partly read request and closes the connection: the unread bytes must not pass for another request."""
        self.close_connection = True
        self._send_error(status, message)
        try:
            # The response would be lost if the connection were closed while the client is still sending.
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_SECONDS)
            left = 4 * self.app.config.max_request_bytes
            while left > 0 and (block := self.connection.recv(1 << 16)):
                left -= len(block)
        except OSError:
            pass

    def _send_error(self, status: int, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if self.app.stopping or self.close_connection:
                self.close_connection = True
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError:  # the client has gone
            self.close_connection = True

    def send_error(self, code, message=None, explain=None):
        """Called by the base class for requests that are not HTTP."""
        status = {501: 405, 505: 400}.get(int(code), int(code))
        self._give_up(status, str(message or http.HTTPStatus(status).phrase))

    def log_message(self, format, *args):
        pass  # the metrics count requests; a line for each would cost more than it is worth


class _HttpError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class RestServer(http.server.ThreadingHTTPServer):
    """A thread per connection, at most `max_connections`; further clients queue."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, app: Application, host: str, port: int):
        self.app = app
        self._free = threading.BoundedSemaphore(app.config.max_connections)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def process_request(self, request, client_address):
        while not self._free.acquire(timeout=0.5):
            if self.app.stopping:
                return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request, client_address):
        pass  # dropped connections; errors of requests have already been answered


def wait_until(condition, seconds: float) -> bool:
    """Polls `condition()` until it holds or `seconds` have passed; returns whether it held."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return held
