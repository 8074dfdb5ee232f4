"""Claims and the four tests that turn the results of trials into a verdict.

A claim is written down before its recorded run. Its test says what is compared: `Better`, `Equivalent` and `Trend` draw
their verdict from the interval of a mean over seeds; `Exact` from every single trial.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

from allyouneed.evidence.statistics import Interval, fit_line, fit_power_law, mean, mean_interval

Verdict = Literal["reproduced", "contradicted", "inconclusive"]
Direction = Literal["lower", "higher"]
Law = Literal["linear", "logarithmic", "power"]
Bounds = tuple[float | None, float | None]

LEAST_SEEDS = 3
"""Seeds below which a test over seeds draws no verdict."""

# A value beyond this is a diverged trial's: sums over it overflow, so it counts as missing, as infinity does.
_LARGEST = 1e150
# Violations of an exact claim that its note lists; it gives the number of all.
_MOST_SHOWN = 5
# How far arithmetic in floats may move a sample, in units of its operands. An end of an interval that is no further
# than this from the edge of a claim's region touches it.
_ROUNDING = 4.0 * sys.float_info.epsilon


@dataclass(frozen=True)
class TrialResult:
    """What one trial (arm × seed) gave.

    Attributes:
        arm: the arm's name.
        seed: the trial's seed.
        config: the arm's configuration.
        metrics: what the same configuration, seed and machine repeat bit for bit.
        costs: what depends on the machine and its load, such as seconds and bytes.
        seconds: how long the trial took.

    Raises:
        ValueError: a metric or a cost is not a real number.
    """

    arm: str
    seed: int
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    costs: Mapping[str, float]
    seconds: float

    def __post_init__(self) -> None:
        for name, value in [*self.metrics.items(), *self.costs.items()]:
            if not isinstance(value, Real):
                raise ValueError(
                    f"{_trial(self.arm, self.seed)}: {name!r} must be a real number, "
                    f"got {value!r} of type {type(value).__name__}"
                )


@dataclass(frozen=True)
class Finding:
    """What a test found. Every number in it is finite.

    Attributes:
        verdict: whether the claim holds.
        measured: the mean of the samples; for `Exact` the worst of them. None where there is none.
        interval: of the mean; for `Exact` the range of the samples, with confidence 1. None where there is none.
        threshold: the test in words, such as "alibi − sinusoidal on perplexity < 0".
        samples: what was judged, by seed; for `Exact` by "arm, seed 0".
        missing: the trials and metrics that were not there, such as "rotary, seed 3".
        bounds: the region of the samples' axis in which the claim holds; None is open.
        note: what else a reader must know.

    Raises:
        ValueError: a number is not finite, or the verdict is none of the three.
    """

    verdict: Verdict
    measured: float | None
    interval: Interval | None
    threshold: str
    samples: Mapping[int | str, float]
    missing: tuple[str, ...]
    bounds: Bounds
    note: str = ""

    def __post_init__(self) -> None:
        _check_choice("verdict", self.verdict, get_args(Verdict))
        for value in [self.measured, *self.samples.values(), *self.bounds]:
            if value is not None:
                _check_finite("a number of a finding", value)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as values that strict JSON can hold; a seed becomes a string, None stays null."""
        return {
            "measured": self.measured,
            "interval": None if self.interval is None else [self.interval.low, self.interval.high],
            "confidence": None if self.interval is None else self.interval.confidence,
            "verdict": self.verdict,
            "threshold": self.threshold,
            "samples": {str(key): value for key, value in self.samples.items()},
            "bounds": list(self.bounds),
            "missing": list(self.missing),
            "note": self.note,
        }


