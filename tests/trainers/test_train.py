"""The course of a trainer: where the batches come from, and what the settings resolve to."""

import dataclasses
import json
import pathlib
import socket

import numpy as np
import pytest
import tensorflow as tf

from tests import systems
from tfvidgen import data
from tfvidgen.data.codecs import folder_codecs
from trainers import environment, navsynth, runs, samples, train
from trainers.engine import checkpoints, loop

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The six tiny clips of `tests/systems.py` as strips, in a folder per action."""
    from tfvidgen import visualize

    root = tmp_path_factory.mktemp("strips")
    videos = systems.collection()
    for i, name in enumerate(videos.names):
        (root / videos.action_names[videos.action[i]]).mkdir(exist_ok=True)
        strip = np.concatenate(list(videos.video(i)), axis=1)
        visualize.save_png(root / videos.action_names[videos.action[i]] / f"{name}.png", strip)
    return root


def config(dataset, run_dir, **changes) -> navsynth.Config:
    tiny = {
        **navsynth.PRESETS["smoke"],
        "dataset": str(dataset),
        "num_frames": systems.NUM_FRAMES,
        "run_dir": str(run_dir),
        "num_identities": 0,
        "num_actions": 0,
        "triplet_weight": 0.0,
        "evaluate": False,
    }
    return navsynth.Config(**{**tiny, **changes})


def trained_weights(settings) -> list[np.ndarray]:
    model = train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    return [weight.numpy() for weight in model.weights]


@pytest.mark.long
def test_videos_prepared_on_disk_train_the_same_weights(folder, tmp_path):
    data.prepare_shards(folder, tmp_path / "prepared", size=systems.SIZE, num_workers=1)
    in_memory = trained_weights(config(folder, tmp_path / "memory"))
    from_disk = trained_weights(config(tmp_path / "prepared", tmp_path / "disk"))
    for a, b in zip(in_memory, from_disk, strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs.read(tmp_path / "memory")["data"]["digest"] == runs.read(tmp_path / "disk")["data"]["digest"]


@pytest.mark.long
def test_a_data_service_makes_the_same_batches(folder, tmp_path):
    dispatcher = tf.data.experimental.service.DispatchServer()
    worker = tf.data.experimental.service.WorkerServer(
        tf.data.experimental.service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    )
    here = trained_weights(config(folder, tmp_path / "here"))
    served = trained_weights(config(folder, tmp_path / "served", data_service=dispatcher.target))
    del worker
    for a, b in zip(here, served, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_data_service_that_is_not_there_is_refused(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        for address in (f"grpc://127.0.0.1:{taken.getsockname()[1]}", "grpc://localhost"):
            settings = config(folder, tmp_path / "run", data_service=address)
            with pytest.raises(ValueError, match=f"--data_service={address} cannot be reached .*start the service"):
                train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_prepared_folder_of_another_size_is_refused(folder, tmp_path):
    data.prepare_shards(folder, tmp_path / "prepared", size=systems.SIZE, num_workers=1)
    with pytest.raises(ValueError, match="16.*32|32.*16"):
        runs.load_data(config(tmp_path / "prepared", tmp_path / "run", size=32))


def test_precision_auto_becomes_one_that_exists():
    assert train.resolve_precision("float32") == "float32"
    assert train.resolve_precision("bfloat16") == "bfloat16"
    assert train.resolve_precision("auto") in ("float32", "bfloat16")


def check_refused(settings, dry, message):
    """Neither a dry run nor a training begins, and no run folder is made."""
    with pytest.raises(ValueError, match=message):
        if dry:
            train.dry_run(settings, navsynth.build_model)
        else:
            train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    assert not pathlib.Path(settings.run_dir).exists()


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="only refused without a GPU")
@pytest.mark.parametrize("dry", [False, True])
def test_float16_on_a_cpu_is_refused_with_the_reason(folder, tmp_path, dry):
    settings = config(folder, tmp_path / "run", precision="float16")
    check_refused(settings, dry, "precision=float16 is for GPUs.* 13 times slower .*precision=auto")


@pytest.mark.parametrize("dry", [False, True])
def test_a_batch_that_replicas_cannot_share_is_refused(folder, tmp_path, dry):
    settings = config(folder, tmp_path / "run", strategy="mirrored", devices="CPU:0,CPU:1", batch_size=3)
    check_refused(settings, dry, "batch_size=3 cannot be divided by 2 replicas")


@pytest.mark.parametrize("dry", [False, True])
def test_fewer_videos_than_a_batch_are_refused(folder, tmp_path, dry):
    settings = config(folder, tmp_path / "run", batch_size=8)
    check_refused(settings, dry, "--batch_size=8 exceeds the 6 training videos.*lower it")


def test_long_videos_are_cut_into_clips_which_count_as_videos(folder, tmp_path):
    settings = config(folder, tmp_path / "run", num_frames=2, batch_size=10, evaluate=False)
    whole, cut = runs.load_data(settings), runs.load_data(dataclasses.replace(settings, clips_per_video="all"))
    assert len(whole.trained) == 6 and len(cut.trained) > 10
    with pytest.raises(ValueError, match="exceeds the 6 training videos"):
        train.check_batch(settings, whole, 1)
    train.check_batch(settings, cut, 1)
    assert "--clips_per_video=all" in train.advice(settings, whole)[0] and not train.advice(settings, cut)
    assert not train.advice(dataclasses.replace(settings, clip_start="random"), whole)
    codecs = {"codec": "none", "container": ".png"}
    assert folder_codecs(folder, whole.trained.names) == folder_codecs(folder, cut.trained.names) == codecs
    for given in ("0", "-1", "1.5", "every", ""):
        with pytest.raises(ValueError, match="--clips_per_video must be a positive number, or all"):
            dataclasses.replace(settings, clips_per_video=given).check_together()


def test_many_frames_in_memory_point_to_prepare_data(folder, tmp_path, monkeypatch):
    settings = config(folder, tmp_path / "run")
    run_data = runs.load_data(settings)
    assert not train.advice(settings, run_data)
    monkeypatch.setattr(train, "MANY_BYTES", 1000)
    (line,) = train.advice(settings, run_data)
    assert f"python -m trainers.prepare_data {folder} --out=PREPARED --size={settings.size}" in line
    data.prepare_shards(folder, tmp_path / "prepared", size=systems.SIZE, num_workers=1)
    settings = dataclasses.replace(settings, dataset=str(tmp_path / "prepared"))
    assert not train.advice(settings, runs.load_data(settings))


def test_a_batch_may_hold_all_videos(folder, tmp_path):
    settings = config(folder, tmp_path / "run", batch_size=6)
    train.check_batch(settings, runs.load_data(settings), num_replicas=2)


@pytest.mark.long
def test_a_run_is_gone_on_with_only_as_it_was_asked(folder, tmp_path):
    def begin(**changes):
        return train.train(
            "navsynth", config(folder, tmp_path / "run", **changes), navsynth.build_model, report=lambda line: None
        )

    with pytest.raises(ValueError, match=r"resume=must, but there is no checkpoint under .*run: name the folder"):
        begin(resume="must")
    assert not (tmp_path / "run").exists()
    begin(resume="never")
    begin(resume="must")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(
        ValueError, match=r"already holds .*ckpt-4: resume it with resume=auto, or name another run folder"
    ):
        begin(resume="never")
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="mirrored takes the GPUs, however many")
@pytest.mark.slow
def test_two_replicas_train_draw_and_measure_an_average(folder, tmp_path, two_replicas):
    settings = {"update": "joint", "ema_decay": 0.9, "evaluate": True, "num_frames": 4, "size": 16, "tensorboard": True}
    evaluations = []
    for strategy in ("none", "mirrored"):
        run = config(folder, tmp_path / strategy, strategy=strategy, **settings)
        train.train("navsynth", run, navsynth.build_model, report=lambda line: None)
        evaluations.append(json.loads((tmp_path / strategy / "evaluation.json").read_text()))
        assert (tmp_path / strategy / "samples" / "step_0000004.png").is_file()
    for name in ("psnr", "ssim", "fcs"):
        one, two = (evaluation["trained_videos"][name] for evaluation in evaluations)
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("changes", [{"size": 8}, {"num_frames": 1}])
def test_what_cannot_be_evaluated_is_refused_before_training(folder, tmp_path, changes):
    settings = config(folder, tmp_path / "run", evaluate=True, **changes)
    with pytest.raises(ValueError, match="at least 2 frames of 11 pixels"):
        train.train("navsynth", settings, navsynth.build_model, report=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_message(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    flags = [
        f"--{name}={value}" for name, value in dataclasses.asdict(config(folder, tmp_path / "file" / "run")).items()
    ]
    assert navsynth.main(flags) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_run_measures_itself_and_keeps_its_best_checkpoint(folder, tmp_path):
    settings = config(folder, tmp_path / "run", evaluate_metrics="acd4", evaluate_every_steps=2)
    trained_weights(settings)
    records = [json.loads(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()]
    assert [record["protocol"]["generated"]["step"] for record in records] == [2, 4]
    assert {record["metric"] for record in records} == {"acd4_4f"}
    best = min(records, key=lambda record: record["loss"])["protocol"]["generated"]["step"]
    assert (tmp_path / "run" / "best" / "checkpoints" / f"ckpt-{best}.index").exists()
    with pytest.raises(ValueError, match="multiple"):
        trained_weights(config(folder, tmp_path / "other", evaluate_metrics="acd4", evaluate_every_steps=3))
    assert not (tmp_path / "other" / "checkpoints").exists()


# ---------------------------------------------------------------- longer runs
def all_state(run_dir, settings) -> dict[str, np.ndarray]:
    """What the last checkpoint of a run holds of the model, its optimizers and its average."""
    path = checkpoints.latest(pathlib.Path(run_dir) / "checkpoints")
    assert path.endswith(f"ckpt-{settings.total_steps}")
    reader = tf.train.load_checkpoint(path)
    others = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter", "lines")  # the last are means over a period
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if not name.startswith(others)}


def assert_same_state(one, two) -> None:
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("stopped_at", [pytest.param(4, marks=pytest.mark.slow), 3])
@pytest.mark.long
def test_a_finished_run_that_is_trained_longer_is_a_straight_run(folder, tmp_path, stopped_at):
    """Weights, codes, optimizers and averages, bit for bit, though the periods change on the way."""
    settings = {"update": "joint", "ema_decay": 0.9, "latent_rule": "adam", "learning_rate": 0.01}
    straight = config(folder, tmp_path / "straight", total_steps=9, **settings)
    trained_weights(straight)
    trained_weights(config(folder, tmp_path / "longer", total_steps=stopped_at, **settings))
    longer = config(folder, tmp_path / "longer", total_steps=9, steps_per_loop=3, checkpoint_every_steps=5, **settings)
    trained_weights(longer)
    assert_same_state(all_state(tmp_path / "straight", straight), all_state(tmp_path / "longer", longer))


@pytest.mark.long
def test_time_limit_and_kept_checkpoints_are_the_loop_s(folder, tmp_path, monkeypatch):
    handed, run = {}, loop.run
    monkeypatch.setattr(loop, "run", lambda *arguments, **named: handed.update(named) or run(*arguments, **named))
    trained_weights(
        config(folder, tmp_path / "run", update="joint", total_steps=10, keep_every=4, max_minutes=60.0, resume="auto")
    )
    assert 0 < handed["max_minutes"] < 60.0  # what loading and building have left of it
    assert (handed["keep_every"], handed["resume"]) == (4, "auto")
    assert checkpoints.steps(tmp_path / "run" / "checkpoints") == [4, 8, 10]


@pytest.mark.long
def test_a_run_cannot_be_shorter_than_it_is(folder, tmp_path):
    trained_weights(config(folder, tmp_path / "run"))
    before = (tmp_path / "run" / "config.json").read_bytes()
    for run in (trained_weights, lambda settings: train.dry_run(settings, navsynth.build_model)):
        with pytest.raises(ValueError, match="--total_steps=3 is less than the 4 steps that .* was trained for"):
            run(config(folder, tmp_path / "run", total_steps=3))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


COSINE = {
    "update": "joint",
    "schedule": "cosine",
    "latent_rule": "adam",
    "learning_rate": 0.05,
    "latent_learning_rate": 0.2,
}


class Killed(Exception):
    """Ends a run between two checkpoints, as a kill does."""


@pytest.mark.slow
def test_a_run_with_a_schedule_is_stretched_and_then_resumes_exactly(folder, tmp_path, monkeypatch):
    """Two extensions, the first in one process or in two: the numbers of one run that is told so from the beginning."""

    def go_on(name, total_steps, **changes):
        settings = config(folder, tmp_path / name, total_steps=total_steps, **COSINE, **changes)
        trained_weights(settings)
        return all_state(tmp_path / name, settings)

    def killed(self, step, logs):
        raise Killed

    go_on("run", 4)
    with pytest.raises(ValueError, match=r"\(a\) --resume=extend .*from step 4 on; \(b\) .*--init_from="):
        go_on("run", 10)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(samples.SampleSheet, "__call__", killed)
        go_on("run", 10, resume="extend", sample_every_steps=7)
    go_on("run", 10)
    assert runs.read_config(tmp_path / "run").earlier_totals == "4:4"
    extended = go_on("run", 12, resume="extend")
    assert runs.read_config(tmp_path / "run").earlier_totals == "4:4,10:10"
    assert_same_state(extended, go_on("straight", 12, earlier_totals="4:4,10:10"))
    plain = go_on("plain", 12)
    assert any(np.any(value != plain[name]) for name, value in extended.items())


def test_earlier_totals_without_a_schedule_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="--earlier_totals=4:4 is of a schedule, and --schedule=constant has none"):
        trained_weights(config(folder, tmp_path / "run", earlier_totals="4:4"))


# ---------------------------------------------------------------- precision
def processor(monkeypatch, *units):
    monkeypatch.setattr(environment, "vector_units", lambda: units)


@pytest.mark.slow
@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="a GPU is fast in bfloat16 anyway")
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(folder, tmp_path, monkeypatch):
    """On a processor that would take another one, with a line that says so."""

    def go_on(**changes):
        said = []
        settings = config(folder, tmp_path / "run", update="joint", **changes)
        model = train.train("navsynth", settings, navsynth.build_model, report=said.append)
        return model.dtype_policy.name, [line for line in said if "resuming in" in line]

    processor(monkeypatch, "avx2", "avx512f", "avx512_bf16")
    assert go_on(precision="auto") == ("mixed_bfloat16", [])
    description = runs.read(tmp_path / "run")
    assert description["config"]["precision"] == "auto" and description["resolved"] == {"precision": "bfloat16"}
    assert runs.read_config(tmp_path / "run").precision == "bfloat16"
    processor(monkeypatch, "avx2")
    policy, said = go_on(precision="auto", total_steps=6)
    assert policy == "mixed_bfloat16"
    assert said == [
        "navsynth: resuming in bfloat16, in which the run was started; a new run on this machine would use float32"
    ]
    assert go_on(precision="bfloat16", total_steps=7) == ("mixed_bfloat16", [])
    with pytest.raises(ValueError, match="precision: was 'bfloat16', now 'float32'"):
        go_on(precision="float32", total_steps=7)
    monkeypatch.setattr(train, "_measured", lambda config, build_model, stages: "of no interest here")
    assert "precision = 'bfloat16'" in train.dry_run(
        config(folder, tmp_path / "run", update="joint", precision="auto", total_steps=9), navsynth.build_model
    )


@pytest.mark.long
@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="only refused without a GPU")
def test_a_run_in_float16_says_why_it_does_not_go_on_without_a_gpu(folder, tmp_path):
    settings = config(folder, tmp_path / "run", precision="auto")
    trained_weights(settings)
    path = tmp_path / "run" / "config.json"
    description = json.loads(path.read_text())
    description["resolved"]["precision"] = "float16"
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="was started in float16, which is for GPUs: resume it where there is one"):
        trained_weights(settings)


@pytest.mark.slow
# ---------------------------------------------------------------- repeating a run
def test_a_run_is_repeated_by_its_config_json(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = config(folder, "runs/first", precision="auto", ema_decay=0.5, **COSINE)
    trained_weights(settings)
    trained_weights(dataclasses.replace(settings, total_steps=6, resume="extend"))
    first = runs.read_config("runs/first")
    assert navsynth.main(["--config=runs/first/config.json", "--run_dir=again"]) == 0
    again = runs.read_config("again")
    assert again == dataclasses.replace(first, run_dir="again", resume="auto")
    assert_same_state(all_state("runs/first", first), all_state("again", again))
    assert navsynth.main(["--config=runs/first", "--seed=3", "--total_steps=7"]) == 0  # in a folder of its own
    other = runs.read_config("runs/first-repeat")
    assert other == dataclasses.replace(first, run_dir="runs/first-repeat", resume="auto", seed=3, total_steps=7)
    assert runs.read_config("runs/first") == first


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--config=run", "--preset=smoke"], 2, "--config=run and --preset=smoke are mutually exclusive"),
        (["--config=nowhere"], 1, "--config=nowhere does not exist: name a run folder"),
        (["--config=empty"], 1, "empty is not a run folder: it has no config.json"),
        (["--config=bad.json"], 1, "bad.json does not describe a run (it is not JSON"),
        (["--config=run", "--seed=x"], 2, "--seed"),
        (
            ["--config=other.json"],
            1,
            "is a run of mocogan: repeat it with python -m trainers.mocogan, or name a run of",
        ),
        (["--config=unknown.json"], 1, "has unknown settings: batch_sizes. Did you mean 'batch_size'?"),
        (["--config=range.json"], 2, "--batch_size must be at least 1. Received 0."),
    ],
)
def test_what_cannot_be_repeated(folder, tmp_path, monkeypatch, capsys, flags, status, message):
    monkeypatch.chdir(tmp_path)
    settings = config(folder, "run")
    run_data = runs.load_data(settings)
    runs.start(settings, "navsynth", navsynth.build_model(settings, run_data), run_data)
    description = runs.read("run")
    pathlib.Path("empty").mkdir()
    pathlib.Path("bad.json").write_text("{")
    of_another = {**description, "system": "mocogan", "model": {"class": "MoCoGAN", "config": {}}}
    pathlib.Path("other.json").write_text(json.dumps(of_another))
    for name, change in (("unknown", {"batch_sizes": 2}), ("range", {"batch_size": 0})):
        changed = {**description, "config": {**description["config"], **change}}
        pathlib.Path(f"{name}.json").write_text(json.dumps(changed))
    assert navsynth.main(flags) == status
    assert message in capsys.readouterr().err
    assert not pathlib.Path("runs").exists()


# ---------------------------------------------------------------- folders that are no whole run
@pytest.mark.parametrize("what", [pytest.param("empty", marks=pytest.mark.long), "missing"])
def test_a_run_is_never_resumed_unchecked(folder, tmp_path, what):
    settings = config(folder, tmp_path / "run")
    trained_weights(settings)
    path = tmp_path / "run" / "config.json"
    path.unlink() if what == "missing" else path.write_text("")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for resume in ("auto", "must", "extend"):
        with pytest.raises(ValueError, match="config.json .*nothing was changed"):
            trained_weights(dataclasses.replace(settings, resume=resume, total_steps=6))
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_run_folder_must_be_on_a_file_system(capsys):
    assert navsynth.main(["--preset=smoke", "--run_dir=gs://bucket/run"]) == 2
    assert "--run_dir=gs://bucket/run is not on a file system" in capsys.readouterr().err
