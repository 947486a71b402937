"""What each metric is: the rows of numbers that it needs of every clip, and how a value and its interval come of them.

A family is a metric without its numbers of clips and frames; `protocols` puts them together. Rows are gathered clip by
clip in one pass over each side, whatever the number of metrics, and never held in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from tfvidgen.metrics import consistency, disentanglement, distances, diversity, inception, s3
from tfvidgen.metrics.sampling import Clips, ModelClips, VideoClips
from tfvidgen.metrics.statistics import (
    FeatureStatistics,
    SampleSizeWarning,
    bootstrap,
    bootstrap_interval,
    percentile_interval,
    wilson_interval,
)

if TYPE_CHECKING:
    from tfvidgen.features.base import FeatureExtractor

GROUPS = 10  # of a jackknife
NEIGHBOURS = 5  # of precision, recall, density and coverage: prdc's default
S3_SEEDS = 3
_S3_DRAWS = 4  # clips that a model may make for each real one, to have as many of every class
_WIDE = 1024  # features from here on make a jackknife of a Frechet distance slow: half as many groups
_PIXELS = 8  # of a side, where pixels are features
_SHEET_CLIPS, _SHEET_NEIGHBOURS = 6, 3
_VGG_FRAMES = 32  # in the network at a time


# ---- networks -------------------------------------------------------------------------------------------------------


class Networks:
    """The feature networks of metrics, made when they are first needed.

    Args:
        weights: Where weights lie, by name: `i3d`, `resnext101`, `r3d18`, `r3d50`, `c3d`, `c3d_mean`, `vgg16`, `lpips`. And
            `i3d_network`: "saved_model" runs the published graph itself.
        judge: Called with frames and stride of a clip, and labels int (N,) of the real videos or None for the usual ones;
            returns the judge of these clips. None where there is none.
        extractors: Networks of one's own by the names that families use (`i3d`, `judge` ...), in place of those made here.
        classifier: Settings of the classifiers that S3 trains, fields of `features.judge.ClassifierConfig`.
        scope: Called for a context in which networks are made, such as `strategy.scope`, to spread batches over replicas.
        hint: Added to the error about missing weights: how to pass them.
    """

    def __init__(
        self,
        weights: Mapping[str, str] | None = None,
        judge: Callable[[int, int, np.ndarray | None], FeatureExtractor] | None = None,
        extractors: Mapping[str, Any] | None = None,
        classifier: Mapping[str, Any] | None = None,
        scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        hint: str = "",
    ):
        self.weights = {name: path for name, path in (weights or {}).items() if path}
        self.classifier = dict(classifier or {})
        self._judge, self._scope, self._hint = judge, scope, hint
        self._made: dict[Any, Any] = dict(extractors or {})

    def get(self, name: str, num_frames: int, stride: int) -> Any:
        """The network of a name, for clips of so many frames.

        Raises:
            ValueError: If its weights are missing: which file, where it is to be had, under which terms, how to pass it.
        """
        key = (name, num_frames, stride) if name in ("judge", "pixels") else name
        for known in (name, key):
            if known in self._made:
                return self._made[known]
        with self._scope() if name != "judge" else contextlib.nullcontext():
            self._made[key] = self._make(name, num_frames, stride)
        return self._made[key]

    def judge_of(self, attribute: str, labels: np.ndarray, num_frames: int, stride: int) -> Any:
        """A judge of other labels than the usual ones, int (N,) of the real videos."""
        name = f"judge_{attribute}"
        key = next((known for known in (name, (name, num_frames, stride)) if known in self._made), None)
        if key is None:
            key = name, num_frames, stride
            self._made[key] = self._trained_judge(num_frames, stride, labels)
        return self._made[key]

    def _trained_judge(self, num_frames: int, stride: int, labels: np.ndarray | None) -> Any:
        if self._judge is None:
            raise ValueError(
                "This metric needs a judge, a small classifier trained on the real labelled clips: ask for one "
                "(--features=judge)."
            )
        return self._judge(num_frames, stride, labels)

    def _make(self, name: str, num_frames: int, stride: int) -> Any:
        if name == "judge":
            return self._trained_judge(num_frames, stride, None)
        if name == "pixels":
            return pixel_features(num_frames)
        if name.startswith("i3d"):
            from tfvidgen.features.i3d import I3D_WEIGHTS, I3DFeatures

            resize = "half-pixel" if name == "i3d_halfpixel" else "tf1-bilinear"
            network = self.weights.get("i3d_network", "keras")
            return I3DFeatures(self._weights("i3d", I3D_WEIGHTS), resize=resize, network=network)
        if name.startswith("c3d"):
            from tfvidgen.features.c3d import C3D_WEIGHTS, C3DFeatures

            weights = self._weights("c3d", C3D_WEIGHTS)
            return C3DFeatures(weights, self.weights.get("c3d_mean"), preprocessing=name.removeprefix("c3d_"))
        if name == "vgg16":
            from tfvidgen.features.vgg16 import VGG16_WEIGHTS

            return VGG16Maps(self._weights("vgg16", VGG16_WEIGHTS))
        if name == "lpips":
            from tfvidgen.features.lpips import LPIPS, LPIPS_WEIGHTS

            return LPIPS(self._weights("vgg16", LPIPS_WEIGHTS), self._weights("lpips", LPIPS_WEIGHTS))
        from tfvidgen.features.resnet3d import RESNET3D_WEIGHTS, ResNet3DFeatures

        architecture = {"resnext101": "resnext101", "r3d18": "resnet18", "r3d50": "resnet50"}[name]
        return ResNet3DFeatures(self._weights(name, RESNET3D_WEIGHTS), architecture)

    def _weights(self, name: str, info: Any) -> str:
        if name in self.weights:
            return self.weights[name]
        error = info.error(f"no weights are given ({name})")
        raise ValueError(f"{error} {self._hint.format(name=name)}".rstrip())


class VGG16Maps:
    """Maps of VGG16 after relu3_3, of frames at their own size."""

    def __init__(self, weights: str):
        from tfvidgen._tensorflow import tf
        from tfvidgen.features.vgg16 import VGG16Features

        self._tf, self._network = tf, VGG16Features(("block3_conv3",), weights=weights)
        self._function = tf.function(
            lambda frames: self._network(tf.cast(frames, tf.float32) / 127.5 - 1.0)["block3_conv3"],
            reduce_retracing=True,
        )

    def record(self) -> dict[str, Any]:
        return {
            "name": "vgg16_block3_conv3",
            "weights_sha256": self._network.weights_digest,
            "weights": self._network.weights_source,
            "preprocessing": self._network.preprocessing,
            "resize": "none",
        }

    def __call__(self, video: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3) -> float32 (T, H / 4, W / 4, 256)."""
        from tfvidgen.features.base import exact_float32

        parts = [video[i : i + _VGG_FRAMES] for i in range(0, len(video), _VGG_FRAMES)]
        with exact_float32():
            return np.concatenate([self._function(self._tf.constant(part)).numpy() for part in parts])


