"""The compiled part of a run: many training steps in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from tfvidgen.models.base import VideoGenerator
from trainers.average import WeightAverage

# What a float16 step says of its own loss scaling. Where `skipped` is 1 the step has undone itself.
_SKIPPED, _SCALE = "skipped", "loss_scale"


class Taken(NamedTuple):
    """What a call of `Steps` did.

    Attributes:
        num_steps: Steps that were taken, the bad one included.
        logs: Their mean losses.
        last: The losses of the last of them.
        is_good: False if a loss of the last one is not finite.
        input_seconds: How long they waited for batches; NaN where TensorFlow refuses to tell the time, which it does when
            its operations must be deterministic.
    """

    num_steps: int
    logs: dict[str, float]
    last: dict[str, float]
    is_good: bool
    input_seconds: float


class Steps:
    """Takes steps of a model under a strategy, one `tf.function` for any number of them; stops after a bad one.

    Args:
        model: Built and compiled in the scope of `strategy`.
        strategy: Where to train.
        average: Takes in the weights after each step.
        xla: Compiles the step with XLA, on one device.

    Raises:
        ValueError: If `xla` is asked for on several replicas, where it fails, or lets their batch norm statistics drift
            apart.
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
                f"XLA compiles the step of one device. Received {strategy.num_replicas_in_sync} replicas: use strategy=none, "
                "or leave out xla."
            )
        self._xla = xla
        has_clock = _has_clock()
        # Converting Python control flow takes longer than all the rest of tracing, and `fit` does not offer it either.
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
            last = train_step(batch)  # its own graph function, so it is traced once for both calls
            return last, _counted(last), waited

        @tf.function(autograph=False)
        def take(iterator, num_steps):
            def goes_on(done, is_good, sums, last, waited):
                return is_good & (done < num_steps)

            def one_more(done, is_good, sums, last, waited):
                last, counted, seconds = step(iterator)
                sums = {name: sums[name] + counted[name] for name in sums}
                return done + 1, _is_finite(counted), sums, last, waited + seconds

            last, sums, waited = step(iterator)
            return tf.while_loop(goes_on, one_more, (tf.constant(1), _is_finite(sums), sums, last, waited))

        self._take = take

    def trace(self, iterator: Any) -> None:
        """Builds the graph, which takes seconds. The first call would do it too; here it can be timed on its own."""
        if self._xla and not tf.config.list_logical_devices("GPU"):
            graph = self._model_step.get_concrete_function(iterator.element_spec).graph.as_graph_def()
            nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
            if any(node.op.startswith("Conv3D") for node in nodes):
                raise ValueError(
                    "XLA computes 3-D convolutions on a CPU 20 to 140 times slower than TensorFlow itself, and this system "
                    "has some: leave out --xla here, or train on a GPU."
                )
        self._take.get_concrete_function(iterator, tf.constant(1))

    def __call__(self, iterator: Any, num_steps: int) -> Taken:
        """Takes `num_steps` steps, or fewer if one is bad."""
        try:
            done, is_good, sums, last, waited = self._take(iterator, tf.constant(num_steps))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            if not self._xla:
                raise
            raise ValueError(
                f"XLA cannot compile this system's step here: leave out --xla. ({error.message.strip().splitlines()[0]})"
            ) from error
        done = int(done)
        sums, last = ({name: float(value) for name, value in logs.items()} for logs in (sums, last))
        counted = done - sums.get(_SKIPPED, 0.0)
        logs = {name: sums[name] / done for name in sums if name in (_SKIPPED, _SCALE)}
        if counted:
            logs = {**{name: sums[name] / counted for name in sums if name not in logs}, **logs}
        return Taken(done, logs, last, bool(is_good), float(waited))


def _next(iterator: Any, has_clock: bool) -> tuple[Any, tf.Tensor]:
    """The next batch, and the seconds in which it was waited for, measured inside the graph."""
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


def _counted(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Zeros in place of the losses of a step that has undone itself, which may be anything."""
    if _SKIPPED not in logs:
        return logs
    undone = logs[_SKIPPED] > 0.0
    return {name: value if name in (_SKIPPED, _SCALE) else tf.where(undone, 0.0, value) for name, value in logs.items()}


def _is_finite(logs: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.reduce_all(tf.math.is_finite(tf.stack(list(logs.values()))))
