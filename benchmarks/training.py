"""What the benchmarks of training share: both sides of a system, their comparison and its table.

Training and generation, float32 and bfloat16, memory, time to the first step. Our side runs as a training does: batches from
`make_dataset`, steps inside one `tf.function`. The peer gets its batch ready in memory. A system's module has an `Ours` and a
`Peer`, serves them to workers and describes a `Comparison`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import benchmarks

BATCH, FRAMES, SIZE, WIDTH, NUM_VIDEOS = 4, 16, 64, 64, 32
CHANNELS = (WIDTH * 8, WIDTH * 4, WIDTH * 2, WIDTH)
CLIPS = f"{BATCH} clips of {FRAMES}x{SIZE}x{SIZE}"
STEPS_PER_CALL = 2
PRECISIONS = ("float32", "bfloat16")


def frame_generator_flops(code_dim: int) -> int:
    """Floating-point operations of the DCGAN generator for one frame, forward: two for each multiplication of its layers.

    A transposed convolution of stride 2 multiplies every input pixel with all 16 taps.
    """
    products, size = code_dim * 16 * CHANNELS[0], 4
    for c_in, c_out in zip(CHANNELS, (*CHANNELS[1:], 3), strict=True):
        products += size * size * 16 * c_in * c_out
        size *= 2
    return 2 * products


# ---------------------------------------------------------------- the two sides, each in its own process
class Ours:
    """A system says how its model is made, compiled and asked for clips."""

    loss = "generator_loss"  # the log of a step that is waited for

    def __init__(self, precision: str, threads: int, *options: str):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        import numpy as np

        from tfvidgen.data.batches import make_dataset
        from tfvidgen.data.collection import VideoCollection

        self.tf, self.precision = tf, precision
        videos = np.random.default_rng(0).integers(0, 256, (NUM_VIDEOS, FRAMES, SIZE, SIZE, 3), np.uint8)
        collection = VideoCollection.from_videos(list(videos), names=[str(i) for i in range(NUM_VIDEOS)])
        self.batches = iter(make_dataset(collection, BATCH, FRAMES))
        self.model = self.new_model("float32" if precision == "float32" else "mixed_bfloat16", *options)
        self.model.build()

    def new_model(self, dtype: str, *options: str):
        raise NotImplementedError

    def compile(self, task: str) -> None:
        self.model.compile()

    def generation(self) -> Callable[[], Any]:
        """-> a callable that makes a batch of clips."""
        raise NotImplementedError

    def prepare(self, task: str):
        """-> (callable, frames per call)."""
        tf = self.tf
        if task == "generate":
            return self.generation(), BATCH * FRAMES
        self.compile(task)

        @tf.function
        def steps(batches, count):
            loss = 0.0
            for _ in tf.range(count):
                loss = self.model.train_step(next(batches))[self.loss]
            return loss

        # the count is a tensor so that one trace serves every count
        count = tf.constant(STEPS_PER_CALL)
        return lambda: float(steps(self.batches, count)), STEPS_PER_CALL * BATCH * FRAMES

    def matmul_rate(self, seconds: float, clock: str) -> float:
        """Operations per second of a large matrix product in this precision."""
        tf, size = self.tf, 2048
        a, b = (tf.cast(tf.random.stateless_normal((size, size), (0, i)), self.precision) for i in range(2))
        product = tf.function(tf.matmul)
        product(a, b)
        return 2 * size**3 / benchmarks.time_calls(lambda: product(a, b)[0, 0].numpy(), seconds, clock)


class Peer:
    """A system builds its `self.model`, with `set_layout`, and says what it does for a task."""

    def __init__(self, precision: str, threads: int, *options: str):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.precision = torch, precision
        self.build(*options)
        generator = torch.Generator().manual_seed(0)
        self.video = torch.randint(0, 256, (BATCH, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)

    def build(self, *options: str) -> None:
        raise NotImplementedError

    def work(self, task: str, **form: Any) -> Callable[[], Any]:
        """-> a callable that makes a step or a batch of clips."""
        raise NotImplementedError

    def prepare(self, task: str, layout: str = "channels_first", **form: Any):
        """-> (callable, frames per call)."""
        work = self.work(task, **form)

        def call():
            self.model.set_layout(layout)
            return work()

        return call, BATCH * FRAMES


def serve(ours: type[Ours], peer: type[Peer], side: str, precision: str, clock: str, *options: str) -> None:
    """Answers requests: the speed of a task, or the machine's rate of matrix products."""
    runner = {"ours": ours, "peer": peer}[side](precision, benchmarks.THREADS[clock], *options)
    prepared: dict[tuple, Any] = {}

    def answer(task: str, seconds: float, begin: float, **form: Any) -> dict[str, Any]:
        if task == "matmul":
            return {"rate": runner.matmul_rate(seconds, clock)}
        key, since_start = (task, *sorted(form.items())), None
        if key not in prepared:
            call, frames = prepared[key] = runner.prepare(task, **form)
            call()
            since_start = time.time() - begin
            call()
        call, frames = prepared[key]
        rate = frames / benchmarks.time_calls(call, seconds, clock)
        return {"rate": rate, "since_start": since_start, "peak_memory": benchmarks.peak_memory()}

    benchmarks.serve(answer)


