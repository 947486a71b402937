"""What does saving a large latent table cost beside writing its bytes, in time and in memory?

A table of a million rows, with the slots of its update rule, is saved and restored as a run does it, in turns with writing
as many bytes from memory to a new file in the same folder; of both the last two are kept. Between two of them a training
step moves rows, as in a run: it puts TensorFlow's variables into the mode in which an ordinary read copies them whole.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

import benchmarks

NUM_ROWS, WIDTH, BATCH = 1_000_000, 256, 64
LIMIT = 1.3  # times the seconds that writing the bytes takes


def serve() -> None:
    """Answers requests: the seconds of one save, restore or plain write, and what memory grew to meanwhile."""
    import pathlib
    import threading

    import numpy as np
    import tensorflow as tf

    from tfvidgen.layers.latent_table import LatentTable
    from trainers.engine.checkpoints import NUM_KEPT, Checkpoints, not_finite

    table = LatentTable(NUM_ROWS, (WIDTH,), learning_rate=0.01, update_rule="adam", seed=0)
    table.build()
    random = np.random.default_rng(0)
    state = {"step": tf.Variable(0, dtype=tf.int64)}
    state |= {f"table.{i}": weight.value for i, weight in enumerate(table.weights)}
    checkpoints = Checkpoints(state, sys.argv[2])
    plain = np.zeros(
        sum(int(variable.shape.num_elements()) * variable.dtype.size for variable in state.values()), np.uint8
    )
    plain[::4096] = 1  # its pages are there

    @tf.function
    def train(row_ids, step):
        table.update(row_ids, 2.0 * table(row_ids), step)

    def resident() -> int:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

    def answer(task: str, step: int, begin: float = 0.0) -> dict[str, Any]:
        train(tf.constant(random.integers(0, NUM_ROWS, BATCH, np.int32)), tf.constant(step, tf.int64))
        os.sync()  # what others wrote is not waited for
        before, peak, done = resident(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                peak[0] = max(peak[0], resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start, start_processor = time.monotonic(), time.process_time()
        if task == "write":
            with open(f"{sys.argv[2]}/plain-{step}", "wb") as file:
                file.write(plain)
            old = pathlib.Path(sys.argv[2], f"plain-{step - NUM_KEPT}")
            old.unlink(missing_ok=True)
        elif task == "check":
            if not_finite(state):
                raise ValueError("The table is not finite.")
        elif task == "save":
            checkpoints.save(step)
        else:
            checkpoints.restore()
        seconds, processor = time.monotonic() - start, time.process_time() - start_processor
        done.set()
        watcher.join()
        os.sync()
        return {
            "seconds": seconds,
            "seconds_to_disk": time.monotonic() - start,
            "processor_seconds": processor,
            "growth": max(0, peak[0] - before),
            "bytes": len(plain),
        }

    benchmarks.serve(answer)


def run(rounds: int = 3, **unused: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    folder = tempfile.TemporaryDirectory(dir=".")  # the worker is killed in the end and would leave it
    worker = benchmarks.Worker("benchmarks.checkpoints", folder.name)
    tasks = ("write", "check", "save", "restore")
    answers: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    try:
        for turn in range(rounds + 1):
            for task in tasks:
                answer = worker.ask(task=task, step=turn)
                if turn:  # the first turn warms up
                    answers[task].append(answer)
    finally:
        worker.close()
        folder.cleanup()
    num_bytes = answers["write"][0]["bytes"]
    print(
        f"\nCheckpoints: a table of {NUM_ROWS:,} rows of {WIDTH} floats with Adam's slots, {num_bytes / 2**20:.0f} MiB\n"
        f"{'':>10}{'s':>8}{'to writing':>12}{'s to disk':>11}{'to writing':>12}{'processor s':>13}{'memory grew by, MiB':>21}"
    )
    rows = {}
    for task in tasks:
        pairs = list(zip(answers[task], answers["write"], strict=True))
        rows[task] = {
            "seconds": benchmarks.median([a["seconds"] for a in answers[task]]),
            "ratio": benchmarks.median([a["seconds"] / b["seconds"] for a, b in pairs]),
            "seconds_to_disk": benchmarks.median([a["seconds_to_disk"] for a in answers[task]]),
            "ratio_to_disk": benchmarks.median([a["seconds_to_disk"] / b["seconds_to_disk"] for a, b in pairs]),
            "processor_seconds": benchmarks.median([a["processor_seconds"] for a in answers[task]]),
            "growth": max(a["growth"] for a in answers[task]),
        }
        row = rows[task]
        print(
            f"{task:>10}{row['seconds']:8.2f}{row['ratio']:12.2f}{row['seconds_to_disk']:11.2f}{row['ratio_to_disk']:12.2f}"
            f"{row['processor_seconds']:13.2f}{row['growth'] / 2**20:21.0f}",
            flush=True,
        )
    verdict = "within" if max(rows["save"]["ratio_to_disk"], rows["restore"]["ratio"]) <= LIMIT else "NOT within"
    print(
        f"    saving (to the disk) and restoring are {verdict} {LIMIT} times the seconds of writing the bytes",
        flush=True,
    )
    return {"bytes": num_bytes, "tasks": rows}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve()
