"""What goes wrong around a run costs it nothing: a full disk, a locked database, a clock set back, two runs at once.

A tracking server that goes away in mid-run is tried in test_track.py, kill -9 in test_end_to_end.py, SIGTERM under
Prefect in test_pipeline.py, the death of a dashboard's server in test_up.py.
"""

import dataclasses
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import main
from flows.graph import Sources, prepare
from flows.recipe import Recipe, load_plan
from flows.run import InProcess, execute
from flows.servers.processes import free_port
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import find_run, list_runs
from tasks.mechanism.stage import obtain
from tasks.mechanism.store import Store
from tasks.track import Untracked, open_tracker
from tasks.track.connection import local_tracking_uri
from tasks.track.ledger import hold_ledger
from tasks.train.pretrain import pretrain
from tests.helpers import tiny
from tests.helpers.mechanism_stages import CountConfig, DoubleConfig, count, double
from tests.helpers.track import ToyRun, client_of, nested_runs, unsent

ROOT = Path(__file__).resolve().parents[2]
SMALLER = (
    "pretrain.batches.steps=10",
    "sft.batches.steps=5",
    "dpo.batches.steps=5",
    "evaluate.answer_tokens=8",
    "evaluate.answers=2",
)
LENIENT = ("gate.min_reward_accuracy=0", "limits.dpo=9")
DISK_BYTES = 256 * 1024


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own with little room; skipped where we may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    found = subprocess.run(mount, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"a small disk takes the right to mount a tmpfs: {found.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def leftovers(store: Store) -> list[Path]:
    """Files that an atomic write left aside."""
    return [path for path in store.home.rglob(".*") if path.is_file()]


def test_disk_that_fills_up_at_any_moment_leaves_nothing_half_written(execution: Execution, tmp_path: Path) -> None:
    """With every amount of free space from none to plenty, so that each write in turn is the one that fails."""
    config = CountConfig(limit=20, word="n" * 1000)
    expected = obtain(count, config, {}, execution).artifact.digest
    outcomes = []
    with small_disk(tmp_path / "disk") as disk:
        there = Execution(home=disk / "home", workers=1, threads=1)
        store = Store(there.home)
        first = obtain(count, CountConfig(limit=3), {}, there).artifact
        for free_bytes in range(0, 80 * 1024, 4096):
            ballast = disk / "ballast"
            room = os.statvfs(disk)
            ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free_bytes)))
            try:
                outcomes.append(obtain(count, config, {}, there).status)
            except ValueError as error:
                assert "No space left" in str(error) and "bessemer gc" in str(error)
                outcomes.append("refused")
            assert leftovers(store) == []
            assert obtain(count, CountConfig(limit=3), {}, there).status == "cached"  # on the full disk
            ballast.unlink()
            assert store.open(first.digest)
            again = obtain(count, config, {}, there)
            assert again.artifact.digest == expected and store.open(expected)
            store.discard(expected)
            store.manifest_path("count", again.manifest.key).unlink()
    assert outcomes[0] == "refused" and outcomes[-1] == "built"


def test_run_on_a_full_disk_ends_with_the_reason_and_the_next_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        there = Execution(home=disk / "home", workers=1, threads=1)
        runner = InProcess(Recipe(name="toy"), there, Untracked(), {})
        numbers = runner(count, CountConfig(limit=3))
        room = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize))
        for call in (count, double):  # served, but it cannot be written down; not to be built
            inputs = {"numbers": numbers} if call is double else {}
            with pytest.raises(ValueError, match="No space left"):
                runner(call, DoubleConfig() if call is double else CountConfig(limit=3), **inputs)
        runner.finish("failed", "no space left")
        assert [stage.label for stage in find_run(runner.store).stages] == ["count"]
        (disk / "ballast").unlink()
        again = InProcess(Recipe(name="toy"), there, Untracked(), {})
        again(double, DoubleConfig(), numbers=again(count, CountConfig(limit=3)))
        again.finish("completed")
        assert [stage.status for stage in again.record.stages] == ["cached", "built"]


