"""MoCoGAN against eager PyTorch, at the published widths: plain discriminators, one frame of each clip for D_I."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import training
from benchmarks.training import BATCH, CHANNELS, FRAMES, SIZE, WIDTH

CODE_DIM = 60


# ---------------------------------------------------------------- on paper
def generator_flops() -> int:
    """Floating-point operations of the generator for one frame, forward."""
    return training.frame_generator_flops(CODE_DIM)


def discriminator_flops(clips: bool) -> tuple[int, int]:
    """Of D_V for one clip or of D_I for one frame, forward: all layers, and the first one alone."""
    channels = (3, *reversed(CHANNELS))
    taps, length, size = (64, FRAMES, SIZE) if clips else (16, 1, SIZE)
    layers = []
    for c_in, c_out in zip(channels, channels[1:], strict=False):
        length, size = (length - 3 if clips else 1), size // 2
        layers.append(2 * length * size * size * taps * c_in * c_out)
    head = 2 * taps * channels[-1] * (length - 3 if clips else 1)
    return sum(layers) + head, layers[0]


def step_flops() -> int:
    """Of one training step. A layer's gradients of weights and of inputs cost one forward pass each.

    A discriminator's update needs both but for the first layer's inputs, on real and on generated examples; the
    generator's update needs inputs only, and the generator runs twice forward and once backward.
    """
    total = BATCH * FRAMES * generator_flops() * 4
    for clips in (True, False):
        forward, first = discriminator_flops(clips)
        total += BATCH * (2 * (3 * forward - first) + 2 * forward)
    return total


# ---------------------------------------------------------------- the two sides
class Ours(training.Ours):
    def new_model(self, dtype: str):
        from tfvidgen.models.mocogan import MoCoGAN

        return MoCoGAN(FRAMES, SIZE, width=WIDTH, discriminator_width=WIDTH, dtype=dtype)

    def generation(self) -> Callable[[], Any]:
        tf = self.tf
        seed = tf.Variable(0, dtype=tf.int64)
        generate = tf.function(lambda: self.model.generate(BATCH, seed=seed.assign_add(1)))
        return lambda: generate().numpy()


class Peer(training.Peer):
    def build(self) -> None:
        from benchmarks.peers import mocogan_torch

        self.model = mocogan_torch.MoCoGAN(FRAMES, SIZE, width=WIDTH, discriminator_width=WIDTH)
        self.trainer = mocogan_torch.Trainer(self.model, self.precision)

    def work(self, task: str) -> Callable[[], Any]:
        if task == "generate":
            return lambda: self.trainer.new_videos(BATCH)
        return lambda: float(self.trainer.step(self.video))


def run(**turns: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned; `turns` go to `Comparison.run`."""
    return training.Comparison(
        "benchmarks.mocogan",
        f"MoCoGAN, {training.CLIPS}, width {WIDTH}",
        f"generator: {generator_flops() / 1e6:.0f} MFLOP a frame forward; a step {step_flops() / 1e9:.1f} GFLOP",
        {"train": step_flops() / (BATCH * FRAMES), "generate": generator_flops()},
    ).run(**turns)


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    training.serve(Ours, Peer, *sys.argv[2:])
