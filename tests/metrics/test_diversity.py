"""Coverage, copying, content and motion against hand arithmetic, plain loops, SciPy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from tfvidgen.metrics import diversity
from tfvidgen.metrics.diversity import (
    average_content_distance,
    data_copying_test,
    expected_coverage,
    mean_colours,
    memorisation,
    motion_energy,
    motion_energy_ratio,
    nearest_neighbours,
    precision_recall,
)


def gaussian(n, dim=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim))


def random_videos(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def column(*values):
    return np.array(values, float)[:, None]


# Precision, recall, density, coverage


def plain_coverage(real, fake, k):
    def radius(points, i):
        return sorted(math.dist(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    real_radius = [radius(real, i) for i in range(len(real))]
    fake_radius = [radius(fake, i) for i in range(len(fake))]
    inside = np.array([[math.dist(x, y) < r for y in fake] for x, r in zip(real, real_radius, strict=True)])
    recalled = np.array([[math.dist(x, y) < r for y, r in zip(fake, fake_radius, strict=True)] for x in real])
    return inside.any(0).mean(), recalled.any(1).mean(), inside.sum() / (k * len(fake)), inside.any(1).mean()


def test_coverage_by_hand():
    score = precision_recall(column(0, 1, 2, 10), column(0.4, 0.6, 50), k=1)
    assert (score.precision, score.recall) == pytest.approx((2 / 3, 3 / 4))
    assert (score.density, score.coverage) == pytest.approx((4 / 3, 1 / 2))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_coverage_is_that_of_plain_loops_in_any_chunk(k, monkeypatch):
    real, fake = gaussian(40), gaussian(30, seed=1) * 0.8
    score = precision_recall(real, fake, k)
    found = (score.precision, score.recall, score.density, score.coverage)
    assert found == pytest.approx(plain_coverage(real, fake, k), rel=1e-12)
    monkeypatch.setattr(diversity, "_DISTANCES_PER_CHUNK", 70)
    assert precision_recall(real, fake, k) == score


def test_a_set_covers_itself():
    real = gaussian(40)
    for fake in (real, real[::-1]):
        score = precision_recall(real, fake, 3)
        assert (score.precision, score.recall, score.density, score.coverage) == pytest.approx((1, 1, 1, 1), rel=1e-12)


def test_one_point_again_and_again():
    real = gaussian(40)
    score = precision_recall(real, np.repeat(real[:1], 100, axis=0), 3)
    holders = np.mean([math.dist(x, real[0]) < sorted(math.dist(x, y) for y in real)[3] for x in real])
    assert (score.precision, score.recall) == (1, 0)
    assert score.coverage == pytest.approx(holders) and holders < 0.2


def test_equal_features_are_inside_no_ball():
    score = precision_recall(np.ones((20, 4)), np.ones((20, 4)))
    assert (score.precision, score.recall, score.density, score.coverage) == (0, 0, 0, 0)


def test_expected_values_of_equal_distributions():
    scores = [precision_recall(gaussian(400, 16, 2 * i), gaussian(400, 16, 2 * i + 1)) for i in range(4)]
    assert np.mean([score.coverage for score in scores]) == pytest.approx(expected_coverage(400, 400, 5), abs=0.015)
    assert np.mean([score.density for score in scores]) == pytest.approx(1, abs=0.06)
    assert expected_coverage(10**6, 10**6, 5) == pytest.approx(1 - 2**-5, abs=1e-5)
    by_hand = 1 - (19 * 18) / (29 * 28)
    assert expected_coverage(20, 10, 2) == pytest.approx(by_hand, rel=1e-12)


def test_coverage_refuses():
    real = gaussian(6)
    with pytest.raises(ValueError, match="`real` needs at least 7.*Received 6"):
        precision_recall(real, real, k=6)
    with pytest.raises(ValueError, match="`generated` must have width 6"):
        precision_recall(real, real[:, :3], k=2)
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        precision_recall(real, real, k=0)
    with pytest.raises(ValueError, match="1 <= k < num_real.*k=5, num_real=5"):
        expected_coverage(5, 5, 5)


# Neighbours and copying


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_are_those_of_scikit_learn(metric, monkeypatch):
    monkeypatch.setattr(diversity, "_DISTANCES_PER_CHUNK", 100)
    queries, references = gaussian(30), gaussian(50, seed=1)
    distances, indices = nearest_neighbours(queries, references, 4, metric)
    expected = NearestNeighbors(n_neighbors=4, algorithm="brute", metric=metric).fit(references).kneighbors(queries)
    np.testing.assert_allclose(distances, expected[0], rtol=1e-9)
    np.testing.assert_array_equal(indices, expected[1])


def test_neighbours_of_a_set_within_itself():
    x = gaussian(20).astype(np.float32) * 1e-3 + 100  # far from zero, where |a|^2 + |b|^2 - 2ab has no digits left
    distances, indices = nearest_neighbours(x, x)
    np.testing.assert_array_equal(distances, np.zeros((20, 1)))
    np.testing.assert_array_equal(indices[:, 0], np.arange(20))
    distances, indices = nearest_neighbours(x, x, 19, exclude_self=True)
    assert distances.min() > 0
    np.testing.assert_array_equal(np.sort(indices, axis=1), [[j for j in range(20) if j != i] for i in range(20)])


def test_equally_near_references_come_in_their_order():
    _, indices = nearest_neighbours(column(0), column(1, -1, 1, -1, 0.5), 4)
    np.testing.assert_array_equal(indices, [[4, 0, 1, 2]])


def test_neighbours_refuse():
    x = gaussian(5)
    with pytest.raises(ValueError, match=r"1\.\.5.*Received 6"):
        nearest_neighbours(x, x, 6)
    with pytest.raises(ValueError, match=r"1\.\.4.*Received 5"):
        nearest_neighbours(x, x, 5, exclude_self=True)
    with pytest.raises(ValueError, match="5 queries, 4 references"):
        nearest_neighbours(x, x[:4], exclude_self=True)
    with pytest.raises(ValueError, match="'euclidean' or 'cosine'"):
        nearest_neighbours(x, x, metric="l1")
    with pytest.raises(ValueError, match="`references` contains a zero vector"):
        nearest_neighbours(x, np.zeros((2, 6)), metric="cosine")
    with pytest.raises(ValueError, match="`references` must have width 6"):
        nearest_neighbours(x, x[:, :2])


@pytest.mark.parametrize("decimals", [1, 8])
def test_copying_test_is_that_of_scipy(decimals):
    near, usual = (np.random.default_rng(i).gamma(2 + i, size=30 + i).round(decimals) for i in (0, 1))
    expected = stats.mannwhitneyu(near, usual, use_continuity=False, method="asymptotic")
    result = data_copying_test(near, usual)
    assert result.u == expected.statistic
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.share == expected.statistic / (30 * 31)
    assert result.z < 0 and (len(np.unique(near)) < 30) == (decimals == 1)


def test_copying_test_of_equal_distances():
    result = data_copying_test(np.ones(4), np.ones(3))
    assert (result.share, result.z, result.p_value) == (0.5, 0, 1)


def test_copies_are_found_and_new_samples_are_not():
    train, held_out, new = gaussian(300), gaussian(200, seed=1), gaussian(200, seed=2)
    copied = memorisation(train[:200], train, held_out)
    assert copied.median_ratio == 0 and copied.share_below == 1
    assert copied.test.share == 0 and copied.test.z < -15
    np.testing.assert_array_equal(copied.indices[:, 0], np.arange(200))
    honest = memorisation(new, train, held_out)
    assert honest.indices.shape == honest.distances.shape == (200, 5)
    assert honest.median_ratio == pytest.approx(1, abs=0.1)
    assert honest.share_below < 0.05
    assert honest.test.share == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(honest.held_out_distances, nearest_neighbours(held_out, train)[0][:, 0], rtol=1e-12)
    assert memorisation(new, train, train[:50]).median_ratio == math.inf


def test_copying_test_refuses():
    with pytest.raises(ValueError, match="0 of generated and 2 of held-out"):
        data_copying_test([], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite distances"):
        data_copying_test([np.nan], [1.0, 2.0])


# Content and motion


def test_content_distance_closed_forms():
    step = np.array([3.0, 4.0, 0.0])
    linear = np.arange(6)[:, None] * step
    a, b = np.zeros(3), np.array([1.0, 2.0, 2.0])
    alternating = np.array([a, b] * 3)
    constant = np.tile(b, (6, 1))
    result = average_content_distance(np.stack([linear, alternating, constant]))
    np.testing.assert_allclose(result.consecutive, [5, 3, 0], rtol=1e-12)
    np.testing.assert_allclose(result.all_pairs, [5 * 7 / 3, 3 * 6 / (2 * 5), 0], rtol=1e-12)


def test_content_distance_refuses():
    with pytest.raises(ValueError, match=r"at least 2 frames.*\(3, 1, 2\)"):
        average_content_distance(np.zeros((3, 1, 2)))
    with pytest.raises(ValueError, match=r"\(N, T, D\)"):
        average_content_distance(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="finite"):
        average_content_distance(np.full((1, 2, 3), np.nan))


def test_mean_colours_of_frames_and_of_objects():
    videos = random_videos(2, 3, 4, 5, 3)
    np.testing.assert_allclose(mean_colours(videos), videos.mean((2, 3)) / 255, rtol=1e-12)
    masks = np.zeros(videos.shape[:-1], bool)
    masks[:, :, 1:3, 2] = True
    np.testing.assert_allclose(mean_colours(videos, masks), videos[:, :, 1:3, 2].mean(2) / 255, rtol=1e-12)
    masks[1, 2] = False
    with pytest.raises(ValueError, match="1 frames have an empty mask"):
        mean_colours(videos, masks)
    with pytest.raises(ValueError, match=r"bool of shape \(2, 3, 4, 5\)"):
        mean_colours(videos, masks[:1])


def test_motion_energy_by_hand():
    videos = np.zeros((3, 4, 2, 2, 3), np.uint8)
    videos[1] = (np.array([0, 255, 0, 255])[:, None, None, None]).astype(np.uint8)
    videos[2, :, 0, 0] = (np.array([0, 51, 102, 153])[:, None]).astype(np.uint8)
    np.testing.assert_allclose(motion_energy(videos), [0, 1, 0.2**2 / 4], rtol=1e-6)
    assert motion_energy_ratio(videos[1:2], videos) == pytest.approx((1 + 0.01) / 3, rel=1e-6)
    assert motion_energy_ratio(videos[1:2], videos[:1]) == 0


def test_motion_of_a_set_against_itself_and_against_half_of_it():
    videos = random_videos(4, 5, 6, 6, 3)
    assert motion_energy_ratio(videos, videos) == 1
    halved = videos // 2
    assert motion_energy_ratio(videos, halved) == pytest.approx(0.25, rel=0.02)


def test_motion_refuses():
    videos = random_videos(2, 3, 4, 4, 3)
    with pytest.raises(ValueError, match="at least 2 frames per video. Received 1"):
        motion_energy(videos[:, :1])
    with pytest.raises(ValueError, match="uint8.*float32"):
        motion_energy(videos.astype(np.float32))
    with pytest.raises(ValueError, match="RGB"):
        motion_energy(videos[..., :1])
    with pytest.raises(ValueError, match="4 x 4 and generated ones of 4 x 3"):
        motion_energy_ratio(videos, videos[:, :, :, :3])
    with pytest.raises(ValueError, match="do not move"):
        motion_energy_ratio(np.zeros_like(videos), videos)
