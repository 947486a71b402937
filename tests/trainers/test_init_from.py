"""`--init_from`: weights by name and shape, rows by what they belong to, and everything else as in a new run."""

import dataclasses
import importlib
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers.test_mocogan_trainer import call
from tfvidgen import storage
from tfvidgen.data.collection import VideoCollection
from trainers import init_from, mocogan, navsynth, rmocogan, runs, train
from trainers.engine import checkpoints, ema

pytestmark = pytest.mark.usefixtures("quick_graphs")

SYSTEMS = ("mocogan", "navsynth", "rjgan", "rmocogan", "tgan", "vgan")


def config_of(system: str, **settings):
    trainer = importlib.import_module(f"trainers.{system}")
    settings = {**trainer.PRESETS["smoke"], "tensorboard": False, "evaluate": False, **settings}
    return trainer.Config(**{key: str(v) if key in ("init_from", "run_dir") else v for key, v in settings.items()})


def built(system: str, config, run_data):
    return importlib.import_module(f"trainers.{system}").build_model(config, run_data)


def run_data_of(names=None, identity=None, action=None, seed=0, **labels) -> runs.RunData:
    """Videos that differ with `seed`; labels are given by name."""
    num_videos = len(names or identity or action)
    pixels = np.random.default_rng(seed).integers(0, 255, (num_videos, 8, 16, 16, 3), np.uint8)
    for field, given in (("identity", identity), ("action", action)):
        if given:
            known = labels.get(f"{field}_names") or tuple(dict.fromkeys(given))
            labels |= {field: [known.index(name) for name in given], f"{field}_names": known}
    videos = VideoCollection.from_videos(list(pixels), names=names, **labels)
    return runs.RunData(videos, np.ones(num_videos, bool), videos)


def saved(system: str, run_dir, run_data=None, seed=1, **settings):
    """A run with a checkpoint at step 7 and weights that no other run has; returns its model."""
    config = config_of(system, run_dir=run_dir, **settings)
    run_data = run_data or runs.load_data(config)
    model = built(system, config, run_data)
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.dtype == "float32":
            variable.assign(random.uniform(0.1, 0.2, variable.shape))
    runs.start(config, system, model, run_data)
    state = {"step": tf.Variable(7, dtype=tf.int64), **checkpoints.model_state(model)}
    checkpoints.Checkpoints(state, run_dir).save(7)
    return model


def forget_names(run_dir) -> None:
    """Takes the names of videos from a run's description, as version 0.1 wrote it."""
    description = runs.read(run_dir)
    del description["labels"]["video_names"]
    storage.write_json(run_dir / "config.json", description)


def begun(system: str, source, run_data=None, **settings):
    """(model, report, run data) of a new run that begins with another one."""
    config = config_of(system, init_from=source, **settings)
    run_data = run_data or runs.load_data(config)
    model = built(system, config, run_data)
    return model, init_from.begin(config, model, run_data), run_data


def by_name(model) -> dict[str, np.ndarray]:
    return {v.path.partition("/")[2].replace("/", "."): v.numpy() for v in model.weights}


# ---------------------------------------------------------------- weights
@pytest.mark.parametrize(
    "system", [pytest.param(name, marks=[pytest.mark.long] * (name not in ("navsynth", "vgan"))) for name in SYSTEMS]
)
def test_a_run_of_any_system_begins_with_another_of_it(system, tmp_path):
    source = saved(system, tmp_path / "source")
    model, report, run_data = begun(system, tmp_path / "source", run_dir=tmp_path / "new", seed=5)
    fresh = by_name(built(system, config_of(system, seed=5), run_data))
    found, expected = by_name(model), by_name(source)
    slots = [name for name in expected if name.endswith(("moment", "num_updates", "velocity"))]
    for name in found:
        np.testing.assert_array_equal(found[name], (fresh if name in slots else expected)[name], err_msg=name)
    assert set(report.taken) | set(report.rows) == set(found) - set(slots)
    assert (report.step, report.system, report.averaged) == (7, system, False)
    assert not report.left_out and not report.unused
    optimizers = [value for key, value in vars(model).items() if key.endswith("_optimizer")]
    assert optimizers and all(int(optimizer.iterations.numpy()) == 0 for optimizer in optimizers)


