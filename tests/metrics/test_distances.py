"""Frechet and kernel distances against closed forms, SciPy and expected bias."""

import numpy as np
import pytest
from scipy import linalg

from tfvidgen.metrics.distances import (
    frechet_bias,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
    frechet_result,
    jedi_distance,
    kernel_distance,
    polynomial_mmd,
    trace_sqrt_product,
)
from tfvidgen.metrics.statistics import FeatureStatistics, SampleSizeWarning

unequal = pytest.mark.filterwarnings("ignore:.*depends on both numbers")
few = pytest.mark.filterwarnings("ignore:.*rank N - 1 at most")


def gaussian(n, dim, seed=0, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, dim)) * scale + shift


def scipy_distance(a, b, ddof=1):
    s1, s2 = (np.cov(x, rowvar=False, ddof=ddof) for x in (a, b))
    root = np.real(linalg.sqrtm(s1 @ s2))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * root)


def test_one_dimension():
    a, b = gaussian(200, 1), gaussian(200, 1, seed=1, scale=3.0, shift=2.0)
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ddof, expected", [(1, 32 / 3), (0, 10)])
def test_both_divisors(ddof, expected):
    a = np.array([[0, 0], [2, 0], [0, 2], [2, 2]])
    assert frechet_distance(a, 2 * a + 1, ddof) == pytest.approx(expected, rel=1e-12)
    statistics = [FeatureStatistics.from_features(x) for x in (a, 2 * a + 1)]
    assert frechet_distance(*statistics, ddof) == pytest.approx(expected, rel=1e-12)


def test_matrices_that_do_not_commute():
    s1, s2 = np.array([[2.0, 1], [1, 2]]), np.array([[3.0, -1], [-1, 1]])
    product = s1 @ s2
    trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert trace_sqrt_product(s1, s2) == pytest.approx(trace, rel=1e-12)
    assert frechet_from_moments([0, 0], s1, [0, 0], s2) == pytest.approx(8 - 2 * trace, rel=1e-12)


@unequal
@pytest.mark.parametrize("mixed", [(False, False), (True, False), (True, True)])
def test_against_the_matrix_root_of_scipy(mixed):
    random = np.random.default_rng(0)
    a = gaussian(300, 12) @ random.standard_normal((12, 12))
    b = gaussian(200, 12, seed=1) @ random.standard_normal((12, 12)) + 0.3
    given = [
        FeatureStatistics.from_features(x) if as_statistics else x
        for x, as_statistics in zip((a, b), mixed, strict=True)
    ]
    assert frechet_distance(*given) == pytest.approx(scipy_distance(a, b), rel=1e-9)
    assert frechet_distance(*given, ddof=0) == pytest.approx(scipy_distance(a, b, ddof=0), rel=1e-9)
    moments = [m for x in (a, b) for m in (x.mean(0), np.cov(x, rowvar=False))]
    assert frechet_from_moments(*moments) == pytest.approx(scipy_distance(a, b), rel=1e-9)


@few
@pytest.mark.parametrize("n, dim", [(300, 20), (10, 40), (2, 5), (40, 40)])
def test_a_set_is_at_distance_zero_from_itself(n, dim):
    a = 100 * gaussian(n, dim, shift=3.0).astype(np.float32)
    trace = a.astype(float).var(axis=0, ddof=1).sum()
    for given in (a, FeatureStatistics.from_features(a)):
        result = frechet_result(given, given)
        assert 0 <= result.value <= 1e-9 * trace
        assert result.value == max(0, result.unclamped)
        assert abs(result.unclamped) <= 1e-9 * trace
    assert frechet_result(a, a[::-1]).value <= 1e-9 * trace


@few
@unequal
def test_fewer_vectors_than_numbers():
    a, b = gaussian(7, 30), gaussian(9, 30, seed=1, scale=1.5)
    # the singular values of A B' are those of the whole product of roots, whatever N
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    trace = np.sqrt(np.clip(np.linalg.eigvalsh(root @ s2 @ root), 0, None)).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2) - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    from_statistics = frechet_distance(*(FeatureStatistics.from_features(x) for x in (a, b)))
    assert from_statistics == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_constant_features_have_the_distance_of_their_means():
    a, b = np.zeros((6, 3)), np.full((6, 3), 2.0)
    assert frechet_distance(a, b) == 12.0
    assert frechet_distance(*(FeatureStatistics.from_features(x) for x in (a, b))) == 12.0
    result = frechet_result(a, b)
    assert (result.mean_term, result.covariance_term) == (12.0, 0.0)
    assert (result.num_real, result.num_generated, result.dim, result.ddof) == (6, 6, 3, 1)


