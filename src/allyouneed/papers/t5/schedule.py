"""The schedule of pre-training."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ConstantThenInverseSquareRoot:
    """Stay at the peak for k steps, then fall as 1/√step: 1/√max(n, k), scaled so that the peak is 1.

    Source: Raffel et al. 2020, section 3.1.2, where k is 10⁴ and so the peak 0.01. It needs no number of steps ahead.

    Attributes:
        held: k, the steps at the peak; at least 1.
    """

    held: int

    def __post_init__(self) -> None:
        if self.held < 1:
            raise ValueError(f"held for {self.held} steps: it must be at least 1")

    def __call__(self, step: int, steps: int) -> float:
        """Give the factor at this step, counted from 0."""
        return math.sqrt(self.held / max(step + 1, self.held))
