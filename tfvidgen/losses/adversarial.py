"""Losses of generators and discriminators: pure functions of logits, scalars in float32.

`kind` names the game:
  * `minimax`: binary cross-entropy; the generator climbs the discriminator's loss (Goodfellow et al. 2014, Eq. 1);
  * `non_saturating`: the same discriminator; the generator lowers -log D of its own output (Sec. 3 there);
  * `hinge`: Lim and Ye 2017, https://arxiv.org/abs/1705.02894; Miyato et al. 2018, Eq. 16 and 17;
  * `wgan`: Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875; the discriminator must be kept Lipschitz by other means.

Logits may have any shape: a patch discriminator's are averaged over examples and positions alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from tfvidgen._tensorflow import tf

KINDS = ("minimax", "non_saturating", "hinge", "wgan")


def real_loss(real_logits, kind: str = "non_saturating"):
    """The discriminator's loss on real examples; it falls as the logits rise."""
    logits = ops.cast(real_logits, "float32")
    if _known(kind) == "hinge":
        return ops.mean(ops.relu(1.0 - logits))
    if kind == "wgan":
        return -ops.mean(logits)
    return ops.mean(ops.softplus(-logits))


def generated_loss(generated_logits, kind: str = "non_saturating"):
    """The discriminator's loss on generated examples; it falls as the logits fall."""
    logits = ops.cast(generated_logits, "float32")
    if _known(kind) == "hinge":
        return ops.mean(ops.relu(1.0 + logits))
    if kind == "wgan":
        return ops.mean(logits)
    return ops.mean(ops.softplus(logits))


def discriminator_loss(real_logits, generated_logits, kind: str = "non_saturating"):
    """What a discriminator lowers: the sum of `real_loss` and `generated_loss`."""
    return real_loss(real_logits, kind) + generated_loss(generated_logits, kind)


def generator_loss(generated_logits, kind: str = "non_saturating"):
    """What a generator lowers; it falls as the logits of its output rise."""
    logits = ops.cast(generated_logits, "float32")
    if _known(kind) == "minimax":
        return -ops.mean(ops.softplus(logits))  # log(1 - D)
    if kind == "non_saturating":
        return ops.mean(ops.softplus(-logits))  # -log D
    return -ops.mean(logits)


def category_loss(category_logits, category):
    """Mean cross-entropy of category logits (..., K) with int labels (...)."""
    logits = ops.cast(category_logits, "float32")
    chosen = ops.one_hot(category, logits.shape[-1], dtype="float32")
    return ops.mean(ops.logsumexp(logits, axis=-1) - ops.sum(chosen * logits, axis=-1))


def r1_penalty(logits_fn: Callable[[Any], Any], real) -> tuple[Any, Any]:
    """Logits of real examples, and half the mean squared gradient of each example's logit with respect to its pixels.

    Needs TensorFlow; differentiable once more, so the penalty can be part of a discriminator's loss.

    Args:
        logits_fn: Examples (B, ...) -> logits (B, ...), or a tuple whose first entry they are. A patch discriminator's
            logits are averaged over positions.
        real: float32 (B, ...).

    Returns:
        What `logits_fn` returned, and the penalty.

    Source: Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, Eq. 9.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(real)
        output = logits_fn(real)
        logits = tf.cast(output[0] if isinstance(output, tuple) else output, tf.float32)
        per_example = tf.reduce_mean(tf.reshape(logits, (tf.shape(logits)[0], -1)), axis=1)
        total = tf.reduce_sum(per_example)
    gradient = tf.cast(tape.gradient(total, real), tf.float32)
    squares = tf.reduce_sum(tf.square(gradient), axis=list(range(1, len(gradient.shape))))
    return output, 0.5 * tf.reduce_mean(squares)


def l2_penalty(weights: Sequence[Any]):
    """Half the sum of squares: times w, its gradient is what PyTorch's `Adam(weight_decay=w)` adds to the loss's."""
    return 0.5 * sum(ops.sum(ops.square(ops.cast(weight, "float32"))) for weight in weights)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received {kind!r}.")
    return kind