def pixel_features(num_frames: int):
    """A `FeatureExtractor` without weights: every frame shrunk to 8 x 8 pixels. For neighbours, where nothing else is at hand."""
    from tfvidgen.features.base import FeatureExtractor, resize_videos

    class PixelFeatures(FeatureExtractor):
        name = f"pixels_{_PIXELS}x{_PIXELS}_{num_frames}f"
        dim = num_frames * _PIXELS**2 * 3
        min_frames = max_frames = num_frames
        batch_size = 16
        digest = "none"

        def outputs(self, videos):
            from tfvidgen._tensorflow import tf

            shrunk = resize_videos(videos, _PIXELS, _PIXELS, "pil-bilinear") / 255.0
            return {"features": tf.reshape(shrunk, (-1, self.dim))}

    return PixelFeatures()


# ---- rows of clips --------------------------------------------------------------------------------------------------


class Job:
    """Something computed of every clip in a pass over one side.

    Attributes:
        outputs: Names of what it gives -> what they were computed with, ready for JSON.
        is_costly: Whether the rows of real clips are worth keeping.
        real_share: How many real clips are wanted for each generated one: 2 to compare real clips with real ones besides,
            infinity to search all.
    """

    outputs: dict[str, dict[str, Any]]
    is_costly = False
    real_share: float = 1

    def add(self, clips: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of the next clips, uint8 (n, T, H, W, 3), by output; nothing where rows come at the end."""
        raise NotImplementedError(f"{type(self).__name__} must implement `add`.")

    def finish(self) -> dict[str, np.ndarray]:
        """Rows that only the whole set gives. The job is as new afterwards."""
        return {}


class ClipRows(Job):
    """A function of a batch of clips that gives a row for each."""

    def __init__(self, name: str, function: Callable[[np.ndarray], np.ndarray]):
        self._name, self._function = name, function
        self.outputs = {name: {"rows": name}}

    def add(self, clips, outputs):
        return {self._name: self._function(clips)}


class NetworkRows(Job):
    """Features and logits of a network."""

    is_costly = True

    def __init__(self, name: str, extractor: FeatureExtractor, outputs: Sequence[str], searches_all: bool = False):
        self._name, self._extractor = name, extractor
        self.real_share = math.inf if searches_all else 2
        self.outputs = {f"{name}/{output}": {"network": extractor.record(), "output": output} for output in outputs}

    def add(self, clips, outputs):
        wanted = [output.removeprefix(f"{self._name}/") for output in outputs]
        parts = list(self._extractor.stream_outputs([clips], wanted))
        return {f"{self._name}/{output}": np.concatenate([part[output] for part in parts]) for output in wanted}


class DifferenceRows(Job):
    """Mean signed and absolute difference of VGG16 maps from a frame to the next, of GROUPS parts of the clips."""

    is_costly = True

    def __init__(self, maps: Callable[[np.ndarray], np.ndarray], record: dict[str, Any]):
        self._maps = maps
        self.outputs = {"differences": {"network": record, "groups": GROUPS, "dealt": "in turn"}}
        self._new()

    def _new(self) -> None:
        self._groups = [consistency.FrameDifferences() for _ in range(GROUPS)]
        self._seen = 0

    def add(self, clips, outputs):
        for clip in clips:
            self._groups[self._seen % GROUPS].update(self._maps(clip)[None])
            self._seen += 1
        return {}

    def finish(self):
        """(2 G, D): a signed and an absolute row of each group that has clips."""
        groups = [group for group in self._groups if group.count]
        self._new()
        return {"differences": np.stack([row for group in groups for row in (group.signed, group.absolute)])}


class PairRows(Job):
    """LPIPS of neighbouring clips, frame by frame: random pairs, because the order of clips is random."""

    is_costly = True

    def __init__(self, lpips: Any):
        self._lpips = lpips
        self.outputs = {"lpips": {"network": lpips.record(), "pairs": "clips 2i and 2i + 1"}}

    def add(self, clips, outputs):
        pairs = len(clips) // 2
        if not pairs:
            return {}
        return {"lpips": self._lpips(clips[0 : 2 * pairs : 2], clips[1 : 2 * pairs : 2]).mean(axis=1, keepdims=True)}


def digests(clips: np.ndarray) -> np.ndarray:
    """uint8 (n, 32): the SHA-256 of each clip's pixels."""
    rows = [hashlib.sha256(np.ascontiguousarray(clip).data).digest() for clip in clips]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)


