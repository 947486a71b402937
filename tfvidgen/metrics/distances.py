"""Distances between two sets of feature vectors: Frechet, its bias and infinite-sample limit, and polynomial kernels.

FVD, video FID and the rest share one Frechet routine; only the features differ. Its covariance term is the nuclear norm
of a product of two matrix roots, from singular values in float64: never complex, no regularisation, works with singular
covariances.
"""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np

from tfvidgen.metrics.statistics import FeatureStatistics, SampleSizeWarning, check_ddof, check_features

_KERNEL_ENTRIES_PER_CHUNK = 2**22
# An eigenvalue this far below zero, relative to the largest, is not a rounding error.
_NEGATIVE_EIGENVALUE = 1e-6
_MIN_SIZES = 3  # fewest points for fitting a line


@dataclasses.dataclass(frozen=True)
class FrechetResult:
    """A Frechet distance and its components.

    Attributes:
        value: The distance, at least 0. By convention a squared distance, without the root.
        unclamped: The same before clamping at 0.
        mean_term: Squared distance between the means.
        covariance_term: tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), unclamped.
        num_real: Number of real feature vectors.
        num_generated: Number of generated feature vectors.
        dim: Feature dimension.
        ddof: 1 for covariances divided by N - 1, 0 for N.
    """

    value: float
    unclamped: float
    mean_term: float
    covariance_term: float
    num_real: int
    num_generated: int
    dim: int
    ddof: int


@dataclasses.dataclass(frozen=True)
class FrechetExtrapolation:
    """The line FD = value + slope / N fitted to distances at several sample sizes.

    Attributes:
        value: The limit of infinitely many samples.
        slope: Bias of the subsampled side, times N.
        standard_error: Of `value`, assuming independent points. The subsets overlap, so it is an underestimate.
        sizes: int64 (S,), sample sizes.
        distances: float64 (S,), the mean distance at each size.
        subsample: "generated" leaves the real side's share of the bias; "both" removes both.
    """

    value: float
    slope: float
    standard_error: float
    sizes: np.ndarray
    distances: np.ndarray
    subsample: str


@dataclasses.dataclass(frozen=True)
class KernelEstimate:
    """Mean of an unbiased kernel distance over blocks.

    Attributes:
        value: The mean.
        standard_error: Of the mean; NaN for a single block.
        num_blocks: Number of blocks.
    """

    value: float
    standard_error: float
    num_blocks: int


# Frechet distance ------------------------------------------------------------------------------------------------------


def frechet_distance(real, generated, ddof: int = 1) -> float:
    """Return |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) for two sets of features.

    Args:
        real: Array (N1, D) or `FeatureStatistics`; at least 2 vectors.
        generated: Array (N2, D) or `FeatureStatistics`; at least 2 vectors.
        ddof: 1 divides covariances by N - 1, as in the original FVD; 0 by N, as in StyleGAN-V.

    Raises:
        ValueError: If features are not finite, too few, or of different widths.

    Warns:
        SampleSizeWarning: If a set has no more vectors than feature dimensions, or the sets differ in size.

    Source: Dowson & Landau 1982; Heusel et al., NeurIPS 2017; Unterthiner et al. 2018, https://arxiv.org/abs/1812.01717
    """
    return frechet_result(real, generated, ddof).value


def frechet_result(real, generated, ddof: int = 1) -> FrechetResult:
    """Return `frechet_distance` with its terms and the unclamped value. Same arguments and errors."""
    check_ddof(ddof)
    real, generated = _Root.of(real, "real"), _Root.of(generated, "generated")
    if real.dim != generated.dim:
        raise ValueError(
            f"`real` and `generated` must have the same width. Received widths {real.dim} and {generated.dim}: both must come "
            "from the same layer of the same network."
        )
    _warn_about_sizes(real.count, generated.count, real.dim)
    return _frechet(real, generated, ddof)


def frechet_from_moments(real_mean, real_covariance, generated_mean, generated_covariance) -> float:
    """Return the Frechet distance of two Gaussians given by mean (D,) and covariance (D, D).

    Raises:
        ValueError: If shapes do not match, values are not finite, or a covariance is not symmetric positive semi-definite.
    """
    means = [np.asarray(mean, np.float64) for mean in (real_mean, generated_mean)]
    roots = [_covariance_root(covariance) for covariance in (real_covariance, generated_covariance)]
    if len({*(m.shape for m in means), *((r.shape[1],) for r in roots)}) > 1 or not np.isfinite(means).all():
        raise ValueError(
            "Means must be finite (D,) and covariances (D, D), with the same D. Received means "
            f"{means[0].shape}, {means[1].shape} and covariances {np.shape(real_covariance)}, {np.shape(generated_covariance)}."
        )
    traces = sum(np.sum(root**2) for root in roots)
    shift = means[0] - means[1]
    return max(0.0, float(shift @ shift + traces - 2 * _nuclear_norm(roots[0] @ roots[1].T)))


