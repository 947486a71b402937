"""Shared by the trainers of adversarial systems: flags, optimizers and the options of `compile`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.optimizers import Adam
    from trainers.runs import RunData


AUGMENTATIONS = ("colour", "translation", "cutout")  # of `tfvidgen.layers.augmentation`, which imports TensorFlow


@dataclasses.dataclass(frozen=True)
class AdversarialConfig(cli.RunConfig):
    """Settings of any run with discriminators. The stability tools at the end are off by default."""

    clip_start: str = option("random", "Where a clip begins.", ("first", "centre", "random"))
    adversarial_loss: str = option(
        "non_saturating", "Adversarial loss.", ("minimax", "non_saturating", "hinge", "wgan")
    )
    discriminator_steps: int = option(
        1,
        "Discriminator updates per generator update, each on --batch_size different clips.",
        minimum=1,
    )
    generator_learning_rate: float = option(2e-4, "Learning rate of the generator.", minimum=0)
    discriminator_learning_rate: float = option(2e-4, "Learning rate of the discriminators.", minimum=0)
    beta_1: float = option(0.5, "Decay rate of Adam's first moment.", minimum=0)
    beta_2: float = option(0.999, "Decay rate of Adam's second moment.", minimum=0)
    adam_epsilon: str = option(
        "after_correction",
        "Where Adam adds its epsilon of 1e-8: after bias correction (PyTorch), or before (Keras; runs begun before this setting).",
        ("after_correction", "before_correction"),
        implied="before_correction",
    )
    l2_weight: float = option(
        0.0, "Adds this times each weight to its gradient (PyTorch Adam's weight_decay).", minimum=0
    )
    spectral_norm: bool = option(False, "Spectral normalisation in the discriminators.")
    r1_weight: float = option(0.0, "Gamma of the R1 penalty on the discriminators; 0 disables it.", minimum=0)
    augmentation: str = option(
        "",
        "Differentiable augmentation of discriminator inputs, the same for all frames of a clip; for small datasets. "
        "Comma-separated list of colour,translation,cutout.",
    )
    gradient_clip_norm: float = option(
        0.0, "Clips each network's gradient to this global norm; 0 disables clipping.", minimum=0
    )

    @property
    def clips_per_step(self) -> int:
        """Clips that a step takes from the dataset, over all discriminator updates."""
        return self.batch_size * self.discriminator_steps

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in `augmentation`."""
        return tuple(name.strip() for name in self.augmentation.split(",") if name.strip())

    def check_together(self) -> None:
        super().check_together()
        cli.doubled(self.size)
        for name in self.augmentations:
            if name not in AUGMENTATIONS:
                raise cli.UsageError(
                    f"--augmentation takes names from {', '.join(AUGMENTATIONS)}. Received {name!r}."
                    f"{cli.suggest(name, AUGMENTATIONS)}"
                )


@dataclasses.dataclass(frozen=True)
class ImageAndVideoConfig(AdversarialConfig):
    """Settings of MoCoGAN and its descendants: a frame generator, an image and a video discriminator."""

    width: int = option(64, "Channels of the generator's last stage; the first has 8 times as many.", minimum=1)
    discriminator_width: int = option(64, "Channels of the discriminators' first stage.", minimum=1)
    image_head: str = option("plain", "Image discriminator: one logit per frame or per patch.", ("plain", "patch"))
    video_head: str = option("plain", "Video discriminator: one logit per clip or per patch.", ("plain", "patch"))
    temporal_taps: int = option(
        4, "Temporal kernel size of the video discriminator; smaller for shorter clips.", minimum=1
    )
    noise_stddev: float = option(0.0, "Standard deviation of noise before the discriminators' convolutions.", minimum=0)
    frames_per_clip: int = option(1, "Frames per clip that the image discriminator sees.", minimum=1)

    def check_together(self) -> None:
        super().check_together()
        doublings = cli.doubled(self.size)
        for head in ("image_head", "video_head"):
            if getattr(self, head) == "patch" and doublings == 1:
                raise cli.UsageError(
                    f"--{head}=patch needs frames of at least 16 pixels. Received --size={self.size}: raise it, or use "
                    f"--{head}=plain."
                )
        convolutions = doublings + (self.video_head == "plain")  # of the video discriminator, none of which pads time
        needed = convolutions * (self.temporal_taps - 1) + 1
        if 1 < self.num_frames < needed:
            fitting = (self.num_frames - 1) // convolutions + 1
            raise cli.UsageError(
                f"The video discriminator needs {needed} frames at --size={self.size} and --temporal_taps={self.temporal_taps}. "
                f"Received --num_frames={self.num_frames}: raise it to {needed}, or use --temporal_taps={fitting}."
            )


