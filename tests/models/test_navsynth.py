"""What is special about NAVSynth: who gets which gradient, what a column changes, every switch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.marks import first
from tests.systems import NUM_FRAMES, SYSTEMS, collection
from tests.tolerances import assert_same_sums, of_video
from tfvidgen import data, visualize
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.losses.laplacian import PYRAMIDS, laplacian_pyramid_loss
from tfvidgen.metrics.image import psnr
from tfvidgen.models.navsynth import FrameGenerator, MotionRNN, NAVSynth

pytestmark = pytest.mark.usefixtures("quick_graphs")

# what `tests/systems.py` builds: three identities and two actions, a code of its own for every video
TINY = {**SYSTEMS[0].build().get_config(), "name": None, "dtype": None}
CELLS = {"static_by": "identity", "transient_by": "action"}


def navsynth(compile_with=None, **changes) -> NAVSynth:
    model = NAVSynth(**{**TINY, **changes})
    model.build()
    arguments = {"positive_radius": 1, "negative_radius": 2, "latent_learning_rate": 0.5, **(compile_with or {})}
    model.compile(keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05), **arguments)
    return model


def batch(size=6):
    return next(iter(data.make_dataset(collection(), size, NUM_FRAMES)))


def moved(model, step=None) -> dict[str, float]:
    """Largest change of each part in one training step."""
    parts = {
        "generator": model.generator.trainable_variables,
        "rnn": model.rnn.trainable_variables,
        "static": [model.static.rows],
        "transient": [model.transient.rows],
    }
    before = {name: [v.numpy() for v in variables] for name, variables in parts.items()}
    model.train_step(step or batch())
    return {
        name: max(float(np.abs(v.numpy() - b).max()) for v, b in zip(variables, before[name], strict=True))
        for name, variables in parts.items()
    }


def test_generator_parameter_count_is_published():
    """4,852,736 without batch norm and 1,153,200 for the RNN: what the official code's networks have."""
    generator = FrameGenerator(256, norm="none")
    generator.build()
    assert generator.count_params() == 4_852_736
    rnn = MotionRNN(500, 200)
    rnn.build((None, 16, 200))
    assert rnn.count_params() == 1_153_200
    normed = FrameGenerator(256, norm="batch")
    normed.build()
    assert normed.count_params() == 4_852_736 + 4 * (512 + 256 + 128 + 64)


def test_first_layer_is_the_transposed_convolution_of_a_single_pixel():
    generator = FrameGenerator(6, size=8, width=4, norm="none", seed=0)
    generator.build()
    channels = generator.channels[0]
    code = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    kernel = generator.project.kernel.numpy().reshape(6, 4, 4, channels).transpose(1, 2, 3, 0)  # (4, 4, out, in)
    reference = tf.nn.conv2d_transpose(code[:, None, None], kernel, (2, 4, 4, channels), 1, "VALID")
    ours = tf.reshape(generator.project(code), (2, 4, 4, channels))
    np.testing.assert_allclose(ours, reference, atol=1e-6)


def test_gradients_go_where_section_3_3_sends_them():
    model = navsynth()
    latents = model.lookup(np.arange(6, dtype=np.int32))
    real, frame = tf.zeros((6, NUM_FRAMES, 16, 16, 3)), tf.zeros((6,), tf.int32)
    generator, rnn = model.generator.trainable_variables, model.rnn.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(latents)
        _, losses = model._objective(latents, real, frame, with_triplet=True)
    for name, reaches_all in (("reconstruction_loss", True), ("static_loss", True), ("triplet_loss", False)):
        loss = losses[name]
        for variable in rnn:
            if "bias" not in variable.path or name != "triplet_loss":  # a shared bias cancels in differences of codes
                assert np.abs(tape.gradient(loss, variable.value).numpy()).max() > 0, (name, variable.path)
        assert np.abs(tape.gradient(loss, latents["transient"]).numpy()).max() > 0, name
        for variable in generator:
            assert (tape.gradient(loss, variable.value) is not None) == reaches_all, (name, variable.path)
        assert (tape.gradient(loss, latents["static"]) is not None) == reaches_all, name


