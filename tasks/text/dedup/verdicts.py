"""The verdicts on one shard, given what was kept of earlier ones: candidates by LSH, each confirmed on its shingles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.text.dedup.index import DedupIndex, candidate_sketches, find, find_exact, locate
from tasks.text.dedup.segment import Segment
from tasks.text.dedup.signatures import SignConfig, Signed, read_signed

if TYPE_CHECKING:
    from model.corpus.keep_first import Rule
    from model.corpus.words import Ragged


@dataclass(frozen=True)
class Judged:
    """The verdicts on the signed documents of one shard, and what the index has to remember of them."""

    kind: NDArray[np.uint8]
    duplicate_of: list[str]
    similarity: NDArray[np.float64]
    segment: Segment


def judge(signed: Signed, shard: int, index: DedupIndex, cfg: SignConfig, rule: "Rule") -> Judged:
    """Judge one shard's documents against those kept in earlier shards and against each other.

    Args:
        signed: the documents.
        shard: the number of their shard.
        index: what was kept in earlier shards.
        cfg: what the documents were signed with.
        rule: what counts as a repetition.
    """
    from model.corpus.keep_first import KEPT, Batch, keep_first
    from model.corpus.minhash import EMPTY, band_keys

    segments = index.segments(shard)
    keys = band_keys(signed.signature, cfg.bands, cfg.rows)
    # Texts without words all have one signature: they would be near-duplicates of each other, with nothing compared.
    worded = (signed.signature != EMPTY).any(axis=1)
    sketches = signed.signature.astype(np.uint8)  # b-bit minwise hashing, b = 8: a quarter of the memory

    hits = find(segments, keys, worded, rule.bucket_size)
    # False candidates mostly end here, on 112 bytes, before their shingles (1.8 KB a document) are read from disk.
    near = _agreeing(sketches, hits.rows, segments, hits.documents) >= rule.least_agreement
    rows, documents = hits.rows[near], hits.documents[near]
    exact_witness = find_exact(segments, signed.text_hash)
    # Each witness once, in the order in which documents came
    past = np.unique(np.concatenate([documents, exact_witness[exact_witness >= 0]]))
    witnesses = _witnesses(index, locate(segments, past))

    buckets, filled = _buckets(keys, worded, hits.filled)
    # Flat: numpy 2.0 gives the inverse a second dimension where an axis is named.
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
    # -1 (no witness) would raise; replaced by "" below
    named = ids.take(pa.array(np.maximum(verdicts.witness, 0))).to_pylist() if len(ids) else []
    duplicate_of = [name if witness >= 0 else "" for name, witness in zip(named, verdicts.witness.tolist())]
    kept = verdicts.kind == KEPT
    segment = _segment(signed, shard, keys, sketches, kept, verdicts.enters)
    return Judged(verdicts.kind, duplicate_of, verdicts.similarity, segment)


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
    """In how many places the sketches of each pair agree: (pairs,); a slice at a time, to bound the memory."""
    agreeing = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), 100_000):  # 11 MB a side at 112 bytes a sketch
        part = slice(start, start + 100_000)
        agreeing[part] = (sketches[rows[part]] == candidate_sketches(segments, documents[part])).sum(axis=1)
    return agreeing


def _buckets(
    keys: NDArray[np.uint64], worded: NDArray[np.bool_], filled: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the buckets of this batch: (bands, documents), -1 without words; and how full each is. (buckets,)"""
    # Small numbers instead of 64-bit keys: the kernel counts each bucket in an array.
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
        # Stable: documents of one bucket stay as they came, and the first of them are looked at first.
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