def trace_sqrt_product(covariance, other_covariance) -> float:
    """Return tr (S1 S2)^(1/2) of two positive semi-definite covariances (D, D), which may be singular."""
    return _nuclear_norm(_covariance_root(covariance) @ _covariance_root(other_covariance).T)


def frechet_bias(covariance, num_real: int, num_generated: int | None = None) -> float:
    """Return the expected Frechet distance between two samples of the same Gaussian, whose true distance is 0.

    To first order in 1/N, for N well above D:

        (1/N1 + 1/N2) (tr S + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)),  l the eigenvalues of S

    For S = I and N1 = N2 = N this is 2 D / N + D (D + 1) / (2 N): 39.6 for FVD's 400 features at 2048 clips.

    Args:
        covariance: (D, D), or its eigenvalues (D,).
        num_real: N1, at least 2.
        num_generated: N2, or None for N1.

    Raises:
        ValueError: If a sample size is below 2, or `covariance` is not a covariance.
    """
    num_generated = num_real if num_generated is None else num_generated
    if min(num_real, num_generated) < 2:
        raise ValueError(f"A bias needs at least 2 samples on each side. Received {num_real} and {num_generated}.")
    covariance = np.asarray(covariance, np.float64)
    if covariance.ndim == 1 and np.isfinite(covariance).all() and (covariance >= 0).all():
        eigenvalues = covariance
    else:
        eigenvalues = np.sum(_covariance_root(covariance) ** 2, axis=1)
    eigenvalues = eigenvalues[eigenvalues > 0]
    pairs = np.outer(eigenvalues, eigenvalues) / np.add.outer(eigenvalues, eigenvalues)
    curvature = pairs.sum() + np.trace(pairs)
    return float((1 / num_real + 1 / num_generated) * (eigenvalues.sum() + curvature / 2))


def frechet_infinity(
    real,
    generated,
    num_sizes: int = 15,
    min_size: int | None = None,
    subsample: str = "generated",
    repeats: int = 1,
    ddof: int = 1,
    seed: int = 0,
) -> FrechetExtrapolation:
    """Return the Frechet distance extrapolated to infinitely many samples (FVD-infinity).

    The bias at sample size N falls as 1/N, with a model-dependent slope, so it does not cancel in comparisons even at equal
    N. Distances at random subsets of several sizes are extrapolated with a line in 1/N.

    Args:
        real: Array (N1, D); with `subsample="generated"` also `FeatureStatistics`.
        generated: Array (N2, D).
        num_sizes: Number of subset sizes, evenly spaced from `min_size` to the full set.
        min_size: Smallest size, or None for the larger of a tenth of the set and 2 D: below, the bias is no longer 1/N.
        subsample: "generated" uses the full real set, so the real side's half of the bias remains; "both" subsamples both.
        repeats: Subsets drawn per size.
        ddof: As in `frechet_distance`.
        seed: Seed of the draws.

    Raises:
        ValueError: As in `frechet_distance`; if there are too few samples for three sizes, or an option is unknown.

    Source: Chong & Forsyth, CVPR 2020, https://arxiv.org/abs/1911.07023
    """
    check_ddof(ddof)
    if subsample not in ("generated", "both"):
        raise ValueError(f"`subsample` must be 'generated' or 'both'. Received {subsample!r}.")
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1. Received {repeats}.")
    if isinstance(generated, FeatureStatistics) or (subsample == "both" and isinstance(real, FeatureStatistics)):
        raise ValueError(
            "A side that is subsampled must be given as features (N, D). Received statistics, which have no rows."
        )
    generated = check_features(generated, "generated", 2)
    dim = generated.shape[1]
    if subsample == "both":
        real = check_features(real, "real", 2, dim)
        total = min(len(real), len(generated))
    else:
        whole = _Root.of(real, "real")
        if whole.dim != dim:
            raise ValueError(f"`real` and `generated` must have the same width. Received widths {whole.dim} and {dim}.")
        total = len(generated)
    smallest = max(math.ceil(total / 10), 2 * dim) if min_size is None else min_size
    if smallest < 2:
        raise ValueError(f"`min_size` must be at least 2. Received {min_size}.")
    sizes = np.unique(np.linspace(smallest, max(smallest, total), num_sizes).round().astype(np.int64))
    if smallest >= total or len(sizes) < _MIN_SIZES:
        raise ValueError(
            f"An extrapolation needs {_MIN_SIZES} sizes of at least {smallest} samples. Received {total} samples of width {dim}, "
            f"num_sizes={num_sizes}. Use more samples than {2 * dim}, or set `min_size`."
        )
    if smallest <= dim:
        _warn(
            f"Subsets of {smallest} samples of width {dim} are so small that the bias does not fall as 1/N and the limit is off."
        )
    random = np.random.default_rng(seed)

    def draw(features, size):
        return _Root.of(features[np.sort(random.permutation(len(features))[:size])], "subset")

    distances = np.empty((len(sizes), repeats))
    for i, size in enumerate(sizes):
        for j in range(repeats):
            reference = whole if subsample == "generated" else draw(real, size)
            distances[i, j] = _frechet(reference, draw(generated, size), ddof).unclamped
    means = distances.mean(axis=1)
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    (value, slope), *_ = np.linalg.lstsq(design, means, rcond=None)
    residual = means - design @ (value, slope)
    variance = residual @ residual / (len(sizes) - 2)
    error = math.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])
    return FrechetExtrapolation(float(value), float(slope), error, sizes, means, subsample)


