"""Training, measuring and generating from the command line, on a set of actors that a laptop draws in no time."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.systems import vivid
from tfvidgen import data, latent_files, storage, visualize
from tfvidgen.data.video_io import read_video
from trainers import cli, evaluate, generate, navsynth, runs, samples, train
from trainers.engine import checkpoints

pytestmark = pytest.mark.usefixtures("quick_graphs")

TINY = [
    "--size=16",
    "--num_frames=8",
    "--width=4",
    "--rnn_units=5",
    "--static_dim=3",
    "--transient_dim=4",
    "--motion_dim=3",
]
ACTORS = ["--dataset=actors", "--num_identities=3", "--num_actions=2"]
EXCHANGE = ["--static_by=identity", "--transient_by=action", "--num_held_out_cells=1", "--update=joint"]
RUN = [
    *TINY,
    *ACTORS,
    *EXCHANGE,
    "--total_steps=4",
    "--steps_per_loop=2",
    "--checkpoint_every_steps=2",
    "--sample_every_steps=2",
    "--evaluate_every_steps=2",
    "--batch_size=2",
]


def call(main, *argv) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a program."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(list(argv))
    return status, out.getvalue(), error.getvalue()


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that was trained and measured, and what it said."""

    run_dir: pathlib.Path
    arguments: list[str]
    said: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    arguments = [*RUN, f"--run_dir={run_dir}"]
    status, out, error = call(navsynth.main, *arguments)
    assert (status, error) == (0, "")
    return Finished(run_dir, arguments, out)


@pytest.fixture(scope="module")
def actors() -> runs.RunData:
    config, _ = cli.parse(navsynth.Config, navsynth.PRESETS, [*TINY, *ACTORS])
    return runs.load_data(config)


def results(run_dir) -> dict:
    """`evaluation.json` without what differs from one measurement to the next."""
    content = json.loads((run_dir / "evaluation.json").read_text())
    return {name: value for name, value in content.items() if name != "seconds"}


