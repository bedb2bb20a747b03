"""What to do about new text, and what the watch has seen of a recipe's sources, by content; needs no Prefect.

So a look that finds nothing new takes seconds, whoever takes it.
"""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.recipe import Recipe
from flows.run import Promotion
from model.settings import arrange_form
from tasks.mechanism.store import Store, write_atomically
from tasks.text.dated import parse_dated


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


def wants_training(watch: WatchConfig, trained_tokens: float, tokens: float) -> bool:
    """Whether the policy calls for training. Text that shrank, a takedown, counts as change too."""
    if watch.retrain == "when grown":
        # 0: never trained on, though text may have been prepared before.
        return trained_tokens == 0 or abs(tokens - trained_tokens) > watch.new_share * trained_tokens
    return watch.retrain == "always"


class Seen(BaseModel):
    """What the watch knows of a recipe and its sources; at `watch/<recipe>-<digest of the sources' names>.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, str] = {}
    corpus_files: dict[str, str] = {}
    trained_tokens: float = 0.0
    documents: float = 0.0
    documents_kept: float = 0.0
    tokens: float = 0.0


def _seen_path(store: Store, recipe: Recipe) -> Path:
    """Dated folders are known by their address without the dates: a schedule goes on from where a backfill ended."""
    dated = parse_dated(recipe.corpus)
    corpus = str(dated.undated) if dated else recipe.corpus
    named = "\0".join((corpus, recipe.sft_data, recipe.preference_data))
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
