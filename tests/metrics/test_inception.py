"""Inception Score against closed forms and the published variants' own formulas."""

import numpy as np
import pytest
from scipy import special

from tfvidgen.metrics.inception import (
    INCEPTION_VARIANTS,
    class_entropies,
    inception_score,
    inception_score_of_variant,
)
from tfvidgen.metrics.statistics import SampleSizeWarning


def logits(n=60, classes=7, seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal((n, classes))


def test_equal_rows_score_one():
    score = inception_score(np.tile([0.2, 0.3, 0.5], (8, 1)))
    assert score.value == pytest.approx(1, abs=1e-12)
    assert score.marginal_entropy == pytest.approx(score.conditional_entropy)


@pytest.mark.parametrize("classes", [2, 9, 101])
def test_balanced_one_hot_rows_score_the_number_of_classes(classes):
    score = inception_score(np.eye(classes).repeat(3, axis=0))
    assert score.value == pytest.approx(classes, rel=1e-12)
    assert score.conditional_entropy == 0
    assert score.marginal_entropy == pytest.approx(np.log(classes))


def test_two_classes():
    expected = 2 * np.exp(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert inception_score([[0.9, 0.1], [0.1, 0.9]]).value == pytest.approx(expected, rel=1e-12)


def test_score_is_the_mean_divergence_and_lies_within_its_bounds():
    p = special.softmax(logits(), axis=1)
    score = inception_score(p)
    assert np.log(score.value) == pytest.approx(special.rel_entr(p, p.mean(0)).sum(1).mean(), rel=1e-12)
    assert score.value == pytest.approx(np.exp(score.marginal_entropy - score.conditional_entropy), rel=1e-12)
    assert 1 < score.value < 7
    assert (score.marginal_entropy, score.conditional_entropy) == class_entropies(p)
    assert (score.num_samples, score.spread, score.variant) == (60, 0, "exact")


def test_logits_and_their_probabilities_agree():
    z = logits(scale=30.0)
    from_logits = inception_score(z + 1000, from_logits=True).value
    assert from_logits == pytest.approx(inception_score(special.softmax(z, axis=1)).value, rel=1e-12)


def test_splits_are_contiguous_and_shuffled_only_when_asked():
    p = special.softmax(logits(n=50), axis=1)
    score = inception_score(p, num_splits=4)
    parts = [p[:12], p[12:25], p[25:37], p[37:]]
    np.testing.assert_allclose(score.splits, [inception_score(part).value for part in parts], rtol=1e-12)
    assert score.value == pytest.approx(np.mean(score.splits))
    assert score.spread == pytest.approx(np.std(score.splits))
    shuffled = inception_score(p, num_splits=4, shuffle_seed=42)
    order = np.random.RandomState(42).permutation(50)
    assert shuffled.splits == inception_score(p[order], num_splits=4).splits != score.splits


def test_sorted_samples_lose_their_score_in_splits():
    p = np.eye(10).repeat(20, axis=0)
    assert inception_score(p, num_splits=10).value == pytest.approx(1)
    assert inception_score(p, num_splits=10, shuffle_seed=0).value > 6


def test_more_splits_of_fewer_samples_lower_the_score():
    p = special.softmax(logits(4000, scale=1.5), axis=1)
    whole = inception_score(p).value
    assert inception_score(p, num_splits=100).value < inception_score(p, num_splits=10).value < whole


def tgan(ys):
    mean = ys.mean(axis=0, keepdims=True)
    return np.exp(np.sum(ys * np.log(ys + 1e-7) - ys * np.log(mean + 1e-7)) / len(ys))


def tganv2(ys):
    ys = ys + 1e-20
    return np.exp(np.mean(np.sum(ys * (np.log(ys) - np.log(ys.mean(axis=0))), axis=1)))


def stylegan_v(ys):
    ys = ys[np.random.RandomState(42).permutation(len(ys))]
    scores = []
    for i in range(10):
        part = ys[i * len(ys) // 10 : (i + 1) * len(ys) // 10]
        scores.append(np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(axis=0))), axis=1))))
    return scores


