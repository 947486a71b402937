"""The folder of checkpoints: no command ever loses a good one, whatever has happened to the files."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from export import saved_model
from tests.marks import first
from tests.trainers.mean_colour import MeanColour, assert_equal, lines, mean_colour, metrics, state, train, written
from tfvidgen import runs as reading
from trainers import evaluate, generate, navsynth
from trainers.engine import checkpoints
from trainers.engine.ema import WeightAverage

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run folder, state) of a run of 16 steps, with checkpoints of steps 12 and 16."""
    run_dir, model = tmp_path_factory.mktemp("finished"), mean_colour()
    train(model, run_dir, 16)
    return run_dir, state(model)


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """State of an undisturbed run of 20 steps."""
    model = mean_colour()
    train(model, tmp_path_factory.mktemp("longer"), 20)
    return state(model)


@pytest.fixture
def run_dir(finished, tmp_path) -> pathlib.Path:
    """A copy of the finished run, to damage."""
    return shutil.copytree(finished[0], tmp_path / "run")


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def file(run_dir: pathlib.Path, name: str) -> pathlib.Path:
    return run_dir / "checkpoints" / name


# ---- the list is a hint ----------------------------------------------------------------------------------------------
LIST = (
    'model_checkpoint_path: "ckpt-16"\nall_model_checkpoint_paths: "ckpt-12"\nall_model_checkpoint_paths: "ckpt-16"\n'
)


def test_the_list_is_one_that_tensorflow_reads(finished):
    assert tf.train.latest_checkpoint(str(finished[0] / "checkpoints")) == str(file(finished[0], "ckpt-16"))
    assert file(finished[0], "checkpoint").read_text() == LIST


@pytest.mark.parametrize(
    ("text", "what"),
    first(
        3,
        [
            (None, "was missing"),
            (b"", "was missing"),
            (b"model_check", "was damaged"),
            (b'model_checkpoint_path: "ckpt-1', "was damaged"),
            (b"\xff\xfe\x00", "was damaged"),
            (b'model_checkpoint_path: "ckpt-12"\n', "named ckpt-12"),
            (b'model_checkpoint_path: "ckpt-99"\n', "named ckpt-99"),
            (b'model_checkpoint_path: "/elsewhere/ckpt-12"\n', "named ckpt-12"),
        ],
    ),
)
def test_a_list_that_is_wrong_is_written_again_from_the_files(run_dir, longer, text, what):
    path = file(run_dir, "checkpoint")
    path.unlink() if text is None else path.write_bytes(text)
    kept = {name: content for name, content in contents(run_dir).items() if "ckpt-16" in name}
    model, said = mean_colour(), []
    train(model, run_dir, 20, resume="auto" if text else "must", report=said.append)
    assert f"the list {path} {what}: it is rewritten from the files next to it" in said
    assert_equal(state(model), longer)
    assert written(run_dir) == ["ckpt-16", "ckpt-20"]
    assert kept.items() <= contents(run_dir).items()
    assert tf.train.latest_checkpoint(str(run_dir / "checkpoints")) == str(file(run_dir, "ckpt-20"))


def test_a_finished_run_without_its_list_stays_finished(run_dir, finished):
    file(run_dir, "checkpoint").unlink()
    said = []
    assert train(mean_colour(), run_dir, 16, report=said.append) == {}
    assert said[-1] == "already trained for 16 steps"
    assert contents(run_dir) == contents(finished[0])


@pytest.mark.parametrize("text", ["", "model_check", LIST])
def test_a_list_whose_checkpoints_are_all_gone_is_refused(run_dir, text):
    for path in (run_dir / "checkpoints").glob("ckpt-*"):
        path.unlink()
    file(run_dir, "checkpoint").write_text(text)
    before = contents(run_dir)
    for resume in ("auto", "must"):
        with pytest.raises(
            ValueError, match="holds a list of checkpoints, but their files are gone.*delete .*to start over"
        ):
            train(mean_colour(), run_dir, 20, resume=resume)
    assert contents(run_dir) == before


