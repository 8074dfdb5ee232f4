"""`allyouneed list`: the papers, as a table or as JSON."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console

from allyouneed import catalog
from allyouneed.cli.common import console, fail


def command(
    family: Annotated[str | None, typer.Option(help="Only the papers of one family.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every field.")] = False,
) -> None:
    """List the papers."""
    if family is not None and family not in catalog.families():
        fail(f'unknown family "{family}"; there are {", ".join(catalog.families())}')
    papers = [paper for paper in catalog.papers() if family in (None, paper.family)]
    if as_json:
        plain = [dataclasses.asdict(paper) | {"status": paper.status} for paper in papers]
        print(json.dumps(plain, indent=1, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    table.add_column("", justify="right", min_width=2)
    table.add_column("room", no_wrap=True, min_width=max(len(paper.room) for paper in papers))
    table.add_column("paper", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("year", min_width=4)
    table.add_column("status", min_width=len("planned"))
    for paper in papers:
        style = None if paper.status == "works" else "dim"
        table.add_row(str(paper.number), paper.room, paper.title, str(paper.year), paper.status, style=style)
    # Titles are cut to the terminal; whatever reads a pipe gets them whole.
    (console if console.is_terminal else Console(width=160)).print(table)
