"""The development server: TensorFlow Serving's protocols, batches, limits, new versions, and its end."""

import base64
import concurrent.futures
import gc
import gzip
import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
import weakref

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import client, serve
from tests.export.conftest import assert_same_frames, assert_same_pixels, start_server, uint8


def ask(url: str, content=None, timeout: float = 30.0) -> tuple[int, dict]:
    """(status, JSON) of a GET, or of a POST of `content`."""
    data = None if content is None else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=timeout) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def predict(url: str, **content) -> tuple[int, dict]:
    return ask(f"{url}/v1/models/m:predict", content)


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(str(exported.version)).signatures


def of_seeds(signatures, *seeds) -> np.ndarray:
    return signatures["serving_default"](seed=tf.constant(seeds, tf.int64))["video"].numpy()


# ---------------------------------------------------------------- REST
def test_columns_rows_and_values_are_the_same_request(url, signatures):
    expected = of_seeds(signatures, 3, 8)
    requests = (
        {"inputs": {"seed": [3, 8]}},
        {"inputs": [3, 8]},
        {"instances": [{"seed": 3}, {"seed": 8}]},
        {"instances": [3, 8]},
        {"signature_name": "serving_default", "instances": [3, 8]},
    )
    for request in requests:
        status, answer = predict(url, **request)
        assert status == 200
        assert list(answer) == ["predictions" if "instances" in request else "outputs"]
        np.testing.assert_array_equal(np.array(next(iter(answer.values())), np.uint8), expected)


def test_bytes_are_base64(url, signatures):
    status, answer = predict(url, signature_name="serving_default_jpeg", inputs={"seed": [3]})
    assert status == 200
    ((first, *others),) = answer["outputs"]
    assert list(first) == ["b64"] and len(others) == 3
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(first["b64"], validate=True))))
    assert np.abs(image.astype(int) - of_seeds(signatures, 3)[0, 0]).mean() < 12


def test_scalars_are_sent_in_columns_only(url, exported):
    ends = {"a": 3, "b": 8, "num_steps": 3}
    status, answer = predict(url, signature_name="interpolate", inputs=ends)
    assert status == 200
    assert_same_frames(np.array(answer["outputs"][:1], np.uint8), exported.model.generate(1, seed=3))
    status, answer = predict(url, signature_name="interpolate", instances=[ends])
    assert status == 400 and "send `inputs`" in answer["error"]


def test_several_inputs_and_outputs_go_by_name(free_server):
    url = f"http://127.0.0.1:{free_server.rest_port}"
    video = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3)).tolist()
    status, answer = predict(url, signature_name="encode", inputs={"video": video})
    assert status == 200 and set(answer["outputs"]) == {"content", "motion", "label"}
    assert np.shape(answer["outputs"]["motion"]) == (2, 2, 4)
    status, rows = predict(url, signature_name="encode", instances=[{"video": v} for v in video])
    assert status == 200 and [set(row) for row in rows["predictions"]] == [{"content", "motion", "label"}] * 2
    assert rows["predictions"][1]["content"] == pytest.approx(answer["outputs"]["content"][1])
    status, back = predict(url, signature_name="decode", instances=rows["predictions"])
    assert status == 200 and np.shape(back["predictions"]) == (2, 2, 8, 8, 3)
    status, answer = predict(url, signature_name="generate", inputs={"seed": [1], "num_frames": 7})
    assert status == 200 and np.shape(answer["outputs"]) == (1, 7, 8, 8, 3)


