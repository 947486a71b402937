"""Diversity, memorisation and motion: coverage of the data, copying of training samples, amount of motion.

Distances are computed from differences in float64, not as |a|^2 + |b|^2 - 2ab, whose rounding makes equal vectors differ
and breaks ties arbitrarily.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from scipy import special, stats
from scipy.spatial import distance

from tfvidgen.metrics.statistics import check_features

_DISTANCES_PER_CHUNK = 2**21


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Precision, recall, density and coverage.

    Attributes:
        precision: Share of generated samples inside the ball of some real one.
        recall: Share of real samples inside the ball of some generated one.
        density: Mean number of real balls containing a generated sample, divided by k. Can exceed 1; 1 is expected for
            equal distributions.
        coverage: Share of real samples whose ball contains a generated one; `expected_coverage` for equal distributions.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclasses.dataclass(frozen=True)
class CopyingTest:
    """Tests whether generated samples are nearer to the training set than held-out real samples.

    Attributes:
        u: Mann-Whitney U of the generated distances.
        share: U / (m n): the probability that a generated sample is farther than a held-out one; 0.5 without copying.
        z: Standardised U; far below 0 indicates copying, far above 0 samples far from the data.
        p_value: Two-sided, normal approximation without continuity correction.
    """

    u: float
    share: float
    z: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """Nearest training samples of generated samples, compared with those of held-out real samples.

    Attributes:
        indices: int64 (M, k), nearest training samples, nearest first.
        distances: float64 (M, k).
        held_out_distances: float64 (H,), from each held-out sample to its nearest training sample.
        median_ratio: Median nearest distance of generated over that of held-out samples; well below 1 indicates copying.
            Infinity if the held-out median is 0.
        share_below: Share of generated samples below the 1st percentile of held-out distances: 0.01 without copying.
        test: The data-copying test.
    """

    indices: np.ndarray
    distances: np.ndarray
    held_out_distances: np.ndarray
    median_ratio: float
    share_below: float
    test: CopyingTest


@dataclasses.dataclass(frozen=True)
class ContentDistance:
    """Average content distance (ACD) of each video.

    Attributes:
        all_pairs: float64 (N,), mean distance over all pairs of frames.
        consecutive: float64 (N,), mean distance between consecutive frames.
    """

    all_pairs: np.ndarray
    consecutive: np.ndarray


def precision_recall(real, generated, k: int = 5) -> Coverage:
    """Return precision, recall, density and coverage, using k-th nearest neighbour balls within each set.

    "Inside" is strict, so balls of radius 0 are empty: if more than k vectors are equal, all four drop.

    Args:
        real: Array (N, D), N above k.
        generated: Array (M, D), M above k.
        k: Neighbours, not counting the sample itself.

    Raises:
        ValueError: If features are not finite, too few for k, or of different widths.

    Source: Kynkaanniemi et al., NeurIPS 2019, https://arxiv.org/abs/1904.06991 (precision, recall); Naeem et al., ICML 2020,
        https://arxiv.org/abs/2002.09797 (density, coverage)
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1. Received {k}.")
    real = check_features(real, "real", k + 1)
    generated = check_features(generated, "generated", k + 1, real.shape[1])
    real_radius, generated_radius = _radius(real, k), _radius(generated, k)
    num_balls = np.zeros(len(generated), np.int64)
    recalled, covered = [], []
    for rows, distances in _distance_chunks(real, generated):
        inside = distances < real_radius[rows, None]
        num_balls += inside.sum(axis=0)
        covered.append(inside.any(axis=1))
        recalled.append((distances < generated_radius).any(axis=1))
    return Coverage(
        float((num_balls > 0).mean()),
        float(np.concatenate(recalled).mean()),
        float(num_balls.mean() / k),
        float(np.concatenate(covered).mean()),
    )


def expected_coverage(num_real: int, num_generated: int, k: int = 5) -> float:
    """Return the expected coverage for equal distributions, 1 - prod_{i<k} (N - 1 - i) / (N + M - 1 - i).

    Raises:
        ValueError: If `k` is not in 1..num_real - 1, or `num_generated` is below 1.
    """
    if not 1 <= k < num_real or num_generated < 1:
        raise ValueError(
            f"Expected coverage needs 1 <= k < num_real and num_generated >= 1. Received k={k}, num_real={num_real}, "
            f"num_generated={num_generated}."
        )
    i = np.arange(k)
    return float(1 - np.prod((num_real - 1 - i) / (num_real + num_generated - 1 - i)))


