"""Trains NAVSynth (Aich et al., CVPR 2020): learned static and transient codes, a GRU, and a frame generator."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from trainers import cli, clips, paper_data, train
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.navsynth import NAVSynth
    from trainers.runs import RunData


@dataclasses.dataclass(frozen=True)
class Config(cli.RunConfig):
    """Settings of one NAVSynth run."""

    static_by: str = option(
        "video", "One static code per video, per identity, or shared.", ("video", "identity", "shared")
    )
    transient_by: str = option("video", "Transient codes per video or per action.", ("video", "action"))
    static_dim: int = option(56, "Dimension D_s of a static code.", minimum=1)
    transient_dim: int = option(200, "Dimension D_t of a transient code.", minimum=1)
    static_stddev: float = option(0.0, "Initial stddev of the static codes; 0 for 1/sqrt(static_dim).", minimum=0)
    transient_stddev: float = option(0.0, "Initial stddev of the transient codes; 0 for 1/sqrt(dim).", minimum=0)
    motion_dim: int = option(200, "Dimension of a motion code, the RNN's output.", minimum=1)
    rnn_units: int = option(500, "Hidden units of the GRU.", minimum=1)
    width: int = option(64, "Channels of the generator's last stage; the first has 8 times as many.", minimum=1)
    norm: str = option("batch", "Normalisation in the generator.", ("batch", "none"))
    conditioning: str = option("none", "How the action label enters the generator.", ("none", "concat", "norm"))
    label_dim: int = option(16, "Dimension of the label embedding.", minimum=1)
    use_static: bool = option(True, "False drops the static code (ablation).")
    train_latents: bool = option(True, "False leaves the codes at their random initial values (ablation -Z).")
    projection: str = option(
        "unit_ball", "Projection of codes after each update.", ("unit_ball", "unit_sphere", "none")
    )
    rank: int = option(0, "Rank of the transient code matrix, for interpolation (Eq. 7); 0 for full rank.", minimum=0)
    update: str = option("alternating", "The paper's two stages, or a single joint pass.", ("alternating", "joint"))
    loss: str = option("laplacian", "Reconstruction loss.", ("laplacian", "l1", "l2", "laplacian_l2", "perceptual"))
    pyramid: str = option(
        "binomial",
        "Laplacian pyramid: binomial (ours), official (public code), or zero_padded, which weighs borders more (runs begun "
        "before this setting).",
        ("binomial", "official", "zero_padded"),
        implied="zero_padded",
    )
    l2_weight: float = option(10.0, "Weight of the L2 loss in laplacian_l2.", minimum=0)
    vgg16_weights: str = option("", "VGG16 weight file, for loss=perceptual.")
    decoded_frames: int = option(
        0,
        "Frames of each clip decoded per step, chosen at random in each step; 0 for all. Allows larger batches.",
        minimum=0,
    )
    static_weight: float = option(0.01, "lambda_s of Eq. 6.", minimum=0)
    triplet_weight: float = option(0.01, "lambda_t of Eq. 6.", minimum=0)
    positive_radius: int = option(2, "Frames within this distance are triplet positives.", minimum=1)
    negative_radius: int = option(5, "Frames beyond this distance are triplet negatives.", minimum=1)
    triplet_margin: float = option(2.0, "Margin of the triplet loss, in squared distance.", minimum=0)
    learning_rate: float = option(6.25e-5, "Adam learning rate of generator and RNN.", minimum=0)
    adam_epsilon: str = option(
        "after_correction",
        "Adam's epsilon: 1e-8 after bias correction (PyTorch), or 1e-7 before (Keras; runs begun before this setting).",
        ("after_correction", "before_correction"),
        implied="before_correction",
    )
    beta_2: float = option(0.999, "Decay rate of Adam's second moment.", minimum=0)
    weight_decay: float = option(0.0, "Decoupled weight decay (AdamW) of the networks, times their rate.", minimum=0)
    latent_rule: str = option("sgd", "Optimizer of the codes.", ("sgd", "momentum", "adam"))
    latent_learning_rate: float = option(12.5, "Learning rate of the codes.", minimum=0)
    latents_in_host_memory: bool = option(
        False,
        "Keep a single copy of the codes in host memory and move each batch's codes to the devices; for more codes than "
        "device memory holds.",
        may_change=True,
    )
    schedule: str = option("constant", "Schedule of both learning rates.", ("constant", "cosine"))
    earlier_totals: str = option(
        "",
        "TOTAL:STEP,...: until each STEP, the schedule is that of a run of TOTAL steps; after the last, of --total_steps. "
        "Maintained by --resume=extend.",
        may_change=True,
    )

    @property
    def rate_schedule(self) -> str:
        return "" if self.schedule == "constant" else f"--schedule={self.schedule}"

    def check_together(self) -> None:
        super().check_together()
        cli.doubled(self.size)
        if self.clip_start == "random":
            raise cli.UsageError(
                "NAVSynth learns a code per frame, so a clip must always begin at the same frame: use --clip_start=first or "
                "centre."
            )
        if self.earlier_totals and not self.rate_schedule:
            raise cli.UsageError(
                f"--earlier_totals={self.earlier_totals} is of a schedule, and --schedule={self.schedule} has none: leave it out."
            )
        if self.conditioning == "norm" and self.norm != "batch":
            raise cli.UsageError(
                f"--conditioning=norm needs --norm=batch. Received --norm={self.norm}: use --conditioning=concat."
            )
        if self.decoded_frames > self.num_frames:
            raise cli.UsageError(
                f"--decoded_frames={self.decoded_frames} exceeds the --num_frames={self.num_frames} of a clip: lower it, or use 0, "
                "which decodes all."
            )
        if self.positive_radius > self.negative_radius:
            raise cli.UsageError(
                f"--positive_radius={self.positive_radius} must not exceed --negative_radius={self.negative_radius}."
            )
        if self.triplet_weight and self.num_frames <= self.negative_radius + 1:
            raise cli.UsageError(
                f"The triplet loss compares frames more than --negative_radius={self.negative_radius} apart, and clips have "
                f"--num_frames={self.num_frames}: use at least {self.negative_radius + 2} frames, lower the radius, or leave that "
                "loss out with --triplet_weight=0."
            )
        if self.loss == "perceptual" and self.vgg16_weights and not os.path.exists(self.vgg16_weights):
            raise cli.UsageError(
                f"--vgg16_weights={self.vgg16_weights} does not exist: name the file of VGG16's weights."
            )


# Paper: Sec. 4.1 and 4.2. Official code (abhishekaich27/Navsynth@a652f7a): widths 56/200/200, loss weights .01/.01,
# radii 2 and 5, margin 2, Adam at .001 * 16/256, codes by SGD at 200 * 16/256. Steps: 5 epochs x 300 inner steps per
# video (official code), in batches of one clip as there.
_PAPER = {
    "size": 64,
    "num_frames": 16,
    "static_dim": 56,
    "transient_dim": 200,
    "motion_dim": 200,
    "rnn_units": 500,
    "update": "alternating",
    "loss": "laplacian",
    "pyramid": "official",
    "static_weight": 0.01,
    "triplet_weight": 0.01,
    "latent_rule": "sgd",
    "latent_learning_rate": 12.5,
    "learning_rate": 6.25e-5,
    "batch_size": 1,
}
# Ours, for minutes on a CPU: an L2 loss, because these runs are scored by PSNR; a joint update, which does 3/5 of the work
# of two stages; weight decay against memorising single cells.
_FAST = {
    "update": "joint",
    "loss": "l2",
    "learning_rate": 2e-3,
    "beta_2": 0.99,
    "latent_rule": "adam",
    "latent_learning_rate": 0.02,
    "schedule": "cosine",
    "weight_decay": 1.0,
    "precision": "auto",
    "static_by": "identity",
    "transient_by": "action",
    "static_weight": 0.0,
    "triplet_weight": 0.0,
}
PRESETS = {
    "smoke": {
        "dataset": "actors",
        "num_identities": 2,
        "num_actions": 2,
        "size": 16,
        "num_frames": 8,
        "width": 4,
        "rnn_units": 8,
        "static_dim": 4,
        "transient_dim": 4,
        "motion_dim": 4,
        "total_steps": 4,
        "steps_per_loop": 2,
        "checkpoint_every_steps": 2,
        "batch_size": 2,
    },
    "actors": {
        **_FAST,
        "dataset": "actors",
        "num_identities": 36,  # with only ten, unseen motions are blurred (docs/results.md)
        "num_held_out_cells": 24,
        "width": 32,
        "batch_size": 16,
        "decoded_frames": 4,
        "weight_decay": 3.0,
        "total_steps": 2000,
    },
    "sprites_exchange": {
        **_FAST,
        "dataset": "sprites",
        "num_identities": 60,
        "num_frames": 8,
        "trained_per_identity": 4,
        "mirror": "own_action",  # left and right in the sheets are nearly mirror images; narrows the gap (docs/results.md)
        "weight_decay": 3.0,
        "total_steps": 3000,
    },
    "weizmann": {**_FAST, "dataset": "weizmann", "num_held_out_cells": 6, "total_steps": 1000},
    "clips": clips.preset(
        _FAST,
        width=32,
        weight_decay=3.0,
        sample_every_steps=250,
        num_frames=clips.NUM_FRAMES,
        decoded_frames=cli.FromData("4, or all if a clip has fewer", lambda videos, config: min(4, config.num_frames)),
        static_by=clips.STATIC_BY,
        transient_by=clips.TRANSIENT_BY,
        num_held_out_cells=clips.HELD_OUT,
        batch_size=clips.most(16),
        total_steps=clips.steps(1000),
    ),
    # 820 chairs, one static code for the dataset, transient codes per chair (Sec. 4.1)
    "paper_chair": {
        **_PAPER,
        "dataset": paper_data.CHAIRS,
        "static_by": "shared",
        "transient_by": "video",
        "total_steps": 820 * 5 * 300,
    },
    # nine static codes, ten transient codes, conditional generator (Sec. 4.1 and 4.2)
    "paper_weizmann": {
        **_PAPER,
        "dataset": "weizmann",
        "static_by": "identity",
        "transient_by": "action",
        "conditioning": "concat",
        "total_steps": 90 * 5 * 300,
    },
    # 500 clips, one static code for the dataset (Sec. 4.1)
    "paper_golf": {
        **_PAPER,
        "dataset": paper_data.GOLF,
        "static_by": "shared",
        "transient_by": "video",
        "total_steps": 500 * 5 * 300,
    },
}


def require_labels(config: Config, run_data: RunData) -> None:
    """Raises ValueError for settings that need labels which the videos do not have."""
    videos = run_data.trained
    for flag, label, instead in (
        ("static_by=identity", "identity", "--static_by=video learns one for every video"),
        ("transient_by=action", "action", "--transient_by=video learns one for every video"),
        (f"conditioning={config.conditioning}", "action", "--conditioning=none does without"),
    ):
        name, _, value = flag.partition("=")
        if getattr(config, name) != value or value == "none" or getattr(videos, label) is not None:
            continue
        if label == "action":
            layout = "one folder per action (walk/a.mp4)"
        elif videos.action is not None:
            layout = "folders of identities with folders of actions in them (ann/walk/a.mp4), as it has one folder per action only"
        else:
            layout = "folders of identities with folders of actions in them (ann/walk/a.mp4)"
        raise ValueError(
            f"--{flag} needs an {label} for every video, but {videos.source!r} gives none: {instead}; or say which with {layout}, "
            f"or with a column `{label}` in its labels.csv (docs/data.md)."
        )


def build_model(config: Config, run_data: RunData) -> NAVSynth:
    """The compiled model for a config and its data."""
    from tfvidgen.models.navsynth import NAVSynth
    from tfvidgen.optimizers import Adam, pytorch_adam
    from trainers import schedules

    require_labels(config, run_data)
    videos = run_data.trained
    model = NAVSynth(
        num_videos=len(videos),
        num_frames=config.num_frames,
        size=config.size,
        static_by=config.static_by,
        transient_by=config.transient_by,
        identity_of_video=None if videos.identity is None else videos.identity.tolist(),
        action_of_video=None if videos.action is None else videos.action.tolist(),
        static_dim=config.static_dim,
        transient_dim=config.transient_dim,
        motion_dim=config.motion_dim,
        rnn_units=config.rnn_units,
        width=config.width,
        norm=config.norm,
        conditioning=config.conditioning,
        label_dim=config.label_dim,
        use_static=config.use_static,
        latent_rule=config.latent_rule if config.train_latents else "none",
        projection=config.projection,
        rank=config.rank or None,
        static_stddev=config.static_stddev or None,
        transient_stddev=config.transient_stddev or None,
        host_memory=config.latents_in_host_memory,
        seed=config.seed,
        dtype=config.dtype_policy,
        network_form=config.network_form or None,
    )
    model.build()

    def rate(value):
        if config.schedule == "constant":
            return value
        return schedules.cosine(value, config.total_steps, config.earlier_totals)

    perceptual_loss = None
    if config.loss == "perceptual":
        from tfvidgen.features.vgg16 import VGG16Features
        from tfvidgen.losses.perceptual import PerceptualLoss

        perceptual_loss = PerceptualLoss(VGG16Features(weights=config.vgg16_weights or None))

    def adam():
        kind = pytorch_adam if config.adam_epsilon == "after_correction" else Adam
        return kind(rate(config.learning_rate), weight_decay=config.weight_decay or None, beta_2=config.beta_2)

    generator_optimizer = adam()
    # black and white need large logits: weight decay in the layer that produces them leaves speckle there
    generator_optimizer.exclude_from_weight_decay(var_names=["to_rgb"])
    model.compile(
        generator_optimizer,
        adam(),
        latent_learning_rate=rate(config.latent_learning_rate),
        update=config.update,
        loss=config.loss,
        pyramid=config.pyramid,
        l2_weight=config.l2_weight,
        static_weight=config.static_weight,
        triplet_weight=config.triplet_weight,
        positive_radius=config.positive_radius,
        negative_radius=config.negative_radius,
        triplet_margin=config.triplet_margin,
        perceptual_loss=perceptual_loss,
        decoded_frames=config.decoded_frames or None,
        accumulate=cli.accumulate(config),
    )
    return model


def main(argv=None) -> int:
    return train.main("navsynth", __doc__, Config, PRESETS, build_model, argv)


if __name__ == "__main__":
    raise SystemExit(main())