@pytest.mark.parametrize("variant, formula", [("tgan", tgan), ("tganv2", tganv2)])
def test_variants_over_runs(variant, formula):
    rule = INCEPTION_VARIANTS[variant]
    runs = [special.softmax(logits(rule.num_samples, seed=i), axis=1) for i in range(rule.num_runs)]
    score = inception_score_of_variant(variant, runs)
    expected = [formula(run) for run in runs]
    assert score.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert score.spread == pytest.approx(np.std(expected), rel=1e-6)
    assert len(score.splits) == rule.num_runs
    assert (score.num_samples, score.variant) == (rule.num_samples, variant)


def test_tgan_of_one_hot_rows_shows_its_epsilon():
    assert inception_score(np.eye(101), epsilon=1e-7).value == pytest.approx(100.99899, abs=1e-5)
    assert inception_score(np.eye(101), epsilon=1e-20, epsilon_place="probabilities").value == pytest.approx(101)


def test_where_an_epsilon_goes():
    p = special.softmax(logits(), axis=1)
    inside = np.exp(np.mean(np.sum(p * (np.log(p + 0.1) - np.log(p.mean(0) + 0.1)), axis=1)))
    assert inception_score(p, epsilon=0.1).value == pytest.approx(inside, rel=1e-12)
    q = p + 0.1
    throughout = np.exp(np.mean(np.sum(q * (np.log(q) - np.log(q.mean(0))), axis=1)))
    assert throughout != pytest.approx(inside, rel=1e-3)
    score = inception_score(p, epsilon=0.1, epsilon_place="probabilities")
    assert score.value == pytest.approx(throughout, rel=1e-12)
    assert (score.marginal_entropy, score.conditional_entropy) == class_entropies(p)


def test_stylegan_v_has_the_spread_of_its_splits():
    z = logits(2048)
    score = inception_score_of_variant("stylegan-v", [z], from_logits=True)
    expected = stylegan_v(special.softmax(z, axis=1))
    np.testing.assert_allclose(score.splits, expected, rtol=1e-12)
    assert score.value == pytest.approx(np.mean(expected))
    assert score.spread == pytest.approx(np.std(expected))


def test_magvit_is_exact():
    runs = [logits(10000, classes=3, seed=i) for i in range(4)]
    score = inception_score_of_variant("magvit", runs, from_logits=True)
    expected = [inception_score(run, from_logits=True).value for run in runs]
    assert score.value == pytest.approx(np.mean(expected))
    assert score.spread == pytest.approx(np.std(expected))


def test_a_variant_with_other_numbers_warns():
    with pytest.warns(SampleSizeWarning, match=r"'tganv2' is 10 run\(s\) of 2048.*runs of \[60\].*lower"):
        score = inception_score_of_variant("tganv2", [logits()], from_logits=True)
    assert score.value == pytest.approx(inception_score(logits(), from_logits=True).value)


def test_what_is_no_probability_is_refused():
    z = logits()
    with pytest.raises(ValueError, match="sums from.*from_logits=True"):
        inception_score(z)
    with pytest.raises(ValueError, match="sums from 0.9"):
        inception_score([[0.5, 0.4], [0.5, 0.5]])
    z[0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 60 rows hold NaN"):
        inception_score(z, from_logits=True)
    with pytest.raises(ValueError, match=r"1\.\.2.*Received 3"):
        inception_score([[0.5, 0.5]] * 2, num_splits=3)
    with pytest.raises(ValueError, match="'logs' or 'probabilities'"):
        inception_score([[0.5, 0.5]], epsilon_place="nowhere")
    with pytest.raises(ValueError, match="one of tgan, tganv2, stylegan-v, magvit. Received 'dvdgan'"):
        inception_score_of_variant("dvdgan", [])
    with pytest.raises(ValueError, match="at least one run"):
        inception_score_of_variant("tgan", [])