def test_triplet_alone_moves_rnn_and_transient_codes_only():
    """In a step whose reconstruction has no gradient (perfect frames), only the triplet is left to move anything."""
    model = navsynth({"update": "joint", "static_weight": 0.0, "triplet_weight": 1.0, "loss": "l2"})
    model._frame_losses = lambda generated, real: tf.reduce_mean(
        tf.square(generated - tf.stop_gradient(generated)), [2, 3, 4]
    )
    change = moved(model)
    assert change["generator"] == 0 and change["static"] == 0
    assert change["rnn"] > 0 and change["transient"] > 0


def test_static_loss_is_the_loss_of_the_chosen_frame():
    model = navsynth()
    latents = model.lookup(np.arange(6, dtype=np.int32))
    real = tf.random.stateless_uniform((6, NUM_FRAMES, 16, 16, 3), [1, 2], -1, 1)
    frame = tf.constant([0, 1, 2, 3, 0, 1])
    _, losses = model._objective(latents, real, frame, with_triplet=False)
    per_frame = model._frame_losses(model.decode(latents, training=True), real).numpy()
    assert float(losses["static_loss"]) == pytest.approx(per_frame[np.arange(6), frame.numpy()].mean(), rel=1e-5)
    assert float(losses["reconstruction_loss"]) == pytest.approx(per_frame.mean(), rel=1e-5)


def test_a_step_may_decode_some_frames_of_each_clip():
    """They are drawn per clip and step; losses and gradients are those of whole clips, restricted to them."""
    model = navsynth()
    latents = model.lookup(np.arange(6, dtype=np.int32))
    real = tf.random.stateless_uniform((6, NUM_FRAMES, 16, 16, 3), [1, 2], -1, 1)
    positions = tf.constant([[3, 0], [1, 2], [0, 1], [2, 3], [1, 0], [3, 2]])
    frame = tf.constant([0, 1, 0, 1, 0, 1])
    some = tf.gather(real, positions, batch_dims=1)
    _, losses = model._objective(latents, some, frame, True, positions)
    _, whole = model._objective(latents, real, frame, True)
    clips = tf.constant([[clip] * 2 for clip in range(6)])
    motion = tf.gather_nd(model.motion_codes(latents), tf.stack([clips, positions], axis=-1))
    expected = model._frame_losses(model.decode_motion(latents, motion, training=True), some).numpy()
    assert float(losses["reconstruction_loss"]) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(losses["static_loss"]) == pytest.approx(expected[np.arange(6), frame.numpy()].mean(), rel=1e-5)
    assert float(losses["triplet_loss"]) == float(whole["triplet_loss"])

    seen = []
    model = navsynth({"decoded_frames": 2})
    decode_motion = model.decode_motion
    model.decode_motion = lambda latents, motion, training: (
        seen.append(motion) or decode_motion(latents, motion, training)
    )
    codes = model.motion_codes(model.lookup(np.arange(6, dtype=np.int32))).numpy()
    batch = {"video": np.zeros((6, NUM_FRAMES, 16, 16, 3), np.uint8), "video_id": np.arange(6, dtype=np.int32)}
    model.train_step({**batch, "step": np.full(6, 5)})
    drawn = [[int(np.abs(codes[i] - code).sum(-1).argmin()) for code in seen[0][i].numpy()] for i in range(6)]
    assert all(len(set(positions)) == 2 for positions in drawn) and len({tuple(sorted(p)) for p in drawn}) > 2


@pytest.mark.parametrize("wrong", [0, NUM_FRAMES + 1])
def test_decoded_frames_must_fit(wrong):
    with pytest.raises(ValueError, match=f"at least 1 and at most num_frames={NUM_FRAMES}.*Received {wrong}"):
        navsynth({"decoded_frames": wrong})


