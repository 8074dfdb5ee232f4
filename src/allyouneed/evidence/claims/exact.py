"""An identity or a bound that every trial must keep."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..statistics import Interval
from .checks import as_float, check_bounds, check_finite, check_name
from .finding import Bounds, Finding, TrialResult
from .reading import Place, read
from .words import between, number, trial_name

# Violations that a finding's note lists; it gives the number of all.
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Exact:
    """An identity or a bound that holds on every trial of its arms, whatever the seed. A boundary is included.

    One violation contradicts, even where other trials are missing; NaN violates. A value that is infinite on the
    permitted side counts as missing. One seed is enough.

    Attributes:
        metric: the name of a metric or a cost.
        arms: the arms on which it holds.
        at_most: no value is above this.
        at_least: no value is below this.
        equals: every value is this. Given alone; `at_most` and `at_least` may be given together.

    Raises:
        ValueError: an argument is not one of these.
    """

    metric: str
    arms: tuple[str, ...]
    at_most: float | None = None
    at_least: float | None = None
    equals: float | None = None
    kind: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        check_name("metric", self.metric)
        if isinstance(self.arms, str) or not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms must be a tuple of one or more different names, got {self.arms!r}")
        for arm in self.arms:
            check_name("arm", arm)
        if self.equals is None:
            check_bounds("at_least", self.at_least, "at_most", self.at_most)
        elif self.at_most is not None or self.at_least is not None:
            raise ValueError(
                f"equals stands alone, got equals={self.equals}, at_most={self.at_most}, at_least={self.at_least}"
            )
        else:
            check_finite("equals", self.equals)

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Judge every trial of the arms that is given; those of `seeds` must be there.

        Raises:
            ValueError: as for `Better.judge`.
        """
        found, missing = read([Place(arm, self.metric) for arm in self.arms], trials, seeds)
        values = {(place.arm, seed): value for (place, seed), value in found.items()}
        excess = {key: self._excess(value) for key, value in values.items()}
        violations = [key for key, by in excess.items() if not by <= 0.0]
        missing += [
            f"{trial_name(*key)}: {self.metric} is {number(value)}"
            for key, value in values.items()
            if not math.isfinite(value) and key not in violations
        ]
        samples: dict[int | str, float] = {
            trial_name(*key): float(value) for key, value in values.items() if math.isfinite(value)
        }
        worst = max((key for key in values if math.isfinite(values[key])), key=excess.__getitem__, default=None)
        note = ""
        if violations:
            shown = [f"{trial_name(*key)} is {number(values[key])}" for key in violations[:_MOST_SHOWN]]
            more = ["…"] if len(violations) > _MOST_SHOWN else []
            note = f"violated by {len(violations)} of {len(values)}: {'; '.join(shown + more)}"
        bounds: Bounds = (
            (as_float(self.at_least), as_float(self.at_most))
            if self.equals is None
            else (float(self.equals), float(self.equals))
        )
        where = f"{self.metric} of {', '.join(self.arms)}"
        return Finding(
            verdict="contradicted" if violations else "inconclusive" if missing else "reproduced",
            measured=None if worst is None else float(values[worst]),
            interval=Interval(min(samples.values()), max(samples.values()), 1.0) if samples else None,
            threshold=f"{where} = {number(self.equals)}"
            if self.equals is not None
            else between(where, self.at_least, self.at_most, "≤", "≥"),
            samples=samples,
            missing=tuple(missing),
            bounds=bounds,
            note=note,
        )

    def _excess(self, value: float) -> float:
        """By how much the value breaks the claim: not above 0 where it holds."""
        if math.isnan(value):
            return math.nan
        if self.equals is not None:
            return abs(value - self.equals)
        over = -math.inf if self.at_most is None else value - self.at_most
        under = -math.inf if self.at_least is None else self.at_least - value
        return max(over, under)