# ---------------------------------------------------------------- training
def test_a_run_leaves_everything_behind(finished):
    found = {str(path.relative_to(finished.run_dir)) for path in finished.run_dir.rglob("*") if path.is_file()}
    assert found >= {
        "config.json",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints/checkpoint",
        "checkpoints/ckpt-4.index",
        "samples/step_0000004.png",
        "samples/new.gif",
        "new.png",
        "new.gif",
        "board.png",
        "board.gif",
        "board.mp4",
        "held_out.png",
    }
    assert not [path for path in finished.run_dir.rglob("*") if "tmp" in path.name or "temp" in path.name]
    steps = [json.loads(line)["step"] for line in (finished.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def test_a_run_shows_the_losses_of_held_out_clips(finished):
    lines = [json.loads(line) for line in (finished.run_dir / "validation.jsonl").read_text().splitlines()]
    assert [(line["step"], line["num_videos"]) for line in lines] == [(2, 1), (4, 1)]
    config = runs.read_config(finished.run_dir)
    run_data = runs.load_data(config)
    held_out = run_data.all.subset(~run_data.is_trained)
    model = navsynth.build_model(config, run_data)
    checkpoints.restore(model, finished.run_dir)
    batch = {"video": runs.clips(held_out, config), "identity": held_out.identity, "action": held_out.action}
    losses = model.validation_losses({**batch, "video_id": np.array([0], np.int32)})
    assert lines[-1]["reconstruction_loss"] == pytest.approx(float(losses["reconstruction_loss"][0]), rel=1e-5)
    assert f"step 4: on 1 held-out clips  reconstruction_loss {lines[-1]['reconstruction_loss']:.4g}" in finished.said


@pytest.mark.long
def test_a_run_says_what_it_does(finished):
    said = finished.said
    assert "6 videos of 16x16, 8 to 8 frames, from actors, 3 identities, 2 actions; 5 trained, 1 held out" in said
    assert f"run folder {finished.run_dir}" in said
    assert ", in float32\n" in said or ", in bfloat16\n" in said
    assert "step 4/4  reconstruction_loss " in said
    for row in ("trained videos", "held out cells", "held out nearest trained clip", "fcs64_8f", "verdict:"):
        assert f"\n{row} " in said


def test_evaluation_is_complete(finished):
    measured = results(finished.run_dir)
    assert measured["step"] == 4
    assert measured["cells"] == {"trained": 5, "held_out": 1, "absent": 0}
    assert measured["trained_videos"]["num_videos"] == 5
    for name in ("held_out_cells", "held_out_identity_mean_frame", "held_out_nearest_trained_clip"):
        assert measured[name]["num_videos"] == 1
        assert set(measured[name]) == {"num_videos", "psnr", "ssim", "fcs"}
    assert measured["protocol"]["data_digest"] == runs.read(finished.run_dir)["data"]["digest"]
    assert measured["real_videos"]["fcs"] < measured["held_out_identity_mean_frame"]["fcs"] == 1.0


def test_pictures_move_and_have_the_data_s_frames(finished):
    with Image.open(finished.run_dir / "board.gif") as gif:
        assert gif.n_frames == 8
    with Image.open(finished.run_dir / "samples" / "step_0000004.png") as sheet:
        assert sheet.height > 12 * 16  # four trained clips, their reconstructions and eight new ones, 16 pixels each
    assert len(read_video(finished.run_dir / "board.mp4")[0]) == 4 * 8


def test_sheets_come_at_their_period_and_always_with_the_same_noise(finished, tmp_path):
    sheets = sorted(path.name for path in (finished.run_dir / "samples").glob("*.png"))
    assert sheets == ["step_0000002.png", "step_0000004.png"]
    config = runs.read_config(finished.run_dir)
    model, _ = runs.load_model(finished.run_dir)
    vivid(model)
    for step in (2, 4):
        samples.SampleSheet(model, runs.load_data(config), config, tmp_path)(step, {})
    first, second = ((tmp_path / "samples" / name).read_bytes() for name in sheets)
    assert first == second


def test_the_same_command_finds_its_run_done(finished):
    before = {
        path: path.read_bytes() for path in finished.run_dir.rglob("*") if path.name in ("metrics.jsonl", "board.png")
    }
    measured = results(finished.run_dir)
    (finished.run_dir / "evaluation.json").unlink()
    status, out, error = call(navsynth.main, *finished.arguments)
    assert (status, error) == (0, "")
    assert "already trained for 4 steps" in out
    assert results(finished.run_dir) == measured
    assert {path: path.read_bytes() for path in before} == before


def test_another_setting_in_the_same_folder_is_refused(finished):
    status, _, error = call(navsynth.main, *finished.arguments, "--seed=3")
    assert status == 1
    assert "holds a different run: --seed: was 0, now 3" in error


def test_a_run_without_resume_is_refused(finished):
    status, _, error = call(navsynth.main, *finished.arguments, "--resume=never")
    assert status == 1
    assert "already holds" in error


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="mirrored takes the GPUs, however many")
def test_two_replicas_need_an_even_batch(tmp_path):
    status, _, error = call(
        navsynth.main, *RUN, "--batch_size=3", "--strategy=mirrored", f"--run_dir={tmp_path / 'run'}"
    )
    assert status == 1
    assert "--batch_size=3 cannot be divided by 2 replicas" in error
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- dry run
@pytest.mark.long
def test_dry_run_says_what_would_happen_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, error = call(navsynth.main, "--preset=smoke", "--dry_run", "--rnn_units=9")
    assert (status, error) == (0, "")
    assert list(tmp_path.iterdir()) == []
    config, _ = cli.parse(
        navsynth.Config, navsynth.PRESETS, ["--preset=smoke", "--rnn_units=9", "--run_dir=runs/navsynth-smoke"]
    )
    for name, value in dataclasses.asdict(config).items():
        assert f"\n  {name} = {value!r}\n" in out
    loaded = runs.load_data(config)
    assert "data: 4 videos of 16x16, 8 to 8 frames, from actors, 2 identities, 2 actions" in out
    assert loaded.trained.digest[:16] in out
    model = navsynth.build_model(config, loaded)
    weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
    assert f"model: {weights:,} network weights, {4 * 4 + 4 * 8 * 4:,} numbers in learned codes" in out
    said = re.search(
        r"memory: (\d+) MiB at the peak of two steps and a sample sheet \(TensorFlow (\d+), videos 0, weights and codes 0, ",
        out,
    )
    peak, own = map(int, said.groups())
    assert peak > own > 100


@pytest.mark.slow
@pytest.mark.parametrize("system", ["navsynth", "tgan", "vgan"])
def test_the_memory_of_a_dry_run_is_that_of_the_run(system, tmp_path):
    """Within 15 % of the peak of a process that trains, of whichever system."""
    flags = ["--preset=smoke", "--size=64", "--num_frames=16", "--width=32", "--batch_size=4", "--num_identities=4"]
    flags += ["--num_actions=4", "--noevaluate", "--notensorboard", "--total_steps=3", "--sample_every_steps=1000"]
    program = f"""
import re, sys
from trainers import {system}
status = {system}.main(sys.argv[1:])
kib = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(f"peak {{kib / 1024:.0f}}")
sys.exit(status)
"""

    def run(*more):
        command = [sys.executable, "-c", program, *flags, f"--run_dir={tmp_path / 'run'}", *more]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    measured = int(re.search(r"memory: (\d+) MiB at the peak of two steps", run("--dry_run"))[1])
    assert not (tmp_path / "run").exists()
    assert measured == pytest.approx(int(re.search(r"peak (\d+)", run())[1]), rel=0.15)


@pytest.mark.long
def test_a_run_folder_is_named_after_preset_or_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "_measured", lambda config, build_model, stages: "of no interest here")
    _, out, _ = call(navsynth.main, *RUN, "--dry_run")
    assert "run_dir = 'runs/navsynth-actors'" in out
    clips = tmp_path / "my clips"
    clips.mkdir()
    np.save(clips / "a.npy", np.full((8, 16, 16, 3), 9, np.uint8))
    _, out, error = call(navsynth.main, *TINY, f"--dataset={clips}/", "--batch_size=1", "--dry_run")
    assert "run_dir = 'runs/navsynth-my clips'" in out, error


