import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.models.test_mocogan import batch, count, values
from tests.tolerances import assert_same_sums, of_video
from tfvidgen import editing
from tfvidgen.layers.dcgan import FrameGenerator, ImageDiscriminator, VideoDiscriminator
from tfvidgen.models.rjgan import RJGAN, ResidualGRU

TINY = {
    "num_frames": 4,
    "size": 16,
    "summary_dim": 6,
    "noise_dim": 3,
    "width": 4,
    "discriminator_width": 4,
    "temporal_taps": 2,
}


def built(model_class=RJGAN, **changes):
    model = model_class(**{**TINY, **changes})
    model.build()
    return model


def compiled(model, rates=(1.0, 1.0, 1.0), **options):
    model.compile(*(keras.optimizers.SGD(rate) for rate in rates), **options)
    return model


def test_parameter_counts():
    generator, gru = FrameGenerator(60), ResidualGRU(60, 10)
    generator.build()
    gru.build()
    assert count(generator) == 3_298_176 - 6 * 512 * 16  # MoCoGAN's with six codes fewer
    assert count(gru) == 3 * 60 * (70 + 60 + 2)


# ---------------------------------------------------------------- latents
def test_summary_frame_is_the_decode_of_a_zero_residual():
    model = built()
    latents = model.sample_latents(3, seed=2)
    still = model.decode({**latents, "residual": tf.zeros_like(latents["residual"])})
    summary = model.decode_summary(latents)
    for t in range(4):
        np.testing.assert_allclose(still[:, t], summary, rtol=0, atol=of_video(model))
    assert np.abs(model.decode(latents) - summary[:, None]).max() > 1e-4


def test_images_come_from_the_summary_alone():
    model = built()
    images = model.generate_images(5, seed=3)
    assert images.shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(images, model.decode_summary(model.sample_latents(5, seed=3)))
    for variable in model.residual_gru.weights:
        variable.assign(np.nan * variable)
    np.testing.assert_array_equal(images, model.generate_images(5, seed=3))


def test_residuals_depend_on_summary_and_past_noise():
    gru = ResidualGRU(6, 3)
    gru.build()
    random = np.random.default_rng(0)
    summary, noise = random.normal(size=(1, 6)).astype("f"), random.normal(size=(1, 5, 3)).astype("f")
    residual, later = gru(summary, noise).numpy(), noise.copy()
    later[:, 3] += 1.0
    change = np.abs(gru(summary, later) - residual)[0].max(-1)
    assert change[:3].max() == 0.0 and change[3:].min() > 0.0
    assert np.abs(gru(summary + 1.0, noise) - residual)[0].max(-1).min() > 0.0
    assert np.abs(residual).max() < 1.0  # the state of a GRU that begins at zero


def test_linear_output_leaves_the_bounds():
    model = built(linear_residual=True)
    model.residual_gru.output_layer.kernel.assign(20.0 * model.residual_gru.output_layer.kernel)
    assert np.abs(model.sample_latents(8)["residual"]).max() > 1.0


def test_prior_has_its_spread_and_videos_any_length():
    model = built(summary_stddev=3.0)
    assert np.std(model.sample_latents(500, 1)["summary"]) == pytest.approx(3.0, rel=0.05)
    short, long = (model.sample_latents(2, num_frames=n, seed=4) for n in (3, 20))
    assert_same_sums(
        short["residual"], long["residual"][:, :3], terms=3 * 3 * (6 + 9)
    )  # steps, gates, state and inputs
    assert model.decode(long).shape == (2, 20, 16, 16, 3)


def test_editing_exchanges_residuals():
    model = built()
    one, other = model.sample_latents(1, seed=1), model.sample_latents(1, seed=2)
    mixed = editing.exchange(one, other, ["residual"])
    np.testing.assert_array_equal(model.decode_summary(mixed), model.decode_summary(one))
    assert np.abs(model.decode(mixed) - model.decode(one)).max() > 0
    assert model.decode(editing.interpolate(one, other, 3)).shape == (3, 4, 16, 16, 3)
    with pytest.raises(ValueError, match="Missing: residual"):
        model.decode({"summary": one["summary"]})


