"""Look for new text on a schedule or an event: prepare what is new, train on it if the policy says so.

Where nothing is new it takes seconds. What was seen is remembered by content, so it does not matter how often, or by
whom, this is started.
"""

import hashlib
import time
from pathlib import Path
from typing import Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from flows.champion import find_champion
from flows.graph import Sources, prepare
from flows.pipeline import PrefectRunner, artifact_key
from flows.recipe import Recipe
from flows.run import Promotion, execute, resolve_sources, source_digests, train_models
from flows.runners import InProcess
from flows.summary import summarise
from tasks.execution import Execution, arrange_form
from tasks.progress import format_count, format_seconds
from tasks.runs import RunRecord
from tasks.store import Store, write_atomically
from tasks.track import open_tracker


class WatchConfig(BaseModel):
    """What to do about new text."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=arrange_form)

    retrain: Literal["never", "when grown", "always"] = Field(
        "when grown", description="Train never, when new tokens exceed the share below, or on any new text."
    )
    new_share: float = Field(
        0.05, ge=0, le=100, description="Share of new tokens, against those last trained on, that calls for training."
    )
    promote: Promotion = Field(
        "by the gate",
        description="Whether the gate's verdict makes a new model the champion; never: it stays a challenger until "
        "somebody says `bessemer promote`.",
    )


class Seen(BaseModel):
    """What the watch knows of a recipe and its sources; at `watch/<recipe>-<digest of the sources' names>.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, str] = {}
    corpus_files: dict[str, str] = {}
    trained_tokens: float = 0.0


@flow(name="ingest", log_prints=False)
def ingest(
    recipe: Recipe = Recipe(),  # noqa: B008
    watch: WatchConfig = WatchConfig(),  # noqa: B008
    execution: Execution = Execution(),  # noqa: B008
) -> State[None]:
    """Prepare text that is new since last time, and train where the policy says so.

    Args:
        recipe: What to build and where its text comes from.
        watch: What to do about new text.
        execution: Where and how fast. Nothing here changes a result.
    """
    with Store(execution.home).lock("watch", recipe.name):  # a run that overlaps waits, and then finds nothing new
        return _look(recipe, watch, execution)


def _look(recipe: Recipe, watch: WatchConfig, execution: Execution) -> State[None]:
    started = time.monotonic()
    logger = get_run_logger()
    store = Store(execution.home)
    sources = resolve_sources(recipe, execution)
    seen = read_seen(store, recipe)
    if seen.sources == source_digests(sources):
        logger.info("Nothing new in %s", recipe.corpus)
        return Completed(name="NothingNew", message=f"Nothing new in {recipe.corpus}.")
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

    record = execute(recipe, execution, open_tracker(execution), PrefectRunner, prepare_then_decide)
    files = {file.name: file.sha256 for file in sources.corpus.files}
    now_seen = Seen(sources=source_digests(sources), corpus_files=files, trained_tokens=trained_tokens)
    notice = notification(store, record, seen, now_seen, outcome, time.monotonic() - started)
    create_markdown_artifact(notice, key=artifact_key("news", recipe.name), description=outcome)
    write_seen(store, recipe, now_seen)
    return Completed(message=f"New text: {outcome}.")


def wants_training(watch: WatchConfig, trained_tokens: float, tokens: float) -> bool:
    """Whether the policy calls for training. Text that shrank, a takedown, counts as change too."""
    if watch.retrain == "when grown":
        return trained_tokens == 0 or abs(tokens - trained_tokens) > watch.new_share * trained_tokens
    return watch.retrain == "always"


def _seen_path(store: Store, recipe: Recipe) -> Path:
    named = "\0".join((recipe.corpus, recipe.sft_data, recipe.preference_data))
    return store.home / "watch" / f"{recipe.name}-{hashlib.sha256(named.encode()).hexdigest()[:8]}.json"


def read_seen(store: Store, recipe: Recipe) -> Seen:
    """What was there last time."""
    path = _seen_path(store, recipe)
    return Seen.model_validate_json(path.read_bytes()) if path.exists() else Seen()


def write_seen(store: Store, recipe: Recipe, seen: Seen) -> None:
    """Remember it; last of all, so that a run that failed is tried again."""
    write_atomically(_seen_path(store, recipe), seen.model_dump_json(indent=1).encode())


def file_changes(before: dict[str, str], source: dict[str, str]) -> tuple[list[str], list[str]]:
    """(new or changed files, files that are gone)."""
    changed = sorted(name for name, digest in source.items() if before.get(name) != digest)
    return changed, sorted(before.keys() - source.keys())


def notification(store: Store, record: RunRecord, before: Seen, now: Seen, outcome: str, seconds: float) -> str:
    """What was new, what it cost and what it changed, for people."""
    changed, gone = file_changes(before.corpus_files, now.corpus_files)
    built = [stage.label for stage in record.stages if stage.status == "built"]
    summary = summarise(store, record)
    lines = [
        f"# {record.recipe['name']}: {outcome}",
        f"- new or changed files: {len(changed)}{_examples(changed)}; gone: {len(gone)}{_examples(gone)}",
        f"- documents kept: {format_count(_metric(store, record, 'decontaminate', 'documents_kept'))}, "
        f"training tokens: {format_count(_metric(store, record, 'pack', 'train_tokens'))} "
        f"(last trained on: {format_count(before.trained_tokens)})",
        f"- took {format_seconds(seconds)}; built: {', '.join(built) or 'nothing'}",
        f"- run `{record.run_id}`: {record.status}",
    ]
    if record.stage("pretrain"):
        lines.append(f"- pretraining started from: {summary.started_from or 'random weights'}")
    if summary.verdict:
        lines.append(f"- verdict: {summary.verdict['verdict']}. {summary.verdict['reason']}")
    return "\n".join(lines) + "\n"


def _examples(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return f" ({shown}{', …' if len(names) > 5 else ''})" if names else ""


def _metric(store: Store, record: RunRecord, label: str, name: str) -> float:
    stage = record.stage(label)
    manifest = store.find(stage.stage, stage.key) if stage else None
    return manifest.metrics.get(name, 0.0) if manifest else 0.0
