"""Tracking in MLflow: one run per pipeline run, a nested run per built stage, versions of one model in the registry.

Nothing here may fail or hold up a run that trains. A tracking server that is down at the start is refused, since a
person would look for the run there; one that goes away later is caught up with, from manifests and kept curves.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from tasks.mechanism.execution import NO_TRACKING, Execution
from tasks.mechanism.observe import Reporter, Silent
from tasks.mechanism.runs import RunRecord, Status
from tasks.mechanism.stage import Outcome
from tasks.mechanism.store import Store

__all__ = ["Report", "Role", "Tracker", "Untracked", "assign_role", "open_tracker"]

Role = Literal["champion", "challenger"]


class Tracker(Protocol):
    """What a runner tells about a run as it goes."""

    def begin(self, record: RunRecord) -> None:
        """The run starts; the tracker writes its own id of it into `record.tracking_run_id`."""

    def stage_observer(self, label: str) -> Reporter:
        """Who watches the stage that is about to be built."""

    def stage_finished(self, outcome: Outcome) -> None:
        """A stage was built or served."""

    def judged(self, digest: str, role: Role) -> None:
        """The gate made the model with this digest the champion, or left it a challenger."""

    def finish(self, record: RunRecord, status: Status) -> None:
        """The run ended; `record` is complete."""


class Untracked:
    """A tracker that records nothing: for tests and for `--no-tracking`."""

    def begin(self, record: RunRecord) -> None:
        """Ignore it."""

    def stage_observer(self, label: str) -> Reporter:
        """Nobody watches."""
        return Silent()

    def stage_finished(self, outcome: Outcome) -> None:
        """Ignore it."""

    def judged(self, digest: str, role: Role) -> None:
        """Ignore it."""

    def finish(self, record: RunRecord, status: Status) -> None:
        """Ignore it."""


Report = Callable[[Store, RunRecord], Mapping[str, bytes]]
"""Makes the files that stay with a run that has ended, by name, such as `summary.md`."""


def no_report(store: Store, record: RunRecord) -> Mapping[str, bytes]:
    """No files."""
    return {}


def open_tracker(execution: Execution, report: Report = no_report) -> Tracker:
    """A tracker that writes to `execution.tracking_uri`, by default to SQLite and a folder under the home.

    Raises:
        ValueError: the server does not answer.
    """
    if execution.tracking_uri == NO_TRACKING:
        return Untracked()
    from tasks.track.connection import connect
    from tasks.track.tracker import MlflowTracker

    return MlflowTracker(connect(execution), execution, report)


def assign_role(execution: Execution, recipe_name: str, digest: str, role: Role) -> None:
    """Point the registry's alias at the version with these bytes, outside of any run.

    Raises:
        ValueError: the server does not answer, or refuses.
    """
    if execution.tracking_uri == NO_TRACKING:
        return
    from tasks.track.connection import connect
    from tasks.track.registry import set_role

    set_role(connect(execution), recipe_name, digest, role)