# ---------------------------------------------------------------- the comparison
@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours against the peer, by every clock and in every precision.

    Attributes:
        module: Serves the sides to workers.
        title: Stands above the table.
        on_paper: A line of operations, under the title.
        flops: Operations for a frame, by task; the time to the first step is that of the first task.
        generator_only: Whether `flops` leaves out all but the generator.
        options: Of both sides' models.
        forms: In which the peer does a task, by task; one without options where a task is missing.
        memory_on_paper: Bytes of what a step needs, by precision.
    """

    module: str
    title: str
    on_paper: str
    flops: dict[str, float]
    generator_only: bool = False
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    forms: dict[str, tuple[dict[str, Any], ...]] = dataclasses.field(default_factory=dict)
    memory_on_paper: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    def run(
        self, rounds: int = 3, seconds: float = 2.0, clocks=tuple(benchmarks.CLOCKS), **unused: Any
    ) -> dict[str, Any]:
        """Everything, printed as one table and returned."""
        counted, width = "generator's" if self.generator_only else "networks'", 28 if self.forms else 18
        print(f"\n{self.title}: frames a second of time on the wall (two")
        print(f"threads) or of processor time (one thread); peak: the {counted} share of the speed of a matrix product")
        print(self.on_paper)
        print(
            f"{'clock':10}{'precision':10}{'task':12}{'peer':{width}}{'ours':>6}{'peer':>6}{'ratio':>7}{'range':>11}{'peak':>6}"
        )
        rows, facts = [], []
        for clock in clocks:
            for precision in PRECISIONS:
                new_rows, new_facts = self.measure(precision, clock, rounds, seconds)
                for row in new_rows:
                    peer = ", ".join(filter(None, (row["peer_layout"], row.get("peer_pyramid"))))
                    spread = f"{min(row['ratio_of_every_round']):.2f}-{max(row['ratio_of_every_round']):.2f}"
                    print(
                        f"{clock:10}{precision:10}{row['task']:12}{peer:{width}}{row['ours_frames_per_second']:6.0f}"
                        f"{row['peer_frames_per_second']:6.0f}{row['ratio']:7.2f}{spread:>11}{row['share_of_peak']:6.0%}"
                    )
                rows += new_rows
                facts.append(new_facts)
                memory, start = new_facts["peak_memory"], new_facts["seconds_to_first_step"]
                paper = ""
                if "memory_on_paper" in new_facts:
                    needed = sum(new_facts["memory_on_paper"].values())
                    paper = f", {needed / 2**20:.0f} MiB on paper beside the library"
                print(
                    f"    first step after {start['ours']:.1f} s (peer {start['peer']:.1f} s); peak memory "
                    f"{memory['ours'] / 2**20:.0f} MiB (peer {memory['peer'] / 2**20:.0f}){paper}; matrix product "
                    f"{new_facts['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s",
                    flush=True,
                )
        return {"rows": rows, "facts": facts}

    def measure(
        self, precision: str, clock: str, rounds: int, seconds: float
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """-> (one row for each task and form of the peer, facts about memory, start and the machine's peak)."""
        sides: dict[str, benchmarks.Worker] = {}
        first, layouts = {}, {}
        forms = {task: self.forms.get(task, ({},)) for task in self.flops}
        rates: dict[tuple[str, Any], list[float]] = {}
        peaks = []
        try:
            for side in ("ours", "peer"):
                # one after the other: nothing of ours shares the machine while a side starts
                sides[side] = benchmarks.Worker(self.module, side, precision, clock, *self.options.values())
                first[side] = sides[side].ask(task=next(iter(forms)), seconds=0.0)
            for task in forms:
                speeds = {
                    layout: max(sides["peer"].ask(task=task, seconds=0.3, layout=layout)["rate"] for _ in range(2))
                    for layout in ("channels_first", "channels_last")
                }
                layouts[task] = max(speeds, key=speeds.get)
            for turn in range(rounds + 1):
                measured = {}
                for task in forms:
                    measured[task, "ours"] = sides["ours"].ask(task=task, seconds=seconds)["rate"]
                    for i, form in enumerate(forms[task]):
                        answer = sides["peer"].ask(task=task, seconds=seconds, layout=layouts[task], **form)
                        measured[task, i] = answer["rate"]
                peak = sides["ours"].ask(task="matmul", seconds=seconds)["rate"]
                if turn:  # the first turn warms up
                    peaks.append(peak)
                    for key, rate in measured.items():
                        rates.setdefault(key, []).append(rate)
        finally:
            for worker in sides.values():
                worker.close()
        rows = []
        for task, flops in self.flops.items():
            for i, form in enumerate(forms[task]):
                ours, peer = rates[task, "ours"], rates[task, i]
                ratios = [a / b for a, b in zip(ours, peer, strict=True)]
                rows.append(
                    {
                        "task": task,
                        "clock": clock,
                        "threads": benchmarks.THREADS[clock],
                        "precision": precision,
                        **self.options,
                        **{f"peer_{name}": value for name, value in form.items()},
                        "peer_layout": layouts[task],
                        "ours_frames_per_second": benchmarks.median(ours),
                        "peer_frames_per_second": benchmarks.median(peer),
                        "ratio": benchmarks.median(ratios),
                        "ratio_of_every_round": ratios,
                        "generator_flops_per_frame" if self.generator_only else "flops_per_frame": flops,
                        "share_of_peak": benchmarks.median([a * flops / b for a, b in zip(ours, peaks, strict=True)]),
                    }
                )
        facts = {
            "precision": precision,
            **self.options,
            "clock": clock,
            "matmul_flops_per_second": benchmarks.median(peaks),
            "seconds_to_first_step": {side: answer["since_start"] for side, answer in first.items()},
            "peak_memory": {side: answer["peak_memory"] for side, answer in first.items()},
        }
        if self.memory_on_paper:
            facts["memory_on_paper"] = self.memory_on_paper[precision]
        return rows, facts
