import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tolerances import assert_same_sums
from tfvidgen.layers.volumes import DownConv3D, UpConv3D

# few pixels go through matrix products, many through the library's kernel; one or two frames leave two taps without work
CLIPS = [(2, 2, 8, 8), (2, 4, 8, 4), (3, 6, 4, 8), (1, 2, 16, 16)]


def noise(*shape) -> tf.Tensor:
    return tf.random.stateless_normal(shape, (1, sum(shape)))


def derivatives(layer, x, upstream):
    """Output, first derivatives with respect to input and weights, and a derivative of the squared input gradient."""
    weights = [weight.value for weight in layer.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch([x, weights])
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = layer(x)
            total = tf.reduce_sum(y * upstream)
        of_input = inner.gradient(total, x)
        square = tf.reduce_sum(tf.square(of_input))
    of_kernel, second = outer.gradient(total, weights[0]), outer.gradient(square, weights[0])
    return [y, of_input, of_kernel, second]


@pytest.mark.parametrize("clip", CLIPS)
def test_halving_is_the_convolution(clip):
    ours = DownConv3D(5, use_bias=True, bias_initializer="normal")
    reference = keras.layers.Conv3D(5, 4, 2, padding="same")
    x = noise(*clip, 3)
    for layer in (ours, reference):
        layer.build(x.shape)
        layer.set_weights(ours.get_weights())
    upstream = noise(clip[0], *(length // 2 for length in clip[1:]), 5)
    terms = (64 * 3, 8 * 5, tf.size(upstream) // 5, tf.size(upstream) // 5 * 64 * 3)
    for a, b, count in zip(derivatives(ours, x, upstream), derivatives(reference, x, upstream), terms, strict=True):
        assert a.shape == b.shape
        assert_same_sums(a, b, int(count))


@pytest.mark.parametrize("clip", [(2, 1, 4, 4), (2, 2, 4, 2), (2, 3, 2, 4), (1, 2, 8, 8)])
def test_doubling_is_the_transposed_convolution(clip):
    ours = UpConv3D(4)
    reference = keras.layers.Conv3DTranspose(4, 4, 2, padding="same", use_bias=False)
    x = noise(*clip, 3)
    for layer in (ours, reference):
        layer.build(x.shape)
        layer.set_weights(ours.get_weights())
    upstream = noise(clip[0], *(2 * length for length in clip[1:]), 4)
    terms = (8 * 3, 64 * 4, tf.size(x) // 3, tf.size(x) // 3 * 64 * 4)
    for a, b, count in zip(derivatives(ours, x, upstream), derivatives(reference, x, upstream), terms, strict=True):
        assert a.shape == b.shape
        assert_same_sums(a, b, int(count))


def test_the_number_of_clips_may_be_unknown():
    halving, doubling = DownConv3D(3), UpConv3D(3)
    halving.build((None, 2, 4, 4, 3))
    doubling.build((None, 1, 2, 2, 3))

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 4, 4, 3))])
    def there_and_back(x):
        return doubling(halving(x))

    x = noise(3, 2, 4, 4, 3)
    assert there_and_back.get_concrete_function().structured_outputs.shape == (None, 2, 4, 4, 3)
    assert_same_sums(there_and_back(x), doubling(halving(x)), terms=64 * 3 + 8 * 3)


def test_spectral_norm_divides_the_kernel():
    layer = DownConv3D(4, spectral_norm=True, kernel_initializer=keras.initializers.RandomNormal(1.0, 1.0, seed=1))
    layer.build((None, 2, 4, 4, 3))
    x = noise(2, 2, 4, 4, 3)
    for _ in range(10):  # power iterations
        normed = layer(x, training=True)
    plain = DownConv3D(4)
    plain.build((None, 2, 4, 4, 3))
    kernel = layer.kernel.numpy()
    plain.kernel.assign(kernel / np.linalg.svd(kernel.reshape(-1, 4), compute_uv=False)[0])
    np.testing.assert_allclose(normed, plain(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(layer(x), layer(x))  # evaluation makes no step


@pytest.mark.low_precision
@pytest.mark.parametrize("layer_class", [DownConv3D, UpConv3D])
def test_low_precision_computes_in_low_precision(layer_class):
    layer = layer_class(3, dtype="mixed_bfloat16")
    exact = layer_class(3)
    for candidate in (layer, exact):
        candidate.build((None, 2, 4, 4, 3))
        candidate.set_weights(layer.get_weights())
    x = noise(2, 2, 4, 4, 3)
    assert layer(x).dtype == "bfloat16" and layer.kernel.dtype == "float32"
    assert_same_sums(layer(x), exact(x), terms=64 * 3, dtype="bfloat16")
