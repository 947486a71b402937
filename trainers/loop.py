"""The one training loop: Python outside, `tf.function` inside, checkpoints and actions between.

A batch and every random draw are functions of (seed, step), so weights, optimizers, latent rows and the step itself are
all there is to save: a resumed run goes on bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfvidgen.models.base import VideoGenerator

Logs = dict[str, float]


class TrainingDiverged(ValueError):
    """A loss became NaN or infinite. The checkpoints hold the last good state."""


@dataclasses.dataclass(frozen=True)
class Action:
    """Something to do every so many steps and after the last one.

    Attributes:
        run: Called as `run(step, logs)`, outside the graph.
        every_steps: Period in steps.
    """

    run: Callable[[int, Logs], None]
    every_steps: int


def make_strategy(name: str) -> tf.distribute.Strategy:
    """`none`: one device; `mirrored`: all GPUs, or all logical CPUs; `auto`: mirrored where there are several GPUs."""
    gpus = tf.config.list_logical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    if name not in ("auto", "mirrored"):
        raise ValueError(f"`strategy` must be auto, none or mirrored. Received {name!r}.")
    return tf.distribute.MirroredStrategy([device.name for device in gpus or tf.config.list_logical_devices("CPU")])


def model_state(model: VideoGenerator) -> dict[str, tf.Variable]:
    """Every variable that a run must not lose, by name: weights, codes and their slots, optimizers, random states.

    `tf.train.Checkpoint(model=model)` would silently leave out the weights of layers that a model keeps in a list, and
    the states of seed generators, and still pass its own assertions: so the variables are named one by one. Names do not
    depend on how many models a process has built.
    """
    named = [(variable.path.partition("/")[2], variable) for variable in model.weights]
    optimizers = {}
    for attribute, value in vars(model).items():
        if isinstance(value, keras.optimizers.Optimizer) and attribute not in ("optimizer", "_optimizer"):
            optimizers.setdefault(id(value), (attribute, value))
    if getattr(model, "optimizer", None) is not None:  # Keras sets it when a model is compiled
        optimizers.setdefault(id(model.optimizer), ("optimizer", model.optimizer))
    for attribute, optimizer in optimizers.values():
        named += [(f"{attribute}/{i:04d}", variable) for i, variable in enumerate(optimizer.variables)]
    seeds = [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
    named += [(f"random/{i:04d}", variable) for i, variable in enumerate(seeds)]
    state = {name.replace("/", "."): variable.value for name, variable in named}
    if len(state) != len(named):
        names = [name for name, _ in named]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"Variables of {type(model).__name__} share a name, so they cannot be saved: {', '.join(twice[:5])}."
        )
    return state


_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def _checkpoint(model: VideoGenerator, step: tf.Variable, run_dir: pathlib.Path):
    checkpoint = tf.train.Checkpoint(step=step, **model_state(model))
    return checkpoint, tf.train.CheckpointManager(checkpoint, str(run_dir / "checkpoints"), max_to_keep=2)


def restore(model: VideoGenerator, run_dir: str | pathlib.Path) -> int:
    """Loads a run's last checkpoint into a built model; returns its step.

    Raises:
        ValueError: If there is none, or it holds other weights than the model has.
    """
    step = tf.Variable(0, dtype=tf.int64)
    checkpoint, manager = _checkpoint(model, step, pathlib.Path(run_dir))
    if manager.latest_checkpoint is None:
        raise ValueError(f"No checkpoint under {run_dir}: train first, or name a run folder that holds `checkpoints/`.")
    _restore(checkpoint, manager.latest_checkpoint, {"step": step, **model_state(model)})
    return int(step.numpy())


def _restore(checkpoint: tf.train.Checkpoint, path: str, state: dict[str, tf.Variable]) -> None:
    """Restores all of `state`, or raises ValueError with the differences and restores nothing."""
    saved = {
        name.removesuffix(_VALUE).replace("..", "."): tuple(shape)  # dots are doubled on disk
        for name, shape in tf.train.load_checkpoint(path).get_variable_to_shape_map().items()
        if name.endswith(_VALUE)
    }
    differences = [f"{name} is not in it" for name in state if name not in saved]
    differences += [
        f"{name} is {saved[name]} there, {tuple(variable.shape)} here"
        for name, variable in state.items()
        if name in saved and saved[name] != tuple(variable.shape)
    ]
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"The checkpoint {path} does not fit this model: {'; '.join(differences[:5])}{more}. Build the model with the "
            "run's own config, or choose another run folder."
        )
    checkpoint.restore(path).assert_existing_objects_matched().expect_partial()


def run(
    model: VideoGenerator,
    dataset_fn: Callable[[int], tf.data.Dataset],
    run_dir: str | pathlib.Path,
    total_steps: int,
    strategy: tf.distribute.Strategy | None = None,
    steps_per_loop: int = 50,
    checkpoint_every_steps: int = 500,
    actions: Sequence[Action] = (),
    resume: bool = True,
    frames_per_step: int = 0,
    report: Callable[[str], None] | None = None,
) -> Logs:
    """Trains a compiled model until `total_steps` and returns the last losses.

    Args:
        model: Built and compiled in the scope of `strategy`.
        dataset_fn: Called with the first step to train; returns a dataset of global batches in order.
        run_dir: Gets `checkpoints/` and `metrics.jsonl`.
        total_steps: Steps in all, those of earlier processes included.
        strategy: Where to train; None for one device.
        steps_per_loop: Steps per call of the inner `tf.function`.
        checkpoint_every_steps: Period of checkpoints; one more is written at the end and on SIGTERM.
        actions: Run between inner loops.
        resume: Go on from the last checkpoint; False raises if there is one.
        frames_per_step: Frames of a global batch, for the frames per second that are shown.
        report: Gets each finished progress line; None writes to standard output, over itself on a terminal.

    Raises:
        TrainingDiverged: If a loss is not finite.
        ValueError: If `run_dir` holds a checkpoint that does not fit, or one at all with `resume=False`.
    """
    run_dir = pathlib.Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        step = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
    # Left by a process that was killed while it wrote. Only a trainer removes them: a reader may meet a living writer's.
    for stray in (run_dir / "checkpoints").glob("*_temp*"):
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    checkpoint, manager = _checkpoint(model, step, run_dir)
    if manager.latest_checkpoint:
        if not resume:
            raise ValueError(
                f"{run_dir} already holds {manager.latest_checkpoint}: resume it, or name another run folder."
            )
        _restore(checkpoint, manager.latest_checkpoint, {"step": step, **model_state(model)})
    at = int(step.numpy())
    _drop_metrics_after(run_dir / "metrics.jsonl", at)
    progress = _Progress(at, total_steps, frames_per_step, report)
    if at >= total_steps:
        progress.note(f"already trained for {at} steps")
        return {}
    iterator = iter(strategy.experimental_distribute_dataset(dataset_fn(at)))

    @tf.function
    def train_step(batch):
        logs = strategy.run(model.train_step, args=(batch,))
        return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

    @tf.function
    def inner_loop(iterator, num_steps):
        # the step is its own graph function, so it is traced once for both calls
        sums = train_step(next(iterator))
        for _ in tf.range(num_steps - 1):
            logs = train_step(next(iterator))
            sums = {name: sums[name] + logs[name] for name in sums}
        return {name: value / tf.cast(num_steps, value.dtype) for name, value in sums.items()}

    logs: Logs = {}
    saved_at = at
    with _StopRequest() as stop:
        while at < total_steps and not stop.requested:
            num_steps = min(_to_multiple(at, steps_per_loop, checkpoint_every_steps, actions), total_steps - at)
            logs = {name: float(value) for name, value in inner_loop(iterator, tf.constant(num_steps)).items()}
            bad = [name for name, value in logs.items() if not math.isfinite(value)]
            if bad:
                raise TrainingDiverged(
                    f"{', '.join(bad)} became {', '.join(str(logs[name]) for name in bad)} between steps {at} and "
                    f"{at + num_steps}. The last good state is {manager.latest_checkpoint or 'none'}. Try a lower learning "
                    "rate, precision=float32, or another seed."
                )
            at += num_steps
            step.assign(at)
            progress.update(at, logs)
            with (run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": at, **logs}) + "\n")
            if at % checkpoint_every_steps == 0 or at >= total_steps or stop.requested:
                manager.save(at)
                saved_at = at
            for action in actions:
                if at % action.every_steps == 0 or at >= total_steps:
                    action.run(at, logs)
        if saved_at < at:  # the signal came while an action ran
            manager.save(at)
    progress.finish()
    if stop.requested:
        progress.note(
            f"stopped at step {at} by a signal; the checkpoint is written and the same command goes on from it"
        )
        raise SystemExit(128 + stop.requested)
    return logs


def _to_multiple(at: int, steps_per_loop: int, checkpoint_every_steps: int, actions: Sequence[Action]) -> int:
    """Steps to the next point at which something is due: loops end there, so nothing is late."""
    periods = [steps_per_loop, checkpoint_every_steps, *(action.every_steps for action in actions)]
    return min(period - at % period for period in periods)


def _drop_metrics_after(path: pathlib.Path, step: int) -> None:
    """Removes lines that a killed process wrote after its last checkpoint: those steps are trained again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # a line cut off by a kill
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)