def test_tracking_server_that_is_down_stops_a_run_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "text"
    corpus.mkdir()
    (corpus / "a.txt").write_text("Some text.")
    home, address = tmp_path / "home", f"http://127.0.0.1:{free_port()}"
    sources = ["--corpus", str(corpus), "--sft", str(corpus), "--preferences", str(corpus)]
    arguments = ["run", "demo", "--in-process", "--home", str(home), *sources]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--set", f"execution.tracking_uri={address}"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "does not answer" in " ".join((printed.out + printed.err).split())
    assert list_runs(Store(home)) == []
    assert not (home / "objects").exists()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Somebody else holds the database for writing and lets go at the end."""
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


@pytest.mark.slow
def test_locked_tracking_database_costs_nothing_and_is_caught_up_with(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.track.tracker.FINISH_TIMEOUT_S", 8.0)  # two minutes of patience would be two of the test
    run = ToyRun(execution, open_tracker(execution))
    database = Path(local_tracking_uri(execution.home).removeprefix("sqlite:///"))
    with locked(database):
        outcome = run.call(count, CountConfig(limit=30), "count")
        run.end()
    assert outcome.status == "built"
    assert find_run(Store(execution.home)).status == "completed"
    deadline = time.monotonic() + 60
    while unsent(execution) and time.monotonic() < deadline:
        ToyRun(execution, open_tracker(execution)).end()
    client = client_of(execution)
    assert client.get_run(run.record.tracking_run_id).info.status == "FINISHED"
    nested = nested_runs(client, run.record.tracking_run_id)["count"]
    assert [m.step for m in client.get_metric_history(nested.info.run_id, "value")] == list(range(30))


@pytest.mark.slow
def test_a_run_that_is_still_being_delivered_is_left_to_its_own_thread(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the run no longer waits for MLflow, its thread may still be at it: a second sender would write twice."""
    monkeypatch.setattr("tasks.track.tracker.FINISH_TIMEOUT_S", 0.2)
    run = ToyRun(execution, open_tracker(execution))
    with locked(Path(local_tracking_uri(execution.home).removeprefix("sqlite:///"))):
        run.call(count, CountConfig(limit=3), "count")
        run.end()
        with pytest.raises(BlockingIOError):
            hold_ledger(Store(execution.home), run.record.run_id).close()


