"""`allyouneed show`: a paper's note, lab report, code and verdicts."""

from allyouneed.cli.common import PaperName, console, fail, find, print_verdicts, short


def command(paper: PaperName) -> None:
    """Show a paper: its note, its lab report, where its code is, and the verdicts."""
    from rich.markdown import Markdown

    entry = find(paper)
    authors = ", ".join(entry.authors)
    console.print(
        f"[bold]{entry.number} · {entry.title}[/bold]\n{authors}, {entry.year} · {entry.link}\n{entry.idea}\n"
    )
    if entry.note is not None:
        console.print(Markdown(_without_html(entry.note.read_text(encoding="utf-8"))))
        console.print()
    readme = entry.folder / "readme.md"
    if not readme.is_file():
        console.print(f"The room {entry.room} is {entry.status}: there is no code and no experiment yet.")
        return
    console.print(Markdown(_without_html(readme.read_text(encoding="utf-8"))))
    console.print("\n[bold]Code[/bold]")
    for path in sorted(entry.folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        first = text.split('"""')[1].strip().splitlines()[0] if text.startswith('"""') else ""
        console.print(f"  {short(path)} ({len(text.splitlines())} lines): {first}")
    from allyouneed.evidence import ResultsError
    from allyouneed.library import recorded

    try:
        for results in recorded(entry).values():
            console.print()
            print_verdicts(results)
    except ResultsError as error:
        fail(error, 1)


def _without_html(markdown: str) -> str:
    """Leave out the comments that mark generated parts; a terminal would print them."""
    return "\n".join(line for line in markdown.splitlines() if not line.startswith("<!--"))
