"""Malformed requests, drawn at random: each gets a 4xx or INVALID_ARGUMENT, and the server serves on."""

import json
import random
import socket
import threading

import numpy as np
import pytest
import tensorflow as tf

MANY = pytest.param(10_000, marks=pytest.mark.slow)
JUNK = (None, True, "x", 1.5, -1, 10**30, 1e999, {}, {"b64": "AA=="}, [], [[]], [[[1]]], [None], ["1"], [1.5], [10**30])
VALID = {
    "serving_default": {"seed": [1]},
    "lookup": {"video_id": [1]},
    "exchange": {"identity": [1], "action": [1]},
    "interpolate": {"a": 1, "b": 2, "num_steps": 3},
    "decode": {"static": [[0.5] * 4], "transient": [[[0.5] * 5] * 4], "label": [1]},
}


# ---------------------------------------------------------------- REST
def post(body: bytes, path: str = "/v1/models/m:predict", headers: str = "", method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def wrong_value(draw: random.Random) -> bytes:
    """A request whose form is right and one of whose values is not."""
    endpoint = draw.choice(list(VALID))
    inputs = json.loads(json.dumps(VALID[endpoint]))
    name = draw.choice(list(inputs))
    kind = draw.randrange(6)
    if kind == 0:
        del inputs[name]
    elif kind == 1:
        inputs[f"{name}{draw.randrange(100)}"] = inputs.pop(name)
    elif kind == 2:
        inputs[f"more{draw.randrange(100)}"] = [1]
    elif kind == 3:
        out_of_range = {"video_id": [6, -1], "identity": [3, -1], "action": [2, -1], "num_steps": [0, 1, 65, -5]}
        name = draw.choice([n for n in inputs if n in out_of_range] or [name])
        value = draw.choice(out_of_range.get(name, [10**20]))
        inputs[name] = value if name == "num_steps" or name not in out_of_range else [value]
    elif kind == 4:
        scalar = not isinstance(inputs[name], list)
        inputs[name] = [inputs[name]] * (1 if scalar else draw.randrange(1, 3))  # an axis too many
    else:
        integer_scalar = isinstance(inputs[name], int)
        fits = (-1, 1.5) if name in ("a", "b") else ()
        value = draw.choice([v for v in JUNK if not (integer_scalar and v in fits and isinstance(v, int))])
        inputs[name] = value
    return post(json.dumps({"signature_name": endpoint, "inputs": inputs}).encode())


def wrong_json(draw: random.Random) -> bytes:
    """A body that is no request at all."""
    whole = json.dumps({"signature_name": "lookup", "inputs": VALID["lookup"]})
    bodies = (
        lambda: draw.randbytes(draw.randrange(1, 200)),
        lambda: whole[: draw.randrange(len(whole) - 1)].encode(),
        lambda: b"[" * draw.randrange(1, 50_000),
        lambda: b'{"inputs": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
        lambda: b'{"inputs": [' + b"9" * draw.randrange(20, 9000) + b"]}",
        lambda: draw.choice([b"", b"null", b"7", b'"x"', b"[]", b"[1]", b"{}", b"NaN", b"\xff\xfe{}"]),
        lambda: draw.choice([b'{"inputs": [NaN]}', b'{"inputs": [Infinity]}', b'{"inputs": [1,]}', b"{'inputs': [1]}"]),
        lambda: json.dumps({"inputs": [1], "signature_name": draw.choice([7, None, [], {}, "no such"])}).encode(),
        lambda: json.dumps({"inputs": [1], draw.choice(["instances", "input", "x" * 99]): [1]}).encode(),
        lambda: json.dumps({"instances": draw.choice([1, "x", None, {}, [[]], [{}], [{"seed": 1}, 1]])}).encode(),
        lambda: whole.encode("utf-16"),
    )
    return post(draw.choice(bodies)())


def wrong_http(draw: random.Random) -> bytes:
    """What another path, another method or no HTTP at all looks like."""
    good, post_start = b'{"inputs": [1]}', b"POST /v1/models/m:predict HTTP/1.1\r\n"
    word = "".join(draw.choices("abcXYZ0159-._~%/:;@", k=draw.randrange(1, 40)))
    kinds = (
        lambda: post(good, path="/" + word),
        lambda: post(good, path=f"/v1/models/{word}:predict"),
        lambda: post(good, path="/v1/models/m" + draw.choice([":classify", ":regress", "/versions/9:predict", "/x", "::"])),
        lambda: post(good, path=f"/v1/models/m/versions/{draw.choice(['-1', 'x', '9' * 30, '%D9%A3'])}:predict"),
        lambda: post(good, method=draw.choice(["PUT", "DELETE", "PATCH", "OPTIONS", "BREW", "GET", "post"])),
        lambda: post(good, path="/" + "a" * draw.randrange(70_000, 90_000)),
        lambda: post(good, headers="X: " + "a" * 70_000 + "\r\n"),
        lambda: post(good, headers="".join(f"X{i}: 1\r\n" for i in range(200))),
        lambda: post(good, headers="Content-Length: 99\r\n"),
        lambda: post(good, headers="Transfer-Encoding: chunked\r\n"),
        lambda: post_start + f"Content-Length: {draw.choice(['-5', 'x', '1e3', '', '99'])}\r\n\r\n".encode(),
        lambda: post_start + f"Content-Length: {draw.randrange(1 << 25, 1 << 60)}\r\n\r\n".encode(),
        lambda: post_start + b"\r\n",
        lambda: b"GET /%s HTTP/%s\r\n\r\n" % (word.encode(), draw.choice([b"9.9", b"x", b"1", b"1.1.1"])),
        lambda: bytes(draw.choices(range(33, 256), k=draw.randrange(1, 300))) + b"\r\n\r\n",
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(50).replace(b"\n", b"") + b"\r\n\r\n",
    )  # fmt: skip
    return draw.choice(kinds)()


def status_of(port: int, request: bytes) -> int:
    """Sends bytes, ends the sending side, and returns the status of the answer."""
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
    assert len(words) >= 2 and words[0].startswith(b"HTTP/1."), (request[:300], answer[:300])
    body = rest.partition(b"\r\n\r\n")[2]
    if body:
        assert "error" in json.loads(body)
    return int(words[1])


@pytest.mark.parametrize("count", [240, MANY])
def test_malformed_rest_requests_get_a_4xx(server, count):
    draw = random.Random(count)
    threads = threading.active_count()
    for i in range(count):
        request = draw.choice((wrong_value, wrong_json, wrong_http))(draw)
        status = status_of(server.rest_port, request)
        assert 400 <= status < 500, (i, status, request[:400])
    assert status_of_good(server.rest_port) == 200
    assert threading.active_count() <= threads + server.app.config.max_connections
    assert server.app.num_working == 0 and server.app.batcher.num_waiting == 0


def status_of_good(port: int) -> int:
    body = json.dumps({"inputs": VALID["serving_default"]}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(post(body, headers="Connection: close\r\n"))
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    assert np.shape(json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"])[0] == 1
    return int(answer.split()[1])


# ---------------------------------------------------------------- gRPC
def wrong_message(draw: random.Random) -> bytes:
    """A PredictRequest, or bytes that are none, with one thing wrong."""
    from tensorflow_serving.apis import predict_pb2

    if draw.random() < 0.2:
        return draw.randbytes(draw.randrange(1, 300))
    dtypes = {"seed": "int64", "a": "int64", "b": "int64", "static": "float32", "transient": "float32"}
    endpoint = draw.choice(list(VALID))
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", endpoint
    for name, value in VALID[endpoint].items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array(value, dtypes.get(name, "int32"))))
    name = draw.choice(list(VALID[endpoint]))
    tensor = request.inputs[name]
    kind = draw.randrange(11)
    if kind == 0:
        del request.inputs[name]
    elif kind == 1:
        request.inputs[f"more{draw.randrange(100)}"].CopyFrom(tensor)
    elif kind == 2:
        tensor.dtype = draw.choice([0, 2, 4, 7, 20, 21, 23, 99, 101])
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


@pytest.mark.parametrize("count", [120, MANY])
def test_malformed_grpc_requests_are_refused(server, count):
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api (extra: serving)")
    import grpc
    from tensorflow_serving.apis import predict_pb2

    draw = random.Random(count)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        send = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for i in range(count):
            message = wrong_message(draw)
            with pytest.raises(grpc.RpcError) as caught:
                send(message, timeout=60)
            # NOT_FOUND is what the protocol says of another model or version
            assert caught.value.code().name in ("INVALID_ARGUMENT", "NOT_FOUND"), (i, message[:300], caught.value)
        good = predict_pb2.PredictRequest()
        good.model_spec.name = "m"
        good.inputs["seed"].CopyFrom(tf.make_tensor_proto(np.array([1])))
        answer = predict_pb2.PredictResponse.FromString(send(good.SerializeToString(), timeout=60))
        assert tf.make_ndarray(answer.outputs["video"]).shape[0] == 1
