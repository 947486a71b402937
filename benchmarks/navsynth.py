"""NAVSynth against eager PyTorch: training and generation, float32 and bfloat16, memory, time to the first step.

Four clips of 16 frames of 64x64, GRU of 500 units, DCGAN generator of width 64, Laplacian loss, as the paper has it.
Our side runs as a training does: batches from `make_dataset`, steps inside one `tf.function`. The peer gets its batch
ready in memory.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import benchmarks

BATCH, FRAMES, SIZE, WIDTH, NUM_VIDEOS = 4, 16, 64, 64, 32
STEPS_PER_CALL = 2
PRECISIONS = ("float32", "bfloat16")
TASKS = ("joint", "alternating", "generate")
CODE_DIM, TRANSIENT_DIM, MOTION_DIM, UNITS, STATIC_DIM = 256, 200, 200, 500, 56
CHANNELS = (WIDTH * 8, WIDTH * 4, WIDTH * 2, WIDTH)


# ---------------------------------------------------------------- on paper
def generator_flops() -> int:
    """Floating-point operations of the generator for one frame, forward: two for each multiplication of its layers.

    A transposed convolution of stride 2 multiplies every input pixel with all 16 taps.
    """
    products = CODE_DIM * 16 * CHANNELS[0]
    size = 4
    for c_in, c_out in zip(CHANNELS, (*CHANNELS[1:], 3), strict=True):
        products += size * size * 16 * c_in * c_out
        size *= 2
    return 2 * products


def step_flops(update: str) -> int:
    """Of the generator in one training step: gradients of weights and of inputs cost one forward pass each.

    Joint: 1 + 2. Alternating makes a second pass, which leaves out the gradients of weights: 3 + 2.
    """
    return {"joint": 3, "alternating": 5}[update] * BATCH * FRAMES * generator_flops()


def paper_memory(norm: str, precision: str) -> dict[str, int]:
    """Bytes that a joint step needs on paper, beside the library itself.

    Activations are counted as what the backward pass keeps: a layer's output before and after its ReLU (with batch norm
    once more), the last layer's, and the difference of the frames with its pyramid.
    """
    weights = CODE_DIM * 16 * CHANNELS[0]
    for c_in, c_out in zip(CHANNELS, (*CHANNELS[1:], 3), strict=True):
        weights += 16 * c_in * c_out
    weights += 3 * UNITS * (TRANSIENT_DIM + UNITS + 2) + (UNITS + 1) * MOTION_DIM
    frames = BATCH * FRAMES
    kept = sum((3 if norm == "batch" else 2) * c * (4 << i) ** 2 for i, c in enumerate(CHANNELS))
    pixels = SIZE * SIZE * 3
    return {
        "batch": frames * pixels * 5,
        "weights": 4 * weights,
        "gradients": 4 * weights,
        "slots": 8 * weights,
        "codes": 3 * 4 * NUM_VIDEOS * (STATIC_DIM + FRAMES * TRANSIENT_DIM),
        "activations": frames * (kept * (2 if precision == "bfloat16" else 4) + 8 * 4 * pixels),
    }


# ---------------------------------------------------------------- the two sides, each in its own process
class Ours:
    def __init__(self, precision: str, norm: str, threads: int):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        import numpy as np

        from tfvidgen.data.clips import make_dataset
        from tfvidgen.data.collection import VideoCollection
        from tfvidgen.models.navsynth import NAVSynth

        self.tf, self.precision = tf, precision
        videos = np.random.default_rng(0).integers(0, 256, (NUM_VIDEOS, FRAMES, SIZE, SIZE, 3), np.uint8)
        collection = VideoCollection.from_videos(list(videos), names=[str(i) for i in range(NUM_VIDEOS)])
        self.batches = iter(make_dataset(collection, BATCH, FRAMES))
        self.model = NAVSynth(
            NUM_VIDEOS,
            FRAMES,
            SIZE,
            width=WIDTH,
            norm=norm,
            dtype="float32" if precision == "float32" else "mixed_bfloat16",
        )
        self.model.build()

    def prepare(self, task: str, **unused: Any):
        """-> (callable, frames per call)."""
        tf = self.tf
        if task == "generate":
            ids = tf.range(BATCH)
            generate = tf.function(lambda ids: self.model.decode(self.model.lookup(ids)))
            return lambda: generate(ids).numpy(), BATCH * FRAMES
        self.model.compile(update=task)

        @tf.function
        def steps(batches, count):
            loss = 0.0
            for _ in tf.range(count):
                loss = self.model.train_step(next(batches))["reconstruction_loss"]
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
    def __init__(self, precision: str, norm: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        from benchmarks.peers import navsynth_torch

        self.torch, self.precision, self.source = torch, precision, navsynth_torch
        sizes = {"num_frames": FRAMES, "size": SIZE, "width": WIDTH, "norm": norm}
        self.model = navsynth_torch.NAVSynth(NUM_VIDEOS, **sizes)
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, FRAMES, SIZE, SIZE, 3)
        self.video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def prepare(self, task: str, layout: str = "channels_first", pyramid: str = "convolution"):
        torch, generator = self.torch, self.model.generator
        ids = torch.arange(BATCH)
        update = "joint" if task == "generate" else task
        trainer = self.source.Trainer(self.model, update, self.precision, pyramid)

        def call():
            generator.set_layout(layout)
            return trainer.generate(ids) if task == "generate" else float(trainer.step(self.video, ids))

        return call, BATCH * FRAMES


def serve(side: str, precision: str, norm: str, clock: str) -> None:
    """Answers requests: the speed of a task, or the machine's rate of matrix products."""
    runner = {"ours": Ours, "peer": Peer}[side](precision, norm, benchmarks.THREADS[clock])
    prepared: dict[tuple, Any] = {}

    def answer(task: str, seconds: float, begin: float, **options: str) -> dict[str, Any]:
        if task == "matmul":
            return {"rate": runner.matmul_rate(seconds, clock)}
        key = (task, *sorted(options.items()))
        if key not in prepared:
            call, frames = prepared[key] = runner.prepare(task, **options)
            call()
            since_start = time.time() - begin
            call()
        else:
            since_start = None
        call, frames = prepared[key]
        rate = frames / benchmarks.time_calls(call, seconds, clock)
        return {"rate": rate, "since_start": since_start, "peak_memory": benchmarks.peak_memory()}

    benchmarks.serve(answer)


