import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tolerances import assert_same_sums
from tfvidgen import editing
from tfvidgen.layers.dcgan import FrameGenerator, ImageDiscriminator, VideoDiscriminator
from tfvidgen.models.mocogan import MoCoGAN, MotionGRU


def count(layer) -> int:
    return sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)


# ---------------------------------------------------------------- published numbers
def test_parameter_counts_are_published():
    generator = FrameGenerator(66, size=64, width=64)
    generator.build()
    gru = MotionGRU(10)
    gru.build()
    assert count(generator) == 3_298_176  # content 50, six categories, motion 10
    assert count(gru) == 660


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "mocogan_narrow.npz")


def _put_norm(norm, golden, name):
    norm.gamma.assign(golden[f"{name}.weight"])
    norm.beta.assign(golden[f"{name}.bias"])
    norm.moving_mean.assign(golden[f"{name}.running_mean"])
    norm.moving_variance.assign(golden[f"{name}.running_var"])


def _check_statistics(norm, golden, name, count):
    np.testing.assert_allclose(norm.moving_mean, golden[f"{name}.running_mean"], atol=5e-5)
    before = 0.9 * golden[f"{name.replace('state_after_train', 'w')}.running_var"]
    # PyTorch keeps the unbiased variance
    variance = before + (norm.moving_variance - before) * count / (count - 1)
    np.testing.assert_allclose(variance, golden[f"{name}.running_var"], atol=5e-5)


def test_generator_gives_the_official_frames(golden):
    generator = FrameGenerator(20, size=64, width=4)
    generator.build()
    kernel = golden["g/w/main.0.weight"]  # (code, C, 4, 4)
    generator.project.kernel.assign(kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1))
    for layer, index in zip([*generator.ups, generator.to_rgb], (3, 6, 9, 12), strict=True):
        layer.kernel.assign(golden[f"g/w/main.{index}.weight"].transpose(2, 3, 1, 0))
    for norm, index in zip(generator.norms, (1, 4, 7, 10), strict=True):
        _put_norm(norm, golden, f"g/w/main.{index}")
    for training, name, atol in ((False, "g/out_eval", 1e-5), (True, "g/out_train", 5e-5)):
        frames = generator(golden["g/z"], training=training)
        np.testing.assert_allclose(frames, golden[name].transpose(0, 2, 3, 1), atol=atol)
    for i, (norm, index) in enumerate(zip(generator.norms, (1, 4, 7, 10), strict=True)):
        _check_statistics(norm, golden, f"g/state_after_train/main.{index}", 6 * (4 << i) ** 2)


def test_motion_gru_gives_the_official_codes(golden):
    gru = MotionGRU(5)
    gru.build()

    def gates(value):  # rows reset, update, new -> columns update, reset, new
        reset, update, new = np.split(value, 3)
        return np.concatenate([update, reset, new]).T

    cell = gru.gru.cell
    cell.kernel.assign(gates(golden["g/w/recurrent.weight_ih"]))
    cell.recurrent_kernel.assign(gates(golden["g/w/recurrent.weight_hh"]))
    cell.bias.assign(np.stack([gates(golden[f"g/w/recurrent.bias_{side}"]) for side in ("ih", "hh")]))
    codes = gru(golden["motion/h0"], golden["motion/eps_T_B"].transpose(1, 0, 2))
    np.testing.assert_allclose(tf.reshape(codes, (32, 5)), golden["motion/z_m_rows_video_major"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("image", lambda: ImageDiscriminator(64, 4)),
        ("patch_image", lambda: ImageDiscriminator(64, 4, "patch")),
        ("video", lambda: VideoDiscriminator(64, 4)),
        ("patch_video", lambda: VideoDiscriminator(64, 4, "patch")),
        ("categorical_video", lambda: VideoDiscriminator(64, 4, num_categories=3)),
    ],
)
def test_discriminators_give_the_official_logits(golden, name, build):
    discriminator = build()
    discriminator.build()
    clips = golden["disc/video_u8"].transpose(0, 2, 3, 4, 1).astype(np.float32) / 127.5 - 1.0
    x = clips if "video" in name else np.concatenate([clips[:, 3], clips[:, 11]])
    weights = sorted(
        (int(key.split(".")[1]), key) for key in golden if key.startswith(f"{name}/w/") and golden[key].ndim > 1
    )
    layers = [*discriminator.convolutions, discriminator.head]
    for layer, (_, key) in zip(layers, weights, strict=True):
        layer.kernel.assign(np.moveaxis(golden[key], (0, 1), (-1, -2)))
    norms = [norm for norm in discriminator.norms if norm is not None]
    indices = (5, 9, 13)[: len(norms)]
    for norm, index in zip(norms, indices, strict=True):
        _put_norm(norm, golden, f"{name}/w/main.{index}")
    for training, atol in ((False, 1e-5), (True, 5e-5)):
        logits = discriminator(x, training=training)
        expected = golden[f"{name}/out_{'train' if training else 'eval'}"]
        np.testing.assert_allclose(logits, np.moveaxis(expected, 1, -1), atol=atol)
    shape = x.shape
    for layer, norm, index in zip(discriminator.convolutions, discriminator.norms, (None, *indices), strict=True):
        shape = layer.compute_output_shape(shape)
        if norm is not None:
            _check_statistics(norm, golden, f"{name}/state_after_train/main.{index}", np.prod(shape[:-1]))


