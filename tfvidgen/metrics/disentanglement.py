"""Disentanglement of latent codes, as judged by a frozen classifier trained on real labels.

The Sprites protocol keeps one factor of a test video (e.g. its motion), samples the other from the prior, decodes and
classifies: kept attributes should be preserved (accuracy), resampled ones should fall to chance (swapped-attribute accuracy).
Accuracy alone also rewards a model that ignores the resampled code.

Source: Bai, Wang, Gomes, "Contrastively Disentangled Sequential Variational Autoencoder", NeurIPS 2021,
https://arxiv.org/abs/2110.12091; official code JunwenBai/C-DSVAE, test_sprite_cls.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from scipy.spatial import distance

from tfvidgen.features.base import softmax
from tfvidgen.metrics.inception import check_probabilities, class_entropies
from tfvidgen.metrics.measures import Measured, Outcome
from tfvidgen.metrics.sampling import Clips, ModelClips, VideoClips
from tfvidgen.metrics.statistics import Interval, check_features, wilson_interval

_DIVERGENCE_EPSILON = 1e-16
_NUMBERS_PER_CHUNK = 2**23


@dataclasses.dataclass(frozen=True)
class JudgeScores:
    """A judge's measures of videos decoded with one factor kept and the other resampled.

    Attributes:
        accuracy: Share of videos whose predicted class is that of the kept factor's source; over all videos.
        inception_score: exp(H(y) - H(y|x)), on a balanced subset; at most the number of classes.
        marginal_entropy: H(y) in nats, on the subset; higher is better, at most ln K.
        conditional_entropy: H(y|x) in nats, on the subset; lower is better.
        divergence: Mean KL(p(y|generated) || p(y|source)) in nats over all videos, with the official code's 1e-16 in both
            logs; None without the source's probabilities.
        num_videos: Number of videos.
        num_balanced: Number of videos in the subset.
    """

    accuracy: float
    inception_score: float
    marginal_entropy: float
    conditional_entropy: float
    divergence: float | None
    num_videos: int
    num_balanced: int


@dataclasses.dataclass(frozen=True)
class AttributeAccuracy:
    """How often a judge recognises the source's value of an attribute.

    Attributes:
        accuracy: Share of videos.
        interval: 95 % Wilson interval.
        chance: 1 / K.
        kept: Whether the attribute belongs to the kept factor: its accuracy should be 1, that of others `chance`.
    """

    accuracy: float
    interval: Interval
    chance: float
    kept: bool


@dataclasses.dataclass(frozen=True)
class ExchangeAccuracy:
    """Shares of exchanged videos with the intended identity, the intended action, or both.

    Attributes:
        identity: Share with the identity of the static source.
        action: Share with the action of the motion source.
        both: Share with both.
        both_interval: 95 % Wilson interval.
        num_videos: Number of videos judged.
    """

    identity: float
    action: float
    both: float
    both_interval: Interval
    num_videos: int


def judge_scores(probabilities, true_labels, source_probabilities=None, balanced: bool = True) -> JudgeScores:
    """Return the judge's measures for one attribute (on Sprites, the 9 actions).

    Args:
        probabilities: (N, K), for the decoded videos.
        true_labels: int (N,), 0..K-1, of the source videos of the kept factor.
        source_probabilities: (N, K), for those source videos, or None.
        balanced: Compute entropies on the first n videos of each class, n being the size of the rarest class present, as
            in the official code; otherwise on all.

    Raises:
        ValueError: If rows are not probabilities, or labels do not match them.
    """
    p = check_probabilities(probabilities)
    labels = check_labels(true_labels, len(p), p.shape[1], "true_labels")
    chosen = _first_of_each_class(labels) if balanced else np.arange(len(p))
    marginal, conditional = class_entropies(p[chosen])
    divergence = None
    if source_probabilities is not None:
        source = check_probabilities(source_probabilities, "source_probabilities")
        if source.shape != p.shape:
            raise ValueError(
                f"`source_probabilities` must have the shape of `probabilities`, {p.shape}. Received {source.shape}."
            )
        logs = np.log(p + _DIVERGENCE_EPSILON) - np.log(source + _DIVERGENCE_EPSILON)
        divergence = float(np.sum(p * logs, axis=1).mean())
    return JudgeScores(
        float((p.argmax(axis=1) == labels).mean()),
        float(np.exp(marginal - conditional)),
        marginal,
        conditional,
        divergence,
        len(p),
        len(chosen),
    )


def attribute_accuracies(
    probabilities: Mapping[str, np.ndarray], true_labels: Mapping[str, np.ndarray], kept: Collection[str]
) -> dict[str, AttributeAccuracy]:
    """Return the accuracy of every attribute, kept or swapped, against the source video.

    Args:
        probabilities: (N, K) of the decoded videos for each attribute, e.g. "action", "body", "hair".
        true_labels: int (N,) of the source videos for each attribute.
        kept: Attributes of the kept factor; those of the resampled one are the swapped attributes.

    Raises:
        ValueError: If the names differ, a kept one is unknown, or as in `judge_scores`.
    """
    if not probabilities or set(probabilities) != set(true_labels) or not set(kept) <= set(probabilities):
        raise ValueError(
            f"Attributes must have the same names. Received probabilities of {sorted(probabilities)}, labels of "
            f"{sorted(true_labels)}, kept {sorted(kept)}."
        )
    result = {}
    for name, rows in probabilities.items():
        p = check_probabilities(rows, name)
        labels = check_labels(true_labels[name], len(p), p.shape[1], name)
        hits = int((p.argmax(axis=1) == labels).sum())
        result[name] = AttributeAccuracy(hits / len(p), wilson_interval(hits, len(p)), 1 / p.shape[1], name in kept)
    return result


def exchange_accuracy(predicted_identity, predicted_action, identity, action) -> ExchangeAccuracy:
    """Return how often an exchange has the identity of one source and the action of the other.

    Predictions come from classifiers, or from `nearest_cell` where every (identity, action) cell exists.

    Args:
        predicted_identity: int (N,).
        predicted_action: int (N,).
        identity: int (N,), of the static sources.
        action: int (N,), of the motion sources.

    Raises:
        ValueError: If they are not integers of equal length, at least 1.
    """
    arrays = {
        name: check_labels(values, None, None, name)
        for name, values in (
            ("predicted_identity", predicted_identity),
            ("predicted_action", predicted_action),
            ("identity", identity),
            ("action", action),
        )
    }
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1 or not lengths["identity"]:
        raise ValueError(f"Labels must have the same length, at least 1. Received {lengths}.")
    right_identity = arrays["predicted_identity"] == arrays["identity"]
    right_action = arrays["predicted_action"] == arrays["action"]
    both = right_identity & right_action
    return ExchangeAccuracy(
        float(right_identity.mean()),
        float(right_action.mean()),
        float(both.mean()),
        wilson_interval(int(both.sum()), len(both)),
        len(both),
    )


def nearest_cell(generated, truth, truth_identity, truth_action) -> tuple[np.ndarray, np.ndarray]:
    """Return the identity and action of the true clip nearest to each generated one.

    Where the true clip of every identity and action exists, this is a judge without a network: an exchange is correct if no
    other cell is nearer than its own.

    Args:
        generated: Array (N, ...), videos or features.
        truth: Array (M, ...) of the same trailing shape, one or more clips of every cell.
        truth_identity: int (M,).
        truth_action: int (M,).

    Returns:
        int64 (N,) and int64 (N,); ties go to the first clip.

    Raises:
        ValueError: If shapes do not match, values are not finite, or labels are not integers.
    """
    generated, truth = np.asarray(generated), np.asarray(truth)
    if generated.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"`generated` and `truth` must have clips of the same shape. Received {generated.shape}, {truth.shape}."
        )
    truth_identity = check_labels(truth_identity, len(truth), None, "truth_identity")
    truth_action = check_labels(truth_action, len(truth), None, "truth_action")
    if not generated.size or not truth.size:
        raise ValueError(f"There must be clips on both sides. Received shapes {generated.shape} and {truth.shape}.")
    generated, truth = generated.reshape(len(generated), -1), truth.reshape(len(truth), -1)
    nearest, best = np.zeros(len(generated), np.int64), np.full(len(generated), np.inf)
    step = max(1, _NUMBERS_PER_CHUNK // truth.shape[1])  # in pixels, a clip can have as many values as there are clips
    for start in range(0, len(truth), step):
        some = check_features(truth[start : start + step], "truth")
        for first in range(0, len(generated), step):
            rows = slice(first, first + step)
            squares = distance.cdist(check_features(generated[rows], "generated"), some, "sqeuclidean")
            nearer = squares.min(axis=1) < best[rows]
            nearest[rows] = np.where(nearer, start + squares.argmin(axis=1), nearest[rows])
            best[rows] = np.minimum(best[rows], squares.min(axis=1))
    return truth_identity[nearest], truth_action[nearest]


def check_labels(labels, num_labels: int | None, num_classes: int | None, name: str) -> np.ndarray:
    """Return labels as int64 (N,), after checking them.

    Raises:
        ValueError: If they are not integers (N,) of this length and below this number of classes.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (num_labels is not None and len(array) != num_labels):
        expected = "(N,)" if num_labels is None else f"({num_labels},)"
        raise ValueError(
            f"Labels `{name}` must be whole numbers of shape {expected}. Received shape {array.shape}, dtype {array.dtype}."
        )
    if num_classes is not None and len(array) and not (0 <= array.min() and array.max() < num_classes):
        raise ValueError(
            f"Labels `{name}` must lie in 0..{num_classes - 1}, one for each class. Received {array.min()}..{array.max()}."
        )
    return array.astype(np.int64)


