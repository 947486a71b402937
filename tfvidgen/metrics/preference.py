"""Analysis of two-alternative forced-choice (2AFC) votes: preference shares with intervals, and Bradley-Terry strengths.

    result = analyse(read_votes("votes.jsonl", trials), "ours", "baseline")
    strengths = rank_models(votes, reference="baseline")

Trials and votes come from `tfvidgen.study`. Votes on the same pair, or by the same rater, are correlated, so 640 votes carry
less information than 640 independent ones: besides the naive interval, bootstraps over pairs, raters and both are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats
from scipy.sparse import csgraph

from tfvidgen.metrics.statistics import Interval, percentile_interval, wilson_interval
from tfvidgen.study import Vote

# Penalty on Bradley-Terry strengths in resampled votes, where a model may happen to win or lose every vote.
_RESAMPLE_REGULARISATION = 0.01


@dataclasses.dataclass(frozen=True)
class Preference:
    """How often raters chose a model over its baseline.

    Attributes:
        model: The model.
        baseline: The model it was compared with.
        wins: Votes for the model.
        num_votes: All votes between the two.
        num_pairs: Number of clip pairs voted on.
        num_raters: Number of raters.
        share: wins / num_votes; 0.5 is no preference.
        wilson: 95 % Wilson interval, treating votes as independent: too narrow.
        by_pair: 95 % bootstrap interval over pairs.
        by_rater: 95 % bootstrap interval over raters.
        by_pair_and_rater: 95 % bootstrap interval over both: the one to report.
        p_value: Two-sided exact binomial test against 0.5, treating votes as independent.
        majority_share: Share of pairs with a majority for the model; ties count half.
        majority_wilson: Its Wilson interval; pairs are independent.
        left_share: Share of votes for the left side, whatever the model.
        left_wilson: Its Wilson interval. A side bias reduces power, but randomised sides keep it out of `share`.
        icc: Intraclass correlation of the votes on a pair, 0..1, or None if no pair has two votes.
        design_effect: How many times more votes are needed than if votes on a pair were independent, or None.
        effective_num_votes: num_votes / design_effect, or None.
    """

    model: str
    baseline: str
    wins: int
    num_votes: int
    num_pairs: int
    num_raters: int
    share: float
    wilson: Interval
    by_pair: Interval
    by_rater: Interval
    by_pair_and_rater: Interval
    p_value: float
    majority_share: float
    majority_wilson: Interval
    left_share: float
    left_wilson: Interval
    icc: float | None
    design_effect: float | None
    effective_num_votes: float | None


@dataclasses.dataclass(frozen=True)
class Strength:
    """Bradley-Terry strength of a model: it beats another with probability 1 / (1 + exp(other - this)).

    Attributes:
        log_odds: Relative to the reference model, which has 0.
        interval: 95 % bootstrap interval over pairs.
        num_votes: Votes involving the model.
    """

    log_odds: float
    interval: Interval
    num_votes: int


def analyse(
    votes: Sequence[Vote],
    model: str,
    baseline: str,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Preference:
    """Return how often raters chose a model over a baseline, ignoring votes on other models and catch trials.

    Args:
        votes: From `read_votes`, after `drop_inattentive` if there are catch trials.
        model: Name of the model.
        baseline: Name of the baseline model.
        num_resamples: Resamples per bootstrap.
        confidence: Confidence level of every interval.
        seed: Seed of the bootstraps.

    Raises:
        ValueError: If there are no votes between the two.
    """
    votes = [v for v in votes if v.expected is None and {v.left_model, v.right_model} == {model, baseline}]
    if not votes or model == baseline:
        raise ValueError(f"There are no votes between {model!r} and {baseline!r}.")
    won = np.array([v.winner == model for v in votes], np.float64)
    pair_names, pair = np.unique([v.pair for v in votes], return_inverse=True)
    rater_names, rater = np.unique([v.rater for v in votes], return_inverse=True)
    random = np.random.default_rng(seed)
    pair_weights = _resampled_weights(random, len(pair_names), num_resamples)[:, pair]
    rater_weights = _resampled_weights(random, len(rater_names), num_resamples)[:, rater]

    def interval(weights):
        totals = weights.sum(axis=1)  # 0 if the resampled raters saw none of the resampled pairs
        return percentile_interval((weights @ won)[totals > 0] / totals[totals > 0], confidence)

    num_votes, wins, num_pairs = len(votes), int(won.sum()), len(pair_names)
    per_pair = np.bincount(pair, won) / np.bincount(pair)
    majority = float(np.where(per_pair == 0.5, 0.5, per_pair > 0.5).sum())
    num_left = sum(v.choice == "left" for v in votes)
    icc = intraclass_correlation(won, pair)
    effect = None if icc is None else design_effect(num_votes / num_pairs, icc)
    return Preference(
        model,
        baseline,
        wins,
        num_votes,
        num_pairs,
        len(rater_names),
        wins / num_votes,
        wilson_interval(wins, num_votes, confidence),
        interval(pair_weights),
        interval(rater_weights),
        interval(pair_weights * rater_weights),
        float(stats.binomtest(wins, num_votes).pvalue),
        majority / num_pairs,
        wilson_interval(majority, num_pairs, confidence),
        num_left / num_votes,
        wilson_interval(num_left, num_votes, confidence),
        icc,
        effect,
        None if effect is None else num_votes / effect,
    )


def design_effect(votes_per_pair: float, icc: float) -> float:
    """Return 1 + (n - 1) ICC: the variance inflation from correlated votes on a pair.

    Raises:
        ValueError: If `votes_per_pair` is below 1 or `icc` outside 0..1.
    """
    if votes_per_pair < 1 or not 0 <= icc <= 1:
        raise ValueError(
            f"A design effect needs votes_per_pair >= 1 and 0 <= icc <= 1. Received {votes_per_pair}, {icc}."
        )
    return 1 + (votes_per_pair - 1) * icc


def intraclass_correlation(values, groups) -> float | None:
    """Return the intraclass correlation, the between-group share of variance by one-way ANOVA, clipped to 0..1.

    Args:
        values: Array (N,).
        groups: (N,), the group of each value.

    Returns:
        The correlation; 0 if all values are equal; None if no group has two values or there is only one group.
    """
    values = np.asarray(values, np.float64)
    _, groups = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(groups)
    if len(sizes) < 2 or sizes.max() < 2:
        return None
    means = np.bincount(groups, values) / sizes
    between = np.sum(sizes * (means - values.mean()) ** 2) / (len(sizes) - 1)
    within = np.sum((values - means[groups]) ** 2) / (len(values) - len(sizes))
    usual_size = (len(values) - np.sum(sizes**2) / len(values)) / (len(sizes) - 1)
    total = between + (usual_size - 1) * within
    return float(np.clip((between - within) / total, 0, 1)) if total > 0 else 0.0


def bradley_terry(wins, regularisation: float = 0.0) -> np.ndarray:
    """Return the maximum-likelihood strengths b with P(i beats j) = 1 / (1 + exp(b_j - b_i)) and b_0 = 0.

    Args:
        wins: Non-negative array (K, K): how often i beat j, or rates. The diagonal is ignored.
        regularisation: Weight of an L2 penalty on the centred strengths in the log-likelihood. If positive, strengths stay
            finite even for a model that won or lost every vote.

    Returns:
        float64 (K,).

    Raises:
        ValueError: If `wins` is not such an array, or if without regularisation the strengths are not finite: some models
            never lost to the others, or were never compared with them.

    Source: Bradley & Terry, Biometrika 1952; for existence Ford, American Mathematical Monthly 1957.
    """
    wins = np.array(wins, np.float64)
    if (
        wins.ndim != 2
        or wins.shape[0] != wins.shape[1]
        or len(wins) < 2
        or not np.isfinite(wins).all()
        or wins.min() < 0
    ):
        raise ValueError(
            f"`wins` must be finite numbers (K, K) of at least 0, K at least 2. Received shape {wins.shape}."
        )
    if regularisation < 0:
        raise ValueError(f"`regularisation` must be at least 0. Received {regularisation}.")
    np.fill_diagonal(wins, 0)
    if regularisation == 0 and csgraph.connected_components(wins, connection="strong")[0] > 1:
        raise ValueError(
            "Strengths are not finite: some models won everything against the others, or were never compared with them. "
            "Collect more votes, or pass a small `regularisation` such as 0.01."
        )
    games = wins + wins.T

    def loss(b):
        centred = b - b.mean()
        chances = special.expit(b[:, None] - b)  # i beats j
        value = -np.sum(wins * special.log_expit(b[:, None] - b)) + regularisation * centred @ centred
        gradient = -np.sum(wins - games * chances, axis=1) + 2 * regularisation * centred
        return value, gradient

    def hessian(b):
        spread = special.expit(b[:, None] - b)
        weights = games * spread * (1 - spread)
        penalty = 2 * regularisation * (np.eye(len(b)) - 1 / len(b))
        # The sum of the strengths is undetermined; this fixes it without changing their differences.
        return np.diag(weights.sum(axis=1)) - weights + penalty + 1 / len(b)

    strengths = optimize.minimize(
        lambda b: loss(b)[0], np.zeros(len(wins)), jac=lambda b: loss(b)[1], hess=hessian, method="trust-exact"
    ).x
    for _ in range(3):  # Newton steps for full precision
        strengths = strengths - np.linalg.solve(hessian(strengths), loss(strengths)[1])
    return strengths - strengths[0]


def rank_models(
    votes: Sequence[Vote],
    reference: str,
    regularisation: float = 0.0,
    num_resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Strength]:
    """Return the Bradley-Terry strength of every model in the votes, strongest first, ignoring catch trials.

    Args:
        votes: From `read_votes`.
        reference: The model with strength 0.
        regularisation: As in `bradley_terry`; at least 0.01 in resamples, where a model may win or lose every vote.
        num_resamples: Resamples of the bootstrap over pairs.
        confidence: Confidence level of the intervals.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If no vote involves the reference, or as in `bradley_terry`.
    """
    votes = [v for v in votes if v.expected is None]
    models = sorted({m for v in votes for m in (v.left_model, v.right_model)}, key=lambda m: (m != reference, m))
    if not models or models[0] != reference:
        raise ValueError(f"There are no votes with the reference {reference!r}. Models voted on: {models}.")
    index = {model: i for i, model in enumerate(models)}
    winner = np.array([index[v.winner] for v in votes])
    loser = np.array([index[v.right_model if v.choice == "left" else v.left_model] for v in votes])
    pair_names, pair = np.unique([v.pair for v in votes], return_inverse=True)

    def strengths(weights, penalty):
        wins = np.zeros((len(models), len(models)))
        np.add.at(wins, (winner, loser), weights)
        return bradley_terry(wins, penalty)

    best = strengths(1.0, regularisation)
    random = np.random.default_rng(seed)
    penalty = max(regularisation, _RESAMPLE_REGULARISATION)
    resampled = [
        strengths(weights[pair], penalty) for weights in _resampled_weights(random, len(pair_names), num_resamples)
    ]
    low, high = percentile_interval(resampled, confidence)
    counts = np.bincount(np.concatenate([winner, loser]), minlength=len(models))
    return {
        models[i]: Strength(float(best[i]), Interval(float(low[i]), float(high[i])), int(counts[i]))
        for i in np.argsort(-best, kind="stable")
    }


def _resampled_weights(random: np.random.Generator, num: int, num_resamples: int) -> np.ndarray:
    """Bootstrap counts (num_resamples, num): how often each of `num` items is drawn with replacement."""
    return random.multinomial(num, np.full(num, 1 / num), size=num_resamples).astype(np.float64)