# ---------------------------------------------------------------- presets
SHRUNK = {"num_held_out_cells": 1, "trained_per_identity": 1}  # where a preset holds out cells, hold out few


@pytest.mark.parametrize("preset", navsynth.PRESETS)
@pytest.mark.long
def test_every_preset_builds_and_trains_a_step(preset):
    settings = navsynth.PRESETS[preset]
    flags = [f"--{name}={value}" for name, value in SHRUNK.items() if settings.get(name)]
    config, other = cli.parse(
        navsynth.Config,
        navsynth.PRESETS,
        [f"--preset={preset}", *TINY, *ACTORS, "--total_steps=2", "--batch_size=2", *flags],
    )
    config, _, _ = runs.decided(config, other.from_data)
    for name in ("update", "loss", "static_by", "transient_by", "conditioning", "precision", "schedule", "latent_rule"):
        if name not in other.from_data:
            assert getattr(config, name) == settings.get(name, getattr(navsynth.Config(), name))
    config = dataclasses.replace(config, precision=train.resolve_precision(config.precision))
    run_data = runs.load_data(config)
    model = navsynth.build_model(config, run_data)
    before = {name: variable.numpy() for name, variable in checkpoints.model_state(model).items()}
    dataset = data.make_dataset(run_data.trained, config.batch_size, config.num_frames)
    for batch in dataset.take(1):
        logs = model.train_step(batch)
    assert logs and all(np.isfinite(float(value)) for value in logs.values())
    for variable in model.trainable_variables:
        name = variable.path.partition("/")[2].replace("/", ".")
        assert np.abs(variable.numpy() - before[name]).max() > 0, name
    assert np.abs(model.transient.rows.numpy() - before["transient.rows"]).max() > 0
    assert model.generate(2, seed=0).shape == (2, 8, 16, 16, 3)


