"""Runs in stages: each from where the one before it ended, exactly, whenever the run was stopped."""

import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

import tfvidgen
from export import saved_model
from tests.marks import first
from tests.trainers import staged
from tests.trainers.mean_colour import assert_equal, metrics, state, written
from trainers import cli, evaluate, generate, runs
from trainers.engine import loop
from trainers.engine.ema import WeightAverage
from trainers.engine.health import TrainingDiverged
from trainers.engine.stages import Course, Stage

CODE_STEPS, STEPS = (
    5,
    12,
)  # the second stage has an epoch of 3 steps, so its ends, 8 and 11, are no multiples of a period
pytestmark = pytest.mark.usefixtures("quick_graphs")


def train(run_dir, report=lambda line: None, actions=(), strategy=None, decay=0.5, **options):
    """The model of a run in two stages."""
    with (strategy or tf.distribute.get_strategy()).scope():
        model = staged.colour_glo()
        average = WeightAverage(model, decay) if decay else None
    loop.run(
        model,
        staged.stages_of(model, CODE_STEPS, staged.clips, batch_size=2),
        run_dir,
        STEPS,
        strategy,
        steps_per_loop=2,
        checkpoint_every_steps=4,
        actions=actions,
        report=report,
        average=average,
        **options,
    )
    return model


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(run folder, model, steps at which each action ran) of a run from end to end."""
    run_dir, acted = tmp_path_factory.mktemp("undisturbed"), {"any": [], "sampling": []}
    return run_dir, train(run_dir, actions=diaries(acted)), acted


def diaries(acted):
    return [
        loop.Action(lambda step, logs: acted["any"].append(step), 3, name="any"),
        loop.Action(lambda step, logs: acted["sampling"].append(step), 3, name="sampling", samples=True),
    ]


def test_each_stage_trains_what_is_its_own(undisturbed):
    run_dir, model, _ = undisturbed
    lines = metrics(run_dir)
    losses = {line["step"]: sorted(line.keys() - {"step"}) for line in lines}
    assert losses == {
        **dict.fromkeys((2, 3, 4, 5), ["reconstruction_loss"]),
        **dict.fromkeys((6, 8, 9, 10, 12), ["mapping_loss"]),
    }
    assert model.stage == "mapper" and model.can_sample
    assert int(model.optimizer.iterations) == CODE_STEPS
    assert int(model.mapper_optimizer.iterations) == STEPS - CODE_STEPS
    assert np.ptp(np.asarray(model.generate(4, seed=1))) > 0


def test_what_samples_waits_for_the_stage_that_can(undisturbed):
    _, _, acted = undisturbed
    assert acted == {"any": [3, 6, 9, 12], "sampling": [6, 9, 12]}


@pytest.mark.parametrize("at", first(1, [*(pytest.param(at, marks=pytest.mark.long) for at in (4, 6)), 5, 8]))
def test_a_run_stopped_in_any_stage_ends_the_same(tmp_path, undisturbed, at, monkeypatch):
    """In a stage, at its end, after its first step, and at the end of an epoch."""
    run_dir, model, _ = undisturbed
    calls, counted = loop.Steps.__call__, []

    def stop_at(self, iterator, num_steps):
        taken = calls(self, iterator, 1)
        counted.append(taken)
        if len(counted) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return taken

    monkeypatch.setattr(loop.Steps, "__call__", stop_at)
    acted = {"any": [], "sampling": []}
    with pytest.raises(SystemExit):
        train(tmp_path, actions=diaries(acted))
    monkeypatch.undo()
    assert f"ckpt-{at}" in written(tmp_path)
    again = train(tmp_path, actions=diaries(acted))
    assert_equal(state(again), state(model))
    assert metrics(tmp_path) == metrics(run_dir)
    assert acted == undisturbed[2]


def test_stages_are_trained_one_by_one_or_together(tmp_path, undisturbed):
    run_dir, model, acted = undisturbed
    too_early = "--stage=mapper begins after step 5, .* at step 0, in codes: finish .*--stage=codes"
    with pytest.raises(ValueError, match=too_early):
        train(tmp_path / "early", stage="mapper")
    said, acts = [], {"any": [], "sampling": []}
    first = train(tmp_path / "run", stage="codes", actions=diaries(acts))
    assert first.stage == "codes" and written(tmp_path / "run") == ["ckpt-4", "ckpt-5"]
    train(tmp_path / "run", said.append, stage="codes", actions=diaries(acts))
    assert said == ["already trained for 5 steps, including codes"]
    assert_equal(state(train(tmp_path / "run", stage="mapper", actions=diaries(acts))), state(model))
    assert metrics(tmp_path / "run") == metrics(run_dir) and acts == acted


def test_a_stage_builds_on_the_average_of_the_one_before_it(tmp_path):
    """Codes and decoder are those that the first stage would be shown with, and are not trained any more."""
    with_average = train(tmp_path / "codes", stage="codes")
    state_of = {v.path: v.numpy() for v in with_average.weights}
    average = tfvidgen.runs.read_values(tmp_path / "codes" / "checkpoints" / "ckpt-5", "average.")
    mass = average["average.mass"]
    model = train(tmp_path / "codes")
    kernel = model.to_colour.kernel.numpy()
    np.testing.assert_allclose(kernel, average["average.to_colour.kernel"] / mass, rtol=1e-6)
    assert np.abs(kernel - state_of[model.to_colour.kernel.path.replace(model.name, with_average.name)]).max() > 1e-3
    after = tfvidgen.runs.read_values(tmp_path / "codes" / "checkpoints" / "ckpt-12", "average.")
    assert after["average.mass"] == pytest.approx(1 - 0.5 ** (STEPS - CODE_STEPS))  # of the second stage alone
    np.testing.assert_allclose(after["average.to_colour.kernel"] / after["average.mass"], kernel, rtol=1e-5)


@pytest.mark.parametrize("begin", [0, CODE_STEPS])
def test_batches_without_a_step_are_given_that_of_the_run(begin):
    """The steps of a stage would otherwise all draw the same numbers, if it leaves the first optimizer alone."""
    rows = staged.rows_of(4, batch_size=2)

    def without_step(start):
        return rows(start).map(lambda batch: {"video_id": batch["video_id"]})

    stages = [[Stage("codes", fn, CODE_STEPS), Stage("mapper", fn)] for fn in (rows, without_step)]
    numbered, given = (Course(found, STEPS).dataset(begin + 2).take(2) for found in stages)
    assert given.element_spec == numbered.element_spec
    for found, expected in zip(given.as_numpy_iterator(), numbered.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(found["video_id"], expected["video_id"])
        np.testing.assert_array_equal(found["step"], expected["step"])


@pytest.mark.parametrize("epoch", first(1, [0, 1]))
def test_what_an_epoch_breaks_is_neither_saved_nor_blamed_on_a_step(tmp_path, undisturbed, monkeypatch, epoch):
    """Once the cause is mended, the run goes on from before it, and is the one that nothing disturbed."""
    match = staged.ColourGLO.match

    def broken(self, num_epochs):
        match(self, num_epochs)
        if num_epochs == epoch:
            self.matches.assign(self.matches * np.nan)

    monkeypatch.setattr(staged.ColourGLO, "match", broken)
    place = rf"matches became not finite in `at_epoch\({epoch}\)` of mapper, after {CODE_STEPS + 3 * epoch} steps"
    with pytest.raises(TrainingDiverged, match=f"{place}. The last good state is .*ckpt-5: mend that function"):
        train(tmp_path, max_bad_steps=2)
    assert written(tmp_path) == ["ckpt-4", "ckpt-5"] and not (tmp_path / "bad_step.json").exists()
    monkeypatch.undo()
    assert_equal(state(train(tmp_path)), state(undisturbed[1]))


@pytest.mark.long
def test_epochs_end_on_every_replica(two_replicas, tmp_path, undisturbed):
    """What an epoch's end changes is the same on two replicas as on one device."""
    model = train(tmp_path, strategy=two_replicas)
    copies = two_replicas.experimental_local_results(model.matches.value)
    np.testing.assert_array_equal(*(copy.numpy() for copy in copies))
    np.testing.assert_allclose(copies[0], undisturbed[1].matches.numpy(), rtol=1e-5)


