"""Speed and memory, ours against a peer's, in one run.

Every side runs in a process of its own, so that neither library's threads disturb the other's, and the processes take
turns: A B A B. Two clocks are read. Time on the wall, on two threads, is what a user waits for; it means something only
on a machine that does nothing else, since two threads that wait for each other suffer from a third far more than one
library's kernels differ from another's. Processor time, on one thread, is the work that a library does; it hardly
changes when the machine is shared.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
THREADS = {"wall": 2, "processor": 1}


class Worker:
    """A child process that answers requests, one JSON object a line; idle between them."""

    def __init__(self, module: str, *arguments: str):
        self._begin = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "BENCHMARKS_VERBOSE" not in os.environ else None,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            RuntimeError: If the process has ended.
        """
        line = ""
        if self._process.poll() is None:
            self._process.stdin.write(json.dumps({**request, "begin": self._begin}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"The process of {' '.join(self._process.args[2:])} ended before it answered: set BENCHMARKS_VERBOSE=1 to see "
                "its messages."
            )
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve(answer: Callable[..., dict[str, Any]]) -> None:
    """The other end of a `Worker`: calls `answer(**request)` for every request until standard input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    for line in sys.stdin:
        out.write(json.dumps(answer(**json.loads(line))) + "\n")
        out.flush()


def time_calls(call: Callable[[], Any], seconds: float, clock: str = "wall") -> float:
    """Mean seconds of a call by a clock of `CLOCKS`, over as many calls as fill `seconds`, at least two."""
    now = CLOCKS[clock]
    begin, count = now(), 0
    while count < 2 or now() - begin < seconds:
        call()
        count += 1
    return (now() - begin) / count


def peak_memory() -> int:
    """Most bytes of memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def machine() -> dict[str, Any]:
    """Processor, cores and versions, to be kept beside the numbers."""
    model = platform.processor()
    flags: list[str] = []
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    model = value.strip()
                elif name.strip() == "flags":
                    flags = value.split()
    except OSError:
        pass
    versions = {}
    for package in ("tensorflow", "keras", "torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": model,
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }
