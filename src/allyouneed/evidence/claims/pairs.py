"""Two arms, or an arm and a fixed value: better by a margin, or equal within a tolerance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from .checks import check_choice, check_finite, check_name
from .concluding import ROUNDING, conclude
from .finding import Bounds, Finding, TrialResult
from .reading import Place, complete_rows
from .words import number

Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Better:
    """An arm beats another arm, or a fixed bound, by more than a margin.

    A sample is a seed's arm − than: it keeps its natural sign. Where `relative` it is ln(arm / than), told as
    arm / than − 1; logarithms, since the mean of a / b and that of b / a would both be above 1 where a and b are
    alike. The claim holds below −margin where lower is better, above margin where higher is. The interval of the mean
    has 95 % confidence.

    Attributes:
        metric: the name of a metric or a cost.
        arm: the arm that is claimed to be better.
        than: the arm it is paired with by seed, or a fixed bound.
        margin: the least advantage, in the metric's unit, or as a fraction of `than` where `relative`. A negative
            margin tests non-inferiority: not worse by more than −margin.
        direction: which values of the metric are better.
        relative: judge the ratio, not the difference. Both must be positive.

    Raises:
        ValueError: an argument is not one of these.
    """

    metric: str
    arm: str
    than: str | float
    margin: float = 0.0
    direction: Direction = "lower"
    relative: bool = False
    kind: ClassVar[str] = "better"

    def __post_init__(self) -> None:
        _check_comparison(self.metric, self.arm, "than", self.than, self.relative)
        check_finite("margin", self.margin)
        check_choice("direction", self.direction, get_args(Direction))
        if self.relative and self._edge <= -1:
            raise ValueError(
                f"no ratio of positive numbers is {self._edge:g} below 1: margin {self.margin} is too large"
            )

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms that the test compares."""
        return _compared(self.arm, self.than)

    @property
    def _edge(self) -> float:
        # 0 − margin, not −margin: a margin of 0 must not read as −0.
        return 0.0 - float(self.margin) if self.direction == "lower" else float(self.margin)

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Judge the trials of `seeds`; other trials are left aside.

        Raises:
            ValueError: no trial of the arms reports the metric, two are of one arm and seed, or the seeds are not
                distinct.
        """
        lower, edge = self.direction == "lower", self._edge
        words = _compared_words(self.arm, self.than, self.relative)
        return _judge_pair(
            self.metric,
            self.arm,
            self.than,
            self.relative,
            threshold=f"{words} on {self.metric} {'<' if lower else '>'} {number(edge)}",
            bounds=(None, edge) if lower else (edge, None),
            confidence=0.95,
            trials=trials,
            seeds=seeds,
        )


@dataclass(frozen=True)
class Equivalent:
    """An arm is within a tolerance of another arm, or of a fixed value: two one-sided tests at 5 % each.

    A sample is a seed's arm − to, or ln(arm / to), told as arm / to − 1, where `relative`. Two one-sided t-tests at 5 %
    both pass exactly where Student's 90 % interval of the mean lies inside ±tolerance (Schuirmann 1987).

    Attributes:
        metric: the name of a metric or a cost.
        arm: the arm that is claimed to match.
        to: the arm it is paired with by seed, or a fixed value.
        tolerance: above 0, in the metric's unit, or as a fraction of `to` where `relative`.
        relative: judge the ratio, not the difference. Both must be positive.

    Raises:
        ValueError: an argument is not one of these.
    """

    metric: str
    arm: str
    to: str | float
    tolerance: float
    relative: bool = False
    kind: ClassVar[str] = "equivalent"

    def __post_init__(self) -> None:
        _check_comparison(self.metric, self.arm, "to", self.to, self.relative)
        check_finite("tolerance", self.tolerance)
        if self.relative and self.tolerance >= 1:
            raise ValueError(f"a relative tolerance must be below 1, got {self.tolerance}: no ratio is 0 or less")
        if self.tolerance <= 0:
            raise ValueError(
                f"tolerance must be above 0, got {self.tolerance}; an equality without tolerance is an Exact claim"
            )

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms that the test compares."""
        return _compared(self.arm, self.to)

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Judge the trials of `seeds`; other trials are left aside.

        Raises:
            ValueError: as for `Better.judge`.
        """
        difference = _compared_words(self.arm, self.to, self.relative)
        return _judge_pair(
            self.metric,
            self.arm,
            self.to,
            self.relative,
            threshold=f"|{difference}| on {self.metric} < {number(self.tolerance)}",
            bounds=(-float(self.tolerance), float(self.tolerance)),
            confidence=0.90,
            trials=trials,
            seeds=seeds,
        )


def _judge_pair(
    metric: str,
    arm: str,
    other: str | float,
    relative: bool,
    *,
    threshold: str,
    bounds: Bounds,
    confidence: float,
    trials: Iterable[TrialResult],
    seeds: Sequence[int],
) -> Finding:
    """Judge an arm against another arm or a fixed value: what `Better` and `Equivalent` share."""
    ours = Place(arm, metric)
    theirs = Place(other, metric) if isinstance(other, str) else None
    places = [ours] if theirs is None else [ours, theirs]
    rows, missing = complete_rows(places, places if relative else (), trials, seeds)
    samples: dict[int, float] = {}
    rounding = 0.0
    for seed, row in rows.items():
        value, reference = row[ours], float(other) if theirs is None else row[theirs]
        if relative:
            samples[seed] = math.log(value) - math.log(reference)
            # What a rounding of the quotient moves, and what one of the two logarithms does.
            rounding = max(rounding, ROUNDING * (1.0 + abs(math.log(value)) + abs(math.log(reference))))
        else:
            samples[seed] = value - reference
            rounding = max(rounding, ROUNDING * (abs(value) + abs(reference)))
    return conclude(
        samples=samples,
        rounding=rounding,
        threshold=threshold,
        bounds=bounds,
        confidence=confidence,
        missing=missing,
        ratios=relative,
    )


def _compared(arm: str, other: str | float) -> tuple[str, ...]:
    return (arm, other) if isinstance(other, str) else (arm,)


def _compared_words(arm: str, other: str | float, relative: bool) -> str:
    name = other if isinstance(other, str) else number(other)
    return f"{arm} / {name} − 1" if relative else f"{arm} − {name}"


def _check_comparison(metric: str, arm: str, other_name: str, other: str | float, relative: bool) -> None:
    check_name("metric", metric)
    check_name("arm", arm)
    if isinstance(other, str):
        check_name(other_name, other)
        if other == arm:
            raise ValueError(f"arm and {other_name} are both {arm!r}: an arm is not compared with itself")
        return
    check_finite(other_name, other)
    if relative and other <= 0:
        raise ValueError(f"a relative comparison needs {other_name} above 0, got {other}")
