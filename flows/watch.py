"""Look for new text on a schedule or an event: prepare what is new, train on it if the policy says so.

Where nothing is new it takes seconds. What was seen is remembered by content, so it does not matter how often, or by
whom, this is started.
"""

import time

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.champion import find_champion
from flows.graph import Sources, prepare
from flows.pipeline import PrefectRunner, artifact_key
from flows.recipe import Recipe
from flows.run import InProcess, execute, resolve_sources, source_digests, train_models
from flows.show.markdown import report_files
from flows.show.news import NOTHING_NEW, News, notification
from flows.show.summary import summarise
from flows.watched import Seen, WatchConfig, read_seen, wants_training, write_seen
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.store import Store
from tasks.tokens.files import SPLITS
from tasks.track import open_tracker


@flow(name="ingest", log_prints=False)
def ingest(
    recipe: Recipe = Recipe(),  # noqa: B008
    watch: WatchConfig = WatchConfig(),  # noqa: B008
    execution: Execution = Execution(),  # noqa: B008
) -> State[News]:
    """Prepare text that is new since last time, and train where the policy says so.

    Args:
        recipe: What to build and where its text comes from.
        watch: What to do about new text.
        execution: Where and how fast. Nothing here changes a result, but for rounding in training.
    """
    with Store(execution.home).lock("watch", recipe.name):  # a run that overlaps waits, and then finds nothing new
        return as_state(recipe, look(recipe, watch, execution))


def as_state(recipe: Recipe, news: News) -> State[News]:
    """The state that says so on Prefect's pages."""
    if news.outcome == NOTHING_NEW:
        return Completed(name="NothingNew", message=f"Nothing new in {recipe.corpus}.", data=news)
    return Completed(message=f"New text: {news.outcome}.", data=news)


def look(recipe: Recipe, watch: WatchConfig, execution: Execution) -> News:
    """Prepare what is new, train where the policy says so, and remember it. For flows, under the lock of the watch."""
    started = time.monotonic()
    store = Store(execution.home)
    sources = resolve_sources(recipe, execution)
    seen = read_seen(store, recipe)
    if seen.sources == source_digests(sources):
        get_run_logger().info("Nothing new in %s", recipe.corpus)
        return News()
    before = find_champion(store, recipe.name)
    trained_tokens = seen.trained_tokens
    outcome = "prepared, not trained on"

    def prepare_then_decide(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
        nonlocal trained_tokens, outcome
        data = prepare(recipe, sources, runner)
        tokens = runner.outcomes["pack"].manifest.metrics["train_tokens"]
        if wants_training(watch, seen.trained_tokens, tokens):
            train_models(recipe, data, runner, watch.promote)
            trained_tokens = tokens
            promoted = find_champion(store, recipe.name) != before
            outcome = "trained and promoted" if promoted else "trained; the champion stays"

    record = execute(recipe, execution, open_tracker(execution, report_files), PrefectRunner, prepare_then_decide)
    now_seen = Seen(
        sources=source_digests(sources),
        corpus_files={file.name: file.sha256 for file in sources.corpus.files},
        trained_tokens=trained_tokens,
        documents=_metric(store, record, "ingest", "documents"),
        documents_kept=sum(_metric(store, record, "pack", f"{split}_documents") for split in SPLITS),
        tokens=_metric(store, record, "pack", "train_tokens"),
    )
    seconds = time.monotonic() - started
    summary = summarise(store, record)
    notice = notification(summary, seen, now_seen, outcome, seconds)
    create_markdown_artifact(notice, key=artifact_key("news", recipe.name), description=outcome)
    write_seen(store, recipe, now_seen)
    return News(
        outcome=outcome,
        run_id=record.run_id,
        new_documents=round(now_seen.documents - seen.documents),
        new_documents_kept=round(now_seen.documents_kept - seen.documents_kept),
        new_tokens=round(now_seen.tokens - seen.tokens),
        verdict=summary.verdict.get("verdict", ""),
        seconds=seconds,
    )


def _metric(store: Store, record: RunRecord, label: str, name: str) -> float:
    stage = record.stage(label)
    manifest = store.find(stage.stage, stage.key) if stage else None
    return manifest.metrics.get(name, 0.0) if manifest else 0.0
