"""Trains RJGAN (Dandi et al., WACV 2020, Sec. 4.1): images and videos jointly, with a summary vector and residuals."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from trainers import adversarial, clips, images, mocogan, paper_data, train
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.rjgan import RJGAN
    from trainers.runs import RunData


@dataclasses.dataclass(frozen=True)
class Config(adversarial.ImageAndVideoConfig, images.ImagesConfig):
    """Settings of one RJGAN run. --num_frames=1 trains the image-only baseline."""

    summary_dim: int = option(60, "Dimension of the summary vector and of a residual.", minimum=1)
    noise_dim: int = option(10, "Dimension of the per-frame noise.", minimum=1)
    summary_stddev: float = option(1.0, "Standard deviation of the summary vector's prior.", minimum=0)
    linear_residual: bool = option(False, "Add a linear layer after the residuals' GRU.")
    summary_every_steps: int = option(1, "Use summary images in the loss every this many steps; 0 disables.", minimum=0)


# Architecture and training are MoCoGAN's (Sec. 3 and 4.1); the dimensions are in an appendix that is not public.
_PAPER = {
    **{name: value for name, value in mocogan.PAPER.items() if name not in ("content_dim", "motion_dim")},
    "summary_dim": 60,
    "noise_dim": 10,
    "summary_every_steps": 1,
}
_MUG = {**_PAPER, "dataset": paper_data.MUG}
# as MoCoGAN's; summary images make a step an eighth more expensive
_FAST = {**mocogan.FAST, "total_steps": 2700}
PRESETS = {
    "smoke": mocogan.SMOKE,
    "weizmann": {**_FAST, "dataset": "weizmann", "mirror": "same_action"},
    "shapes": {**_FAST, "dataset": "shapes", "stride": 1},
    "clips": {**mocogan.CLIPS, "total_steps": clips.steps(2700)},
    "paper_weizmann": {**_PAPER, "dataset": "weizmann", "mirror": "same_action"},
    "paper_mug": _MUG,
    "paper_nir": {**_PAPER, "dataset": paper_data.NIR},
    # half of the videos as loose images, as many per step as frames from clips (Sec. 5.1)
    "paper_mug_mixed": {**_MUG, "exploded_share": 0.5, "images_per_clip": 3},
    # 1000 steps on clips after training on images (Sec. 5.1, Table 3)
    "paper_mug_pretrained": {**_MUG, "init_from": paper_data.IMAGES_RUN, "total_steps": 1000},
    # the baseline of Sec. 5.2, and the first half of pre-training: ten images a step, each seen once
    "paper_mug_images": {
        **_MUG,
        "num_frames": 1,
        "stride": 1,
        "batch_size": 10,
        "frames_per_clip": 1,
        "evaluate": False,
    },
}


def build_model(config: Config, run_data: RunData) -> RJGAN:
    """The compiled model for a config and its data."""
    from tfvidgen.models.rjgan import RJGAN

    adversarial.require_clips(config, run_data)
    model = RJGAN(
        **adversarial.network_options(config),
        summary_dim=config.summary_dim,
        noise_dim=config.noise_dim,
        summary_stddev=config.summary_stddev,
        linear_residual=config.linear_residual,
    )
    model.build()
    model.compile(
        adversarial.adam(config, config.generator_learning_rate),
        adversarial.adam(config, config.discriminator_learning_rate),
        adversarial.adam(config, config.discriminator_learning_rate),
        summary_every_steps=config.summary_every_steps,
        frames_per_clip=config.frames_per_clip,
        **adversarial.compile_options(config),
    )
    return model


def main(argv=None) -> int:
    return train.main("rjgan", __doc__, Config, PRESETS, build_model, argv)


if __name__ == "__main__":
    raise SystemExit(main())