# ---------------------------------------------------------------- a tiny system
TINY = {"num_frames": 4, "size": 16, "content_dim": 5, "motion_dim": 3, "width": 4, "discriminator_width": 4}
TINY["temporal_taps"] = 2


def built(model_class=MoCoGAN, **changes):
    model = model_class(**{**TINY, **changes})
    model.build()
    return model


def sgd_compiled(model, rates=(1.0, 1.0, 1.0), **options):
    model.compile(*(keras.optimizers.SGD(rate) for rate in rates), **options)
    return model


def batch(num_videos=3, step=0, **labels):
    video = np.random.default_rng(5).integers(0, 256, (num_videos, 4, 16, 16, 3), np.uint8)
    return {
        "video": tf.constant(video),
        "step": tf.fill((num_videos,), tf.constant(step, tf.int64)),
        **{name: tf.constant(values) for name, values in labels.items()},
    }


def values(variables) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def moved(model, step) -> set[str]:
    """Names of the networks whose trainable weights a step changes."""
    before = {id(variable): variable.numpy() for variable in model.trainable_variables}
    step()
    networks = {"generator": model.generator, "motion_gru": model.motion_gru}
    networks |= {name: getattr(model, name) for name in ("image_discriminator", "video_discriminator")}
    return {
        name
        for name, network in networks.items()
        if any(np.abs(v.numpy() - before[id(v)]).max() > 0 for v in network.trainable_variables)
    }


@pytest.mark.parametrize(
    ("rates", "networks"),
    [
        ((0.1, 0.0, 0.0), {"generator", "motion_gru"}),
        ((0.0, 0.1, 0.0), {"image_discriminator"}),
        ((0.0, 0.0, 0.1), {"video_discriminator"}),
    ],
)
def test_each_optimizer_moves_its_own_networks(rates, networks):
    model = sgd_compiled(built(), rates)
    assert moved(model, lambda: model.train_step(batch())) == networks


class Recorded(MoCoGAN):
    """Keeps what the discriminators are shown and how often clips are made."""

    def build(self, input_shape=None):
        super().build(input_shape)
        self.shown, self.num_decoded = [], 0

    def decode(self, latents, training=False):
        self.num_decoded += 1
        return super().decode(latents, training)

    def _judge(self, discriminator, x, noise_key):
        self.shown.append(x.numpy())
        return super()._judge(discriminator, x, noise_key)


def test_fakes_are_made_twice_a_step():
    model = sgd_compiled(built(Recorded))
    model.train_step(batch())
    assert model.num_decoded == 2
    real_frames, first_frames, real_clips, first_clips, second_frames, second_clips = model.shown
    np.testing.assert_allclose(real_clips, batch()["video"].numpy() / 127.5 - 1.0, atol=1e-6)
    assert np.abs(first_clips - second_clips).mean() > 0.01  # fresh samples for the generator's own step
    for frames, clips in ((first_frames, first_clips), (second_frames, second_clips)):
        for frame, clip in zip(frames, clips, strict=True):
            assert np.abs(clip - frame).max(axis=(1, 2, 3)).min() == 0.0


