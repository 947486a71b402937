"""What a run does when a step breaks, when the disk is full, and when memory runs out."""

import errno
import json
import os
import pathlib
import resource
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.marks import first
from tests.systems import collection
from tests.trainers.mean_colour import MeanColour, assert_equal, dataset, mean_colour, metrics, state, train, written
from tfvidgen import storage
from trainers import cli, navsynth
from trainers import train as course
from trainers.engine import checkpoints, health, loop
from trainers.engine.steps import StepResult

pytestmark = pytest.mark.usefixtures("quick_graphs")

NAMES = collection().names


def ids_of(step: int) -> list[int]:
    return next(iter(dataset(step)))["video_id"].numpy().tolist()


def spoiled(*steps: int):
    """The data with NaN for pixels in some steps."""

    def dataset_fn(start_step):
        def spoil(batch):
            video = tf.cast(batch["video"], tf.float32)
            is_bad = tf.reduce_any(batch["step"][0] == tf.constant(steps, tf.int64))
            return {**batch, "video": tf.where(is_bad, video * np.nan, video)}

        return dataset(start_step).map(spoil)

    return dataset_fn


def whole(start_step):
    return spoiled()(start_step)


def records(run_dir) -> list[dict]:
    return json.loads((run_dir / "bad_step.json").read_text())


# ---------------------------------------------------------------- a bad step stops the run
@pytest.mark.parametrize("steps_per_loop", first(2, [1, 5, 50]))
def test_a_bad_step_is_located_exactly(tmp_path, steps_per_loop):
    with pytest.raises(health.TrainingDiverged) as caught:
        train(mean_colour(), tmp_path, 20, spoiled(7), steps_per_loop=steps_per_loop, video_names=NAMES)
    said = str(caught.value)
    assert f"colour_loss became nan in step 7 (video ids {', '.join(map(str, ids_of(7)))})" in said
    assert "last good state is" in said and "ckpt-4" in said and str(tmp_path / "bad_step.json") in said
    assert "lower learning rate" in said and "max_bad_steps" in said
    (record,) = records(tmp_path)
    assert (record["step"], record["skipped"], record["video_ids"]) == (7, False, ids_of(7))
    assert record["video_names"] == [NAMES[i] for i in ids_of(7)]
    assert set(record["losses"]) == {"colour_loss", "code_size"}
    assert record["losses"]["colour_loss"] == "nan" and record["losses"]["code_size"] > 0
    model = mean_colour()
    assert checkpoints.restore(model, tmp_path) == 4
    assert all(np.isfinite(value).all() for value in state(model).values())


def test_a_bad_step_is_one_message_of_a_program(tmp_path, capsys):
    def run(config, other):
        train(mean_colour(), tmp_path, 20, spoiled(1))

    assert cli.main("trainers.test", "Trains.", cli.RunConfig, {}, run, []) == 1
    error = capsys.readouterr().err
    assert error.startswith("trainers.test: error: colour_loss became nan in step 1 (video ids ")
    assert error.count("\n") == 1


def test_a_bad_first_step_has_no_state_before_it(tmp_path):
    with pytest.raises(health.TrainingDiverged, match=r"became nan in step 0 .*last good state is none"):
        train(mean_colour(), tmp_path, 20, spoiled(0))
    assert written(tmp_path) == []