def test_the_average_of_a_run_that_kept_one_is_what_it_begins_with(tmp_path):
    settings = {"ema_decay": 0.5, "norm": "none"}
    config = config_of("navsynth", run_dir=tmp_path / "source", **settings)
    run_data = runs.load_data(config)
    source = built("navsynth", config, run_data)
    runs.start(config, "navsynth", source, run_data)
    kept = ema.WeightAverage(source, 0.5)
    kept.update()
    averaged = by_name(source)
    for variable in source.trainable_variables:
        variable.assign(0.5 * variable)
    state = {"step": tf.Variable(7, dtype=tf.int64), **checkpoints.model_state(source), **kept.state}
    checkpoints.Checkpoints(state, tmp_path / "source").save(7)
    model, report, _ = begun("navsynth", tmp_path / "source", norm="none", seed=3)
    assert report.averaged and "averaged weights" in report.lines()[0]
    found = by_name(model)
    for variable in model.trainable_variables:
        name = variable.path.partition("/")[2].replace("/", ".")
        np.testing.assert_allclose(found[name], averaged[name], rtol=1e-6)


def test_between_systems_what_fits_is_taken_and_the_rest_is_listed(tmp_path):
    source = saved("mocogan", tmp_path / "source", categorical=False)
    model, report, run_data = begun("rmocogan", tmp_path / "source", seed=5)
    found, expected = by_name(model), by_name(source)
    fresh = by_name(built("rmocogan", config_of("rmocogan", seed=5), run_data))
    assert "generator.up_1.kernel" in report.taken and "motion_gru.gru.gru_cell.kernel" in report.taken
    for name in found:
        np.testing.assert_array_equal(found[name], (expected if name in report.taken else fresh)[name], err_msg=name)
    assert report.left_out["residual.hidden.kernel"] == "not in that run"
    assert set(report.taken) | set(report.left_out) == set(found)
    text = "\n".join(report.lines())
    assert f"takes {len(report.taken)} of {len(found)} weights from {tmp_path / 'source'} (mocogan, step 7)" in text
    assert "initialised afresh: residual.hidden.kernel (not in that run)" in text


def test_a_layer_that_does_not_fit_is_left_out(tmp_path):
    """Another number of categories changes the generator's first layer and a discriminator's last one."""
    source = saved("mocogan", tmp_path / "source", categorical=True, num_categories=2)
    model, report, _ = begun("mocogan", tmp_path / "source", categorical=True, num_categories=3)
    assert set(report.left_out) == {"generator.project.kernel", "video_discriminator.head.kernel"}
    assert "in that run" in report.left_out["generator.project.kernel"]
    np.testing.assert_array_equal(by_name(model)["generator.up_1.kernel"], by_name(source)["generator.up_1.kernel"])


# ---------------------------------------------------------------- codes
def test_codes_of_videos_are_matched_by_name(tmp_path):
    there, here = run_data_of(["a", "b", "c"]), run_data_of(["c", "new", "a"], seed=1)
    source = saved("navsynth", tmp_path / "source", there)
    model, report, _ = begun("navsynth", tmp_path / "source", here, seed=5)
    fresh = built("navsynth", config_of("navsynth", seed=5), here)
    for table in ("static", "transient"):
        rows, expected, drawn = (getattr(m, table).rows.numpy() for m in (model, source, fresh))
        np.testing.assert_array_equal(rows[[0, 2]], expected[[2, 0]])
        np.testing.assert_array_equal(rows[1], drawn[1])
        assert report.rows[f"{table}.rows"] == {"by": "video", "taken": 2, "rows": 3, "rows_there": 3}
    assert "rows taken: static.rows 2 of 3 by video, transient.rows 2 of 3 by video" in report.lines()

    forget_names(tmp_path / "source")  # earlier runs have them in a file of its own, and `best/` has no copy of that
    digest = runs.read(tmp_path / "source")["data"]["digest"]
    storage.write_json(tmp_path / "source" / init_from.VIDEOS, {"digest": digest, "names": ["a", "b", "c"]})
    shutil.copytree(tmp_path / "source", tmp_path / "source" / "best", ignore=shutil.ignore_patterns(init_from.VIDEOS))
    for folder in ("source", "source/best"):
        assert begun("navsynth", tmp_path / folder, here)[1].rows == report.rows


