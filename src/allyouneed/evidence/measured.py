"""What the readmes show of recorded results: Markdown that is generated between two markers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .wording import NONE, claim_rows, comparison, machine, minutes, verdict_counts


@dataclass(frozen=True)
class ListedPaper:
    """A row of the reading list.

    Attributes:
        number: place in the reading list.
        title: the paper's.
        link: the paper's own page.
        idea: what the paper introduced, in one sentence.
        note: address of the reading note; None where there is none yet.
        room: address of the room; None where there is none yet.
        results: the contents of its results file; None while it is planned.
    """

    number: int
    title: str
    link: str
    idea: str
    note: str | None = None
    room: str | None = None
    results: Mapping[str, Any] | None = None


def measured_section(results: Mapping[str, Any], figure: str) -> str:
    """Write a room's claims and results as Markdown: the figure, a table of claims, and how they came about.

    Args:
        results: the contents of a results file.
        figure: address of the figure, relative to the readme; pictures that trials left lie beside it.
    """
    claims = [
        [_text(row.statement), _text(row.paper), _text(row.ours), f"**{row.verdict}**", row.seeds]
        for row in claim_rows(results)
    ]
    description = f"Figure drawn from the trials of {comparison(results)}"
    facts = [
        f"Scale {results['scale']}",
        f"{minutes(results)} minutes of trials",
        machine(results),
        f"recorded {results['recorded']}",
    ]
    return "\n".join(
        [
            f"![{_label(description)}]({_address(figure)})",
            "",
            *_table(["claim", "paper", "ours [95 % interval]", "verdict", "seeds"], claims, right=(4,)),
            "",
            _text(", ".join(facts)) + ".",
            *_exhibits(results, figure.rpartition("/")[0]),
        ]
    )


def exhibit_file(results: Mapping[str, Any], name: str) -> str:
    """Give the name under which a picture that a trial left is kept beside its results."""
    return name if results["scale"] == "laptop" else f"{results['scale']}-{name}"


def _exhibits(results: Mapping[str, Any], folder: str) -> list[str]:
    """Show what the first seed's trials left to look at."""
    shown = []
    for name, text in results.get("exhibits", {}).items():
        title = name.rpartition(".")[0].replace("_", " ").replace("-", ": ", 1)
        file = exhibit_file(results, name)
        content = f"![{_label(title)}]({_address(f'{folder}/{file}')})" if name.endswith(".svg") else text.strip()
        shown += ["", f"From the first seed's trial, {_text(title)}:", "", content]
    return shown


def reading_list(rows: Sequence[ListedPaper]) -> str:
    """Write the reading list as a Markdown table."""
    cells = [
        [
            str(row.number),
            f"[{_label(row.title)}]({_address(row.link)})",
            _text(row.idea),
            f"[note]({_address(row.note)})" if row.note else NONE,
            f"[research]({_address(row.room)})" if row.room else NONE,
            verdict_counts(row.results["claims"]) if row.results else "planned",
            minutes(row.results) if row.results else NONE,
        ]
        for row in rows
    ]
    return "\n".join(_table(["#", "paper", "idea", "note", "room", "verdicts", "minutes"], cells, right=(0, 6)))


def replace_between(text: str, name: str, generated: str) -> str:
    """Put generated text between the markers of a name, in place of what stands there.

    Args:
        text: of a document with `<!-- name: generated, do not edit -->` and, after it, `<!-- /name -->`.
        name: of the markers.
        generated: the new text; it stands between blank lines.

    Raises:
        ValueError: a marker is missing or doubled, they stand in the wrong order, or the generated text holds one.
    """
    begin, end = f"<!-- {name}: generated, do not edit -->", f"<!-- /{name} -->"
    for marker in (begin, end):
        if (count := text.count(marker)) != 1:
            raise ValueError(f"the marker {marker} must stand in the text once, it is there {count} times")
        if marker in generated:
            raise ValueError(f"the generated text holds the marker {marker}")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the marker {end} stands before {begin}")
    return f"{before}{begin}\n\n{generated.strip()}\n\n{end}{after}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    rule = ["---:" if index in right else "---" for index in range(len(heads))]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows)]


def _text(text: str) -> str:
    """Write text so that Markdown shows it as it is, on one line and in one cell of a table.

    The brackets of an interval are left alone: they make no link where no parenthesis follows.
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([\\`*_|])", r"\\\1", text)
    return text.replace("](", r"]\(")


def _label(text: str) -> str:
    """Write text so that it can stand in a link's brackets."""
    return re.sub(r"([\[\]])", r"\\\1", _text(text))


def _address(address: str) -> str:
    """Write an address so that it ends where the link does."""
    return re.sub(r"[\s()<>|\\]", lambda found: f"%{ord(found[0]):02X}", address)