def nearest_neighbours(
    queries, references, k: int = 1, metric: str = "euclidean", exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest references of each query, nearest first, ties in index order.

    Args:
        queries: Array (M, D).
        references: Array (N, D).
        k: 1..N.
        metric: "euclidean" or "cosine" (1 - cosine similarity).
        exclude_self: Queries and references are the same set; a sample is not its own neighbour.

    Returns:
        Distances float64 (M, k) and indices int64 (M, k).

    Raises:
        ValueError: If features are not finite or differ in width, there are fewer than k references, or, for "cosine", a
            vector is zero.
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"`metric` must be 'euclidean' or 'cosine'. Received {metric!r}.")
    queries = check_features(queries, "queries")
    references = check_features(references, "references", dim=queries.shape[1])
    if exclude_self and len(queries) != len(references):
        raise ValueError(
            f"`exclude_self` is for comparing a set with itself. Received {len(queries)} queries, {len(references)} references."
        )
    available = len(references) - bool(exclude_self)
    if not 1 <= k <= available:
        raise ValueError(f"`k` must lie in 1..{available}, the number of references. Received {k}.")
    if metric == "cosine":
        queries, references = _directions(queries, "queries"), _directions(references, "references")
    all_distances, all_indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for rows, distances in _distance_chunks(queries, references):
        if exclude_self:
            distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
        all_indices[rows] = indices
        all_distances[rows] = np.take_along_axis(distances, indices, axis=1)
    if metric == "cosine":
        all_distances = all_distances**2 / 2  # for unit vectors: 1 - a.b
    return all_distances, all_indices


def memorisation(generated, train, held_out, k: int = 5, metric: str = "euclidean") -> Memorisation:
    """Return the nearest training samples of generated ones, and test whether they are closer than real ones would be.

    A shifted or mirrored copy is far away in pixel space: use features, and add flipped and shifted clips to `train`.

    Args:
        generated: Array (M, D).
        train: Array (N, D), the generator's training set.
        held_out: Array (H, D), unseen real samples of the same distribution.
        k: Number of neighbours to return.
        metric: As in `nearest_neighbours`.

    Raises:
        ValueError: As in `nearest_neighbours`.

    Source: Meehan, Chaudhuri, Dasgupta, AISTATS 2020, https://arxiv.org/abs/2004.05675 (the test)
    """
    distances, indices = nearest_neighbours(generated, train, k, metric)
    held_out_distances = nearest_neighbours(held_out, train, 1, metric)[0][:, 0]
    median, usual = np.median(distances[:, 0]), np.median(held_out_distances)
    return Memorisation(
        indices,
        distances,
        held_out_distances,
        float(median / usual) if usual > 0 else math.inf,
        float((distances[:, 0] < np.quantile(held_out_distances, 0.01)).mean()),
        data_copying_test(distances[:, 0], held_out_distances),
    )


def data_copying_test(generated_distances, held_out_distances) -> CopyingTest:
    """Return the Mann-Whitney test on distances to the training set, with correction for ties.

    Args:
        generated_distances: Array (M,), from generated samples to their nearest training sample.
        held_out_distances: Array (H,), from held-out real samples.

    Raises:
        ValueError: If there are none, or any is not finite.

    Source: Meehan, Chaudhuri, Dasgupta, AISTATS 2020, https://arxiv.org/abs/2004.05675
    """
    first, second = (np.asarray(d, np.float64).ravel() for d in (generated_distances, held_out_distances))
    if not len(first) or not len(second) or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError(
            f"The test needs finite distances on both sides. Received {len(first)} of generated and {len(second)} of held-out "
            "samples."
        )
    m, n = len(first), len(second)
    pooled = np.concatenate([first, second])
    u = stats.rankdata(pooled)[:m].sum() - m * (m + 1) / 2
    ties = np.unique(pooled, return_counts=True)[1].astype(np.float64)
    variance = m * n / 12 * (m + n + 1 - np.sum(ties**3 - ties) / ((m + n) * (m + n - 1)))
    z = (u - m * n / 2) / math.sqrt(variance) if variance > 0 else 0.0  # all distances equal
    return CopyingTest(float(u), float(u / (m * n)), float(z), float(2 * special.ndtr(-abs(z))))


