"""A running average of network weights: what is drawn, measured and exported in place of the last step's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfvidgen.models.base import VideoGenerator

_PREFIX, _MASS = "average.", "average.mass"


def _averaged(model: VideoGenerator) -> dict[str, tf.Variable]:
    """What is averaged, by its name in a checkpoint.

    Network weights, and batch norm's statistics along with them: those of the last step belong to the last step's
    weights. Learned codes are not, because a row moves only in the steps that use it.
    """
    variables = list(model.trainable_variables)
    variables += [v for v in model.non_trainable_variables if v.path.endswith(("/moving_mean", "/moving_variance"))]
    return {_PREFIX + v.path.partition("/")[2].replace("/", "."): v.value for v in variables}


class WeightAverage:
    """Exponential moving average of a model's weights, corrected for its start.

    The average of t steps is sum_i (1 - d) d^(t - i) w_i / (1 - d^t): right from the first step, with no warm-up to tune.
    It costs one more copy of the weights in memory, and a pass over them in each step.

    Args:
        model: Built, in the scope of the strategy in which this is made, too.
        decay: d, in (0, 1). The average reaches back about 1 / (1 - d) steps.
    """

    def __init__(self, model: VideoGenerator, decay: float):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"`decay` must lie between 0 and 1, e.g. 0.999. Received {decay}.")
        self.decay = decay
        self._strategy = tf.distribute.get_strategy()
        self._weights = _averaged(model)

        def zeros(name: str, shape) -> tf.Variable:
            first = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return tf.Variable(tf.zeros(shape), trainable=False, aggregation=first, name=name.replace(".", "_"))

        self._sums = {name: zeros(name, weight.shape) for name, weight in self._weights.items()}
        self._mass = zeros(_MASS, ())

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Variables by name, for a checkpoint."""
        return {**self._sums, _MASS: self._mass}

    def update(self) -> None:
        """Takes in the weights as they are now. Call it once per step, in cross-replica context."""

        def take_in(total, weight):
            total.assign_sub((1.0 - self.decay) * (total - tf.cast(weight, total.dtype)))

        # each device takes in its own copy of the weights
        for name, total in self._sums.items():
            self._strategy.extended.update(total, take_in, args=(self._weights[name],))
        self._strategy.extended.update(self._mass, take_in, args=(1.0,))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the model, and the model's own weights back afterwards."""
        mass = float(self._mass.numpy())
        if mass == 0.0:  # no step yet
            yield
            return
        own = {name: weight.numpy() for name, weight in self._weights.items()}
        try:
            self._assign({name: total.numpy() / mass for name, total in self._sums.items()})
            yield
        finally:
            self._assign(own)

    def _assign(self, values: Mapping[str, np.ndarray]) -> None:
        with self._strategy.scope():  # outside of it, only the first replica would be written
            for name, weight in self._weights.items():
                weight.assign(values[name])


def load(model: VideoGenerator, saved: Mapping[str, np.ndarray]) -> bool:
    """Puts an average into a model's weights for good.

    Args:
        model: Built.
        saved: What a checkpoint holds, by name.

    Returns:
        Whether there was an average; without one the model stays as it is.
    """
    mass = float(saved.get(_MASS, 0.0))
    if mass == 0.0:
        return False
    for name, weight in _averaged(model).items():
        weight.assign(saved[name] / mass)
    return True