def _first_of_each_class(labels: np.ndarray) -> np.ndarray:
    classes, counts = np.unique(labels, return_counts=True)
    return np.concatenate([np.flatnonzero(labels == label)[: counts.min()] for label in classes])


# ---- metrics by name ------------------------------------------------------------------------------------------------


def measure_accuracy(measured: Measured) -> Outcome:
    """The metric `accuracy`: how often a judge recognises the class that a clip was conditioned on."""
    labels, _ = measured.matched_labels(measured.clips)
    real, generated = (softmax(logits) for logits in measured.features("logits"))
    scores = judge_scores(generated, labels)
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
    """Labels of each attribute, int (N,): action and identity, or the attributes encoded in identity names."""
    parts = [re.findall(r"([a-z]+)(\d+)(?:_|$)", name) for name in videos.identity_names]
    names = [name for name, _ in parts[0]]  # for Sprites: body, bottom, top, hair
    if len(names) < 2 or any([name for name, _ in part] != names for part in parts):
        return {"action": videos.action, "identity": videos.identity}
    choices = np.array([[int(choice) for _, choice in part] for part in parts])[videos.identity]
    composed = {name: np.unique(column, return_inverse=True)[1] for name, column in zip(names, choices.T, strict=True)}
    return {"action": videos.action, **{name: labels for name, labels in composed.items() if labels.any()}}


