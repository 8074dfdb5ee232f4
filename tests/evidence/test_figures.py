"""Figures: the same text for the same trials in any process, on any day, and drawn of what was measured."""

import datetime
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from allyouneed.evidence import TrialResult, curves_figure, save_figure
from allyouneed.evidence.figures import svg

DRAW = """
from allyouneed.evidence import TrialResult, curves_figure
from allyouneed.evidence.figures import svg

trials = [
    TrialResult(arm, seed, {}, {f"x{x}": offset + seed / x for x in (1, 2, 4)}, {}, 1.0)
    for offset, arm in enumerate(("alibi", "rotary"), start=1)
    for seed in range(3)
]

def draw(trials=trials, **changes):
    arguments = dict(
        points=lambda result: {float(name[1:]): value for name, value in result.metrics.items()},
        names={"rotary": "Rotary, trained at 64", "alibi": "ALiBi"},
        horizontal="length in tokens",
        vertical="perplexity",
        title="Read further",
        logarithmic="x",
    )
    return curves_figure(trials, **(arguments | changes))
"""
_drawing: dict[str, Any] = {}
exec(DRAW, _drawing)
draw, trials = _drawing["draw"], _drawing["trials"]


def test_another_process_draws_the_same_text() -> None:
    there = subprocess.run(
        [sys.executable, "-c", DRAW + "\nimport sys\nsys.stdout.write(svg(draw()))"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    ).stdout
    here = svg(draw())
    assert here == there == svg(draw())
    ElementTree.fromstring(here)


def test_there_is_no_date_and_no_program_in_it() -> None:
    text = svg(draw())
    assert "date" not in text.casefold()
    assert str(datetime.datetime.now(datetime.UTC).year) not in text
    assert mpl.__version__ not in text
    assert not re.search(r"[ \t]\n", text)
    assert text.endswith("</svg>\n")


def test_other_settings_of_matplotlib_change_nothing() -> None:
    plain = svg(draw())
    with mpl.rc_context({"font.size": 20, "svg.fonttype": "path", "svg.hashsalt": None, "axes.grid": False}):
        assert svg(draw()) == plain


@pytest.mark.parametrize("changed", [{"metrics": {"x1": 1.5, "x2": 1.0, "x4": 1.0}}, {"arm": "rotary"}], ids=str)
def test_another_result_is_another_drawing(changed: Mapping[str, Any]) -> None:
    assert svg(draw([replace(trials[0], **changed), *trials[1:]])) != svg(draw())


def test_words_are_text_that_can_be_searched() -> None:
    text = svg(draw())
    for words in ("Rotary, trained at 64", "ALiBi", "length in tokens", "perplexity", "Read further"):
        assert f">{words}</text>" in text


def test_lines_are_every_seed_and_the_mean_of_all() -> None:
    (axes,) = draw().axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Rotary, trained at 64", "ALiBi"]
    lines = {line.get_label(): line for line in axes.lines}
    mean = [2 + sum(seed / x for seed in range(3)) / 3 for x in (1, 2, 4)]
    assert list(lines["Rotary, trained at 64"].get_ydata()) == pytest.approx(mean)
    assert list(lines["ALiBi"].get_xdata()) == [1, 2, 4]
    assert len(axes.lines) == 2 * (3 + 1)
    assert lines["ALiBi"].get_color() != lines["Rotary, trained at 64"].get_color()
    assert lines["ALiBi"].get_marker() != lines["Rotary, trained at 64"].get_marker()


def test_an_arm_without_trials_is_left_out_and_keeps_no_place_in_the_legend() -> None:
    names = {"absent": "Absent", "rotary": "Rotary"}
    (axes,) = draw(names=names).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Rotary"]
    # A colour belongs to an arm, whichever others there are.
    (whole,) = draw(names={"alibi": "Absent", "rotary": "Rotary"}).axes
    colours = [{line.get_label(): line.get_color() for line in some.lines}["Rotary"] for some in (axes, whole)]
    assert colours[0] == colours[1]


def test_scales_and_the_last_touch_are_as_asked() -> None:
    (axes,) = draw(logarithmic="xy", finish=lambda axes: axes.set_ylim(0.5, 8)).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylim() == (0.5, 8)
    (axes,) = draw(logarithmic="", title="").axes
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_title(loc="left")) == ("linear", "linear", "")


def test_a_figure_is_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results" / "figure.svg"
    save_figure(draw(), path)
    assert path.read_text(encoding="utf-8") == svg(draw())

    def full(file: Path, text: str, **options: Any) -> int:
        whole_write(file, text[:100], **options)
        raise OSError("No space left on device")

    whole_write = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        save_figure(draw(title="Another"), path)
    assert path.read_text(encoding="utf-8") == svg(draw())
    assert [file.name for file in path.parent.iterdir()] == ["figure.svg"]


def test_curves_figure_takes_any_points() -> None:
    one = [TrialResult("alibi", 0, {}, {"loss": 1.0}, {}, 1.0)]
    figure = curves_figure(
        one, lambda result: {1.0: result.metrics["loss"]}, names={"alibi": "ALiBi"}, horizontal="x", vertical="y"
    )
    ElementTree.fromstring(svg(figure))
