"""What is special about VGAN: two streams and their mask, who learns when, a future from a frame, the classifier."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.marks import first
from tests.systems import NUM_FRAMES, SIZE, collection
from tests.tolerances import of_video
from tfvidgen import data
from tfvidgen.layers.replicas import step_key
from tfvidgen.losses.adversarial import category_loss, generator_loss, real_loss
from tfvidgen.models.vgan import (
    VGAN,
    ActionClassifier,
    ConditionalVGAN,
    TwoStreamGenerator,
    VideoDiscriminator,
    compose,
)
from tfvidgen.optimizers import pytorch_adam

pytestmark = pytest.mark.usefixtures("quick_graphs")

TINY = {"num_frames": NUM_FRAMES, "size": SIZE, "width": 4, "seed": 3}


def count(variables) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def vgan(model_class=VGAN, rates=(0.1, 0.1), compile_with=None, **changes):
    model = model_class(**{**TINY, **({"latent_dim": 6} if model_class is VGAN else {}), **changes})
    model.build()
    for variable in model.trainable_variables:
        if "kernel" in variable.path:
            variable.assign(10.0 * variable)  # as they start, networks so small say next to nothing
    model.compile(*(keras.optimizers.SGD(rate) for rate in rates), **(compile_with or {}))
    return model


def batch(size=4, start_step=0):
    return next(iter(data.make_dataset(collection(), size, NUM_FRAMES, start_step=start_step)))


def values(variables) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def largest_move(variables, before) -> float:
    return max(float(np.abs(v.numpy() - b).max()) for v, b in zip(variables, before, strict=True))


# ---------------------------------------------------------------- published numbers
def test_generator_parameter_count_is_published():
    """16,245,383: ours, and the biases before batch norms that the official code has."""
    generator = TwoStreamGenerator()
    generator.build()
    assert generator.channels == [512, 256, 128, 64] and generator.first_frames == 2
    assert count(generator.trainable_variables) + 2 * (512 + 256 + 128 + 64) == 16_245_383


def test_discriminator_parameter_count_is_that_of_the_official_layers():
    discriminator = VideoDiscriminator()
    discriminator.build()
    kernels = 64 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * 4 * 4 * 512
    assert count(discriminator.trainable_variables) == kernels + 64 + 2 * (128 + 256 + 512) + 1


def test_conditional_generator_has_twice_the_width():
    generator = ConditionalVGAN(width=64).generator
    assert generator.channels == [1024, 512, 256, 128]
    assert [down.filters for down in generator.encoder.downs] == [128, 256, 512, 1024]
    assert {norm.epsilon for norm in generator.encoder.norms} == {1e-3}
    assert {norm.epsilon for norm in generator.foreground.norms} == {1e-5}


def test_conditional_discriminator_parameter_count_is_published():
    """44,135,810: ours, the biases before batch norms that cancel, and the second logit's kernel and bias."""
    discriminator = ConditionalVGAN(width=64).discriminator
    discriminator.build()
    assert [down.filters for down in discriminator.downs] == [128, 256, 512, 1024]
    second_logit = 2 * 4 * 4 * 1024 + 1
    assert count(discriminator.trainable_variables) + (256 + 512 + 1024) + second_logit == 44_135_810


def test_conditional_networks_of_form_1_are_still_built():
    model = ConditionalVGAN(width=64, network_form=1)
    model.discriminator.build()
    assert count(model.discriminator.trainable_variables) == 11_040_577
    assert {norm.epsilon for norm in model.generator.encoder.norms} == {1e-5}
    assert VGAN(**TINY).network_form == 1 and ConditionalVGAN(**TINY).network_form == 2


def test_the_mask_penalty_is_the_unconditional_system_s():
    models = {kind: kind(**TINY) for kind in (VGAN, ConditionalVGAN)}
    for model in models.values():
        model.build()
        model.compile()
    assert (models[VGAN].mask_weight, models[ConditionalVGAN].mask_weight) == (0.1, 0.0)


def test_the_optimizer_is_pytorch_s_adam():
    model = VGAN(**TINY)
    model.build()
    model.compile()
    optimizer = model.discriminator_optimizer
    assert (optimizer.epsilon, optimizer.corrected_epsilon, optimizer.beta_1) == (1e-8, True, 0.5)


