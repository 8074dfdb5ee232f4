"""The command `allyouneed`. What a command needs is imported inside it, so that `list` answers at once."""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from allyouneed import catalog

if TYPE_CHECKING:
    from allyouneed.evidence import Experiment, Run
    from allyouneed.hub import StoredModel
    from allyouneed.text import LocalChat, Tokenizer
    from allyouneed.text.terminal import Terminal

app = typer.Typer(
    help="Fifty-one language-model papers as code, each with its claims tried on real data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)

# Small enough to answer at reading speed on one core, and free to be had.
_CHAT_MODEL = "smollm2-135m-instruct"

_COMPILE = "Compute tokens by compiled code: faster, where there is a C++ compiler; its work is kept."

PaperName = Annotated[str, typer.Argument(metavar="PAPER", help="Its number, room or alias: 19, alibi.")]


def _fail(message: object, status: int = 2) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"allyouneed: {message}", markup=False)
    raise typer.Exit(status)


def _find(name: str) -> catalog.Paper:
    try:
        return catalog.find(name)
    except catalog.UnknownPaper as error:
        _fail(error)


@app.command("list")
def list_papers(
    family: Annotated[str | None, typer.Option(help="Only the papers of one family.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every field.")] = False,
) -> None:
    """List the papers."""
    if family is not None and family not in catalog.families():
        _fail(f'unknown family "{family}"; there are {", ".join(catalog.families())}')
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


@app.command()
def show(paper: PaperName) -> None:
    """Show a paper: its note, its lab report, where its code is, and the verdicts."""
    from rich.markdown import Markdown

    entry = _find(paper)
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
        console.print(f"  {_short(path)} ({len(text.splitlines())} lines): {first}")
    from allyouneed.evidence import ResultsError
    from allyouneed.library import recorded

    try:
        for results in recorded(entry).values():
            console.print()
            _print_verdicts(results)
    except ResultsError as error:
        _fail(error, 1)


@app.command()
def run(
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
        _fail(f'unknown scale "{scale}"; there are {", ".join(SCALES)}')
    changes = dict(_setting(text) for text in settings or [])
    if len(changes) < len(settings or []):
        _fail(f"a key is set twice in {', '.join(settings or [])}")
    if record and (changes or seeds or precision or pilot or scale == "smoke"):
        _fail("--record keeps what the experiment declares: not with --set, --seeds, --precision, --pilot or smoke")
    from allyouneed.library import NoExperiment, experiment_of

    entries = [_find(name) for name in papers]
    try:
        experiments = [experiment_of(entry) for entry in entries]
    except NoExperiment as error:
        _fail(error)
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
        _fail(f'"{text}" is no setting: write --set KEY=VALUE')
    return key.strip(), value.strip()


def _require_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if device not in ("cuda", "mps"):
        _fail(f'unknown device "{device}"; there are cpu, cuda and mps')
    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if not there:
        _fail(f"there is no {device} device here; `allyouneed doctor` shows what there is")


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
        _fail(error)
    except OSError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        again = shlex.join(["allyouneed", *(argument for argument in sys.argv[1:] if argument != "--fresh")])
        _fail(f"stopped; finished trials are kept. To go on: {again}", 130)


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
        _print_verdicts(contents)
    figure = run.folder / "figure.svg"
    page = run.folder / "report.html"
    try:
        save_figure(run.experiment.figure(run.trials), figure)
        page.write_text(report([library.entry(entry, contents, figure.read_text(encoding="utf-8"))]), encoding="utf-8")
    except OSError as error:
        _fail(f"the trials are kept in {run.folder}, but the page could not be written: {error}", 1)
    console.print(f"figure: {figure}\npage:   {page}", soft_wrap=True)
    if not record:
        return
    try:
        write_results(entry.results(run.scale_name), recorded(run))
        library.write_generated()
    except (ResultsError, OSError) as error:
        _fail(error, 1)
    console.print(f"recorded: {_short(entry.results(run.scale_name))}")


@app.command("report")
def report_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the page.")] = Path("report.html"),
) -> None:
    """Write one self-contained page of all recorded results."""
    from allyouneed.evidence import ResultsError
    from allyouneed.evidence.report import report
    from allyouneed.library import recorded_entries

    try:
        output.write_text(report(recorded_entries()), encoding="utf-8")
    except (ResultsError, OSError) as error:
        _fail(error, 1)
    console.print(f"page: {output.resolve()}", soft_wrap=True)


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="ASSET…", help="Data sets and models.")] = None,
) -> None:
    """Fetch data sets and models into the cache; without a name, list those that there are."""
    from allyouneed.data import ASSETS, AssetError, is_present
    from allyouneed.data import fetch as fetch_asset

    if not names:
        for asset in ASSETS.values():
            console.print(f"{asset.name}: {asset.about} [dim]{'present' if is_present(asset) else 'not fetched'}[/dim]")
        return
    for name in names:
        if name not in ASSETS:
            _fail(f'unknown asset "{name}"; there are {", ".join(ASSETS)}')
    for name in names:
        try:
            with console.status(name) as status:
                folder = fetch_asset(name, report=lambda text: status.update(text))
        except AssetError as error:
            _fail(error, 1)
        console.print(f"{name}: {folder}", soft_wrap=True)


