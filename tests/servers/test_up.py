"""`bessemer up` with real servers on loopback: what it brings up, refuses, and takes down."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from flows.addresses import live_addresses
from flows.recipe import load_plan, preset_names
from flows.servers.lost_runs import AUTOMATION
from flows.servers.processes import free_port, start_temporary_prefect, wait_until_healthy
from flows.servers.up import serve
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import list_runs, save_run
from tasks.mechanism.store import Store
from tasks.track import Untracked
from tasks.track.connection import connect
from tasks.track.delivery import start_parent
from tasks.track.ledger import Ledger, save_ledger
from tasks.track.pages import EXPERIMENTS, experiment_page, latest_page
from tests.helpers import tiny
from tests.helpers.growing_text import land, make_recipe, paragraphs
from tests.helpers.track import ToyRun
from tests.helpers.up import (
    ROOT,
    Served,
    ask,
    begun,
    deployments,
    flow_run,
    foreign_addresses,
    last_checkpoint,
    log_lines,
    retry,
    run_processes,
    start_run,
    start_up,
    stop,
    wait_for_servers,
    wait_for_state,
    wait_until,
)

pytestmark = pytest.mark.slow
PATIENCE_S = "40"  # with a run that is gone; a live one reports every 30 s
RUN_TIMEOUT_S = 240
RESUME_TIMEOUT_S = 120
LONG_STEPS = 300  # a few seconds of pretraining


def copy_databases(source: Path, target: Path) -> None:
    """Spare a second home the half minute in which both servers make their tables."""
    for name in ("prefect/prefect.db", "mlflow/mlflow.db"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(source / name) as before, sqlite3.connect(target / name) as after:
            before.backup(after)
    deployed = (source / "prefect" / "deployed.sha256").read_text().replace(str(source), str(target))
    (target / "prefect" / "deployed.sha256").write_text(deployed)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def all_gone(processes: list[psutil.Process], timeout_s: float = 20) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return not alive


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("up") / "home"
    process = start_up(home, free_port(), free_port(), BESSEMER_PATIENCE_S=PATIENCE_S)
    served = Served(home, process, wait_for_servers(home, process))
    yield served
    stop(process)


def test_both_dashboards_answer_on_loopback_only(served: Served) -> None:
    for address in (served.addresses.prefect, served.addresses.mlflow):
        with urllib.request.urlopen(address, timeout=10) as reply:
            assert reply.status == 200
    assert foreign_addresses(served.process.pid) == set()
    assert latest_page(served.addresses.mlflow) == EXPERIMENTS, "nothing has run yet"


def test_every_preset_is_a_deployment_for_the_worker_of_this_home(served: Served) -> None:
    found = {d.name: d for d in deployments(served)}
    assert set(found) >= set(preset_names())
    assert found["demo"].work_pool_name == "bessemer"
    assert found["demo"].parameters["execution"]["home"] == str(served.home.resolve())
    slot = ask(served, lambda client: client.read_global_concurrency_limit_by_name("gpu"))
    assert slot.limit == 1


def overlaps(served: Served) -> dict[str, str]:
    """What each watch does with a run that would overlap another."""
    options = {d.name: d.concurrency_options for d in deployments(served)}
    return {name: option.collision_strategy.value for name, option in options.items() if option}


def test_deploying_again_changes_what_was_asked_for_and_makes_no_duplicates(served: Served) -> None:
    before = sorted((d.name, d.id) for d in deployments(served))
    assert overlaps(served) == {"nightly": "ENQUEUE", "on-arrival": "ENQUEUE"}
    settings = {"PREFECT_API_URL": served.addresses.prefect_api, "BESSEMER_HOME": str(served.home)}
    subprocess.run(
        [sys.executable, "-m", "flows.servers.deployments", "apply"],
        cwd=ROOT,
        env={**os.environ, **settings, "BESSEMER_OVERLAP": "CANCEL_NEW"},
        check=True,
        capture_output=True,
    )
    assert sorted((d.name, d.id) for d in deployments(served)) == before
    assert overlaps(served) == {"nightly": "CANCEL_NEW", "on-arrival": "CANCEL_NEW"}
    assert len(ask(served, lambda client: client.read_automations_by_name(AUTOMATION))) == 1


def test_a_cron_schedule_yields_future_runs(served: Served) -> None:
    """With SQLAlchemy 2.1, Prefect 3.8 schedules nothing, with FastAPI 0.155 it does not start: hence our pins."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    demo = next(d for d in deployments(served) if d.name == "demo")
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 4 * * *", timezone="UTC"), active=True)
    made = ask(served, lambda client: client.create_deployment_schedules(demo.id, [schedule]))
    deadline = time.monotonic() + 120
    runs: list[Any] = []
    while not runs and time.monotonic() < deadline:
        time.sleep(1)
        runs = ask(served, lambda client: client.read_flow_runs())
    ask(served, lambda client: client.delete_deployment_schedule(demo.id, made[0].id))
    assert runs, "the scheduler made no runs"
    assert all(run.state.is_scheduled() for run in runs)
    assert min(run.expected_start_time for run in runs) > datetime.now(UTC)