def test_one_logit_is_the_difference_of_two():
    two = np.random.default_rng(0).normal(0, 3, (50, 2)).astype(np.float32)
    one = two[:, 1] - two[:, 0]
    real, generated = np.ones(50, np.int32), np.zeros(50, np.int32)
    assert float(category_loss(two, real)) == pytest.approx(float(real_loss(one)), rel=1e-5)
    assert float(category_loss(two, real)) == pytest.approx(float(generator_loss(one)), rel=1e-5)
    assert float(category_loss(two, generated)) == pytest.approx(float(real_loss(-one)), rel=1e-5)


def test_one_logit_moves_half_as_fast_under_adam():
    """The gradients of two logits are opposite, and Adam moves each weight by the rate whatever their size."""
    features = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    label = np.ones(50, np.int32)
    weights = {outputs: keras.Variable(np.zeros((4, outputs), np.float32)) for outputs in (1, 2)}
    for outputs, weight in weights.items():
        with tf.GradientTape() as tape:
            logits = features @ weight.value
            loss = real_loss(logits[:, 0]) if outputs == 1 else category_loss(logits, label)
        pytorch_adam(0.1).apply([tape.gradient(loss, weight.value)], [weight])
    difference = weights[2].numpy()[:, 1] - weights[2].numpy()[:, 0]
    np.testing.assert_allclose(difference, 2 * weights[1].numpy()[:, 0], rtol=1e-4)


# ---------------------------------------------------------------- two streams
def test_composition_by_hand():
    foreground = np.full((1, 2, 1, 2, 3), 0.6, np.float32)
    background = np.full((1, 1, 1, 2, 3), -0.4, np.float32)
    mask = np.array([[1.0, 0.0], [0.5, 0.25]], np.float32).reshape(1, 2, 1, 2, 1)
    expected = np.array([[0.6, -0.4], [0.1, -0.15]], np.float32).reshape(1, 2, 1, 2, 1)
    video = np.asarray(compose(tf.constant(foreground), tf.constant(mask), tf.constant(background)))
    np.testing.assert_allclose(video, np.broadcast_to(expected, video.shape), atol=1e-6)
    np.testing.assert_allclose(video, mask * foreground + (1 - mask) * background, atol=1e-6)


def test_a_video_is_composed_of_its_streams():
    model = vgan()
    latents = model.sample_latents(3, seed=4)
    streams = {name: value.numpy() for name, value in model.streams(latents, training=True).items()}
    assert streams["foreground"].shape == (3, NUM_FRAMES, SIZE, SIZE, 3)
    assert streams["mask"].shape == (3, NUM_FRAMES, SIZE, SIZE, 1)
    assert streams["background"].shape == (3, 1, SIZE, SIZE, 3)
    assert 0 <= streams["mask"].min() and streams["mask"].max() <= 1 and streams["mask"].std() > 0.01
    foreground, mask, background = streams["foreground"], streams["mask"], streams["background"]
    assert foreground.std() > 0.1 and background.std() > 0.1
    video = model.decode(latents, training=True)
    np.testing.assert_allclose(video, mask * foreground + (1 - mask) * background, atol=1e-5)


def test_a_closed_mask_shows_a_still_background():
    model = vgan()
    bias = model.generator.foreground.bias
    bias.assign(np.array([0, 0, 0, -60], np.float32))  # the mask's is the last
    video = model.generate(2, seed=1).numpy()
    np.testing.assert_allclose(video, np.repeat(video[:, :1], NUM_FRAMES, axis=1), atol=1e-6)
    bias.assign(np.array([0, 0, 0, 60], np.float32))
    moving = model.generate(2, seed=1).numpy()
    assert np.abs(moving - moving[:, :1]).max() > 0.05


