"""The judge's measures against closed forms, the formulas of the public code, and hand arithmetic."""

import numpy as np
import pytest
from scipy import special

from tfvidgen.metrics import disentanglement
from tfvidgen.metrics.disentanglement import (
    attribute_accuracies,
    exchange_accuracy,
    judge_scores,
    nearest_cell,
)
from tfvidgen.metrics.statistics import wilson_interval

NINE = np.log(9)


def test_a_perfect_judgement():
    scores = judge_scores(np.eye(9).repeat(2, axis=0), np.arange(9).repeat(2), np.eye(9).repeat(2, axis=0))
    assert scores.accuracy == 1 and scores.conditional_entropy == 0
    assert scores.inception_score == pytest.approx(9, rel=1e-12)
    assert scores.marginal_entropy == pytest.approx(NINE)
    assert scores.divergence == pytest.approx(0, abs=1e-12)
    assert (scores.num_videos, scores.num_balanced) == (18, 18)


def test_a_judge_that_knows_nothing():
    scores = judge_scores(np.full((9, 9), 1 / 9), np.arange(9))
    assert scores.inception_score == pytest.approx(1)
    assert (scores.marginal_entropy, scores.conditional_entropy) == pytest.approx((NINE, NINE))
    assert scores.divergence is None


def test_one_class_for_all():
    scores = judge_scores(np.eye(9)[[4] * 9], np.arange(9))
    assert scores.accuracy == pytest.approx(1 / 9)
    assert (scores.inception_score, scores.marginal_entropy) == pytest.approx((1, 0))


def test_entropies_are_taken_on_the_first_of_each_class():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 50)
    labels[:3] = 3
    p, source = (special.softmax(2 * random.standard_normal((50, 4)), axis=1) for _ in range(2))
    rarest = np.bincount(labels).min()
    chosen = np.hstack([np.nonzero(labels == i)[0][:rarest] for i in range(4)])
    q, eps = p[chosen], 1e-16
    scores = judge_scores(p, labels, source)
    assert scores.num_balanced == 4 * rarest < 50
    assert scores.accuracy == (p.argmax(1) == labels).mean()
    assert scores.conditional_entropy == pytest.approx(-(q * np.log(q + eps)).sum(1).mean())
    assert scores.marginal_entropy == pytest.approx(-(q.mean(0) * np.log(q.mean(0) + eps)).sum())
    kl = (q * (np.log(q + eps) - np.log(q.mean(0) + eps))).sum(1).mean()
    assert scores.inception_score == pytest.approx(np.exp(kl))
    assert scores.divergence == pytest.approx((p * (np.log(p + eps) - np.log(source + eps))).sum(1).mean())
    everything = judge_scores(p, labels, balanced=False)
    assert everything.num_balanced == 50
    assert everything.conditional_entropy == pytest.approx(special.entr(p).sum(1).mean())


def test_a_class_that_is_absent_does_not_empty_the_subset():
    scores = judge_scores(np.eye(3)[[0, 0, 2]], np.array([0, 0, 2]))
    assert scores.num_balanced == 2
    assert scores.inception_score == pytest.approx(2)


def test_divergence_from_a_source_that_excludes_the_class_is_finite():
    scores = judge_scores(np.eye(2)[[0]], np.array([0]), np.eye(2)[[1]])
    assert scores.divergence == pytest.approx(16 * np.log(10))


def test_judge_refuses():
    p = np.full((4, 2), 0.5)
    with pytest.raises(ValueError, match=r"`true_labels` must be whole numbers of shape \(4,\).*\(3,\)"):
        judge_scores(p, np.zeros(3, int))
    with pytest.raises(ValueError, match="dtype float64"):
        judge_scores(p, np.zeros(4))
    with pytest.raises(ValueError, match=r"0\.\.1.*0\.\.2"):
        judge_scores(p, np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match=r"\(4, 2\). Received \(2, 2\)"):
        judge_scores(p, np.zeros(4, int), p[:2])
    with pytest.raises(ValueError, match="sum 1"):
        judge_scores(2 * p, np.zeros(4, int))


