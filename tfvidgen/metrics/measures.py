"""Computes each metric's value and interval from the rows of real and generated clips.

Measures based on classifiers trained on labels are in `disentanglement` and `s3`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy import stats

from tfvidgen.features.networks import Networks
from tfvidgen.metrics import distances, diversity, inception
from tfvidgen.metrics.rows import GROUPS, DifferenceGroups
from tfvidgen.metrics.sampling import Clips
from tfvidgen.metrics.statistics import (
    FeatureStatistics,
    SampleSizeWarning,
    bootstrap,
    bootstrap_interval,
    jackknife_interval,
    percentile_interval,
    wilson_interval,
)

NEIGHBOURS = 5  # for precision, recall, density and coverage: prdc's default
_WIDE = 1024  # from this feature dimension on, Frechet jackknives are slow: use half as many groups
_SHEET_CLIPS, _SHEET_NEIGHBOURS = 6, 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """The inputs from which a family computes its value.

    Attributes:
        clips: N, clips per run of the generator.
        num_frames, stride: Frames per clip, and the distance between them.
        network: Name of the feature network, or "".
        variants: Name suffixes, such as `covn`.
        real, generated: Rows by output. Up to N real ones, up to 2 N for network outputs, or all available.
        held_out: Rows of real clips that were not trained on, or None.
        real_clips, generated_clips: Sources of clips, for images and labels.
        networks: For families that train their own.
        sheet: Path of a sheet to draw, or None.
        seed: Seed of random draws.
    """

    clips: int
    num_frames: int
    stride: int
    network: str
    variants: tuple[str, ...]
    real: Mapping[str, np.ndarray]
    generated: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray] | None
    real_clips: Clips
    generated_clips: Clips
    networks: Networks
    sheet: pathlib.Path | None = None
    seed: int = 0

    def features(self, output: str = "features") -> tuple[np.ndarray, np.ndarray]:
        """Rows of at most N real and N generated clips."""
        name = f"{self.network}/{output}"
        return self.real[name][: self.clips], self.generated[name][: self.clips]

    def matched_labels(self, count: int) -> tuple[np.ndarray, int]:
        """Labels of generated clips, mapped to those of real ones, and the number of classes."""
        real_names, names = self.real_clips.label_names(), self.generated_clips.label_names()
        labels = self.generated_clips.labels(count)
        if real_names is None or labels is None:
            without = "real" if real_names is None else "generated"
            raise ValueError(
                f"This metric needs the class of every clip, but the {without} ones have none: put videos into one folder per "
                "class, or evaluate a class-conditional model."
            )
        num_known = len(real_names if names is None else names)
        if labels.max() >= num_known:
            raise ValueError(
                f"A generated clip has class {labels.max()}, but there are {num_known} classes, numbered from 0: this metric needs "
                "a model that has no more categories than its data has classes."
            )
        if names is not None:
            unknown = sorted({names[label] for label in labels} - set(real_names))
            if unknown:
                raise ValueError(
                    f"Generated clips have classes that real ones lack: {', '.join(unknown[:5])}. Use the same names for both."
                )
            labels = np.array([real_names.index(names[label]) for label in labels], np.int32)
        return labels, len(real_names)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A metric's value with its details.

    Attributes:
        value: The metric.
        values: All numbers of the metric, by name.
        interval: 95 % interval, or None.
        interval_of: How the interval was computed, in words.
        beside: Reference values to compare with, in a few words.
        facts: Other details of the computation that could change the number.
        loss: What to minimise when comparing models, or None.
    """

    value: float
    values: dict[str, Any]
    interval: tuple[float, float] | None = None
    interval_of: str = ""
    beside: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: float | None = None


