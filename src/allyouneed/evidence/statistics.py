"""Intervals of a mean, and the least-squares fits of the two laws that claims speak of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A closed interval and the confidence at which it covers what it estimates.

    Attributes:
        low: lower end.
        high: upper end, not below `low`.
        confidence: in (0, 1]; 1 for a range that is observed, not estimated.

    Raises:
        ValueError: an end is not finite, `low` is above `high`, or the confidence is outside (0, 1].
    """

    low: float
    high: float
    confidence: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"an interval needs finite ends, low ≤ high; got [{self.low}, {self.high}]")
        if not 0.0 < self.confidence <= 1.0:
            raise ValueError(f"confidence must be in (0, 1], got {self.confidence}")


@dataclass(frozen=True)
class Line:
    """The line y = intercept + slope · x, and the share of y's variance that it explains."""

    slope: float
    intercept: float
    r_squared: float


@dataclass(frozen=True)
class PowerLaw:
    """The law y = coefficient · x ** exponent; `r_squared` is that of the line through the logarithms."""

    exponent: float
    coefficient: float
    r_squared: float


def mean(samples: Sequence[float]) -> float:
    """Return the mean, correctly rounded, so that the mean of equal samples is that sample.

    Raises:
        ValueError: there is no sample, or one is not finite.
    """
    return float(_exact_mean(_finite("samples", samples)))


def mean_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return Student's two-sided confidence interval of the mean of the population that the samples come from.

    The bootstrap (BCa) is not used: with 10 to 20 samples its intervals are too short, and what should be 2.5 % of
    wrong verdicts on either side is about 5. Samples that are all equal give the degenerate interval [m, m].

    Args:
        samples: at least 2 finite numbers.
        confidence: the interval's coverage, in (0, 1).

    Raises:
        ValueError: fewer than 2 samples, a sample that is not finite, or a confidence outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    # In order of size, so that rounding does not depend on the order in which the samples came.
    values = sorted(_finite("samples", samples))
    if len(values) < 2:
        raise ValueError(f"an interval of the mean needs at least 2 samples, got {values}")
    exact_centre = _exact_mean(values)
    deviations = [Fraction(value) - exact_centre for value in values]
    spread = max(map(abs, deviations))
    centre = float(exact_centre)
    if spread == 0:
        return Interval(centre, centre, confidence)
    # The interval follows a shift and a rescaling of the samples, so it is computed about 0 at unit spread, where
    # nothing overflows, vanishes or cancels, and carried back.
    standard = np.array([float(deviation / spread) for deviation in deviations])
    half = _half_width(standard, confidence) * float(spread)
    return Interval(centre - half, centre + half, confidence)


def detectable(samples: Sequence[float], confidence: float = 0.95, power: float = 0.8) -> float:
    """Return how far a mean must lie from a bound to be seen to lie beyond it in most repetitions.

    With the samples' standard deviation s and number n, an interval of this confidence lies wholly beyond a bound at
    distance d with the probability that a noncentral t of n − 1 degrees and shift d √n / s exceeds its critical value.

    Args:
        samples: at least 2 finite numbers.
        confidence: of the interval, in (0, 1).
        power: the share of repetitions, in (0, 1).

    Raises:
        ValueError: fewer than 2 samples, or one that is not finite.
    """
    from scipy.special import nctdtrinc, stdtrit

    values = np.array(_finite("samples", samples))
    if len(values) < 2:
        raise ValueError(f"a spread needs at least 2 samples, got {values.tolist()}")
    degrees = len(values) - 1
    critical = stdtrit(degrees, (1.0 + confidence) / 2.0)
    shift = float(nctdtrinc(degrees, 1.0 - power, critical))
    return shift * float(values.std(ddof=1)) / math.sqrt(len(values))


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit y = intercept + slope · x by least squares.

    R² is 1 − (residual sum of squares) / (total sum of squares); where all y are equal, the line passes through every
    point and R² is 1.

    Args:
        x: at least 2 finite numbers, not all equal.
        y: as many finite numbers.

    Raises:
        ValueError: the lengths differ, there are fewer than 2 points, a value is not finite, all x are equal, or the
            slope or intercept is larger than a float.
    """
    abscissas, ordinates = np.array(_finite("x", x)), np.array(_finite("y", y))
    if len(abscissas) != len(ordinates):
        raise ValueError(f"x and y must be of one length, got {len(abscissas)} and {len(ordinates)}")
    if len(abscissas) < 2 or (abscissas == abscissas[0]).all():
        raise ValueError(f"a line needs at least 2 different x, got {abscissas.tolist()}")
    # Measured from the first point, equal ordinates are exactly 0, and so is their slope.
    run, rise = abscissas - abscissas[0], ordinates - ordinates[0]
    if not rise.any():
        return Line(0.0, float(ordinates[0]), 1.0)
    # At unit size no square overflows or vanishes.
    run_unit, rise_unit = np.abs(run).max(), np.abs(rise).max()
    run_centred, rise_centred = (run - run.mean()) / run_unit, (rise - rise.mean()) / rise_unit
    inclination = run_centred @ rise_centred / (run_centred @ run_centred)
    residuals = rise_centred - inclination * run_centred
    r_squared = max(0.0, 1.0 - float(residuals @ residuals / (rise_centred @ rise_centred)))
    slope = float(inclination) * float(rise_unit) / float(run_unit)
    intercept = float(ordinates[0] + rise.mean()) - slope * float(abscissas[0] + run.mean())
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise ValueError(f"the line through {list(zip(x, y, strict=True))} has no finite slope and intercept")
    return Line(slope, intercept, r_squared)


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fit y = coefficient · x ** exponent by least squares in the logarithms of both.

    Args:
        x: at least 2 finite positive numbers, not all equal.
        y: as many finite positive numbers.

    Raises:
        ValueError: as `fit_line`, or a value is not positive.
    """
    for name, values in (("x", x), ("y", y)):
        refused = [value for value in values if value <= 0]
        if refused:
            raise ValueError(f"a power law needs positive {name}, got {refused}")
    line = fit_line([math.log(value) for value in x], [math.log(value) for value in y])
    with np.errstate(over="ignore"):
        coefficient = float(np.exp(line.intercept))
    return PowerLaw(line.slope, coefficient, line.r_squared)


def _finite(name: str, values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    refused = [number for number in numbers if not math.isfinite(number)]
    if refused:
        raise ValueError(f"{name} must be finite, got {refused} among {len(numbers)}")
    if not numbers:
        raise ValueError(f"{name} must hold at least one number, got none")
    return numbers


def _exact_mean(values: Sequence[float]) -> Fraction:
    return sum(map(Fraction, values), Fraction(0)) / len(values)


def _half_width(samples: np.ndarray, confidence: float) -> float:
    from scipy.special import stdtrit

    count = len(samples)
    return float(stdtrit(count - 1, (1.0 + confidence) / 2.0) * samples.std(ddof=1) / math.sqrt(count))
