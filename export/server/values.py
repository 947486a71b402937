"""Requests and responses as JSON and as TensorFlow Serving's messages <-> arrays, checked before arrays are made."""

from __future__ import annotations

import base64
import itertools
import json
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from export.server.limits import INVALID_ARGUMENT, RequestError
from export.server.runtime import Endpoint, TensorSpec, Version

SLACK = 1000  # values beside those of the inputs: keys that are ignored, and what stands in their place


# ---------------------------------------------------------------- JSON
def unpacked(body: bytes, limit: int) -> bytes:
    """The content of a gzip file, of at most `limit` bytes. Raises RequestError."""
    unpacking = zlib.decompressobj(31)
    try:
        content = unpacking.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(INVALID_ARGUMENT, f"the body is no gzip file: {error}") from None
    if len(content) > limit:
        raise RequestError(INVALID_ARGUMENT, f"the body unpacks to more than {limit} bytes, the limit", status=413)
    if not unpacking.eof or unpacking.unused_data:
        raise RequestError(INVALID_ARGUMENT, "the body is no gzip file, or more than one")
    return content


class JsonBound:
    """Refuses bodies that hold more values, lists, objects or strings than any request of a version.

    What a parser allocates depends on their numbers. Characters are counted, which takes milliseconds, before anything is
    parsed; commas and brackets within strings count as well.
    """

    def __init__(self, version: Version):
        def largest(count: Callable[[Endpoint], int | None]) -> float:
            found = [count(endpoint) for endpoint in version.endpoints.values()]
            return math.inf if None in found else SLACK + max(found)

        def lists(endpoint: Endpoint) -> int | None:
            return _sum(math.prod(shape[:axis]) for shape in shapes(endpoint) for axis in range(len(shape)))

        def shapes(endpoint: Endpoint) -> list[tuple]:
            return [
                tuple(math.inf if size is None else size for size in endpoint.largest(name)) for name in endpoint.inputs
            ]

        values = largest(lambda endpoint: _sum(math.prod(shape) for shape in shapes(endpoint)))
        rows = largest(lambda endpoint: endpoint.sizes.rows * len(endpoint.inputs))
        self._bounds = {b",": values + largest(lists), b"[": largest(lists), b"{": rows, b'"': 2 * rows}

    def check(self, body: bytes) -> None:
        """Raises RequestError."""
        for character, bound in self._bounds.items():
            if (number := body.count(character)) > bound:
                raise RequestError(
                    INVALID_ARGUMENT,
                    f"the body has {number} characters {character.decode()!r}, and the largest request of this model {bound}",
                )


def _sum(counts) -> int | None:
    total = sum(counts)
    return None if math.isinf(total) else total


