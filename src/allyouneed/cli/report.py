"""`allyouneed report`: one page of all recorded results."""

from pathlib import Path
from typing import Annotated

import typer

from allyouneed.cli.common import console, fail


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the page.")] = Path("report.html"),
) -> None:
    """Write one self-contained page of all recorded results."""
    from allyouneed.evidence import ResultsError
    from allyouneed.evidence.report import report
    from allyouneed.library import recorded_entries

    try:
        output.write_text(report(recorded_entries()), encoding="utf-8")
    except (ResultsError, OSError) as error:
        fail(error, 1)
    console.print(f"page: {output.resolve()}", soft_wrap=True)
