"""Optimizers, the one tail of every update of a step, and the loss scaling that float16 needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfvidgen._tensorflow import tf
from tfvidgen.layers.gradients import clip_to_norm
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.layers.replicas import micro_batch, num_parts, num_replicas
from tfvidgen.layers.spectral_norm import SpectralNorm
from tfvidgen.losses.adversarial import l2_penalty

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


def check_counts(**counts: int) -> None:
    """Raises ValueError for an argument, named by its keyword, that is not a whole number of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1. Received {count!r}.")


def _split(values, count: int) -> list[Any]:
    """Nests of tensors, examples first, and None -> `count` equal parts of all of them."""
    parts = [[None] * count if x is None else tf.split(x, count) for x in tf.nest.flatten(values)]
    return [tf.nest.pack_sequence_as(values, part) for part in zip(*parts, strict=True)] if parts else [values] * count


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)


class StepGuard:
    """Takes the gradients of one training step, and undoes the whole step where float16 overflowed.

    A `train_step` makes one first, takes every gradient and moves every latent row through it, and returns what `finish`
    returns. Losses are means over the examples that they are given, and know of neither replicas nor micro-batches.

        guard = StepGuard(self)

        def objective(real):
            loss = ...
            return loss, {"reconstruction_loss": loss}

        logs = guard.minimise(objective, self.trainable_variables, self.optimizer, inputs=(real,))
        return guard.finish(logs)

    Where the model was compiled with `accumulate=K`, each update takes its examples in K micro-batches, one after the other,
    and applies the mean of their gradients once: the memory of a step is that of one micro-batch. Draws of
    `tfvidgen.layers.draws` are made for the global batch and sliced, so that K changes no draw: without batch norm K gives
    the numbers of one big batch but for rounding. The power iterations of spectral norm begin anew in each, and so divide by
    the same numbers. Batch norm sees micro-batches, and its moving statistics take in each of them.

    Unless the model computes in float16 gradients are `tape.gradient`'s, and rows and logs pass as they are. In float16, a
    step in which a gradient is not finite on any replica leaves no trace but a smaller scale: weights, batch norm
    statistics, optimizers and rows are those from before it, also where a step has several stages and an earlier one was
    applied already. For that, weights and slots as they were stay in memory until the step ends (latent tables do not).
    The logs get `loss_scale`, NaN where gradients overflow though nothing is scaled any more, and `skipped`, 1 or 0.

    Args:
        model: A `VideoGenerator`; its `loss_scaler` is None unless it computes in float16, and its `accumulate` says how
            many micro-batches an update has. Any other `keras.Model` has one and is not scaled.

    Raises:
        ValueError: If an optimizer accumulates gradients over steps on several replicas, which Keras cannot do.
    """

    def __init__(self, model: keras.Model):
        optimizers = optimizers_of(model)
        for optimizer in optimizers:
            steps = optimizer.gradient_accumulation_steps
            if num_replicas() > 1 and steps:
                raise ValueError(
                    f"`{optimizer.name}` has gradient_accumulation_steps={steps}, and Keras cannot accumulate on "
                    f"{num_replicas()} replicas: compile the model with accumulate={steps} and take {steps} times the batch, or "
                    "use one device."
                )
        self.accumulate = getattr(model, "accumulate", 1)
        self._iterates: list[Any] = []
        if self.accumulate > 1:
            norms = [layer for layer in model._flatten_layers() if isinstance(layer, SpectralNorm)]
            self._iterates = [variable for norm in norms for variable in norm.weights]
        self._scaler = getattr(model, "loss_scaler", None)
        if self._scaler is None:
            return
        apart = [layer for layer in model.layers if isinstance(layer, LatentTable) or layer is self._scaler]
        apart = {id(variable) for layer in apart for variable in layer.weights}
        learned = getattr(model, "learned_variables", model.weights)
        weights = [variable for variable in learned if id(variable) not in apart]
        slots = [variable for optimizer in optimizers for variable in optimizer.variables]
        self._variables = [variable.value for variable in weights + slots]
        self._before = [tf.identity(variable) for variable in self._variables]
        self._finite: list[Any] = []
        self._updates: list[tuple] = []

    # ------------------------------------------------------------ updates
    def minimise(
        self,
        objective: Callable[..., tuple[Any, dict[str, Any]]],
        variables: Sequence[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
        inputs: Sequence[Any] = (),
        l2_weight: float = 0.0,
        clip_norm: float = 0.0,
    ) -> dict[str, Any]:
        """One update: gradients of a loss at `variables`, divided by replicas, clipped, and applied by `optimizer`.

        Args:
            objective: Takes the inputs of a micro-batch; returns the loss, a mean over its examples, and logs by name.
            variables: Of the network that is trained.
            optimizer: Built for them.
            inputs: What the objective takes: nests of tensors with this replica's examples first, and None.
            l2_weight: Of `l2_penalty`, which is added to the loss; 0 for none.
            clip_norm: Most that the joint norm of the gradients may be, over all replicas and micro-batches; 0 for any.

        Returns:
            The objective's logs, means over the micro-batches.
        """
        weights = [variable.value for variable in variables]

        def penalised(*part):
            loss, logs = objective(*part)
            return loss + l2_weight * l2_penalty(weights) if l2_weight else loss, logs

        (gradients,), _, logs = self.gradients(penalised, variables, inputs=inputs)
        optimizer.apply(clip_to_norm(gradients, clip_norm), variables)
        return logs

    def gradients(
        self,
        objective: Callable[..., tuple[Any, dict[str, Any]]],
        *groups: Sequence[keras.Variable],
        inputs: Sequence[Any] = (),
        codes: dict[str, Any] | None = None,
    ) -> tuple[list[list[Any]], Any, dict[str, Any]]:
        """As `minimise`, without the update: for several optimizers that share one forward pass, and for learned codes.

        Args:
            objective: Its first result is one loss for all groups, or a list with one loss for each.
            *groups: Variables at which gradients are taken.
            inputs: As for `minimise`.
            codes: Gathered codes by name, examples first, at which gradients are taken too. The objective takes those of
                its micro-batch before its inputs. There must be one loss.

        Returns:
            Gradients by group, gradients at all of `codes` (for `update`), and logs.
        """
        weights = [[variable.value for variable in group] for group in groups]

        def of_part(codes, *part):
            with tf.GradientTape(persistent=len(groups) > 1, watch_accessed_variables=False) as tape:
                tape.watch([weights, codes or []])
                loss, logs = objective(*part) if codes is None else objective(codes, *part)
                losses = [one / num_parts() for one in loss] if isinstance(loss, (list, tuple)) else loss / num_parts()
            if isinstance(losses, list):
                found = [self.gradient(tape, one, group) for one, group in zip(losses, weights, strict=True)]
                return (found, logs), []
            at_codes, found = self.gradient(tape, losses, [codes or [], weights])
            return (found, logs), at_codes

        (found, logs), at_codes = self._in_turn(of_part, (codes, *inputs))
        if self.accumulate > 1:
            logs = {name: value / self.accumulate for name, value in logs.items()}
        return found, at_codes, logs

    def in_parts(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """`compute(*inputs)`, micro-batch by micro-batch; inputs and results are nests of tensors with examples first."""
        return self._in_turn(lambda *part: ((), compute(*part)), inputs)[1]

    def shares(self, num_updates: int, *values: Any) -> list[tuple[Any, ...]]:
        """Equal parts of a step's examples, one for each of `num_updates` updates of a discriminator.

        Update i has examples i, i + num_updates, ... of the global batch, so replicas change nothing about what it sees.

        Raises:
            ValueError: If they cannot be shared equally, or a share not be taken in micro-batches.
        """
        self._check_rows(values, num_updates)
        if num_updates == 1:
            return [values]

        def share(i):
            return tf.nest.map_structure(lambda x: None if x is None else x[i::num_updates], values)

        return [share(i) for i in range(num_updates)]

    def _in_turn(self, compute, inputs):
        """Sums and joined examples, the two results of `compute`, over the micro-batches of `inputs`, one after the other."""
        count = self.accumulate
        if count == 1:
            return compute(*inputs)
        self._check_rows(inputs)
        sums, examples = None, []
        iterates = [tf.convert_to_tensor(variable) for variable in self._iterates]
        for i, part in enumerate(_split(inputs, count)):
            done = [x for x in tf.nest.flatten([sums, examples[-1:]]) if x is not None]
            # else TensorFlow would compute them side by side, in the memory of all of them
            with micro_batch(i, count), tf.control_dependencies(done):
                if i:
                    for variable, value in zip(self._iterates, iterates, strict=True):
                        variable.assign(value)
                new, rows = compute(*part)
                new = tf.nest.map_structure(lambda x: None if x is None else tf.convert_to_tensor(x), new)
                sums = new if i == 0 else tf.nest.map_structure(lambda a, b: None if a is None else a + b, sums, new)
            examples.append(rows)
        return sums, tf.nest.map_structure(lambda *x: None if x[0] is None else tf.concat(x, 0), *examples)

    def _check_rows(self, values, num_updates: int = 1) -> None:
        for size in {x.shape[0] for x in tf.nest.flatten(values) if x is not None}:
            if size is None or size % (num_updates * self.accumulate) == 0:
                continue
            each = "the batch" if num_replicas() == 1 else f"each of {num_replicas()} replicas"
            if size % num_updates:
                raise ValueError(
                    f"discriminator_steps={num_updates} cannot share the {size} clips that {each} has: make it one of "
                    f"{_divisors(size)}, or the batch a multiple of {num_updates * self.accumulate * num_replicas()} clips."
                )
            share = "" if num_updates == 1 else f" in each of discriminator_steps={num_updates} updates"
            raise ValueError(
                f"accumulate={self.accumulate} cannot divide the {size // num_updates} clips that {each} has{share}: make it "
                f"one of {_divisors(size // num_updates)}, or the batch a multiple of "
                f"{num_updates * self.accumulate * num_replicas()} clips."
            )

    # ------------------------------------------------------------ gradients and rows
    def gradient(self, tape: tf.GradientTape, loss, sources):
        """`tape.gradient(loss, sources)`, taken of the scaled loss and divided by the scale. `loss` is a scalar.

        None of them is there before all are, see `_together`. A penalty on gradients is part of a loss: take those inner
        gradients from their own tape as ever. Who calls this, instead of `minimise` or `gradients`, divides the loss by
        the number of replicas and sees all examples at once.
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
