"""Streaming statistics against NumPy, intervals against closed forms."""

import io
import math

import numpy as np
import pytest
from scipy import stats

from tfvidgen.metrics.statistics import (
    FeatureStatistics,
    bootstrap,
    bootstrap_interval,
    check_features,
    jackknife_interval,
    percentile_interval,
    wilson_interval,
)


def features(n=50, dim=6, seed=0, offset=0.0):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, dim)) @ random.standard_normal((dim, dim)) + offset


def same(a, b):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-11, atol=1e-12)


def test_mean_and_covariance_are_those_of_numpy():
    x = features()
    statistics = FeatureStatistics.from_features(x)
    assert statistics.count == 50 and statistics.dim == 6
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance(), np.cov(x, rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance(ddof=0), np.cov(x, rowvar=False, ddof=0), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(50,), (1,) * 50, (7, 0, 43), (49, 1)])
def test_batches_do_not_matter(sizes):
    x = features()
    statistics = FeatureStatistics(6)
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        if len(part):
            statistics.update(part)
    same(statistics, FeatureStatistics.from_features(x))


def test_parts_merge_in_any_order_and_stay_as_they_are():
    x = features()
    parts = [FeatureStatistics.from_features(part) for part in (x[:3], x[3:20], x[20:])]
    before = parts[1].mean.copy()
    same(parts[0].merge(*parts[1:]), FeatureStatistics.from_features(x))
    same(parts[2].merge(FeatureStatistics(6), parts[1], parts[0]), FeatureStatistics.from_features(x))
    np.testing.assert_array_equal(parts[1].mean, before)
    assert parts[1].count == 17


def test_chunks_of_a_long_array_do_not_matter(monkeypatch):
    x = features()
    expected = FeatureStatistics.from_features(x)
    monkeypatch.setattr("tfvidgen.metrics.statistics._ROWS_PER_CHUNK", 7)
    same(FeatureStatistics.from_features(x), expected)


def test_float32_features_far_from_zero_keep_their_covariance():
    x = (features(200, offset=0.0) + 4096).astype(np.float32)
    statistics = FeatureStatistics(6)
    for part in np.split(x, 20):
        statistics.update(part)
    assert statistics.mean.dtype == np.float64
    np.testing.assert_allclose(statistics.covariance(), np.cov(x.astype(np.float64) - 4096, rowvar=False), rtol=1e-9)


def test_features_are_not_changed():
    x = features().astype(np.float32)
    before = x.copy()
    FeatureStatistics(6).update(x)
    np.testing.assert_array_equal(x, before)


def test_state_goes_through_a_file():
    statistics = FeatureStatistics.from_features(features())
    file = io.BytesIO()
    np.savez(file, **statistics.state())
    file.seek(0)
    restored = FeatureStatistics.from_state(np.load(file))
    assert restored.count == 50
    np.testing.assert_array_equal(restored.mean, statistics.mean)
    np.testing.assert_array_equal(restored.covariance(), statistics.covariance())
    restored.update(features(5, seed=1))
    assert restored.count == 55 and statistics.count == 50


def test_state_that_is_none():
    state = FeatureStatistics.from_features(features()).state()
    with pytest.raises(ValueError, match="lack scatter"):
        FeatureStatistics.from_state({"count": state["count"], "mean": state["mean"]})
    with pytest.raises(ValueError, match=r"\(5,\) and \(6, 6\)"):
        FeatureStatistics.from_state({**state, "mean": state["mean"][:5]})


