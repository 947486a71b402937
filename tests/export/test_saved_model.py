"""SavedModels are loaded where tfvidgen does not exist and must give the live model's frames."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import saved_model
from tests.systems import NUM_ACTIONS, NUM_FRAMES, NUM_IDENTITIES, SIZE, SYSTEMS, System, collection, vivid
from tfvidgen import data
from tfvidgen.models.base import VideoGenerator
from trainers import loop, navsynth, runs

NUM_VIDEOS = NUM_IDENTITIES * NUM_ACTIONS

# A server knows TensorFlow only. It answers every call in calls.json with the frames, or with the error.
SERVER = """
import json, pathlib, sys
for name in ("tfvidgen", "trainers", "export", "keras"):
    sys.modules[name] = None  # importing them raises
import numpy as np
import tensorflow as tf

root = pathlib.Path(sys.argv[1])
answers, endpoints, arrays = {}, {}, {}
for system, calls in json.loads((root / "calls.json").read_text()).items():
    signatures = tf.saved_model.load(str(root / system / "1")).signatures
    endpoints[system] = {
        name: {key: [spec.dtype.name, spec.shape.as_list()] for key, spec in function.structured_input_signature[1].items()}
        for name, function in signatures.items()
    }
    answers[system] = {}
    for name, (endpoint, inputs) in calls.items():
        try:
            tensors = {key: tf.constant(value, dtype) for key, (dtype, value) in inputs.items()}
            result = signatures[endpoint](**tensors)
            answers[system][name] = sorted(result)
            arrays[f"{system}/{name}"] = result["video"].numpy()
        except Exception as error:
            answers[system][name] = f"{type(error).__name__}: {error}"