def require_training_videos(generated: Clips, real: Clips) -> None:
    """Raises ValueError unless a model is measured against its own training videos, labelled, as `judge_swap` needs."""
    is_trained = isinstance(real, VideoClips) and real.origin.get("split") == "trained"
    if not isinstance(generated, ModelClips) or not is_trained:
        raise ValueError(
            "It keeps one code of a training video and resamples the others: evaluate a run, against the videos it was trained on "
            '(`split="trained"`).'
        )
    if real.videos.action is None or real.videos.identity is None:
        raise ValueError("It needs the identity and the action of every training video, but they have none.")


def measure_swap(measured: Measured) -> Outcome:
    """The metric `judge_swap`: judges' accuracies when one code of training videos is kept and the others are resampled."""
    real, made, frames = measured.real_clips, measured.generated_clips, (measured.num_frames, measured.stride)
    require_training_videos(made, real)
    ids = real.video_ids(min(measured.clips, len(real.videos)))
    attributes = _attributes(real.videos)
    judges = {name: measured.networks.judge_of(name, labels, *frames) for name, labels in attributes.items()}
    truth = {name: labels[ids] for name, labels in attributes.items()}
    values, action, swapped = {}, None, {}
    for keeps_content, kept in ((False, ("action",)), (True, tuple(name for name in attributes if name != "action"))):
        clips = made.redrawn(ids, keeps_content, *frames, clips_of=real.of_videos)
        probabilities = {name: judge.probabilities(clips) for name, judge in judges.items()}
        found = attribute_accuracies(probabilities, truth, kept)
        word = "content" if keeps_content else "motion"
        values |= {f"{name}_accuracy_{word}_kept": each.accuracy for name, each in found.items()}
        if not keeps_content:
            action = found["action"]
            scores = dataclasses.asdict(judge_scores(probabilities["action"], truth["action"]))
            values |= {name: scores[name] for name in ("inception_score", "marginal_entropy", "conditional_entropy")}
            swapped = {name: each for name, each in found.items() if name != "action"}
    beside = ", ".join(f"{name} {each.accuracy:.3f} (chance {each.chance:.3f})" for name, each in swapped.items())
    return Outcome(
        action.accuracy,
        values,
        tuple(action.interval),
        "95 %, Wilson's, of the action accuracy with its code kept",
        f"swapped: {beside}",
        {
            "judges": {name: judge.record() for name, judge in judges.items()},
            "chance": {name: 1 / judge.num_classes for name, judge in judges.items()},
            "source_videos": len(ids),
        },
    )
