"""The arrivals of `benchmarks.serving`: at the rate that is asked for, and as hard to serve as they are said to be."""

import pytest

from benchmarks import serving as benchmark


@pytest.mark.parametrize(
    ("draw", "reference"), [(benchmark.paced_moments, 2.8), (benchmark.poisson_moments, 4.2)], ids=["paced", "poisson"]
)
def test_arrivals_have_their_rate_and_their_queue(draw, reference):
    moments = draw(10.0, 3000.0, seed=1)
    assert moments == sorted(moments) and 0 <= moments[0] and moments[-1] < 3000
    assert len(moments) == pytest.approx(30_000, rel=0.02)
    assert benchmark.queue_reference(moments, 0.7) == pytest.approx(reference, rel=0.1)
    assert draw(10.0, 100.0, seed=1) != draw(10.0, 100.0, seed=2)


def test_a_queue_without_waiting_is_constant():
    assert benchmark.queue_reference([float(i) for i in range(1, 1001)], 0.5) == pytest.approx(1.0)


def test_open_loop_counts_answers_and_errors():
    def send(number):
        if number % 10 == 0:
            raise RuntimeError("refused")
        return 1

    measured = benchmark.open_loop([send] * 4, [0.001 * i for i in range(100)])
    assert (measured["requests"], measured["errors"]) == (100, 10)
    assert 0 <= measured["p50_ms"] <= measured["p99_ms"]