# ---------------------------------------------------------------- programs
@pytest.fixture(scope="module")
def half_trained(tmp_path_factory):
    """A run folder of the trainer after its first stage."""
    run_dir = tmp_path_factory.mktemp("program") / "run"
    flags = ["--preset=smoke", f"--run_dir={run_dir}", "--ema_decay=0.5", "--notensorboard", "--evaluate_metrics=acd4"]
    assert staged.main([*flags, "--evaluate_every_steps=4", "--stage=codes"]) == 0
    return run_dir, flags


@pytest.mark.long
def test_a_run_without_the_stage_that_samples_reconstructs_only(half_trained, capsys):
    run_dir, _ = half_trained
    assert json.loads((run_dir / "config.json").read_text())["stages"] == {"codes": 0, "mapper": 6}
    model = tfvidgen.load(run_dir)
    assert (model.stage, model.step, model.can_sample) == ("codes", 6, False)
    assert (run_dir / "samples" / "step_0000004.png").exists() and not (run_dir / "samples" / "new.gif").exists()
    assert not (run_dir / "evaluation.jsonl").exists() and not (run_dir / "best").exists()
    with pytest.raises(
        ValueError, match="trained up to its stage 'codes', but new videos .* 'mapper' onwards: train that"
    ):
        model.generate(1)
    for program in (generate, saved_model):
        assert program.main([f"--run_dir={run_dir}"]) == 1
        assert "new videos can only be sampled from the stage 'mapper' onwards" in capsys.readouterr().err
    assert not (run_dir / "export").exists()
    assert generate.main([f"--run_dir={run_dir}", "--mode=lookup", "--ids=0,1"]) == 0
    assert evaluate.main([f"--run_dir={run_dir}"]) == 0
    results = json.loads((run_dir / "evaluation.json").read_text())
    assert results["trained_videos"]["psnr"] > 5 and "new_videos" not in results