def test_the_mask_penalty_leaves_the_background_alone():
    model = vgan()
    background = [v.value for v in model.generator.background.trainable_variables]
    foreground = [v.value for v in model.generator.foreground.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch([background, foreground])
        mask_loss = tf.reduce_mean(model.streams(model.sample_latents(2), training=True)["mask"])
    of_background, of_foreground = tape.gradient(mask_loss, [background, foreground])
    assert of_background == [None] * len(background)
    assert np.abs(of_foreground[0]).max() > 0


def test_the_mask_penalty_closes_the_mask():
    batch_of_step = batch()
    logs = {}
    for weight in (0.0, 20.0):
        model = vgan(rates=(0.1, 0.0), compile_with={"mask_weight": weight})
        for _ in range(4):
            logs[weight] = float(model.train_step(batch_of_step)["mask_loss"])
    assert logs[20.0] < logs[0.0] - 0.1


# ---------------------------------------------------------------- who learns when
@pytest.mark.parametrize(("generator_rate", "discriminator_rate"), [(0.1, 0.0), (0.0, 0.1)])
def test_each_optimizer_moves_its_own_network(generator_rate, discriminator_rate):
    model = vgan(rates=(generator_rate, discriminator_rate))
    generator, discriminator = model.generator.trainable_variables, model.discriminator.trainable_variables
    before = values(generator), values(discriminator)
    model.train_step(batch())
    assert (largest_move(generator, before[0]) > 0) == (generator_rate > 0)
    assert (largest_move(discriminator, before[1]) > 0) == (discriminator_rate > 0)


def test_the_generator_learns_from_the_updated_discriminator():
    model, again = vgan(rates=(1.0, 0.5), compile_with={"mask_weight": 0.0}), vgan()
    variables = model.generator.trainable_variables
    start = values(variables)
    first_discriminator = values(model.discriminator.trainable_variables)
    model.train_step(batch())
    move = [v.numpy() - s for v, s in zip(variables, start, strict=True)]

    def expected(discriminator_weights):
        """Minus the generator's gradient against those discriminator weights."""
        for variable, value in zip(again.discriminator.trainable_variables, discriminator_weights, strict=True):
            variable.assign(value)
        key = tf.unstack(tf.random.split(step_key(model.seed, 0), 4))[0]
        latents = again._latents_of_step(tf.zeros((4, NUM_FRAMES, SIZE, SIZE, 3)), key)
        weights = [v.value for v in again.generator.trainable_variables]
        with tf.GradientTape() as tape:
            loss = generator_loss(again.discriminator(again.decode(latents, training=True), training=True))
        return [-gradient.numpy() for gradient in tape.gradient(loss, weights)]

    updated = expected(values(model.discriminator.trainable_variables))
    stale = expected(first_discriminator)
    assert max(np.abs(m - s).max() for m, s in zip(move, stale, strict=True)) > 1e-3
    for m, u in zip(move, updated, strict=True):
        np.testing.assert_allclose(m, u, atol=2e-5)


def test_the_clips_of_a_step_are_made_once():
    """One forward pass of the generator, so its batch norms move once."""
    model = vgan(rates=(0.0, 0.0))
    model.train_step(batch())
    latents = model._latents_of_step(
        tf.zeros((4, NUM_FRAMES, SIZE, SIZE, 3)), tf.unstack(tf.random.split(step_key(model.seed, 0), 4))[0]
    )
    start = model.generator.background_start(latents["content"]).numpy().reshape(-1, model.generator.channels[0])
    np.testing.assert_allclose(model.generator.background_norm.moving_mean, 0.1 * start.mean(0), atol=1e-6)


def test_replicas_draw_their_parts_of_one_device_s_noise(two_replicas):
    model = vgan()
    key = step_key(3, 7)
    whole = model._latents_of_step(tf.zeros((4, 1)), key)["content"].numpy()
    parts = two_replicas.run(lambda: model._latents_of_step(tf.zeros((2, 1)), key)["content"])
    parts = [part.numpy() for part in two_replicas.experimental_local_results(parts)]
    assert np.abs(parts[0] - parts[1]).min() > 1e-6
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.long
def test_stability_tools_change_the_step():
    """Each tool alters what a step does to the discriminator; off, it does not."""

    def moved(**options):
        model = vgan(compile_with=options)
        logs = model.train_step(batch())
        return model.discriminator.downs[0].kernel.numpy(), logs

    plain, logs = moved()
    assert set(logs) == {"discriminator_loss", "generator_loss", "mask_loss"}
    np.testing.assert_array_equal(moved(r1_weight=0.0, augmentation=(), gradient_clip_norm=0.0)[0], plain)
    for options in (
        {"r1_weight": 10.0},
        {"augmentation": ("translation",)},
        {"gradient_clip_norm": 1e-3},
        {"l2_weight": 0.1},
    ):
        kernel, logs = moved(**options)
        assert np.abs(kernel - plain).max() > 1e-7, options
        assert ("r1_penalty" in logs) == ("r1_weight" in options)


# ---------------------------------------------------------------- a future from a frame
def test_the_first_frame_loss_is_the_l1_to_the_given_frame():
    model, again = vgan(ConditionalVGAN, rates=(0.0, 0.0)), vgan(ConditionalVGAN)
    step = batch()
    logs = model.train_step(step)
    real = step["video"].numpy().astype(np.float32) / 127.5 - 1
    made = again.decode(again.encode(real), training=True).numpy()
    assert float(logs["first_frame_loss"]) == pytest.approx(np.abs(made[:, 0] - real[:, 0]).mean(), rel=1e-4)
    assert float(logs["first_frame_loss"]) > 0.1


@pytest.mark.long
def test_the_first_frame_weight_pulls_towards_the_given_frame():
    step = batch()
    losses = []
    for weight in (0.0, 10.0):
        model = vgan(ConditionalVGAN, rates=(0.05, 0.0), compile_with={"first_frame_weight": weight})
        losses.append([float(model.train_step(step)["first_frame_loss"]) for _ in range(5)])
    assert losses[0][0] == losses[1][0]
    assert losses[1][-1] < 0.8 * losses[0][-1]


def test_a_frame_decides_its_future():
    model = vgan(ConditionalVGAN)
    real = batch()["video"].numpy().astype(np.float32) / 127.5 - 1
    latents = model.encode(real)
    np.testing.assert_array_equal(latents["first_frame"], real[:, 0])
    videos = model.decode(latents).numpy()
    np.testing.assert_array_equal(videos, model.decode(latents).numpy())
    assert np.abs(videos[0] - videos[1]).max() > 0.01
    alone = model.decode({"first_frame": real[:1, 0]}).numpy()
    np.testing.assert_allclose(alone[0], videos[0], rtol=0, atol=of_video(model))


def test_first_frames_of_training_are_remembered_oldest_replaced():
    model = vgan(ConditionalVGAN, num_remembered=6)
    start = model.first_frames.numpy()
    batches = [batch(start_step=step) for step in range(2)]
    model.train_step(batches[0])
    first = batches[0]["video"].numpy()[:, 0]
    np.testing.assert_array_equal(model.first_frames.numpy()[:4], first)
    np.testing.assert_array_equal(model.first_frames.numpy()[4:], start[4:])
    model.train_step(batches[1])
    second = batches[1]["video"].numpy()[:, 0]
    expected = np.concatenate([second[2:], first[2:], second[:2]])  # rows 4, 5, 0, 1
    np.testing.assert_array_equal(model.first_frames.numpy(), expected)
    drawn = np.round((model.sample_latents(20, seed=1)["first_frame"].numpy() + 1) * 127.5).astype(np.uint8)
    indices = [np.flatnonzero((expected == frame).all((1, 2, 3))) for frame in drawn]
    assert all(len(found) for found in indices) and len({int(found[0]) for found in indices}) > 1


def test_a_batch_larger_than_the_memory_is_cut():
    model = vgan(ConditionalVGAN, num_remembered=3)
    step = batch()
    model.train_step(step)
    np.testing.assert_array_equal(model.first_frames.numpy(), step["video"].numpy()[:3, 0])


# ---------------------------------------------------------------- action classifier
def test_the_discriminator_becomes_a_classifier():
    discriminator = vgan().discriminator
    judge = values(discriminator.head.trainable_variables)
    body = discriminator.downs[0].kernel.numpy()
    classifier = ActionClassifier(discriminator, num_actions=2, dropout=0.2)
    classifier.build()
    classifier.compile(keras.optimizers.Adam(0.01))
    assert classifier(tf.zeros((3, NUM_FRAMES, SIZE, SIZE, 3))).shape == (3, 2)
    dataset = data.make_dataset(collection(), 6, NUM_FRAMES)
    before = classifier.evaluate(dataset, steps=1, verbose=0, return_dict=True)
    classifier.fit(dataset, steps_per_epoch=40, epochs=1, verbose=0, shuffle=False)
    after = classifier.evaluate(dataset, steps=1, verbose=0, return_dict=True)
    assert after["accuracy"] == 1.0 and after["classification_loss"] < 0.5 * before["classification_loss"]
    assert largest_move([discriminator.downs[0].kernel], [body]) > 0
    assert largest_move(discriminator.head.trainable_variables, judge) == 0


def test_dropout_leaves_out_whole_feature_maps():
    """What the last layer sees is, for each clip and map, nothing or all of it doubled; which, depends on the step."""
    classifier = ActionClassifier(vgan(width=16).discriminator, num_actions=2, dropout=0.5, seed=5)
    classifier.build()
    classifier.compile(keras.optimizers.SGD(0.0))
    video = tf.cast(batch()["video"], tf.float32) / 127.5 - 1
    maps = classifier.discriminator.features(video, training=True).numpy().reshape(4, 16, -1)  # 1 x 4 x 4, 32 maps
    assert maps.shape[-1] == classifier.discriminator.downs[-1].filters == 32
    seen, head = [], classifier.head.call
    classifier.head.call = lambda x: seen.append(x.numpy()) or head(x)
    for step in (0, 0, 1):
        classifier.train_step({**batch(), "step": tf.fill((4,), step)})
    kept = []
    for features in seen:
        features = features.reshape(maps.shape)
        kept.append(np.abs(features).max(axis=1) > 0)  # (clips, maps)
        np.testing.assert_allclose(features, 2.0 * maps * kept[-1][:, None], rtol=1e-5)
        assert 0.3 < kept[-1].mean() < 0.7
    assert (kept[0] == kept[1]).all() and (kept[0] != kept[2]).any() and (kept[0][0] != kept[0][1]).any()


def test_a_classifier_refuses_what_it_cannot_learn():
    discriminator = vgan().discriminator
    with pytest.raises(ValueError, match="at least two actions"):
        ActionClassifier(discriminator, num_actions=1)
    with pytest.raises(ValueError, match="dropout"):
        ActionClassifier(discriminator, num_actions=2, dropout=1.0)
    classifier = ActionClassifier(discriminator, num_actions=2)
    classifier.build()
    classifier.compile()
    with pytest.raises(ValueError, match="needs an `action`"):
        classifier.train_step({"video": batch()["video"], "step": tf.zeros((4,), tf.int64)})
    with pytest.raises(tf.errors.InvalidArgumentError, match="beyond num_actions"):
        classifier.train_step({**batch(), "action": tf.constant([0, 1, 2, 0])})


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, r"`size` must be 8, 16, 32, 64, 128.*Received 48"),
        ({"size": 4}, r"Received 4"),
        ({"size": 64, "num_frames": 24}, r"must be a multiple of 16. Received 24"),
        ({"size": 16, "num_frames": 2}, r"must be a multiple of 4. Received 2"),
        ({"num_frames": 0}, r"Received 0"),
    ],
)
@pytest.mark.parametrize("model_class", [VGAN, ConditionalVGAN])
def test_networks_that_do_not_exist_are_refused(model_class, changes, message):
    with pytest.raises(ValueError, match=message):
        model_class(**{**TINY, **changes})