def _fcs(clips: np.ndarray) -> np.ndarray:
    return consistency.frame_consistency_score(clips)[:, None]


def _acd(clips: np.ndarray) -> np.ndarray:
    acd = diversity.average_content_distance(diversity.mean_colours(clips))
    return np.stack([acd.all_pairs, acd.consecutive], axis=1)


def _motion(clips: np.ndarray) -> np.ndarray:
    return diversity.motion_energy(clips)[:, None]


NETWORK_OF_JOB = {"differences": "vgg16", "lpips": "lpips"}
_CLIP_FUNCTIONS = {"sha256": digests, "fcs": _fcs, "acd": _acd, "motion": _motion}


def make_job(
    name: str, networks: Networks, num_frames: int, stride: int, outputs: Sequence[str], searches_all: bool
) -> Job:
    """The job of a name: a function of clips, or a network."""
    if name in _CLIP_FUNCTIONS:
        return ClipRows(name, _CLIP_FUNCTIONS[name])
    network = networks.get(NETWORK_OF_JOB.get(name, name), num_frames, stride)
    if name == "differences":
        return DifferenceRows(network, network.record())
    if name == "lpips":
        return PairRows(network)
    return NetworkRows(name, network, outputs, searches_all)


# ---- measuring ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a family computes its value from.

    Attributes:
        clips: N, clips of one run of the generator.
        num_frames, stride: Of a clip.
        network: Name of the feature network, or "".
        variants: Of the name, such as `covn`.
        real, generated: Rows by output. There are up to N real ones, of a network's up to 2 N, or all there are.
        held_out: Rows of real clips that were not trained on, or None.
        real_clips, generated_clips: Where clips come from, for pictures and labels.
        networks: For families that train their own.
        sheet: File of a picture to draw, or None.
        seed: Of draws.
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
        """Rows of up to N real and N generated clips."""
        name = f"{self.network}/{output}"
        return self.real[name][: self.clips], self.generated[name][: self.clips]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A value with what belongs to it.

    Attributes:
        value: The metric.
        values: Every number of it, by name.
        interval: 95 %, or None.
        interval_of: How the interval was made, in words.
        beside: What to read the value beside, in a few words.
        facts: What else of the computation could change the number.
        loss: What to minimise in a comparison of models, or None.
    """

    value: float
    values: dict[str, Any]
    interval: tuple[float, float] | None = None
    interval_of: str = ""
    beside: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: float | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """A metric without numbers of clips and frames.

    Attributes:
        help: One line.
        measure: Computes it.
        networks: Feature networks that it may run on, the default first; empty for none.
        outputs: What it needs of its network, or jobs by name where it has none.
        variants: Words that may stand at the end of its name.
        ranks: Whether models can be ranked by it.
        searches_all: Whether it looks at all real clips there are, not at as many as generated ones.
        num_runs: Independent runs of the generator, each of the named number of clips.
        default_clips: Where the name has no number; None for as many as there are real clips, at most 2048.
        default_frames: Where the name has none; None for the length that the generator makes.
    """

    help: str
    measure: Callable[[Measured], Outcome]
    networks: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("features",)
    variants: tuple[str, ...] = ()
    ranks: bool = True
    searches_all: bool = False
    num_runs: int = 1
    default_clips: int | None = None
    default_frames: int | None = None


def _groups(num_rows: int, num_groups: int) -> list[slice]:
    bounds = np.arange(num_groups + 1) * num_rows // max(num_groups, 1)
    return [slice(int(a), int(b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def jackknife(value: float, left_out: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a value from those that come when each of some groups is left out in turn.

    Unlike a bootstrap it repeats no sample, so it may be used with covariances and neighbours. None below three groups.
    """
    count = len(left_out)
    if count < 3 or not np.isfinite([value, *left_out]).all():
        return None
    error = math.sqrt((count - 1) / count * np.sum((np.asarray(left_out) - np.mean(left_out)) ** 2))
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return value - half, value + half


