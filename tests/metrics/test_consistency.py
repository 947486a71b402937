"""Motion and frame consistency of NAVSynth against closed forms and golden numbers."""

import math

import numpy as np
import pytest

from tfvidgen.metrics import image
from tfvidgen.metrics.consistency import (
    FrameDifferences,
    frame_consistency,
    frame_consistency_score,
    motion_consistency,
)

VELOCITY = np.array([0.1, -0.2, 0.3])


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def features(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def linear(factor, num_frames=5):
    """One video whose frame t has the features factor * t * VELOCITY."""
    return factor * np.arange(num_frames)[None, :, None] * VELOCITY


def gather(*batches):
    differences = FrameDifferences()
    for batch in batches:
        differences.update(batch)
    return differences


def test_linear_motion():
    np.testing.assert_allclose(gather(linear(1)).signed, VELOCITY, rtol=1e-12)
    np.testing.assert_allclose(gather(linear(1)).absolute, np.abs(VELOCITY), rtol=1e-12)
    score = motion_consistency(linear(1), linear(1.5))
    distance = 0.25 * VELOCITY @ VELOCITY  # (a - 1)^2 |c|^2
    assert score.signed.squared_distance == pytest.approx(distance, rel=1e-12)
    assert score.signed.mcs == pytest.approx(math.log10(distance))
    assert score.signed.mcs1 == pytest.approx(math.log10(1 + distance))


def test_time_reversed_moves_only_the_signed_score():
    score = motion_consistency(linear(1), linear(1)[:, ::-1])
    assert score.signed.squared_distance == pytest.approx(4 * VELOCITY @ VELOCITY, rel=1e-12)
    assert score.absolute.squared_distance == pytest.approx(0, abs=1e-30)


def test_signed_differences_telescope():
    a = features(3, 6, 4)
    b = a[:, [0, 3, 1, 4, 2, 5]]
    np.testing.assert_allclose(gather(a).signed, (a[:, -1] - a[:, 0]).mean(0) / 5, rtol=1e-12)
    np.testing.assert_allclose(gather(a).absolute, np.abs(np.diff(a, axis=1)).mean((0, 1)), rtol=1e-12)
    score = motion_consistency(a, b)
    assert score.signed.squared_distance == 0
    assert score.absolute.squared_distance > 0.1


def test_frozen_and_equal_videos():
    frozen = np.ones((2, 4, 3))
    score = motion_consistency(frozen, np.zeros((5, 7, 3)))
    for each in (score.signed, score.absolute):
        assert (each.squared_distance, each.mcs, each.mcs1) == (0, -math.inf, 0)


def test_batches_parts_and_lengths():
    maps = features(5, 4, 2, 3, 2).astype(np.float32)
    whole = gather(maps)
    assert (whole.count, whole.num_videos) == (15, 5)
    streamed = gather(*np.split(maps, 5))
    merged = gather(maps[:2]).merge(FrameDifferences(), gather(maps[2:]))
    for other in (streamed, merged):
        assert (other.count, other.num_videos) == (15, 5)
        np.testing.assert_allclose(other.signed, whole.signed, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(other.absolute, whole.absolute, rtol=1e-12)
    longer = features(1, 9, 12, seed=1)
    flat = maps.reshape(5, 4, 12).astype(np.float64)
    pairs = np.concatenate([np.diff(flat, axis=1).reshape(-1, 12), np.diff(longer[0], axis=0)])
    np.testing.assert_allclose(gather(maps, longer).absolute, np.abs(pairs).mean(0), rtol=1e-6)
    assert motion_consistency(whole, streamed).signed.squared_distance < 1e-28


def test_merging_leaves_the_parts_alone():
    part = gather(features(2, 3, 4))
    before = part.signed.copy()
    part.merge(gather(features(2, 3, 4, seed=1))).update(features(1, 3, 4, seed=2))
    np.testing.assert_array_equal(part.signed, before)
    assert part.num_videos == 2


def test_bad_features_are_refused():
    good = features(2, 3, 4)
    with pytest.raises(ValueError, match=r"at least 2 frames.*\(2, 1, 4\)"):
        motion_consistency(good[:, :1], good)
    broken = good.copy()
    broken[1, 2, 3] = np.inf
    with pytest.raises(ValueError, match="1 of 2 videos hold NaN"):
        motion_consistency(good, broken)
    with pytest.raises(ValueError, match="the same width. Received 4 and 3"):
        motion_consistency(good, good[..., :3])
    with pytest.raises(ValueError, match="width 4, like those before. Received 3"):
        gather(good, good[..., :3])
    with pytest.raises(ValueError, match="features of the same width. Received 4 and 3"):
        gather(good).merge(gather(good[..., :3]))
    with pytest.raises(ValueError, match="at least one video"):
        motion_consistency(FrameDifferences(), good)


def test_frame_consistency_is_the_mean_ssim_with_the_first_frame():
    videos = random_frames(2, 4, 16, 12, 3)
    excluded = frame_consistency_score(videos)
    expected = [np.mean([image.ssim(video[0], frame) for frame in video[1:]]) for video in videos]
    np.testing.assert_allclose(excluded, expected, rtol=1e-12)
    np.testing.assert_allclose(frame_consistency_score(videos, include_first=True), (1 + 3 * excluded) / 4)


def test_a_frozen_video_scores_one():
    videos = np.repeat(random_frames(2, 1, 16, 16, 3), 5, axis=1)
    np.testing.assert_allclose(frame_consistency_score(videos), [1, 1], rtol=1e-12)


def test_frame_consistency_beside_the_real_one():
    real = random_frames(1, 1, 16, 16, 3).repeat(4, axis=1)
    real[:, 1:, 4:8] = 0
    frozen = np.repeat(random_frames(2, 1, 16, 16, 3, seed=1), 3, axis=1)
    score = frame_consistency(real, frozen)
    reference = frame_consistency_score(real)[0]
    assert reference < 0.9
    assert score.real == pytest.approx(reference)
    assert score.generated == pytest.approx(1)
    assert score.difference == pytest.approx(1 - reference)
    assert score.real_with_first == pytest.approx((1 + 3 * reference) / 4)
    assert score.generated_with_first == pytest.approx(1)


def test_videos_that_do_not_suit_are_refused():
    videos = random_frames(2, 3, 16, 16, 3)
    with pytest.raises(ValueError, match="at least 2 frames.*Received 1"):
        frame_consistency_score(videos[:, :1])
    with pytest.raises(ValueError, match=r"\(N, T, H, W, 3\).*\(3, 16, 16, 3\)"):
        frame_consistency_score(videos[0])
    with pytest.raises(ValueError, match="11 x 11.*10 x 16"):
        frame_consistency_score(videos[:, :, :10])
    with pytest.raises(ValueError, match="`generated` must hold at least one video"):
        frame_consistency(videos, videos[:0])


def test_frame_consistency_golden(shared):
    golden = np.load(shared / "golden" / "ssim_pairs.npz")
    clip = golden["clip"][None]
    assert frame_consistency_score(clip)[0] == pytest.approx(float(golden["clip_fcs_excl"]), abs=1e-9)
    included = frame_consistency_score(clip, include_first=True)[0]
    assert included == pytest.approx(float(golden["clip_fcs_incl"]), abs=1e-9)
