"""A claim: what a paper says, and how it is tried."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .checks import check_finite
from .exact import Exact
from .finding import Finding, TrialResult
from .pairs import Better, Equivalent
from .trend import Trend

ClaimTest = Better | Equivalent | Trend | Exact
"""The tests that a claim can have."""


@dataclass(frozen=True)
class Resolution:
    """How fine a claim's test is to measure, promised before the recorded run.

    Attributes:
        half_width: half the width that the interval is expected to have, in the unit of the test's samples (a fraction
            where they are ratios).
        seeds: at so many seeds.
        source: where that comes from, such as "pilot on seeds 1000 to 1004, 600 test examples".

    Raises:
        ValueError: a half-width that is negative or not finite, fewer than one seed, or no source.
    """

    half_width: float
    seeds: int
    source: str

    def __post_init__(self) -> None:
        check_finite("half_width", self.half_width)
        if self.half_width < 0 or self.seeds < 1 or not self.source.strip():
            raise ValueError(
                f"a resolution needs a half-width of at least 0, a seed and a source, got {self.half_width}, "
                f"{self.seeds} and {self.source!r}"
            )


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
        resolution: what a pilot promises; None where none was made.
        sabotage: what is broken so that the verdict turns, which a test does.

    Raises:
        ValueError: the id has other characters, or a text is empty.
    """

    id: str
    statement: str
    source: str
    test: ClaimTest
    scale_gap: str
    paper_value: str | None = None
    resolution: Resolution | None = None
    sabotage: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.id):
            raise ValueError(f"a claim's id is made of a-z, 0-9 and _, got {self.id!r}")
        for name in ("statement", "source", "scale_gap", "paper_value", "sabotage"):
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
            "resolution": None if self.resolution is None else asdict(self.resolution),
            "sabotage": self.sabotage,
            "scale_gap": self.scale_gap,
        }
