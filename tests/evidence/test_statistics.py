import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from allyouneed.evidence.statistics import Interval, fit_line, fit_power_law, mean, mean_interval

FINITE = st.floats(-1e100, 1e100)


def covers(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def test_student_interval_of_a_known_sample():
    # Mean 3, standard deviation √2.5, t(0.975; 4 degrees of freedom) = 2.776445.
    half = 2.7764451051977987 * math.sqrt(2.5 / 5)
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.low == pytest.approx(3 - half, rel=1e-12)
    assert interval.high == pytest.approx(3 + half, rel=1e-12)
    assert interval.confidence == 0.95


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_student_interval_is_that_of_scipy(confidence: float):
    samples = np.random.default_rng(0).normal(100.0, 0.1, size=9)
    expected = stats.t.interval(confidence, 8, loc=samples.mean(), scale=stats.sem(samples))
    interval = mean_interval(samples.tolist(), confidence)
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-12)
    assert interval.confidence == confidence


def test_student_coverage_at_five_samples():
    repeats = 4_000
    samples = np.random.default_rng(1).normal(7.0, 2.0, size=(repeats, 5))
    share = np.mean([covers(mean_interval(row.tolist()), 7.0) for row in samples])
    # Four standard errors of a share of 0.95 over the repeats.
    assert share == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / repeats))


def test_bootstrap_coverage_at_twenty_samples():
    repeats = 400
    samples = np.random.default_rng(2).normal(7.0, 2.0, size=(repeats, 20))
    share = np.mean([covers(mean_interval(row.tolist()), 7.0) for row in samples])
    # BCa is known to cover a little less than its confidence at such sizes (about 0.93), beside the sampling error.
    assert 0.89 < share < 0.98


@pytest.mark.parametrize("shape", ["normal", "exponential"])
def test_bootstrap_is_scipys_bca(shape: str):
    generator = np.random.default_rng(3)
    samples = getattr(generator, shape)(size=30)
    expected = stats.bootstrap(
        (samples,), np.mean, n_resamples=9_999, method="BCa", rng=np.random.default_rng(4)
    ).confidence_interval
    interval = mean_interval(samples.tolist())
    # Two seeds of the same bootstrap: equal up to its Monte-Carlo error.
    width = expected.high - expected.low
    assert interval.low == pytest.approx(expected.low, abs=0.03 * width)
    assert interval.high == pytest.approx(expected.high, abs=0.03 * width)


def test_bootstrap_begins_at_ten_samples():
    # Skewed: BCa is not symmetrical about the mean, Student's t is.
    samples = [0.0, 0.1, 0.2, 0.2, 0.3, 0.3, 0.5, 0.9, 6.0, 9.0]
    for count, symmetrical in ((9, True), (10, False)):
        interval = mean_interval(samples[:count])
        middle = (interval.low + interval.high) / 2
        assert (middle == pytest.approx(mean(samples[:count]), rel=1e-9)) is symmetrical


def test_the_same_samples_give_the_same_interval():
    samples = np.random.default_rng(5).normal(size=25).tolist()
    np.random.seed(0)
    first = mean_interval(samples)
    np.random.seed(1)
    assert mean_interval(samples) == first == mean_interval(samples[::-1])


def test_more_confidence_is_a_wider_interval():
    for count in (5, 15):
        samples = np.random.default_rng(6).normal(size=count).tolist()
        narrow, wide = mean_interval(samples, 0.90), mean_interval(samples, 0.95)
        assert wide.low < narrow.low < narrow.high < wide.high


@given(FINITE, st.integers(2, 40))
def test_equal_samples_give_a_point(value: float, count: int):
    interval = mean_interval([value] * count)
    assert interval.low == interval.high == value == mean([value] * count)


@given(st.lists(FINITE, min_size=2, max_size=9), st.sampled_from([0.9, 0.95]))
def test_student_interval_holds_the_mean(samples: list[float], confidence: float):
    assert covers(mean_interval(samples, confidence), mean(samples))


@settings(max_examples=30, deadline=None)
@given(st.lists(FINITE, min_size=10, max_size=14))
def test_bootstrap_interval_is_finite_and_within_the_samples(samples: list[float]):
    interval = mean_interval(samples)
    slack = 1e-12 * max(map(abs, samples))
    assert min(samples) - slack <= interval.low <= interval.high <= max(samples) + slack


@pytest.mark.parametrize("count", [5, 12])
@pytest.mark.parametrize(("scale", "shift"), [(1e-200, 0.0), (1e90, 0.0), (1e-9, 1.0), (3.0, -50.0)])
def test_interval_follows_scale_and_shift(count: int, scale: float, shift: float):
    samples = np.random.default_rng(7).exponential(size=count)
    plain = mean_interval(samples.tolist())
    moved = mean_interval((scale * samples + shift).tolist())
    # The ends of a bootstrap interval are order statistics of the resamples: rounding may pick a neighbour.
    allowed = scale * (plain.high - plain.low) * (1e-6 if count < 10 else 2e-3)
    assert moved.low == pytest.approx(scale * plain.low + shift, abs=allowed)
    assert moved.high == pytest.approx(scale * plain.high + shift, abs=allowed)


