"""Optimizers, and the loss scaling that float16 needs."""

from __future__ import annotations

from typing import Any

import keras

from tfvidgen._tensorflow import tf
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.layers.replicas import num_replicas

MIN_SCALE, MAX_SCALE = 1.0, 2.0**24


class Adam(keras.optimizers.Adam):
    """Keras's Adam with its numbers and variables, each update one kernel instead of a dozen passes over memory."""

    def update_step(self, gradient, variable, learning_rate):
        if keras.config.backend() != "tensorflow" or self.amsgrad or isinstance(gradient, tf.IndexedSlices):
            return super().update_step(gradient, variable, learning_rate)
        index = self._get_variable_index(variable)
        value = variable.value if isinstance(variable, keras.Variable) else variable
        count = tf.cast(self.iterations + 1, value.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=value.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, value.dtype), count),
            beta2_power=tf.pow(tf.cast(self.beta_2, value.dtype), count),
            lr=tf.cast(learning_rate, value.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """A system's optimizers, each once, though Keras keeps the one given to `compile` under `optimizer` too."""
    found = {id(value): value for value in vars(model).values() if isinstance(value, keras.optimizers.Optimizer)}
    return list(found.values())


class LossScaler(keras.layers.Layer):
    """By how much the losses of a float16 model are multiplied, and how that number finds itself.

    float16 has no number between 0 and 6e-8: gradients of that size vanish on their way back, unless the loss is
    multiplied first and the gradients are divided in float32. The factor halves when a gradient overflows and doubles
    after `growth_steps` steps in which none did. Factor and count are weights, so a checkpoint holds them.

    Args:
        initial_scale: The factor at the start; a power of two, so that scaling is exact.
        growth_steps: Steps without an overflow after which the factor doubles.

    Source: Micikevicius et al., ICLR 2018, https://arxiv.org/abs/1710.03740, Sec. 3.2; numbers of
        `keras.optimizers.LossScaleOptimizer`, which scales for one optimizer and knows nothing of the others.
    """

    def __init__(self, initial_scale: float = 2.0**15, growth_steps: int = 2000, **kwargs):
        super().__init__(trainable=False, dtype="float32", **kwargs)
        if not MIN_SCALE <= initial_scale <= MAX_SCALE or growth_steps < 1:
            raise ValueError(
                f"`initial_scale` lies in {MIN_SCALE:.0f}..{MAX_SCALE:.0f} and `growth_steps` is at least 1. Received "
                f"initial_scale={initial_scale}, growth_steps={growth_steps}."
            )
        self.growth_steps = growth_steps
        start = keras.initializers.Constant(initial_scale)
        self.factor = self.add_weight(name="factor", shape=(), initializer=start, trainable=False)
        self.good_steps = self.add_weight(
            name="good_steps", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.built = True

    def adapt(self, finite):
        """Moves the factor after a step; call it in cross-replica context."""
        factor, good_steps = tf.convert_to_tensor(self.factor), self.good_steps + 1
        grows = good_steps >= self.growth_steps
        larger = tf.minimum(tf.where(grows, 2.0 * factor, factor), MAX_SCALE)
        self.factor.assign(tf.where(finite, larger, tf.maximum(0.5 * factor, MIN_SCALE)))
        self.good_steps.assign(tf.where(finite & ~grows, good_steps, 0))


def _together(gradients):
    """The same gradients, each of which waits for all others, so that no weight moves while some are being computed.

    An optimizer sums gradients over replicas, and that operation (an `IdentityN`, on one replica too) takes all of them at
    once. While it stands, TensorFlow's rewriting of graphs sees that weights move after every gradient, and drops what
    makes an update wait for the reads of its own weight. Then it splits the operation into one per gradient, and nothing
    is left to wait for: a weight whose gradient does not depend on its value, such as the last kernel of a Wasserstein
    critic, was now and then updated before the other gradients had read it.
    """
    return tf.nest.pack_sequence_as(gradients, tf.tuple(tf.nest.flatten(gradients)))


class StepGuard:
    """Takes the gradients of one training step, and undoes the whole step where float16 overflowed.

    A `train_step` makes one first, takes every gradient and moves every latent row through it, and returns what `finish`
    returns. Optimizers are used as ever: they see gradients of the loss itself, not of the scaled one.

        guard = StepGuard(self)
        with tf.GradientTape() as tape:
            loss = ... / num_replicas()
        gradients, code_gradients = guard.gradient(tape, loss, [weights, codes])
        self.optimizer.apply(gradients, variables)
        guard.update(self.codes, row_ids, code_gradients, step)
        return guard.finish({"reconstruction_loss": loss})

    Unless the model computes in float16 these are `tape.gradient`, `table.update` and the logs as they are. In float16, a
    step in which a gradient is not finite on any replica leaves no trace but a smaller scale: weights, batch norm
    statistics, optimizers and rows are those from before it, also where a step has several stages and an earlier one was
    applied already. For that, weights and slots as they were stay in memory until the step ends (latent tables do not).
    The logs get `loss_scale`, NaN where gradients overflow though nothing is scaled any more, and `skipped`, 1 or 0.

    Args:
        model: A `VideoGenerator`; its `loss_scaler` is None unless it computes in float16.

    Raises:
        ValueError: If an optimizer accumulates gradients over steps on several replicas, which Keras cannot do.
    """

    def __init__(self, model: keras.Model):
        optimizers = optimizers_of(model)
        for optimizer in optimizers:
            if num_replicas() > 1 and optimizer.gradient_accumulation_steps:
                raise ValueError(
                    f"`{optimizer.name}` has gradient_accumulation_steps={optimizer.gradient_accumulation_steps}, and Keras "
                    f"cannot accumulate on {num_replicas()} replicas: use a larger batch, or one device."
                )
        self._scaler = model.loss_scaler
        if self._scaler is None:
            return
        apart = [layer for layer in model.layers if isinstance(layer, LatentTable) or layer is self._scaler]
        apart = {id(variable) for layer in apart for variable in layer.weights}
        weights = [variable for variable in model.weights if id(variable) not in apart]
        slots = [variable for optimizer in optimizers for variable in optimizer.variables]
        self._variables = [variable.value for variable in weights + slots]
        self._before = [tf.identity(variable) for variable in self._variables]
        self._finite: list[Any] = []
        self._updates: list[tuple] = []

    def gradient(self, tape: tf.GradientTape, loss, sources):
        """`tape.gradient(loss, sources)`, taken of the scaled loss and divided by the scale. `loss` is a scalar.

        None of them is there before all are, see `_together`. A penalty on gradients is part of a loss: take those inner
        gradients from their own tape as ever.
        """
        if self._scaler is None:
            return _together(tape.gradient(loss, sources))
        scale = tf.convert_to_tensor(self._scaler.factor)
        scaled = tape.gradient(loss, sources, output_gradients=scale)
        values = [
            gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
            for gradient in tf.nest.flatten(scaled)
            if gradient is not None
        ]
        finite = tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(value)) for value in values]))
        self._finite.append(finite)
        # nothing but zeros where they overflowed, so that a later stage of the step has losses to show
        factor = tf.where(finite, 1.0 / scale, 0.0)

        def unscaled(gradient):
            if isinstance(gradient, tf.IndexedSlices):
                return tf.IndexedSlices(unscaled(gradient.values), gradient.indices, gradient.dense_shape)
            return None if gradient is None else tf.math.multiply_no_nan(gradient, factor)

        return tf.nest.map_structure(unscaled, scaled)

    def update(self, table: LatentTable, row_ids, gradients, step) -> None:
        """`table.update(row_ids, gradients, step)`; in float16 when the step ends and is known to be good."""
        if self._scaler is None:
            table.update(row_ids, gradients, step)
        else:
            self._updates.append((table, row_ids, gradients, step))

    def finish(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Undoes the step if it overflowed, and returns the logs of the step."""
        if self._scaler is None:
            return logs
        replica = tf.distribute.get_replica_context()
        overflowed = tf.cast(~tf.reduce_all(tf.stack(self._finite)), tf.float32)
        if num_replicas() > 1:
            overflowed = replica.all_reduce(tf.distribute.ReduceOp.SUM, overflowed)
        finite = tf.equal(overflowed, 0.0)
        scale = tf.convert_to_tensor(self._scaler.factor)
        for table, row_ids, gradients, step in self._updates:
            table.update(row_ids, gradients, step, keep=finite)
        replica.merge_call(self._settle, args=(finite, self._before))
        hopeless = ~finite & (scale <= MIN_SCALE)
        return {
            **logs,
            "loss_scale": tf.where(hopeless, float("nan"), scale),
            "skipped": tf.cast(~finite, tf.float32),
        }

    def _settle(self, strategy, finite, before):
        finite = strategy.experimental_local_results(finite)[0]

        def restore():
            for variable, value in zip(self._variables, before, strict=True):
                strategy.extended.update(variable, lambda variable, value: variable.assign(value), args=(value,))

        tf.cond(finite, lambda: None, restore)
        self._scaler.adapt(finite)
