"""Serving: endpoints against a bare `tf.function`, the development server against direct calls, and load over time.

Usage: python -m benchmarks.serving [--rounds=3] [--seconds=5] [--malformed=10000] [--soak_minutes=0]
           [--size=64] [--num_frames=16] [--width=64] [--norm=batch|none]

Calls per second and latency are on the wall clock, so the machine must do nothing else; clients run in a process of their
own on the same machine and take a part of it. Beside them stands the processor time that a call costs the serving
process, which hardly changes on a shared machine. The networks are untrained and their frames nearly grey: JPEG sizes are
lower bounds.

Latency depends on how requests arrive. Two ways are measured, both at 70 % of the throughput of eight clients and both
from the moment at which a request was due: eight clients that each keep their own pace, at a random moment of every
period; and Poisson arrivals, as of very many clients. For the latter any server that takes one request after the other in
constant time has a p99 of 4.2 times the median (`queue_reference`), so 3 cannot be asked of it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import benchmarks
from tfvidgen import storage

NUM_CLIENTS = 8
OVERHEAD_BATCH = 8
LOAD = 0.7  # of the throughput
NUM_TIMED = 600  # requests whose latency is measured, at least: the 99th percentile is then the sixth largest
MODEL = "bench"


def build(folder: pathlib.Path, size: int, num_frames: int, width: int, norm: str) -> Any:
    """Exports a NAVSynth of the paper's widths and returns the live model."""
    from export import saved_model
    from tfvidgen.models.navsynth import NAVSynth

    model = NAVSynth(num_videos=64, num_frames=num_frames, size=size, width=width, norm=norm)
    model.build()
    saved_model.export_model(model, folder, name=MODEL)
    return model


