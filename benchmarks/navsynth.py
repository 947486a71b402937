"""NAVSynth against eager PyTorch: GRU of 500 units, DCGAN generator of width 64, Laplacian loss, as the paper has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import training
from benchmarks.training import BATCH, CHANNELS, FRAMES, NUM_VIDEOS, SIZE, WIDTH

CODE_DIM, TRANSIENT_DIM, MOTION_DIM, UNITS, STATIC_DIM = 256, 200, 200, 500, 56


# ---------------------------------------------------------------- on paper
def generator_flops() -> int:
    """Floating-point operations of the generator for one frame, forward."""
    return training.frame_generator_flops(CODE_DIM)


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


# ---------------------------------------------------------------- the two sides
class Ours(training.Ours):
    loss = "reconstruction_loss"

    def new_model(self, dtype: str, norm: str):
        from tfvidgen.models.navsynth import NAVSynth

        return NAVSynth(NUM_VIDEOS, FRAMES, SIZE, width=WIDTH, norm=norm, dtype=dtype)

    def compile(self, task: str) -> None:
        self.model.compile(update=task)

    def generation(self) -> Callable[[], Any]:
        ids = self.tf.range(BATCH)
        generate = self.tf.function(lambda ids: self.model.decode(self.model.lookup(ids)))
        return lambda: generate(ids).numpy()


class Peer(training.Peer):
    def build(self, norm: str) -> None:
        from benchmarks.peers import navsynth_torch

        self.source = navsynth_torch
        self.model = navsynth_torch.NAVSynth(NUM_VIDEOS, FRAMES, SIZE, width=WIDTH, norm=norm)

    def work(self, task: str, pyramid: str | None = None) -> Callable[[], Any]:
        ids = self.torch.arange(BATCH)
        update = "joint" if task == "generate" else task
        trainer = self.source.Trainer(self.model, update, self.precision, pyramid or "convolution")
        if task == "generate":
            return lambda: trainer.generate(ids)
        return lambda: float(trainer.step(self.video, ids))


def run(norm: str = "none", **turns: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned; `turns` go to `Comparison.run`."""
    pyramids = ({"pyramid": "convolution"}, {"pyramid": "matrix"})
    joint, alternating = step_flops("joint"), step_flops("alternating")
    return training.Comparison(
        "benchmarks.navsynth",
        f"NAVSynth, {training.CLIPS}, norm={norm}",
        f"generator: {generator_flops() / 1e6:.0f} MFLOP a frame forward; a step {joint / 1e9:.1f} GFLOP joint, "
        f"{alternating / 1e9:.1f} GFLOP alternating",
        {
            "joint": joint / (BATCH * FRAMES),
            "alternating": alternating / (BATCH * FRAMES),
            "generate": generator_flops(),
        },
        generator_only=True,
        options={"norm": norm},
        forms={"joint": pyramids, "alternating": pyramids, "generate": ({"pyramid": None},)},
        memory_on_paper={precision: paper_memory(norm, precision) for precision in training.PRECISIONS},
    ).run(**turns)


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    training.serve(Ours, Peer, *sys.argv[2:])
