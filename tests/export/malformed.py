"""Requests that are wrong in one way each, drawn at random: for the tests, and in large numbers for `benchmarks.serving`."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

from export import serving

JUNK = (None, True, "x", 1.5, -1, 10**30, 1e999, {}, {"b64": "AA=="}, [], [[]], [[[1]]], [None], ["1"], [1.5], [10**30])


class Malformed:
    """Draws requests for the model that `metadata`, the content of `metadata.json`, describes.

    Args:
        metadata: Its endpoints are asked for.
        model: Its name on the server.
        seed: Decides every draw.
    """

    def __init__(self, metadata: dict[str, Any], model: str, seed: int):
        self._endpoints, self._model, self._draw = metadata["endpoints"], model, random.Random(seed)
        num_frames = metadata["video"]["num_frames"]
        self._valid = {name: serving.example_inputs(e, num_frames) for name, e in self._endpoints.items()}
        self._path = f"/v1/models/{model}:predict"

    # ------------------------------------------------------------ REST
    def rest(self) -> bytes:
        """What a client sends on its connection."""
        return self._draw.choice((self._wrong_value, self._wrong_json, self._wrong_http))()

    def _post(self, body: bytes, path: str = "", headers: str = "", method: str = "POST") -> bytes:
        start = f"{method} {path or self._path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        return start.encode() + body

    def _wrong_value(self) -> bytes:
        """The form is right, and one of the values is not."""
        draw = self._draw
        endpoint = draw.choice(list(self._valid))
        inputs = {name: value.tolist() for name, value in self._valid[endpoint].items()}
        name = draw.choice(list(inputs))
        kind = draw.randrange(6)
        if kind == 0:
            del inputs[name]
        elif kind == 1:
            inputs[f"{name}{draw.randrange(100)}"] = inputs.pop(name)
        elif kind == 2:
            row = {**inputs, f"more{draw.randrange(100)}": [1]}  # in columns, names that mean nothing are ignored
            return self._post(json.dumps({"signature_name": endpoint, "instances": [row]}).encode())
        elif kind == 3:
            bounded = {n: e["range"] for n, e in self._endpoints[endpoint]["inputs"].items() if "range" in e}
            if bounded:
                name = draw.choice(list(bounded))
                low, high = bounded[name]
                value = draw.choice((low - 1, high + 1, -(1 << 31), (1 << 31) - 1))
            else:
                value = draw.choice((10**20, -(10**20)))
            inputs[name] = [value] if isinstance(inputs[name], list) else value
        elif kind == 4:
            inputs[name] = [inputs[name]]  # an axis too many
        else:
            is_seed = isinstance(inputs[name], int) and name in ("a", "b")  # any whole number is one
            inputs[name] = draw.choice([value for value in JUNK if not (is_seed and value == -1)])
        return self._post(json.dumps({"signature_name": endpoint, "inputs": inputs}).encode())

    def _wrong_json(self) -> bytes:
        """A body that is no request at all."""
        draw = self._draw
        whole = json.dumps({"signature_name": "serving_default", "inputs": {"seed": [1]}})
        bodies = (
            lambda: draw.randbytes(draw.randrange(1, 200)),
            lambda: whole[: draw.randrange(len(whole) - 1)].encode(),
            lambda: b"[" * draw.randrange(1, 50_000),
            lambda: b'{"inputs": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
            lambda: b'{"inputs": [' + b"9" * draw.randrange(20, 9000) + b"]}",
            lambda: draw.choice([b"", b"null", b"7", b'"x"', b"[]", b"[1]", b"{}", b"NaN", b"\xff\xfe{}"]),
            lambda: draw.choice(
                [b'{"inputs": [NaN]}', b'{"inputs": [Infinity]}', b'{"inputs": [1,]}', b"{'inputs': [1]}"]
            ),
            lambda: json.dumps({"inputs": [1], "signature_name": draw.choice([7, None, [], {}, "no such"])}).encode(),
            lambda: json.dumps({"inputs": [1], "instances": [1]}).encode(),
            lambda: json.dumps({"instances": draw.choice([1, "x", None, {}, [[]], [{}], [{"seed": 1}, 1]])}).encode(),
            lambda: whole.encode("utf-16"),
        )
        return self._post(draw.choice(bodies)())

    def _wrong_http(self) -> bytes:
        """Another path, another method, or no HTTP at all."""
        draw, good, model = self._draw, b'{"inputs": [1]}', self._path.removesuffix(":predict")
        post_start = f"POST {self._path} HTTP/1.1\r\n".encode()
        word = "".join(draw.choices("abcXYZ0159-._~%/:;@", k=draw.randrange(1, 40)))
        kinds = (
            lambda: self._post(good, path="/" + word),
            lambda: self._post(good, path=f"/v1/models/{word}:predict"),
            lambda: self._post(good, path=model + draw.choice([":classify", ":regress", "/versions/9:predict", "/x", "::"])),
            lambda: self._post(good, path=f"{model}/versions/{draw.choice(['-1', 'x', '9' * 30, '%D9%A3'])}:predict"),
            lambda: self._post(good, method=draw.choice(["PUT", "DELETE", "PATCH", "OPTIONS", "BREW", "GET", "post"])),
            lambda: self._post(good, path="/" + "a" * draw.randrange(70_000, 90_000)),
            lambda: self._post(good, headers="X: " + "a" * 70_000 + "\r\n"),
            lambda: self._post(good, headers="".join(f"X{i}: 1\r\n" for i in range(200))),
            lambda: self._post(good, headers="Content-Length: 99\r\n"),
            lambda: self._post(good, headers="Transfer-Encoding: chunked\r\n"),
            lambda: post_start + f"Content-Length: {draw.choice(['-5', 'x', '1e3', '', '99'])}\r\n\r\n".encode(),
            lambda: post_start + f"Content-Length: {draw.randrange(1 << 25, 1 << 60)}\r\n\r\n".encode(),
            lambda: post_start + b"\r\n",
            lambda: b"GET /%s HTTP/%s\r\n\r\n" % (word.encode(), draw.choice([b"9.9", b"x", b"1", b"1.1.1"])),
            lambda: bytes(draw.choices(range(33, 256), k=draw.randrange(1, 300))) + b"\r\n\r\n",
            lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(50).replace(b"\n", b"") + b"\r\n\r\n",
        )  # fmt: skip
        return draw.choice(kinds)()

    # ------------------------------------------------------------ gRPC
    def grpc(self) -> bytes:
        """A PredictRequest with one thing wrong, or bytes that are none."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        draw = self._draw
        if draw.random() < 0.2:
            return draw.randbytes(draw.randrange(1, 300))
        endpoint = draw.choice(list(self._valid))
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model, endpoint
        for name, value in self._valid[endpoint].items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        name = draw.choice(list(self._valid[endpoint]))
        tensor = request.inputs[name]
        kind = draw.randrange(11)
        if kind == 0:
            del request.inputs[name]
        elif kind == 1:
            request.inputs[f"more{draw.randrange(100)}"].CopyFrom(tensor)
        elif kind == 2:
            tensor.dtype = draw.choice([dtype for dtype in (0, 2, 4, 7, 20, 21, 23, 99, 101) if dtype != tensor.dtype])
        elif kind == 3:
            tensor.tensor_shape.unknown_rank = True
        elif kind == 4:
            tensor.tensor_shape.dim.add(size=draw.choice([0, 1, 2, 1 << 40]))
        elif kind == 5:
            for dim in tensor.tensor_shape.dim or [tensor.tensor_shape.dim.add()]:
                dim.size = draw.choice([-1, -(1 << 62), 1 << 62, 1 << 31, 17, 0])
        elif kind == 6:
            tensor.tensor_content = draw.randbytes(draw.choice([1, 3, 5, 99]))
            for values in (tensor.int_val, tensor.int64_val, tensor.float_val):
                del values[:]
        elif kind == 7:
            request.model_spec.name = draw.choice(["", "other", "m" * 10_000])
        elif kind == 8:
            request.model_spec.signature_name = draw.choice(["no such", "x" * 10_000, "__saved_model_init_op"])
        elif kind == 9:
            request.model_spec.version.value = draw.choice([-1, 0, 2, 1 << 62])
        else:
            request.output_filter.append("no such")
        return request.SerializeToString()


def rest_status(port: int, request: bytes) -> int:
    """Sends bytes, ends the sending side, and returns the status of the answer.

    Raises:
        ValueError: If the answer is no HTTP, or an error without its reason as JSON.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the server has answered before it had read everything
            pass
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    line, _, rest = answer.partition(b"\r\n")
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise ValueError(f"{request[:300]!r} was answered {answer[:300]!r}")
    status, body = int(words[1]), rest.partition(b"\r\n\r\n")[2]
    if status >= 400 and body and "error" not in json.loads(body):
        raise ValueError(f"{request[:300]!r} was answered {answer[:300]!r}")
    return status


class GrpcSender:
    """Sends bytes as a predict request over a channel of its own."""

    def __init__(self, port: int):
        import grpc

        self._errors, options = grpc.RpcError, [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
        self._send = self._channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

    def status(self, message: bytes) -> str:
        """The name of the status that answers it."""
        try:
            self._send(message, timeout=60)
        except self._errors as error:
            return error.code().name
        return "OK"

    def close(self) -> None:
        self._channel.close()
