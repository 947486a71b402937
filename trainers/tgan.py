"""Trains TGAN (Saito et al., ICCV 2017): a temporal and an image generator against a critic with clipped singular values."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from trainers import adversarial, cli, clips, paper_data, train
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.tgan import TGAN
    from trainers.runs import RunData


@dataclasses.dataclass(frozen=True)
class Config(adversarial.AdversarialConfig):
    """Settings of one TGAN run."""

    num_frames: int = option(16, "Frames per clip; a power of two and a multiple of size / 4.", minimum=2)
    adversarial_loss: str = option("wgan", "Adversarial loss.", ("minimax", "non_saturating", "hinge", "wgan"))
    constraint: str = option(
        "singular_values",
        "How the discriminator is kept Lipschitz: singular values clipped at 1, or weights clipped at 0.01.",
        ("singular_values", "weights", "none"),
    )
    clip_every_steps: int = option(5, "Steps between singular value clippings.", minimum=1)
    noise_stddev: float = option(0.0, "Standard deviation of Gaussian noise for the discriminator.", minimum=0)
    noise_place: str = option(
        "activations",
        "Where that noise is added: before each leaky ReLU (official code), or to pixels.",
        ("activations", "pixels"),
        implied="pixels",
    )
    initialisation: str = option(
        "lecun",
        "Kernels at the start: LeCun's normal distribution, or uniform in [-0.01, 0.01] in the image generator or everywhere.",
        ("lecun", "uniform_images", "uniform"),
    )
    conditional: bool = option(False, "Condition on the action label.")
    slow_dim: int = option(100, "Dimension of the slow code, one per video.", minimum=1)
    fast_dim: int = option(100, "Dimension of the fast code, one per frame.", minimum=1)
    temporal_width: int = option(512, "Channels of the temporal generator at length 1.", minimum=4)
    width: int = option(
        32, "Channels of the image generator's last hidden layer; the deepest has 16 times as many.", minimum=1
    )
    discriminator_width: int = option(
        64, "Channels of the discriminator's first layer; the deepest has 8 times as many.", minimum=1
    )
    optimizer: str = option("rmsprop", "Optimizer of all networks; beta_1 and beta_2 are Adam's.", ("rmsprop", "adam"))
    generator_learning_rate: float = option(5e-5, "Learning rate of both generators.", minimum=0)
    discriminator_learning_rate: float = option(5e-5, "Learning rate of the discriminator.", minimum=0)

    def check_together(self) -> None:
        super().check_together()
        least = 2 ** cli.doubled(self.size)  # the discriminator halves time as often as space
        if self.num_frames < least or self.num_frames & (self.num_frames - 1):
            raise cli.UsageError(
                f"--num_frames must be a power of two, at least {least} at --size={self.size}. Received {self.num_frames}."
            )
        if self.adversarial_loss == "wgan" and self.constraint == "none" and not (self.spectral_norm or self.r1_weight):
            raise cli.UsageError(
                "--adversarial_loss=wgan without any constraint grows without bound: use --constraint=singular_values or weights, "
                "--spectral_norm, --r1_weight above 0, or another --adversarial_loss."
            )


# Paper and official code (pfnet-research/tgan@09aa105): 16 frames of 64x64, codes of 100, widths 512, 32 and 64, RMSprop at
# 5e-5, batches of 32, one critic step per generator step, clipping every 5 steps; scores after 100,000 steps.
_PAPER = {
    "size": 64,
    "num_frames": 16,
    "slow_dim": 100,
    "fast_dim": 100,
    "temporal_width": 512,
    "width": 32,
    "discriminator_width": 64,
    "optimizer": "rmsprop",
    "generator_learning_rate": 5e-5,
    "discriminator_learning_rate": 5e-5,
    "adversarial_loss": "wgan",
    "constraint": "singular_values",
    "clip_every_steps": 5,
    "initialisation": "uniform_images",
    "batch_size": 32,
    "total_steps": 100_000,
}
# Ours, for ten minutes on two cores: half the paper's widths, so that 2,500 steps fit in that time; Adam, the cross-entropy
# loss and spectral norm, which learn in thousands of steps what RMSprop, the Wasserstein loss and clipped singular values
# learn in a hundred thousand; shifted clips for the discriminator, which otherwise memorises a small dataset; and a moving
# average of the weights, which is sampled, evaluated and exported.
_FAST = {
    "size": 64,
    "num_frames": 16,
    "width": 16,
    "discriminator_width": 32,
    "temporal_width": 256,
    "adversarial_loss": "non_saturating",
    "constraint": "none",
    "spectral_norm": True,
    "augmentation": "translation",
    "optimizer": "adam",
    "generator_learning_rate": 4e-4,
    "discriminator_learning_rate": 4e-4,
    "batch_size": 8,
    "ema_decay": 0.995,
    "precision": "auto",
    "total_steps": 2500,
}
_UCF101 = {**_PAPER, "dataset": paper_data.UCF101}
PRESETS = {
    "smoke": {
        "dataset": "actors",
        "num_identities": 2,
        "num_actions": 2,
        "size": 16,
        "num_frames": 8,
        "slow_dim": 6,
        "fast_dim": 5,
        "temporal_width": 8,
        "width": 4,
        "discriminator_width": 4,
        "clip_every_steps": 2,
        "total_steps": 4,
        "steps_per_loop": 2,
        "checkpoint_every_steps": 2,
        "batch_size": 2,
    },
    "weizmann": {**_FAST, "dataset": "weizmann", "mirror": "same_action", "stride": 2},
    "shapes": {**_FAST, "dataset": "shapes", "stride": 1},
    "clips": clips.preset(
        _FAST,
        sample_every_steps=500,
        conditional=clips.HAS_ACTIONS,
        batch_size=clips.most(8),
        total_steps=clips.steps(2500),
    ),
    # official code: one setting for its three datasets, but for the initial kernels; the digits are grey there
    "paper_ucf101": _UCF101,
    "paper_golf": {**_PAPER, "dataset": paper_data.GOLF, "initialisation": "uniform"},
    "paper_moving_mnist": {**_PAPER, "dataset": paper_data.MOVING_MNIST, "initialisation": "uniform"},
    "paper_ucf101_conditional": {**_UCF101, "conditional": True},
    # official code: weights within 0.01 after every step
    "paper_ucf101_weight_clipping": {**_UCF101, "constraint": "weights"},
    # official code: cross-entropy, and noise of 0.3 before each leaky ReLU of the discriminator
    "paper_ucf101_vanilla": {
        **_UCF101,
        "adversarial_loss": "non_saturating",
        "constraint": "none",
        "noise_stddev": 0.3,
    },
}


def build_model(config: Config, run_data: RunData) -> TGAN:
    """The compiled model for a config and its data."""
    from tfvidgen.models.tgan import TGAN, rmsprop

    adversarial.require_clips(config, run_data)
    model = TGAN(
        num_frames=config.num_frames,
        size=config.size,
        num_categories=adversarial.num_categories(run_data, "conditional") if config.conditional else 0,
        slow_dim=config.slow_dim,
        fast_dim=config.fast_dim,
        temporal_width=config.temporal_width,
        width=config.width,
        discriminator_width=config.discriminator_width,
        spectral_norm=config.spectral_norm,
        initialisation=config.initialisation,
        seed=config.seed,
        dtype=config.dtype_policy,
        network_form=config.network_form or None,
    )
    model.build()

    def optimizer(rate):
        if config.optimizer == "adam":
            return adversarial.adam(config, rate)
        return rmsprop(rate)

    model.compile(
        optimizer(config.generator_learning_rate),
        optimizer(config.discriminator_learning_rate),
        constraint=config.constraint,
        clip_every_steps=config.clip_every_steps,
        noise_stddev=config.noise_stddev,
        noise_place=config.noise_place,
        **adversarial.compile_options(config),
    )
    return model


def main(argv=None) -> int:
    return train.main("tgan", __doc__, Config, PRESETS, build_model, argv)


if __name__ == "__main__":
    raise SystemExit(main())
