"""Drop documents that repeat an earlier one, exactly or nearly; each drop is recorded with its verified witness.

Keep-first in canonical order (see model/corpus/keep_first.py): a document goes if an earlier *kept* one has the same
normalised text, or shares an LSH bucket with it and enough of its real shingles. Signing is mapped over shards; the
verdicts are sequential but cheap, and an index of what was kept (index.py) carries them from run to run, so new shards
at the end cost only themselves. Only that index is global and not bounded by the shard: on disk and memory
mapped, about 300 bytes a kept document at the defaults, and 4 bytes for each shingle that drops are verified on.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from tasks.mechanism.identity import code_digest
from tasks.mechanism.shards import ShardJob, map_shards
from tasks.mechanism.stage import Artifact, StageRun, stage
from tasks.mechanism.store import Store, file_sha256, link_or_copy
from tasks.text.dedup.index import DedupIndex, candidate_sketches, chain_keys, find, find_exact, locate
from tasks.text.dedup.segment import IndexParameters, Segment
from tasks.text.dedup.signatures import SignConfig, Signed, read_signed, sign_shard
from tasks.text.documents import aligned_shards, write_table

if TYPE_CHECKING:
    from model.corpus.words import Ragged

FILTERED, EXACT, NEAR = "filtered", "exact_duplicate", "near_duplicate"
MISSED_BY_SIEVE = 3e-7
"""Probability that sketches agree too little for a pair of just the threshold's similarity to be compared."""
PAIRS_SCHEMA = pa.schema(
    [("dropped", pa.string()), ("kept", pa.string()), ("similarity", pa.float64()), ("kind", pa.string())]
)


class DedupConfig(SignConfig):
    """What counts as a repetition."""

    similarity: Literal["jaccard", "containment"] = Field(
        "jaccard",
        description="Of the two sets of shingles: intersection over union, or the share of the later document's "
        "shingles that the earlier has, which finds excerpts.",
    )
    threshold: float = Field(0.75, gt=0, le=1, description="Least similarity of a near-duplicate.")
    bucket_size: int = Field(
        8, ge=1, le=1000, description="How many kept documents of each bucket a document is compared with."
    )


@dataclass(frozen=True)
class Judged:
    """The verdicts on the signed documents of one shard, and what the index has to remember of them."""

    kind: NDArray[np.uint8]
    duplicate_of: list[str]
    similarity: NDArray[np.float64]
    segment: Segment


