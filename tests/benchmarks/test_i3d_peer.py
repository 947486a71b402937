import keras
import numpy as np
import pytest

from benchmarks import i3d as benchmark
from tfvidgen.features.i3d import I3D, canonical_weights

torch = pytest.importorskip("torch", reason="the peer needs PyTorch: pip install 'tfvidgen[bench]'")
from benchmarks.peers import i3d_torch as peer  # noqa: E402


def test_peer_gives_the_same_logits_in_every_form():
    arrays = benchmark.random_arrays()
    ours, theirs = I3D(), peer.I3D().eval()
    ours.load_arrays(arrays)
    peer.load_arrays(theirs, arrays)
    clip = np.random.default_rng(0).uniform(-1, 1, (1, 9, 224, 224, 3)).astype(np.float32)
    expected = ours(clip)[0].numpy()
    assert np.abs(expected).max() > 0.5
    in_torch = torch.from_numpy(clip.transpose(0, 4, 1, 2, 3).copy())
    with torch.no_grad():
        np.testing.assert_allclose(theirs(in_torch).numpy(), expected, atol=1e-4)
        theirs.fuse()
        theirs.set_layout("channels_last")
        np.testing.assert_allclose(theirs(in_torch).numpy(), expected, atol=1e-4)


def test_names_of_the_benchmark_are_those_of_the_published_files():
    arrays = benchmark.random_arrays()
    canonical = canonical_weights(benchmark._tensorflow_names(arrays))
    assert sorted(canonical) == sorted(arrays)


def test_multiplications_on_paper():
    network, total = I3D(), []

    def counting(unit):
        def call(x):
            y = unit(x)
            total.append(int(np.prod(y.shape[1:-1])) * int(np.prod(unit.kernel.shape)))
            return y

        return call

    network._units = {name: counting(unit) for name, unit in network._units.items()}
    network.call(keras.Input((18, 224, 224, 3)))
    assert benchmark.multiplications(18) == sum(total) > 25e9
