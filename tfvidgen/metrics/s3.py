"""S3, the substitute score of MVT-GAN: how well generated clips substitute for real ones in a classifier's training and test.

SeR: trained on synthetic clips, tested on real ones. ReS: trained on real, tested on synthetic. ReR: trained and tested on
real. S3 = sqrt(SeR ReS) / ReR. It depends on the classifier, can exceed 1, and its chance level is c / ReR, not 0, where c is
chance accuracy.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np

from tfvidgen.metrics.measures import Measured, Outcome
from tfvidgen.metrics.sampling import Clips
from tfvidgen.metrics.statistics import Interval, percentile_interval

SEEDS = 3
_DRAWS = 4  # clips that a model may generate per real one, to match the class counts
_MAX_PERCENT = 100.0


@dataclasses.dataclass(frozen=True)
class S3:
    """S3 and its component accuracies, each in [0, 1] and averaged over seeds.

    Attributes:
        value: sqrt(SeR ReS) / ReR of the mean accuracies.
        ser: Trained on synthetic, tested on real.
        res: Trained on real, tested on synthetic.
        rer: Trained on real, tested on real.
        interval: 95 % bootstrap interval of `value` over the test clips, with seeds fixed.
        per_seed: S3 for every seed, or empty if the numbers of seeds differ.
        spread: Population standard deviation of `per_seed`; 0 for one or none.
        num_real: Number of real test clips.
        num_synthetic: Number of synthetic test clips.
    """

    value: float
    ser: float
    res: float
    rer: float
    interval: Interval
    per_seed: tuple[float, ...]
    spread: float
    num_real: int
    num_synthetic: int


def s3_score(ser: float, res: float, rer: float) -> float:
    """Return sqrt(SeR ReS) / ReR.

    Args:
        ser: Accuracy of a classifier trained on synthetic and tested on real clips; all three as shares or all in percent.
        res: Trained on real, tested on synthetic.
        rer: Trained on real, tested on real; above 0.

    Raises:
        ValueError: If an accuracy is negative or above 100, or `rer` is 0.

    Source: Munoz et al., WACV 2021, Eq. 9, https://arxiv.org/abs/2004.01823
    """
    for name, accuracy in (("ser", ser), ("res", res), ("rer", rer)):
        if not 0 <= accuracy <= _MAX_PERCENT:
            raise ValueError(f"`{name}` must be an accuracy, as a fraction or a percentage. Received {accuracy}.")
    if rer == 0:
        raise ValueError(
            "S3 is undefined for ReR = 0: the classifier got no real clip right. Train it longer, or check its labels."
        )
    return math.sqrt(ser * res) / rer


def accuracy(predicted, true_labels) -> float:
    """Return the share of correct predictions.

    Args:
        predicted: int (N,), or (S, N) for S seeds.
        true_labels: int (N,).

    Raises:
        ValueError: If they are not integers of matching shapes, N at least 1.
    """
    return float(_hits(predicted, true_labels, "predictions").mean())


def s3_from_predictions(
    ser: tuple[Sequence, Sequence],
    res: tuple[Sequence, Sequence],
    rer: tuple[Sequence, Sequence],
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> S3:
    """Return S3 from predictions and labels, with an interval.

    Args:
        ser: Predictions for the real test clips, int (N,), or (S, N) for S classifiers with different seeds, by classifiers
            trained on synthetic clips; and labels int (N,).
        res: The same for the synthetic test clips, (M,) or (S, M), by the classifiers trained on real clips.
        rer: The same for the real test clips of `ser`, in the same order, by the classifiers trained on real clips.
        num_resamples: Resamples of the bootstrap, over real test clips (jointly for SeR and ReR) and synthetic ones.
        confidence: Confidence level of the interval.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If shapes or labels do not match, or ReR is 0.
    """
    hits = {
        name: _hits(*pair, name=name) for name, pair in (("ser", ser), ("res", res), ("rer", rer))
    }  # (S, N), (S, M), (S, N)
    if not np.array_equal(np.asarray(ser[1]), np.asarray(rer[1])):
        raise ValueError(
            "`ser` and `rer` must be of the same real test clips in the same order. Received different labels."
        )
    values = {name: float(h.mean()) for name, h in hits.items()}
    value = s3_score(**values)
    random = np.random.default_rng(seed)
    resampled = []
    per_clip = {name: h.mean(axis=0) for name, h in hits.items()}
    for _ in range(num_resamples):
        real = random.integers(len(per_clip["ser"]), size=len(per_clip["ser"]))
        synthetic = random.integers(len(per_clip["res"]), size=len(per_clip["res"]))
        reference = per_clip["rer"][real].mean()
        if reference > 0:
            product = per_clip["ser"][real].mean() * per_clip["res"][synthetic].mean()
            resampled.append(math.sqrt(product) / reference)
    seeds = {len(h) for h in hits.values()}
    per_seed: tuple[float, ...] = ()
    if len(seeds) == 1 and all(h.mean() > 0 for h in hits["rer"]):
        rows = zip(hits["ser"], hits["res"], hits["rer"], strict=True)
        per_seed = tuple(s3_score(*(float(h.mean()) for h in row)) for row in rows)
    return S3(
        value,
        values["ser"],
        values["res"],
        values["rer"],
        percentile_interval(resampled, confidence),
        per_seed,
        float(np.std(per_seed)) if per_seed else 0.0,
        hits["ser"].shape[1],
        hits["res"].shape[1],
    )


def _hits(predicted, true_labels, name: str) -> np.ndarray:
    """Whether each prediction is correct, bool (S, N)."""
    predicted, true_labels = np.asarray(predicted), np.asarray(true_labels)
    kinds = predicted.dtype.kind + true_labels.dtype.kind
    if (
        true_labels.ndim != 1
        or predicted.ndim not in (1, 2)
        or predicted.shape[-1] != len(true_labels)
        or not predicted.size
        or not set(kinds) <= set("iu")
    ):
        raise ValueError(
            f"`{name}` needs whole-number predictions (N,) or (seeds, N) and labels (N,). Received {predicted.shape} of "
            f"{predicted.dtype} and {true_labels.shape} of {true_labels.dtype}: take the argmax of probabilities."
        )
    return np.atleast_2d(predicted == true_labels)


# ---- metrics by name ------------------------------------------------------------------------------------------------


def measure_s3(network: str, measured: Measured) -> Outcome:
    """The metric `s3_*`: trains classifiers on real and on generated clips, and tests each on clips of both sides."""

    def clips(source: Clips, labels: np.ndarray, is_chosen: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """(clips, labels) for training and for testing: two thirds and one third of each class."""
        kept, first = [], 0
        for batch in source.batches(len(labels), measured.num_frames, measured.stride):
            kept.append(batch[is_chosen[first : first + len(batch)]])
            first += len(batch)
        videos, labels = np.concatenate(kept), labels[is_chosen]
        is_test = _rank_in_class(labels) % 3 == 2
        return (videos[~is_test], labels[~is_test]), (videos[is_test], labels[is_test])

    count = min(measured.clips, measured.real_clips.available or measured.clips)
    made, num_classes = measured.matched_labels(measured.generated_clips.available or _DRAWS * count)
    labels = measured.real_clips.labels(count)
    is_chosen = _class_matched(made, labels)
    real_train, real_test = clips(measured.real_clips, labels, np.ones(count, bool))
    last = np.flatnonzero(is_chosen).max(initial=0) + 1
    synthetic_train, synthetic_test = clips(measured.generated_clips, made[:last], is_chosen[:last])
    num_tested = min(len(real_test[1]), len(synthetic_test[1]))
    if not num_tested or min(len(np.unique(labels)) for _, labels in (real_train, synthetic_train)) < 2:
        raise ValueError(
            f"S3 trains on at least two classes and tests on a third of each, but there are too few clips: {count} real and "
            f"{is_chosen.sum()} generated ones. Use more clips, at least three per class."
        )
    predicted: dict[str, list[np.ndarray]] = {"ser": [], "res": [], "rer": []}
    for seed in range(SEEDS):
        settings = {"network": network, "num_frames": measured.num_frames, "seed": seed}
        of_real = measured.networks.new_classifier(num_classes, **settings).fit(*real_train)
        of_synthetic = measured.networks.new_classifier(num_classes, **settings).fit(*synthetic_train)
        predicted["ser"].append(of_synthetic.predict(real_test[0]))
        predicted["res"].append(of_real.predict(synthetic_test[0]))
        predicted["rer"].append(of_real.predict(real_test[0]))
    tested = {"ser": real_test[1], "res": synthetic_test[1], "rer": real_test[1]}
    score = s3_from_predictions(*((np.stack(predicted[name]), tested[name]) for name in ("ser", "res", "rer")))
    return Outcome(
        score.value,
        {name: getattr(score, name) for name in ("value", "ser", "res", "rer", "spread", "per_seed")},
        tuple(score.interval),
        f"95 %, bootstrap over tested clips, {SEEDS} seeds kept",
        f"SeR {score.ser:.3f}, ReS {score.res:.3f}, ReR {score.rer:.3f}",
        {
            "classifier": dataclasses.asdict(of_real.config),
            "seeds": list(range(SEEDS)),
            "training_clips": {"real": len(real_train[1]), "generated": len(synthetic_train[1])},
            "test_clips": {"real": score.num_real, "generated": score.num_synthetic},
            "split": "every third clip of each class is tested",
            "classes": "as many generated clips of each as real ones",
        },
        -score.value,
    )


def _class_matched(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """bool (N,): the first generated clips of each class, as many as there are real ones; labels are int (N,) and (M,).

    A larger or better balanced training set gives higher accuracy, whatever its quality.
    """
    wanted = np.bincount(real, minlength=made.max(initial=0) + 1)
    is_chosen = _rank_in_class(made) < wanted[made]
    lacking = len(real) - is_chosen.sum()
    if lacking:
        warnings.warn(
            f"The generated clips are {lacking} of {len(real)} short of having as many of every class as the real ones: SeR is "
            "biased downwards.",
            stacklevel=2,
        )
    return is_chosen


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """int (N,): the number of earlier elements with the same label."""
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return rank