def test_status_metadata_and_versions(url, exported):
    state = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/1"):
        assert ask(f"{url}/v1/models/m{path}") == (200, {"model_version_status": [state]})
    for path in ("/metadata", "/versions/1/metadata"):
        status, answer = ask(f"{url}/v1/models/m{path}")
        assert status == 200
        assert answer["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
        told = answer["metadata"]["signature_def"]["signature_def"]
        assert {name for name in told if not name.startswith("__")} == set(exported.metadata["endpoints"])
        seed = told["serving_default"]["inputs"]["seed"]
        shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
        assert (seed["dtype"], seed["tensor_shape"]) == ("DT_INT64", shape)
        assert told["serving_default"]["method_name"] == "tensorflow/serving/predict"
    assert ask(f"{url}/v1/models/m/versions/1:predict", {"inputs": [1]})[0] == 200
    for path, expected in (
        ("/v1/models/other", 404),
        ("/v1/models/m/versions/2", 404),
        ("/nothing", 404),
        ("/v1/models/m/labels/stable", 400),
        ("/v1/models/m/versions/x", 400),
        ("/v1/models/m:predict", 400),  # GET
    ):
        status, answer = ask(url + path)
        assert status == expected and answer["error"], path
    assert ask(f"{url}/v1/models/m/versions/2:predict", {"inputs": [1]})[0] == 404


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"signature_name": "lookup", "inputs": [6]}, "video_id must lie in 0..5"),
        ({"signature_name": "exchange", "inputs": {"identity": [0], "action": [-1]}}, "action must lie in 0..1"),
        ({"signature_name": "exchange", "inputs": {"identity": [0]}}, "missing action"),
        ({"signature_name": "exchange", "inputs": {"identity": [0], "action": [0, 1]}}, "same number of rows"),
        ({"signature_name": "nothing", "inputs": [1]}, "no endpoint 'nothing'"),
        ({"inputs": [1.5]}, "whole numbers"),
        ({"inputs": ["1"]}, "whole numbers"),
        ({"inputs": [True]}, "whole numbers"),
        ({"inputs": [2**63]}, "must"),
        ({"inputs": []}, "1 to 16 rows"),
        ({"inputs": [0] * 17}, "1 to 16 rows"),
        ({"inputs": [[1]]}, "must be int64 (?,)"),
        ({"inputs": [[1], [1, 2]]}, "rectangular"),
        (
            {"signature_name": "interpolate", "inputs": {"a": 1, "b": 2, "num_steps": 999}},
            "num_steps must lie in 2..64",
        ),
        ({"inputs": [1], "instances": [1]}, "`inputs` or `instances`"),
        ({"instances": [{"seed": 1}, 2]}, "every instance"),
        ({}, "`inputs` or `instances`"),
    ],
)
def test_wrong_requests_are_told_why(url, content, reason):
    status, answer = predict(url, **content)
    assert status == 400
    assert reason in answer["error"]


def test_a_request_larger_than_the_limit_is_refused(free_server):
    url = f"http://127.0.0.1:{free_server.rest_port}"
    status, answer = predict(url, inputs=[1] * 20_000)
    assert status == 413 and "the limit is 20000" in answer["error"]
    assert predict(url, inputs=[1])[0] == 200


def test_a_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    try:
        for body, expected in ((b'{"inputs": [1]}', 200), (b'{"inputs": [x]}', 400), (b'{"inputs": [2]}', 200)):
            connection.request("POST", "/v1/models/m:predict", body)
            response = connection.getresponse()
            assert (response.status, response.getheader("Connection")) == (expected, None)
            json.load(response)
    finally:
        connection.close()


def test_metrics_count_what_was_asked(url):
    def counted():
        with urllib.request.urlopen(f"{url}/monitoring/prometheus/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    good = 'tfvidgen_requests_total{api="rest",code="OK",endpoint="lookup"}'
    bad = 'tfvidgen_requests_total{api="rest",code="INVALID_ARGUMENT",endpoint="lookup"}'
    unknown = 'tfvidgen_requests_total{api="rest",code="FAILED_PRECONDITION",endpoint="unknown"}'
    seconds, rows = 'tfvidgen_request_seconds_count{endpoint="lookup"}', "tfvidgen_batch_rows_sum"
    before = counted()
    assert predict(url, signature_name="lookup", inputs=[1, 2])[0] == 200
    assert predict(url, signature_name="lookup", inputs=[9])[0] == 400
    assert predict(url, signature_name="made up by a caller", inputs=[9])[0] == 400
    after = counted()
    grown = {key: after[key] - before.get(key, 0) for key in (good, bad, unknown, seconds, rows)}
    assert grown == {good: 1, bad: 1, unknown: 1, seconds: 2, rows: 3}
    assert after["worker_process_resident_memory_bytes"] > 1e6
    assert after["tfvidgen_model_version"] == 1 and after["tfvidgen_waiting_requests"] == 0
    assert after["process_resident_memory_bytes"] > 1e6


# ---------------------------------------------------------------- gRPC
@pytest.fixture(scope="module")
def stub(server):
    """The official client stub."""
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api (extra: serving)")
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(signature: str, **inputs):
    from tensorflow_serving.apis import predict_pb2

    made = predict_pb2.PredictRequest()
    made.model_spec.name, made.model_spec.signature_name = "m", signature
    for name, value in inputs.items():
        made.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return made


def test_the_official_stub_gets_the_same_frames_bit_for_bit(stub, signatures):
    response = stub.Predict(request("serving_default", seed=np.array([3, 8])), timeout=30)
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["video"]), of_seeds(signatures, 3, 8))
    assert (response.model_spec.name, response.model_spec.version.value) == ("m", 1)
    assert response.model_spec.signature_name == "serving_default"
    filtered = request("serving_default_jpeg", seed=np.array([3]))
    filtered.output_filter.append("frames_bytes")
    files = tf.make_ndarray(stub.Predict(filtered, timeout=30).outputs["frames_bytes"])
    assert files.shape == (1, 4) and files[0, 0].startswith(b"\xff\xd8")


