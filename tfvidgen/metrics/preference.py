"""What the votes of a forced choice between two clips (2AFC) say: shares with their intervals, and Bradley-Terry strengths.

    result = analyse(read_votes("votes.jsonl", trials), "ours", "baseline")
    strengths = rank_models(votes, reference="baseline")

Trials and votes are made by `tfvidgen.study`. Votes on one pair agree with each other, and so do votes of one rater, so 640 of
them are fewer independent ones: next to the naive interval the analysis gives bootstraps over pairs, over raters and over both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats
from scipy.sparse import csgraph

from tfvidgen.metrics.statistics import Interval, percentile_interval, wilson_interval
from tfvidgen.study import Vote

# Of the penalty on Bradley-Terry strengths in resampled votes, where a model may happen to win or lose all.
_RESAMPLE_REGULARISATION = 0.01


@dataclasses.dataclass(frozen=True)
class Preference:
    """How often raters chose a model over its baseline.

    Attributes:
        model: The model.
        baseline: What it was compared with.
        wins: Votes for the model.
        num_votes: All votes between the two.
        num_pairs: Pairs of clips voted on.
        num_raters: Raters.
        share: wins / num_votes; 0.5 is no preference.
        wilson: 95 % interval as if votes were independent: too narrow.
        by_pair: 95 % bootstrap interval over pairs.
        by_rater: The same over raters.
        by_pair_and_rater: Over both at once: the one to report.
        p_value: Two-sided exact binomial test of 0.5, as if votes were independent.
        majority_share: Share of pairs whose votes were mostly for the model; a tied pair counts half.
        majority_wilson: Its interval; pairs are independent.
        left_share: Share of votes for the left side, whatever the model.
        left_wilson: Its interval. A bias to one side costs power; drawn sides keep it out of `share`.
        icc: Intraclass correlation of the votes on a pair, 0..1, or None where no pair has two votes.
        design_effect: How many times more votes are needed than if they were independent between pairs, or None.
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
    """Bradley-Terry strength of a model: it wins against another with probability 1 / (1 + exp(other - this)).

    Attributes:
        log_odds: Against the reference model, whose own is 0.
        interval: 95 % bootstrap interval over pairs.
        num_votes: Votes in which the model took part.
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
    """Return how often raters chose a model over a baseline. Votes on other models and catch trials are left out.

    Args:
        votes: From `read_votes`, after `drop_inattentive` where there are catch trials.
        model: Name of the model.
        baseline: Name of the other one.
        num_resamples: Of each bootstrap.
        confidence: Of every interval.
        seed: Of the bootstraps.

    Raises:
        ValueError: If no vote is between the two.
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
        totals = weights.sum(axis=1)  # 0 where the drawn raters saw none of the drawn pairs
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
    """Return 1 + (n - 1) ICC: the factor by which correlated votes on a pair widen a variance.

    Raises:
        ValueError: If `votes_per_pair` is below 1 or `icc` outside 0..1.
    """
    if votes_per_pair < 1 or not 0 <= icc <= 1:
        raise ValueError(
            f"A design effect needs votes_per_pair >= 1 and 0 <= icc <= 1. Received {votes_per_pair}, {icc}."
        )
    return 1 + (votes_per_pair - 1) * icc


def intraclass_correlation(values, groups) -> float | None:
    """Return the share of variance that lies between groups, by analysis of variance with one way, cut to 0..1.

    Args:
        values: Numbers (N,).
        groups: (N,), the group of each.

    Returns:
        The correlation; 0 where nothing varies; None where no group has two values or there is a single group.
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
    """Return the strengths b with P(i beats j) = 1 / (1 + exp(b_j - b_i)) of greatest likelihood, b_0 = 0.

    Args:
        wins: Numbers (K, K), at least 0: how often i won against j, or rates. The diagonal is not looked at.
        regularisation: Factor of the squared strengths, around their mean, that are subtracted from the log-likelihood.
            Above 0 it keeps a model that won or lost everything finite.

    Returns:
        float64 (K,).

    Raises:
        ValueError: If `wins` is none, or without regularisation the strengths are not finite: some models never lost
            against the others, or were never compared with them.

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
        # The sum of the strengths is free; this fixes it without moving their differences.
        return np.diag(weights.sum(axis=1)) - weights + penalty + 1 / len(b)

    strengths = optimize.minimize(
        lambda b: loss(b)[0], np.zeros(len(wins)), jac=lambda b: loss(b)[1], hess=hessian, method="trust-exact"
    ).x
    for _ in range(3):  # Newton's steps from there take the last digits
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
    """Return the Bradley-Terry strength of every model that was voted on, the strongest first. Catch trials are left out.

    Args:
        votes: From `read_votes`.
        reference: The model with strength 0.
        regularisation: As in `bradley_terry`; in resampled votes at least 0.01, since there a model may win or lose all.
        num_resamples: Of the bootstrap over pairs.
        confidence: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        ValueError: If no vote has the reference, or as `bradley_terry`.
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
    """How often each of `num` things is drawn when `num` are drawn with replacement: (num_resamples, num)."""
    return random.multinomial(num, np.full(num, 1 / num), size=num_resamples).astype(np.float64)
