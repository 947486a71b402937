"""Trains RMoCoGAN (Dandi et al., WACV 2020, Sec. 4.2): MoCoGAN whose content may vary a little from frame to frame."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from trainers import clips, mocogan, paper_data, train
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.rmocogan import RMoCoGAN
    from trainers.runs import RunData


@dataclasses.dataclass(frozen=True)
class Config(mocogan.Config):
    """Settings of one RMoCoGAN run."""

    residual_units: int = option(128, "Hidden units of the content residual's network.", minimum=1)


# The paper gives no numbers of its own: "we follow the notation and architecture of MoCoGAN" (Sec. 4.2), without categories.
_PAPER = {**mocogan.PAPER, "residual_units": 128}
# widths and settings of the fast presets are MoCoGAN's
PRESETS = {
    "smoke": {**mocogan.SMOKE, "residual_units": 8},
    "weizmann": {**mocogan.FAST, "dataset": "weizmann", "mirror": "same_action"},
    "shapes": {**mocogan.FAST, "dataset": "shapes", "stride": 1},
    "clips": {**mocogan.CLIPS, "categorical": clips.HAS_ACTIONS},
    "paper_weizmann": {**_PAPER, "dataset": "weizmann", "mirror": "same_action"},
    "paper_mug": {**_PAPER, "dataset": paper_data.MUG},
    "paper_nir": {**_PAPER, "dataset": paper_data.NIR},
}


def build_model(config: Config, run_data: RunData) -> RMoCoGAN:
    """The compiled model for a config and its data."""
    from tfvidgen.models.rmocogan import RMoCoGAN

    options = mocogan.model_options(config, run_data)
    return mocogan.compile_model(config, RMoCoGAN(residual_units=config.residual_units, **options))


def main(argv=None) -> int:
    return train.main("rmocogan", __doc__, Config, PRESETS, build_model, argv)


if __name__ == "__main__":
    raise SystemExit(main())
