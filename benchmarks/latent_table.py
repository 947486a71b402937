"""Does a training step of a latent table cost the same for a thousand rows and for a million?

Between two steps of a training the networks run and leave nothing of the table in the processor's caches; so does a sum
over a large array here. Without it ("in cache") a table small enough to stay there is ahead, by memory and not by work.

The last row of the table takes the way of `host_memory=True`. The device is the host itself here, so it shows what that way
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
LIMIT = 0.05  # by how much the step of any table may differ from that of the smallest
FLUSH_BYTES = 1 << 27  # several times the largest cache of a common processor


def serve() -> None:
    """Answers requests: processor seconds of one lookup and update in a table of so many rows."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from tfvidgen.layers.latent_table import LatentTable

    prepared: dict[tuple[int, bool], Any] = {}
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

    def answer(num_rows: int, host_memory: bool, cached: bool, begin: float) -> dict[str, Any]:
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
    largest = max(abs(row["ratio"] - 1.0) for row in rows if not row["host_memory"])
    print(
        f"    the code, Adam's two moments of it and a count: 3 x {WIDTH} + 1 = {3 * WIDTH + 1} numbers a row; the process "
        f"held {peak / 2**20:.0f} MiB at most, with all tables and while the last one was drawn\n    the step of any table is "
        f"{'within' if largest <= LIMIT else 'NOT within'} {LIMIT:.0%} of that of the smallest: {largest:.1%}",
        flush=True,
    )
    return {"rows": rows, "largest_difference": largest}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve()
