"""Everything that people read goes through here: lines, tables, progress.

Results go to stdout (`say`, `table`); what is going on goes to stderr (`note`, `warn`, `progress`). While a run is
open all of it is copied into the run's log.txt.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_logs: list[TextIO] = []
_PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


def _log(text: str) -> None:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    for log in _logs:
        for line in text.splitlines() or [""]:
            log.write(f"{stamp} {line}\n")
        log.flush()


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except (
        OSError
    ):  # `tunesmith run … | head`, a terminal that went away: the work goes on, the log has every line
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str = "") -> None:
    """A result, on stdout."""
    _print(text, sys.stdout)
    _log(text)


def say_under(label: str, text: str) -> None:
    """A result beside a label of ten columns, no wider than the terminal."""
    for number, line in enumerate(text.splitlines() or [""]):
        say(wrapped(f"{'' if number else label:<9} {line}", indent=10))


def width() -> int:
    """Columns of the terminal that lines for people take: 60 to 100."""
    return max(60, min(100, shutil.get_terminal_size().columns))


def wrapped(text: str, indent: int) -> str:
    """Each line no wider than the terminal, and than 100 columns; what goes on stands `indent` columns in."""
    lines = [
        textwrap.wrap(
            line, width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    ]
    return "\n".join("\n".join(parts) for parts in lines)


def note(text: str) -> None:
    """What is going on, on stderr."""
    _print(text, sys.stderr)
    _log(text)


def warn(text: str) -> None:
    """Something the user should know though the work goes on."""
    note(f"warning: {text}")


def ask(question: str) -> bool | None:
    """A yes or a no from the terminal; None where there is nobody to ask."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout: first column left, numbers right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        first = values[0].ljust(widths[0])
        rest = [value.rjust(width) for value, width in zip(values[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    say("\n".join([title, line(columns), line(["-" * width for width in widths]), *map(line, cells)]))


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Copies every line into `path` (appended) while the block runs."""
    with path.open("a", encoding="utf-8") as log:
        _logs.append(log)
        try:
            yield
        finally:
            _logs.remove(log)


class Progress:
    """A count that grows, towards `total` where that is known (not 0).

    `update` takes figures (loss=…, tokens_per_second=…) that stand beside the bar.
    """

    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        self.label, self.total, self.done, self.unit = label, total, done, unit
        self._first, self._begin = done, time.monotonic()
        self._printed: int | None = None  # the count of the last line
        self._last = self._begin  # what takes less than the interval prints nothing
        self._figures: dict[str, object] = {}
        self._rich: RichProgress | None = None
        if sys.stderr.isatty():
            self._start_rich()

    def _start_rich(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._rich = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            transient=False,
        )
        self._task = self._rich.add_task(
            self.label, total=self.total or None, completed=self.done, figures=""
        )
        self._rich.start()

    def update(self, advance: int = 1, **figures: object) -> None:
        """Adds `advance` to the count and replaces the figures shown."""
        self.done += advance
        self._figures.update(figures)
        now = time.monotonic()
        if self._rich is not None:
            self._rich.update(self._task, advance=advance, figures=self._shown())
        elif now - self._last >= _PLAIN_EVERY:
            self._last, self._printed = now, self.done
            _print(self.line(), sys.stderr)

    def line(self) -> str:
        """The state as one plain line."""
        spent, made = time.monotonic() - self._begin, self.done - self._first
        left = f"{_clock(spent / made * (self.total - self.done))} left" if made and self.total else ""
        count = f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"
        unit = "" if self.unit == self.label else self.unit
        parts = [f"{self.label} {count} {unit}".rstrip(), left, self._shown()]
        return ", ".join(part for part in parts if part)

    def close(self) -> None:
        """Ends the bar; without a terminal the last state is printed as a line, unless it has been."""
        if self._rich is not None:
            self._rich.stop()
        elif self._printed not in (None, self.done):
            _print(self.line(), sys.stderr)
        _log(self.line())

    def _shown(self) -> str:
        def show(value: object) -> str:
            return f"{value:.4g}" if isinstance(value, float) else str(value)

        return ", ".join(f"{name.replace('_', ' ')} {show(value)}" for name, value in self._figures.items())


@contextmanager
def progress(label: str, total: int, done: int = 0, unit: str = "") -> Iterator[Progress]:
    """A progress bar on a terminal, a line every ten seconds elsewhere."""
    bar = Progress(label, total, done, unit)
    try:
        yield bar
    finally:
        bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
