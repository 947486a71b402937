"""What is special about TGAN: slow and fast codes, the clipped critic, one pass for two updates, categories."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.systems import NUM_FRAMES, SIZE, collection
from tfvidgen import data, editing
from tfvidgen.layers.replicas import step_key
from tfvidgen.losses.adversarial import discriminator_loss, generated_loss, generator_loss, real_loss
from tfvidgen.models import tgan as tgan_module
from tfvidgen.models import vgan as vgan_module
from tfvidgen.models.tgan import (
    TGAN,
    ImageGenerator,
    TemporalGenerator,
    VideoDiscriminator,
    clip_gain,
    clip_singular_values,
    rmsprop,
)

TINY = {
    "num_frames": NUM_FRAMES,
    "size": SIZE,
    "slow_dim": 6,
    "fast_dim": 5,
    "temporal_width": 8,
    "width": 4,
    "discriminator_width": 4,
    "seed": 3,
}


def tgan(rates=(0.1, 0.1), compile_with=None, **changes) -> TGAN:
    model = TGAN(**{**TINY, **changes})
    model.build()
    model.compile(*(keras.optimizers.SGD(rate) for rate in rates), **(compile_with or {}))
    return model


def batch(size=4, start_step=0):
    return next(iter(data.make_dataset(collection(), size, NUM_FRAMES, start_step=start_step)))


def count(layer) -> int:
    return sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)


def singular_values(kernel) -> np.ndarray:
    matrix = np.asarray(kernel, np.float64)
    return np.linalg.svd(matrix.reshape(-1, matrix.shape[-1]), compute_uv=False)


# ---------------------------------------------------------------- networks
def test_parameter_counts_are_those_of_the_layer_table():
    temporal, image, critic = TemporalGenerator(), ImageGenerator(), VideoDiscriminator()
    for layer in (temporal, image, critic):
        layer.build()
    gains = 512 + 256 + 128 + 128  # no beta
    taps = 4 * (512 * 256 + 256 * 128 + 128 * 128 + 128 * 100)
    assert count(temporal) == 100 * 512 + taps + gains + 100
    taps = 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 32) + 9 * 32 * 3
    # the first two norms are over the 4,096 units of the projections
    assert count(image) == 2 * 100 * 16 * 256 + taps + 2 * (2 * 4096 + 256 + 128 + 64 + 32) + 3 == 3_622_691
    of_form_1 = ImageGenerator(norm_per_unit=False)
    of_form_1.build()
    assert count(of_form_1) == 3_607_331
    taps = 64 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 16 * 512
    assert count(critic) == taps + 64 + (128 + 256 + 512)
    assert image.channels == [512, 256, 128, 64, 32]
    assert [up.filters for up in temporal.ups] == [256, 128, 128, 100]
    assert temporal(tf.zeros((2, 100))).shape == (2, 16, 100)


def test_the_first_norms_are_per_unit():
    """Statistics over the batch alone: with one norm for all pixels, units that are always brighter would stay so."""
    model = tgan()
    generator = model.image_generator
    units = generator.channels[0] // 2 * 16
    assert generator.slow_norm.gamma.shape == generator.fast_norm.gamma.shape == (units,)
    offset = np.linspace(-3, 3, units, dtype=np.float32)
    code = np.random.default_rng(0).normal(size=(16, model.slow_dim)).astype(np.float32)
    code[:, 0] = 1.0  # through which each unit gets a mean of its own
    generator.from_slow.kernel.assign(np.concatenate([offset[None], generator.from_slow.kernel.numpy()[1:]]))
    generator.slow_norm(np.reshape(code @ generator.from_slow.kernel.numpy(), (16, 1, 1, units)), training=True)
    np.testing.assert_allclose(
        generator.slow_norm.moving_mean, 0.1 * (code @ generator.from_slow.kernel).mean(0), atol=1e-5
    )


def test_networks_of_form_1_are_still_built():
    model = tgan(network_form=1)
    assert model.image_generator.slow_norm.gamma.shape == (model.image_generator.channels[0] // 2,)
    assert TGAN.from_config({**model.get_config(), "dtype": None}).network_form == 1 and tgan().network_form == 2
    assert np.isfinite(float(model.train_step(batch())["generator_loss"]))


@pytest.mark.parametrize(
    ("initialisation", "uniform"), [("lecun", ""), ("uniform_images", "image_generator"), ("uniform", "all")]
)
def test_kernels_start_as_in_the_official_configurations(initialisation, uniform):
    model = tgan(initialisation=initialisation, num_categories=2)
    for name in ("temporal_generator", "image_generator", "discriminator"):
        kernels = [v.numpy() for v in getattr(model, name).trainable_variables if "kernel" in v.path]
        largest = max(np.abs(kernel).max() for kernel in kernels)
        assert (largest <= 0.01) == (uniform in (name, "all")), name
        if largest <= 0.01:
            assert max(kernel.std() for kernel in kernels) == pytest.approx(0.01 / np.sqrt(3), rel=0.1)
    with pytest.raises(ValueError, match="`initialisation` must be one of .*'uniform'.*Received 'normal'"):
        TGAN(**{**TINY, "initialisation": "normal"})


def test_a_fast_code_changes_its_frame_and_the_slow_code_all():
    model = tgan()
    latents = {name: np.array(value) for name, value in model.sample_latents(2, seed=1).items()}
    frames = model.decode(latents).numpy()
    fast = latents["fast"].copy()
    fast[:, 2] += 1.0
    changed = np.abs(model.decode({**latents, "fast": fast}).numpy() - frames).max((0, 2, 3, 4))
    assert changed[2] > 1e-3
    np.testing.assert_array_equal(changed[[0, 1, 3]], 0)
    changed = np.abs(model.decode({**latents, "slow": -latents["slow"]}).numpy() - frames).max((0, 2, 3, 4))
    assert (changed > 1e-3).all()


def test_fast_codes_follow_from_the_slow_code():
    model = tgan()
    latents = model.sample_latents(50, seed=2)
    slow, fast = latents["slow"].numpy(), latents["fast"].numpy()
    assert -1 <= slow.min() < -0.9 and 0.9 < slow.max() <= 1
    assert np.abs(fast).max() <= 1 and fast.std(axis=0).min() > 0 and fast.std(axis=1).max() > 1e-3
    np.testing.assert_array_equal(fast, model.fast_codes({"slow": slow}))
    swapped = editing.exchange(latents, {name: value[::-1] for name, value in latents.items()}, ["fast"])
    np.testing.assert_array_equal(swapped["fast"], fast[::-1])
    assert np.abs(model.decode(swapped).numpy() - model.decode(latents).numpy()).max() > 1e-4


# ---------------------------------------------------------------- singular value clipping
def test_singular_values_are_cut_off_at_one():
    random = np.random.default_rng(0)
    for shape in ((40, 7), (4, 4, 4, 3, 6), (5, 9), (30, 1)):
        kernel = random.normal(0, 1, shape).astype(np.float32)
        kernel *= 1.5 / np.median(singular_values(kernel))
        matrix = kernel.reshape(-1, shape[-1])
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        expected = (left * np.minimum(values, 1.0)) @ right
        clipped = np.asarray(clip_singular_values(tf.constant(kernel)))
        np.testing.assert_allclose(clipped.reshape(expected.shape), expected, atol=1e-5)
        assert singular_values(clipped).max() <= 1 + 1e-5
        assert singular_values(kernel).max() > 1.2


def test_smaller_singular_values_are_not_touched():
    random = np.random.default_rng(1)
    kernel = random.normal(0, 1, (60, 8)).astype(np.float32)
    kernel *= 0.99 / singular_values(kernel).max()
    np.testing.assert_array_equal(clip_singular_values(tf.constant(kernel)), kernel)
    once = clip_singular_values(tf.constant(30.0 * kernel))
    np.testing.assert_allclose(clip_singular_values(once), once, atol=1e-6)
    np.testing.assert_array_equal(clip_singular_values(tf.zeros((6, 4))), np.zeros((6, 4)))


def test_gains_are_kept_between_a_hundredth_and_one_deviation():
    gain = np.array([3.0, 0.5, 0.001, -2.0, 1.9], np.float32)
    variance = np.array([4.0, 4.0, 4.0, 1.0, 4.0], np.float32)
    np.testing.assert_allclose(clip_gain(gain, variance, 0.0), [2.0, 0.5, 0.02, 0.01, 1.9], rtol=1e-6)


def test_the_critic_is_clipped_every_few_steps():
    model = tgan(rates=(0.1, 3.0), compile_with={"clip_every_steps": 3})
    largest = []
    for step in range(6):
        model.train_step(batch(start_step=step))
        largest.append(max(singular_values(kernel).max() for kernel in model.discriminator.kernels))
        gains = [
            (norm.gamma.numpy(), np.sqrt(norm.moving_variance.numpy() + norm.epsilon))
            for norm in model.discriminator.norms
        ]
        if step in (2, 5):
            assert largest[-1] <= 1 + 1e-5
            for gain, deviation in gains:
                assert (gain <= deviation * (1 + 1e-6)).all() and (gain >= 0.01 * deviation * (1 - 1e-6)).all()
    assert min(largest[i] for i in (0, 1, 3, 4)) > 1.01


@pytest.mark.long
def test_clipping_is_the_same_on_every_replica(two_replicas):
    with two_replicas.scope():
        model = tgan(rates=(0.1, 3.0), compile_with={"clip_every_steps": 1})
    values = iter(two_replicas.experimental_distribute_dataset(data.make_dataset(collection(), 4, NUM_FRAMES)))
    two_replicas.run(model.train_step, args=(next(values),))
    for kernel in (*model.discriminator.kernels, *(norm.gamma for norm in model.discriminator.norms)):
        first, second = (v.numpy() for v in two_replicas.experimental_local_results(kernel.value))
        np.testing.assert_array_equal(first, second)
    assert max(singular_values(kernel).max() for kernel in model.discriminator.kernels) <= 1 + 1e-5


def test_weight_clipping_spares_the_gains():
    model = tgan(compile_with={"constraint": "weights"})
    model.train_step(batch())
    for kernel in model.discriminator.kernels:
        assert np.abs(kernel.numpy()).max() == np.float32(0.01)
    assert min(norm.gamma.numpy().min() for norm in model.discriminator.norms) > 0.5


def test_without_a_constraint_nothing_is_clipped():
    model = tgan(rates=(0.0, 0.0), compile_with={"constraint": "none", "adversarial_loss": "hinge"})
    before = [kernel.numpy() for kernel in model.discriminator.kernels]
    model.train_step(batch())
    for kernel, old in zip(model.discriminator.kernels, before, strict=True):
        np.testing.assert_array_equal(kernel.numpy(), old)
    assert max(singular_values(kernel).max() for kernel in before) > 1.05


# ---------------------------------------------------------------- the game
@pytest.mark.parametrize("kind", ["wgan", "minimax", "non_saturating", "hinge"])
@pytest.mark.long
def test_both_networks_learn_from_the_same_pass(kind):
    """Each moves by its own loss's gradient against the other's weights from before the step."""
    options = {"adversarial_loss": kind, "constraint": "none", "r1_weight": 0.5, "l2_weight": 0.01}
    model, again = tgan(rates=(1.0, 1.0), compile_with=options), tgan()
    for twin in (model, again):  # as it starts, all videos are about as grey, and gradients are lost in rounding
        twin.image_generator.to_rgb.kernel.assign(5.0 * twin.image_generator.to_rgb.kernel)
    players = {
        "generator": (model._generator_variables, [v.value for v in again._generator_variables]),
        "discriminator": (
            model.discriminator.trainable_variables,
            [v.value for v in again.discriminator.trainable_variables],
        ),
    }
    before = {name: [v.numpy() for v in variables] for name, (variables, _) in players.items()}
    step = batch()
    model.train_step(step)
    real = tf.cast(step["video"], tf.float32) / 127.5 - 1
    key = tf.unstack(tf.random.split(step_key(model.seed, 0), 5))[0]
    latents = {"slow": tf.random.stateless_uniform((4, again.slow_dim), key, -1, 1)}
    with tf.GradientTape(persistent=True) as tape:
        with tf.GradientTape() as inner:
            inner.watch(real)
            real_logits = again.discriminator(real, training=True)
            total = tf.reduce_sum(real_logits)
        penalty = 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(inner.gradient(total, real)), [1, 2, 3, 4]))
        generated = again.decode({**latents, "fast": again.fast_codes(latents, training=True)}, training=True)
        logits = again.discriminator(generated, training=True)
        losses = {
            "generator": generator_loss(logits, kind),
            "discriminator": discriminator_loss(real_logits, logits, kind) + 0.5 * penalty,
        }
    for name, (variables, weights) in players.items():
        for variable, old, gradient in zip(variables, before[name], tape.gradient(losses[name], weights), strict=True):
            expected = -(gradient + 0.01 * old)
            np.testing.assert_allclose(variable.numpy() - old, expected, atol=2e-5 + 2e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("generator_rate", "discriminator_rate"), [(0.1, 0.0), (0.0, 0.1)])
def test_each_optimizer_moves_its_own_networks(generator_rate, discriminator_rate):
    model = tgan(rates=(generator_rate, discriminator_rate), compile_with={"clip_every_steps": 9})
    networks = (model.temporal_generator, model.image_generator, model.discriminator)
    before = [[v.numpy() for v in network.trainable_variables] for network in networks]
    model.train_step(batch())
    moved = [
        any(np.abs(v.numpy() - b).max() > 0 for v, b in zip(network.trainable_variables, old, strict=True))
        for network, old in zip(networks, before, strict=True)
    ]
    assert moved == [generator_rate > 0, generator_rate > 0, discriminator_rate > 0]


def test_inverted_labels_only_turn_the_logit_round():
    """The official vanilla game labels real examples 0: with the logit turned round its losses are ours."""
    logits = np.random.default_rng(2).normal(0, 2, 40).astype(np.float32)

    def cross_entropy(logits, label):
        return float(keras.losses.BinaryCrossentropy(from_logits=True)(np.full(40, label, np.float32), logits))

    assert float(real_loss(logits)) == pytest.approx(cross_entropy(-logits, 0.0), rel=1e-5)
    assert float(generated_loss(logits)) == pytest.approx(cross_entropy(-logits, 1.0), rel=1e-5)
    assert float(generator_loss(logits)) == pytest.approx(cross_entropy(-logits, 0.0), rel=1e-5)


def test_rmsprop_takes_whole_steps_of_small_gradients():
    """Chainer's rule by hand: v = 0.01 g^2 at first, and the step is rate g / (sqrt(v) + 1e-8)."""
    gradient = np.array([1.0, -1e-3, 1e-5], np.float32)
    weight = keras.Variable(np.zeros(3, np.float32))
    rmsprop(0.5).apply([tf.constant(gradient)], [weight])
    np.testing.assert_allclose(weight, -0.5 * gradient / (0.1 * np.abs(gradient) + 1e-8), rtol=0.02)


