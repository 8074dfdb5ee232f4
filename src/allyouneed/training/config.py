"""The settings of a training."""

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from .schedules import Constant, Schedule


@dataclass(frozen=True)
class TrainingConfig:
    """How to train, with AdamW (Loshchilov & Hutter 2019).

    Attributes:
        steps: optimiser steps.
        learning_rate: at the peak of the schedule.
        schedule: multiplies the learning rate.
        weight_decay: of matrices; vectors (biases, gains of norms) are not decayed.
        betas: decay rates of the two moments.
        clip: the largest norm of the gradient of all weights together; None does not clip.
        accumulate: parts into which a batch is split, one after the other, to fit memory; the step is the same.

    Raises:
        ValueError: a setting out of range, or that is no number: it is named.
    """

    steps: int
    learning_rate: float
    schedule: Schedule = field(default_factory=Constant)
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}: it must be a whole number, 1 or more")
        if not (_number(self.learning_rate) and 0 < self.learning_rate < math.inf):
            raise ValueError(f"learning_rate is {self.learning_rate!r}: it must be positive and finite")
        if not (_number(self.weight_decay) and 0 <= self.weight_decay < math.inf):
            raise ValueError(f"weight_decay is {self.weight_decay!r}: it must be 0 or more, and finite")
        betas = self.betas if isinstance(self.betas, tuple | list) else ()
        if len(betas) != 2 or not all(_number(beta) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas is {self.betas!r}: it must be two numbers from 0 to below 1")
        if self.clip is not None and not (_number(self.clip) and self.clip > 0):
            raise ValueError(f"clip is {self.clip!r}: it must be positive, or None")
        if not callable(self.schedule):
            raise ValueError(f"schedule is {self.schedule!r}: it must be a schedule, such as Cosine(warmup=100)")

    def learning_rate_at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0.

        Raises:
            ValueError: the schedule's factor is negative or not finite.
        """
        factor = self.schedule(step, self.steps)
        if not 0 <= factor < math.inf:
            raise ValueError(
                f"the schedule {self.schedule} gives {factor} at step {step} of {self.steps}: "
                "it must be 0 or more, and finite"
            )
        return self.learning_rate * factor


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
