"""LPIPS against its formula on the maps of VGG16."""

import numpy as np
import pytest

from tfvidgen.features.lpips import LPIPS
from tfvidgen.features.vgg16 import VGG16Features

WIDTHS = (64, 128, 256, 512, 512)
LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "vgg.npz"
    rng = np.random.default_rng(0)
    np.savez(path, **{f"lin{i}.model.1.weight": rng.uniform(0, 1, (1, w, 1, 1)) for i, w in enumerate(WIDTHS)})
    return path


@pytest.fixture(scope="module")
def distance(linear):
    return LPIPS("random", linear, batch_size=2)


def test_formula(distance, linear):
    a, b = frames(3, 18, 16), frames(3, 18, 16, seed=1)
    trunk = VGG16Features(LAYERS, weights="random")
    weights = np.load(linear)
    expected = 0.0
    for index, name in enumerate(LAYERS):
        units = []
        for array in (a, b):
            maps = np.asarray(trunk(array / np.float32(127.5) - 1)[name], np.float64)
            units.append(maps / (np.sqrt((maps**2).sum(-1, keepdims=True)) + 1e-10))
        weighted = (units[0] - units[1]) ** 2 * weights[f"lin{index}.model.1.weight"].reshape(-1)
        expected = expected + weighted.sum(-1).mean((1, 2))
    result = distance(a, b)
    assert result.shape == (3,) and distance.name == "lpips_vgg_0.1"
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_zero_for_equal_frames_symmetric_and_of_any_leading_shape(distance):
    a, b = frames(2, 2, 16, 16), frames(2, 2, 16, 16, seed=1)
    np.testing.assert_array_equal(distance(a, a), np.zeros((2, 2)))
    forth = distance(a, b)
    np.testing.assert_allclose(forth, distance(b, a), rtol=1e-5)
    np.testing.assert_allclose(distance(a[1, 0], b[1, 0]), forth[1, 0], rtol=1e-5)


def test_without_linear_layers_it_has_another_name(distance):
    plain = LPIPS("random", "none")
    assert plain.name == "vgg16_unweighted" and plain.digest != distance.digest
    a, b = frames(1, 16, 16), frames(1, 16, 16, seed=1)
    assert plain(a, b) > distance(a, b)


def test_missing_weights_and_unreadable_frames_are_named(distance, tmp_path):
    with pytest.raises(ValueError, match="no `trunk`.*vgg.pth.*pypi.org/project/lpips.*BSD-2-Clause"):
        LPIPS()
    with pytest.raises(ValueError, match="no `linear`"):
        LPIPS("random")
    np.savez(tmp_path / "short.npz", **{"lin0.model.1.weight": np.ones((1, 64, 1, 1))})
    with pytest.raises(ValueError, match="lacks the 128 weights of lin1"):
        LPIPS("random", tmp_path / "short.npz")
    with pytest.raises(ValueError, match="uint8 frames.*float64"):
        distance(np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match=r"the same shape.*\(1, 16, 16, 3\), \(1, 16, 17, 3\)"):
        distance(frames(1, 16, 16), frames(1, 16, 17))
    with pytest.raises(ValueError, match="at least 16 x 16"):
        distance(frames(1, 15, 16), frames(1, 15, 16))