(root / "answers.json").write_text(json.dumps([answers, endpoints]))
np.savez(root / "answers.npz", **arrays)
"""


@dataclasses.dataclass(frozen=True)
class Served:
    """One system, live and as the server answered for it."""

    system: System
    model: VideoGenerator
    folder: pathlib.Path
    endpoints: dict[str, dict]
    answers: dict[str, list[str] | str]
    videos: dict[str, np.ndarray]


def trained(system: System) -> VideoGenerator:
    """A model whose codes and batch statistics are no longer those of the start."""
    keras.utils.set_random_seed(3)
    model = system.build()
    system.compile(model, lambda rate: keras.optimizers.SGD(rate, momentum=0.9))
    for batch in data.make_dataset(collection(), NUM_VIDEOS, NUM_FRAMES).take(2):
        model.train_step(batch)
    vivid(model)
    return model


def uint8(video) -> np.ndarray:
    return np.clip(np.round((np.asarray(video) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def calls_of(model: VideoGenerator) -> dict[str, tuple[str, dict]]:
    """Name -> (endpoint, inputs as (dtype, values)) of everything that the server is asked."""

    def seeds(*values):
        return "serving_default", {"seed": ("int64", values)}

    latents = {name: np.asarray(value) for name, value in model.sample_latents(3, seed=5).items()}
    given = {name: (value.dtype.name, value.tolist()) for name, value in latents.items()}
    calls = {
        "seeds": seeds(9, 2**40, -3, 9),
        **{f"seed {seed}": seeds(seed) for seed in (9, 2**40, -3)},
        "no seeds": seeds(),
        "unnamed seed": ("serving_default", {}),
        "decode": ("decode", given),
        **{f"decode without {name}": ("decode", {n: v for n, v in given.items() if n != name}) for name in given},
    }
    if type(model).lookup is not VideoGenerator.lookup:
        for name, ids in {"lookup": [5, 0, 2], "lookup beyond": [0, NUM_VIDEOS], "lookup before": [-1]}.items():
            calls[name] = ("lookup", {"video_id": ("int32", ids)})
    if hasattr(model, "exchange"):
        last_identity, last_action = model.static.num_rows - 1, model.transient.num_rows - 1
        for name, identity, action in (
            ("exchange", [last_identity, 0], [0, last_action]),
            ("exchange beyond identities", [last_identity + 1], [0]),
            ("exchange before identities", [-1], [0]),
            ("exchange beyond actions", [0], [last_action + 1]),
            ("exchange before actions", [0], [-1]),
        ):
            calls[name] = ("exchange", {"identity": ("int32", identity), "action": ("int32", action)})
    return calls


@pytest.fixture(scope="module")
def all_served(tmp_path_factory) -> dict[str, Served]:
    root = tmp_path_factory.mktemp("exports")
    models = {system.name: trained(system) for system in SYSTEMS}
    for name, model in models.items():
        assert saved_model.export_model(model, root / name, {"step": 2}) == root / name / "1"
    (root / "calls.json").write_text(json.dumps({name: calls_of(model) for name, model in models.items()}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(root)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, endpoints = json.loads((root / "answers.json").read_text())
    with np.load(root / "answers.npz") as arrays:
        videos = dict(arrays)
    return {
        system.name: Served(
            system,
            models[system.name],
            root / system.name,
            endpoints[system.name],
            answers[system.name],
            {key.partition("/")[2]: value for key, value in videos.items() if key.startswith(f"{system.name}/")},
        )
        for system in SYSTEMS
    }


@pytest.fixture(params=[system.name for system in SYSTEMS])
def served(request, all_served) -> Served:
    return all_served[request.param]


def assert_same_frames(video: np.ndarray, live) -> None:
    live = uint8(live)
    assert video.dtype == np.uint8
    assert video.shape == live.shape
    # one level: a graph may sum in another order than eager operations do, and so fall on the other side of a half
    assert np.abs(video.astype(int) - live).max() <= 1


# ---------------------------------------------------------------- the same frames
def test_decode_gives_the_live_frames(served):
    assert served.answers["decode"] == ["video"]
    assert_same_frames(served.videos["decode"], served.model.decode(served.model.sample_latents(3, seed=5)))


def test_lookup_gives_the_live_frames(served):
    if "lookup" not in served.endpoints:
        pytest.skip("this system learns no codes")
    latents = served.model.lookup(np.array([5, 0, 2], np.int32))
    assert_same_frames(served.videos["lookup"], served.model.decode(latents))


def test_exchange_gives_the_live_frames(served):
    if "exchange" not in served.endpoints:
        pytest.skip("this system has no exchange")
    last_identity, last_action = served.model.static.num_rows - 1, served.model.transient.num_rows - 1
    latents = served.model.exchange(np.array([last_identity, 0], np.int32), np.array([0, last_action], np.int32))
    assert_same_frames(served.videos["exchange"], served.model.decode(latents))


def test_a_seed_gives_the_live_video(served):
    assert_same_frames(served.videos["seed 9"], served.model.generate(1, seed=9))


# ---------------------------------------------------------------- seeds
def test_a_batch_of_seeds_equals_single_seeds(served):
    together = served.videos["seeds"]
    assert together.shape == (4, NUM_FRAMES, SIZE, SIZE, 3)
    for row, seed in zip(together, (9, 2**40, -3, 9), strict=True):
        np.testing.assert_array_equal(row, served.videos[f"seed {seed}"][0])


def test_other_seeds_give_other_videos(served):
    assert np.ptp(served.videos["seeds"].astype(int), axis=0).max() > 50


def test_no_seeds_give_no_videos(served):
    assert served.videos["no seeds"].shape == (0, NUM_FRAMES, SIZE, SIZE, 3)


# ---------------------------------------------------------------- inputs
def test_endpoints_name_their_inputs(served):
    spec = served.model.latent_spec
    expected = {
        "serving_default": {"seed": ["int64", [None]]},
        "decode": {name: [entry.dtype, [None, *entry.shape]] for name, entry in spec.items()},
    }
    if type(served.model).lookup is not VideoGenerator.lookup:
        expected["lookup"] = {"video_id": ["int32", [None]]}
    if hasattr(served.model, "exchange"):
        expected["exchange"] = {"identity": ["int32", [None]], "action": ["int32", [None]]}
    assert served.endpoints == expected


def test_every_input_is_required(served):
    missing = {name: answer for name, answer in served.answers.items() if "without" in name or name == "unnamed seed"}
    assert len(missing) == 1 + len(served.model.latent_spec)
    for name, answer in missing.items():
        assert str(answer).startswith("TypeError"), (name, answer)


def test_ids_out_of_range_are_errors(served):
    beyond = {name: answer for name, answer in served.answers.items() if "beyond" in name or "before" in name}
    assert len(beyond) == 2 * ("lookup" in served.endpoints) + 4 * ("exchange" in served.endpoints)
    counts = {
        "lookup": ("video_id", NUM_VIDEOS),
        "identities": ("identity", served.model.static.num_rows),
        "actions": ("action", served.model.transient.num_rows),
    }
    for name, answer in beyond.items():
        column, count = next(value for key, value in counts.items() if key in name)
        assert str(answer).startswith("InvalidArgumentError"), (name, answer)
        assert f"{column} must lie in 0..{count - 1}" in answer


def test_every_other_call_is_answered(served):
    failed = {name for name, answer in served.answers.items() if isinstance(answer, str)}
    assert failed == {
        name for name in served.answers if any(word in name for word in ("beyond", "before", "without", "unnamed"))
    }


# ---------------------------------------------------------------- files
def test_metadata_says_what_is_served(served):
    metadata = json.loads((served.folder / "1" / "metadata.json").read_text())
    assert metadata["step"] == 2
    assert metadata["video"] == {"dtype": "uint8", "range": [0, 255], "shape": ["B", "T", SIZE, SIZE, 3]}
    assert metadata["latents"] == {
        name: {"shape": list(entry.shape), "dtype": entry.dtype, "prior": entry.prior}
        for name, entry in served.model.latent_spec.items()
    }


def test_only_the_version_folder_is_left(served):
    assert [path.name for path in served.folder.iterdir()] == ["1"]
    assert (served.folder / "1" / "saved_model.pb").is_file()


def test_a_failed_export_leaves_nothing_behind(all_served, tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(TypeError, match="JSON"):
        saved_model.export_model(all_served["navsynth"].model, tmp_path, {"date": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert not list((tmp_path / "1").iterdir())


# ---------------------------------------------------------------- from a run
@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[navsynth.Config, VideoGenerator]:
    """A run folder with a checkpoint at step 7."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    config = navsynth.Config(
        **{"num_identities": 2, "num_actions": 2, "size": 16, "num_frames": 3, "triplet_weight": 0.0, "width": 4},
        **{"rnn_units": 5, "static_dim": 3, "transient_dim": 4, "motion_dim": 3, "run_dir": str(run_dir)},
    )
    run_data = runs.load_data(config)
    model = navsynth.build_model(config, run_data)
    runs.start(config, "navsynth", model, run_data)
    vivid(model)
    loop._checkpoint(model, tf.Variable(7, dtype=tf.int64), run_dir)[1].save(7)
    return config, model


