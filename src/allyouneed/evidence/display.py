"""The progress of a run on a terminal: one bar an arm, with the current loss and the time left."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .runner import Progress as RunProgress


@contextlib.contextmanager
def display(console: Console) -> Iterator[Callable[[RunProgress], None]]:
    """Give what a run calls with its progress. Where the output is no terminal, print a plain line for each trial."""
    if not console.is_terminal:
        yield _lines(console)
        return
    latest: list[RunProgress] = []
    bars: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # A trial in this process sends sys.stdout to its log, and the bars must not follow it there.
    terminal = Console(file=console.file, force_terminal=True)
    with Progress(*columns, console=terminal) as shown:

        def draw() -> None:
            if not latest:
                return
            for arm in dict.fromkeys(task.arm for task in latest[0].tasks):
                done, total, loss = latest[0].of_arm(arm)
                note = f"{int(done)}/{total} trials" + (f", loss {loss:.3f}" if loss is not None else "")
                if arm not in bars:
                    bars[arm] = shown.add_task(arm, total=total, note=note)
                shown.update(bars[arm], completed=done, note=note)

        stop = threading.Event()

        def poll() -> None:
            while not stop.wait(0.5):
                draw()

        poller = threading.Thread(target=poll, daemon=True)
        poller.start()
        try:
            yield lambda progress: latest.__setitem__(slice(None), [progress])
            draw()
        finally:
            stop.set()
            poller.join()


def _lines(console: Console) -> Callable[[RunProgress], None]:
    def say(progress: RunProgress) -> None:
        if not progress.records:
            console.print(f"{len(progress.tasks)} trials")
            return
        record = progress.records[-1]
        took = f"{record.result.seconds:.0f} s" if record.result is not None else record.error
        kept = ", kept from an earlier run" if record.reused else ""
        count = f"{len(progress.records)}/{len(progress.tasks)}"
        console.print(f"{count} {record.arm}, seed {record.seed}: {record.status}, {took}{kept}", markup=False)

    return say