def test_the_official_stub_reads_metadata_and_status(stub, server, exported):
    import grpc
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_service_pb2_grpc

    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "m"
    told = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(asked, timeout=30).metadata["signature_def"].Unpack(told)
    assert {name for name in told.signature_def if not name.startswith("__")} == set(exported.metadata["endpoints"])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        status = get_model_status_pb2.GetModelStatusRequest()
        status.model_spec.name = "m"
        (state,) = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status).model_version_status
    assert (state.version, state.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)


def test_grpc_errors_have_the_official_codes(stub):
    import grpc

    def code(made):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(made, timeout=30)
        return caught.value.code().name, caught.value.details()

    assert code(request("lookup", video_id=np.array([6], np.int32))) == (
        "INVALID_ARGUMENT",
        "video_id must lie in 0..5",
    )
    assert code(request("lookup", video_id=np.array([1], np.int64)))[0] == "INVALID_ARGUMENT"
    assert code(request("nothing", seed=np.array([1])))[0] == "FAILED_PRECONDITION"
    other = request("serving_default", seed=np.array([1]))
    other.model_spec.name = "other"
    assert code(other)[0] == "NOT_FOUND"
    later = request("serving_default", seed=np.array([1]))
    later.model_spec.version.value = 2
    assert code(later)[0] == "NOT_FOUND"
    unknown = request("serving_default", seed=np.array([1]))
    unknown.output_filter.append("audio")
    assert code(unknown) == ("INVALID_ARGUMENT", "serving_default returns video: unknown audio")


def test_a_small_message_that_would_grow_is_refused(stub):
    """By its declared shape, its number of fields, or the size of one, before it is parsed or an array is made."""
    import grpc

    one = request("decode")
    tensor = one.inputs["transient"]
    tensor.dtype = 1
    tensor.float_val.append(1.0)
    for size in (16, 400_000, 10):
        tensor.tensor_shape.dim.add(size=size)
    assert one.ByteSize() < 200
    many, large = request("decode"), request("decode")
    for _ in range(300):
        many.output_filter.append("")
    large.inputs["static"].tensor_shape.dim.add(name="x" * 5000)
    for made in (one, many, large):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(made, timeout=30)
        assert caught.value.code().name == "INVALID_ARGUMENT", caught.value.details()


def test_parsing_takes_no_more_than_is_reserved_for_it():
    from export.server import limits, values

    body = b'{"inputs": {"x": [' + b",".join([b"1.5"] * 100_000) + b"]}}"
    tracemalloc.start()
    request = values.parse_request(body)
    array = np.array(request["inputs"]["x"], np.float32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(array) == 100_000 and len(body) < peak < limits.EXPANSION * len(body)


def test_a_budget_refuses_what_exceeds_it():
    from export.server import limits

    budget = limits.Budget(100)
    with budget.holding(60), pytest.raises(limits.RequestError) as refused:
        budget.take(41)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    budget.take(100)
    assert (budget.held, budget.peak) == (100, 100)


# ---------------------------------------------------------------- batches
def test_requests_that_wait_run_together_and_get_their_own_rows(signatures):
    from export.server import runtime

    endpoint = runtime.Endpoint("serving_default", signatures["serving_default"])
    alone = {seed: endpoint.run({"seed": np.array([seed])})["video"] for seed in range(6)}
    rows = []
    batcher = runtime.Batcher(max_rows=4, on_batch=rows.append)
    held, run = threading.Event(), endpoint.run

    def slow(inputs):
        held.wait(30)
        return run(inputs)

    endpoint.run = slow  # the model is busy until the others wait
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(batcher.run, endpoint, {"seed": np.array([0])}, 60.0)]
        while batcher.num_waiting or not rows:
            time.sleep(0.01)
        answers += [pool.submit(batcher.run, endpoint, {"seed": np.array([seed])}, 60.0) for seed in range(1, 6)]
        while batcher.num_waiting < 5:
            time.sleep(0.01)
        held.set()
        for seed, answer in enumerate(answers):
            assert_same_pixels(answer.result(60)["video"], alone[seed])
    # those that ran alone, and those of four rows as a request of the same four rows
    np.testing.assert_array_equal(answers[0].result()["video"], alone[0])
    np.testing.assert_array_equal(answers[5].result()["video"], alone[5])
    together = run({"seed": np.arange(1, 5)})["video"]
    np.testing.assert_array_equal(np.concatenate([answer.result()["video"] for answer in answers[1:5]]), together)
    batcher.close()
    assert rows == [1, 4, 1]


