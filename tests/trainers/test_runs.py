"""Run folders: what they record, what they refuse, and how a model is built from them again."""

import dataclasses
import datetime
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfvidgen
from tfvidgen import runs as library
from tfvidgen.data import batches, videos
from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.video_io import write_mp4
from tfvidgen.models.navsynth import NAVSynth
from trainers import cli, environment, navsynth, rjgan, runs
from trainers.engine import checkpoints

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
def test_files_that_were_left_out_are_listed_in_the_run(tmp_path):
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "a.npy", np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8))
    (tmp_path / "set" / "zero.mp4").write_bytes(b"")
    settings = config(tmp_path / "run", dataset=str(tmp_path / "set"), skip_bad=True, num_identities=0, num_actions=0)
    with pytest.warns(UserWarning, match="Skipped 1"):
        loaded = runs.load_data(settings)
    runs.start(settings, "navsynth", navsynth.build_model(settings, loaded), loaded)
    assert runs.read(tmp_path / "run")["data"]["skipped"] == {"zero.mp4": "the file is empty"}


def test_videos_are_resampled_to_the_rate_of_the_run(tmp_path):
    for name, rate in (("a", 8), ("b", 16)):
        write_mp4(tmp_path / f"{name}.mp4", np.full((16, 16, 16, 3), 90, np.uint8), rate)
    loaded = runs.load_data(config("", dataset=str(tmp_path), fps=8.0))
    assert loaded.all.lengths.tolist() == [16, 8] and loaded.all.fps == 8


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
    for i in range(3):
        np.testing.assert_array_equal(loaded.trained.video(i), originals.video(i))
        np.testing.assert_array_equal(loaded.trained.video(3 + i), originals.video(i)[:, :, ::-1])
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
    assert description["forms"] == {"settings": 1, "data_order": 2, "digest": 2, "network": 1}
    assert description["model"]["config"]["network_form"] == 1
    assert description["resolved"] == {"precision": "float32"}


def test_config_json_says_where_the_run_was_begun(begun):
    found = runs.read(begun[0].run_dir)["environment"]
    assert found["command"] == sys.argv and found["host"]
    assert datetime.datetime.fromisoformat(found["date"]).utcoffset() == datetime.timedelta(0)
    assert found["processor"]["name"] and found["processor"]["cores"] >= 1
    assert set(found["processor"]["vector_units"]) <= set(environment._VECTOR_UNITS)
    assert any(device.startswith("CPU:") for device in found["devices"])
    assert "resumed" not in found


def test_the_last_starts_are_listed_beside_the_first(begun, run_data):
    begun_config, model = begun
    first = runs.read(begun_config.run_dir)
    for _ in range(runs.MAX_RESUMED + 3):
        start(begun_config, model, run_data)
    last = runs.read(begun_config.run_dir)
    resumed = last["environment"].pop("resumed")
    assert last == first and len(resumed) == runs.MAX_RESUMED
    assert resumed[-1] == {"date": resumed[-1]["date"], "step": 0, "processor": environment.processor()}


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
        {"total_steps": 2000},
        {"max_minutes": 5.0},
        {"keep_every": 100},
        {"skip_bad": True},
        {"evaluate_metrics": "fcs64"},
        {"evaluate_every_steps": 500},
        {"evaluate_weights": "i3d=x"},
        {"data_service": "grpc://x:1"},
        {"dataset": "moved"},  # the digest says that it is the same data
        {"latents_in_host_memory": True},
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
        {"ema_decay": 0.5},
        {"precision": "bfloat16"},
        {"num_frames": 3},
        {"deterministic": True},
        {"seed": 1, "width": 9},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_another_config_is_refused_by_its_differences(begun, run_data, changes):
    begun_config, model = begun
    before = runs.read(begun_config.run_dir)
    with pytest.raises(ValueError, match="holds a different run.*another --run_dir") as caught:
        start(dataclasses.replace(begun_config, **changes), model, run_data)
    for name, value in changes.items():
        assert f"{name}: was {getattr(begun_config, name)!r}, now {value!r}" in str(caught.value)
    assert str(caught.value).count(": was ") == len(changes)
    assert runs.read(begun_config.run_dir) == before