def _groups(num_rows: int, num_groups: int) -> list[slice]:
    bounds = np.arange(num_groups + 1) * num_rows // max(num_groups, 1)
    return [slice(int(a), int(b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _jackknife_words(count: int) -> str:
    return f"95 %, jackknife over {count} groups of clips: the spread over clips, not the bias due to their number"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampleSizeWarning)
        yield


class _Parts:
    """Features in groups, any of which can be left out. Memory does not grow with the number of feature vectors."""

    def __init__(self, rows: np.ndarray, num_groups: int):
        slices = _groups(len(rows), num_groups)
        # with no more rows than columns, the rows themselves are smaller than a covariance
        self._is_rows = len(rows) <= rows.shape[1]
        self._parts = [
            np.asarray(rows[part], np.float64) if self._is_rows else FeatureStatistics.from_features(rows[part])
            for part in slices
        ]

    def joined(self, without: int | None = None) -> Any:
        parts = [part for index, part in enumerate(self._parts) if index != without]
        return np.concatenate(parts) if self._is_rows else parts[0].merge(*parts[1:])


def frechet(measured: Measured) -> Outcome:
    """Frechet distance of the features, with the floor between two sets of real clips."""
    real, generated = measured.features()
    ddof = 0 if "covn" in measured.variants else 1
    num_groups = min(GROUPS if real.shape[1] < _WIDE else GROUPS // 2, len(real) // 2, len(generated) // 2)
    parts = [_Parts(rows, max(1, num_groups)) for rows in (real, generated)]
    result = distances.frechet_result(*(part.joined() for part in parts), ddof)
    with _quiet():
        left_out = [
            distances.frechet_result(*(part.joined(g) for part in parts), ddof).unclamped
            for g in range(num_groups if num_groups > 2 else 0)
        ]
        floor, floor_clips = _floor(
            measured, lambda a, b: distances.frechet_distance(_statistics(a), _statistics(b), ddof)
        )
    interval = jackknife_interval(result.unclamped, left_out)
    values = {
        "distance": result.value,
        "unclamped": result.unclamped,
        "mean_term": result.mean_term,
        "covariance_term": result.covariance_term,
        "floor": floor,
    }
    return Outcome(
        result.value,
        values,
        interval and (max(0.0, interval[0]), interval[1]),
        _jackknife_words(len(left_out)) if interval else "",
        f"real-real floor {_short(floor)} at {floor_clips} clips" if floor is not None else "",
        {
            "covariance": "divided by N - 1" if ddof else "divided by N",
            "feature_width": result.dim,
            "floor_clips": floor_clips,
        },
        result.value,
    )


def _statistics(rows: np.ndarray) -> Any:
    return FeatureStatistics.from_features(rows) if len(rows) > rows.shape[1] else np.asarray(rows, np.float64)


def _floor(measured: Measured, distance: Callable[[np.ndarray, np.ndarray], float]) -> tuple[float | None, int]:
    """The distance between two sets of real clips, N each, or half of them each if there are fewer than 2 N."""
    rows = measured.real[f"{measured.network}/features"]
    count = min(measured.clips, len(rows) // 2)
    if count < 2:
        return None, 0
    return distance(rows[:count], rows[count : 2 * count]), count


def frechet_infinity(measured: Measured) -> Outcome:
    """The Frechet distance extrapolated to infinitely many generated clips, from a line through subsets."""
    real, generated = measured.features()
    ddof = 0 if "covn" in measured.variants else 1
    limit = distances.frechet_infinity(
        _statistics(real), np.asarray(generated, np.float64), ddof=ddof, seed=measured.seed
    )
    half = float(stats.norm.ppf(0.975)) * limit.standard_error
    return Outcome(
        limit.value,
        {"limit": limit.value, "slope": limit.slope, "standard_error": limit.standard_error},
        (limit.value - half, limit.value + half),
        "95 %, of a line fitted to distances of overlapping subsets: too narrow",
        f"FVD {_short(limit.distances[-1])} at {limit.sizes[-1]} clips",
        {
            "sizes": limit.sizes.tolist(),
            "distances": limit.distances.tolist(),
            "subsampled": "generated clips; the bias of the real side stays",
            "covariance": "divided by N - 1" if ddof else "divided by N",
            "feature_width": real.shape[1],
        },
        limit.value,
    )


def kernel_distance(measured: Measured) -> Outcome:
    """Unbiased kernel distance of the features, with the floor between two sets of real clips."""
    real, generated = measured.features()
    value = distances.kernel_distance(real, generated).value
    count = min(len(real), len(generated))
    interval, words = None, ""
    if count >= 4 * GROUPS:
        blocks = distances.kernel_distance(real, generated, math.ceil(max(len(real), len(generated)) / GROUPS))
        half = float(stats.t.ppf(0.975, blocks.num_blocks - 1)) * blocks.standard_error
        interval, words = (
            (value - half, value + half),
            f"95 %, from the spread over {blocks.num_blocks} blocks: too wide",
        )
    floor, floor_clips = _floor(measured, lambda a, b: distances.kernel_distance(a, b).value)
    return Outcome(
        value,
        {"distance": value, "floor": floor},
        interval,
        words,
        f"real-real floor {_short(floor)} at {floor_clips} clips" if floor is not None else "",
        {
            "kernel": "(a.b/D + 1)^3, unbiased: may be negative",
            "feature_width": real.shape[1],
            "floor_clips": floor_clips,
        },
        value,
    )


def coverage(measured: Measured) -> Outcome:
    """Coverage, with precision, recall and density."""
    real, generated = measured.features()
    result = diversity.precision_recall(real, generated, NEIGHBOURS)
    expected = diversity.expected_coverage(len(real), len(generated), NEIGHBOURS)
    return Outcome(
        result.coverage,
        {**dataclasses.asdict(result), "expected_coverage": expected},
        tuple(wilson_interval(result.coverage * len(real), len(real))),
        "95 %, Wilson's, of the coverage with the balls held fixed",
        f"precision {result.precision:.3f}, recall {result.recall:.3f}, density {result.density:.3f}; equal sets {expected:.3f}",
        {"value": "coverage", "k": NEIGHBOURS, "feature_width": real.shape[1]},
        -result.coverage,
    )


def inception_score(variant: str, measured: Measured) -> Outcome:
    """Inception Score in a published variant, or the plain definition if `variant` is ""."""
    logits = measured.generated[f"{measured.network}/logits"]
    runs = [logits[i : i + measured.clips] for i in range(0, len(logits), measured.clips)]
    runs = [run for run in runs if len(run) == measured.clips]
    if variant:
        score = inception.inception_score_of_variant(variant, runs, from_logits=True)
        rule = dataclasses.asdict(inception.INCEPTION_VARIANTS[variant])
    else:
        score, rule = inception.inception_score(runs[0], from_logits=True), {}
    with _quiet():
        real = inception.inception_score(
            measured.real[f"{measured.network}/logits"][: measured.clips], from_logits=True
        )
        num_groups = min(GROUPS, measured.clips // 2) if len(runs) == 1 else 0
        left_out = [
            inception.inception_score(np.delete(runs[0], np.r_[part], axis=0), from_logits=True).value
            for part in _groups(measured.clips, num_groups if num_groups > 2 else 0)
        ]
    if len(runs) > 1:
        interval = (score.value - 2 * score.spread, score.value + 2 * score.spread)
        words = f"two standard deviations over {len(runs)} runs"
    else:
        interval = jackknife_interval(score.value, left_out)
        words = _jackknife_words(len(left_out)) if interval else ""
    return Outcome(
        score.value,
        {
            "score": score.value,
            "spread": score.spread,
            "marginal_entropy": score.marginal_entropy,
            "conditional_entropy": score.conditional_entropy,
            "real": real.value,
        },
        interval,
        words,
        f"real clips {_short(real.value)}",
        {"runs": len(runs), "variant": score.variant, "rule": rule, "classes": int(logits.shape[1])},
        -score.value,
    )


def motion_consistency(measured: Measured) -> Outcome:
    """MCS from the mean frame differences of groups of clips."""
    num_real = min(measured.clips, measured.real_clips.available or measured.clips)
    real = DifferenceGroups(measured.real["differences"], num_real)
    generated = DifferenceGroups(measured.generated["differences"], measured.clips)
    scores, left_out = {}, []
    for row, kind in enumerate(("signed", "absolute")):
        squared = float(np.sum((real.mean(row) - generated.mean(row)) ** 2))
        scores[f"{kind}_squared_distance"] = squared
        scores[f"{kind}_mcs"] = _log10(squared)
        scores[f"{kind}_mcs1"] = math.log10(1 + squared)
    for group in range(min(len(real), len(generated)) if min(len(real), len(generated)) > 2 else 0):
        left_out.append(_log10(float(np.sum((real.mean(0, group) - generated.mean(0, group)) ** 2))))
    floor = None
    if len(real) > 1:
        halves = [real.mean(0, slice(0, None, 2)), real.mean(0, slice(1, None, 2))]
        floor = _log10(float(np.sum((halves[0] - halves[1]) ** 2)))
    interval = jackknife_interval(scores["signed_mcs"], left_out)
    return Outcome(
        scores["signed_mcs"],
        {**scores, "floor": floor},
        interval,
        _jackknife_words(len(left_out)) if interval else "",
        f"absolute {_short(scores['absolute_mcs'])}; two halves of the real clips {_short(floor)}"
        if floor is not None
        else "",
        {
            "value": "log10 |f - f^|^2 of mean signed differences: only first and last frames count",
            "layer": "VGG16 relu3_3, flattened",
        },
        scores["signed_mcs"],
    )


def _log10(squared: float) -> float:
    return math.log10(squared) if squared else -math.inf


def frame_consistency(measured: Measured) -> Outcome:
    """FCS of the generated clips, with that of the real ones."""
    real, generated = measured.real["fcs"][:, 0], measured.generated["fcs"][:, 0]
    value, beside = float(generated.mean()), float(real.mean())
    frames = measured.num_frames
    return Outcome(
        value,
        {
            "generated": value,
            "real": beside,
            "difference": abs(value - beside),
            "generated_with_first": (1 + (frames - 1) * value) / frames,
            "real_with_first": (1 + (frames - 1) * beside) / frames,
        },
        tuple(bootstrap_interval(generated, seed=measured.seed)),
        "95 %, bootstrap over generated clips",
        f"real clips {beside:.4f}; a frozen video has 1",
        {"ssim": "11x11 Gaussian, sigma 1.5, mean over channels and over frames 2..T with frame 1"},
        abs(value - beside),
    )


def content_distance(measured: Measured) -> Outcome:
    """ACD of mean colours of the generated clips, with that of the real ones."""
    real, generated = measured.real["acd"], measured.generated["acd"]
    value, beside = float(generated[:, 0].mean()), float(real[:, 0].mean())
    return Outcome(
        value,
        {
            "all_pairs": value,
            "consecutive": float(generated[:, 1].mean()),
            "real_all_pairs": beside,
            "real_consecutive": float(real[:, 1].mean()),
        },
        tuple(bootstrap_interval(np.array(generated[:, 0]), seed=measured.seed)),
        "95 %, bootstrap over generated clips",
        f"real clips {_short(beside)}; a frozen video has 0",
        {"features": "mean colour of the whole frame in [0, 1]", "pairs": "all"},
        abs(value - beside),
    )


def motion_energy(measured: Measured) -> Outcome:
    """Motion energy of generated over real clips; NaN if the real ones do not move."""
    real, generated = np.array(measured.real["motion"][:, 0]), np.array(measured.generated["motion"][:, 0])
    reference = float(real.mean())
    if reference == 0:
        warnings.warn("The real clips do not move, so there is no motion to compare with.", stacklevel=2)
        facts = {"generated": float(generated.mean()), "real": 0.0}
        return Outcome(math.nan, facts, beside="the real clips do not move")
    value = float(generated.mean()) / reference
    above, below = (bootstrap(rows, seed=measured.seed + i) for i, rows in enumerate((generated, real)))
    return Outcome(
        value,
        {"ratio": value, "generated": float(generated.mean()), "real": reference},
        tuple(percentile_interval(above[below > 0] / below[below > 0])),
        "95 %, bootstrap over the clips of both sides",
        "1 is as much motion as real clips have, 0 is frozen",
        {"energy": "mean square change of a pixel in [0, 1] from a frame to the next"},
        abs(math.log(value)) if value else math.inf,
    )


def duplicates(measured: Measured) -> Outcome:
    """Share of generated clips that repeat an earlier one, and share that equal a real one."""
    generated = [row.tobytes() for row in measured.generated["sha256"][: measured.clips]]
    real = {row.tobytes() for row in measured.real["sha256"]}
    repeated = len(generated) - len(set(generated))
    copied = sum(row in real for row in generated)
    value = repeated / len(generated)
    return Outcome(
        value,
        {"repeated": value, "equal_to_real": copied / len(generated), "different": len(set(generated))},
        tuple(wilson_interval(repeated, len(generated))),
        "95 %, Wilson's",
        f"{len(set(generated))} different clips; {copied} equal to one of {len(measured.real['sha256'])} real ones",
        {"equal": "every pixel of every frame", "real_clips_searched": len(measured.real["sha256"])},
        value,
    )


def nearest(measured: Measured) -> Outcome:
    """Median distance to the nearest real clip over the usual one, the data-copying test, and a sheet if requested."""
    real = measured.real[f"{measured.network}/features"]
    generated = measured.generated[f"{measured.network}/features"][: measured.clips]
    k = min(_SHEET_NEIGHBOURS, len(real))
    if measured.held_out is not None:
        held_out = measured.held_out[f"{measured.network}/features"]
        found = diversity.memorisation(generated, real, held_out, k)
        reference, words = found.held_out_distances, f"{len(held_out)} real clips that were not trained on"
        near, indices, test = found.distances, found.indices, found.test
    else:
        near, indices = diversity.nearest_neighbours(generated, real, k)
        reference = diversity.nearest_neighbours(real, real, 1, exclude_self=True)[0][:, 0]
        words = "each real clip to its nearest other one"
        test = diversity.data_copying_test(near[:, 0], reference)
    usual = float(np.median(reference))
    ratio = float(np.median(near[:, 0])) / usual if usual else math.inf
    values = {
        "median_ratio": ratio,
        "share_below": float((near[:, 0] < np.quantile(reference, 0.01)).mean()),
        "copying_share": test.share,
        "copying_z": test.z,
        "copying_p": test.p_value,
    }
    if measured.sheet is not None:
        _draw_nearest(measured, near, indices)
    medians = bootstrap(near[:, 0], np.median, seed=measured.seed)
    interval = tuple(percentile_interval(medians / usual)) if usual else None
    return Outcome(
        ratio,
        values,
        interval,
        "95 %, bootstrap over generated clips",
        f"copying test z = {test.z:.2f}; well below 1, with z far below 0, indicates copies",
        {
            "value": "median distance to the nearest real clip over that of the reference",
            "reference": words,
            "real_clips_searched": len(real),
            "sheet": measured.sheet.name if measured.sheet else None,
        },
    )


def _draw_nearest(measured: Measured, near: np.ndarray, indices: np.ndarray) -> None:
    """Draws the generated clips nearest to a real one, each above its nearest real clips."""
    from tfvidgen import visualize

    closest = np.argsort(near[:, 0], kind="stable")[:_SHEET_CLIPS]
    made = measured.generated_clips.take(closest, measured.num_frames, measured.stride)
    rows, labels = [], []
    for position, clip in zip(closest, made, strict=True):
        rows.append(clip)
        labels.append(f"generated: {measured.generated_clips.name(position)}")
        found = indices[position]
        rows += measured.real_clips.take(found, measured.num_frames, measured.stride)
        labels += [
            f"real, {distance:.3g} away: {measured.real_clips.name(index)}"
            for index, distance in zip(found, near[position], strict=True)
        ]
    title = f"Generated clips and the real ones nearest to them ({measured.network} features)"
    sheet = visualize.contact_sheet(rows, row_labels=labels, title=title, group_sizes=[1 + near.shape[1]] * len(made))
    visualize.save_png(measured.sheet, sheet)


def lpips_diversity(measured: Measured) -> Outcome:
    """Mean LPIPS of random pairs of generated clips, with that of real ones."""
    real, generated = (np.array(side["lpips"][:, 0]) for side in (measured.real, measured.generated))
    value, beside = float(generated.mean()), float(real.mean())
    return Outcome(
        value,
        {"generated": value, "real": beside},
        tuple(bootstrap_interval(generated, seed=measured.seed)) if len(generated) > 1 else None,
        "95 %, bootstrap over pairs" if len(generated) > 1 else "",
        f"real clips {_short(beside)}; noise has more",
        {"pairs": len(generated), "of": "random pairs of clips, same frame of both, mean over frames"},
        abs(value - beside),
    )


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
