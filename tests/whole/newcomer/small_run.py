"""The first half of the pipeline on some forty texts, and what the last of its stages reads of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from flows.graph import Sources, prepare
from flows.recipe import Recipe, load_plan
from flows.run import InProcess, execute
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.store import Manifest, Store
from tasks.text.documents import aligned_shards, is_judgement, read_kept
from tasks.track import Untracked

SETTINGS = (
    "filter.languages=[]",
    "filter.pii=keep",
    "dedup.threshold=1",
    "tokenizer.vocab_size=512",
    "pack.validation_share=0.2",
    "execution.workers=1",
    "execution.threads=1",
)


def write_sources(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Some help topics and `more` texts by name, conversations and pairs; the sections of a recipe that name them."""
    (folder / "text").mkdir()
    texts = {f"{name}.txt": topics[name][:1500] for name in sorted(topics)[:40]} | dict(more)
    for name, text in texts.items():
        (folder / "text" / name).write_text(text, encoding="utf-8")
    words = ["iron", "steel", "coke", "ore", "slag", "lime", "blast", "heat", "mould", "ingot"]
    chats = [[{"role": r, "content": f"{w} {r}"} for r in ("user", "assistant")] for w in words]
    pairs = [{"prompt": f"What is {w}?", "chosen": f"{w} is hard.", "rejected": f"No {w}."} for w in words]
    for name, rows in (("chats", [{"messages": chat} for chat in chats]), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {
        "corpus": str(folder / "text"),
        "sft_data": str(folder / "chats.jsonl"),
        "preference_data": str(folder / "pairs.jsonl"),
    }


def prepared(sections: Mapping[str, str], home: Path, settings: Sequence[str] = ()) -> RunRecord:
    """The record of a run of `prepare` with these `--set` settings."""

    def body(recipe: Recipe, sources: Sources, runner: InProcess) -> None:
        prepare(recipe, sources, runner)

    plan = load_plan("demo", [*SETTINGS, *settings, f"execution.home={home}"], sections)
    return execute(plan.recipe, plan.execution, Untracked(), body=body)


def manifest_of(home: Path, record: RunRecord, label: str) -> Manifest:
    """What was written down of one stage of the run."""
    (stage,) = [stage for stage in record.stages if stage.label == label]
    found = Store(home).find(stage.stage, stage.key)
    assert found is not None
    return found


def texts_to_pack(home: Path, record: RunRecord) -> str:
    """The text that `pack` turns into tokens, by the artifacts that it was given."""
    given = {name: Store(home).open(digest) for name, digest in manifest_of(home, record, "pack").inputs.items()}
    judged = [artifact for artifact in given.values() if is_judgement(artifact)]
    shards = aligned_shards(given["documents"], *judged)
    return "\n".join(text for shard, *rest in shards for text in read_kept(shard, rest)["text"].to_pylist())