def test_server_turns_nobody_away_when_many_write_at_once(served: Served) -> None:
    """Prefect itself answers most of these with 503: its transactions read first, and SQLite then refuses to write."""
    flow_id = ask(served, lambda client: client.create_flow_from_name("many at once"))

    def create(number: int) -> int:
        body = json.dumps({"flow_id": str(flow_id), "name": f"run {number}"}).encode()
        address = f"{served.addresses.prefect_api}/flow_runs/"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return int(reply.status)

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(create, range(64))) == [201] * 64
    ask(served, lambda client: client.delete_flow(flow_id))


def test_second_up_for_the_same_home_is_refused(served: Served) -> None:
    with pytest.raises(ValueError, match=rf"already serves .*process {served.process.pid}"):
        serve(served.home, free_port(), free_port())


def test_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"Port {port} is taken.*--mlflow-port"):
            serve(tmp_path / "home", free_port(), port)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_it(served: Served, tmp_path: Path, how: signal.Signals) -> None:
    home = tmp_path / "home"
    copy_databases(served.home, home)
    process = start_up(home, free_port(), free_port())
    wait_for_servers(home, process)
    children = descendants(process.pid)
    assert len(children) >= 4
    process.send_signal(how)
    process.communicate(timeout=60)
    assert all_gone(children)
    assert live_addresses(home) is None
    if how == signal.SIGINT:
        assert process.returncode == 0


def test_death_of_a_server_takes_all_down_and_is_said(served: Served, tmp_path: Path) -> None:
    home = tmp_path / "home"
    copy_databases(served.home, home)
    process = start_up(home, free_port(), free_port())
    wait_for_servers(home, process)
    children = descendants(process.pid)
    next(c for c in children if "worker" in c.cmdline()).kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "The worker process ended by itself" in err
    assert all_gone(children)


def test_run_killed_with_its_worker_is_crashed_by_itself_and_goes_on_when_retried(
    served: Served, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    copy_databases(served.home, home)
    first = start_served(home)
    deployment = next(d for d in deployments(first) if d.name == "demo")
    run = start_run(first, deployment.id, tiny_parameters(home, tmp_path / "corpus"))
    wait_until(lambda: last_checkpoint(home) > 0, RUN_TIMEOUT_S, "the first checkpoint")
    assert foreign_addresses(first.process.pid) == set()
    worker, training = run_processes(first)
    for process in (worker, *training):
        process.kill()
    first.process.communicate(timeout=60)  # without a worker it is of no use, so it ends
    reached = last_checkpoint(home)
    assert 0 < reached < LONG_STEPS

    again = start_served(home)
    try:
        wait_for_state(again, run, lambda found: found.is_crashed(), RUN_TIMEOUT_S)
        assert "No heartbeat" in flow_run(again, run).state.message
        retry(again, run)
        going_on = f"pretrain: going on from step {reached} of {LONG_STEPS}"
        wait_until(lambda: going_on in log_lines(again, run), RESUME_TIMEOUT_S, "the resumption from the checkpoint")
        wait_for_state(again, run, lambda found: found.is_final(), RUN_TIMEOUT_S)
        assert flow_run(again, run).state.is_completed()
    finally:
        stop(again.process)


def test_runs_that_died_with_their_own_server_are_told_of_by_the_next_up(served: Served, tmp_path: Path) -> None:
    """A `kill -9` of `bessemer backfill` without `up`: no automation ever heard of the run, and MLflow of no end."""
    home = tmp_path / "home"
    copy_databases(served.home, home)
    port = free_port()
    child = start_temporary_prefect(home, port)
    try:
        wait_until_healthy(child, f"http://127.0.0.1:{port}/api/health")
        lost = [begun(f"http://127.0.0.1:{port}/api", flow, "RUNNING") for flow in ("backfill", "backfill-date")]
    finally:
        child.stop()
    execution = Execution(home=home, workers=1, threads=1)
    killed, connection = ToyRun(execution, Untracked()), connect(execution)
    info = start_parent(connection, killed.record)
    killed.record.tracking_run_id = str(info.run_id)
    save_run(killed.store, killed.record)
    save_ledger(killed.store, Ledger(run_id=killed.record.run_id, tracking_uri=connection.uri))
    assert connection.client.get_run(info.run_id).info.status == "RUNNING"
    again = start_served(home)
    try:
        assert latest_page(again.addresses.mlflow) == experiment_page(str(info.experiment_id))
        for run in lost:
            wait_for_state(again, UUID(run), lambda found: found.is_crashed(), RUN_TIMEOUT_S)
        ended = "the end of the run in MLflow"
        wait_until(lambda: connection.client.get_run(info.run_id).info.status == "FAILED", RUN_TIMEOUT_S, ended, 1.0)
    finally:
        stop(again.process)


def start_served(home: Path) -> Served:
    process = start_up(home, free_port(), free_port())
    return Served(home, process, wait_for_servers(home, process))


def tiny_parameters(home: Path, corpus: Path) -> dict[str, Any]:
    """What the form would send for a run of seconds, with time to kill it while it pretrains."""
    sources = (f"corpus={corpus}", f"sft_data={corpus}", f"preference_data={corpus}")
    tiny.make_corpus(corpus)
    steps = (
        f"pretrain.batches.steps={LONG_STEPS}",
        "pretrain.loop.checkpoint_every=10",
        "sft.batches.steps=5",
        "dpo.batches.steps=5",
    )
    recipe = load_plan("demo", ["name=tiny", *tiny.SETTINGS, *steps, *sources]).recipe
    execution = Execution(home=home, workers=1, threads=1, tracking_uri="none")
    return {"recipe": recipe.model_dump(mode="json"), "execution": execution.model_dump(mode="json")}


def test_a_schedule_is_made_changed_and_removed_by_a_verb(served: Served, tmp_path: Path) -> None:
    from prefect.states import Scheduled

    def schedule(*more: str) -> Any:
        command = [sys.executable, "-m", "flows.cli", "schedule", "--home", str(served.home), *more, "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Nothing to learn from here.")
    before = {d.id for d in deployments(served)}
    assert "no such file or folder" in schedule("--corpus", "elsewhere")
    assert "expected minute, hour" in schedule("--corpus", "texts", "--cron", "nightly")
    assert {d.id for d in deployments(served)} == before

    schedule("--corpus", "texts")
    made = schedule("--corpus", "texts", "--cron", "30 4 * * *", "--timezone", "Europe/Berlin", "--retrain", "never")
    (deployment,) = [d for d in deployments(served) if d.id not in before]
    assert made["deployment"] == f"ingest/{deployment.name}" and made["page"].endswith(str(deployment.id))
    ((when, active),) = [(each.schedule, each.active) for each in deployment.schedules]
    assert (when.cron, when.timezone, active) == ("30 4 * * *", "Europe/Berlin", True)
    assert datetime.fromisoformat(made["next"]) > datetime.now(UTC)
    assert deployment.parameters["recipe"]["corpus"] == str(tmp_path / "texts")
    assert deployment.parameters["watch"] == {"retrain": "never"}
    assert deployment.parameters["execution"]["home"] == str(served.home)
    far = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=300))  # the server checks the parameters
    ask(served, lambda client: client.create_flow_run_from_deployment(deployment.id, state=far))

    assert schedule("--off")["off"]
    assert {d.id for d in deployments(served)} == before
    assert "Nothing looks for new text" in schedule("--off")


