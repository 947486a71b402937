"""Batch norm that is one kernel on one device and synchronised over several."""

from __future__ import annotations

import keras

from tfvidgen._tensorflow import tf
from tfvidgen.layers.replicas import num_replicas


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