def _jackknife_words(count: int) -> str:
    return f"95 %, jackknife over {count} groups of clips: the spread over clips, not the bias of their number"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampleSizeWarning)
        yield


class _Parts:
    """A set of features in groups, of which any can be left out. Memory does not grow with the number of features."""

    def __init__(self, rows: np.ndarray, num_groups: int):
        slices = _groups(len(rows), num_groups)
        # no more rows than a row has numbers: then the rows are the smaller description
        self._is_rows = len(rows) <= rows.shape[1]
        self._parts = [
            np.asarray(rows[part], np.float64) if self._is_rows else FeatureStatistics.from_features(rows[part])
            for part in slices
        ]

    def joined(self, without: int | None = None) -> Any:
        parts = [part for index, part in enumerate(self._parts) if index != without]
        return np.concatenate(parts) if self._is_rows else parts[0].merge(*parts[1:])


def _frechet(measured: Measured) -> Outcome:
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
    interval = jackknife(result.unclamped, left_out)
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
    """The distance of real clips from other real clips, at N each or, with fewer than 2 N, at half of them each."""
    rows = measured.real[f"{measured.network}/features"]
    count = min(measured.clips, len(rows) // 2)
    if count < 2:
        return None, 0
    return distance(rows[:count], rows[count : 2 * count]), count


def _frechet_infinity(measured: Measured) -> Outcome:
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
        "95 %, of a line through distances of overlapping subsets: too narrow",
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


def _kernel(measured: Measured) -> Outcome:
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


def _coverage(measured: Measured) -> Outcome:
    real, generated = measured.features()
    result = diversity.precision_recall(real, generated, NEIGHBOURS)
    expected = diversity.expected_coverage(len(real), len(generated), NEIGHBOURS)
    return Outcome(
        result.coverage,
        {**dataclasses.asdict(result), "expected_coverage": expected},
        tuple(wilson_interval(result.coverage * len(real), len(real))),
        "95 %, Wilson's, of the coverage with the balls as they are",
        f"precision {result.precision:.3f}, recall {result.recall:.3f}, density {result.density:.3f}; equal sets {expected:.3f}",
        {"value": "coverage", "k": NEIGHBOURS, "feature_width": real.shape[1]},
        -result.coverage,
    )


def _inception(variant: str, measured: Measured) -> Outcome:
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
        interval = jackknife(score.value, left_out)
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


def _motion_consistency(measured: Measured) -> Outcome:
    num_real = min(measured.clips, measured.real_clips.available or measured.clips)
    real = _DifferenceGroups(measured.real["differences"], num_real)
    generated = _DifferenceGroups(measured.generated["differences"], measured.clips)
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
    interval = jackknife(scores["signed_mcs"], left_out)
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


class _DifferenceGroups:
    """Rows of `DifferenceRows`, joined again with the weights of their groups."""

    def __init__(self, rows: np.ndarray, num_clips: int):
        self._rows = rows.reshape(-1, 2, rows.shape[-1])
        self._weights = np.bincount(np.arange(num_clips) % GROUPS)  # clips were dealt in turn

    def __len__(self) -> int:
        return len(self._rows)

    def mean(self, row: int, without: int | slice | None = None) -> np.ndarray:
        kept = np.ones(len(self), bool)
        if without is not None:
            kept[without] = False
        return np.average(self._rows[kept, row], axis=0, weights=self._weights[kept])


def _log10(squared: float) -> float:
    return math.log10(squared) if squared else -math.inf


def _frame_consistency(measured: Measured) -> Outcome:
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


def _content_distance(measured: Measured) -> Outcome:
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


def _motion_energy(measured: Measured) -> Outcome:
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


def _duplicates(measured: Measured) -> Outcome:
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


def _nearest(measured: Measured) -> Outcome:
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
        f"copying test z = {test.z:.2f}; well below 1, with z far below 0, says copies",
        {
            "value": "median distance to the nearest real clip over that of the reference",
            "reference": words,
            "real_clips_searched": len(real),
            "sheet": measured.sheet.name if measured.sheet else None,
        },
    )