def test_how_the_distance_moves_with_the_features():
    a, b = gaussian(60, 8), gaussian(60, 8, seed=1, scale=1.4, shift=0.5)
    distance = frechet_distance(a, b)
    rotation = np.linalg.qr(gaussian(8, 8, seed=2))[0]
    shift = gaussian(1, 8, seed=3)
    assert distance > 1
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, rel=1e-12)
    assert frechet_distance(a + shift, b + shift) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-12)
    result = frechet_result(a, b)
    assert result.mean_term == pytest.approx(np.sum((a.mean(0) - b.mean(0)) ** 2))
    assert result.mean_term + result.covariance_term == result.unclamped == result.value


def test_features_are_not_changed():
    a, b = gaussian(20, 4), gaussian(20, 4, seed=1)
    copies = a.copy(), b.copy()
    frechet_distance(a, b)
    kernel_distance(a, b)
    np.testing.assert_array_equal((a, b), copies)


@pytest.mark.parametrize("n", [512, 2048])
def test_bias_of_the_whole_routine(n):
    dim = 100  # the formula is of first order in 1/N
    predicted = frechet_bias(np.eye(dim), n)
    assert predicted == pytest.approx(2 * dim / n + dim * (dim + 1) / (2 * n), rel=1e-12)
    measured = np.mean([frechet_distance(gaussian(n, dim, 2 * i), gaussian(n, dim, 2 * i + 1)) for i in range(4)])
    assert measured == pytest.approx(predicted, rel=0.03)


def test_bias_of_the_width_of_fvd():
    measured = frechet_distance(gaussian(2048, 400), gaussian(2048, 400, seed=1))
    assert measured == pytest.approx(frechet_bias(np.ones(400), 2048), rel=0.03)
    assert frechet_bias(np.ones(400), 2048) == pytest.approx(39.55078125, rel=1e-12)


def test_bias_of_unequal_axes():
    variances = np.array([4.0, 1.0, 0.25, 0.0])
    n1, n2 = 300, 600
    rotation = np.linalg.qr(gaussian(4, 4))[0]
    covariance = (rotation * variances) @ rotation.T
    curvature = sum(
        variances[i] * variances[j] * (1 + (i == j)) / (variances[i] + variances[j]) for i in range(3) for j in range(3)
    )
    by_hand = (1 / n1 + 1 / n2) * (variances.sum() + curvature / 2)
    assert frechet_bias(covariance, n1, n2) == pytest.approx(by_hand, rel=1e-9)
    random = np.random.default_rng(0)
    distances = []
    for _ in range(1000):
        statistics = [
            FeatureStatistics.from_features(random.standard_normal((n, 4)) * np.sqrt(variances)) for n in (n1, n2)
        ]
        means, covariances = zip(*((s.mean, s.covariance()) for s in statistics), strict=True)
        distances.append(frechet_from_moments(means[0], covariances[0], means[1], covariances[1]))
    assert np.mean(distances) == pytest.approx(by_hand, rel=0.07)


def test_warning_of_few_samples_says_what_it_biases():
    with pytest.warns(SampleSizeWarning, match="10 real and 10 generated.*of width 10.*biased upwards.*more than 10"):
        frechet_distance(gaussian(10, 10), gaussian(10, 10, seed=1))
    with pytest.warns(SampleSizeWarning, match="30 real and 20 generated.*depends on both"):
        frechet_distance(gaussian(30, 10), gaussian(20, 10, seed=1))


def test_bad_features_are_refused():
    a = gaussian(20, 4)
    broken = a.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="`generated` must be finite. 1 of 20"):
        frechet_distance(a, broken)
    with pytest.raises(ValueError, match="`real` needs at least 2.*Received 1"):
        frechet_distance(a[:1], a)
    with pytest.raises(ValueError, match="`real` needs at least 2.*Received 1"):
        frechet_distance(FeatureStatistics.from_features(a[:1]), a)
    with pytest.raises(ValueError, match="widths 4 and 3.*the same layer"):
        frechet_distance(a, a[:, :3])
    with pytest.raises(ValueError, match="`ddof`"):
        frechet_distance(a, a, ddof=2)


