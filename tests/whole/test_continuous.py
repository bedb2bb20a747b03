"""Text lands while a schedule runs: each landing is one increment, judged by the gate, and nothing depends on when."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flows.addresses import Addresses
from flows.champion import find_champion
from flows.recipe import Recipe
from flows.run import execute
from flows.servers.processes import (
    LOOPBACK,
    free_port,
    prefect_environment,
    start_child,
    start_prefect,
    wait_until_healthy,
)
from flows.show.summary import Summary, summarise
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, list_runs
from tasks.mechanism.store import Store
from tasks.track import Untracked
from tasks.track.connection import connect
from tests.helpers.growing_text import land, landings, make_recipe
from tests.helpers.up import ask_at

INTERVAL_S = 5
TIMEOUT_S = 600  # for one landing, of which a free core needs about 15


def built(record: RunRecord) -> set[str]:
    return {stage.label for stage in record.stages if stage.status == "built"}


def flow_runs(prefect_api: str, *states: str) -> list[Any]:
    """The flow runs in states of these types, without the hundred that are scheduled."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    types = FlowRunFilterStateType(any_=[StateType(state) for state in states])
    wanted = FlowRunFilter(state=FlowRunFilterState(type=types))
    return ask_at(prefect_api, lambda client: client.read_flow_runs(flow_run_filter=wanted))


@dataclass(frozen=True)
class Watched:
    """A folder that a schedule looks at."""

    recipe: Recipe
    execution: Execution
    prefect_api: str

    @property
    def store(self) -> Store:
        return Store(self.execution.home)

    def wait_for(self, count: int, name: str, message: str) -> list[Any]:
        """The flow runs in this state once there are `count` of them; none may have failed."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            failed = [run.state for run in flow_runs(self.prefect_api, "FAILED", "CRASHED")]
            assert not failed, failed
            ended = flow_runs(self.prefect_api, "COMPLETED")
            found = [r for r in ended if r.state.name == name and (r.state.message or "").startswith(message)]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, [run.state for run in ended]
            time.sleep(1)

    def aliases(self) -> dict[str, str]:
        """The registry: alias -> digest of the model that it points at."""
        client = connect(self.execution).client
        model = client.get_registered_model(self.recipe.name)
        versions = {alias: client.get_model_version(self.recipe.name, v) for alias, v in model.aliases.items()}
        return {alias: version.tags["digest"] for alias, version in versions.items()}

    def news(self) -> str:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
        from prefect.client.schemas.sorting import ArtifactSort

        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[f"news-{self.recipe.name}"]))
        found = ask_at(
            self.prefect_api,
            lambda client: client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1),
        )
        return str(found[0].data)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A Prefect server with its scheduler, and the watch served on an interval; the first delivery lies there."""
    folder = tmp_path_factory.mktemp("watched")
    execution = Execution(home=folder / "home", workers=1, threads=1)
    recipe = make_recipe(folder)
    land(folder / "text", "0", landings()[0])
    addresses = Addresses(prefect=f"http://{LOOPBACK}:{free_port()}", mlflow="", pid=os.getpid())
    environment = {
        **prefect_environment(execution.home),
        "PREFECT_API_URL": addresses.prefect_api,
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    parameters = {"recipe": recipe.model_dump(mode="json"), "execution": execution.model_dump(mode="json")}
    prefect = start_prefect(execution.home, int(addresses.prefect.rpartition(":")[2]))
    try:
        wait_until_healthy(prefect, f"{addresses.prefect_api}/health")
        arguments = [str(INTERVAL_S), "CANCEL_NEW", json.dumps(parameters)]
        server = start_child(execution.home, "watch", "tests.helpers.serve_watch", arguments, environment)
        try:
            yield Watched(recipe, execution, addresses.prefect_api)
        finally:
            server.stop()
    finally:
        prefect.stop()


@pytest.mark.slow
def test_text_lands_three_times_while_the_schedule_runs(watched: Watched, tmp_path: Path) -> None:
    summaries: list[Summary] = []
    for number, documents in enumerate(landings()):
        if number:
            land(Path(watched.recipe.corpus), str(number), documents)
        watched.wait_for(number + 1, "Completed", "New text")
        record = list_runs(watched.store)[-1]
        summaries.append(summarise(watched.store, record))
        champion = find_champion(watched.store, watched.recipe.name)
        assert champion and champion.run_id == list_runs(watched.store)[min(number, 2)].run_id
        latest = {alias: record.digests[label] for alias, label in record.forms.items()}
        expected = {**latest, "champion": champion.models["dpo"]}
        if number == 3:
            expected["challenger"] = latest["dpo"]
        assert watched.aliases() == expected
        assert f"verdict: {summaries[-1].verdict['verdict']}. " in watched.news()

    assert [summary.verdict["verdict"] for summary in summaries] == ["first", "better", "better", "worse"]
    assert "Declined: Worse than the champion" in watched.news()
    assert "new or changed files: 1 (`3/documents.jsonl`); gone: 0" in watched.news()
    for summary in summaries[1:]:
        assert not built(summary.record) & {"conversations", "preferences"}

    watched.wait_for(1, "NothingNew", "")
    runs = sorted(flow_runs(watched.prefect_api, "COMPLETED"), key=lambda run: run.start_time)
    assert all(one.end_time <= other.start_time for one, other in pairwise(runs)), "two runs overlapped"
    assert flow_runs(watched.prefect_api, "CANCELLED"), "a run that was due meanwhile was not skipped"
    assert len(list_runs(watched.store)) == 4
    scratch = execute(watched.recipe, Execution(home=tmp_path / "scratch", workers=2, threads=1), Untracked())
    before = summaries[-1].record.digests
    assert {**scratch.digests, "gate": ""} == {**before, "gate": ""}