@app.command()
def chat(
    model: Annotated[
        str, typer.Option("--model", "-m", help="An asset, a folder, a GGUF file or a hub repository.")
    ] = _CHAT_MODEL,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this probability together.")] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, repetition becomes rarer.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all draws; the same talk with the same seed gives the same text.")] = 0,
    system: Annotated[str | None, typer.Option(help="A first message that says how to answer.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4: faster, in less memory.")] = None,
    new_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 512,
    compile: Annotated[bool, typer.Option("--compile", help=_COMPILE)] = False,
) -> None:
    """Talk with a language model: Ctrl-C stops an answer, Ctrl-D leaves. Reads lines where it is fed by a pipe."""
    from allyouneed.text import Sampling
    from allyouneed.text.terminal import Terminal, converse

    try:
        sampling = Sampling(temperature, top_p=top_p, repetition_penalty=repetition_penalty)
        if quantize not in (None, "int8", "int4"):
            raise ValueError(f"quantize is {quantize!r}; it must be 'int8' or 'int4'")
        if seed < 0 or new_tokens < 1:
            raise ValueError(f"seed {seed} must be at least 0, and new_tokens {new_tokens} at least 1")
    except ValueError as error:
        _fail(error)
    terminal = Terminal()
    chatting = _open_chat(model, quantize, terminal)
    if compile:
        _compile(chatting.model, terminal.say)
    terminal.say(f"{model}: Ctrl-C stops an answer, Ctrl-D leaves.")
    if model == _CHAT_MODEL:
        terminal.say(
            "A small model: it writes fluent English, rewrites and sums up short texts, and answers simple questions. "
            "Facts, arithmetic and code are often wrong, however sure it sounds; do not rely on them."
        )
    converse(chatting, terminal, system=system, sampling=sampling, seed=seed, new_tokens=new_tokens)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An asset, a folder, a GGUF file or a hub repository.")],
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="This machine's own address, so that no other machine reaches it.")] = (
        "127.0.0.1"
    ),
    api_key: Annotated[
        str | None, typer.Option(envvar="ALLYOUNEED_API_KEY", help="What clients must send; anyone may ask without.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model; MODEL where not given.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4: less memory, faster for few at a time.")] = None,
    max_num_sequences: Annotated[int, typer.Option(help="How many are generated at once.")] = 16,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; further ones are refused.")] = 256,
    cache: Annotated[int, typer.Option(metavar="MB", help="Memory for keys and values.")] = 512,
    seconds: Annotated[float, typer.Option(help="The longest that a request may take.")] = 300.0,
    finish_seconds: Annotated[float, typer.Option(help="How long answers may go on after Ctrl-C or SIGTERM.")] = 30.0,
    speculate: Annotated[str | None, typer.Option(help="ngram: propose what followed the same words before.")] = None,
    threads: Annotated[int, typer.Option(help="Of the model's computations.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help=_COMPILE)] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A site whose pages may use the server, * for all; may be repeated."),
    ] = None,
) -> None:
    """Serve a language model on this machine, as OpenAI's API does: chats and completions, also as streams."""
    try:
        from allyouneed.papers.serving.connections import make_server  # noqa: F401
        from allyouneed.papers.serving.serve import ServeConfig
        from allyouneed.papers.serving.serve import serve as serve_model
    except ImportError as error:
        _fail(f"{error.name} is missing: `pip install 'allyouneed[serve]'` installs what a server needs")
    from allyouneed.data import AssetError
    from allyouneed.hub import open_model

    say = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
    try:
        if quantize not in (None, "int8", "int4"):
            raise ValueError(f"quantize is {quantize!r}; it must be 'int8' or 'int4'")
        config = ServeConfig(
            host,
            port,
            api_key,
            max_num_sequences,
            max_queue,
            cache,
            seconds,
            finish_seconds,
            speculate=speculate,
            threads=threads,  # pyright: ignore[reportArgumentType]
            cors=tuple(cors or ()),
        )
        say(f"loading {model} …")
        stored = open_model(model)
        loaded, tokenizer, variables, stop = _load(stored, quantize)
        if compile:
            _compile(loaded, say)
        serve_model(
            loaded,
            tokenizer,
            name=name or model,
            chat_template=stored.chat_template,
            variables=variables,
            stop=stop,
            config=config,
            say=say,
        )
    except (ValueError, FileNotFoundError) as error:
        _fail(error)
    except (AssetError, OSError) as error:
        _fail(error, 1)


