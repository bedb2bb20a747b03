"""Drop documents that share a long run of words with what later scores are measured on, so that scores mean something.

Method of GPT-3 (Brown et al. 2020, appendix C): runs of 13 words; a run that many documents have is a common phrase,
not a leak. Documents are searched by hash, shard by shard; each hit is then compared word by word. Protected are the
validation splits of conversations and preferences, and any benchmark files. The corpus's own validation split is taken
from whole documents after dedup; `pack` measures how much of it stands in the training text all the same.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from tasks.mechanism.shards import Counts, ShardJob, map_shards
from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage
from tasks.text.benchmarks import CONVERSATIONS, PREFERENCES, benchmark_files
from tasks.text.documents import aligned_shards, kept_rows, write_table
from tasks.text.readers import read_file
from tasks.text.readers.records import Bad, Text
from tasks.text.source import Source, SourceFile

REMOVED_BEFORE, CONTAMINATED = "removed_before", "contaminated"
MATCH_SCHEMA = pa.schema([("row", pa.int32()), ("ngram", pa.int64()), ("words", pa.string())])
BENCHMARK_SCHEMA = pa.schema([("benchmark", pa.string()), ("item", pa.string()), ("text", pa.large_string())])
OVERLAP_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("benchmark", pa.string()),
        ("item", pa.string()),
        ("ngrams", pa.int64()),
        ("words", pa.string()),
    ]
)


class DecontaminateConfig(StageConfig):
    """What counts as contamination of the documents by a benchmark."""

    ngram_words: int = Field(
        13, ge=5, le=50, description="Length of the word n-grams that, shared with a benchmark, count as contamination."
    )
    max_documents_per_ngram: int = Field(
        10,
        ge=1,
        description="An n-gram found in more documents than this is taken for a common phrase (GPT-3: 10).",
    )


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of the benchmarks: `hashes` ascending and distinct; n-gram i occurs in texts[text_of[i]] first."""

    hashes: NDArray[np.uint64]
    text_of: NDArray[np.int64]


def benchmark_texts(conversations: Artifact, preferences: Artifact, benchmarks: Source | None) -> pa.Table:
    """Each text of the validation splits and benchmark files, with the benchmark and the item it stems from.

    Raises:
        ValueError: a benchmark file, or a record of it, cannot be read: what it asks could not be protected; two
            files have one name.
    """
    rows = [(CONVERSATIONS, *row) for row in _conversation_texts(conversations.path / "validation.parquet")]
    rows += [(PREFERENCES, *row) for row in _preference_texts(preferences.path / "validation.parquet")]
    for name, file in benchmark_files(benchmarks).items() if benchmarks else ():
        rows += [(name, *row) for row in _file_texts(file)]
    columns = list(zip(*rows)) or [(), (), ()]
    return pa.table([list(column) for column in columns], schema=BENCHMARK_SCHEMA)


def _conversation_texts(path: Path) -> Iterator[tuple[str, str]]:
    for row in pq.read_table(path, columns=["conversation_id", "messages"]).to_pylist():
        for message in row["messages"]:
            yield row["conversation_id"], message["content"]


def _preference_texts(path: Path) -> Iterator[tuple[str, str]]:
    for row in pq.read_table(path, columns=["preference_id", "prompt", "chosen", "rejected"]).to_pylist():
        for part in ("prompt", "chosen", "rejected"):
            for message in row[part]:
                yield row["preference_id"], message["content"]


def _file_texts(file: SourceFile) -> Iterator[tuple[str, str]]:
    """(place, text) of each text in the records of a file, whatever its field is called."""
    for item in read_file(file.path, file.name, fields=None):
        if isinstance(item, Bad):
            raise ValueError(f"The benchmark {file.name} {item.place} cannot be read: {item.error}. Mend or remove it.")
        texts = [item.text] if isinstance(item, Text) else _strings(item.fields)
        yield from ((item.place, text) for text in texts)