def build(actors_or_data, *flags):
    config, _ = cli.parse(navsynth.Config, navsynth.PRESETS, [*TINY, *flags])
    return navsynth.build_model(config, actors_or_data)


def test_settings_reach_the_model(actors):
    model = build(
        actors,
        *(
            "--static_by=identity",
            "--transient_by=action",
            "--conditioning=concat",
            "--label_dim=5",
            "--norm=none",
            "--rank=2",
        ),
        *("--projection=unit_sphere", "--latent_rule=momentum", "--seed=4", "--precision=bfloat16", "--update=joint"),
        *(
            "--loss=laplacian_l2",
            "--l2_weight=3",
            "--static_weight=0.5",
            "--triplet_weight=0.25",
            "--positive_radius=1",
        ),
        *(
            "--negative_radius=3",
            "--triplet_margin=1.5",
            "--learning_rate=0.125",
            "--beta_2=0.75",
            "--latent_learning_rate=8",
            "--latents_in_host_memory",
        ),
    )
    assert (model.static.num_rows, model.transient.num_rows, model.conditional) == (3, 2, True)
    assert (model.generator.label_dim, model.generator.norms[0], model.transient.rank) == (5, None, 2)
    assert (model.static.projection, model.static.update_rule, model.seed) == ("unit_sphere", "momentum", 4)
    assert model.generator.ups[0].compute_dtype == "bfloat16"
    assert (model.update, model.frame_loss_kind, model.l2_weight) == ("joint", "laplacian_l2", 3.0)
    assert (model.static_weight, model.triplet_weight) == (0.5, 0.25)
    assert model.triplet == {"positive_radius": 1, "negative_radius": 3, "margin": 1.5}
    for optimizer in (model.generator_optimizer, model.rnn_optimizer):
        assert (float(optimizer.learning_rate), optimizer.beta_2) == (0.125, 0.75)
    assert model.static.learning_rate == model.transient.learning_rate == 8.0
    assert model.static.host_memory and model.transient.host_memory


def test_switches_of_the_ablations(actors):
    assert "static" not in build(actors, "--nouse_static").latent_spec
    assert build(actors, "--notrain_latents").static.update_rule == "none"


def test_weight_decay_spares_the_layer_that_makes_pixels(actors):
    """Without a gradient only decay moves weights: by rate * decay of each."""
    model = build(actors, "--learning_rate=0.1", "--weight_decay=0.5")
    before = {variable.path: variable.numpy() for variable in model.generator.trainable_variables}
    variables = model.generator.trainable_variables
    model.generator_optimizer.apply([tf.zeros(variable.shape) for variable in variables], variables)
    for variable in variables:
        factor = 1.0 if "to_rgb" in variable.path else 0.95
        np.testing.assert_allclose(variable.numpy(), factor * before[variable.path], rtol=1e-5, err_msg=variable.path)


def test_a_cosine_falls_to_a_hundredth_at_the_last_step(actors):
    model = build(actors, "--schedule=cosine", "--total_steps=40", "--learning_rate=0.5", "--latent_learning_rate=2")
    for schedule, start in ((model.generator_optimizer._learning_rate, 0.5), (model.transient.learning_rate, 2.0)):
        assert float(schedule(0)) == pytest.approx(start)
        assert float(schedule(20)) == pytest.approx(0.505 * start)
        assert float(schedule(40)) == pytest.approx(0.01 * start)


