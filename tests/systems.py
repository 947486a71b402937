"""Every system at a tiny size. The conformance tests run each contract over this list."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfvidgen import data
from tfvidgen.data.collection import VideoCollection
from tfvidgen.models.base import VideoGenerator
from tfvidgen.models.mocogan import MoCoGAN
from tfvidgen.models.navsynth import NAVSynth
from tfvidgen.models.rjgan import RJGAN
from tfvidgen.models.rmocogan import RMoCoGAN
from tfvidgen.models.tgan import TGAN
from tfvidgen.models.vgan import VGAN, ConditionalVGAN

NUM_IDENTITIES, NUM_ACTIONS, NUM_FRAMES, SIZE = 3, 2, 4, 16


@dataclasses.dataclass(frozen=True)
class System:
    """One way to build a system.

    Attributes:
        name: Shown in test ids.
        model_class: The public class; a coverage test asks for each one.
        build: Called without arguments; returns the built model.
        compile: Called with the model and a function that makes an optimizer from a rate.
        codes: Names of the latent tables that a step must move.
        objectives: (log key, optimizer attribute): a fixed batch lowers that loss while every other optimizer is held
            still, "" for none held. An adversarial system names each of its players.
        num_frames, size: Frames of a clip, and their height and width, that it is built for.
    """

    name: str
    model_class: type[VideoGenerator]
    build: Callable[[], VideoGenerator]
    compile: Callable[[Any, Callable[[float], keras.optimizers.Optimizer]], None]
    codes: tuple[str, ...] = ()
    objectives: tuple[tuple[str, str], ...] = (("reconstruction_loss", ""),)
    num_frames: int = NUM_FRAMES
    size: int = SIZE

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of a clip."""
        return (self.num_frames, self.size, self.size, 3)

    def dataset(self, start_step: int = 0, batch_size: int = 4) -> tf.data.Dataset:
        """Batches of the videos of `collection` at the system's size."""
        videos = collection(self.num_frames, self.size)
        return data.make_dataset(videos, batch_size, self.num_frames, seed=7, start_step=start_step)


@functools.cache
def collection(num_frames: int = NUM_FRAMES, size: int = SIZE) -> VideoCollection:
    """All six cells of three identities and two actions: a bright square that moves, in its identity's colour."""
    side = size // 4
    videos, identity, action = [], [], []
    for i in range(NUM_IDENTITIES):
        for a in range(NUM_ACTIONS):
            video = np.full((num_frames, size, size, 3), 30, np.uint8)
            for t in range(num_frames):
                moving = side // 2 + (3 * side // 4 * t) % (size - side)
                row, column = (moving, side + 1) if a == 0 else (side + 1, moving)
                video[t, row : row + side, column : column + side, i] = 230
            videos.append(video)
            identity.append(i)
            action.append(a)
    return VideoCollection.from_videos(
        videos,
        identity=identity,
        action=action,
        identity_names=("red", "green", "blue"),
        action_names=("down", "right"),
    )


def vivid(model: VideoGenerator) -> None:
    """Gives a model large weights: the frames of a hardly trained one are all grey, and so alike within one level.

    They keep activations of about one from layer to layer. Where those grew, rounding would grow with them, and most
    pixels would be black or white whatever was computed.
    """
    random = np.random.default_rng(8)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            fan_in = np.prod(variable.shape) / max(variable.shape[-2:])
            variable.assign(random.normal(0, 2.0 / np.sqrt(fan_in), variable.shape))
    frames = np.asarray(model.generate(4, seed=1))
    assert frames.std() > 0.2 and frames.std(axis=0).mean() > 0.1, "still grey, or the same video again and again"


def _navsynth(**changes) -> Callable[[], NAVSynth]:
    def build() -> NAVSynth:
        videos = collection()
        model = NAVSynth(
            **{
                "num_videos": len(videos),
                "num_frames": NUM_FRAMES,
                "size": SIZE,
                "identity_of_video": videos.identity.tolist(),
                "action_of_video": videos.action.tolist(),
                "static_dim": 4,
                "transient_dim": 5,
                "motion_dim": 6,
                "rnn_units": 8,
                "width": 4,
                "latent_rule": "sgd",
                **changes,
            }
        )
        model.build()
        return model

    return build


def _compile_navsynth(**changes):
    def compile_model(model, optimizer):
        model.compile(
            optimizer(0.02),
            optimizer(0.02),
            latent_learning_rate=0.5,
            **{"positive_radius": 1, "negative_radius": 2, "static_weight": 0.1, "triplet_weight": 0.1, **changes},
        )

    return compile_model


