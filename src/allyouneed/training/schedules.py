"""Learning-rate schedules: the factor by which the peak learning rate is multiplied at each step."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """A factor for each step, counted from 0, of a training of `steps` steps."""

    def __call__(self, step: int, steps: int) -> float:
        """Give the factor at this step."""
        ...


@dataclass(frozen=True)
class _WarmUp:
    """Linear warm-up to 1, then a shape.

    Attributes:
        warmup: steps until the factor is 1; the first step has 1/warmup. 0 starts at 1.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.warmup, Integral) or self.warmup < 0:
            raise ValueError(f"warm-up of {self.warmup} steps: it must be a whole number, 0 or more")
        final = getattr(self, "final", 0.0)
        if not isinstance(final, Real) or not 0 <= float(final) < math.inf:
            raise ValueError(f"final is {final!r}: the factor at the end must be 0 or more, and finite")

    def __call__(self, step: int, steps: int) -> float:
        """Give the factor at this step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self._shape(step, steps)

    def _progress(self, step: int, steps: int) -> float:
        """Say how far the steps after the warm-up have come, from 0 to 1."""
        return min(1.0, (step - self.warmup) / max(1, steps - self.warmup))

    def _shape(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Constant(_WarmUp):
    """Stay at the peak after the warm-up."""


@dataclass(frozen=True)
class Linear(_WarmUp):
    """Fall linearly from the peak after the warm-up.

    Attributes:
        final: the factor at the end.
    """

    final: float = 0.0

    def _shape(self, step: int, steps: int) -> float:
        return 1.0 + (self.final - 1.0) * self._progress(step, steps)


@dataclass(frozen=True)
class Cosine(_WarmUp):
    """Fall along half a cosine from the peak after the warm-up (Loshchilov & Hutter 2017, without restarts).

    Attributes:
        final: the factor at the end.
    """

    final: float = 0.0

    def _shape(self, step: int, steps: int) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * self._progress(step, steps)))


@dataclass(frozen=True)
class InverseSquareRoot(_WarmUp):
    """Fall as 1/√step after the warm-up (Vaswani et al. 2017, equation 3, scaled so that the peak is 1)."""

    def _shape(self, step: int, steps: int) -> float:
        return math.sqrt(max(1, self.warmup) / (step + 1)) if self.warmup else 1.0 / math.sqrt(step + 1)
