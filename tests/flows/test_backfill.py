"""Backfill: dated folders one after another give what one run over all gives, and what was interrupted goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from flows.backfill_plan import Dates, corpus_as_of, plan_backfill
from flows.graph import prepare
from flows.recipe import Recipe
from flows.run import execute, resolve_sources
from flows.servers.start import prefect_server
from flows.watched import Seen, write_seen
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, list_runs
from tasks.mechanism.store import Store
from tasks.text.dated import parse_dated
from tasks.track import Untracked
from tests.helpers.growing_text import SETTINGS, land, make_recipe, paragraphs
from tests.helpers.up import ask_at

DAYS = ("2026-01-30", "2026-01-31", "2026-02-02")
DOCUMENTS = 80
TIMEOUT_S = 900


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Execution]:
    """A Prefect server for all tests; each has a home of its own."""
    execution = Execution(home=tmp_path_factory.mktemp("served"), workers=1, threads=1, tracking_uri="none")
    before = dict(os.environ)
    with prefect_server(execution):
        yield execution
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def untracked(tmp_path: Path) -> Execution:
    return Execution(home=tmp_path / "home", workers=1, threads=1, tracking_uri="none")


def crawl(folder: Path, days: tuple[str, ...] = DAYS, *settings: str) -> Recipe:
    """A recipe whose corpus are these dated folders."""
    recipe = make_recipe(folder, *settings)
    for day in days:
        land_day(folder, day)
    return recipe.model_copy(update={"corpus": f"{folder / 'text'}/{{date}}"})


def land_day(folder: Path, day: str) -> None:
    """Each date has documents of its own, and a few of the date before it."""
    start = date.fromisoformat(day).toordinal() % 8 * DOCUMENTS
    land(folder / "text", day, paragraphs()[max(0, start - 5) : start + DOCUMENTS])


def prepared_at_once(recipe: Recipe, execution: Execution) -> RunRecord:
    return execute(
        recipe, execution, Untracked(), body=lambda recipe, sources, run: prepare(recipe, sources, run) and None
    )


def completed(execution: Execution) -> list[RunRecord]:
    return [record for record in list_runs(Store(execution.home)) if record.status == "completed"]


@pytest.mark.slow
def test_date_by_date_gives_what_one_run_gives_and_the_schedule_goes_on(
    served: Execution, untracked: Execution, tmp_path: Path
) -> None:
    from flows.backfill import backfill
    from flows.watch import ingest
    from flows.watched import WatchConfig

    recipe, watch = crawl(tmp_path), WatchConfig(retrain="never")
    backfilled = backfill(recipe, Dates(), watch, untracked)
    assert list(backfilled.taken_in) == list(DAYS)
    assert (backfilled.passed_over, backfilled.missing) == ([], ["2026-02-01"])
    records = completed(untracked)
    assert [record.run_id for record in records] == [news.run_id for news in backfilled.taken_in.values()]
    shown = {
        run.name: run.tags for run in ask_at(os.environ["PREFECT_API_URL"], lambda client: client.read_flow_runs())
    }
    for record, day in zip(records, DAYS):
        assert shown[record.run_id] == [f"{recipe.name} {day}"]
    assert [parse_dated(record.recipe["corpus"]).ranges[0].last for record in records] == [  # type: ignore[union-attr]
        date.fromisoformat(day) for day in DAYS
    ]
    for news in backfilled.taken_in.values():
        assert news.outcome == "prepared, not trained on"
        assert 0 < news.new_documents_kept <= news.new_documents <= DOCUMENTS + 5
        assert news.new_tokens > 0
    at_once = prepared_at_once(recipe, Execution(home=tmp_path / "at-once", workers=2, threads=1))
    assert records[-1].digests == at_once.digests
    assert {"ingest", "filter", "dedup", "pack"} <= at_once.digests.keys()

    started = time.monotonic()
    again = backfill(recipe, Dates(), watch, untracked)
    assert time.monotonic() - started < 10
    assert (again.passed_over, again.taken_in) == (list(DAYS), {})

    later = recipe.model_copy(update={"corpus": again.schedule_corpus})
    assert again.schedule_corpus == f"{tmp_path / 'text'}/{{2026-01-30..}}"
    assert ingest(later, watch, untracked, return_state=True).name == "NothingNew"
    land_day(tmp_path, "2026-02-03")
    assert ingest(later, watch, untracked, return_state=True).message == "New text: prepared, not trained on."
    last = completed(untracked)[-1]
    assert last.sources["corpus"] == resolve_sources(recipe, untracked).corpus.digest
    assert backfill(recipe, Dates(), watch, untracked).passed_over == [*DAYS, "2026-02-03"]


@pytest.mark.slow
def test_a_date_that_fails_stops_the_backfill_and_the_next_goes_on_from_it(
    served: Execution, untracked: Execution, tmp_path: Path
) -> None:
    from flows.backfill import backfill
    from flows.show.backfill import BackfillStopped
    from flows.watched import WatchConfig

    recipe, watch = crawl(tmp_path), WatchConfig(retrain="never")
    damaged = tmp_path / "text" / DAYS[1] / "documents.jsonl"
    text = damaged.read_text()
    damaged.write_text(text.replace('{"text"', "{text"))
    with pytest.raises(
        BackfillStopped, match=f"stopped at {DAYS[1]}, with 1 of 3 increments in.*85 of 170 records cannot be used"
    ) as stopped:
        backfill(recipe, Dates(), watch, untracked)
    assert list(stopped.value.so_far.taken_in) == [DAYS[0]]
    assert not stopped.value.so_far.schedule_corpus
    assert [record.status for record in list_runs(Store(untracked.home))] == ["completed", "failed"]

    damaged.write_text(text)
    goes_on = backfill(recipe, Dates(), watch, untracked)
    assert (goes_on.passed_over, list(goes_on.taken_in)) == ([DAYS[0]], [DAYS[1], DAYS[2]])
    at_once = prepared_at_once(recipe, Execution(home=tmp_path / "at-once", workers=1, threads=1))
    assert completed(untracked)[-1].digests == at_once.digests


@pytest.mark.slow
def test_each_date_may_be_trained_on_and_judged(served: Execution, untracked: Execution, tmp_path: Path) -> None:
    from flows.backfill import backfill
    from flows.watched import WatchConfig

    recipe = crawl(tmp_path, DAYS[:2], "pretrain.batches.steps=20", "start=champion")
    backfilled = backfill(recipe, Dates(every="day"), WatchConfig(retrain="always"), untracked)
    first, second = backfilled.taken_in.values()
    assert (first.outcome, first.verdict) == ("trained and promoted", "first")
    assert second.outcome in ("trained and promoted", "trained; the champion stays")
    assert second.verdict in ("better", "worse", "inconclusive")
    store, (before, after) = Store(untracked.home), completed(untracked)
    stage = after.stage("pretrain")
    manifest = store.find("pretrain", stage.key) if stage else None
    assert manifest and manifest.inputs["start"] == before.digests["pretrain"]


@pytest.mark.slow
def test_a_backfill_that_is_killed_goes_on_from_the_date_it_was_at(tmp_path: Path) -> None:
    recipe, home = crawl(tmp_path), tmp_path / "home"
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    sources = ["--corpus", recipe.corpus, "--sft", recipe.sft_data, "--preferences", recipe.preference_data]
    command = [sys.executable, "-m", "flows.cli", "backfill", "demo", "--home", str(home), "--workers", "1"]
    command += [*sources, *settings, "--retrain", "never", "--no-tracking", "--json"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + TIMEOUT_S
    while len(list((home / "runs").glob("*.json"))) < 2:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [record.status for record in list_runs(Store(home))] == ["completed", "running"]

    found = json.loads(subprocess.run([*command, "--plan"], capture_output=True, check=True, timeout=TIMEOUT_S).stdout)
    assert [step["taken_in"] for step in found["steps"]] == [True, False, False]
    ended = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S).stdout)
    assert ended["passed_over"] == [DAYS[0]]
    assert [step["dates"] for step in ended["taken_in"]] == [DAYS[1], DAYS[2]]
    at_once = prepared_at_once(recipe, Execution(home=tmp_path / "at-once", workers=1, threads=1))
    assert list_runs(Store(home))[-1].digests == at_once.digests


def remember(recipe: Recipe, execution: Execution, days: tuple[str, ...]) -> None:
    """As if these dates had been taken in."""
    dates = ",".join(days)
    corpus = recipe.corpus.replace("{date}", f"{{{dates}}}")
    files = resolve_sources(recipe.model_copy(update={"corpus": corpus}), execution).corpus.files
    seen = Seen(corpus_files={file.name: file.sha256 for file in files})
    write_seen(Store(execution.home), recipe, seen)


def test_a_plan_says_what_is_in_and_what_is_missing(untracked: Execution, tmp_path: Path) -> None:
    recipe, store = crawl(tmp_path), Store(untracked.home)
    assert [step.taken_in for step in plan_backfill(store, recipe, Dates()).steps] == [False] * 3
    remember(recipe, untracked, DAYS[:2])
    plan = plan_backfill(store, recipe, Dates())
    assert [(step.name, step.files, step.taken_in) for step in plan.steps] == [
        ("2026-01-30", 1, True),
        ("2026-01-31", 1, True),
        ("2026-02-02", 1, False),
    ]
    assert plan.steps[0].bytes == (tmp_path / "text" / DAYS[0] / "documents.jsonl").stat().st_size
    assert [str(dates) for dates in plan.missing] == ["2026-02-01"]
    monthly = plan_backfill(store, recipe, Dates(every="month"))
    assert [(step.name, step.taken_in) for step in monthly.steps] == [
        ("2026-01-30..2026-01-31", True),
        ("2026-02-02", False),
    ]
    assert [step.name for step in plan_backfill(store, recipe, Dates(first=date(2026, 2, 1))).steps] == [DAYS[2]]


def test_a_date_that_changed_or_grew_is_to_do_again(untracked: Execution, tmp_path: Path) -> None:
    recipe, store = crawl(tmp_path), Store(untracked.home)
    remember(recipe, untracked, DAYS)
    (tmp_path / "text" / DAYS[0] / "late.jsonl").write_text('{"text": "late"}\n')
    with (tmp_path / "text" / DAYS[1] / "documents.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    assert [step.name for step in plan_backfill(store, recipe, Dates()).to_do] == [DAYS[0], DAYS[1]]


def test_earlier_dates_add_to_those_that_are_in(untracked: Execution, tmp_path: Path) -> None:
    recipe, store = crawl(tmp_path, (*DAYS, "2026-02-04")), Store(untracked.home)
    remember(recipe, untracked, (DAYS[2],))
    assert str(corpus_as_of(store, recipe, date(2026, 1, 30))) == recipe.corpus.replace(
        "{date}", "{2026-01-30,2026-02-02}"
    )
    assert str(corpus_as_of(store, recipe, date(2026, 1, 31))) == recipe.corpus.replace(
        "{date}", "{2026-01-30..2026-02-02}"
    )


@pytest.mark.parametrize(
    ("corpus", "dates", "words"),
    [
        ("{text}", Dates(), "says nothing of dates. Write {date} in their place"),
        (
            "{text}/{date}",
            Dates(first=date(2026, 2, 1), last=date(2026, 1, 1)),
            "first date is 2026-02-01 and its last",
        ),
        ("{text}/{..2026-01-31}", Dates(first=date(2026, 2, 1)), "is empty: the corpus .* has no date in 2026-02-01"),
        ("{text}/{date}", Dates(first=date(2026, 2, 3)), "dates there are 2026-01-30 to 2026-02-02 .3 with files"),
        ("{text}/{date:%Y/%m}", Dates(), "under a name such as .*/text/2026/01"),
    ],
)
def test_an_empty_range_is_refused_with_its_reason(
    untracked: Execution, tmp_path: Path, corpus: str, dates: Dates, words: str
) -> None:
    recipe = crawl(tmp_path).model_copy(update={"corpus": corpus.replace("{text}", str(tmp_path / "text"))})
    with pytest.raises(ValueError, match=words):
        plan_backfill(Store(untracked.home), recipe, dates)


def test_what_is_gone_is_not_missed(untracked: Execution, tmp_path: Path) -> None:
    """A date that was taken in and then taken away has no folder: the plan says so, and nothing stops."""
    recipe, store = crawl(tmp_path), Store(untracked.home)
    remember(recipe, untracked, DAYS)
    shutil.rmtree(tmp_path / "text" / DAYS[1])
    plan = plan_backfill(store, recipe, Dates())
    assert not plan.to_do
    assert [str(dates) for dates in plan.missing] == ["2026-01-31..2026-02-01"]
