"""VGAN against eager PyTorch: training and generation, float32 and bfloat16, memory, time to the first step.

Four clips of 16 frames of 64x64 at the published width. Our side runs as a training does: batches from `make_dataset`, steps
inside one `tf.function`. The peer gets its batch ready in memory.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import benchmarks

BATCH, FRAMES, SIZE, WIDTH, NUM_VIDEOS = 4, 16, 64, 64, 32
STEPS_PER_CALL = 2
PRECISIONS = ("float32", "bfloat16")
TASKS = ("train", "generate")
LATENT_DIM = 100
CHANNELS = (WIDTH * 8, WIDTH * 4, WIDTH * 2, WIDTH)


# ---------------------------------------------------------------- on paper
def generator_flops() -> int:
    """Floating-point operations of the generator for one clip, forward: two for each multiplication of its layers.

    A transposed convolution of stride 2 multiplies every input pixel with all its taps.
    """
    length, size = FRAMES // 16, 4
    products = LATENT_DIM * 16 * CHANNELS[0] * (1 + length)
    for i, c_in in enumerate(CHANNELS):
        still, moving = (*CHANNELS, 3)[i + 1], (*CHANNELS, 4)[i + 1]
        products += size * size * c_in * (16 * still + 64 * length * moving)
        length, size = 2 * length, 2 * size
    return 2 * products


def discriminator_flops() -> tuple[int, int]:
    """Of the discriminator for one clip, forward: all layers, and the first one alone."""
    length, size, layers = FRAMES, SIZE, []
    channels = (3, *reversed(CHANNELS))
    for c_in, c_out in zip(channels, channels[1:], strict=False):
        length, size = length // 2, size // 2
        layers.append(2 * length * size * size * 64 * c_in * c_out)
    return sum(layers) + 2 * length * size * size * channels[-1], layers[0]


def step_flops() -> int:
    """Of one training step. A layer's gradients of weights and of inputs cost one forward pass each.

    The discriminator's update needs both but for the first layer's inputs, on real and on generated clips; the generator's
    update runs it once more forward and back to its inputs, and the generator once forward and back.
    """
    forward, first = discriminator_flops()
    return BATCH * (2 * (3 * forward - first) + 2 * forward + 3 * generator_flops())


# ---------------------------------------------------------------- the two sides, each in its own process
class Ours:
    def __init__(self, precision: str, threads: int):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        import numpy as np

        from tfvidgen.data.clips import make_dataset
        from tfvidgen.data.collection import VideoCollection
        from tfvidgen.models.vgan import VGAN

        self.tf, self.precision = tf, precision
        videos = np.random.default_rng(0).integers(0, 256, (NUM_VIDEOS, FRAMES, SIZE, SIZE, 3), np.uint8)
        collection = VideoCollection.from_videos(list(videos), names=[str(i) for i in range(NUM_VIDEOS)])
        self.batches = iter(make_dataset(collection, BATCH, FRAMES))
        self.model = VGAN(
            FRAMES, SIZE, LATENT_DIM, WIDTH, dtype="float32" if precision == "float32" else "mixed_bfloat16"
        )
        self.model.build()

    def prepare(self, task: str, **unused: Any):
        """-> (callable, frames per call)."""
        tf = self.tf
        if task == "generate":
            latents = self.model.sample_latents(BATCH)
            generate = tf.function(self.model.decode)
            return lambda: generate(latents).numpy(), BATCH * FRAMES
        self.model.compile()

        @tf.function
        def steps(batches, count):
            loss = 0.0
            for _ in tf.range(count):
                loss = self.model.train_step(next(batches))["generator_loss"]
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
    def __init__(self, precision: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        from benchmarks.peers import vgan_torch

        self.torch = torch
        self.model = vgan_torch.VGAN(FRAMES, SIZE, WIDTH, LATENT_DIM)
        self.trainer = vgan_torch.Trainer(self.model, precision)
        generator = torch.Generator().manual_seed(0)
        self.video = torch.randint(0, 256, (BATCH, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)

    def prepare(self, task: str, layout: str = "channels_first"):
        code = self.torch.randn(BATCH, LATENT_DIM)

        def call():
            self.model.set_layout(layout)
            return self.trainer.generate(code) if task == "generate" else float(self.trainer.step(self.video))

        return call, BATCH * FRAMES


def serve(side: str, precision: str, clock: str) -> None:
    """Answers requests: the speed of a task, or the machine's rate of matrix products."""
    runner = {"ours": Ours, "peer": Peer}[side](precision, benchmarks.THREADS[clock])
    prepared: dict[tuple, Any] = {}

    def answer(task: str, seconds: float, begin: float, **options: str) -> dict[str, Any]:
        if task == "matmul":
            return {"rate": runner.matmul_rate(seconds, clock)}
        key, since_start = (task, *sorted(options.items())), None
        if key not in prepared:
            call, frames = prepared[key] = runner.prepare(task, **options)
            call()
            since_start = time.time() - begin
            call()
        call, frames = prepared[key]
        rate = frames / benchmarks.time_calls(call, seconds, clock)
        return {"rate": rate, "since_start": since_start, "peak_memory": benchmarks.peak_memory()}

    benchmarks.serve(answer)


