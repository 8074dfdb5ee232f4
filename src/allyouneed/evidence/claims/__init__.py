"""Claims and the four tests that turn the results of trials into a verdict.

A claim is written down before its recorded run. Its test says what is compared: `Better`, `Equivalent` and `Trend` draw
their verdict from the interval of a mean over seeds; `Exact` from every single trial.
"""

from .claim import Claim, ClaimTest, Resolution
from .concluding import LEAST_SEEDS
from .exact import Exact
from .finding import Bounds, Finding, TrialResult, Verdict
from .pairs import Better, Equivalent
from .trend import LEAST_R_SQUARED, Reading, Trend

__all__ = [
    "LEAST_R_SQUARED",
    "LEAST_SEEDS",
    "Better",
    "Bounds",
    "Claim",
    "ClaimTest",
    "Equivalent",
    "Exact",
    "Finding",
    "Reading",
    "Resolution",
    "Trend",
    "TrialResult",
    "Verdict",
]