@pytest.mark.parametrize("samples", [[], [1.0]])
def test_fewer_than_two_samples_are_refused(samples: list[float]):
    with pytest.raises(ValueError, match="at least"):
        mean_interval(samples)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [3, 12])
def test_non_finite_samples_are_named(value: float, count: int):
    with pytest.raises(ValueError, match=str(value)):
        mean_interval([1.0] * count + [value])
    with pytest.raises(ValueError, match=str(value)):
        mean([1.0, value])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_confidence_outside_its_range_is_refused(confidence: float):
    with pytest.raises(ValueError, match=str(confidence)):
        mean_interval([1.0, 2.0], confidence)


@pytest.mark.parametrize(
    ("low", "high", "confidence"), [(2, 1, 0.9), (math.nan, 1, 0.9), (0, math.inf, 0.9), (0, 1, 0)]
)
def test_an_interval_refuses_what_is_none(low: float, high: float, confidence: float):
    with pytest.raises(ValueError, match=r"interval|confidence"):
        Interval(low, high, confidence)


def test_line_of_a_known_sample():
    # Anscombe's first set: intercept 3.0001, slope 0.50009, R² 0.66654.
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    line = fit_line(x, y)
    assert line.slope == pytest.approx(0.5000909, abs=1e-7)
    assert line.intercept == pytest.approx(3.0000909, abs=1e-7)
    assert line.r_squared == pytest.approx(0.6665425, abs=1e-7)


@given(
    st.lists(st.integers(-1000, 1000), min_size=3, max_size=20, unique=True),
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
    st.floats(0, 10),
    st.integers(0, 2**32),
)
def test_line_is_that_of_scipy(x: list[int], slope: float, intercept: float, noise: float, seed: int):
    y = [
        slope * value + intercept + noise * deviate
        for value, deviate in zip(x, np.random.default_rng(seed).normal(size=len(x)), strict=True)
    ]
    # Typed loosely: the result's fields are unknown to a type checker.
    expected: Any = stats.linregress(x, y)
    line = fit_line(x, y)
    size = max(1e-300, *map(abs, y))
    assert line.slope == pytest.approx(expected.slope, rel=1e-7, abs=1e-10 * size)
    assert line.intercept == pytest.approx(expected.intercept, rel=1e-7, abs=1e-8 * size)
    if noise > 1e-3:
        assert line.r_squared == pytest.approx(expected.rvalue**2, abs=1e-7)


def test_a_level_line_explains_every_point():
    line = fit_line([1, 2, 3], [0.1, 0.1, 0.1])
    assert (line.slope, line.intercept, line.r_squared) == (0.0, 0.1, 1.0)


def test_line_at_extreme_scales():
    for unit in (1e-250, 1e140):
        line = fit_line([0.0, unit, 2 * unit], [0.0, 3 * unit, 6 * unit])
        assert line.slope == pytest.approx(3.0)
        assert line.r_squared == pytest.approx(1.0)


def test_power_law_recovered_from_noise():
    generator = np.random.default_rng(8)
    x = np.geomspace(10, 10_000, 8)
    exponents, coefficients = [], []
    for _ in range(8):
        law = fit_power_law(x.tolist(), (5.0 * x**-0.7 * np.exp(generator.normal(0, 0.05, size=8))).tolist())
        exponents.append(law.exponent)
        coefficients.append(law.coefficient)
        assert 0.99 < law.r_squared < 1.0
    interval = mean_interval(exponents)
    assert covers(interval, -0.7)
    assert interval.high - interval.low < 0.05
    assert covers(mean_interval(coefficients), 5.0)


@given(st.floats(-5, 5), st.floats(1e-3, 1e3))
def test_power_law_recovered_exactly_without_noise(exponent: float, coefficient: float):
    x = [1.0, 2.0, 5.0, 30.0]
    law = fit_power_law(x, [coefficient * value**exponent for value in x])
    assert law.exponent == pytest.approx(exponent, abs=1e-9)
    assert law.coefficient == pytest.approx(coefficient, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        ([1, 2, 3], [1, 2], "3 and 2"),
        ([1], [1], "2 different x"),
        ([2, 2, 2], [1, 2, 3], "2 different x"),
        ([], [], "at least one"),
        ([1, 2], [1, math.nan], "nan"),
        ([1, math.inf], [1, 2], "inf"),
        ([0, 1e-200], [0, 1e200], "no finite slope"),
    ],
)
def test_what_no_line_fits_is_refused(x: list[float], y: list[float], named: str):
    with pytest.raises(ValueError, match=named):
        fit_line(x, y)


@pytest.mark.parametrize(
    ("x", "y", "named"), [([0, 1], [1, 2], r"x, got \[0\]"), ([1, 2], [1, -2.5], r"y, got \[-2.5\]")]
)
def test_a_power_law_refuses_what_has_no_logarithm(x: list[float], y: list[float], named: str):
    with pytest.raises(ValueError, match=named):
        fit_power_law(x, y)
