"""Batch norm with a fused kernel on one device, synchronised across several."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from tfvidgen._tensorflow import tf
from tfvidgen.layers.replicas import num_replicas

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator


class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm of (N, ..., C), numerically equal to Keras's, with the statistics of the global batch.

    Keras computes moments and normalises in separate operations. On a single device, training uses the fused kernel, with
    less than half the memory traffic; on several replicas it uses Keras's synchronised implementation.
    """

    def __init__(self, **kwargs):
        super().__init__(synchronized=keras.config.backend() == "tensorflow", **kwargs)

    def call(self, inputs, training=None, mask=None):
        fused = (
            keras.config.backend() == "tensorflow" and training and len(inputs.shape) in (4, 5) and num_replicas() == 1
        )
        if not fused:
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        # to the kernel, clips are a longer batch of frames: (B, T, H, W, C) -> (B T, H, W, C)
        frames = inputs if len(inputs.shape) == 4 else tf.reshape(inputs, (-1, *inputs.shape[2:]))
        result = tf.raw_ops.FusedBatchNormV3(
            x=frames,
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros(channels),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        biased = result.batch_variance * (count - 1.0) / count  # the kernel returns the unbiased variance
        for moving, value in ((self.moving_mean, result.batch_mean), (self.moving_variance, biased)):
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        return result.y if frames is inputs else tf.reshape(result.y, tf.shape(inputs))


def renew_statistics(
    model: VideoGenerator, clips: np.ndarray | None = None, num_batches: int = 8, batch_size: int = 8
) -> list[keras.Variable]:
    """Recomputes the moving statistics of batch norm for a model's current weights.

    Moving statistics lag behind the weights, and those of averaged weights match no actual network. They are replaced by
    means over batches of sampled videos, with sampled labels, for all layers used by `training_latents` and `decode`. If the
    system has an encoder and clips are given, layers used by `encode` get means over those clips.

    Args:
        model: Built; need not be compiled. Under a strategy only the copies on the first replica change: assign the returned
            variables to the others.
        clips: uint8 (N, T, H, W, 3), N at least `num_batches`; None to use sampled videos alone.
        num_batches: Number of batches to average over.
        batch_size: Videos per batch.

    Returns:
        The moving statistics of all batch norm layers, except those of frozen networks.

    Raises:
        ValueError: If there are fewer clips than batches.

    Source: Izmailov et al., UAI 2018, https://arxiv.org/abs/1803.05407, Sec. 3.2.
    """
    if num_batches < 1 or batch_size < 1 or (clips is not None and len(clips) < num_batches):
        given = "" if clips is None else f", {len(clips)} clips"
        raise ValueError(
            "`num_batches` and `batch_size` must be at least 1, and there must be a clip for each batch. Received "
            f"num_batches={num_batches}, batch_size={batch_size}{given}."
        )
    learned = {id(variable) for variable in model.learned_variables}
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    norms = [layer for layer in norms if id(layer.moving_mean) in learned]  # skips frozen networks
    momenta = [layer.momentum for layer in norms]

    def compute() -> None:
        parts: Sequence[np.ndarray | None] = [None] * num_batches
        if clips is not None and model.has_encoder:
            parts = np.array_split(clips[: num_batches * batch_size], num_batches)
        for i, part in enumerate(parts):
            for layer in norms:
                layer.momentum = i / (i + 1)  # makes the moving average an exact mean over batches
            if part is not None:
                model.encode(tf.cast(part, tf.float32) / 127.5 - 1.0, training=True)
            model.decode(model.training_latents(batch_size, i), training=True)

    if norms:
        try:
            # A separate thread leaves the strategy's scope, in which all replicas and workers would have to take part.
            with concurrent.futures.ThreadPoolExecutor(1) as outside_scope:
                outside_scope.submit(compute).result()
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum
    return [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