@pytest.mark.parametrize("num_frames", first(1, [1, 2 * NUM_FRAMES]))
def test_clips_of_another_length_are_refused(num_frames):
    """Twice as many frames would pass the networks as twice as many clips."""
    video = np.zeros((4, num_frames, SIZE, SIZE, 3), np.uint8)
    classifier = ActionClassifier(vgan().discriminator, num_actions=2)
    classifier.build()
    classifier.compile()
    message = rf"clips of {NUM_FRAMES} frames.*Received \(4, {num_frames}, {SIZE}, {SIZE}, 3\)"
    for step in (vgan().train_step, classifier.train_step, classifier.test_step):
        with pytest.raises(ValueError, match=message):
            step({**batch(), "video": tf.constant(video)})


def test_other_bad_input_is_refused():
    model = vgan()
    assert model.generate(1, num_frames=NUM_FRAMES).shape[1] == NUM_FRAMES
    with pytest.raises(ValueError, match=r"4 frames it was built for. Received num_frames=8"):
        model.sample_latents(1, num_frames=8)
    with pytest.raises(ValueError, match="`adversarial_loss` must be one of"):
        model.compile(adversarial_loss="wasserstein")
    with pytest.raises(ValueError, match="`augmentation` takes names from"):
        model.compile(augmentation=("blur",))
    with pytest.raises(ValueError, match="`num_remembered` must be at least 1"):
        ConditionalVGAN(**TINY, num_remembered=0)
    with pytest.raises(NotImplementedError, match="no encoder"):
        model.encode(tf.zeros((1, NUM_FRAMES, SIZE, SIZE, 3)))
