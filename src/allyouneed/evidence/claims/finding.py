"""What trials gave, and what a test found in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

from ..statistics import Interval
from .checks import check_choice, check_finite
from .words import trial_name

Verdict = Literal["reproduced", "contradicted", "inconclusive"]
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class TrialResult:
    """What one trial (arm × seed) gave.

    Attributes:
        arm: the arm's name.
        seed: the trial's seed.
        config: the arm's configuration.
        metrics: what the same configuration, seed and machine repeat bit for bit.
        costs: what depends on the machine and its load, such as seconds and bytes.
        seconds: how long the trial took, without the shared stages that it stands on.
        stages: the shared stages that it stands on: how many seconds each took to make, by name.

    Raises:
        ValueError: a metric or a cost is not a real number, or something is both.
    """

    arm: str
    seed: int
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    costs: Mapping[str, float]
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in [*self.metrics.items(), *self.costs.items()]:
            if not isinstance(value, Real):
                raise ValueError(
                    f"{trial_name(self.arm, self.seed)}: {name!r} must be a real number, "
                    f"got {value!r} of type {type(value).__name__}"
                )
        if both := sorted(set(self.metrics) & set(self.costs)):
            raise ValueError(
                f"{trial_name(self.arm, self.seed)}: {both} are metrics and costs; a name is one of the two"
            )


@dataclass(frozen=True)
class Finding:
    """What a test found. Every number in it is finite.

    Attributes:
        verdict: whether the claim holds.
        measured: the mean of the samples (of ratios the geometric mean, less 1); for `Exact` the worst of them. None
            where there is none.
        interval: of the mean; for `Exact` the range of the samples, with confidence 1. None where there is none, and
            where `deterministic`.
        threshold: the test in words, such as "alibi − sinusoidal on perplexity < 0".
        samples: what was judged, by seed; for `Exact` by "arm, seed 0".
        missing: the trials and metrics that were not there, such as "rotary, seed 3".
        bounds: the region of the samples' axis in which the claim holds; None is open.
        note: what else a reader must know.
        deterministic: every seed gave the same, so that there is no spread to make an interval of.

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
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_choice("verdict", self.verdict, get_args(Verdict))
        for value in [self.measured, *self.samples.values(), *self.bounds]:
            if value is not None:
                check_finite("a number of a finding", value)

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval; 0 where deterministic, None where there is no interval."""
        if self.interval is None:
            return 0.0 if self.deterministic else None
        return (self.interval.high - self.interval.low) / 2

    def to_json(self) -> dict[str, Any]:
        """Return the finding as values that strict JSON can hold; a seed becomes a string, None stays null."""
        return {
            "measured": self.measured,
            "interval": None if self.interval is None else [self.interval.low, self.interval.high],
            "confidence": None if self.interval is None else self.interval.confidence,
            "deterministic": self.deterministic,
            "verdict": self.verdict,
            "threshold": self.threshold,
            "samples": {str(key): value for key, value in self.samples.items()},
            "bounds": list(self.bounds),
            "missing": list(self.missing),
            "note": self.note,
        }
