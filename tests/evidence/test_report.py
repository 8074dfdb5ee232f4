import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.evidence.claims import Better, Claim, ClaimTest, Equivalent, Exact, Trend, TrialResult
from allyouneed.evidence.inline_figure import inline_figure
from allyouneed.evidence.report import Entry, report
from allyouneed.evidence.strips import strip
from allyouneed.evidence.wording import number

HOSTILE = "<script>alert('1')</script>\"><img src=https://h/x onerror=alert(2)> & </title></svg>"
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
VOID = {"meta", "link", "img", "br", "hr", "input"}

FIGURE = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="460.8pt" height="288pt" viewBox="0 0 460.8 288"
 xmlns="http://www.w3.org/2000/svg" version="1.1">
 <metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></metadata>
 <defs><style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style></defs>
 <g id="figure_1"><path id="m1" d="M 0 0 L 1 1" style="fill: #0072b2"/>
  <g clip-path="url(#p1)"><use xlink:href="#m1" x="4" y="2"/></g>
  <image xlink:href="data:image/png;base64,iVBORw0KGgo=" id="image1"/>
  <text style="font: 10px sans-serif">perplexity &lt; 1 &amp; more</text></g>
 <defs><clipPath id="p1"><rect x="0" y="0" width="9" height="9"/></clipPath></defs>
</svg>"""


class Page(HTMLParser):
    """A page as a list of elements, each with its tag, attributes, the tags around it and its own text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...], list[str]]] = []
        self.open: list[int] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {[self.elements[index][0] for index in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        around = tuple(self.elements[index][0] for index in self.open)
        self.elements.append((tag, {name: value or "" for name, value in attrs}, around, []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open[-1]][0] == tag, f"</{tag}> closes {self.elements[self.open[-1]][0]}"
        if tag in ("th", "td", "dt", "dd", "p", "h1", "h2", "h3"):
            self.handle_data(" ")
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][3].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str], str]]:
        """The attributes and the text of every element of a tag."""
        return [
            (attributes, " ".join("".join(text).split())) for name, attributes, _, text in self.elements if name == tag
        ]

    @property
    def text(self) -> str:
        return self.all("body")[0][1].replace("\u00a0", " ")


def trials(arms: Mapping[str, list[float]], **extra: Any) -> list[TrialResult]:
    return [
        TrialResult(
            arm,
            seed,
            {"width": index, "learning_rate": 1e-5, "tied": True, **extra},
            {"loss": value, "perplexity": 1e6 * value},
            {"step_seconds": 0.25},
            42.0,
        )
        for index, (arm, row) in enumerate(arms.items())
        for seed, value in enumerate(row)
        if not math.isnan(value)
    ]


def results(
    claims: list[Claim], arms: Mapping[str, list[float]], scale: str = "laptop", **extra: Any
) -> dict[str, Any]:
    run = trials(arms, **extra)
    seeds = range(max(map(len, arms.values())))
    return {
        "paper": "alibi",
        "scale": scale,
        "recorded": "2026-05-12",
        "environment": {
            "python": "3.11",
            "versions": {"torch": "2.13.0", "absent": None},
            "processor": "Ryzen",
            "cores": 2,
            "device": "cpu",
            "commit": None,
        },
        "claims": [claim.record(claim.judge(run, seeds)) for claim in claims],
        "trials": [asdict(trial) for trial in run],
    }


def claim(
    test: ClaimTest, name: str = "falls", statement: str = "The loss falls.", value: str | None = "27.3"
) -> Claim:
    return Claim(name, statement, "Table 3, row E", test, "One data set of eight.", value)


def recorded(test: ClaimTest, **arms: list[float]) -> dict[str, Any]:
    return results([claim(test)], arms)["claims"][0]


def entry(contents: dict[str, Any] | None = None, **changes: Any) -> Entry:
    facts: dict[str, Any] = {
        "number": 30,
        "title": "Train Short, Test Long",
        "authors": ("Ofir Press", "Noah A. Smith", "Mike Lewis"),
        "year": 2021,
        "link": "https://example.org/paper",
        "idea": "A penalty that grows with distance.",
        "room": "alibi",
        "results": contents or results(CLAIMS, ARMS),
        "figure_svg": FIGURE,
        "note": "../notes/30-alibi.md",
    }
    return Entry(**facts | changes)