def test_a_run_is_exported_with_its_description(run, capsys):
    config, model = run
    assert saved_model.main([f"--run_dir={config.run_dir}"]) == 0
    folder = pathlib.Path(config.run_dir) / "export" / "1"
    assert capsys.readouterr().out.strip().endswith(f"exported {folder}")
    metadata, description = json.loads((folder / "metadata.json").read_text()), runs.read(config.run_dir)
    assert metadata["step"] == 7
    assert metadata["system"] == "navsynth"
    assert metadata["config"] == description["config"] == dataclasses.asdict(config)
    assert metadata["data"] == description["data"] and metadata["versions"] == description["versions"]
    lookup = tf.saved_model.load(str(folder)).signatures["lookup"]
    ids = np.array([3, 1], np.int32)
    assert_same_frames(lookup(video_id=tf.constant(ids))["video"].numpy(), model.decode(model.lookup(ids)))


def test_the_next_version_is_one_more_than_the_last(run, tmp_path):
    for name in ("1", "9", "10", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").touch()
    (tmp_path / "readme.txt").write_text("mine")
    assert saved_model.main([f"--run_dir={run[0].run_dir}", f"--out={tmp_path}"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"1", "9", "10", "11", "notes", "readme.txt"}
    assert all([path.name for path in (tmp_path / name).iterdir()] == ["kept"] for name in ("1", "9", "10", "notes"))
    assert (tmp_path / "11" / "saved_model.pb").is_file()


def test_bad_runs_are_one_message(tmp_path, capsys):
    assert saved_model.main([]) == 2
    assert "--run_dir is missing" in capsys.readouterr().err
    assert saved_model.main([f"--run_dir={tmp_path}"]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
