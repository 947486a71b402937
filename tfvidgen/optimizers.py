"""Optimizers."""

from __future__ import annotations

import keras

from tfvidgen._tensorflow import tf


class Adam(keras.optimizers.Adam):
    """Keras's Adam with its numbers and variables, each update one kernel instead of a dozen passes over memory."""

    def update_step(self, gradient, variable, learning_rate):
        if keras.config.backend() != "tensorflow" or self.amsgrad or isinstance(gradient, tf.IndexedSlices):
            return super().update_step(gradient, variable, learning_rate)
        index = self._get_variable_index(variable)
        value = variable.value if isinstance(variable, keras.Variable) else variable
        count = tf.cast(self.iterations + 1, value.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=value.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, value.dtype), count),
            beta2_power=tf.pow(tf.cast(self.beta_2, value.dtype), count),
            lr=tf.cast(learning_rate, value.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )
