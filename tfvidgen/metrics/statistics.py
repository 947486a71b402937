"""Means and covariances of features accumulated over batches, and confidence intervals.

    statistics = FeatureStatistics(400)
    for features in batches:                      # (n, 400) each, any n
        statistics.update(features)
    total = statistics.merge(other_statistics)    # from another process or replica
    total.mean, total.covariance()

Everything is float64, whatever the dtype of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

_ROWS_PER_CHUNK = 4096


class SampleSizeWarning(UserWarning):
    """Sample sizes that bias a result; the message says how."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def check_features(features, name: str = "features", min_samples: int = 1, dim: int | None = None) -> np.ndarray:
    """Return features as float64 (N, D), after checking them.

    Args:
        features: Array of shape (N, D).
        name: Their name in messages.
        min_samples: Minimum number of rows.
        dim: Required width, or None.

    Raises:
        ValueError: If they are not a finite numeric (N, D) array with enough rows and this width.
    """
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` must be numbers of shape (N, D), a feature vector in each row. Received shape {array.shape}, dtype "
            f"{array.dtype}."
        )
    if len(array) < min_samples:
        raise ValueError(f"`{name}` needs at least {min_samples} feature vectors. Received {len(array)}.")
    if dim is not None and array.shape[1] != dim:
        raise ValueError(
            f"`{name}` must have width {dim}, like the features they are combined with. Received width {array.shape[1]}: "
            "both must come from the same layer of the same network."
        )
    array = array.astype(np.float64, copy=False)
    bad = np.count_nonzero(~np.isfinite(array).all(axis=1))
    if bad:
        raise ValueError(
            f"`{name}` must be finite. {bad} of {len(array)} rows hold NaN or infinity: check the videos they come from, "
            "and the range of values that the network expects."
        )
    return array


class FeatureStatistics:
    """Count, mean and covariance of feature vectors, accumulated over batches in constant memory.

    Sums are kept centred (Chan et al.), so a mean far from zero costs no precision. The split into batches or parts does not
    matter, up to rounding.

    Args:
        dim: Feature dimension D.

    Attributes:
        dim: Feature dimension D.
        count: Vectors seen so far.
        mean: float64 (D,).
        scatter: float64 (D, D), the sum of outer products of the centred vectors.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self, dim: int):
        if dim < 1:
            raise ValueError(f"`dim` must be at least 1. Received {dim}.")
        self.dim = int(dim)
        self.count = 0
        self.mean = np.zeros(self.dim)
        self.scatter = np.zeros((self.dim, self.dim))

    @classmethod
    def from_features(cls, features) -> FeatureStatistics:
        """Return the statistics of features (N, D), which may be a memory map."""
        features = np.asarray(features)
        if features.ndim != 2 or not len(features):
            check_features(features)
        statistics = cls(features.shape[1])
        for start in range(0, len(features), _ROWS_PER_CHUNK):
            statistics.update(features[start : start + _ROWS_PER_CHUNK])
        return statistics

    def update(self, features) -> None:
        """Adds a batch of feature vectors (n, D).

        Raises:
            ValueError: If they are not finite or have the wrong width.
        """
        features = check_features(features, dim=self.dim)
        mean = features.mean(axis=0)
        centred = features - mean
        self._add(len(features), mean, centred.T @ centred)

    def merge(self, *others: FeatureStatistics) -> FeatureStatistics:
        """Return the combined statistics of this part and others; no part is modified.

        Raises:
            ValueError: If the widths differ.
        """
        total = FeatureStatistics(self.dim)
        for part in (self, *others):
            if part.dim != self.dim:
                raise ValueError(f"Statistics to merge must have the same width. Received {self.dim} and {part.dim}.")
            total._add(part.count, part.mean, part.scatter)
        return total

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """Return the covariance, float64 (D, D).

        Args:
            ddof: 1 divides by N - 1, as in the original FVD; 0 by N, as in StyleGAN-V.

        Raises:
            ValueError: If fewer than 2 vectors have been seen.
        """
        check_ddof(ddof)
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 feature vectors. Received {self.count}.")
        return self.scatter / (self.count - ddof)

    def state(self) -> dict[str, np.ndarray]:
        """Return the state for `from_state`, as arrays for `np.savez`."""
        return {"count": np.int64(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FeatureStatistics:
        """Return the statistics saved by `state`.

        Raises:
            ValueError: If entries are missing or shapes do not match.
        """
        missing = [name for name in ("count", "mean", "scatter") if name not in state]
        if missing:
            raise ValueError(f"Stored statistics lack {', '.join(missing)}: compute them again.")
        mean, scatter = (np.array(state[name], np.float64) for name in ("mean", "scatter"))
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            raise ValueError(
                f"Stored statistics must have a mean (D,) and a scatter (D, D). Received {mean.shape} and {scatter.shape}: "
                "compute them again."
            )
        statistics = cls(len(mean))
        statistics.count, statistics.mean, statistics.scatter = int(state["count"]), mean, scatter
        return statistics

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not count:
            return
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def check_ddof(ddof: int) -> None:
    """Raise ValueError unless `ddof` is 1 (divide by N - 1) or 0 (divide by N)."""
    if ddof not in (0, 1):
        raise ValueError(f"`ddof` must be 1 (divide by N - 1) or 0 (divide by N). Received {ddof!r}.")


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a share.

    It stays within [0, 1] and has positive width even if none or all succeed. Trials must be independent: for votes that share
    a pair or a rater see `preference.analyse`.

    Args:
        successes: 0..trials.
        trials: Above 0. May be an effective, non-integer number.
        confidence: In (0, 1).

    Raises:
        ValueError: If a number is outside its range.

    Source: Wilson, J. American Statistical Association 1927.
    """
    _check_confidence(confidence)
    if not trials > 0 or not 0 <= successes <= trials:
        raise ValueError(
            f"An interval of a share needs 0 <= successes <= trials and trials > 0. Received {successes} of {trials}."
        )
    z = float(special.ndtri(0.5 + confidence / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    # At the ends the two terms are equal up to rounding.
    low, high = (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)
    return Interval(max(0.0, low), min(1.0, high))


def bootstrap(
    samples: np.ndarray | Sequence[np.ndarray],
    statistic: Callable[..., Any] = np.mean,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    clusters=None,
) -> np.ndarray:
    """Return a statistic of many resamples drawn with replacement.

    Not for Frechet distances: a resample contains duplicates, which bias its covariance.

    Args:
        samples: Array (N, ...), or several arrays of equal N, whose rows are resampled jointly.
        statistic: Called with as many arrays as given; returns a number or an array.
        num_resamples: Number of resamples.
        seed: Seed of every draw.
        clusters: int or str (N,), or None. Rows of a cluster are drawn together: votes on the same pair, clips from the same
            video.

    Returns:
        float64 (num_resamples, ...).

    Raises:
        ValueError: If there are no rows, the arrays differ in length, or `num_resamples` is below 1.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    arrays = (np.asarray(samples),) if isinstance(samples, np.ndarray) else tuple(np.asarray(s) for s in samples)
    if arrays and all(a.ndim == 0 for a in arrays):  # a plain list of numbers is a single array
        arrays = (np.asarray(samples),)
    lengths = [len(a) for a in arrays] + ([len(clusters)] if clusters is not None else [])
    if not lengths or len(set(lengths)) > 1 or lengths[0] == 0:
        raise ValueError(f"A bootstrap needs arrays of the same length, at least 1. Received lengths {lengths}.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1. Received {num_resamples}.")
    random = np.random.default_rng(seed)
    if clusters is None:
        members = None
        num_drawn = lengths[0]
    else:
        _, ids = np.unique(np.asarray(clusters), return_inverse=True)
        members = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
        num_drawn = len(members)
    values = []
    for _ in range(num_resamples):
        rows = random.integers(num_drawn, size=num_drawn)
        if members is not None:
            rows = np.concatenate([members[i] for i in rows])
        values.append(statistic(*(a[rows] for a in arrays)))
    return np.asarray(values, np.float64)


def percentile_interval(values, confidence: float = 0.95) -> Interval:
    """Return the central interval containing the share `confidence` of resampled values (R, ...)."""
    _check_confidence(confidence)
    low, high = np.quantile(np.asarray(values, np.float64), [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    return Interval(float(low), float(high)) if low.ndim == 0 else Interval(low, high)


def bootstrap_interval(
    samples: np.ndarray | Sequence[np.ndarray],
    statistic: Callable[..., Any] = np.mean,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    clusters=None,
) -> Interval:
    """Return the percentile interval of `bootstrap`. Same arguments."""
    values = bootstrap(samples, statistic, num_resamples=num_resamples, seed=seed, clusters=clusters)
    return percentile_interval(values, confidence)


def jackknife_interval(value: float, left_out: Sequence[float]) -> Interval | None:
    """Return the 95 % jackknife interval of a value, from values with one group of samples left out in turn.

    Unlike the bootstrap it duplicates no samples, so it is safe for covariances and nearest neighbours.

    Args:
        value: The value on all samples.
        left_out: The values with each group left out.

    Returns:
        The interval, using Student's t; None for fewer than three groups, or if a value is not finite.
    """
    count = len(left_out)
    if count < 3 or not np.isfinite([value, *left_out]).all():
        return None
    error = math.sqrt((count - 1) / count * np.sum((np.asarray(left_out) - np.mean(left_out)) ** 2))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return Interval(value - half, value + half)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, e.g. 0.95. Received {confidence}.")