@pytest.mark.long
def test_the_same_command_trains_the_rest(half_trained, capsys):
    run_dir, flags = half_trained
    assert staged.main([*flags, "--evaluate_every_steps=4"]) == 0
    model = tfvidgen.load(run_dir)
    assert (model.stage, model.step, model.can_sample) == ("mapper", 14, True)
    assert (run_dir / "samples" / "new.gif").exists() and (run_dir / "evaluation.json").exists()
    steps = {json.loads(line)["step"] for line in (run_dir / "evaluation.jsonl").read_text().splitlines()}
    assert steps == {8, 12, 14}  # not at 4, in the first stage
    assert tfvidgen.load(run_dir, step=12).stage == "mapper"
    assert saved_model.main([f"--run_dir={run_dir}"]) == 0


def test_a_repeated_run_trains_every_stage(half_trained):
    """Which stage a command trained, such as `--stage=codes`, is no setting of the run that `--config` repeats."""
    assert "stage" not in cli.repeated(str(half_trained[0]), staged.Config, "tests.trainers.staged")


def test_refusals_of_the_program(half_trained, tmp_path, capsys):
    _, flags = half_trained
    place = f"--run_dir={tmp_path / 'run'}"
    for given, message in (
        ("--stage=mapper", "--stage=mapper begins after step 6"),
        ("--stage=glo", "--stage must be one of codes, mapper. Received 'glo'"),
        ("--code_steps=14", "its stages take codes 14, mapper the rest: raise --total_steps"),
    ):
        assert staged.main([*flags, place, given]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_dry_run_takes_steps_of_every_stage(half_trained, tmp_path, capsys):
    _, flags = half_trained
    assert staged.main([*flags, f"--run_dir={tmp_path / 'run'}", "--dry_run"]) == 0
    assert "at the peak of two steps" in capsys.readouterr().out


def test_stages_are_those_of_the_model(tmp_path):
    stage = Stage("codes", staged.clips)
    with pytest.raises(ValueError, match="Only the last stage may leave out `num_steps`"):
        Course([stage, stage], 10)
    with pytest.raises(ValueError, match="10 steps in all, but its stages take codes 10, mapper the rest"):
        Course([Stage("codes", staged.clips, 10), Stage("mapper", staged.clips)], 10)
    for wrong in (
        {"num_steps": 0},
        {"num_steps": 6.0},
        {"epoch_steps": -1},
        {"epoch_steps": 2.5},
        {"frames_per_step": -1},
    ):
        with pytest.raises(ValueError, match=f"Stage 'codes': `{list(wrong)[0]}` must be an int of at least [01]"):
            Stage("codes", staged.clips, **wrong)
    with pytest.raises(ValueError, match="left out: this system trains in a single stage. Received 'glo'"):
        Course([Stage("", staged.clips)], 10).end("glo")
    model = staged.colour_glo()
    with pytest.raises(ValueError, match="A stage of ColourGLO must be one of codes, mapper. Received 'glo'"):
        model.begin_stage("glo")
    codes, mapper = staged.stages_of(model, CODE_STEPS, staged.clips, batch_size=2)
    for given in ([], [mapper], [mapper, codes], [codes, codes]):
        names = ", ".join(stage.name for stage in given) or "none"
        with pytest.raises(ValueError, match=f"stages of ColourGLO are codes, mapper. Received {names}: give a Stage"):
            loop.run(model, given, tmp_path / "run", STEPS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong", [{"stages": ("codes")}, {"stages": ("codes", "codes")}, {"stages": ("", "mapper")}, {"stages": ("codes",)}]
)
def test_names_of_stages_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="must be a tuple of distinct names, and `sampling_stage` one of them"):
        type("Wrong", (staged.ColourGLO,), wrong)(4)


