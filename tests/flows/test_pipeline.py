"""The Prefect runner against a real server: states, edges, artifacts, errors, cancelling."""

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest

from flows.recipe import Recipe
from flows.servers.start import prefect_server
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import find_run
from tasks.mechanism.store import Store
from tests.helpers.mechanism_stages import CountConfig, DoubleConfig, count, double, refuse
from tests.helpers.running_stages import PatientConfig, patient

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
STEPS = 60
PATIENT = PatientConfig(steps=STEPS, step_seconds=0.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect") / "home"


@pytest.fixture(scope="module")
def execution(home: Path) -> Iterator[Execution]:
    """An execution whose home has a Prefect server of its own, as `bessemer run` would start it."""
    execution = Execution(home=home, workers=1, threads=1, tracking_uri="none")
    before = dict(os.environ)
    with prefect_server(execution):
        yield execution
    os.environ.clear()
    os.environ.update(before)


def ask(question: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    from prefect.client.orchestration import get_client

    async def asked() -> T:
        async with get_client() as client:
            return await question(client)

    return asyncio.run(asked())


def task_runs(flow_run_id: UUID, *names: str) -> dict[str, Any]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + 30
    while True:  # Prefect writes task runs down from events, a moment later
        found = ask(lambda client: client.read_task_runs(flow_run_filter=wanted))
        runs = {run.name: run for run in found if run.state.is_final()}
        if runs.keys() >= set(names) or time.monotonic() > deadline:
            return runs
        time.sleep(0.3)


def artifacts(flow_run_id: UUID) -> list[Any]:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    return ask(lambda client: client.read_artifacts(artifact_filter=wanted))


def figures(key: str, flow_run_id: UUID | None = None) -> list[str]:
    """What is shown under a key, of all runs or of one."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    found = ask(lambda client: client.read_artifacts(artifact_filter=wanted))
    return [str(artifact.data) for artifact in found if flow_run_id in (None, artifact.flow_run_id)]


def toy_flow(execution: Execution, calls: Callable[[Any], None], given_name: str | None = None) -> UUID:
    """Carry out stage calls under the Prefect runner, as the flow does; returns the flow run's id."""
    from prefect import flow
    from prefect.context import get_run_context

    from flows.pipeline import PrefectRunner
    from tasks.track import Untracked

    ids: list[UUID] = []

    @flow(name="toy", flow_run_name=given_name)
    def toy() -> None:
        ids.append(get_run_context().flow_run.id)  # type: ignore[union-attr]
        runner = PrefectRunner(Recipe(name="toy"), execution, Untracked(), {})
        try:
            calls(runner)
        except Exception as error:
            runner.finish("failed", str(error))
            raise
        runner.finish("completed")

    try:
        toy()
    finally:
        execution_ids.extend(ids)
    return ids[0]


execution_ids: list[UUID] = []


def count_and_double(run: Any) -> None:
    numbers = run(count, CountConfig(limit=7))
    run(double, DoubleConfig(), "twice", numbers=numbers)


@pytest.mark.slow
def test_each_stage_call_is_a_task_run_with_its_true_state(execution: Execution) -> None:
    first = task_runs(toy_flow(execution, count_and_double), "count", "twice")
    assert {name: run.state.name for name, run in first.items()} == {"count": "Completed", "twice": "Completed"}
    second = task_runs(toy_flow(execution, count_and_double), "count", "twice")
    assert {name: run.state.name for name, run in second.items()} == {"count": "Cached", "twice": "Cached"}
    upstream = [result.id for results in second["twice"].task_inputs.values() for result in results]
    assert upstream == [second["count"].id]


@pytest.mark.slow
@pytest.mark.parametrize(("given", "tags"), [(None, []), ("with fewer steps", ["with fewer steps"])])
def test_a_run_has_one_name_and_is_found_by_the_one_it_was_given(
    execution: Execution, given: str | None, tags: list[str]
) -> None:
    run = toy_flow(execution, count_and_double, given)
    found = ask(lambda client: client.read_flow_run(run))
    assert (found.name, found.tags) == (find_run(Store(execution.home)).run_id, tags)


@pytest.mark.slow
def test_summary_and_progress_are_shown(execution: Execution) -> None:
    def work(run: Any) -> None:
        run(patient, PatientConfig(steps=4))

    found = artifacts(toy_flow(execution, work))
    (summary,) = [artifact for artifact in found if artifact.key == "summary-toy"]
    assert "| patient |" in summary.data
    (progress,) = [artifact for artifact in found if artifact.type == "progress"]
    assert progress.data == 100.0
    assert progress.task_run_id is not None


@pytest.mark.slow
def test_curve_is_shown_while_the_stage_runs(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.observers.CURVE_INTERVAL_S", 0.1)
    ended = threading.Event()

    def look() -> list[str]:
        seen: list[str] = []
        while not ended.wait(0.2):
            seen += figures("patient-toy")
        return seen

    def work(run: Any) -> None:
        run(patient, PatientConfig(steps=8, step_seconds=0.4))

    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(contextvars.copy_context().run, look)
        try:
            flow_run_id = toy_flow(execution, work)
        finally:
            ended.set()
    assert any("loss" in shown and "at step 7" not in shown for shown in looking.result())
    assert ["at step 7" in shown for shown in figures("patient-toy", flow_run_id)] == [True]


@pytest.mark.slow
def test_refusal_fails_the_run_and_reaches_the_caller_as_it_is(execution: Execution) -> None:
    def work(run: Any) -> None:
        run(refuse, DoubleConfig())

    with pytest.raises(ValueError, match="^the input is wrong$"):
        toy_flow(execution, work)
    state = ask(lambda client: client.read_flow_run(execution_ids[-1])).state
    assert (state.type.value, find_run(Store(execution.home)).status) == ("FAILED", "failed")
    assert task_runs(execution_ids[-1], "refuse")["refuse"].state.name == "Failed"


@pytest.mark.slow
def test_termination_leaves_a_checkpoint_and_the_next_run_goes_on(execution: Execution) -> None:
    script = f"""
from pathlib import Path
from tasks.mechanism.execution import Execution
from tests.flows.test_pipeline import *
execution = Execution(home=Path({str(execution.home)!r}), workers=1, threads=1, tracking_uri="none")
with prefect_server(execution):
    from prefect import flow
    from flows.pipeline import PrefectRunner
    from tasks.track import Untracked
    @flow(name="toy")
    def toy():
        runner = PrefectRunner(Recipe(name="toy"), execution, Untracked(), {{}})
        try:
            runner(patient, PATIENT)
        except BaseException:
            runner.finish("cancelled")
            raise
    toy()
"""
    log = execution.home.parent / "child.log"
    with log.open("w") as stream:
        child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=stream, stderr=stream)
    scratch = execution.home / "scratch" / "patient"
    deadline = time.monotonic() + 60
    while not (steps := list(scratch.glob("*/step.txt"))) and child.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    time.sleep(1)
    child.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    child.wait(timeout=30)
    assert time.monotonic() - asked < 15
    assert find_run(Store(execution.home)).status == "cancelled"
    done = int(steps[0].read_text())
    assert 0 < done < STEPS

    def same_again(run: Any) -> None:
        run(patient, PATIENT)
        assert run.outcomes["patient"].manifest.metrics["first_step"] == done

    toy_flow(execution, same_again)


def test_form_has_a_section_per_stage_in_pipeline_order_with_bounds() -> None:
    from flows.pipeline import bessemer

    schema = bessemer.parameters.model_dump()
    sections = schema["definitions"]["Recipe"]["properties"]
    assert sorted(sections, key=lambda name: sections[name]["position"]) == list(Recipe.model_fields)
    for name, section in sections.items():
        assert section["description"], name
    for definition in schema["definitions"].values():
        for name, field in definition["properties"].items():
            assert field.get("description"), name
            assert "anyOf" not in field, f"{name}: the form shows unions badly"
    pretrain = schema["definitions"]["PretrainConfig"]["properties"]
    order = sorted(pretrain, key=lambda name: pretrain[name]["position"])
    assert order[:4] == ["model", "batches", "optimizer", "schedule"] and order[-1] == "seed"
    architecture = schema["definitions"]["Architecture"]["properties"]
    assert "vocab_size" not in architecture, "the tokenizer brings it"
    assert architecture["num_layers"]["position"] == 0 and architecture["num_layers"]["title"] == "num_layers"
    beta = schema["definitions"]["DpoConfig"]["properties"]["beta"]
    assert beta["type"] == "number" and {"exclusiveMinimum", "minimum"} & set(beta)
