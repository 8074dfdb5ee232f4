"""From samples, one a seed, to a verdict."""

import math
import sys
from collections.abc import Mapping, Sequence

from ..statistics import Interval, detectable, mean, mean_interval
from .finding import Bounds, Finding, Verdict
from .reading import LARGEST
from .words import number

LEAST_SEEDS = 3
"""Seeds below which a test over seeds draws no verdict."""

ROUNDING = 4.0 * sys.float_info.epsilon
"""How far arithmetic in floats may move a sample, in units of its operands. An end of an interval that is no further
than this from the edge of a claim's region touches it."""


def conclude(
    samples: Mapping[int, float],
    rounding: float,
    threshold: str,
    bounds: Bounds,
    confidence: float,
    missing: Sequence[str],
    note: str = "",
    conclusive: bool = True,
    ratios: bool = False,
) -> Finding:
    """Draw the verdict from the interval of the samples' mean, where samples suffice for one.

    Args:
        samples: by seed; logarithms of ratios where `ratios`.
        rounding: how far arithmetic may have moved them.
        threshold: the test in words.
        bounds: where the mean must lie; of ratios as ratio − 1, above −1.
        confidence: of the interval.
        missing: what was not there.
        note: what a reader must know.
        conclusive: whether a verdict may be drawn at all.
        ratios: judge in logarithms, so that a / b and b / a are judged alike, and tell ratios less 1.
    """
    largest = math.log(LARGEST) if ratios else LARGEST
    kept = {seed: sample for seed, sample in samples.items() if abs(sample) <= largest}
    missing = [
        *missing,
        *(
            f"seed {seed}: the {'ratio’s logarithm' if ratios else 'sample'} is {number(samples[seed])}"
            for seed in samples
            if seed not in kept
        ),
    ]
    notes = [note] if note else []
    if len(kept) < LEAST_SEEDS:
        notes.append(f"a verdict needs {LEAST_SEEDS} seeds with every arm, there are {len(kept)}")
        conclusive = False
    values = list(kept.values())
    edges = tuple(bound if bound is None or not ratios else math.log1p(bound) for bound in bounds)
    told = _ratio if ratios else float
    deterministic = len(values) >= LEAST_SEEDS and max(values) - min(values) <= rounding
    interval = mean_interval(values, confidence) if len(values) >= 2 else None
    verdict: Verdict = "inconclusive"
    if interval is not None and conclusive and not missing:
        verdict = _place(interval, (edges[0], edges[1]), rounding)
        if verdict == "inconclusive" and not deterministic:
            gap = detectable(values, confidence)
            words = f"{100 * _ratio(gap):.2g} %" if ratios else f"{gap:.2g}"
            notes.append(
                f"{len(values)} seeds with this spread decide a distance of {words} from the bound in 80 % of runs"
            )
    if interval is not None:
        interval = Interval(told(interval.low), told(interval.high), confidence)
    return Finding(
        verdict=verdict,
        measured=told(mean(values)) if values else None,
        interval=None if deterministic else interval,
        threshold=threshold,
        samples={seed: told(sample) for seed, sample in kept.items()},
        missing=tuple(missing),
        bounds=bounds,
        note="; ".join(notes),
        deterministic=deterministic,
    )


def _ratio(logarithm: float) -> float:
    """Give a ratio less 1; the end of a hopelessly wide interval stays a number."""
    return math.expm1(min(logarithm, math.log(sys.float_info.max) - 1.0))


def _place(interval: Interval, bounds: Bounds, rounding: float) -> Verdict:
    """Say on which side of the bounds the whole interval lies; one that touches an edge lies on neither."""
    low, high = bounds
    if (low is None or interval.low > low + rounding) and (high is None or interval.high < high - rounding):
        return "reproduced"
    if (low is not None and interval.high < low - rounding) or (high is not None and interval.low > high + rounding):
        return "contradicted"
    return "inconclusive"
