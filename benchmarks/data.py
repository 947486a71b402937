"""Does a batch cost the same for a thousand videos and for a million, and how soon is the first one there?

Videos are as small as they can be, two frames of 8x8, so that what depends on their number is not hidden behind pixels. Both
sets are prepared as a user prepares them; batches come from the shards and, as a second pair, from memory.

And how much memory do frames take while they are loaded, of each kind of source, and while a run trains on them? Each source is
loaded in a process of its own after a small one of its kind, so that decoders and TensorFlow are there before. Of a run, the peak
of the whole process is compared with that of the same run on few frames, which takes what the model and its steps do.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import Any

import benchmarks

NUM_VIDEOS = (1_000, 1_000_000)
FRAMES, SIZE, BATCH, NUM_FILES = 2, 8, 16, 40
LIMIT_RATIO, LIMIT_SECONDS = 0.05, 5.0
MEMORY_MIB, MEMORY_SIZE = 320, 64  # of frames, and their height and width
LIMIT_LOADING, LIMIT_TRAINING = 1.2, 1.1  # peak over frames
SOURCES = {  # videos of one source, and what their frames are multiplied by in height and width
    "npy, one": (400, 1),
    "npy, many": (400, 1),
    "npy, one, resized": (400, 2),
    "npz, one": (400, 1),
    "npz, one, resized": (400, 2),
    "npz, three": (3, 1),
    "strips": (400, 1),
    "frames": (20, 1),
    "mp4, many": (400, 1),
    "mp4, three": (3, 1),
    "mp4, one": (1, 1),
    "mp4, three, resized": (3, 2),
    "gif, three": (3, 1),
}


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
    memory = run_memory()
    return {"rows": rows, "largest_difference": largest, "slowest_first_batch": slowest, "memory": memory}


def write_source(folder: pathlib.Path, kind: str, num_videos: int, num_frames: int, scale: int) -> None:
    """So many videos of so many frames: a gradient that moves, with a little noise."""
    import numpy as np
    from PIL import Image

    from tfvidgen.data import video_io

    folder.mkdir(parents=True)
    side = MEMORY_SIZE * scale
    base = np.add.outer(np.arange(side), 2 * np.arange(side))[..., None] + np.array([0, 40, 80])
    base = (base + np.random.default_rng(0).integers(0, 4, base.shape)).astype(np.uint8)

    def video(index: int) -> np.ndarray:
        return np.stack([base + np.uint8((3 * index + at) % 256) for at in range(num_frames)])

    def write_npz(path: pathlib.Path, videos: np.ndarray) -> None:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("videos.npy", "w", force_zip64=True) as entry,
        ):
            np.save(entry, videos)

    form = kind.split(",")[0]
    if kind.startswith(("npy, one", "npz, one")):
        videos = np.broadcast_to(video(0), (num_videos, num_frames, side, side, 3))
        np.save(folder / "a.npy", videos) if form == "npy" else write_npz(folder / "a.npz", videos)
        return
    for index in range(num_videos):
        place = folder / f"{index:04d}.{form}"
        frames = video(index)
        if form == "npy":
            np.save(place, frames)
        elif form == "npz":
            write_npz(place, frames)
        elif form == "strips":
            Image.fromarray(np.concatenate(frames, axis=1)).save(place.with_suffix(".png"), compress_level=1)
        elif form == "frames":
            place.with_suffix("").mkdir()
            for at, frame in enumerate(frames):
                Image.fromarray(frame).save(place.with_suffix("") / f"{at:05d}.png", compress_level=1)
        elif form == "mp4":
            video_io.write_mp4(place, frames, 25.0)
        else:
            video_io.write_gif(place, frames, 25.0)


def print_peak(small: str, large: str) -> None:
    """Peak while `large` is loaded, above the process before, and its frames; both in bytes."""
    from tfvidgen import data

    def status(name: str) -> int:
        return int(re.search(name + r":\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) << 10

    data.load_videos(small, MEMORY_SIZE)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    videos = data.load_videos(large, MEMORY_SIZE, max_file_gib=2.0)
    print(status("VmHWM") - before, videos.frames.nbytes)


def run_memory() -> list[dict[str, Any]]:
    """Peaks of memory over frames, printed as a table and returned."""
    print(f"\nData: peak of memory over {MEMORY_MIB} MiB of frames of {MEMORY_SIZE}x{MEMORY_SIZE}")
    print(f"{'':24}{'MiB':>8}{'ratio':>8}", flush=True)
    total = (MEMORY_MIB << 20) // (3 * MEMORY_SIZE**2)
    rows = []

    def add(what: str, peak: int, frames: int, limit: float) -> None:
        row = {"memory": what, "mib": peak / 2**20, "ratio": peak / frames, "is_met": peak <= limit * frames}
        rows.append(row)
        print(f"{what:24}{row['mib']:8.0f}{row['ratio']:8.3f}{'' if row['is_met'] else '  NO'}", flush=True)

    for kind, (num_videos, scale) in SOURCES.items():
        with tempfile.TemporaryDirectory() as name:
            small, large = pathlib.Path(name) / "small", pathlib.Path(name) / "large"
            write_source(small, kind, 2, 20, scale)
            write_source(large, kind, num_videos, total // num_videos, scale)
            command = [sys.executable, "-m", "benchmarks.data", "--peak", small, large]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            add(f"loading {kind}", *map(int, found[-2:]), LIMIT_LOADING)
    with tempfile.TemporaryDirectory() as name:
        peaks = []
        for num_videos in (20, 420):
            folder = pathlib.Path(name) / str(num_videos)
            write_source(folder, "npy, many", num_videos, total // 400, 1)
            command = [sys.executable, "-m", "trainers.mocogan", "--preset=smoke", f"--dataset={folder}"]
            command += [
                f"--size={MEMORY_SIZE}",
                "--nocategorical",
                "--mirror=same_action",
                "--total_steps=40",
                "--steps_per_loop=10",
            ]
            # allocators keep more or less of what building a model took: the same run may differ by tens of MiB
            peaks.append(benchmarks.median([_peak_of([*command, f"--run_dir={folder}-{turn}"]) for turn in range(3)]))
        frames = total // 400 * 3 * MEMORY_SIZE**2
        add("training", peaks[1] - peaks[0], 400 * frames, LIMIT_TRAINING)
    return rows


def _peak_of(command: list[str]) -> int:
    """Peak of the resident memory of a process, in bytes."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            raise RuntimeError(f"{command} failed: {output.read().decode()[-2000:]}")
    return usage.ru_maxrss << 10


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve(sys.argv[2])
elif __name__ == "__main__" and sys.argv[1:2] == ["--peak"]:
    print_peak(*sys.argv[2:])
elif __name__ == "__main__":
    run_memory()
