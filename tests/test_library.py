"""Rooms as a whole: what is generated follows from what was recorded, and every edit by hand is found."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from allyouneed import catalog, library
from allyouneed.evidence import SCALES, ResultsError
from allyouneed.evidence.results import checksum

RECORDED = [(paper, scale) for paper in catalog.papers() for scale in SCALES if paper.results(scale).is_file()]
ALIBI = catalog.find("alibi")

pytestmark = pytest.mark.skipif(
    not ALIBI.results("laptop").is_file() or "<!-- reading-list" not in library.README.read_text(encoding="utf-8"),
    reason="ALiBi's results are not recorded, or the README has no markers yet",
)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a copy of the repository's documents and results, in which everything of `library` looks for them."""
    root = library.README.parent
    package = tmp_path / catalog.PACKAGE.relative_to(root)
    shutil.copytree(catalog.PACKAGE / "papers", package / "papers", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "notes", tmp_path / "notes")
    shutil.copy(library.README, tmp_path)
    monkeypatch.setattr(catalog, "PACKAGE", package)
    monkeypatch.setattr(library, "README", tmp_path / "README.md")
    library.write_generated()
    assert library.differences() == []
    return tmp_path


def edit(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")


def in_results(change: Callable[[dict], object], sign: bool) -> Callable[[str], str]:
    """Give an edit of a results file, with a checksum that fits or without."""

    def edited(text: str) -> str:
        contents = json.loads(text)
        change(contents)
        if sign:
            contents["checksum"] = checksum(contents)
        return json.dumps(contents, indent=1) + "\n"

    return edited


def test_what_the_repository_shows_follows_from_what_was_recorded() -> None:
    assert library.differences() == []


def test_writing_anew_changes_nothing(copy: Path) -> None:
    def texts() -> dict[Path, str]:
        return {path: path.read_text(encoding="utf-8") for path in copy.rglob("*") if path.suffix in (".md", ".svg")}

    before = texts()
    library.write_generated()
    assert texts() == before


@pytest.mark.parametrize(
    ("document", "pattern", "replacement"),
    [
        ("README.md", r"\d+ reproduced", "99 reproduced"),
        ("src/allyouneed/papers/alibi/readme.md", r"\*\*(reproduced|contradicted|inconclusive)\*\*", "**proved**"),
        ("src/allyouneed/papers/alibi/readme.md", r"recorded \d{4}", "recorded 2001"),
    ],
)
def test_a_generated_part_that_was_edited_is_found(copy: Path, document: str, pattern: str, replacement: str) -> None:
    edit(copy / document, lambda text: re.sub(pattern, replacement, text, count=1))
    (problem,) = library.differences()
    assert problem.startswith(f"{document} is not what results/ say")
    assert "make generated" in problem
    library.write_generated()
    assert library.differences() == []


def test_text_around_the_generated_parts_is_free(copy: Path) -> None:
    edit(copy / "README.md", lambda text: text.replace("# allyouneed", "# All You Need", 1))
    edit(copy / "src/allyouneed/papers/alibi/readme.md", lambda text: text + "\nOne more sentence.\n")
    assert library.differences() == []
    library.write_generated()
    assert (copy / "README.md").read_text(encoding="utf-8").startswith("# All You Need\n")


@pytest.mark.parametrize("change", [lambda text: text.replace("</svg>", "<!-- --></svg>"), None], ids=["edit", "gone"])
def test_a_figure_that_is_not_drawn_from_its_results_is_found(copy: Path, change: Callable[[str], str] | None) -> None:
    figure = library.figure_path(ALIBI, "laptop")
    assert figure.is_relative_to(copy)
    if change is None:
        figure.unlink()
    else:
        edit(figure, change)
    (problem,) = library.differences()
    assert problem == "src/allyouneed/papers/alibi/results/figure.svg is not drawn from its results"
    library.write_generated()
    assert library.differences() == []


def test_a_results_file_that_was_edited_is_found(copy: Path) -> None:
    path = ALIBI.results("laptop")
    edit(path, in_results(lambda contents: contents["claims"][0].update(verdict="reproduced?"), sign=False))
    (problem,) = library.differences()
    assert str(path) in problem
    assert "was changed after it was recorded" in problem
    with pytest.raises(ResultsError):
        library.write_generated()


def test_a_verdict_that_does_not_follow_is_found_whatever_the_checksum_and_the_texts(copy: Path) -> None:
    def steer(contents: dict) -> None:
        claim = contents["claims"][0]
        claim["verdict"] = "contradicted" if claim["verdict"] == "reproduced" else "reproduced"

    edit(ALIBI.results("laptop"), in_results(steer, sign=True))
    # The forger writes the documents anew too.
    library.write_generated()
    (problem,) = library.differences()
    assert "alibi_does_not_rise" in problem
    assert "another verdict" in problem


def test_a_metric_that_was_edited_is_found_whatever_the_checksum_and_the_texts(copy: Path) -> None:
    def better(contents: dict) -> None:
        contents["trials"][0]["metrics"]["largest_rise"] = 0.5

    edit(ALIBI.results("laptop"), in_results(better, sign=True))
    library.write_generated()
    assert any("alibi_does_not_rise" in problem for problem in library.differences())


def test_the_check_is_a_command(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "allyouneed.library", "--check"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout
    assert "follow from the recorded trials" in ended.stdout


@pytest.mark.parametrize(("paper", "scale"), RECORDED, ids=lambda value: getattr(value, "room", value))
def test_recorded_results_are_of_their_room_and_scale(paper: catalog.Paper, scale: str) -> None:
    results = library.recorded(paper)[scale]
    experiment = library.experiment_of(paper)
    assert (results["paper"], results["scale"]) == (experiment.paper, scale) == (paper.room, scale)


def test_entries_and_rows_have_what_was_recorded() -> None:
    entries = library.recorded_entries()
    assert [(entry.room, entry.scale) for entry in entries] == [(paper.room, scale) for paper, scale in RECORDED]
    assert all(entry.figure_svg is not None for entry in entries)
    rows = library.reading_list_rows()
    assert [row.number for row in rows] == list(range(1, 52))
    row = rows[ALIBI.number - 1]
    assert row.results is not None
    for place in (row.note, row.room):
        assert place is not None
        assert (library.README.parent / place).exists()
    planned = next(row for row in rows if catalog.papers()[row.number - 1].status == "planned")
    assert (planned.room, planned.results) == (None, None)


def test_a_planned_room_has_no_experiment() -> None:
    planned = next(paper for paper in catalog.papers() if not (paper.folder / "experiment.py").is_file())
    with pytest.raises(library.NoExperiment, match=rf"{planned.room} .*is planned: .*these run: .*alibi"):
        library.experiment_of(planned)