@pytest.mark.long
def test_augmentation_and_clipping_reach_both_networks():
    """Weight penalty and R1: see the test above."""
    updates = {}
    for name, options in {
        "plain": {},
        "augmented": {"augmentation": ("translation",)},
        "clipped": {"gradient_clip_norm": 1e-3},
    }.items():
        model = tgan(rates=(1.0, 1.0), compile_with={**options, "constraint": "none", "adversarial_loss": "hinge"})
        networks = (model._generator_variables, model.discriminator.trainable_variables)
        before = [[v.numpy() for v in variables] for variables in networks]
        model.train_step(batch())
        updates[name] = [
            np.concatenate([(v.numpy() - b).ravel() for v, b in zip(variables, old, strict=True)])
            for variables, old in zip(networks, before, strict=True)
        ]
    for plain, augmented, clipped in zip(*updates.values(), strict=True):
        assert np.abs(augmented - plain).max() > 0.01 * np.abs(plain).max()
        assert np.linalg.norm(clipped) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("module", [tgan_module, vgan_module])
def test_spectral_norm_divides_the_last_layer_too(module):
    sizes = {"size": SIZE, "num_frames": NUM_FRAMES, "width": 4, "seed": 1}
    normed, plain = (module.VideoDiscriminator(spectral_norm=on, **sizes) for on in (True, False))
    for network in (normed, plain):
        network.build()
    norms = [*(down.spectral_norm for down in normed.downs), normed.head_norm]
    for norm, layer, own in zip(norms, [*plain.downs, plain.head], [*normed.downs, normed.head], strict=True):
        for _ in range(50):  # power iterations
            norm(own.kernel, training=True)
        layer.kernel.assign(own.kernel / singular_values(own.kernel)[0])
    video = tf.cast(batch()["video"], tf.float32) / 127.5 - 1
    np.testing.assert_allclose(normed(video, training=True), plain(video, training=True), rtol=0.02, atol=1e-3)


