"""Malformed requests: each gets a 4xx or INVALID_ARGUMENT, and the server serves on, others' requests meanwhile included."""

import json
import threading
import urllib.request

import numpy as np
import pytest

from export.server import application, rest
from tests.export.malformed import GrpcSender, Malformed, rest_status

MANY = pytest.param(10_000, marks=pytest.mark.slow)


def good_request(server) -> np.ndarray:
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
    with urllib.request.urlopen(url, json.dumps({"inputs": {"seed": [1]}}).encode(), timeout=60) as response:
        return np.array(json.load(response)["outputs"])


class OneMore:
    """Somebody else who asks all the while, and whose answers must not change."""

    def __init__(self, server):
        self._server, self._expected, self._end = server, good_request(server), threading.Event()
        self.answers: list[bool] = []
        self._thread = threading.Thread(target=self._ask)

    def _ask(self):
        while not self._end.wait(0.02):
            try:
                self.answers.append(bool(np.array_equal(good_request(self._server), self._expected)))
            except Exception:
                self.answers.append(False)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


@pytest.mark.parametrize("count", [240, MANY])
def test_malformed_rest_requests_get_a_4xx(server, exported, count):
    requests = Malformed(exported.metadata, "m", count)
    with OneMore(server) as other:
        for i in range(count):
            request = requests.rest()
            status = rest_status(server.rest_port, request)
            assert 400 <= status < 500, (i, status, request[:400])
    assert other.answers and all(other.answers)
    # a client may have its answer a moment before the server is done with it
    assert application.main_loop_call(
        rest.wait_until(lambda: server.app.num_working == server.app.budget.held == 0, 10)
    )


@pytest.mark.parametrize("count", [120, MANY])
def test_malformed_grpc_requests_are_refused(server, exported, count):
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api (extra: serving)")
    requests, sender = Malformed(exported.metadata, "m", count), GrpcSender(server.grpc_port)
    with OneMore(server) as other:
        for i in range(count):
            message = requests.grpc()
            status = sender.status(message)
            # NOT_FOUND is what the protocol says of another model or version, FAILED_PRECONDITION of an unknown signature
            assert status in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"), (i, status, message[:300])
    sender.close()
    assert other.answers and all(other.answers)
