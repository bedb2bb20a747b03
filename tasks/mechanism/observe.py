"""Reporting: the one protocol by which work says how it goes, and who serves it.

A stage's run, a training child's stand-in for it, Prefect's page and MLflow's curves are told the same things by the
same calls. None of them can influence the result. A child's calls become lines of a file, which its parent reads and
turns back into calls.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tasks.mechanism.execution import Execution
from tasks.mechanism.progress import Progress

EVENTS_FILE = "events.jsonl"


class Bar(Protocol):
    """How far a long step has come; a context, since it ends with the step."""

    def __enter__(self) -> Self:
        """The step begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        """The step ended, well or not."""

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done."""

    def resume_at(self, done: float) -> None:
        """Say that an earlier run had done `done` units; they count for the share, not for the rate."""


class Reporter(Protocol):
    """Who is told how work goes."""

    def metric(self, name: str, value: float) -> None:
        """A final figure; of one name the last counts."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of the curves."""

    def rewind(self, step: int) -> None:
        """Points after `step` are void: they will be logged again."""

    def say(self, text: str) -> None:
        """One line for people."""

    def progress(self, description: str, total: float, unit: str) -> Bar:
        """A step of `total` units begins."""


class TrainingRun(Reporter, Protocol):
    """What a training job is given: whom it reports to, and where it works."""

    @property
    def out(self) -> Path:
        """Folder of the artifact; only the first process writes there."""

    @property
    def scratch(self) -> Path:
        """Folder that survives a crash."""

    @property
    def execution(self) -> Execution:
        """Where and how fast."""


class Silent:
    """A reporter that lets everything pass: all training processes but the first, and a stage that nobody watches."""

    def metric(self, name: str, value: float) -> None:
        """Ignore it."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore it."""

    def rewind(self, step: int) -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Ignore it."""

    def progress(self, description: str, total: float, unit: str) -> Progress:
        """Count, and show nobody."""
        return Progress(description, total, unit)


class Together:
    """Several reporters of one stage, told in order."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def metric(self, name: str, value: float) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.metric(name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.log(step, values)

    def rewind(self, step: int) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.rewind(step)

    def say(self, text: str) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.say(text)

    def progress(self, description: str, total: float, unit: str) -> "Bars":
        """Tell all."""
        return Bars([reporter.progress(description, total, unit) for reporter in self._reporters])


class Bars:
    """Several bars of one step."""

    def __init__(self, bars: Sequence[Bar]) -> None:
        self._bars = bars
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for bar in self._bars:
            self._open.enter_context(bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def advance(self, amount: float) -> None:
        """Move all."""
        for bar in self._bars:
            bar.advance(amount)

    def resume_at(self, done: float) -> None:
        """Move all."""
        for bar in self._bars:
            bar.resume_at(done)


class EventReader:
    """Reads an event file while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The events whose lines were completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._position)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Relay:
    """Turns a child's events back into calls."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._bar: Bar | None = None
        self.refusal = ""
        self.crash = ""
        self.done = False

    def take(self, event: dict[str, Any]) -> None:
        """Carry out one event."""
        kind, values = event["event"], event["values"]
        if kind in ("metric", "log", "rewind", "say"):
            getattr(self._reporter, kind)(*values)
        elif kind == "progress":
            self.close()
            # Left open: a child never says that a bar ends, its next one does.
            self._bar = self._reporter.progress(*values).__enter__()
        elif kind in ("advance", "resume_at") and self._bar is not None:
            getattr(self._bar, kind)(*values)
        elif kind == "refused":
            # The first of several processes counts: the others often fail because it did.
            self.refusal = self.refusal or values[0]
        elif kind == "crashed":
            self.crash = self.crash or values[0]
        elif kind == "done":
            self.done = True

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = None


class ChildRun:
    """A training job's run inside a child: every call becomes a line of the event file."""

    def __init__(self, out: Path, scratch: Path, execution: Execution) -> None:
        self.out, self.scratch, self.execution = out, scratch, execution
        # Appended, since all children write here; by lines, so that what a killed one said is there to its last.
        self._events = (scratch / EVENTS_FILE).open("a", buffering=1)

    def send(self, event: str, *values: object) -> None:
        """Write one event."""
        self._events.write(json.dumps({"event": event, "values": values}) + "\n")

    def metric(self, name: str, value: float) -> None:
        """See Reporter."""
        self.send("metric", name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Reporter."""
        self.send("log", step, dict(values))

    def rewind(self, step: int) -> None:
        """See Reporter."""
        self.send("rewind", step)

    def say(self, text: str) -> None:
        """See Reporter."""
        self.send("say", text)

    def progress(self, description: str, total: float, unit: str) -> "ChildBar":
        """See Reporter."""
        self.send("progress", description, total, unit)
        return ChildBar(self)


class ChildBar:
    """A progress bar that is drawn by the parent."""

    def __init__(self, run: ChildRun) -> None:
        self._run = run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to close: the parent does."""

    def advance(self, amount: float) -> None:
        """See Bar."""
        self._run.send("advance", amount)

    def resume_at(self, done: float) -> None:
        """See Bar."""
        self._run.send("resume_at", done)
