"""Runs that died together with their worker, so that nobody was left to say so: the server marks them crashed itself.

A run reports that it lives every HEARTBEAT_S. An automation on the server waits for the report; a run that misses a few
is *Crashed*. By then the lease of its training slot has ended too, so that a retry goes on from the last checkpoint.
"""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore

AUTOMATION = "bessemer: runs that are gone"
FLOWS = ("bessemer", "ingest")
HEARTBEAT_S = 30  # the least that Prefect allows
HEARTBEAT_ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}
PATIENCE_S = 90.0


def patience_s() -> float:
    """Seconds without a heartbeat after which a run counts as gone: BESSEMER_PATIENCE_S, else three heartbeats.

    Raises:
        ValueError: it is no number, or a live run could miss it.
    """
    text = os.environ.get("BESSEMER_PATIENCE_S", str(PATIENCE_S))
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"BESSEMER_PATIENCE_S is {text!r}; it must be a number of seconds.") from None
    if seconds <= HEARTBEAT_S:
        raise ValueError(
            f"BESSEMER_PATIENCE_S is {text}, but a run reports only every {HEARTBEAT_S} s, so every run would soon "
            f"count as gone. Choose more than {HEARTBEAT_S}."
        )
    return seconds


def lost_runs_automation() -> "AutomationCore":
    """After a heartbeat of one of our runs, another must follow, or its end; else the run is crashed."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    heartbeat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    seconds = patience_s()
    return AutomationCore(
        name=AUTOMATION,
        description=f"Marks a run as crashed that gave no heartbeat for {seconds:.0f} s: it and its worker are gone.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
            ),
            after={heartbeat},
            expect={heartbeat, *ends},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {seconds:.0f} s: the run's process and its worker are gone. Retry goes on "
                "from the last checkpoint.",
            )
        ],
    )
