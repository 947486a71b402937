import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.draws import replica_integers, replica_normal, split_key
from tfvidgen.layers.replicas import step_key
from tfvidgen.models.mocogan import MoCoGAN

torch = pytest.importorskip("torch", reason="the peer needs PyTorch: pip install 'tfvidgen[bench]'")
from benchmarks import mocogan as benchmark  # noqa: E402
from benchmarks.peers import mocogan_torch as peer  # noqa: E402
from benchmarks.peers.common_torch import count_parameters  # noqa: E402

SIZES = {
    "num_frames": 14,
    "size": 32,
    "content_dim": 6,
    "motion_dim": 4,
    "width": 8,
    "discriminator_width": 8,
}


def _pair():
    ours = MoCoGAN(**SIZES)
    ours.build()
    norms = [*ours.generator.norms, *ours.image_discriminator.norms[1:], *ours.video_discriminator.norms[1:]]
    for norm in norms:
        norm.moving_mean.assign(np.linspace(-0.1, 0.1, norm.moving_mean.shape[0]))
        norm.moving_variance.assign(np.linspace(0.5, 2.0, norm.moving_mean.shape[0]))
        norm.gamma.assign(np.linspace(0.5, 1.5, norm.gamma.shape[0]))
        norm.beta.assign(np.linspace(-0.2, 0.2, norm.beta.shape[0]))
    theirs = peer.MoCoGAN(**SIZES)
    peer.copy_weights(ours, theirs)
    return ours, theirs


def _draw(key):
    """Content, h_0 and noise of two videos, as a training step draws them, for both sides."""
    content, initial, noise, _ = split_key(key, 4)
    shapes = ((2, 6), (2, 4), (2, 14, 4))
    return [replica_normal(k, shape).numpy() for k, shape in zip((content, initial, noise), shapes, strict=True)]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("training", [False, True])
def test_peer_makes_and_judges_the_same_videos(training, layout):
    ours, theirs = _pair()
    theirs.train(training)
    theirs.set_layout(layout)
    content, initial, noise = _draw(tf.constant([1, 2], tf.int64))
    latents = {"content": content, "motion": ours.motion_gru(initial, noise)}
    video = ours.decode(latents, training=training)
    other = theirs(*(torch.from_numpy(x) for x in (content, initial, noise))).detach()
    np.testing.assert_allclose(other.numpy().reshape(2, 14, 3, 32, 32).transpose(0, 1, 3, 4, 2), video, atol=1e-4)
    frames = ours.image_discriminator(video[:, 3], training=training)
    clips = ours.video_discriminator(video, training=training)
    other = other.unflatten(0, (2, 14))
    for logits, expected in (
        (theirs.image_discriminator(other[:, 3]), frames),
        (theirs.video_discriminator(other.transpose(1, 2)), clips),
    ):
        np.testing.assert_allclose(logits.detach().numpy(), np.ravel(expected), atol=1e-4)


def test_steps_have_the_same_gradients():
    # Plain gradient descent moves by gradients; the Adams of the two libraries differ in where they add epsilon.
    ours, theirs = _pair()
    ours.compile(*(keras.optimizers.SGD(rate) for rate in (1.0, 0.1, 0.1)))
    trainer = peer.Trainer(theirs)
    trainer.generator = torch.optim.SGD(trainer.generator_parameters, 1.0)
    trainer.image_discriminator = torch.optim.SGD(theirs.image_discriminator.parameters(), 0.1)
    trainer.video_discriminator = torch.optim.SGD(theirs.video_discriminator.parameters(), 0.1)
    video = np.random.default_rng(1).integers(0, 256, (2, 14, 32, 32, 3), np.uint8)
    before = {name: value.detach().clone() for name, value in theirs.named_parameters()}
    logs = ours.train_step({"video": tf.constant(video), "step": tf.constant([5, 5], tf.int64)})
    keys = split_key(step_key(0, 5), 12)  # in the order in which the step takes them
    draws = [[torch.from_numpy(x) for x in _draw(keys[i])] for i in (0, 5)]
    positions = np.stack([replica_integers(keys[i], (2, 1), 14)[:, 0] for i in (1, 2, 6)])
    loss = trainer.step(torch.from_numpy(video), draws, torch.from_numpy(positions).long())
    assert float(loss) == pytest.approx(float(logs["generator_loss"]), rel=1e-4)
    copied = peer.MoCoGAN(**SIZES)
    peer.copy_weights(ours, copied)
    for (name, value), (_, expected) in zip(theirs.named_parameters(), copied.named_parameters(), strict=True):
        move = (expected - before[name]).abs().max()
        assert move > 0, name
        assert (value - expected).abs().max() < 0.01 * move + 1e-6, name


def test_peer_has_as_many_parameters_at_full_width():
    ours, theirs = MoCoGAN(), peer.MoCoGAN()
    ours.build()
    for name in ("generator", "motion_gru", "image_discriminator", "video_discriminator"):
        count = sum(int(np.prod(v.shape)) for v in getattr(ours, name).trainable_variables)
        assert count_parameters(getattr(theirs, name)) == count
    assert count_parameters(theirs.generator) == 3_298_176 - 6 * 512 * 16


def test_operations_on_paper():
    # a plain transposed convolution of 60 codes and four doublings; D_V's layers of Table on a clip of 16 frames
    assert benchmark.generator_flops() == 2 * (
        60 * 16 * 512 + 16 * (16 * 512 * 256 + 64 * 256 * 128 + 256 * 128 * 64 + 1024 * 64 * 3)
    )
    forward, first = benchmark.discriminator_flops(clips=True)
    assert first == 2 * 13 * 32 * 32 * 64 * 3 * 64
    others = 10 * 16 * 16 * 64 * 128 + 7 * 8 * 8 * 128 * 256 + 4 * 4 * 4 * 256 * 512
    assert forward == first + 2 * 64 * (others + 512)
