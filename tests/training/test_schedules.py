"""Learning-rate schedules at the points that define them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.training import Constant, Cosine, InverseSquareRoot, Linear, Schedule

STEPS = 110


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        (Constant(), 0, 1.0),
        (Constant(), STEPS, 1.0),
        (Linear(), 0, 1.0),
        (Linear(), 55, 0.5),
        (Linear(), STEPS, 0.0),
        (Linear(final=0.1), STEPS, 0.1),
        (Linear(warmup=10, final=0.2), 60, 0.6),
        (Cosine(), 0, 1.0),
        (Cosine(), 55, 0.5),
        (Cosine(), STEPS, 0.0),
        (Cosine(final=0.1), STEPS, 0.1),
        (Cosine(warmup=10), 35, 0.5 + 0.25 * math.sqrt(2)),
        (Cosine(warmup=10, final=0.2), 60, 0.6),
        (InverseSquareRoot(), 0, 1.0),
        (InverseSquareRoot(), 99, 0.1),
        (InverseSquareRoot(warmup=10), 39, 0.5),
        # Vaswani et al., equation 3, over its peak: step counted from 1, 40 steps of warm-up.
        (InverseSquareRoot(warmup=40), 89, 90**-0.5 / 40**-0.5),
        (InverseSquareRoot(warmup=40), 19, (20 * 40**-1.5) / 40**-0.5),
    ],
)
def test_points(schedule: Schedule, step: int, factor: float):
    assert schedule(step, STEPS) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, InverseSquareRoot])
def test_warm_up(kind):
    schedule = kind(warmup=10)
    assert [schedule(step, STEPS) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule(9, STEPS) == 1.0 >= schedule(10, STEPS) > 0.9


@given(
    kind=st.sampled_from([Constant, Linear, Cosine, InverseSquareRoot]),
    warmup=st.integers(0, 50),
    steps=st.integers(1, 60),
)
def test_factors_rise_to_the_peak_then_never_rise(kind, warmup: int, steps: int):
    schedule = kind(warmup=warmup)
    factors = [schedule(step, steps) for step in range(steps)]
    peak = max(0, min(warmup, steps) - 1)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, InverseSquareRoot])
def test_refuses_a_negative_warm_up(kind):
    with pytest.raises(ValueError, match="-1 steps"):
        kind(warmup=-1)
