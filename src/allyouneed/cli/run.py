"""`allyouneed run`: experiments under a display of their progress, their verdicts, and what is recorded."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allyouneed import catalog
from allyouneed.cli.common import console, fail, find, print_verdicts, short

if TYPE_CHECKING:
    from allyouneed.evidence import Experiment, Run


def command(
    papers: Annotated[list[str], typer.Argument(metavar="PAPER…", help="Numbers, rooms or aliases.")],
    scale: Annotated[str, typer.Option(help="smoke (seconds), laptop (minutes) or gpu.")] = "laptop",
    seeds: Annotated[int | None, typer.Option(help="Seeds an arm, in place of the scale's own number.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change every arm's configuration.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes at a time; as many as cores where not given.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, in place of the scale's own.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true or bf16-mixed, in place of the scale's own.")] = None,
    fresh: Annotated[bool, typer.Option(help="Throw away earlier trials of this configuration.")] = False,
    record: Annotated[bool, typer.Option(help="Write results/ in the room and the text generated from them.")] = False,
    pilot: Annotated[
        bool, typer.Option(help="Try other seeds than recorded runs have, and say how fine the claims' tests measure.")
    ] = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="The least time between a trial's checkpoints.")] = 60.0,
) -> None:
    """Run experiments, and say whether the papers' claims hold.

    Finished trials are kept: an interrupted run goes on where it was.
    """
    from allyouneed.evidence import SCALES

    if scale not in SCALES:
        fail(f'unknown scale "{scale}"; there are {", ".join(SCALES)}')
    changes = dict(_setting(text) for text in settings or [])
    if len(changes) < len(settings or []):
        fail(f"a key is set twice in {', '.join(settings or [])}")
    if record and (changes or seeds or precision or pilot or scale == "smoke"):
        fail("--record keeps what the experiment declares: not with --set, --seeds, --precision, --pilot or smoke")
    from allyouneed.library import NoExperiment, experiment_of

    entries = [find(name) for name in papers]
    try:
        experiments = [experiment_of(entry) for entry in entries]
    except NoExperiment as error:
        fail(error)
    failed = False
    for entry, experiment in zip(entries, experiments, strict=True):
        _require_device(device or experiment.scales[scale].device)
        finished = _run_one(
            entry,
            experiment,
            scale,
            seeds=seeds,
            settings=changes,
            workers=workers,
            device=device,
            precision=precision,
            fresh=fresh,
            pilot=pilot,
            checkpoint_seconds=checkpoint_seconds,
        )
        failed |= bool(finished.failures)
        _finish(entry, finished, record)
    if failed:
        raise typer.Exit(1)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        fail(f'"{text}" is no setting: write --set KEY=VALUE')
    return key.strip(), value.strip()


def _require_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if device not in ("cuda", "mps"):
        fail(f'unknown device "{device}"; there are cpu, cuda and mps')
    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if not there:
        fail(f"there is no {device} device here; `allyouneed doctor` shows what there is")


def _run_one(entry: catalog.Paper, experiment: "Experiment", scale: str, **options: Any) -> "Run":
    """Run one experiment under a display of its progress."""
    from allyouneed.evidence import SettingError
    from allyouneed.evidence import run as run_experiment
    from allyouneed.evidence.display import display

    console.print(f"[bold]{entry.number} · {entry.title}[/bold], {scale}")
    try:
        with display(console) as watch:
            return run_experiment(
                experiment,
                scale,  # pyright: ignore[reportArgumentType]
                **options,
                watch=watch,
            )
    except (SettingError, ValueError) as error:
        fail(error)
    except OSError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        again = shlex.join(["allyouneed", *(argument for argument in sys.argv[1:] if argument != "--fresh")])
        fail(f"stopped; finished trials are kept. To go on: {again}", 130)


def _finish(entry: catalog.Paper, run: "Run", record: bool) -> None:
    """Print the verdicts, write figure and page, and record the results where asked."""
    from allyouneed import library
    from allyouneed.evidence import ResultsError, save_figure, write_results
    from allyouneed.evidence import record as recorded
    from allyouneed.evidence.report import report

    for failure in run.failures:
        console.print(
            f"failed: {failure.arm}, seed {failure.seed}: {failure.error}\n  log: {failure.log}", markup=False
        )
    if not run.trials:
        console.print("No trial finished: there is nothing to judge.")
        return
    contents = recorded(run, complete=False)
    if run.is_pilot:
        _print_resolutions(run)
    elif run.scale_name == "smoke":
        ran = "Some trials failed" if run.failures else "Every line ran"
        console.print(f"{ran}; at this scale no verdict is drawn.")
    else:
        print_verdicts(contents)
    figure = run.folder / "figure.svg"
    page = run.folder / "report.html"
    try:
        save_figure(run.experiment.figure(run.trials), figure)
        page.write_text(report([library.entry(entry, contents, figure.read_text(encoding="utf-8"))]), encoding="utf-8")
    except OSError as error:
        fail(f"the trials are kept in {run.folder}, but the page could not be written: {error}", 1)
    console.print(f"figure: {figure}\npage:   {page}", soft_wrap=True)
    if not record:
        return
    try:
        write_results(entry.results(run.scale_name), recorded(run))
        library.write_generated()
    except (ResultsError, OSError) as error:
        fail(error, 1)
    console.print(f"recorded: {short(entry.results(run.scale_name))}")


def _print_resolutions(run: "Run") -> None:
    """Print how fine each claim's test measures, by a pilot."""
    from rich.markup import escape
    from rich.table import Table

    from allyouneed.evidence.wording import resolution_rows

    table = Table("claim", "measured", "half-width", "from the bound", "fine enough", title="what the pilot promises")
    for row in resolution_rows(run.experiment.claims, run.findings()):
        table.add_row(*map(escape, row))
    console.print(table)
    console.print("Fine enough is a half-width of at most half the distance to the nearest bound. No verdict is drawn.")
