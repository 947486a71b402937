"""What votes say, against hand arithmetic, SciPy and simulated raters."""

import collections

import numpy as np
import pytest
from scipy import special, stats

from tfvidgen.metrics.preference import analyse, bradley_terry, design_effect, intraclass_correlation, rank_models
from tfvidgen.study import Vote, make_trials, vote_on


def clips(*models, num=12):
    return {model: [f"{model}/{i}.mp4" for i in range(num)] for model in models}


def simulate(share=0.6, num_pairs=60, num_raters=5, agreement=0.0, left_bias=0.0, seed=0):
    """Votes between "ours" and "base"; raters of a pair share its answer with probability `agreement`."""
    random = np.random.default_rng(seed)
    trials = make_trials(clips("ours", "base", num=num_pairs), num_pairs, num_raters, seed=seed)
    common = {trial.pair: random.random() < share for trial in trials}
    votes = []
    for trial in trials:
        ours = common[trial.pair] if random.random() < agreement else random.random() < share
        side = "left" if (trial.left_model == "ours") == ours else "right"
        if random.random() < left_bias:
            side = "left"
        votes.append(vote_on(trial, f"rater {trial.round}", side))
    return votes


def test_share_of_votes_by_hand():
    votes = simulate(num_pairs=20)
    wins = sum(vote.winner == "ours" for vote in votes)
    result = analyse(votes, "ours", "base")
    assert (result.wins, result.num_votes, result.num_pairs, result.num_raters) == (wins, 100, 20, 5)
    assert result.share == wins / 100
    expected = stats.binomtest(wins, 100)
    assert result.p_value == expected.pvalue
    assert result.wilson == pytest.approx(tuple(expected.proportion_ci(method="wilson")))
    per_pair = collections.Counter(vote.pair for vote in votes if vote.winner == "ours")
    assert result.majority_share == sum(count > 2 for count in per_pair.values()) / 20


def test_a_tied_pair_counts_half():
    votes = [
        Vote(f"r{i}", f"p{i // 2}", "a", "1", "b", "2", side)
        for i, side in enumerate(["left", "right", "left", "left"])
    ]
    assert analyse(votes, "a", "b").majority_share == 0.75


def test_exchanging_the_models_mirrors_the_result():
    votes = simulate(num_pairs=30, agreement=0.5)
    one, other = analyse(votes, "ours", "base"), analyse(votes, "base", "ours")
    assert other.share == pytest.approx(1 - one.share)
    assert other.p_value == pytest.approx(one.p_value)
    assert other.left_share == one.left_share
    assert other.icc == pytest.approx(one.icc)
    for name in ("wilson", "by_pair", "by_rater", "by_pair_and_rater"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))


def test_a_bias_to_one_side_costs_power_and_does_not_move_the_share():
    runs = [
        analyse(simulate(share=0.5, left_bias=0.4, seed=seed), "ours", "base", num_resamples=1) for seed in range(8)
    ]
    assert np.mean([run.left_share for run in runs]) == pytest.approx(0.7, abs=0.03)
    assert np.mean([run.share for run in runs]) == pytest.approx(0.5, abs=0.03)
    assert all(run.left_wilson.low > 0.5 for run in runs)


def width(interval):
    return interval.high - interval.low


def test_independent_votes_have_the_naive_interval():
    result = analyse(simulate(num_pairs=128), "ours", "base")
    assert width(result.by_pair) == pytest.approx(width(result.wilson), rel=0.15)
    assert result.icc < 0.1
    assert result.effective_num_votes == pytest.approx(640 / result.design_effect)


def test_votes_that_agree_on_a_pair_widen_the_interval():
    result = analyse(simulate(num_pairs=128, agreement=1.0), "ours", "base")
    assert result.icc == pytest.approx(1)
    assert result.design_effect == pytest.approx(5)
    assert result.effective_num_votes == pytest.approx(128)
    assert width(result.by_pair) / width(result.wilson) == pytest.approx(np.sqrt(5), rel=0.1)
    assert width(result.by_pair_and_rater) > 0.95 * width(result.by_pair)
    assert result.majority_share == result.share


def test_raters_of_different_taste_widen_the_interval_over_raters():
    votes = [
        Vote(f"r{rater}", f"p{pair}", "a", "1", "b", "2", "left" if rater % 2 else "right")
        for rater in range(6)
        for pair in range(40)
    ]
    result = analyse(votes, "a", "b")
    assert width(result.by_pair) == 0  # every pair has the same votes
    assert width(result.by_rater) > 0.5
    assert width(result.by_pair_and_rater) == pytest.approx(width(result.by_rater), abs=0.05)


def test_intervals_are_repeatable_and_follow_the_confidence():
    votes = simulate()
    result = analyse(votes, "ours", "base", seed=3)
    assert analyse(votes, "ours", "base", seed=3) == result
    assert width(analyse(votes, "ours", "base", confidence=0.5).by_pair) < 0.5 * width(result.by_pair)


