"""Does a training step of a latent table cost the same for a thousand rows and for a million?

Between two steps of a training the networks run and leave nothing of the table in the processor's caches; so does a sum
over a large array here. Without it ("in cache") a table small enough to stay there is ahead, by memory and not by work.

First comes the table alone, then a whole training step of NAVSynth whose transient table has as many rows: what grows with
the number of rows by itself, the time to reach memory that lies far apart, is small beside the networks.

The last row of the table alone takes the way of `host_memory=True`. The device is the host itself here, so it shows what that way
costs by itself; what a copy to another device and back adds is not in it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import benchmarks

NUM_ROWS = (1_000, 10_000, 100_000, 1_000_000)
ON_HOST = 100_000  # rows of the table that takes the way of `host_memory=True`
WIDTH, BATCH, STEPS_PER_TURN = 256, 64, 50
FRAMES, SIZE, CLIPS, STEPS = 16, 64, 4, 10  # of a training step, and how many make a turn
LIMIT = 0.05  # by how much a training step with any table may differ from one with the smallest
FLUSH_BYTES = 1 << 27  # several times the largest cache of a common processor


def serve() -> None:
    """Answers requests: processor seconds of one lookup and update in a table of so many rows."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from tfvidgen.layers.latent_table import LatentTable

    prepared: dict[Any, Any] = {}
    other_work = np.ones(FLUSH_BYTES // 8)

    def prepare(num_rows: int, host_memory: bool):
        table = LatentTable(num_rows, (WIDTH,), learning_rate=0.01, update_rule="adam", seed=0, host_memory=host_memory)
        table.build()

        @tf.function
        def train(row_ids, step):
            table.update(row_ids, 2.0 * table(row_ids), step)  # the gradient of |row|^2

        variables = [v.value for v in (table.rows, *table.slots, table.num_updates)]
        num_bytes = sum(4 * int(variable.shape.num_elements()) for variable in variables)
        return train, num_bytes, np.random.default_rng(0)

    def prepare_step(num_rows: int):
        from tfvidgen.models.navsynth import NAVSynth

        model = NAVSynth(
            num_rows, FRAMES, SIZE, static_by="shared", transient_dim=WIDTH // FRAMES, latent_rule="adam", seed=0
        )
        model.build()
        model.compile(update="joint", triplet_weight=0.0)
        return tf.function(model.train_step), np.random.default_rng(0)

    def answer_step(num_rows: int) -> dict[str, Any]:
        key = "step", num_rows
        if key not in prepared:
            prepared[key] = prepare_step(num_rows)
        train, random = prepared[key]
        seconds = []
        for step in range(STEPS):
            batch = {
                "video": tf.constant(random.integers(0, 256, (CLIPS, FRAMES, SIZE, SIZE, 3), np.uint8)),
                "video_id": tf.constant(random.integers(0, num_rows, CLIPS, np.int32)),
                "step": tf.fill((CLIPS,), tf.constant(step, tf.int64)),
            }
            start = time.process_time()
            train(batch)
            seconds.append(time.process_time() - start)
        return {"seconds": benchmarks.median(seconds)}

    def answer(
        num_rows: int, host_memory: bool = False, cached: bool = False, whole_step: bool = False, begin: float = 0.0
    ):
        if whole_step:
            return answer_step(num_rows)
        key = num_rows, host_memory
        if key not in prepared:
            prepared[key] = prepare(*key)
        train, num_bytes, random = prepared[key]
        seconds = []
        for step in range(STEPS_PER_TURN):
            row_ids = tf.constant(random.integers(0, num_rows, BATCH, np.int32))
            step = tf.constant(step, tf.int64)
            if not cached:
                other_work.sum()
            start = time.process_time()
            train(row_ids, step)
            seconds.append(time.process_time() - start)
        return {"seconds": benchmarks.median(seconds), "bytes": num_bytes, "peak_memory": benchmarks.peak_memory()}

    benchmarks.serve(answer)


def run(rounds: int = 3, **unused: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    print(f"\nLatent table: lookup and lazy Adam of {BATCH} rows of {WIDTH} floats, processor time on one thread")
    print(f"{'rows':>10}{'us':>8}{'to the smallest':>17}{'us in cache':>13}{'MiB':>7}{'numbers a row':>15}")
    worker = benchmarks.Worker("benchmarks.latent_table")
    tables = [*((num_rows, False) for num_rows in NUM_ROWS), (ON_HOST, True)]
    seconds: dict[tuple[int, bool, bool], list[float]] = {}
    sizes, peak = {}, 0
    try:
        for turn in range(3 * rounds + 1):
            for num_rows, host_memory in tables:  # tables take turns, so a ratio is of neighbours in time
                for cached in (False, True):
                    answer = worker.ask(num_rows=num_rows, host_memory=host_memory, cached=cached)
                    sizes[num_rows], peak = answer["bytes"], answer["peak_memory"]
                    if turn:  # the first turn warms up
                        seconds.setdefault((num_rows, host_memory, cached), []).append(answer["seconds"])
    finally:
        worker.close()
    rows = []
    for num_rows, host_memory in tables:
        pairs = zip(seconds[num_rows, host_memory, False], seconds[NUM_ROWS[0], False, False], strict=True)
        row = {
            "num_rows": num_rows,
            "host_memory": host_memory,
            "microseconds": 1e6 * benchmarks.median(seconds[num_rows, host_memory, False]),
            "microseconds_in_cache": 1e6 * benchmarks.median(seconds[num_rows, host_memory, True]),
            "ratio": benchmarks.median([a / b for a, b in pairs]),
            "bytes": sizes[num_rows],
            "numbers_per_row": sizes[num_rows] / 4 / num_rows,
        }
        print(
            f"{num_rows:10,}{row['microseconds']:8.0f}{row['ratio']:17.3f}{row['microseconds_in_cache']:13.0f}"
            f"{row['bytes'] / 2**20:7.0f}{row['numbers_per_row']:15.0f}{'  host_memory' if host_memory else ''}"
        )
        rows.append(row)
    print(
        f"    the code, Adam's two moments of it and a count: 3 x {WIDTH} + 1 = {3 * WIDTH + 1} numbers a row; the process "
        f"held {peak / 2**20:.0f} MiB at most, with all tables and while the last one was drawn",
        flush=True,
    )
    steps = _run_steps(rounds)
    largest = max(abs(row["ratio"] - 1.0) for row in steps)
    verdict = "within" if largest <= LIMIT else "NOT within"
    print(f"    a step with any table is {verdict} {LIMIT:.0%} of one with the smallest: {largest:.1%}", flush=True)
    return {"rows": rows, "steps": steps, "largest_difference": largest}


def _run_steps(rounds: int) -> list[dict[str, Any]]:
    """The whole training step, measured in a process of its own."""
    print(
        f"NAVSynth's joint step, {CLIPS} clips of {FRAMES}x{SIZE}x{SIZE}, codes of {FRAMES} x {WIDTH // FRAMES} per video"
    )
    print(f"{'rows':>10}{'ms':>8}{'to the smallest':>17}")
    worker = benchmarks.Worker("benchmarks.latent_table")
    seconds: dict[int, list[float]] = {num_rows: [] for num_rows in NUM_ROWS}
    try:
        for turn in range(3 * rounds + 1):
            for num_rows in NUM_ROWS:
                answer = worker.ask(num_rows=num_rows, whole_step=True)
                if turn:  # the first turn warms up
                    seconds[num_rows].append(answer["seconds"])
    finally:
        worker.close()
    rows = []
    for num_rows in NUM_ROWS:
        ratio = benchmarks.median([a / b for a, b in zip(seconds[num_rows], seconds[NUM_ROWS[0]], strict=True)])
        rows.append({"num_rows": num_rows, "milliseconds": 1e3 * benchmarks.median(seconds[num_rows]), "ratio": ratio})
        print(f"{num_rows:10,}{rows[-1]['milliseconds']:8.0f}{ratio:17.3f}")
    return rows


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve()