def test_kept_and_swapped_attributes():
    random = np.random.default_rng(0)
    action, hair = random.integers(0, 9, 600), random.integers(0, 6, 600)
    drawn_hair = random.integers(0, 6, 600)
    result = attribute_accuracies(
        {"action": np.eye(9)[action], "hair": np.eye(6)[drawn_hair]}, {"action": action, "hair": hair}, {"action"}
    )
    assert result["action"].accuracy == 1 and result["action"].kept
    assert result["action"].chance == pytest.approx(1 / 9)
    hits = int((drawn_hair == hair).sum())
    assert result["hair"].accuracy == hits / 600 and not result["hair"].kept
    assert result["hair"].interval == wilson_interval(hits, 600)
    assert result["hair"].interval.low < result["hair"].chance == pytest.approx(1 / 6)
    assert result["hair"].interval.high > 1 / 6


def test_attributes_must_be_named_alike():
    p, labels = np.eye(2), np.array([0, 1])
    for given in (({"a": p}, {"b": labels}, ()), ({"a": p}, {"a": labels}, ("c",)), ({}, {}, ())):
        with pytest.raises(ValueError, match="the same names"):
            attribute_accuracies(*given)


def test_exchange_accuracy_by_hand():
    result = exchange_accuracy([0, 1, 2, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0])
    assert (result.identity, result.action, result.both, result.num_videos) == (0.75, 0.75, 0.5, 4)
    assert result.both_interval == wilson_interval(2, 4)
    with pytest.raises(ValueError, match="the same length"):
        exchange_accuracy([0], [0], [0], [0, 1])
    with pytest.raises(ValueError, match="whole numbers"):
        exchange_accuracy([0.5], [0], [0], [0])
    with pytest.raises(ValueError, match="at least 1"):
        exchange_accuracy(*np.zeros((4, 0), int))


def cells(num_identities=4, num_actions=3):
    """A uint8 clip of every cell, and the labels."""
    random = np.random.default_rng(0)
    identity, action = (grid.ravel() for grid in np.indices((num_identities, num_actions)))
    looks, motions = random.integers(0, 128, (2, max(num_identities, num_actions), 2, 4, 4, 3))
    return (looks[identity] + motions[action]).astype(np.uint8), identity, action


@pytest.mark.parametrize("chunk", [2**23, 200])
def test_the_nearest_cell_of_a_noisy_exchange_is_its_own(chunk, monkeypatch):
    monkeypatch.setattr(disentanglement, "_NUMBERS_PER_CHUNK", chunk)
    truth, identity, action = cells()
    noise = np.random.default_rng(1).integers(-9, 10, truth.shape)
    generated = np.clip(truth + noise, 0, 255).astype(np.uint8)[::-1]
    found = nearest_cell(generated, truth, identity, action)
    assert exchange_accuracy(*found, identity[::-1], action[::-1]).both == 1
    # a generator that ignores the motion keeps identities only
    still = truth.reshape(4, 3, *truth.shape[1:])[:, :1].repeat(3, axis=1).reshape(truth.shape)
    result = exchange_accuracy(*nearest_cell(still, truth, identity, action), identity, action)
    assert (result.identity, result.action) == (1, pytest.approx(1 / 3))


@pytest.mark.parametrize("chunk", [2**23, 200])
def test_nearest_cell_is_the_least_square_and_takes_the_first_of_equal_ones(chunk, monkeypatch):
    monkeypatch.setattr(disentanglement, "_NUMBERS_PER_CHUNK", chunk)
    random = np.random.default_rng(2)
    generated, truth = random.integers(0, 256, (5, 2, 3, 3, 3)), random.integers(0, 256, (7, 2, 3, 3, 3))
    squares = ((generated[:, None] - truth[None]) ** 2).sum((2, 3, 4, 5))
    identity, action = np.arange(7), np.arange(7)[::-1]
    np.testing.assert_array_equal(
        nearest_cell(generated, truth, identity, action), [squares.argmin(1), 6 - squares.argmin(1)]
    )
    doubled = np.concatenate([truth, truth])
    found = nearest_cell(generated, doubled, np.arange(14), np.arange(14))[0]
    np.testing.assert_array_equal(found, squares.argmin(1))


def test_nearest_cell_refuses():
    truth, identity, action = cells()
    with pytest.raises(ValueError, match="the same shape"):
        nearest_cell(truth[:, :1], truth, identity, action)
    with pytest.raises(ValueError, match=r"`truth_action` must be whole numbers of shape \(12,\)"):
        nearest_cell(truth, truth, identity, action[:5])
    with pytest.raises(ValueError, match="on both sides"):
        nearest_cell(truth[:0], truth, identity, action)
    with pytest.raises(ValueError, match="`generated` must be finite"):
        nearest_cell(np.full(truth.shape, np.nan), truth, identity, action)
