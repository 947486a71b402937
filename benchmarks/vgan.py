"""VGAN against eager PyTorch, at the published width."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import training
from benchmarks.training import BATCH, CHANNELS, FRAMES, SIZE, WIDTH

LATENT_DIM = 100


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


# ---------------------------------------------------------------- the two sides
class Ours(training.Ours):
    def new_model(self, dtype: str):
        from tfvidgen.models.vgan import VGAN

        return VGAN(FRAMES, SIZE, LATENT_DIM, WIDTH, dtype=dtype)

    def generation(self) -> Callable[[], Any]:
        latents = self.model.sample_latents(BATCH)
        generate = self.tf.function(self.model.decode)
        return lambda: generate(latents).numpy()


class Peer(training.Peer):
    def build(self) -> None:
        from benchmarks.peers import vgan_torch

        self.model = vgan_torch.VGAN(FRAMES, SIZE, WIDTH, LATENT_DIM)
        self.trainer = vgan_torch.Trainer(self.model, self.precision)

    def work(self, task: str) -> Callable[[], Any]:
        if task == "generate":
            code = self.torch.randn(BATCH, LATENT_DIM)
            return lambda: self.trainer.generate(code)
        return lambda: float(self.trainer.step(self.video))


def run(**turns: Any) -> dict[str, Any]:
    """Everything, printed as one table and returned; `turns` go to `Comparison.run`."""
    return training.Comparison(
        "benchmarks.vgan",
        f"VGAN, {training.CLIPS}, width {WIDTH}",
        f"generator: {generator_flops() / 1e9:.2f} GFLOP a clip forward; a step {step_flops() / 1e9:.1f} GFLOP",
        {"train": step_flops() / (BATCH * FRAMES), "generate": generator_flops() / FRAMES},
    ).run(**turns)


if __name__ == "__main__" and sys.argv[1:2] == ["--worker"]:
    training.serve(Ours, Peer, *sys.argv[2:])
