import copy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from allyouneed.evidence.measured import ListedPaper, measured_section, reading_list, replace_between

HOSTILE = "a | b\n| c <script>alert(1)</script> `d` *e* [f](javascript:g) ![h](https://h) \\| _i_ &lt; <!-- j"


def claim(**changes: Any) -> dict[str, Any]:
    facts = {
        "id": "falls",
        "kind": "better",
        "relative": False,
        "statement": "The loss falls.",
        "source": "Table 1",
        "paper_value": "27.3 against 25.1",
        "measured": -0.281,
        "interval": [-0.407, -0.156],
        "confidence": 0.95,
        "deterministic": False,
        "resolution": None,
        "sabotage": None,
        "verdict": "reproduced",
        "threshold": "a − b on loss < 0",
        "samples": {"0": -0.2, "1": -0.3, "2": -0.34},
        "bounds": [None, 0.0],
        "missing": [],
        "note": "",
        "scale_gap": "All of it.",
    }
    return facts | changes


RESULTS: dict[str, Any] = {
    "paper": "alibi",
    "scale": "laptop",
    "recorded": "2026-05-12",
    "environment": {"processor": "Ryzen | 9", "cores": 2, "device": "cpu"},
    "claims": [claim(), claim(verdict="contradicted", paper_value=None, missing=["a, seed 3"])],
    "trials": [{"arm": arm, "seed": seed, "seconds": 40.0} for seed in range(3) for arm in ("alibi", "rotary")],
}


class Cells(HTMLParser):
    """The text of each table row's cells, and what else Markdown made of a text."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.in_cell = False
        self.tags: set[str] = set()
        self.feed(MarkdownIt("commonmark").enable("table").render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        elif tag == "a":
            self.links.append(given["href"])
        elif tag == "img":
            self.images.append((given["src"], given["alt"]))

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data


def test_the_measured_section_shows_figure_claims_and_circumstances():
    text = measured_section(RESULTS, "results/figure.svg")
    seen = Cells(text)
    assert seen.images == [
        ("results/figure.svg", "Figure drawn from the trials of alibi and rotary at the laptop scale, 3 seeds")
    ]
    assert seen.rows == [
        ["claim", "paper", "ours [95 % interval]", "verdict", "seeds"],
        ["The loss falls.", "27.3 against 25.1", "−0.281 [−0.407, −0.156]", "reproduced", "3"],
        ["The loss falls.", "–", "−0.281 [−0.407, −0.156]", "contradicted", "3 of 4"],
    ]
    assert "**reproduced**" in text and "**contradicted**" in text
    assert text.endswith("\n\nScale laptop, 4.0 minutes of trials, Ryzen \\| 9 (2 cores), recorded 2026-05-12.")


def test_hostile_text_stays_in_its_cell_and_reads_as_written():
    results = copy.deepcopy(RESULTS)
    results["claims"] = [claim(statement=HOSTILE, paper_value=HOSTILE)]
    results["trials"][0]["arm"] = HOSTILE
    seen = Cells(measured_section(results, "results/a figure (1).svg"))
    assert [len(row) for row in seen.rows] == [5, 5]
    assert seen.rows[1][0] == seen.rows[1][1] == " ".join(HOSTILE.split())
    assert seen.tags == {"p", "img", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    assert [address for address, _ in seen.images] == ["results/a%20figure%20%281%29.svg"]
    assert " ".join(HOSTILE.split()) in seen.images[0][1]


@given(st.text(alphabet="ab|\\`*_[]()<>&!~#- \n\r\t", min_size=1))
def test_any_statement_reads_as_written(statement: str):
    results = RESULTS | {"claims": [claim(statement=statement)]}
    seen = Cells(measured_section(results, "results/figure.svg"))
    assert seen.rows[1][0].split() == statement.split()
    assert len(seen.rows) == 2 and len(seen.rows[1]) == 5


def test_the_reading_list_links_what_there_is():
    rows = [
        ListedPaper(1, "Attention [Is] All", "https://example.org/a_(b)|c", "Attention | alone."),
        ListedPaper(30, "Train Short", "https://example.org/30", "Bias.", "notes/30.md", "papers/alibi", RESULTS),
    ]
    seen = Cells(reading_list(rows))
    assert seen.rows == [
        ["#", "paper", "idea", "note", "room", "verdicts", "minutes"],
        ["1", "Attention [Is] All", "Attention | alone.", "–", "–", "planned", "–"],
        ["30", "Train Short", "Bias.", "note", "research", "1 reproduced, 1 contradicted", "4.0"],
    ]
    assert seen.links == ["https://example.org/a_%28b%29%7Cc", "https://example.org/30", "notes/30.md", "papers/alibi"]


DOCUMENT = "# Room\n\n<!-- measured: generated, do not edit -->\nold\n<!-- /measured -->\n\nThe end.\n"


def test_generated_text_replaces_what_stood_between_the_markers():
    once = replace_between(DOCUMENT, "measured", "new\n")
    assert once == ("# Room\n\n<!-- measured: generated, do not edit -->\n\nnew\n\n<!-- /measured -->\n\nThe end.\n")
    assert replace_between(once, "measured", "new\n") == once
    assert replace_between(once, "measured", "old") == replace_between(DOCUMENT, "measured", "old")


def test_generated_text_is_taken_as_it_is():
    generated = r"\1 \g<0> | \n"
    assert f"\n\n{generated}\n\n" in replace_between(DOCUMENT, "measured", generated)


def test_a_section_and_a_list_in_a_document_stay_the_same():
    def generate(text: str) -> str:
        text = replace_between(text, "measured", measured_section(RESULTS, "results/figure.svg"))
        return replace_between(text, "list", reading_list([ListedPaper(1, "A", "https://a", "B.")]))

    text = generate(DOCUMENT + DOCUMENT.replace("measured", "list"))
    assert generate(text) == text
    assert text.count("The end.") == 2


@pytest.mark.parametrize(
    ("text", "generated", "message"),
    [
        (DOCUMENT.replace("<!-- /measured -->", ""), "new", r"<!-- /measured --> must .* 0 times"),
        (DOCUMENT.replace(": generated", ""), "new", r"<!-- measured: generated, do not edit --> must .* 0 times"),
        (DOCUMENT + DOCUMENT, "new", r"<!-- measured: generated, do not edit --> must .* 2 times"),
        (DOCUMENT + "<!-- /measured -->", "new", r"<!-- /measured --> must .* 2 times"),
        (
            "<!-- /measured --> <!-- measured: generated, do not edit -->",
            "new",
            "<!-- /measured --> stands before <!-- measured: generated",
        ),
        (DOCUMENT, "a <!-- /measured --> b", "generated text holds the marker <!-- /measured -->"),
    ],
)
def test_markers_that_do_not_fit_are_named(text: str, generated: str, message: str):
    with pytest.raises(ValueError, match=message):
        replace_between(text, "measured", generated)


@pytest.mark.parametrize(("scale", "file"), [("laptop", "an_arm-look.svg"), ("gpu", "gpu-an_arm-look.svg")])
def test_exhibits_are_shown_after_the_claims(scale: str, file: str):
    exhibits = {"an_arm-look.svg": "<svg/>", "an_arm-words.md": "| a |\n|---|\n| b |\n"}
    section = measured_section(RESULTS | {"scale": scale, "exhibits": exhibits}, "results/figure.svg")
    tail = section.split("From the first seed's trial, ", 1)[1]
    assert tail.startswith("an arm: look:") and f"](results/{file})" in tail
    assert tail.endswith("| a |\n|---|\n| b |")
    assert "From the first" not in measured_section(RESULTS, "results/figure.svg")