def average_content_distance(frame_features) -> ContentDistance:
    """Return ACD, the mean Euclidean distance between the features of a video's frames; lower is more consistent.

    The paper says "average pairwise"; implementations use either all pairs or consecutive frames, so both are given. A
    frozen video scores 0, below every real one: compare with the real value.

    Args:
        frame_features: Array (N, T, D), T at least 2: `mean_colours`, or a face embedding of each frame.

    Raises:
        ValueError: If they are not finite (N, T, D) with at least 2 frames.

    Source: Tulyakov et al., CVPR 2018, Sec. 4.1, https://arxiv.org/abs/1707.04993
    """
    features = np.asarray(frame_features)
    if features.ndim != 3 or features.shape[1] < 2 or 0 in features.shape or features.dtype.kind not in "fiub":
        raise ValueError(
            f"`frame_features` must be numbers (N, T, D) with at least 2 frames. Received shape {features.shape}, dtype "
            f"{features.dtype}."
        )
    features = features.astype(np.float64, copy=False)
    if not np.isfinite(features).all():
        raise ValueError("`frame_features` must be finite. Received NaN or infinity.")
    consecutive = np.linalg.norm(np.diff(features, axis=1), axis=-1).mean(axis=1)
    return ContentDistance(np.array([distance.pdist(video).mean() for video in features]), consecutive)


def mean_colours(videos, masks=None) -> np.ndarray:
    """Return the mean colour of every frame in [0, 1], the ACD features for coloured shapes.

    Args:
        videos: uint8 (N, T, H, W, 3).
        masks: bool (N, T, H, W), object masks; None for the whole frame.

    Returns:
        float64 (N, T, 3).

    Raises:
        ValueError: If the videos are not uint8 RGB, or a frame has an empty mask.
    """
    videos = _check_videos("videos", videos)
    if masks is None:
        return videos.mean(axis=(2, 3), dtype=np.float64) / 255
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.shape != videos.shape[:-1]:
        raise ValueError(
            f"`masks` must be bool of shape {videos.shape[:-1]}. Received shape {masks.shape}, dtype {masks.dtype}."
        )
    sizes = masks.sum(axis=(2, 3))
    if not sizes.all():
        raise ValueError(f"Every frame needs an object. {np.count_nonzero(sizes == 0)} frames have an empty mask.")
    return np.einsum("nthwc,nthw->ntc", videos, masks, dtype=np.float64) / (255 * sizes[..., None])


def motion_energy(videos) -> np.ndarray:
    """Return the mean squared frame-to-frame change per pixel, for values in [0, 1].

    Args:
        videos: uint8 (N, T, H, W, 3), T at least 2.

    Returns:
        float64 (N,); 0 for a frozen video.

    Raises:
        ValueError: If the videos are not uint8 RGB or have only one frame.
    """
    videos = _check_videos("videos", videos, min_frames=2)
    energies = [np.mean(np.square(np.diff(video.astype(np.float32), axis=0)), dtype=np.float64) for video in videos]
    return np.array(energies) / 255**2


def motion_energy_ratio(real, generated) -> float:
    """Return mean motion energy of generated over real videos: 1 is equal motion, 0 frozen; noise is far above 1.

    Args:
        real: uint8 (N, T, H, W, 3), with the frame rate and size of the generated videos.
        generated: uint8 (M, T', H, W, 3).

    Raises:
        ValueError: As in `motion_energy`; if frame sizes differ, or the real videos do not move.
    """
    real, generated = _check_videos("real", real, 2), _check_videos("generated", generated, 2)
    if real.shape[2:] != generated.shape[2:]:
        raise ValueError(
            "Motion energies can only be compared at equal frame sizes: resize one side. Received real frames of "
            f"{real.shape[2]} x {real.shape[3]} and generated ones of {generated.shape[2]} x {generated.shape[3]}."
        )
    reference = motion_energy(real).mean()
    if reference == 0:
        raise ValueError("The real videos do not move, so there is no motion to compare with.")
    return float(motion_energy(generated).mean() / reference)


def _radius(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each sample to its k-th nearest neighbour; sorted rows start with the sample itself, at 0."""
    return np.concatenate([np.partition(d, k, axis=1)[:, k] for _, d in _distance_chunks(features, features)])


def _distance_chunks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances to all of `b`, for a chunk of rows of `a` at a time."""
    step = max(1, _DISTANCES_PER_CHUNK // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, min(start + step, len(a)))
        yield rows, distance.cdist(a[rows], b)


def _directions(features: np.ndarray, name: str) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"`{name}` contains a zero vector, which has no direction: use metric='euclidean'.")
    return features / lengths


def _check_videos(name: str, videos, min_frames: int = 1) -> np.ndarray:
    videos = np.asarray(videos)
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or not videos.size:
        raise ValueError(
            f"`{name}` must be uint8 (N, T, H, W, 3), RGB. Received shape {videos.shape}, dtype {videos.dtype}."
        )
    if videos.shape[1] < min_frames:
        raise ValueError(f"`{name}` needs at least {min_frames} frames per video. Received {videos.shape[1]}.")
    return videos
