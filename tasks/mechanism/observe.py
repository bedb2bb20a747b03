"""What a training job is given, wherever it runs: the stage's own run, or a child's stand-in for it.

A child's calls become lines of a file, which its parent reads and turns back into calls.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tasks.mechanism.execution import Execution

EVENTS_FILE = "events.jsonl"


class Bar(Protocol):
    """A progress bar."""

    def advance(self, amount: float) -> None:
        """Count more units as done."""

    def resume_at(self, done: float) -> None:
        """Say how much an earlier run had done."""


class TrainingRun(Protocol):
    """What a training job is given: the stage's run itself, or a child's stand-in for it."""

    @property
    def out(self) -> Path:
        """Folder of the artifact; only the first process writes there."""

    @property
    def scratch(self) -> Path:
        """Folder that survives a crash."""

    @property
    def execution(self) -> Execution:
        """Where and how fast."""

    def metric(self, name: str, value: float) -> None:
        """A final figure."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point of the curves."""

    def rewind(self, step: int) -> None:
        """Points after `step` are void."""

    def say(self, text: str) -> None:
        """One line for people."""

    def progress(self, description: str, total: float, unit: str) -> AbstractContextManager[Bar]:
        """A progress bar."""


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
    """Turns events back into calls."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._open: AbstractContextManager[Bar] | None = None
        self._bar: Bar | None = None
        self.refusal = ""
        self.crash = ""
        self.done = False

    def take(self, event: dict[str, Any]) -> None:
        """Carry out one event."""
        kind, values = event["event"], event["values"]
        if kind in ("metric", "log", "rewind", "say"):
            getattr(self._run, kind)(*values)
        elif kind == "progress":
            self.close()
            self._open = self._run.progress(*values)
            self._bar = self._open.__enter__()
        elif kind in ("advance", "resume_at") and self._bar is not None:
            getattr(self._bar, kind)(*values)
        elif kind == "refused":
            self.refusal = self.refusal or values[0]
        elif kind == "crashed":
            self.crash = self.crash or values[0]
        elif kind == "done":
            self.done = True

    def close(self) -> None:
        """End the progress bar."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = self._bar = None


class ChildRun:
    """A training job's run inside a child: every call becomes a line of the event file."""

    def __init__(self, out: Path, scratch: Path, execution: Execution) -> None:
        self.out, self.scratch, self.execution = out, scratch, execution
        self._events = (scratch / EVENTS_FILE).open("a", buffering=1)

    def send(self, event: str, *values: object) -> None:
        """Write one event."""
        self._events.write(json.dumps({"event": event, "values": values}) + "\n")

    def metric(self, name: str, value: float) -> None:
        """See TrainingRun."""
        self.send("metric", name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See TrainingRun."""
        self.send("log", step, dict(values))

    def rewind(self, step: int) -> None:
        """See TrainingRun."""
        self.send("rewind", step)

    def say(self, text: str) -> None:
        """See TrainingRun."""
        self.send("say", text)

    def progress(self, description: str, total: float, unit: str) -> "ChildBar":
        """See TrainingRun."""
        self.send("progress", description, total, unit)
        return ChildBar(self)


class ChildBar:
    """A progress bar that is drawn by the parent."""

    def __init__(self, run: ChildRun) -> None:
        self._run = run

    def __enter__(self) -> "ChildBar":
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