def test_fit_trains_the_stage_that_was_begun():
    """Each step is another one to its draws, also where batches bring no `step`."""
    model = staged.colour_glo()
    without_step = staged.clips(0).map(lambda batch: {name: batch[name] for name in ("video", "video_id")})
    losses, steps = [], []
    for stage in model.stages:
        model.begin_stage(stage)
        for _ in range(2):
            steps.append(int(model.step_of({})))
            losses.append(list(model.fit(without_step, steps_per_epoch=1, verbose=0, shuffle=False).history))
    assert losses == [["reconstruction_loss"]] * 2 + [["mapping_loss"]] * 2
    assert steps == [0, 1, 2, 3]
    rows = staged.rows_of(model.num_videos, batch_size=2)(0)  # this stage needs no videos
    assert list(model.fit(rows, steps_per_epoch=1, verbose=0, shuffle=False).history) == ["mapping_loss"]
    model.begin_stage("codes")
    with pytest.raises(ValueError, match="must be a dict with `video`"):
        model.fit(rows, steps_per_epoch=1, verbose=0)


def test_runs_that_say_otherwise_are_refused(half_trained, tmp_path):
    run_dir, _ = half_trained
    description = runs.read(run_dir)
    os.symlink(run_dir / "checkpoints", tmp_path / "checkpoints")
    for begins in (
        {"codes": 0},
        {},
        {"codes": 100, "mapper": 106},
        {"codes": 6, "mapper": 0},
        {"codes": 0, "mapper": 0},
    ):
        description["stages"] = begins
        (tmp_path / "config.json").write_text(json.dumps(description))
        with pytest.raises(ValueError, match="does not describe a run .stages is "):
            tfvidgen.load(tmp_path)
