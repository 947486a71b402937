"""Measuring runs and folders by name of a metric, from the command line and while training."""

import ast
import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from tests.systems import vivid
from tfvidgen import data
from tfvidgen.data.video_io import write_mp4
from trainers import cli, evaluate, measure, mocogan, navsynth, run_evaluation, runs
from trainers.best import EvaluateMetrics
from trainers.engine import checkpoints, loop

pytestmark = pytest.mark.usefixtures("quick_graphs")

TINY = "--size=16 --num_frames=8 --dataset=actors --num_identities=3 --num_actions=2 --num_held_out_cells=1".split()
CODES = "--width=4 --rnn_units=5 --static_dim=3 --transient_dim=4 --motion_dim=3 --update=joint".split()
EXCHANGE = ["--static_by=identity", "--transient_by=action"]
GAN = "--width=4 --discriminator_width=4 --temporal_taps=2 --categorical".split()
STEPS = ["--total_steps=4", "--steps_per_loop=2", "--checkpoint_every_steps=2", "--batch_size=2"]


def call(*argv) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of the program."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = evaluate.main(list(argv))
    return status, out.getvalue(), error.getvalue()


def records(folder) -> list[dict]:
    path = pathlib.Path(folder) / "evaluation.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclasses.dataclass(frozen=True)
class Run:
    run_dir: pathlib.Path
    config: object
    run_data: runs.RunData
    model: object


def saved_run(system, run_dir, *flags) -> Run:
    """A run folder with checkpoints of steps 2 and 4, of large random weights instead of trained ones."""
    config, _ = cli.parse(system.Config, system.PRESETS, [*TINY, *STEPS, *flags, f"--run_dir={run_dir}"])
    run_data = runs.load_data(config)
    model = system.build_model(config, run_data)
    runs.start(config, system.__name__.rpartition(".")[2], model, run_data)
    step = tf.Variable(0, dtype=tf.int64)
    saver = checkpoints.Checkpoints({"step": step, **checkpoints.model_state(model)}, run_dir)
    for at in (2, 4):
        if at == 4:
            vivid(model)
        step.assign(at)
        saver.save(at)
    return Run(pathlib.Path(run_dir), config, run_data, model)


@pytest.fixture(scope="module")
def codes(tmp_path_factory) -> Run:
    return saved_run(navsynth, tmp_path_factory.mktemp("runs") / "codes", *CODES, *EXCHANGE)


@pytest.fixture(scope="module")
def gan(tmp_path_factory) -> Run:
    return saved_run(mocogan, tmp_path_factory.mktemp("runs") / "gan", *GAN)


