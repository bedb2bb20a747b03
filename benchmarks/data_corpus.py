"""The documents that the data benchmarks share: real text cut to one length, and near-duplicates planted in it."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from tasks.mechanism.execution import Execution
from tasks.mechanism.stage import Artifact, build
from tasks.mechanism.store import digest_directory
from tasks.text.documents import DOCUMENT_SCHEMA, document_shards, write_table
from tasks.text.ingest import IngestConfig, ingest
from tasks.text.source import resolve_source

BOILERPLATE = "This page is part of a larger collection. See the list of contents for more and the index for terms. "


def real_texts(corpus: str, folder: Path, characters: int, count: int) -> list[str]:
    """Pieces of about `characters` characters, cut at white space, of the documents of a corpus; evenly over it."""
    home = folder / "corpus"
    source = resolve_source(corpus, home / "cache")
    documents = build(ingest, IngestConfig(), {"corpus": source}, Execution(home=home))
    pieces = [piece for shard in document_shards(documents) for piece in _pieces(shard, characters)]
    step = max(len(pieces) // count, 1)
    return pieces[::step][:count]


def _pieces(shard: Path, characters: int) -> Iterator[str]:
    import pyarrow.parquet as pq

    for text in pq.read_table(shard, columns=["text"])["text"].to_pylist():
        start = 0
        while start + characters // 2 < len(text):
            end = text.find(" ", start + characters)
            end = len(text) if end < 0 else end
            yield text[start:end]
            start = end


@dataclass(frozen=True)
class Planted:
    """Texts in any order, some of them near-duplicates of others: `pairs` of them, the earlier first."""

    texts: list[str]
    pairs: list[tuple[int, int]]


def plant(texts: Sequence[str], share: float, seed: int) -> Planted:
    """Add copies: exact, with boilerplate before or after, truncated, or with 0.2 to 8 % of the words changed."""
    rng = random.Random(seed)
    found, pairs = list(texts), []
    for _ in range(int(len(texts) * share)):
        original = rng.randrange(len(texts))
        words = texts[original].split(" ")
        kind = rng.randrange(5)
        if kind == 1:
            words = [BOILERPLATE, *words] if rng.random() < 0.5 else [*words, BOILERPLATE]
        elif kind == 2:
            words = words[: int(len(words) * rng.uniform(0.7, 0.98))]
        elif kind > 2:
            rate = rng.choice([0.002, 0.005, 0.01, 0.02, 0.04, 0.08])
            words = [f"edit{rng.randrange(999)}" if rng.random() < rate else word for word in words]
        pairs.append((original, len(found)))
        found.append(" ".join(words))
    order = list(range(len(found)))
    # Dedup keeps the first: a copy must be able to stand before its original.
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    ordered = [(min(place[a], place[b]), max(place[a], place[b])) for a, b in pairs]
    return Planted([found[old] for old in order], ordered)


def write_jsonl(texts: Sequence[str], path: Path) -> Path:
    """One JSON object a line, as the peers read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for number, text in enumerate(texts):
            stream.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")
    return path


def documents_artifact(texts: Sequence[str], folder: Path, shards: int) -> Artifact:
    """The texts as a documents artifact of equal shards, in their order."""
    borders = np.linspace(0, len(texts), shards + 1).astype(int)
    for shard in range(shards):
        part = texts[borders[shard] : borders[shard + 1]]
        ids = [
            xxhash.xxh3_128_hexdigest(f"bench\0{borders[shard] + n}\0{text}".encode()) for n, text in enumerate(part)
        ]
        constant = {name: pa.array([""] * len(part), pa.string()) for name in ("source", "origin", "license", "batch")}
        columns = {"doc_id": pa.array(ids, pa.string()), "text": pa.array(part, pa.large_string()), **constant}
        table = pa.table(columns).select(DOCUMENT_SCHEMA.names).cast(DOCUMENT_SCHEMA)
        write_table(table, folder / "shards" / f"{shard:05d}.parquet")
    return Artifact(digest_directory(folder)[0], folder)