def _load(stored: "StoredModel", quantize: str | None) -> tuple[Any, "Tokenizer", dict[str, str], list[int]]:
    """Load a model with its tokenizer, what its template may use, and the tokens that end its texts."""
    from allyouneed.loading import load_opened
    from allyouneed.text import end_tokens

    loaded, tokenizer = load_opened(stored, quantize=quantize)  # pyright: ignore[reportArgumentType]
    return loaded, tokenizer, dict(tokenizer.special_tokens_map), list(end_tokens(loaded, tokenizer))


def _compile(model: Any, say: Callable[[str], object]) -> None:
    """Let a model compute single tokens by compiled code where that can be, and say what came of it."""
    from allyouneed.nn import compile_decoder

    say(str(compile_decoder(model)))


def _open_chat(name: str, quantize: str | None, terminal: "Terminal") -> "LocalChat":
    """Load a model with its tokenizer and chat template."""
    from allyouneed.data import AssetError
    from allyouneed.hub import open_model
    from allyouneed.loading import load_chat

    try:
        terminal.say(f"loading {name} …")
        stored = open_model(name)
        if stored.chat_template is None:
            _fail(f"{name} has no chat template: it was not made for conversations. Choose one that was: {_CHAT_MODEL}")
        return load_chat(stored, quantize=quantize)  # pyright: ignore[reportArgumentType]
    except (ValueError, FileNotFoundError) as error:
        _fail(error)
    except (AssetError, OSError) as error:
        _fail(error, 1)


@app.command()
def doctor() -> None:
    """Say what this installation has, what is missing, and how to get it."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch
    from rich.table import Table

    from allyouneed.data import ASSETS, cache_folder, is_present
    from allyouneed.evidence import runs_folder, usable_cores

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("python", platform.python_version())
    for package in ("allyouneed", "torch", "lightning-fabric", "safetensors", "tokenizers", "scipy", "joblib"):
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "missing: `pip install .` in the repository installs it")
    table.add_row("cores", f"{usable_cores()}: so many trials run at a time, each with one thread")
    table.add_row(
        "threads",
        f"{torch.get_num_threads()} in this process; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
    )
    if torch.cuda.is_available():
        gpus = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        table.add_row("gpu", f"{gpus}: --device cuda")
    else:
        table.add_row("gpu", "none that torch can use; every laptop experiment runs without one")
    table.add_row("cache", f"{cache_folder()} (set ALLYOUNEED_CACHE to move it)")
    table.add_row("runs", f"{runs_folder()} (set ALLYOUNEED_RUNS to move it)")
    for asset in ASSETS.values():
        state = "present" if is_present(asset) else f"not fetched: `allyouneed fetch {asset.name}`"
        table.add_row(asset.name, state)
    works = [paper.room for paper in catalog.papers() if paper.status == "works"]
    table.add_row("rooms", f"{len(works)} of {len(catalog.papers())} work: {', '.join(works)}")
    console.print(table)


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


def _print_verdicts(results: dict) -> None:
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


def _short(path: Path) -> str:
    """Give a path relative to the working directory where it lies under it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _without_html(markdown: str) -> str:
    """Leave out the comments that mark generated parts; a terminal would print them."""
    return "\n".join(line for line in markdown.splitlines() if not line.startswith("<!--"))


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