# ---------------------------------------------------------------- what is refused
def test_random_starts_are_refused(actors, tmp_path):
    """Bad settings and data are in `test_messages.py`; here, that nothing is left behind."""
    status, _, error = call(navsynth.main, *RUN, "--clip_start=random", f"--run_dir={tmp_path / 'run'}")
    assert status == 2
    assert error.count("\n") == 1 and "code per frame" in error and "--clip_start=first or centre" in error
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- measuring
@pytest.mark.long
def test_measuring_a_finished_run_gives_the_same_numbers(finished):
    before = results(finished.run_dir)
    pictures = {name: (finished.run_dir / name).read_bytes() for name in ("board.png", "new.png", "held_out.png")}
    (finished.run_dir / "evaluation.json").unlink()
    keras.utils.set_random_seed(77)
    status, out, error = call(evaluate.main, f"--run_dir={finished.run_dir}")
    assert (status, error) == (0, "")
    assert results(finished.run_dir) == before
    assert {name: (finished.run_dir / name).read_bytes() for name in pictures} == pictures
    assert "held out cells" in out


@pytest.mark.long
def test_another_seed_measures_other_new_videos_only(finished):
    before = results(finished.run_dir)
    changed = evaluate.evaluate_run(finished.run_dir, seed=5, report=lambda line: None)
    assert changed["new_videos"] != before["new_videos"]
    assert changed["trained_videos"] == before["trained_videos"]
    evaluate.evaluate_run(finished.run_dir, report=lambda line: None)
    assert results(finished.run_dir) == before


def test_other_data_than_trained_is_not_measured(finished, tmp_path):
    description = runs.read(finished.run_dir)
    description["data"]["digest"] = "0" * 64
    storage.write_json(tmp_path / "config.json", description)
    status, _, error = call(evaluate.main, f"--run_dir={tmp_path}")
    assert status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert "has changed since training" in error


# ---------------------------------------------------------------- generating
MODES = {
    "new": ["--num_videos=3", "--seed=4"],
    "lookup": ["--ids=4,0"],
    "exchange": ["--identities=0,2,1", "--actions=1,0,1"],
    "interpolate": ["--ids=0,3", "--num_videos=4"],
}


def generated(finished, out, mode, *flags) -> np.ndarray:
    status, said, error = call(generate.main, f"--run_dir={finished.run_dir}", f"--mode={mode}", f"--out={out}", *flags)
    assert (status, error) == (0, "")
    assert "at step 4" in said
    return np.load(out / f"{mode}.npy")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_writes_an_overview_and_clips(finished, tmp_path, mode):
    videos = generated(finished, tmp_path, mode, *MODES[mode], "--scale=1", "--fps=6")
    assert videos.dtype == np.uint8
    assert videos.shape[1:] == (8, 16, 16, 3)
    assert len(videos) == {"new": 3, "lookup": 2, "exchange": 3, "interpolate": 4}[mode]
    overview = {f"{mode}.{kind}" for kind in ("npy", "gif", "mp4", "png")}
    assert {path.name for path in tmp_path.iterdir()} == {*overview, f"{mode}_mp4"}
    assert [path.name for path in sorted((tmp_path / f"{mode}_mp4").iterdir())] == [
        f"clip_{i:04d}.mp4" for i in range(len(videos))
    ]
    with Image.open(tmp_path / f"{mode}.gif") as gif, Image.open(tmp_path / f"{mode}.png") as sheet:
        assert gif.n_frames == 8 and sheet.width > 8 * 16
    frames, fps = read_video(tmp_path / f"{mode}.mp4")
    assert (len(frames), fps) == (8, 6)


