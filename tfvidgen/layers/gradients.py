"""Gradient clipping that gives the same result on any number of devices."""

from __future__ import annotations

from typing import Any

from tfvidgen._tensorflow import tf
from tfvidgen.layers.replicas import num_replicas


def clip_to_norm(gradients: list[Any], norm: float) -> list[Any]:
    """Clips the global norm of a network's gradients, summed over replicas, to `norm`; 0 disables clipping.

    Keras's `global_clipnorm` clips the gradients of each replica separately, so two replicas would differ from one device.
    """
    if not norm:
        return gradients
    total = gradients
    if num_replicas() > 1:
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    scale = norm / tf.maximum(tf.linalg.global_norm(total), norm)  # at most 1
    return [gradient * tf.cast(scale, gradient.dtype) for gradient in gradients]