@dataclass(frozen=True)
class Better:
    """An arm beats another arm, or a fixed bound, by more than a margin.

    A sample is a seed's arm − than, or arm / than − 1 where `relative`: it keeps its natural sign. The claim holds
    below −margin where lower is better, above margin where higher is. The interval of the mean has 95 % confidence.

    Attributes:
        metric: the name of a metric or a cost.
        arm: the arm that is claimed to be better.
        than: the arm it is paired with by seed, or a fixed bound.
        margin: the least advantage, in the metric's unit, or as a fraction of `than` where `relative`. A negative
            margin tests non-inferiority: not worse by more than −margin.
        direction: which values of the metric are better.
        relative: judge the ratio, not the difference. `than` must be positive.

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
        _check_finite("margin", self.margin)
        _check_choice("direction", self.direction, get_args(Direction))

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms that the test compares."""
        return _compared(self.arm, self.than)

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Judge the trials of `seeds`; other trials are left aside.

        Raises:
            ValueError: no trial of the arms reports the metric, two are of one arm and seed, or the seeds are not
                distinct.
        """
        # 0 − margin, not −margin: a margin of 0 must not read as −0.
        lower = self.direction == "lower"
        edge = 0.0 - float(self.margin) if lower else float(self.margin)
        words = _compared_words(self.arm, self.than, self.relative)
        return _judge_pair(
            self.metric,
            self.arm,
            self.than,
            self.relative,
            threshold=f"{words} on {self.metric} {'<' if lower else '>'} {_number(edge)}",
            bounds=(None, edge) if lower else (edge, None),
            confidence=0.95,
            trials=trials,
            seeds=seeds,
        )


@dataclass(frozen=True)
class Equivalent:
    """An arm is within a tolerance of another arm, or of a fixed value: two one-sided tests at 5 % each.

    A sample is a seed's arm − to, or arm / to − 1 where `relative`. Two one-sided t-tests at 5 % both pass exactly
    where Student's 90 % interval of the mean lies inside ±tolerance (Schuirmann 1987); from 10 seeds on the interval is
    the bootstrap's.

    Attributes:
        metric: the name of a metric or a cost.
        arm: the arm that is claimed to match.
        to: the arm it is paired with by seed, or a fixed value.
        tolerance: above 0, in the metric's unit, or as a fraction of `to` where `relative`.
        relative: judge the ratio, not the difference. `to` must be positive.

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
        _check_finite("tolerance", self.tolerance)
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
            threshold=f"|{difference}| on {self.metric} < {_number(self.tolerance)}",
            bounds=(-float(self.tolerance), float(self.tolerance)),
            confidence=0.90,
            trials=trials,
            seeds=seeds,
        )


