"""Learning rates of a run that was extended."""

import keras
import numpy as np
import pytest

from trainers import schedules


def rates(schedule, steps) -> list[float]:
    return [float(schedule(np.int64(step))) for step in steps]


def by_hand(total, step, rate=0.5):
    share = 0.5 * (1 + np.cos(np.pi * min(step, total) / total))
    return rate * (0.99 * share + 0.01)


def test_without_extensions_it_is_keras_s_cosine():
    """Bit for bit: a run of version 0.1 goes on with it."""
    expected = keras.optimizers.schedules.CosineDecay(0.5, 10, alpha=0.01)
    assert rates(schedules.cosine(0.5, 10), range(14)) == rates(expected, range(14))
    np.testing.assert_allclose(
        rates(schedules.cosine(0.5, 10), range(14)), [by_hand(10, s) for s in range(14)], rtol=1e-5
    )


def test_each_total_is_in_force_until_its_step():
    found = rates(schedules.cosine(0.5, 40, "10:6,20:20"), range(45))
    expected = [by_hand(10 if step < 6 else 20 if step < 20 else 40, step) for step in range(45)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[40] == found[44] == pytest.approx(0.005)


def test_an_optimizer_follows_it():
    variable = keras.Variable(np.zeros(1, np.float32))
    optimizer = keras.optimizers.SGD(schedules.cosine(0.5, 8, "4:3"))
    optimizer.build([variable])
    before, moved = 0.0, []
    for _ in range(8):
        optimizer.apply([np.ones(1, np.float32)])
        moved.append(before - float(variable.numpy()[0]))
        before = float(variable.numpy()[0])
    np.testing.assert_allclose(moved, [by_hand(4 if step < 3 else 8, step) for step in range(8)], rtol=1e-4)


@pytest.mark.parametrize("text", ["10", "10:", ":5", "a:b", "10:0", "0:5", "10:5;20:7", "10:-5", "10:5 20:7"])
def test_pairs_that_are_none(text):
    with pytest.raises(ValueError, match="must be TOTAL:STEP pairs, separated by commas.*Received"):
        schedules.parse(text)


@pytest.mark.parametrize("text", ["10:5,20:5", "10:5,20:4", "10:11"])
def test_steps_that_do_not_ascend(text):
    with pytest.raises(ValueError, match="ascending steps, none of them beyond its own total"):
        schedules.parse(text)


def test_pairs():
    assert schedules.parse("") == []
    assert schedules.parse("1000:600,2000:1500") == [(1000, 600), (2000, 1500)]
