"""S3 against the paper's rows, closed forms and a classifier whose accuracy is known."""

import math

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from tfvidgen.metrics.s3 import accuracy, s3_from_predictions, s3_score


def guesses(labels, right, seed=0, classes=10):
    """Predictions that are right for the first `right` of the labels."""
    predicted = labels.copy()
    predicted[right:] = (predicted[right:] + 1) % classes
    return predicted


def labels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 10, n)


@pytest.mark.parametrize(
    "ser, res, rer, expected",
    [(61.11, 32.83, 95.83, 0.4674), (80.31, 62.53, 95.83, 0.7395), (15.85, 13.86, 91.4, 0.1622)],
)
def test_rows_of_the_paper(ser, res, rer, expected):
    assert s3_score(ser, res, rer) == pytest.approx(expected, abs=5e-5)
    assert s3_score(ser / 100, res / 100, rer / 100) == pytest.approx(s3_score(ser, res, rer), rel=1e-12)


def test_a_copy_of_the_training_set():
    real, synthetic = labels(40), labels(60, 1)
    trained_on_either = guesses(real, 30)
    result = s3_from_predictions(
        (trained_on_either, real), (guesses(synthetic, 57), synthetic), (trained_on_either, real)
    )
    assert result.ser == result.rer == 0.75 and result.res == 0.95
    assert result.value == pytest.approx(math.sqrt(0.95 / 0.75))  # sqrt(training accuracy / ReR)
    assert result.value > 1
    assert (result.num_real, result.num_synthetic) == (40, 60)
    assert result.per_seed == (pytest.approx(result.value),) and result.spread == 0


def test_seeds():
    real, synthetic = labels(40), labels(60, 1)
    ser = np.stack([guesses(real, right) for right in (20, 24)])
    res = np.stack([guesses(synthetic, right) for right in (30, 36)])
    rer = np.stack([guesses(real, right) for right in (36, 40)])
    result = s3_from_predictions((ser, real), (res, synthetic), (rer, real))
    assert (result.ser, result.res, result.rer) == pytest.approx((0.55, 0.55, 0.95))
    assert result.value == pytest.approx(0.55 / 0.95)
    each = [math.sqrt(0.5 * 0.5) / 0.9, math.sqrt(0.6 * 0.6) / 1.0]
    assert result.per_seed == pytest.approx(each)
    assert result.spread == pytest.approx(np.std(each))
    uneven = s3_from_predictions((ser, real), (res[:1], synthetic), (rer, real))
    assert uneven.per_seed == () and uneven.spread == 0


def test_interval_draws_both_sets_and_real_clips_together():
    real, synthetic = labels(100), labels(100, 1)
    right, some_right = (real, real), (guesses(real, 60), real)
    low, high = 0.6 - 1.96 * math.sqrt(0.6 * 0.4 / 100), 0.6 + 1.96 * math.sqrt(0.6 * 0.4 / 100)
    synthetic_right, some_synthetic_right = (synthetic, synthetic), (guesses(synthetic, 60), synthetic)

    def interval(*sets):
        return tuple(s3_from_predictions(*sets, num_resamples=2000).interval)

    assert interval(right, synthetic_right, some_right) == pytest.approx((1 / high, 1 / low), rel=0.03)
    assert interval(right, some_synthetic_right, right) == pytest.approx((math.sqrt(low), math.sqrt(high)), rel=0.03)
    # SeR and ReR are of the same draws: sqrt(ReR) / ReR
    expected = (1 / math.sqrt(high), 1 / math.sqrt(low))
    assert interval(some_right, synthetic_right, some_right) == pytest.approx(expected, rel=0.03)
    assert interval(some_right, synthetic_right, some_right) == interval(some_right, synthetic_right, some_right)


def test_chance_is_not_zero():
    random = np.random.default_rng(2)
    real, synthetic = labels(5000), labels(5000, 1)
    chance = [(random.integers(0, 10, 5000), truth) for truth in (real, synthetic)]
    result = s3_from_predictions(*chance, (guesses(real, 4500), real), num_resamples=10)
    assert result.value == pytest.approx(0.1 / 0.9, rel=0.1)


def test_linear_classifier_of_two_gaussians():
    # accuracy Phi(|dm| / 2 sigma) on either test set, so S3 = 1 for a generator of the same distribution
    def draw(n, seed):
        random = np.random.default_rng(seed)
        truth = random.integers(0, 2, n)
        return random.standard_normal((n, 2)) + 1.5 * truth[:, None] * [1.0, 0.0], truth

    (real, y), (test, t), (fake, f) = draw(4000, 0), draw(4000, 1), draw(4000, 2)
    on_real, on_fake = (LogisticRegression().fit(*data) for data in ((real, y), (fake, f)))
    result = s3_from_predictions((on_fake.predict(test), t), (on_real.predict(fake), f), (on_real.predict(test), t))
    assert result.rer == pytest.approx(special.ndtr(0.75), abs=0.02)
    assert result.value == pytest.approx(1, abs=0.03)
    assert result.interval.low < 1 < result.interval.high


def test_accuracy():
    assert accuracy([1, 2, 3, 3], [1, 2, 3, 4]) == 0.75
    assert accuracy([[1, 2], [1, 1]], [1, 1]) == 0.75


def test_refused():
    with pytest.raises(ValueError, match="undefined for ReR = 0"):
        s3_score(0.5, 0.5, 0)
    for wrong in (-0.1, 101, float("nan")):
        with pytest.raises(ValueError, match="`res` must be an accuracy"):
            s3_score(0.5, wrong, 0.5)
    real = labels(6)
    pair = (real, real)
    with pytest.raises(ValueError, match=r"`ser` needs whole-number.*argmax"):
        s3_from_predictions((np.eye(6), real), pair, pair)
    with pytest.raises(ValueError, match=r"`res`.*\(5,\).*\(6,\)"):
        s3_from_predictions(pair, (real[:5], real), pair)
    with pytest.raises(ValueError, match="same real test clips"):
        s3_from_predictions((real, real[::-1]), pair, pair)
    with pytest.raises(ValueError, match="undefined"):
        s3_from_predictions(pair, pair, (real + 1, real))
    with pytest.raises(ValueError, match="needs whole-number"):
        accuracy(np.zeros(0, int), np.zeros(0, int))
