"""How far a long step has come, with rate and time left: live on a terminal, a line every ten seconds in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_INTERVAL_S = 10.0  # a log of an hour's stage stays within a few screens
_SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

# stdout belongs to what verbs print, which programs read with --json.
console = Console(stderr=True, highlight=False, soft_wrap=True)


def format_count(value: float) -> str:
    """A number for people: 1234567 -> '1.2M'."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}" if value % 1 else f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """A duration for people: 75 -> '1m15s'."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


class Progress:
    """Counts one long step and shows nothing; what shows it is a subclass."""

    def __init__(self, description: str, total: float, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0.0
        self._started = time.monotonic()
        self._already_done = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to close."""

    @property
    def rate(self) -> float:
        """Units per second since the start, not counting what was done before it."""
        return (self.done - self._already_done) / max(time.monotonic() - self._started, 1e-9)  # a clock may stand still

    @property
    def seconds_left(self) -> float:
        """At the rate so far; infinite while nothing is done."""
        return (self.total - self.done) / self.rate if self.rate > 0 else float("inf")

    @property
    def percent(self) -> float:
        """Of the total; all of nothing is 100."""
        return 100 * self.done / self.total if self.total else 100.0

    def resume_at(self, done: float) -> None:
        """Say that `done` units were finished by an earlier run; they count for the bar, not for the rate."""
        self._already_done = self.done = done

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done."""
        self.done += amount

    def line(self) -> str:
        """One line: share, count, rate and time left."""
        left = format_seconds(self.seconds_left) if self.seconds_left != float("inf") else "?"
        return (
            f"{self.description}: {self.percent:.0f}% of {format_count(self.total)} {self.unit}, "
            f"{format_count(self.rate)} {self.unit}/s, {left} left"
        )


class ConsoleProgress(Progress):
    """Progress as a person at the terminal, or a reader of its log, sees it."""

    def __init__(self, description: str, total: float, unit: str) -> None:
        super().__init__(description, total, unit)
        self._last_line = self._started
        self._bar = _live_bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done, and show it now and then."""
        super().advance(amount)
        if self._bar:
            self._bar.update(self._task, completed=self.done, speed=f"{format_count(self.rate)} {self.unit}/s")
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            console.print(f"  {self.line()}")


def _live_bar() -> RichProgress:
    return RichProgress(
        TextColumn("  {task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,  # gone once the step is over: a log keeps the stage's own lines
    )