def test_bad_moments_are_refused():
    mean, good = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_from_moments(mean, [[1, 0.5], [0, 1]], mean, good)
    with pytest.raises(ValueError, match="semi-definite.*eigenvalues from -1"):
        frechet_from_moments(mean, [[1, 2], [2, 1]], mean, good)
    with pytest.raises(ValueError, match=r"finite \(D, D\)"):
        frechet_from_moments(mean, [[1, np.nan], [np.nan, 1]], mean, good)
    with pytest.raises(ValueError, match="with the same D"):
        frechet_from_moments(np.zeros(3), good, mean, good)
    with pytest.raises(ValueError, match="with the same D"):
        frechet_from_moments(mean, good, mean, np.eye(3))
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_bias(good, 1)


def test_limit_of_many_samples_is_zero_for_equal_distributions():
    dim, n = 10, 3000
    runs = [
        frechet_infinity(gaussian(n, dim, 2 * i), gaussian(n, dim, 2 * i + 1), subsample="both", repeats=3)
        for i in range(8)
    ]
    slope = 2 * dim + dim * (dim + 1) / 2
    assert np.mean([run.slope for run in runs]) == pytest.approx(slope, rel=0.1)
    naive = frechet_bias(np.eye(dim), n)
    assert abs(np.mean([run.value for run in runs])) < naive / 3
    assert all(run.distances[0] > run.distances[-1] > run.value for run in runs)
    assert runs[0].sizes[0] == 300 and runs[0].sizes[-1] == n and len(runs[0].sizes) == 15


def test_subsampling_one_side_leaves_the_bias_of_the_other():
    dim, n = 10, 3000
    runs = [frechet_infinity(gaussian(n, dim, 2 * i), gaussian(n, dim, 2 * i + 1), repeats=3) for i in range(8)]
    half = dim + dim * (dim + 1) / 4
    assert np.mean([run.slope for run in runs]) == pytest.approx(half, rel=0.1)
    assert np.mean([run.value for run in runs]) == pytest.approx(half / n, rel=0.35)
    assert runs[0].subsample == "generated"


def test_limit_recovers_a_distance():
    a, b = gaussian(2000, 6), gaussian(2000, 6, seed=1, scale=2.0, shift=1.0)
    for real in (a, FeatureStatistics.from_features(a)):
        run = frechet_infinity(real, b, num_sizes=8)
        assert run.value == pytest.approx(12, rel=0.08)  # 6 (1 + (2 - 1)^2)
        assert 0 < run.standard_error < 0.5
        np.testing.assert_array_equal(run.sizes, np.linspace(200, 2000, 8).round())
        assert run.distances[-1] == pytest.approx(frechet_distance(a, b), rel=1e-9)
        (slope, value), covariance = np.polyfit(1 / run.sizes, run.distances, 1, cov=True)
        assert (run.value, run.slope) == pytest.approx((value, slope), rel=1e-9)
        assert run.standard_error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-9)
    again = frechet_infinity(a, b, num_sizes=8, seed=1)
    assert again.value != run.value


def test_limit_refuses_too_few_samples():
    a = gaussian(60, 30)
    with pytest.raises(ValueError, match="3 sizes of at least 60 samples. Received 60.*more samples than 60"):
        frechet_infinity(a, a)
    with pytest.raises(ValueError, match="num_sizes=2"):
        frechet_infinity(a, a, num_sizes=2, min_size=40)
    with pytest.warns(SampleSizeWarning, match="Subsets of 20 samples of width 30"):
        frechet_infinity(a, a, min_size=20)
    with pytest.raises(ValueError, match="'generated' or 'both'"):
        frechet_infinity(a, a, subsample="real")
    with pytest.raises(ValueError, match="no rows"):
        frechet_infinity(a, FeatureStatistics.from_features(a))
    with pytest.raises(ValueError, match="no rows"):
        frechet_infinity(FeatureStatistics.from_features(a), a, subsample="both")
    with pytest.raises(ValueError, match="widths 29 and 30"):
        frechet_infinity(a[:, :29], a)
    with pytest.raises(ValueError, match="`repeats`"):
        frechet_infinity(a, a, repeats=0)
    with pytest.raises(ValueError, match="`min_size` must be at least 2"):
        frechet_infinity(a, a, min_size=1)


