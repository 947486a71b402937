"""PSNR and SSIM against closed forms, plain loops and golden numbers."""

import numpy as np
import pytest
from scipy import ndimage

from tfvidgen.metrics import image


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain_ssim(a, b):
    """SSIM of two uint8 frames, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = a / 255.0, b / 255.0
    values = []
    for channel in range(3):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                x, y = (f[top : top + 11, left : left + 11, channel] for f in (a, b))
                mx, my = np.sum(window * x), np.sum(window * y)
                vx, vy = np.sum(window * (x - mx) ** 2), np.sum(window * (y - my) ** 2)
                cov = np.sum(window * (x - mx) * (y - my))
                values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(values)


def test_psnr_by_hand():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1] = 5
    values = image.psnr(a, b)
    assert values.dtype == np.float64 and values.shape == (2,)
    assert values[0] == np.inf
    assert values[1] == pytest.approx(20 * np.log10(255 / 5), rel=1e-12)


def test_psnr_does_not_wrap_around_and_keeps_leading_dimensions():
    a, b = random_frames(2, 3, 12, 13, 3), random_frames(2, 3, 12, 13, 3, seed=1)
    expected = 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2, axis=(2, 3, 4)))
    np.testing.assert_allclose(image.psnr(a, b), expected, rtol=1e-12)
    np.testing.assert_array_equal(image.psnr(a, b), image.psnr(b, a))


def test_ssim_equals_the_plain_loop():
    a, b = random_frames(14, 17, 3), random_frames(14, 17, 3, seed=1)
    b = ((a.astype(int) + b) // 2).astype(np.uint8)
    assert float(image.ssim(a, b)) == pytest.approx(plain_ssim(a, b), abs=1e-12)


def test_ssim_of_equal_frames_is_one():
    frames = random_frames(2, 3, 16, 16, 3)
    np.testing.assert_allclose(image.ssim(frames, frames), np.ones((2, 3)), rtol=1e-12)


def test_ssim_of_constant_frames_is_the_closed_form():
    for first, second in ((0, 255), (64, 191), (128, 128)):
        a, b = first / 255, second / 255
        frames = [np.full((12, 12, 3), value, np.uint8) for value in (first, second)]
        expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
        assert float(image.ssim(*frames)) == pytest.approx(expected, rel=1e-9)


def test_ssim_does_not_depend_on_the_chunk(monkeypatch):
    a, b = random_frames(5, 16, 16, 3), random_frames(5, 16, 16, 3, seed=1)
    whole = image.ssim(a, b)
    monkeypatch.setattr(image, "_PIXELS_PER_CHUNK", 2 * 16 * 16)
    np.testing.assert_allclose(image.ssim(a, b), whole, rtol=1e-12)


def test_ssim_with_first_is_ssim_with_the_first_frame(monkeypatch):
    video = random_frames(7, 30, 41, 3)
    expected = image.ssim(np.broadcast_to(video[:1], video[1:].shape), video[1:])
    np.testing.assert_allclose(image.ssim_with_first(video), expected, rtol=1e-12)
    monkeypatch.setattr(image, "_PIXELS_PER_CHUNK", 30 * 41 * 4)
    np.testing.assert_allclose(image.ssim_with_first(video), expected, rtol=1e-12)
    assert image.ssim_with_first(video[:1]).shape == (0,)


@pytest.mark.parametrize("size", [(11, 11), (12, 28), (29, 47), (64, 46)])
def test_window_mean_is_a_separable_convolution(size):
    maps = np.random.default_rng(0).random((2, 3, *size))
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()
    expected = ndimage.correlate1d(ndimage.correlate1d(maps, taps, axis=-1), taps, axis=-2)[..., 5:-5, 5:-5]
    np.testing.assert_allclose(image._window_mean(maps), expected, rtol=1e-12)


@pytest.mark.parametrize("function", [image.psnr, image.ssim])
def test_wrong_frames_are_refused(function):
    frames = random_frames(16, 16, 3)
    with pytest.raises(ValueError, match="uint8.*float32"):
        function(frames.astype(np.float32), frames)
    with pytest.raises(ValueError, match=r"the same shape.*\(16, 16, 3\).*\(15, 16, 3\)"):
        function(frames, frames[1:])
    with pytest.raises(ValueError, match="RGB last"):
        function(frames[..., :1], frames[..., :1])


def test_videos_that_do_not_suit_are_refused():
    with pytest.raises(ValueError, match="11 x 11.*10 x 16"):
        image.ssim(random_frames(10, 16, 3), random_frames(10, 16, 3))
    with pytest.raises(ValueError, match="11 x 11.*16 x 10"):
        image.ssim_with_first(random_frames(2, 16, 10, 3))
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\).*\(16, 16, 3\)"):
        image.ssim_with_first(random_frames(16, 16, 3))


def test_ssim_golden(shared):
    golden = np.load(shared / "golden" / "ssim_pairs.npz")
    a, b = (golden["images"][golden["pairs"][:, side]] for side in (0, 1))
    values = image.ssim(a, b)
    np.testing.assert_allclose(values, golden["ssim_gaussian11_sigma1p5"], atol=1e-9)
    np.testing.assert_allclose(image._ssim_per_channel(a, b), golden["ssim_per_channel"], atol=1e-9)
    assert np.abs(values - golden["ssim_uniform7_sample_cov_NOT_tf"]).max() > 1e-3


def test_ssim_with_first_golden(shared):
    golden = np.load(shared / "golden" / "ssim_pairs.npz")
    np.testing.assert_allclose(image.ssim_with_first(golden["clip"]), golden["clip_ssim_vs_first"], atol=1e-9)
