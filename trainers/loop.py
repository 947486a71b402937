"""The one training loop: Python outside, `tf.function` inside, checkpoints and actions between.

A batch and every random draw are functions of (seed, step), so weights, optimizers, latent rows and the step itself are
all there is to save: a resumed run goes on bit for bit, on one device, on several, and on several machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import signal
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfvidgen.models.base import VideoGenerator
from trainers import cluster
from trainers.average import WeightAverage
from trainers.checkpoints import Checkpoints, check_resume, model_state, not_finite
from trainers.health import BadSteps
from trainers.progress import Clock, Logs, Metrics, Progress
from trainers.steps import Steps


@dataclasses.dataclass(frozen=True)
class Action:
    """Something to do every so many steps and after the last one, by the chief alone.

    Attributes:
        run: Called as `run(step, logs)`, outside the graph.
        every_steps: Period in steps.
        uses_weights: Whether it makes videos, or looks at weights: it then finds their average in the model, where the run
            keeps one.
    """

    run: Callable[[int, Logs], None]
    every_steps: int
    uses_weights: bool = True


def run(
    model: VideoGenerator,
    dataset_fn: Callable[[int], tf.data.Dataset],
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
) -> Logs:
    """Trains a compiled model until `total_steps` and returns the last losses.

    Args:
        model: Built and compiled in the scope of `strategy`.
        dataset_fn: Called with the first step to train; returns a dataset of global batches in order.
        run_dir: Gets `checkpoints/`, `metrics.jsonl` and, where one was met, `bad_step.json`. Several workers share it.
        total_steps: Steps in all, those of earlier processes included.
        strategy: Where to train; None for one device.
        steps_per_loop: Steps per call of the inner `tf.function`.
        checkpoint_every_steps: Period of checkpoints; one more is written at the end and on SIGTERM.
        actions: Run between inner loops.
        resume: `auto` goes on from the last checkpoint where there is one, `never` raises if there is one, `must` raises
            if there is none.
        frames_per_step: Frames of a global batch, for the frames per second that are shown.
        report: Gets each finished progress line; None writes to standard output, over itself on a terminal.
        average: Made of `model` in the scope of `strategy`; updated after every step, and saved.
        max_bad_steps: Steps with a loss or weight that is not finite that may be passed over, see `health.BadSteps`.
        video_names: Names by video id, to name the videos of a bad step.
        xla: Compiles the step with XLA, on one device.

    Raises:
        TrainingDiverged: If a loss or a weight is not finite.
        ValueError: If `resume` forbids what is in `run_dir`, its checkpoint does not fit, workers differ, or a worker is lost.
    """
    strategy = strategy or tf.distribute.get_strategy()
    is_chief = cluster.is_chief(strategy)
    run_dir = pathlib.Path(run_dir)
    if is_chief:
        run_dir.mkdir(parents=True, exist_ok=True)
    check_resume(run_dir, resume)
    with strategy.scope():
        step = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
    state = {"step": step, **model_state(model), **(average.state if average else {})}
    checkpoints = Checkpoints(state, run_dir, writes=is_chief)
    checkpoints.clean()
    metrics = Metrics(run_dir / "metrics.jsonl", is_chief)
    bad_steps = BadSteps(run_dir, max_bad_steps, dataset_fn, video_names, is_chief)
    clock = Clock()
    progress = Progress(total_steps, frames_per_step, report, is_chief)
    with _StopRequest(strategy) as stop, progress:
        found = checkpoints.latest
        at = saved_at = checkpoints.restore() if found else 0
        cluster.agree(
            strategy,
            at + 1000 * len(bad_steps.skipped),
            f"The workers find different checkpoints under {run_dir}, this one that of step {at}. They must share one run "
            "folder, which only the first worker writes: mount it on all hosts under the same path.",
        )
        metrics.drop_after(at)
        if at >= total_steps:
            progress.note(f"already trained for {at} steps")
            return {}
        if max_bad_steps and not found:
            checkpoints.save(at)  # to go back to
        progress.begin(at)
        iterator = cluster.distribute(strategy, dataset_fn(at))
        steps = Steps(model, strategy, average, xla)
        steps.trace(iterator)
        logs: Logs = {}
        while at < total_steps and not stop.asked():
            first, taken = at, None
            if at in bad_steps.skipped:
                next(iterator)
                at += 1
            else:
                num_steps = _to_multiple(at, steps_per_loop, checkpoint_every_steps, actions)
                num_steps = min(num_steps, total_steps - at, bad_steps.at_most(at) or num_steps)
                clock.steps_begin()
                taken = steps(iterator, num_steps)
                seconds = clock.steps_end(taken.input_seconds)
                at += taken.num_steps
            step.assign(at)
            is_due = at % checkpoint_every_steps == 0 or at >= total_steps or stop.asked()
            broken = not_finite(state) if taken and taken.is_good and (is_due or bad_steps.is_suspect(first)) else []
            if taken and (broken or not taken.is_good):
                bad_steps.found(first, taken, broken, checkpoints.latest)
                at = saved_at = checkpoints.restore()
                iterator = cluster.distribute(strategy, dataset_fn(at))
                metrics.drop_after(at)
                progress.note(f"step {first + taken.num_steps - 1} went wrong: back to the checkpoint of step {at}")
                progress.begin(at)
                continue
            if taken:
                logs = taken.logs
                metrics.append(at, logs, seconds)
                progress.update(at, logs)
            if is_due:
                checkpoints.save(at)
                saved_at = at
            _act(actions if is_chief else (), at, total_steps, logs, average)
        if saved_at < at and not not_finite(state):  # the signal came while an action ran
            checkpoints.save(at)
            saved_at = at
    progress.note(clock.summary())
    if stop.requested:
        progress.note(
            f"stopped at step {saved_at} by a signal; the checkpoint is written and the same command goes on from it"
        )
        raise SystemExit(128 + stop.requested)
    return logs


def _to_multiple(at: int, steps_per_loop: int, checkpoint_every_steps: int, actions: Sequence[Action]) -> int:
    """Steps to the next point at which something is due: loops end there, so nothing is late."""
    periods = [steps_per_loop, checkpoint_every_steps, *(action.every_steps for action in actions)]
    return min(period - at % period for period in periods)


def _act(actions: Sequence[Action], at: int, total_steps: int, logs: Logs, average: WeightAverage | None) -> None:
    """Runs the actions that are due; those that use weights find their average."""
    due = [action for action in actions if at % action.every_steps == 0 or at >= total_steps]
    averaged = average is not None and any(action.uses_weights for action in due)
    with average.applied() if averaged else contextlib.nullcontext():
        for action in due:
            action.run(at, logs)


class _StopRequest:
    """Turns SIGTERM and Ctrl-C, on any worker, into a request that the loop answers after saving."""

    def __init__(self, strategy: tf.distribute.Strategy):
        self.requested = 0  # the signal's number
        self._strategy = strategy
        self._all_know = False
        self._old: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: the caller handles signals
                pass
        return self

    def asked(self) -> bool:
        """Whether any worker was asked to stop. All workers must call it the same number of times."""
        if not self._all_know and any(cluster.of_all_workers(self._strategy, int(self.requested > 0))):
            self._all_know = True
            self.requested = self.requested or signal.SIGTERM
        return self._all_know

    def _request(self, number, frame):
        if self.requested:  # asked twice: stop now
            raise KeyboardInterrupt
        self.requested = number

    def __exit__(self, *error):
        for number, handler in self._old.items():
            signal.signal(number, handler)