def test_a_motion_column_changes_its_frame_only():
    model = navsynth()
    latents = model.lookup(np.array([0], np.int32))
    motion = model.motion_codes(latents).numpy()
    frames = model.decode_motion(latents, motion).numpy()
    motion[0, 2] += 1.0
    changed = np.abs(model.decode_motion(latents, motion).numpy() - frames).max((0, 2, 3, 4))
    assert changed[2] > 1e-4
    np.testing.assert_array_equal(changed[[0, 1, 3]], 0)


def test_a_transient_column_changes_its_frame_and_later_ones():
    """The RNN is truly recurrent, and (T, D) is never read as (D, T)."""
    model = navsynth()
    latents = {name: np.array(value) for name, value in model.lookup(np.array([0], np.int32)).items()}
    frames = model.decode(latents).numpy()
    for column in range(NUM_FRAMES):
        changed_latents = {**latents, "transient": latents["transient"].copy()}
        changed_latents["transient"][0, column] += 0.5
        changed = np.abs(model.decode(changed_latents).numpy() - frames).max((0, 2, 3, 4))
        np.testing.assert_array_equal(changed[:column], 0)
        assert (changed[column:] > 1e-6).all()


def test_motion_codes_do_not_depend_on_batch():
    model = navsynth()
    latents = model.lookup(np.arange(6, dtype=np.int32))
    alone = model.motion_codes({"transient": latents["transient"][:1]}).numpy()
    assert_same_sums(model.motion_codes(latents)[:1], alone, terms=NUM_FRAMES * model.rnn.count_params())


def test_codes_stay_in_the_unit_ball_after_every_step():
    model = navsynth({"latent_learning_rate": 500.0})
    for step in data.make_dataset(collection(), 6, NUM_FRAMES).take(3):
        model.train_step(step)
        for rows in (model.static.rows.numpy(), model.transient.rows.numpy()):
            assert np.linalg.norm(rows, axis=-1).max() <= 1 + 1e-5


def test_rank_holds_after_every_step():
    model = navsynth(rank=2)
    for step in data.make_dataset(collection(), 6, NUM_FRAMES).take(2):
        model.train_step(step)
        singular = np.linalg.svd(model.transient.rows.numpy(), compute_uv=False)
        assert singular[:, 2:].max() < 1e-5 and singular[:, 1].min() > 1e-4


def test_stages_alternate_as_stated():
    """Stage 1 moves the generator as the joint update does; stage 2 sees the moved generator, so the rest differs."""
    alternating, joint = navsynth({"update": "alternating"}), navsynth({"update": "joint"})
    step = batch()
    for model in (alternating, joint):
        model.train_step(step)
    for a, b in zip(alternating.generator.trainable_variables, joint.generator.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)
    assert np.abs(alternating.transient.rows.numpy() - joint.transient.rows.numpy()).max() > 1e-7
    still = navsynth({"update": "alternating"})
    still.generator_optimizer.learning_rate = 0.0
    still.train_step(step)
    np.testing.assert_allclose(still.transient.rows.numpy(), joint.transient.rows.numpy(), atol=1e-5)


def test_frozen_codes_stay_and_networks_learn():
    change = moved(navsynth(latent_rule="none"))
    assert change["static"] == 0 and change["transient"] == 0
    assert change["generator"] > 0 and change["rnn"] > 0


def test_no_static_code():
    model = navsynth(use_static=False)
    assert set(model.latent_spec) == {"transient"}
    assert moved(model)["static"] == 0
    assert model.generate(2, seed=0).shape == (2, NUM_FRAMES, 16, 16, 3)


def test_no_triplet_and_no_static_loss():
    logs = navsynth({"triplet_weight": 0.0, "static_weight": 0.0}).train_step(batch())
    assert set(logs) == {"reconstruction_loss"}


@pytest.mark.parametrize(
    ("static_by", "transient_by", "rows"),
    [("video", "video", (6, 6)), ("identity", "action", (3, 2)), ("shared", "video", (1, 6))],
)
def test_forms_of_the_tables(static_by, transient_by, rows):
    model = navsynth(**{**CELLS, "static_by": static_by, "transient_by": transient_by})
    assert (model.static.num_rows, model.transient.num_rows) == rows
    latents = model.lookup(np.array([3], np.int32))
    row = {"video": 3, "identity": 1, "shared": 0}[static_by]
    np.testing.assert_array_equal(latents["static"][0], model.static.rows.numpy()[row])
    row = {"video": 3, "action": 1}[transient_by]
    np.testing.assert_array_equal(latents["transient"][0], model.transient.rows.numpy()[row])