class ClockOfYesterday(datetime):
    """The clock after somebody set it back by a day."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "ClockOfYesterday":
        return super().now(tz) - timedelta(days=1)  # type: ignore[return-value]


def test_clock_set_back_in_mid_run_loses_no_figure(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ToyRun(execution, open_tracker(execution))
    numbers = run.call(count, CountConfig(limit=10), "count")
    clock = time.time
    for module in ("tasks.mechanism.store", "tasks.mechanism.runs"):
        monkeypatch.setattr(f"{module}.datetime", ClockOfYesterday)
    monkeypatch.setattr(time, "time", lambda: clock() - 86_400)
    doubled = run.call(double, DoubleConfig(), "double", numbers=numbers.artifact)
    run.end()
    assert run.record.ended < run.record.started  # the clock did go back
    assert doubled.manifest.created < numbers.manifest.created
    assert 0 <= doubled.manifest.seconds < 60
    client = client_of(execution)
    told = client.get_run(run.record.tracking_run_id)
    assert told.info.status == "FINISHED"
    assert (told.data.metrics["count/numbers"], told.data.metrics["double/characters"]) == (10, 60)
    assert unsent(execution) == []
    later = ToyRun(execution, open_tracker(execution))
    assert later.call(count, CountConfig(limit=10), "count").status == "cached"
    assert later.call(double, DoubleConfig(), "double", numbers=numbers.artifact).status == "cached"
    later.end()
    assert {record.run_id for record in list_runs(Store(execution.home))} == {run.record.run_id, later.record.run_id}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    corpus = tiny.make_corpus(tmp_path_factory.mktemp("faults") / "library")
    sources = {"corpus": str(corpus), "sft_data": str(corpus / "json"), "preference_data": str(corpus / "json")}
    return load_plan("demo", (*tiny.SETTINGS, *SMALLER, *LENIENT), sources).recipe


def toy_body(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
    """Two stages; the first counts as a model, which is registered."""
    runner(double, DoubleConfig(), numbers=runner(count, CountConfig(limit=50), "pretrain"))


def run_and_report(recipe: Recipe, execution: Execution, go: Any, queue: Any) -> None:
    """In a process of its own: wait for the other, then run, tracked."""
    tracker = open_tracker(execution)
    go.wait()
    record = execute(recipe, execution, tracker, body=toy_body)
    queue.put({stage.label: (stage.status, stage.digest) for stage in record.stages})


@pytest.mark.slow
def test_two_runs_at_once_share_the_work_and_both_are_told(recipe: Recipe, tmp_path: Path) -> None:
    """As when two schedules fire together on one home."""
    execution = Execution(home=tmp_path / "home", workers=1, threads=1)
    open_tracker(execution)  # makes the database, which takes seconds
    context = multiprocessing.get_context("spawn")
    go, queue = context.Barrier(2), context.Queue()
    both = [context.Process(target=run_and_report, args=(recipe, execution, go, queue)) for _ in range(2)]
    for process in both:
        process.start()
    first, second = (queue.get(timeout=300) for _ in both)
    for process in both:
        process.join()
    for label in ("pretrain", "double"):
        assert first[label][1] == second[label][1]
        assert sorted((first[label][0], second[label][0])) == ["built", "cached"]
    records = list_runs(Store(execution.home))
    assert [record.status for record in records] == ["completed", "completed"]
    if unsent(execution):
        ToyRun(execution, open_tracker(execution)).end()  # the next run sends what two at once could not
    assert unsent(execution) == []
    client = client_of(execution)
    for record in records:
        told = client.get_run(record.tracking_run_id)
        assert told.info.status == "FINISHED"
        assert (told.data.metrics["pretrain/numbers"], told.data.metrics["double/characters"]) == (50, 380)
    versions = client.search_model_versions(f"name = '{recipe.name}'")
    assert [version.tags["digest"] for version in versions] == [first["pretrain"][1]]


def pretrain_only(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
    """The pipeline as far as the first training."""
    data = prepare(recipe, sources, runner)
    runner(pretrain, recipe.pretrain, tokens=data.tokens, tokenizer=data.tokenizer)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_a_closed_record(recipe: Recipe, tmp_path: Path) -> None:
    """The rerun goes on from the checkpoint and ends with the bytes of a run that nobody stopped."""
    batches = dataclasses.replace(recipe.pretrain.batches, steps=60)
    longer = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"batches": batches})})
    home = tmp_path / "home"
    execution = Execution(home=home, workers=1, threads=1, tracking_uri="none")
    settings = tmp_path / "recipe.yaml"
    settings.write_text(json.dumps(longer.model_dump(mode="json")))  # JSON is YAML
    command = [*(sys.executable, "-m", "flows.cli", "run", str(settings), "--in-process", "--no-tracking")]
    command += ["--home", str(home), "--workers", "1", "--set", "execution.threads=1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not list((home / "scratch" / "pretrain").glob("*/checkpoints/*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed[-3000:]
    assert "goes on from the last checkpoint" in " ".join(printed.split())
    assert find_run(Store(home)).status == "cancelled"
    resumed = execute(longer, execution, Untracked(), body=pretrain_only).stage("pretrain")
    other = execution.model_copy(update={"home": tmp_path / "other"})
    undisturbed = execute(longer, other, Untracked(), body=pretrain_only).stage("pretrain")
    assert resumed and undisturbed
    assert (resumed.status, resumed.digest) == ("built", undisturbed.digest)
