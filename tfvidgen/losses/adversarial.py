"""Adversarial losses of generators and discriminators: pure functions of logits, scalars in float32.

`kind` is the name of a loss, or a pair of callables, `(discriminator_loss(real_logits, generated_logits),
generator_loss(generated_logits))`, that take float32 logits and return scalars (docs/losses.md has an example). The names:
  * `minimax`: binary cross-entropy, which the generator maximises (Goodfellow et al. 2014, Eq. 1);
  * `non_saturating`: the same discriminator loss; the generator minimises -log D of its samples (Sec. 3 there);
  * `hinge`: Lim and Ye 2017, https://arxiv.org/abs/1705.02894; Miyato et al. 2018, Eq. 16 and 17;
  * `wgan`: Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875; needs a separate Lipschitz constraint on the critic.

Logits may have any shape: those of a patch discriminator are averaged over examples and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from tfvidgen._tensorflow import tf

KINDS = ("minimax", "non_saturating", "hinge", "wgan")
Kind = str | tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]


def check_kind(kind: Kind) -> Kind:
    """Returns `kind`; ValueError if it is neither one of `KINDS` nor a pair of callables."""
    is_pair = isinstance(kind, (tuple, list)) and len(kind) == 2 and all(callable(loss) for loss in kind)
    if not is_pair and kind not in KINDS:
        raise ValueError(
            f"`adversarial_loss` must be one of {KINDS}, or a pair of callables (discriminator_loss(real_logits, "
            f"generated_logits), generator_loss(generated_logits)). Received {kind!r}."
        )
    return tuple(kind) if is_pair else kind


def real_loss(real_logits, kind: str = "non_saturating"):
    """The discriminator's loss on real examples; decreases with the logits."""
    logits = ops.cast(real_logits, "float32")
    if _known(kind) == "hinge":
        return ops.mean(ops.relu(1.0 - logits))
    if kind == "wgan":
        return -ops.mean(logits)
    return ops.mean(ops.softplus(-logits))  # -log D


def generated_loss(generated_logits, kind: str = "non_saturating"):
    """The discriminator's loss on generated examples; increases with the logits."""
    logits = ops.cast(generated_logits, "float32")
    if _known(kind) == "hinge":
        return ops.mean(ops.relu(1.0 + logits))
    if kind == "wgan":
        return ops.mean(logits)
    return ops.mean(ops.softplus(logits))  # -log(1 - D)


def discriminator_loss(real_logits, generated_logits, kind: Kind = "non_saturating"):
    """The discriminator's loss: `real_loss` plus `generated_loss`, or the first callable of a pair."""
    if not isinstance(kind, str):
        return _scalar("discriminator_loss", check_kind(kind)[0], real_logits, generated_logits)
    return real_loss(real_logits, kind) + generated_loss(generated_logits, kind)


def generator_loss(generated_logits, kind: Kind = "non_saturating"):
    """The generator's loss, which decreases with the logits of its samples, or the second callable of a pair."""
    if not isinstance(kind, str):
        return _scalar("generator_loss", check_kind(kind)[1], generated_logits)
    logits = ops.cast(generated_logits, "float32")
    if _known(kind) == "minimax":
        return -ops.mean(ops.softplus(logits))  # log(1 - D)
    if kind == "non_saturating":
        return ops.mean(ops.softplus(-logits))  # -log D
    return -ops.mean(logits)


def category_loss(category_logits, category):
    """Mean cross-entropy between category logits (..., K) and int labels (...)."""
    logits = ops.cast(category_logits, "float32")
    chosen = ops.one_hot(category, logits.shape[-1], dtype="float32")  # (..., K)
    return ops.mean(ops.logsumexp(logits, axis=-1) - ops.sum(chosen * logits, axis=-1))


def r1_penalty(logits_fn: Callable[[Any], Any], real) -> tuple[Any, Any]:
    """R1: half the mean over real examples of the squared gradient norm of an example's logit in its pixels.

    Needs TensorFlow. Supports second-order gradients, so the penalty can be part of a discriminator's loss.

    Args:
        logits_fn: Examples (B, ...) -> logits (B, ...), or a tuple that starts with them. The logits of a patch
            discriminator are averaged over positions.
        real: float32 (B, ...).

    Returns:
        The output of `logits_fn`, and the penalty.

    Source: Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, Eq. 9.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(real)
        output = logits_fn(real)
        logits = tf.cast(output[0] if isinstance(output, tuple) else output, tf.float32)
        per_example = tf.reduce_mean(tf.reshape(logits, (tf.shape(logits)[0], -1)), axis=1)  # (B,)
        total = tf.reduce_sum(per_example)
    gradient = tf.cast(tape.gradient(total, real), tf.float32)  # the shape of `real`
    squares = tf.reduce_sum(tf.square(gradient), axis=list(range(1, len(gradient.shape))))  # (B,)
    return output, 0.5 * tf.reduce_mean(squares)


def l2_penalty(weights: Sequence[Any]):
    """Half the sum of squares; multiplied by w, its gradient is the term that PyTorch's `Adam(weight_decay=w)` adds."""
    return 0.5 * sum(ops.sum(ops.square(ops.cast(weight, "float32"))) for weight in weights)


def _scalar(name: str, loss: Callable[..., Any], *logits):
    value = ops.cast(loss(*(ops.cast(x, "float32") for x in logits)), "float32")
    if len(value.shape):
        raise ValueError(
            f"The `{name}` of `adversarial_loss` must return a scalar, for example a mean over all logits. Received a "
            f"tensor of shape {tuple(value.shape)}."
        )
    return value


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received {kind!r}.")
    return kind
