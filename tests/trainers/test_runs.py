"""Run folders: what they record, what they refuse, and how a model is built from them again."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfvidgen
from tfvidgen.data.collection import VideoCollection
from trainers import checkpoints, navsynth, runs

TINY = {
    "num_identities": 2,
    "num_actions": 2,
    "size": 16,
    "num_frames": 4,
    "width": 4,
    "rnn_units": 5,
    "static_dim": 3,
    "transient_dim": 4,
    "motion_dim": 3,
    "triplet_weight": 0.0,
}


def config(run_dir, **changes) -> navsynth.Config:
    return navsynth.Config(**{**TINY, "run_dir": str(run_dir), **changes})


@pytest.fixture(scope="module")
def run_data():
    return runs.load_data(config(""))


@pytest.fixture
def begun(tmp_path, run_data):
    """(config, model) of a run folder that was just begun."""
    begun_config = config(tmp_path / "run")
    model = navsynth.build_model(begun_config, run_data)
    runs.start(begun_config, "navsynth", model, run_data)
    return begun_config, model


def start(a_config, model, run_data, system="navsynth"):
    return runs.start(a_config, system, model, run_data)


# ---------------------------------------------------------------- data
def test_data_without_a_split(run_data):
    assert len(run_data.all) == 4 and run_data.is_trained.all()
    assert run_data.trained is run_data.all
    np.testing.assert_array_equal(run_data.all.lengths, TINY["num_frames"])


def test_held_out_videos_are_not_trained():
    loaded = runs.load_data(config("", num_held_out_cells=1))
    assert len(loaded.all) == 4 and len(loaded.trained) == 3
    kept = [name for name, trained in zip(loaded.all.names, loaded.is_trained, strict=True) if trained]
    assert loaded.trained.names == tuple(kept)


def test_mirror_images_are_trained_and_never_held_out():
    loaded = runs.load_data(config("", num_held_out_cells=1, mirror="own_action"))
    assert len(loaded.all) == 4 and loaded.num_originals == 3 and len(loaded.trained) == 6
    originals = loaded.all.subset(loaded.is_trained)
    np.testing.assert_array_equal(loaded.trained.frames[: len(originals.frames)], originals.frames)
    np.testing.assert_array_equal(loaded.trained.frames[len(originals.frames) :], originals.frames[:, :, ::-1])
    assert loaded.originals.digest == originals.digest
    assert len(loaded.trained.action_names) == 4 and loaded.trained.action[3:].min() >= 2
    model = navsynth.build_model(config("", mirror="own_action", transient_by="action", static_by="identity"), loaded)
    assert model.transient.num_rows == 4 and model.static.num_rows == 2


def test_the_split_seed_decides_the_split():
    splits = {
        runs.load_data(config("", num_held_out_cells=1, split_seed=seed)).is_trained.tobytes() for seed in range(6)
    }
    assert len(splits) > 1
    again = runs.load_data(config("", num_held_out_cells=1, split_seed=3, seed=99))
    np.testing.assert_array_equal(
        again.is_trained, runs.load_data(config("", num_held_out_cells=1, split_seed=3)).is_trained
    )


def test_actors_are_as_long_as_a_strided_clip():
    loaded = runs.load_data(config("", stride=3))
    np.testing.assert_array_equal(loaded.all.lengths, 10)
    assert runs.clips(loaded.all, config("", stride=3)).shape == (4, 4, 16, 16, 3)


def test_short_videos_are_dropped_before_ids_are_given(tmp_path):
    for name, length in (("a", 5), ("b", 2), ("c", 4)):
        np.save(tmp_path / f"{name}.npy", np.full((length, 16, 16, 3), ord(name), np.uint8))
    dropping = config("", dataset=str(tmp_path), short_clip="drop")
    loaded = runs.load_data(dropping)
    assert len(loaded.trained) == 2
    assert runs.clips(loaded.trained, dropping)[:, 0, 0, 0, 0].tolist() == [ord("a"), ord("c")]
    with pytest.raises(ValueError, match="1 of 3 videos are shorter"):
        runs.load_data(config("", dataset=str(tmp_path)))


# ---------------------------------------------------------------- config.json
def test_config_json_holds_the_whole_run(begun, run_data):
    begun_config, model = begun
    description = runs.read(begun_config.run_dir)
    assert description["system"] == "navsynth"
    assert description["config"] == dataclasses.asdict(begun_config)
    assert description["data"] == {"source": "actors", "digest": run_data.trained.digest, "num_videos": 4, "fps": 8.0}
    assert description["model"]["class"] == "NAVSynth"
    assert description["model"]["config"]["dtype"] == "float32"
    assert description["model"]["config"]["rnn_units"] == 5
    assert description["versions"]["tfvidgen"] == tfvidgen.__version__
    assert set(description["versions"]) == {"tfvidgen", "python", "tensorflow", "keras", "numpy"}


def test_the_digest_is_of_the_trained_videos(tmp_path):
    split = config(tmp_path / "run", num_held_out_cells=1)
    loaded = runs.load_data(split)
    start(split, navsynth.build_model(split, loaded), loaded)
    assert runs.read(split.run_dir)["data"]["digest"] == loaded.trained.digest != loaded.all.digest
    assert runs.read(split.run_dir)["data"]["num_videos"] == 3


def test_nothing_but_the_config_is_left(begun):
    folder = pathlib.Path(begun[0].run_dir)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


# ---------------------------------------------------------------- going on
def test_the_same_run_may_go_on(begun, run_data):
    begun_config, model = begun
    assert str(start(begun_config, model, run_data)) == begun_config.run_dir


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate": False},
        {"steps_per_loop": 7},
        {"checkpoint_every_steps": 9},
        {"sample_every_steps": 3},
        {"cache_dir": "c"},
        {"data_dir": "d"},
        {"resume": "must"},
        {"strategy": "none"},
        {"devices": "CPU:0"},
        {"xla": True},
        {"max_bad_steps": 2},
        {"tensorboard": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_change_no_number_may_change(begun, run_data, changes):
    begun_config, model = begun
    start(dataclasses.replace(begun_config, **changes), model, run_data)
    name, value = next(iter(changes.items()))
    assert runs.read(begun_config.run_dir)["config"][name] == value


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"batch_size": 4},
        {"learning_rate": 0.5},
        {"dataset": "elsewhere"},
        {"deterministic": True},
        {"seed": 1, "total_steps": 9},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_another_config_is_refused_by_its_differences(begun, run_data, changes):
    begun_config, model = begun
    before = runs.read(begun_config.run_dir)
    with pytest.raises(ValueError, match="holds another run.*another --run_dir") as caught:
        start(dataclasses.replace(begun_config, **changes), model, run_data)
    for name, value in changes.items():
        assert f"{name}: {getattr(begun_config, name)!r} there, {value!r} now" in str(caught.value)
    assert str(caught.value).count(" there, ") == len(changes)
    assert runs.read(begun_config.run_dir) == before


def test_a_run_from_before_a_setting_existed_may_go_on(begun, run_data):
    begun_config, model = begun
    path = pathlib.Path(begun_config.run_dir) / "config.json"
    description = json.loads(path.read_text())
    del description["config"]["ema_decay"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="ema_decay: 0.0 there, 0.5 now"):
        start(dataclasses.replace(begun_config, ema_decay=0.5), model, run_data)
    start(begun_config, model, run_data)
    assert runs.read(begun_config.run_dir)["config"]["ema_decay"] == 0.0


def test_workers_that_do_not_write_still_refuse(begun, run_data, tmp_path):
    begun_config, model = begun
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        runs.start(dataclasses.replace(begun_config, seed=1), "navsynth", model, run_data, writes=False)
    elsewhere = dataclasses.replace(begun_config, run_dir=str(tmp_path / "elsewhere"))
    runs.start(elsewhere, "navsynth", model, run_data, writes=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_fingerprint_tells_settings_systems_and_data_apart(begun, run_data):
    begun_config, _ = begun
    own = runs.fingerprint(begun_config, "navsynth", run_data)
    assert own == runs.fingerprint(dataclasses.replace(begun_config, run_dir="x", cache_dir="c"), "navsynth", run_data)
    frames = 255 - run_data.all.frames
    inverted = dataclasses.replace(run_data.all, frames=frames)
    others = {
        runs.fingerprint(dataclasses.replace(begun_config, seed=1), "navsynth", run_data),
        # may change when a run goes on, and not from worker to worker
        runs.fingerprint(dataclasses.replace(begun_config, steps_per_loop=7), "navsynth", run_data),
        runs.fingerprint(begun_config, "mocogan", run_data),
        runs.fingerprint(begun_config, "navsynth", runs.RunData(inverted, run_data.is_trained, inverted)),
    }
    assert len({own, *others}) == 5 and 0 <= own < 2**31


def test_what_a_killed_process_left_is_removed(begun, run_data):
    begun_config, model = begun
    folder = pathlib.Path(begun_config.run_dir)
    (folder / ".config.json.12345").write_text('{"system": "nav')
    (folder / ".mine").write_text("stays")
    start(begun_config, model, run_data)
    assert {path.name for path in folder.iterdir()} == {"config.json", ".mine"}


def test_another_system_is_refused(begun, run_data):
    with pytest.raises(ValueError, match="system: 'navsynth' there, 'mocogan' now"):
        start(*begun, run_data, system="mocogan")


def test_other_data_is_refused(begun, run_data):
    frames = run_data.all.frames.copy()
    frames[0, 0, 0, 0] ^= 1
    changed = dataclasses.replace(run_data.all, frames=frames)
    other = runs.RunData(changed, run_data.is_trained, changed)
    with pytest.raises(ValueError, match="the data has other pixels or labels than when the run began"):
        start(*begun, other)
    relabelled = dataclasses.replace(run_data.all, action=1 - run_data.all.action)
    with pytest.raises(ValueError, match="other pixels or labels"):
        start(*begun, runs.RunData(relabelled, run_data.is_trained, relabelled))


# ---------------------------------------------------------------- reading
def test_a_folder_that_is_no_run(tmp_path):
    for read in (runs.read, runs.read_config, runs.load_model):
        with pytest.raises(ValueError, match="is not a run folder: it has no config.json"):
            read(tmp_path / "nothing")


def test_a_config_comes_back_as_it_was(begun):
    begun_config, _ = begun
    assert runs.read_config(begun_config.run_dir) == begun_config
    assert runs.read_config(begun_config.run_dir, data_dir="moved").data_dir == "moved"


def test_a_moved_run_knows_its_new_place(begun, tmp_path):
    pathlib.Path(begun[0].run_dir).rename(tmp_path / "moved")
    assert runs.read_config(tmp_path / "moved").run_dir == str(tmp_path / "moved")


def test_settings_of_another_version_are_named(begun):
    path = pathlib.Path(begun[0].run_dir) / "config.json"
    description = json.loads(path.read_text())
    description["config"].update(old_setting=1, another=2)
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="another version: unknown settings another, old_setting"):
        runs.read_config(begun[0].run_dir)


def test_a_run_that_was_never_saved_has_no_model(begun):
    with pytest.raises(ValueError, match="No checkpoint under"):
        runs.load_model(begun[0].run_dir)


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bfloat16", "conditioning": "norm", "rank": 2}], ids=["plain", "all"]
)
def test_a_model_comes_back_without_its_data(tmp_path, run_data, changes):
    saved_config = config(tmp_path / "run", **changes)
    model = navsynth.build_model(saved_config, run_data)
    start(saved_config, model, run_data)
    for variable in model.weights:  # so that an unloaded model could not pass
        variable.assign(variable + 0.25)
    step = tf.Variable(7, dtype=tf.int64)
    checkpoints.Checkpoints({"step": step, **checkpoints.model_state(model)}, tmp_path / "run").save(7)

    keras.utils.set_random_seed(99)
    loaded, at = runs.load_model(tmp_path / "run")
    assert at == 7
    assert loaded.dtype_policy.name == model.dtype_policy.name
    assert [w.path.partition("/")[2] for w in loaded.weights] == [w.path.partition("/")[2] for w in model.weights]
    for a, b in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    np.testing.assert_array_equal(loaded.generate(2, seed=1), model.generate(2, seed=1))


def test_videos_without_labels_need_no_labels(tmp_path):
    frames = [np.full((4, 16, 16, 3), 50 * i, np.uint8) for i in (1, 2)]
    videos = VideoCollection.from_videos(frames)
    plain = config(tmp_path / "run")
    loaded = runs.RunData(videos, np.ones(2, bool), videos)
    start(plain, navsynth.build_model(plain, loaded), loaded)
    assert runs.read(plain.run_dir)["model"]["config"]["identity_of_video"] is None
