import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.convolution import Convolution
from tfvidgen.layers.tiled_convolution import tiled_convolution


def library(x, kernel):
    x = tf.pad(x, [[0, 0], [0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.nn.conv3d(x, kernel, [1, 1, 2, 2, 1], "VALID")


def operands(num_frames, size, dtype=tf.float32):
    x = tf.random.stateless_normal((2, num_frames, size, size, 5), (0, 1))
    kernel = tf.random.stateless_normal((4, 4, 4, 5, 6), (0, 2))
    upstream = tf.random.stateless_normal((2, num_frames - 3, size // 2, size // 2, 6), (0, 3))
    return [tf.cast(value, dtype) for value in (x, kernel, upstream)]


def outputs_and_gradients(convolution, x, kernel, upstream):
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = convolution(x, kernel)
    return [tf.cast(value, tf.float32).numpy() for value in (y, *tape.gradient(y, [x, kernel], upstream))]


def relative(value, expected) -> float:
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("size", [4, 12], ids=["few pixels", "many pixels"])
@pytest.mark.parametrize("num_frames", [4, 5, 10, 13])
def test_equals_the_library_with_gradients(num_frames, size):
    inputs = operands(num_frames, size)
    for value, expected in zip(
        outputs_and_gradients(tiled_convolution, *inputs), outputs_and_gradients(library, *inputs), strict=True
    ):
        assert value.shape == expected.shape
        assert relative(value, expected) < 1e-5


@pytest.mark.low_precision
def test_bfloat16_is_off_by_little_more_than_bfloat16_is():
    exact = outputs_and_gradients(library, *operands(10, 12))
    rounded = outputs_and_gradients(library, *operands(10, 12, tf.bfloat16))
    tiled = outputs_and_gradients(tiled_convolution, *operands(10, 12, tf.bfloat16))
    for value, other, expected in zip(tiled, rounded, exact, strict=True):
        assert relative(value, expected) < min(4 * relative(other, expected), 0.02)


def test_has_the_second_derivative_of_the_library():
    x, kernel, _ = operands(6, 4)

    def penalty(convolution):
        with tf.GradientTape() as outer:
            outer.watch(kernel)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(tf.nn.softplus(convolution(x, kernel)))
            squares = tf.reduce_sum(inner.gradient(y, x) ** 2)
        return outer.gradient(squares, kernel).numpy()

    assert relative(penalty(tiled_convolution), penalty(library)) < 1e-5


def test_layer_takes_it_where_there_are_many_channels():
    layer = Convolution(3, (4, 4, 4), (1, 2, 2), (0, 1, 1))
    layer.build((None, 5, 8, 8, 64))
    x = tf.random.stateless_normal((2, 5, 8, 8, 64), (0, 1))
    y = layer(x)
    assert relative(y.numpy(), library(x, layer.kernel.value).numpy()) < 1e-5
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((None, 5, 8, 8, 64))).graph
    assert sum(node.type == "Conv2D" for node in graph.get_operations()) + sum(
        "Conv2D" in {node.op for node in function.node_def} for function in graph.as_graph_def().library.function
    )
    assert not [node for node in graph.get_operations() if node.type == "Conv3D"]