def _draw_nearest(measured: Measured, near: np.ndarray, indices: np.ndarray) -> None:
    """The generated clips that lie nearest to a real one, each above its nearest real ones."""
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


def _lpips_diversity(measured: Measured) -> Outcome:
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


def _matched_labels(measured: Measured, count: int) -> tuple[np.ndarray, int]:
    """Labels of generated clips as those of real ones, and the number of classes."""
    real_names, names = measured.real_clips.label_names(), measured.generated_clips.label_names()
    labels = measured.generated_clips.labels(count)
    if real_names is None or labels is None:
        without = "real" if real_names is None else "generated"
        raise ValueError(
            f"This metric needs the class of every clip, and the {without} ones have none: put videos into one folder per "
            "class, or measure a model that generates by class."
        )
    num_known = len(real_names if names is None else names)
    if labels.max() >= num_known:
        raise ValueError(
            f"A generated clip is of class {labels.max()}, and there are {num_known} classes from 0 on: this metric needs a model "
            "that has no more categories than its data has classes."
        )
    if names is not None:
        unknown = sorted({names[label] for label in labels} - set(real_names))
        if unknown:
            raise ValueError(
                f"Generated clips have classes that real ones have not: {', '.join(unknown[:5])}. Name both alike."
            )
        labels = np.array([real_names.index(names[label]) for label in labels], np.int32)
    return labels, len(real_names)