def test_the_modes_decode_the_codes_they_name(finished, tmp_path):
    model, step = runs.load_model(finished.run_dir)
    vivid(model)
    run = dataclasses.replace(finished, run_dir=tmp_path / "run")
    run.run_dir.mkdir()
    shutil.copy(finished.run_dir / "config.json", run.run_dir)
    state = {"step": tf.Variable(step, dtype=tf.int64), **checkpoints.model_state(model)}
    checkpoints.Checkpoints(state, run.run_dir).save(step)

    def frames(latents):
        return np.round((np.asarray(model.decode(latents)) + 1) * 127.5).astype(int)

    videos = {mode: generated(run, tmp_path / "out", mode, *flags).astype(int) for mode, flags in MODES.items()}
    ids = {
        name: np.array(values, np.int32)
        for name, values in (("lookup", [4, 0]), ("i", [0, 2, 1]), ("a", [1, 0, 1]), ("ends", [0, 3]))
    }
    assert np.abs(videos["lookup"] - frames(model.lookup(ids["lookup"]))).max() <= 1
    assert np.abs(videos["exchange"] - frames(model.exchange(ids["i"], ids["a"]))).max() <= 1
    assert np.abs(videos["interpolate"][[0, -1]] - frames(model.lookup(ids["ends"]))).max() <= 1
    assert np.abs(videos["new"] - frames(model.sample_latents(3, seed=4))).max() <= 1


def test_the_same_seed_gives_the_same_videos(finished, tmp_path):
    first, again, other = (
        generated(finished, tmp_path / str(i), "new", "--num_videos=6", f"--seed={seed}")
        for i, seed in enumerate((1, 1, 2))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).max() > 0
    assert (tmp_path / "0" / "new.png").read_bytes() != (tmp_path / "2" / "new.png").read_bytes()


def test_results_lie_in_the_run_folder_by_default(finished):
    status, out, _ = call(generate.main, f"--run_dir={finished.run_dir}", "--num_videos=1")
    assert status == 0
    assert (finished.run_dir / "generated" / "new.npy").is_file()
    assert str(finished.run_dir / "generated" / "new") in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=lookup"], "--ids is missing"),
        (
            ["--mode=lookup", "--ids=1,two"],
            "--ids takes whole numbers or names (of identity00_wave, identity00_jumping_jack, identity01_wave, ",
        ),
        (["--mode=lookup", "--ids=5"], "--ids must lie in 0..4. Received 5"),
        (["--mode=lookup", "--ids=-1"], "--ids must lie in 0..4. Received -1"),
        (["--mode=exchange", "--identities=0"], "--actions is missing"),
        (["--mode=exchange", "--actions=0"], "--identities is missing"),
        (["--mode=exchange", "--identities=3", "--actions=0"], "--identities must lie in 0..2. Received 3"),
        (["--mode=exchange", "--identities=0", "--actions=2"], "--actions must lie in 0..1. Received 2"),
        (["--mode=exchange", "--identities=0,1", "--actions=0"], "in pairs. Received 2 identities and 1 actions"),
        (["--mode=interpolate", "--ids=0"], "needs two --ids"),
        (["--mode=interpolate", "--ids=0,1,2"], "needs two --ids"),
        (["--mode=interpolate", "--ids=0,1", "--num_videos=1"], "at least two --num_videos"),
        (["--mode=exchange", "--identities=0", "--actions=jmp"], "or names (of "),
        (["--mode=invent"], "--mode must be one of new, lookup, exchange, interpolate, reconstruct, swap"),
        (["--num_videos=0"], "--num_videos must be at least 1"),
        (["--ids=0"], "--mode=new does not use --ids; --mode=lookup and --mode=interpolate do"),
        (["--mode=lookup", "--ids=0", "--labels=1"], "--mode=lookup does not use --labels; --mode=new does"),
        (
            ["--mode=lookup", "--ids=0", "--num_videos=16"],
            "does not use --num_videos; --mode=new, --mode=interpolate, ",
        ),
        (
            ["--mode=exchange", "--identities=0", "--actions=0", "--num_frames=8"],
            "does not use --num_frames; --mode=new,",
        ),
        (["--num_frames=9"], "--num_frames=9: Learned transient codes have 8 frames"),
        (["--format=mp4,jpg"], "--format takes mp4, gif, webp, npy, png, separated by commas. Received 'jpg'"),
        (["--mode=decode"], "--latents is missing"),
        (["--latents=codes.npy"], "--latents must end in .npz"),
    ],
)
def test_bad_ids_are_usage_errors_and_write_nothing(finished, tmp_path, flags, message):
    status, out, error = call(generate.main, f"--run_dir={finished.run_dir}", f"--out={tmp_path / 'out'}", *flags)
    assert (status, out) == (2, "")
    assert error.startswith("trainers.generate: usage: ") and message in error
    assert not (tmp_path / "out").exists()


