"""How far a call is: a bar on a terminal, and a line now and then where there is none."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts what is answered, and shows it on standard error.

    Args:
        total: prompts.
        shown: whether it is shown; on a terminal alone where None.
    """

    def __init__(self, total: int, *, shown: bool | None = None):
        terminal = sys.stderr.isatty()
        self._shown = terminal if shown is None else shown
        self._total, self._done, self._kept, self._failed = total, 0, 0, 0
        self._last = time.monotonic()
        self._bar: Bar | None = None
        if self._shown and terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Bar(*columns, console=Console(stderr=True))

    def __enter__(self) -> "Progress":
        """Begin to show."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("asking", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End with what came of it."""
        if self._bar is not None:
            self._bar.stop()
        elif self._shown:
            self._line()

    def advance(self, count: int, *, from_store: bool = False, failed: bool = False) -> None:
        """Count prompts whose answer is there, or will not come."""
        self._done += count
        self._kept += count * from_store
        self._failed += count * failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=self._said())
        elif self._shown and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._line()

    def _said(self) -> str:
        said = [f"{self._kept} kept" if self._kept else "", f"{self._failed} failed" if self._failed else ""]
        return ", ".join(["asking", *filter(None, said)])

    def _line(self) -> None:
        self._last = time.monotonic()
        print(f"{self._said()}: {self._done} of {self._total} prompts", file=sys.stderr, flush=True)
