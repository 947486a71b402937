"""What stands before a request is unpacked: named refusals, a budget of bytes, and the form of a protocol buffer's bytes.

A parser makes far more of hostile bytes than of honest ones: two bytes of a message can declare a tensor, two characters of
JSON a list. So bytes are counted before they are parsed, and what cannot be a request of the model is refused unparsed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

# gRPC status names, which REST maps to HTTP status codes as TensorFlow Serving does.
INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION, UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "RESOURCE_EXHAUSTED",
)

# Bytes that parsing makes of one, at most, of a request whose form was checked: of JSON's four characters "1.5," a Python float
# and its place in a list, 32 bytes, then a number of an array.
EXPANSION = 16
BASE_COST = 1 << 14  # bytes that every request costs, however small


class RequestError(Exception):
    """A request answered with an error: `code` is a gRPC status name, the text is for the caller.

    Args:
        status: HTTP status where that of the code would say less (413 of a body that is too large); None for that of the code.
        endpoint: Name of the endpoint that refused it, for the metrics.
    """

    def __init__(self, code: str, message: str, status: int | None = None, endpoint: str = "unknown"):
        super().__init__(message)
        self.code, self.status, self.endpoint = code, status, endpoint


def late(timeout: float) -> RequestError:
    return RequestError(DEADLINE_EXCEEDED, f"no answer within {timeout:g} s")


def cost(num_bytes: int) -> int:
    """Bytes to reserve for a request of so many bytes, parsed."""
    return BASE_COST + EXPANSION * num_bytes


class Budget:
    """Bytes that requests may hold at the same time in one process. Thread-safe.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.held, self.peak = limit, 0, 0
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> None:
        """Reserves bytes, which `give` returns. Raises RequestError (RESOURCE_EXHAUSTED) if that would exceed the limit."""
        with self._lock:
            if self.held + num_bytes > self.limit:
                raise RequestError(
                    RESOURCE_EXHAUSTED,
                    f"requests hold {self.held >> 10} KiB and this one needs {-(-num_bytes >> 10)}, more than the server's "
                    f"{self.limit >> 10}: try again later, or send fewer rows",
                )
            self.held += num_bytes
            self.peak = max(self.peak, self.held)

    def give(self, num_bytes: int) -> None:
        with self._lock:
            self.held -= num_bytes

    @contextlib.contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        self.take(num_bytes)
        try:
            yield
        finally:
            self.give(num_bytes)


# ---------------------------------------------------------------- protocol buffers
MAX_FIELDS = 128  # of a request, at the levels that are looked at: an input has about eight
MAX_SMALL = 4096  # bytes of a field that is not a tensor's content

# Fields that may be large, as number -> those within it; None for plain values. PredictRequest.inputs is a map, whose values
# are tensors: their content, or packed numbers. Strings and nested messages are no input of an exported model.
_TENSOR: Mapping[int, Any] = dict.fromkeys((4, 5, 6, 7, 10, 11, 13, 16, 17))
PREDICT_REQUEST: Mapping[int, Any] = {2: {2: _TENSOR}}
SMALL_REQUEST: Mapping[int, Any] = {}


def check_message(message: bytes, large: Mapping[int, Any]) -> bytes:
    """Refuses a message that would grow when it is parsed; returns its `model_spec`, the first field of every request.

    Args:
        message: A request of TensorFlow Serving's, in protocol buffers' wire format.
        large: `PREDICT_REQUEST` or `SMALL_REQUEST`.

    Raises:
        RequestError: If the bytes are no message, have more than `MAX_FIELDS` fields, or a large one where none belongs.
    """
    num_fields, spec = 0, None  # spec: bytes once there is one

    def look(data: memoryview, large: Mapping[int, Any], top: bool) -> None:
        nonlocal num_fields, spec
        for number, value in _fields(data):
            num_fields += 1
            if num_fields > MAX_FIELDS:
                raise RequestError(INVALID_ARGUMENT, f"the message has more than {MAX_FIELDS} fields")
            if top and number == 1:
                spec = (spec or b"") + bytes(value)  # a message that is sent in parts is merged
            if len(value) > MAX_SMALL:
                if number not in large:
                    raise RequestError(
                        INVALID_ARGUMENT, f"field {number} of the message is too large: {len(value)} bytes"
                    )
                if large[number] is not None:
                    look(value, large[number], False)

    look(memoryview(message), large, True)
    if spec is None:
        raise RequestError(INVALID_ARGUMENT, "Missing ModelSpec: name the model in `model_spec`")
    return spec


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of each field of one level; numbers that are no bytes come as none."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise RequestError(INVALID_ARGUMENT, "the message is cut short, or no protocol buffer")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind, begin = key & 7, at
        if kind == 0:
            varint()
            begin = at
        elif kind == 2:
            size = varint()
            begin, at = at, at + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            begin = at
        if kind not in (0, 1, 2, 5) or key >> 3 == 0 or at > len(data):
            raise RequestError(INVALID_ARGUMENT, "the message is cut short, or no protocol buffer")
        yield key >> 3, data[begin:at]
