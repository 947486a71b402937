"""The shared training loop: compiled steps, with checkpoints and periodic actions between them.

A batch and every random draw are functions of (seed, step), so weights, optimizers, latent rows and the step itself are
all there is to save: a resumed run continues bit for bit, on one device, on several, and on several machines. Its other
output falls on fixed steps, too: partial sums for `metrics.jsonl` are part of a checkpoint, and an action that was due at a
checkpoint and did not finish is run on resuming.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfvidgen import storage
from tfvidgen.models.base import VideoGenerator
from trainers.engine import cluster
from trainers.engine.checkpoints import Checkpoints, check_resume, model_state, not_finite
from trainers.engine.ema import WeightAverage
from trainers.engine.health import BadSteps, TrainingDiverged
from trainers.engine.progress import Clock, Logs, Metrics, Progress, read_text
from trainers.engine.stages import Course, Stage, begin_stage, require_stages
from trainers.engine.steps import LossMeans, Steps

_CALL_SECONDS = 0.5  # target length of a compiled call, so that signals and progress do not wait for a whole inner loop
_NONE, _FAILED = -1, -2  # sent between workers in place of a step


@dataclasses.dataclass(frozen=True)
class Action:
    """A periodic callback, run by the chief only, also after the last step.

    Attributes:
        run: Called as `run(step, logs)`, outside the graph, with the mean losses since the previous line of `metrics.jsonl`.
        every_steps: Period in steps; 0 runs it after the last step only.
        uses_weights: Whether it uses the model's weights; they are then replaced by their average, if the run keeps one.
        name: Key under which `actions.json` records that it has finished; empty for the name of `run`.
        rewind: Called as `rewind(step)` before training continues from `step`: discards output of later steps.
        product: A file that it writes; while that is missing, the action counts as unfinished.
        samples: Whether it samples new videos; it is then left out of stages that do not train that yet.
    """

    run: Callable[[int, Logs], None]
    every_steps: int
    uses_weights: bool = True
    name: str = ""
    rewind: Callable[[int], None] | None = None
    product: pathlib.Path | None = None
    samples: bool = False


def run(
    model: VideoGenerator,
    dataset_fn: Callable[[int], tf.data.Dataset] | Sequence[Stage],
    run_dir: str | pathlib.Path,
    total_steps: int,
    strategy: tf.distribute.Strategy | None = None,
    steps_per_loop: int = 50,
    checkpoint_every_steps: int = 500,
    actions: Sequence[Action] = (),
    resume: str = "auto",
    frames_per_step: int = 0,
    report: Callable[[str], None] | None = None,
    average: WeightAverage | None = None,
    max_bad_steps: int = 0,
    video_names: Sequence[str] = (),
    xla: bool = False,
    keep_every: int = 0,
    max_minutes: float = 0.0,
    begun: Callable[[], None] = lambda: None,
    stage: str = "",
) -> Logs:
    """Trains a compiled model in place until `total_steps`, resuming from the run folder's last checkpoint.

    Args:
        model: Built and compiled in the scope of `strategy`.
        dataset_fn: Called with the first step to train (0 in a new run), and again whenever the run goes back to a
            checkpoint; returns an infinite dataset of global batches in step order. A batch is what the model's
            `train_step` takes: tensors with the B clips of all replicas first, e.g. `video` uint8 (B, T, H, W, 3).
            For a run in several stages, the list of them.
        run_dir: Run folder, created if missing; all workers share it and the chief writes it. Receives `checkpoints/`,
            `metrics.jsonl`, `actions.json` and, after a bad step, `bad_step.json`.
        total_steps: Training steps in total, including those of earlier processes.
        strategy: Distribution strategy; None for the current one, by default that of a single device.
        steps_per_loop: Steps between lines of `metrics.jsonl`, and the most steps in one compiled call; 50 by default. With
            one worker a call is limited to about half a second. Lines are also written when a checkpoint or action is due.
        checkpoint_every_steps: Steps between checkpoints, 500 by default; one more is written after the last step, on
            SIGTERM or Ctrl-C, and when the time limit is reached.
        actions: Periodic callbacks, run by the chief in this order, after the checkpoint where both are due; none by default.
        resume: `auto` (default) resumes from the last checkpoint, if any; `never` raises if there is one; `must` raises if
            there is none. A damaged checkpoint is set aside, and the run resumes from the one before it.
        frames_per_step: Frames in a global batch, to show speed in frames per second; 0 (default) shows steps per second.
        report: Receives each complete progress line; None prints to standard output, in place on a terminal.
        average: Moving average of the model's weights, created in the scope of `strategy`: updated after every step, saved in
            checkpoints, and swapped into the model for actions that use weights. None disables averaging.
        max_bad_steps: Skips at most this many steps with a non-finite loss or weight, see `health.BadSteps`; 0
            (default) raises at the first.
        video_names: Names by video id, for the videos of a bad step; empty to record ids only.
        xla: Compiles the training step with XLA, for a single replica only; off by default.
        keep_every: Checkpoints whose step is a multiple of this are kept permanently, besides the last two; 0 (default)
            keeps only those two.
        max_minutes: Time limit in minutes from the call; the run saves and returns before it is reached. 0 (default) for no
            limit.
        begun: Called once, after a checkpoint was restored or none was found, so that a run refused because of its
            checkpoints leaves its folder unchanged. Does nothing by default.
        stage: Train only this stage; those before it must be finished. Empty (default) for all.

    Returns:
        Mean losses by name, as in the last line of `metrics.jsonl`; empty if there was nothing left to train.

    Raises:
        TrainingDiverged: If a loss or a weight is not finite and no more steps may be skipped, or in a stage's `at_epoch`.
        SystemExit: After SIGTERM or Ctrl-C, with status 128 + the signal's number.
        ValueError: If the stages are not those of the model, `resume` conflicts with the contents of `run_dir`, a checkpoint
            does not fit or cannot be written, none is intact, a file of the folder cannot be read, a stage is out of order,
            or workers differ.
    """
    begin = time.monotonic()
    stages = [Stage("", dataset_fn, frames_per_step=frames_per_step)] if callable(dataset_fn) else list(dataset_fn)
    if not callable(dataset_fn):
        require_stages(model, stages)
    course = Course(stages, total_steps)
    last_step = course.end(stage) if stage else total_steps
    strategy = strategy or tf.distribute.get_strategy()
    is_chief = cluster.is_chief(strategy)
    run_dir = pathlib.Path(run_dir)
    if is_chief:
        run_dir.mkdir(parents=True, exist_ok=True)
    check_resume(run_dir, resume)
    with strategy.scope():
        step = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
    means, finished = LossMeans(), _Finished(run_dir / "actions.json", is_chief)
    lines = tf.Variable(
        "", dtype=tf.string
    )  # partial sums of the next line of `metrics.jsonl`, and the losses of the last one, as JSON
    state = {"step": step, "lines": lines, **model_state(model), **(average.state if average else {})}
    checkpoints = Checkpoints(state, run_dir, is_chief, keep_every, optional=["lines"])
    metrics = Metrics(run_dir / "metrics.jsonl", is_chief)
    bad_steps = BadSteps(run_dir, max_bad_steps, course.dataset, video_names, is_chief)
    clock = Clock()
    progress = Progress(last_step, report, is_chief)
    periods = [
        steps_per_loop,
        checkpoint_every_steps,
        *(action.every_steps for action in actions if action.every_steps),
    ]
    actions = actions if is_chief else ()
    logs: Logs = {}

    def go_back() -> int | None:
        """Restores the newest checkpoint and all state outside variables; returns its step, or None if there is none."""
        lines.assign("")
        at = _restore(checkpoints, strategy, run_dir, len(bad_steps.skipped), progress.note)
        saved = json.loads(lines.numpy() or "{}")
        logs.clear()
        logs.update(saved.get("logs", {}))
        means.clear()
        if saved:
            means.load(saved["means"])
        begin_stage(model, course.reached(at or 0))
        finished.rewind(at or 0)
        metrics.drop_after(at or 0)
        for action in actions:
            if rewind := getattr(action, "rewind", None):
                rewind(at or 0)
        return at

    def save(at: int) -> float:
        """Writes a checkpoint; returns the seconds it took."""
        since = time.monotonic()
        lines.assign(json.dumps({"means": means.state(), "logs": logs}))
        finished.write()  # actions finished since the previous checkpoint; harmless if this one is not written
        checkpoints.save(at)
        return time.monotonic() - since

    def due(at: int) -> list[Action]:
        """Actions that are due after `at` steps."""
        can_sample = model.can_sample
        return [
            action
            for action in actions
            if (at >= total_steps or bool(action.every_steps) and at % action.every_steps == 0)
            and (can_sample or not getattr(action, "samples", False))
        ]

    def at_epoch(now: Stage, num_epochs: int, at: int) -> None:
        """Begins a stage or ends an epoch of it, from a finite state to a finite state."""
        now.at_epoch(num_epochs)
        if broken := not_finite(state):  # not for `bad_steps`: neither a step nor its videos are to blame
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            where = f"`at_epoch({num_epochs})`" + (f" of {now.name}" if now.name else "")
            raise TrainingDiverged(
                f"{', '.join(broken[:3])}{more} became not finite in {where}, after {at} steps. The last good "
                f"state is {checkpoints.latest or 'none'}: mend that function; the same command then goes on from there."
            )

    compiled: dict[str, Steps] = {}  # of the current stage

    def go_on(at: int) -> tuple[Any, Steps]:
        """Enters the stage of a step; returns its batches from there on, and its compiled steps."""
        now = course.stage(at)
        if at and course.is_begin(at) and average is not None:
            average.adopt()  # a stage builds on the weights that the one before it would be sampled with
        begin_stage(model, now)
        if course.is_begin(at) and now.at_epoch:
            at_epoch(now, 0, at)
        iterator = cluster.distribute(strategy, course.dataset(at))
        if now.name not in compiled:
            compiled.clear()
            compiled[now.name] = Steps(model, strategy, average, xla)
            compiled[now.name].trace(iterator)
        progress.begin(at, now.frames_per_step, now.name)
        return iterator, compiled[now.name]

    with _StopRequest(strategy, progress.note) as stop, progress:
        found = go_back()
        if stage:
            course.require_before(stage, found or 0)
        begun()
        at = saved_at = found or 0
        if found:
            _act(finished.unfinished(due(at), at), at, logs, average, finished, True, stop)
        if at >= last_step:
            progress.note(f"already trained for {at} steps" + (f", including {stage}" if stage else ""))
            return {}
        save_seconds = 0.0
        if max_bad_steps and not found:
            save_seconds = save(at)  # a checkpoint to go back to
        iterator, steps = go_on(at)
        is_alone = cluster.num_workers(strategy) == 1
        pace = _Pace(is_alone)
        checked_at, taken = at, None
        stop.saves = True  # from here on there is something to lose
        while at < last_step and not stop.asked(
            max_minutes > 0 and time.monotonic() - begin + 2 * save_seconds > 60 * max_minutes
        ):
            if course.stage(at).name not in compiled:
                iterator, steps = go_on(at)
                pace = _Pace(is_alone)
            first = at
            if at in bad_steps.skipped:
                next(iterator)
                at += 1
            else:
                num_steps = min(_to_multiple(at, periods), course.steps_left(at), bad_steps.at_most(at) or total_steps)
                clock.steps_begin()
                taken = steps(iterator, pace.at_most(num_steps))
                means.add(taken, clock.steps_end(taken.input_seconds))
                pace.took(taken.num_steps, clock.last_seconds)
                at += taken.num_steps
            step.assign(at)
            is_line = course.is_end(at) or _to_multiple(at - 1, periods) == 1
            is_due = at % checkpoint_every_steps == 0 or course.is_end(at)
            num_epochs = course.epochs(at)
            is_checked = taken and taken.is_good and (is_due or num_epochs or bad_steps.is_suspect(first))
            broken = not_finite(state) if is_checked else []
            if taken and (broken or not taken.is_good):
                bad_steps.found(first if not taken.is_good else checked_at, at, taken, broken, checkpoints.latest)
                wrong, taken = at - 1, None
                at = saved_at = checked_at = go_back() or 0
                progress.note(f"step {wrong} went wrong: going back to the checkpoint of step {at}")
                iterator, steps = go_on(at)
                continue
            if is_checked:
                checked_at = at
            if num_epochs:
                at_epoch(course.reached(at), num_epochs, at)
            progress.update(at, means.means() or logs)
            if is_line and means.means():
                logs = means.means()
                metrics.append(at, logs, means.seconds)
                means.clear()
            if is_due:
                save_seconds = max(save_seconds, save(at))
                saved_at = at
            if is_line and not stop.requested:  # after a signal, due actions wait until the run resumes
                _act(due(at), at, logs, average, finished, saved_at == at, stop)
        if saved_at < at and not not_finite(state):
            save(at)
            saved_at = at
    progress.note(clock.summary())
    what_now = "the checkpoint is saved and the same command resumes from it"
    if not saved_at:
        what_now = "there is no checkpoint yet, so the same command starts over"
    if stop.requested:
        progress.note(f"stopped at step {saved_at} by a signal; {what_now}")
        raise SystemExit(128 + stop.requested)
    if at < last_step:
        advice = "" if at > (found or 0) else ": no step was taken in that time, so raise max_minutes"
        progress.note(f"stopped at step {saved_at}, having reached its time limit; {what_now}{advice}")
    return logs


def _restore(checkpoints: Checkpoints, strategy, run_dir: pathlib.Path, num_skipped: int, report) -> int | None:
    """The chief loads the newest intact checkpoint, all other workers the same one. Returns its step, or None if none."""
    error, found = None, _NONE
    is_chief = cluster.is_chief(strategy)
    try:
        if is_chief and (at := checkpoints.restore_newest(report)) is not None:
            found = at
    except ValueError as e:
        error, found = e, _FAILED
    chosen = cluster.of_all_workers(strategy, found)[0]
    if not is_chief:
        found = chosen
        try:
            if chosen >= 0:
                checkpoints.restore(str(checkpoints.folder / f"ckpt-{chosen}"))
        except ValueError as e:
            error, found = e, _FAILED
    everywhere = cluster.of_all_workers(strategy, found if found < 0 else found + 1000 * num_skipped)
    if len(set(everywhere)) > 1:
        raise ValueError(
            f"The workers find different checkpoints under {run_dir}; the first worker has that of step {chosen}. They must share "
            "one run folder, which only the first worker writes: mount it on all hosts under the same path."
            + (f" ({error})" if error else "")
        )
    if error or found == _FAILED:
        raise error or ValueError(
            f"The first worker cannot resume from the checkpoints under {run_dir}: see its own message."
        )
    return None if found == _NONE else found


def _to_multiple(at: int, periods: Sequence[int]) -> int:
    """Steps until something is due next, so that nothing is late."""
    return min(period - at % period for period in periods)


def _act(
    due: Sequence[Action],
    at: int,
    logs: Logs,
    average: WeightAverage | None,
    finished: _Finished,
    is_saved: bool,
    stop: _StopRequest,
) -> None:
    """Runs actions until a signal arrives, with averaged weights in the model if any action uses weights.

    Each is recorded as finished, on disk only if the step `is_saved`: otherwise the run would resume from an earlier step.
    """
    averaged = average is not None and any(action.uses_weights for action in due)
    with average.applied() if averaged else contextlib.nullcontext():
        for action in due:
            if stop.requested:
                break
            action.run(at, logs)
            finished.add(action, at)
            if is_saved:
                finished.write()


class _Finished:
    """The step at which each action last finished, in `actions.json`, written for steps a run may resume from.

    Args:
        path: The file.
        writes: False for workers other than the chief, which run no actions.
    """

    def __init__(self, path: pathlib.Path, writes: bool):
        self._path, self._writes = path, writes
        self._written: dict[str, int] = {}
        try:
            self._steps = json.loads(read_text(path) or "{}")
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): restore it, or delete it to run the last actions again."
            ) from None
        if not isinstance(self._steps, dict) or not all(type(step) is int for step in self._steps.values()):
            raise ValueError(
                f"{path} must hold an object of names and steps. Received {str(self._steps)[:80]}: delete it to run the last "
                "actions again."
            )

    def unfinished(self, due: Sequence[Action], at: int) -> list[Action]:
        """Those actions due at a checkpoint's step that are not recorded as finished then or later."""

        def is_finished(action: Action) -> bool:
            product = getattr(action, "product", None)
            return self._steps.get(_name(action), _NONE) >= at and (product is None or product.exists())

        return [action for action in due if not is_finished(action)]

    def add(self, action: Action, at: int) -> None:
        """Records that an action has finished."""
        self._steps[_name(action)] = at

    def rewind(self, at: int) -> None:
        """Forgets actions that finished after a step: those steps are trained again."""
        if any(step > at for step in self._steps.values()):
            self._steps = {name: min(step, at) for name, step in self._steps.items()}
            self.write()

    def write(self) -> None:
        """Writes the file if it is out of date."""
        if self._writes and self._steps != self._written:
            self._written = dict(self._steps)
            storage.write_json(self._path, self._steps)


