"""Recorded results in words: what the terminal, the readmes and the report say alike."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, get_args

from .claims import Claim, Finding, Verdict

NONE = "–"
"""Stands where there is no number."""

# Exponents of ten that are written out; beyond them a number is written as a product.
_WRITTEN_OUT = range(-4, 12)
_MOST_DIGITS = 9
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class ClaimRow:
    """A claim and its outcome, in the words of every table.

    Attributes:
        statement: what the paper says.
        paper: the paper's figure.
        ours: what was measured, with its interval.
        verdict: "reproduced", "contradicted" or "inconclusive".
        seeds: how many there are, such as "5" or "4 of 5".
    """

    statement: str
    paper: str
    ours: str
    verdict: Verdict
    seeds: str


def claim_rows(results: Mapping[str, Any]) -> list[ClaimRow]:
    """Give a row for each claim of a results file's contents."""
    return [
        ClaimRow(
            statement=claim["statement"],
            paper=claim["paper_value"] or NONE,
            ours=outcome(claim),
            verdict=claim["verdict"],
            seeds=seed_count(claim),
        )
        for claim in results["claims"]
    ]


def resolution_rows(claims: Sequence[Claim], findings: Mapping[str, Finding]) -> list[tuple[str, ...]]:
    """Give a row for each claim of a pilot: what was measured, how finely, how far from a bound, and if it will do.

    Ratios are in per cent. Exact claims are judged in every trial, and have no resolution.
    """
    rows = []
    for claim in claims:
        finding = findings[claim.id]
        half_width, measured = finding.half_width, finding.measured
        if claim.test.kind == "exact" or half_width is None or measured is None:
            rows.append((claim.id, number(measured), NONE, NONE, NONE))
            continue
        distance = min(abs(measured - bound) for bound in finding.bounds if bound is not None)
        in_percent = getattr(claim.test, "relative", False)
        texts = [
            f"{number(100 * value)} %" if in_percent else number(value) for value in (measured, half_width, distance)
        ]
        rows.append((claim.id, *texts, "yes" if half_width <= distance / 2 else "no"))
    return rows


def number(value: float | None) -> str:
    """Write a number with four significant digits; one of 1,000 or more to the unit, such as "32,768".

    Numbers below 0.0001, or of a trillion and more, are written as "1.5×10⁻⁷".
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    exponent = exponent_of(value)
    shift = shift_of(exponent)
    return fixed(value, max(0, 3 - exponent + shift), shift, strip=True) + power(shift)


def column(values: Sequence[float | None]) -> list[str]:
    """Write the numbers of a table's column, with the same decimals where they are of one size."""
    texts = [number(value) for value in values]
    numbers = [value for value in values if value]
    if any(not re.fullmatch(r"−?[\d,.]+|–", text) for text in texts) or not numbers:
        return texts
    exponents = [exponent_of(value) for value in numbers]
    if max(exponents) - min(exponents) > 2:
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [text if value is None else fixed(value, decimals) for text, value in zip(texts, values, strict=True)]


def estimate(measured: float, low: float, high: float, bounds: Sequence[float | None] = (None, None)) -> str:
    """Write a measurement and its interval, such as "0.994 [0.991, 0.997]", all with the same decimals.

    The half-width has two significant digits, the largest number at least three; more where an end would otherwise
    read as a bound of the claim that it does not touch.
    """
    text, interval, factor = _aligned(measured, low, high, bounds)
    return f"{text} {interval}{factor}"


def outcome(claim: Mapping[str, Any]) -> str:
    """Write what was measured for a claim: the mean and its interval, or for an exact claim the worst and the range.

    An interval has 95 % confidence where nothing else is said. What was judged as a ratio is written in per cent. What
    the interval's half-width was expected to be stands after it, where the claim says.
    """
    return f"{_measured(claim)}{_promised(claim)}"


def _promised(claim: Mapping[str, Any]) -> str:
    if claim["resolution"] is None:
        return ""
    half_width = claim["resolution"]["half_width"]
    return f" (±{number(100 * half_width)} % expected)" if claim["relative"] else f" (±{number(half_width)} expected)"


def _measured(claim: Mapping[str, Any]) -> str:
    measured, interval = claim["measured"], claim["interval"]
    if measured is None:
        return NONE
    if interval is None:
        text = f"{number(100 * measured)} %" if claim["relative"] else number(measured)
        return f"{text}, deterministic" if claim["deterministic"] else text
    low, high = interval
    if claim["kind"] != "exact":
        if claim["relative"]:
            bounds = [bound and 100 * bound for bound in claim["bounds"]]
            text = f"{estimate(100 * measured, 100 * low, 100 * high, bounds)} %"
        else:
            text = estimate(measured, low, high, claim["bounds"])
        return text if claim["confidence"] == 0.95 else f"{text} at {confidence(claim)}"
    if low == high:
        return f"{number(measured)} in every trial"
    worst, spread, factor = _aligned(measured, low, high, claim["bounds"])
    return f"worst {worst}{factor}, all in {spread}{factor}"