def test_noise_is_added_before_each_leaky_relu():
    """With kernels and gains that let nothing through, what the last layer sees is the leaky ReLU of the noise alone."""
    sizes = {"size": 64, "num_frames": 16, "width": 2, "seed": 1}
    network = VideoDiscriminator(**sizes)
    network.build()
    assert len(network.downs) == 4
    seen, inputs = [], []
    for layer in (*network.downs[1:], network.head):
        call = layer.call
        layer.call = lambda x, *args, call=call, **kwargs: seen.append(x.numpy()) or call(x, *args, **kwargs)
    video = np.random.default_rng(0).uniform(-1, 1, (2, 16, 64, 64, 3)).astype(np.float32)
    for stddev in (0.0, 0.3):
        seen.clear()
        network(video, noise_stddev=stddev, noise_key=step_key(3, 0), training=True)
        inputs.append([x.copy() for x in seen])
    for index, layer in enumerate(network.downs):  # what is before the leaky ReLU differs by the noise, layer by layer
        before, after = (np.where(side[index] > 0, side[index], side[index] / 0.2) for side in inputs)
        if index == 0:
            assert (after - before).std() == pytest.approx(0.3, rel=0.05)
        assert np.abs(after - before).mean() > 0.1, layer.name
    np.testing.assert_array_equal(network(video, noise_stddev=0.3), network(video))  # no key, no noise