def test_clips_to_measure_are_read_back_exactly(finished, tmp_path, monkeypatch):
    """npy and png are; mp4, gif and webp are enlarged for people. A second call replaces the files of the first."""
    formats = ("npy", "png", "mp4", "gif", "webp")
    generated(finished, tmp_path, "new", "--num_videos=4", "--format=png")
    status, said, error = call(
        generate.main,
        f"--run_dir={finished.run_dir}",
        "--num_videos=3",
        f"--format={','.join(formats)}",
        f"--out={tmp_path}",
    )
    assert (status, error) == (0, "")
    videos = np.load(tmp_path / "new.npy")
    for name in formats:
        assert {path.name for path in (tmp_path / f"new_{name}").iterdir()} == {f"clip_000{i}.{name}" for i in range(3)}
        if name in generate.EXACT:
            found = data.load_videos(tmp_path / f"new_{name}")
            assert np.array_equal(np.stack([found.video(i) for i in range(3)]), videos)
        elif name == "mp4":
            frames, _ = read_video(tmp_path / "new_mp4" / "clip_0001.mp4")
            assert np.abs(frames[:, ::16, ::16].astype(int) - videos[1]).mean() < 12
            assert frames.shape == (8, 256, 256, 3)
    assert "8 times in sheet and grid, 16 times in new_mp4/, new_gif/, new_webp/" in said
    assert "to measure, take new.npy or new_npy/ or new_png/: the model's own 16x16 pixels" in said

    generated(finished, tmp_path, "lookup", "--ids=0,1,2", "--format=npy")
    for name in generate.EXACT:
        flags = [f"--generated={tmp_path / f'new_{name}'}", f"--real={tmp_path / 'lookup_npy'}", "--metrics=motion3_8f"]
        status, _, error = call(
            evaluate.main, *flags, f"--out={tmp_path / name}", "--cache_dir=none", "--allow_duplicates"
        )
        assert (status, error) == (0, "")
    values = [json.loads((tmp_path / name / "evaluation.jsonl").read_text())["value"] for name in generate.EXACT]
    assert values[0] == values[1]

    monkeypatch.setattr(generate, "MAX_SHOWN", 2)
    flags = [f"--run_dir={finished.run_dir}", "--num_videos=5", "--format=png", f"--out={tmp_path}", "--scale=3"]
    status, said, _ = call(generate.main, *flags)
    assert status == 0 and "sheet and grid show the first 2 of them" in said and "3 times in sheet and grid;" in said
    assert len(np.load(tmp_path / "new.npy")) == len(list((tmp_path / "new_png").iterdir())) == 5
    assert read_video(tmp_path / "new.mp4")[0].shape[1:3] == (52, 102)  # two frames of 48, white between and around

    (tmp_path / "new_npy" / "mine.txt").write_text("kept")
    status, _, error = call(generate.main, f"--run_dir={finished.run_dir}", "--format=npy", f"--out={tmp_path}")
    assert status == 1 and "holds 'mine.txt', which is no clip written here" in error
    assert len(list((tmp_path / "new_npy").iterdir())) == 4 and not list(tmp_path.glob(".part-*"))