def judge(signed: Signed, shard: int, index: DedupIndex, cfg: DedupConfig) -> Judged:
    """Judge one shard's documents against those kept in earlier shards and against each other.

    Args:
        signed: the documents.
        shard: the number of their shard.
        index: what was kept in earlier shards.
        cfg: the parameters.
    """
    from model.corpus.keep_first import KEPT, Batch, Rule, keep_first
    from model.corpus.minhash import EMPTY, band_keys

    segments = index.segments(shard)
    rule = Rule(cfg.bucket_size, cfg.threshold, int(cfg.similarity == "containment"), least_agreement(cfg))
    keys = band_keys(signed.signature, cfg.bands, cfg.rows)
    worded = (signed.signature != EMPTY).any(axis=1)
    sketches = signed.signature.astype(np.uint8)

    hits = find(segments, keys, worded, cfg.bucket_size)
    near = _agreeing(sketches, hits.rows, segments, hits.documents) >= rule.least_agreement
    rows, documents = hits.rows[near], hits.documents[near]
    exact_witness = find_exact(segments, signed.text_hash)
    past = np.unique(np.concatenate([documents, exact_witness[exact_witness >= 0]]))
    witnesses = _witnesses(index, locate(segments, past))

    buckets, filled = _buckets(keys, worded, hits.filled)
    exact = np.unique(signed.text_hash, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    batch = Batch(
        buckets=buckets,
        filled=filled,
        exact=exact,
        exact_witness=np.where(exact_witness >= 0, np.searchsorted(past, exact_witness), -1),
        sets=signed.sets,
        candidate_starts=np.searchsorted(rows, np.arange(len(worded) + 1)).astype(np.int64),
        candidates=np.searchsorted(past, documents).astype(np.int64),
        witness_sets=witnesses.sets,
        sketches=sketches,
    )
    verdicts = keep_first(batch, rule)
    ids = pa.concat_arrays([witnesses.doc_ids, signed.doc_ids])
    named = ids.take(pa.array(np.maximum(verdicts.witness, 0))).to_pylist() if len(ids) else []
    duplicate_of = [name if witness >= 0 else "" for name, witness in zip(named, verdicts.witness.tolist())]
    kept = verdicts.kind == KEPT
    segment = _segment(signed, shard, keys, sketches, kept, verdicts.enters)
    return Judged(verdicts.kind, duplicate_of, verdicts.similarity, segment)


def least_agreement(cfg: DedupConfig) -> int:
    """In how many places of their sketches two documents must agree to be worth comparing.

    Of two documents of Jaccard similarity s, each place agrees with probability s; of containment it says nothing.
    """
    if cfg.similarity == "containment":
        return 0
    places, likely = cfg.bands * cfg.rows, 0.0
    if cfg.threshold == 1:
        return places
    for least in range(places):
        others = places - least
        ways = math.lgamma(places + 1) - math.lgamma(least + 1) - math.lgamma(others + 1)
        likely += math.exp(ways + least * math.log(cfg.threshold) + others * math.log1p(-cfg.threshold))
        if likely > MISSED_BY_SIEVE:  # of agreeing in `least` places or fewer
            return least
    return places


@dataclass(frozen=True)
class Witnesses:
    """Ids and shingles of some earlier kept documents."""

    doc_ids: pa.Array
    sets: "Ragged"


def _witnesses(index: DedupIndex, places: NDArray[np.uint32]) -> Witnesses:
    """The documents at (shard number, row among the signed), ascending as they are asked for."""
    from model.corpus.words import Ragged

    ids, parts = [pa.array([], pa.string())], [np.empty(0, np.uint32)]
    for shard in np.unique(places[:, 0]).tolist():
        signed = read_signed(index.signed_path(shard))
        rows = places[places[:, 0] == shard, 1].tolist()
        ids.append(signed.doc_ids.take(pa.array(rows)))
        parts += [signed.sets[row] for row in rows]
    ends = np.cumsum([0, *map(len, parts[1:])]).astype(np.int64)
    return Witnesses(pa.concat_arrays(ids), Ragged(np.concatenate(parts), ends))


def _agreeing(
    sketches: NDArray[np.uint8], rows: NDArray[np.int64], segments: Sequence[Segment], documents: NDArray[np.int64]
) -> NDArray[np.int64]:
    """In how many places the sketches of each pair agree; a slice at a time, to bound the memory."""
    agreeing = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), 100_000):
        part = slice(start, start + 100_000)
        agreeing[part] = (sketches[rows[part]] == candidate_sketches(segments, documents[part])).sum(axis=1)
    return agreeing