@dataclass(frozen=True)
class Trend:
    """A metric follows a law over a row of arms.

    A sample is a seed's least-squares slope of the metric on x ("linear") or on ln x ("logarithmic"), or the exponent
    of its power law in x ("power"). The claim holds strictly between `above` and `below`. The interval of the mean has
    95 % confidence.

    Attributes:
        metric: the name of a metric or a cost; positive where the law is "power".
        arms_at: x by arm, at least 3 different ones; positive where the law is not "linear".
        law: what is fitted.
        above: the slope or exponent is above this; None is open.
        below: the slope or exponent is below this; None is open. At least one of the two is given.
        least_r_squared: a mean R² over seeds below this makes the verdict inconclusive: the law does not describe the
            metric. In [0, 1].

    Raises:
        ValueError: an argument is not one of these.
    """

    metric: str
    arms_at: Mapping[str, float]
    law: Law
    above: float | None = None
    below: float | None = None
    least_r_squared: float = 0.0
    kind: ClassVar[str] = "trend"

    def __post_init__(self) -> None:
        _check_name("metric", self.metric)
        _check_choice("law", self.law, get_args(Law))
        for arm, x in self.arms_at.items():
            _check_name("arm", arm)
            _check_finite(f"x of arm {arm!r}", x)
            if self.law != "linear" and x <= 0:
                raise ValueError(f"x of arm {arm!r} must be above 0 for a {self.law} law, got {x}")
        if len(set(self.arms_at.values())) < 3:
            raise ValueError(f"a trend needs arms at 3 or more different x, got {dict(self.arms_at)}")
        _check_bounds("above", self.above, "below", self.below)
        if self.above is not None and self.above == self.below:
            raise ValueError(f"nothing is above {self.above} and below {self.below}")
        if not 0.0 <= self.least_r_squared <= 1.0:
            raise ValueError(f"least_r_squared must be in [0, 1], got {self.least_r_squared}")

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms that the law is fitted over."""
        return tuple(self.arms_at)

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Judge the trials of `seeds`; other trials are left aside, and so is a seed that lacks an arm.

        Raises:
            ValueError: as for `Better.judge`.
        """
        positive = self.arms if self.law == "power" else ()
        rows, missing = _complete_rows(self.metric, self.arms, positive, trials, seeds)
        fits = {seed: self._fit(row) for seed, row in rows.items()}
        note = "no seed has every arm, nothing was fitted"
        fits_well = False
        if fits:
            r_squared = mean([fit[1] for fit in fits.values()])
            fits_well = r_squared >= self.least_r_squared
            note = f"R² {r_squared:.3g}" + (" (mean over seeds)" if len(fits) > 1 else "")
            if not fits_well:
                note += f" is below {_number(self.least_r_squared)}: a {self.law} law does not describe {self.metric}"
        quantity = {
            "linear": f"slope of {self.metric} on x",
            "logarithmic": f"slope of {self.metric} on ln x",
            "power": f"exponent of {self.metric} as a power of x",
        }[self.law]
        bounds: Bounds = (_as_float(self.above), _as_float(self.below))
        return _conclude(
            samples={seed: fit[0] for seed, fit in fits.items()},
            rounding=max((self._rounding(row, fits[seed][0]) for seed, row in rows.items()), default=0.0),
            threshold=_between_words(quantity, self.above, self.below, "<", ">"),
            bounds=bounds,
            confidence=0.95,
            missing=missing,
            note=note,
            conclusive=fits_well,
        )

    def _fit(self, row: Mapping[str, float]) -> tuple[float, float]:
        x, y = list(self.arms_at.values()), list(row.values())
        if self.law == "power":
            power_law = fit_power_law(x, y)
            return power_law.exponent, power_law.r_squared
        line = fit_line(x if self.law == "linear" else [math.log(value) for value in x], y)
        return line.slope, line.r_squared

    def _rounding(self, row: Mapping[str, float], slope: float) -> float:
        """How far rounding of x and y may move the slope, to first order."""
        x = [value if self.law == "linear" else math.log(value) for value in self.arms_at.values()]
        y = [1.0 + abs(math.log(value)) if self.law == "power" else abs(value) for value in row.values()]
        middle = mean(x)
        leverage = sum(abs(value - middle) for value in x) / sum((value - middle) ** 2 for value in x)
        return _ROUNDING * leverage * (max(y) + abs(slope) * max(map(abs, x)))


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
        _check_name("metric", self.metric)
        if isinstance(self.arms, str) or not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms must be a tuple of one or more different names, got {self.arms!r}")
        for arm in self.arms:
            _check_name("arm", arm)
        if self.equals is None:
            _check_bounds("at_least", self.at_least, "at_most", self.at_most)
        elif self.at_most is not None or self.at_least is not None:
            raise ValueError(
                f"equals stands alone, got equals={self.equals}, at_most={self.at_most}, at_least={self.at_least}"
            )
        else:
            _check_finite("equals", self.equals)

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Judge every trial of the arms that is given; those of `seeds` must be there.

        Raises:
            ValueError: as for `Better.judge`.
        """
        values, missing = _read(self.metric, self.arms, trials, seeds)
        excess = {key: self._excess(value) for key, value in values.items()}
        violations = [key for key, by in excess.items() if not by <= 0.0]
        missing += [
            f"{_trial(*key)}: {self.metric} is {_number(value)}"
            for key, value in values.items()
            if not math.isfinite(value) and key not in violations
        ]
        samples: dict[int | str, float] = {
            _trial(*key): float(value) for key, value in values.items() if math.isfinite(value)
        }
        worst = max((key for key in values if math.isfinite(values[key])), key=excess.__getitem__, default=None)
        note = ""
        if violations:
            shown = [f"{_trial(*key)} is {_number(values[key])}" for key in violations[:_MOST_SHOWN]]
            more = ["…"] if len(violations) > _MOST_SHOWN else []
            note = f"violated by {len(violations)} of {len(values)}: {'; '.join(shown + more)}"
        bounds: Bounds = (
            (_as_float(self.at_least), _as_float(self.at_most))
            if self.equals is None
            else (float(self.equals), float(self.equals))
        )
        where = f"{self.metric} of {', '.join(self.arms)}"
        return Finding(
            verdict="contradicted" if violations else "inconclusive" if missing else "reproduced",
            measured=None if worst is None else float(values[worst]),
            interval=Interval(min(samples.values()), max(samples.values()), 1.0) if samples else None,
            threshold=f"{where} = {_number(self.equals)}"
            if self.equals is not None
            else _between_words(where, self.at_least, self.at_most, "≤", "≥"),
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


ClaimTest = Better | Equivalent | Trend | Exact
"""The tests that a claim can have."""


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the test that it is put to.

    Attributes:
        id: a name in [a-z0-9_], unique in its experiment.
        statement: what the paper says, in one sentence of our own.
        source: where in the paper, such as "Figure 4".
        test: how trial results become a verdict.
        scale_gap: what of the claim cannot be shown at this scale.
        paper_value: the figure that the paper reports, with its unit and setting.

    Raises:
        ValueError: the id has other characters, or a text is empty.
    """

    id: str
    statement: str
    source: str
    test: ClaimTest
    scale_gap: str
    paper_value: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.id):
            raise ValueError(f"a claim's id is made of a-z, 0-9 and _, got {self.id!r}")
        for name in ("statement", "source", "scale_gap", "paper_value"):
            text = getattr(self, name)
            if text is not None and not text.strip():
                raise ValueError(f"{name} of claim {self.id!r} must not be empty, got {text!r}")

    def judge(self, trials: Iterable[TrialResult], seeds: Sequence[int]) -> Finding:
        """Put the results to the test.

        Args:
            trials: the results that there are, of any arm.
            seeds: the seeds that each arm was to be tried with.

        Raises:
            ValueError: no trial of the test's arms reports its metric, two trials are of one arm and seed, or the seeds
                are none or not distinct.
        """
        return self.test.judge(trials, seeds)

    def record(self, finding: Finding) -> dict[str, Any]:
        """Return the claim and what was found as values that strict JSON can hold."""
        return {
            "id": self.id,
            "kind": self.test.kind,
            "statement": self.statement,
            "source": self.source,
            "paper_value": self.paper_value,
            "relative": getattr(self.test, "relative", False),
            **finding.to_json(),
            "scale_gap": self.scale_gap,
        }


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
    positive = (other,) if relative and isinstance(other, str) else ()
    rows, missing = _complete_rows(metric, _compared(arm, other), positive, trials, seeds)
    samples: dict[int, float] = {}
    rounding = 0.0
    for seed, row in rows.items():
        value, reference = row[arm], row[other] if isinstance(other, str) else float(other)
        if relative:
            samples[seed] = value / reference - 1.0
            rounding = max(rounding, _ROUNDING * (abs(value / reference) + 1.0))
        else:
            samples[seed] = value - reference
            rounding = max(rounding, _ROUNDING * (abs(value) + abs(reference)))
    return _conclude(
        samples=samples,
        rounding=rounding,
        threshold=threshold,
        bounds=bounds,
        confidence=confidence,
        missing=missing,
    )


