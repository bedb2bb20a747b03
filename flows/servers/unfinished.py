"""Runs that began before these servers did and have been silent since: each is asked whether it still lives.

The automation for lost runs hears reports only while it runs. It misses the last one of a run that was killed together
with its server: by a power cut, or a `kill -9` of `bessemer run`, whose server lives as long as the run.
"""

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from flows.servers.lost_runs import FLOWS, FOUND_SILENT, HEARTBEAT, patience_s
from flows.servers.notify import credentials

TIMEOUT_S = 10.0
BEGUN = ("PENDING", "RUNNING", "CANCELLING")


def ask_for_signs_of_life(prefect_api: str) -> int:
    """Ask every silent run; those that do not answer within the automation's patience are crashed. Returns how many.

    A run that reported lately is left alone. It may be one of `bessemer run` whose server is its own, on the same
    database: its reports are written down there, but no automation of ours hears them.
    """
    silent = list(silent_runs(prefect_api))
    if silent:
        _post(f"{prefect_api}/events", [_question(run, flow) for run, flow in silent])
    return len(silent)


def silent_runs(prefect_api: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(run, name of its flow) of each run that began, did not end, and has not reported within the patience."""
    for flow in FLOWS:
        wanted = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"any_": BEGUN}}}}
        for run in _post(f"{prefect_api}/flow_runs/filter", wanted):
            # A question for each run, but only the few that began and did not end are asked about.
            if not _reported(prefect_api, run["id"]):
                yield run, flow


def _reported(prefect_api: str, run_id: str) -> bool:
    since = datetime.now(UTC) - timedelta(seconds=patience_s())
    wanted = {
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{run_id}"]},
        "occurred": {"since": since.isoformat()},
    }
    return bool(_post(f"{prefect_api}/events/filter", {"filter": wanted, "limit": 1})["events"])


def _question(run: dict[str, Any], flow: str) -> dict[str, Any]:
    """The event after which the automation expects a heartbeat of this run; it tells our flows by the related one."""
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": FOUND_SILENT,
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run['id']}", "prefect.resource.name": run["name"]},
        "related": [
            {
                "prefect.resource.id": f"prefect.flow.{run['flow_id']}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": flow,
            }
        ],
    }


def _post(address: str, body: Any) -> Any:
    request = urllib.request.Request(
        address, data=json.dumps(body).encode(), headers={"Content-Type": "application/json", **credentials()}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        return json.loads(reply.read() or b"null")
