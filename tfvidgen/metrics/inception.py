"""Inception Score of class probabilities, exp of the mean KL(p(y|x) || p(y)), in every published variant.

    inception_score(probabilities)                                   # the definition
    inception_score_of_variant("tganv2", [run_1, ..., run_10])       # as computed in one paper

The classifier sets the scale: scores from C3D on UCF-101, another network or a judge are not comparable.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import special

from tfvidgen.metrics.statistics import SampleSizeWarning, check_features

_SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """An Inception Score.

    Attributes:
        value: Mean over splits, and over runs if there are several.
        spread: Population standard deviation over splits or over runs, whichever the variant reports; 0 for one.
        splits: The score of every split, run by run.
        marginal_entropy: H(y) in nats, mean over splits: high for diverse samples.
        conditional_entropy: H(y|x) in nats, mean over splits: low for samples clearly of one class.
        num_samples: Samples per run.
        variant: Name of the variant.
    """

    value: float
    spread: float
    splits: tuple[float, ...]
    marginal_entropy: float
    conditional_entropy: float
    num_samples: int
    variant: str = "exact"


@dataclasses.dataclass(frozen=True)
class InceptionVariant:
    """How a public codebase computes the score.

    Attributes:
        num_samples: Samples per run.
        num_runs: Independent runs of the generator.
        num_splits: Parts of a run that are scored separately. More splits lower the score.
        shuffle_seed: Seed of the permutation before splitting, or None.
        epsilon: Added to avoid log 0.
        epsilon_place: "logs" for log(p + epsilon), "probabilities" for p + epsilon throughout.
        spread_over: "runs" or "splits".
        source: The codebase.
    """

    num_samples: int
    num_runs: int
    num_splits: int = 1
    shuffle_seed: int | None = None
    epsilon: float = 0.0
    epsilon_place: str = "logs"
    spread_over: str = "runs"
    source: str = ""


INCEPTION_VARIANTS: dict[str, InceptionVariant] = {
    # 10000 // 48 * 48 samples: the last, incomplete batch of 48 is never generated.
    "tgan": InceptionVariant(9984, 4, epsilon=1e-7, source="pfnet-research/tgan, evaluation/calc_inception.py"),
    "tganv2": InceptionVariant(
        2048,
        10,
        epsilon=1e-20,
        epsilon_place="probabilities",
        source="pfnet-research/tgan2, tgan2/evaluations/inception_score.py",
    ),
    "stylegan-v": InceptionVariant(
        2048, 1, num_splits=10, shuffle_seed=42, spread_over="splits", source="universome/stylegan-v, isv2048_ucf"
    ),
    "magvit": InceptionVariant(10000, 4, source="google-research/magvit, from logits"),
}


def inception_score(
    probabilities,
    num_splits: int = 1,
    shuffle_seed: int | None = None,
    epsilon: float = 0.0,
    epsilon_place: str = "logs",
    from_logits: bool = False,
) -> InceptionScore:
    """Return the Inception Score, between 1 and the number of classes.

    Few samples bias it downwards, since the marginal is estimated from N rows. So do splits, and splitting samples sorted by
    class makes it meaningless: set `shuffle_seed` in that case.

    Args:
        probabilities: (N, K) with rows summing to 1, or logits.
        num_splits: Contiguous parts, each with its own marginal.
        shuffle_seed: Seed for `np.random.RandomState(seed).permutation` before splitting, or None for the given order.
        epsilon: Added to avoid log 0, as in some codebases. 0 is exact, with 0 log 0 = 0.
        epsilon_place: "logs" or "probabilities"; see `InceptionVariant`.
        from_logits: Treat `probabilities` as logits.

    Raises:
        ValueError: If rows are not finite probabilities, or there are fewer rows than splits.

    Source: Salimans et al., NeurIPS 2016, https://arxiv.org/abs/1606.03498
    """
    if epsilon_place not in ("logs", "probabilities"):
        raise ValueError(f"`epsilon_place` must be 'logs' or 'probabilities'. Received {epsilon_place!r}.")
    p = check_probabilities(probabilities, from_logits=from_logits)
    if not 1 <= num_splits <= len(p):
        raise ValueError(f"`num_splits` must lie in 1..{len(p)}, the number of samples. Received {num_splits}.")
    if shuffle_seed is not None:
        p = p[np.random.RandomState(shuffle_seed).permutation(len(p))]
    scores, marginals, conditionals = [], [], []
    for i in range(num_splits):
        part = p[i * len(p) // num_splits : (i + 1) * len(p) // num_splits]
        marginal, conditional = class_entropies(part)
        if epsilon:
            inside = epsilon
            if epsilon_place == "probabilities":
                part, inside = part + epsilon, 0.0
            logs = np.log(part + inside) - np.log(part.mean(axis=0) + inside)
            divergence = np.mean(np.sum(part * logs, axis=1))
        else:
            divergence = marginal - conditional
        scores.append(float(np.exp(divergence)))
        marginals.append(marginal)
        conditionals.append(conditional)
    return InceptionScore(
        float(np.mean(scores)),
        float(np.std(scores)),
        tuple(scores),
        float(np.mean(marginals)),
        float(np.mean(conditionals)),
        len(p),
    )


def inception_score_of_variant(variant: str, runs: Sequence, from_logits: bool = False) -> InceptionScore:
    """Return the Inception Score as computed by a public codebase.

    Args:
        variant: A name in `INCEPTION_VARIANTS`.
        runs: (N, K) probabilities or logits of every run, each from newly generated samples.
        from_logits: Treat them as logits.

    Raises:
        ValueError: If the variant is unknown, there are no runs, or as in `inception_score`.

    Warns:
        SampleSizeWarning: If the number of samples or runs differs from the variant's.
    """
    if variant not in INCEPTION_VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(INCEPTION_VARIANTS)}. Received {variant!r}.")
    rule = INCEPTION_VARIANTS[variant]
    scores = [
        inception_score(run, rule.num_splits, rule.shuffle_seed, rule.epsilon, rule.epsilon_place, from_logits)
        for run in runs
    ]
    if not scores:
        raise ValueError("`runs` must hold the probabilities of at least one run. Received none.")
    counts = [score.num_samples for score in scores]
    if len(scores) != rule.num_runs or set(counts) != {rule.num_samples}:
        warnings.warn(
            f"Variant {variant!r} is {rule.num_runs} run(s) of {rule.num_samples} samples; received runs of {counts}. Fewer "
            "samples lower the score, so this one does not compare with published ones.",
            SampleSizeWarning,
            stacklevel=2,
        )
    splits = tuple(split for score in scores for split in score.splits)
    values = [score.value for score in scores]
    return InceptionScore(
        float(np.mean(values)),
        float(np.std(splits if rule.spread_over == "splits" else values)),
        splits,
        float(np.mean([score.marginal_entropy for score in scores])),
        float(np.mean([score.conditional_entropy for score in scores])),
        counts[0],
        variant,
    )


def class_entropies(probabilities) -> tuple[float, float]:
    """Return (H(y), H(y|x)) in nats for probabilities (N, K): entropy of the mean row, and mean entropy of the rows."""
    p = np.asarray(probabilities, np.float64)
    return float(special.entr(p.mean(axis=0)).sum()), float(special.entr(p).sum(axis=1).mean())


def check_probabilities(probabilities, name: str = "probabilities", from_logits: bool = False) -> np.ndarray:
    """Return checked float64 probabilities (N, K), converted from logits if `from_logits`.

    Raises:
        ValueError: If a row is not finite, has negative entries, or does not sum to 1.
    """
    p = check_features(probabilities, name)
    if from_logits:
        return special.softmax(p, axis=1)
    sums = p.sum(axis=1)
    if p.min() < 0 or np.abs(sums - 1).max() > _SUM_TOLERANCE:
        raise ValueError(
            f"`{name}` must be at least 0, with rows of sum 1. Received values from {p.min():g} and sums from {sums.min():g} to "
            f"{sums.max():g}: for logits pass from_logits=True or take their softmax."
        )
    return p