def adam(config: AdversarialConfig, learning_rate: float) -> Adam:
    """Adam with the config's decay rates and the epsilon of the official implementations' libraries."""
    from tfvidgen.optimizers import pytorch_adam

    corrected = config.adam_epsilon == "after_correction"
    return pytorch_adam(learning_rate, beta_1=config.beta_1, beta_2=config.beta_2, corrected_epsilon=corrected)


def compile_options(config: AdversarialConfig) -> dict[str, Any]:
    """Keyword arguments that the `compile` of every adversarial system takes, besides its optimizers."""
    return {
        "adversarial_loss": config.adversarial_loss,
        "accumulate": cli.accumulate(config),
        "discriminator_steps": config.discriminator_steps,
        "l2_weight": config.l2_weight,
        "r1_weight": config.r1_weight,
        "augmentation": config.augmentations,
        "gradient_clip_norm": config.gradient_clip_norm,
    }


def network_options(config: ImageAndVideoConfig) -> dict[str, Any]:
    """Constructor arguments that MoCoGAN and its descendants share."""
    return {
        "num_frames": config.num_frames,
        "size": config.size,
        "width": config.width,
        "discriminator_width": config.discriminator_width,
        "image_head": config.image_head,
        "video_head": config.video_head,
        "temporal_taps": config.temporal_taps,
        "noise_stddev": config.noise_stddev,
        "spectral_norm": config.spectral_norm,
        "seed": config.seed,
        "dtype": config.dtype_policy,
        "network_form": config.network_form or None,
    }


def require_clips(config: AdversarialConfig, run_data: RunData) -> None:
    """Raises ValueError if the source holds single images, which no short-clip policy can turn into motion."""
    if config.num_frames > 1 and int(run_data.trained.lengths.max()) == 1:
        raise ValueError(
            f"{run_data.trained.source!r} holds single images, but clips of {config.num_frames} frames are needed: name a "
            "set of videos."
        )


def num_categories(run_data: RunData, flag: str, given: int = 0) -> int:
    """Number of action labels in the data; `given` overrides it with a larger number.

    Args:
        run_data: Whose trained videos are meant.
        flag: The setting that asks for labels.
        given: 0 for the number in the data.

    Raises:
        ValueError: If there are no labels or only one, or one lies beyond `given`.
    """
    videos = run_data.trained
    if videos.action is None:
        raise ValueError(
            f"--{flag} needs an action for every video, but {videos.source!r} has none: put the videos into one folder per "
            f"action (walk/a.mp4), or use --no{flag}."
        )
    found = max(len(videos.action_names or ()), int(videos.action.max()) + 1)
    if given and found > given:
        raise ValueError(
            f"{videos.source!r} has {found} actions, so --num_categories must be at least {found}, or 0 for as many as there are. "
            f"Received {given}."
        )
    if max(given, found) < 2:
        raise ValueError(
            f"--{flag} tells actions apart, but {videos.source!r} has only one, {(videos.action_names or ('0',))[0]!r}: add a "
            f"folder with another action, or use --no{flag}."
        )
    return max(given, found)
