"""Rooms as a whole: their experiments, their recorded results, and the text that is generated from them.

`python -m allyouneed.library` writes the README's reading list and every room's measured section anew; with `--check`
it writes nothing and fails where they differ from the recorded results. With `--judge-again` it first judges every
recorded trial anew, after a change of the statistics or of the words of claims.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

from allyouneed import catalog
from allyouneed.catalog import Paper
from allyouneed.evidence import (
    SCALES,
    Experiment,
    ResultsError,
    judge_again,
    read_results,
    save_figure,
    trials_of,
    verify,
    write_results,
)
from allyouneed.evidence.figures import svg
from allyouneed.evidence.measured import ListedPaper, exhibit_file, measured_section, reading_list, replace_between
from allyouneed.evidence.report import Entry

README = catalog.PACKAGE.parent.parent / "README.md"


class NoExperiment(LookupError):  # noqa: N818
    """A paper whose room is not built yet."""


def experiment_of(paper: Paper) -> Experiment:
    """Import a room's experiment.

    Raises:
        NoExperiment: the room is only planned.
    """
    if not (paper.folder / "experiment.py").is_file():
        works = ", ".join(other.room for other in catalog.papers() if (other.folder / "experiment.py").is_file())
        raise NoExperiment(f"{paper.room} ({paper.title}) is planned: it has no experiment yet; these run: {works}")
    return importlib.import_module(f"allyouneed.papers.{paper.room}.experiment").EXPERIMENT


def recorded(paper: Paper) -> dict[str, dict[str, Any]]:
    """Read a room's recorded results, by scale.

    Raises:
        ResultsError: a file was changed after it was recorded.
    """
    paths = {scale: paper.results(scale) for scale in SCALES}
    return {scale: read_results(path) for scale, path in paths.items() if path.is_file()}


def entry(paper: Paper, results: dict[str, Any], figure_svg: str | None) -> Entry:
    """Join a paper's facts with its results for the report."""
    return Entry(
        number=paper.number,
        title=paper.title,
        authors=paper.authors,
        year=paper.year,
        link=paper.link,
        idea=paper.idea,
        room=paper.room,
        results=results,
        figure_svg=figure_svg,
    )


def recorded_entries() -> list[Entry]:
    """Give an entry for every recorded result of every room."""
    entries = []
    for paper in catalog.papers():
        for scale, results in recorded(paper).items():
            figure = figure_path(paper, scale)
            entries.append(entry(paper, results, figure.read_text(encoding="utf-8") if figure.is_file() else None))
    return entries


def figure_path(paper: Paper, scale: str) -> Path:
    """Say where the figure of a scale's recorded results is kept."""
    return paper.folder / "results" / ("figure.svg" if scale == "laptop" else f"figure-{scale}.svg")


def exhibited(paper: Paper, results: dict[str, Any]) -> dict[Path, str]:
    """Give the pictures that trials left, by the path at which the readme shows them."""
    shown = results.get("exhibits", {})
    folder = paper.folder / "results"
    return {folder / exhibit_file(results, name): text for name, text in shown.items() if name.endswith(".svg")}


def reading_list_rows() -> list[ListedPaper]:
    """Give the rows of the README's table."""
    rows = []
    for paper in catalog.papers():
        results = recorded(paper).get("laptop") if paper.status == "works" else None
        root = README.parent
        rows.append(
            ListedPaper(
                number=paper.number,
                title=paper.title,
                link=paper.link,
                idea=paper.idea,
                note=paper.note.relative_to(root).as_posix() if paper.note else None,
                room=paper.folder.relative_to(root).as_posix() if paper.status == "works" else None,
                results=results,
            )
        )
    return rows


def generated_texts() -> dict[Path, str]:
    """Give every file with generated parts as it should be."""
    texts = {}
    for paper in catalog.papers():
        readme = paper.folder / "readme.md"
        results = recorded(paper)
        if not results or not readme.is_file():
            continue
        sections = [
            measured_section(results[scale], f"results/{figure_path(paper, scale).name}")
            for scale in ("laptop", "gpu")
            if scale in results
        ]
        texts[readme] = replace_between(readme.read_text(encoding="utf-8"), "results", "\n\n".join(sections))
    if README.is_file():
        table = reading_list(reading_list_rows())
        texts[README] = replace_between(README.read_text(encoding="utf-8"), "reading-list", table)
    return texts


def differences() -> list[str]:
    """Say where generated text, figures or recorded verdicts differ from what follows from the recorded trials."""
    try:
        texts = generated_texts()
    except ResultsError as error:
        return [str(error)]
    found = []
    for path, text in texts.items():
        if path.read_text(encoding="utf-8") != text:
            found.append(f"{path.relative_to(README.parent)} is not what results/ say: `make generated` writes it anew")
    for paper in catalog.papers():
        for scale, results in recorded(paper).items():
            experiment = experiment_of(paper)
            try:
                verify(experiment, results)
            except ResultsError as error:
                found.append(str(error))
            drawn = figure_path(paper, scale)
            for path, text in exhibited(paper, results).items():
                if not path.is_file() or path.read_text(encoding="utf-8") != text:
                    found.append(f"{path.relative_to(README.parent)} is not the one in its results")
            if not drawn.is_file() or drawn.read_text(encoding="utf-8") != svg(experiment.figure(trials_of(results))):
                found.append(f"{drawn.relative_to(README.parent)} is not drawn from its results")
    return found


def write_generated() -> None:
    """Write every generated part and figure anew."""
    for paper in catalog.papers():
        for scale, results in recorded(paper).items():
            save_figure(experiment_of(paper).figure(trials_of(results)), figure_path(paper, scale))
            for path, text in exhibited(paper, results).items():
                path.write_text(text, encoding="utf-8")
    for path, text in generated_texts().items():
        path.write_text(text, encoding="utf-8")


def judge_all_again() -> None:
    """Judge all recorded trials anew and write the results files; say which verdicts changed.

    Raises:
        ResultsError: a claim tests something else than when it was recorded.
    """
    for paper in catalog.papers():
        for scale, results in recorded(paper).items():
            again = judge_again(experiment_of(paper), results)
            now = {claim["id"]: claim["verdict"] for claim in again["claims"]}
            for claim in results["claims"]:
                verdict = now.get(claim["id"], "no longer tried")
                if verdict != claim["verdict"]:
                    print(f"{paper.room}, {scale}: {claim['id']} was {claim['verdict']} and is {verdict}")
            write_results(paper.results(scale), again)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        problems = differences()
        print(
            "\n".join(problems) if problems else "generated text, figures and verdicts follow from the recorded trials"
        )
        sys.exit(bool(problems))
    if "--judge-again" in sys.argv[1:]:
        judge_all_again()
    write_generated()