def test_a_run_from_before_a_setting_existed_may_go_on(begun, run_data):
    begun_config, model = begun
    path = pathlib.Path(begun_config.run_dir) / "config.json"
    description = json.loads(path.read_text())
    del description["config"]["ema_decay"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="ema_decay: was 0.0, now 0.5"):
        start(dataclasses.replace(begun_config, ema_decay=0.5), model, run_data)
    start(begun_config, model, run_data)
    assert runs.read(begun_config.run_dir)["config"]["ema_decay"] == 0.0


def test_workers_that_do_not_write_still_refuse(begun, run_data, tmp_path):
    begun_config, model = begun
    with pytest.raises(ValueError, match="seed: was 0, now 1"):
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
    for field in dataclasses.fields(begun_config):
        if field.metadata["per_worker"]:
            assert own == runs.fingerprint(
                dataclasses.replace(begun_config, **{field.name: "other"}), "navsynth", run_data
            )
    assert len({own, *others}) == 5 and 0 <= own < 2**31


def test_what_a_killed_process_left_is_removed(begun, run_data):
    begun_config, model = begun
    folder = pathlib.Path(begun_config.run_dir)
    (folder / ".config.json.12345").write_text('{"system": "nav')
    (folder / ".mine").write_text("stays")
    start(begun_config, model, run_data)
    assert {path.name for path in folder.iterdir()} == {"config.json", ".mine"}


def test_another_system_is_refused(begun, run_data):
    with pytest.raises(ValueError, match="system: was 'navsynth', now 'mocogan'"):
        start(*begun, run_data, system="mocogan")


def test_other_data_is_refused(begun, run_data):
    frames = run_data.all.frames.copy()
    frames[0, 0, 0, 0] ^= 1
    changed = dataclasses.replace(run_data.all, frames=frames)
    other = runs.RunData(changed, run_data.is_trained, changed)
    with pytest.raises(ValueError, match="the data has different pixels or labels from those at the start of the run"):
        start(*begun, other)
    relabelled = dataclasses.replace(run_data.all, action=1 - run_data.all.action)
    with pytest.raises(ValueError, match="different pixels or labels"):
        start(*begun, runs.RunData(relabelled, run_data.is_trained, relabelled))
    elsewhere = dataclasses.replace(begun[0], dataset="elsewhere")
    with pytest.raises(ValueError, match="different pixels or labels .*dataset: was 'actors', now 'elsewhere'"):
        start(elsewhere, begun[1], other)


def test_loose_images_are_the_same_by_their_pixels(tmp_path):
    """The digest of the clips does not cover them."""
    for folder, value in (("a", 1), ("moved", 1), ("other", 2)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "video.npy", np.full((5, 16, 16, 3), value, np.uint8))
    tiny = {"num_identities": 2, "num_actions": 2, "size": 16, "num_frames": 4, "width": 4, "discriminator_width": 4}
    settings = rjgan.Config(**tiny, temporal_taps=2, run_dir=str(tmp_path / "run"), image_dataset=str(tmp_path / "a"))
    model = rjgan.build_model(settings, runs.load_data(settings))

    def begin(folder):
        moved = dataclasses.replace(settings, image_dataset=str(tmp_path / folder))
        return runs.start(moved, "rjgan", model, runs.load_data(moved))

    begin("a")
    begin("moved")
    with pytest.raises(ValueError, match="holds a different run: the loose images are different"):
        begin("other")
    path = tmp_path / "run" / "config.json"
    description = json.loads(path.read_text())
    del description["data"]["images_digest"]  # as version 0.1 wrote it
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="image_dataset: was .*moved', now .*a'"):
        begin("a")
    begin("moved")


# ---------------------------------------------------------------- longer runs
def save(a_config, model, step):
    state = {"step": tf.Variable(step, dtype=tf.int64), **checkpoints.model_state(model)}
    checkpoints.Checkpoints(state, a_config.run_dir).save(step)


@pytest.fixture
def cosine(tmp_path, run_data):
    """(config, model) of a run with a schedule, saved at step 600 of 1,000."""
    cosine_config = config(tmp_path / "run", schedule="cosine", total_steps=1000)
    model = navsynth.build_model(cosine_config, run_data)
    runs.start(cosine_config, "navsynth", model, run_data)
    save(cosine_config, model, 600)
    return cosine_config, model