def test_one_request_has_the_same_bytes_however_often_it_is_asked(signatures):
    """Of the same rows, on one machine, also while others keep its processors busy."""
    from export.server import runtime

    endpoint = runtime.Endpoint("serving_default", signatures["serving_default"])
    requests = [{"seed": np.arange(first, first + rows)} for first, rows in ((1, 1), (1, 4), (7, 3))] * 8
    expected = [endpoint.run(request)["video"] for request in requests[:3]] * 8
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for answer, video in zip(pool.map(endpoint.run, requests), expected, strict=True):
            np.testing.assert_array_equal(answer["video"], video)


def test_only_requests_of_one_length_run_together_and_outlive_their_version(free_length):
    from export.server import runtime

    version = runtime.Version(free_length.version)
    decode, generate = version.endpoint("decode"), version.endpoint("generate")
    gone = weakref.ref(version)
    del version  # as when it was replaced while they wait
    gc.collect()
    assert gone() is None
    latents = [
        {name: np.asarray(value) for name, value in free_length.model.sample_latents(1, length, seed=length).items()}
        for length in (2, 3, 2, 3)
    ]
    latents[2]["content"] = latents[2]["content"] + 1.0
    lengths = [{"seed": np.array([5]), "num_frames": np.int32(length)} for length in (2, 3, 3)]
    asked = [*((decode, inputs) for inputs in latents), *((generate, inputs) for inputs in lengths)]
    alone = [endpoint.run(inputs)["video"] for endpoint, inputs in asked]
    rows, held = [], threading.Event()
    batcher = runtime.Batcher(max_rows=8, on_batch=lambda count: (rows.append(count), held.wait(30)))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher.run, *asked[0], 60.0)
        wait_for(lambda: rows)
        answers = []
        for endpoint, inputs in asked:
            answers.append(pool.submit(batcher.run, endpoint, inputs, 60.0))
            wait_for(lambda: batcher.num_waiting == len(answers))  # noqa: B023
        held.set()
        for answer, expected in zip([first, *answers], [alone[0], *alone], strict=True):
            assert_same_pixels(answer.result(60)["video"], expected)
    batcher.close()
    # the held one, both of two frames, both of three, and what has a scalar input on its own
    assert rows == [1, 2, 2, 1, 1, 1]


def test_one_wrong_request_does_not_fail_its_batch(signatures):
    from export.server import runtime

    endpoint = runtime.Endpoint("lookup", signatures["lookup"])
    rows = []
    batcher = runtime.Batcher(max_rows=8, on_batch=rows.append)
    held, run = threading.Event(), endpoint.run
    endpoint.run = lambda inputs: (held.wait(30), run(inputs))[1]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [[0], [1], [99], [2]]
        answers = []
        for ids in asked:
            answers.append(pool.submit(batcher.run, endpoint, {"video_id": np.array(ids, np.int32)}, 60.0))
            while not rows:
                time.sleep(0.01)
        while batcher.num_waiting < 3:
            time.sleep(0.01)
        held.set()
        with pytest.raises(runtime.RequestError, match=r"video_id must lie in 0\.\.5"):
            answers[2].result(60)
        for i in (0, 1, 3):
            assert_same_pixels(answers[i].result(60)["video"], run({"video_id": np.array(asked[i], np.int32)})["video"])
    batcher.close()
    assert rows == [1, 3]