def test_codes_of_labels_are_matched_by_name(tmp_path):
    there = run_data_of(identity=["ann", "bob", "cy"], action=["run", "walk", "run"])
    here = run_data_of(identity=["cy", "dee", "ann"], action=["walk", "run", "wave"], seed=1)
    settings = {"static_by": "identity", "transient_by": "action", "conditioning": "concat"}
    source = saved("navsynth", tmp_path / "source", there, **settings)
    model, report, _ = begun("navsynth", tmp_path / "source", here, **settings, seed=5)
    fresh = built("navsynth", config_of("navsynth", **settings, seed=5), here)
    for name, ours, theirs, new in (
        ("static.rows", [0, 2], [2, 0], 1),
        ("transient.rows", [0, 1], [1, 0], 2),
        ("generator.label_embedding.embeddings", [0, 1], [1, 0], 2),
    ):
        found, expected, drawn = (by_name(m)[name] for m in (model, source, fresh))
        np.testing.assert_array_equal(found[ours], expected[theirs], err_msg=name)
        np.testing.assert_array_equal(found[new], drawn[new], err_msg=name)
        assert report.rows[name]["taken"] == 2 and report.rows[name]["by"] in ("identity", "action")


def test_categories_of_tgan_are_matched_by_name(tmp_path):
    there, here = (run_data_of(action=names, seed=i) for i, names in enumerate((["run", "walk"], ["walk", "run"])))
    settings = {"conditional": True, "num_frames": 8, "batch_size": 2}
    source = saved("tgan", tmp_path / "source", there, **settings)
    model, _, _ = begun("tgan", tmp_path / "source", here, **settings)
    of_category = "discriminator.of_category.kernel"
    np.testing.assert_array_equal(by_name(model)[of_category], by_name(source)[of_category][::-1])


def test_without_names_codes_are_taken_only_for_the_same_data(tmp_path):
    """Runs of version 0.1 did not write the names of their videos."""
    there = run_data_of(["a", "b", "c"])
    source = saved("navsynth", tmp_path / "source", there)
    forget_names(tmp_path / "source")
    model, report, _ = begun("navsynth", tmp_path / "source", there, seed=5)
    np.testing.assert_array_equal(model.static.rows.numpy(), source.static.rows.numpy())
    model, report, _ = begun("navsynth", tmp_path / "source", run_data_of(["a", "b", "c"], seed=1), seed=5)
    assert report.rows["static.rows"]["taken"] == 0
    assert report.left_out == dict.fromkeys(("static.rows", "transient.rows"), "no row with the same name")


@pytest.mark.parametrize("content", ["", '{"digest"', "[]", "{}", "3"])
def test_damaged_names_are_an_error(tmp_path, content):
    saved("navsynth", tmp_path / "source")
    forget_names(tmp_path / "source")
    (tmp_path / "source" / init_from.VIDEOS).write_text(content)
    with pytest.raises(ValueError, match="videos.json is damaged"):
        begun("navsynth", tmp_path / "source")


def test_codes_of_another_kind_are_left_out(tmp_path):
    data = run_data_of(identity=["ann", "bob"], action=["run", "walk"])
    saved("navsynth", tmp_path / "source", data, static_by="identity")
    _, report, _ = begun("navsynth", tmp_path / "source", data, static_by="shared")
    assert report.rows["static.rows"]["by"] == "shared here, identity in that run" and "static.rows" in report.left_out


def test_codes_are_put_where_the_new_run_allows_them(tmp_path):
    data = run_data_of(["a", "b"])
    source = saved("navsynth", tmp_path / "source", data)
    model, _, _ = begun("navsynth", tmp_path / "source", data, projection="unit_sphere")
    rows = source.static.rows.numpy()
    np.testing.assert_allclose(model.static.rows, rows / np.linalg.norm(rows, axis=-1, keepdims=True), rtol=1e-6)


