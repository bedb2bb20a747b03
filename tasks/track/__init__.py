"""Tracking in MLflow: one run per pipeline run, a nested run per built stage, versions of one model in the registry.

Nothing here may fail or hold up a run that trains. A tracking server that is down at the start is refused, since a
person would look for the run there; one that goes away later is caught up with, from manifests and kept curves.
"""

from tasks.mechanism.execution import NO_TRACKING, Execution
from tasks.track.protocol import Report, Role, Tracker, Untracked, no_report

__all__ = ["Tracker", "Untracked", "assign_role", "open_tracker"]


def open_tracker(execution: Execution, report: Report = no_report) -> Tracker:
    """A tracker that writes to `execution.tracking_uri`, by default to SQLite and a folder under the home.

    Raises:
        ValueError: the server does not answer.
    """
    if execution.tracking_uri == NO_TRACKING:
        return Untracked()
    # Not at the top: MLflow takes 2 s to import, which `--no-tracking` and every other verb would wait for.
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