def test_a_full_queue_and_a_late_answer_are_errors(signatures):
    from export.server import runtime

    endpoint = runtime.Endpoint("serving_default", signatures["serving_default"])
    batcher = runtime.Batcher(max_rows=1, max_queue=1)
    held, run = threading.Event(), endpoint.run
    endpoint.run = lambda inputs: (held.wait(30), run(inputs))[1]
    seed = {"seed": np.array([1])}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.run, endpoint, seed, 60.0)
        while batcher.num_waiting or not first.running():
            time.sleep(0.01)
        time.sleep(0.05)
        with pytest.raises(runtime.RequestError) as late:
            batcher.run(endpoint, seed, 0.05)
        assert late.value.code == "DEADLINE_EXCEEDED"
        with pytest.raises(runtime.RequestError) as full:  # the late one has not been taken out of the queue yet
            batcher.run(endpoint, seed, 60.0)
        assert full.value.code == "UNAVAILABLE"
        held.set()
        assert first.result(60)["video"].shape[0] == 1
    batcher.close()
    with pytest.raises(runtime.RequestError) as closed:
        batcher.run(endpoint, seed, 1.0)
    assert closed.value.code == "UNAVAILABLE"


# ---------------------------------------------------------------- versions
def copied(source: pathlib.Path, target: pathlib.Path) -> None:
    """A version folder that appears whole."""
    shutil.copytree(source, target.with_name(".part"))
    os.rename(target.with_name(".part"), target)


def served_versions(url: str) -> dict[str, str]:
    return {s["version"]: s["state"] for s in ask(f"{url}/v1/models/m")[1]["model_version_status"]}


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.long
def test_a_new_version_takes_over_without_a_failed_request(free_length, tmp_path):
    copied(free_length.version, tmp_path / "1")
    server = start_server(tmp_path, poll_seconds=0.05)
    url = f"http://127.0.0.1:{server.rest_port}"
    addresses = [url, *([f"grpc://127.0.0.1:{server.grpc_port}"] if server.grpc_port else [])] * 2
    expected = uint8(free_length.model.generate(1, seed=7))
    answers: list[list] = [[] for _ in addresses]
    stop = threading.Event()

    def keep_asking(address, found):
        asking = client.connect(address, "m", num_attempts=1)
        while not stop.is_set():
            try:
                video = asking.predict("serving_default", {"seed": [7]})["video"]
                found.append(int(np.abs(video.astype(int) - expected).max()))
            except Exception as error:
                found.append(error)
            time.sleep(0.01)
        asking.close()

    threads = [threading.Thread(target=keep_asking, args=pair) for pair in zip(addresses, answers, strict=True)]
    try:
        for thread in threads:
            thread.start()
        wait_for(lambda: min(map(len, answers)) > 3)
        copied(free_length.version, tmp_path / "2")
        wait_for(lambda: served_versions(url) == {"2": "AVAILABLE", "1": "END"})
        (tmp_path / "3").mkdir()
        (tmp_path / "3" / "saved_model.pb").write_bytes(b"not a model")
        wait_for(lambda: served_versions(url).get("3") == "END")
        assert served_versions(url)["2"] == "AVAILABLE"
        assert ask(f"{url}/v1/models/m/versions/1:predict", {"inputs": [1]})[0] == 404
        shutil.rmtree(tmp_path / "3")
        wait_for(lambda: "3" not in served_versions(url))
        shutil.rmtree(tmp_path / "2")
        shutil.rmtree(tmp_path / "1")
        counts = [len(found) for found in answers]  # better an old model than none
        wait_for(lambda: all(len(found) > count + 3 for found, count in zip(answers, counts, strict=True)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        server.stop()
    assert {answer for found in answers for answer in found} <= {0, 1}, answers


def test_a_folder_without_a_version_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds nothing to serve: it has no folder named by a version number"):
        start_server(tmp_path)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="holds nothing to serve: version 1: "):
        start_server(tmp_path)


# ---------------------------------------------------------------- the end
@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> pathlib.Path:
    """The base folder of a model that computes for as many rounds as its seed says, ten thousand in about half a second."""

    class Slow(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64, "seed")])
        def __call__(self, seed):
            rounds = tf.while_loop(
                lambda i, x: i < seed[0], lambda i, x: (i + 1, tf.tanh(x @ x)), (tf.zeros((), tf.int64), tf.eye(128))
            )
            return {"video": tf.cast(rounds[1], tf.uint8)[None]}

    base, module = tmp_path_factory.mktemp("slow"), Slow()
    tf.saved_model.save(module, str(base / "1"), signatures=module.__call__)
    return base


