"""Runs that died with all that could have said so: which flows are watched, and which runs are asked for a sign."""

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from flows.servers.lost_runs import AUTOMATION, FLOWS, FOUND_SILENT, HEARTBEAT, lost_runs_automation, renewed
from flows.servers.processes import LOOPBACK, free_port, start_temporary_prefect, wait_until_healthy
from flows.servers.unfinished import ask_for_signs_of_life, silent_runs
from tests.helpers.up import begun, foreign_addresses, wait_until


def test_every_flow_of_ours_is_watched() -> None:
    from prefect import Flow

    import flows.backfill
    import flows.pipeline
    import flows.watch

    rooms = (flows.pipeline, flows.watch, flows.backfill)
    assert {value.name for room in rooms for value in vars(room).values() if isinstance(value, Flow)} == set(FLOWS)


def test_an_automation_of_an_earlier_version_is_renewed_and_what_people_set_stays() -> None:
    from prefect.events.schemas.automations import Automation

    wanted = lost_runs_automation()
    as_it_is = Automation(id=uuid4(), **{**wanted.model_dump(), "trigger": wanted.trigger})
    assert renewed(as_it_is) is None
    older = wanted.trigger.model_copy(update={"after": {HEARTBEAT}, "within": timedelta(seconds=200)})
    found = renewed(as_it_is.model_copy(update={"trigger": older, "enabled": False}))
    assert found and (found.name, found.enabled) == (AUTOMATION, False)
    assert found.trigger.after == {HEARTBEAT, FOUND_SILENT}  # type: ignore[union-attr]
    assert found.trigger.within == timedelta(seconds=200)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a server as `bessemer run` has one."""
    port = free_port()
    child = start_temporary_prefect(tmp_path_factory.mktemp("lost") / "home", port)
    try:
        wait_until_healthy(child, f"http://{LOOPBACK}:{port}/api/health")
        assert foreign_addresses(child.process.pid) == set()
        yield f"http://{LOOPBACK}:{port}/api"
    finally:
        child.stop()


def send(prefect_api: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        f"{prefect_api}/{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.loads(reply.read() or b"null")


def report(prefect_api: str, run_id: str, age_s: float) -> None:
    """What a live run sends every half minute, and the server writes down a moment later."""
    occurred = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    resource = {"prefect.resource.id": f"prefect.flow-run.{run_id}"}
    event = {"id": str(uuid4()), "occurred": occurred, "event": HEARTBEAT, "resource": resource}
    send(prefect_api, "events", [event])


@pytest.mark.slow
def test_only_runs_of_ours_that_began_and_are_silent_are_asked(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BESSEMER_PATIENCE_S", "600")
    live, late = begun(prefect_api, "bessemer", "RUNNING"), begun(prefect_api, "ingest", "RUNNING")
    report(prefect_api, live, age_s=0)
    report(prefect_api, late, age_s=700)
    silent = {begun(prefect_api, flow, state) for flow in FLOWS for state in ("PENDING", "RUNNING", "CANCELLING")}
    for flow, state in (("bessemer", "COMPLETED"), ("bessemer", "SCHEDULED"), ("of somebody else", "RUNNING")):
        begun(prefect_api, flow, state)
    expected = {late, *silent}
    wait_until(lambda: {run["id"] for run, _ in silent_runs(prefect_api)} == expected, 60, "the report of the live one")
    assert ask_for_signs_of_life(prefect_api) == len(expected)

    def asked() -> set[str]:
        wanted = {"filter": {"event": {"name": [FOUND_SILENT]}}, "limit": 50}
        found = send(prefect_api, "events/filter", wanted)["events"]
        return {event["resource"]["prefect.resource.id"].rpartition(".")[2] for event in found}

    wait_until(lambda: asked() == expected, 60, "the questions")