def test_videos_have_ids_and_names(finished, tmp_path, monkeypatch):
    run_data = runs.load_data(runs.read_config(finished.run_dir))
    names = runs.read(finished.run_dir)["labels"]["video_names"]
    assert names == list(run_data.trained.names) and len(names) == 5
    assert list(json.loads((finished.run_dir / "config.json").read_text()))[-1] == "labels"

    drawn = {}
    sheet = visualize.contact_sheet
    monkeypatch.setattr(visualize, "contact_sheet", lambda rows, **given: drawn.update(given) or sheet(rows, **given))
    model, step = runs.load_model(finished.run_dir)
    samples.SampleSheet(model, run_data, runs.read_config(finished.run_dir), tmp_path)(step, {})
    assert drawn["row_labels"][:8:2] == [f"{i}: {names[i]}" for i in (0, 1, 3, 4)] and drawn["scale"] == 8

    by_name = generated(finished, tmp_path / "name", "lookup", f"--ids={names[4]},0", "--format=")
    by_id = generated(finished, tmp_path / "id", "lookup", "--ids=4,0", "--format=")
    np.testing.assert_array_equal(by_name, by_id)
    assert generate._ids("1,01,b,-0", "ids", 3, ["1", "01", "b"]) == [
        1,
        1,
        2,
        0,
    ]  # a number is an id, unless written as none


def test_latents_are_saved_and_decoded(finished, tmp_path):
    codes, out = tmp_path / "codes.npz", tmp_path / "out"
    videos = generated(finished, out, "lookup", "--ids=4,0", "--format=", f"--latents={codes}")
    np.testing.assert_array_equal(generated(finished, out, "decode", "--format=", f"--latents={codes}"), videos)
    latents, about = latent_files.load(codes)
    model, step = runs.load_model(finished.run_dir)
    for name, values in model.lookup(np.array([4, 0], np.int32)).items():
        np.testing.assert_array_equal(latents[name], values)
    assert (about["system"], about["run"], about["step"], about["video"]) == (
        "navsynth",
        "run",
        step,
        [2, 8, 16, 16, 3],
    )
    assert about["names"] == ["video 4 (identity02_jumping_jack)", "video 0 (identity00_wave)"]

    def answer(path, *flags):
        return call(
            generate.main, f"--run_dir={finished.run_dir}", f"--latents={path}", f"--out={tmp_path / 'no'}", *flags
        )

    status, _, error = answer(codes)
    assert status == 2 and "codes.npz exists, and --mode=new would replace it" in error
    other = tmp_path / "other.npz"
    latent_files.save(other, latents, {**about, "system": "tgan", "run": "dancers"})
    status, _, error = answer(other, "--mode=decode")
    assert status == 1 and "holds latents of tgan (run dancers, step 4), and" in error and "name a run of tgan" in error
    latent_files.save(other, {**latents, "static": latents["static"][:, :2]}, about)
    status, _, error = answer(other, "--mode=decode")
    assert status == 1 and all(
        text in error for text in ("of navsynth (run run, step 4): ", "static (2, 2)", "static (B, 3)")
    )
    assert not (tmp_path / "no").exists()
    latent_files.save(other, latents, {**about, "id": "0" * 16, "run": "dancers"})
    status, said, _ = answer(other, "--mode=decode", "--format=")
    assert status == 0 and "note: the latents are of another run, dancers" in said
    np.savez(other, **latents)  # of anybody
    assert answer(other, "--mode=decode", "--format=")[0] == 0


def test_a_system_s_own_state_is_what_was_saved(finished):
    """The weights that are generated with are those that were trained, not those that were drawn."""
    model, step = runs.load_model(finished.run_dir)
    config = runs.read_config(finished.run_dir)
    fresh = navsynth.build_model(config, runs.load_data(config))
    assert np.abs(fresh.transient.rows.numpy() - model.transient.rows.numpy()).max() > 0
    assert checkpoints.restore(fresh, finished.run_dir) == step == 4
    for a, b in zip(fresh.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
