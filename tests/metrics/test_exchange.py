"""Baselines and score of the exchange, against arithmetic by hand."""

import numpy as np
import pytest

from tfvidgen.metrics.exchange import mean_frame_baseline, mean_psnr, nearest_clip_baseline

SHAPE = (2, 4, 5, 3)


def clip(*values) -> np.ndarray:
    """A clip whose frame t has the value values[t] everywhere."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], SHAPE).copy()


def noise(seed, *shape) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_mean_frame_is_the_mean_over_all_frames_of_the_identity():
    trained = np.stack([clip(10, 20), clip(30, 41), clip(200, 220)])
    predicted = mean_frame_baseline(trained, np.array([0, 0, 1]), np.array([1, 0, 1]), SHAPE)
    assert predicted.dtype == np.uint8
    np.testing.assert_array_equal(predicted, [clip(210, 210), clip(25, 25), clip(210, 210)])  # 25.25 is rounded


def test_mean_frame_is_taken_pixel_by_pixel():
    trained = noise(0, 3, *SHAPE)
    predicted = mean_frame_baseline(trained, np.array([4, 4, 4]), np.array([4]), SHAPE)
    expected = np.round(trained.reshape(6, *SHAPE[1:]).mean(0)).astype(np.uint8)
    np.testing.assert_array_equal(predicted[0], np.stack([expected, expected]))


def test_mean_frame_rounds_instead_of_cutting():
    trained = np.stack([clip(10, 11), clip(11, 11)])
    assert mean_frame_baseline(trained, np.array([0, 0]), np.array([0]), SHAPE).max() == 11  # 10.75


def test_mean_frame_of_an_identity_that_was_never_trained():
    with pytest.raises(ValueError, match="Identity 2 has no trained clip"):
        mean_frame_baseline(noise(0, 2, *SHAPE), np.array([0, 1]), np.array([0, 2]), SHAPE)


def test_nearest_clip_is_the_one_of_smallest_mean_square():
    trained, truth = noise(1, 7, *SHAPE), noise(2, 5, *SHAPE)
    square = ((trained[None].astype(int) - truth[:, None]) ** 2).sum((2, 3, 4, 5))
    assert len(set(square.argmin(1))) > 2
    np.testing.assert_array_equal(nearest_clip_baseline(trained, truth), trained[square.argmin(1)])


def test_nearest_clip_finds_the_truth_beside_a_near_copy():
    truth = noise(3, 2, 16, 32, 32, 3) // 2 + 100  # bright, so that squares are large beside their difference
    near = truth.copy()
    near[:, 3, 7, 5, 1] += 1
    trained = np.concatenate([near, truth])
    np.testing.assert_array_equal(nearest_clip_baseline(trained, truth), truth)
    np.testing.assert_array_equal(nearest_clip_baseline(trained[::-1], truth), truth)


def test_mean_psnr_is_the_mean_over_frames():
    truth, made = clip(100, 100)[None], clip(101, 110)[None]
    by_hand = [20 * np.log10(255 / 1), 20 * np.log10(255 / 10)]
    assert mean_psnr(truth, made) == pytest.approx(np.mean(by_hand))


def test_equal_frames_count_as_a_hundred_decibels():
    assert mean_psnr(clip(1, 2), clip(1, 2)) == 100.0
    assert mean_psnr(clip(1, 2), clip(1, 12)) == pytest.approx((100 + 20 * np.log10(255 / 10)) / 2)


def test_mean_psnr_compares_like_with_like():
    with pytest.raises(ValueError, match="the same shape"):
        mean_psnr(clip(1, 2), clip(1, 2)[:1])
    with pytest.raises(ValueError, match="uint8"):
        mean_psnr(clip(1, 2).astype(np.float32), clip(1, 2))