def test_noise_on_pixels_is_still_an_option():
    options = {"adversarial_loss": "non_saturating", "constraint": "none", "noise_stddev": 0.3}
    losses = {
        place: float(tgan(compile_with={**options, "noise_place": place}).train_step(batch())["discriminator_loss"])
        for place in ("activations", "pixels")
    }
    model = tgan(compile_with={**options, "noise_place": "pixels"})
    judged = []
    call = model.discriminator.call
    model.discriminator.call = lambda video, *args, **kwargs: judged.append(video) or call(video, *args, **kwargs)
    model.train_step(batch())
    real = batch()["video"].numpy() / 127.5 - 1
    assert (judged[0].numpy() - real).std() == pytest.approx(0.3, rel=0.05)
    assert losses["activations"] != losses["pixels"]


def test_noise_reaches_the_discriminator_and_changes_with_the_step():
    options = {"adversarial_loss": "non_saturating", "constraint": "none"}
    losses = []
    for noise, step in ((0.0, 0), (0.3, 0), (0.3, 0), (0.3, 1)):
        model = tgan(compile_with={**options, "noise_stddev": noise})
        logs = model.train_step({**batch(), "step": tf.fill((4,), tf.constant(step, tf.int64))})
        losses.append(float(logs["discriminator_loss"]))
    assert losses[1] == losses[2] and len(set(losses)) == 3