NAN = math.nan
ARMS = {"a": [1.0, 1.1, 1.3, 1.2], "b": [2.0, 2.1, 2.2, 2.4], "c": [3.0, 3.0, 3.0, 3.3]}
CLAIMS = [
    claim(Better("loss", "a", "b"), "falls"),
    claim(Better("loss", "c", "b"), "rises", "It falls too.", None),
    claim(Equivalent("loss", "a", "b", 0.9), "same"),
    claim(Trend("loss", {"a": 1, "b": 2, "c": 3}, "linear", above=0.1), "slope"),
    claim(Exact("perplexity", ("a", "b"), at_most=5e6), "bounded"),
]


@pytest.fixture(scope="module")
def page() -> Page:
    gpu = results(CLAIMS[:1], {"a": [1.0, NAN, 1.2], "b": [2.0, 2.1, 2.4]}, scale="gpu")
    return Page(report([entry(), entry(gpu, figure_svg=None, note=None), entry(number=31, room="rope", title="Rope")]))


def test_the_page_is_well_formed_and_accessible(page: Page):
    assert page.all("html")[0][0]["lang"] == "en"
    levels = [int(tag[1]) for tag, *_ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(level <= before + 1 for before, level in pairwise(levels))
    heads = page.all("th")
    assert heads and all(attributes["scope"] in ("col", "row", "rowgroup") for attributes, _ in heads)
    assert all("div" in around for tag, _, around, _ in page.elements if tag == "table")
    drawings = [attributes for tag, attributes, around, _ in page.elements if tag == "svg"]
    assert len(drawings) == 2 + 11 and all(
        attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings
    )
    ids = Counter(attributes["id"] for _, attributes, *_ in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    for _, attributes, *_ in page.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_the_page_loads_nothing(page: Page):
    tags = {tag for tag, *_ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    for tag, attributes, *_ in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action", "data")]
        if re.search("https?:", attributes.get("href", "")):
            assert tag == "a"
    styles = page.all("style")
    assert len(styles) == 1 and not re.search(r"@import|url\(", styles[0][1])
    policy = next(attributes["content"] for attributes, _ in page.all("meta") if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")
    assert "prefers-color-scheme: dark" in styles[0][1] and "@media print" in styles[0][1]


def test_the_summary_has_a_row_for_each_claim(page: Page):
    html = report([entry()])
    table = html[html.index("<table") : html.index("</table>")]
    rows = Page(f"<body>{table}</table></body>").all("tr")
    texts = [text.replace("\u00a0", " ") for _, text in rows]
    assert texts[0] == "Paper Claim Paper’s figure Ours [interval] Verdict Seeds Minutes"
    assert texts[1] == "alibi The loss falls. 27.3 −1.02 [−1.23, −0.82] reproduced 4 8.4"
    assert texts[2] == "It falls too. – 0.90 [0.77, 1.03] contradicted 4"
    assert texts[3] == "The loss falls. 27.3 −1.02 [−1.17, −0.88] at 90 % inconclusive 4"
    assert texts[4] == "The loss falls. 27.3 0.96 [0.83, 1.10] reproduced 4"
    assert texts[5] == "The loss falls. 27.3 worst 2,400,000, all in [1,000,000; 2,400,000] reproduced 4"
    assert len(texts) == 6
    counts = "tried anew with small experiments: 3 reproduced, 1 contradicted, 1 inconclusive."
    assert f"5 claims of 1 language-model paper, {counts}" in Page(html).text
    assert "11 claims of 2 language-model papers" in page.text


def test_every_claim_shows_what_was_recorded(page: Page):
    for part in (
        "30. Train Short, Test Long",
        "Ofir Press, Noah A. Smith, Mike Lewis, 2021",
        "A penalty that grows with distance.",
        "Test a − b on loss < 0, for the whole 95 % interval",
        "Test |a − b| on loss < 0.9, for the whole 90 % interval",
        "Test perplexity of a, b ≤ 5000000, in every trial",
        "Measured −1.02 [−1.23, −0.82], 4 seeds",
        "Source Table 3, row E",
        "Paper’s figure none stated",
        "Note R² 0.9",
        "Not shown here One data set of eight.",
        "Missing a, seed 1",
        "2 of 3 seeds",
        "allyouneed run alibi --scale gpu",
        "Recorded 2026-05-12, 12 trials, 8.4 minutes",
        "Versions torch 2.13.0 Processor Ryzen Cores 2 Device cpu",
    ):
        assert part in page.text
    links = [attributes["href"] for attributes, text in page.all("a") if text in ("paper", "reading note")]
    paper, note = "https://example.org/paper", "../notes/30-alibi.md"
    assert links == [paper, note, paper, paper, note]


def test_verdicts_are_words_not_colours_alone(page: Page):
    badges = [
        (attributes["class"].split(), text) for attributes, text in page.all("span") if "verdict" in attributes["class"]
    ]
    assert len(badges) == 3 + 2 * 11
    assert all(text in classes for classes, text in badges)


def test_all_trials_and_configurations_are_in_the_page():
    contents = results(CLAIMS[:1], {"a": [1.0, 1.1, 1.25], "b": [2.0, 2.1, NAN]}, name="plain", shape=[1, 2])
    contents["trials"][0]["metrics"] = {"loss": 1.0, "own": 2.5e-7}
    found = Page(report([entry(contents)]))
    rows = [text for _, text in found.all("tr")]
    assert "arm seed loss own perplexity step_seconds seconds" in rows
    assert "a 0 1.00 2.5×10⁻⁷ – 0.25 42" in rows
    assert "a 2 1.25 – 1,250,000 0.25 42" in rows
    assert "b 1 2.10 – 2,100,000 0.25 42" in rows
    assert rows[rows.index("arm width") + 1 :][:2] == ["a 0", "b 1"]
    shared = rows[rows.index("setting every arm") + 1 :][:4]
    assert shared == ["learning_rate 0.00001", "tied true", "name plain", "shape [1, 2]"]
    assert "All 5 trials" in found.text


def test_hostile_text_is_shown_and_does_nothing():
    hostile = {HOSTILE: [1.0, 1.1, 1.2], "b": [2.0, 2.1, NAN]}
    contents = results([Claim("x", HOSTILE, HOSTILE, Better("loss", HOSTILE, "b"), HOSTILE, HOSTILE)], hostile)
    contents["claims"][0]["note"] = HOSTILE
    contents["environment"] |= {HOSTILE: HOSTILE}
    for trial in contents["trials"]:
        trial["metrics"] |= {HOSTILE: 1.0}
        trial["config"] |= {HOSTILE: HOSTILE}
    attack = entry(
        contents, title=HOSTILE, authors=(HOSTILE,), idea=HOSTILE, room=HOSTILE, link="https://h/'\"><script>"
    )
    found = Page(report([attack]))
    assert not {tag for tag, *_ in found.elements} & {"script", "img"}
    assert not [name for _, attributes, *_ in found.elements for name in attributes if name.startswith("on")]
    assert found.text.count(HOSTILE) >= 12
    assert found.all("title")[0][1] == f"{HOSTILE}: do the claims hold?"


def test_a_link_that_runs_code_is_refused():
    with pytest.raises(ValueError, match="link of alibi must be an http or https address, got 'javascript:alert"):
        entry(link="javascript:alert(1)")
    with pytest.raises(ValueError, match="note of alibi must be a relative, http or https address, got 'data:"):
        entry(note="data:text/html,hello")


def test_no_entries_and_entries_that_collide():
    assert "No results are recorded yet." in Page(report([])).text
    with pytest.raises(ValueError, match="same room and scale: alibi-laptop"):
        report([entry(), entry()])


def test_the_same_results_give_the_same_page():
    assert report([entry()]) == report([entry()])


# The figure


def figure(text: str, prefix: str = "alibi-figure") -> ElementTree.Element:
    return ElementTree.fromstring(inline_figure(text, prefix, "What it shows"))


def test_a_figure_keeps_its_drawing_under_ids_of_its_own():
    root = figure(FIGURE)
    assert root.attrib == {
        "viewBox": "0 0 460.8 288",
        "version": "1.1",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
        "role": "img",
        "aria-label": "What it shows",
    }
    assert [found.get("id") for found in root.iter() if found.get("id")] == [
        f"alibi-figure-{name}" for name in ("figure_1", "m1", "image1", "p1")
    ]
    assert [found.get("href") for found in root.iter("use")] == ["#alibi-figure-m1"]
    assert [found.get("clip-path") for found in root.iter("g")] == [None, "url(#alibi-figure-p1)"]
    assert [found.get("href") for found in root.iter("image")] == ["data:image/png;base64,iVBORw0KGgo="]
    assert [found.text for found in root.iter("text")] == ["perplexity < 1 & more"]
    assert not list(root.iter("style")) and not [found for found in root.iter() if "metadata" in str(found.tag)]
    path = next(root.iter("path"))
    assert (path.get("d"), path.get("style")) == ("M 0 0 L 1 1", "fill: #0072b2")


def test_two_figures_on_a_page_share_no_id():
    html = report([entry(), entry(room="rope")])
    drawings = [text for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "figure_1" in text]
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in drawings]
    assert len(ids) == 2 and ids[0] and not ids[0] & ids[1]


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<foreignObject><iframe xmlns='http://www.w3.org/1999/xhtml' src='https://h'/></foreignObject>",
        "<g onload='alert(1)'/><g ONLOAD='alert(1)'/>",
        "<style>@import url(https://h);</style>",
        "<style>* {fill: url(https://h/x)}</style>",
        "<g style='fill: url(https://h/x)'/><g fill='URL(\"https://h/x\")'/><g style='fill: u\\72l(https://h)'/>",
        "<use href='https://h/x.svg#a'/><image href='https://h/x.png'/>",
        "<use xmlns:xlink='http://www.w3.org/1999/xlink' xlink:href='javascript:alert(1)'/>",
        "<a href='javascript:alert(1)'><text>x</text></a><animate attributeName='href' to='https://h'/>",
        "<image href='data:image/svg+xml;base64,AAAA'/>",
        "<h:script xmlns:h='http://www.w3.org/1999/xhtml'>alert(1)</h:script>",
    ],
)
def test_a_figure_can_load_and_run_nothing(attack: str):
    safe = inline_figure(f"<svg xmlns='http://www.w3.org/2000/svg'>{attack}</svg>", "f", "x")
    assert not re.search(r"script|iframe|onload|https:|@import|data:|\\|javascript|animate", safe, re.IGNORECASE)


@pytest.mark.parametrize("text", ["", "<svg", "<html/>", "<svg xmlns='http://www.w3.org/1999/xhtml'/>"])
def test_a_figure_that_is_not_svg_is_refused(text: str):
    with pytest.raises(ValueError, match="the figure of alibi-laptop-figure is not SVG"):
        report([entry(figure_svg=text)])


# The strip


def read(label: str) -> float:
    digits, _, exponent = label.replace("−", "-").replace(",", "").partition("×10")
    return float(f"{digits}e{exponent.translate(SUPERSCRIPTS) or 0}")


def percent(text: str | None) -> float:
    assert text is not None and text.endswith("%")
    return float(text[:-1])


def drawn(test: ClaimTest, **arms: list[float]) -> tuple[ElementTree.Element, dict[str, Any]]:
    contents = results([claim(test)], arms)
    html = report([entry(contents, figure_svg=None)])
    (text,) = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    return ElementTree.fromstring(text), contents["claims"][0]


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [found for found in root.iter() if found.get("class") == name]


def test_every_mark_of_a_strip_is_where_the_ticks_say():
    root, found = drawn(Equivalent("loss", "a", "b", 0.5), a=[1.0, 1.1, 1.3, 1.2], b=[1.3, 1.0, 1.2, 1.25])
    ticks = [(percent(tick.get("x")), read(tick.text or "")) for tick in of_class(root, "tick")]
    assert 3 <= len(ticks) <= 7
    scale = (ticks[-1][0] - ticks[0][0]) / (ticks[-1][1] - ticks[0][1])

    def at(value: float) -> Any:
        return pytest.approx(ticks[0][0] + scale * (value - ticks[0][1]), abs=0.01)

    assert all(x == at(value) for x, value in ticks)
    dots = {dot.findtext("title"): percent(dot.get("cx")) for dot in of_class(root, "dot")}
    assert dots == {f"seed {seed}: {number(value)}": at(value) for seed, value in found["samples"].items()}
    assert len(dots) == 4
    bar, *ends = of_class(root, "interval")
    assert [percent(bar.get("x1")), percent(bar.get("x2"))] == [at(end) for end in found["interval"]]
    assert [percent(end.get("x1")) for end in ends] == [at(end) for end in found["interval"]]
    assert [percent(mean.get("cx")) for mean in of_class(root, "mean")] == [at(found["measured"])]
    assert [percent(edge.get("x1")) for edge in of_class(root, "edge")] == [at(-0.5), at(0.5)]
    (region,) = of_class(root, "region")
    assert percent(region.get("x")) == at(-0.5)
    assert percent(region.get("x")) + percent(region.get("width")) == at(0.5)


def test_the_region_is_open_where_the_claim_has_no_bound():
    below = strip(recorded(Better("loss", "a", "b"), a=[1.0, 1.1, 1.2], b=[2.0, 2.2, 2.4]))
    above = strip(recorded(Better("loss", "a", 0.5, direction="higher"), a=[1.0, 1.1, 1.2]))
    equal = strip(recorded(Exact("loss", ("a",), equals=7), a=[7.0, 7.0, 8.0]))
    assert below and above and equal
    assert below.region == (0.0, below.edges[0].x) and [edge.label for edge in below.edges] == ["0"]
    assert above.region == (above.edges[0].x, 100.0)
    assert equal.region == (equal.edges[0].x, equal.edges[0].x) and [edge.label for edge in equal.edges] == ["7"]
    assert [x == equal.edges[0].x for x, _, _ in sorted(equal.dots)] == [True, True, False]
    assert [name for _, _, name in equal.dots] == ["a, seed 0: 7", "a, seed 1: 7", "a, seed 2: 8"]


def test_labels_of_close_bounds_stand_apart():
    close = strip(recorded(Equivalent("loss", "a", "b", 0.1), a=[1.0, 1.1, 5.0], b=[1.0, 1.1, 1.2]))
    apart = strip(recorded(Equivalent("loss", "a", "b", 0.1), a=[1.0, 1.1, 1.2], b=[1.0, 1.1, 1.2]))
    assert close and [edge.anchor for edge in close.edges] == ["end", "start"]
    assert apart and [edge.anchor for edge in apart.edges] == ["middle", "middle"]


def test_equal_samples_do_not_hide_each_other():
    drawing = strip(recorded(Better("loss", "a", 2.0), a=[1.0] * 5))
    assert drawing and len({x for x, _, _ in drawing.dots}) == 1
    heights = sorted(y for _, y, _ in drawing.dots)
    assert len(set(heights)) == 5 and heights[0] >= 18 and heights[-1] <= 65
    assert drawing.interval is None


def test_what_has_no_sample_has_no_strip():
    nothing = recorded(Better("loss", "a", "b"), a=[1.0, 1.1, 1.2])
    assert strip(nothing) is None
    single = strip(recorded(Better("loss", "a", "b"), a=[1.0], b=[2.0]))
    assert single and single.interval is None and len(single.dots) == 1
    page = Page(report([entry(results(CLAIMS[:1], {"a": [1.0, 1.1, 1.2]}), figure_svg=None)]))
    assert not page.all("svg") and "Measured – Note" in page.text
    assert "Missing b, seed 0; b, seed 1; b, seed 2" in page.text


def test_the_strip_in_words():
    drawing = strip(recorded(Better("loss", "a", "b"), a=[1.0, 1.1, 1.3], b=[2.0, 2.1, 2.2]))
    assert drawing and drawing.label == (
        "a − b on loss < 0. Measured: −0.97 [−1.11, −0.82]. Samples: −1, −1, −0.9. The claim holds below 0."
    )
    within = strip(recorded(Equivalent("loss", "a", 1.0, 0.5), a=[1.0] * 14))
    assert within and within.label.endswith("0 and 2 more. The claim holds from −0.5 to 0.5.")


@given(
    st.lists(st.floats(-1e150, 1e150, allow_subnormal=False), min_size=1, max_size=8),
    st.tuples(
        st.none() | st.floats(-1e150, 1e150, allow_subnormal=False),
        st.none() | st.floats(-1e150, 1e150, allow_subnormal=False),
    ),
)
def test_any_strip_keeps_order_and_stays_in_the_drawing(values: list[float], bounds: tuple[float | None, float | None]):
    low, high = bounds
    if low is None and high is None:
        low = 0.0
    if low is not None and high is not None:
        low, high = sorted((low, high))
    drawing = strip(
        {
            "kind": "better",
            "relative": False,
            "samples": {str(seed): value for seed, value in enumerate(values)},
            "measured": values[0],
            "interval": [min(values), max(values)],
            "deterministic": False,
            "resolution": None,
            "confidence": 0.95,
            "bounds": [low, high],
            "threshold": "x",
        }
    )
    assert drawing and drawing.interval
    positions = {name: x for x, _, name in drawing.dots}
    dots = [positions[f"seed {seed}: {number(value)}"] for seed, value in enumerate(values)]
    assert drawing.mean == dots[0]
    assert drawing.interval == (min(dots), max(dots))
    assert all(5 <= x <= 95 for x in dots)
    assert 0 <= drawing.region[0] <= drawing.region[1] <= 100
    by_value = [x for _, x in sorted(zip(values, dots, strict=True))]
    assert by_value == sorted(by_value)
    assert 1 <= len(drawing.ticks) <= 8
    assert [x for x, _ in drawing.ticks] == sorted({x for x, _ in drawing.ticks})
    labels = [read(label) for _, label in drawing.ticks]
    assert labels == sorted(set(labels))
    assert all(0 <= x <= 100 for x, _ in drawing.ticks)
