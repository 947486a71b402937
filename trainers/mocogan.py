"""Trains MoCoGAN (Tulyakov et al., CVPR 2018): content and motion codes, an image and a video discriminator."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from trainers import adversarial, cli, clips, images, paper_data, train
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.mocogan import MoCoGAN
    from trainers.runs import RunData


@dataclasses.dataclass(frozen=True)
class Config(adversarial.ImageAndVideoConfig, images.IndependentFramesConfig):
    """Settings of one MoCoGAN run."""

    content_dim: int = option(50, "Dimension d_C of a content code.", minimum=1)
    motion_dim: int = option(10, "Dimension d_M of a motion code.", minimum=1)
    categorical: bool = option(False, "Learn the action as a category; the data must have action labels.")
    num_categories: int = option(0, "Number of categories, at least that of actions; 0 for the same number.", minimum=0)
    category_weight: float = option(1.0, "Weight of the categories' cross-entropy.", minimum=0)

    def check_together(self) -> None:
        super().check_together()
        if self.num_categories == 1:
            raise cli.UsageError(
                "--num_categories must be at least 2, or 0 for as many as the data has actions. Received 1."
            )


# Official code (sergeytulyakov/mocogan@937a99d): d_C 50, d_M 10, widths 64, clips of 16 frames of 64x64, Adam at 2e-4 with
# beta_1 .5 and weight decay 1e-5, 3 clips and 10 frames a step (here 9, three of each clip or, with --independent_frames, of
# nine other videos as there), 100,000 steps; train.py draws every second frame and uses the patch discriminator of frames.
PAPER = {
    "size": 64,
    "num_frames": 16,
    "stride": 2,
    "content_dim": 50,
    "motion_dim": 10,
    "width": 64,
    "discriminator_width": 64,
    "image_head": "patch",
    "generator_learning_rate": 2e-4,
    "discriminator_learning_rate": 2e-4,
    "beta_1": 0.5,
    "beta_2": 0.999,
    "l2_weight": 1e-5,
    "batch_size": 3,
    "frames_per_clip": 3,
    "total_steps": 100_000,
    "checkpoint_every_steps": 5000,
    "sample_every_steps": 5000,
}
# Ours, for a quarter of an hour on two cores: a generator of half the paper's width and discriminators of a quarter of it,
# so that 3,000 steps fit in that time; twice the paper's learning rate, which spectral norm allows; more frames for D_I,
# which cost little compared with D_V's clips; and a moving average of the weights, which is sampled, evaluated and exported.
FAST = {
    "size": 64,
    "num_frames": 16,
    "stride": 2,
    "width": 32,
    "discriminator_width": 16,
    "image_head": "patch",
    "frames_per_clip": 4,
    "batch_size": 8,
    "generator_learning_rate": 4e-4,
    "discriminator_learning_rate": 4e-4,
    "spectral_norm": True,
    "ema_decay": 0.995,
    "precision": "auto",
    "total_steps": 3000,
}
# Every frame rather than every second one, since clips may be short.
CLIPS = clips.preset(FAST, stride=1, sample_every_steps=500, batch_size=clips.most(8), total_steps=clips.steps(3000))
SMOKE = {
    "dataset": "actors",
    "num_identities": 2,
    "num_actions": 2,
    "size": 16,
    "num_frames": 8,
    "width": 4,
    "discriminator_width": 4,
    "temporal_taps": 2,
    "total_steps": 4,
    "steps_per_loop": 2,
    "checkpoint_every_steps": 2,
    "batch_size": 2,
}
PRESETS = {
    "smoke": {**SMOKE, "categorical": True},
    "weizmann": {**FAST, "dataset": "weizmann", "mirror": "same_action", "categorical": True},
    "shapes": {**FAST, "dataset": "shapes", "stride": 1, "categorical": True},
    "clips": {**CLIPS, "categorical": clips.HAS_ACTIONS},
    # the four actions of the public dataset, their mirror images, and the noise from the project's wiki
    "paper_weizmann": {
        **PAPER,
        "dataset": "weizmann",
        "mirror": "same_action",
        "categorical": True,
        "noise_stddev": 0.1,
        "batch_size": 32,
        "frames_per_clip": 1,
    },
    "paper_shapes": {**PAPER, "dataset": "shapes", "categorical": True},
    "paper_mug": {**PAPER, "dataset": paper_data.MUG, "categorical": True},
    # without categories; RMoCoGAN and RJGAN are compared with it on these (Dandi et al., WACV 2020, Table 2)
    "paper_nir": {**PAPER, "dataset": paper_data.NIR},
}


def model_options(config: Config, run_data: RunData) -> dict[str, Any]:
    """Constructor arguments for MoCoGAN and its residual variant."""
    adversarial.require_clips(config, run_data)
    categories = adversarial.num_categories(run_data, "categorical", config.num_categories) if config.categorical else 0
    return {
        **adversarial.network_options(config),
        "content_dim": config.content_dim,
        "motion_dim": config.motion_dim,
        "num_categories": categories,
    }


def compile_model(config: Config, model: MoCoGAN) -> MoCoGAN:
    """Builds and compiles a model according to the config."""
    model.build()
    model.compile(
        adversarial.adam(config, config.generator_learning_rate),
        adversarial.adam(config, config.discriminator_learning_rate),
        adversarial.adam(config, config.discriminator_learning_rate),
        category_weight=config.category_weight,
        frames_per_clip=config.frames_per_clip,
        independent_frames=config.independent_frames,
        **adversarial.compile_options(config),
    )
    return model


def build_model(config: Config, run_data: RunData) -> MoCoGAN:
    """The compiled model for a config and its data."""
    from tfvidgen.models.mocogan import MoCoGAN

    return compile_model(config, MoCoGAN(**model_options(config, run_data)))


def main(argv=None) -> int:
    return train.main("mocogan", __doc__, Config, PRESETS, build_model, argv)


if __name__ == "__main__":
    raise SystemExit(main())