def test_replicas_draw_their_parts_of_one_device_s_codes(two_replicas):
    from tfvidgen.layers.draws import replica_uniform

    key = step_key(3, 7)
    whole = replica_uniform(key, (4, 6), -1.0, 1.0).numpy()
    parts = two_replicas.run(lambda: replica_uniform(key, (2, 6), -1.0, 1.0))
    parts = [part.numpy() for part in two_replicas.experimental_local_results(parts)]
    assert np.abs(parts[0] - parts[1]).min() > 1e-6
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.low_precision
def test_kernels_are_clipped_exactly_in_low_precision():
    model = tgan(dtype="mixed_bfloat16", compile_with={"clip_every_steps": 1})
    model.train_step(batch())
    assert model.discriminator.downs[1].compute_dtype == "bfloat16"
    assert max(singular_values(kernel).max() for kernel in model.discriminator.kernels) <= 1 + 1e-5


# ---------------------------------------------------------------- categories
def test_a_label_changes_codes_and_videos():
    model = tgan(num_categories=3)
    first, second = (model.sample_latents(2, seed=1, labels=[c, c]) for c in (0, 2))
    np.testing.assert_array_equal(first["slow"], second["slow"])
    assert np.abs(first["fast"] - second["fast"]).max() > 1e-3
    halfway = {**first, "label": second["label"]}  # same codes, another label for the image generator
    assert np.abs(model.decode(halfway) - model.decode(first)).max() > 1e-3
    np.testing.assert_array_equal(model.relabel(first, 2)["fast"], second["fast"])
    drawn = model.sample_latents(200, seed=3)["label"].numpy()
    assert set(drawn) == {0, 1, 2} and drawn.dtype == np.int32


def test_the_discriminator_sees_the_category():
    model = tgan(num_categories=2)
    video = tf.cast(batch()["video"], tf.float32) / 127.5 - 1
    logits = [model.discriminator(video, tf.fill((4,), c)).numpy() for c in (0, 1)]
    assert np.abs(logits[0] - logits[1]).min() > 1e-6
    kernel = model.discriminator.of_category.kernel
    assert any(kernel is other for other in model.discriminator.kernels)  # so it is clipped, too