def plain_mmd(a, b, degree, gamma, coef0, unbiased):
    def kernel(x, y):
        return (gamma * np.dot(x, y) + coef0) ** degree

    def within(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if not unbiased or i != j]
        return np.mean([kernel(x[i], x[j]) for i, j in pairs])

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("degree, gamma, coef0", [(3, None, 1.0), (2, 0.5, 0.0)])
def test_kernel_sums_are_those_of_plain_loops(degree, gamma, coef0, unbiased, monkeypatch):
    monkeypatch.setattr("tfvidgen.metrics.distances._KERNEL_ENTRIES_PER_CHUNK", 20)
    a, b = gaussian(9, 4), gaussian(7, 4, seed=1, shift=0.5)
    value = polynomial_mmd(a, b, degree, gamma, coef0, unbiased)
    assert value == pytest.approx(plain_mmd(a, b, degree, gamma or 0.25, coef0, unbiased), rel=1e-12)


def test_the_unbiased_kernel_distance_may_be_negative():
    assert polynomial_mmd([[1.0], [2.0]], [[0.0], [3.0]]) == pytest.approx(-176.5, rel=1e-12)
    assert polynomial_mmd([[1.0], [2.0]], [[0.0], [3.0]], unbiased=False) >= 0


def test_the_kernel_distance_has_no_bias():
    runs = [kernel_distance(gaussian(50, 5, 2 * i), gaussian(50, 5, 2 * i + 1)).value for i in range(200)]
    assert abs(np.mean(runs)) < 3 * np.std(runs) / np.sqrt(200)
    biased = [polynomial_mmd(gaussian(50, 5, 2 * i), gaussian(50, 5, 2 * i + 1), unbiased=False) for i in range(20)]
    assert np.mean(biased) > 3 * np.std(runs) / np.sqrt(20)


@pytest.mark.parametrize("mean, expected", [(0.5, 3.578125), (1.0, 22.0)])
def test_kernel_distance_of_two_gaussians(mean, expected):
    a, b = gaussian(1500, 1), gaussian(1500, 1, seed=1, shift=mean)
    # sum_i C(3, i) (difference of the i-th moments)^2
    moments = [np.mean(a**i) - np.mean(b**i) for i in range(4)]
    of_sample = sum(c * m**2 for c, m in zip((1, 3, 3, 1), moments, strict=True))
    assert polynomial_mmd(a, b, unbiased=False) == pytest.approx(of_sample, rel=1e-9)
    assert kernel_distance(a, b).value == pytest.approx(expected, rel=0.25)


def test_blocks_of_the_kernel_distance():
    a, b = gaussian(100, 5), gaussian(80, 5, seed=1, shift=0.3)
    whole = kernel_distance(a, b)
    assert whole.num_blocks == 1 and np.isnan(whole.standard_error)
    assert whole.value == polynomial_mmd(a, b)
    blocks = kernel_distance(a, b, block_size=25)
    assert blocks.num_blocks == 4
    values = [polynomial_mmd(a[25 * i : 25 * i + 25], b[20 * i : 20 * i + 20]) for i in range(4)]
    assert blocks.value == pytest.approx(np.mean(values), rel=1e-12)
    assert blocks.standard_error == pytest.approx(np.std(values, ddof=1) / 2, rel=1e-12)


def test_kernel_distances_refuse():
    a = gaussian(20, 4)
    with pytest.raises(ValueError, match="`generated` must have width 4"):
        kernel_distance(a, a[:, :2])
    with pytest.raises(ValueError, match="`real` needs at least 2"):
        polynomial_mmd(a[:1], a)
    with pytest.raises(ValueError, match="too few for 7 blocks"):
        kernel_distance(a, a[:13], block_size=3)
    with pytest.raises(ValueError, match="`block_size`"):
        kernel_distance(a, a, block_size=1)
    with pytest.raises(ValueError, match="`degree`"):
        polynomial_mmd(a, a, degree=0)


def test_jedi_sees_second_moments_only():
    a, b = gaussian(30, 4, shift=1.0), gaussian(25, 4, seed=1)
    second = a.T @ a / 30 - b.T @ b / 25
    assert jedi_distance(a, b) == pytest.approx(100 * np.sum(second**2) / 16, rel=1e-9)
    assert jedi_distance(a, -a) == pytest.approx(0, abs=1e-12)