def test_image_discriminator_sees_frames_of_the_batch():
    model = sgd_compiled(built(Recorded), frames_per_clip=30)
    model.train_step(batch())
    frames, clips = model.shown[0].reshape(3, 30, 16, 16, 3), model.shown[2]
    for clip, seen in zip(clips, frames, strict=True):
        which = np.abs(seen[:, None] - clip[None]).max(axis=(2, 3, 4)).argmin(1)
        np.testing.assert_array_equal(seen, clip[which])
        assert set(which) == {0, 1, 2, 3}  # the last frame too


def test_independent_frames_are_of_other_videos():
    """Real ones from `image` of the batch, generated ones each of a video of its own; as many as from clips."""
    model = sgd_compiled(built(Recorded), frames_per_clip=2, independent_frames=True)
    image = np.random.default_rng(6).integers(0, 256, (3, 2, 16, 16, 3), np.uint8)
    model.train_step({**batch(), "image": tf.constant(image)})
    real_frames, first_frames, _, first_clips, second_frames, second_clips = model.shown
    np.testing.assert_allclose(real_frames, image.reshape(6, 16, 16, 3) / 127.5 - 1.0, atol=1e-6)
    for frames, clips in ((first_frames, first_clips), (second_frames, second_clips)):
        assert frames.shape == (6, 16, 16, 3)
        for frame in frames:  # of no clip, and of no other frame's video
            assert np.abs(clips - frame).max(axis=(2, 3, 4)).min() > 1e-3
            assert np.sort(np.abs(frames - frame).max(axis=(1, 2, 3)))[1] > 1e-3
    for wrong in ({}, {"image": tf.constant(image[:, :1])}):
        with pytest.raises(ValueError, match=r"independent_frames=True needs `image`.*\(B, 2, 16, 16, 3\)"):
            model.train_step({**batch(), **wrong})


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.long
def test_independent_frames_train_generator_and_image_discriminator(accumulate):
    options = {"independent_frames": True, "frames_per_clip": 2, "accumulate": accumulate}
    images = {"image": tf.constant(np.random.default_rng(6).integers(0, 256, (3, 2, 16, 16, 3), np.uint8))}
    for rates, networks in (((0.1, 0.0, 0.0), {"generator", "motion_gru"}), ((0.0, 0.1, 0.0), {"image_discriminator"})):
        model = sgd_compiled(built(), rates, **options)
        assert moved(model, lambda model=model: model.train_step({**batch(), **images})) == networks


def test_draws_are_a_function_of_seed_and_step():
    models = [sgd_compiled(built(Recorded, seed=seed)) for seed in (1, 1, 2)]
    for model, step in zip(models, (7, 7, 7), strict=True):
        model.train_step(batch(step=step))
        model.train_step(batch(step=step + 1))
    np.testing.assert_array_equal(models[0].shown[1], models[1].shown[1])
    assert np.abs(models[0].shown[1] - models[0].shown[7]).max() > 0
    assert np.abs(models[0].shown[1] - models[2].shown[1]).max() > 0


# ---------------------------------------------------------------- latents
def test_videos_of_any_length_begin_alike():
    model = built()
    short, long = (model.sample_latents(2, num_frames=n, seed=4) for n in (3, 20))
    assert model.decode(long).shape == (2, 20, 16, 16, 3)
    np.testing.assert_array_equal(short["content"], long["content"])
    assert_same_sums(short["motion"], long["motion"][:, :3], terms=3 * 3 * (3 + 3))  # steps, gates, inputs and state
    assert np.abs(np.diff(long["motion"], axis=1)).min(axis=-1).max() > 0  # and go on moving


def test_motion_depends_on_the_past_only():
    gru = MotionGRU(3)
    gru.build()
    noise = np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)
    other = noise.copy()
    other[:, 3] += 1.0
    same = np.abs(gru(tf.zeros((1, 3)), noise) - gru(tf.zeros((1, 3)), other))[0].max(-1)
    assert same[:3].max() == 0.0 and same[3:].min() > 0.0


