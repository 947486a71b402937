"""A running average of network weights: what is sampled, measured and exported in place of the last step's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from tfvidgen.models.base import VideoGenerator


class WeightAverage:
    """Exponential moving average of a model's trainable weights, corrected for its start.

    The average of t steps is sum_i (1 - d) d^(t - i) w_i / (1 - d^t): right from the first step, with no warm-up to tune.
    Latent codes are not averaged: a lazy row moves only when it is used. Batch norm statistics are averages already.

    Args:
        model: Built, in the strategy's scope that this is made in too.
        decay: d, in [0, 1).
    """

    def __init__(self, model: VideoGenerator, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"`decay` must lie in [0, 1). Received {decay}.")
        self.decay = decay
        self._weights = list(model.trainable_variables)
        self._sums = [
            tf.Variable(
                tf.zeros(weight.shape, weight.dtype),
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                name="average",
            )
            for weight in self._weights
        ]
        self._mass = tf.Variable(
            0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name="mass"
        )

    @property
    def state(self) -> dict[str, tf.Variable]:
        """Variables by name, for a checkpoint."""
        named = {f"average/{i:04d}": variable for i, variable in enumerate(self._sums)}
        return {**named, "average/mass": self._mass}

    def update(self) -> None:
        """Takes in the weights as they are now. Call it once per step, in cross-replica context."""
        for total, weight in zip(self._sums, self._weights, strict=True):
            total.assign(self.decay * total + (1.0 - self.decay) * tf.convert_to_tensor(weight.value))
        self._mass.assign(self.decay * self._mass + (1.0 - self.decay))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the model, and the model's own weights back afterwards."""
        if float(self._mass.numpy()) == 0.0:  # no step yet
            yield
            return
        own = [weight.numpy() for weight in self._weights]
        self.apply()
        try:
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.assign(value)

    def apply(self) -> None:
        """Puts the average into the model for good."""
        for total, weight in zip(self._sums, self._weights, strict=True):
            weight.assign(total / self._mass)