def confidence(claim: Mapping[str, Any]) -> str:
    """Write the confidence of a claim's interval, such as "95 %"."""
    return f"{100 * claim['confidence']:.4g} %"


def seed_count(claim: Mapping[str, Any]) -> str:
    """Count the seeds that a claim was judged on, such as "5"; "4 of 5" where something of a seed is missing."""

    def seeds(texts: Sequence[str]) -> set[str]:
        return {found for text in texts for found in re.findall(r"(?:^|seed )(\d+)(?:$|:)", text)}

    judged, incomplete = seeds(list(claim["samples"])), seeds(claim["missing"])
    complete = len(judged - incomplete)
    return f"{complete} of {len(judged | incomplete)}" if incomplete else str(complete)


def verdict_counts(claims: Sequence[Mapping[str, Any]]) -> str:
    """Count claims by verdict, such as "3 reproduced, 1 contradicted"."""
    counts = Counter(claim["verdict"] for claim in claims)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict]) or "no claims"


def minutes(results: Mapping[str, Any]) -> str:
    """Write the minutes that the trials took, one after the other, with the shared stages that they stand on."""
    stages = {name: seconds for trial in results["trials"] for name, seconds in trial.get("stages", {}).items()}
    total = (sum(trial["seconds"] for trial in results["trials"]) + sum(stages.values())) / 60
    return f"{total:,.0f}" if total >= 9.95 else f"{total:.1f}" if total >= 0.05 else "under 0.1"


def arms(results: Mapping[str, Any]) -> list[str]:
    """Give the names of the arms, in order."""
    return list(dict.fromkeys(trial["arm"] for trial in results["trials"]))


def comparison(results: Mapping[str, Any]) -> str:
    """Say what was compared, such as "alibi and rotary at the laptop scale, 5 seeds"; describes the figure."""
    names = arms(results)
    seeds = len({trial["seed"] for trial in results["trials"]})
    listed = " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
    return f"{listed or 'no arms'} at the {results['scale']} scale, {seeds} seed{'s' * (seeds != 1)}"


def machine(results: Mapping[str, Any]) -> str:
    """Name what the trials ran on: the accelerator, where there was one, and the processor."""
    environment = results["environment"]
    cores = environment["cores"]
    processor = f"{environment['processor']} ({cores} core{'' if cores == 1 else 's'})"
    return processor if environment["device"] == "cpu" else f"{environment['device']}, {processor}"


def exponent_of(value: float) -> int:
    """Give the power of ten of a number's first digit, as it is after rounding to four digits; of 0, it is 0."""
    return int(f"{value:.3e}".split("e")[1])


def shift_of(exponent: int) -> int:
    """Give the power of ten to be split off a number with this exponent: 0 where it is written out."""
    return 0 if exponent in _WRITTEN_OUT else exponent


def power(shift: int) -> str:
    """Write a power of ten as a factor; nothing for 10⁰."""
    return f"×10{str(shift).translate(_SUPERSCRIPTS)}" if shift else ""


def fixed(value: float, decimals: int, shift: int = 0, strip: bool = False) -> str:
    """Write value / 10^shift with so many decimals, thousands in groups, and no minus before a zero."""
    text = f"{Decimal(value).scaleb(-shift):,.{decimals}f}"
    if strip and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.lstrip("-") if not re.search("[1-9]", text) else text.replace("-", "−")


def _aligned(measured: float, low: float, high: float, bounds: Sequence[float | None]) -> tuple[str, str, str]:
    """Write a measurement and its interval with the same decimals, and the power of ten that both are times."""
    exponent = exponent_of(max(abs(measured), abs(low), abs(high)))
    shift = shift_of(exponent)
    half_width = high / 2 - low / 2
    enough = max(2 - exponent, 1 - exponent_of(half_width)) if half_width else 3 - exponent
    most = max(0, _MOST_DIGITS - 1 - exponent + shift)
    fewest = min(most, max(0, enough + shift))
    apart = [(end, bound) for end in (low, high) for bound in bounds if bound is not None and end != bound]
    decimals = next(
        (
            count
            for count in range(fewest, most + 1)
            if all(fixed(end, count, shift) != fixed(bound, count, shift) for end, bound in apart)
        ),
        fewest,
    )
    texts = [fixed(value, decimals, shift) for value in (measured, low, high)]
    while all("." in text and text.endswith("0") for text in texts):
        texts = [text[:-1].removesuffix(".") for text in texts]
    comma = "; " if any("," in text for text in texts) else ", "
    return texts[0], f"[{texts[1]}{comma}{texts[2]}]", power(shift)