@dataclasses.dataclass(frozen=True)
class _Root:
    """A matrix R (K, D) with R'R the scatter matrix of a set: its covariance times (N - ddof)."""

    count: int
    mean: np.ndarray
    root: np.ndarray

    @property
    def dim(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, features, name: str) -> _Root:
        if isinstance(features, FeatureStatistics):
            if features.count < 2:
                raise ValueError(f"`{name}` needs at least 2 feature vectors. Received {features.count}.")
            return cls(features.count, features.mean, _covariance_root(features.scatter))
        features = check_features(features, name, 2)
        mean = features.mean(axis=0)
        centred = features - mean
        if len(centred) <= centred.shape[1]:
            return cls(len(features), mean, centred)
        # A QR decomposition would also preserve eigenvalues below 1e-13 of the largest, which never affect a distance, and
        # takes twice as long; twenty times on busy cores, since it synchronises threads at every step.
        return cls(len(features), mean, _covariance_root(centred.T @ centred))


def _frechet(real: _Root, generated: _Root, ddof: int) -> FrechetResult:
    # Sample sizes are checked by callers, so that subsets of an extrapolation do not warn.
    first, second = real.count - ddof, generated.count - ddof
    shift = real.mean - generated.mean
    mean_term = float(shift @ shift)
    traces = np.sum(real.root**2) / first + np.sum(generated.root**2) / second
    # tr (S1 S2)^(1/2) = sum of singular values of A B' with S1 = A'A, S2 = B'B
    covariance_term = float(traces - 2 * _nuclear_norm(real.root @ generated.root.T) / math.sqrt(first * second))
    unclamped = mean_term + covariance_term
    return FrechetResult(
        max(0.0, unclamped), unclamped, mean_term, covariance_term, real.count, generated.count, real.dim, ddof
    )


def _nuclear_norm(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False).sum()) if matrix.size else 0.0


def _covariance_root(covariance) -> np.ndarray:
    """R (K, D) with R'R = covariance, K its rank."""
    covariance = np.asarray(covariance, np.float64)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not np.isfinite(covariance).all():
        raise ValueError(f"A covariance must be a finite (D, D) matrix. Received shape {covariance.shape}.")
    scale = np.abs(covariance).max(initial=0.0)
    if np.abs(covariance - covariance.T).max(initial=0.0) > _NEGATIVE_EIGENVALUE * scale:
        raise ValueError("A covariance must be symmetric. Received a matrix that is not.")
    eigenvalues, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    largest = eigenvalues[-1]
    if eigenvalues[0] < -_NEGATIVE_EIGENVALUE * scale:
        raise ValueError(
            f"A covariance must be positive semi-definite. Received one with eigenvalues from {eigenvalues[0]:g} to "
            f"{largest:g}."
        )
    # The square root would amplify the rounding error of a zero eigenvalue a hundred million times.
    kept = eigenvalues > len(covariance) * np.finfo(np.float64).eps * largest
    return np.sqrt(eigenvalues[kept])[:, None] * vectors[:, kept].T