# ---------------------------------------------------------------- the comparison
def compare(precision: str, clock: str, rounds: int, seconds: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """-> (one row for each task, facts about memory, start and the machine's peak)."""
    sides: dict[str, benchmarks.Worker] = {}
    first, layouts = {}, {}
    rates: dict[tuple[str, str], list[float]] = {}
    peaks = []
    try:
        for side in ("ours", "peer"):
            # one after the other: nothing of ours shares the machine while a side starts
            sides[side] = benchmarks.Worker("benchmarks.vgan", side, precision, clock)
            first[side] = sides[side].ask(task="train", seconds=0.0)
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
                measured["peer", task] = sides["peer"].ask(task=task, seconds=seconds, layout=layouts[task])["rate"]
            peak = sides["ours"].ask(task="matmul", seconds=seconds)["rate"]
            if turn:  # the first turn warms up
                peaks.append(peak)
                for key, rate in measured.items():
                    rates.setdefault(key, []).append(rate)
    finally:
        for worker in sides.values():
            worker.close()
    rows = []
    for task in TASKS:
        ours, peer = rates["ours", task], rates["peer", task]
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        flops = (BATCH * generator_flops() if task == "generate" else step_flops()) / (BATCH * FRAMES)
        rows.append(
            {
                "task": task,
                "clock": clock,
                "threads": benchmarks.THREADS[clock],
                "precision": precision,
                "peer_layout": layouts[task],
                "ours_frames_per_second": benchmarks.median(ours),
                "peer_frames_per_second": benchmarks.median(peer),
                "ratio": benchmarks.median(ratios),
                "ratio_of_every_round": ratios,
                "flops_per_frame": flops,
                "share_of_peak": benchmarks.median([a * flops / b for a, b in zip(ours, peaks, strict=True)]),
            }
        )
    facts = {
        "precision": precision,
        "clock": clock,
        "matmul_flops_per_second": benchmarks.median(peaks),
        "seconds_to_first_step": {side: answer["since_start"] for side, answer in first.items()},
        "peak_memory": {side: answer["peak_memory"] for side, answer in first.items()},
    }
    return rows, facts


def run(rounds: int = 3, seconds: float = 2.0, clocks=tuple(benchmarks.CLOCKS), **unused: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned."""
    print(f"\nVGAN, {BATCH} clips of {FRAMES}x{SIZE}x{SIZE}, width {WIDTH}: frames a second of time on the wall (two")
    print("threads) or of processor time (one thread); peak: the networks' share of the speed of a matrix product")
    print(f"generator: {generator_flops() / 1e9:.2f} GFLOP a clip forward; a step {step_flops() / 1e9:.1f} GFLOP")
    print(
        f"{'clock':10}{'precision':10}{'task':12}{'peer':18}{'ours':>6}{'peer':>6}{'ratio':>7}{'range':>11}{'peak':>6}"
    )
    rows, facts = [], []
    for clock in clocks:
        for precision in PRECISIONS:
            new_rows, new_facts = compare(precision, clock, rounds, seconds)
            for row in new_rows:
                spread = f"{min(row['ratio_of_every_round']):.2f}-{max(row['ratio_of_every_round']):.2f}"
                print(
                    f"{clock:10}{precision:10}{row['task']:12}{row['peer_layout']:18}{row['ours_frames_per_second']:6.0f}"
                    f"{row['peer_frames_per_second']:6.0f}{row['ratio']:7.2f}{spread:>11}{row['share_of_peak']:6.0%}"
                )
            rows += new_rows
            facts.append(new_facts)
            memory, start = new_facts["peak_memory"], new_facts["seconds_to_first_step"]
            print(
                f"    first step after {start['ours']:.1f} s (peer {start['peer']:.1f} s); peak memory "
                f"{memory['ours'] / 2**20:.0f} MiB (peer {memory['peer'] / 2**20:.0f}); matrix product "
                f"{new_facts['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s",
                flush=True,
            )
    return {"rows": rows, "facts": facts}


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    serve(*sys.argv[2:])
