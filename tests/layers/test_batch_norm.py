import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.systems import SYSTEMS
from tests.tolerances import assert_same_sums
from tfvidgen.layers.batch_norm import BatchNorm, renew_statistics
from tfvidgen.models.base import LatentSpec, VideoGenerator


@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.low_precision)])
@pytest.mark.parametrize("affine", [True, False])
def test_fused_batch_norm_equals_keras(policy, affine):
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(0.5, 2.0, (6, 5, 4, 7)), tf.float32)
    upstream = tf.constant(random.normal(size=x.shape), tf.float32)
    options = {"momentum": 0.9, "epsilon": 1e-5, "center": affine, "scale": affine, "dtype": policy}
    results = []
    for layer in (keras.layers.BatchNormalization(synchronized=True, **options), BatchNorm(**options)):
        layer.build(x.shape)
        for i, weight in enumerate(layer.trainable_variables):
            weight.assign(np.linspace(0.5 + i, 1.5, 7))
        weights = [weight.value for weight in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(layer(x, training=True), tf.float32)
            total = tf.reduce_sum(y * upstream)
        gradients = tape.gradient(total, [x, *weights])
        results.append([y, *gradients, *(w.value for w in layer.non_trainable_variables), layer(x, training=False)])
    # In low precision the statistics are float32 all the same: what is rounded are products and results.
    terms = {"float32": 6 * 5 * 4, "mixed_bfloat16": 3}[policy]
    for expected, value in zip(*results, strict=True):
        assert_same_sums(value, expected, terms, policy.removeprefix("mixed_"))


class Colours(VideoGenerator):
    """One pixel from a code that a batch norm made, and an encoder with one of its own."""

    def __init__(self):
        super().__init__()
        self.num_frames = 1
        self.of_code, self.of_pixel, self.of_clip = (
            BatchNorm(name=name) for name in ("of_code", "of_pixel", "of_clip")
        )

    def build(self, input_shape=None):
        for norm in (self.of_code, self.of_pixel, self.of_clip):
            norm.build((None, 1, 1, 3))
        self.built = True

    @property
    def latent_spec(self):
        return {"code": LatentSpec((1, 1, 3), "float32", "N(seed, 1)", "content")}

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        draw = tf.random.stateless_normal((num_videos, 1, 1, 3), [seed, 0], mean=float(seed))
        return {"code": self.of_code(draw, training=training)}

    def decode(self, latents, training=False):
        return self.of_pixel(latents["code"], training=training)[:, None]

    def encode(self, video, seed=None, training=False):
        return {"code": self.of_clip(video[:, 0], training=training)}


def test_renewed_statistics_are_those_of_what_goes_through():
    """Of what makes latents, too, and of the encoder over clips; whatever was there before does not matter."""
    model = Colours()
    model.build()
    for norm in (model.of_code, model.of_pixel, model.of_clip):
        norm.moving_mean.assign([100.0, 100.0, 100.0])
    clips = np.random.default_rng(0).integers(0, 256, (12, 1, 1, 1, 3)).astype(np.uint8)
    renewed = renew_statistics(model, num_batches=3, batch_size=50)
    assert len(renewed) == 6
    draws = [tf.random.stateless_normal((50, 3), [seed, 0], mean=float(seed)).numpy() for seed in range(3)]
    np.testing.assert_allclose(model.of_code.moving_mean, np.mean(draws, (0, 1)), atol=1e-5)
    np.testing.assert_allclose(model.of_code.moving_variance, np.var(draws, 1).mean(0), rtol=1e-4)
    np.testing.assert_allclose(model.of_pixel.moving_mean, 0.0, atol=1e-5)  # it sees what the first one normalised
    np.testing.assert_array_equal(model.of_clip.moving_mean, [100.0, 100.0, 100.0])
    renew_statistics(model, clips, num_batches=3, batch_size=4)
    np.testing.assert_allclose(model.of_clip.moving_mean, clips.mean((0, 1, 2, 3)) / 127.5 - 1.0, atol=1e-5)
    assert model.of_clip.momentum == 0.99


def test_statistics_need_a_clip_for_each_batch():
    with pytest.raises(ValueError, match="a clip for each batch. Received num_batches=3, batch_size=8, 2 clips"):
        renew_statistics(Colours(), np.zeros((2, 1, 1, 1, 3), np.uint8), num_batches=3)
    with pytest.raises(ValueError, match="at least 1.*batch_size=0"):
        renew_statistics(Colours(), batch_size=0)


def test_statistics_of_the_network_that_makes_latents_are_renewed():
    [system] = [system for system in SYSTEMS if system.name == "tgan_conditional"]
    model = system.build()
    before = [norm.moving_mean.numpy() for norm in model.temporal_generator.norms]
    renew_statistics(model, num_batches=2, batch_size=4)
    for old, norm in zip(before, model.temporal_generator.norms, strict=True):
        assert np.abs(norm.moving_mean - old).max() > 0
