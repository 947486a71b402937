"""TensorFlow Serving's REST interface, limited to a single model, on the event loop.

Connections are cheap and work is bounded: a request's bytes are reserved before its body is read, and a connection that has
sent no whole request makes room for a new one when there are too many. `/healthz` and `/readyz` need neither a worker nor a
place among the requests, so they answer at once whatever else goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http
import json
import re
import socket
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from export.server import limits
from export.server.limits import RESOURCE_EXHAUSTED, RequestError

if TYPE_CHECKING:
    from export.server.application import Application
    from export.server.worker import Worker

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_MODEL = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(:(?P<verb>predict)|/(?P<part>metadata))?",
    re.IGNORECASE | re.ASCII,
)
LINGER_SECONDS = 2.0  # for a client to read why its request was rejected before it was fully sent
MAX_HEAD_BYTES = 1 << 16
METRICS_PATH = "/monitoring/prometheus/metrics"
_JSON, _TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/1\.([01])")
_HEADER = re.compile(rf"({_TOKEN}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")


class _HttpError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass
class _Head:
    """What comes before a body. Headers by lower-case name, those of one name joined by commas."""

    method: str
    target: str
    minor: int
    headers: dict[str, str]

    @classmethod
    def parse(cls, text: bytes) -> _Head:
        """Strictly by RFC 9112: what two readers could understand in two ways is refused. Raises _HttpError."""
        line, *rest = text.decode("latin-1").split("\r\n")
        found = _REQUEST_LINE.fullmatch(line)
        if not found:
            raise _HttpError(400, f"no HTTP/1.1 request line: {line[:100]!r}")
        headers: dict[str, str] = {}
        for line in rest:
            header = _HEADER.fullmatch(line)
            if not header:
                raise _HttpError(400, f"no header: {line[:100]!r}")
            name, value = header[1].lower(), header[2]
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if len(rest) > 100:
            raise _HttpError(431, f"{len(rest)} headers are too many")
        return cls(found[1], found[2], int(found[3]), headers)

    @property
    def keep_alive(self) -> bool:
        wanted = self.headers.get("connection", "").lower()
        return "close" not in wanted and (self.minor == 1 or "keep-alive" in wanted)

    def body_size(self) -> int | None:
        """Bytes of the body; None if it comes in chunks. Of any method: a body that is left unread would be a request."""
        length, coding = self.headers.get("content-length"), self.headers.get("transfer-encoding")
        if coding is not None:
            if coding.lower() != "chunked" or length is not None or self.minor == 0:
                raise _HttpError(
                    400, f"Transfer-Encoding must be `chunked`, without a Content-Length. Received {coding[:100]}"
                )
            return None
        if length is None:
            if self.method == "POST":
                raise _HttpError(411, "send the body with a Content-Length, or in chunks")
            return 0
        if not re.fullmatch("[0-9]{1,18}", length):
            raise _HttpError(400, f"Content-Length must be one number. Received {length[:100]}")
        return int(length)


class _Connection:
    """One connection: request after request, each within a time in all."""

    def __init__(self, server: RestServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.app, self._server, self._reader, self._writer = server.app, server, reader, writer
        self.since, self.waiting, self.begun = time.monotonic(), True, False
        self._held = 0

    def abort(self) -> None:
        self._writer.transport.abort()

    async def run(self) -> None:
        limit = self.app.config.timeout_seconds
        try:
            while True:
                self.since, self.waiting, self.begun = time.monotonic(), True, False
                try:
                    request = await asyncio.wait_for(self._request(), limit)
                    if request is None:
                        return
                except _HttpError as error:
                    return await self._give_up(error.status, str(error))
                except asyncio.TimeoutError:
                    if self.begun:
                        await self._give_up(408, f"the request was not complete within {limit:g} s")
                    return
                finally:
                    self.waiting = False
                head, body = request
                keep = head.keep_alive
                with self.app.working():
                    status, content, kind = await self._answer(head, body)
                    del body, request
                    keep = keep and not self.app.stopping
                    await asyncio.wait_for(self._send(head.method, status, content, kind, keep), limit)
                    del content
                self._release()
                if not keep:
                    return
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):  # the client has gone, or does not read
            self.abort()
        finally:
            self._release()
            self._writer.close()

    # ------------------------------------------------------------ reading
    def _reserve(self, num_bytes: int) -> None:
        self.app.budget.take(num_bytes)
        self._held += num_bytes

    def _release(self) -> None:
        self.app.budget.give(self._held)
        self._held = 0

    async def _request(self) -> tuple[_Head, bytes] | None:
        """The next request; None if the client has ended the connection."""
        first = await self._reader.read(1)
        if not first:
            return None
        self.begun = True
        try:
            text = first + await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise _HttpError(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes") from None
        except asyncio.IncompleteReadError:
            raise _HttpError(400, "the request ended within its head") from None
        head = _Head.parse(text[:-4])
        size, limit = head.body_size(), self.app.config.max_json_bytes
        if size is not None and size > limit:
            raise _HttpError(413, f"the body has {size} bytes, and the limit is {limit}")
        coding = head.headers.get("content-encoding", "identity").lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            raise _HttpError(415, f"Content-Encoding must be gzip. Received {coding[:100]}")
        if size == 0:
            return head, b""
        try:
            self._reserve(limits.cost(size if size is not None and coding == "identity" else limit))
        except RequestError as error:
            raise _HttpError(429, str(error)) from None
        if head.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            return head, await (self._chunks(limit) if size is None else self._reader.readexactly(size))
        except asyncio.IncompleteReadError as error:
            raise _HttpError(
                400, f"the body ended after {len(error.partial)} bytes of its {size or 'chunks'}"
            ) from None
        except asyncio.LimitOverrunError:
            raise _HttpError(400, "a chunk must begin with its size") from None

    async def _chunks(self, limit: int) -> bytes:
        body, number = bytearray(), 0
        while True:
            number += 1
            if number % 64 == 0:
                await asyncio.sleep(0)  # what has arrived is read without waiting: others have their turn
            line = (await self._reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", line):
                raise _HttpError(400, f"a chunk must begin with its size. Received {line[:100]!r}")
            size = int(line, 16)
            if size == 0:
                break
            if len(body) + size > limit:
                raise _HttpError(413, f"the body has more than {limit} bytes, the limit")
            body += await self._reader.readexactly(size)
            if await self._reader.readexactly(2) != b"\r\n":
                raise _HttpError(400, "a chunk must end with a line break")
        for _ in range(100):
            if await self._reader.readuntil(b"\r\n") == b"\r\n":
                return bytes(body)
        raise _HttpError(400, "too many trailers")

    # ------------------------------------------------------------ answering
    async def _answer(self, head: _Head, body: bytes) -> tuple[int, bytes, str]:
        try:
            content, kind = await self._route(head, body)
            return 200, content, kind
        except _HttpError as error:
            return error.status, _error(str(error)), _JSON
        except RequestError as error:
            return error.status or HTTP_STATUS[error.code], _error(str(error)), _JSON

    async def _route(self, head: _Head, body: bytes) -> tuple[bytes, str]:
        path = head.target.partition("?")[0]
        own: dict[str, Callable[[], Awaitable[tuple[bytes, str]]]] = {
            "/healthz": self._healthy,
            "/readyz": self._ready,
            METRICS_PATH: self._metrics,
        }
        if path in own:
            if head.method != "GET":
                raise _HttpError(405, f"{head.method} is not allowed here")
            return await own[path]()
        if not path.lower().startswith("/v1/"):
            raise _HttpError(404, f"nothing found at {path[:100]!r}")
        found = _MODEL.fullmatch(path)
        if not found or (head.method, bool(found["verb"])) not in (("POST", True), ("GET", False)):
            raise _HttpError(400, f"Malformed request: {head.method} {path[:200]}")
        name, label = (urllib.parse.unquote(found[part] or "") for part in ("name", "label"))
        number = int(found["version"]) if found["version"] else None
        self.app.check_name(name)
        if head.method == "GET" and not found["part"]:
            return _status_body(self.app.versions.status(number, label)), _JSON
        with self._server.place():
            worker = self.app.versions.get(number, label)
            response = await self._ask(worker, head, body)
        self._reserve(len(response))
        return response, _JSON

    async def _ask(self, worker: Worker, head: _Head, body: bytes) -> bytes:
        limit = self.app.config.timeout_seconds
        if head.method == "GET":
            return (await self.app.ask(worker, "rest metadata", b"", limit))[1]
        gzip = head.headers.get("content-encoding", "identity").lower() != "identity"
        return await self.app.predict(worker, "rest", body, limit, gzip=gzip)

    async def _healthy(self) -> tuple[bytes, str]:
        return b'{"status": "ok"}', _JSON

    async def _ready(self) -> tuple[bytes, str]:
        if not self.app.ready:
            raise _HttpError(503, "no version is loaded, or the server is stopping")
        return b'{"status": "ready"}', _JSON

    async def _metrics(self) -> tuple[bytes, str]:
        return self.app.metrics.text(), _TEXT

    async def _send(self, method: str, status: int, content: bytes, kind: str, keep: bool) -> None:
        lines = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
            "Server: tfvidgen-development-server",
            f"Content-Type: {kind}",
            f"Content-Length: {len(content)}",
            *(() if keep else ("Connection: close",)),
        )
        head = "\r\n".join(lines) + "\r\n\r\n"
        self._writer.write(head.encode())
        if method != "HEAD":
            self._writer.write(content)
        await self._writer.drain()
        if len(content) > MAX_HEAD_BYTES:  # until the client has taken it: it counts against the budget as long
            while self._writer.transport.get_write_buffer_size():
                await asyncio.sleep(0.01)

    async def _give_up(self, status: int, message: str) -> None:
        """Rejects a partly read request and ends the connection: the unread bytes must not pass for another request."""
        await asyncio.wait_for(self._send("", status, _error(message), _JSON, False), LINGER_SECONDS)
        self._writer.write_eof()

        async def discard() -> None:  # the response would be lost if the connection ended while the client is sending
            while await self._reader.read(1 << 16):
                pass

        await asyncio.wait_for(discard(), LINGER_SECONDS)


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


def _status_body(known: dict) -> bytes:
    content = [
        {
            "version": str(number),
            "state": status.state,
            "status": {"error_code": status.code, "error_message": status.message},
        }
        for number, status in known.items()
    ]
    return json.dumps({"model_version_status": content}).encode()


class RestServer:
    """Accepts connections. Up to `max_connections` requests are worked on, and twice as many connections are open.

    Raises:
        OSError: If the port is taken; the message names it.
    """

    def __init__(self, app: Application, host: str, port: int):
        self.app = app
        self._places = app.config.max_connections
        self._open: dict[asyncio.Task, _Connection] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}:{port} for REST ({error.strerror}): choose another --rest_port, or 0 for any free one"
            ) from None
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        self._accepting: asyncio.Task | None = None

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests that are worked on. Raises RequestError if there is none."""
        if self._places <= 0:
            raise RequestError(RESOURCE_EXHAUSTED, "too many requests are being worked on: try again later")
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    def start(self) -> None:
        self._accepting = asyncio.ensure_future(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError:  # out of file descriptors, for one: the next one may have luck
                await asyncio.sleep(0.05)
                continue
            await self._take(connection)

    async def _take(self, connection: socket.socket) -> None:
        if len(self._open) >= 2 * self.app.config.max_connections:
            waiting = [other for other in self._open.values() if other.waiting]
            if waiting:
                min(waiting, key=lambda other: other.since).abort()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_HEAD_BYTES)
        made = _Connection(self, reader, writer)
        task = asyncio.ensure_future(made.run())
        self._open[task] = made
        task.add_done_callback(lambda done: self._open.pop(done, None))

    async def stop_accepting(self) -> None:
        """Refuses new connections; those that the system had accepted already are served."""
        if self._accepting:
            self._accepting.cancel()
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError:
                    break
                await self._take(connection)
        self._socket.close()

    def end_idle(self) -> None:
        """Ends connections on which no request has begun."""
        for connection in self._open.values():
            if connection.waiting and not connection.begun:
                connection.abort()

    @property
    def num_busy(self) -> int:
        return len(self._open)

    async def close(self) -> None:
        for connection in self._open.values():
            connection.abort()
        await asyncio.gather(*self._open, return_exceptions=True)


async def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Polls `condition()` until it holds or `seconds` have passed; returns whether it held."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        await asyncio.sleep(0.01)
    return held