def test_a_run_with_a_constant_rate_may_be_longer(begun):
    begun_config, model = begun
    save(begun_config, model, 7)
    longer = dataclasses.replace(begun_config, total_steps=begun_config.total_steps + 1)
    assert runs.going_on(longer, "navsynth") == longer
    assert runs.going_on(dataclasses.replace(longer, total_steps=7)).total_steps == 7
    with pytest.raises(ValueError, match="--total_steps=6 is less than the 7 steps that .* was trained for"):
        runs.going_on(dataclasses.replace(longer, total_steps=6))


@pytest.mark.parametrize("resume", ["auto", "must", "never"])
def test_a_run_with_a_schedule_says_how_it_may_be_longer(cosine, resume):
    longer = dataclasses.replace(cosine[0], total_steps=2000, resume=resume)
    with pytest.raises(ValueError) as caught:
        runs.going_on(longer, "navsynth")
    for part in ("1000 steps, now --total_steps=2000", "--schedule=cosine", "(a) --resume=extend", "from step 600 on"):
        assert part in str(caught.value)
    assert f"(b) a new run, with --init_from={longer.run_dir} and another --run_dir" in str(caught.value)
    assert runs.going_on(cosine[0]) == cosine[0]


def test_extensions_are_recorded_one_after_the_other(cosine, run_data):
    begun_config, model = cosine

    def go_on(**changes):
        going = runs.going_on(dataclasses.replace(begun_config, **changes), "navsynth")
        runs.start(going, "navsynth", model, run_data)
        return runs.read_config(begun_config.run_dir)

    extended = go_on(total_steps=2000, resume="extend")
    assert (extended.total_steps, extended.earlier_totals) == (2000, "1000:600")
    for resume in ("auto", "must", "extend"):  # before and after the next checkpoint, by the same command or another
        assert go_on(total_steps=2000, resume=resume).earlier_totals == "1000:600"
    # nothing was trained under 2,000, so it leaves no trace
    assert go_on(total_steps=2500, resume="extend").earlier_totals == "1000:600"
    save(begun_config, model, 2500)
    assert go_on(total_steps=2500).earlier_totals == "1000:600"
    assert go_on(total_steps=3000, resume="extend").earlier_totals == "1000:600,2500:2500"
    assert go_on(total_steps=3000, earlier_totals="1000:600").earlier_totals == "1000:600,2500:2500"  # of --config
    for wrong in ("1000:60", "1000:600,2500:250", "900:600"):
        with pytest.raises(ValueError, match="holds a different run: earlier_totals: was '1000:600,2500:2500'"):
            go_on(total_steps=3000, earlier_totals=wrong)
    with pytest.raises(ValueError, match="was started for 3000 steps, now --total_steps=2600"):
        go_on(total_steps=2600)


def test_a_schedule_that_no_step_has_seen_may_change(tmp_path, run_data):
    cosine_config = config(tmp_path / "run", schedule="cosine", total_steps=1000)
    model = navsynth.build_model(cosine_config, run_data)
    start(cosine_config, model, run_data)
    longer = dataclasses.replace(cosine_config, total_steps=2000)
    assert runs.going_on(longer) == longer
    with pytest.raises(ValueError, match="--resume=extend continues a run, but there is no checkpoint under"):
        runs.going_on(dataclasses.replace(longer, resume="extend"))
    with pytest.raises(ValueError, match="--resume=extend continues a run, but there is no checkpoint under"):
        runs.going_on(dataclasses.replace(longer, resume="extend", run_dir=str(tmp_path / "none")))


def test_a_run_of_another_system_does_not_go_on(begun):
    with pytest.raises(ValueError, match="system: was 'navsynth', now 'mocogan'"):
        runs.going_on(begun[0], "mocogan")


