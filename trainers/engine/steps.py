"""The compiled part of the training loop: many training steps per call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfvidgen.models.base import VideoGenerator
from trainers.engine.ema import WeightAverage

# A float16 step's report on its loss scaling. Where `skipped` is 1, the step was rolled back.
_SKIPPED, _SCALE = "skipped", "loss_scale"


class StepResult(NamedTuple):
    """The result of a call of `Steps`.

    Attributes:
        losses: Name -> float32 (number of steps,), including those of a bad step.
        is_good: False if a loss of the last step is not finite.
        input_seconds: Time spent waiting for batches; NaN where TensorFlow has no clock, with deterministic operations.
    """

    losses: dict[str, np.ndarray]
    is_good: bool
    input_seconds: float

    @property
    def num_steps(self) -> int:
        """Number of steps taken, including a bad one."""
        return len(next(iter(self.losses.values())))

    @property
    def last(self) -> dict[str, float]:
        """The losses of the last step."""
        return {name: float(values[-1]) for name, values in self.losses.items()}


class LossMeans:
    """Mean losses over the steps since the last line of `metrics.jsonl`, and the seconds those steps took.

    Steps are added one by one, so the means depend neither on the number of steps per call nor on where a process was
    stopped: the partial sums are part of the checkpoint.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Starts over."""
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def add(self, taken: StepResult, seconds: Mapping[str, float]) -> None:
        """Adds steps. Losses of a float16 step that was rolled back are meaningless and do not count."""
        undone = taken.losses.get(_SKIPPED, np.zeros(taken.num_steps)) > 0.0
        for name, values in taken.losses.items():
            for value in values if name in (_SKIPPED, _SCALE) else values[~undone]:
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
                self._counts[name] = self._counts.get(name, 0) + 1
        for name, part in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + part

    def means(self) -> dict[str, float]:
        """Means by name; empty before the first step."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, Any]:
        """The state for `load`, JSON-serializable."""
        return {"sums": self._sums, "counts": self._counts, "seconds": self.seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved `state`."""
        self._sums, self._counts, self.seconds = (dict(state[name]) for name in ("sums", "counts", "seconds"))


class Steps:
    """Takes any number of training steps under a strategy, in one `tf.function`; stops after a bad one.

    Args:
        model: Built and compiled in the scope of `strategy`.
        strategy: Where to train.
        average: Updated with the weights after each step.
        xla: Compiles the step with XLA, on one device.

    Raises:
        ValueError: If `xla` is requested on several replicas, where it fails or lets their batch norm statistics diverge.
    """

    def __init__(
        self,
        model: VideoGenerator,
        strategy: tf.distribute.Strategy,
        average: WeightAverage | None = None,
        xla: bool = False,
    ):
        if xla and strategy.num_replicas_in_sync > 1:
            raise ValueError(
                f"XLA compiles the step for a single device only. Received {strategy.num_replicas_in_sync} replicas: use "
                "strategy=none, or leave out xla."
            )
        self._xla = xla
        has_clock = _has_clock()
        names: list[str] = []  # of losses, known once the step is traced
        # AutoGraph conversion takes longer than the rest of tracing combined, and Keras's `fit` does not do it either.
        model_step = tf.autograph.experimental.do_not_convert(model.train_step)
        if xla:
            model_step = tf.function(model_step, autograph=False, jit_compile=True)
        self._model_step = model_step

        @tf.function(autograph=False)
        def train_step(batch):
            logs = strategy.run(model_step, args=(batch,))
            if average is not None:
                average.update()
            return {
                name: tf.cast(strategy.reduce("MEAN", value, axis=None), tf.float32) for name, value in logs.items()
            }

        def step(iterator):
            batch, waited = _next(iterator, has_clock)
            with tf.control_dependencies([waited]):  # otherwise the end timestamp may be taken after the step itself
                last = train_step(batch)  # its own graph function, so it is traced once for both calls
            names[:] = last
            return tf.stack([last[name] for name in names]), waited

        @tf.function(autograph=False)
        def take(iterator, num_steps):
            def is_good(last):
                is_finite = tf.reduce_all(tf.math.is_finite(last))
                return is_finite | (last[names.index(_SKIPPED)] > 0.0) if _SKIPPED in names else is_finite

            def goes_on(done, last, losses, waited):
                return (done < num_steps) & is_good(last)

            def one_more(done, last, losses, waited):
                last, seconds = step(iterator)
                return done + 1, last, losses.write(done, last), waited + seconds

            last, waited = step(iterator)
            losses = tf.TensorArray(tf.float32, size=1, dynamic_size=True, element_shape=last.shape).write(0, last)
            _, last, losses, waited = tf.while_loop(goes_on, one_more, (tf.constant(1), last, losses, waited))
            return losses.stack(), is_good(last), waited

        self._take, self._names = take, names

    def trace(self, iterator: Any) -> None:
        """Builds the graph, which takes seconds. The first call would, too; doing it here lets it be timed separately."""
        if self._xla and not tf.config.list_logical_devices("GPU"):
            graph = self._model_step.get_concrete_function(iterator.element_spec).graph.as_graph_def()
            nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
            if any(node.op.startswith("Conv3D") for node in nodes):
                raise ValueError(
                    "XLA computes 3-D convolutions on a CPU 20 to 140 times slower than TensorFlow itself, and this system "
                    "has some: leave out --xla here, or train on a GPU."
                )
        self._take.get_concrete_function(iterator, tf.constant(1))

    def __call__(self, iterator: Any, num_steps: int) -> StepResult:
        """Takes `num_steps` steps, or fewer if one is bad."""
        try:
            losses, is_good, waited = self._take(iterator, tf.constant(num_steps))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if not self._xla:
                raise
            raise ValueError(
                f"XLA cannot compile this system's step here: leave out --xla. ({error.message.strip().splitlines()[0]})"
            ) from error
        columns = losses.numpy().T
        return StepResult(dict(zip(self._names, columns, strict=True)), bool(is_good), float(waited))


def _next(iterator: Any, has_clock: bool) -> tuple[Any, tf.Tensor]:
    """The next batch and the seconds spent waiting for it, measured inside the graph."""
    if not has_clock:
        return iterator.get_next(), tf.constant(float("nan"), tf.float64)
    with tf.device("CPU:0"):
        before = tf.timestamp()
    with tf.control_dependencies([before]):
        batch = iterator.get_next()
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)), tf.device("CPU:0"):
        return batch, tf.timestamp() - before


def _has_clock() -> bool:
    try:
        tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return False
    return True