def parse_request(body: bytes) -> dict[str, Any]:
    """The JSON object of a predict request; keys that mean nothing are ignored, as by TF Serving. Raises RequestError."""

    def no_constant(text):
        raise ValueError(f"{text} is not JSON")

    try:
        request = json.loads(body.decode("utf-8"), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError and JSONDecodeError
        raise RequestError(INVALID_ARGUMENT, f"the body is not JSON: {error}"[:300]) from None
    if not isinstance(request, dict):
        raise RequestError(INVALID_ARGUMENT, "the body must be a JSON object with `inputs` or `instances`")
    if ("inputs" in request) == ("instances" in request):
        raise RequestError(
            INVALID_ARGUMENT, f"a request has `inputs` or `instances`. Received {', '.join(request)[:200]}"
        )
    if not isinstance(request.get("signature_name", ""), str):
        raise RequestError(INVALID_ARGUMENT, "`signature_name` must be a string")
    return request


def json_inputs(endpoint: Endpoint, request: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a request in columnar (`inputs`) or row (`instances`) format. Raises RequestError.

    As in TF Serving, `inputs` may have names that the endpoint does not take, and every one of `instances` must have exactly
    those that it takes.
    """
    only = next(iter(endpoint.inputs)) if len(endpoint.inputs) == 1 else None
    if "inputs" in request:
        columns = request["inputs"]
        if not isinstance(columns, dict):
            if only is None:
                raise RequestError(INVALID_ARGUMENT, f"`inputs` must be an object with {', '.join(endpoint.inputs)}")
            columns = {only: columns}
        columns = {name: value for name, value in columns.items() if name in endpoint.inputs}
        endpoint.check_names(columns)
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
    return {name: _array(endpoint, name, value) for name, value in columns.items()}


def _array(endpoint: Endpoint, name: str, value: Any) -> np.ndarray:
    """An input's array: nesting, sizes and types are checked on the lists, so that the array is made once, in its own dtype.

    NumPy would guess: as text, a list's strings take as many bytes each as the longest of them.
    """
    spec = endpoint.inputs[name]
    shape, level = [], [value]
    while level and isinstance(level[0], list):
        if len({len(part) if isinstance(part, list) else None for part in level}) > 1:
            break
        if len(shape) == len(spec.shape):
            raise RequestError(INVALID_ARGUMENT, f"{name} must be {spec.text()}. Received a list with more axes")
        shape.append(len(level[0]))
        level = list(itertools.chain.from_iterable(level))
    kinds = set(map(type, level))
    if list in kinds:
        raise RequestError(INVALID_ARGUMENT, f"{name} is not a rectangular list of numbers")
    whole = spec.dtype.kind in "iu"
    if not kinds <= ({int} if whole else {int, float}):
        what = "whole numbers" if whole else "numbers"
        raise RequestError(INVALID_ARGUMENT, f"{name} must hold {what} that fit into {spec.dtype}")
    endpoint.check_spec(name, spec.dtype, tuple(shape))
    return _typed(name, level, spec).reshape(shape)


def _typed(name: str, numbers: list, spec: TensorSpec) -> np.ndarray:
    if spec.dtype.kind in "iu":
        bounds = np.iinfo(spec.dtype)
        if min(numbers) < bounds.min or max(numbers) > bounds.max:
            raise RequestError(INVALID_ARGUMENT, f"{name} must lie in {bounds.min}..{bounds.max}")
        return np.array(numbers, spec.dtype)
    try:
        array = np.array(numbers, np.float64)
    except OverflowError:
        raise RequestError(INVALID_ARGUMENT, f"{name} must hold numbers that fit into {spec.dtype}") from None
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


# ---------------------------------------------------------------- messages
def message_inputs(endpoint: Endpoint, request: Any, reserve: Callable[[int], None]) -> dict[str, np.ndarray]:
    """The arrays of a PredictRequest.

    Args:
        endpoint: The endpoint asked for.
        request: The message; a tensor in it may be a single value for a whole shape.
        reserve: Called with the bytes that the arrays will take, before any is made; raises RequestError to refuse.

    Raises:
        RequestError: If names, dtypes, shapes or numbers of values do not fit.
    """
    import tensorflow as tf

    endpoint.check_names(dict.fromkeys(request.inputs))
    num_bytes = 0
    for name, proto in request.inputs.items():
        if proto.tensor_shape.unknown_rank:
            raise RequestError(INVALID_ARGUMENT, f"{name} has no shape")
        shape = tuple(dim.size for dim in proto.tensor_shape.dim)
        try:
            if proto.dtype > 100:  # a reference type, which exists only inside graphs
                raise TypeError
            dtype = np.dtype(tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype)
        except (TypeError, KeyError, AttributeError):
            raise RequestError(INVALID_ARGUMENT, f"{name} has the unknown dtype {proto.dtype}") from None
        endpoint.check_spec(name, dtype, shape)
        num_bytes += endpoint.num_bytes(name, shape)
    reserve(num_bytes)
    inputs = {}
    for name, proto in request.inputs.items():
        try:
            inputs[name] = tf.make_ndarray(proto)
        except (ValueError, TypeError, IndexError) as error:
            raise RequestError(INVALID_ARGUMENT, f"{name} does not match its shape: {error}"[:300]) from None
    return inputs
