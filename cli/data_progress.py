"""How far a command over many rows is: a bar in a terminal, a line now and then elsewhere; both on standard error."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 5.0


class Progress:
    """`with Progress("filter", total) as progress: progress.advance(1, "12 kept")`."""

    def __init__(self, what: str, total: int, *, plain: bool) -> None:
        console = Console(stderr=True, highlight=False)
        self._what = what
        self._total = total
        self._done = 0
        self._started_s = self._said_s = time.monotonic()
        self._bar: Bar | None = None
        if console.is_terminal and not plain:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def advance(self, count: int, note: str) -> None:
        """So many more rows are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note)
        elif time.monotonic() - self._said_s >= LINE_EVERY_S:
            self._said_s = time.monotonic()
            print(
                f"{self._what}: {self._done} of {self._total}, {note}, {self._left()} left", file=sys.stderr, flush=True
            )

    def _left(self) -> str:
        elapsed_s = time.monotonic() - self._started_s
        left_s = elapsed_s * (self._total - self._done) / self._done if self._done else 0.0
        return f"{left_s / 60:.0f} min" if left_s >= 120 else f"{left_s:.0f} s"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