# ---------------------------------------------------------------- training
class RecordedImages(ImageDiscriminator):
    """Keeps what it is shown."""

    def call(self, x, noise_key=None, training=False):
        self.__dict__.setdefault("shown", []).append(x)
        return super().call(x, noise_key, training)


class RecordedClips(VideoDiscriminator):
    """Keeps what it is shown."""

    def call(self, x, noise_key=None, training=False):
        self.__dict__.setdefault("shown", []).append(x)
        return super().call(x, noise_key, training)


def recorded(**changes):
    model = RJGAN(**{**TINY, **changes})
    model.image_discriminator = RecordedImages(16, 4, seed=1)
    if not model.images_only:
        model.video_discriminator = RecordedClips(16, 4, temporal_taps=2, seed=2)
    model.build()
    return model


@pytest.mark.parametrize(("every", "step", "share"), [(1, 3, 1.0), (2, 4, 1.0), (2, 3, 0.0), (0, 2, None)])
def test_summary_counts_every_n_steps(every, step, share):
    """The update of D_I is the gradient of Eq. 1 with its third term in every n-th step, and real frames counted twice then."""
    model = compiled(recorded(), (0.0, 1.0, 0.0), summary_every_steps=every)
    weights = [variable.value for variable in model.image_discriminator.trainable_variables]
    before = values(weights)
    model.train_step(batch(step=step))
    after = values(weights)
    real, frames, *summary = model.image_discriminator.shown[: 2 if share is None else 3]
    for weight, value in zip(weights, before, strict=True):
        weight.assign(value)
    softplus = tf.math.softplus
    with tf.GradientTape() as tape:
        logits = [model.image_discriminator(x, training=True) for x in (real, frames, *summary)]
        loss = tf.reduce_mean(softplus(-logits[0])) + tf.reduce_mean(softplus(logits[1]))
        if summary:
            loss += share * (tf.reduce_mean(softplus(-logits[0])) + tf.reduce_mean(softplus(logits[2])))
    for start, end, gradient in zip(before, after, tape.gradient(loss, weights), strict=True):
        np.testing.assert_allclose(end, start - gradient, atol=1e-6)