def test_notify_starts_a_run_on_the_text_that_arrived(served: Served, tmp_path: Path) -> None:
    (tmp_path / "news.txt").write_text("Nothing to learn from here.")
    told = subprocess.run(
        [sys.executable, "-m", "flows.cli", "notify", "--home", str(served.home), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    deadline = time.monotonic() + 60
    runs: list[Any] = []
    while not runs and time.monotonic() < deadline:
        time.sleep(0.5)
        runs = [run for run in ask(served, lambda client: client.read_flow_runs()) if "watch" in run.parameters]
    assert runs, "the automation started nothing"
    assert runs[0].parameters["recipe"]["corpus"] == str(tmp_path)
    for run in runs:
        ask(served, lambda client, run=run: client.delete_flow_run(run.id))


def test_notify_without_a_server_says_so(tmp_path: Path) -> None:
    from flows.servers.notify import notify

    with pytest.raises(ValueError, match="bessemer up"):
        notify(tmp_path / "home", tmp_path)


def test_dated_folders_are_taken_in_from_the_form(served: Served, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path).model_copy(update={"corpus": f"{tmp_path / 'text'}/{{date:%Y/%m}}"})
    for number, month in enumerate(("01", "02", "03")):
        land(tmp_path / "text" / "2026", month, paragraphs()[number * 60 : number * 60 + 60])
    execution = Execution(home=tmp_path / "home", workers=1, threads=1, tracking_uri="none")
    sections = {"recipe": recipe.model_dump(mode="json"), "execution": execution.model_dump(mode="json")}
    asked = {"dates": {"first": "2026-02-01", "every": "day"}, "watch": {"retrain": "never"}}
    deployment = next(d for d in deployments(served) if d.name == "dates")
    run = start_run(served, deployment.id, {**sections, **asked})
    wait_for_state(served, run, lambda found: found.is_final(), RUN_TIMEOUT_S)
    assert flow_run(served, run).state.is_completed(), flow_run(served, run).state.message
    assert [record.recipe["corpus"].partition("{")[2] for record in list_runs(Store(execution.home))] == [
        "2026-02-01:%Y/%m}",
        "2026-02-01..2026-03-01:%Y/%m}",
    ]