def test_every_replica_begins_with_the_same(tmp_path, two_replicas):
    source = saved("navsynth", tmp_path / "source")
    config = config_of("navsynth", init_from=tmp_path / "source", seed=5)
    run_data = runs.load_data(config)
    with two_replicas.scope():
        model = navsynth.build_model(config, run_data)
    init_from.begin(config, model, run_data, two_replicas)
    expected = by_name(source)
    for variable in (model.static.rows, model.generator.weights[0]):
        name = variable.path.partition("/")[2].replace("/", ".")
        for copy in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, expected[name])


# ---------------------------------------------------------------- from the command line
@pytest.mark.long
def test_the_report_is_said_and_kept_and_the_source_may_go(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_measured", lambda config, build_model, stages: "of no interest here")
    flags = ["--preset=smoke", "--notensorboard", "--noevaluate", "--total_steps=2"]
    assert call(mocogan.main, *flags, "--nocategorical", f"--run_dir={tmp_path / 'source'}")[0] == 0
    flags += [f"--init_from={tmp_path / 'source'}", f"--run_dir={tmp_path / 'new'}"]
    status, out, error = call(rmocogan.main, *flags, "--dry_run")
    assert (status, error) == (0, "") and "weights from" in out and not (tmp_path / "new").exists()
    status, out, error = call(rmocogan.main, *flags)
    assert (status, error) == (0, ""), error
    assert (
        "init_from: takes " in out and "(mocogan, step 2)" in out and "init_from: initialised afresh: residual" in out
    )
    report = json.loads((tmp_path / "new" / init_from.REPORT).read_text())
    assert set(report) == {field.name for field in dataclasses.fields(init_from.Begun)} and report["step"] == 2
    assert runs.read(tmp_path / "new")["config"]["init_from"] == str(tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    status, out, error = call(rmocogan.main, *flags, "--resume=must")
    assert (status, error) == (0, "") and "init_from" not in out
    assert json.loads((tmp_path / "new" / init_from.REPORT).read_text()) == report


def test_training_goes_on_from_the_weights(tmp_path):
    saved("navsynth", tmp_path / "source")
    config = config_of("navsynth", init_from=tmp_path / "source", run_dir=tmp_path / "new", total_steps=1)
    config = dataclasses.replace(config, learning_rate=0.0, latent_learning_rate=0.0, steps_per_loop=1)
    model = train.train("navsynth", config, navsynth.build_model, report=lambda line: None)
    source, _ = runs.load_model(tmp_path / "source")
    for variable, other in zip(model.trainable_variables, source.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable, other)
    assert runs.load_model(tmp_path / "new")[1] == 1


# ---------------------------------------------------------------- what cannot be begun with
def test_what_cannot_be_begun_with_is_refused(tmp_path):
    saved("navsynth", tmp_path / "source")
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "source", tmp_path / "unsaved", ignore=shutil.ignore_patterns("checkpoints"))
    for system, source, settings, message in (
        ("navsynth", "empty", {}, "init_from: .*empty is not a run folder"),
        ("navsynth", "missing", {}, "init_from: .*missing is not a run folder"),
        ("navsynth", "unsaved", {}, "[Nn]o checkpoint"),
        ("navsynth", "source", {"run_dir": tmp_path / "empty" / ".." / "source"}, "is this run's own folder"),
        ("navsynth", "source", {"static_dim": 5}, r"do not fit: static.rows is \(4, 4\) in that run, \(4, 5\) here"),
        ("navsynth", "source", {"num_frames": 7}, "do not fit: transient.rows is .*number of frames"),
        ("navsynth", "source", {"width": 5}, "do not fit: generator.* Use the same widths"),
        ("vgan", "source", {}, "Nothing from .*source, a run of navsynth, fits"),
    ):
        config = config_of(system, **{"init_from": tmp_path / source, "run_dir": tmp_path / "new", **settings})
        run_data = runs.load_data(config)
        model = built(system, config, run_data)
        before = by_name(model)
        with pytest.raises(ValueError, match=message):
            init_from.begin(config, model, run_data)
        for name, value in by_name(model).items():
            np.testing.assert_array_equal(value, before[name])


def test_a_refused_run_leaves_no_folder(tmp_path):
    flags = ["--preset=smoke", f"--init_from={tmp_path / 'missing'}", f"--run_dir={tmp_path / 'new'}"]
    status, _, error = call(navsynth.main, *flags)
    assert status == 1 and "missing is not a run folder" in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())