def test_a_run_keeps_what_it_was_trained_by_before_a_setting_existed(begun, run_data):
    """It goes on by the same command, whatever is now the default; asking for something else is a difference."""
    begun_config, model = begun
    younger = {"adam_epsilon": "before_correction", "pyramid": "zero_padded"}
    assert all(getattr(begun_config, name) != value for name, value in younger.items())
    path = pathlib.Path(begun_config.run_dir) / "config.json"
    description = json.loads(path.read_text())
    for name in younger:
        del description["config"][name]
    path.write_text(json.dumps(description))
    assert runs.read_config(begun_config.run_dir) == dataclasses.replace(begun_config, **younger)
    going = runs.going_on(begun_config, "navsynth")
    assert going == dataclasses.replace(begun_config, **younger)
    model = navsynth.build_model(going, run_data)
    optimizer = model.generator_optimizer
    assert (model.pyramid, optimizer.epsilon, optimizer.corrected_epsilon) == ("zero_padded", 1e-7, False)
    start(going, model, run_data)
    assert younger.items() <= runs.read(begun_config.run_dir)["config"].items()
    assert younger.items() <= cli.repeated(begun_config.run_dir, navsynth.Config, "navsynth").items()
    other = dataclasses.replace(begun_config, pyramid="official")
    with pytest.raises(ValueError, match="pyramid: was 'zero_padded', now 'official'"):
        start(runs.going_on(other, "navsynth"), model, run_data)


def test_new_runs_have_the_optimizer_and_the_pyramid_of_now(begun):
    model = begun[1]
    optimizer = model.rnn_optimizer
    assert (model.pyramid, optimizer.epsilon, optimizer.corrected_epsilon) == ("binomial", 1e-8, True)


# ---------------------------------------------------------------- forms
def later_form(monkeypatch, name, forms):
    """This version with other forms of something."""
    place, attribute = {
        "settings": (library, "SETTINGS_FORMS"),
        "data_order": (batches, "DATA_ORDER_FORMS"),
        "digest": (videos, "DIGEST_FORMS"),
        "network": (NAVSynth, "network_forms"),
    }[name]
    monkeypatch.setattr(place, attribute, forms)


FORMS = ("settings", "data_order", "digest", "network")