def _strings(value: object) -> Iterator[str]:
    """All strings inside lists and mappings."""
    # First: a string is a Sequence too.
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _strings(inner))
    elif isinstance(value, Sequence):
        yield from (text for inner in value for text in _strings(inner))


def ngrams_of(texts: pa.LargeStringArray, words: int) -> Ngrams:
    """The n-grams of the benchmark texts; texts shorter than n words have none."""
    from model.corpus.words import shingles

    found = shingles(texts, words)
    owner = np.repeat(np.arange(len(found)), np.diff(found.offsets))
    # A text shorter than n words has one shingle of fewer words: it is told by being longer for n - 1 words.
    shorter = np.diff(found.offsets) <= 1
    exact_length = np.diff(shingles(texts, words - 1).offsets) >= 2
    usable = ~shorter | exact_length
    mine = usable[owner]
    # Of an n-gram in several texts the first is named: an overlap needs one witness.
    hashes, first = np.unique(found.values[mine], return_index=True)
    return Ngrams(hashes, owner[mine][first].astype(np.int64))


def match_shard(inputs: tuple[Path, ...], output: Path, cfg: DecontaminateConfig) -> Counts:
    """Write (row, n-gram) for each distinct benchmark n-gram that occurs in a kept document of the shard.

    Inputs: the benchmark texts, the document shard, and its attribute shards so far.
    """
    from model.corpus.ngrams import matches
    from model.corpus.words import as_texts

    benchmark = pq.read_table(inputs[0])
    texts = as_texts(benchmark["text"])
    ngrams = ngrams_of(texts, cfg.ngram_words)
    keep = kept_rows(inputs[1], inputs[2:])
    documents = pq.read_table(inputs[1], columns=["doc_id", "text"]).filter(keep)
    # Rows of the shard, as all attributes count them; `documents` is what is left of it.
    rows = np.flatnonzero(keep.to_numpy())
    # By hash, each hit confirmed word by word: one hash that collides would cost a document.
    found = matches(as_texts(documents["text"]), texts, ngrams.hashes, ngrams.text_of, cfg.ngram_words)
    columns = {"row": rows[found.rows], "ngram": found.ngrams, "words": found.words}
    write_table(pa.table(columns, schema=MATCH_SCHEMA), output)  # stated: no match at all would leave types open
    return {"documents": float(len(documents))}


def _leaks(matched: Sequence[Path], ngrams: int, most_documents: int) -> NDArray[np.bool_]:
    """Which n-grams are rare enough among the documents to be leaks. (ngrams,)"""
    frequency = np.zeros(ngrams, np.int64)
    for path in matched:
        # An n-gram is listed once a document, so this counts documents, not occurrences.
        frequency += np.bincount(pq.read_table(path, columns=["ngram"])["ngram"].to_numpy(), minlength=ngrams)
    return (frequency > 0) & (frequency <= most_documents)


@stage("decontaminate", version=1, figures=("documents_in", "documents_kept"))
def decontaminate(
    run: StageRun,
    cfg: DecontaminateConfig,
    documents: Artifact,
    conversations: Artifact,
    preferences: Artifact,
    benchmarks: Source | None = None,
    **judged: Artifact,
) -> None:
    """Judge every document left so far; attributes as everywhere, and each overlap found."""
    from model.corpus.words import as_texts

    benchmark = benchmark_texts(conversations, preferences, benchmarks)
    benchmark_path = run.scratch / "benchmark.parquet"
    # As a file: a shard function sees nothing but files and its config, and its memo goes by their bytes.
    write_table(benchmark, benchmark_path)
    aligned = aligned_shards(documents, *judged.values())
    matched = [run.scratch / "matched" / paths[0].name for paths in aligned]
    jobs = [ShardJob((benchmark_path, *paths), path) for paths, path in zip(aligned, matched)]
    map_shards(run, match_shard, jobs, cfg)
    ngrams = ngrams_of(as_texts(benchmark["text"]), cfg.ngram_words)
    # Over all shards: whether an n-gram is a common phrase cannot be told from one of them.
    leaks = _leaks(matched, len(ngrams.hashes), cfg.max_documents_per_ngram)

    totals: Counter[str] = Counter()
    overlapping: set[tuple[str, str]] = set()
    writer = pq.ParquetWriter(run.out / "overlaps.parquet", OVERLAP_SCHEMA, compression="zstd", write_statistics=False)
    with writer:
        for (shard, *attributes), path in zip(aligned, matched):
            verdict, overlaps = _judge(shard, attributes, pq.read_table(path), leaks, ngrams, benchmark)
            write_table(verdict, run.out / "attributes" / shard.name)
            writer.write_table(overlaps)
            totals.update(verdict["reason"].to_pylist())
            overlapping.update((row["benchmark"], row["item"]) for row in overlaps.to_pylist())
    _tell(run, benchmark, overlapping, totals)
    run.metric("benchmark_ngrams", len(ngrams.hashes))


