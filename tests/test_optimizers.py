import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.optimizers import Adam

SHAPES = {"kernel": (5, 7), "bias": (3,)}


def _in_graph(optimizer, variables):
    return tf.function(lambda gradients: optimizer.apply(gradients, variables))


@pytest.mark.parametrize("options", [{}, {"beta_1": 0.5, "beta_2": 0.99, "weight_decay": 0.01, "clipnorm": 0.1}])
def test_adam_equals_keras(options):
    random = np.random.default_rng(0)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 10)
    sides = []
    for kind in (keras.optimizers.Adam, Adam):
        variables = [keras.Variable(np.ones(shape, np.float32), name=name) for name, shape in SHAPES.items()]
        optimizer = kind(rate, **options)
        optimizer.build(variables)
        sides.append((optimizer, variables, _in_graph(optimizer, variables)))
    for _ in range(6):
        gradients = [tf.constant(random.normal(size=shape), tf.float32) for shape in SHAPES.values()]
        for *_, apply in sides:
            apply(gradients)
    (theirs, expected, _), (ours, values, _) = sides
    assert [v.path.split("/")[-1] for v in ours.variables] == [v.path.split("/")[-1] for v in theirs.variables]
    for a, b in zip([*expected, *theirs.variables], [*values, *ours.variables], strict=True):
        np.testing.assert_allclose(b.value, a.value, rtol=1e-5, atol=1e-7)