def test_editing_exchanges_motion_and_blends_content():
    model = built(num_categories=3)
    one, other = model.sample_latents(1, seed=1), model.sample_latents(1, seed=2)
    mixed = editing.exchange(one, other, ["motion"])
    codes = model.frame_codes(mixed)
    np.testing.assert_array_equal(codes[..., :5], model.frame_codes(one)[..., :5])
    np.testing.assert_array_equal(codes[..., 8:], other["motion"])
    line = editing.interpolate(one, other, 3)
    np.testing.assert_allclose(line["content"][1], (one["content"][0] + other["content"][0]) / 2, atol=1e-6)
    assert model.decode(line).shape == (3, 4, 16, 16, 3)


def test_category_changes_the_video_and_stands_between_content_and_motion():
    model = built(num_categories=3)
    latents = model.sample_latents(60, seed=1)
    assert set(latents["label"].numpy()) == {0, 1, 2}
    one_hot = model.frame_codes(latents)[..., 5:8].numpy()
    np.testing.assert_array_equal(one_hot, np.repeat(np.eye(3)[latents["label"]][:, None], 4, 1))
    other = {**latents, "label": (latents["label"] + 1) % 3}
    assert np.abs(model.decode(latents) - model.decode(other)).max(axis=(1, 2, 3, 4)).min() > 0


# ---------------------------------------------------------------- categories
def test_category_loss_trains_discriminator_and_generator():
    labels = {"action": [0, 2, 1]}
    with_loss, without = (sgd_compiled(built(num_categories=3), category_weight=weight) for weight in (1.0, 0.0))
    logs = with_loss.train_step(batch(**labels))
    without.train_step(batch(**labels))
    for name in ("real_category_loss", "generated_category_loss"):
        assert 0.5 < float(logs[name]) < 2.0  # of three categories, log 3 = 1.1 for a guess
    for network in ("generator", "video_discriminator"):
        pairs = zip(*(values(getattr(m, network).trainable_variables) for m in (with_loss, without)), strict=True)
        assert max(np.abs(a - b).max() for a, b in pairs) > 0
    pairs = zip(*(values(m.image_discriminator.trainable_variables) for m in (with_loss, without)), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) == 0


def test_bad_categories_are_refused():
    model = sgd_compiled(built(num_categories=3))
    with pytest.raises(ValueError, match="num_categories=3 needs `action`"):
        model.train_step(batch())
    for wrong in ([0, 1, 3], [0, -1, 2]):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"`action` must lie in 0..2"):
            model.train_step(batch(action=wrong))
    latents = model.sample_latents(1)
    del latents["label"]
    with pytest.raises(ValueError, match="Missing: label"):
        model.decode(latents)
    with pytest.raises(ValueError, match="at least 2. Received 1"):
        MoCoGAN(num_categories=1)


# ---------------------------------------------------------------- bad sizes and data
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 48}, "`size` must be 64, as published.*Received 48"),
        ({"size": 4}, "Received 4"),
        ({"num_frames": 15}, "needs 16 frames at 64x64 pixels. Received clips of num_frames=15"),
        ({"num_frames": 12, "video_head": "patch"}, "needs 13 frames"),
        ({"image_head": "patched"}, "'plain', 'patch'.*'patched'"),
        ({"size": 8, "image_head": "patch"}, "at least 16 pixels"),
        ({"temporal_taps": 0}, "at least 1. Received 0"),
    ],
)
def test_sizes_that_the_networks_cannot_make_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        MoCoGAN(**config)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_field_of_the_video_discriminator_is_the_shortest_clip_it_judges(size):
    discriminator = VideoDiscriminator(size, 2)
    discriminator.build()
    assert discriminator(tf.zeros((1, discriminator.field, size, size, 3))).shape == (1, 1, 1, 1, 1)
    longer = discriminator(tf.zeros((1, discriminator.field + 2, size, size, 3)))
    assert longer.shape == (1, 3, 1, 1, 1)