def _conclude(
    samples: Mapping[int, float],
    rounding: float,
    threshold: str,
    bounds: Bounds,
    confidence: float,
    missing: Sequence[str],
    note: str = "",
    conclusive: bool = True,
) -> Finding:
    """Draw the verdict from the interval of the samples' mean, where samples suffice for one."""
    kept: dict[int | str, float] = {seed: sample for seed, sample in samples.items() if abs(sample) <= _LARGEST}
    missing = [
        *missing,
        *(f"seed {seed}: the sample is {_number(samples[seed])}" for seed in samples if seed not in kept),
    ]
    notes = [note] if note else []
    if len(kept) < LEAST_SEEDS:
        notes.append(f"a verdict needs {LEAST_SEEDS} seeds with every arm, there are {len(kept)}")
        conclusive = False
    values = list(kept.values())
    interval = mean_interval(values, confidence) if len(values) >= 2 else None
    verdict: Verdict = "inconclusive"
    if interval is not None and conclusive and not missing:
        verdict = _place(interval, bounds, rounding)
    return Finding(
        verdict=verdict,
        measured=mean(values) if values else None,
        interval=interval,
        threshold=threshold,
        samples=kept,
        missing=tuple(missing),
        bounds=bounds,
        note="; ".join(notes),
    )


def _place(interval: Interval, bounds: Bounds, rounding: float) -> Verdict:
    """Say on which side of the bounds the whole interval lies; one that touches an edge lies on neither."""
    low, high = bounds
    if (low is None or interval.low > low + rounding) and (high is None or interval.high < high - rounding):
        return "reproduced"
    if (low is not None and interval.high < low - rounding) or (high is not None and interval.low > high + rounding):
        return "contradicted"
    return "inconclusive"


