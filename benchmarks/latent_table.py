"""Does a training step of a latent table cost the same for a thousand rows and for a million?"""

from __future__ import annotations

import sys
import time
from typing import Any

import benchmarks

NUM_ROWS = (1_000, 10_000, 100_000, 1_000_000)
WIDTH, BATCH, STEPS_PER_CALL = 256, 64, 200


def serve() -> None:
    """Answers requests: seconds of one lookup and update in a table of so many rows, by every clock."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from tfvidgen.layers.latent_table import LatentTable

    prepared: dict[int, Any] = {}

    def prepare(num_rows: int):
        table = LatentTable(num_rows, (WIDTH,), learning_rate=0.01, update_rule="adam", seed=0)
        table.build()

        @tf.function
        def steps(first):
            for step in tf.range(first, first + STEPS_PER_CALL):
                seed = tf.stack([step, tf.constant(0, tf.int64)])
                row_ids = tf.random.stateless_uniform((BATCH,), seed, 0, num_rows, tf.int32)
                table.update(row_ids, 2.0 * table(row_ids), step)  # the gradient of |row|^2
            return table.num_updates.value[0]

        count = iter(range(0, 1 << 40, STEPS_PER_CALL))
        call = lambda: steps(tf.constant(next(count), tf.int64)).numpy()  # noqa: E731
        call()
        variables = [table.rows, *table.slots, table.num_updates]
        num_bytes = sum(4 * int(variable.shape.num_elements()) for variable in (v.value for v in variables))
        return call, num_bytes

    def answer(num_rows: int, begin: float) -> dict[str, Any]:
        if num_rows not in prepared:
            prepared[num_rows] = prepare(num_rows)
        call, num_bytes = prepared[num_rows]
        start = {name: clock() for name, clock in benchmarks.CLOCKS.items()}
        call()
        spent = {name: (clock() - start[name]) / STEPS_PER_CALL for name, clock in benchmarks.CLOCKS.items()}
        return {"seconds": spent, "bytes": num_bytes, "peak_memory": benchmarks.peak_memory()}

    benchmarks.serve(answer)


def run(rounds: int = 3, **unused: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    print(f"\nLatent table: lookup and lazy Adam of {BATCH} rows of {WIDTH} floats, microseconds a step on one thread")
    print(f"{'rows':>10}{'wall':>8}{'processor':>11}{'to the smallest':>17}{'MiB':>7}{'numbers a row':>15}")
    worker = benchmarks.Worker("benchmarks.latent_table")
    seconds: dict[int, list[dict[str, float]]] = {num_rows: [] for num_rows in NUM_ROWS}
    facts = {}
    begin = time.monotonic()
    try:
        for turn in range(5 * rounds + 2):
            for num_rows in NUM_ROWS:
                facts[num_rows] = worker.ask(num_rows=num_rows)
                if turn >= 2:  # the first turns warm up
                    seconds[num_rows].append(facts[num_rows]["seconds"])
    finally:
        worker.close()
    rows = []
    for num_rows in NUM_ROWS:
        # tables take turns, so a ratio is of neighbours in time
        smallest = seconds[NUM_ROWS[0]]
        ratio = benchmarks.median(
            [a["processor"] / b["processor"] for a, b in zip(seconds[num_rows], smallest, strict=True)]
        )
        wall, processor = (
            1e6 * benchmarks.median([s[name] for s in seconds[num_rows]]) for name in ("wall", "processor")
        )
        size = facts[num_rows]["bytes"]
        rows.append(
            {
                "num_rows": num_rows,
                "microseconds": {"wall": wall, "processor": processor},
                "ratio": ratio,
                "bytes": size,
                "numbers_per_row": size / 4 / num_rows,
            }
        )
        print(f"{num_rows:10,}{wall:8.0f}{processor:11.0f}{ratio:17.3f}{size / 2**20:7.0f}{size / 4 / num_rows:15.0f}")
    print(
        f"    the code, Adam's two moments of it and a count: 3 x {WIDTH} + 1 = {3 * WIDTH + 1} numbers a row; peak memory of "
        f"the process {facts[NUM_ROWS[-1]]['peak_memory'] / 2**20:.0f} MiB; {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return {"rows": rows}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve()