def test_summary_term_counts_real_frames_twice():
    with_term, without = (compiled(recorded(), (0.0, 0.0, 0.0), summary_every_steps=n) for n in (1, 0))
    logs = with_term.train_step(batch())
    assert "summary_discriminator_loss" not in without.train_step(batch())
    real, _, summary = (
        tf.math.softplus(sign * with_term.image_discriminator(x, training=True))
        for sign, x in zip((-1.0, 1.0, 1.0), with_term.image_discriminator.shown[:3], strict=True)
    )
    expected = tf.reduce_mean(real) + tf.reduce_mean(summary)
    assert float(logs["summary_discriminator_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_generator_learns_from_summaries_too():
    models = [compiled(built(), (1.0, 0.0, 0.0), summary_every_steps=n) for n in (1, 0)]
    logs = [model.train_step(batch()) for model in models]
    total = sum(float(logs[0][f"{name}_generator_loss"]) for name in ("image", "video", "summary"))
    assert float(logs[0]["generator_loss"]) == pytest.approx(total, rel=1e-6)
    kernels = [model.generator.project.kernel.numpy() for model in models]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_loose_images_are_seen_by_the_image_discriminator_alone():
    images = np.full((3, 2, 16, 16, 3), 255, np.uint8)
    model = compiled(recorded())
    model.train_step({**batch(), "image": tf.constant(images)})
    real = model.image_discriminator.shown[0].numpy()
    assert len(real) == 3 + 6
    np.testing.assert_array_equal(real[3:], np.ones((6, 16, 16, 3)))
    np.testing.assert_allclose(model.video_discriminator.shown[0], batch()["video"].numpy() / 127.5 - 1.0, atol=1e-6)


@pytest.mark.long
def test_stability_tools_reach_every_network():
    model = built()
    start = values(model.trainable_variables)
    networks = {"generator": model._generator_variables()}
    for name in ("image_discriminator", "video_discriminator"):
        networks[name] = getattr(model, name).trainable_variables

    def updates(**options) -> dict[str, np.ndarray]:
        for variable, value in zip(model.trainable_variables, start, strict=True):
            variable.assign(value)
        before = {name: values(variables) for name, variables in networks.items()}
        compiled(model, **options).train_step(batch())
        return {
            name: np.concatenate([(v.numpy() - b).ravel() for v, b in zip(variables, before[name], strict=True)])
            for name, variables in networks.items()
        }

    plain = updates()
    judges = ("image_discriminator", "video_discriminator")
    for options in ({"r1_weight": 10.0}, {"augmentation": ("translation",)}):
        changed = updates(**options)
        assert min(np.abs(changed[name] - plain[name]).max() for name in judges) > 1e-4, options
    decayed, clipped = updates(l2_weight=0.1), updates(gradient_clip_norm=1e-3)
    for variable, value in zip(model.trainable_variables, start, strict=True):
        variable.assign(value)
    for name in judges:
        weights = np.concatenate([v.numpy().ravel() for v in networks[name]])
        np.testing.assert_allclose(decayed[name] - plain[name], -0.1 * weights, atol=1e-5)
    for name in networks:
        assert np.linalg.norm(clipped[name]) == pytest.approx(1e-3, rel=1e-2)


# ---------------------------------------------------------------- images only
def test_image_only_baseline_has_generator_and_image_discriminator():
    model = compiled(recorded(num_frames=1))
    assert set(model.latent_spec) == {"summary"}
    assert model.residual_gru is None and model.video_discriminator is None
    assert model.generate(2, seed=1).shape == (2, 1, 16, 16, 3)
    np.testing.assert_array_equal(model.generate(2, seed=1)[:, 0], model.generate_images(2, seed=1))
    before = values(model.trainable_variables)
    logs = model.train_step({**batch(), "video": batch()["video"][:, :1]})
    assert set(logs) == {"summary_discriminator_loss", "summary_generator_loss", "generator_loss"}
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert np.abs(variable.numpy() - value).max() > 0, variable.path
    with pytest.raises(ValueError, match="the one frame it was built for. Received num_frames=5"):
        model.generate(2, num_frames=5)


def test_clips_and_images_are_not_taken_for_each_other():
    with pytest.raises(ValueError, match=r"single frames of 16x16.*Received \(3, 4, 16, 16, 3\)"):
        compiled(built(num_frames=1)).train_step(batch())
    with pytest.raises(ValueError, match=r"clips of 4 frames.*Received \(3, 1, 16, 16, 3\)"):
        compiled(built()).train_step({**batch(), "video": batch()["video"][:, :1]})


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="Received 20"):
        RJGAN(size=20)
    with pytest.raises(ValueError, match="needs 16 frames"):
        RJGAN(num_frames=8)
    with pytest.raises(ValueError, match="`summary_every_steps` at least 0"):
        built().compile(summary_every_steps=-1)
    with pytest.raises(ValueError, match="'lsgan'"):
        built().compile(adversarial_loss="lsgan")


@pytest.mark.low_precision
def test_bfloat16_keeps_losses_and_weights():
    model = compiled(built(dtype="mixed_bfloat16"), (0.1, 0.1, 0.1), r1_weight=1.0)
    logs = model.train_step(batch())
    assert {value.dtype for value in logs.values()} == {tf.float32}
    assert all(np.isfinite(float(value)) for value in logs.values())
    assert {weight.dtype for weight in model.weights} == {"float32"}
