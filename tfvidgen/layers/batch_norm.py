"""Batch norm that is one kernel on one device and synchronised over several."""

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
    """Keras's batch norm of (N, ..., C) with its numbers; statistics are those of the global batch.

    Keras computes moments and normalises in separate operations. On one device training uses the fused kernel, which
    reads memory less than half as often; over several replicas it stays with Keras's synchronised form.
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
        # a clip is to the kernel a longer batch of frames
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
    """Gives batch norm the statistics of what goes through it with a model's weights as they are now.

    Moving statistics are those of earlier weights, and of weights that were averaged they are nobody's. They become means
    over batches of new videos, with labels drawn as for new videos: of whatever `sample_latents` and `decode` go through.
    Where the system has an encoder and clips are given, they become means over those for all that `encode` goes through.

    Args:
        model: Built, compiled or not. Under a strategy only the copies of the first replica change: assign what is returned.
        clips: uint8 (N, T, H, W, 3), N at least `num_batches`; None for new videos alone.
        num_batches: Batches of the mean.
        batch_size: Videos in each.

    Returns:
        The moving statistics of all batch norm layers.

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
    norms = [layer for layer in norms if id(layer.moving_mean) in learned]  # not those of frozen networks
    momenta = [layer.momentum for layer in norms]

    def compute() -> None:
        parts: Sequence[np.ndarray | None] = [None] * num_batches
        if clips is not None and model.has_encoder:
            parts = np.array_split(clips[: num_batches * batch_size], num_batches)
        for i, part in enumerate(parts):
            for layer in norms:
                layer.momentum = i / (i + 1)  # the running mean of what each batch has
            if part is not None:
                model.encode(tf.cast(part, tf.float32) / 127.5 - 1.0, training=True)
            model.decode(model.sample_latents(batch_size, seed=i, training=True), training=True)

    if norms:
        try:
            # A thread of its own is in no strategy's scope: replicas, and other workers, would have to take part there.
            with concurrent.futures.ThreadPoolExecutor(1) as outside_scope:
                outside_scope.submit(compute).result()
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum
    return [variable for layer in norms for variable in (layer.moving_mean, layer.moving_variance)]
