"""A running average of what a model has learned: drawn, measured and exported in place of the last step's weights."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.models.base import VideoGenerator

_PREFIX = "average."
_MASS, _DECAY, _STEPS = (_PREFIX + name for name in ("mass", "decay", "steps"))
_NUM_BATCHES, _BATCH = 8, 8  # of videos for the statistics of batch norm


def _name(variable) -> str:
    """The name of a variable's average in a checkpoint."""
    return _PREFIX + variable.path.partition("/")[2].replace("/", ".")


def _networks(model: VideoGenerator) -> dict[str, tf.Variable]:
    """Network weights, and batch norm's statistics along with them; see `_statistics` for those that `decode` uses."""
    variables = list(model.trainable_variables)
    variables += [v for v in model.non_trainable_variables if v.path.endswith(("/moving_mean", "/moving_variance"))]
    return {_name(v): v.value for v in variables}


def _tables(model: VideoGenerator) -> dict[str, LatentTable]:
    return {_name(layer.rows): layer for layer in model.layers if isinstance(layer, LatentTable)}


def _mean_rows(table: LatentTable, rows, sums, since, steps: float, decay: float) -> np.ndarray:
    """The average of a table's rows, see `LatentTable.keep_average`; put back into what the table allows."""
    taken, new = -np.expm1(np.log(decay) * steps), -np.expm1(np.log(decay) * (steps - since)).astype(np.float32)
    new = new.reshape(-1, *[1] * (rows.ndim - 1))
    return np.asarray(table.project(((1 - new) * sums + new * rows) / np.float32(taken)))


def _statistics(model: VideoGenerator) -> dict[str, np.ndarray]:
    """Puts into batch norm the statistics of videos that the model makes as it is now, and returns them by name.

    They are means over `_NUM_BATCHES` batches. Only what `decode` goes through changes.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]

    def compute() -> None:
        for i in range(_NUM_BATCHES):
            for layer in norms:
                layer.momentum = i / (i + 1)  # the running mean of what each batch has
            model.decode(model.sample_latents(_BATCH, seed=i), training=True)

    if not norms:
        return {}
    try:
        # A thread of its own is in no strategy's scope: replicas, and other workers, would have to take part there.
        with concurrent.futures.ThreadPoolExecutor(1) as outside_scope:
            outside_scope.submit(compute).result()
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
    variables = [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
    return {_name(variable): variable.value.numpy() for variable in variables}


class WeightAverage:
    """Exponential moving average of what a model has learned, corrected for its start.

    The average of t steps is sum_i (1 - d) d^(t - i) w_i / (1 - d^t): right from the first step, with no warm-up to tune.
    Network weights, batch norm's statistics and learned codes are all averaged over the same steps. Averaging the networks
    alone would join a generator from about 1 / (1 - d) steps ago with the codes of the last one, and codes and generator
    move together: a rotation of the codes that the generator follows changes no video, unless they stem from different
    steps. Averaged codes are projected as after every update, since the mean of points on a sphere lies within it.

    Where the average is applied, the statistics that `decode` uses are computed anew, over videos that the model makes with the
    averaged weights (after Izmailov et al., UAI 2018): averages of the steps' statistics belong to none of the weights, and
    were 3 to 58 times too large under weight decay at a high rate.

    It costs a copy of weights and codes in memory, a pass over the weights in each step, and of the codes only the batch's
    rows (`LatentTable.keep_average`).

    Args:
        model: Built, in the scope of the strategy in which this is made, too.
        decay: d, in (0, 1). The average reaches back about 1 / (1 - d) steps.
    """

    def __init__(self, model: VideoGenerator, decay: float):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"`decay` must lie between 0 and 1, e.g. 0.999. Received {decay}.")
        self.decay, self._model = decay, model
        self._strategy = tf.distribute.get_strategy()
        self._weights, self._tables = _networks(model), _tables(model)

        def variable(name: str, value) -> tf.Variable:
            first = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return tf.Variable(value, trainable=False, aggregation=first, name=name.replace(".", "_"))

        self._sums = {name: variable(name, tf.zeros(weight.shape)) for name, weight in self._weights.items()}
        self._mass = variable(_MASS, 0.0)
        self._counts, self._rows = {}, {}
        if self._tables:
            self._counts = {_DECAY: variable(_DECAY, tf.constant(decay, tf.float64)), _STEPS: variable(_STEPS, 0.0)}
            self._rows = {name: table.keep_average(decay, self._counts[_STEPS]) for name, table in self._tables.items()}

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Variables by name, for a checkpoint."""
        rows = {f"{name}.{part}": value for name, parts in self._rows.items() for part, value in parts.items()}
        return {**self._sums, _MASS: self._mass, **self._counts, **rows}

    def update(self) -> None:
        """Takes in the weights as they are now. Call it once per step, in cross-replica context."""

        def take_in(total, weight):
            total.assign_sub((1.0 - self.decay) * (total - tf.cast(weight, total.dtype)))

        # each device takes in its own copy of the weights
        for name, total in self._sums.items():
            self._strategy.extended.update(total, take_in, args=(self._weights[name],))
        self._strategy.extended.update(self._mass, take_in, args=(1.0,))
        if self._tables:  # which have taken in their rows themselves
            self._strategy.extended.update(self._counts[_STEPS], lambda steps: steps.assign_add(1.0))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the model, and what the model had itself back afterwards."""
        mass = float(self._mass.numpy())
        if mass == 0.0:  # no step yet
            yield
            return
        variables = {**self._weights, **{name: table.rows.value for name, table in self._tables.items()}}
        own = {name: variable.numpy() for name, variable in variables.items()}
        try:
            self._assign(variables, {name: total.numpy() / mass for name, total in self._sums.items()})
            for name, table in self._tables.items():
                sums, since = (value.numpy() for value in self._rows[name].values())
                mean = _mean_rows(table, own[name], sums, since, float(self._counts[_STEPS].numpy()), self.decay)
                self._assign(variables, {name: mean})
            self._assign(variables, _statistics(self._model))
            yield
        finally:
            self._assign(variables, own)

    def _assign(self, variables: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray]) -> None:
        with self._strategy.scope():  # outside of it, only the first replica would be written
            for name, value in values.items():
                variables[name].assign(value)


def load(model: VideoGenerator, saved: Mapping[str, np.ndarray]) -> bool:
    """Puts an average into a model for good.

    Args:
        model: Built, with the weights and codes of the checkpoint's step.
        saved: What a checkpoint holds, by name.

    Returns:
        Whether there was an average; without one the model stays as it is.
    """
    mass = float(saved.get(_MASS, 0.0))
    if mass == 0.0:
        return False
    for name, weight in _networks(model).items():
        weight.assign(saved[name] / mass)
    for name, table in _tables(model).items():
        parts = (saved[key] for key in (f"{name}.sums", f"{name}.since", _STEPS, _DECAY))
        table.rows.assign(_mean_rows(table, table.rows.numpy(), *parts))
    _statistics(model)
    return True
