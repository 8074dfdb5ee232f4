import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from allyouneed.evidence.statistics import Interval, detectable, fit_line, fit_power_law, mean, mean_interval

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


@pytest.mark.parametrize("count", [3, 5, 10, 20])
def test_coverage_is_within_half_a_point(count: int):
    # By rows at once; that a row alone gives the same is tested above.
    repeats = 400_000
    samples = np.random.default_rng(count).normal(7.0, 2.0, size=(repeats, count))
    half = [mean_interval(row.tolist()) for row in samples[:3]]
    factor = stats.t.ppf(0.975, count - 1) / math.sqrt(count)
    means, widths = samples.mean(1), factor * samples.std(1, ddof=1)
    for row, interval in enumerate(half):
        assert interval.low == pytest.approx(means[row] - widths[row], rel=1e-12)
    assert np.mean(np.abs(means - 7.0) <= widths) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("count", [3, 5, 20])
def test_a_detectable_distance_is_detected_in_four_runs_of_five(count: int):
    generator = np.random.default_rng(count)
    # What a spread of exactly 1 promises, tried with samples of that deviation.
    pattern = generator.standard_normal(count)
    distance = detectable((pattern / pattern.std(ddof=1)).tolist())
    repeats = 100_000
    samples = generator.normal(distance, 1.0, size=(repeats, count))
    lows = samples.mean(1) - stats.t.ppf(0.975, count - 1) * samples.std(1, ddof=1) / math.sqrt(count)
    assert np.mean(lows > 0) == pytest.approx(0.8, abs=0.01)


def test_a_gap_of_one_deviation_is_seldom_decided_by_three_seeds():
    pattern = [-1.0, 0.0, 1.0]
    assert detectable(pattern) > 3
    assert detectable(pattern, power=0.17) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ValueError, match="at least 2 samples"):
        detectable([1.0])


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


@given(st.lists(FINITE, min_size=2, max_size=14), st.sampled_from([0.9, 0.95]))
def test_student_interval_holds_the_mean(samples: list[float], confidence: float):
    assert covers(mean_interval(samples, confidence), mean(samples))


@pytest.mark.parametrize("count", [5, 12])
@pytest.mark.parametrize(("scale", "shift"), [(1e-200, 0.0), (1e90, 0.0), (1e-9, 1.0), (3.0, -50.0)])
def test_interval_follows_scale_and_shift(count: int, scale: float, shift: float):
    samples = np.random.default_rng(7).exponential(size=count)
    plain = mean_interval(samples.tolist())
    moved = mean_interval((scale * samples + shift).tolist())
    allowed = scale * (plain.high - plain.low) * 1e-6
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