def test_bad_features_are_refused():
    x = features()
    with pytest.raises(ValueError, match=r"\(N, D\).*\(50,\)"):
        check_features(x[:, 0])
    with pytest.raises(ValueError, match="dtype <U1"):
        check_features([["a"]])
    with pytest.raises(ValueError, match="at least 51.*Received 50"):
        check_features(x, min_samples=51)
    with pytest.raises(ValueError, match="`real` must have width 7.*width 6"):
        check_features(x, "real", dim=7)
    x[3, 2], x[7, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 50 rows hold NaN"):
        check_features(x)
    statistics = FeatureStatistics(6)
    with pytest.raises(ValueError, match="NaN"):
        statistics.update(x)
    assert statistics.count == 0
    with pytest.raises(ValueError, match="width 6.*width 5"):
        statistics.update(features()[:, :5])
    with pytest.raises(ValueError, match="the same width. Received 6 and 5"):
        statistics.merge(FeatureStatistics(5))
    with pytest.raises(ValueError, match="at least 1. Received 0"):
        FeatureStatistics(0)
    with pytest.raises(ValueError, match="at least 1 feature vectors. Received 0"):
        FeatureStatistics.from_features(np.empty((0, 3)))


def test_covariance_of_one_vector_is_refused():
    statistics = FeatureStatistics.from_features(features(1))
    with pytest.raises(ValueError, match="at least 2 feature vectors. Received 1"):
        statistics.covariance()
    with pytest.raises(ValueError, match="N - 1.*Received 2"):
        statistics.covariance(ddof=2)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("wins", [0, 1, 37, 50])
def test_wilson_is_that_of_scipy(wins, confidence):
    expected = stats.binomtest(wins, 50).proportion_ci(confidence, "wilson")
    interval = wilson_interval(wins, 50, confidence)
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= interval.low <= wins / 50 <= interval.high <= 1


def test_wilson_refuses_what_is_no_share():
    for wins, trials in ((5, 4), (-1, 4), (0, 0), (float("nan"), 4)):
        with pytest.raises(ValueError, match="0 <= successes <= trials"):
            wilson_interval(wins, trials)
    with pytest.raises(ValueError, match="between 0 and 1.*95"):
        wilson_interval(1, 2, confidence=95)


def test_bootstrap_of_a_mean_has_its_standard_error():
    x = np.random.default_rng(0).standard_normal(400)
    values = bootstrap(x, num_resamples=2000)
    assert values.shape == (2000,)
    assert values.std() == pytest.approx(x.std() / 20, rel=0.05)
    low, high = bootstrap_interval(x, num_resamples=2000)
    assert (low, high) == percentile_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.08)
    assert low < x.mean() < high


def test_bootstrap_is_repeatable_and_moves_with_the_seed():
    x = features()[:, 0]
    np.testing.assert_array_equal(bootstrap(x, num_resamples=9), bootstrap(list(x), num_resamples=9))
    assert not np.array_equal(bootstrap(x, num_resamples=9), bootstrap(x, num_resamples=9, seed=1))


def test_bootstrap_draws_rows_of_several_arrays_together():
    x = np.arange(20.0)
    values = bootstrap((x, 3 * x), lambda a, b: [np.abs(3 * a - b).max(), len(a)], num_resamples=20)
    np.testing.assert_array_equal(values, [[0, 20]] * 20)


def test_bootstrap_draws_whole_clusters():
    clusters = np.array(["b", "a", "b", "c", "a", "b"])
    sizes = {name: np.count_nonzero(clusters == name) for name in "abc"}

    def whole(names):
        return all(np.count_nonzero(names == name) % sizes[name] == 0 for name in "abc")

    values = bootstrap(clusters, lambda names: [whole(names), len(names)], num_resamples=200, clusters=clusters)
    assert values[:, 0].all()
    assert set(values[:, 1]) >= {3, 6, 9}  # three clusters of 1, 2 or 3 rows


def test_equal_rows_in_clusters_widen_the_interval():
    votes = np.repeat(np.random.default_rng(0).integers(0, 2, 100).astype(float), 5)
    alone = bootstrap(votes, num_resamples=800).std()
    together = bootstrap(votes, num_resamples=800, clusters=np.arange(500) // 5).std()
    assert together / alone == pytest.approx(np.sqrt(5), rel=0.1)


def test_bootstrap_refuses():
    with pytest.raises(ValueError, match=r"lengths \[3, 2\]"):
        bootstrap((np.zeros(3), np.zeros(2)))
    with pytest.raises(ValueError, match=r"lengths \[3, 2\]"):
        bootstrap(np.zeros(3), clusters=[0, 1])
    with pytest.raises(ValueError, match=r"at least 1. Received lengths \[0\]"):
        bootstrap(np.zeros(0))
    with pytest.raises(ValueError, match="num_resamples"):
        bootstrap(np.zeros(3), num_resamples=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        percentile_interval([1.0], 0)


def test_jackknife_of_a_mean_is_the_textbook_interval_of_group_means():
    values = np.random.default_rng(0).normal(3, 2, (10, 7))
    left_out = [np.delete(values, g, axis=0).mean() for g in range(10)]
    low, high = jackknife_interval(values.mean(), left_out)
    half = stats.t.ppf(0.975, 9) * values.mean(1).std(ddof=1) / math.sqrt(10)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-9)
    assert jackknife_interval(1.0, [1.0, 1.0]) is None
