"""Turn the kept text into token files, and remember which tokens came from which document.

A document's side, training or validation, follows from the hash in its id, so it never changes when the corpus grows.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq
from pydantic import Field

from model.corpus.words import as_texts
from model.vocabulary.tokenizer import Tokenizer
from tasks.mechanism.identity import canonical_json
from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import Artifact, StageConfig, StageRun, stage
from tasks.text.documents import aligned_shards, read_kept
from tasks.tokens.contract import CONTRACT_FILE
from tasks.tokens.files import SPLITS, Split, write_overlap

UINT16_VOCABULARY = 1 << 16  # half the bytes to write and to read: 20 TB for 10¹³ tokens (docs/scale.md)
"""Up to so many entries a token takes two bytes instead of four."""

_ENCODED_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("bytes", pa.int64()),
        # 64-bit offsets, and 32-bit ids whatever the vocabulary: `concatenate` narrows them.
        ("tokens", pa.large_list(pa.uint32())),
    ]
)
SPAN_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("start", pa.int64()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
"""`start` and `tokens` count tokens of the split's file; a separator counts to the document before it."""


class PackConfig(StageConfig):
    """How documents are split into training and validation."""

    validation_share: float = Field(
        0.02, gt=0, le=0.5, description="Share of documents, chosen by hash, that are kept for validation."
    )


@stage("pack", version=1, figures=("train_tokens", "validation_tokens"))
def pack(run: StageRun, cfg: PackConfig, documents: Artifact, tokenizer: Artifact, **judged: Artifact) -> None:
    """Write `train.bin`, `validation.bin`, `spans.parquet`, `overlap.parquet`, `meta.json` and `contract.json`.

    Raises:
        ValueError: no document fell into one of the splits.
    """
    vocabulary = tokenizer.path / "tokenizer.json"
    jobs = [
        ShardJob((vocabulary, *paths), run.scratch / "encoded" / f"{paths[0].stem}.arrow")
        for paths in aligned_shards(documents, *judged.values())
    ]
    map_shards(run, encode_shard, jobs, cfg)
    loaded = _load_tokenizer(vocabulary.read_bytes())
    # Little-endian on any machine: files are addressed by their bytes.
    dtype = np.dtype("<u2" if loaded.vocab_size <= UINT16_VOCABULARY else "<u4")
    totals = concatenate([job.output for job in jobs], run.out, dtype)
    for split in SPLITS:
        _check_split(split, totals[split], cfg.validation_share)
        run.metric(f"{split}_documents", totals[split].documents)
        run.metric(f"{split}_tokens", totals[split].tokens)
        run.metric(f"{split}_bytes", totals[split].bytes)
    train, validation = totals["train"], totals["validation"]
    run.metric("bytes_per_token", (train.bytes + validation.bytes) / (train.tokens + validation.tokens))
    meta = {
        "vocab_size": loaded.vocab_size,
        "dtype": dtype.name,
        "train_tokens": train.tokens,
        "train_bytes": train.bytes,
        "validation_tokens": validation.tokens,
        "validation_bytes": validation.bytes,
    }
    (run.out / "meta.json").write_bytes(canonical_json(meta) + b"\n")
    (run.out / CONTRACT_FILE).write_bytes((tokenizer.path / CONTRACT_FILE).read_bytes())
    run.metric("validation_overlap", write_overlap(run.out))


def split_of(doc_id: str, validation_share: float) -> Split:
    """The side of a document; a pure function of its id, so that a growing corpus moves no document."""
    # The second half of the id: the tokenizer's sample goes by the first, so neither leans towards the other.
    return "validation" if int(doc_id[16:], 16) < validation_share * 2**64 else "train"


def encode_shard(inputs: tuple[Path, ...], output: Path, cfg: PackConfig) -> Mapping[str, float]:
    """Shard function: (tokenizer.json, document shard, attribute shards...) -> the tokens of each kept document."""
    vocabulary, document_shard, *attributes = inputs
    tokenizer = _load_tokenizer(vocabulary.read_bytes())
    rows = read_kept(document_shard, attributes)
    texts = as_texts(rows["text"])
    # A column at once: 0.38 CPU-s where tiktoken one by one takes 1.73 for the same 32 MB (docs/LOG.md, 2026-11-25).
    encoded = tokenizer.encode_column(texts)
    # A separator after each document, so that attention can stop there and none begins in the middle of another.
    flat = np.insert(encoded.values, encoded.offsets[1:], np.uint32(tokenizer.endoftext_id))
    offsets = encoded.offsets + np.arange(len(encoded) + 1)
    columns = [
        rows["doc_id"],
        rows["source"],
        pa.array([split_of(doc_id, cfg.validation_share) for doc_id in rows["doc_id"].to_pylist()], pa.string()),
        pc.binary_length(texts).cast(pa.int64()),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat)),
    ]
    with pa.ipc.new_file(output, _ENCODED_SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=_ENCODED_SCHEMA))
    return {"documents": float(len(texts)), "tokens": float(len(flat))}


@lru_cache(maxsize=1)
def _load_tokenizer(specification: bytes) -> Tokenizer:
    """Of all that one process packs with a vocabulary, only the first has to build its tables."""
    return Tokenizer(orjson.loads(specification))


@dataclass(frozen=True)
class SplitTotals:
    """What a split's file holds; `tokens` counts the separators too."""

    documents: int
    tokens: int
    bytes: int


def concatenate(shards: Sequence[Path], out: Path, dtype: np.dtype[Any]) -> dict[Split, SplitTotals]:
    """Write `train.bin`, `validation.bin` and `spans.parquet` from encoded shards, one shard in memory at a time."""
    totals = {split: SplitTotals(0, 0, 0) for split in SPLITS}
    with ExitStack() as stack:
        files = {split: stack.enter_context((out / f"{split}.bin").open("wb")) for split in SPLITS}
        # With statistics, unlike other tables: a reader passes over the row groups of the other split.
        spans = stack.enter_context(pq.ParquetWriter(out / "spans.parquet", SPAN_SCHEMA, compression="zstd"))
        for shard in shards:
            table = pa.ipc.open_file(shard).read_all().combine_chunks()
            for split in SPLITS:
                rows = table.filter(pc.equal(table["split"], split))
                lengths = pc.list_value_length(rows["tokens"]).to_numpy()
                before = totals[split]
                starts = before.tokens + np.cumsum(lengths) - lengths
                files[split].write(pc.list_flatten(rows["tokens"]).to_numpy().astype(dtype).tobytes())
                named = [rows["doc_id"], rows["source"], rows["split"], pa.array(starts, pa.int64())]
                spans.write_table(pa.table([*named, pa.array(lengths, pa.int64()), rows["bytes"]], schema=SPAN_SCHEMA))
                totals[split] = SplitTotals(
                    before.documents + len(rows),
                    before.tokens + int(lengths.sum()),
                    before.bytes + (pc.sum(rows["bytes"]).as_py() or 0),
                )
    return totals


def _check_split(split: Split, totals: SplitTotals, validation_share: float) -> None:
    if totals.documents == 0:
        raise ValueError(
            f"No document is left for {split}: the share for validation is {validation_share} (pack.validation_share) "
            "and the documents are chosen by hash. Give more documents, loosen the filters (`bessemer inspect filter` "
            "shows what they drop), or change pack.validation_share."
        )