def test_exchange_joins_an_identity_with_an_action():
    model = navsynth(**CELLS, conditioning="concat")
    latents = model.exchange(np.array([2], np.int32), np.array([0], np.int32))
    np.testing.assert_array_equal(latents["static"][0], model.static.rows.numpy()[2])
    np.testing.assert_array_equal(latents["transient"][0], model.transient.rows.numpy()[0])
    assert int(latents["label"][0]) == 0
    np.testing.assert_array_equal(model.decode(latents), model.decode(model.lookup(np.array([4], np.int32))))


@pytest.mark.parametrize("conditioning", first(1, ["concat", "norm"]))
def test_the_conditional_generator_sees_its_label(conditioning):
    model = navsynth(**CELLS, conditioning=conditioning)
    for step in data.make_dataset(collection(), 6, NUM_FRAMES).take(2):  # conditional gains start at one for all labels
        model.train_step(step)
    latents = model.lookup(np.array([0], np.int32))
    other = model.decode({**latents, "label": np.array([1], np.int32)}).numpy()
    assert np.abs(other - model.decode(latents).numpy()).max() > 1e-6


def test_interpolation_ends_at_the_last_frame():
    model = navsynth()
    latents = model.lookup(np.array([1, 4], np.int32))
    frames = model.decode(latents).numpy()
    for space in ("motion", "transient"):
        between = model.interpolate_frames(latents, first=1, last=2, num_steps=3, space=space).numpy()
        assert between.shape == (2, 3, 16, 16, 3)
    np.testing.assert_allclose(
        model.interpolate_frames(latents, first=1, last=3, num_steps=2, space="motion").numpy()[:, -1],
        frames[:, 3],
        rtol=0,
        atol=of_video(model),
    )
    with pytest.raises(ValueError, match="first=3, last=3"):
        model.interpolate_frames(latents, first=3, last=3)
    with pytest.raises(ValueError, match="space"):
        model.interpolate_frames(latents, first=0, last=1, space="pixel")


def test_interpolation_is_by_default_where_the_rank_holds():
    """A rank is one of the transient codes: what the RNN makes of them has any."""
    for rank, space in ((2, "transient"), (None, "motion")):
        model = navsynth(rank=rank)
        latents = model.lookup(np.array([1], np.int32))
        spaces = {
            name: model.interpolate_frames(latents, first=0, last=3, num_steps=3, space=name)
            for name in ("motion", "transient")
        }
        assert np.abs(spaces["motion"] - spaces["transient"]).max() > 1e-5
        default = model.interpolate_frames(latents, first=0, last=3, num_steps=3)
        np.testing.assert_array_equal(default, spaces[space])


def test_steps_mix_videos():
    """Every video once in an epoch; the official code stays with one for 300 steps."""
    ids = [int(b["video_id"][0]) for b in data.make_dataset(collection(), 1, NUM_FRAMES).take(12)]
    assert sorted(ids[:6]) == sorted(ids[6:]) == list(range(6))