def videos(count, seed=0, frames=8, size=16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, frames, size, size, 3)).astype(np.uint8)


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Flags of a folder of generated and one of real videos, as arrays."""
    for name, seed in (("generated", 0), ("real", 1)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "videos.npy", videos(12, seed))
    return [f"--generated={tmp_path / 'generated'}", f"--real={tmp_path / 'real'}", f"--cache_dir={tmp_path / 'cache'}"]


# ---------------------------------------------------------------- runs
def test_a_run_with_codes_is_measured_in_full(codes):
    lines = []
    results = evaluate.evaluate_run(codes.run_dir, report=lines.append)
    assert set(results) >= {
        "new_videos",
        "real_videos",
        "trained_videos",
        "held_out_cells",
        "exchange_accuracy",
        "cells",
    }
    shares = results["exchange_accuracy"]
    assert shares["num_videos"] == 1 and shares["both"] in (0.0, 1.0) and len(shares["both_interval"]) == 2
    found = records(codes.run_dir)
    assert [record["metric"] for record in found] == ["fcs64_8f", "acd64_8f", "motion64_8f", "duplicates64_8f"]
    for record in found:
        assert record["step"] == 4
        made, real = record["protocol"]["generated"], record["protocol"]["real"]
        assert (made["system"], made["step"], made["weights"], made["seed"]) == ("navsynth", 4, "last step", 0)
        assert real["digest"] == codes.run_data.originals.digest and real["split"] == "trained"
        assert record["protocol"]["real_clips"] == 5 and record["protocol"]["clips"] == 64
    assert "at most 100 dB a frame, which equal frames have" in results["protocol"]["psnr"]
    table = [line for line in lines if not line.startswith(("note ", "verdict: "))]
    table = table[[line.startswith("metric ") for line in table].index(True) :]
    rows = ["trained videos", "held out cells", "held out identity mean frame", "held out nearest trained clip"]
    rows += ["exchange accuracy", "fcs64_8f", "acd64_8f", "motion64_8f", "duplicates64_8f"]
    assert [line.split("  ")[0] for line in table] == ["metric", *rows]
    assert "identity and action right on 1 held-out cells" in "\n".join(table)
    assert lines[-1].startswith("verdict: ") and results["verdict"]["text"] in lines[-1]
    assert json.loads((codes.run_dir / "evaluation.json").read_text())["verdict"] == results["verdict"]
    # three identities by two actions make at most six different clips
    assert found[3]["values"]["different"] <= 6 and any("fewer different clips" in note for note in found[0]["notes"])


def test_exchange_accuracy_knows_right_from_wrong(codes):
    videos = codes.run_data.all
    truth = runs.clips(videos, codes.config)
    made = np.zeros((3, 2, *truth.shape[1:]), np.uint8)
    made[videos.identity, videos.action] = truth
    cells = np.argwhere(np.ones((3, 2), bool))
    right = run_evaluation._exchange_accuracy(made, cells, truth, videos)
    assert (right["identity"], right["action"], right["both"], right["num_videos"]) == (1.0, 1.0, 1.0, 6)
    other_action = run_evaluation._exchange_accuracy(made[:, ::-1], cells, truth, videos)
    assert (other_action["identity"], other_action["action"], other_action["both"]) == (1.0, 0.0, 0.0)


def test_a_run_without_codes_gets_the_generative_metrics(gan):
    lines = []
    results = evaluate.evaluate_run(gan.run_dir, report=lines.append)
    assert "trained_videos" not in results and "cells" not in results
    found = records(gan.run_dir)
    assert [record["metric"] for record in found] == ["fcs64_8f", "acd64_8f", "motion64_8f", "duplicates64_8f"]
    assert found[0]["protocol"]["generated"]["system"] == "mocogan" and found[3]["values"]["different"] == 64
    assert "start: random" in found[0]["protocol"]["real"]["sampling"], "as it was trained"
    assert json.loads((gan.run_dir / "evaluation.json").read_text())["step"] == 4


@pytest.mark.long
def test_a_judge_is_trained_once_and_named(gan, tmp_path):
    flags = [
        f"--run_dir={gan.run_dir}",
        "--metrics=fvd6_8f,accuracy6,nearest6",
        "--features=judge",
        "--judge_steps=2",
        f"--out={tmp_path / 'out'}",
        f"--cache_dir={tmp_path / 'cache'}",
    ]
    status, out, error = call(*flags)
    assert (status, error) == (0, "")
    first = records(tmp_path / "out")
    assert [record["metric"] for record in first] == ["judge_fvd6_8f", "judge_accuracy6_8f", "judge_nearest6_8f"]
    network = first[0]["protocol"]["network"]
    assert network["name"].startswith("judge_action") and len(network["weights_sha256"]) == 64
    assert network["training"]["videos"] == 5 and network["config"]["steps"] == 2
    assert (tmp_path / "out" / "judge_nearest6_8f.png").is_file()
    assert first[2]["protocol"]["reference"] == "each real clip to its nearest other one", (
        "one held-out clip is too few"
    )
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert any(path.parent.name == "judges" for path in kept) and any(path.name == "rows.npy" for path in kept)
    status, again, _ = call(*flags)
    assert status == 0
    assert [record["values"] for record in records(tmp_path / "out")[3:]] == [record["values"] for record in first]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "judge_fvd6_8f" in out and "real-real floor" in out and "biased upwards" in out


def measured(run: Run, metrics: str, out, **settings) -> list:
    """Results of `--metrics` without the reconstruction and the board of a run."""
    settings = evaluate.Config(out=str(out), cache_dir="none", metrics=metrics, **settings)
    measurer = measure.RunMeasurer(run.run_dir, run.run_data, run.config, settings)
    return measurer.measure(measure.parse_metrics(settings), run.model, 4)[0]


@pytest.mark.long
def test_codes_are_swapped_and_judged(codes, tmp_path):
    (result,) = measured(codes, "judge_swap5", tmp_path, judge_steps=1)
    (record,) = records(tmp_path)
    assert record["metric"] == result.name == "judge_swap5_8f" and record["protocol"]["source_videos"] == 5
    assert record["protocol"]["chance"] == {"action": 1 / 2, "identity": 1 / 3}
    with pytest.raises(ValueError, match="--split=trained"):
        measured(codes, "judge_swap5", tmp_path, split="all")


def test_seeds_and_splits_choose_clips(codes, tmp_path):
    for seed, split in ((0, "trained"), (1, "trained"), (0, "all")):
        measured(codes, "acd5_4f", tmp_path, seed=seed, split=split)
    first, other, everything = records(tmp_path)
    assert first["protocol"]["seed"] == 0 and other["protocol"]["generated"]["seed"] == 1
    assert first["value"] != other["value"]
    assert first["protocol"]["real"]["videos"] == 5 and everything["protocol"]["real"]["videos"] == 6
    assert everything["protocol"]["real"]["split"] == "all"


def test_a_run_can_be_measured_against_other_videos(codes, folders, tmp_path):
    status, _, error = call(
        f"--run_dir={codes.run_dir}", "--metrics=acd5_4f", *folders[1:], f"--out={tmp_path / 'out'}"
    )
    assert (status, error) == (0, "")
    (record,) = records(tmp_path / "out")
    assert record["protocol"]["real"]["source"].endswith("real") and record["protocol"]["real"]["videos"] == 12


def test_other_videos_are_read_at_the_stride_of_the_run(codes, folders, tmp_path):
    """A run at stride 2 makes clips of every second frame, so those are its real clips."""
    at_two = dataclasses.replace(codes, config=dataclasses.replace(codes.config, stride=2))
    (result,) = measured(at_two, "motion5_4f", tmp_path, real=folders[1].partition("=")[2], clip_start="first")
    (record,) = records(tmp_path)
    assert record["protocol"]["generated"]["frame_stride"] == record["protocol"]["real"]["stride"] == 2
    order = np.random.default_rng([0, 0]).permutation(12)[:5]  # as `VideoClips` draws
    clips = videos(12, 1)[order, ::2] / 255
    assert result.values["real"] == pytest.approx(np.square(np.diff(clips, axis=1)).mean())


# ---------------------------------------------------------------- folders
def test_two_folders_need_no_model(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    status, out, error = call(*folders, "--metrics=fcs,pixels_prdc12_4f_stride2,duplicates")
    assert (status, error) == (0, "")
    found = records(tmp_path / "generated-evaluation")
    assert {record["metric"] for record in found} == {"fcs12_8f", "pixels_prdc12_4f_stride2", "duplicates12_8f"}
    for record in found:
        assert record["protocol"]["generated"]["codec"] == record["protocol"]["real"]["codec"] == "none"
        assert record["protocol"]["generated"]["container"] == ".npy"
        assert "start: first" in record["protocol"]["generated"]["sampling"]
        assert "start: random" in record["protocol"]["real"]["sampling"]
    assert "fcs12_8f" in out and "generated-evaluation" in out
    assert list((tmp_path / "scratch").iterdir()) == [], "decoded frames and features are gone"
    again = call(*folders, "--metrics=fcs")
    assert again[0] == 0 and len(records(tmp_path / "generated-evaluation")) == 4, "lines are appended"


def test_compression_on_one_side_is_noted_and_sizes_are_brought_together(tmp_path):
    (tmp_path / "real").mkdir()
    for index, video in enumerate(videos(3, size=32)):
        write_mp4(tmp_path / "real" / f"{index}.mp4", video, 8)
    np.save(tmp_path / "generated.npy", videos(3))
    flags = [f"--generated={tmp_path / 'generated.npy'}", f"--real={tmp_path / 'real'}", "--metrics=acd3_8f"]
    status, _, error = call(*flags)
    assert status == 1 and "Real clips are 32x32 pixels and generated ones 16x16" in error and "--size" in error
    status, out, _ = call(*flags, "--size=16", f"--out={tmp_path / 'out'}")
    assert status == 0
    assert "with h264 (yuv420p), generated ones with no codec" in out
    (record,) = records(tmp_path / "out")
    assert record["protocol"]["real"]["container"] == ".mp4" and record["protocol"]["real"]["resize"] == "centre_crop"


def test_copied_videos_are_refused_unless_told(tmp_path, folders):
    copied = videos(12)
    copied[7] = copied[2]
    np.save(tmp_path / "generated" / "videos.npy", copied)
    status, _, error = call(*folders, "--metrics=acd")
    assert (
        status == 1 and "1 of 12 generated clips are exact copies of another" in error and "--allow_duplicates" in error
    )
    assert "'videos.npy[02]' and 'videos.npy[07]'" in error or "'videos.npy[07]' and 'videos.npy[02]'" in error
    assert records(tmp_path / "generated-evaluation") == []
    status, out, _ = call(*folders, "--metrics=duplicates", "--allow_duplicates")
    assert status == 0 and "fewer different clips, 11" in out
    assert records(tmp_path / "generated-evaluation")[0]["value"] == pytest.approx(1 / 12)


@pytest.mark.long
def test_prepared_videos_are_measured_as_their_files(tmp_path):
    """Also by a judge, which is trained on what lies on disk; it is the same, so it is trained once."""
    moving = videos(12) // 2
    for label, name in enumerate(("down", "right")):
        (tmp_path / "real" / name).mkdir(parents=True)
        np.save(tmp_path / "real" / name / "all.npy", moving[label::2] + np.uint8(100 * label))
    np.save(tmp_path / "generated.npy", videos(8, 1))
    data.prepare_shards(tmp_path / "real", tmp_path / "prepared", size=16, num_workers=1)
    found = []
    for real in ("real", "prepared"):
        status, _, error = call(
            f"--generated={tmp_path / 'generated.npy'}",
            f"--real={tmp_path / real}",
            "--metrics=judge_fvd8_8f,pixels_prdc8_8f,acd8_8f",
            "--judge_steps=2",
            f"--out={tmp_path / 'out' / real}",
            f"--cache_dir={tmp_path / 'cache'}",
        )
        assert (status, error) == (0, "")
        found.append(records(tmp_path / "out" / real))
    assert [record["values"] for record in found[0]] == [record["values"] for record in found[1]]
    for real in (record["protocol"]["real"] for records_ in found for record in records_):
        assert (real["codec"], real["container"]) == ("none", ".npy")
    assert len(list((tmp_path / "cache" / "judges").iterdir())) == 1


def save_clips(folder, clips) -> str:
    """Writes a file per clip; returns the folder."""
    folder.mkdir()
    for index, clip in enumerate(clips):
        np.save(folder / f"{index:02}.npy", clip)
    return str(folder)


def test_twelve_clips_of_each_need_no_other_flag(tmp_path):
    generated, real = save_clips(tmp_path / "made", videos(12, 0, 20)), save_clips(tmp_path / "real", videos(12, 1, 20))
    status, out, error = call(f"--generated={generated}", f"--real={real}")
    assert (status, error) == (0, "")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("metric "))
    names = ["fcs12_16f", "acd12_16f", "motion12_16f", "duplicates12_16f", "pixels_nearest12_16f"]
    assert [line.split()[0] for line in lines[at + 1 : at + 6]] == names
    assert lines[-1].startswith("verdict: fine: ") and "0 of 12 equal a real one" in lines[-1]
    assert all(line.startswith("note (") for line in lines[at + 6 : -1])
    assert (tmp_path / "made-evaluation" / "pixels_nearest12_16f.png").is_file()
    status, out, _ = call(f"--generated={real}", f"--real={real}")
    assert status == 0 and out.splitlines()[-1].startswith("verdict: copies: ")
    status, out, _ = call(f"--generated={generated}", f"--real={real}", "--metrics=motion,duplicates")
    assert status == 0 and "verdict" not in out, "only on the metrics that it is made for"


def test_bad_and_short_files_are_said_in_the_notes(tmp_path):
    generated, real = save_clips(tmp_path / "made", videos(4)), save_clips(tmp_path / "real", videos(4, 1, 20))
    np.save(tmp_path / "made" / "04.npy", videos(1, 5, 5)[0])
    (tmp_path / "made" / "05.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "real" / "lost").symlink_to(tmp_path / "nowhere")
    flags = [f"--generated={generated}", f"--real={real}", "--metrics=fcs,acd4_4f", f"--out={tmp_path / 'out'}"]
    status, _, error = call(*flags)
    assert status == 1 and "lost: it is a link to" in error and "nowhere', which is not there" in error
    with pytest.warns(UserWarning, match="Skipped 1 unreadable files"):
        status, out, _ = call(*flags, "--skip_bad")
    assert status == 0
    default, named = records(tmp_path / "out")
    assert (default["metric"], named["metric"]) == ("fcs4_5f", "acd4_4f")
    for record in (default, named):
        left_out = [note for note in record["notes"] if "left out" in note]
        assert len(left_out) == 2 and "05.npy: " in " ".join(left_out) and "lost: it is a link" in " ".join(left_out)
    assert (
        "Clips of 5 frames instead of 16, because '04.npy' of the generated videos has no more" in default["notes"][0]
    )
    assert not any("instead of 16" in note for note in named["notes"])
    assert "--short_clip=loop" in out, "advice on the command line names flags"


def test_a_metric_that_fails_leaves_the_table_of_the_others(folders, tmp_path, monkeypatch):
    from tfvidgen.metrics.families import FAMILIES

    def fail(measured):
        raise ValueError("undefined here: name another `size`")

    monkeypatch.setitem(FAMILIES, "acd", dataclasses.replace(FAMILIES["acd"], measure=fail))
    status, out, error = call(*folders, "--metrics=acd,fcs")
    assert status == 1 and "\nfcs12_8f " in out and "acd12_8f: undefined here: name another --size" in error
    assert [record["metric"] for record in records(tmp_path / "generated-evaluation")] == ["fcs12_8f"]


def test_a_link_that_leads_nowhere_is_named(folders, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for flags in ([f"--generated={tmp_path / 'link'}", folders[1]], [folders[0], f"--real={tmp_path / 'link'}"]):
        status, _, error = call(*flags)
        assert status == 1 and "link': it is a link to" in error and "gone', which is not there" in error


def test_advice_names_flags_on_the_command_line_and_clips_by_their_names():
    text = 'Pass `short_clip="loop"` or `refuse_duplicates=False`, and `size`; `real` needs 6, `x=1` too.'
    assert (
        measure.flags_for(text)
        == "Pass --short_clip=loop or --allow_duplicates, and --size; `real` needs 6, `x=1` too."
    )
    assert {*measure._ARGUMENTS} <= {field.name for field in dataclasses.fields(measure.Config)}


# ---------------------------------------------------------------- what is refused
def test_frames_of_several_sizes_say_how_to_mend_it(tmp_path, folders):
    np.save(tmp_path / "generated" / "more.npy", videos(2, 5, size=20))
    status, _, error = call(*folders, "--metrics=acd")
    assert status == 1 and "16x16" in error and "20x20" in error and "--size" in error
    status, _, error = call(*folders, "--metrics=acd", "--size=16")
    assert (status, error) == (0, "")


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ([], 2, ["--run_dir is missing", "--generated and --real"]),
        (["--generated=x", "--real=y", "--metrics= , "], 2, ["--metrics is empty", "Received ' , '"]),
        (["--generated=x"], 2, ["--real is missing"]),
        (["--generated=x", "--real=y", "--run_dir=z"], 2, ["are mutually exclusive"]),
        (["--generated=x", "--real=y"], 1, ["No file or folder"]),
        (["--run_dir=x", "--metrics=fdv2048_16f"], 2, ["Did you mean 'fvd'?", "Families: fvd, "]),
        (["--run_dir=x", "--weights=i3d"], 2, ["NAME=PATH", "Received 'i3d'"]),
        (["--run_dir=x", "--weights=i3dd=x"], 2, ["Did you mean 'i3d'?"]),
        (["--run_dir=x", "--features=jugde"], 2, ["Did you mean 'judge'?"]),
        (["--run_dir=x"], 1, ["is not a run folder"]),
    ],
)
def test_bad_usage_is_one_message(flags, status, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, out, error = call(*flags)
    assert (found, out) == (status, "")
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir())


def test_missing_weights_say_which_file_and_write_nothing(codes, tmp_path):
    flags = [f"--run_dir={codes.run_dir}", "--metrics=fcs5,fvd5_8f", f"--out={tmp_path / 'out'}"]
    before = (codes.run_dir / "config.json").stat().st_mtime_ns, sorted(path.name for path in codes.run_dir.iterdir())
    status, out, error = call(*flags)
    assert (status, out) == (1, "")
    for word in ("i3d-kinetics-400", "Source:", "Licence: Apache-2.0", "--weights=i3d=PATH", "--features=judge"):
        assert word in error
    status, _, error = call(f"--run_dir={codes.run_dir}", "--metrics=mcs5", f"--out={tmp_path / 'out'}")
    assert status == 1 and "--weights=vgg16=PATH" in error and "judge" not in error, "which is no help for it"
    assert before[1] == sorted(path.name for path in codes.run_dir.iterdir()) and not (tmp_path / "out").exists()


def test_a_judge_without_labels_is_refused(folders):
    status, _, error = call(*folders, "--metrics=judge_fvd8_8f")
    assert status == 1 and "needs action labels" in error and "one folder per class" in error


def test_no_held_out_videos_are_no_split(tmp_path, codes):
    everything = runs.RunData(codes.run_data.all, np.ones(6, bool), codes.run_data.all)
    with pytest.raises(ValueError, match="--split=held_out: this run held out no videos"):
        measure.RunMeasurer(codes.run_dir, everything, codes.config, evaluate.Config(split="held_out"))


def test_the_list_names_every_family():
    from tfvidgen.metrics.families import FAMILIES

    status, out, _ = call("--metrics=list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(FAMILIES)


# ---------------------------------------------------------------- while training
def watcher(run: Run, metrics: str, every_steps: int = 2, **options):
    lines = []
    action = EvaluateMetrics(
        run.model, run.run_data, run.config, run.run_dir, metrics, every_steps, report=lines.append, **options
    )
    return action, lines


def test_the_best_checkpoint_is_a_run_folder(tmp_path):
    run = saved_run(navsynth, tmp_path / "run", *CODES, *EXCHANGE)
    action, lines = watcher(run, "acd8,motion8")
    assert (action.every_steps, action.uses_weights) == (2, True)
    for step in (2, 4):  # as the loop does: weights of that step in the model, its checkpoint on disk
        state = {"step": tf.Variable(0, dtype=tf.int64), **checkpoints.model_state(run.model)}
        checkpoints.Checkpoints(state, run.run_dir).restore(str(run.run_dir / "checkpoints" / f"ckpt-{step}"))
        action.run(step, {})
    found = records(run.run_dir)
    assert [(record["step"], record["metric"]) for record in found] == [
        (2, "acd8_8f"),
        (2, "motion8_8f"),
        (4, "acd8_8f"),
        (4, "motion8_8f"),
    ]
    assert all(record["during_training"] for record in found)
    losses = {record["step"]: record["loss"] for record in found if record["metric"] == "acd8_8f"}
    best = json.loads((run.run_dir / "best" / "best.json").read_text())
    assert best == {"metric": "acd8_8f", "value": best["value"], "loss": min(losses.values()), "step": best["step"]}
    assert losses[best["step"]] == min(losses.values()) and losses[2] != losses[4]
    model, step = runs.load_model(run.run_dir / "best")
    assert step == best["step"]
    assert {path.name.split(".")[0] for path in (run.run_dir / "best" / "checkpoints").glob("ckpt-*")} == {
        f"ckpt-{step}"
    }
    assert any(f"best so far by acd8_8f: step {step}" in line for line in lines)

    # a resumed run trains step 4 again
    again, _ = watcher(run, "acd8,motion8")
    again.run(4, {})
    assert [record["step"] for record in records(run.run_dir)] == [2, 2, 4, 4]
    assert json.loads((run.run_dir / "best" / "best.json").read_text()) == best


def test_another_step_is_best_by_another_metric(tmp_path):
    run = saved_run(navsynth, tmp_path / "run", *CODES, *EXCHANGE)
    by_motion, _ = watcher(run, "acd8,motion8", best="motion8")
    by_motion.run(4, {})
    assert json.loads((run.run_dir / "best" / "best.json").read_text())["metric"] == "motion8_8f"
    with pytest.raises(cli.UsageError, match="one of acd8, motion8. Received 'fcs8'"):
        watcher(run, "acd8,motion8", best="fcs8")


@pytest.mark.parametrize("text", ["", "{}", "null", '{"metric": "acd8_8f"}', '{"step": 2', "\xff", "[" * 9999])
def test_a_damaged_best_json_is_named_before_training(codes, tmp_path, text):
    run = dataclasses.replace(codes, run_dir=shutil.copytree(codes.run_dir, tmp_path / "run"))
    (run.run_dir / "best").mkdir()
    (run.run_dir / "best" / "best.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"best\.json is (damaged|not UTF-8)"):
        watcher(run, "acd8")


def test_lines_that_are_no_records_are_dropped_when_a_run_goes_on(codes, tmp_path):
    run = dataclasses.replace(codes, run_dir=shutil.copytree(codes.run_dir, tmp_path / "run"))
    action, _ = watcher(run, "acd8")
    by_hand = '{"step": 9, "metric": "acd8"}\n'
    (run.run_dir / "evaluation.jsonl").write_text(f'7\n[1]\n"x"\nnull\n{by_hand}{{"during_training": true}}\n{{"step"')
    action.rewind(2)
    assert (run.run_dir / "evaluation.jsonl").read_text() == by_hand


def test_bad_periods_and_metrics_are_refused_before_training(codes):
    with pytest.raises(
        cli.UsageError, match="--evaluate_every_steps=3 must be a multiple of --checkpoint_every_steps=2"
    ):
        watcher(codes, "acd8", 3)
    with pytest.raises(cli.UsageError, match="cannot be ranked by pixels_nearest8"):
        watcher(codes, "pixels_nearest8")
    with pytest.raises(cli.UsageError, match="Unknown metric 'acdc8'"):
        watcher(codes, "acdc8")
    with pytest.raises(cli.UsageError, match="evaluate_metrics is empty"):
        watcher(codes, " , ")
    with pytest.raises(ValueError, match="no weights were given.*i3d-kinetics-400.*--weights=i3d=PATH"):
        watcher(codes, "fvd8_16f")
    unlabelled = dataclasses.replace(codes.run_data.trained, action=None, action_names=None)
    run_data = runs.RunData(codes.run_data.all, codes.run_data.is_trained, unlabelled)
    with pytest.raises(ValueError, match="needs action labels"):
        watcher(dataclasses.replace(codes, run_data=run_data), "judge_fvd8_8f")


@pytest.mark.slow
def test_the_loop_measures_while_it_trains(tmp_path):
    config, _ = cli.parse(
        navsynth.Config, navsynth.PRESETS, [*TINY, *STEPS, *CODES, *EXCHANGE, f"--run_dir={tmp_path / 'run'}"]
    )
    run_data = runs.load_data(config)
    model = navsynth.build_model(config, run_data)
    runs.start(config, "navsynth", model, run_data)
    run = Run(tmp_path / "run", config, run_data, model)
    action, _ = watcher(
        run, "acd8,judge_fvd6_8f", settings=evaluate.Config(cache_dir=str(tmp_path / "cache"), judge_steps=2)
    )
    loop.run(
        model,
        lambda first: data.make_dataset(run_data.trained, 2, 8, start_step=first),
        run.run_dir,
        4,
        steps_per_loop=2,
        checkpoint_every_steps=2,
        actions=[action],
        report=lambda line: None,
    )
    assert [record["step"] for record in records(run.run_dir)] == [2, 2, 4, 4]
    assert runs.load_model(run.run_dir / "best")[1] in (2, 4)


def test_training_imports_no_program():
    """What training and evaluation share lies in modules without a command line."""
    folder = pathlib.Path(measure.__file__).parent
    programs = {p.stem for p in folder.glob("*.py") if '__name__ == "__main__"' in p.read_text(encoding="utf-8")}
    assert {"evaluate", "generate", "compare", "navsynth"} <= programs
    shared = [folder / f"{name}.py" for name in ("train", "measure", "run_evaluation", "folders", "best")]
    for path in (*shared, *(folder / "engine").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = set()
            if isinstance(node, ast.ImportFrom) and node.module == "trainers":
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainers."):
                imported = {node.module.split(".")[1]}
            elif isinstance(node, ast.Import):
                imported = {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("trainers.")}
            assert not imported & programs, path
