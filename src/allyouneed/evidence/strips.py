"""The strip: a claim's samples, interval and bounds on one axis."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from . import wording

# The width is 100: positions across are percentages, so that a strip fits any screen and its text keeps its size.
_LEFT, _RIGHT = 5.0, 95.0
_DOTS_AT, _DOT_GAP, _DOT_RISE = 41.0, 1.6, 8.0
_LONGEST_LABELS = 36


@dataclass(frozen=True)
class Edge:
    """A bound of a claim: where, what it is, and to which side its label goes."""

    x: float
    label: str
    anchor: Literal["start", "middle", "end"] = "middle"


@dataclass(frozen=True)
class Strip:
    """A drawing of a claim's samples; x in percent of its width, y in pixels.

    Attributes:
        label: the drawing in words.
        region: left and right of where the claim holds.
        edges: the bounds.
        interval: left and right of the interval.
        mean: the mean, or for an exact claim the worst sample.
        dots: x, y and name of each sample.
        ticks: x and label of each.
    """

    label: str
    region: tuple[float, float]
    edges: list[Edge]
    interval: tuple[float, float] | None
    mean: float
    dots: list[tuple[float, float, str]]
    ticks: list[tuple[float, str]]


def strip(claim: Mapping[str, Any]) -> Strip | None:
    """Lay out the drawing of a recorded claim; None where there is no sample."""
    samples: Mapping[str, float] = claim["samples"]
    if not samples:
        return None
    low_bound, high_bound = claim["bounds"]
    interval = claim["interval"]
    bounds = [bound for bound in claim["bounds"] if bound is not None]
    shown = [*samples.values(), claim["measured"], *(interval or []), *bounds]
    shift = _axis_shift(shown)
    low, high = _domain([_scaled(value, shift) for value in shown])

    def across(position: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (position - low) / (high - low), 3)

    def x(value: float) -> float:
        return across(_scaled(value, shift))

    region = (0.0 if low_bound is None else x(low_bound), 100.0 if high_bound is None else x(high_bound))
    edges = [Edge(x(bound), wording.number(bound)) for bound in dict.fromkeys(bounds)]
    if len(edges) == 2 and edges[1].x - edges[0].x < 25:
        edges = [replace(edges[0], anchor="end"), replace(edges[1], anchor="start")]
    points = {name: x(value) for name, value in samples.items()}
    return Strip(
        label=_strip_words(claim),
        region=region,
        edges=edges,
        interval=None if interval is None else (x(interval[0]), x(interval[1])),
        mean=x(claim["measured"]),
        dots=[
            (points[name], y, f"{name if 'seed' in name else f'seed {name}'}: {wording.number(samples[name])}")
            for name, y in _heights(points).items()
        ],
        ticks=[(across(tick), label) for tick, label in _ticks(low, high, shift)],
    )


def _strip_words(claim: Mapping[str, Any]) -> str:
    low, high = claim["bounds"]
    if low is None or high is None:
        holds = f"below {wording.number(high)}" if low is None else f"above {wording.number(low)}"
    else:
        holds = f"at {wording.number(low)}" if low == high else f"from {wording.number(low)} to {wording.number(high)}"
    values = list(map(wording.number, claim["samples"].values()))
    listed = ", ".join(values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")
    return f"{claim['threshold']}. Measured: {wording.outcome(claim)}. Samples: {listed}. The claim holds {holds}."


def _axis_shift(values: Sequence[float]) -> int:
    """Give the power of ten to be split off the axis, so that its labels stay short."""
    exponent = wording.exponent_of(max(map(abs, values)))
    return exponent if exponent < -3 or exponent > 5 else 0


def _scaled(value: float, shift: int) -> float:
    return float(Decimal(value).scaleb(-shift))


def _domain(values: Sequence[float]) -> tuple[float, float]:
    """Give an axis that holds the values with a margin, also where they are all the same."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    margin = 0.06 * (high - low) if high - low > 1e-9 * size else 0.5 * size or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, shift: int) -> list[tuple[float, str]]:
    """Give round positions on an axis, as many as have room for their labels on a phone."""
    ticks: list[tuple[float, str]] = []
    for count in (6, 5, 4, 3, 2):
        raw = (high - low) / count
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = magnitude * next(factor for factor in (1.0, 2.0, 5.0, 10.0) if factor * magnitude >= raw * (1 - 1e-9))
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        positions = [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
        factor = wording.power(shift)
        ticks = [(tick, wording.fixed(tick, decimals) + factor if tick else "0") for tick in positions]
        if sum(len(label) for _, label in ticks) <= _LONGEST_LABELS:
            break
    return ticks


def _heights(points: Mapping[str, float]) -> dict[str, float]:
    """Give each dot a height at which it hides no other, as far as there is room."""
    offsets = (0, -1, 1, -2, 2)
    taken: dict[int, float] = dict.fromkeys(offsets, -math.inf)
    heights = {}
    for name in sorted(points, key=points.__getitem__):
        free = (offset for offset in offsets if points[name] - taken[offset] >= _DOT_GAP)
        offset = next(free, min(offsets, key=taken.__getitem__))
        taken[offset] = points[name]
        heights[name] = _DOTS_AT + _DOT_RISE * offset
    return heights
