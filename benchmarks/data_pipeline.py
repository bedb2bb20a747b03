"""Our side of "JSON lines to token files": ingest, filter, dedup and pack, on one worker."""

import resource
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data_corpus import documents_artifact
from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.text.dedup.dedup import DedupConfig, dedup
from tasks.text.filter import PUBLISHED, filter
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.source import resolve_source
from tasks.tokens.pack import PackConfig, pack
from tasks.tokens.tokenizer import TokenizerConfig, tokenizer

REPEATS = 3
WARM_UP_SHARE = 0.5
"""Of the warm-up's documents for validation: so few must fall on both sides."""


def all_kept(documents: Artifact, folder: Path) -> Artifact:
    """Attributes that keep every document."""
    for shard in sorted((documents.path / "shards").glob("*.parquet")):
        ids = pq.read_table(shard, columns=["doc_id"])["doc_id"]
        (folder / "attributes").mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.table({"doc_id": ids, "keep": pa.array([True] * len(ids), pa.bool_())}),
            folder / "attributes" / shard.name,
        )
    return Artifact(f"all of {documents.digest}", folder)


def train_tokenizer(folder: Path, texts: Sequence[str]) -> Artifact:
    """A tokenizer of 32,000 entries; its training is no part of the comparison."""
    documents = documents_artifact(texts, folder / "tokenizer-documents", 1)
    kept = all_kept(documents, folder / "tokenizer-kept")
    inputs = {"documents": documents, "filtered": kept, "deduplicated": kept, "decontaminated": kept}
    return build(tokenizer, TokenizerConfig(vocab_size=32_000), inputs, Execution(home=folder / "tokenizer-home"))


def cpu_seconds() -> float:
    """Of this process and of the children that it waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + usage.ru_utime + usage.ru_stime


def ours_from_jsonl(warm_up: Path, source: Path, vocabulary: Artifact, folder: Path) -> dict[str, float]:
    """CPU seconds by stage and in all, after a few documents that load what is loaded once, as for the peer.

    The median of REPEATS runs: one takes a third of a second on 2,000 documents, too short for a busy machine.
    """
    _run_stages(warm_up, vocabulary, folder / "warm-up", WARM_UP_SHARE)
    share = PackConfig().validation_share
    runs = [_run_stages(source, vocabulary, folder / f"measured{n}", share) for n in range(REPEATS)]
    return sorted(runs, key=lambda seconds: seconds["cpu_seconds"])[REPEATS // 2]


def _run_stages(source: Path, vocabulary: Artifact, home: Path, validation_share: float) -> dict[str, float]:
    execution = Execution(home=home, workers=1)
    marks = [("start", cpu_seconds())]
    corpus = resolve_source(str(source), home / "cache")
    documents = build(ingest, IngestConfig(), {"corpus": corpus}, execution)
    marks.append(("ingest", cpu_seconds()))
    published = PUBLISHED.model_copy(update={"languages": ()})  # datatrove's side identifies no language either
    filtered = build(filter, published, {"documents": documents}, execution)
    marks.append(("filter", cpu_seconds()))
    unique = build(dedup, DedupConfig(), {"documents": documents, "filtered": filtered}, execution)
    marks.append(("dedup", cpu_seconds()))
    clean = all_kept(documents, home / "clean")
    inputs = {"documents": documents, "filtered": filtered, "deduplicated": unique, "decontaminated": clean}
    build(pack, PackConfig(validation_share=validation_share), {**inputs, "tokenizer": vocabulary}, execution)
    marks.append(("pack", cpu_seconds()))
    stages = {name: end - start for (_, start), (name, end) in pairwise(marks)}
    return {**stages, "cpu_seconds": sum(stages.values())}
