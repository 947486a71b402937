"""A moving average of what a model has learned: sampled, evaluated and exported in place of the last step's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfvidgen.layers.batch_norm import renew_statistics
from tfvidgen.models.base import VideoGenerator
from tfvidgen.runs import (
    AVERAGE,
    AVERAGE_DECAY,
    AVERAGE_MASS,
    AVERAGE_STEPS,
    averaged_name,
    averaged_variables,
    latent_tables,
    mean_rows,
)


class WeightAverage:
    """Exponential moving average of what a model has learned, with bias correction.

    The average of t steps is sum_i (1 - d) d^(t - i) w_i / (1 - d^t): unbiased from the first step, with no warm-up to tune.
    Network weights, batch norm statistics and learned codes are all averaged over the same steps. Averaging the networks
    alone would pair a generator from about 1 / (1 - d) steps ago with the codes of the last step, but the two move
    together: a rotation of the codes that the generator follows changes no video, unless they come from different steps.
    Averaged codes are projected as after every update, since the mean of points on a sphere lies inside it.

    While the average is applied, the batch norm statistics that `decode` uses are recomputed over videos generated with the
    averaged weights (after Izmailov et al., UAI 2018): averaged statistics match no set of weights, and were 3 to 58 times
    too large under weight decay at a high learning rate.

    It costs a copy of weights and codes in memory and, in each step, a pass over the weights and over the batch's rows of
    the codes (`LatentTable.keep_average`).

    Args:
        model: Built, in the same strategy scope in which this is created.
        decay: d, in (0, 1). The average spans about 1 / (1 - d) steps.
    """

    def __init__(self, model: VideoGenerator, decay: float):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"`decay` must lie between 0 and 1, e.g. 0.999. Received {decay}.")
        self.decay, self._model = decay, model
        self._strategy = tf.distribute.get_strategy()
        self._weights = averaged_variables(model)
        self._tables = {AVERAGE + name: table for name, table in latent_tables(model).items()}

        def variable(name: str, value) -> tf.Variable:
            first = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return tf.Variable(value, trainable=False, aggregation=first, name=name.replace(".", "_"))

        self._sums = {name: variable(name, tf.zeros(weight.shape)) for name, weight in self._weights.items()}
        self._mass = variable(AVERAGE_MASS, 0.0)
        self._counts, self._rows = {}, {}
        if self._tables:
            self._counts = {
                AVERAGE_DECAY: variable(AVERAGE_DECAY, tf.constant(decay, tf.float64)),
                AVERAGE_STEPS: variable(AVERAGE_STEPS, 0.0),
            }
            self._rows = {
                name: table.keep_average(decay, self._counts[AVERAGE_STEPS]) for name, table in self._tables.items()
            }

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Variables by name, for a checkpoint."""
        rows = {f"{name}.{part}": value for name, parts in self._rows.items() for part, value in parts.items()}
        return {**self._sums, AVERAGE_MASS: self._mass, **self._counts, **rows}

    def update(self) -> None:
        """Adds the current weights to the average. Call it once per step, in cross-replica context."""

        def take_in(total, weight):
            total.assign_sub((1.0 - self.decay) * (total - tf.cast(weight, total.dtype)))

        # each device averages its own copy of the weights
        for name, total in self._sums.items():
            self._strategy.extended.update(total, take_in, args=(self._weights[name],))
        self._strategy.extended.update(self._mass, take_in, args=(1.0,))
        if self._tables:  # the tables average their rows themselves
            self._strategy.extended.update(self._counts[AVERAGE_STEPS], lambda steps: steps.assign_add(1.0))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Swaps the average into the model, and the model's own values back in afterwards."""
        variables = self._averaged
        own = {name: variable.numpy() for name, variable in variables.items()}
        try:
            self._apply()
            yield
        finally:
            self._assign(variables, own)

    def adopt(self) -> None:
        """Replaces the model's values by the average for good, and begins a new average."""
        self._apply()
        restarted = {name: value for name, value in self.state.items() if name != AVERAGE_DECAY}
        self._assign(restarted, {name: np.zeros(value.shape, np.float32) for name, value in restarted.items()})

    @property
    def _averaged(self) -> dict[str, tf.Variable]:
        return {**self._weights, **{name: table.rows.value for name, table in self._tables.items()}}

    def _apply(self) -> None:
        mass, variables = float(self._mass.numpy()), self._averaged
        if mass == 0.0:  # no step yet
            return
        self._assign(variables, {name: total.numpy() / mass for name, total in self._sums.items()})
        for name, table in self._tables.items():
            sums, since = (value.numpy() for value in self._rows[name].values())
            steps = float(self._counts[AVERAGE_STEPS].numpy())
            self._assign(variables, {name: mean_rows(table, variables[name].numpy(), sums, since, steps, self.decay)})
        renewed = renew_statistics(self._model)
        self._assign(variables, {averaged_name(v): v.value.numpy() for v in renewed})

    def _assign(self, variables: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray]) -> None:
        with self._strategy.scope():  # outside it, only the first replica would be written
            for name, value in values.items():
                variables[name].assign(value)
