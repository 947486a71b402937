"""C3D against plain NumPy, the two roads to its input, and its files."""

import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.features.c3d import C3D, C3DFeatures

LAYERS = ("conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
POOLS = {"conv1a": (1, 2, 2), "conv2a": (2, 2, 2), "conv3b": (2, 2, 2), "conv4b": (2, 2, 2), "conv5b": (2, 2, 2)}


@pytest.fixture(scope="module")
def arrays():
    """Weights of a narrow network by Chainer's names and in its layout."""
    rng = np.random.default_rng(0)
    widths = [3, 2, 4, 8, 8, 16, 16, 16, 16]
    found = {}
    for name, inputs, filters in zip(LAYERS, widths[:-1], widths[1:], strict=True):
        found[f"{name}/W"] = rng.normal(0, np.sqrt(2 / (27 * inputs)), (filters, inputs, 3, 3, 3))
        found[f"{name}/b"] = rng.normal(0, 0.1, filters)
    for name, inputs, units in (("fc6", 256, 12), ("fc7", 12, 12), ("fc8", 12, 5)):
        found[f"{name}/W"] = rng.normal(0, np.sqrt(2 / inputs), (units, inputs))
        found[f"{name}/b"] = rng.normal(0, 0.1, units)
    return {name: array.astype(np.float32) for name, array in found.items()}


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c3d")
    np.savez(folder / "c3d.npz", **arrays)
    np.savez(folder / "torch.npz", **{k.replace("/W", ".weight").replace("/b", ".bias"): v for k, v in arrays.items()})
    mean = np.random.default_rng(1).uniform(80, 120, (1, 3, 16, 128, 171)).astype(np.float32)
    np.savez(folder / "mean.npz", mean=mean)
    return folder


def numpy_c3d(x, arrays):
    """(C, T, H, W) -> (logits, fc7), with pools that cover the last incomplete window."""
    for name in LAYERS:
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1)])
        t, h, w = x.shape[1:]
        kernel = arrays[f"{name}/W"]
        total = arrays[f"{name}/b"][:, None, None, None]
        for i, j, k in np.ndindex(3, 3, 3):
            total = total + np.tensordot(kernel[:, :, i, j, k], padded[:, i : i + t, j : j + h, k : k + w], 1)
        x = np.maximum(total, 0)
        if name in POOLS:
            size = POOLS[name]
            fill = [(0, -n % s) for n, s in zip(x.shape[1:], size, strict=True)]
            x = np.pad(x, [(0, 0), *fill], constant_values=-np.inf)
            split = [n for length, s in zip(x.shape[1:], size, strict=True) for n in (length // s, s)]
            x = x.reshape(len(x), *split).max((2, 4, 6))
    x = x.reshape(-1)
    for name in ("fc6", "fc7"):
        x = np.maximum(arrays[f"{name}/W"] @ x + arrays[f"{name}/b"], 0)
    return arrays["fc8/W"] @ x + arrays["fc8/b"], x


def test_network_is_that_of_plain_numpy(arrays):
    network = C3D(num_classes=5, width=2, dense_width=12)
    network.load_arrays(arrays)
    clip = np.random.default_rng(2).normal(size=(16, 112, 112, 3)).astype(np.float32)
    logits, features = network(clip[None])
    expected_logits, expected_features = numpy_c3d(clip.transpose(3, 0, 1, 2), arrays)
    assert np.abs(expected_features).max() > 0.1
    np.testing.assert_allclose(features[0], expected_features, atol=1e-4)
    np.testing.assert_allclose(logits[0], expected_logits, atol=1e-4)


def seen_by_network(extractor, videos):
    """What the network is given."""
    given = []
    network = extractor._model
    extractor._model = lambda x: given.append(x) or network(x)
    extractor.outputs(tf.constant(videos))
    extractor._model = network
    return given[0].numpy()


def test_both_preprocessings(files):
    mean = np.load(files / "mean.npz")["mean"][0]  # BGR
    rng = np.random.default_rng(0)
    frames = {128: (8, 29), 112: (8, 8)}
    for preprocessing, size in (("tgan", 128), ("tgan2", 112)):
        extractor = C3DFeatures(files / "c3d.npz", files / "mean.npz", preprocessing)
        videos = rng.integers(0, 256, (1, 16, size, size, 3), np.uint8)  # no resize: only crop, order and mean
        crop = (size - 112) // 2
        bgr = videos[0, :, crop : crop + 112, crop : crop + 112, ::-1].astype(np.float32)
        top, left = frames[size]
        expected = bgr - mean[:, :, top : top + 112, left : left + 112].transpose(1, 2, 3, 0)
        np.testing.assert_allclose(seen_by_network(extractor, videos)[0], expected, atol=1e-4)
    # 112 of 56: corners are aligned with tgan2
    ramp = np.broadcast_to(np.arange(56, dtype=np.uint8)[:, None], (1, 16, 56, 56, 3))
    red = seen_by_network(extractor, ramp)[0, 0, 0, :, 2] + mean[2, 0, 8, 8:120]
    np.testing.assert_allclose(red, np.arange(112) * 55 / 111, atol=1e-4)


def test_files_of_either_naming(files):
    chainer = C3DFeatures(files / "c3d.npz", files / "mean.npz", "tgan")
    torch = C3DFeatures(files / "torch.npz", files / "mean.npz", "tgan")
    videos = np.random.default_rng(0).integers(0, 256, (1, 16, 20, 30, 3), np.uint8)
    features = chainer(videos)
    assert features.shape == (1, 12) and chainer.num_classes == 5 and chainer.name == "c3d_fc7_tgan"
    np.testing.assert_array_equal(torch(videos), features)
    np.testing.assert_allclose(chainer.probabilities(videos).sum(1), 1, rtol=1e-6)
    assert chainer.record()["crop"] == "112x112 at 8,8"


def test_missing_files_and_wrong_options_are_named(files, arrays):
    with pytest.raises(ValueError, match="no `weights`.*conv3d_deepnetA_ucf.npz.*mean2.npz.*pfnet-research/tgan"):
        C3DFeatures()
    with pytest.raises(ValueError, match="no `mean` was given"):
        C3DFeatures(files / "c3d.npz")
    with pytest.raises(ValueError, match="'.*c3d.npz' holds no array `mean` of 3 x 16 x 128 x 171"):
        C3DFeatures(files / "c3d.npz", files / "c3d.npz")
    with pytest.raises(ValueError, match="lacks conv1a or fc8"):
        C3DFeatures(files / "mean.npz", files / "mean.npz")
    with pytest.raises(ValueError, match="'file' lacks fc7/b"):
        C3D(5, 2, 12).load_arrays({name: array for name, array in arrays.items() if name != "fc7/b"}, "file")
    with pytest.raises(ValueError, match="`preprocessing`.*'stylegan-v'"):
        C3DFeatures(files / "c3d.npz", files / "mean.npz", "stylegan-v")
    with pytest.raises(ValueError, match="at most 16 frames"):
        C3DFeatures("random", width=2, dense_width=4)(np.zeros((1, 17, 8, 8, 3), np.uint8))


def test_random_weights_repeat():
    digests = [C3DFeatures("random", width=2, dense_width=4, seed=seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