def _name(action: Action) -> str:
    return getattr(action, "name", "") or getattr(action.run, "__qualname__", type(action.run).__name__)


class _Pace:
    """Steps per compiled call: about `_CALL_SECONDS` worth; a whole inner loop if several workers must agree on it."""

    def __init__(self, is_alone: bool):
        self._is_alone, self._seconds_per_step = is_alone, None

    def at_most(self, num_steps: int) -> int:
        """How many of `num_steps` to take now."""
        if not self._is_alone:
            return num_steps
        if self._seconds_per_step is None:  # the first call still includes graph setup
            return 1
        return max(1, min(num_steps, int(_CALL_SECONDS / max(self._seconds_per_step, 1e-6))))

    def took(self, num_steps: int, seconds: float) -> None:
        """Records how long a call took."""
        self._seconds_per_step = seconds / num_steps


class _StopRequest:
    """Turns SIGTERM and Ctrl-C, on any worker, into a request to save and stop.

    A signal is acknowledged at once, from a separate thread: Python's handlers wait until TensorFlow returns from its call.

    Attributes:
        requested: The signal's number; 0 for none.
        saves: Whether there is something to save. Until then, a run on one worker stops at once.
    """

    def __init__(self, strategy: tf.distribute.Strategy, report: Callable[[str], None]):
        self.requested, self.saves = 0, False
        self._strategy, self._report = strategy, report
        self._is_alone = cluster.num_workers(strategy) == 1
        self._all_know = False
        self._old: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: the caller handles signals
                return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._old_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._acknowledge, daemon=True)
        self._thread.start()
        return self

    def asked(self, time_is_up: bool = False) -> bool:
        """Whether any worker was asked to stop, or is out of time. All workers must call it the same number of times."""
        if not self._all_know:
            own = self.requested or int(time_is_up)  # no handled signal has the number 1
            answers = [answer for answer in cluster.of_all_workers(self._strategy, own) if answer]
            if answers:
                self._all_know = True
                self.requested = max(answers) if max(answers) > 1 else 0
        return self._all_know

    def _request(self, number, frame):
        if self.requested:  # asked twice: stop now
            raise KeyboardInterrupt
        self.requested = number
        if self._is_alone and not self.saves:
            raise SystemExit(128 + number)

    def _acknowledge(self) -> None:
        while received := os.read(self._pipe[0], 1):
            number = received[0]
            if number not in self._old:
                continue
            name = signal.Signals(number).name
            if self.saves:
                self._report(
                    f"{name}: the run saves and ends after this step; repeat the signal to end it without saving"
                )
            else:
                self._report(f"{name}: the run ends; there is nothing new to save")

    def __exit__(self, *error):
        if self._pipe:
            signal.set_wakeup_fd(self._old_wakeup)
            os.close(self._pipe[1])  # ends the thread
            self._thread.join()
            os.close(self._pipe[0])
        for number, handler in self._old.items():
            signal.signal(number, handler)
