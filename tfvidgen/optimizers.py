"""Optimizers, the shared update path of all training steps, and loss scaling for float16."""

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

MIN_SCALE, MAX_SCALE = 1.0, 2.0**24  # of the loss


OFFICIAL_EPSILON = 1e-8  # of Adam in PyTorch and in Torch 7; Keras's is 1e-7


class Adam(keras.optimizers.Adam):
    """Keras's Adam, with the same numbers and variables, as one fused kernel per update instead of a dozen memory passes.

    Args:
        corrected_epsilon: Adds epsilon to the square root of the bias-corrected second moment, as Algorithm 1 of Kingma and Ba
            and PyTorch since version 1.3, instead of to that of the uncorrected one, as Keras and Torch 7. In step t, the
            latter is 1 / sqrt(1 - beta_2^t) times as much: 32 times at first with beta_2 = 0.999.
        **kwargs: Arguments of `keras.optimizers.Adam`.

    Raises:
        ValueError: If `corrected_epsilon` and `amsgrad` are combined.
    """

    def __init__(self, *args, corrected_epsilon: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        if corrected_epsilon and self.amsgrad:
            raise ValueError("`corrected_epsilon` is not available with amsgrad=True: leave one of them out.")
        self.corrected_epsilon = corrected_epsilon

    def get_config(self):
        return {**super().get_config(), "corrected_epsilon": self.corrected_epsilon}

    def update_step(self, gradient, variable, learning_rate):
        if self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        gradient = tf.convert_to_tensor(gradient)  # of an embedding it is sparse; Keras, too, moves all rows
        index = self._get_variable_index(variable)
        value = variable.value if isinstance(variable, keras.Variable) else variable
        count = tf.cast(self.iterations + 1, value.dtype)
        beta2_power = tf.pow(tf.cast(self.beta_2, value.dtype), count)
        # the kernel divides by sqrt(v) + epsilon and multiplies by the square root of the correction
        epsilon = self.epsilon * tf.sqrt(1.0 - beta2_power) if self.corrected_epsilon else self.epsilon
        tf.raw_ops.ResourceApplyAdam(
            var=value.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, value.dtype), count),
            beta2_power=beta2_power,
            lr=tf.cast(learning_rate, value.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=epsilon,
            grad=gradient,
        )


def pytorch_adam(learning_rate, **options) -> Adam:
    """PyTorch's Adam, the optimizer of most official implementations: an epsilon of 1e-8, after bias correction.

    Args:
        learning_rate: A float or a schedule.
        **options: Further arguments of `Adam`, such as `beta_1`.
    """
    return Adam(learning_rate, **{"epsilon": OFFICIAL_EPSILON, "corrected_epsilon": True, **options})


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """A system's optimizers without duplicates (Keras also stores the one given to `compile` as `optimizer`)."""
    found = {id(value): value for value in vars(model).values() if isinstance(value, keras.optimizers.Optimizer)}
    return list(found.values())


class LossScaler(keras.layers.Layer):
    """Dynamic loss scaling for float16.

    float16 has no positive number below 6e-8: smaller gradients underflow in the backward pass, unless the loss is scaled up
    first and the gradients are scaled back in float32. The factor halves when a gradient overflows and doubles after
    `growth_steps` steps without overflow. Factor and count are weights, so they are checkpointed.

    Args:
        initial_scale: Initial factor; a power of two, so that scaling is exact.
        growth_steps: Steps without overflow after which the factor doubles.

    Source: Micikevicius et al., ICLR 2018, https://arxiv.org/abs/1710.03740, Sec. 3.2; constants of
        `keras.optimizers.LossScaleOptimizer`, which supports a single optimizer only.
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
        """Updates the factor after a step; call it in cross-replica context."""
        factor, good_steps = tf.convert_to_tensor(self.factor), self.good_steps + 1
        grows = good_steps >= self.growth_steps
        larger = tf.minimum(tf.where(grows, 2.0 * factor, factor), MAX_SCALE)
        self.factor.assign(tf.where(finite, larger, tf.maximum(0.5 * factor, MIN_SCALE)))
        self.good_steps.assign(tf.where(finite & ~grows, good_steps, 0))


def _together(gradients):
    """The same gradients, tied together so that none is available, and no weight changes, before all are computed.

    An optimizer sums gradients over replicas with one operation on all of them (an `IdentityN`, even on one replica). Given
    that, TensorFlow's graph rewriter concludes that weights change only after every gradient, and drops the control
    dependencies of updates on earlier reads of their weights. It then splits the operation into one per gradient, which
    leaves nothing to wait for: a weight whose gradient does not depend on its value, such as the last kernel of a Wasserstein
    critic, was occasionally updated before the other gradients had read it.
    """
    return tf.nest.pack_sequence_as(gradients, tf.tuple(tf.nest.flatten(gradients)))


def check_counts(**counts: int) -> None:
    """Raises ValueError, naming the keyword, for an argument that is not an int of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1. Received {count!r}.")


def _split(values, count: int) -> list[Any]:
    """Splits nested tensors along the batch axis into `count` equal parts; None stays None."""
    parts = [[None] * count if x is None else tf.split(x, count) for x in tf.nest.flatten(values)]
    return [tf.nest.pack_sequence_as(values, part) for part in zip(*parts, strict=True)] if parts else [values] * count


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)


