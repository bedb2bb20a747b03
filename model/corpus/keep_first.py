"""Near-duplicates by keep-first: a document goes if an earlier *kept* one is similar enough, which is its witness.

In canonical order each document looks at the first `bucket_size` kept documents of each of its LSH buckets and is
dropped by the first of them whose real shingles are similar enough. So each drop has one recorded, verified witness;
no chain of pairs drops what resembles nothing kept; and later documents never change earlier verdicts, which connected
components do. One batch or many give the same verdicts because the cap counts over everything kept before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.corpus.words import Ragged
from model.kernels.jit import bare_helper, kernel

U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
KEPT, EXACT, NEAR = 0, 1, 2
NO_WITNESS = -1


@dataclass(frozen=True)
class Batch:
    """Documents to judge, in canonical order, and what of the past concerns them.

    buckets: (bands, documents) number of the bucket in this batch, -1 for a document without words
    filled: (buckets,) how many earlier kept documents the bucket has, at most bucket_size
    exact: (documents,) equal numbers for equal normalised texts
    exact_witness: (documents,) the earlier kept document of the same text, or NO_WITNESS
    sets: the sorted distinct shingle hashes of each document
    candidates: CSR (starts (documents + 1,), witnesses) of earlier kept documents in the document's buckets
    witness_sets: the sorted distinct shingles of these
    sketches: (documents, permutations) low byte of each signature value
    """

    buckets: I32
    filled: I32
    exact: I64
    exact_witness: I64
    sets: Ragged
    candidate_starts: I64
    candidates: I64
    witness_sets: Ragged
    sketches: NDArray[np.uint8]


@dataclass(frozen=True)
class Verdicts:
    """What became of each document of a batch.

    kind: (documents,) KEPT, EXACT or NEAR
    witness: (documents,) a witness of the past is its number, one of this batch len(witness_sets) + its row
    similarity: (documents,) with the witness, 0 if kept
    enters: (bands, documents) whether it is kept and among the first of its bucket, so that later ones must see it
    """

    kind: NDArray[np.uint8]
    witness: I64
    similarity: NDArray[np.float64]
    enters: NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """When a document is a near-duplicate of an earlier kept one.

    bucket_size: how many kept documents of each bucket are looked at
    threshold: least similarity
    containment: 1: the share of the later document's shingles that the earlier has; 0: Jaccard similarity
    least_agreement: pairs whose sketches agree in fewer places are not compared (the caller sieves `candidates` so)
    """

    bucket_size: int
    threshold: float
    containment: int
    least_agreement: int


def keep_first(batch: Batch, rule: Rule) -> Verdicts:
    """Judge a batch of documents, given what of the past concerns it."""
    bands, count = batch.buckets.shape
    verdicts = Verdicts(
        np.zeros(count, np.uint8),
        np.full(count, NO_WITNESS, np.int64),
        np.zeros(count, np.float64),
        np.zeros((bands, count), np.bool_),
    )
    members = np.full((len(batch.filled), rule.bucket_size), -1, np.int32)
    _judge(
        batch.buckets, batch.filled.copy(), batch.exact, batch.exact_witness, batch.sets.values, batch.sets.offsets,
        batch.candidate_starts, batch.candidates, batch.witness_sets.values, batch.witness_sets.offsets,
        batch.sketches, members, rule.threshold, rule.containment, rule.least_agreement,
        verdicts.kind, verdicts.witness, verdicts.similarity, verdicts.enters,
    )  # fmt: skip
    return verdicts


@bare_helper
def similarity(later: U32, earlier: U32, containment: int) -> float:
    """Jaccard similarity of two sorted sets, or the share of `later` that is in `earlier`; 0 for an empty `later`."""
    i = j = common = 0
    while i < len(later) and j < len(earlier):
        if later[i] == earlier[j]:
            common += 1
            i += 1
            j += 1
        elif later[i] < earlier[j]:
            i += 1
        else:
            j += 1
    whole = len(later) if containment else len(later) + len(earlier) - common
    return common / whole if whole else 0.0


@bare_helper
def agreement(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> int:
    """In how many places two sketches agree."""
    same = 0
    for k in range(len(left)):
        same += int(left[k] == right[k])
    return same


@bare_helper
def _neighbours(buckets: I32, members: I32, row: int, found: I32) -> int:
    """Kept documents of this batch in the row's buckets, distinct and ascending; returns their number."""
    count = 0
    for band in range(len(buckets)):
        bucket = buckets[band, row]
        if bucket < 0:
            continue
        for k in range(members.shape[1]):
            member = members[bucket, k]
            if member < 0:
                break
            place = 0
            # By insertion, at most bands x bucket_size long: the first in canonical order is to be the witness.
            while place < count and found[place] < member:
                place += 1
            if place < count and found[place] == member:
                continue
            for later in range(count, place, -1):
                found[later] = found[later - 1]
            found[place] = member
            count += 1
    return count


