"""The per-frame reconstruction losses by hand arithmetic."""

import numpy as np
import pytest

from tfvidgen.losses.laplacian import laplacian_pyramid_loss
from tfvidgen.losses.reconstruction import RECONSTRUCTION_KINDS, l1_loss, l2_loss, per_frame_loss


def frames_pair():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, 3, 16, 16, 3)).astype(np.float32) for _ in range(2)]


def test_l1_and_l2_by_hand():
    real = np.zeros((2, 2, 2, 3), np.float32)
    generated = real.copy()
    generated[1, 0, 0] = [1.0, -2.0, 3.0]
    np.testing.assert_allclose(l1_loss(generated, real), [0, 6 / 12])
    np.testing.assert_allclose(l2_loss(generated, real), [0, 14 / 12])


def test_every_kind_gives_one_float32_per_frame():
    generated, real = frames_pair()
    for kind in RECONSTRUCTION_KINDS:
        loss = np.asarray(per_frame_loss(kind, generated, real, num_levels=2))
        assert loss.shape == (2, 3) and loss.dtype == np.float32 and np.all(loss > 0)
    difference = generated - real
    expected = {
        "l1": np.abs(difference).mean((2, 3, 4)),
        "l2": np.square(difference).mean((2, 3, 4)),
        "laplacian": np.asarray(laplacian_pyramid_loss(generated, real, num_levels=2)),
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(per_frame_loss(kind, generated, real, num_levels=2), values, rtol=1e-5)


def test_wrong_arguments_are_refused():
    generated, real = frames_pair()
    with pytest.raises(ValueError, match="laplacian, l1, l2.*'l3'"):
        per_frame_loss("l3", generated, real)
    with pytest.raises(ValueError, match=r"\(\.\.\., H, W, C\).*\(16, 3\)"):
        l1_loss(generated[0, 0, 0], real[0, 0, 0])
