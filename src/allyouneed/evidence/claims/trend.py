"""A law over a row: of sizes, of amounts of data, of steps of training."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

from ..statistics import fit_line, fit_power_law, mean
from .checks import as_float, check_bounds, check_choice, check_finite, check_name
from .concluding import ROUNDING, conclude
from .finding import Bounds, Finding, TrialResult
from .reading import Place, complete_rows
from .words import between, number

Law = Literal["linear", "logarithmic", "power"]

LEAST_R_SQUARED = 0.8
"""Below this a law does not describe what it was fitted to, where a claim says nothing else."""


class Reading(NamedTuple):
    """What a trend reads at one x.

    Attributes:
        arm: of this arm.
        minus: less the same of that arm, seed by seed: a gap.
        metric: this metric or cost, where it is not the trend's: that of a step of training, for example.
    """

    arm: str
    minus: str | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Trend:
    """A metric, or the gap between two arms, follows a law over a row of arms or of steps.

    A sample is a seed's least-squares slope of what is read on x ("linear") or on ln x ("logarithmic"), or the exponent
    of its power law in x ("power"). The claim holds strictly between `above` and `below`. The interval of the mean has
    95 % confidence.

    Attributes:
        metric: the name of a metric or a cost; positive where the law is "power".
        arms_at: x by what is read there, an arm's name or a `Reading`; at least 3 different ones; positive where the
            law is not "linear".
        law: what is fitted.
        above: the slope or exponent is above this; None is open.
        below: the slope or exponent is below this; None is open. At least one of the two is given.
        least_r_squared: an R² below this, of the law fitted to the mean over seeds, makes the verdict inconclusive: the
            law does not describe what is read. In [0, 1]; where None, 0.8, or 0 where a slope of 0 is within the
            bounds, since what stays level has no variance to explain.

    Raises:
        ValueError: an argument is not one of these.
    """

    metric: str
    arms_at: Mapping[str | Reading, float] | Mapping[str, float] | Mapping[Reading, float]
    law: Law
    above: float | None = None
    below: float | None = None
    least_r_squared: float | None = None
    kind: ClassVar[str] = "trend"

    def __post_init__(self) -> None:
        check_name("metric", self.metric)
        check_choice("law", self.law, get_args(Law))
        for reading, x in self._points.items():
            check_name("arm", reading.arm)
            if reading.minus == reading.arm:
                raise ValueError(f"arm and minus are both {reading.arm!r}: an arm has no gap to itself")
            check_finite(f"x of arm {reading.arm!r}", x)
            if self.law != "linear" and x <= 0:
                raise ValueError(f"x of arm {reading.arm!r} must be above 0 for a {self.law} law, got {x}")
        if len(set(self._points.values())) < 3:
            raise ValueError(f"a trend needs arms at 3 or more different x, got {dict(self.arms_at)}")
        check_bounds("above", self.above, "below", self.below)
        if self.above is not None and self.above == self.below:
            raise ValueError(f"nothing is above {self.above} and below {self.below}")
        if self.least_r_squared is not None and not 0.0 <= self.least_r_squared <= 1.0:
            raise ValueError(f"least_r_squared must be in [0, 1], got {self.least_r_squared}")

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms that are read."""
        return tuple(dict.fromkeys(place.arm for reading in self._points for place in self._places(reading)))

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Judge the trials of `seeds`; other trials are left aside, and so is a seed that lacks an arm.

        Raises:
            ValueError: as for `Better.judge`.
        """
        places = list(dict.fromkeys(place for reading in self._points for place in self._places(reading)))
        gaps = any(reading.minus is not None for reading in self._points)
        positive = places if self.law == "power" and not gaps else ()
        found, missing = complete_rows(places, positive, trials, seeds)
        rows = {seed: [self._read(reading, row) for reading in self._points] for seed, row in found.items()}
        if self.law == "power":
            for seed in [seed for seed, row in rows.items() if min(row) <= 0]:
                missing.append(f"seed {seed}: a gap is {number(min(rows.pop(seed)))}, not above 0")
        slopes = {seed: self._fit(row)[0] for seed, row in rows.items()}
        note = "no seed has every arm, nothing was fitted"
        fits_well = False
        if rows:
            _, r_squared = self._fit(self._mean(list(rows.values())))
            fits_well = r_squared >= self._least_fit
            note = f"R² {r_squared:.3g}" + (" (of the mean over seeds)" if len(rows) > 1 else "")
            if not fits_well:
                note += f" is below {number(self._least_fit)}: a {self.law} law does not describe {self.metric}"
        what = f"gap in {self.metric}" if gaps else self.metric
        quantity = {
            "linear": f"slope of {what} on x",
            "logarithmic": f"slope of {what} on ln x",
            "power": f"exponent of {what} as a power of x",
        }[self.law]
        bounds: Bounds = (as_float(self.above), as_float(self.below))
        return conclude(
            samples=slopes,
            rounding=max((self._rounding(row, slopes[seed]) for seed, row in rows.items()), default=0.0),
            threshold=between(quantity, self.above, self.below, "<", ">"),
            bounds=bounds,
            confidence=0.95,
            missing=missing,
            note=note,
            conclusive=fits_well,
        )

    @property
    def _points(self) -> dict[Reading, float]:
        return {Reading(key) if isinstance(key, str) else key: x for key, x in self.arms_at.items()}

    @property
    def _least_fit(self) -> float:
        if self.least_r_squared is not None:
            return self.least_r_squared
        level = (self.above is None or self.above < 0) and (self.below is None or self.below > 0)
        return 0.0 if level else LEAST_R_SQUARED

    def _places(self, reading: Reading) -> list[Place]:
        metric = reading.metric or self.metric
        return [Place(arm, metric) for arm in (reading.arm, reading.minus) if arm is not None]

    def _read(self, reading: Reading, row: Mapping[Place, float]) -> float:
        ours, *theirs = (row[place] for place in self._places(reading))
        return ours - sum(theirs)

    def _mean(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """Average over seeds, in logarithms where those are what is fitted."""
        columns = list(zip(*rows, strict=True))
        if self.law == "power":
            return [math.exp(mean([math.log(value) for value in column])) for column in columns]
        return [mean(column) for column in columns]

    def _fit(self, y: Sequence[float]) -> tuple[float, float]:
        x = list(self._points.values())
        if self.law == "power":
            power_law = fit_power_law(x, y)
            return power_law.exponent, power_law.r_squared
        line = fit_line(x if self.law == "linear" else [math.log(value) for value in x], y)
        return line.slope, line.r_squared

    def _rounding(self, row: Sequence[float], slope: float) -> float:
        """How far rounding of x and y may move the slope, to first order."""
        x = [value if self.law == "linear" else math.log(value) for value in self._points.values()]
        y = [1.0 + abs(math.log(value)) if self.law == "power" else abs(value) for value in row]
        middle = mean(x)
        leverage = sum(abs(value - middle) for value in x) / sum((value - middle) ** 2 for value in x)
        return ROUNDING * leverage * (max(y) + abs(slope) * max(map(abs, x)))
