"""One exported model, and one server in front of it, for every test of this folder."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from export import saved_model
from tests.systems import SYSTEMS, vivid
from tfvidgen.models.base import VideoGenerator
from trainers import navsynth, runs
from trainers.engine import checkpoints, ema


@dataclasses.dataclass(frozen=True)
class Exported:
    """A live model and the folder of its versions."""

    model: VideoGenerator
    base: pathlib.Path

    @property
    def version(self) -> pathlib.Path:
        return self.base / "1"

    @property
    def metadata(self) -> dict:
        return json.loads((self.version / "metadata.json").read_text())


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    """A system with every kind of endpoint but `generate` and `encode`."""
    (system,) = (system for system in SYSTEMS if system.name == "navsynth_exchange_joint")
    model = system.build()
    vivid(model)
    base = tmp_path_factory.mktemp("models") / "board"
    saved_model.export_model(model, base, {"system": "navsynth", "step": 3})
    return Exported(model, base)


@pytest.fixture(scope="session")
def free_length(tmp_path_factory) -> Exported:
    """A system with a free length and an encoder."""
    from tests.export.free_length import build

    model = build()
    base = tmp_path_factory.mktemp("models") / "free"
    saved_model.export_model(model, base, {"step": 3})
    return Exported(model, base)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder with a checkpoint at step 7, and the model with the average of weights that the run kept."""

    config: navsynth.Config
    model: VideoGenerator


def make_run(run_dir: pathlib.Path, num_actions: int = 2) -> Run:
    config = navsynth.Config(
        **{
            "num_identities": 2,
            "num_actions": num_actions,
            "size": 16,
            "num_frames": 3,
            "triplet_weight": 0.0,
            "width": 4,
        },
        **{
            "rnn_units": 5,
            "static_dim": 3,
            "transient_dim": 4,
            "motion_dim": 3,
            "ema_decay": 0.5,
            "norm": "none",  # statistics would be computed anew for the average
            "run_dir": str(run_dir),
        },
    )
    run_data = runs.load_data(config)
    model = navsynth.build_model(config, run_data)
    runs.start(config, "navsynth", model, run_data)
    vivid(model)
    kept = ema.WeightAverage(model, config.ema_decay)
    kept.update()
    averaged = [weight.numpy() for weight in model.trainable_variables]
    for weight in model.trainable_variables:  # those of the last step, which nobody asks for
        weight.assign(0.5 * weight)
    state = {"step": tf.Variable(7, dtype=tf.int64), **checkpoints.model_state(model), **kept.state}
    checkpoints.Checkpoints(state, run_dir).save(7)
    for weight, value in zip(model.trainable_variables, averaged, strict=True):
        weight.assign(value)
    (run_dir / "evaluation.json").write_text(json.dumps({"step": 7, "trained_videos": {"psnr": 31.25}}))
    return Run(config, model)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def start_server(base: pathlib.Path, **settings):
    """A server on free ports, with gRPC where its packages are installed."""
    pytest.importorskip("prometheus_client", reason="the server needs prometheus-client (extra: serving)")
    from export import serve, serving

    grpc_port = 0 if serving.has_stubs() else -1
    return serve.Server(
        serve.Config(
            **{"model_base_path": str(base), "model_name": "m", "rest_port": 0, "grpc_port": grpc_port, **settings}
        )
    )


@pytest.fixture(scope="session")
def server(exported):
    """A running server of `exported`, called `m`."""
    running = start_server(exported.base)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def free_server(free_length):
    """A running server of `free_length`, called `m`, that takes small requests only."""
    running = start_server(free_length.base, max_json_bytes=20_000)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def url(server) -> str:
    return f"http://127.0.0.1:{server.rest_port}"


def uint8(video) -> np.ndarray:
    """The pixels of frames in [-1, 1]."""
    return np.clip(np.round((np.asarray(video) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def assert_same_frames(video: np.ndarray, live) -> None:
    assert_same_pixels(video, uint8(live))


def assert_same_pixels(video: np.ndarray, expected: np.ndarray) -> None:
    """What docs/serving.md promises of one clip in batches of two sizes, or on two processors: equal within one level of 255.

    Sums of another order differ in their last bits, and may so fall on the other side of a half.
    """
    assert video.dtype == expected.dtype == np.uint8
    assert video.shape == expected.shape
    assert np.abs(video.astype(int) - expected).max() <= 1