@pytest.mark.slow
def test_steps_on_one_video_in_a_row_forget_the_others():
    """The official schedule, 300 steps on each video with new optimizers, against as many steps that mix them."""
    inner, num_frames, size = 300, 16, 32
    videos = data.load("actors", size=size, num_identities=3, num_actions=2)
    clips = np.stack([videos.video(i)[:num_frames] for i in range(len(videos))])
    turns = np.repeat(np.arange(len(clips)), inner)
    quality = {}
    for schedule in ("mixed", "in turn"):
        model = NAVSynth(num_videos=len(clips), num_frames=num_frames, size=size, width=32, norm="none", seed=3)
        model.build()
        model.compile(latent_learning_rate=200 * 16 / 256)  # the rates of the official code
        step = tf.function(model.train_step, autograph=False)
        for i, video in enumerate(turns if schedule == "in turn" else np.random.default_rng(0).permutation(turns)):
            if schedule == "in turn" and i % inner == 0:
                for optimizer in (model.optimizer, model.rnn_optimizer):
                    for variable in optimizer.variables:
                        if variable is not optimizer.learning_rate:
                            variable.assign(tf.zeros_like(variable))
            ids = tf.constant([video], tf.int32)
            step({"video": tf.gather(clips, ids), "video_id": ids, "step": tf.constant([i], tf.int64)})
        made = visualize.to_uint8(np.asarray(model.decode(model.lookup(np.arange(len(clips), dtype=np.int32)))))
        quality[schedule] = psnr(clips, made).mean(1)
    assert quality["mixed"].mean() > quality["in turn"].mean() + 1.5
    assert quality["in turn"][-2:].mean() > quality["in turn"][:4].mean() + 3


@pytest.mark.parametrize("loss", ["laplacian", "laplacian_l2"])
def test_the_pyramid_of_the_loss_is_chosen_by_name(loss):
    real = batch()["video"].numpy().astype(np.float32) / 127.5 - 1
    losses = {}
    for pyramid in PYRAMIDS:
        model = navsynth({"loss": loss, "pyramid": pyramid, "l2_weight": 10.0})
        losses[pyramid] = model._frame_losses(tf.zeros_like(real), real).numpy()
        expected = laplacian_pyramid_loss(np.zeros_like(real), real, pyramid=pyramid)
        if loss == "laplacian_l2":
            expected = expected + 10.0 * np.square(real).mean((2, 3, 4))
        np.testing.assert_allclose(losses[pyramid], expected, rtol=1e-5)
    assert navsynth().pyramid == "binomial"
    assert len({float(value.mean()) for value in losses.values()}) == 3


def test_sampling_joins_learned_rows_or_draws_from_the_start_gaussians():
    model = navsynth(**CELLS)
    latents = model.sample_latents(40, seed=2)
    static = model.static.rows.numpy()
    for code in np.asarray(latents["static"]):
        assert (np.abs(static - code).max(1) == 0).any()
    assert len(np.unique(np.asarray(latents["static"])[:, 0])) == 3
    assert model.sample_latents(2, num_frames=3)["transient"].shape == (2, 3, 5)
    assert model.sample_latents(2, num_frames=9, prior="gaussian")["transient"].shape == (2, 9, 5)
    with pytest.raises(ValueError, match="num_frames=9"):
        model.sample_latents(2, num_frames=9)
    with pytest.raises(ValueError, match="prior"):
        model.sample_latents(2, prior="uniform")


@pytest.mark.parametrize("loss", ["laplacian", "l1", "l2", "laplacian_l2"])
def test_losses_train(loss):
    model = navsynth({"loss": loss})
    assert np.isfinite(float(model.train_step(batch())["reconstruction_loss"]))


def test_perceptual_loss_trains():
    from tfvidgen.features.vgg16 import VGG16Features
    from tfvidgen.losses.perceptual import PerceptualLoss

    features = VGG16Features(layers=("block1_conv2",), weights="random")
    model = navsynth({"loss": "perceptual", "perceptual_loss": PerceptualLoss(features), "update": "joint"})
    frozen = [v.numpy() for v in features.weights]
    change = moved(model)
    assert change["generator"] > 0 and change["static"] > 0
    for before, variable in zip(frozen, features.weights, strict=True):
        np.testing.assert_array_equal(before, variable.numpy())