@pytest.mark.parametrize("grace", [pytest.param(60.0, marks=pytest.mark.long), 0.1])
def test_a_stopping_server_finishes_what_it_has_begun(slow, grace):
    server = start_server(slow, grace_seconds=grace, max_batch_size=1)
    url = f"http://127.0.0.1:{server.rest_port}"
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(predict, url, inputs=[20_000])]
        wait_for(lambda: server.app.num_working == 1)
        time.sleep(0.05)  # it is the first
        answers += [pool.submit(predict, url, inputs=[rounds]) for rounds in (2, 3)]
        wait_for(lambda: server.app.num_working == 3)
        server.stop()
        statuses = [answer.result(30)[0] for answer in answers]
    # with time enough all that waited are answered; else the running one is, and the others are told
    assert statuses == ([200, 200, 200] if grace > 1 else [200, 503, 503])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.rest_port), timeout=2).close()


def test_health_answers_while_every_connection_trickles(slow):
    server = start_server(slow, max_connections=4, timeout_seconds=20.0)
    url, half = (
        f"http://127.0.0.1:{server.rest_port}",
        b"POST /v1/models/m:predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    )
    held = []
    try:
        for _ in range(20):
            held.append(socket.create_connection(("127.0.0.1", server.rest_port)))
            held[-1].sendall(half)
        for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
            assert ask(url + path, timeout=5.0) == (200, {"status": status})
    finally:
        for connection in held:
            connection.close()
        server.stop()


def test_a_get_with_a_body_is_one_request(url):
    inner = b"GET /nothing HTTP/1.1\r\n\r\n"
    start = b"GET /healthz HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(inner)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(start + inner)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 200 ")


def test_gzip_and_chunks_are_the_same_request_and_bounded(server):
    content = json.dumps({"inputs": [1], "ignored": 7}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)

    def post(body, chunked=False, **headers):
        connection.request("POST", "/V1/Models/m:predict", body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    gzip_header, chunk_header = {"Content-Encoding": "gzip"}, {"Transfer-Encoding": "chunked"}
    expected = post(content)
    assert expected[0] == 200
    assert post(gzip.compress(content), **gzip_header) == expected
    assert post(iter([content[:5], content[5:]]), chunked=True, **chunk_header) == expected
    assert post(gzip.compress(bytes(server.app.config.max_json_bytes + 1)), **gzip_header)[0] == 413
    assert post(b"[]," * 100_000)[0] == 400
    connection.close()


def test_a_busy_port_is_named(server, exported):
    for flag in ("rest_port", "grpc_port"):
        if port := getattr(server, flag):
            with pytest.raises(OSError, match=rf":{port} .*--{flag}"):
                start_server(exported.base, **{flag: port})


def test_the_program_serves_until_it_is_told_to_stop(free_length, tmp_path):
    pytest.importorskip("prometheus_client", reason="the server needs prometheus-client (extra: serving)")
    command = [sys.executable, "-m", "export.serve", f"--model_base_path={free_length.base}", "--rest_port=0"]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--grpc_port=-1"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("development server: http://127.0.0.1:"), (tmp_path / "log").read_text()
        url = line.split()[2]
        assert url.endswith(f"/v1/models/{free_length.metadata['name']}")
        assert ask(f"{url}:predict", {"inputs": [1]})[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read() == "stopping\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_bad_settings_are_one_message(tmp_path, capsys):
    assert serve.main([]) == 2
    assert "--model_base_path is missing" in capsys.readouterr().err
    assert serve.main([f"--model_base_path={tmp_path / 'none'}"]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert serve.main([f"--model_base_path={tmp_path}", "--max_batch_size=0"]) == 2
    assert "--max_batch_size must be at least 1" in capsys.readouterr().err


# ---------------------------------------------------------------- the real one
def test_tensorflow_serving_itself(exported, tmp_path):
    """Opt-in: TFVIDGEN_MODEL_SERVER names a tensorflow_model_server program."""
    program = os.environ.get("TFVIDGEN_MODEL_SERVER")
    if not program:
        pytest.skip("set TFVIDGEN_MODEL_SERVER to a tensorflow_model_server program")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [f"--rest_api_port={port}", "--port=0", "--model_name=m", f"--model_base_path={exported.base}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
    try:
        asking = client.RestClient(f"http://127.0.0.1:{port}", "m", num_attempts=9)
        video = asking.predict("serving_default", {"seed": [9]})["video"]
        assert_same_frames(video, exported.model.generate(1, seed=9))
        with pytest.raises(client.ServerError, match=r"400.*video_id must lie in 0\.\.5"):
            asking.predict("lookup", {"video_id": [6]})
        files = asking.predict("exchange_jpeg", {"identity": [0], "action": [1]})["frames_bytes"]
        assert files[0, 0].startswith(b"\xff\xd8")
    finally:
        process.terminate()
        process.wait()
