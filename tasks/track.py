"""The only place that knows MLflow: one run per pipeline run, a nested run per built stage, versions in the registry."""

from typing import Protocol

from tasks.runs import RunRecord, Status
from tasks.stage import Observer, Outcome, Silent


class Tracker(Protocol):
    """What a runner tells about a run as it goes."""

    def stage_observer(self, label: str) -> Observer:
        """Who watches the stage that is about to be built."""

    def stage_finished(self, outcome: Outcome) -> None:
        """A stage was built or served."""

    def finish(self, record: RunRecord, status: Status) -> None:
        """The run ended; `record` is complete but for its end."""


class Untracked:
    """A tracker that records nothing: for tests and for `--no-tracking`."""

    def stage_observer(self, label: str) -> Observer:
        """Nobody watches."""
        return Silent()

    def stage_finished(self, outcome: Outcome) -> None:
        """Ignore it."""

    def finish(self, record: RunRecord, status: Status) -> None:
        """Ignore it."""