def _read(
    metric: str, arms: Sequence[str], trials: Iterable[TrialResult], seeds: Sequence[int]
) -> tuple[dict[tuple[str, int], float], list[str]]:
    """Return the metric by (arm, seed), of every seed given, and what of `arms` × `seeds` has none."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be one or more, each once, got {list(seeds)}")
    results: dict[tuple[str, int], TrialResult] = {}
    for trial in trials:
        if trial.arm in arms:
            if (trial.arm, trial.seed) in results:
                raise ValueError(f"two results for {_trial(trial.arm, trial.seed)}; a trial is judged once")
            results[trial.arm, trial.seed] = trial
    # Metrics over costs, where a trial has both.
    reported = {key: {**trial.costs, **trial.metrics} for key, trial in results.items()}
    known = sorted({name for names in reported.values() for name in names})
    if results and metric not in known:
        raise ValueError(
            f"no trial of {', '.join(arms)} reports {metric!r}; known metrics and costs: {', '.join(known) or 'none'}"
        )
    missing = []
    for arm in arms:
        for seed in seeds:
            if (arm, seed) not in results:
                missing.append(_trial(arm, seed))
            elif metric not in reported[arm, seed]:
                missing.append(f"{_trial(arm, seed)}: no {metric}")
    return {key: float(names[metric]) for key, names in reported.items() if metric in names}, missing


def _complete_rows(
    metric: str,
    arms: Sequence[str],
    positive: Collection[str],
    trials: Iterable[TrialResult],
    seeds: Sequence[int],
) -> tuple[dict[int, dict[str, float]], list[str]]:
    """Return the arms' values in order, by seed, for each of `seeds` that has them all; and what is missing.

    The values of the arms in `positive` must be above 0.
    """
    values, missing = _read(metric, arms, trials, seeds)
    usable: dict[tuple[str, int], float] = {}
    for arm in arms:
        for seed in seeds:
            value = values.get((arm, seed))
            if value is None:
                continue
            if not abs(value) <= _LARGEST:
                missing.append(f"{_trial(arm, seed)}: {metric} is {_number(value)}")
            elif arm in positive and value <= 0:
                missing.append(f"{_trial(arm, seed)}: {metric} is {_number(value)}, not above 0")
            else:
                usable[arm, seed] = value
    rows = {
        seed: {arm: usable[arm, seed] for arm in arms} for seed in seeds if all((arm, seed) in usable for arm in arms)
    }
    return rows, missing


def _trial(arm: str, seed: int) -> str:
    return f"{arm}, seed {seed}"


def _compared(arm: str, other: str | float) -> tuple[str, ...]:
    return (arm, other) if isinstance(other, str) else (arm,)


def _compared_words(arm: str, other: str | float, relative: bool) -> str:
    name = other if isinstance(other, str) else _number(other)
    return f"{arm} / {name} − 1" if relative else f"{arm} − {name}"


def _between_words(quantity: str, low: float | None, high: float | None, less: str, more: str) -> str:
    if low is None:
        return quantity if high is None else f"{quantity} {less} {_number(high)}"
    if high is None:
        return f"{quantity} {more} {_number(low)}"
    return f"{_number(low)} {less} {quantity} {less} {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.12g}".replace("-", "−")


def _as_float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{what} must be a name, got {name!r}")


def _check_finite(what: str, value: object) -> None:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {value!r}")


def _check_choice(what: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_bounds(low_name: str, low: float | None, high_name: str, high: float | None) -> None:
    if low is None and high is None:
        raise ValueError(f"one of {low_name} and {high_name} must be given, both are None")
    for name, value in ((low_name, low), (high_name, high)):
        if value is not None:
            _check_finite(name, value)
    if low is not None and high is not None and low > high:
        raise ValueError(f"{low_name} {low} is above {high_name} {high}: no value is in between")


def _check_comparison(metric: str, arm: str, other_name: str, other: str | float, relative: bool) -> None:
    _check_name("metric", metric)
    _check_name("arm", arm)
    if isinstance(other, str):
        _check_name(other_name, other)
        if other == arm:
            raise ValueError(f"arm and {other_name} are both {arm!r}: an arm is not compared with itself")
        return
    _check_finite(other_name, other)
    if relative and other <= 0:
        raise ValueError(f"a relative comparison needs {other_name} above 0, got {other}")