class _StopRequest:
    """Turns SIGTERM and Ctrl-C into a request that the loop answers after saving."""

    def __init__(self):
        self.requested = 0  # the signal's number
        self._old: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: the caller handles signals
                pass
        return self

    def _request(self, number, frame):
        if self.requested:  # asked twice: stop now
            raise KeyboardInterrupt
        self.requested = number

    def __exit__(self, *error):
        for number, handler in self._old.items():
            signal.signal(number, handler)


class _Progress:
    """One line that is rewritten on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, at: int, total: int, frames_per_step: int, report: Callable[[str], None] | None):
        self._first, self._total, self._frames, self._report = at, total, frames_per_step, report
        self._terminal = report is None and sys.stdout.isatty()
        self._begin = self._window_begin = time.monotonic()
        self._window_step = at
        self._shown = 0.0
        self._line = ""

    def update(self, at: int, logs: Logs) -> None:
        now = time.monotonic()
        if self._window_step == self._first:  # the first loop compiles: it says nothing about speed
            rate = (at - self._first) / (now - self._begin)
        else:
            rate = (at - self._window_step) / (now - self._window_begin)
        if now - self._window_begin > 5.0 or self._window_step == self._first:
            self._window_begin, self._window_step = now, at
        losses = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        eta = (self._total - at) / rate
        speed = f"{rate * self._frames:.0f} frames/s" if self._frames else f"{rate:.2f} steps/s"
        self._line = f"step {at}/{self._total}  {losses}  {speed}  ETA {int(eta) // 60}:{int(eta) % 60:02d}"
        if self._terminal:
            sys.stdout.write("\r\x1b[K" + self._line)
            sys.stdout.flush()
        elif now - self._shown > 10.0 or at >= self._total:
            self._shown = now
            self.note(self._line)

    def note(self, text: str) -> None:
        (self._report or (lambda line: print(line, flush=True)))(text)

    def finish(self) -> None:
        if self._terminal:
            sys.stdout.write("\n")
