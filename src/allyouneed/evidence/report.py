"""The report: recorded results as one HTML page that stands alone, without scripts or requests."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from . import wording
from .inline_figure import inline_figure
from .strips import strip


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