def _warn_about_sizes(num_real: int, num_generated: int, dim: int) -> None:
    if min(num_real, num_generated) <= dim:
        _warn(
            f"{num_real} real and {num_generated} generated feature vectors of width {dim}: with so few, a covariance has rank "
            "N - 1 at most, and the distance is biased upwards, by far more than models differ. Compare only at equal N "
            f"and next to the distance between two halves of the real set, or use more than {dim} videos."
        )
    if num_real != num_generated:
        _warn(
            f"{num_real} real and {num_generated} generated feature vectors: the bias of a distance depends on both numbers, so "
            "compare this one only with others at the same two."
        )


def _warn(message: str) -> None:
    warnings.warn(message, SampleSizeWarning, stacklevel=4)


# Kernel distances ------------------------------------------------------------------------------------------------------


def polynomial_mmd(
    real,
    generated,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    unbiased: bool = True,
) -> float:
    """Return the squared maximum mean discrepancy with the kernel (gamma a.b + coef0)^degree.

    Args:
        real: Array (N1, D), at least 2 vectors.
        generated: Array (N2, D), at least 2 vectors.
        degree: Degree of the polynomial, at least 1.
        gamma: Factor of the inner product, or None for 1/D.
        coef0: Constant term.
        unbiased: The U-statistic, which excludes a vector's kernel with itself and can be negative. Otherwise the
            V-statistic, which is at least 0 and biased upwards.

    Raises:
        ValueError: If features are not finite, too few, or of different widths.

    Source: Gretton et al., JMLR 2012; Binkowski et al., ICLR 2018, https://arxiv.org/abs/1801.01401
    """
    real = check_features(real, "real", 2)
    generated = check_features(generated, "generated", 2, real.shape[1])
    if degree < 1:
        raise ValueError(f"`degree` must be at least 1. Received {degree}.")
    gamma = 1 / real.shape[1] if gamma is None else gamma

    def kernel(products):
        base = gamma * products + coef0
        value = base.copy()
        for _ in range(degree - 1):  # many times faster than base**degree
            value *= base
        return value

    def kernel_sum(a, b):
        rows = max(1, _KERNEL_ENTRIES_PER_CHUNK // len(b))
        return sum(np.sum(kernel(a[i : i + rows] @ b.T)) for i in range(0, len(a), rows))

    def mean_within(a):
        total, count = kernel_sum(a, a), len(a)
        if not unbiased:
            return total / count**2
        own = np.sum(kernel(np.einsum("nd,nd->n", a, a)))
        return (total - own) / (count * (count - 1))

    between = kernel_sum(real, generated) / (len(real) * len(generated))
    return float(mean_within(real) + mean_within(generated) - 2 * between)


def kernel_distance(real, generated, block_size: int | None = None) -> KernelEstimate:
    """Return the kernel distance of KVD and KID: unbiased, kernel (a.b/D + 1)^3.

    Args:
        real: Array (N1, D).
        generated: Array (N2, D).
        block_size: Maximum vectors per block, or None for a single block: all pairs, the lowest-variance estimate. Blocks
            give a standard error. They are taken in order, so shuffle sorted features.

    Raises:
        ValueError: As in `polynomial_mmd`, and if a block would have fewer than 2 vectors.

    Source: Unterthiner et al. 2018, https://arxiv.org/abs/1812.01717; blocks as in TF-GAN's
        `kernel_classifier_distance_and_std_from_activations`.
    """
    real = check_features(real, "real", 2)
    generated = check_features(generated, "generated", 2, real.shape[1])
    if block_size is not None and block_size < 2:
        raise ValueError(f"`block_size` must be at least 2. Received {block_size}.")
    larger, smaller = max(len(real), len(generated)), min(len(real), len(generated))
    num_blocks = 1 if block_size is None else math.ceil(larger / block_size)
    if smaller < 2 * num_blocks:
        raise ValueError(
            f"{smaller} feature vectors are too few for {num_blocks} blocks of at least 2: raise `block_size`, now {block_size}."
        )
    parts = zip(np.array_split(real, num_blocks), np.array_split(generated, num_blocks), strict=True)
    values = [polynomial_mmd(a, b) for a, b in parts]
    error = np.std(values, ddof=1) / math.sqrt(num_blocks) if num_blocks > 1 else math.nan
    return KernelEstimate(float(np.mean(values)), float(error), num_blocks)


def jedi_distance(real, generated) -> float:
    """Return JEDi's distance: 100 times the V-statistic with the kernel (a.b/D)^2.

    It equals 100 |E[xx'] - E[yy']|^2 / D^2 (uncentred second moments), so features and their negatives are at distance 0.

    Source: Luo et al., ICLR 2025, https://arxiv.org/abs/2410.05203; official code videojedi 1.1.0.
    """
    return 100.0 * polynomial_mmd(real, generated, degree=2, coef0=0.0, unbiased=False)
