"""Runs that died together with their worker, so that nobody was left to say so: the server marks them crashed itself.

A run reports that it lives every HEARTBEAT_S. An automation on the server waits for the report; a run that misses a few
is *Crashed*. By then the lease of its training slot has ended too, so that a retry goes on from the last checkpoint.
Of a run whose last report no automation heard, `bessemer up` asks for another as it starts (unfinished.py).
"""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.events.schemas.automations import Automation, AutomationCore

AUTOMATION = "bessemer: runs that are gone"
FLOWS = ("bessemer", "ingest", "backfill", "backfill-date")
"""All flows that we have; a test holds this against the code."""
HEARTBEAT = "prefect.flow-run.heartbeat"
FOUND_SILENT = "bessemer.flow-run.found-silent"
HEARTBEAT_S = 30  # the least that Prefect allows
HEARTBEAT_ENVIRONMENT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}
PATIENCE_S = 90.0  # three reports, and longer than a training slot's lease (60 s)


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
    if seconds <= HEARTBEAT_S:  # an equal patience races with the report
        raise ValueError(
            f"BESSEMER_PATIENCE_S is {text}, but a run reports only every {HEARTBEAT_S} s, so every run would soon "
            f"count as gone. Choose more than {HEARTBEAT_S}."
        )
    return seconds


def lost_runs_automation() -> "AutomationCore":
    """After a heartbeat of one of our runs, or a question for one, another must follow, or its end; else it crashed."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

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
            after={HEARTBEAT, FOUND_SILENT},
            expect={HEARTBEAT, *ends},
            for_each={"prefect.resource.id"},  # a patience of its own for each run
            posture=Posture.Proactive,  # it acts when what it expects does not come
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


def renewed(found: "Automation") -> "AutomationCore | None":
    """What an automation of an earlier version must become; None where it watches what it should.

    The patience and whether it is enabled are left as they are: both are set on its page.
    """
    from prefect.events.schemas.automations import EventTrigger

    wanted, now = lost_runs_automation(), found.trigger
    if not isinstance(now, EventTrigger):
        return None  # somebody made another kind of automation of it
    trigger = wanted.trigger.model_copy(update={"within": now.within})
    if all(_watched(now, name) == _watched(trigger, name) for name in ("match_related", "after", "expect")):
        return None
    return wanted.model_copy(update={"trigger": trigger, "enabled": found.enabled})


def _watched(trigger: object, name: str) -> object:
    """A field of a trigger as the server would be told, in one order."""
    value = getattr(trigger, name)
    return value.model_dump() if hasattr(value, "model_dump") else sorted(value)