def _tell(run: StageRun, benchmark: pa.Table, overlapping: Set[tuple[str, str]], totals: Mapping[str, int]) -> None:
    """Record how many documents went, by reason in `totals`, and how many items of each benchmark they overlap with."""
    # Without duplicates, in their order: that of a set would be another in each process.
    items = dict.fromkeys(zip(benchmark["benchmark"].to_pylist(), benchmark["item"].to_pylist()))
    overlapping_by_name = Counter(name for name, _ in overlapping)
    for name, total in Counter(name for name, _ in items).items():
        run.metric(f"items/{name}", total)
        run.metric(f"items_overlapping/{name}", overlapping_by_name[name])
    run.metric("documents_in", totals[""] + totals[CONTAMINATED])
    run.metric("documents_kept", totals[""])
    run.metric("documents_contaminated", totals[CONTAMINATED])
    run.metric("benchmark_items", len(items))
    run.metric("benchmark_items_overlapping", len(overlapping))
    run.say(
        f"{totals[CONTAMINATED]:,} of {totals[''] + totals[CONTAMINATED]:,} documents overlap with "
        f"{len(overlapping):,} of {len(items):,} validation items and are dropped"
    )


def _judge(
    shard: Path,
    attributes: Sequence[Path],
    found: pa.Table,
    leaks: NDArray[np.bool_],
    ngrams: Ngrams,
    benchmark: pa.Table,
) -> tuple[pa.Table, pa.Table]:
    """The attribute rows of a shard, and the overlaps behind them: an item, how many n-grams of it, one of them."""
    doc_ids = pq.read_table(shard, columns=["doc_id"])["doc_id"]
    # Objects: a fixed width would cut longer reasons
    reason = np.where(kept_rows(shard, attributes).to_numpy(), "", REMOVED_BEFORE).astype(object)
    found = found.filter(pa.array(leaks[found["ngram"].to_numpy()]))
    rows, texts = found["row"].to_numpy(), ngrams.text_of[found["ngram"].to_numpy()]
    # By document, then item: "one of the n-grams" is then the first, in every run.
    order = np.lexsort([texts, rows])
    found, rows, texts = found.take(order), rows[order], texts[order]
    reason[rows] = CONTAMINATED
    item = pa.array(texts)
    overlaps = pa.table(
        {
            "doc_id": doc_ids.take(rows),
            "benchmark": benchmark["benchmark"].take(item),
            "item": benchmark["item"].take(item),
            "words": found["words"],
        }
    )
    # On one thread: several give the groups in the order in which they end.
    grouped = overlaps.group_by(["doc_id", "benchmark", "item"], use_threads=False)
    overlaps = grouped.aggregate([("words", "count"), ("words", "first")])
    overlaps = overlaps.rename_columns({"words_count": "ngrams", "words_first": "words"}).select(OVERLAP_SCHEMA.names)
    verdict = pa.table({"doc_id": doc_ids, "keep": pa.array(reason == ""), "reason": pa.array(reason, pa.string())})
    return verdict, overlaps.cast(OVERLAP_SCHEMA)