@pytest.mark.parametrize("is_0_1", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_is_followed_no_more_is_refused_by_name(begun, run_data, monkeypatch, name, is_0_1):
    begun_config, model = begun
    path = pathlib.Path(begun_config.run_dir) / "config.json"
    if is_0_1:  # which did not write forms
        path.write_text(json.dumps(without("forms")(json.loads(path.read_text()))))
    later_form(monkeypatch, name, (3,))
    before = path.read_bytes()
    what = (
        f"has form [12] of the {name.replace('_', ' ').replace('digest', 'data digest')} .*0.1.0.* no longer supports"
    )
    for ask in (lambda: start(begun_config, model, run_data), lambda: runs.going_on(begun_config)):
        with pytest.raises(ValueError, match=f"{what}.*--init_from="):
            ask()
    if name in ("settings", "network"):
        with pytest.raises(ValueError, match=what):
            runs.load_model(begun_config.run_dir)
    if name in ("settings", "digest"):
        with pytest.raises(ValueError, match=what):
            runs.load_own_data(begun_config.run_dir, begun_config)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_a_newer_version_is_refused_by_name(begun, run_data, name):
    begun_config, model = begun
    path = pathlib.Path(begun_config.run_dir) / "config.json"
    newer = with_("7.0.0", "versions", "tfvidgen")(with_(3, "forms", name)(json.loads(path.read_text())))
    path.write_text(json.dumps(newer))
    for ask in (lambda: start(begun_config, model, run_data), lambda: runs.going_on(begun_config)):
        with pytest.raises(ValueError, match="has form 3 .*tfvidgen 7.0.0.* knows forms up to [12]: use that version"):
            ask()


def test_a_form_of_something_unknown_is_refused_by_name(begun):
    path = pathlib.Path(begun[0].run_dir) / "config.json"
    path.write_text(json.dumps(with_(1, "forms", "sampler")(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match="has a form of sampler .*which this version does not know"):
        runs.read(begun[0].run_dir)


def test_an_older_network_goes_on_and_new_runs_have_the_newest(begun, run_data, monkeypatch, tmp_path):
    begun_config, model = begun
    save(begun_config, model, 4)
    later_form(monkeypatch, "network", (1, 2))
    going = runs.going_on(begun_config, "navsynth")
    assert going.network_form == 1
    again = navsynth.build_model(going, run_data)
    assert again.network_form == 1 and again.get_config()["network_form"] == 1
    runs.start(going, "navsynth", again, run_data)
    assert runs.read(begun_config.run_dir)["forms"]["network"] == 1
    assert runs.load_model(begun_config.run_dir)[0].network_form == 1
    fresh_config = config(tmp_path / "fresh")
    fresh = navsynth.build_model(runs.going_on(fresh_config), run_data)
    runs.start(fresh_config, "navsynth", fresh, run_data)
    assert fresh.network_form == 2 == runs.read(tmp_path / "fresh")["forms"]["network"]
    with pytest.raises(ValueError, match="network_form: was 1, now 2"):
        start(begun_config, fresh, run_data)
    of_0_1 = {name: value for name, value in model.get_config().items() if name != "network_form"}
    assert NAVSynth.from_config(of_0_1).network_form == 1
    with pytest.raises(ValueError, match="`network_form` of NAVSynth must be one of 1, 2, or None for the last.*3"):
        navsynth.build_model(config("", network_form=3), run_data)


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


def no_json(text):
    return lambda description: text


def without(*keys):
    def change(description):
        inner = description
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return description

    return change


def with_(value, *keys):
    def change(description):
        inner = description
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return description

    return change


DAMAGE = {
    "empty": (no_json(b""), "it is empty"),
    "an empty table": (no_json(b"{}"), "system is missing"),
    "null": (no_json(b"null"), "it holds null"),
    "a list": (no_json(b"[1, 2]"), r"it holds \[1, 2\]"),
    "cut": (lambda description: json.dumps(description).encode()[:300], "it is not JSON"),
    "not UTF-8": (no_json(b'{"system": "\xff"}'), "it is not UTF-8 text"),
    "UTF-16": (lambda description: json.dumps(description).encode("utf-16"), "it is not UTF-8 text"),
    "too deep": (no_json(b"[" * 100_000), "it is not JSON"),
    "no settings": (without("config"), "config is missing"),
    "settings are a list": (with_([], "config"), r"config is \[\]"),
    "no digest": (without("data", "digest"), "data.digest is missing"),
    "digest is a number": (with_(5, "data", "digest"), "data.digest is 5"),
    "num_videos is true": (with_(True, "data", "num_videos"), "data.num_videos is true"),
    "no model": (without("model"), "model is missing"),
    "model without class": (without("model", "class"), "model.class is missing"),
    "system is null": (with_(None, "system"), "system is null"),
    "no such system": (with_("navsynt", "system"), "system is 'navsynt', not one of .*Did you mean 'navsynth'"),
    "a system elsewhere": (with_("../x", "system"), "system is '../x', not one of"),
    "a setting's type": (with_("2", "config", "batch_size"), "config: batch_size must be int, but is '2'"),
    "a switch is a number": (with_(1, "config", "evaluate"), "config: evaluate must be bool, but is 1"),
    "a whole number is a fraction": (with_(2.5, "config", "seed"), "config: seed must be int, but is 2.5"),
    "labels are text": (with_("ab", "labels", "action_names"), "labels: action_names is not a list"),
    "forms are a list": (with_([1], "forms"), r"forms is \[1\]"),
    "a form is text": (with_("1", "forms", "digest"), "forms is {"),
    "a form is zero": (with_(0, "forms", "digest"), "forms is {"),
    "environment is text": (with_("x", "environment"), "environment is"),
    "starts are a number": (with_({"resumed": 3}, "environment"), "environment.resumed is 3"),
    "auto is not resolved": (
        lambda description: without("resolved")(with_("auto", "config", "precision")(description)),
        "precision is 'auto' and resolved is missing",
    ),
}


def contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_config_json_is_named_and_nothing_goes_on(begun, run_data, kind):
    begun_config, model = begun
    path = pathlib.Path(begun_config.run_dir) / "config.json"
    damage, reason = DAMAGE[kind]
    damaged = damage(json.loads(path.read_text()))
    path.write_bytes(damaged if isinstance(damaged, bytes) else json.dumps(damaged).encode())
    before = contents(begun_config.run_dir)
    asking = {
        "read": lambda: runs.read(begun_config.run_dir),
        "read_config": lambda: runs.read_config(begun_config.run_dir),
        "load_model": lambda: runs.load_model(begun_config.run_dir),
        "start": lambda: start(begun_config, model, run_data),
        "going_on": lambda: runs.going_on(begun_config, "navsynth"),
    }
    for ask in asking.values():
        with pytest.raises(ValueError, match=f"config.json does not describe a run .*{reason}.*Restore the file"):
            ask()
    assert contents(begun_config.run_dir) == before


def test_a_copy_of_a_damaged_config_json_is_pointed_at(begun):
    folder = pathlib.Path(begun[0].run_dir)
    (folder / "best").mkdir()
    (folder / "config.json").rename(folder / "best" / "config.json")
    (folder / "config.json").write_text("")
    with pytest.raises(ValueError, match=r"from a copy \(.*best/config.json is one\)"):
        runs.read(folder)


def test_checkpoints_without_config_json_are_not_written_over(begun, run_data):
    begun_config, model = begun
    folder = pathlib.Path(begun_config.run_dir)
    save(begun_config, model, 3)
    (folder / "config.json").unlink()
    before = contents(folder)
    for ask in (
        lambda: start(begun_config, model, run_data),
        lambda: runs.going_on(begun_config),
        lambda: runs.read(folder),
        lambda: runs.load_model(folder),
    ):
        with pytest.raises(ValueError, match="holds checkpoints but .*config.json is missing.*Restore the file"):
            ask()
    assert contents(folder) == before
    (folder / "checkpoints" / "ckpt-3.index").unlink()  # what is left may still be worth something
    with pytest.raises(ValueError, match="holds checkpoints but .*config.json is missing"):
        start(begun_config, model, run_data)


def test_an_argument_that_the_model_does_not_take_is_named(begun):
    path = pathlib.Path(begun[0].run_dir) / "config.json"
    path.write_text(json.dumps(with_(3, "model", "config", "number_of_heads")(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match="config.json does not describe a run .*number_of_heads"):
        runs.load_model(begun[0].run_dir)


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


# ---------------------------------------------------------------- data that moved
@pytest.fixture
def on_files(tmp_path):
    """(config, run data) of a run on a folder of two videos."""
    (tmp_path / "videos").mkdir()
    for i, name in enumerate("ab"):
        np.save(tmp_path / "videos" / f"{name}.npy", np.full((4, 16, 16, 3), 50 * i, np.uint8))
    plain = config(tmp_path / "run", dataset=str(tmp_path / "videos"))
    loaded = runs.load_data(plain)
    start(plain, navsynth.build_model(plain, loaded), loaded)
    return plain, loaded


def test_data_that_moved_is_the_same_data(on_files, tmp_path):
    plain, loaded = on_files
    (tmp_path / "videos").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="trained on is not at dataset=.*videos: if it has moved, .* with --dataset;"):
        runs.load_own_data(plain.run_dir, runs.read_config(plain.run_dir))
    moved = runs.read_config(plain.run_dir, dataset=str(tmp_path / "moved"))
    found = runs.load_own_data(plain.run_dir, moved)
    assert found.trained.digest == loaded.trained.digest
    start(moved, navsynth.build_model(moved, found), found)
    assert runs.read_config(plain.run_dir).dataset == str(tmp_path / "moved")


def test_a_named_set_that_moved_is_asked_for_by_its_folder(on_files, tmp_path):
    plain, _ = on_files
    named = dataclasses.replace(plain, dataset="weizmann", data_dir=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="is not at data_dir=.*gone: if it has moved, .* with --data_dir;"):
        runs.load_own_data(plain.run_dir, named)


def test_data_that_changed_is_not_the_same_data(on_files, tmp_path):
    plain, _ = on_files
    np.save(tmp_path / "videos" / "a.npy", np.full((4, 16, 16, 3), 7, np.uint8))
    with pytest.raises(ValueError, match="has changed since training: the data has different pixels or labels"):
        runs.load_own_data(plain.run_dir, plain)