def test_a_category_is_a_constant_channel_of_the_first_layer():
    """But for the rows at the edge, where the convolution sees zeros beside the channel."""
    model = tgan(num_categories=2)
    down, of_category = model.discriminator.downs[0], model.discriminator.of_category
    wider = keras.layers.Conv3D(4, 4, 2, padding="same", use_bias=False)
    wider.build((None, NUM_FRAMES, SIZE, SIZE, 5))
    planes = np.random.default_rng(0).normal(size=(4, 4, 4, 2, 4)).astype(np.float32)
    wider.kernel.assign(np.concatenate([down.kernel.numpy(), planes], 3))
    of_category.kernel.assign(planes.sum((0, 1, 2)))
    video = tf.cast(batch()["video"], tf.float32) / 127.5 - 1
    channels = tf.concat([video, tf.ones_like(video[..., :1]), tf.zeros_like(video[..., :1])], -1)
    ours = down(video) + of_category(np.array([[1.0, 0.0]], np.float32))[:, None, None, None]
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    temporal_edge = NUM_FRAMES // 2 == 2  # both steps of so short a clip see zeros before or after it
    assert temporal_edge
    lost = np.stack([planes[0].sum((0, 1)), planes[-1].sum((0, 1))])[:, 0]  # of the first category, taps -1 and +2
    expected = wider(channels).numpy()[inner] + lost[None, :, None, None]
    np.testing.assert_allclose(ours.numpy()[inner], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ({"action": None}, ValueError, "needs an `action` for every video"),
        ({"action": [0, 1, 2, 0]}, tf.errors.InvalidArgumentError, "outside 0..1: raise num_categories"),
        ({"action": [0, -1, 1, 0]}, tf.errors.InvalidArgumentError, "outside 0..1"),
    ],
)
def test_missing_and_unknown_categories_are_refused_in_training(step, error, message):
    given = {**batch(), **{name: value if value is None else tf.constant(value) for name, value in step.items()}}
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(error, match=message):
        tgan(num_categories=2).train_step(given)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, r"`size` must be 8, 16, 32, 64, 128.*Received 48"),
        ({"num_frames": 12}, r"`num_frames` must be 2, 4, 8, 16, 32.*Received 12"),
        ({"num_frames": 1}, r"Received 1"),
        ({"num_frames": 8, "size": 64}, r"`num_frames` must be a multiple of 16. Received 8"),
        ({"num_categories": 1}, r"`num_categories` must be 0 for none, or at least 2. Received 1"),
        ({"num_categories": -1}, r"Received -1"),
    ],
)
def test_networks_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TGAN(**{**TINY, **changes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint": "svc"}, "`constraint` must be one of"),
        ({"clip_every_steps": 0}, "`clip_every_steps` must be at least 1"),
        ({"noise_stddev": -0.1}, "`noise_stddev` at least 0"),
        ({"noise_place": "input"}, "`noise_place` must be one of .*Received 'input'"),
        ({"adversarial_loss": "wasserstein"}, "`adversarial_loss` must be one of"),
        ({"constraint": "none"}, "without any constraint grows without bound"),
        ({"augmentation": ("blur",)}, "`augmentation` takes names from"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tgan(compile_with=options)


def test_other_bad_input_is_refused():
    model = tgan()
    for num_frames in (1, 2 * NUM_FRAMES):  # these would pass the critic as twice as many clips
        video = tf.zeros((4, num_frames, SIZE, SIZE, 3), tf.uint8)
        with pytest.raises(ValueError, match=rf"clips of {NUM_FRAMES} frames.*Received \(4, {num_frames}, "):
            model.train_step({**batch(), "video": video})
    assert model.generate(1, num_frames=NUM_FRAMES).shape[1] == NUM_FRAMES
    with pytest.raises(ValueError, match=r"4 frames it was built for. Received num_frames=8"):
        model.generate(1, num_frames=8)
    with pytest.raises(ValueError, match="TGAN is unconditional"):
        model.sample_latents(1, labels=[0])
    with pytest.raises(ValueError, match=r"`labels` must lie in 0..1. Received \[2\]"):
        tgan(num_categories=2).sample_latents(1, labels=[2])