def test_other_models_and_catch_trials_are_left_out():
    votes = simulate(num_pairs=10)
    extra = [
        Vote("r", "q", "ours", "1", "third", "2", "left"),
        Vote("r", "c", "ours", "1", "base", "2", "left", expected="ours"),
    ]
    assert analyse(votes + extra, "ours", "base") == analyse(votes, "ours", "base")
    assert analyse([extra[0]], "third", "ours").wins == 0
    with pytest.raises(ValueError, match="no votes between 'ours' and 'fourth'"):
        analyse(votes, "ours", "fourth")
    with pytest.raises(ValueError, match="no votes between"):
        analyse(votes, "ours", "ours")


def test_design_effect_and_correlation():
    assert design_effect(5, 0.2) == pytest.approx(1.8)
    with pytest.raises(ValueError, match="0 <= icc <= 1"):
        design_effect(5, 1.2)
    # variance between groups 1, within 3
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(3000), 4)
    values = random.standard_normal(3000)[groups] + np.sqrt(3) * random.standard_normal(12000)
    assert intraclass_correlation(values, groups) == pytest.approx(0.25, abs=0.02)
    assert intraclass_correlation(np.ones(6), [0, 0, 1, 1, 2, 2]) == 0
    assert intraclass_correlation([1, 2, 3], ["a", "b", "c"]) is None
    assert intraclass_correlation([1, 2, 3], ["a", "a", "a"]) is None


def test_strength_of_two_models_is_the_log_odds():
    strengths = bradley_terry([[0, 262], [378, 0]])
    assert strengths[0] == 0
    assert strengths[1] == pytest.approx(0.366549691858, abs=1e-11)
    np.testing.assert_allclose(bradley_terry([[9, 5], [5, 2]]), [0, 0], atol=1e-12)


def test_consistent_rates_give_their_strengths():
    b = np.array([0.0, 0.4, -0.7, 3.0, -8.0])
    np.testing.assert_allclose(bradley_terry(special.expit(b[:, None] - b)), b, atol=1e-9)
    games = np.random.default_rng(0).integers(1, 50, (5, 5))
    games = games + games.T
    np.testing.assert_allclose(bradley_terry(games * special.expit(b[:, None] - b)), b, atol=1e-9)


def test_strengths_satisfy_the_likelihood_equations():
    wins = np.random.default_rng(0).integers(1, 30, (6, 6)).astype(float)
    np.fill_diagonal(wins, 0)
    b = bradley_terry(wins)
    expected = ((wins + wins.T) * special.expit(b[:, None] - b)).sum(1)
    np.testing.assert_allclose(expected, wins.sum(1), rtol=1e-10)
    penalised = bradley_terry(wins, regularisation=5.0)
    centred = penalised - penalised.mean()
    residual = wins.sum(1) - ((wins + wins.T) * special.expit(penalised[:, None] - penalised)).sum(1)
    np.testing.assert_allclose(residual, 2 * 5.0 * centred, atol=1e-9)
    assert np.ptp(penalised) < np.ptp(b)


def test_models_that_never_lose_need_regularisation():
    for wins in ([[0, 5], [0, 0]], [[0, 3, 0], [2, 0, 0], [0, 0, 0]], np.zeros((2, 2))):
        with pytest.raises(ValueError, match="not finite.*regularisation"):
            bradley_terry(wins)
    strengths = bradley_terry([[0, 0], [5, 0]], regularisation=0.01)
    assert 2 < strengths[1] < 10
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        bradley_terry([[0, -1], [1, 0]])
    with pytest.raises(ValueError, match="`regularisation`"):
        bradley_terry([[0, 1], [1, 0]], -1)


def test_models_are_ranked_from_their_votes():
    b = {"a": 0.0, "b": 0.8, "c": -0.9}
    random = np.random.default_rng(0)
    votes = [
        vote_on(
            t, f"r{t.round}", "left" if random.random() < special.expit(b[t.left_model] - b[t.right_model]) else "right"
        )
        for t in make_trials(clips(*b, num=150), 150, 5)
    ]
    votes.append(Vote("r", "catch", "c", "1", "b", "2", "left", expected="c"))
    ranks = rank_models(votes, "a", num_resamples=100)
    assert list(ranks) == ["b", "a", "c"]
    assert ranks["a"].log_odds == 0 and ranks["a"].interval == (0, 0)
    assert [ranks[model].num_votes for model in "abc"] == [1500] * 3
    for model in "bc":
        assert ranks[model].interval.low < b[model] < ranks[model].interval.high
        assert ranks[model].interval.low < ranks[model].log_odds < ranks[model].interval.high
        assert width(ranks[model].interval) < 0.6
    with pytest.raises(ValueError, match=r"reference 'd'. Models voted on: \['a', 'b', 'c'\]"):
        rank_models(votes, "d")


def test_few_votes_have_finite_intervals():
    votes = [
        Vote(f"r{i}", f"p{i}", "a", "1", "b", "2", side) for i, side in enumerate(["left", "left", "left", "right"])
    ]
    ranks = rank_models(votes, "b", num_resamples=50)
    assert ranks["a"].log_odds == pytest.approx(np.log(3))
    assert np.isfinite(ranks["a"].interval).all()