def test_images_where_clips_are_needed_are_refused():
    model = sgd_compiled(built())
    images = {**batch(), "video": batch()["video"][:, :1]}
    with pytest.raises(ValueError, match=r"clips of 4 frames.*Received \(3, 1, 16, 16, 3\)"):
        model.train_step(images)


def test_bad_options_are_refused():
    model = built()
    with pytest.raises(ValueError, match="`adversarial_loss`.*'lsgan'"):
        model.compile(adversarial_loss="lsgan")
    with pytest.raises(ValueError, match="`frames_per_clip` must be at least 1. Received 0"):
        model.compile(frames_per_clip=0)
    with pytest.raises(ValueError, match="'blur'"):
        model.compile(augmentation=["blur"])


def test_a_discriminator_that_became_nan_shows_in_its_own_loss():
    model = sgd_compiled(built())
    model.video_discriminator.head.kernel.assign(np.nan * model.video_discriminator.head.kernel)
    logs = {name: float(value) for name, value in model.train_step(batch()).items()}
    assert np.isnan(logs["video_discriminator_loss"]) and np.isfinite(logs["image_discriminator_loss"])


# ---------------------------------------------------------------- stability tools
def discriminators_after(**options) -> np.ndarray:
    model = sgd_compiled(built(), (0.0, 1.0, 1.0), **options)
    model.train_step(batch())
    networks = (model.image_discriminator, model.video_discriminator)
    return np.concatenate([v.numpy().ravel() for network in networks for v in network.trainable_variables])


@pytest.fixture(scope="module")
def plain_discriminators() -> np.ndarray:
    return discriminators_after()


def test_stability_tools_are_off_by_default(plain_discriminators):
    off = {"l2_weight": 0.0, "r1_weight": 0.0, "augmentation": (), "gradient_clip_norm": 0.0}
    np.testing.assert_array_equal(discriminators_after(**off), plain_discriminators)


def test_l2_weight_decays_weights_as_pytorch_does(plain_discriminators):
    model = built()
    networks = (model.image_discriminator, model.video_discriminator)
    start = np.concatenate([v.numpy().ravel() for network in networks for v in network.trainable_variables])
    decayed = discriminators_after(l2_weight=0.1)
    np.testing.assert_allclose(plain_discriminators - decayed, 0.1 * start, atol=1e-5)


@pytest.mark.parametrize("option", [{"r1_weight": 10.0}, {"augmentation": ("translation",)}])
def test_r1_and_augmentation_change_the_update(plain_discriminators, option):
    changed = discriminators_after(**option)
    assert np.isfinite(changed).all()
    assert np.abs(changed - plain_discriminators).max() > 1e-4


def test_gradients_are_clipped_per_network():
    model = sgd_compiled(built(), gradient_clip_norm=1e-3)
    networks = {"image": [model.image_discriminator], "video": [model.video_discriminator]}
    networks["generator"] = [model.generator, model.motion_gru]
    before = {name: values(v for n in part for v in n.trainable_variables) for name, part in networks.items()}
    model.train_step(batch())
    for name, part in networks.items():
        after = values(v for n in part for v in n.trainable_variables)
        length = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(after, before[name], strict=True)))
        assert length == pytest.approx(1e-3, rel=1e-2)


def test_noise_layers_change_the_logits_where_they_stand():
    frames = batch()["video"][:, 0].numpy() / 127.5 - 1.0
    key = tf.constant([1, 2], tf.int64)
    for head in ("plain", "patch"):
        discriminator = ImageDiscriminator(16, 4, head, noise_stddev=0.3, seed=1)
        discriminator.build()
        quiet, noisy, again = (discriminator(frames, k).numpy() for k in (None, key, key))
        assert np.abs(noisy - quiet).max() > 1e-3
        np.testing.assert_array_equal(noisy, again)


def test_spectral_norm_bounds_every_kernel():
    model = sgd_compiled(built(spectral_norm=True))
    for _ in range(30):
        model.video_discriminator(tf.zeros((1, 4, 16, 16, 3)), training=True)
    for layer in (*model.video_discriminator.convolutions, model.video_discriminator.head):
        kernel = layer.norm(layer.kernel).numpy()
        assert np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0] == pytest.approx(1.0, abs=0.05)