def _buckets(
    keys: NDArray[np.uint64], worded: NDArray[np.bool_], filled: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the buckets of this batch: (bands, documents), -1 without words; and how full each is. (buckets,)"""
    buckets = np.full(keys.shape, -1, np.int32)
    fillings = [np.empty(0, np.int32)]
    total = 0
    for band in range(len(keys)):
        found, inverse = np.unique(keys[band][worded], return_inverse=True)
        buckets[band][worded] = total + inverse.astype(np.int32)
        filling = np.zeros(len(found), np.int32)
        filling[inverse] = filled[band][worded]
        fillings.append(filling)
        total += len(found)
    return buckets, np.concatenate(fillings)


def _segment(
    signed: Signed,
    shard: int,
    keys: NDArray[np.uint64],
    sketches: NDArray[np.uint8],
    kept: NDArray[np.bool_],
    enters: NDArray[np.bool_],
) -> Segment:
    """What later shards must know of the kept documents."""
    place_of = (np.cumsum(kept) - 1).astype(np.uint32)
    all_keys, all_places = [], []
    for band in range(len(keys)):
        entering = np.flatnonzero(enters[band])
        order = entering[np.argsort(keys[band][entering], kind="stable")]
        all_keys.append(keys[band][order])
        all_places.append(place_of[order])
    kept_rows = np.flatnonzero(kept)
    by_hash = kept_rows[np.argsort(signed.text_hash[kept_rows, 0], kind="stable")]
    return Segment(
        keys=np.concatenate(all_keys),
        places=np.concatenate(all_places),
        starts=np.concatenate([[0], np.cumsum([len(k) for k in all_keys])]).astype(np.int64),
        exact=np.ascontiguousarray(signed.text_hash[by_hash]),
        exact_places=place_of[by_hash],
        sketches=np.ascontiguousarray(sketches[kept_rows]),
        documents=np.stack([np.full(len(kept_rows), shard), kept_rows], axis=1).astype(np.uint32),
    )


def _attributes(document_shard: Path, signed: Signed, judged: Judged) -> pa.Table:
    """The attribute rows of all documents of a shard, those dropped before included."""
    doc_ids = pq.read_table(document_shard, columns=["doc_id"])["doc_id"]
    reason = np.full(len(doc_ids), FILTERED, object)
    duplicate_of = np.full(len(doc_ids), "", object)
    similarity = np.zeros(len(doc_ids), np.float64)
    reason[signed.rows] = np.array(["", EXACT, NEAR], object)[judged.kind]
    duplicate_of[signed.rows] = judged.duplicate_of
    similarity[signed.rows] = judged.similarity
    return pa.table(
        {
            "doc_id": doc_ids,
            "keep": pa.array(reason == ""),
            "reason": pa.array(reason, pa.string()),
            "duplicate_of": pa.array(duplicate_of, pa.string()),
            "similarity": pa.array(similarity),
        }
    )


def index_parameters(cfg: DedupConfig) -> IndexParameters:
    """What an index must have been written with to serve this config."""
    from model.corpus.minhash import SCHEME
    from model.corpus.words import WORD_RULES

    return IndexParameters(
        SCHEME, cfg.seed, WORD_RULES, cfg.shingle_words, cfg.bands, cfg.rows, cfg.bucket_size, cfg.similarity,
        cfg.threshold,
    )  # fmt: skip


def index_folder(store: Store) -> Path:
    """Where the index of a store lies."""
    return store.home / "index" / "dedup"


def _judge_new_shards(
    run: StageRun, cfg: DedupConfig, index: DedupIndex, shards: list[Path], signed: list[Path]
) -> None:
    """Judge the shards after the longest known beginning, committing each to the index."""
    known = index.resumable()
    if known == len(shards):
        return
    with run.progress("judge shards", sum(path.stat().st_size for path in signed[known:]), "bytes") as bar:
        for shard in range(known, len(shards)):
            documents = read_signed(signed[shard])
            judged = judge(documents, shard, index, cfg)
            aside = run.scratch / "verdicts.parquet"
            write_table(_attributes(shards[shard], documents, judged), aside)
            index.keep_signed(shard, signed[shard])
            index.keep_verdicts(shard, aside)
            index.commit(shard, judged.segment)
            bar.advance(signed[shard].stat().st_size)


def _publish(run: StageRun, index: DedupIndex, shards: Sequence[Path]) -> Counter[str]:
    """Put the verdicts into the artifact with the list of pairs, and count."""
    totals: Counter[str] = Counter()
    with pq.ParquetWriter(run.out / "pairs.parquet", PAIRS_SCHEMA, compression="zstd", write_statistics=False) as pairs:
        for number, shard in enumerate(shards):
            target = run.out / "attributes" / shard.name
            link_or_copy(index.verdict_path(number), target)
            table = pq.read_table(target, columns=["doc_id", "reason", "duplicate_of", "similarity"])
            totals.update(table["reason"].to_pylist())
            dropped = table.filter(pc.not_equal(table["duplicate_of"], ""))
            columns = [dropped[name] for name in ("doc_id", "duplicate_of", "similarity", "reason")]
            pairs.write_table(pa.table(columns, schema=PAIRS_SCHEMA))
    return totals


@stage("dedup", version=1, figures=("documents_in", "documents_kept", "duplicates_exact", "duplicates_near"))
def dedup(run: StageRun, cfg: DedupConfig, documents: Artifact, **judged: Artifact) -> None:
    """Judge every document left so far; attributes as everywhere, and all (dropped, kept) pairs."""
    aligned = aligned_shards(documents, *judged.values())
    shards = [document_shard for document_shard, *_ in aligned]
    signed = [run.scratch / "signed" / f"{shard.stem}.arrow" for shard in shards]
    sign_cfg = SignConfig(**{name: getattr(cfg, name) for name in SignConfig.model_fields})
    map_shards(run, sign_shard, [ShardJob(paths, path) for paths, path in zip(aligned, signed)], sign_cfg)
    digests = [f"{file_sha256(shard)} {file_sha256(path)}" for shard, path in zip(shards, signed)]
    parameters = index_parameters(cfg)
    keys = chain_keys(parameters, code_digest(__name__), digests)
    index = DedupIndex(index_folder(run.store), parameters, keys)
    with run.store.lock("dedup", "index"):  # two runs may share a beginning, and merging removes what it merged
        index.claim(run.scratch.name)
        _judge_new_shards(run, cfg, index, shards, signed)
    totals = _publish(run, index, shards)
    run.metric("documents_in", sum(totals.values()) - totals[FILTERED])
    run.metric("documents_kept", totals[""])
    run.metric("duplicates_exact", totals[EXACT])
    run.metric("duplicates_near", totals[NEAR])
    run.metric("index_bytes", index.size_bytes())
    run.say(
        f"{totals['']:,} of {sum(totals.values()) - totals[FILTERED]:,} documents kept: "
        f"{totals[EXACT]:,} exact and {totals[NEAR]:,} near duplicates"
    )