def _judge_accuracy(measured: Measured) -> Outcome:
    from tfvidgen.features.base import softmax

    labels, _ = _matched_labels(measured, measured.clips)
    real, generated = (softmax(logits) for logits in measured.features("logits"))
    scores = disentanglement.judge_scores(generated, labels)
    real_labels = measured.real_clips.labels(len(real))
    hits = round(scores.accuracy * len(labels))
    return Outcome(
        scores.accuracy,
        {**dataclasses.asdict(scores), "real_accuracy": float((real.argmax(1) == real_labels).mean())},
        tuple(wilson_interval(hits, len(labels))),
        "95 %, Wilson's",
        f"real clips {float((real.argmax(1) == real_labels).mean()):.3f}; chance {1 / generated.shape[1]:.3f}",
        {"classes": generated.shape[1]},
        -scores.accuracy,
    )


def _attributes(videos: Any) -> dict[str, np.ndarray]:
    """Labels of each attribute, int (N,): the action and the identity, or what an identity is made of where its name says."""
    parts = [re.findall(r"([a-z]+)(\d+)(?:_|$)", name) for name in videos.identity_names]
    names = [name for name, _ in parts[0]]  # of Sprites: body, bottom, top, hair
    if len(names) < 2 or any([name for name, _ in part] != names for part in parts):
        return {"action": videos.action, "identity": videos.identity}
    choices = np.array([[int(choice) for _, choice in part] for part in parts])[videos.identity]
    composed = {name: np.unique(column, return_inverse=True)[1] for name, column in zip(names, choices.T, strict=True)}
    return {"action": videos.action, **{name: labels for name, labels in composed.items() if labels.any()}}


def _swap(measured: Measured) -> Outcome:
    real, made, frames = measured.real_clips, measured.generated_clips, (measured.num_frames, measured.stride)
    is_trained = isinstance(real, VideoClips) and real.origin.get("split") == "trained"
    if not isinstance(made, ModelClips) or not is_trained:
        raise ValueError(
            "This metric keeps one code of a training video and draws the others anew: measure a run, against the videos it was "
            "trained on (--run_dir, --split=trained)."
        )
    if real.videos.action is None or real.videos.identity is None:
        raise ValueError("This metric needs the identity and the action of every training video, and they have none.")
    ids = real.video_ids(min(measured.clips, len(real.videos)))
    attributes = _attributes(real.videos)
    judges = {name: measured.networks.judge_of(name, labels, *frames) for name, labels in attributes.items()}
    truth = {name: labels[ids] for name, labels in attributes.items()}
    values, action, swapped = {}, None, {}
    for keeps_content, kept in ((False, ("action",)), (True, tuple(name for name in attributes if name != "action"))):
        clips = made.redrawn(ids, keeps_content, *frames)
        probabilities = {name: judge.probabilities(clips) for name, judge in judges.items()}
        found = disentanglement.attribute_accuracies(probabilities, truth, kept)
        word = "content" if keeps_content else "motion"
        values |= {f"{name}_accuracy_{word}_kept": each.accuracy for name, each in found.items()}
        if not keeps_content:
            action = found["action"]
            scores = dataclasses.asdict(disentanglement.judge_scores(probabilities["action"], truth["action"]))
            values |= {name: scores[name] for name in ("inception_score", "marginal_entropy", "conditional_entropy")}
            swapped = {name: each for name, each in found.items() if name != "action"}
    beside = ", ".join(f"{name} {each.accuracy:.3f} (chance {each.chance:.3f})" for name, each in swapped.items())
    return Outcome(
        action.accuracy,
        values,
        tuple(action.interval),
        "95 %, Wilson's, of the action with its code kept",
        f"swapped: {beside}",
        {
            "judges": {name: judge.record() for name, judge in judges.items()},
            "chance": {name: 1 / judge.num_classes for name, judge in judges.items()},
            "source_videos": len(ids),
        },
    )


