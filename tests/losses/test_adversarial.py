import math
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.losses import adversarial
from tfvidgen.models.mocogan import MoCoGAN
from tfvidgen.models.rjgan import RJGAN
from tfvidgen.models.tgan import TGAN
from tfvidgen.models.vgan import VGAN

LOG3, LOG2 = math.log(3.0), math.log(2.0)
# sigmoid(log 3) = 3/4 and sigmoid(-log 3) = 1/4; softplus(log 3) = log 4, softplus(-log 3) = log(4/3)
REAL = tf.constant([[LOG3], [0.0]])
GENERATED = tf.constant([[-LOG3], [LOG3]])
BY_HAND = {  # kind: (real, generated, generator)
    "minimax": (
        (math.log(4 / 3) + LOG2) / 2,
        (math.log(4 / 3) + math.log(4)) / 2,
        -(math.log(4 / 3) + math.log(4)) / 2,
    ),
    "non_saturating": (
        (math.log(4 / 3) + LOG2) / 2,
        (math.log(4 / 3) + math.log(4)) / 2,
        (math.log(4) + math.log(4 / 3)) / 2,
    ),
    "hinge": (0.5, (0.0 + 1.0 + LOG3) / 2, 0.0),
    "wgan": (-LOG3 / 2, 0.0, 0.0),
}


@pytest.mark.parametrize("kind", adversarial.KINDS)
def test_losses_by_hand(kind):
    real, generated, generator = BY_HAND[kind]
    assert float(adversarial.real_loss(REAL, kind)) == pytest.approx(real, abs=1e-6)
    assert float(adversarial.generated_loss(GENERATED, kind)) == pytest.approx(generated, abs=1e-6)
    assert float(adversarial.discriminator_loss(REAL, GENERATED, kind)) == pytest.approx(real + generated, abs=1e-6)
    assert float(adversarial.generator_loss(GENERATED, kind)) == pytest.approx(generator, abs=1e-6)


@pytest.mark.parametrize("kind", adversarial.KINDS)
def test_each_side_pulls_its_own_way(kind):
    logits = tf.zeros((4, 1))
    for loss, sign in (
        (adversarial.real_loss, -1),
        (adversarial.generated_loss, 1),
        (adversarial.generator_loss, -1),
    ):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(logits, kind)
        assert (np.sign(tape.gradient(value, logits)) == sign).all()


def test_only_the_saturating_game_leaves_a_lost_generator_alone():
    lost = tf.constant([-20.0])
    gradients = {}
    for kind in adversarial.KINDS:
        with tf.GradientTape() as tape:
            tape.watch(lost)
            value = adversarial.generator_loss(lost, kind)
        gradients[kind] = abs(float(tape.gradient(value, lost)[0]))
    assert gradients.pop("minimax") < 1e-8
    assert min(gradients.values()) > 0.99


def test_losses_of_half_precision_logits_are_float32_and_finite():
    for kind in adversarial.KINDS:
        value = adversarial.discriminator_loss(
            tf.constant([-300.0], tf.bfloat16), tf.constant([300.0], tf.bfloat16), kind
        )
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(602.0 if kind == "hinge" else 600.0)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="minimax.*'lsgan'"):
        adversarial.real_loss(REAL, "lsgan")


def lsgan():
    """The pair of callables that docs/losses.md shows."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    namespace = {}
    exec(block, namespace)
    return namespace["lsgan"]


def test_the_pair_of_the_documentation_by_hand():
    pair = lsgan()
    real, generated = tf.constant([2.0, 1.0], tf.bfloat16), tf.constant([[1.0], [3.0]], tf.bfloat16)
    value = adversarial.discriminator_loss(real, generated, pair)
    assert value.dtype == tf.float32 and float(value) == pytest.approx(0.5 * (1 + 0) / 2 + 0.5 * (1 + 9) / 2)
    assert float(adversarial.generator_loss(generated, pair)) == pytest.approx(0.5 * (0 + 4) / 2)


@pytest.mark.parametrize("model_class", [VGAN, TGAN, MoCoGAN, RJGAN])
def test_every_system_takes_a_pair(model_class):
    model = model_class(num_frames=4, size=16, **({"temporal_taps": 2} if model_class in (MoCoGAN, RJGAN) else {}))
    pair = lsgan()
    model.build()
    model.compile(adversarial_loss=list(pair))
    assert model.adversarial_loss == pair


@pytest.mark.parametrize("wrong", ["lsgan", (abs,), (abs, "hinge"), abs, None])
def test_anything_else_is_refused(wrong):
    with pytest.raises(ValueError, match=r"'minimax', 'non_saturating', 'hinge', 'wgan'.*pair of callables"):
        adversarial.check_kind(wrong)


def test_a_pair_that_returns_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"`generator_loss`.*scalar.*\(2, 1\)"):
        adversarial.generator_loss(GENERATED, (lambda real, generated: 0.0, lambda generated: generated))


def test_category_loss_by_hand():
    logits = tf.math.log(tf.constant([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    loss = adversarial.category_loss(logits, tf.constant([1, 2]))
    assert float(loss) == pytest.approx((math.log(4) - math.log(0.8)) / 2, abs=1e-6)


def test_r1_penalty_by_hand():
    # logit = w.x^2 summed over two positions of a patch: the example's logit is their mean, its gradient w x
    weights = tf.constant([1.0, 2.0])
    x = tf.constant([[3.0, 1.0], [0.0, -1.0]])
    logits, penalty = adversarial.r1_penalty(lambda x: weights * x**2, x)
    np.testing.assert_allclose(logits, [[9.0, 2.0], [0.0, 2.0]])
    assert float(penalty) == pytest.approx(0.5 * ((9 + 4) + (0 + 4)) / 2)


def test_r1_penalty_moves_the_weights():
    weights = tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        (logits, names), penalty = adversarial.r1_penalty(
            lambda x: (tf.reduce_sum(weights * x, 1), "second output"), tf.ones((3, 2))
        )
    assert names == "second output" and logits.shape == (3,)
    np.testing.assert_allclose(tape.gradient(penalty, weights), weights.numpy())  # of |w|^2 / 2


def test_l2_penalty_has_the_gradient_of_weight_decay():
    weights = [tf.Variable([1.0, -2.0]), tf.Variable([[3.0]])]
    with tf.GradientTape() as tape:
        value = adversarial.l2_penalty(weights)
    assert float(value) == pytest.approx(7.0)
    for gradient, weight in zip(tape.gradient(value, weights), weights, strict=True):
        np.testing.assert_allclose(gradient, weight.numpy())
