"""The report: recorded results as one HTML page that stands alone, without scripts or requests."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from . import wording


@dataclass(frozen=True)
class Entry:
    """A paper and what was recorded for it at one scale.

    Attributes:
        number: place in the reading list.
        title: the paper's.
        authors: their names.
        year: of the paper.
        link: the paper's own page.
        idea: what the paper introduced, in one sentence.
        room: the name that `allyouneed run` takes.
        results: the contents of a results file.
        figure_svg: the figure, as SVG text.
        note: address of the reading note, absolute or relative to the page.

    Raises:
        ValueError: an address is none that a page may link to.
    """

    number: int
    title: str
    authors: tuple[str, ...]
    year: int
    link: str
    idea: str
    room: str
    results: Mapping[str, Any]
    figure_svg: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        web = ("http", "https")
        if urlsplit(self.link).scheme not in web:
            raise ValueError(f"link of {self.room} must be an http or https address, got {self.link!r}")
        if self.note is not None and urlsplit(self.note).scheme not in (*web, ""):
            raise ValueError(f"note of {self.room} must be a relative, http or https address, got {self.note!r}")

    @property
    def scale(self) -> str:
        """The scale of the results."""
        return self.results["scale"]

    @property
    def anchor(self) -> str:
        """The name of this entry's section, and the beginning of every id in it."""
        return re.sub(r"[^\w-]", "-", f"{self.room}-{self.scale}")


def report(entries: Sequence[Entry]) -> str:
    """Write the page.

    Args:
        entries: what to show, in order; a paper may come at several scales.

    Raises:
        ValueError: two entries are of one room and scale, or a figure is not SVG.
    """
    twice = [anchor for anchor, count in Counter(entry.anchor for entry in entries).items() if count > 1]
    if twice:
        raise ValueError(f"two entries have the same room and scale: {', '.join(twice)}")
    claims = [claim for entry in entries for claim in entry.results["claims"]]
    return _template().render(sections=[_section(entry) for entry in entries], claims=claims)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("allyouneed.evidence", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "confidence": wording.confidence,
        "verdict_counts": wording.verdict_counts,
        "setting": _setting,
        "unbroken": _unbroken,
    }
    return environment.get_template("report.html.j2")


def _section(entry: Entry) -> dict[str, Any]:
    """Give what the template shows of one entry."""
    results = entry.results
    configs = {trial["arm"]: trial["config"] for trial in reversed(results["trials"])}
    settings = list(dict.fromkeys(name for config in configs.values() for name in config))
    differing = [name for name in settings if len({repr(config.get(name, ...)) for config in configs.values()}) > 1]
    comparison = wording.comparison(results)
    figure = None
    if entry.figure_svg is not None:
        figure = inline_figure(entry.figure_svg, f"{entry.anchor}-figure", f"{entry.title}: {comparison}")
    return {
        "entry": entry,
        "results": results,
        "claims": list(zip(results["claims"], wording.claim_rows(results), map(strip, results["claims"]), strict=True)),
        "minutes": wording.minutes(results),
        "figure": figure,
        "comparison": comparison,
        "arms": {arm: configs[arm] for arm in wording.arms(results)},
        "differing": differing,
        "shared": [name for name in settings if name not in differing],
        "columns": _trial_columns(results["trials"]),
    }


def _trial_columns(trials: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Give the metrics, costs and seconds of all trials as columns, each with its name."""
    columns = {
        (kind, name): [trial[kind].get(name) for trial in trials]
        for kind in ("metrics", "costs")
        for name in dict.fromkeys(name for trial in trials for name in trial[kind])
    }
    columns["trial", "seconds"] = [trial["seconds"] for trial in trials]
    return [(name, wording.column(values)) for (_, name), values in columns.items()]


def _unbroken(text: str) -> str:
    """Keep an interval, and a number with its per cent sign, on one line."""
    return re.sub(r"\[.*?\]|\d %", lambda interval: interval[0].replace(" ", "\u00a0"), text)


def _setting(value: Any) -> str:
    """Write a configuration's value in full."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{Decimal(repr(value)):f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# The strip: a claim's samples, interval and bounds on one axis

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


# The figure

_SVG = "{http://www.w3.org/2000/svg}"
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
_DRAWN = {
    *("svg", "g", "defs", "use", "title", "desc", "text", "tspan", "image", "clipPath", "mask", "marker", "pattern"),
    *("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "linearGradient", "radialGradient", "stop"),
}


def inline_figure(svg: str, prefix: str, label: str) -> Markup:
    """Make SVG text safe to stand in a page beside other figures.

    Only shapes, text and embedded pictures are kept: no scripts, no style sheets (but one rule for all elements, such
    as matplotlib writes), no address outside the figure. Every id begins with the prefix.

    Args:
        svg: the figure.
        prefix: unique in the page.
        label: the figure in words.

    Raises:
        ValueError: the text is not SVG.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"the figure of {prefix} is not SVG: {error}") from error
    if root.tag != f"{_SVG}svg":
        raise ValueError(f"the figure of {prefix} is not SVG: its root is {root.tag!r}")
    everywhere = [
        rule[1]
        for style in root.iter(f"{_SVG}style")
        if (rule := re.fullmatch(r"\s*\*\s*\{([^{}]*)\}\s*", style.text or ""))
    ]
    root.set("style", ";".join([root.get("style", ""), *everywhere]).strip(";"))
    _keep_drawing(root, f"{prefix}-")
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _keep_drawing(element: ElementTree.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    kept = {name.rpartition("}")[2]: _kept(name, value, prefix) for name, value in element.attrib.items()}
    element.attrib.clear()
    element.attrib.update({name: value for name, value in kept.items() if value is not None})
    for child in list(element):
        if isinstance(child.tag, str) and child.tag.startswith(_SVG) and child.tag.removeprefix(_SVG) in _DRAWN:
            _keep_drawing(child, prefix)
        else:
            element.remove(child)


def _kept(name: str, value: str, prefix: str) -> str | None:
    """Give an attribute's value as it is kept; None drops the attribute."""
    if name in _HREFS:
        if value.startswith("#"):
            return f"#{prefix}{value[1:]}"
        return value if re.match(r"data:image/(png|jpeg);base64,", value) else None
    if name.lower().startswith(("{", "on")):
        return None
    if name == "id":
        return prefix + value
    value = re.sub(r"url\(\s*[\"']?#([^)\"']*)[\"']?\s*\)", rf"url(#{prefix}\1)", value)
    return None if re.search(r"url\((?!#)|\\|@|image(-set)?\(", value, re.IGNORECASE) else value