# ---------------------------------------------------------------- endpoints
def overhead(model: Any, folder: pathlib.Path, rounds: int, seconds: float) -> dict[str, float]:
    """Times of one call at batch 8, and their ratio to a `tf.function` of `model.decode` alone."""
    import tensorflow as tf

    with storage.plain_path(folder / "1") as plain:
        loaded = tf.saved_model.load(plain)
    latents = {name: tf.constant(value) for name, value in model.sample_latents(OVERHEAD_BATCH, seed=0).items()}
    seeds = tf.range(OVERHEAD_BATCH, dtype=tf.int64)
    bare = tf.function(lambda values: model.decode(values))
    calls: dict[str, Callable] = {
        "bare": lambda: bare(latents).numpy(),
        "decode": lambda: loaded.signatures["decode"](**latents)["video"].numpy(),
        "serving_default": lambda: loaded.signatures["serving_default"](seed=seeds)["video"].numpy(),
        "serving_default_jpeg": lambda: loaded.signatures["serving_default_jpeg"](seed=seeds)["frames_bytes"].numpy(),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(benchmarks.time_calls(call, seconds))
    ratios = {
        name: benchmarks.median([a / b for a, b in zip(times[name], times["bare"], strict=True)]) for name in calls
    }
    return {
        **{f"{name}_ms": 1e3 * benchmarks.median(values) for name, values in times.items()},
        **{f"{name}_over_bare": ratio for name, ratio in ratios.items() if name != "bare"},
    }


# ---------------------------------------------------------------- server
@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Iterator[tuple[int, int]]:
    """A server process; yields its REST and gRPC ports."""
    command = [sys.executable, "-m", "export.serve", f"--model_base_path={folder}", f"--model_name={MODEL}"]
    process = subprocess.Popen(
        [*command, "--rest_port=0", "--grpc_port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"The server did not start: {' '.join(command)}")
        rest, grpc = line.split(":", 1)[1].split(", gRPC ")
        yield int(rest.rsplit("/v1", 1)[0].rsplit(":", 1)[1]), int(grpc.rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def rest_sender(port: int, endpoint: str) -> Callable[[int], int]:
    """Sends the request of a seed over one connection; returns the size of the answer, which is read, not parsed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def send(seed: int) -> int:
        body = json.dumps({"signature_name": endpoint, "inputs": {"seed": [seed]}})
        connection.request("POST", f"/v1/models/{MODEL}:predict", body)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(content[:300])
        return len(content)

    return send


def grpc_sender(port: int, endpoint: str) -> Callable[[int], int]:
    """As `rest_sender`, with the official stub and a channel of its own."""
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}", options))

    def send(seed: int) -> int:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = MODEL, endpoint
        request.inputs["seed"].CopyFrom(tf.make_tensor_proto(np.array([seed], np.int64)))
        return stub.Predict(request, timeout=60).ByteSize()

    return send


def closed_loop(senders: Sequence[Callable[[int], int]], seconds: float) -> dict[str, float]:
    """Every sender sends its next request when it has its answer: requests per second of all together."""
    counts, sizes, stop = [0] * len(senders), [0] * len(senders), time.monotonic() + seconds

    def work(i: int) -> None:
        while time.monotonic() < stop:
            sizes[i] = senders[i](i * 1_000_000 + counts[i])
            counts[i] += 1

    begin = time.monotonic()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(senders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(counts)
    return {"requests": total, "requests_per_second": total / (time.monotonic() - begin), "bytes": max(sizes)}


def poisson_moments(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """When requests of very many clients arrive, `rate` a second together."""
    draw, moments, at = random.Random(seed), [], 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        moments.append(at)
    return moments


def paced_moments(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """When requests of `NUM_CLIENTS` clients arrive: each sends one in every period of its own, at a random moment."""
    draw, period = random.Random(seed), NUM_CLIENTS / rate
    starts = [draw.uniform(-period, 0) for _ in range(NUM_CLIENTS)]
    moments = [s + (i + draw.random()) * period for s in starts for i in range(int(seconds / period) + 2)]
    return sorted(moment for moment in moments if 0 <= moment < seconds)


def queue_reference(moments: Sequence[float], load: float) -> float:
    """p99 over median of a server that takes one request after the other in constant time, at that load."""
    service, free, latencies = load * moments[-1] / len(moments), 0.0, []
    for moment in moments:
        free = max(free, moment) + service
        latencies.append(free - moment)
    cut = statistics.quantiles(latencies, n=100)
    return cut[98] / cut[49]


def open_loop(senders: Sequence[Callable[[int], int]], moments: Sequence[float]) -> dict[str, float]:
    """Requests at those seconds, whether or not the ones before are answered; latency from the moment."""
    latencies, errors, next_one, lock = [], 0, iter(enumerate(moments)), threading.Lock()
    begin = time.monotonic()

    def work(send: Callable[[int], int]) -> None:
        nonlocal errors
        while True:
            with lock:
                number, moment = next(next_one, (None, None))
            if moment is None:
                return
            time.sleep(max(0.0, begin + moment - time.monotonic()))
            try:
                send(number)
            except Exception:
                with lock:
                    errors += 1
                continue
            with lock:
                latencies.append(time.monotonic() - begin - moment)

    threads = [threading.Thread(target=work, args=(send,)) for send in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cut = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    return {
        "requests": len(moments),
        "errors": errors,
        "p50_ms": 1e3 * cut[49],
        "p99_ms": 1e3 * cut[98],
        "p99_over_p50": cut[98] / cut[49],
    }


def server_metric(port: int, name: str) -> float:
    """A number out of the server's own metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/monitoring/prometheus/metrics", timeout=60) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise RuntimeError(f"The server's metrics have no {name}.")


def server_memory(port: int) -> float:
    """Resident bytes of the server and of the process of its newest version; pages that they share count twice."""
    return server_sum(port, "process_resident_memory_bytes")


def server_sum(port: int, name: str) -> float:
    """A number of the server's process and the one of its newest version's, together."""
    return server_metric(port, name) + server_metric(port, f"worker_{name}")


def direct(folder: pathlib.Path, num_threads: int, seconds: float) -> tuple[float, float]:
    """Calls per second of the loaded signature at batch 1 from so many threads, and processor seconds per call."""
    import tensorflow as tf

    with storage.plain_path(folder / "1") as plain:
        signature = tf.saved_model.load(plain).signatures["serving_default"]

    def send(seed: int) -> int:
        return signature(seed=tf.constant([seed], tf.int64))["video"].numpy().nbytes

    send(0)
    begin = time.process_time()
    measured = closed_loop([send] * num_threads, seconds)
    return measured["requests_per_second"], (time.process_time() - begin) / measured["requests"]


# ---------------------------------------------------------------- the benchmark
def run(
    rounds: int = 3,
    seconds: float = 5.0,
    norm: str = "batch",
    clocks: Sequence[str] = ("wall",),
    malformed: int = 10_000,
    soak_minutes: float = 0.0,
    size: int = 64,
    num_frames: int = 16,
    width: int = 64,
) -> dict[str, Any]:
    """Measures, prints a table and returns the numbers. Only the wall clock says anything here."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / MODEL
        model = build(folder, size, num_frames, width, norm)
        results: dict[str, Any] = {"clip": f"{num_frames}x{size}x{size}x3, width {width}, norm {norm}"}
        print(f"serving: one clip is {results['clip']}, {num_frames * size * size * 3:,} bytes of pixels")
        results["overhead"] = overhead(model, folder, rounds, seconds)
        for name, value in results["overhead"].items():
            print(f"  {name:28} {value:9.3f}")
        results |= _server(folder, rounds, seconds, malformed, soak_minutes)
    return results


def _server(folder: pathlib.Path, rounds: int, seconds: float, malformed: int, soak_minutes: float) -> dict[str, Any]:
    with serving(folder) as (rest_port, grpc_port):
        kinds = {
            "grpc": lambda: grpc_sender(grpc_port, "serving_default"),
            "rest": lambda: rest_sender(rest_port, "serving_default"),
            "grpc jpeg": lambda: grpc_sender(grpc_port, "serving_default_jpeg"),
            "rest jpeg": lambda: rest_sender(rest_port, "serving_default_jpeg"),
        }
        senders = {name: [make() for _ in range(NUM_CLIENTS)] for name, make in kinds.items()}
        for made in senders.values():
            made[0](0)
        names = ("direct 1", f"direct {NUM_CLIENTS}", *kinds)
        found: dict[str, list[float]] = {name: [] for name in names}
        processor: dict[str, list[float]] = {name: [] for name in names}
        bytes_of = {}
        for _ in range(rounds):
            for num_threads in (1, NUM_CLIENTS):
                per_second, cost = direct(folder, num_threads, seconds)
                found[f"direct {num_threads}"].append(per_second)
                processor[f"direct {num_threads}"].append(cost)
            for name, made in senders.items():
                before = server_sum(rest_port, "process_cpu_seconds_total")
                measured = closed_loop(made, seconds)
                spent = server_sum(rest_port, "process_cpu_seconds_total") - before
                found[name].append(measured["requests_per_second"])
                processor[name].append(spent / measured["requests"])
                bytes_of[name] = measured["bytes"]
        best = [max(pair) for pair in zip(found["direct 1"], found[f"direct {NUM_CLIENTS}"], strict=True)]
        cheapest = [min(pair) for pair in zip(processor["direct 1"], processor[f"direct {NUM_CLIENTS}"], strict=True)]
        throughput = {}
        columns = ("per s", "of direct", "CPU ms", "to direct", "bytes")
        print(f"  {'calls':20}" + "".join(f"{column:>11}" for column in columns))
        for name in names:
            row = {
                "per_second": benchmarks.median(found[name]),
                "of_direct": benchmarks.median([a / b for a, b in zip(found[name], best, strict=True)]),
                "processor_ms": 1e3 * benchmarks.median(processor[name]),
                "processor_to_direct": benchmarks.median(
                    [a / b for a, b in zip(processor[name], cheapest, strict=True)]
                ),
                "bytes": bytes_of.get(name),
            }
            throughput[name] = row
            print(
                f"  {name:20}{row['per_second']:11.2f}{row['of_direct']:11.0%}{row['processor_ms']:11.1f}"
                f"{row['processor_to_direct']:11.2f}{row['bytes'] or '':>11}"
            )
        rate = LOAD * throughput["grpc"]["per_second"]
        # Many more senders than answers that can be pending: a request must not wait for a free one.
        many = [grpc_sender(grpc_port, "serving_default") for _ in range(8 * NUM_CLIENTS)]
        load = {}
        for name, draw in (("paced", paced_moments), ("poisson", poisson_moments)):
            moments = draw(rate, max(seconds * rounds, NUM_TIMED / rate))
            load[name] = open_loop(many, moments) | {"reference": queue_reference(moments, LOAD)}
            row = load[name]
            print(
                f"  at {LOAD:.0%} load ({rate:.1f}/s), {name:8} median {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms, "
                f"{row['p99_over_p50']:.1f} times ({row['reference']:.1f} one after the other in constant time); "
                f"{row['errors']} errors of {row['requests']}"
            )
        refused = _malformed(rest_port, grpc_port, folder, malformed) if malformed else None
        soak = _soak(rest_port, grpc_port, rate, soak_minutes) if soak_minutes else None
    return {"throughput": throughput, "load": {"per_second": rate, **load}, "malformed": refused, "soak": soak}


def _malformed(rest_port: int, grpc_port: int, folder: pathlib.Path, count: int) -> dict[str, Any]:
    """So many malformed requests by each interface, eight at a time: what they were answered, and what is left of the server."""
    from tests.export.malformed import GrpcSender, Malformed, rest_status

    metadata = json.loads((folder / "1" / "metadata.json").read_text())
    answers: collections.Counter = collections.Counter()
    lock, before = threading.Lock(), server_memory(rest_port)

    def work(seed: int, share: int) -> None:
        requests, sender, found = Malformed(metadata, MODEL, seed), GrpcSender(grpc_port), collections.Counter()
        for _ in range(share):
            found[f"grpc {sender.status(requests.grpc())}"] += 1
            try:
                found[f"rest {rest_status(rest_port, requests.rest())}"] += 1
            except (OSError, ValueError) as error:
                found[f"rest {type(error).__name__}"] += 1
        sender.close()
        with lock:
            answers.update(found)

    shares = [count // NUM_CLIENTS + (i < count % NUM_CLIENTS) for i in range(NUM_CLIENTS)]
    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refusals = ("rest 4", "grpc INVALID_ARGUMENT", "grpc NOT_FOUND", "grpc FAILED_PRECONDITION")
    other = sum(number for answer, number in answers.items() if not answer.startswith(refusals))
    rest_sender(rest_port, "serving_default")(0)  # it serves on
    growth = server_memory(rest_port) / before - 1
    told = ", ".join(f"{answer} {number}" for answer, number in sorted(answers.items()))
    print(f"  {2 * count} malformed requests: {told}; {other} answered otherwise; memory {growth:+.1%}")
    return {"requests": 2 * count, "answers": dict(answers), "otherwise": other, "memory_growth": growth}


def _soak(rest_port: int, grpc_port: int, rate: float, minutes: float) -> dict[str, Any]:
    """Steady load, half gRPC and half REST, with the server's memory ten times along the way."""
    senders = [
        grpc_sender(grpc_port, "serving_default") if i % 2 else rest_sender(rest_port, "serving_default_jpeg")
        for i in range(4 * NUM_CLIENTS)
    ]
    memory, errors, requests = [server_memory(rest_port)], 0, 0
    for part in range(10):
        measured = open_loop(senders, poisson_moments(rate, minutes * 6, seed=part))
        errors, requests = errors + measured["errors"], requests + measured["requests"]
        memory.append(server_memory(rest_port))
    # the first part fills pools and caches; growth is what comes after
    growth = memory[-1] / memory[1] - 1
    print(
        f"  {minutes:g} minutes: {requests} requests, {errors} errors; memory {', '.join(f'{m / 2**20:.0f}' for m in memory)} "
        f"MiB, {growth:+.1%} after the first tenth"
    )
    return {"minutes": minutes, "requests": requests, "errors": errors, "memory_bytes": memory, "growth": growth}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one turn")
    parser.add_argument("--malformed", type=int, default=10_000, help="malformed requests by each interface")
    parser.add_argument("--soak_minutes", type=float, default=0.0, help="steady load for so long; 30 for the full test")
    parser.add_argument("--norm", choices=("none", "batch"), default="batch")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--num_frames", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    run(**vars(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
