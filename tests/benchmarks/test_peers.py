import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.losses.laplacian import laplacian_pyramid_loss
from tfvidgen.losses.triplet import temporal_triplet_loss
from tfvidgen.models.navsynth import NAVSynth

torch = pytest.importorskip("torch", reason="the peer needs PyTorch: pip install 'tfvidgen[bench]'")
from benchmarks.peers import navsynth_torch as peer  # noqa: E402
from benchmarks.peers.common_torch import count_parameters  # noqa: E402

SIZES = {
    "num_frames": 8,
    "size": 32,
    "static_dim": 6,
    "transient_dim": 10,
    "motion_dim": 12,
    "rnn_units": 14,
    "width": 8,
}


def _pair(norm, **options):
    ours = NAVSynth(num_videos=3, norm=norm, **SIZES, **options)
    ours.build()
    theirs = peer.NAVSynth(num_videos=3, norm=norm, **SIZES)
    for weight in ours.generator.trainable_variables:
        weight.assign(4.0 * weight)  # so small a generator, as it starts, makes frames of almost nothing
    for layer in ours.generator.norms:
        if layer is not None:
            layer.norm.moving_mean.assign(np.linspace(-0.1, 0.1, layer.norm.moving_mean.shape[0]))
            layer.norm.moving_variance.assign(np.linspace(0.5, 2.0, layer.norm.moving_mean.shape[0]))
    peer.copy_weights(ours, theirs)
    return ours, theirs


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("training", [False, True])
def test_peer_gives_the_same_videos(norm, training):
    ours, theirs = _pair(norm)
    theirs.train(training)
    video = ours.decode(ours.lookup(tf.constant([2, 0])), training=training).numpy()
    other = theirs(torch.tensor([2, 0])).detach().numpy().transpose(0, 1, 3, 4, 2)
    assert np.abs(video).max() > 0.01
    np.testing.assert_allclose(other, video, atol=1e-4)


def test_channels_last_gives_the_same_videos():
    _, theirs = _pair("batch")
    theirs.eval()
    expected = theirs(torch.tensor([1])).detach()
    theirs.generator.set_layout("channels_last")
    torch.testing.assert_close(theirs(torch.tensor([1])), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_peer_has_as_many_parameters(norm):
    ours, theirs = _pair(norm)
    for part in ("rnn", "generator"):
        count = sum(int(np.prod(v.shape)) for v in getattr(ours, part).trainable_variables)
        assert count_parameters(getattr(theirs, part)) == count


def test_published_parameter_counts():
    full = peer.NAVSynth(num_videos=1)
    assert count_parameters(full.generator) == 4_852_736
    assert count_parameters(full.rnn) == 1_153_200


def test_losses_are_equal():
    random = np.random.default_rng(0)
    generated, real = random.uniform(-1, 1, (2, 5, 32, 32, 3)).astype(np.float32)
    ours = laplacian_pyramid_loss(generated, real).numpy()
    for loss in peer.LOSSES.values():
        theirs = loss(*(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (generated, real)))
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-5)
    codes = random.normal(size=(3, 8, 4)).astype(np.float32)
    ours = temporal_triplet_loss(tf.constant(codes)).numpy().mean()
    np.testing.assert_allclose(float(peer.triplet_loss(torch.from_numpy(codes))), ours, rtol=1e-5)


@pytest.mark.parametrize("update", ["joint", "alternating"])
def test_steps_have_the_same_gradients(update):
    # Plain gradient descent moves by gradients; the Adams of the two libraries differ in where they add epsilon.
    ours, theirs = _pair("batch", latent_rule="sgd")
    # The frame of the static loss is drawn, and each library has its own generator: so its weight is zero.
    ours.compile(
        keras.optimizers.SGD(1.0), keras.optimizers.SGD(1.0), latent_learning_rate=1.0, update=update, static_weight=0.0
    )
    trainer = peer.Trainer(theirs, update, static_weight=0.0)
    for part in ("generator", "rnn"):
        setattr(trainer, part, torch.optim.SGD(getattr(theirs, part).parameters(), 1.0))
    trainer.codes = torch.optim.SGD([theirs.static.weight, theirs.transient.weight], 1.0)
    video = np.random.default_rng(1).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    batch = {"video": tf.constant(video), "video_id": tf.constant([2, 0]), "step": tf.constant([0, 0], tf.int64)}
    before = {name: value.detach().clone() for name, value in theirs.named_parameters()}
    ours.train_step(batch)
    trainer.step(torch.from_numpy(video), torch.tensor([2, 0]))
    copied = peer.NAVSynth(num_videos=3, norm="batch", **SIZES)
    peer.copy_weights(ours, copied)
    for (name, value), (_, expected) in zip(theirs.named_parameters(), copied.named_parameters(), strict=True):
        move = (expected - before[name]).abs().max()
        assert move > 0, name
        assert (value - expected).abs().max() < 0.01 * move + 1e-6, name
