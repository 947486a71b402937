"""Clipping of gradients that means the same on one device and on many."""

from __future__ import annotations

from typing import Any

from tfvidgen._tensorflow import tf
from tfvidgen.layers.replicas import num_replicas


def clip_to_norm(gradients: list[Any], norm: float) -> list[Any]:
    """Scales the gradients of a network so that their joint norm, summed over replicas, is at most `norm`; 0 for not.

    Keras's `global_clipnorm` clips each replica's part by its own norm, so two replicas would differ from one device.
    """
    if not norm:
        return gradients
    total = gradients
    if num_replicas() > 1:
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    scale = norm / tf.maximum(tf.linalg.global_norm(total), norm)
    return [gradient * tf.cast(scale, gradient.dtype) for gradient in gradients]
