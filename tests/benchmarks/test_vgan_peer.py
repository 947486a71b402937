import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.replicas import step_key
from tfvidgen.models.vgan import VGAN

torch = pytest.importorskip("torch", reason="the peer needs PyTorch: pip install 'tfvidgen[bench]'")
from benchmarks.peers import vgan_torch as peer  # noqa: E402
from benchmarks.peers.common_torch import count_parameters  # noqa: E402

SIZES = {"num_frames": 16, "size": 32, "width": 8, "latent_dim": 10}


def _pair():
    ours = VGAN(**SIZES)
    ours.build()
    random = np.random.default_rng(0)
    for variable in ours.weights:
        if "kernel" in variable.path:
            variable.assign(10.0 * variable)  # as they start, networks so small say next to nothing
        elif variable.path.endswith("bias"):
            variable.assign(random.normal(0, 0.1, variable.shape))
        elif variable.path.endswith("moving_mean"):
            variable.assign(random.normal(0, 0.1, variable.shape))
        elif variable.path.endswith("moving_variance"):
            variable.assign(random.uniform(0.5, 2.0, variable.shape))
    theirs = peer.VGAN(**SIZES)
    peer.copy_weights(ours, theirs)
    return ours, theirs


def _channels_last(x) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 4, 1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_peer_gives_the_same_videos_and_logits(training, layout):
    ours, theirs = _pair()
    theirs.train(training)
    theirs.set_layout(layout)
    code = np.random.default_rng(1).normal(size=(3, 10)).astype(np.float32)
    video = ours.decode({"content": code}, training=training).numpy()
    other, mask = theirs.compose(torch.from_numpy(code))
    assert video.std() > 0.03 and float(mask.detach().std()) > 0.001
    np.testing.assert_allclose(_channels_last(other), video, atol=1e-4)
    logits = ours.discriminator(video, training=training).numpy()
    assert logits.std() > 0.01
    np.testing.assert_allclose(theirs.discriminator(other).detach().numpy(), logits, atol=1e-3)


def test_peer_has_as_many_parameters():
    ours, theirs = _pair()
    for part in ("generator", "discriminator"):
        count = sum(int(np.prod(v.shape)) for v in getattr(ours, part).trainable_variables)
        assert count_parameters(getattr(theirs, part)) == count


def test_published_parameter_count():
    """As in our own: the official generator has biases before its batch norms, too."""
    assert count_parameters(peer.TwoStreamGenerator()) + 2 * (512 + 256 + 128 + 64) == 16_245_383


def test_steps_move_alike():
    # Plain gradient descent moves by gradients; the Adams of the two libraries differ in where they add epsilon.
    ours, theirs = _pair()
    ours.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1))
    trainer = peer.Trainer(theirs)
    for part in ("generator", "discriminator"):
        setattr(trainer, part, torch.optim.SGD(getattr(theirs, part).parameters(), 0.1))
    video = np.random.default_rng(1).integers(0, 256, (3, 16, 32, 32, 3), np.uint8)
    key = tf.unstack(tf.random.split(step_key(ours.seed, 0), 4))[0]
    code = ours._latents_of_step(tf.zeros((3, 1)), key)["content"].numpy()
    before = {name: value.detach().clone() for name, value in theirs.named_parameters()}
    ours.train_step({"video": tf.constant(video), "step": tf.zeros((3,), tf.int64)})
    trainer.step(torch.from_numpy(video), torch.from_numpy(code))
    copied = peer.VGAN(**SIZES)
    peer.copy_weights(ours, copied)
    for (name, value), (_, expected) in zip(theirs.named_parameters(), copied.named_parameters(), strict=True):
        move = (expected - before[name]).abs().max()
        assert move > 0, name
        assert (value - expected).abs().max() < 0.02 * move + 1e-6, name