@bare_helper
def _enter(buckets: I32, filled: I32, members: I32, row: int, enters: NDArray[np.bool_]) -> None:
    """Put a kept document into those of its buckets that have room."""
    size = members.shape[1]
    for band in range(len(buckets)):
        bucket = buckets[band, row]
        if bucket < 0 or filled[bucket] >= size:
            continue
        place = 0
        while members[bucket, place] >= 0:
            place += 1
        members[bucket, place] = row
        filled[bucket] += 1  # counts the past too: increments fill a bucket as one run does
        enters[band, row] = True


@kernel(
    "i4[:,:]", "out i4[:]", "i8[:]", "i8[:]", "u4[:]", "i8[:]", "i8[:]", "i8[:]", "u4[:]", "i8[:]",
    "u1[:,:]", "out i4[:,:]", "f8", "i8", "i8", "out u1[:]", "out i8[:]", "out f8[:]", "out b1[:,:]",
)  # fmt: skip
def _judge(
    buckets: I32,
    filled: I32,
    exact: I64,
    exact_witness: I64,
    sets: U32,
    set_starts: I64,
    candidate_starts: I64,
    candidates: I64,
    witness_sets: U32,
    witness_starts: I64,
    sketches: NDArray[np.uint8],
    members: I32,
    threshold: float,
    containment: int,
    least_agreement: int,
    kind: NDArray[np.uint8],
    witness: I64,
    similarities: NDArray[np.float64],
    enters: NDArray[np.bool_],
) -> None:
    past = len(witness_starts) - 1
    found = np.empty(len(buckets) * members.shape[1], np.int32)  # each bucket full of others
    first_of_text = np.full(len(exact), -1, np.int64)
    for row in range(len(exact)):
        text = exact[row]
        if exact_witness[row] >= 0 or first_of_text[text] >= 0:
            kind[row] = 1
            witness[row] = exact_witness[row] if exact_witness[row] >= 0 else past + first_of_text[text]
            similarities[row] = 1.0
            continue
        own = sets[set_starts[row] : set_starts[row + 1]]
        # The past before this batch: a document's witness is the earliest that serves.
        for place in range(candidate_starts[row], candidate_starts[row + 1]):
            other = candidates[place]
            value = similarity(own, witness_sets[witness_starts[other] : witness_starts[other + 1]], containment)
            if value >= threshold:
                kind[row] = 2
                witness[row] = other
                similarities[row] = value
                break
        if kind[row]:
            continue
        count = _neighbours(buckets, members, row, found)
        for place in range(count):
            other = np.int64(found[place])
            # A byte of each permutation tells most pairs apart before their shingles are merged.
            if agreement(sketches[row], sketches[other]) < least_agreement:
                continue
            value = similarity(own, sets[set_starts[other] : set_starts[other + 1]], containment)
            if value >= threshold:
                kind[row] = 2
                witness[row] = past + other
                similarities[row] = value
                break
        if kind[row] == 0:
            first_of_text[text] = row  # only what is kept may be a witness
            _enter(buckets, filled, members, row, enters)
