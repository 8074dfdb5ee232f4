"""What several commands share: where they print, how they stop, and how a paper is named."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from allyouneed import catalog

console = Console(highlight=False)

PaperName = Annotated[str, typer.Argument(metavar="PAPER", help="Its number, room or alias: 19, alibi.")]


def fail(message: object, status: int = 2) -> NoReturn:
    """Print what is wrong to standard error, and end with this status."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"allyouneed: {message}", markup=False)
    raise typer.Exit(status)


def find(name: str) -> catalog.Paper:
    """Give the paper of this number, room or alias; end the command where there is none."""
    try:
        return catalog.find(name)
    except catalog.UnknownPaper as error:
        fail(error)


def print_verdicts(results: dict) -> None:
    """Print a table of verdicts."""
    from rich.markup import escape
    from rich.table import Table

    from allyouneed.evidence.wording import claim_rows

    colours = {"reproduced": "green", "contradicted": "red", "inconclusive": "yellow"}
    table = Table(title=f"{results['paper']}, {results['scale']}", title_justify="left", box=None, padding=(0, 2, 1, 0))
    for heading in ("claim", "paper", "ours", "verdict", "seeds"):
        table.add_column(heading, header_style="bold", ratio={"claim": 5, "paper": 3, "ours": 2}.get(heading))
    for row in claim_rows(results):
        verdict = f"[{colours[row.verdict]}]{row.verdict}[/]"
        table.add_row(escape(row.statement), escape(row.paper), row.ours, verdict, row.seeds)
    console.print(table)


def short(path: Path) -> str:
    """Give a path relative to the working directory where it lies under it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
