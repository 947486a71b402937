"""Trains VGAN (Vondrick et al., NIPS 2016): a moving foreground over a still background, from a code or a first frame."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from trainers import adversarial, cli, clips, paper_data, train
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.vgan import VGAN
    from trainers.runs import RunData


@dataclasses.dataclass(frozen=True)
class Config(adversarial.AdversarialConfig):
    """Settings of one VGAN run."""

    num_frames: int = option(32, "Frames per clip; a multiple of size / 4.", minimum=1)
    conditional: bool = option(False, "Predict the continuation of a given first frame instead of decoding noise.")
    latent_dim: int = option(100, "Dimension of the latent code z.", minimum=1)
    width: int = option(
        64,
        "Channels next to the pixels in generator and discriminator, twice as many if conditional; the deepest layers have 8 "
        "times as many.",
        minimum=1,
    )
    mask_weight: float = option(
        0.1, "Weight lambda of the mean of the mask; the official conditional code has none.", minimum=0
    )
    first_frame_weight: float = option(
        10.0, "Weight of the L1 loss on the given first frame, if conditional.", minimum=0
    )
    num_remembered: int = option(64, "First frames kept for sampling, if conditional.", minimum=1)

    def check_together(self) -> None:
        super().check_together()
        least = 2 ** cli.doubled(self.size)  # time is doubled as often as space
        if self.num_frames % least:
            raise cli.UsageError(
                f"--num_frames must be a multiple of {least} at --size={self.size}. Received {self.num_frames}."
            )


# Official code (cvondrick/videogan@88c0c4d): 32 frames of 64x64, the first ones of a video, the last one repeated where it
# is short; z of 100, widths 64..512, Adam at 2e-4 with beta_1 = 0.5, batches of 64, mask penalty 0.1, 100 epochs.
_PAPER = {
    "size": 64,
    "num_frames": 32,
    "clip_start": "first",
    "short_clip": "hold",
    "latent_dim": 100,
    "width": 64,
    "mask_weight": 0.1,
    "generator_learning_rate": 2e-4,
    "discriminator_learning_rate": 2e-4,
    "beta_1": 0.5,
    "batch_size": 64,
}
# Ours, for a quarter of an hour on two cores: half the paper's frames and half its widths, so that 3,500 steps fit in that
# time; and a moving average of the weights, which is sampled, evaluated and exported.
_FAST = {
    "size": 64,
    "num_frames": 16,
    "width": 32,
    "batch_size": 8,
    "ema_decay": 0.995,
    "precision": "auto",
    "total_steps": 3500,
}
PRESETS = {
    "smoke": {
        "dataset": "actors",
        "num_identities": 2,
        "num_actions": 2,
        "size": 16,
        "num_frames": 8,
        "width": 4,
        "latent_dim": 6,
        "total_steps": 4,
        "steps_per_loop": 2,
        "checkpoint_every_steps": 2,
        "batch_size": 2,
    },
    "weizmann": {**_FAST, "dataset": "weizmann", "mirror": "same_action", "stride": 2},
    "shapes": {**_FAST, "dataset": "shapes", "stride": 1},
    "clips": clips.preset(_FAST, sample_every_steps=500, batch_size=clips.most(8), total_steps=clips.steps(3500)),
    # 603,776 clips of golf, 100 epochs
    "paper_golf": {**_PAPER, "dataset": paper_data.GOLF, "total_steps": 603_776 * 100 // 64},
    # predicting the future of a frame (main_conditional.lua): no noise, networks of twice the width, L1 to the frame with weight
    # 10, no mask penalty, batches of 32
    "paper_golf_first_frame": {
        **_PAPER,
        "dataset": paper_data.GOLF,
        "conditional": True,
        "first_frame_weight": 10.0,
        "mask_weight": 0.0,
        "batch_size": 32,
        "total_steps": 603_776 * 100 // 32,
    },
}


def build_model(config: Config, run_data: RunData) -> VGAN:
    """The compiled model of a config and its data."""
    from tfvidgen.models.vgan import VGAN, ConditionalVGAN

    adversarial.require_clips(config, run_data)
    common = {
        "num_frames": config.num_frames,
        "size": config.size,
        "width": config.width,
        "spectral_norm": config.spectral_norm,
        "seed": config.seed,
        "dtype": config.dtype_policy,
        "network_form": config.network_form or None,
    }
    if config.conditional:
        model = ConditionalVGAN(**common, num_remembered=config.num_remembered)
    else:
        model = VGAN(**common, latent_dim=config.latent_dim)
    model.build()
    model.compile(
        adversarial.adam(config, config.generator_learning_rate),
        adversarial.adam(config, config.discriminator_learning_rate),
        mask_weight=config.mask_weight,
        first_frame_weight=config.first_frame_weight,
        **adversarial.compile_options(config),
    )
    return model


def main(argv=None) -> int:
    return train.main("vgan", __doc__, Config, PRESETS, build_model, argv)


if __name__ == "__main__":
    raise SystemExit(main())
