"""Does a batch cost the same for a thousand videos and for a million, and how soon is the first one there?

Videos are as small as they can be, two frames of 8x8, so that what depends on their number is not hidden behind pixels. Both
sets are prepared as a user prepares them; batches come from the shards and, as a second pair, from memory.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time
from typing import Any

import benchmarks

NUM_VIDEOS = (1_000, 1_000_000)
FRAMES, SIZE, BATCH, NUM_FILES = 2, 8, 16, 40
LIMIT_RATIO, LIMIT_SECONDS = 0.05, 5.0


def serve(folder: str) -> None:
    """Answers requests about sets of so many videos: prepares one, opens it, or takes batches from it."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from tfvidgen import data
    from tfvidgen.data.prepare import prepare_shards

    batches: dict[Any, Any] = {}
    small = data.VideoCollection.from_videos(np.zeros((2, FRAMES, SIZE, SIZE, 3), np.uint8))
    next(iter(data.make_dataset(small, 1, FRAMES)))  # TensorFlow's own start is no matter of the data

    def prepare(num_videos: int) -> dict[str, Any]:
        source = pathlib.Path(folder) / f"source-{num_videos}"
        source.mkdir()
        random = np.random.default_rng(0)
        for index in range(NUM_FILES):
            shape = (num_videos // NUM_FILES, FRAMES, SIZE, SIZE, 3)
            np.save(source / f"{index:02d}.npy", random.integers(0, 256, shape, np.uint8))
        prepare_shards(source, pathlib.Path(folder) / str(num_videos), SIZE, num_workers=1, shard_mb=1)
        return {}

    def first(num_videos: int) -> dict[str, Any]:
        begin = time.perf_counter()
        videos = data.ShardedVideos.open(pathlib.Path(folder) / str(num_videos))
        opened = time.perf_counter()
        iterator = iter(data.make_dataset(videos, BATCH, FRAMES))
        next(iterator)
        made = time.perf_counter()
        videos.subset(np.arange(len(videos)) % 2 == 0).digest  # noqa: B018
        digested = time.perf_counter()
        batches[num_videos, "shards"] = iterator
        batches[num_videos, "memory"] = iter(data.make_dataset(videos.collection(), BATCH, FRAMES))
        return {
            "seconds_to_open": opened - begin,
            "seconds_to_first_batch": made - begin,
            "seconds_of_subset_digest": digested - made,
        }

    def take(num_videos: int, kind: str, seconds: float) -> dict[str, Any]:
        iterator = batches[num_videos, kind]
        return {"seconds": benchmarks.time_calls(lambda: next(iterator), seconds, "processor")}

    benchmarks.serve(lambda what, begin, **given: {"prepare": prepare, "first": first, "take": take}[what](**given))


def run(rounds: int = 3, seconds: float = 2.0, **unused: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    print(f"\nData: batches of {BATCH} clips of {FRAMES}x{SIZE}x{SIZE}, processor time on one thread")
    print(
        f"{'videos':>10}{'from':>8}{'us':>8}{'to the smallest':>17}{'opened, s':>11}{'first batch, s':>16}{'digest, s':>11}"
    )
    with tempfile.TemporaryDirectory() as folder:
        worker = benchmarks.Worker("benchmarks.data", folder)
        try:
            firsts, times = {}, {}
            for num_videos in NUM_VIDEOS:
                worker.ask(what="prepare", num_videos=num_videos)
                firsts[num_videos] = worker.ask(what="first", num_videos=num_videos)
            for turn in range(3 * rounds + 1):
                for kind in ("shards", "memory"):
                    for num_videos in NUM_VIDEOS:  # they take turns, so a ratio is of neighbours in time
                        answer = worker.ask(what="take", num_videos=num_videos, kind=kind, seconds=seconds / 4)
                        if turn:  # the first turn warms up
                            times.setdefault((num_videos, kind), []).append(answer["seconds"])
        finally:
            worker.close()
    rows = []
    for (num_videos, kind), values in sorted(times.items()):
        pairs = zip(values, times[NUM_VIDEOS[0], kind], strict=True)
        row = {
            "num_videos": num_videos,
            "from": kind,
            "microseconds": 1e6 * benchmarks.median(values),
            "ratio": benchmarks.median([a / b for a, b in pairs]),
            **firsts[num_videos],
        }
        print(
            f"{num_videos:10,}{kind:>8}{row['microseconds']:8.0f}{row['ratio']:17.3f}{row['seconds_to_open']:11.2f}"
            f"{row['seconds_to_first_batch']:16.2f}{row['seconds_of_subset_digest']:11.2f}"
        )
        rows.append(row)
    largest = max(row["ratio"] - 1.0 for row in rows)
    slowest = max(row["seconds_to_first_batch"] for row in rows)
    for what, is_met, value in (
        (f"a batch costs at most {LIMIT_RATIO:.0%} more", largest <= LIMIT_RATIO, f"{largest:+.1%}"),
        (f"the first batch is there within {LIMIT_SECONDS:.0f} s", slowest <= LIMIT_SECONDS, f"{slowest:.1f} s"),
    ):
        print(f"    {what}: {'yes' if is_met else 'NO'} ({value})", flush=True)
    return {"rows": rows, "largest_difference": largest, "slowest_first_batch": slowest}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve(sys.argv[2])