def _s3(network: str, measured: Measured) -> Outcome:
    from tfvidgen.features.judge import VideoClassifier

    def clips(source: Clips, labels: np.ndarray, is_chosen: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """(clips, labels) to train on and to test on: two thirds and one third of each class."""
        kept, first = [], 0
        for batch in source.batches(len(labels), measured.num_frames, measured.stride):
            kept.append(batch[is_chosen[first : first + len(batch)]])
            first += len(batch)
        videos, labels = np.concatenate(kept), labels[is_chosen]
        is_test = _rank_in_class(labels) % 3 == 2
        return (videos[~is_test], labels[~is_test]), (videos[is_test], labels[is_test])

    count = min(measured.clips, measured.real_clips.available or measured.clips)
    made, num_classes = _matched_labels(measured, measured.generated_clips.available or _S3_DRAWS * count)
    labels = measured.real_clips.labels(count)
    is_chosen = _class_matched(made, labels)
    real_train, real_test = clips(measured.real_clips, labels, np.ones(count, bool))
    last = np.flatnonzero(is_chosen).max(initial=0) + 1
    synthetic_train, synthetic_test = clips(measured.generated_clips, made[:last], is_chosen[:last])
    num_tested = min(len(real_test[1]), len(synthetic_test[1]))
    if not num_tested or min(len(np.unique(labels)) for _, labels in (real_train, synthetic_train)) < 2:
        raise ValueError(
            f"S3 trains on two classes or more and tests on a third of each, and there are too few clips: {count} real and "
            f"{is_chosen.sum()} generated ones. Measure more clips, at least three of a class."
        )
    predicted: dict[str, list[np.ndarray]] = {"ser": [], "res": [], "rer": []}
    for seed in range(S3_SEEDS):
        settings = {**measured.networks.classifier, "network": network, "num_frames": measured.num_frames, "seed": seed}
        of_real = VideoClassifier(num_classes, **settings).fit(*real_train)
        of_synthetic = VideoClassifier(num_classes, **settings).fit(*synthetic_train)
        predicted["ser"].append(of_synthetic.predict(real_test[0]))
        predicted["res"].append(of_real.predict(synthetic_test[0]))
        predicted["rer"].append(of_real.predict(real_test[0]))
    tested = {"ser": real_test[1], "res": synthetic_test[1], "rer": real_test[1]}
    score = s3.s3_from_predictions(*((np.stack(predicted[name]), tested[name]) for name in ("ser", "res", "rer")))
    return Outcome(
        score.value,
        {name: getattr(score, name) for name in ("value", "ser", "res", "rer", "spread", "per_seed")},
        tuple(score.interval),
        f"95 %, bootstrap over tested clips, {S3_SEEDS} seeds kept",
        f"SeR {score.ser:.3f}, ReS {score.res:.3f}, ReR {score.rer:.3f}",
        {
            "classifier": dataclasses.asdict(of_real.config),
            "seeds": list(range(S3_SEEDS)),
            "training_clips": {"real": len(real_train[1]), "generated": len(synthetic_train[1])},
            "test_clips": {"real": score.num_real, "generated": score.num_synthetic},
            "split": "every third clip of each class is tested",
            "classes": "as many generated clips of each as real ones",
        },
        -score.value,
    )


def _class_matched(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """bool (N,): the first generated clips of each class, as many as real ones; labels are int (N,) and (M,).

    Of two training sets the larger or better balanced one teaches more, whatever it shows.
    """
    wanted = np.bincount(real, minlength=made.max(initial=0) + 1)
    is_chosen = _rank_in_class(made) < wanted[made]
    lacking = len(real) - is_chosen.sum()
    if lacking:
        warnings.warn(
            f"The generated clips lack {lacking} of {len(real)} to have as many of every class as the real ones: SeR is biased "
            "downwards.",
            stacklevel=2,
        )
    return is_chosen


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """int (N,): how many earlier ones have the same label."""
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return rank


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


_FEATURES = ("i3d", "judge")
_C3D = {"tgan": "c3d_tgan", "tganv2": "c3d_tgan2", "styleganv": "c3d_tgan2", "magvit": "c3d_tgan2"}
_VARIANT = {"styleganv": "stylegan-v"}
_RESIZES = ("halfpixel",)

FAMILIES: dict[str, Family] = {
    "fvd": Family(
        "Frechet video distance on I3D's 400 logits",
        _frechet,
        _FEATURES,
        variants=(*_RESIZES, "covn"),
        default_frames=16,
    ),
    "fvdinf": Family(
        "FVD's limit of many clips, from a line through subsets",
        _frechet_infinity,
        _FEATURES,
        variants=(*_RESIZES, "covn"),
        default_frames=16,
    ),
    "kvd": Family(
        "kernel video distance on the same features, unbiased", _kernel, _FEATURES, variants=_RESIZES, default_frames=16
    ),
    "vfid": Family(
        "video FID on 3-D ResNeXt-101 (G3AN)", _frechet, ("resnext101",), variants=("covn",), default_frames=16
    ),
    "vfid_r3d18": Family("video FID on 3-D ResNet-18", _frechet, ("r3d18",), variants=("covn",), default_frames=16),
    "vfid_r3d50": Family("video FID on 3-D ResNet-50", _frechet, ("r3d50",), variants=("covn",), default_frames=16),
    **{
        f"is_c3d_{name}": Family(
            f"Inception Score on C3D as {inception.INCEPTION_VARIANTS[_VARIANT.get(name, name)].source} computes it",
            functools.partial(_inception, _VARIANT.get(name, name)),
            (network,),
            ("logits",),
            num_runs=inception.INCEPTION_VARIANTS[_VARIANT.get(name, name)].num_runs,
            default_clips=inception.INCEPTION_VARIANTS[_VARIANT.get(name, name)].num_samples,
            default_frames=16,
        )
        for name, network in _C3D.items()
    },
    "is": Family("Inception Score of a judge", functools.partial(_inception, ""), ("judge",), ("logits",)),
    "accuracy": Family(
        "how often a judge sees the class that a clip was made of, with H(y) and H(y|x)",
        _judge_accuracy,
        ("judge",),
        ("logits",),
    ),
    "judge_swap": Family(
        "do codes hold what they should: judges' accuracies with motion kept and content drawn anew, and the reverse",
        _swap,
        outputs=(),
        ranks=False,
    ),
    "prdc": Family("precision, recall, density and coverage", _coverage, ("i3d", "judge", "pixels"), variants=_RESIZES),
    "nearest": Family(
        "nearest real clips, with a sheet, and the data-copying test",
        _nearest,
        ("i3d", "judge", "pixels"),
        variants=_RESIZES,
        ranks=False,
        searches_all=True,
    ),
    "mcs": Family("motion consistency (NAVSynth) on VGG16 relu3_3", _motion_consistency, outputs=("differences",)),
    "fcs": Family("frame consistency (NAVSynth): SSIM with the first frame", _frame_consistency, outputs=("fcs",)),
    "acd": Family("average content distance (MoCoGAN) of mean colours", _content_distance, outputs=("acd",)),
    "motion": Family("motion energy over that of real clips", _motion_energy, outputs=("motion",)),
    "duplicates": Family("share of clips that repeat another one exactly", _duplicates, outputs=("sha256",)),
    "lpips": Family("diversity: LPIPS of random pairs of clips", _lpips_diversity, outputs=("lpips",), ranks=False),
    **{
        f"s3_{name}": Family(f"substitute score (MVT-GAN) with {words}", functools.partial(_s3, network), outputs=())
        for name, network, words in (
            ("tsn", "tsn", "a 2-D TSN"),
            ("r3d18", "resnet18_3d", "3-D ResNet-18"),
            ("eco", "eco_lite", "ECO-lite"),
        )
    },
}