# ---------------------------------------------------------------- the comparison
def compare(
    precision: str, norm: str, clock: str, rounds: int, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """-> (one row for each task and pyramid of the peer, facts about memory, start and the machine's peak)."""
    sides: dict[str, benchmarks.Worker] = {}
    first, layouts = {}, {}
    rates: dict[tuple[str, str], list[float]] = {}
    peaks = []
    try:
        for side in ("ours", "peer"):
            # one after the other: nothing of ours shares the machine while a side starts
            sides[side] = benchmarks.Worker("benchmarks.navsynth", side, precision, norm, clock)
            first[side] = sides[side].ask(task="joint", seconds=0.0)
        for task in TASKS:
            speeds = {
                layout: max(sides["peer"].ask(task=task, seconds=0.3, layout=layout)["rate"] for _ in range(2))
                for layout in ("channels_first", "channels_last")
            }
            layouts[task] = max(speeds, key=speeds.get)
        for turn in range(rounds + 1):
            measured = {}
            for task in TASKS:
                measured["ours", task] = sides["ours"].ask(task=task, seconds=seconds)["rate"]
                for pyramid in ("convolution",) if task == "generate" else ("convolution", "matrix"):
                    answer = sides["peer"].ask(task=task, seconds=seconds, layout=layouts[task], pyramid=pyramid)
                    measured[pyramid, task] = answer["rate"]
            peak = sides["ours"].ask(task="matmul", seconds=seconds)["rate"]
            if turn:  # the first turn warms up
                peaks.append(peak)
                for key, rate in measured.items():
                    rates.setdefault(key, []).append(rate)
    finally:
        for worker in sides.values():
            worker.close()
    rows = []
    for pyramid, task in rates:
        if pyramid == "ours":
            continue
        ours, peer = rates["ours", task], rates[pyramid, task]
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        flops = generator_flops() if task == "generate" else step_flops(task) / (BATCH * FRAMES)
        rows.append(
            {
                "task": task,
                "clock": clock,
                "threads": benchmarks.THREADS[clock],
                "precision": precision,
                "norm": norm,
                "peer_pyramid": None if task == "generate" else pyramid,
                "peer_layout": layouts[task],
                "ours_frames_per_second": benchmarks.median(ours),
                "peer_frames_per_second": benchmarks.median(peer),
                "ratio": benchmarks.median(ratios),
                "ratio_of_every_round": ratios,
                "generator_flops_per_frame": flops,
                "share_of_peak": benchmarks.median([a * flops / b for a, b in zip(ours, peaks, strict=True)]),
            }
        )
    facts = {
        "precision": precision,
        "norm": norm,
        "clock": clock,
        "matmul_flops_per_second": benchmarks.median(peaks),
        "seconds_to_first_step": {side: answer["since_start"] for side, answer in first.items()},
        "peak_memory": {side: answer["peak_memory"] for side, answer in first.items()},
        "memory_on_paper": paper_memory(norm, precision),
    }
    return rows, facts


def run(rounds: int = 3, seconds: float = 2.0, norm: str = "none", clocks=tuple(benchmarks.CLOCKS)) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    print(f"\nNAVSynth, {BATCH} clips of {FRAMES}x{SIZE}x{SIZE}, norm={norm}: frames a second of time on the wall (two")
    print("threads) or of processor time (one thread); peak: the generator's share of the speed of a matrix product")
    print(
        f"generator: {generator_flops() / 1e6:.0f} MFLOP a frame forward; a step {step_flops('joint') / 1e9:.1f} GFLOP joint, "
        f"{step_flops('alternating') / 1e9:.1f} GFLOP alternating"
    )
    print(
        f"{'clock':10}{'precision':10}{'task':12}{'peer':28}{'ours':>6}{'peer':>6}{'ratio':>7}{'range':>11}{'peak':>6}"
    )
    rows, facts = [], []
    for clock in clocks:
        for precision in PRECISIONS:
            new_rows, new_facts = compare(precision, norm, clock, rounds, seconds)
            for row in new_rows:
                peer = row["peer_layout"] + (f", {row['peer_pyramid']}" if row["peer_pyramid"] else "")
                spread = f"{min(row['ratio_of_every_round']):.2f}-{max(row['ratio_of_every_round']):.2f}"
                print(
                    f"{clock:10}{precision:10}{row['task']:12}{peer:28}{row['ours_frames_per_second']:6.0f}"
                    f"{row['peer_frames_per_second']:6.0f}{row['ratio']:7.2f}{spread:>11}{row['share_of_peak']:6.0%}"
                )
            rows += new_rows
            facts.append(new_facts)
            memory, paper = new_facts["peak_memory"], sum(new_facts["memory_on_paper"].values())
            start = new_facts["seconds_to_first_step"]
            print(
                f"    first step after {start['ours']:.1f} s (peer {start['peer']:.1f} s); peak memory "
                f"{memory['ours'] / 2**20:.0f} MiB (peer {memory['peer'] / 2**20:.0f}), {paper / 2**20:.0f} MiB on paper beside "
                f"the library; matrix product {new_facts['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s",
                flush=True,
            )
    return {"rows": rows, "facts": facts}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve(*sys.argv[2:])