@pytest.mark.low_precision
@pytest.mark.parametrize("update", [pytest.param("alternating", marks=pytest.mark.long), "joint"])
def test_float16_trains_and_an_overflow_leaves_codes_and_batch_norm_as_they_were(update):
    model = navsynth({"update": update}, dtype="mixed_float16", latent_rule="adam")
    assert model.generator.ups[0].compute_dtype == "float16"
    latents = model.lookup(np.array([0], np.int32))
    assert latents["static"].dtype == "float32" and model.motion_codes(latents).dtype == "float32"
    assert model.decode(latents).dtype == "float32"
    step = tf.function(model.train_step)
    logs = step(batch())
    assert float(logs["skipped"]) == 0 and all(np.isfinite(float(value)) for value in logs.values())
    before = {weight.path: weight.numpy() for weight in model.weights}
    model.loss_scaler.factor.assign(2.0**40)
    logs = step(batch())
    assert float(logs["skipped"]) == 1 and np.isfinite(float(logs["reconstruction_loss"]))
    changed = [weight.path for weight in model.weights if (weight.numpy() != before[weight.path]).any()]
    assert {path.partition("/")[2] for path in changed} == {"loss_scaler/factor", "loss_scaler/good_steps"}
    assert int(model.generator_optimizer.iterations.numpy()) == int(model.rnn_optimizer.iterations.numpy()) == 1


def test_codes_in_host_memory_train_the_same_weights():
    models = [navsynth(host_memory=host_memory) for host_memory in (False, True)]
    for model in models:
        model.train_step(batch())
    assert models[1].static.rows.value.device.endswith("CPU:0") and models[1].get_config()["host_memory"]
    for a, b in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.mark.parametrize("loss", ["laplacian", "l2"])
def test_validation_losses_are_those_of_the_videos_codes(loss):
    model = navsynth({"loss": loss})
    videos = batch(4)
    real = tf.cast(videos["video"], tf.float32) / 127.5 - 1.0
    expected = model._frame_losses(model.decode(model.lookup(videos["video_id"])), real).numpy().mean(1)
    losses = model.validation_losses(videos)["reconstruction_loss"].numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert losses.shape == (4,) and np.ptp(losses) > 0


def test_validation_losses_of_a_held_out_cell_join_its_identity_and_action():
    """Its own number among the held-out videos says nothing: the codes are those of other cells."""
    model = navsynth(**CELLS)
    held_out = collection().subset([4])
    assert (held_out.identity[0], held_out.action[0]) == (2, 0)
    videos = next(iter(data.make_dataset(held_out, 1, NUM_FRAMES)))
    assert int(videos["video_id"][0]) == 0
    frames = model.decode(model.exchange(np.array([2], np.int32), np.array([0], np.int32)))
    real = tf.cast(videos["video"], tf.float32) / 127.5 - 1.0
    expected = model._frame_losses(frames, real).numpy().mean()
    assert float(model.validation_losses(videos)["reconstruction_loss"][0]) == pytest.approx(expected, rel=1e-6)
    without_labels = {name: videos[name] for name in ("video", "video_id", "step")}
    assert float(model.validation_losses(without_labels)["reconstruction_loss"][0]) != pytest.approx(expected, rel=1e-6)


def test_tables_are_the_only_latent_layers():
    tables = [layer for layer in navsynth().layers if isinstance(layer, LatentTable)]
    assert len(tables) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 48}, "8, 16, 32, 64.*48"),
        ({"static_by": "person"}, "static_by.*person"),
        ({"static_by": "identity", "identity_of_video": None}, "identity_of_video.*needed"),
        ({"transient_by": "action", "action_of_video": None}, "action_of_video.*needed"),
        ({"transient_by": "action", "action_of_video": [0, 1]}, "each of 6 videos.*2 values"),
        ({"norm": "layer"}, "norm.*layer"),
        ({"conditioning": "norm", "norm": "none", "action_of_video": [0] * 6}, "needs norm='batch'"),
        ({"rank": 9}, "rank=9"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        NAVSynth(**{**TINY, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": "both"}, "update.*both"),
        ({"loss": "l3"}, "loss.*l3"),
        ({"pyramid": "steerable"}, "pyramid.*'binomial', 'official', 'zero_padded'.*steerable"),
        ({"loss": "perceptual"}, "perceptual_loss"),
        ({"negative_radius": 5}, "4 frames.*lower negative_radius"),
    ],
)
def test_bad_compile_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        navsynth(changes)
