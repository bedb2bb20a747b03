"""What a runner tells about a run, whoever listens; knows nothing of MLflow."""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from tasks.mechanism.observe import Reporter, Silent
from tasks.mechanism.runs import RunRecord, Status
from tasks.mechanism.stage import Outcome
from tasks.mechanism.store import Store

Role = Literal["champion", "challenger"]

Report = Callable[[Store, RunRecord], Mapping[str, bytes]]
"""Makes the files that stay with a run that has ended, by name, such as `summary.md`."""


def no_report(store: Store, record: RunRecord) -> Mapping[str, bytes]:
    """No files."""
    return {}


class Tracker(Protocol):
    """What a runner tells about a run as it goes."""

    def begin(self, record: RunRecord) -> None:
        """The run starts; the tracker writes its own id of it into `record.tracking_run_id`."""

    def page(self) -> str:
        """The run's page below the address of the tracking server, "" where there is none; asked after `begin`."""

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

    def page(self) -> str:
        """There is none."""
        return ""

    def stage_observer(self, label: str) -> Reporter:
        """Nobody watches."""
        return Silent()

    def stage_finished(self, outcome: Outcome) -> None:
        """Ignore it."""

    def judged(self, digest: str, role: Role) -> None:
        """Ignore it."""

    def finish(self, record: RunRecord, status: Status) -> None:
        """Ignore it."""