_MOCOGAN = {
    "num_frames": NUM_FRAMES,
    "size": SIZE,
    "content_dim": 5,
    "motion_dim": 3,
    "width": 4,
    "discriminator_width": 4,
    "temporal_taps": 2,
}
_PLAYERS = (
    ("image_discriminator_loss", "image_discriminator_optimizer"),
    ("video_discriminator_loss", "video_discriminator_optimizer"),
    ("generator_loss", "generator_optimizer"),
)


_VGAN = {"num_frames": NUM_FRAMES, "size": SIZE, "width": 4}
_TGAN = {**_VGAN, "slow_dim": 6, "fast_dim": 5, "temporal_width": 8, "discriminator_width": 4}
_TWO_PLAYERS = (
    ("discriminator_loss", "discriminator_optimizer"),
    ("generator_loss", "generator_optimizer"),
)


def _built(model_class, **config) -> Callable[[], VideoGenerator]:
    def build() -> VideoGenerator:
        model = model_class(**config)
        model.build()
        return model

    return build


def _compile_players(*rates: float, **options):
    """Gives each player an optimizer of its own, in the order in which `compile` takes them."""
    return lambda model, optimizer: model.compile(*(optimizer(rate) for rate in rates), **options)


def _compile_vgan(**options):
    """With larger kernels: as they start, N(0, 0.01), networks so small say next to nothing."""

    def compile_model(model, optimizer):
        for variable in model.trainable_variables:
            if "kernel" in variable.path:
                variable.assign(10.0 * variable)
        model.compile(optimizer(0.02), optimizer(0.02), **options)

    return compile_model


_CELLS = {"static_by": "identity", "transient_by": "action"}
SYSTEMS = [
    System("navsynth", NAVSynth, _navsynth(), _compile_navsynth(), ("static", "transient")),
    System(
        "navsynth_exchange_joint",
        NAVSynth,
        _navsynth(**_CELLS, conditioning="concat"),
        _compile_navsynth(update="joint", loss="laplacian_l2", decoded_frames=2),
        ("static", "transient"),
    ),
    System(
        "navsynth_shared_conditional_norm",
        NAVSynth,
        _navsynth(static_by="shared", conditioning="norm", rank=2),
        _compile_navsynth(),
        ("static", "transient"),
    ),
    System(
        "mocogan_categorical_patch",
        MoCoGAN,
        _built(MoCoGAN, **_MOCOGAN, num_categories=NUM_ACTIONS, image_head="patch", noise_stddev=0.1),
        _compile_players(0.05, 0.02, 0.02, frames_per_clip=2, l2_weight=1e-5),
        objectives=_PLAYERS,
    ),
    System(
        "rmocogan",
        RMoCoGAN,
        _built(RMoCoGAN, **_MOCOGAN, residual_units=6, spectral_norm=True),
        _compile_players(0.02, 0.02, 0.02, adversarial_loss="hinge", gradient_clip_norm=1.0),
        objectives=_PLAYERS,
    ),
    System(
        "rjgan",
        RJGAN,
        _built(
            RJGAN,
            **{key: value for key, value in _MOCOGAN.items() if key not in ("content_dim", "motion_dim")},
            summary_dim=6,
            noise_dim=3,
        ),
        _compile_players(0.02, 0.02, 0.02, augmentation=("translation",), summary_every_steps=2),
        objectives=_PLAYERS,
    ),
    System("vgan", VGAN, _built(VGAN, **_VGAN, latent_dim=6), _compile_vgan(), objectives=_TWO_PLAYERS),
    System(
        "vgan_first_frame",
        ConditionalVGAN,
        _built(ConditionalVGAN, **_VGAN, num_remembered=6, spectral_norm=True),
        _compile_vgan(gradient_clip_norm=1.0),
        objectives=_TWO_PLAYERS,
    ),
    System(
        "tgan_conditional",
        TGAN,
        _built(TGAN, **_TGAN, num_categories=NUM_ACTIONS),
        _compile_players(0.02, 0.02, clip_every_steps=2, noise_stddev=0.1),
        objectives=_TWO_PLAYERS,
    ),
]


def is_variant(system: System) -> bool:
    """Whether its class, or one that its class is made from, is listed before it."""
    earlier = SYSTEMS[: SYSTEMS.index(system)]
    return any(issubclass(system.model_class, other.model_class) for other in earlier)