# ---- damage ----------------------------------------------------------------------------------------------------------
def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    """One bit in the middle of the largest tensor's bytes, or of the index's first block."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def zero(path: pathlib.Path) -> None:
    """As after a power failure: its length is right, its content was never written."""
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE = [cut, flip, empty, zero, pathlib.Path.unlink]
ENDINGS = ["index", "data-00000-of-00001"]


@pytest.mark.parametrize("ending", first(1, ENDINGS))
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(run_dir, longer, damage, ending):
    damage(file(run_dir, f"ckpt-16.{ending}"))
    broken = {name: content for name, content in contents(run_dir / "checkpoints").items() if "ckpt-16" in name}
    model, said = mean_colour(), []
    train(model, run_dir, 20, resume="must" if ending == "index" else "auto", report=said.append)
    (line,) = (line for line in said if "is damaged" in line)
    assert line.startswith(f"The checkpoint {file(run_dir, 'ckpt-16')} is damaged (")
    assert line.endswith("is set aside as damaged-ckpt-16.*: going back 4 steps, to the checkpoint of step 12.")
    assert_equal(state(model), longer)
    assert [line["step"] for line in lines(run_dir)] == list(range(2, 21, 2))
    after = contents(run_dir / "checkpoints")
    assert {f"damaged-{name}": content for name, content in broken.items()}.items() <= after.items()
    assert written(run_dir)[:2] == ["ckpt-16", "ckpt-20"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_reader_takes_the_newest_whole_checkpoint_and_changes_nothing(run_dir, damage, ending, capsys):
    damage(file(run_dir, f"ckpt-16.{ending}"))
    before, model = contents(run_dir), MeanColour()
    model.build()
    assert checkpoints.restore(model, run_dir) == 12
    error = capsys.readouterr().err
    assert "ckpt-16 is damaged (" in error and "going back 4 steps, to the checkpoint of step 12." in error
    assert "set aside" not in error
    assert contents(run_dir) == before


def test_where_none_is_whole_the_run_is_refused_and_nothing_touched(run_dir):
    cut(file(run_dir, "ckpt-16.index"))
    file(run_dir, "ckpt-12.data-00000-of-00001").unlink()
    before = contents(run_dir)
    attempts = [lambda resume=resume: train(mean_colour(), run_dir, 20, resume=resume) for resume in ("auto", "must")]
    for attempt in (*attempts, lambda: checkpoints.restore(mean_colour(), run_dir)):
        with pytest.raises(ValueError, match=r"ckpt-16 is damaged .*ckpt-12 is damaged .*No other one .* is intact"):
            attempt()
        assert contents(run_dir) == before


def test_a_second_damaged_checkpoint_of_a_step_does_not_replace_the_first(run_dir):
    first = {}
    for copy in ("damaged-ckpt-16", "damaged-ckpt-16-1", "damaged-ckpt-16-2"):
        cut(file(run_dir, "ckpt-16.data-00000-of-00001"))
        train(mean_colour(), run_dir, 16)
        assert file(run_dir, f"{copy}.index").exists() and file(run_dir, f"{copy}.data-00000-of-00001").exists()
        first = first or contents(run_dir / "checkpoints")
    kept = {name: content for name, content in first.items() if name.startswith("damaged")}
    assert kept.items() <= contents(run_dir / "checkpoints").items()


def test_a_checkpoint_that_does_not_fit_is_no_damaged_one(run_dir):
    before = contents(run_dir)
    with pytest.raises(ValueError, match="does not fit this model"):
        train(mean_colour(width=5), run_dir, 20)
    assert contents(run_dir) == before


def test_a_lack_of_memory_or_rights_is_no_damage(run_dir, monkeypatch):
    def fail(state, prefix):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    monkeypatch.setattr(reading, "_read", fail)
    before = contents(run_dir)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(mean_colour(), run_dir, 20)
    assert contents(run_dir) == before


# ---- what killed writers leave ---------------------------------------------------------------------------------------
def strays(run_dir: pathlib.Path, step: int) -> list[pathlib.Path]:
    """What a process leaves behind that is killed while it writes a checkpoint: its data may be in place, its index is not."""
    folder = run_dir / "checkpoints" / ".writing"
    folder.mkdir(parents=True)
    files = [folder / f"ckpt-{step}.index", file(run_dir, f"ckpt-{step}.data-00000-of-00001")]
    old = file(run_dir, f"ckpt-{step + 1}_temp")  # as version 0.1 left them
    old.mkdir()
    files += [old / "part-00000-of-00001.data-00000-of-00001.tempstate7311606239843624213"]
    files += [file(run_dir, f"ckpt-{step + 1}.data-00000-of-00001"), file(run_dir, "checkpoint.tmp1a2b3c")]
    for path in files:
        path.write_bytes(b"half a checkpoint")
    return [folder, old, *files]


@pytest.mark.parametrize("saved", [True, False])
def test_half_written_checkpoints_are_removed_and_are_no_damage(run_dir, tmp_path, longer, saved):
    if not saved:
        run_dir = tmp_path / "new"
    paths, said, model = strays(run_dir, 17), [], mean_colour()
    train(model, run_dir, 20, report=said.append)
    assert not any(path.exists() for path in paths)
    assert not list((run_dir / "checkpoints").glob("damaged*")) and not any("damaged" in line for line in said)
    assert_equal(state(model), longer)


def test_a_half_written_checkpoint_is_none_to_resume_from(tmp_path):
    strays(tmp_path, 4)
    with pytest.raises(ValueError, match="resume=must, but there is no checkpoint"):
        train(mean_colour(), tmp_path, 8, resume="must")
    train(mean_colour(), tmp_path, 4, resume="never")
    assert written(tmp_path) == ["ckpt-4"]


def test_what_others_keep_beside_checkpoints_stays(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    kept = [file(tmp_path, name) for name in ("ckpt-2-best.index", "notes.txt", "damaged-ckpt-2.index")]
    for path in kept:
        path.write_text("mine")
    train(mean_colour(), tmp_path, 12)
    assert [path.read_text() for path in kept] == ["mine"] * 3


def test_reading_a_run_does_not_disturb_its_writer(run_dir):
    paths = strays(run_dir, 17)
    assert checkpoints.restore(mean_colour(), run_dir) == 16
    assert all(path.exists() for path in paths)


# ---- which are kept, and which is taken ------------------------------------------------------------------------------
def test_a_writer_may_finish_while_its_folder_is_read(run_dir, monkeypatch):
    writing, iterdir = file(run_dir, ".writing"), pathlib.Path.iterdir
    writing.mkdir()

    def too_late(path):
        if path == writing:
            writing.rmdir()
        return iterdir(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", too_late)
    assert checkpoints.restore(mean_colour(), run_dir) == 16


def test_a_damaged_average_is_a_damaged_checkpoint(tmp_path, capsys):
    model = mean_colour()
    train(model, tmp_path, 8, average=WeightAverage(model, 0.5))
    name = "average.codes.rows.sums"
    sums, path = (
        checkpoints.read_values(file(tmp_path, "ckpt-8"), name)[name].tobytes(),
        file(tmp_path, f"ckpt-8.{ENDINGS[1]}"),
    )
    content = path.read_bytes()
    assert content.count(sums) == 1
    path.write_bytes(content.replace(sums, bytes(len(sums))))
    assert checkpoints.restore(mean_colour(), tmp_path) == 4
    assert "going back 4 steps" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ckpt-8 is damaged .*choose another step of 4, 8"):
        checkpoints.restore(mean_colour(), tmp_path, step=8)
    assert checkpoints.restore(mean_colour(), tmp_path, raw_weights=True) == 8


def test_every_so_many_steps_a_checkpoint_is_kept_for_good(tmp_path):
    train(mean_colour(), tmp_path, 30, checkpoint_every_steps=2, keep_every=8)
    assert checkpoints.steps(tmp_path / "checkpoints") == [8, 16, 24, 28, 30]
    train(mean_colour(), tmp_path, 36, checkpoint_every_steps=2)  # from now on no more, and those that were stay
    assert checkpoints.steps(tmp_path / "checkpoints") == [8, 16, 24, 34, 36]


@pytest.mark.parametrize("is_listed", [True, False])
def test_checkpoints_kept_for_good_stay_when_the_period_changes(tmp_path, is_listed):
    train(mean_colour(), tmp_path, 24, keep_every=4)
    if not is_listed:  # then the last three may be those of a process that was killed before it dropped one
        file(tmp_path, "checkpoint").unlink()
    train(mean_colour(), tmp_path, 32)
    kept = [4, 8, 12, 16] if is_listed else [4, 8, 12]
    assert checkpoints.steps(tmp_path / "checkpoints") == [*kept, 28, 32]


def test_a_clock_that_runs_backward_leaves_no_checkpoint_behind(tmp_path, monkeypatch):
    import time

    train(mean_colour(), tmp_path, 8)
    monkeypatch.setattr(time, "time", lambda real=time.time: real() - 1e6)
    train(mean_colour(), tmp_path, 16)
    assert checkpoints.steps(tmp_path / "checkpoints") == [12, 16]


def test_a_step_may_be_named(run_dir, finished):
    model = mean_colour()
    assert checkpoints.restore(model, run_dir, step=12) == 12
    assert np.abs(state(model)["codes.rows"] - finished[1]["codes.rows"]).max() > 0
    with pytest.raises(ValueError, match=r"no checkpoint of step 13 under .*Available steps: 12, 16\."):
        checkpoints.restore(model, run_dir, step=13)
    cut(file(run_dir, "ckpt-12.data-00000-of-00001"))
    with pytest.raises(ValueError, match=r"ckpt-12 is damaged \(.*\): choose another step of 12, 16"):
        checkpoints.restore(model, run_dir, step=12)


# ---- names and files of a run folder ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", first(2, ["lr[1e-3]", "what*?", "back\\slash]", "new\nline", "é {1,2} 100 % $HOME", "caf\udce9"])
)
def test_a_run_folder_may_have_any_name(tmp_path, name, longer):
    run_dir = tmp_path / name
    train(mean_colour(), run_dir, 16)
    model, said = mean_colour(), []
    train(model, run_dir, 20, resume="must", report=said.append)
    assert_equal(state(model), longer)
    assert not any("damaged" in line for line in said)
    assert checkpoints.restore(mean_colour(), run_dir) == 20
    assert checkpoints.read_values(file(run_dir, "ckpt-20"), "codes.rows")["codes.rows"].shape == (6, 3)


@pytest.mark.parametrize("name", ["metrics.jsonl", "bad_step.json", "actions.json"])
def test_a_file_that_is_not_text_is_named_and_the_run_is_not_resumed(run_dir, name):
    (run_dir / name).write_bytes(b'{"step": 2}\n\xff\xfe\n')
    before = contents(run_dir)
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text \(invalid start byte at byte 12\)"):
        train(mean_colour(), run_dir, 20)
    assert contents(run_dir) == before


@pytest.mark.parametrize("text", ["", "{}", "null", "[3]", '[{"step": 3}]', '[{"step": 3, "skip', "[" * 9999])
def test_a_damaged_list_of_bad_steps_is_named(run_dir, text):
    (run_dir / "bad_step.json").write_text(text)
    before = contents(run_dir)
    with pytest.raises(ValueError, match=r"bad_step.json is damaged \(.*restore it from a copy, or delete it"):
        train(mean_colour(), run_dir, 20)
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    "text", ["[]", "7", '{"samples": 1', "null", '{"samples": "x"}', '{"samples": null}', "[" * 9999]
)
def test_a_damaged_record_of_actions_is_named(run_dir, text):
    (run_dir / "actions.json").write_text(text)
    with pytest.raises(ValueError, match="actions.json .*delete it to run the last actions again"):
        train(mean_colour(), run_dir, 20)


@pytest.mark.parametrize("text", [None, ""])
def test_losses_may_be_missing(run_dir, longer, text):
    path = run_dir / "metrics.jsonl"
    path.unlink() if text is None else path.write_text(text)
    model = mean_colour()
    train(model, run_dir, 20)
    assert_equal(state(model), longer)
    assert [line["step"] for line in metrics(run_dir)] == [18, 20]


def test_large_variables_have_files_of_their_own(tmp_path, longer, monkeypatch):
    for module in (checkpoints, reading):
        monkeypatch.setattr(module, "LARGE", 36)  # bytes: the kernel, its slots, the codes and theirs
    train(mean_colour(), tmp_path, 16)
    endings = sorted(path.name.split(".")[1] for path in (tmp_path / "checkpoints").glob("ckpt-16.*"))
    assert endings == [*(f"data-{i:05d}-of-00005" for i in range(5)), "index"]
    assert checkpoints.read_values(file(tmp_path, "ckpt-16"))["codes.rows"].shape == (6, 3)
    file(tmp_path, "ckpt-16.data-00003-of-00005").unlink()
    model, said = mean_colour(), []
    train(model, tmp_path, 20, report=said.append)
    assert any("there is no file ckpt-16.data-00003-of-00005" in line for line in said)
    assert_equal(state(model), longer)
    assert checkpoints.steps(tmp_path / "checkpoints") == [16, 20]


def test_every_replica_gets_what_was_saved(run_dir, two_replicas):
    with two_replicas.scope():
        model = mean_colour()
    checkpoints.restore(model, run_dir)
    saved = checkpoints.read_values(file(run_dir, "ckpt-16"))
    for name, variable in checkpoints.model_state(model).items():
        for copy in variable.values:
            np.testing.assert_array_equal(copy.numpy(), saved[name], err_msg=name)


def test_a_table_that_broke_is_found_wherever_it_did(monkeypatch):
    monkeypatch.setattr(checkpoints, "_CHUNK", 8)
    for row in (0, 3, 6):
        values = np.zeros((7, 3), np.float32)
        table = tf.Variable(values)
        assert checkpoints.not_finite({"table": table, "step": tf.Variable(3)}) == []
        values[row, 1] = np.inf
        table.assign(values)
        assert checkpoints.not_finite({"table": table, "scalar": tf.Variable(np.nan)}) == ["table", "scalar"]


# ---- programs that read a run ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A run of the smallest NAVSynth with checkpoints of steps 2 and 4, by the trainer itself."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert navsynth.main(["--preset=smoke", f"--run_dir={run_dir}", "--notensorboard", "--strategy=none"]) == 0
    return run_dir


PROGRAMS = {
    "generate": (generate.main, ["--num_videos=2"]),
    "evaluate": (evaluate.main, ["--metrics=acd4", "--cache_dir=none"]),
    "export": (saved_model.main, []),
}


@pytest.mark.long
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_take_the_step_that_is_named(trained, tmp_path, program, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    main, flags = PROGRAMS[program]
    assert main([f"--run_dir={run_dir}", "--step=2", *flags]) == 0
    if program == "generate":
        assert "2 videos at step 2" in capsys.readouterr().out
    elif program == "evaluate":
        assert json.loads((run_dir / "evaluation.json").read_text())["step"] == 2
    else:
        (metadata,) = (json.loads(path.read_text()) for path in (run_dir / "export").rglob("metadata.json"))
        assert metadata["step"] == 2 and metadata["metrics"] is None  # those are of step 4
    capsys.readouterr()
    assert main([f"--run_dir={run_dir}", "--step=3", *flags]) == 1
    assert "There is no checkpoint of step 3 under" in capsys.readouterr().err


@pytest.mark.parametrize("program", [pytest.param(p, marks=[pytest.mark.long] * (p == "export")) for p in PROGRAMS])
def test_programs_go_back_to_the_newest_whole_checkpoint(trained, tmp_path, program, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    cut(file(run_dir, "ckpt-4.data-00000-of-00001"))
    before = contents(run_dir / "checkpoints")
    main, flags = PROGRAMS[program]
    assert main([f"--run_dir={run_dir}", *flags]) == 0
    assert "ckpt-4 is damaged (" in (error := capsys.readouterr().err) and "to the checkpoint of step 2." in error
    assert contents(run_dir / "checkpoints") == before


def test_a_trainer_that_is_refused_changes_nothing(trained, tmp_path, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    for step in (2, 4):
        cut(file(run_dir, f"ckpt-{step}.index"))
    before = contents(run_dir)
    flags = ["--preset=smoke", "--notensorboard", "--strategy=none", "--total_steps=8"]
    assert navsynth.main([*flags, f"--run_dir={run_dir}"]) == 1
    assert "Nothing was changed" in capsys.readouterr().err
    assert contents(run_dir) == before


@pytest.mark.long
def test_the_trainer_goes_back_and_measures_again(trained, tmp_path, capsys):
    run_dir = shutil.copytree(trained, tmp_path / "run")
    expected = checkpoints.read_values(file(run_dir, "ckpt-4"))
    flip(file(run_dir, "ckpt-4.data-00000-of-00001"))
    assert navsynth.main(["--preset=smoke", f"--run_dir={run_dir}", "--notensorboard", "--strategy=none"]) == 0
    assert "set aside as damaged-ckpt-4.*: going back 2 steps" in capsys.readouterr().out
    found = checkpoints.read_values(file(run_dir, "ckpt-4"))
    expected.pop("lines"), found.pop("lines")  # they hold seconds
    assert_equal(found, expected)


@pytest.mark.long
def test_data_that_moved_is_the_same_data(tmp_path, capsys):
    clips = tmp_path / "here"
    clips.mkdir()
    np.save(clips / "clips.npy", np.random.default_rng(0).integers(0, 256, (4, 8, 16, 16, 3), np.uint8))
    flags = ["--preset=smoke", f"--run_dir={tmp_path / 'run'}", "--notensorboard", "--strategy=none", "--noevaluate"]
    assert navsynth.main([*flags, f"--dataset={clips}"]) == 0
    clips.rename(tmp_path / "there")
    assert evaluate.main([f"--run_dir={tmp_path / 'run'}"]) == 1
    assert (
        f"is not at --dataset={clips}: if it has moved, give its new location with --dataset" in capsys.readouterr().err
    )
    assert evaluate.main([f"--run_dir={tmp_path / 'run'}", f"--dataset={tmp_path / 'there'}", "--metrics=fcs4"]) == 0
    assert navsynth.main([*flags, f"--dataset={tmp_path / 'there'}", "--total_steps=6"]) == 0
    assert written(tmp_path / "run") == ["ckpt-4", "ckpt-6"]