class SteepColour(MeanColour):
    """Adds |code| * closeness: a loss of a fine value, whose gradient is 0 * infinity where `closeness` is 0."""

    def train_step(self, batch):
        target = tf.reduce_mean(tf.cast(batch["video"], tf.float32) / 255.0, [1, 2, 3])
        code, weights = self.codes(batch["video_id"]), [v.value for v in self.to_colour.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([code, weights])
            colour = self.to_colour(code)
            size = tf.sqrt(tf.reduce_sum(tf.square(colour)) * tf.reduce_mean(batch["closeness"]))
            loss = tf.reduce_mean(tf.square(colour - target)) + 0.01 * size
        code_gradient, gradients = tape.gradient(loss, [code, weights])
        self.optimizer.apply(gradients, self.to_colour.trainable_variables)
        self.codes.update(batch["video_id"], code_gradient, batch["step"][0])
        return {"colour_loss": loss}


def steep(*steps: int):
    def dataset_fn(start_step):
        def add(batch):
            is_bad = tf.reduce_any(batch["step"][:, None] == tf.constant(steps, tf.int64), 1)
            return {**batch, "closeness": tf.where(is_bad, 0.0, 1.0)}

        return dataset(start_step).map(add)

    return dataset_fn


def steep_colour() -> SteepColour:
    model = SteepColour()
    model.build()
    model.compile(keras.optimizers.Adam(0.05))
    return model


def test_weights_that_broke_are_not_saved(tmp_path):
    """Step 7's loss is fine and its gradient is not; the checkpoint of step 8 would hold what it left."""
    with pytest.raises(health.TrainingDiverged, match=r"to_colour.* became non-finite between steps 4 and 7") as caught:
        train(steep_colour(), tmp_path, 20, steep(7), steps_per_loop=50)
    assert "ckpt-4" in str(caught.value)
    assert written(tmp_path) == ["ckpt-4"]


# ---------------------------------------------------------------- bad steps that are passed over
@pytest.fixture(scope="module")
def without_step_7(tmp_path_factory):
    """(run folder, state) of a run to step 12 that knew of step 7 from the start and so never took it."""
    run_dir = tmp_path_factory.mktemp("without")
    storage.write_json(run_dir / "bad_step.json", [{"step": 7, "skipped": True}])
    model = mean_colour()
    train(model, run_dir, 12, whole)
    return run_dir, state(model)


def test_a_step_that_is_passed_over_leaves_no_trace(without_step_7):
    """Against the steps by hand: codes, their slots, the optimizer's and its count."""
    model = mean_colour()
    step = tf.function(model.train_step)
    for batch in whole(0).take(12):
        if batch["step"][0] != 7:
            step(batch)
    by_hand = state(model)
    assert by_hand["optimizer.0000"] == 11  # Adam's iterations
    for name, value in without_step_7[1].items():
        np.testing.assert_allclose(value, by_hand[name], atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.parametrize("steps_per_loop", first(2, [1, 3, 50]))
def test_a_run_goes_back_and_passes_over_a_bad_step(without_step_7, tmp_path, steps_per_loop):
    said, model = [], mean_colour()
    arguments = {"steps_per_loop": steps_per_loop, "max_bad_steps": 1, "report": said.append, "video_names": NAMES}
    train(model, tmp_path, 12, spoiled(7), **arguments)
    assert_equal(state(model), without_step_7[1])
    (record,) = records(tmp_path)
    assert (record["step"], record["skipped"], record["video_ids"]) == (7, True, ids_of(7))
    assert "step 7 went wrong: going back to the checkpoint of step 4" in said
    steps = [line["step"] for line in metrics(tmp_path)]
    assert steps == sorted(set(steps)) and steps[-1] == 12  # lines of steps that were taken twice stand once


def test_a_broken_gradient_is_found_where_its_loss_is_fine(tmp_path):
    found, known = steep_colour(), steep_colour()
    train(found, tmp_path / "found", 12, steep(6), max_bad_steps=1, steps_per_loop=50)
    assert [(record["step"], record["video_ids"]) for record in records(tmp_path / "found")] == [(6, ids_of(6))]
    assert "to_colour" in records(tmp_path / "found")[0]["what"]
    (tmp_path / "known").mkdir()
    storage.write_json(tmp_path / "known" / "bad_step.json", [{"step": 6, "skipped": True}])
    train(known, tmp_path / "known", 12, steep())
    assert_equal(state(found), state(known))


@pytest.mark.long
def test_weights_that_broke_just_before_a_step_that_is_passed_over_are_not_saved(tmp_path):
    train(steep_colour(), tmp_path, 8, steep(7), max_bad_steps=2)
    assert [record["step"] for record in records(tmp_path)] == [7]
    shutil.rmtree(tmp_path / "checkpoints")
    model = steep_colour()
    train(
        model, tmp_path, 16, steep(6), max_bad_steps=2
    )  # the checkpoint of step 8 is due after a step that is not taken
    assert [record["step"] for record in records(tmp_path)] == [7, 6]
    assert all(np.isfinite(value).all() for value in state(model).values() if value.dtype.kind == "f")


@pytest.mark.long
def test_bad_steps_at_the_beginning_and_at_the_end(tmp_path):
    model = mean_colour()
    train(model, tmp_path, 8, spoiled(0, 7), max_bad_steps=2)
    assert [record["step"] for record in records(tmp_path)] == [0, 7]
    assert int(model.optimizer.iterations) == 6
    assert checkpoints.restore(mean_colour(), tmp_path) == 8


@pytest.mark.long
def test_more_bad_steps_than_allowed(tmp_path):
    with pytest.raises(health.TrainingDiverged) as caught:
        train(mean_colour(), tmp_path, 12, spoiled(3, 5, 9), max_bad_steps=2)
    said = str(caught.value)
    assert "became nan in step 9" in said and "At most 2 bad step(s) may be skipped; already skipped: 3, 5" in said
    assert [(record["step"], record["skipped"]) for record in records(tmp_path)] == [(3, True), (5, True), (9, False)]


def test_a_stopped_run_may_be_allowed_to_pass_over(without_step_7, tmp_path):
    with pytest.raises(health.TrainingDiverged):
        train(mean_colour(), tmp_path, 12, spoiled(7))
    model = mean_colour()
    train(model, tmp_path, 12, spoiled(7), max_bad_steps=1)
    assert_equal(state(model), without_step_7[1])


@pytest.mark.long
def test_a_resumed_run_passes_over_the_same_steps(without_step_7, tmp_path):
    """Also where nothing is allowed any more, and before the step is met again."""

    def interrupt(step, logs):
        if step == 8:
            raise KeyboardInterrupt  # after step 7 was passed over, before a checkpoint says so

    actions = [loop.Action(interrupt, 1)]
    arguments = {"checkpoint_every_steps": 6, "max_bad_steps": 1, "steps_per_loop": 2}
    with pytest.raises(KeyboardInterrupt):
        train(mean_colour(), tmp_path, 12, spoiled(7), actions=actions, **arguments)
    assert written(tmp_path)[-1] == "ckpt-6"
    model = mean_colour()
    train(model, tmp_path, 12, whole)
    assert_equal(state(model), without_step_7[1])


def test_good_steps_are_not_looked_at_one_by_one(tmp_path):
    """What the flag costs where nothing breaks: a checkpoint at the start."""
    train(mean_colour(), tmp_path, 12, max_bad_steps=3, steps_per_loop=4)
    assert [line["step"] for line in metrics(tmp_path)] == [4, 8, 12]
    assert not (tmp_path / "bad_step.json").exists()


def test_a_step_that_undid_itself_is_no_bad_step(tmp_path):
    """As steps in float16 do while their scale is too large: the loss of such a step may be anything."""

    class Undoing(MeanColour):
        def train_step(self, batch):
            logs = super().train_step(batch)
            skipped = tf.cast(batch["step"][0] % 2, tf.float32)
            loss = tf.where(skipped > 0, float("nan"), logs["colour_loss"])
            return {"colour_loss": loss, "loss_scale": tf.constant(8.0), "skipped": skipped}

    def undoing():
        model = Undoing()
        model.build()
        model.compile(keras.optimizers.Adam(0.05))
        return model

    logs = train(undoing(), tmp_path / "two", 4, steps_per_loop=2)
    assert logs["skipped"] == 0.5 and logs["loss_scale"] == 8.0
    train(undoing(), tmp_path / "one", 4, steps_per_loop=1)
    one = metrics(tmp_path / "one")
    assert [set(line) - {"step"} for line in one[:2]] == [
        {"colour_loss", "loss_scale", "skipped"},
        {"loss_scale", "skipped"},
    ]
    assert metrics(tmp_path / "two")[0]["colour_loss"] == pytest.approx(one[0]["colour_loss"])


# ---------------------------------------------------------------- a full disk
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    """No file may grow beyond four kilobytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, logs):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises(checkpoints.NotSaved) as caught:
            train(wide(), tmp_path, 20, actions=[loop.Action(fill, 4)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = str(caught.value)
    assert "The checkpoint of step 8 could not be written" in said and "The last good one is" in said
    assert "ckpt-4" in said and "the same command then resumes from there" in said
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint",
        "ckpt-4.data-00000-of-00001",
        "ckpt-4.index",
    ]
    resumed, straight = wide(), wide()
    train(resumed, tmp_path, 12)
    train(straight, tmp_path / "straight", 12)
    assert_equal(state(resumed), state(straight))


def wide() -> MeanColour:
    model = MeanColour(width=2000)
    model.build()
    model.compile(keras.optimizers.Adam(0.05))
    return model


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no command `mount` here")
    if done.returncode:
        pytest.skip(f"this user may not mount a disk: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.long
def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(small_disk, capsys):
    """The trainer itself, on a disk with room for its config and not for a checkpoint."""
    with (small_disk / "others").open("wb", buffering=0) as others, pytest.raises(OSError):
        while True:
            others.write(bytes(4096))
    os.truncate(small_disk / "others", (small_disk / "others").stat().st_size - 24576)
    flags = ["--preset=smoke", f"--run_dir={small_disk / 'run'}", "--noevaluate", "--notensorboard", "--strategy=none"]
    assert navsynth.main(flags) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "The last good" in error and error.count("\n") == 1
    (small_disk / "others").unlink()
    assert navsynth.main(flags) == 0
    assert written(small_disk / "run") == ["ckpt-2", "ckpt-4"]


def test_other_troubles_with_files_stay_what_they_are():
    with pytest.raises(PermissionError), health.explained(lambda: None):
        raise PermissionError(errno.EACCES, "not yours")


# ---------------------------------------------------------------- memory, workers
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])  # TensorFlow waits for 10 seconds
def test_running_out_of_memory_names_what_to_lower(tmp_path, real):
    settings = navsynth.Config(
        **{**navsynth.PRESETS["smoke"], "run_dir": str(tmp_path / "run"), "evaluate": False, "tensorboard": False}
    )

    def build_model(config, run_data):
        model = navsynth.build_model(config, run_data)
        too_many = tf.random.uniform((), 2**46, 2**46 + 1, tf.int64)  # unknown to TensorFlow when it builds the graph
        step = model.train_step

        def give_up():
            raise MemoryError  # TensorFlow makes it its ResourceExhaustedError

        def huge_loss():
            return tf.reduce_sum(tf.random.normal([too_many])) if real else tf.py_function(give_up, [], tf.float32)

        model.train_step = lambda batch: step(batch) | {"huge_loss": huge_loss()}
        return model

    with pytest.raises(
        ValueError, match="Out of memory with batch_size=2, width=4, num_frames=8, size=16: lower"
    ) as caught:
        course.train("navsynth", settings, build_model, report=lambda line: None)
    assert "--dry_run" in str(caught.value)


def test_a_lost_worker_is_explained_where_there_are_several():
    error = tf.errors.UnavailableError(None, None, "Collective ops is aborted\nmore")
    with pytest.raises(
        health.WorkerLost, match=r"Restart all workers.*continue from ckpt-8\. \(Collective ops is aborted\)"
    ):
        with health.explained(lambda: "ckpt-8", num_workers=2):
            raise error
    with pytest.raises(tf.errors.UnavailableError), health.explained(lambda: "ckpt-8", num_workers=1):
        raise error


def test_the_videos_of_a_step_may_be_unknown(tmp_path):
    bad_steps = health.BadSteps(tmp_path)
    taken = StepResult({"a_loss": np.array([np.inf])}, False, 0.0)
    with pytest.raises(health.TrainingDiverged, match=r"a_loss became inf in step 3\. The last good"):
        bad_steps.found(3, 4, taken, [], None)
    assert records(tmp_path)[0]["losses"] == {"a_loss": "inf"} and "video_ids" not in records(tmp_path)[0]
    assert os.listdir(tmp_path) == ["bad_step.json"] and pathlib.Path(tmp_path).is_dir()