class StepGuard:
    """Computes the gradients of one training step, and rolls the whole step back if float16 overflowed.

    A `train_step` creates a guard first, makes all gradient computations and latent row updates through it, and returns the
    result of `finish`. Losses are means over the examples they receive, independent of replicas and micro-batches.

        guard = StepGuard(self)

        def objective(real):
            loss = ...
            return loss, {"reconstruction_loss": loss}

        logs = guard.minimise(objective, self.trainable_variables, self.optimizer, inputs=(real,))
        return guard.finish(logs)

    If the model was compiled with `accumulate=K`, each update processes its examples in K sequential micro-batches and
    applies the mean of their gradients once, with the memory of a single micro-batch (gradient accumulation). Draws of
    `tfvidgen.layers.draws` are made for the global batch and sliced, so they do not depend on K: without batch norm, results
    equal those of one large batch up to rounding. The power iteration of spectral norm restarts in each micro-batch, so all
    divide by the same values. Batch norm uses the statistics of micro-batches and updates its moving ones with each.

    In other precisions, gradients are those of `tape.gradient`, and rows and logs pass unchanged. In float16, a step with a
    non-finite gradient on any replica has no effect but a smaller scale: weights, batch norm statistics, optimizers and
    rows are restored, even if an earlier stage of the step had already been applied. This requires a copy of weights and
    slots (except latent tables) in memory until the step ends. `loss_scale` and `skipped` (1 or 0) are added to the logs;
    `loss_scale` is NaN if gradients overflow even at the minimum scale.

    Args:
        model: A `VideoGenerator`; its `loss_scaler` is None unless it computes in float16, and its `accumulate` is the number
            of micro-batches per update. Any other `keras.Model` has one micro-batch and no loss scaling.

    Raises:
        ValueError: If an optimizer accumulates gradients over steps on several replicas, which Keras does not support.
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
        # latent tables are updated last, and the scale must survive a rollback
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
        """One update: gradients of a loss with respect to `variables`, averaged over replicas, clipped, and applied.

        Args:
            objective: Maps the inputs of a micro-batch to the loss, a mean over its examples, and logs by name.
            variables: Variables of the trained network.
            optimizer: Optimizer built for them.
            inputs: Arguments of the objective: nests of tensors with this replica's examples along the first axis, or None.
            l2_weight: Weight of `l2_penalty`, which is added to the loss; 0 disables it.
            clip_norm: Maximum global norm of the gradients over all replicas and micro-batches; 0 disables clipping.

        Returns:
            The objective's logs, averaged over micro-batches.
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
        """Like `minimise` without the update: for several optimizers that share one forward pass, and for learned codes.

        Args:
            objective: As for `minimise`; its loss may be one for all groups or a list with one per group.
            *groups: Variables to differentiate with respect to.
            inputs: As for `minimise`.
            codes: Gathered codes by name, (B, ...), to differentiate with respect to as well. The objective takes those of
                its micro-batch as its first argument. Requires a single loss.

        Returns:
            Gradients by group, gradients with respect to all `codes` (for `update`), and logs.
        """
        weights = [[variable.value for variable in group] for group in groups]

        def of_part(codes, *part):  # one micro-batch
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
        """`compute(*inputs)` one micro-batch at a time; inputs and results are nests of tensors with the batch axis first."""
        return self._in_turn(lambda *part: ((), compute(*part)), inputs)[1]

    def shares(self, num_updates: int, *values: Any) -> list[tuple[Any, ...]]:
        """Splits a step's examples evenly among `num_updates` updates of a discriminator.

        Update i gets examples i, i + num_updates, ... of the global batch, so the split does not depend on the number of
        replicas.

        Raises:
            ValueError: If examples cannot be split evenly, or a part not be divided into micro-batches.
        """
        self._check_rows(values, num_updates)
        if num_updates == 1:
            return [values]

        def share(i):
            return tf.nest.map_structure(lambda x: None if x is None else x[i::num_updates], values)

        return [share(i) for i in range(num_updates)]

    def _in_turn(self, compute, inputs):
        """Runs `compute` on the micro-batches of `inputs` in sequence: sums its first result and concatenates its second."""
        count = self.accumulate
        if count == 1:
            return compute(*inputs)
        self._check_rows(inputs)
        sums, examples = None, []
        iterates = [tf.convert_to_tensor(variable) for variable in self._iterates]
        for i, part in enumerate(_split(inputs, count)):
            done = [x for x in tf.nest.flatten([sums, examples[-1:]]) if x is not None]
            # otherwise TensorFlow would run them in parallel, with the memory of all
            with micro_batch(i, count), tf.control_dependencies(done):
                if i:  # every micro-batch starts from the same u and v of spectral norm
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
        """`tape.gradient(loss, sources)` with loss scaling: of the scaled loss, divided by the scale. `loss` is a scalar.

        All gradients become available together, see `_together`. Inner gradients of a gradient penalty are part of the loss
        and taken from their own tape as usual. Callers who use this instead of `minimise` or `gradients` must divide the
        loss by the number of replicas, and get no micro-batches.
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
        # all zeros after an overflow, so that later stages of the step still have finite losses to log
        factor = tf.where(finite, 1.0 / scale, 0.0)

        def unscaled(gradient):
            if isinstance(gradient, tf.IndexedSlices):
                return tf.IndexedSlices(unscaled(gradient.values), gradient.indices, gradient.dense_shape)
            return None if gradient is None else tf.math.multiply_no_nan(gradient, factor)

        return tf.nest.map_structure(unscaled, scaled)

    def update(self, table: LatentTable, row_ids, gradients, step) -> None:
        """`table.update(row_ids, gradients, step)`; in float16, deferred to the end of the step."""
        if self._scaler is None:
            table.update(row_ids, gradients, step)
        else:
            self._updates.append((table, row_ids, gradients, step))

    def finish(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Rolls the step back if it overflowed, and returns its logs."""
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
        hopeless = ~finite & (scale <= MIN_SCALE)  # overflow that no smaller scale can avoid
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
