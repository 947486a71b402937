"""Every system at a tiny size. The conformance tests run each contract over this list."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfvidgen.data.collection import VideoCollection
from tfvidgen.models.base import VideoGenerator
from tfvidgen.models.navsynth import NAVSynth

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
    """

    name: str
    model_class: type[VideoGenerator]
    build: Callable[[], VideoGenerator]
    compile: Callable[[Any, Callable[[float], keras.optimizers.Optimizer]], None]
    codes: tuple[str, ...] = ()


def collection() -> VideoCollection:
    """All six cells of three identities and two actions: a bright square that moves, in its identity's colour."""
    videos, identity, action = [], [], []
    for i in range(NUM_IDENTITIES):
        for a in range(NUM_ACTIONS):
            video = np.full((NUM_FRAMES, SIZE, SIZE, 3), 30, np.uint8)
            for t in range(NUM_FRAMES):
                row, column = (2 + 3 * t, 5) if a == 0 else (5, 2 + 3 * t)
                video[t, row : row + 4, column : column + 4, i] = 230
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
    """Gives a model large weights: the frames of a hardly trained one are all grey, and so alike within one level."""
    random = np.random.default_rng(8)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(random.normal(0, 0.6, variable.shape))
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


_CELLS = {"static_by": "identity", "transient_by": "action"}
SYSTEMS = [
    System("navsynth", NAVSynth, _navsynth(), _compile_navsynth(), ("static", "transient")),
    System(
        "navsynth_exchange_joint",
        NAVSynth,
        _navsynth(**_CELLS, conditioning="concat"),
        _compile_navsynth(update="joint", loss="laplacian_l2"),
        ("static", "transient"),
    ),
    System(
        "navsynth_shared_conditional_norm",
        NAVSynth,
        _navsynth(static_by="shared", conditioning="norm", rank=2),
        _compile_navsynth(),
        ("static", "transient"),
    ),
]
